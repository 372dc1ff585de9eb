//! Optimisations that can be turned off one by one, to find the one that a wrong result comes from.

use sublet_engine::{EngineError, Result};

/// Something that translation does for speed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Optimisation {
    /// Accesses of a block by the same base register check their page once.
    SharedChecks,
    /// Translated code looks into the software TLBs by itself.
    DataTlb,
    /// Direct branches within a page go straight to their block.
    Links,
    /// Direct branches to another page do, for as long as the mappings last.
    PageLinks,
    /// Indirect branches find their block in the jump cache.
    JumpCache,
    /// Returns of 64-bit code go where the last calls say.
    ReturnStack,
    /// Frequent system instructions stay in the cache.
    SystemInstructions,
    /// Segment registers are loaded from descriptors that are known.
    SegmentLoads,
    /// IRETQ between 64-bit code stays in the cache.
    InterruptReturns,
    /// REP MOVS and REP STOS within a page are the host's.
    RepeatedStrings,
    /// Code that seldom runs is kept away from the rest.
    ColdCode,
    /// Compiled code carries out frequent system instructions between two blocks, without the run loop.
    InPlace,
    /// What is cached of an address space is kept while another one is current.
    AddressSpaces,
    /// User programs that run for long access memory through windows, without looking it up.
    Windows,
    /// Windows serve only programs for which they seem to pay; without it all that may have them.
    WindowPolicy,
    /// Code of a 64-bit kernel accesses its own memory through windows, too.
    KernelWindows,
    /// Short loops of programs that use windows are translated as several turns.
    UnrolledLoops,
    /// Code that stays where it is has its addresses in its translation.
    PlacedCode,
    /// Instructions work on guest registers in memory without loading them first.
    SlotOperands,
    /// vCPUs take translations from each other.
    SharedTranslations,
}

/// Names, as [`Optimisations::WITHOUT`] and the documentation have them.
pub const NAMES: [(&str, Optimisation); 20] = [
    ("shared-checks", Optimisation::SharedChecks),
    ("data-tlb", Optimisation::DataTlb),
    ("links", Optimisation::Links),
    ("page-links", Optimisation::PageLinks),
    ("jump-cache", Optimisation::JumpCache),
    ("return-stack", Optimisation::ReturnStack),
    ("system-instructions", Optimisation::SystemInstructions),
    ("segment-loads", Optimisation::SegmentLoads),
    ("interrupt-returns", Optimisation::InterruptReturns),
    ("repeated-strings", Optimisation::RepeatedStrings),
    ("cold-code", Optimisation::ColdCode),
    ("in-place", Optimisation::InPlace),
    ("address-spaces", Optimisation::AddressSpaces),
    ("windows", Optimisation::Windows),
    ("window-policy", Optimisation::WindowPolicy),
    ("kernel-windows", Optimisation::KernelWindows),
    ("unrolled-loops", Optimisation::UnrolledLoops),
    ("placed-code", Optimisation::PlacedCode),
    ("slot-operands", Optimisation::SlotOperands),
    ("shared-translations", Optimisation::SharedTranslations),
];

/// A set of optimisations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Optimisations(u32);

impl Optimisations {
    /// Every one.
    pub const ALL: Self = Self(u32::MAX);
    /// The environment variable that names those to leave out, separated by commas.
    pub const WITHOUT: &'static str = "SUBLET_TRANSLATE_WITHOUT";

    /// All but those that the environment leaves out.
    ///
    /// # Errors
    /// `Invalid` for a name that is none.
    pub fn from_environment() -> Result<Self> {
        let names = std::env::var(Self::WITHOUT).unwrap_or_default();
        names.split(',').filter(|name| !name.is_empty()).try_fold(Self::ALL, |set, name| {
            let found = NAMES.iter().find(|(known, _)| *known == name);
            found.map(|&(_, one)| set.without(one)).ok_or_else(|| unknown(name))
        })
    }

    /// This set without one.
    #[must_use]
    pub fn without(self, one: Optimisation) -> Self {
        Self(self.0 & !(1 << one as u32))
    }

    /// Whether `one` is in the set.
    pub fn has(self, one: Optimisation) -> bool {
        self.0 & (1 << one as u32) != 0
    }
}

fn unknown(name: &str) -> EngineError {
    let known: Vec<&str> = NAMES.iter().map(|&(known, _)| known).collect();
    EngineError::Invalid(format!(
        "{}: no optimisation is called {name:?}; there are {}",
        Optimisations::WITHOUT,
        known.join(", ")
    ))
}
