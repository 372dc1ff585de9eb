//! Blocks by where the guest's code is: a hash table whose look-up touches one cache line.
//!
//! Look-ups are frequent and cold: each asks for another block of hundreds of thousands. A general map costs
//! three misses (its control bytes, its entry, the block); here the entry is all there is to see.

use super::{BlockId, Start};
use crate::mode::Mode;

/// What is known of a block without looking at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its number.
    pub block: BlockId,
    /// Offset of its host code in code memory.
    pub host_offset: u32,
    /// Its one instruction lies on two pages.
    pub straddles: bool,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(32))]
struct Slot {
    gpa: u64,
    rip_page: u64,
    mode: Mode,
    known: Known,
}

const EMPTY: BlockId = BlockId::MAX;
const NOTHING: Slot = Slot {
    gpa: 0,
    rip_page: 0,
    mode: Mode(0),
    known: Known { block: EMPTY, host_offset: 0, straddles: false },
};
const FEWEST_SLOTS: usize = 1024;

impl Slot {
    fn start(&self) -> Start {
        Start { gpa: self.gpa, rip_page: self.rip_page, mode: self.mode }
    }
}

/// Open addressing with linear probing, at most three quarters full; removal moves followers up, so that no slot stays
/// marked.
#[derive(Debug)]
pub struct BlockIndex {
    slots: Vec<Slot>,
    used: usize,
}

impl Default for BlockIndex {
    fn default() -> Self {
        Self { slots: vec![NOTHING; FEWEST_SLOTS], used: 0 }
    }
}

impl BlockIndex {
    /// Where a block belongs; keys are addresses, not chosen by an adversary to anyone else's harm.
    fn home(&self, start: Start) -> usize {
        let assumed = u64::from(start.mode.0) << 44 ^ start.rip_page << 20;
        let mixed = (start.gpa ^ assumed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize & (self.slots.len() - 1)
    }

    fn next(&self, place: usize) -> usize {
        (place + 1) & (self.slots.len() - 1)
    }

    /// The slot of a block, or the empty one where it would be put.
    fn place(&self, start: Start) -> usize {
        let mut place = self.home(start);
        loop {
            let slot = &self.slots[place];
            if slot.known.block == EMPTY || slot.start() == start {
                return place;
            }
            place = self.next(place);
        }
    }

    /// The block at `start`.
    pub fn find(&self, start: Start) -> Option<Known> {
        let known = self.slots[self.place(start)].known;
        (known.block != EMPTY).then_some(known)
    }

    /// Add a block, in place of the one that was there.
    pub fn insert(&mut self, start: Start, known: Known) {
        if 4 * (self.used + 1) > 3 * self.slots.len() {
            self.grow();
        }
        let place = self.place(start);
        self.used += usize::from(self.slots[place].known.block == EMPTY);
        let Start { gpa, rip_page, mode } = start;
        self.slots[place] = Slot { gpa, rip_page, mode, known };
    }

    fn grow(&mut self) {
        let larger = vec![NOTHING; 2 * self.slots.len()];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if slot.known.block != EMPTY {
                let place = self.place(slot.start());
                self.slots[place] = slot;
            }
        }
    }

    /// Remove a block, if it is there.
    pub fn remove(&mut self, start: Start) {
        let mut hole = self.place(start);
        if self.slots[hole].known.block == EMPTY {
            return;
        }
        self.used -= 1;
        let mut place = self.next(hole);
        while self.slots[place].known.block != EMPTY {
            let home = self.home(self.slots[place].start());
            let mask = self.slots.len() - 1;
            // It may move up unless its home lies behind the hole.
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[place];
                hole = place;
            }
            place = self.next(place);
        }
        self.slots[hole] = NOTHING;
    }

    /// Remove all.
    pub fn clear(&mut self) {
        self.slots.fill(NOTHING);
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::{BlockIndex, Known, Start};
    use crate::mode::Mode;
    use std::collections::HashMap;

    fn known(number: u32) -> Known {
        Known { block: number, host_offset: number * 16, straddles: number % 7 == 0 }
    }

    #[test]
    fn it_does_what_a_map_does() {
        let (mut index, mut map) = (BlockIndex::default(), HashMap::new());
        let mut random = 1u64;
        for step in 0..200_000u32 {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            // Few addresses, so that most steps meet a block that is there; some in clusters.
            let gpa = (random >> 40) % 3000 * if step % 2 == 0 { 1 } else { 4096 };
            let mode = Mode((random >> 33) as u32 % 3);
            let start = Start { gpa, rip_page: ((random >> 20) % 2) << 12, mode };
            match random >> 61 {
                0..=3 => {
                    index.insert(start, known(step));
                    map.insert(start, known(step));
                }
                4..=6 => {
                    index.remove(start);
                    map.remove(&start);
                }
                _ if step % 5000 == 0 => {
                    index.clear();
                    map.clear();
                }
                _ => {}
            }
            assert_eq!(index.find(start), map.get(&start).copied());
        }
        assert_eq!(index.used, map.len());
        for (&start, &one) in &map {
            assert_eq!(index.find(start), Some(one));
        }
    }
}
