//! What was kept of pages when the cache was emptied, freed a little at a time.
//!
//! A full cache has tens of thousands of pages, each with memory of its own: to free all of it at once would stop the
//! guest for milliseconds.

use super::pages::Forgotten;

/// Pages freed for each block that is made: a cache that fills has freed the last one's long before it is full.
const AT_A_TIME: usize = 8;

/// Pages that nobody asks for any more, those of one cache after those of another.
#[derive(Debug, Default)]
pub struct Discarded(Vec<Forgotten>);

impl Discarded {
    /// Take over what a cache kept of its pages.
    pub fn add(&mut self, pages: Forgotten) {
        self.0.push(pages);
    }

    /// Free some.
    pub fn free_some(&mut self) {
        let Some(pages) = self.0.last_mut() else { return };
        pages.free_some(AT_A_TIME);
        if pages.len() == 0 {
            self.0.pop();
        }
    }

    /// Pages that are left.
    #[cfg(test)]
    pub fn pages(&self) -> usize {
        self.0.iter().map(Forgotten::len).sum()
    }
}
