//! How long requests and jobs take, gathered over a turn of a shard.
//!
//! A request counts from its reading to handing its reply to the socket, as the shard sees it that
//! holds the connection; one that another shard answers counts once, with its way. There are as many
//! numbers as the protocol has methods and codes, whatever clients do.
//!
//! Every request and every job is observed, and to observe in a shared histogram takes several atomic
//! operations; so a shard gathers by itself and hands on once a turn.

use crate::base::code::Code;
use prometheus::local::LocalHistogram;
use prometheus::{Histogram, HistogramVec};
use std::time::Duration;

/// What a shard has observed.
pub struct Durations {
    rpc: HistogramVec,
    /// The methods and codes that the shard has met: finding a histogram by its labels costs more than
    /// the observation.
    met: Vec<(&'static str, Option<Code>, LocalHistogram)>,
    job_wait: LocalHistogram,
    job_run: LocalHistogram,
}

impl Durations {
    /// For these histograms; `rpc` has the labels `method` and `code`.
    pub fn new(rpc: &HistogramVec, job_wait: &Histogram, job_run: &Histogram) -> Self {
        Self {
            rpc: rpc.clone(),
            met: Vec::new(),
            job_wait: job_wait.local(),
            job_run: job_run.local(),
        }
    }

    /// A request was answered.
    pub fn answered(&mut self, method: &'static str, code: Option<Code>, took: Duration) {
        let fits = |met: &&(&str, Option<Code>, LocalHistogram)| met.0 == method && met.1 == code;
        if let Some((.., histogram)) = self.met.iter().find(fits) {
            return histogram.observe(took.as_secs_f64());
        }
        let name = code.map_or("ok".to_owned(), |code| code.to_string());
        let histogram = self.rpc.with_label_values(&[method, &name]).local();
        histogram.observe(took.as_secs_f64());
        self.met.push((method, code, histogram));
    }

    /// A job was leased for the first time.
    pub fn waited(&self, for_it: Duration) {
        self.job_wait.observe(for_it.as_secs_f64());
    }

    /// A job was acknowledged.
    pub fn ran(&self, for_it: Duration) {
        self.job_run.observe(for_it.as_secs_f64());
    }

    /// Hands on what was gathered.
    pub fn publish(&self) {
        for (.., histogram) in &self.met {
            histogram.flush();
        }
        self.job_wait.flush();
        self.job_run.flush();
    }
}
