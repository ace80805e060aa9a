//! `/api/v1` and `/metrics/queues`: what only the shards know, asked with a deadline.
//!
//! Each answer is one object. An error is `{"error": {"code": "RRQ-4014", "message": "..."}}` with
//! the status that fits it. Groups that do not serve are left out of lists and named in `status`.

use crate::base::code::Code;
use crate::base::ids::{ClusterId, GroupId, JobId, NodeId, Partition, ShardId};
use crate::runtime::admin::exposition;
use crate::runtime::desk::{ANSWER_WITHIN, Desk, refusal};
use crate::runtime::json;
use crate::runtime::metrics::NodeMetrics;
use crate::shard::placement::home_group;
use crate::wire::message::{ErrorReply, ReplyBody, RequestBody, ShardStatus};
use crate::wire::{JobState, Outcome, QueueInfo, QueueStats};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use prometheus::{GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// Dead jobs of an answer, at most and if nothing is said.
const DEAD_MAX: u32 = 1000;
const DEAD_DEFAULT: u32 = 100;

/// What the answers are made from.
#[derive(Clone, Debug)]
pub struct Api {
    /// To ask the shards.
    pub desk: Arc<Desk>,
    /// Whether they serve.
    pub metrics: Arc<NodeMetrics>,
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: ClusterId,
    /// Groups of the cluster.
    pub groups: u32,
}

/// An error with the status that fits it.
struct Wrong(ErrorReply);

impl From<ErrorReply> for Wrong {
    fn from(error: ErrorReply) -> Self {
        Self(error)
    }
}

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        let Self(error) = self;
        let status = match error.code {
            Code::BadRequest | Code::BadArgument => StatusCode::BAD_REQUEST,
            Code::NoSuchQueue | Code::NotFound | Code::QueueChanged => StatusCode::NOT_FOUND,
            Code::Finished => StatusCode::GONE,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = json!({
            "error": {"code": error.code.to_string(), "message": error.message}
        });
        (status, Json(body)).into_response()
    }
}

type Answer = Result<Json<Value>, Wrong>;

/// The paths of this file.
pub fn routes(api: Api) -> Router {
    Router::new()
        .route("/metrics/queues", get(queue_metrics))
        .route("/api/v1/status", get(status))
        .route("/api/v1/queues", get(queues))
        .route("/api/v1/jobs/{id}", get(job))
        .route("/api/v1/dead", get(dead))
        .route("/api/v1/workers", get(workers))
        .with_state(api)
}

async fn status(State(api): State<Api>) -> Answer {
    let shards = api.shards().await?;
    let shards: Vec<Value> = shards
        .iter()
        .map(|shard| {
            let mut shown = json::shard(shard);
            // The shard counts who asks here, too; what it publishes is clients alone.
            let published = api.metrics.shards.get(usize::from(shard.shard));
            shown["connections"] = published.map(|of| of.connections.load(Relaxed)).into();
            shown
        })
        .collect();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cluster": api.cluster.to_string(),
        "node": api.node.0,
        "groups": api.groups,
        "ready": api.metrics.not_ready().is_none(),
        "shards": shards,
    })))
}

async fn queues(State(api): State<Api>) -> Answer {
    let mut queues = api.queues(&api.shards().await?).await?;
    queues.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    let queues: Vec<Value> = queues
        .iter()
        .map(|(info, stats)| json::queue(info, stats))
        .collect();
    Ok(Json(json!({ "queues": queues })))
}

async fn job(State(api): State<Api>, Path(id): Path<String>) -> Answer {
    let job: JobId = id
        .parse()
        .map_err(|error| refusal(Code::BadRequest, format!("{id} is no job id: {error}")))?;
    if u32::from(job.group().0) >= api.groups {
        return Err(refusal(Code::NotFound, "no such job was ever made here").into());
    }
    match api.one(job.group(), RequestBody::GetJob { job }).await? {
        ReplyBody::Job(job) => Ok(Json(json!({ "job": json::job(&job, true) }))),
        other => Err(unexpected(other)),
    }
}

#[derive(Debug, Deserialize)]
struct DeadQuery {
    queue: String,
    limit: Option<u32>,
}

async fn dead(State(api): State<Api>, Query(query): Query<DeadQuery>) -> Answer {
    let home = home_group(&query.queue, api.groups);
    let ask = RequestBody::GetQueue {
        name: query.queue,
        create: false,
    };
    let (info, _) = match api.one(home, ask).await? {
        ReplyBody::Queues(queues) if queues.len() == 1 => queues[0].clone(),
        other => return Err(unexpected(other)),
    };
    let limit = query.limit.unwrap_or(DEAD_DEFAULT).min(DEAD_MAX);
    let mut jobs = Vec::new();
    for (partition, group) in info.groups.iter().enumerate() {
        let left = limit - jobs.len() as u32;
        if left == 0 {
            break;
        }
        let ask = RequestBody::Peek {
            queue: info.uid,
            partition: Partition(partition as u8),
            group: *group,
            state: JobState::Dead,
            limit: left,
        };
        match api.one(*group, ask).await? {
            ReplyBody::Jobs(found) => {
                jobs.extend(found.iter().map(|job| json::job(job, false)));
            }
            other => return Err(unexpected(other)),
        }
    }
    Ok(Json(json!({"queue": info.name, "jobs": jobs})))
}

async fn workers(State(api): State<Api>) -> Answer {
    let groups = serving(&api.shards().await?);
    let mut all = Vec::new();
    for (group, body) in api
        .each(groups, |group| RequestBody::ListWorkers { group })
        .await?
    {
        match body {
            ReplyBody::Workers(found) => {
                all.extend(found.iter().map(|worker| json::worker(group, worker)));
            }
            // A group whose job machine is older than this question.
            ReplyBody::Outcome(Outcome::Rejected(_)) => {}
            other => return Err(unexpected(other)),
        }
    }
    Ok(Json(json!({ "workers": all })))
}

async fn queue_metrics(State(api): State<Api>) -> Response {
    let ask = async || -> Result<_, ErrorReply> {
        let shards = api.shards().await?;
        let queues = api.queues(&shards).await?;
        Ok((shards, queues))
    };
    match ask().await {
        Ok((shards, queues)) => exposition(text(&shards, &queues)),
        Err(error) => Wrong(error).into_response(),
    }
}

impl Api {
    /// The status of every shard.
    async fn shards(&self) -> Result<Vec<ShardStatus>, ErrorReply> {
        if let Some(why) = self.metrics.not_ready() {
            return Err(refusal(Code::NotLeader, why));
        }
        let by = Instant::now() + ANSWER_WITHIN;
        let mut questions = Vec::new();
        for shard in 0..self.desk.shards() {
            questions.push(self.desk.ask(ShardId(shard), RequestBody::Status)?);
        }
        let mut all = Vec::new();
        for question in questions {
            if let ReplyBody::Status(status) = self.desk.answered(question, by).await? {
                all.push(status);
            }
        }
        Ok(all)
    }

    /// The queues at home in the groups that serve.
    async fn queues(
        &self,
        shards: &[ShardStatus],
    ) -> Result<Vec<(QueueInfo, QueueStats)>, ErrorReply> {
        let mut all = Vec::new();
        let groups = serving(shards);
        let ask = |group| RequestBody::ListQueues { group };
        for (_, body) in self.each(groups, ask).await? {
            if let ReplyBody::Queues(queues) = body {
                all.extend(queues);
            }
        }
        Ok(all)
    }

    /// Asks several groups one thing.
    async fn each(
        &self,
        groups: Vec<GroupId>,
        body: impl Fn(GroupId) -> RequestBody,
    ) -> Result<Vec<(GroupId, ReplyBody)>, ErrorReply> {
        let by = Instant::now() + ANSWER_WITHIN;
        let mut questions = Vec::new();
        for group in groups {
            questions.push((group, self.desk.ask_group(group, body(group))?));
        }
        let mut all = Vec::new();
        for (group, question) in questions {
            all.push((group, self.desk.answered(question, by).await?));
        }
        Ok(all)
    }

    async fn one(&self, group: GroupId, body: RequestBody) -> Result<ReplyBody, ErrorReply> {
        if let Some(why) = self.metrics.not_ready() {
            return Err(refusal(Code::NotLeader, why));
        }
        let question = self.desk.ask_group(group, body)?;
        let by = Instant::now() + ANSWER_WITHIN;
        self.desk.answered(question, by).await
    }
}

/// What is no answer to the question: mostly a rejection of the job machine.
fn unexpected(body: ReplyBody) -> Wrong {
    match body {
        ReplyBody::Outcome(Outcome::Rejected(rejection)) => {
            let code = rejection.code();
            let title = crate::base::catalogue::entry(code).title;
            Wrong(refusal(code, title))
        }
        other => Wrong(refusal(Code::Bug, format!("not an answer: {other:?}"))),
    }
}

fn serving(shards: &[ShardStatus]) -> Vec<GroupId> {
    let groups = shards.iter().flat_map(|shard| &shard.groups);
    let serving = groups.filter(|group| group.halted.is_empty() && group.leader);
    serving.map(|group| group.group).collect()
}

/// A number of a queue, and how it is read.
type OfQueue = (&'static str, &'static str, fn(&QueueStats) -> u64);

const QUEUE_TOTALS: &[OfQueue] = &[
    ("jobs_enqueued_total", "Jobs enqueued.", |stats| {
        stats.enqueued_total
    }),
    ("jobs_leased_total", "Grants of jobs.", |stats| {
        stats.leased_total
    }),
    ("jobs_acked_total", "Jobs acknowledged.", |stats| {
        stats.completed_total
    }),
    ("jobs_nacked_total", "Jobs that failed.", |stats| {
        stats.nacked_total
    }),
    (
        "jobs_lease_expired_total",
        "Leases that ended by time or with their worker.",
        |stats| stats.expired_total,
    ),
    (
        "jobs_dead_total",
        "Jobs that used up their attempts or their time.",
        |stats| stats.dead_total,
    ),
    ("jobs_cancelled_total", "Jobs cancelled.", |stats| {
        stats.cancelled_total
    }),
];
const QUEUE_GAUGES: &[OfQueue] = &[
    ("bytes", "Payload bytes of all live jobs.", |stats| {
        stats.bytes
    }),
    ("keys", "Idempotency keys remembered.", |stats| stats.keys),
];
const QUEUE_STATES: &[OfQueue] = &[
    ("pending", "", |stats| stats.pending),
    ("delayed", "", |stats| stats.delayed),
    ("in_flight", "", |stats| stats.in_flight),
    ("dead", "", |stats| stats.dead),
];

/// The page of queues and groups.
fn text(
    shards: &[ShardStatus],
    queues: &[(QueueInfo, QueueStats)],
) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let jobs = Opts::new("rrq_jobs", "Live jobs by state.");
    let jobs = IntGaugeVec::new(jobs, &["queue", "state"])?;
    let oldest = Opts::new(
        "rrq_queue_oldest_job_age_seconds",
        "How long the oldest pending job has been in the queue; 0 if none waits.",
    );
    let oldest = GaugeVec::new(oldest, &["queue"])?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs_f64();
    for (info, stats) in queues {
        for (state, _, read) in QUEUE_STATES {
            let gauge = jobs.with_label_values(&[info.name.as_str(), state]);
            gauge.set(signed(read(stats)));
        }
        let since = stats.oldest_pending.map(|at| now - at.0 as f64 / 1e3);
        oldest
            .with_label_values(&[&info.name])
            .set(since.unwrap_or(0.0).max(0.0));
    }
    registry.register(Box::new(jobs))?;
    registry.register(Box::new(oldest))?;
    for (name, help, read) in QUEUE_TOTALS {
        let opts = Opts::new(format!("rrq_queue_{name}"), *help);
        let counter = IntCounterVec::new(opts, &["queue"])?;
        for (info, stats) in queues {
            counter.with_label_values(&[&info.name]).inc_by(read(stats));
        }
        registry.register(Box::new(counter))?;
    }
    for (name, help, read) in QUEUE_GAUGES {
        let opts = Opts::new(format!("rrq_queue_{name}"), *help);
        let gauge = IntGaugeVec::new(opts, &["queue"])?;
        for (info, stats) in queues {
            gauge
                .with_label_values(&[&info.name])
                .set(signed(read(stats)));
        }
        registry.register(Box::new(gauge))?;
    }
    register_groups(&registry, shards)?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn register_groups(registry: &Registry, shards: &[ShardStatus]) -> Result<(), prometheus::Error> {
    let gauge = |name: &str, help: &str| {
        let opts = Opts::new(format!("rrq_raft_{name}"), help);
        let gauge = IntGaugeVec::new(opts, &["group", "shard"])?;
        registry.register(Box::new(gauge.clone()))?;
        Ok::<_, prometheus::Error>(gauge)
    };
    let term = gauge("term", "The group's term.")?;
    let leads = gauge("is_leader", "Whether this node leads the group.")?;
    let commit = gauge("commit_index", "Entries committed.")?;
    let lag = gauge(
        "apply_lag_entries",
        "Entries committed and not yet applied.",
    )?;
    let version = gauge("machine_version", "The version of the group's job machine.")?;
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    for shard in shards {
        for group in &shard.groups {
            let labels = [group.group.to_string(), shard.shard.to_string()];
            let labels = [labels[0].as_str(), labels[1].as_str()];
            term.with_label_values(&labels).set(signed(group.term.0));
            leads
                .with_label_values(&labels)
                .set(i64::from(group.leader));
            commit
                .with_label_values(&labels)
                .set(signed(group.commit.0));
            lag.with_label_values(&labels)
                .set(signed(group.commit.0.saturating_sub(group.applied.0)));
            version
                .with_label_values(&labels)
                .set(i64::from(group.machine_version));
        }
    }
    Ok(())
}
