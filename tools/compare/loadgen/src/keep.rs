//! A producer whose client awaits each request by itself: so many of them are under way at once.

use crate::books::Times;
use crate::run::Seat;
use anyhow::Result;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::future::Future;
use std::ops::Range;

/// Keeps a window full until the end is near. `send` gets the numbers of a request's jobs and the
/// moment at which they are sent; what it makes ends with the confirmation.
pub async fn keep_under_way<Sent>(
    seat: &Seat,
    window: usize,
    send: impl Fn(Range<u64>, u64) -> Sent,
) -> Result<Times>
where
    Sent: Future<Output = Result<()>>,
{
    let books = &seat.books;
    let batch = u64::from(seat.options.batch);
    let mut times = Times::new();
    let mut under_way = FuturesUnordered::new();
    loop {
        let free = (window - under_way.len()) as u64;
        let jobs = match under_way.is_empty() {
            false => books.take(free, batch)?,
            true => match books.wait_and_take(free, batch).await? {
                Some(jobs) => jobs,
                None => return Ok(times),
            },
        };
        let sent_us = books.now_us();
        for first in jobs.step_by(batch as usize) {
            let sent = send(first..first + batch, sent_us);
            under_way.push(async move { sent.await.map(|()| sent_us) });
        }
        // One, and what else is there already.
        let mut confirmed = under_way.next().await;
        while let Some(sent_us) = confirmed {
            books.enqueued(batch, sent_us?, &mut times);
            confirmed = futures::FutureExt::now_or_never(under_way.next()).flatten();
        }
    }
}
