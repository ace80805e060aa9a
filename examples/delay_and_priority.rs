//! Jobs that wait, and jobs that go first: what a worker gets, in which order.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example delay_and_priority 127.0.0.1:7411
//! ```

use rrq::client::{Client, Error};
use std::time::{Duration, SystemTime};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server).await?;
    let queue = client.queue("errands").await?;
    let soon = SystemTime::now() + Duration::from_secs(1);
    queue.enqueue("at a time").run_at(soon).await?;
    queue
        .enqueue("after a while")
        .delay(Duration::from_secs(2))
        .await?;
    queue.enqueue("first in, first out").await?;
    queue.enqueue("next").ttl(Duration::from_secs(3600)).await?;
    queue.enqueue("urgent").priority(0).await?;
    for _ in 0..5 {
        for job in queue.lease(1, Duration::from_secs(10)).await? {
            println!("{}", String::from_utf8_lossy(&job.job.body.payload));
            client.ack(job.token(), None).await?;
        }
    }
    client.close().await;
    Ok(())
}
