//! One member of one Raft group: a pure state machine.
