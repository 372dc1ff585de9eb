//! The jump caches and return stacks that translated code looks into, and what they hold.

use super::space::MAX_ENTRIES;
use super::tlb::NOWHERE;
use crate::mode::Mode;
use crate::state::{HotState, JumpCache, JumpEntry, JUMP_CACHES, JUMP_ENTRIES};

/// How far a RIP (with its mode, see [`jump_key`]) is rotated to the right before it is added to itself, to select
/// each of the two jump-cache entries where its block may be.
pub const JUMP_ROTATIONS: [u32; 2] = [15, 21];
/// The bits of that sum which select the entry.
pub const JUMP_MASK: u64 = JUMP_ENTRIES as u64 - 1;

fn jump_index(key: u64, rotation: u32) -> usize {
    (key.wrapping_add(key.rotate_right(rotation)) & JUMP_MASK) as usize
}

/// What the entries for `rip` are found by. Narrow code changes its mode often (a kernel loads FS as it is entered),
/// so that its mode is part of it and one cache holds blocks of several; 64-bit addresses leave no
/// room for it.
fn jump_key(mode: Mode, rip: u64) -> u64 {
    rip.wrapping_add(mode.jump_tag())
}

impl JumpEntry {
    /// Only entry 0 is looked into for RIP 0, which is what untouched memory would stand for.
    fn empty(entry: usize) -> Self {
        let rip: u64 = if entry == 0 { NOWHERE } else { 0 };
        Self { tag: rip.wrapping_neg(), host: 0, rip_page: 0, block: 0 }
    }
}

fn clear_jump_entries(cache: &mut JumpCache) {
    cache.fill(JumpEntry::empty(1));
    cache[0] = JumpEntry::empty(0);
}

/// Up to this many filled entries a jump cache is cleared one by one.
const FEW_JUMPS: usize = JUMP_ENTRIES / 8;

/// What the jump caches of `HotState` hold.
#[derive(Debug)]
pub struct Jumps {
    /// The mode whose blocks each jump cache of 64-bit code holds.
    modes: [Option<Mode>; JUMP_CACHES],
    /// Entries filled since each jump cache was cleared, while there are few.
    filled: [Vec<u16>; JUMP_CACHES],
}

impl Default for Jumps {
    fn default() -> Self {
        Self { modes: [None; JUMP_CACHES], filled: std::array::from_fn(|_| vec![0]) }
    }
}

impl Jumps {
    /// The mode whose blocks a jump cache of 64-bit code holds.
    pub fn mode(&self, cache: usize) -> Option<Mode> {
        self.modes[cache]
    }

    /// Remember the block for an indirect branch to `rip`: the number of one, its host address and RIP page.
    pub fn fill(&mut self, hot: &mut HotState, mode: Mode, rip: u64, to: (u32, u64, u64)) {
        let Some(cache) = mode.jump_cache() else { return };
        self.hold(hot, mode);
        let key = jump_key(mode, rip);
        let first = jump_index(key, JUMP_ROTATIONS[0]);
        let before = hot.jump[cache][first];
        let (block, host, rip_page) = to;
        self.put(hot, cache, first, JumpEntry { tag: key.wrapping_neg(), host, rip_page, block });
        let old_key = before.tag.wrapping_neg();
        if before.host != 0 && old_key != key && jump_index(old_key, JUMP_ROTATIONS[0]) == first {
            self.put(hot, cache, jump_index(old_key, JUMP_ROTATIONS[1]), before);
        }
    }

    fn put(&mut self, hot: &mut HotState, cache: usize, entry: usize, what: JumpEntry) {
        if self.filled[cache].len() <= FEW_JUMPS {
            self.filled[cache].push(entry as u16);
        }
        hot.jump[cache][entry] = what;
    }

    /// The block remembered for an indirect branch to `rip`: its number, host address and RIP page.
    pub fn find(&self, hot: &HotState, mode: Mode, rip: u64) -> Option<(u32, u64, u64)> {
        let right_mode = |&cache: &usize| !mode.is64() || self.modes[cache] == Some(mode);
        let cache = mode.jump_cache().filter(right_mode)?;
        let key = jump_key(mode, rip);
        let entries = JUMP_ROTATIONS.map(|rotation| &hot.jump[cache][jump_index(key, rotation)]);
        let found = entries.into_iter().find(|entry| entry.tag == key.wrapping_neg())?;
        Some((found.block, found.host, found.rip_page))
    }

    /// Forget the block remembered for `rip`.
    pub fn forget(&mut self, hot: &mut HotState, mode: Mode, rip: u64) {
        if let Some(cache) = mode.jump_cache() {
            let key = jump_key(mode, rip);
            for entry in JUMP_ROTATIONS.map(|rotation| jump_index(key, rotation)) {
                if hot.jump[cache][entry].tag == key.wrapping_neg() {
                    hot.jump[cache][entry] = JumpEntry::empty(entry);
                }
            }
        }
    }

    /// The jump caches that translated 64-bit code of `mode` will look into must hold blocks of that mode:
    /// STAC, CLAC, SYSCALL and SYSRET change the mode without the run loop.
    pub fn enter_mode(&mut self, hot: &mut HotState, mode: Mode) {
        self.hold(hot, mode);
        if mode.is64() && !mode.single_step() {
            let kernel = if mode.cpl() == 0 { mode } else { mode.kernel_side() };
            self.hold(hot, kernel.with_access_override(true));
            self.hold(hot, kernel.with_access_override(false));
            if mode.cpl() == 0 {
                self.hold(hot, Mode(hot.user_mode as u32));
            }
        }
    }

    fn hold(&mut self, hot: &mut HotState, mode: Mode) {
        if let Some(cache) = mode.jump_cache().filter(|_| mode.is64()) {
            if self.modes[cache] != Some(mode) {
                self.clear(hot, cache);
                self.modes[cache] = Some(mode);
            }
        }
    }

    /// Empty one jump cache and its return stack, at a cost that goes with its use. It is of no mode then.
    pub fn clear(&mut self, hot: &mut HotState, cache: usize) {
        hot.forget_returns(cache);
        self.modes[cache] = None;
        let filled = &mut self.filled[cache];
        if filled.len() > FEW_JUMPS {
            clear_jump_entries(&mut hot.jump[cache]);
        } else {
            for &entry in filled.iter() {
                hot.jump[cache][usize::from(entry)] = JumpEntry::empty(usize::from(entry));
            }
        }
        filled.clear();
    }

    /// Empty one jump cache, into `jumps` if there are few.
    pub fn take(&mut self, hot: &mut HotState, cache: usize, jumps: &mut Vec<(u16, JumpEntry)>) {
        if self.filled[cache].len() <= MAX_ENTRIES {
            for &entry in &self.filled[cache] {
                let empty = JumpEntry::empty(entry.into());
                let jump = std::mem::replace(&mut hot.jump[cache][usize::from(entry)], empty);
                if jump.host != 0 {
                    jumps.push((entry, jump));
                }
            }
        }
        self.clear(hot, cache);
    }

    /// Fill a jump cache, which is empty, with what [`Self::take`] gave, of that mode.
    pub fn put_back(
        &mut self,
        hot: &mut HotState,
        cache: usize,
        mode: Option<Mode>,
        jumps: &mut Vec<(u16, JumpEntry)>,
    ) {
        self.modes[cache] = mode;
        for (entry, jump) in jumps.drain(..) {
            hot.jump[cache][usize::from(entry)] = jump;
            self.filled[cache].push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{jump_index, Jumps, JUMP_ROTATIONS};
    use crate::mode::Mode;

    #[test]
    fn jumps_that_share_an_entry_are_both_found() {
        let mut cpu = crate::cpu::Cpu::new(std::sync::Arc::new(sublet_memory::GuestMemory::new()));
        // 64-bit code of a user program.
        let (mut jumps, hot, mode) = (Jumps::default(), &mut cpu.state.hot, Mode(0x3a));
        let (first, second) = (0x1_0100, 0x2_00fe);
        assert_eq!(jump_index(first, JUMP_ROTATIONS[0]), jump_index(second, JUMP_ROTATIONS[0]));
        jumps.fill(hot, mode, first, (7, 1, 0x1_0000));
        jumps.fill(hot, mode, second, (8, 2, 0x2_0000));
        assert_eq!(jumps.find(hot, mode, first), Some((7, 1, 0x1_0000)));
        assert_eq!(jumps.find(hot, mode, second), Some((8, 2, 0x2_0000)));
        jumps.forget(hot, mode, first);
        assert_eq!(jumps.find(hot, mode, first), None);
        jumps.fill(hot, mode, first, (9, 3, 0x1_0000));
        jumps.clear(hot, 0);
        assert!([first, second].iter().all(|&rip| jumps.find(hot, mode, rip).is_none()));
    }
}
