//! The superblock of a node: whose disk this is, and which log is in force.
//!
//! Two copies, each a file of 4 KiB. The driver writes one, then the other, each by a temporary
//! name, sync, rename, directory sync; so at any moment at least one copy is whole.
//!
//! # Layout, formats 1 to 3
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 8 | magic `rrqsuper` | |
//! | 8 | 2 | format: 1 without members, 2 as long as they are the founders, 3 | older binaries refuse a newer format by name, and can still run a node that stands alone |
//! | 10 | 2 | number of shards | another number than the machine's is a change to be made, or refused |
//! | 12 | 4 | node id | a directory of another node is refused |
//! | 16 | 8 | generation | the higher of two valid copies is in force |
//! | 24 | 16 | disk id | made with the directory |
//! | 40 | 16 | cluster id, zero = none formed | |
//! | 56 | 4 | WAL set in force | switching it by the rename switches the whole log |
//! | 60 | 4 | number of groups | fixed at formation |
//! | 64 | 8 | start number | raised at each start before the log is opened |
//! | 72 | 1 | flags: bit 0 = forming | formation was begun and is continued after a crash |
//! | 73 | 1 | length of the next field, at most 62 | |
//! | 74 | 62 | version of the binary that made the directory, UTF-8, zero-filled | for people |
//! | 136 | 8 | wall time of formation, ms | every member's groups begin with the same clock |
//! | 144 | 1 | number of founders, at most 15 | 0: the node stands alone |
//! | 145 | 300 | founders: node id u32, disk id 16 bytes, ascending, zero-filled | the first voters of every group; who is none of them came later |
//! | 445 | 8 | log index of group 0 | format 3: as of which the members are known |
//! | 453 | 1 | number of members, at most 45 | |
//! | 454 | 945 | members: node id u32, role u8, disk id 16 bytes, ascending, zero-filled | with whom to speak from the start on |
//! | 1399 | 2693 | reserved | |
//! | 4092 | 4 | CRC-32C of bytes 0..4092 | |
//!
//! # Which copy: the decision table
//!
//! | one copy | other copy | outcome |
//! | --- | --- | --- |
//! | valid | valid, other generation | the higher generation: a crash fell between the two writes |
//! | valid | valid, same generation and content | either |
//! | valid | valid, same generation, other content | [`SuperblockError::Contradiction`]: nothing we do makes that |
//! | valid | damaged or missing | the valid one; the driver writes the other anew |
//! | too new | anything | [`SuperblockError::TooNew`]: an older binary would undo what a newer one did |
//! | missing | missing | [`SuperblockError::Missing`]: a fresh directory, if it is empty |
//! | damaged | damaged or missing | [`SuperblockError::BothDamaged`] |
//!
//! # To change this format
//!
//! Raise [`FORMAT`], keep the older decoders, keep magic, format and checksum in place, give a zero
//! of every reserved byte today's meaning, and add a superblock of the old format to the fixtures.

use crate::base::ids::{ClusterId, DiskId, LogIndex, NodeId};
use crate::base::limits::{MEMBERS_MAX, VOTERS_MAX};
use crate::base::members::{Member, MemberRole};
use crate::base::units::WallTime;
use crate::snapshot::fields::{Fields, Malformed, u16_at};
use crate::snapshot::header::block_checksums;
use crate::snapshot::layout::{HEADER_BYTES, HEADER_CRC_AT, Owner, Voter, seal_block};

/// The newest format that this binary writes and reads.
pub const FORMAT: u16 = 3;
/// What a node is written in that stands alone.
const FORMAT_ALONE: u16 = 1;
/// What a member of a cluster is written in that is as it was founded.
const FORMAT_FOUNDED: u16 = 2;
/// Bytes of a copy.
pub const SUPERBLOCK_BYTES: usize = HEADER_BYTES;
/// The longest version text.
pub const CREATED_BY_BYTES_MAX: usize = 62;

const MAGIC: [u8; 8] = *b"rrqsuper";
const FORMING: u8 = 1;
/// Of a founder: node and disk.
const FOUNDER_BYTES: usize = 20;
/// Of a member: node, role and disk.
const MEMBER_BYTES: usize = 21;
const ALONE_BYTES: usize = 136;
const FOUNDED_BYTES: usize = ALONE_BYTES + 9 + VOTERS_MAX * FOUNDER_BYTES;
const USED_BYTES: usize = FOUNDED_BYTES + 9 + MEMBERS_MAX * MEMBER_BYTES;

const _: () = assert!(ALONE_BYTES == 74 + CREATED_BY_BYTES_MAX);
const _: () = assert!(USED_BYTES < HEADER_CRC_AT);

/// What a node knows of itself before it opens anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Rises with every write.
    pub generation: u64,
    /// The node.
    pub node: NodeId,
    /// The data directory.
    pub disk: DiskId,
    /// The cluster; all zero while none is formed.
    pub cluster: ClusterId,
    /// Formation was begun and not finished.
    pub forming: bool,
    /// The WAL set in force.
    pub wal_set: u32,
    /// Shards that the log was written by.
    pub shards: u16,
    /// Groups, fixed at formation.
    pub groups: u32,
    /// How often the node was started.
    pub start: u64,
    /// The version of the binary that made the directory, at most [`CREATED_BY_BYTES_MAX`] bytes.
    pub created_by: String,
    /// When its cluster was formed; zero for a node that stands alone.
    pub formed_at: WallTime,
    /// The first voters of every group, ascending; none if the node stands alone. Who is none of them came
    /// later.
    pub founders: Vec<Voter>,
    /// The members of the cluster as far as known, ascending; none if the node stands alone.
    pub members: Vec<Member>,
    /// They are those of group 0 after this entry of its log.
    pub members_as_of: LogIndex,
}

/// Why there is no superblock to go by.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// There is no such file. Said by the driver; of both copies, by [`choose`].
    #[error("there is no superblock")]
    Missing,
    /// The file is shorter than a superblock.
    #[error("the superblock is cut off: {found} bytes of {SUPERBLOCK_BYTES}")]
    Truncated {
        /// Bytes there.
        found: u64,
    },
    /// Not a superblock.
    #[error("not a superblock of rrq: it starts with {:016x}", u64::from_be_bytes(*.found))]
    BadMagic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// A newer binary wrote it.
    #[error("superblock format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// The copy is damaged.
    #[error(
        "the superblock's checksum at byte {offset} is {expected:08x}, its bytes give {found:08x}"
    )]
    BadChecksum {
        /// Where the checksum stands.
        offset: u64,
        /// The checksum stored.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// Whole, but senseless.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Both copies are valid, of one generation, and differ.
    #[error("the two superblocks of generation {generation} differ")]
    Contradiction {
        /// Their generation.
        generation: u64,
    },
    /// Neither copy is valid.
    #[error("both superblocks are damaged: {first}; {second}")]
    BothDamaged {
        /// What is wrong with the first.
        first: Box<SuperblockError>,
        /// What is wrong with the second.
        second: Box<SuperblockError>,
    },
}

impl Superblock {
    /// Whose the files of checkpoints are.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            cluster: self.cluster,
            disk: self.disk,
        }
    }

    /// One copy.
    ///
    /// # Panics
    /// If the version text is longer than [`CREATED_BY_BYTES_MAX`], or there are more founders than
    /// [`VOTERS_MAX`], or more members than [`MEMBERS_MAX`] or none beside founders.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let created_by = self.created_by.as_bytes();
        assert!(
            created_by.len() <= CREATED_BY_BYTES_MAX,
            "a version of {} bytes: {}",
            created_by.len(),
            self.created_by
        );
        let (founders, members) = (self.founders.len(), self.members.len());
        assert!(founders <= VOTERS_MAX, "a cluster of {founders} founders");
        assert!(members <= MEMBERS_MAX, "a cluster of {members} members");
        assert!(
            (founders == 0) == (members == 0),
            "founders, or members, alone"
        );
        let format = match founders {
            0 => FORMAT_ALONE,
            _ if self.is_as_founded() => FORMAT_FOUNDED,
            _ => FORMAT,
        };
        let mut out = Vec::with_capacity(SUPERBLOCK_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&format.to_le_bytes());
        out.extend_from_slice(&self.shards.to_le_bytes());
        out.extend_from_slice(&self.node.0.to_le_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.disk.0);
        out.extend_from_slice(&self.cluster.0);
        out.extend_from_slice(&self.wal_set.to_le_bytes());
        out.extend_from_slice(&self.groups.to_le_bytes());
        out.extend_from_slice(&self.start.to_le_bytes());
        out.push(if self.forming { FORMING } else { 0 });
        out.push(created_by.len() as u8);
        out.extend_from_slice(created_by);
        if founders > 0 {
            out.resize(ALONE_BYTES, 0);
            out.extend_from_slice(&self.formed_at.0.to_le_bytes());
            encode_founders(&self.founders, &mut out);
        }
        if format == FORMAT {
            out.resize(FOUNDED_BYTES, 0);
            out.extend_from_slice(&self.members_as_of.0.to_le_bytes());
            encode_members(&self.members, &mut out);
        }
        seal_block(out)
    }

    /// Reads one copy.
    ///
    /// # Errors
    /// By name, see [`SuperblockError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperblockError> {
        let truncated = SuperblockError::Truncated {
            found: bytes.len() as u64,
        };
        let block = bytes.get(..SUPERBLOCK_BYTES).ok_or(truncated)?;
        let mut magic = [0; 8];
        magic.copy_from_slice(&block[..8]);
        if magic != MAGIC {
            return Err(SuperblockError::BadMagic { found: magic });
        }
        let (expected, found) = block_checksums(block);
        if expected != found {
            return Err(SuperblockError::BadChecksum {
                offset: HEADER_CRC_AT as u64,
                expected,
                found,
            });
        }
        if u16_at(block, 8) > FORMAT {
            return Err(SuperblockError::TooNew {
                found: u16_at(block, 8),
                max: FORMAT,
            });
        }
        let mut fields = Fields::new(&block[..HEADER_CRC_AT], 8);
        let unknown = fields.malformed("format number");
        let format = fields.u16("format number")?;
        if format == 0 {
            return Err(unknown.into());
        }
        let shards = fields.u16("number of shards")?;
        let node = NodeId(fields.u32("node id")?);
        let generation = fields.u64("generation")?;
        let disk = DiskId(fields.id("disk id")?);
        let cluster = ClusterId(fields.id("cluster id")?);
        let wal_set = fields.u32("WAL set")?;
        let groups = fields.u32("number of groups")?;
        let start = fields.u64("start number")?;
        let bad_flags = fields.malformed("flags");
        let flags = fields.u8("flags")?;
        if flags & !FORMING != 0 {
            return Err(bad_flags.into());
        }
        let bad_version = fields.malformed("version text");
        let len = usize::from(fields.u8("version text")?);
        let text = std::str::from_utf8(fields.take(len, "version text")?);
        fields.zeros(CREATED_BY_BYTES_MAX.checked_sub(len).ok_or(bad_version)?)?;
        let (mut formed_at, mut founders) = (WallTime(0), Vec::new());
        if format == FORMAT_ALONE {
            fields.zeros(HEADER_CRC_AT - ALONE_BYTES)?;
        } else {
            formed_at = WallTime(fields.u64("time of formation")?);
            founders = decode_founders(&mut fields)?;
        }
        let mut members: Vec<Member> = founders.iter().copied().map(Member::voting).collect();
        let mut members_as_of = LogIndex(0);
        if format == FORMAT_FOUNDED {
            fields.zeros(HEADER_CRC_AT - FOUNDED_BYTES)?;
        } else if format == FORMAT {
            members_as_of = LogIndex(fields.u64("index of the members")?);
            members = decode_members(&mut fields)?;
            fields.zeros(HEADER_CRC_AT - USED_BYTES)?;
        }
        let superblock = Self {
            generation,
            node,
            disk,
            cluster,
            forming: flags & FORMING != 0,
            wal_set,
            shards,
            groups,
            start,
            created_by: text.map_err(|_| bad_version)?.to_owned(),
            formed_at,
            founders,
            members,
            members_as_of,
        };
        // Then it would be of an older format.
        if format == FORMAT && superblock.is_as_founded() {
            return Err(unknown.into());
        }
        Ok(superblock)
    }

    /// Whether the members are the founders, for all that is known.
    fn is_as_founded(&self) -> bool {
        let founders = self.founders.iter().copied().map(Member::voting);
        self.members_as_of == LogIndex(0) && founders.eq(self.members.iter().copied())
    }
}

fn encode_founders(founders: &[Voter], out: &mut Vec<u8>) {
    out.push(founders.len() as u8);
    for founder in founders {
        out.extend_from_slice(&founder.node.0.to_le_bytes());
        out.extend_from_slice(&founder.disk.0);
    }
}

fn encode_members(members: &[Member], out: &mut Vec<u8>) {
    out.push(members.len() as u8);
    for Member { voter, role } in members {
        out.extend_from_slice(&voter.node.0.to_le_bytes());
        out.push(*role as u8);
        out.extend_from_slice(&voter.disk.0);
    }
}

/// Some founders in the order of their ids, and zeros in the place of others.
fn decode_founders(fields: &mut Fields<'_>) -> Result<Vec<Voter>, Malformed> {
    let bad_founders = fields.malformed("founders");
    let count = usize::from(fields.u8("founders")?);
    if count == 0 || count > VOTERS_MAX {
        return Err(bad_founders);
    }
    let founders: Vec<Voter> = (0..count)
        .map(|_| {
            Ok(Voter {
                node: NodeId(fields.u32("founder")?),
                disk: DiskId(fields.id("founder")?),
            })
        })
        .collect::<Result<_, Malformed>>()?;
    if !founders.is_sorted_by(|a, b| a.node < b.node) {
        return Err(bad_founders);
    }
    fields.zeros((VOTERS_MAX - count) * FOUNDER_BYTES)?;
    Ok(founders)
}

/// Some members, ascending, and zeros in the place of others. A node may have two disks, of which one takes
/// the place of the other.
fn decode_members(fields: &mut Fields<'_>) -> Result<Vec<Member>, Malformed> {
    let bad_members = fields.malformed("members");
    let count = usize::from(fields.u8("members")?);
    if count == 0 || count > MEMBERS_MAX {
        return Err(bad_members);
    }
    let members: Vec<Member> = (0..count)
        .map(|_| {
            let node = NodeId(fields.u32("member")?);
            let unknown = fields.malformed("role of a member");
            let role = MemberRole::from_u32(fields.u8("role of a member")?.into());
            let role = role.ok_or(unknown)?;
            let disk = DiskId(fields.id("member")?);
            let voter = Voter { node, disk };
            Ok(Member { voter, role })
        })
        .collect::<Result<_, Malformed>>()?;
    if !members.is_sorted_by(|a, b| a.voter < b.voter) {
        return Err(bad_members);
    }
    fields.zeros((MEMBERS_MAX - count) * MEMBER_BYTES)?;
    Ok(members)
}

/// The superblock in force, by the table above. A copy that is not there is
/// `Err(SuperblockError::Missing)`.
///
/// # Errors
/// If neither copy is to be trusted, or a newer binary wrote one.
pub fn choose(
    first: Result<Superblock, SuperblockError>,
    second: Result<Superblock, SuperblockError>,
) -> Result<Superblock, SuperblockError> {
    use SuperblockError::{BothDamaged, Contradiction, Missing, TooNew};
    match (first, second) {
        (Err(newer @ TooNew { .. }), _) | (_, Err(newer @ TooNew { .. })) => Err(newer),
        (Ok(first), Ok(second)) if first.generation == second.generation && first != second => {
            Err(Contradiction {
                generation: first.generation,
            })
        }
        (Ok(first), Ok(second)) if first.generation < second.generation => Ok(second),
        (Ok(valid), _) | (_, Ok(valid)) => Ok(valid),
        (Err(Missing), Err(Missing)) => Err(Missing),
        (Err(first), Err(second)) => Err(BothDamaged {
            first: Box::new(first),
            second: Box::new(second),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock(generation: u64) -> Superblock {
        Superblock {
            generation,
            node: NodeId(1),
            disk: DiskId([0xd1; 16]),
            cluster: ClusterId([0xc1; 16]),
            forming: true,
            wal_set: 2,
            shards: 3,
            groups: 64,
            start: 9,
            created_by: "rrq 0.1.0".to_owned(),
            formed_at: WallTime(0),
            founders: Vec::new(),
            members: Vec::new(),
            members_as_of: LogIndex(0),
        }
    }

    fn member(number: u8) -> Voter {
        Voter {
            node: NodeId(number.into()),
            disk: DiskId([0xd0 | number; 16]),
        }
    }

    fn of_three() -> Superblock {
        Superblock {
            formed_at: WallTime(0x0123_4567_89ab),
            founders: [1, 2, 3].map(member).into(),
            members: [1, 2, 3].map(member).map(Member::voting).into(),
            ..superblock(4)
        }
    }

    /// Node 2 has another disk, and node 4 has come.
    fn changed() -> Superblock {
        let renewed = Voter {
            disk: DiskId([0xe2; 16]),
            ..member(2)
        };
        let learner = Member {
            voter: member(4),
            role: MemberRole::Learner,
        };
        let voters = [member(1), renewed, member(3)].map(Member::voting);
        Superblock {
            members: voters.into_iter().chain([learner]).collect(),
            members_as_of: LogIndex(0x5678),
            ..of_three()
        }
    }

    fn reseal(block: &mut [u8]) {
        let crc = block_checksums(block).1;
        block[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_superblock_is_these_bytes() {
        let bytes = superblock(4).encode();
        assert_eq!(
            hex(&bytes[..ALONE_BYTES]),
            "727271737570657201000300010000000400000000000000d1d1d1d1d1d1d1d1\
             d1d1d1d1d1d1d1d1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c10200000040000000\
             0900000000000000010972727120302e312e3000000000000000000000000000\
             0000000000000000000000000000000000000000000000000000000000000000\
             0000000000000000"
        );
        assert!(
            bytes[ALONE_BYTES..HEADER_CRC_AT]
                .iter()
                .all(|byte| *byte == 0)
        );
        assert_eq!(hex(&bytes[HEADER_CRC_AT..]), "a282bb1b");
        assert_eq!(Superblock::decode(&bytes), Ok(superblock(4)));
    }

    #[test]
    fn a_superblock_of_a_cluster_is_these_bytes() {
        let bytes = of_three().encode();
        let alone = superblock(4).encode();
        assert_eq!(bytes[8..10], [2, 0]);
        assert_eq!(bytes[10..ALONE_BYTES], alone[10..ALONE_BYTES]);
        assert_eq!(
            hex(&bytes[ALONE_BYTES..ALONE_BYTES + 9 + 3 * FOUNDER_BYTES]),
            "ab89674523010000\
             03\
             01000000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\
             02000000d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2\
             03000000d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3"
        );
        assert_eq!(Superblock::decode(&bytes), Ok(of_three()));
    }

    #[test]
    fn a_superblock_of_changed_members_is_these_bytes() {
        let bytes = changed().encode();
        assert_eq!(bytes[8..10], [3, 0]);
        let of_three = of_three().encode();
        assert_eq!(bytes[10..FOUNDED_BYTES], of_three[10..FOUNDED_BYTES]);
        assert_eq!(
            hex(&bytes[FOUNDED_BYTES..FOUNDED_BYTES + 9 + 4 * MEMBER_BYTES]),
            "7856000000000000\
             04\
             0100000000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\
             0200000000e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2e2\
             0300000000d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3d3\
             0400000001d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4d4"
        );
        assert_eq!(Superblock::decode(&bytes), Ok(changed()));
    }

    #[test]
    fn each_fault_has_its_name() {
        let whole = superblock(4).encode();
        let damaged = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            bytes
        };
        let resealed = |at: usize, value: u8| {
            let mut bytes = damaged(at, value);
            reseal(&mut bytes);
            Superblock::decode(&bytes)
        };
        assert_eq!(
            Superblock::decode(&whole[..4095]),
            Err(SuperblockError::Truncated { found: 4095 })
        );
        assert!(matches!(
            Superblock::decode(&damaged(0, b'x')),
            Err(SuperblockError::BadMagic { .. })
        ));
        assert!(matches!(
            Superblock::decode(&damaged(8, 4)),
            Err(SuperblockError::BadChecksum { offset: 4092, .. })
        ));
        let too_new = SuperblockError::TooNew { found: 4, max: 3 };
        assert_eq!(resealed(8, 4), Err(too_new));
        let malformed = |offset, what| Err(SuperblockError::Malformed(Malformed { offset, what }));
        assert_eq!(resealed(8, 0), malformed(8, "format number"));
        assert_eq!(resealed(72, 2), malformed(72, "flags"));
        assert_eq!(resealed(73, 63), malformed(73, "version text"));
        assert_eq!(resealed(73, 8), malformed(82, "reserved field"));
        assert_eq!(resealed(74, 0xff), malformed(73, "version text"));
        assert_eq!(resealed(200, 1), malformed(136, "reserved field"));
        // A cluster has members, in order, and nothing behind them.
        let of_three = |at: usize, value: u8| {
            let mut bytes = of_three().encode();
            bytes[at] = value;
            reseal(&mut bytes);
            Superblock::decode(&bytes)
        };
        assert_eq!(of_three(144, 0), malformed(144, "founders"));
        assert_eq!(of_three(144, 16), malformed(144, "founders"));
        assert_eq!(of_three(144, 2), malformed(185, "reserved field"));
        assert_eq!(of_three(145, 2), malformed(144, "founders"));
        assert_eq!(of_three(445, 1), malformed(445, "reserved field"));
        // Nobody is a member of the newer format, and nothing is behind the members.
        assert_eq!(of_three(8, 3), malformed(453, "members"));
        let mut bytes = changed().encode();
        bytes[USED_BYTES] = 1;
        reseal(&mut bytes);
        let reserved = malformed(USED_BYTES as u64, "reserved field");
        assert_eq!(Superblock::decode(&bytes), reserved);
    }

    #[test]
    fn each_row_of_the_decision_table() {
        use SuperblockError::{BothDamaged, Contradiction, Missing, TooNew, Truncated};
        let (old, new) = (|| Ok(superblock(4)), || Ok(superblock(5)));
        let damaged = || Err(Truncated { found: 1 });
        let too_new = || Err(TooNew { found: 4, max: 3 });
        let both = |first, second| {
            Err(BothDamaged {
                first: Box::new(first),
                second: Box::new(second),
            })
        };
        assert_eq!(choose(old(), new()), new());
        assert_eq!(choose(new(), old()), new());
        assert_eq!(choose(new(), new()), new());
        let other = Superblock {
            start: 10,
            ..superblock(5)
        };
        let generation = 5;
        assert_eq!(choose(new(), Ok(other)), Err(Contradiction { generation }));
        assert_eq!(choose(damaged(), old()), old());
        assert_eq!(choose(old(), Err(Missing)), old());
        assert_eq!(choose(new(), too_new()), too_new());
        assert_eq!(choose(too_new(), damaged()), too_new());
        assert_eq!(choose(Err(Missing), Err(Missing)), Err(Missing));
        let short = || Truncated { found: 1 };
        assert_eq!(choose(damaged(), damaged()), both(short(), short()));
        assert_eq!(choose(Err(Missing), damaged()), both(Missing, short()));
    }

    proptest! {
        /// What the decoder accepts is exactly what the encoder writes.
        #[test]
        fn an_accepted_superblock_has_one_form(
            changes in proptest::collection::vec((8_usize..560, any::<u8>()), 1..4),
            kind in 0_usize..3,
        ) {
            let one = [superblock(4), of_three(), changed()][kind].clone();
            let mut bytes = one.encode();
            for (at, value) in changes {
                bytes[at] = value;
            }
            reseal(&mut bytes);
            if let Ok(superblock) = Superblock::decode(&bytes) {
                prop_assert_eq!(superblock.encode(), bytes);
            }
        }
    }
}
