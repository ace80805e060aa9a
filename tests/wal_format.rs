//! The log's bytes: golden records and batches, every refusal by the smallest damaged input, and
//! decoders that meet arbitrary bytes.
#![cfg(feature = "engine")]

mod wal_kit;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{any, prop, prop_assert_eq, proptest};
use rrq::base::ids::{DiskId, GroupId, Incarnation, LogIndex, ShardId, Term};
use rrq::base::units::Lsn;
use rrq::wal::batch::{BEACON, BatchError, BatchHeader};
use rrq::wal::codec::{RecordError, Records};
use rrq::wal::record::{GroupRow, Recap, RecapRow, Record, RootLocation, RowStatus};
use rrq::wal::segment::{Echo, Footer, FooterRun, SegmentEnd, SegmentHead};
use wal_kit::{LIFE, base, entry, hard, identity};

fn hex(bytes: &[u8]) -> String {
    let words = bytes.chunks(8).map(|word| {
        let digits = word.iter().map(|byte| format!("{byte:02x}"));
        digits.collect::<String>()
    });
    words.collect::<Vec<_>>().join(" ")
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    bytes
}

fn decoded(bytes: &[u8]) -> Result<Record, RecordError> {
    Records::new(Bytes::copy_from_slice(bytes))
        .next()
        .expect("not empty")
}

fn entry_record() -> Record {
    Record::Entry {
        group: GroupId(5),
        incarnation: LIFE,
        entry: entry(5, 7, 2, 3),
    }
}

fn hard_record() -> Record {
    Record::HardState {
        group: GroupId(5),
        incarnation: LIFE,
        state: hard(3, 2, 9),
    }
}

fn row() -> GroupRow {
    GroupRow {
        group: GroupId(5),
        incarnation: Incarnation(1),
        hard: hard(3, 2, 9),
        last: (LogIndex(11), Term(3)),
        base: (LogIndex(4), Term(2)),
        root_hash: base(5, 4, 2).root_hash,
        root: Some(RootLocation {
            file: 0x1_0000_0002,
            offset: 4096,
            len: 77,
        }),
        log_start_lsn: Lsn(8192),
        status: RowStatus::Recovering { since: LogIndex(6) },
    }
}

fn head() -> SegmentHead {
    let identity = identity();
    SegmentHead {
        cluster: identity.cluster,
        disk: identity.disk,
        wal_set: identity.wal_set,
        shard: identity.shard,
        number: 6,
        base_lsn: Lsn(0x5000),
        previous: Some(SegmentEnd {
            segment: 4,
            end_lsn: Lsn(0x5000),
            end_crc: 0x1234_5678,
        }),
        batch_seq: 8,
        echoes: vec![Echo {
            disk: DiskId([0xd2; 16]),
            wal_set: 1,
            shard: ShardId(2),
            durable_lsn: Lsn(0x9000),
        }],
    }
}

fn footer() -> Footer {
    Footer {
        runs: vec![FooterRun {
            group: GroupId(5),
            incarnation: LIFE,
            first: LogIndex(7),
            entries: vec![(4160, 0xaaaa_aaaa), (4216, 0xbbbb_bbbb)],
        }],
    }
}

fn recap() -> Recap {
    Recap {
        batch_seq: 12,
        rows: vec![RecapRow {
            row: row(),
            first: Some(LogIndex(9)),
        }],
    }
}

fn all_records() -> Vec<Record> {
    vec![
        entry_record(),
        hard_record(),
        Record::GroupTable(vec![row(), GroupRow::default()]),
        Record::Base(base(5, 4, 2)),
        Record::Base(base(5, 0, 0)),
        Record::SegmentHead(head()),
        Record::Footer(footer()),
        Record::Recap(recap()),
    ]
}

#[test]
fn golden_entry() {
    assert_eq!(
        hex(&encoded(&entry_record())),
        "3300000001010100 0500000001000000 06c6e74100000000 0700000000000000 \
         0200000000000000 ef03000000000000 0508040000000000"
    );
}

#[test]
fn golden_hard_state() {
    assert_eq!(
        hex(&encoded(&hard_record())),
        "4000000002000000 0500000001000000 0000000000000000 0900000000000000 \
         0300000000000000 0000000000000000 0100000002000000 d1d1d1d100000000"
    );
}

#[test]
fn golden_group_table() {
    assert_eq!(
        hex(&encoded(&Record::GroupTable(vec![row()]))),
        "b000000003000000 0000000000000000 0000000000000000 0100000000000000 \
         0000000000000000 0000000000000000 0500000001000000 0300000000000000 \
         0900000000000000 02000000d1d1d1d1 0b00000000000000 0300000000000000 \
         0400000000000000 0200000000000000 846333980f613b6b ffc8021457063c93 \
         0200000001000000 0010000000000000 4d00000007000000 0020000000000000 \
         0600000000000000 0000000000000000"
    );
}

#[test]
fn golden_base() {
    assert_eq!(
        hex(&encoded(&Record::Base(base(5, 4, 2)))),
        "8800000004000100 0500000001000000 0000000000000000 0400000000000000 \
         0200000000000000 ec03000000000000 846333980f613b6b ffc8021457063c93 \
         0400000001000000 0010000000000000 6400000001000000 0000000000000000 \
         fbffffffffffffff 0100000000000000 0100000000000000 d1d1d1d1d1d1d1d1 \
         d1d1d1d1d1d1d1d1"
    );
}

#[test]
fn golden_segment_head() {
    assert_eq!(
        hex(&encoded(&Record::SegmentHead(head()))),
        "a800000005000000 0000000000000000 0000000000000000 0000000000000000 \
         0000000000000000 0000000000000000 c1c1c1c1c1c1c1c1 c1c1c1c1c1c1c1c1 \
         d1d1d1d1d1d1d1d1 d1d1d1d1d1d1d1d1 0100000002000300 0600000000000000 \
         0050000000000000 0400000000000000 0050000000000000 7856341201000000 \
         0800000000000000 d2d2d2d2d2d2d2d2 d2d2d2d2d2d2d2d2 0100000002000000 \
         0090000000000000"
    );
}

#[test]
fn golden_footer() {
    assert_eq!(
        hex(&encoded(&Record::Footer(footer()))),
        "5800000006000000 0000000000000000 0000000000000000 0000000000000000 \
         0000000000000000 0000000000000000 0500000001000000 0700000000000000 \
         0200000000000000 40100000aaaaaaaa 78100000bbbbbbbb"
    );
}

#[test]
fn golden_recap() {
    let bytes = encoded(&Record::Recap(recap()));
    assert_eq!(
        hex(&bytes[..48]),
        "b000000007000000 0000000000000000 0000000000000000 0c00000000000000 \
         0000000000000000 0000000000000000"
    );
    let table = encoded(&Record::GroupTable(vec![row()]));
    let table = hex(&table[48..168]);
    assert_eq!(hex(&bytes[48..]), format!("{table} 0900000000000000"));
}

/// A sealed batch with one hard state.
fn batch() -> Vec<u8> {
    let mut buffer = vec![0; 64];
    hard_record().encode(&mut buffer);
    BatchHeader {
        flags: 0,
        lsn: Lsn(0x5000),
        epoch: 0x1111_2222_3333_4444,
        batch_seq: 9,
        durable_lsn: Lsn(0x4000),
        records: 1,
        prev_crc: 0xabcd_ef01,
        ..BatchHeader::default()
    }
    .seal(&mut buffer);
    buffer
}

#[test]
fn golden_batch() {
    let batch = batch();
    assert_eq!(batch.len(), 4096);
    assert_eq!(
        hex(&batch[..64]),
        "7272714201004000 0050000000000000 4444333322221111 0900000000000000 \
         0040000000000000 4000000001000000 01efcdabde0dc1c4 00000000bd553849"
    );
    assert!(
        batch[128..].iter().all(|byte| *byte == 0),
        "zeros fill the block"
    );
}

#[test]
fn every_record_comes_back() {
    let records = all_records();
    let mut bytes = Vec::new();
    for record in &records {
        record.encode(&mut bytes);
        assert!(
            bytes.len().is_multiple_of(8),
            "records stand on multiples of 8"
        );
    }
    let found = Records::new(bytes.into()).collect::<Result<Vec<_>, _>>();
    assert_eq!(found.expect("intact"), records);
}

/// `record` with the byte at `at` set.
fn with(record: &Record, at: usize, byte: u8) -> Result<Record, RecordError> {
    let mut bytes = encoded(record);
    bytes[at] = byte;
    decoded(&bytes)
}

fn malformed(what: &'static str) -> Result<Record, RecordError> {
    Err(RecordError::Malformed { offset: 0, what })
}

#[test]
fn each_damage_to_a_record_has_a_name() {
    let (entry, state) = (entry_record(), hard_record());
    let offset = 0;
    let found = 8;
    assert_eq!(decoded(&[0; 47]), malformed("header"));
    let len = 47;
    assert_eq!(
        with(&entry, 0, 47),
        Err(RecordError::BadLength { offset, len })
    );
    let len = 57;
    assert_eq!(
        with(&entry, 0, 57),
        Err(RecordError::BadLength { offset, len })
    );
    assert_eq!(with(&entry, 0, 50), malformed("padding"));
    assert_eq!(with(&entry, 51, 1), malformed("padding"));
    assert_eq!(
        with(&state, 4, 8),
        Err(RecordError::UnknownType { offset, found })
    );
    assert_eq!(
        with(&state, 4, 0),
        Err(RecordError::UnknownType { offset, found: 0 })
    );
    assert_eq!(
        with(&entry, 5, 8),
        Err(RecordError::UnknownKind { offset, found })
    );
    assert_eq!(with(&entry, 10, 1), malformed("group"));
    assert_eq!(with(&entry, 31, 0xff), malformed("index or term"));
    assert_eq!(with(&state, 5, 1), malformed("header of no entry"));
    assert_eq!(with(&state, 16, 1), malformed("header of no entry"));
    assert_eq!(with(&state, 20, 1), malformed("header of no entry"));
    assert_eq!(with(&state, 48, 2), malformed("vote"));
    assert_eq!(with(&state, 60, 1), malformed("vote"));
    let broken = RecordError::BrokenSeal {
        group: GroupId(5),
        index: LogIndex(7),
    };
    assert_eq!(with(&entry, 48, 0), Err(broken));

    let table = Record::GroupTable(vec![row()]);
    assert_eq!(with(&table, 24, 2), malformed("number of rows"));
    assert_eq!(with(&table, 48 + 2, 1), malformed("group of a row"));
    assert_eq!(with(&table, 48 + 100, 8), malformed("flags of a row"));
    assert_eq!(with(&table, 48 + 23, 0x80), malformed("index of a row"));
    assert_eq!(with(&table, 48 + 120, 1), malformed("reserve of a row"));

    let base = Record::Base(base(5, 4, 2));
    assert_eq!(with(&base, 48 + 36, 2), malformed("root"));
    assert_eq!(with(&base, 48 + 56, 2), malformed("member"));
    assert_eq!(with(&base, 48 + 56, 0), malformed("length"));
    assert_eq!(with(&base, 48 + 60, 1), malformed("reserve"));
    assert_eq!(with(&base, 48 + 64 + 4, 5), malformed("member"), "no role");

    let head = Record::SegmentHead(head());
    let newer = RecordError::TooNew { found: 3, max: 2 };
    assert_eq!(with(&head, 48 + 36, 3), Err(newer));
    let mut older = encoded(&head);
    older[48 + 36] = 1;
    assert_eq!(decoded(&older), Ok(head.clone()), "format 1 is read, too");
    assert_eq!(with(&head, 48 + 36, 0), malformed("format"));
    assert_eq!(with(&head, 48 + 56, 6), malformed("previous segment"));
    assert_eq!(with(&head, 48 + 64, 1), malformed("previous segment"));
    assert_eq!(with(&head, 48 + 76, 2), malformed("echo"));
    assert_eq!(with(&head, 48 + 76, 0), malformed("length"));

    let recap = Record::Recap(recap());
    assert_eq!(with(&recap, 24 + 7, 0x40), malformed("index or term"));
    assert_eq!(
        with(&recap, 48 + 120, 12),
        malformed("first entry of a row")
    );
    assert_eq!(with(&recap, 0, 0xa0), malformed("row"), "half a row");

    let footer = Record::Footer(footer());
    assert_eq!(with(&footer, 48 + 2, 1), malformed("group of a run"));
    assert_eq!(with(&footer, 48 + 16, 0), malformed("length of a run"));
    assert_eq!(with(&footer, 48 + 16, 3), malformed("run"));
    assert_eq!(with(&footer, 48 + 20, 1), malformed("run"));
}

#[test]
fn a_broken_seal_is_passed_over_and_nothing_else() {
    let mut bytes = encoded(&entry_record());
    let len = bytes.len();
    hard_record().encode(&mut bytes);
    bytes[48] ^= 1;
    let found = Records::new(bytes.clone().into()).collect::<Vec<_>>();
    assert_eq!(found.len(), 2);
    assert_eq!(found[1], Ok(hard_record()));
    bytes[len + 4] = 99;
    hard_record().encode(&mut bytes);
    assert_eq!(
        Records::new(bytes.into()).count(),
        2,
        "an unknown type ends the walk"
    );
}

#[test]
fn each_damage_to_a_batch_has_a_name() {
    let read = |bytes: Vec<u8>| BatchHeader::read(&bytes.into(), 0).map(|(header, _)| header);
    let with = |at: usize, byte: u8| {
        let mut bytes = batch();
        bytes[at] = byte;
        read(bytes)
    };
    // As above, with the header's checksum made to fit.
    let sealed = |at: usize, byte: u8| {
        let mut bytes = batch();
        bytes[at] = byte;
        let crc = rrq::base::checksum::crc32c(&[&bytes[..60]]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        read(bytes)
    };
    assert!(read(batch()).is_ok());
    assert_eq!(read(batch()[..63].to_vec()), Err(BatchError::NoHeader));
    assert_eq!(read(batch()[..4095].to_vec()), Err(BatchError::TooLong));
    assert_eq!(with(0, 0), Err(BatchError::NoHeader));
    assert_eq!(with(8, 1), Err(BatchError::HeaderCrc));
    assert_eq!(with(64, 0), Err(BatchError::PayloadCrc));
    assert_eq!(with(4095, 1), Err(BatchError::PayloadCrc), "padding counts");
    assert_eq!(sealed(42, 1), Err(BatchError::TooLong));
    assert_eq!(sealed(4, 2), Err(BatchError::Version(2)));
    assert_eq!(sealed(5, 3), Err(BatchError::Unknown("flags")));
    assert_eq!(sealed(5, 16), Err(BatchError::Unknown("flags")));
    assert_eq!(sealed(6, 72), Err(BatchError::Unknown("length")));
    assert_eq!(sealed(15, 0x40), Err(BatchError::Unknown("position")));
    assert_eq!(sealed(56, 1), Err(BatchError::Unknown("key")));
    assert!(sealed(5, BEACON).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        let _ = Records::new(bytes.clone().into()).count();
        let _ = BatchHeader::read(&bytes.into(), 0);
    }

    #[test]
    fn mutated_records_never_panic(
        nth in 0_usize..7,
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = encoded(&all_records()[nth]);
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // What is accepted means one thing only.
        if let Ok(record) = decoded(&bytes) {
            let again = encoded(&record);
            prop_assert_eq!(decoded(&again), Ok(record));
        }
    }

    #[test]
    fn entries_come_back(
        group in any::<u16>(),
        index in 1_u64..1 << 62,
        term in 0_u64..1 << 62,
        len in 0_usize..300,
    ) {
        let record = Record::Entry {
            group: GroupId(group),
            incarnation: LIFE,
            entry: entry(group, index, term, len),
        };
        prop_assert_eq!(decoded(&encoded(&record)), Ok(record));
    }

    #[test]
    fn hard_states_come_back(term in 0_u64..1 << 62, node in any::<u32>(), commit in 0_u64..1 << 62) {
        let record = Record::HardState {
            group: GroupId(1),
            incarnation: LIFE,
            state: hard(term, node, commit),
        };
        prop_assert_eq!(decoded(&encoded(&record)), Ok(record));
    }
}
