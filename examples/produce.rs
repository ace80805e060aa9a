//! Enqueues one job, as often as you like: its key makes it one.
//!
//! ```console
//! $ cargo run --no-default-features --features client --example produce 127.0.0.1:7411
//! ```

use rrq::client::{Client, Error};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let server = std::env::args().nth(1).unwrap_or("127.0.0.1".to_owned());
    let client = Client::connect(server).await?;
    let id = client
        .enqueue("emails", "ada@example.com")
        .key("welcome-ada")
        .header("template", "welcome")
        .id()
        .await?;
    println!("enqueued {id}");
    client.close().await;
    Ok(())
}
