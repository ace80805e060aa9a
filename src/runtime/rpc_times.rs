//! How long requests take, by what was asked and by what refused it.
//!
//! From reading a request to handing its reply to the socket, as the shard sees it that holds the
//! connection; a request that another shard answers counts once, with its way. There are as many
//! numbers as the protocol has methods and codes, whatever clients do. A shard keeps the histograms
//! that it has used, because finding one by its labels costs more than the observation.

use crate::base::code::Code;
use prometheus::{Histogram, HistogramVec};
use std::time::Duration;

/// The methods and codes that a shard has met, with their histograms.
pub struct RpcTimes {
    all: HistogramVec,
    met: Vec<(&'static str, Option<Code>, Histogram)>,
}

impl RpcTimes {
    /// With the labels `method` and `code`.
    pub fn new(all: HistogramVec) -> Self {
        let met = Vec::new();
        Self { all, met }
    }

    /// Counts a request that was answered.
    pub fn observe(&mut self, method: &'static str, code: Option<Code>, took: Duration) {
        let fits = |met: &&(&str, Option<Code>, Histogram)| met.0 == method && met.1 == code;
        if let Some((.., histogram)) = self.met.iter().find(fits) {
            return histogram.observe(took.as_secs_f64());
        }
        let name = code.map_or("ok".to_owned(), |code| code.to_string());
        let histogram = self.all.with_label_values(&[method, &name]);
        histogram.observe(took.as_secs_f64());
        self.met.push((method, code, histogram));
    }
}
