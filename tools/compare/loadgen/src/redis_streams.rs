//! Redis Streams, by the crate `redis`: a queue is a stream with one consumer group.
//!
//! A producer sends its whole window of XADDs as one pipeline and waits for all answers; that is
//! the cheapest way for both sides. Redis has no request of many jobs: with `--batch` the pipeline
//! is that much longer. A consumer reads up to its window, then sends an XACK and an XDEL a job in
//! one pipeline: an entry that is only acknowledged would stay in the stream for ever.

use crate::books::Times;
use crate::options::Options;
use crate::run::{Seat, refused};
use anyhow::{Context, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value, cmd, pipe};
use std::time::Duration;

const GROUP: &str = "workers";
/// A reader that finds nothing looks again after this.
const BLOCK_MS: u64 = 300;

async fn connect(options: &Options) -> Result<MultiplexedConnection> {
    let client = Client::open(format!("redis://127.0.0.1:{}", options.port))?;
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
    let connected = client.get_multiplexed_async_connection_with_config(&config);
    Ok(connected.await?)
}

/// Makes the streams and their groups.
pub async fn prepare(options: &Options) -> Result<()> {
    let mut connection = connect(options).await?;
    for stream in options.queue_names() {
        let mut make = cmd("XGROUP");
        make.arg("CREATE").arg(&stream).arg(GROUP).arg("0");
        make.arg("MKSTREAM");
        make.query_async::<()>(&mut connection).await?;
    }
    Ok(())
}

/// Entries that are there, delivered or not.
pub async fn left(options: &Options) -> Result<u64> {
    let mut connection = connect(options).await?;
    let mut left = 0;
    for stream in options.queue_names() {
        let mut length = cmd("XLEN");
        length.arg(&stream);
        left += length.query_async::<u64>(&mut connection).await?;
    }
    Ok(left)
}

pub async fn produce(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let mut connection = connect(options).await?;
    let stream = seat.queue();
    let mut times = Times::new();
    let mut payload = Vec::new();
    let (window, batch) = (options.window.into(), options.batch.into());
    seat.start.wait().await;
    while let Some(jobs) = books.wait_and_take(window, batch).await? {
        let count = jobs.end - jobs.start;
        let sent_us = books.now_us();
        let mut adds = pipe();
        for number in jobs {
            payload.clear();
            books.write_payload(number, sent_us, &mut payload);
            let add = adds.cmd("XADD").arg(&stream).arg("*");
            add.arg("p").arg(payload.as_slice());
        }
        let ids: Vec<Value> = adds.query_async(&mut connection).await?;
        let is_id = |value: &Value| matches!(value, Value::BulkString(_));
        if ids.len() as u64 != count || !ids.iter().all(is_id) {
            return refused("an XADD", ids);
        }
        books.enqueued(count, sent_us, &mut times);
    }
    Ok(times)
}

pub async fn consume(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let mut connection = connect(options).await?;
    let stream = seat.queue();
    let mut times = Times::new();
    let mut read = cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg(seat.number);
    read.arg("COUNT").arg(options.window);
    read.arg("BLOCK").arg(BLOCK_MS);
    read.arg("STREAMS").arg(&stream).arg(">");
    seat.start.wait().await;
    while books.phase() < crate::books::Phase::Over {
        let answer: Value = read.query_async(&mut connection).await?;
        let mut held = Vec::new();
        let mut acks = pipe();
        for (id, payload) in entries(&answer).context("an answer of XREADGROUP")? {
            held.push(books.held(payload)?);
            acks.cmd("XACK").arg(&stream).arg(GROUP).arg(id);
            acks.cmd("XDEL").arg(&stream).arg(id);
        }
        if held.is_empty() {
            continue;
        }
        let counts: Vec<u64> = acks.query_async(&mut connection).await?;
        if counts.len() != 2 * held.len() || counts.iter().any(|count| *count != 1) {
            return refused("an XACK or XDEL", counts);
        }
        held.into_iter()
            .for_each(|job| books.completed(job, &mut times));
        books.tell_room();
    }
    Ok(times)
}

/// Ids and payloads of `[[stream, [[id, [field, payload]], ..]]]`; none if nothing came in time.
fn entries(answer: &Value) -> Option<Vec<(&[u8], &[u8])>> {
    fn array(value: &Value) -> Option<&[Value]> {
        match value {
            Value::Array(values) => Some(values),
            _ => None,
        }
    }
    fn bytes(value: &Value) -> Option<&[u8]> {
        match value {
            Value::BulkString(bytes) => Some(bytes),
            _ => None,
        }
    }
    if *answer == Value::Nil {
        return Some(Vec::new());
    }
    let [stream] = array(answer)? else {
        return None;
    };
    let entries = array(array(stream)?.get(1)?)?;
    entries
        .iter()
        .map(|entry| {
            let entry = array(entry)?;
            Some((
                bytes(entry.first()?)?,
                bytes(array(entry.get(1)?)?.get(1)?)?,
            ))
        })
        .collect()
}
