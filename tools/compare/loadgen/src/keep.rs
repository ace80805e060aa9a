//! A producer whose client sends one job at a time: so many of its requests are under way at once.

use crate::books::Times;
use crate::run::Seat;
use anyhow::Result;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::future::Future;

/// Keeps the window full until the end is near. What `send` makes ends with the confirmation.
pub async fn keep_under_way<Sent>(seat: &Seat, send: impl Fn(Bytes) -> Sent) -> Result<Times>
where
    Sent: Future<Output = Result<()>>,
{
    let books = &seat.books;
    let window = seat.options.window as usize;
    let mut times = Times::new();
    let mut under_way = FuturesUnordered::new();
    loop {
        let free = (window - under_way.len()) as u64;
        let jobs = match under_way.is_empty() {
            false => books.take(free, 1)?,
            true => match books.wait_and_take(free, 1).await? {
                Some(jobs) => jobs,
                None => return Ok(times),
            },
        };
        let sent_us = books.now_us();
        for number in jobs {
            let sent = send(books.payload(number, sent_us));
            under_way.push(async move { sent.await.map(|()| sent_us) });
        }
        // One, and what else is there already.
        let mut confirmed = under_way.next().await;
        while let Some(sent_us) = confirmed {
            books.enqueued(1, sent_us?, &mut times);
            confirmed = futures::FutureExt::now_or_never(under_way.next()).flatten();
        }
    }
}
