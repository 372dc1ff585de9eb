//! What is left of blocks when the cache has been emptied, freed a little at a time.
//!
//! A full cache has hundreds of thousands of blocks, each with memory of its own: to free all of it at once would
//! stop the guest for tens of milliseconds.

use super::pages::Forgotten;
use super::Block;
use std::vec;

/// Blocks freed for each one that is made: a cache that fills has freed the last one's long before it is full.
const AT_A_TIME: usize = 8;

/// One cache's worth.
#[derive(Debug)]
struct Load {
    blocks: vec::IntoIter<Block>,
    pages: Forgotten,
}

/// Blocks that nobody asks for any more.
#[derive(Debug, Default)]
pub struct Discarded(Vec<Load>);

impl Discarded {
    /// Take over the blocks of a cache, and what it kept of their pages.
    pub fn add(&mut self, blocks: Vec<Block>, pages: Forgotten) {
        self.0.push(Load { blocks: blocks.into_iter(), pages });
    }

    /// Free some.
    pub fn free_some(&mut self) {
        let Some(load) = self.0.last_mut() else { return };
        load.blocks.by_ref().take(AT_A_TIME).for_each(drop);
        load.pages.free_some(AT_A_TIME);
        if load.blocks.len() + load.pages.len() == 0 {
            self.0.pop();
        }
    }

    /// Blocks that are left.
    #[cfg(test)]
    pub fn blocks(&self) -> usize {
        self.0.iter().map(|load| load.blocks.len()).sum()
    }
}
