//! Works on a queue until Ctrl-C or, with `--until-empty`, until nothing is left.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example work 127.0.0.1:7411
//! ```

use rrq::client::worker::Job;
use rrq::client::{Client, Error, Worker};

async fn send(job: Job) -> Result<(), String> {
    let address = String::from_utf8_lossy(job.payload());
    match address.contains('@') {
        true => println!("sent to {address}"),
        false => return Err(format!("{address} is no address")),
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server).await?;
    let mut worker = Worker::new(&client, "emails").concurrency(16);
    if std::env::args().any(|argument| argument == "--until-empty") {
        worker = worker.until_empty();
    }
    let summary = worker.run_until(tokio::signal::ctrl_c(), send).await?;
    println!("{summary}");
    client.close().await;
    Ok(())
}
