//! Clients that cost a node more than they should: ten thousand that say nothing, those that do not
//! read, those that send a byte at a time or announce more than they send, and more than there are
//! descriptors. Each is bounded or cut off by name, and an ordinary client is served beside them.
#![cfg(all(feature = "server", target_os = "linux"))]
// A limit of a process can only be set by a system call.
#![allow(unsafe_code)]

mod node_support;

use bytes::{Buf, BytesMut};
use node_support::client::{Client, hello};
use node_support::load::{
    Worker, config, forget_peak, job, memory, open_files, produce, request, until,
};
use node_support::{DEADLINE, Node, command, folder, skip};
use rrq::base::code::Code;
use rrq::base::limits::{FRAME_BYTES_MAX, REPLY_JOBS_BYTES_MAX};
use rrq::wire::frame::{FrameKind, encode_frame};
use rrq::wire::message::{ReplyBody, RequestBody};
use rrq::wire::{JobState, QueueSettings};
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// A node with one shard and these limits.
fn node(data: &Path, limits: &str) -> Node {
    let config = config(data, limits);
    Node::start(
        data,
        &["--config", config.to_str().expect("a path of ours")],
    )
}

/// Sets the limits of open files of a process, 0 = of this one: soft, hard.
fn set_open_files(pid: u32, soft: u64, hard: u64) -> bool {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` lives across the call; the old limit is not asked for.
    unsafe {
        let pid = libc::pid_t::try_from(pid).expect("a pid");
        libc::prlimit(pid, libc::RLIMIT_NOFILE, &limit, std::ptr::null_mut()) == 0
    }
}

/// The limits of open files of this process: soft, hard.
fn get_open_files() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the result.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0;
    assert!(!failed, "getrlimit works");
    (limit.rlim_cur, limit.rlim_max)
}

/// Makes the soft limit of open files of a node that is about to start also its hard one.
fn with_open_files(command: &mut Command, files: u64) {
    use std::os::unix::process::CommandExt;
    // SAFETY: makes a system call and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            if set_open_files(0, files, files) {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        })
    };
}

/// A connection that has said hello, and no more buffers than the kernel's.
fn idle(address: SocketAddr) -> TcpStream {
    Client::greeted(address).0.stream
}

/// The code of what the node says to each client before it ends it; the first text is pinned.
fn last_codes(clients: impl IntoIterator<Item = Client>) -> Vec<Code> {
    let mut clients = clients.into_iter();
    let first = clients.next().map(|mut client| client.last_words());
    let others = clients.map(|mut client| {
        let ReplyBody::Error(error) = client.reply().body else {
            panic!("not an error")
        };
        assert!(client.frame().is_none(), "the connection ends");
        error.code
    });
    first.into_iter().chain(others).collect()
}

#[test]
fn ten_thousand_idle_clients_cost_little_and_one_more_is_told_so() {
    const CLIENTS: usize = 10_000;
    /// Measured: 2.1 KiB, in a debug build; most of it is the future and its two sources.
    const CLIENT_BYTES: u64 = 6 << 10;
    let (_, hard) = get_open_files();
    if hard < CLIENTS as u64 + 500 || !set_open_files(0, hard, hard) {
        return skip("11000 open files");
    }
    let data = folder("idle");
    let node = node(&data, &format!("connections_max = {CLIENTS}"));
    let address = node.clients();
    let mut worker = Worker::new(address, "beside", QueueSettings::default());
    let before = memory(&node);
    let clients: Vec<TcpStream> = (1..CLIENTS).map(|_| idle(address)).collect();
    let after = memory(&node);
    let each = (after.resident - before.resident) / CLIENTS as u64;
    println!("{each} bytes a client: before {before:?}, after {after:?}");
    assert!(each < CLIENT_BYTES, "{each} bytes for each client");

    assert_eq!(Client::connect(address).last_words(), Code::Busy);
    worker.enqueue(vec![job(100); 10]).expect("they are taken");
    assert_eq!(worker.take_all().len(), 10);
    // Others come in as soon as some have left, and the node has nothing left of who has.
    drop(clients);
    until("a place", || {
        let mut client = Client::connect(address);
        client.send(&hello(1, 1));
        let frame = client.frame()?;
        (frame.kind == FrameKind::ServerHello).then_some(())
    });
    until("descriptors to be closed", || {
        (open_files(&node) < 200).then_some(())
    });
}

#[test]
fn clients_that_never_read_are_cut_off_and_hold_a_bounded_amount() {
    const CLIENTS: usize = 20;
    let data = folder("never-read");
    let node = node(&data, "in_flight_max = \"32MiB\"");
    let address = node.clients();
    let mut worker = Worker::new(address, "read", QueueSettings::default());
    // Each answer to a peek is as large as an answer can be.
    let jobs = REPLY_JOBS_BYTES_MAX / (64 << 10);
    for _ in 0..jobs / 16 {
        worker.enqueue(vec![job(64 << 10); 16]).expect("taken");
    }
    let peek = RequestBody::Peek {
        queue: worker.queue.uid,
        partition: rrq::base::ids::Partition(0),
        group: worker.queue.uid.home(),
        state: JobState::Pending,
        limit: 1000,
    };
    forget_peak(&node);
    let before = memory(&node);
    let begun = Instant::now();
    let mut deaf: Vec<TcpStream> = (0..CLIENTS).map(|_| idle(address)).collect();
    for stream in &mut deaf {
        let mut requests = BytesMut::new();
        (1..=200).for_each(|id| requests.extend_from_slice(&request(id, peek.clone())));
        stream
            .write_all(&requests)
            .expect("they fit into the socket");
    }
    // Others are served beside them.
    let mut served = 0;
    while !deaf.iter().any(is_over) {
        worker.enqueue(vec![job(100)]).expect("it is taken");
        served += 1;
        assert!(begun.elapsed() < DEADLINE, "nobody is cut off");
    }
    assert!(served > 10, "{served} served");
    let after = memory(&node);
    // Whoever found no room for an answer was told so.
    let refused: usize = deaf.into_iter().map(busy_replies).sum();
    println!("before {before:?}, after {after:?}; {served} served, {refused} refused");
    assert!(refused > 0, "{refused} refused");
    // Encoded answers up to the bound, and one beyond it; the buffers of an answer double as they
    // grow; the rest is small.
    let bound = before.resident + 2 * (32 * MIB + REPLY_JOBS_BYTES_MAX as u64) + 24 * MIB;
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
    let body = worker.client.ask(peek);
    assert!(matches!(body, ReplyBody::Jobs(_)), "there is room again");
}

/// Whether the node has ended a connection from which nothing is read, by what poll(2) says.
fn is_over(stream: &TcpStream) -> bool {
    use std::os::fd::AsRawFd;
    let mut poll = libc::pollfd {
        fd: stream.as_raw_fd(),
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one descriptor, which is open, and its place for the result.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Reads all that the node has said to a client, until it says nothing more; how much was refused.
fn busy_replies(stream: TcpStream) -> usize {
    let mut client = Client::of(stream);
    let patience = Some(Duration::from_millis(200));
    client.stream.set_read_timeout(patience).expect("a timeout");
    let replies = std::iter::from_fn(|| client.try_reply());
    let refused = replies.filter(|reply| match &reply.body {
        ReplyBody::Jobs(_) => false,
        ReplyBody::Error(error) => error.code == Code::Busy,
        other => panic!("no answer to a peek: {other:?}"),
    });
    refused.count()
}

#[test]
fn requests_that_come_byte_by_byte_are_served_or_told_that_they_are_late() {
    const CLIENTS: usize = 100;
    let data = folder("byte-by-byte");
    let node = node(&data, "");
    let address = node.clients();
    let mut worker = Worker::new(address, "whole", QueueSettings::default());
    let status = request(1, RequestBody::Status);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::greeted(address).0).collect();
    for client in &clients {
        client.stream.set_nodelay(true).expect("it can be set");
    }
    for byte in &status {
        for client in &mut clients {
            client.send(&[*byte]);
        }
        worker.enqueue(vec![job(10)]).expect("it is taken");
    }
    for client in &mut clients {
        assert_eq!(client.reply().id, 1);
    }
    // Those that stop in the middle are let go by name.
    let begun = Instant::now();
    for client in &mut clients {
        client.send(&status[..status.len() - 1]);
    }
    assert_eq!(last_codes(clients), [Code::ConnectionTimeout; CLIENTS]);
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9), "after {took:?} already");
    assert_eq!(worker.take_all().len(), status.len());
}

#[test]
fn announcing_a_giant_frame_costs_the_node_nothing() {
    const CLIENTS: usize = 200;
    let data = folder("giants");
    let node = node(&data, "in_flight_max = \"16MiB\"");
    let address = node.clients();
    let mut worker = Worker::new(address, "giants", QueueSettings::default());
    forget_peak(&node);
    let before = memory(&node);
    let header = |bytes: u32| {
        let mut header = [0; 12];
        header[..4].copy_from_slice(&bytes.to_le_bytes());
        header[8] = FrameKind::Request as u8;
        header
    };
    for bytes in [u32::MAX, 1 << 31, FRAME_BYTES_MAX as u32 + 1] {
        let mut client = Client::greeted(address).0;
        client.send(&header(bytes));
        assert_eq!(client.last_words(), Code::BadFrame, "{bytes} bytes");
    }
    // Allowed, announced, and not sent.
    let mut silent: Vec<TcpStream> = (0..CLIENTS).map(|_| idle(address)).collect();
    for stream in &mut silent {
        let sent = stream.write_all(&header(FRAME_BYTES_MAX as u32));
        sent.expect("the node reads");
    }
    worker.enqueue(vec![job(100); 10]).expect("they are taken");
    worker.enqueue(vec![job(1 << 20)]).expect("a large one too");
    assert_eq!(worker.take_all().len(), 11);
    let after = memory(&node);
    println!("before {before:?}, after {after:?}");
    // Announced: 1600 MiB. The job of 1 MiB and its answer pass through four times.
    let bound = before.resident + 24 * MIB;
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
}

#[test]
fn frames_that_are_half_here_hold_nobody_up_but_themselves() {
    const CLIENTS: usize = 5;
    let data = folder("halves");
    let node = node(&data, "in_flight_max = \"16MiB\"");
    let address = node.clients();
    let mut worker = Worker::new(address, "halves", QueueSettings::default());
    forget_peak(&node);
    let before = memory(&node);
    // More than the bound, in frames that lack a few bytes.
    let mut body = BytesMut::new();
    encode_frame(FrameKind::Request, &mut body, |out| {
        out.extend_from_slice(&vec![0; FRAME_BYTES_MAX / 2]);
    });
    let half = &body[..body.len() - 5];
    let halves: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let half = BytesMut::from(half);
            let stream = idle(address);
            std::thread::spawn(move || {
                let (mut stream, mut half) = (stream, half);
                stream.set_write_timeout(Some(DEADLINE)).expect("a timeout");
                while half.has_remaining() {
                    match stream.write(&half) {
                        Ok(sent) => half.advance(sent),
                        // Cut off before it was read.
                        Err(_) => break,
                    }
                }
                stream
            })
        })
        .collect();
    until("the node to be at its bound", || {
        worker
            .enqueue(vec![job(100)])
            .expect("small ones are served");
        (memory(&node).resident > before.resident + 12 * MIB).then_some(())
    });
    // A large job waits until some were let go, and is then taken.
    worker.enqueue(vec![job(1 << 20)]).expect("it is taken");
    let after = memory(&node);
    println!("before {before:?}, after {after:?}");
    // A buffer doubles as it grows, and one frame is finished beyond the bound.
    let bound = before.resident + 2 * (16 * MIB + FRAME_BYTES_MAX as u64) + 24 * MIB;
    assert!(after.peak < bound, "{after:?}, the bound is {bound}");
    let halves = halves.into_iter();
    let clients = halves.map(|half| Client::of(half.join().expect("a writer")));
    assert_eq!(last_codes(clients), [Code::ConnectionTimeout; CLIENTS]);
}

#[test]
fn the_memory_of_large_requests_goes_with_them() {
    const CLIENTS: usize = 100;
    let data = folder("large-once");
    let node = node(&data, "in_flight_max = \"16MiB\"");
    let address = node.clients();
    let settings = QueueSettings {
        bytes_max: 1,
        ..QueueSettings::default()
    };
    let before = memory(&node);
    let mut workers: Vec<Worker> = (0..CLIENTS)
        .map(|_| Worker::new(address, "large-once", settings))
        .collect();
    for worker in &mut workers {
        let tally = produce(worker, 1 << 20, 1, 1);
        assert_eq!(tally.over_quota, 1);
    }
    // 100 MiB have gone through connections that are all still there.
    let after = memory(&node);
    println!("before {before:?}, after {after:?}");
    assert!(after.resident < before.resident + 40 * MIB, "{after:?}");
}

#[test]
fn clients_leave_the_node_the_descriptors_that_it_needs() {
    const FILES: u64 = 300;
    let data = folder("few-files");
    let path = config(&data, "payload_max = \"4MiB\"");
    let args = ["--config", path.to_str().expect("a path of ours")];
    let mut command = command(&data, &args);
    with_open_files(&mut command, FILES);
    let node = Node::spawn_by(&mut command).until_ready();
    let address = node.clients();
    let mut worker = Worker::new(address, "few-files", QueueSettings::default());
    // Far more than there are descriptors; all stay.
    let mut streams: Vec<TcpStream> = Vec::new();
    let mut refused = 0;
    for _ in 0..FILES + 50 {
        let mut client = Client::connect(address);
        client.send(&hello(1, 1));
        let frame = client.frame().expect("an answer");
        refused += u64::from(frame.kind == FrameKind::Reply);
        streams.push(client.stream);
    }
    let admitted = FILES + 50 - refused;
    assert!((50..FILES - 100).contains(&admitted), "{admitted} admitted");
    let mut late = Client::connect(address);
    assert_eq!(late.last_words(), Code::Busy);
    // The log goes on into its next segments, and a checkpoint is written.
    for _ in 0..12 {
        worker.enqueue(vec![job(4 << 20)]).expect("it is taken");
    }
    assert_eq!(worker.take_all().len(), 12);
    streams.clear();
    until("a place", || {
        let mut client = Client::connect(address);
        client.send(&hello(1, 1));
        let frame = client.frame()?;
        (frame.kind == FrameKind::ServerHello).then_some(())
    });
}

#[test]
fn without_descriptors_the_node_says_so_once_and_goes_on_when_there_are_some() {
    let data = folder("no-files");
    let mut node = node(&data, "");
    let address = node.clients();
    let mut worker = Worker::new(address, "no-files", QueueSettings::default());
    let (_, hard) = get_open_files();
    // Taken away from under it, as by an operator or by other users of the machine (ENFILE).
    let open = open_files(&node) as u64;
    assert!(set_open_files(node.pid(), open.min(20), hard));
    let mut waiting: Vec<Client> = (0..5).map(|_| Client::connect(address)).collect();
    for client in &mut waiting {
        client.send(&hello(1, 1));
    }
    const WARNING: &str = "no client can be accepted";
    let mut said = Vec::new();
    let mut until_said = |node: &mut Node, words: &str| {
        until(words, || {
            said.extend(node.heard());
            said.iter().any(|line| line.contains(words)).then_some(())
        });
        said.iter().filter(|line| line.contains(WARNING)).count()
    };
    until_said(&mut node, WARNING);
    // Who is there already is served; many more tries, and no more lines.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        worker.enqueue(vec![job(100)]).expect("it is taken");
    }
    assert!(set_open_files(node.pid(), hard, hard));
    for client in &mut waiting {
        let frame = client.frame().expect("a hello");
        assert_eq!(frame.kind, FrameKind::ServerHello);
    }
    let warnings = until_said(&mut node, "accepted again");
    assert_eq!(warnings, 1, "{said:?}");
}
