//! Waits for what a worker makes of a job: its queue retains the last thousand results.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example results 127.0.0.1:7411
//! ```

use rrq::client::worker::Job;
use rrq::client::{Client, Ended, Error, QueueSettings, Worker};
use std::time::Duration;

async fn square(job: Job) -> Result<String, Box<dyn std::error::Error>> {
    let number: u64 = std::str::from_utf8(job.payload())?.parse()?;
    Ok((number * number).to_string())
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server).await?;
    let settings = QueueSettings {
        retain: 1000,
        ..QueueSettings::default()
    };
    client.create_queue("squares", settings, false).await?;
    let worker = Worker::new(&client, "squares").run(square);
    let ask = async {
        let id = client.enqueue("squares", "12").id().await?;
        client.wait(id, Duration::from_secs(30)).await
    };
    let ended = tokio::select! {
        ended = ask => ended?,
        failed = worker => return failed.map(|_| ()),
    };
    match ended {
        Ended::Finished(job) => println!("12 * 12 = {:?}", job.result.unwrap_or_default()),
        other => println!("{other:?}"),
    }
    client.close().await;
    Ok(())
}
