//! Enqueues many jobs: 1024 in a request, several requests under way at once.
//!
//! ```console
//! $ cargo run --example batch 127.0.0.1:7411
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
    let jobs: Vec<NewJob> = (0..JOBS).map(|n| n.to_string().into()).collect();
    let mut calls = JoinSet::new();
    for batch in jobs.chunks(BATCH) {
        let (numbers, batch) = (numbers.clone(), batch.to_vec());
        calls.spawn(async move { numbers.enqueue_batch(batch).await });
    }
    let mut new = 0;
    while let Some(Ok(answer)) = calls.join_next().await {
        new += answer?.into_iter().filter_map(Enqueued::id).count();
    }
    let (_, stats) = numbers.info().await?;
    println!("{new} enqueued, {} pending", stats.pending);
    client.close().await;
    Ok(())
}
