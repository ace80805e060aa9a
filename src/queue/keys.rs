//! Idempotency keys of a partition: which job a key named, within the queue's window.
//!
//! A key is known by its 128-bit hash. Keys with the same top 12 bits share a bucket, which is a page
//! of a [`Tree`]. A key outlives its job and leaves only at its window's end or with its queue.
//! Nothing is forgotten to make room.

use crate::base::checksum::Hash128;
use crate::base::limits::KEY_HELD_BYTES;
use crate::queue::tree::{DUES, NEVER, Page, Summary, Tree};

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

/// Keys whose hashes begin alike, by hash.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    keys: Vec<KeyRecord>,
    /// No later than the first time at which one of them is forgotten.
    first: u64,
}

/// The order in which keys are forgotten, in a summary.
pub(super) const EXPIRIES: usize = 0;

impl Default for Bucket {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            first: NEVER,
        }
    }
}

impl Page for Bucket {
    fn summary(&self) -> Summary {
        let mut dues = [NEVER; DUES];
        dues[EXPIRIES] = self.first;
        Summary {
            live: self.keys.len() as u64,
            dues,
            ..Summary::default()
        }
    }

    fn all_dues(&self, order: usize) -> impl Iterator<Item = u64> {
        let expiries = self.keys.iter().map(|key| key.expires);
        expiries.filter(move |_| order == EXPIRIES)
    }

    fn set_due(&mut self, order: usize, when: u64) {
        if order == EXPIRIES {
            self.first = when;
        }
    }
}

impl Bucket {
    /// The bucket of a page's keys, at least one, by hash.
    pub(super) fn of_keys(keys: Vec<KeyRecord>) -> Self {
        let first = keys.iter().map(|key| key.expires).min();
        let first = first.unwrap_or(NEVER);
        Self { keys, first }
    }

    /// By hash.
    pub(super) fn keys(&self) -> &[KeyRecord] {
        &self.keys
    }

    /// Memory that it takes, about.
    pub(super) fn held_bytes(&self) -> u64 {
        (self.keys.len() * KEY_HELD_BYTES) as u64
    }

    fn place(&self, hash: Hash128) -> Result<usize, usize> {
        self.keys.binary_search_by_key(&hash, |key| key.hash)
    }

    fn insert(&mut self, key: KeyRecord) {
        let at = self.place(key.hash);
        assert!(
            at.is_err(),
            "key {:?} is remembered already, at {at:?}",
            key.hash
        );
        self.first = key.expires.min(self.first);
        self.keys.insert(at.unwrap_or_else(|place| place), key);
    }

    /// Forgets the first of its keys that is forgotten then.
    fn remove(&mut self, when: u64) {
        let at = self.keys.iter().position(|key| key.expires == when);
        self.keys
            .remove(at.expect("its first time was just looked for"));
        if self.keys.is_empty() {
            self.first = NEVER;
        }
    }
}

/// The keys of a partition. Cloning shares them.
#[derive(Clone, Default)]
pub(super) struct KeyTable(Tree<Bucket>);

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
        let bucket = self.0.get(bucket_of(hash).into())?;
        let at = bucket.place(hash).ok()?;
        Some(&bucket.keys[at])
    }

    /// Remembers a key that is not remembered.
    pub(super) fn insert(&mut self, key: KeyRecord) {
        let number = bucket_of(key.hash).into();
        self.0.update(number, |bucket| bucket.insert(key));
    }

    /// No later than the first time at which a key is forgotten; [`NEVER`] if there is none.
    pub(super) fn first_expiry(&self) -> u64 {
        self.0.summary().dues[EXPIRIES]
    }

    /// Makes that time exact.
    pub(super) fn settle(&mut self) {
        self.0.settle(EXPIRIES);
    }

    /// Forgets the key that is forgotten first; of several at that time, the one with the lowest hash.
    pub(super) fn remove_first(&mut self) {
        let when = self.0.settle(EXPIRIES);
        let (number, _) = self.0.first_due(EXPIRIES).expect("there is a key");
        self.0.update(number, |bucket| bucket.remove(when));
    }

    /// The buckets from `number` on; each has a key.
    pub(super) fn from(&self, number: u16) -> impl Iterator<Item = (u16, &[KeyRecord])> {
        let buckets = self.0.from(number.into());
        buckets.map(|(number, bucket)| {
            let number = u16::try_from(number).expect("buckets have 12 bits");
            (number, bucket.keys.as_slice())
        })
    }

    /// The pages.
    pub(super) fn tree(&self) -> &Tree<Bucket> {
        &self.0
    }

    /// The pages, for what this node's disk has of them.
    pub(super) fn tree_mut(&mut self) -> &mut Tree<Bucket> {
        &mut self.0
    }

    /// The table of a tree.
    pub(super) fn of_tree(tree: Tree<Bucket>) -> Self {
        Self(tree)
    }

    /// A copy for a checkpoint, see [`Tree::cut`].
    pub(super) fn cut(&mut self) -> Self {
        Self(self.0.cut())
    }

    /// Proves that summaries are what the keys say.
    ///
    /// # Errors
    /// The first that is not, as a sentence.
    pub(super) fn check(&self) -> Result<(), String> {
        for (number, bucket) in self.0.here() {
            let (first, bound) = (bucket.first_due(EXPIRIES), bucket.first);
            if bound > first || first == NEVER {
                return Err(format!("bucket {number} says {bound}, its keys {first}"));
            }
        }
        self.0.check()
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
        let keys = table.from(0).flat_map(|(_, bucket)| bucket);
        assert!(keys.map(|key| key.hash).is_sorted());
        assert_eq!(table.get(key("7").hash), Some(&key("7")));
        assert_eq!(table.get(key("none").hash), None);
        while table.first_expiry() != NEVER {
            let first = table.from(0).next().map(|(_, bucket)| bucket[0].hash);
            table.remove_first();
            assert_eq!(table.get(first.expect("there is one")), None);
        }
        assert!(table.from(0).next().is_none());
    }

    #[test]
    fn keys_are_forgotten_in_the_order_of_their_times() {
        let mut table = KeyTable::default();
        for number in 0..300_u64 {
            let expires = 7 * number % 11;
            table.insert(KeyRecord {
                expires,
                ..key(&number.to_string())
            });
        }
        let mut times = Vec::new();
        while table.first_expiry() != NEVER {
            table.settle();
            times.push(table.first_expiry());
            table.remove_first();
            assert_eq!(table.check(), Ok(()));
        }
        assert!(times.is_sorted() && times.len() == 300);
    }
}
