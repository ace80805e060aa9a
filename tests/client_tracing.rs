//! What the client tells `tracing`: spans of calls with queue, job and code, never a payload.
#![cfg(feature = "client")]

mod client_support;

use client_support::script::{Answer, serve, uid};
use client_support::soon;
use rrq::base::ids::{GroupId, JobId, Partition, Token};
use rrq::client::{Client, Enqueued};
use rrq::wire::message::ReplyBody;
use rrq::wire::message::RequestBody;
use rrq::wire::{ItemOutcome, Op, Outcome, Rejection};
use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Writes every span and event as a line.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = write!(self.0, " {field}={value:?}");
    }
}

impl Lines {
    fn add(&self, metadata: &Metadata<'_>, kind: &str, record: impl FnOnce(&mut Line)) {
        let mut line = Line(format!("{kind} {}", metadata.name()));
        record(&mut line);
        if metadata.target().starts_with("rrq::client") {
            self.0.lock().expect("no panic").push(line.0);
        }
    }
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.add(span.metadata(), "span", |line| span.record(line));
        Id::from_u64(1)
    }

    fn event(&self, event: &Event<'_>) {
        self.add(event.metadata(), "event", |line| event.record(line));
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[tokio::test]
async fn calls_and_reconnects_are_told_without_payloads() {
    let job = JobId::new(GroupId(0), uid(), Partition(0), 9);
    let mut enqueues = 0;
    let address = serve(1, move |request| match request {
        RequestBody::Command { command, .. } => match &command.op {
            Op::Enqueue { .. } => {
                enqueues += 1;
                match enqueues {
                    1 => Answer::Close,
                    _ => {
                        let done = Outcome::Enqueued(vec![Enqueued::New(job)]);
                        Answer::Now(ReplyBody::Outcome(done))
                    }
                }
            }
            Op::Ack { .. } => {
                let lost = vec![ItemOutcome::Rejected(Rejection::LeaseLost)];
                Answer::Now(ReplyBody::Outcome(Outcome::Items(lost)))
            }
            _ => Answer::Usual,
        },
        _ => Answer::Usual,
    })
    .await;
    let lines = Lines::default();
    let _told = tracing::subscriber::set_default(lines.clone());
    let client = Client::connect(address).await.expect("connected");
    let secret = client
        .enqueue("emails", "a secret")
        .key("a secret key")
        .header("a", "secret");
    soon(secret.into_future()).await.expect("enqueued");
    let token = Token { job, lease_gen: 1 };
    client
        .ack(token, Some("a secret".into()))
        .await
        .expect_err("lost");
    let lines = lines.0.lock().expect("no panic").join("\n");
    for told in [
        "span enqueue queue=emails jobs=1",
        "message=connected",
        "message=connection lost",
        "message=no answer; to be sent again",
        &format!("job={job}"),
        "span jobs call=\"ack\" items=1",
        "code=RRQ-4109",
    ] {
        assert!(lines.contains(told), "{told} is not told:\n{lines}");
    }
    assert!(!lines.contains("secret"), "{lines}");
}
