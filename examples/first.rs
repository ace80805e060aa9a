//! The README's program: enqueues a job and works it. Needs a node: `rrq-node --dev`.

use rrq::client::worker::Job;
use rrq::client::{Client, Error, Worker};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect("127.0.0.1:7411").await?;
    let job = client.enqueue("emails", "ada@example.com");
    job.key("welcome-ada").priority(2).await?;

    let worker = Worker::new(&client, "emails").concurrency(16);
    let summary = worker.run_until(tokio::signal::ctrl_c(), send).await?;
    println!("{summary}");
    Ok(())
}

async fn send(job: Job) -> Result<(), String> {
    println!("to {}", String::from_utf8_lossy(job.payload()));
    Ok(()) // an error is tried again later, with its words as the reason
}
