//! Looks after a queue, without async: its settings, its dead jobs, a second chance for them.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example admin 127.0.0.1:7411
//! ```

use rrq::client::blocking::Client;
use rrq::client::{Error, JobFilter, JobState, QueueSettings, SweepAction};
use std::time::Duration;

fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server)?;
    let settings = QueueSettings {
        max_attempts: 1,
        ..QueueSettings::default()
    };
    let queue = client.create_queue("reports", settings, false)?;
    queue.enqueue("November").send()?;
    for job in queue.lease(1, Duration::from_secs(5))? {
        client.nack(job.token(), None, "the printer is out of paper")?;
    }
    for page in queue.scan(queue.calls().scan(JobState::Dead).bodies()) {
        for job in page?.jobs {
            let reason = String::from_utf8_lossy(&job.last_failure).into_owned();
            println!("dead: {:?}, {reason}", job.body.payload);
        }
    }
    let filter = JobFilter {
        reason_contains: "paper".into(),
        ..JobFilter::default()
    };
    println!(
        "{} to requeue",
        queue.count(JobState::Dead, filter.clone())?
    );
    let swept = queue.sweep_dead(SweepAction::Requeue, filter)?;
    let (_, stats) = queue.info()?;
    println!("{} requeued, {} pending", swept.matched, stats.pending);
    queue.delete()
}
