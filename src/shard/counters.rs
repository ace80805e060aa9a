//! What a shard counts: plain numbers that the driver may read. Nothing decides by them.

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $kind:ident,)*) => {
        /// Numbers of one shard since its start.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        impl Counters {
            /// How many there are.
            pub const LEN: usize = [$(stringify!($name)),*].len();

            /// Visits every number in a fixed order: name, help, whether it only rises, value.
            pub fn each(&self, mut visit: impl FnMut(&'static str, &'static str, bool, u64)) {
                $(visit(
                    stringify!($name),
                    concat!($($doc),+),
                    counters!(@rises $kind),
                    self.$name,
                );)*
            }
        }
    };
    (@rises total) => { true };
    (@rises gauge) => { false };
}

counters! {
    /// Jobs enqueued.
    jobs_enqueued_total: total,
    /// Jobs leased.
    jobs_leased_total: total,
    /// Jobs acknowledged by their worker.
    jobs_acked_total: total,
    /// Jobs that failed and were given back.
    jobs_nacked_total: total,
    /// Requests of clients.
    requests_total: total,
    /// Requests refused as a whole.
    requests_refused_total: total,
    /// Groups that are not at rest.
    raft_groups_awake: gauge,
    /// Memory of log entries: of those that are not applied yet, and of those that are held for members
    /// that are behind.
    raft_entries_held_bytes: gauge,
    /// Steps towards other members that were applied, of all groups.
    raft_members_changed_total: total,
    /// Groups whose log may have lost what was promised, until the other voters have put it right.
    raft_groups_recovering: gauge,
    /// Times that another node had heard of more of this shard's log than a start found: the groups that
    /// others vote in were put right by them.
    log_ends_lost_total: total,
    /// Messages of other nodes that were refused: for a group that is not here, or nonsense.
    peer_messages_refused_total: total,
    /// Requests handed to another shard of this node.
    requests_forwarded_total: total,
    /// Changes of queues whose partitions another node leads, sent to it; again as long as they are not
    /// done.
    partition_changes_sent_total: total,
    /// Enqueues refused because the disk is full.
    disk_full_refusals_total: total,
    /// Enqueues refused because the log grows faster than checkpoints are written.
    log_full_refusals_total: total,
    /// Enqueues refused because jobs and keys take all the memory that they may.
    memory_full_refusals_total: total,
    /// Long polls that wait.
    polls_waiting: gauge,
    /// Times that a group of this node got a new leader.
    raft_leader_changes_total: total,
    /// Groups that this node handed to another that led fewer.
    raft_groups_handed_over_total: total,
    /// Entries proposed.
    entries_proposed_total: total,
    /// Entries applied.
    entries_applied_total: total,
    /// Batches of the log written.
    wal_batches_total: total,
    /// Bytes of the log written, padding included.
    wal_bytes_total: total,
    /// Bytes of log since the last checkpoint round.
    wal_bytes_since_checkpoint: gauge,
    /// Checkpoint rounds finished.
    checkpoint_rounds_total: total,
    /// Checkpoint rounds given up for lack of space.
    checkpoint_rounds_failed_total: total,
    /// Checkpoints that could not be read at the start, so that an older one was used.
    checkpoints_damaged_total: total,
    /// Bytes of checkpoint files written.
    checkpoint_bytes_total: total,
    /// Checkpoints of other nodes that were installed in place of log entries.
    checkpoints_installed_total: total,
    /// Checkpoints of other nodes whose transfer or installation was given up, also since what was written of
    /// them, or was here, cannot be read.
    checkpoint_installs_failed_total: total,
    /// Checkpoints of other nodes that were whole here and could not be read again: a disk that loses what it
    /// was given.
    checkpoint_installs_unread_total: total,
    /// Checkpoints on their way to other nodes, or there and not caught up with yet.
    checkpoints_under_way: gauge,
    /// Parts of checkpoints sent to other nodes.
    checkpoint_parts_sent_total: total,
    /// Bytes of parts of checkpoints sent to other nodes.
    checkpoint_part_bytes_sent_total: total,
    /// Pages of checkpoints of other nodes that were not here, or not the same.
    checkpoint_pages_taken_total: total,
    /// Parts of checkpoints that nobody asked for, or that came twice or out of order.
    checkpoint_parts_refused_total: total,
    /// Pieces of the log read again for other nodes.
    log_pieces_read_total: total,
    /// Pieces of the log that could not be read again, or were not what was written: who needed them got a
    /// checkpoint.
    log_pieces_bad_total: total,
    /// Entries sent to other nodes that were read from the log for them.
    entries_sent_from_log_total: total,
    /// Groups that do not serve because their log or state is damaged.
    groups_halted: gauge,
    /// Groups of whose state something is damaged and comes from another member.
    groups_mending: gauge,
    /// Groups whose state was damaged and is whole again: another member had it, or it could be read again.
    groups_mended_total: total,
    /// Bytes of checkpoint files read to see whether the disk has them still.
    scrub_bytes_total: total,
    /// Parts of checkpoints found to be damaged before anybody needed them.
    scrub_damaged_total: total,
    /// Times that all groups were looked at for such damage.
    scrub_passes_total: total,
    /// Seconds since all of a group was looked at, or since the start, of the group of which that is longest
    /// ago; 0 if nothing is looked at.
    scrub_oldest_seconds: gauge,
    /// Groups of this shard.
    groups: gauge,
    /// Steps of the wall clock by more than a minute, group by group.
    wall_clock_steps_total: total,
    /// How far this node's wall clock is from the median of the voters', in milliseconds.
    wall_clock_off_ms: gauge,
    /// Whether most voters' wall clocks are not within a minute of their median, so that none is followed by
    /// more than that.
    wall_clock_disputed: gauge,
    /// Sessions whose leases were ended because they were silent or closed.
    sessions_ended_total: total,
    /// Torn tails cut off at the start.
    log_tails_cut_total: total,
    /// Whether enqueues are refused because the disk is full.
    disk_full: gauge,
    /// Memory that jobs take, in bytes: bodies and 512 for each live one, 192 for each key, results and
    /// 192 for each finished one that is kept.
    jobs_held_bytes: gauge,
    /// Pages of jobs and keys read from the disk since the start was over.
    pages_read_total: total,
    /// Memory of pages that was given back, in bytes: they are on the disk.
    pages_let_go_bytes_total: total,
    /// Whether enqueues are refused because jobs and keys take all the memory that they may.
    memory_full: gauge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_visited_once_with_its_value() {
        let counters = Counters {
            jobs_enqueued_total: 3,
            memory_full: 1,
            ..Counters::default()
        };
        let mut seen = Vec::new();
        counters.each(|name, help, rises, value| seen.push((name, help, rises, value)));
        assert_eq!(seen.len(), Counters::LEN);
        assert_eq!(seen[0], ("jobs_enqueued_total", " Jobs enqueued.", true, 3));
        assert_eq!(seen[Counters::LEN - 1].3, 1);
    }
}
