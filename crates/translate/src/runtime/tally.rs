//! How often compiled code carried out each instruction: which of them are worth keeping in the cache.

use iced_x86::Mnemonic;

/// A counter for each mnemonic.
#[derive(Debug)]
pub struct Tally(Box<[u64]>);

impl Default for Tally {
    fn default() -> Self {
        Self(vec![0; Mnemonic::values().len()].into_boxed_slice())
    }
}

impl Tally {
    /// Count one execution.
    pub fn count(&mut self, mnemonic: Mnemonic) {
        self.0[mnemonic as usize] += 1;
    }

    /// The mnemonics that were counted, in lower case, and how often.
    pub fn counted(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let named = |mnemonic: Mnemonic| (format!("{mnemonic:?}").to_lowercase(), self.0[mnemonic as usize]);
        Mnemonic::values().map(named).filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;
    use iced_x86::Mnemonic;

    #[test]
    fn it_names_what_was_counted() {
        let mut tally = Tally::default();
        tally.count(Mnemonic::Iretq);
        tally.count(Mnemonic::Iretq);
        assert_eq!(tally.counted().collect::<Vec<_>>(), [("iretq".to_owned(), 2)]);
    }
}
