//! Metrics and health over HTTP, on a thread of its own: a slow reader delays no job.
//!
//! Nothing here asks a shard: shards publish, this reads. So no answer can hang.
//!
//! | path | says |
//! | --- | --- |
//! | `/livez` | the process runs: shards that do not are ended by the poker |
//! | `/readyz` | 200 if every shard serves, else 503 and why |
//! | `/metrics` | the Prometheus text format |

use crate::runtime::metrics::NodeMetrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::net::TcpListener;
use std::sync::Arc;

/// Starts the thread.
///
/// # Errors
/// If there is no thread or reactor for it.
pub fn start(listener: TcpListener, metrics: Arc<NodeMetrics>) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(metrics);
    std::thread::Builder::new()
        .name("rrq-admin".into())
        .spawn(move || {
            runtime.block_on(async move {
                let served = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => axum::serve(listener, routes).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    tracing::error!(%error, "metrics and health are not served any more");
                }
            });
        })?;
    Ok(())
}

async fn ready(State(metrics): State<Arc<NodeMetrics>>) -> impl IntoResponse {
    match metrics.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn scrape(State(metrics): State<Arc<NodeMetrics>>) -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    match metrics.text() {
        Ok(text) => (StatusCode::OK, kind, text),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            kind,
            format!("{error}\n"),
        ),
    }
}
