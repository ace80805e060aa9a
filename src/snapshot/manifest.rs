//! The manifest of a shard: its groups' bases as a file, the second anchor beside the log.
//!
//! The log repeats every base in its own records; a manifest is written every 10 s, at pins and at
//! a clean stop. It serves when the log's own copies are damaged, it keeps the *previous* base of
//! each group, and its durable LSN is a proof of what the log must hold.
//!
//! # Layout, format 1
//!
//! | offset | size | field | why it is there |
//! | --- | --- | --- | --- |
//! | 0 | 8 | magic `rrq-mani` | |
//! | 8 | 2 | format, 1 | older binaries refuse a newer format by name |
//! | 10 | 2 | shard | catches a manifest in another shard's folder |
//! | 12 | 4 | length of the whole manifest | catches a short file |
//! | 16 | 4 | CRC-32C of bytes 0..16 and 20..length | |
//! | 20 | 4 | number G of groups | |
//! | 24 | 16 | cluster id | |
//! | 40 | 16 | disk id | |
//! | 56 | 4 | WAL set | LSNs of another set say nothing |
//! | 60 | 4 | reserved | |
//! | 64 | 8 | start number of the writer | |
//! | 72 | 8 | sequence number, rises with every manifest of the shard | the newest is found by it |
//! | 80 | 8 | durable LSN | proof that the log was acknowledged up to here |
//! | 88 | … | G groups, strictly ascending | |
//!
//! A group is: group u16, number of bases u8 (1, or 2 with a previous one), 5 reserved; then the
//! newest base, then the previous. A base is: root length u32 (0 = no root: the group's formation),
//! reserved u32, root file u64, root offset u64, root hash (16), log start LSN u64, and a group
//! block as told in [`crate::snapshot::layout`].
//!
//! # Cases of a partial write
//!
//! The driver writes a temporary name, syncs, renames, syncs the directory. A crash leaves the old
//! manifest or the new one; a `.tmp` is removed. Short or damaged bytes under the final name are
//! rot: the manifest is refused by name and the log's own bases serve alone.
//!
//! # To change this format
//!
//! Raise [`FORMAT`], keep the older decoders, keep magic, format, length and checksum in place, and
//! add a manifest of the old format to the fixtures.

use crate::base::checksum::{Hash128, crc32c};
use crate::base::ids::{ClusterId, DiskId, GroupId, ShardId};
use crate::base::units::Lsn;
use crate::snapshot::fields::{Fields, Malformed, u16_at, u32_at};
use crate::snapshot::layout::{GROUP_BYTES, GroupMeta, Owner, RootRef};
use crate::snapshot::view::group_block;

/// The format that this binary writes, and the newest that it reads.
pub const FORMAT: u16 = 1;

const MAGIC: [u8; 8] = *b"rrq-mani";
const HEAD_BYTES: usize = 88;
const GROUP_HEAD_BYTES: usize = 8;
const BASE_HEAD_BYTES: usize = 48;

/// What a group starts from: the state at an index, and where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestBase {
    /// The group and the index.
    pub meta: GroupMeta,
    /// The state; none at formation, when it is empty.
    pub root: Option<RootRef>,
    /// Earlier records of the group in the log are void.
    pub log_start: Lsn,
}

/// The bases of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestGroup {
    /// The newest.
    pub newest: ManifestBase,
    /// The one before, should the newest be damaged.
    pub previous: Option<ManifestBase>,
}

/// The bases of all groups of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Whose it is.
    pub owner: Owner,
    /// The shard.
    pub shard: ShardId,
    /// The WAL set that the LSNs count in.
    pub wal_set: u32,
    /// The writer's start number.
    pub start: u64,
    /// Rises with every manifest of the shard.
    pub sequence: u64,
    /// The log was durable up to here.
    pub durable: Lsn,
    /// The groups, strictly ascending.
    pub groups: Vec<ManifestGroup>,
}

/// Why bytes are not the manifest asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Fewer bytes than the manifest has.
    #[error("the manifest is cut off: {found} bytes of {needed}")]
    Truncated {
        /// Bytes of the whole manifest, or of its head.
        needed: u64,
        /// Bytes there.
        found: u64,
    },
    /// Not a manifest.
    #[error("not a manifest of rrq: it starts with {:016x}", u64::from_be_bytes(*.found))]
    BadMagic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// A newer binary wrote it.
    #[error("manifest format {found} is newer than the newest that this version reads, {max}")]
    TooNew {
        /// Its format.
        found: u16,
        /// The newest that this binary reads.
        max: u16,
    },
    /// The manifest is damaged.
    #[error(
        "the manifest's checksum at byte {offset} is {expected:08x}, its bytes give {found:08x}"
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
    /// Written in another cluster.
    #[error("the manifest belongs to cluster {found}, not to {expected}")]
    OtherCluster {
        /// Our cluster.
        expected: ClusterId,
        /// The manifest's.
        found: ClusterId,
    },
    /// Written on another disk.
    #[error("the manifest was written on disk {found}, not on {expected}")]
    OtherDisk {
        /// Our disk.
        expected: DiskId,
        /// The manifest's.
        found: DiskId,
    },
    /// Another shard's.
    #[error("the manifest is that of shard {found}, not of {expected}")]
    OtherShard {
        /// The shard asked for.
        expected: ShardId,
        /// The manifest's.
        found: ShardId,
    },
}

impl ManifestBase {
    fn encode_into(&self, out: &mut Vec<u8>) {
        let none = RootRef {
            file: 0,
            offset: 0,
            len: 0,
            hash: Hash128::default(),
        };
        let root = self.root.unwrap_or(none);
        assert_eq!(root.len > 0, self.root.is_some(), "a root has a length");
        out.extend_from_slice(&root.len.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&root.file.to_le_bytes());
        out.extend_from_slice(&root.offset.to_le_bytes());
        out.extend_from_slice(&root.hash.0);
        out.extend_from_slice(&self.log_start.0.to_le_bytes());
        self.meta.encode_into(out);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        let at_root = fields.malformed("root of a base");
        let len = fields.u32("root of a base")?;
        fields.zeros(4)?;
        let root = RootRef {
            file: fields.u64("root of a base")?,
            offset: fields.u64("root of a base")?,
            len,
            hash: Hash128(fields.id("root of a base")?),
        };
        let log_start = Lsn(fields.u64("log start of a base")?);
        let meta = group_block(fields)?;
        let named = root.file != 0 || root.offset != 0 || root.hash != Hash128::default();
        if len == 0 && named || root.offset.checked_add(u64::from(len)).is_none() {
            return Err(at_root);
        }
        Ok(Self {
            meta,
            root: (len > 0).then_some(root),
            log_start,
        })
    }
}

impl Manifest {
    /// The manifest's bytes.
    ///
    /// # Panics
    /// If the groups do not ascend, or a previous base is another group's.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&self.shard.0.to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&(self.groups.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.owner.cluster.0);
        out.extend_from_slice(&self.owner.disk.0);
        out.extend_from_slice(&self.wal_set.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.start.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.durable.0.to_le_bytes());
        assert_eq!(out.len(), HEAD_BYTES, "the table has these fields");
        let mut last: Option<GroupId> = None;
        for bases in &self.groups {
            let group = bases.newest.meta.group;
            assert!(last < Some(group), "groups ascend: {last:?}, then {group}");
            last = Some(group);
            out.extend_from_slice(&group.0.to_le_bytes());
            out.extend_from_slice(&[1 + u8::from(bases.previous.is_some()), 0, 0, 0, 0, 0]);
            bases.newest.encode_into(&mut out);
            if let Some(previous) = &bases.previous {
                assert_eq!(
                    previous.meta.group, group,
                    "one group has one group's bases"
                );
                previous.encode_into(&mut out);
            }
        }
        let len = u32::try_from(out.len()).expect("65,536 groups take far less than 4 GiB");
        out[12..16].copy_from_slice(&len.to_le_bytes());
        let crc = crc32c(&[&out[..16], &out[20..]]);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads a manifest. Whose it is, is asked by [`Self::check`].
    ///
    /// # Errors
    /// By name, see [`ManifestError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        check_outside(bytes)?;
        let mut fields = Fields::new(bytes, 8);
        let unknown = fields.malformed("format number");
        if fields.u16("format number")? != FORMAT {
            return Err(unknown.into());
        }
        let shard = ShardId(fields.u16("shard")?);
        fields.u32("length")?;
        fields.u32("checksum")?;
        let groups = fields.u32("number of groups")?;
        let owner = Owner {
            cluster: ClusterId(fields.id("cluster id")?),
            disk: DiskId(fields.id("disk id")?),
        };
        let wal_set = fields.u32("WAL set")?;
        fields.zeros(4)?;
        let mut manifest = Self {
            owner,
            shard,
            wal_set,
            start: fields.u64("start number")?,
            sequence: fields.u64("sequence number")?,
            durable: Lsn(fields.u64("durable LSN")?),
            groups: Vec::new(),
        };
        let least = GROUP_HEAD_BYTES + BASE_HEAD_BYTES + GROUP_BYTES;
        let count = fields.room(groups, least, "number of groups")?;
        manifest.groups.reserve_exact(count);
        let mut last: Option<GroupId> = None;
        for _ in 0..count {
            let bases = group_bases(&mut fields, last)?;
            last = Some(bases.newest.meta.group);
            manifest.groups.push(bases);
        }
        fields.end()?;
        Ok(manifest)
    }

    /// The manifest is that of `shard` of `owner`.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, owner: &Owner, shard: ShardId) -> Result<(), ManifestError> {
        if self.owner.cluster != owner.cluster {
            return Err(ManifestError::OtherCluster {
                expected: owner.cluster,
                found: self.owner.cluster,
            });
        }
        if self.owner.disk != owner.disk {
            return Err(ManifestError::OtherDisk {
                expected: owner.disk,
                found: self.owner.disk,
            });
        }
        if self.shard != shard {
            return Err(ManifestError::OtherShard {
                expected: shard,
                found: self.shard,
            });
        }
        Ok(())
    }
}

/// Length, magic, checksum and format are right.
fn check_outside(bytes: &[u8]) -> Result<(), ManifestError> {
    let truncated = |needed: usize| ManifestError::Truncated {
        needed: needed as u64,
        found: bytes.len() as u64,
    };
    let head = bytes
        .get(..HEAD_BYTES)
        .ok_or_else(|| truncated(HEAD_BYTES))?;
    let mut magic = [0; 8];
    magic.copy_from_slice(&head[..8]);
    if magic != MAGIC {
        return Err(ManifestError::BadMagic { found: magic });
    }
    let len = u32_at(head, 12) as usize;
    if len > bytes.len() {
        return Err(truncated(len));
    }
    if len < bytes.len() {
        let offset = 12;
        let what = "length of the manifest";
        return Err(Malformed { offset, what }.into());
    }
    let (expected, found) = (u32_at(head, 16), crc32c(&[&bytes[..16], &bytes[20..]]));
    if expected != found {
        return Err(ManifestError::BadChecksum {
            offset: 16,
            expected,
            found,
        });
    }
    if u16_at(head, 8) > FORMAT {
        return Err(ManifestError::TooNew {
            found: u16_at(head, 8),
            max: FORMAT,
        });
    }
    Ok(())
}

fn group_bases(fields: &mut Fields<'_>, last: Option<GroupId>) -> Result<ManifestGroup, Malformed> {
    let bad_group = fields.malformed("group");
    let group = GroupId(fields.u16("group")?);
    let bases = fields.u8("number of bases")?;
    fields.zeros(5)?;
    if last >= Some(group) || !(1..=2).contains(&bases) {
        return Err(bad_group);
    }
    let newest = ManifestBase::decode(fields)?;
    let previous = match bases {
        2 => Some(ManifestBase::decode(fields)?),
        _ => None,
    };
    let of_group = |base: &ManifestBase| base.meta.group == group;
    if !of_group(&newest) || !previous.as_ref().is_none_or(of_group) {
        return Err(bad_group);
    }
    Ok(ManifestGroup { newest, previous })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::LogIndex;
    use crate::snapshot::samples::{self, owner};
    use proptest::prelude::*;

    fn base(group: u16, root: bool) -> ManifestBase {
        let root = root.then_some(RootRef {
            file: 7,
            offset: 8192,
            len: 300,
            hash: Hash128([0xaa; 16]),
        });
        ManifestBase {
            meta: GroupMeta {
                group: GroupId(group),
                ..samples::meta()
            },
            root,
            log_start: Lsn(4096),
        }
    }

    fn manifest() -> Manifest {
        let mut previous = base(5, true);
        previous.meta.index = LogIndex(900);
        Manifest {
            owner: owner(),
            shard: ShardId(3),
            wal_set: 1,
            start: 9,
            sequence: 12,
            durable: Lsn(1 << 20),
            groups: vec![
                ManifestGroup {
                    newest: base(4, false),
                    previous: None,
                },
                ManifestGroup {
                    newest: base(5, true),
                    previous: Some(previous),
                },
            ],
        }
    }

    fn reseal(bytes: &mut [u8]) {
        let crc = crc32c(&[&bytes[..16], &bytes[20..]]);
        bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_manifest_is_these_bytes() {
        let bytes = manifest().encode();
        assert_eq!(
            hex(&bytes[..HEAD_BYTES]),
            "7272712d6d616e690100030018020000c7b53a5402000000c1c1c1c1c1c1c1c1\
             c1c1c1c1c1c1c1c1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d10100000000000000\
             09000000000000000c000000000000000000100000000000"
        );
        let first = GROUP_HEAD_BYTES + BASE_HEAD_BYTES + GROUP_BYTES + 48;
        assert_eq!(
            hex(&bytes[HEAD_BYTES..HEAD_BYTES + first]),
            "0400010000000000000000000000000000000000000000000000000000000000\
             0000000000000000000000000000000000100000000000000400010001000000\
             e8030000000000000400000000000000c82c010000000000f7ffffffffffffff\
             02000000000000000100000000000000d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1\
             0200000000000000d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2d2"
        );
        let second = HEAD_BYTES + first;
        assert_eq!(
            hex(&bytes[second..second + 56]),
            "05000200000000002c0100000000000007000000000000000020000000000000\
             aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0010000000000000"
        );
        assert_eq!(Manifest::decode(&bytes), Ok(manifest()));
    }

    #[test]
    fn a_shard_without_groups_has_a_manifest() {
        let mut empty = manifest();
        empty.groups.clear();
        assert_eq!(Manifest::decode(&empty.encode()), Ok(empty));
    }

    #[test]
    fn each_fault_has_its_name() {
        let whole = manifest().encode();
        let damaged = |at: usize, value: u8| {
            let mut bytes = whole.clone();
            bytes[at] = value;
            bytes
        };
        let resealed = |at: usize, value: u8| {
            let mut bytes = damaged(at, value);
            reseal(&mut bytes);
            Manifest::decode(&bytes)
        };
        let truncated = |needed, found| Err(ManifestError::Truncated { needed, found });
        assert_eq!(Manifest::decode(&whole[..87]), truncated(88, 87));
        let len = whole.len();
        assert_eq!(
            Manifest::decode(&whole[..len - 1]),
            truncated(len as u64, len as u64 - 1)
        );
        assert!(matches!(
            Manifest::decode(&damaged(0, b'x')),
            Err(ManifestError::BadMagic { .. })
        ));
        assert!(matches!(
            Manifest::decode(&damaged(8, 2)),
            Err(ManifestError::BadChecksum { offset: 16, .. })
        ));
        let too_new = Err(ManifestError::TooNew { found: 2, max: 1 });
        assert_eq!(resealed(8, 2), too_new);
        let malformed = |offset, what| Err(ManifestError::Malformed(Malformed { offset, what }));
        let mut longer = whole.clone();
        longer.push(0);
        let wrong_len = malformed(12, "length of the manifest");
        assert_eq!(Manifest::decode(&longer), wrong_len);
        assert_eq!(resealed(8, 0), malformed(8, "format number"));
        assert_eq!(resealed(60, 1), malformed(60, "reserved field"));
        assert_eq!(resealed(23, 255), malformed(88, "number of groups"));
        assert_eq!(
            resealed(88, 9),
            malformed(88, "group"),
            "not its bases' group"
        );
        assert_eq!(resealed(90, 3), malformed(88, "group"), "three bases");
        assert_eq!(resealed(90, 0), malformed(88, "group"), "no base");
        assert_eq!(
            resealed(104, 1),
            malformed(96, "root of a base"),
            "no root, placed"
        );
    }

    #[test]
    fn another_owner_or_shard_is_foreign() {
        let whole = manifest();
        let other_cluster = Owner {
            cluster: ClusterId([1; 16]),
            ..owner()
        };
        let other_disk = Owner {
            disk: DiskId([1; 16]),
            ..owner()
        };
        assert_eq!(whole.check(&owner(), ShardId(3)), Ok(()));
        assert!(matches!(
            whole.check(&other_cluster, ShardId(3)),
            Err(ManifestError::OtherCluster { .. })
        ));
        assert!(matches!(
            whole.check(&other_disk, ShardId(3)),
            Err(ManifestError::OtherDisk { .. })
        ));
        assert!(matches!(
            whole.check(&owner(), ShardId(2)),
            Err(ManifestError::OtherShard { .. })
        ));
    }

    proptest! {
        /// What the decoder accepts is exactly what the encoder writes.
        #[test]
        fn an_accepted_manifest_has_one_form(
            changes in proptest::collection::vec((20_usize..800, any::<u8>()), 1..4),
        ) {
            let mut bytes = manifest().encode();
            for (at, value) in changes {
                let at = at % bytes.len();
                if at >= 20 {
                    bytes[at] = value;
                }
            }
            reseal(&mut bytes);
            if let Ok(manifest) = Manifest::decode(&bytes) {
                prop_assert_eq!(manifest.encode(), bytes);
            }
        }
    }
}
