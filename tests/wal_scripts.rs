//! Runs `tests/scripts/wal/*.txt`: situations of the log, readable as traces.
//!
//! A script is a list of blocks: commands, a line `----`, the output, an empty line. `UPDATE=1`
//! writes the output anew; regenerate only what you can explain. Commands:
//!
//! ```text
//! open blocks=4                       a fresh log; segments of 4 blocks of 4 KiB
//! entry g=1 i=1 t=1 len=10            append an entry; i=1..5 appends several
//! vote g=1 t=2 node=3 commit=0        append a hard state
//! base g=1 i=2 t=1                    append a base
//! submit                              hand out what may leave
//! write 0 2                           these writes under way reach the disk, unreported
//! complete 0                          this write under way reaches the disk and is reported
//! sync                                submit and complete until nothing is left
//! beacon                              as the driver after 5 ms without a write
//! drop                                drop segments that nobody needs
//! status                              what the writer knows
//! flip segment=1 at=4096              damage a byte;  zero segment=1 at=0 len=512
//! remove 2 / short segment=2 len=99 / copy from=1 to=2
//! recover proof=0                     what a new process finds
//! restart                             crash, recover, and go on with it
//! ```
#![cfg(feature = "engine")]

mod wal_kit;

use rrq::base::units::Lsn;
use rrq::wal::batch::{BEACON, BatchHeader, FOOTER, LARGE_NEXT, SEG_HEAD};
use rrq::wal::recovery::Recovered;
use rrq::wal::writer::WalWrite;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use wal_kit::{BLOCK, Log, hard};

const FOLDER: &str = "tests/scripts/wal";

struct Script {
    log: Log,
    starts: u64,
}

fn arguments(line: &str) -> BTreeMap<&str, &str> {
    let pairs = line.split(' ').skip(1);
    pairs.filter_map(|pair| pair.split_once('=')).collect()
}

impl Script {
    fn new() -> Self {
        Self {
            log: Log::fresh(4 * BLOCK),
            starts: 7,
        }
    }

    fn run(&mut self, line: &str) -> String {
        let given = arguments(line);
        let number = |name: &str| {
            let text = given.get(name).copied().unwrap_or("0");
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} of `{line}`"))
        };
        let at = |name: &str| usize::try_from(number(name)).expect("small");
        let group = number("g") as u16;
        let plain = || line.split(' ').skip(1).map(str::parse::<usize>);
        match line.split(' ').next().expect("a split has a first part") {
            "open" => self.log = Log::fresh(at("blocks") * BLOCK),
            "entry" => {
                let indexes = given["i"];
                let (first, last) = indexes.split_once("..").unwrap_or((indexes, indexes));
                for index in parse(first)..=parse(last) {
                    self.log.entry(group, index, number("t"), at("len"));
                }
            }
            "vote" => {
                let state = hard(number("t"), number("node") as u32, number("commit"));
                self.log.hard(group, state);
            }
            "base" => self.log.base(group, number("i"), number("t")),
            "submit" => {
                let count = self.log.submit();
                let from = self.log.flying.len() - count;
                return self.log.flying[from..].iter().map(show_write).collect();
            }
            "write" => {
                for nth in plain() {
                    self.log
                        .disk
                        .write(&self.log.flying[nth.expect("a number")]);
                }
            }
            "complete" => self
                .log
                .complete(plain().next().expect("one").expect("a number")),
            "sync" => {
                let from = self.log.batches.len();
                self.log.sync();
                let sealed = self.log.batches[from..].iter();
                return sealed
                    .map(|b| show_batch(b.segment, b.offset, b.len, &b.header))
                    .collect();
            }
            "beacon" => return format!("{}\n", self.log.writer.beacon()),
            "drop" => return format!("{:?}\n", self.log.drop_segments()),
            "status" => return self.status(),
            "flip" => self.file(number("segment"))[at("at")] ^= 1,
            "zero" => {
                let (from, len) = (at("at"), at("len"));
                self.file(number("segment"))[from..from + len].fill(0);
            }
            "remove" => {
                let segment = plain().next().expect("one").expect("a number") as u64;
                self.log.disk.files.remove(&segment);
            }
            "short" => self.file(number("segment")).truncate(at("len")),
            "copy" => {
                let copy = self.file(number("from")).clone();
                self.log.disk.files.insert(number("to"), copy);
            }
            "recover" => {
                return match self.log.disk.recover_with(Lsn(number("proof"))) {
                    Ok(recovered) => show_recovered(&recovered),
                    Err(error) => format!("refused: {error}\n"),
                };
            }
            "restart" => {
                self.starts += 1;
                let (log, recovered) = Log::restart(self.log.disk.clone(), self.starts);
                self.log = log;
                return show_recovered(&recovered);
            }
            other => panic!("unknown command `{other}`"),
        }
        String::new()
    }

    fn file(&mut self, segment: u64) -> &mut Vec<u8> {
        let file = self.log.disk.files.get_mut(&segment);
        file.unwrap_or_else(|| panic!("no segment {segment}"))
    }

    fn status(&self) -> String {
        let writer = &self.log.writer;
        format!(
            "durable {} of {}, ticket {}, in flight {}, pending {} bytes, files {:?}\n",
            writer.durable_lsn(),
            writer.end_lsn(),
            writer.durable_ticket().0,
            writer.in_flight(),
            writer.pending_bytes(),
            self.log.disk.files.keys().collect::<Vec<_>>()
        )
    }
}

fn parse(text: &str) -> u64 {
    text.parse()
        .unwrap_or_else(|_| panic!("`{text}` is no number"))
}

fn show_write(write: &WalWrite) -> String {
    let mut bytes = vec![0; write.batch.encoded_len()];
    write.batch.encode_into(&mut bytes);
    let header = BatchHeader::decode(&bytes).expect("just sealed");
    show_batch(write.segment, write.offset as usize, bytes.len(), &header)
}

fn show_batch(segment: u64, offset: usize, len: usize, header: &BatchHeader) -> String {
    let flags = match header.flags {
        BEACON => " BEACON",
        SEG_HEAD => " HEAD",
        FOOTER => " FOOTER",
        LARGE_NEXT => " LARGE NEXT",
        _ => "",
    };
    format!(
        "batch {} at {segment}:{offset}+{len} lsn {} durable {} records {}{flags}\n",
        header.batch_seq, header.lsn, header.durable_lsn, header.records
    )
}

fn show_recovered(recovered: &Recovered) -> String {
    let mut out = String::new();
    let start = &recovered.start;
    writeln!(
        out,
        "segments {:?}, unused {:?}; goes on in segment {} at {} with batch {}",
        recovered.segments, start.unused, start.segment, start.lsn, start.batch_seq
    )
    .expect("a string takes all");
    if let Some(torn) = recovered.torn {
        writeln!(
            out,
            "torn at {}:{}, position {}",
            torn.segment, torn.offset, torn.from
        )
        .expect("a string takes all");
    }
    for damage in &recovered.damage {
        writeln!(
            out,
            "damage at {}:{}: {}",
            damage.segment, damage.offset, damage.what
        )
        .expect("a string takes all");
    }
    for (id, group) in &recovered.groups {
        let entries = group
            .entries
            .iter()
            .map(|e| format!("{}@{}", e.index, e.term));
        let bases = group
            .bases
            .iter()
            .map(|base| base.index.0)
            .collect::<Vec<_>>();
        let vote = group
            .hard
            .vote
            .map_or("-".to_string(), |vote| vote.node.to_string());
        writeln!(
            out,
            "group {id}: term {} vote {vote} commit {} bases {bases:?} entries [{}] {:?}",
            group.hard.term,
            group.hard.commit,
            entries.collect::<Vec<_>>().join(" "),
            group.status
        )
        .expect("a string takes all");
    }
    out
}

/// The script with the output that its commands give now.
fn rerun(text: &str) -> String {
    let mut script = Script::new();
    let mut out = String::new();
    let mut is_output = false;
    let mut pending = String::new();
    for line in text.lines().chain([""]) {
        if line.is_empty() {
            is_output = false;
            if out.ends_with("\n\n") || out.is_empty() {
                continue;
            }
            out.push('\n');
        } else if line == "----" {
            out.push_str("----\n");
            out.push_str(&std::mem::take(&mut pending));
            is_output = true;
        } else if !is_output {
            out.push_str(line);
            out.push('\n');
            if !line.starts_with('#') {
                pending.push_str(&script.run(line));
            }
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

#[test]
fn scripts() {
    let is_update = std::env::var_os("UPDATE").is_some();
    let mut count = 0;
    for file in std::fs::read_dir(FOLDER).expect("the folder is there") {
        let path = file.expect("readable").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let found = rerun(&text);
        count += 1;
        if is_update {
            std::fs::write(&path, found).expect("writable");
        } else {
            assert_eq!(
                found,
                text,
                "{} differs; UPDATE=1 rewrites it",
                path.display()
            );
        }
    }
    assert!(count >= 12, "{count} scripts");
}
