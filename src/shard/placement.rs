//! Queue name to group to shard: pure functions, the same in every client.

use crate::base::checksum::crc32c;
use crate::base::ids::{GroupId, ShardId};

/// The home group of a queue: where its record and its partition 0 live.
///
/// # Panics
/// If `groups` is not a power of two within 16 bits.
#[must_use]
pub fn home_group(name: &str, groups: u32) -> GroupId {
    assert!(
        groups.is_power_of_two() && groups <= 1 << 16,
        "{groups} groups are not a power of two of at most 65536"
    );
    let group = crc32c(&[name.as_bytes()]) & (groups - 1);
    GroupId(u16::try_from(group).expect("masked to 16 bits"))
}

/// The shard of a node that runs the group.
#[must_use]
pub fn shard_of(group: GroupId, shards: u16) -> ShardId {
    ShardId(group.0 % shards)
}

/// The groups that a shard runs, ascending.
pub fn groups_of(shard: ShardId, shards: u16, groups: u32) -> impl Iterator<Item = GroupId> {
    let first = u32::from(shard.0);
    (first..groups)
        .step_by(usize::from(shards))
        .map(|group| GroupId(u16::try_from(group).expect("at most 65536 groups")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_one_shard() {
        for shards in [1_u16, 2, 3, 64] {
            let mut all: Vec<_> = (0..shards)
                .flat_map(|shard| groups_of(ShardId(shard), shards, 64))
                .collect();
            all.sort_unstable();
            assert_eq!(all, (0..64).map(GroupId).collect::<Vec<_>>());
            for group in all {
                assert!(groups_of(shard_of(group, shards), shards, 64).any(|g| g == group));
            }
        }
    }

    #[test]
    fn home_groups_are_fixed_for_ever() {
        assert_eq!(
            home_group("default", 64),
            GroupId(crc32c(&[b"default"]) as u16 & 63)
        );
        assert_eq!(home_group("emails", 1), GroupId(0));
    }
}
