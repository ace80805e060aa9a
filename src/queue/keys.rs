//! Idempotency keys of a partition: which job a key named, within the queue's window.
//!
//! A key is known by its 128-bit hash. Keys with the same top 12 bits share a bucket, which is a
//! page; buckets are shared with frozen states and copied when they change. A key outlives its job
//! and leaves only at its window's end or with its queue. Nothing is forgotten to make room.

use crate::base::checksum::Hash128;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bits of the hash that choose the bucket.
pub(super) const BUCKET_BITS: u32 = 12;

/// One key remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KeyRecord {
    /// Hash of the key.
    pub(super) hash: Hash128,
    /// The job that it named.
    pub(super) seq: u64,
    /// The first 8 bytes of the payload's hash, little-endian.
    pub(super) fingerprint: u64,
    /// Group time at which it is forgotten, in milliseconds; 48 bits.
    pub(super) expires: u64,
}

/// The keys of a partition.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyTable {
    buckets: BTreeMap<u16, Arc<Vec<KeyRecord>>>,
}

/// The bucket of a hash.
pub(super) fn bucket_of(hash: Hash128) -> u16 {
    u16::from_be_bytes([hash.0[0], hash.0[1]]) >> (16 - BUCKET_BITS)
}

/// What tells one payload from another under the same key.
pub(super) fn fingerprint(payload: &[u8]) -> u64 {
    let mut half = [0; 8];
    half.copy_from_slice(&Hash128::of(payload).0[..8]);
    u64::from_le_bytes(half)
}

impl KeyTable {
    /// The record of a key.
    pub(super) fn get(&self, hash: Hash128) -> Option<&KeyRecord> {
        let bucket = self.buckets.get(&bucket_of(hash))?;
        let at = bucket.binary_search_by_key(&hash, |key| key.hash).ok()?;
        Some(&bucket[at])
    }

    /// Remembers a key that is not remembered.
    pub(super) fn insert(&mut self, key: KeyRecord) {
        let bucket = Arc::make_mut(self.buckets.entry(bucket_of(key.hash)).or_default());
        let at = bucket.binary_search_by_key(&key.hash, |other| other.hash);
        assert!(
            at.is_err(),
            "key {:?} is remembered already, at {at:?}",
            key.hash
        );
        bucket.insert(at.unwrap_or_else(|place| place), key);
    }

    /// Forgets a key that is remembered.
    pub(super) fn remove(&mut self, hash: Hash128) {
        let number = bucket_of(hash);
        let bucket = self
            .buckets
            .get_mut(&number)
            .expect("a remembered key has its bucket");
        let bucket = Arc::make_mut(bucket);
        let at = bucket.binary_search_by_key(&hash, |key| key.hash);
        bucket.remove(at.expect("a remembered key is in its bucket"));
        if bucket.is_empty() {
            self.buckets.remove(&number);
        }
    }

    /// The buckets from `number` on; each has a key.
    pub(super) fn from(&self, number: u16) -> impl Iterator<Item = (u16, &[KeyRecord])> {
        self.buckets
            .range(number..)
            .map(|(number, bucket)| (*number, bucket.as_slice()))
    }

    /// Every key, by hash.
    pub(super) fn iter(&self) -> impl Iterator<Item = &KeyRecord> {
        self.buckets.values().flat_map(|bucket| bucket.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyRecord {
        KeyRecord {
            hash: Hash128::of(text.as_bytes()),
            seq: 1,
            fingerprint: fingerprint(b"x"),
            expires: 5,
        }
    }

    #[test]
    fn a_bucket_is_the_top_twelve_bits() {
        let mut hash = Hash128::default();
        hash.0[0] = 0xab;
        hash.0[1] = 0xcd;
        assert_eq!(bucket_of(hash), 0xabc);
    }

    #[test]
    fn keys_are_found_in_hash_order_and_buckets_vanish() {
        let mut table = KeyTable::default();
        let names: Vec<String> = (0..500).map(|n| n.to_string()).collect();
        for name in &names {
            table.insert(key(name));
        }
        assert!(table.iter().map(|key| key.hash).is_sorted());
        assert_eq!(table.get(key("7").hash), Some(&key("7")));
        assert_eq!(table.get(key("none").hash), None);
        for name in &names {
            table.remove(key(name).hash);
        }
        assert!(table.buckets.is_empty());
    }
}
