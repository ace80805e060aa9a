//! Metrics, health and a JSON view over HTTP, on a thread of its own: a slow reader delays no job.
//!
//! `/metrics` and the health paths read what the shards publish and ask nobody, so they answer
//! whatever the shards do. The others ask the shards through their mailboxes ([`crate::runtime::desk`])
//! and say 503 if one does not answer within a second. Nothing here changes anything.
//!
//! | path | says |
//! | --- | --- |
//! | `/livez` | the process runs: shards that do not are ended by the poker |
//! | `/readyz`, `/healthz` | 200 if every shard serves, else 503 and why |
//! | `/metrics` | the node and its shards, in the Prometheus text format |
//! | `/metrics/queues` | queues and groups, likewise: as many lines as there are queues |
//! | `/api/v1/status` | node, shards, groups |
//! | `/api/v1/queues` | queues with their settings and counters |
//! | `/api/v1/jobs/ID` | a live job |
//! | `/api/v1/dead?queue=NAME&limit=N` | dead jobs with the reasons |
//! | `/api/v1/workers` | sessions that hold jobs or wait for some |

use crate::runtime::api::{self, Api};
use crate::runtime::guest::Door;
use crate::runtime::metrics::NodeMetrics;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::TcpListener;
use std::sync::Arc;

/// Starts the thread.
///
/// # Errors
/// If there is no thread or reactor for it.
pub fn start(listener: TcpListener, metrics: Arc<NodeMetrics>, api: Api) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/healthz", get(ready))
        .route("/metrics", get(scrape))
        .with_state(metrics)
        .merge(api::routes(api));
    std::thread::Builder::new()
        .name("rrq-admin".into())
        .spawn(move || {
            runtime.block_on(async move {
                let served = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => axum::serve(Door::new(listener), routes).await,
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

async fn scrape(State(metrics): State<Arc<NodeMetrics>>) -> Response {
    exposition(metrics.text())
}

/// A page for Prometheus.
pub(super) fn exposition(text: Result<String, prometheus::Error>) -> Response {
    let kind = [(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)];
    match text {
        Ok(text) => (StatusCode::OK, kind, text).into_response(),
        Err(error) => {
            let text = format!("{error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, kind, text).into_response()
        }
    }
}
