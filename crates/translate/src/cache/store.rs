//! Finished translations that the vCPUs of a VM take from each other, in place of making them again.
//!
//! A translation depends on the bytes it was made of, their offset in the page, the mode and what it may do for
//! speed: on nothing of the vCPU that made it. It is position-independent but for what `CodeCache::insert` fills in.
//! Who takes one compares the bytes with those that it has read itself, as it would have to translate them, so that
//! nothing here has to be invalidated.

use super::{AddressMap, Start, Translation};
use crate::optimisations::Optimisations;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Parts with a lock each.
const SHARDS: usize = 16;
/// Bytes kept at most, in all.
const MOST_BYTES: usize = 96 << 20;
/// Beside what its lists hold, a translation takes this for itself and its entry.
const FIXED_BYTES: usize = 320;

/// What a translation depends on beside its bytes; the address stands for the offset in the page, and for code that
/// is likely the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    /// Where it begins, and what it assumes.
    pub start: Start,
    /// What it does for speed.
    pub optimisations: Optimisations,
}

/// A translation as it was before it had a place.
#[derive(Debug)]
pub struct Finished {
    bytes: Box<[u8]>,
    translation: Translation,
}

impl Finished {
    /// Make `translation` a copy, in its own memory.
    pub fn copy_to(&self, translation: &mut Translation) {
        translation.copy(&self.translation);
    }
}

type Known = AddressMap<Key, Arc<Finished>>;

/// Two generations: when the younger one has grown to its share, it becomes the older one, which goes.
#[derive(Debug, Default)]
struct Shard {
    young: Known,
    old: Known,
    young_bytes: usize,
}

/// The store of one VM.
#[derive(Debug)]
pub struct Store {
    shards: [Mutex<Shard>; SHARDS],
    most_bytes: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self::of(MOST_BYTES)
    }
}

impl Store {
    /// A store that keeps `most_bytes` at most.
    fn of(most_bytes: usize) -> Self {
        Self { shards: Default::default(), most_bytes }
    }

    /// Code of the same neighbourhood goes to different shards: vCPUs that run it together seldom meet.
    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        let mixed = key.start.gpa.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let shard = &self.shards[mixed as usize % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The translation of code that begins with `bytes`, if there is one.
    pub fn find(&self, key: Key, bytes: &[u8]) -> Option<Arc<Finished>> {
        let shard = self.shard(key);
        let found = shard.young.get(&key).or_else(|| shard.old.get(&key))?;
        bytes.starts_with(&found.bytes).then(|| found.clone())
    }

    /// Keep a copy of a translation that has no place yet, in place of one of other bytes.
    pub fn add(&self, key: Key, bytes: &[u8], translation: &Translation) {
        let finished = Finished { bytes: bytes.into(), translation: translation.clone() };
        let size = FIXED_BYTES + bytes.len() + translation.size();
        let mut shard = self.shard(key);
        if shard.young_bytes + size > self.most_bytes / (2 * SHARDS) {
            shard.old = std::mem::take(&mut shard.young);
            shard.young_bytes = 0;
        }
        shard.young_bytes += size;
        shard.young.insert(key, Arc::new(finished));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Key, Optimisations, Start, Store, Translation, SHARDS};
    use crate::mode::Mode;
    use crate::optimisations::Optimisation;

    fn key(gpa: u64) -> Key {
        Key { start: Start::anywhere(gpa, Mode(0)), optimisations: Optimisations::ALL }
    }

    fn translation(code: &[u8]) -> Translation {
        Translation { code: code.to_vec(), ..Translation::default() }
    }

    #[test]
    fn only_the_same_code_in_the_same_mode_is_found() {
        let store = Store::default();
        store.add(key(0x1000), &[1, 2, 3], &translation(&[0x90]));
        assert!(store.find(key(0x1000), &[1, 2, 3, 9]).is_some());
        assert!(store.find(key(0x1000), &[1, 2, 4, 9]).is_none());
        assert!(store.find(key(0x1000), &[1, 2]).is_none());
        let optimisations = Optimisations::ALL.without(Optimisation::SharedChecks);
        assert!(store.find(key(0x2000), &[1, 2, 3]).is_none());
        for start in [
            Start::anywhere(0x1000, Mode(1)),
            Start { rip_page: 0x40_0000, ..Start::anywhere(0x1000, Mode(0)) },
        ] {
            assert!(store.find(Key { start, ..key(0x1000) }, &[1, 2, 3]).is_none());
        }
        assert!(store.find(Key { optimisations, ..key(0x1000) }, &[1, 2, 3]).is_none());
    }

    #[test]
    fn a_copy_is_what_was_added() {
        let store = Store::default();
        store.add(key(0x1000), &[1], &translation(&[0x90, 0xc3]));
        let mut copy = translation(&[0xcc; 100]);
        store.find(key(0x1000), &[1]).unwrap().copy_to(&mut copy);
        assert_eq!((copy.code, copy.locations.len()), (vec![0x90, 0xc3], 0));
    }

    #[test]
    fn it_is_bounded_and_forgets_the_oldest() {
        let store = Store::of(SHARDS * 65536);
        for page in 0..10_000 {
            store.add(key(page << 12), &[1], &translation(&[0x90; 1000]));
        }
        let kept = (0..10_000).filter(|page| store.find(key(page << 12), &[1]).is_some()).count();
        assert!((100..1000).contains(&kept), "{kept}");
        assert!(store.find(key(9_999 << 12), &[1]).is_some());
        assert!(store.find(key(0), &[1]).is_none());
    }
}
