//! NATS JetStream, by the crate `async-nats`: a queue is a stream on files that drops what is
//! acknowledged (work queue), with one durable pull consumer.
//!
//! With `--batch` a request is an atomic batch: all messages but the last are published without an
//! answer, the last commits them. The server keeps at most 50 batches of a stream that are not
//! committed, so that the window is smaller there.
//!
//! An ack is a request whose answer is awaited (what the client calls a double ack), sent over the
//! connection's one inbox for answers, which costs the server less than the client's own call.

use crate::books::{Phase, Times};
use crate::keep::keep_under_way;
use crate::options::Options;
use crate::run::{Seat, refused};
use anyhow::{Context as _, Result};
use async_nats::header::{NATS_BATCH_COMMIT, NATS_BATCH_ID, NATS_BATCH_SEQUENCE};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::{HeaderMap, Request};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use std::time::Duration;

const CONSUMER: &str = "workers";
/// Batches of a stream that the server takes before it has seen their end.
const BATCHES_OF_STREAM_MAX: usize = 50;
const PATIENCE: Duration = Duration::from_secs(60);
/// A consumer that gets nothing looks for the end after this.
const LOOK: Duration = Duration::from_millis(300);

async fn connect(options: &Options) -> Result<Context> {
    let connect = async_nats::ConnectOptions::new().request_timeout(Some(PATIENCE));
    let client = connect
        .connect(format!("127.0.0.1:{}", options.port))
        .await?;
    let builder = ContextBuilder::new().timeout(PATIENCE);
    let builder = builder.ack_timeout(PATIENCE).max_ack_inflight(100_000);
    Ok(builder.build(client))
}

/// Makes the streams and their consumers.
pub async fn prepare(options: &Options) -> Result<()> {
    let jetstream = connect(options).await?;
    for name in options.queue_names() {
        let config = Config {
            subjects: vec![name.clone()],
            name,
            retention: RetentionPolicy::WorkQueue,
            storage: StorageType::File,
            allow_atomic_publish: options.batch > 1,
            ..Config::default()
        };
        let stream = jetstream.create_stream(config).await?;
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(120),
            max_ack_pending: 1_000_000,
            ..pull::Config::default()
        };
        stream.create_consumer(config).await?;
    }
    Ok(())
}

/// Messages that are there, delivered or not.
pub async fn left(options: &Options) -> Result<u64> {
    let jetstream = connect(options).await?;
    let mut left = 0;
    for name in options.queue_names() {
        let mut stream = jetstream.get_stream(name).await?;
        left += stream.info().await?.state.messages;
    }
    Ok(left)
}

pub async fn produce(seat: Seat) -> Result<Times> {
    let jetstream = connect(&seat.options).await?;
    let subject = async_nats::Subject::from(seat.queue());
    let (books, options) = (&seat.books, &seat.options);
    let window = options.window as usize;
    seat.start.wait().await;
    if options.batch > 1 {
        let sharing = options.producers.div_ceil(options.queues) as usize;
        let window = window.min(BATCHES_OF_STREAM_MAX / sharing).max(1);
        let client = jetstream.client();
        let times = keep_under_way(&seat, window, |jobs, sent_us| {
            let payloads = jobs
                .clone()
                .map(|job| books.payload(job, sent_us))
                .collect();
            let id = format!("{}-{}", seat.number, jobs.start);
            publish_batch(client.clone(), subject.clone(), id, payloads)
        });
        return times.await;
    }
    let times = keep_under_way(&seat, window, |jobs, sent_us| {
        let (jetstream, subject) = (&jetstream, subject.clone());
        let payload = books.payload(jobs.start, sent_us);
        async move {
            jetstream.publish(subject, payload).await?.await?;
            Ok(())
        }
    });
    times.await
}

/// All of them or none; confirmed by the answer to the last.
async fn publish_batch(
    client: async_nats::Client,
    subject: async_nats::Subject,
    id: String,
    mut payloads: Vec<Bytes>,
) -> Result<()> {
    let headers = |sequence: usize| {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_BATCH_ID, id.as_str());
        headers.insert(NATS_BATCH_SEQUENCE, sequence.to_string());
        headers
    };
    let count = payloads.len();
    let last = payloads.pop().context("a batch has a message")?;
    for (before, payload) in payloads.into_iter().enumerate() {
        let headers = headers(before + 1);
        let published = client.publish_with_headers(subject.clone(), headers, payload);
        published.await?;
    }
    let mut headers = headers(count);
    headers.insert(NATS_BATCH_COMMIT, "1");
    let commit = Request::new().headers(headers).payload(last);
    let answer = client.send_request(subject, commit).await?;
    let answer: Value = serde_json::from_slice(&answer.payload)?;
    match answer["count"].as_u64() == Some(count as u64) {
        true => Ok(()),
        false => refused("a batch", answer),
    }
}

pub async fn consume(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let jetstream = connect(options).await?;
    let client = jetstream.client();
    let stream = jetstream.get_stream(seat.queue()).await?;
    let consumer = stream.get_consumer::<pull::Config>(CONSUMER).await;
    let consumer = consumer.map_err(|error| anyhow::anyhow!(error))?;
    let window = options.window as usize;
    let messages = consumer.stream().max_messages_per_batch(window);
    let mut messages = messages.messages().await?;
    let mut times = Times::new();
    let mut acks = FuturesUnordered::new();
    seat.start.wait().await;
    while books.phase() < Phase::Over {
        tokio::select! {
            Some(acked) = acks.next() => {
                let acked: Result<_> = acked;
                books.completed(acked?, &mut times);
                books.tell_room();
            }
            message = messages.next(), if acks.len() < window => {
                let message = message.context("the server ended the consumer")??;
                let job = books.held(&message.payload)?;
                let to = message.message.reply.context("a message has no place for its ack")?;
                let client = &client;
                acks.push(async move {
                    let answer = client.request(to, Bytes::from_static(b"+ACK")).await?;
                    match answer.status {
                        None => Ok(job),
                        status => refused("an ack", status),
                    }
                });
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    Ok(times)
}
