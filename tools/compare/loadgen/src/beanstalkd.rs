//! beanstalkd, by a client of our own: no public crate keeps more than one command under way.
//! The protocol is text (doc/protocol.txt of beanstalkd): a queue is a tube, commands of one
//! connection are answered in order.
//!
//! A producer sends its window of puts at once, a consumer its window of reserves, the first of
//! which waits, and then the deletes of what came.

use crate::books::{Held, Phase, Times};
use crate::options::Options;
use crate::run::{Seat, refused};
use anyhow::{Context, Result, ensure};
use std::io::Write;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Seconds that a consumer may have a job in hand.
const TTR_S: u32 = 600;

struct Link {
    stream: BufReader<TcpStream>,
    /// Commands that have not been sent yet.
    out: Vec<u8>,
    line: String,
}

impl Link {
    async fn open(options: &Options) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", options.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            out: Vec::new(),
            line: String::new(),
        })
    }

    async fn send(&mut self) -> Result<()> {
        self.stream.get_mut().write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// The next line, without its end.
    async fn answer(&mut self) -> Result<&str> {
        self.line.clear();
        let read = self.stream.read_line(&mut self.line).await?;
        ensure!(read > 0, "the server closed the connection");
        Ok(self.line.trim_end())
    }

    async fn expect(&mut self, what: &str, start: &str) -> Result<()> {
        let answer = self.answer().await?;
        match answer.starts_with(start) {
            true => Ok(()),
            false => refused(what, answer),
        }
    }

    /// A body of so many bytes and the line end behind it.
    async fn body(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut body = vec![0; len + 2];
        self.stream.read_exact(&mut body).await?;
        body.truncate(len);
        Ok(body)
    }
}

/// Jobs that are there, reserved or not.
pub async fn left(options: &Options) -> Result<u64> {
    let mut link = Link::open(options).await?;
    let mut left = 0;
    for tube in options.queue_names() {
        write!(link.out, "stats-tube {tube}\r\n")?;
        link.send().await?;
        let answer = link.answer().await?;
        let Some(len) = answer.strip_prefix("OK ") else {
            // A tube without a job and without a connection is gone.
            ensure!(answer == "NOT_FOUND", "stats-tube: {answer}");
            continue;
        };
        let len = len.parse().context("a length")?;
        let stats = String::from_utf8(link.body(len).await?)?;
        for line in stats.lines() {
            let Some((name, value)) = line.split_once(": ") else {
                continue;
            };
            if matches!(name, "current-jobs-ready" | "current-jobs-reserved") {
                left += value.parse::<u64>().context("a count")?;
            }
        }
    }
    Ok(left)
}

pub async fn produce(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let mut link = Link::open(options).await?;
    write!(link.out, "use {}\r\n", seat.queue())?;
    link.send().await?;
    link.expect("a tube", "USING ").await?;
    let mut times = Times::new();
    seat.start.wait().await;
    while let Some(jobs) = books.wait_and_take(options.window.into(), 1).await? {
        let sent_us = books.now_us();
        for number in jobs.clone() {
            write!(link.out, "put 0 0 {TTR_S} {}\r\n", options.payload)?;
            books.write_payload(number, sent_us, &mut link.out);
            link.out.extend_from_slice(b"\r\n");
        }
        link.send().await?;
        for _ in jobs {
            link.expect("a put", "INSERTED ").await?;
            books.enqueued(1, sent_us, &mut times);
        }
    }
    Ok(times)
}

pub async fn consume(seat: Seat) -> Result<Times> {
    let Seat { options, books, .. } = &seat;
    let mut link = Link::open(options).await?;
    write!(link.out, "watch {}\r\nignore default\r\n", seat.queue())?;
    link.send().await?;
    link.expect("a tube", "WATCHING 2").await?;
    link.expect("a tube", "WATCHING 1").await?;
    let mut times = Times::new();
    let mut held: Vec<Held> = Vec::new();
    seat.start.wait().await;
    while books.phase() < Phase::Over {
        write!(link.out, "reserve-with-timeout 1\r\n")?;
        for _ in 1..options.window {
            write!(link.out, "reserve-with-timeout 0\r\n")?;
        }
        link.send().await?;
        for _ in 0..options.window {
            let answer = link.answer().await?;
            let Some(what) = answer.strip_prefix("RESERVED ") else {
                ensure!(answer == "TIMED_OUT", "a reserve: {answer}");
                continue;
            };
            let (id, len) = what.split_once(' ').context("a job without a length")?;
            let (id, len): (u64, usize) = (id.parse()?, len.parse()?);
            write!(link.out, "delete {id}\r\n")?;
            held.push(books.held(&link.body(len).await?)?);
        }
        link.send().await?;
        for job in held.drain(..) {
            link.expect("a delete", "DELETED").await?;
            books.completed(job, &mut times);
        }
        books.tell_room();
    }
    Ok(times)
}
