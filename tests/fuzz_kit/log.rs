//! A batch of the log by itself, and whole segments through recovery.

use super::wal_kit::{BLOCK, Disk, GroupModel, LIFE, Log, hard, model_of};
use super::{Input, assert_is_told};
use bytes::Bytes;
use rrq::base::entry::{Entry, EntryKind};
use rrq::base::ids::{GroupId, Incarnation, LogIndex, Term};
use rrq::base::units::{GroupTime, Lsn};
use rrq::wal::batch::{BATCH_HEADER_BYTES, BEACON, BatchHeader, FOOTER, LARGE_NEXT, SEG_HEAD};
use rrq::wal::codec::{RECORD_HEADER_BYTES, RecordError, Records, record_bytes};
use rrq::wal::record::Record;
use rrq::wal::recovery::{GroupLog, GroupLogStatus, Recovered};
use rrq::wal::segment::SegmentHead;
use std::collections::BTreeMap;

/// The size of a segment here.
pub(super) const SEGMENT: usize = 8 * BLOCK;

/// One batch, as it is and sealed anew.
pub(super) fn block(input: &[u8]) -> bool {
    batch(&Bytes::copy_from_slice(input)) | batch(&Bytes::from(sealed_batch(input, None)))
}

/// Whether there is a batch with a record.
fn batch(bytes: &Bytes) -> bool {
    if let Err(error) = BatchHeader::decode(bytes) {
        assert_is_told(&error);
        assert_eq!(BatchHeader::read(bytes, 0), Err(error));
        return false;
    }
    let (header, payload) = match BatchHeader::read(bytes, 0) {
        Ok(read) => read,
        Err(error) => {
            assert_is_told(&error);
            return false;
        }
    };
    let records = records(&payload);
    assert!(header.encoded_len() <= bytes.len(), "it lies in its bytes");
    assert!(header.encoded_len().is_multiple_of(BLOCK));
    assert_eq!(payload.len(), header.payload_len as usize);
    assert_eq!(BatchHeader::traces(bytes, header.lsn, header.epoch), 3);
    if let Some(head) = SegmentHead::read(bytes) {
        assert_eq!(records.first(), Some(&Record::SegmentHead(head)));
    }
    let mut again = vec![0; BATCH_HEADER_BYTES];
    again.extend_from_slice(&payload);
    header.seal(&mut again);
    let (decoded, same) = BatchHeader::read(&Bytes::from(again), 0).expect("just sealed");
    assert_eq!(same, payload);
    let unsealed = |header: BatchHeader| BatchHeader {
        payload_crc: 0,
        crc: 0,
        ..header
    };
    assert_eq!(unsealed(decoded), unsealed(header));
    !records.is_empty()
}

/// The records up to the first that is none. Each is held against its own encoding.
fn records(payload: &Bytes) -> Vec<Record> {
    let mut found = Vec::new();
    let mut walk = Records::new(payload.clone());
    while let Some(record) = walk.next() {
        match record {
            Ok(record) => {
                let mut again = Vec::new();
                record.encode(&mut again);
                assert_eq!(again.len(), record_bytes(record.body_bytes()));
                let mut decoded = Records::new(again.into());
                assert_eq!(decoded.next(), Some(Ok(record.clone())));
                assert_eq!(decoded.next(), None);
                found.push(record);
            }
            Err(error) => {
                assert_is_told(&error);
                if !matches!(error, RecordError::BrokenSeal { .. }) {
                    assert_eq!(walk.next(), None, "an error ends the walk");
                }
            }
        }
    }
    found
}

/// The place of a batch in a chain.
#[derive(Clone, Copy)]
struct Place {
    lsn: u64,
    epoch: u64,
    batch_seq: u64,
    prev_crc: u32,
    is_first: bool,
}

/// A batch with the fields of the header that `bytes` begin with and the records behind it, whose
/// checksums, lengths and seals fit. With a place, it also stands where it should.
fn sealed_batch(bytes: &[u8], place: Option<Place>) -> Vec<u8> {
    let mut input = Input(bytes);
    let mut fields = Input(input.take(BATCH_HEADER_BYTES));
    fields.take(5);
    let flags = [0, BEACON, SEG_HEAD, 0, FOOTER, LARGE_NEXT, 0, 0][usize::from(fields.u8() % 8)];
    fields.take(2);
    let mut header = BatchHeader {
        flags,
        lsn: Lsn(fields.u64()),
        epoch: fields.u64(),
        batch_seq: fields.u64(),
        durable_lsn: Lsn(fields.u64()),
        payload_len: fields.u32(),
        records: fields.u32(),
        prev_crc: fields.u32(),
        ..BatchHeader::default()
    };
    // What the input has of the payload; a batch that was cut off has less than it says.
    let payload = input.take(header.payload_len as usize);
    let mut buffer = vec![0; BATCH_HEADER_BYTES];
    buffer.extend_from_slice(payload);
    let count = seal_entries(&mut buffer[BATCH_HEADER_BYTES..]);
    if let Some(place) = place {
        header.records = count;
        header.lsn = Lsn(place.lsn);
        header.epoch = place.epoch;
        header.batch_seq = place.batch_seq;
        header.prev_crc = place.prev_crc;
        header.durable_lsn.0 = header.durable_lsn.0.min(place.lsn);
        if place.is_first {
            header.flags = SEG_HEAD;
        } else if header.flags == SEG_HEAD {
            header.flags = 0;
        }
    }
    header.seal(&mut buffer);
    buffer
}

/// Seals every entry of a payload anew; how many records there are.
fn seal_entries(payload: &mut [u8]) -> u32 {
    let (mut at, mut count) = (0, 0);
    while let Some(record) = payload.get_mut(at..).filter(|rest| !rest.is_empty()) {
        let mut fields = Input(record);
        let len = fields.u32() as usize;
        let end = len.next_multiple_of(8);
        if len < RECORD_HEADER_BYTES || end > record.len() {
            break;
        }
        let (kind_of_record, kind) = (fields.u8(), fields.u8());
        let machine_version = fields.u16();
        let (group, incarnation) = (fields.u32(), Incarnation(fields.u32()));
        fields.u32();
        let flags = fields.u32();
        let (index, term, time) = (fields.u64(), fields.u64(), fields.u64());
        if let (1, Some(kind), Ok(group)) = (
            kind_of_record,
            EntryKind::from_u8(kind),
            u16::try_from(group),
        ) {
            let entry = Entry {
                term: Term(term),
                index: LogIndex(index),
                time: GroupTime(time),
                kind,
                machine_version,
                flags,
                crc: 0,
                payload: Bytes::copy_from_slice(&record[RECORD_HEADER_BYTES..len]),
            };
            let seal = entry.seal(GroupId(group), incarnation);
            record[16..20].copy_from_slice(&seal.to_le_bytes());
        }
        at += end;
        count += 1;
    }
    count
}

const SEAL: u8 = 1;
const PLACE: u8 = 2;
const NEXT_SEGMENT: u8 = 4;
const SKIP: u8 = 8;

/// Writes files as [`segment`] reads them: every batch without its padding.
pub(super) fn segment_input(files: &BTreeMap<u64, Vec<u8>>, seal: bool) -> Vec<u8> {
    let mut out = vec![0];
    for (nth, file) in files.values().enumerate() {
        let mut next = if nth == 0 { 0 } else { NEXT_SEGMENT };
        let mut at = 0;
        while let Ok((header, _)) = BatchHeader::read(&Bytes::copy_from_slice(file), at) {
            let len = BATCH_HEADER_BYTES + header.payload_len as usize;
            out.push(next | if seal { SEAL | PLACE } else { 0 });
            out.extend_from_slice(&(len as u16).to_le_bytes());
            out.extend_from_slice(&file[at..at + len]);
            at += header.encoded_len();
            next = 0;
        }
    }
    out
}

/// Files of segments: the first byte is what a manifest proves, in blocks; then chunks, each with a
/// byte of [`SEAL`] and so on, a length (u16) and bytes for the next free block.
fn files(input: &mut Input<'_>) -> BTreeMap<u64, Vec<u8>> {
    let mut files = BTreeMap::from([(1, vec![0; SEGMENT])]);
    let (mut number, mut at, mut base) = (1, 0, 0);
    let (mut batch_seq, mut prev_crc) = (1, 0);
    while !input.is_empty() && number <= 3 {
        let (how, len) = (input.u8(), input.u16());
        let mut chunk = input.take(usize::from(len)).to_vec();
        if how & NEXT_SEGMENT != 0 {
            number += 1;
            base += at as u64;
            at = 0;
            files.insert(number, vec![0; SEGMENT]);
        }
        if how & SKIP != 0 {
            at += BLOCK;
        }
        if how & SEAL != 0 {
            let place = Place {
                lsn: base + at as u64,
                epoch: 40 + number,
                batch_seq,
                prev_crc,
                is_first: at == 0,
            };
            chunk = sealed_batch(&chunk, (how & PLACE != 0).then_some(place));
            prev_crc = BatchHeader::decode(&chunk).map_or(0, |header| header.crc);
            batch_seq += 1;
        }
        let file = files.get_mut(&number).expect("just made");
        let free = file.get_mut(at..).unwrap_or_default();
        let fits = chunk.len().min(free.len());
        free[..fits].copy_from_slice(&chunk[..fits]);
        at = (at + chunk.len()).next_multiple_of(BLOCK).min(SEGMENT);
    }
    files
}

/// Whole segments.
pub(super) fn segment(input: &[u8]) -> bool {
    let mut input = Input(input);
    let proof = Lsn(u64::from(input.u8()) * BLOCK as u64);
    let mut disk = Disk::new(SEGMENT);
    disk.files = files(&mut input);
    let recovered = match disk.recover_with(proof) {
        Ok(recovered) => recovered,
        Err(error) => {
            assert_is_told(&error);
            return false;
        }
    };
    assert_in_range(&recovered, &disk);
    prefix_is_kept(&disk);
    goes_on(disk, &recovered);
    let is_intact = |log: &GroupLog| log.status == GroupLogStatus::Intact;
    recovered.groups.values().any(is_intact)
}

/// Damage says where, and no group with a gap is called intact.
fn assert_in_range(recovered: &Recovered, disk: &Disk) {
    for damage in &recovered.damage {
        assert!(!damage.what.is_empty());
        assert!(damage.offset <= SEGMENT as u64, "{damage:?}");
    }
    assert!(recovered.bytes <= (disk.files.len() * SEGMENT) as u64);
    for (group, log) in &recovered.groups {
        let mut next = None;
        for entry in &log.entries {
            assert!(next.is_none_or(|next| next == entry.index), "{group}: gap");
            assert!(entry.is_intact(*group, log.incarnation), "{group}: seal");
            next = Some(entry.index.next());
        }
        if log.status == GroupLogStatus::Intact {
            let base = log.bases.first().expect("an intact group has a base");
            let first = log.entries.first().map(|entry| entry.index);
            assert!(first.is_none_or(|first| first <= base.index.next()));
        }
    }
}

/// Batches from the start of the first segment that follow one another.
fn prefix_bytes(file: &Bytes) -> usize {
    let mut at = 0;
    let mut last: Option<BatchHeader> = None;
    while let Ok((header, _)) = BatchHeader::read(file, at) {
        let follows = last.is_none_or(|last| {
            last.batch_seq + 1 == header.batch_seq
                && last.crc == header.prev_crc
                && last.epoch == header.epoch
                && last.lsn.0 + last.encoded_len() as u64 == header.lsn.0
        });
        if !follows || (header.flags == SEG_HEAD) != (at == 0) {
            break;
        }
        last = Some(header);
        at += header.encoded_len();
    }
    at
}

/// If nothing behind the intact prefix of a single segment is a batch, it makes no difference.
fn prefix_is_kept(disk: &Disk) {
    let [(number, file)] = disk.files.iter().collect::<Vec<_>>()[..] else {
        return;
    };
    let file = Bytes::copy_from_slice(file);
    let end = prefix_bytes(&file);
    let is_batch = |at: usize| BatchHeader::decode(&file[at..]).is_ok();
    if (end..SEGMENT).step_by(BLOCK).any(is_batch) {
        return;
    }
    let mut clean = Disk::new(SEGMENT);
    let mut prefix = file[..end].to_vec();
    prefix.resize(SEGMENT, 0);
    clean.files.insert(*number, prefix);
    let (Ok(clean), Ok(found)) = (clean.recover_with(Lsn(0)), disk.recover_with(Lsn(0))) else {
        return;
    };
    assert_eq!(clean.groups, found.groups, "garbage behind {end} took away");
    assert_eq!(clean.start.lsn, found.start.lsn);
}

/// A process that goes on with what was recovered finds it again, and damage is not forgotten.
fn goes_on(disk: Disk, first: &Recovered) {
    const NEW: u16 = 0xffff;
    let mut log = Log::start(disk, first.start.clone(), model_of(first), 99);
    log.hard(NEW, hard(1, 1, 0));
    log.sync_proved();
    let second = log.disk.recover();
    let found = model_of(&second);
    for (group, model) in model_of(first) {
        if group == NEW {
            continue;
        }
        let Some(log) = second.groups.get(&GroupId(group)) else {
            panic!("group {group} is gone after a restart");
        };
        assert_eq!(brief(&found[&group]), brief(&model), "group {group}");
        let before = &first.groups[&GroupId(group)].status;
        match before {
            GroupLogStatus::Intact | GroupLogStatus::Recovering { .. } => {
                assert_eq!(log.status, *before, "group {group}");
            }
            GroupLogStatus::Damaged { .. } => {
                assert_ne!(log.status, GroupLogStatus::Intact, "group {group}");
            }
        }
        assert_eq!(log.incarnation, first.groups[&GroupId(group)].incarnation);
    }
    assert!(second.groups.contains_key(&GroupId(NEW)), "{LIFE:?}");
}

fn brief(model: &GroupModel) -> (Term, Vec<(u64, Term)>, u64) {
    let entries = model.entries.iter();
    let entries = entries.map(|(index, entry)| (*index, entry.term)).collect();
    (model.hard.term, entries, model.base)
}
