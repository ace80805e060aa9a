//! What to do: the flags of `rrq-bench load`, as far as the rivals have a counterpart.

use anyhow::{Context, Result, bail, ensure};
use lexopt::Arg::{Long, Value};
use std::time::Duration;

/// What `--help` says.
pub const HELP: &str = "\
Usage: rrq-compare load redis|rabbitmq|nats|beanstalkd --port N [OPTIONS]
       rrq-compare table DIR

Options of load:
  --port N         Where the server listens on 127.0.0.1
  --pid N          Process of the server, whose CPU and writes are counted
  --producers N    Connections that enqueue [default: 32]
  --consumers N    Connections that take and acknowledge; 0 = jobs are only enqueued [default: 0]
  --window N       Requests under way on a producer, jobs in hand on a consumer [default: 64]
  --batch N        Jobs of a request; above 1 only with redis and nats [default: 1]
  --payload N      Bytes of a job's payload, 16 or more [default: 256]
  --queues N       Queues [default: 8]
  --duration N     Seconds measured [default: 10]
  --warm-up N      Seconds of load before [default: 2]
  --threads N      Threads of the load [default: 1]

Exit status: 0 if every job is accounted for, 1 if one is lost or came twice after its ack.
";

/// A server to put under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    Redis,
    Rabbitmq,
    Nats,
    Beanstalkd,
}

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    pub rival: Rival,
    pub port: u16,
    pub pid: Option<u32>,
    pub producers: u32,
    pub consumers: u32,
    pub window: u32,
    pub batch: u32,
    pub payload: usize,
    pub queues: u32,
    pub duration: Duration,
    pub warm_up: Duration,
    pub threads: usize,
}

impl Options {
    /// Reads what follows the word `load`.
    pub fn parse(parser: &mut lexopt::Parser) -> Result<Self> {
        let mut rival = None;
        let mut options = Self {
            rival: Rival::Redis,
            port: 0,
            pid: None,
            producers: 32,
            consumers: 0,
            window: 64,
            batch: 1,
            payload: 256,
            queues: 8,
            duration: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            threads: 1,
        };
        while let Some(arg) = parser.next()? {
            let Long(flag) = arg else {
                let Value(word) = arg else {
                    bail!(arg.unexpected());
                };
                rival = Some(match word.to_str() {
                    Some("redis") => Rival::Redis,
                    Some("rabbitmq") => Rival::Rabbitmq,
                    Some("nats") => Rival::Nats,
                    Some("beanstalkd") => Rival::Beanstalkd,
                    _ => bail!("there is no rival {word:?}"),
                });
                continue;
            };
            let flag = flag.to_owned();
            let value = parser.value()?;
            let value = value.to_str().and_then(|value| value.parse::<u32>().ok());
            let value = value.with_context(|| format!("--{flag} takes a number"))?;
            match flag.as_str() {
                "port" => options.port = value.try_into().context("--port")?,
                "pid" => options.pid = Some(value),
                "producers" => options.producers = value,
                "consumers" => options.consumers = value,
                "window" => options.window = value,
                "batch" => options.batch = value,
                "payload" => options.payload = value as usize,
                "queues" => options.queues = value,
                "duration" => options.duration = Duration::from_secs(value.into()),
                "warm-up" => options.warm_up = Duration::from_secs(value.into()),
                "threads" => options.threads = value as usize,
                _ => bail!("there is no flag --{flag}"),
            }
        }
        options.rival = rival.context("which rival?")?;
        options.check()?;
        Ok(options)
    }

    fn check(&self) -> Result<()> {
        ensure!(self.port > 0, "--port is needed");
        ensure!(self.payload >= 16, "--payload must be 16 or more");
        let least = [self.producers, self.window, self.batch, self.queues];
        ensure!(least.iter().all(|n| *n > 0), "a number must not be 0");
        ensure!(self.threads > 0, "--threads must not be 0");
        ensure!(!self.duration.is_zero(), "--duration must not be 0");
        ensure!(
            self.consumers == 0 || self.consumers >= self.queues,
            "each consumer takes one queue: --consumers must be at least --queues"
        );
        ensure!(
            self.batch == 1 || matches!(self.rival, Rival::Redis | Rival::Nats),
            "only redis and nats take more than one job at once"
        );
        Ok(())
    }

    /// The queue of a producer or consumer, by its number.
    pub fn queue_of(&self, connection: u32) -> String {
        queue_name(connection % self.queues)
    }

    /// All queues.
    pub fn queue_names(&self) -> impl Iterator<Item = String> {
        (0..self.queues).map(queue_name)
    }

    /// Jobs that may be there at once: as `rrq-bench load` bounds it, twice what all windows hold.
    pub fn backlog_max(&self) -> u64 {
        let windows =
            u64::from(self.producers * self.batch + self.consumers) * u64::from(self.window);
        match self.consumers {
            0 => u64::MAX,
            _ => 2 * windows,
        }
    }
}

fn queue_name(number: u32) -> String {
    format!("compare-{number}")
}
