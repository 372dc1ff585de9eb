//! Guest pages that blocks were made of: which blocks, of which of their bytes, and where the page was read.

use super::{AddressMap, BlockId};
use std::collections::hash_map;

/// Bytes of a guest page.
const PAGE: usize = 4096;
const WORDS: usize = PAGE / 64;

/// Where a guest page was read: equal as long as nothing else has been put at its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// The memslot, see `HostPage::slot`.
    pub slot: u64,
    /// Host address of the page.
    pub host: u64,
}

/// What is kept of a guest page.
#[derive(Debug)]
struct CodePage {
    /// `None`: no memory answered.
    home: Option<Home>,
    /// Live blocks that have bytes here.
    blocks: Vec<BlockId>,
    /// A bit for each byte that a live block was made of; maybe for more.
    covered: Box<[u64; WORDS]>,
}

/// The guest pages that blocks were made of, by guest-physical address.
#[derive(Debug, Default)]
pub struct CodePages(AddressMap<u64, CodePage>);

/// The bits of `word` that stand for bytes `from .. to` of the page.
fn bits(word: usize, from: usize, to: usize) -> u64 {
    let (first, last) = (from.max(word * 64), to.min(word * 64 + 64));
    match last.checked_sub(first) {
        None | Some(0) => 0,
        Some(count) => (u64::MAX >> (64 - count)) << (first % 64),
    }
}

impl CodePage {
    fn empty(home: Option<Home>) -> Self {
        Self { home, blocks: Vec::new(), covered: Box::new([0; WORDS]) }
    }

    fn touches(&self, from: usize, to: usize) -> bool {
        let to = to.min(PAGE);
        from < to && (from / 64..=(to - 1) / 64).any(|word| self.covered[word] & bits(word, from, to) != 0)
    }

    fn cover(&mut self, from: usize, to: usize) {
        let to = to.min(PAGE);
        for word in from / 64..to.div_ceil(64) {
            self.covered[word] |= bits(word, from, to);
        }
    }
}

impl CodePages {
    /// The home that code at `page` was read from; `None` where no code was, or no memory answered.
    pub fn home(&self, page: u64) -> Option<Home> {
        self.0.get(&page)?.home
    }

    /// Code of `page` is being read from `home`. Returns the blocks that were read from elsewhere.
    pub fn read_from(&mut self, page: u64, home: Option<Home>) -> Vec<BlockId> {
        let kept = self.0.entry(page).or_insert_with(|| CodePage::empty(home));
        if kept.home == home {
            return Vec::new();
        }
        kept.home = home;
        kept.blocks.clone()
    }

    /// A block was made of these ranges of bytes of `page`.
    pub fn add(&mut self, page: u64, block: BlockId, ranges: [(usize, usize); 2]) {
        let kept = self.0.entry(page).or_insert_with(|| CodePage::empty(None));
        kept.blocks.push(block);
        ranges.into_iter().for_each(|(from, to)| kept.cover(from, to));
    }

    /// A block of `page` is no more.
    pub fn remove(&mut self, page: u64, block: BlockId) {
        let Some(kept) = self.0.get_mut(&page) else { return };
        kept.blocks.retain(|&other| other != block);
        if kept.blocks.is_empty() {
            *kept.covered = [0; WORDS];
        }
    }

    /// Whether `page` holds live blocks.
    pub fn has_code(&self, page: u64) -> bool {
        self.0.get(&page).is_some_and(|kept| !kept.blocks.is_empty())
    }

    /// The live blocks of `page`, if any of them may have been made of its bytes `from .. to`.
    pub fn blocks_at(&self, page: u64, from: usize, to: usize) -> &[BlockId] {
        match self.0.get(&page) {
            Some(kept) if kept.touches(from, to) => &kept.blocks,
            _ => &[],
        }
    }

    /// Each block of `page` was made of `ranges` of its bytes, and no others are covered.
    pub fn cover_only(&mut self, page: u64, ranges: impl Fn(BlockId) -> [(usize, usize); 2]) {
        let Some(kept) = self.0.get_mut(&page) else { return };
        *kept.covered = [0; WORDS];
        for place in 0..kept.blocks.len() {
            ranges(kept.blocks[place]).into_iter().for_each(|(from, to)| kept.cover(from, to));
        }
    }

    /// The blocks of pages whose home is no longer what `home` says.
    pub fn strayed(&self, home: impl Fn(u64) -> Option<Home>) -> Vec<BlockId> {
        let strays = |(page, kept): &(&u64, &CodePage)| !kept.blocks.is_empty() && kept.home != home(**page);
        self.0.iter().filter(strays).flat_map(|(_, kept)| kept.blocks.iter().copied()).collect()
    }

    /// Forget all. What has been forgotten is freed as it is dropped.
    pub fn take(&mut self) -> Forgotten {
        Forgotten(std::mem::take(&mut self.0).into_iter())
    }
}

/// Pages that nobody asks for any more.
#[derive(Debug)]
pub struct Forgotten(hash_map::IntoIter<u64, CodePage>);

impl Forgotten {
    /// Free up to `count` of them.
    pub fn free_some(&mut self, count: usize) {
        self.0.by_ref().take(count).for_each(drop);
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::{CodePages, Home};

    const HOME: Option<Home> = Some(Home { slot: 1, host: 0x7000 });

    #[test]
    fn only_stores_to_bytes_of_blocks_touch_them() {
        let mut pages = CodePages::default();
        assert!(pages.read_from(0x1000, HOME).is_empty());
        pages.add(0x1000, 7, [(60, 130), (0, 0)]);
        pages.add(0x1000, 8, [(4090, 4099), (0, 0)]);
        for (at, size, touches) in
            [(0, 60, false), (59, 2, true), (60, 1, true), (64, 8, true), (129, 1, true), (130, 3000, false)]
        {
            assert_eq!(!pages.blocks_at(0x1000, at, at + size).is_empty(), touches, "{at}");
        }
        assert_eq!(pages.blocks_at(0x1000, 4095, 4103), [7, 8]);
        assert!(pages.blocks_at(0x2000, 0, 4096).is_empty());
        pages.remove(0x1000, 8);
        assert_eq!(pages.blocks_at(0x1000, 4090, 4096), [7]);
        pages.cover_only(0x1000, |_| [(60, 130), (0, 0)]);
        assert!(pages.blocks_at(0x1000, 4090, 4096).is_empty());
        pages.remove(0x1000, 7);
        assert!(!pages.has_code(0x1000) && pages.blocks_at(0x1000, 60, 61).is_empty());
    }

    #[test]
    fn blocks_of_a_page_that_is_another_now_are_found() {
        let mut pages = CodePages::default();
        for (page, block) in [(0x1000, 1), (0x2000, 2)] {
            assert!(pages.read_from(page, HOME).is_empty());
            pages.add(page, block, [(0, 4), (0, 0)]);
        }
        let elsewhere = Some(Home { slot: 2, host: 0x7000 });
        assert!(pages.strayed(|_| HOME).is_empty());
        assert_eq!(pages.strayed(|page| if page == 0x1000 { HOME } else { elsewhere }), [2]);
        assert_eq!(pages.strayed(|page| if page == 0x1000 { None } else { HOME }), [1]);
        assert_eq!(pages.read_from(0x1000, elsewhere), [1]);
        assert_eq!(pages.home(0x1000), elsewhere);
    }
}
