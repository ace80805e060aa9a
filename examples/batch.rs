//! Enqueues many jobs, each with a key of its own so that a second run adds none: 1024 in a request,
//! several requests under way at once.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example batch 127.0.0.1:7411
//! ```

use rrq::client::{Client, Enqueued, Error, NewJob};
use tokio::task::JoinSet;

const JOBS: u32 = 10_000;
const BATCH: usize = 1024;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server).await?;
    let numbers = client.queue("numbers").await?;
    let job = |n: u32| NewJob::from(n.to_string()).key(format!("number {n}"));
    let jobs: Vec<NewJob> = (0..JOBS).map(job).collect();
    let mut calls = JoinSet::new();
    for batch in jobs.chunks(BATCH) {
        let (numbers, batch) = (numbers.clone(), batch.to_vec());
        calls.spawn(async move { numbers.enqueue_batch(batch).await });
    }
    let (mut new, mut known) = (0, 0);
    while let Some(Ok(answer)) = calls.join_next().await {
        for job in answer? {
            match job {
                Enqueued::New(_) => new += 1,
                Enqueued::Existing(_) => known += 1,
                Enqueued::Rejected(why) => eprintln!("a job was refused: {why:?}"),
            }
        }
    }
    let (_, stats) = numbers.info().await?;
    println!(
        "{new} enqueued, {known} already there, {} pending",
        stats.pending
    );
    client.close().await;
    Ok(())
}
