//! NATS JetStream, by the crate `async-nats`: a queue is a stream on files that drops what is
//! acknowledged (work queue), with one durable pull consumer.
//!
//! An ack is a request whose answer is awaited (what the client calls a double ack), sent over the
//! connection's one inbox for answers, which costs the server less than the client's own call.

use crate::books::{Phase, Times};
use crate::keep::keep_under_way;
use crate::options::Options;
use crate::run::{Seat, refused};
use anyhow::{Context as _, Result};
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::time::Duration;

const CONSUMER: &str = "workers";
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
    seat.start.wait().await;
    let times = keep_under_way(&seat, |payload| {
        let (jetstream, subject) = (&jetstream, subject.clone());
        async move {
            jetstream.publish(subject, payload).await?.await?;
            Ok(())
        }
    });
    times.await
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
