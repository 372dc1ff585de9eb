//! Which entries of the data TLBs are filled, so that clearing them costs what filling them did.

use super::tlb::{empty_tag, LAST_ENTRY};
use crate::state::{HotState, Tlb, MMU_INDICES, TLB_ENTRIES};

/// Words of marks of one TLB.
const WORDS: usize = TLB_ENTRIES / 64;
/// TLBs: by MMU index, then read and write.
const TLBS: usize = 2 * MMU_INDICES;

/// An entry that was filled, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilledEntry {
    /// Twice the MMU index, plus 1 for writes.
    pub tlb: u8,
    pub entry: u16,
    /// See [`Tlb::tag`].
    pub tag: u64,
    /// See [`Tlb::addend`].
    pub addend: u64,
}

impl FilledEntry {
    /// Linear address of the page.
    pub fn page(&self) -> u64 {
        self.tag.wrapping_neg()
    }

    /// Host address of the page.
    pub fn host_page(&self) -> u64 {
        self.addend.wrapping_add(self.page())
    }

    /// Whether stores go by it.
    pub fn writes(&self) -> bool {
        self.tlb & 1 != 0
    }
}

/// Marked entries of the data TLBs.
#[derive(Debug)]
pub(super) struct FilledEntries {
    /// A bit an entry.
    marks: Box<[[u64; WORDS]; TLBS]>,
    /// A bit for each word of `marks` that is not 0.
    words: [[u64; WORDS / 64]; TLBS],
}

impl Default for FilledEntries {
    /// The first and the last entry are marked: memory that was never touched does not hold their empty tags,
    /// so the first flush has to write them.
    fn default() -> Self {
        let mut new = Self { marks: Box::new([[0; WORDS]; TLBS]), words: [[0; WORDS / 64]; TLBS] };
        for tlb in 0..TLBS {
            new.mark(tlb / 2, tlb % 2 != 0, 0);
            new.mark(tlb / 2, tlb % 2 != 0, LAST_ENTRY);
        }
        new
    }
}

impl FilledEntries {
    pub(super) fn mark(&mut self, mmu: usize, write: bool, entry: usize) {
        let (tlb, word) = (2 * mmu + usize::from(write), entry / 64);
        self.marks[tlb][word] |= 1 << (entry % 64);
        self.words[tlb][word / 64] |= 1 << (word % 64);
    }

    pub(super) fn unmark(&mut self, mmu: usize, write: bool, entry: usize) {
        self.marks[2 * mmu + usize::from(write)][entry / 64] &= !(1 << (entry % 64));
    }

    pub(super) fn is_marked(&self, mmu: usize, write: bool, entry: usize) -> bool {
        self.marks[2 * mmu + usize::from(write)][entry / 64] >> (entry % 64) & 1 != 0
    }

    /// Empty the marked entries, and forget the marks.
    pub(super) fn clear_entries(&mut self, hot: &mut HotState) {
        self.take_entries(hot, |_| {});
    }

    /// The same, handing each entry that maps something to `keep`.
    pub(super) fn take_entries(&mut self, hot: &mut HotState, mut keep: impl FnMut(FilledEntry)) {
        for number in 0..TLBS {
            let tlb = tlb_of(hot, number);
            for (group, words) in self.words[number].iter_mut().enumerate() {
                for word in bits(std::mem::take(words)) {
                    let word = 64 * group + word;
                    for bit in bits(std::mem::take(&mut self.marks[number][word])) {
                        take_entry(tlb, number, 64 * word + bit, &mut keep);
                    }
                }
            }
        }
    }
}

fn take_entry(tlb: &mut Tlb, number: usize, entry: usize, keep: &mut impl FnMut(FilledEntry)) {
    let empty = empty_tag(entry);
    let tag = std::mem::replace(&mut tlb.tag[entry], empty);
    // Untouched memory stands for no page, see `empty_tag`.
    if tag != empty && tag != 0 {
        keep(FilledEntry { tlb: number as u8, entry: entry as u16, tag, addend: tlb.addend[entry] });
    }
}

/// A data TLB by the number that [`FilledEntry::tlb`] has.
pub(super) fn tlb_of(hot: &mut HotState, number: usize) -> &mut Tlb {
    let tlbs = if number % 2 == 0 { &mut hot.read_tlb } else { &mut hot.write_tlb };
    &mut tlbs[number / 2]
}

/// The numbers of the bits that are set.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        (word != 0).then(|| word &= word - 1).map(|()| bit)
    })
}
