//! RabbitMQ, by the crate `lapin`: quorum queues, publisher confirms, prefetch and ack.
//!
//! AMQP 0.9.1 does not confirm an ack. It counts here once it is written to the connection, which
//! is in RabbitMQ's favour; what the server did with it is seen at the end, when nothing may be
//! left in a queue.

use crate::books::{Phase, Times};
use crate::keep::keep_under_way;
use crate::options::Options;
use crate::run::{Seat, refused};
use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use std::time::Duration;

/// A consumer that gets nothing looks for the end after this.
const LOOK: Duration = Duration::from_millis(300);
/// Persistent, as quorum queues make it anyway.
const DELIVERY_MODE: u8 = 2;

async fn connect(options: &Options) -> Result<(Connection, Channel)> {
    let uri = format!("amqp://127.0.0.1:{}/%2f", options.port);
    let connection = Connection::connect(&uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

/// Makes the queues.
pub async fn prepare(options: &Options) -> Result<()> {
    let (_connection, channel) = connect(options).await?;
    let mut kind = FieldTable::default();
    kind.insert(
        "x-queue-type".into(),
        AMQPValue::LongString("quorum".into()),
    );
    for queue in options.queue_names() {
        let declare = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        let declared = channel.queue_declare(queue.as_str().into(), declare, kind.clone());
        declared.await?;
    }
    Ok(())
}

/// Messages that are there; all consumers have gone, so that what they held is ready again.
pub async fn left(options: &Options) -> Result<u64> {
    let (_connection, channel) = connect(options).await?;
    let mut left = 0;
    for queue in options.queue_names() {
        let ask = QueueDeclareOptions {
            durable: true,
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let asked = channel.queue_declare(queue.as_str().into(), ask, FieldTable::default());
        left += u64::from(asked.await?.message_count());
    }
    Ok(left)
}

pub async fn produce(seat: Seat) -> Result<Times> {
    let (connection, channel) = connect(&seat.options).await?;
    channel
        .confirm_select(ConfirmSelectOptions::default())
        .await?;
    let queue = seat.queue();
    seat.start.wait().await;
    let times = keep_under_way(&seat, seat.options.window as usize, |jobs, sent_us| {
        let payload = seat.books.payload(jobs.start, sent_us);
        let (channel, queue) = (&channel, &queue);
        async move {
            let sent = channel.basic_publish(
                "".into(),
                queue.as_str().into(),
                BasicPublishOptions::default(),
                &payload,
                BasicProperties::default().with_delivery_mode(DELIVERY_MODE),
            );
            let confirmation = sent.await?.await?;
            match confirmation.is_ack() {
                true => Ok(()),
                false => refused("a message", confirmation),
            }
        }
    });
    let times = times.await?;
    connection.close(200, "done".into()).await?;
    Ok(times)
}

pub async fn consume(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let (connection, channel) = connect(options).await?;
    let window = u16::try_from(options.window).context("--window is too large for a prefetch")?;
    channel
        .basic_qos(window, BasicQosOptions::default())
        .await?;
    let consumer = channel.basic_consume(
        seat.queue().as_str().into(),
        "".into(),
        BasicConsumeOptions::default(),
        FieldTable::default(),
    );
    let mut deliveries = consumer.await?.ready_chunks(window.into());
    let mut times = Times::new();
    seat.start.wait().await;
    while books.phase() < Phase::Over {
        let Ok(chunk) = tokio::time::timeout(LOOK, deliveries.next()).await else {
            continue;
        };
        let chunk = chunk.context("the server ended the consumer")?;
        let chunk = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
        let held = chunk.iter().map(|delivery| books.held(&delivery.data));
        let held = held.collect::<Result<Vec<_>>>()?;
        let acks = chunk.iter().map(|it| it.ack(BasicAckOptions::default()));
        try_join_all(acks).await?;
        held.into_iter()
            .for_each(|job| books.completed(job, &mut times));
        books.tell_room();
    }
    connection.close(200, "done".into()).await?;
    Ok(times)
}
