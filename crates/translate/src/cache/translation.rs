//! What translation makes: code in two parts, and what has to be filled in once it has its place.

use iced_x86::Instruction;

/// Where in the guest's code a host address belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Offset of the first host byte it holds for, see [`Translation`].
    pub host_offset: u32,
    /// Offset of the instruction from the guest page's start. It exceeds the page's size where
    /// the location stands for what follows the last instruction.
    pub page_offset: u16,
}

/// A direct branch of a new translation; offsets are from its code's start.
#[derive(Debug, Clone, Copy)]
pub struct NewLink {
    /// Of the 32-bit displacement.
    pub patch: usize,
    /// Of where it goes while unlinked.
    pub unlinked: usize,
    /// RIP of the target less RIP of the page's start.
    pub delta: i64,
    /// Of the generation, see [`super::Link::guard`].
    pub guard: Option<usize>,
}

/// What translation makes of a run of guest instructions.
///
/// Offsets of host code count through `code` and on through `cold`.
#[derive(Debug, Default, Clone)]
pub struct Translation {
    /// Host code, position-independent but for the links and `crossings`.
    pub code: Vec<u8>,
    /// The part of it that seldom runs, which is kept away from the rest.
    pub cold: Vec<u8>,
    /// Offsets of the 32-bit displacements of branches between the two.
    pub crossings: Vec<usize>,
    /// Guest bytes covered.
    pub guest_length: u16,
    /// Guest instructions covered.
    pub instructions: u16,
    /// Which guest instruction each host address belongs to, by host offset.
    pub locations: Vec<Location>,
    /// Direct branches.
    pub links: Vec<NewLink>,
    /// Places of 32-bit immediates that want a number of link or system instruction:
    /// (offset, index in `links` or `system`, is it a link).
    pub numbers: Vec<(usize, usize, bool)>,
    /// Instructions that compiled code carries out.
    pub system: Vec<Instruction>,
    /// Where direct links enter: not at the start if what the block assumes may end before the link does.
    pub link_entry: usize,
}

impl Translation {
    /// Empty it, and keep its memory.
    pub fn clear(&mut self) {
        self.code.clear();
        self.cold.clear();
        self.crossings.clear();
        (self.guest_length, self.instructions, self.link_entry) = (0, 0, 0);
        self.locations.clear();
        self.links.clear();
        self.numbers.clear();
        self.system.clear();
    }

    /// Become a copy of another, in the memory that is there.
    pub(super) fn copy(&mut self, other: &Self) {
        self.code.clone_from(&other.code);
        self.cold.clone_from(&other.cold);
        self.crossings.clone_from(&other.crossings);
        (self.guest_length, self.instructions) = (other.guest_length, other.instructions);
        self.link_entry = other.link_entry;
        self.locations.clone_from(&other.locations);
        self.links.clone_from(&other.links);
        self.numbers.clone_from(&other.numbers);
        self.system.clone_from(&other.system);
    }

    /// Bytes that its lists hold.
    pub(super) fn size(&self) -> usize {
        use std::mem::size_of_val;
        let code = self.code.len() + self.cold.len() + size_of_val(&self.crossings[..]);
        let places = size_of_val(&self.locations[..]) + size_of_val(&self.links[..]);
        code + places + size_of_val(&self.numbers[..]) + size_of_val(&self.system[..])
    }

    /// The 32-bit field at `offset`.
    pub(super) fn field(&mut self, offset: usize) -> &mut [u8; 4] {
        let part = match offset.checked_sub(self.code.len()) {
            None => &mut self.code[offset..],
            Some(beyond) => &mut self.cold[beyond..],
        };
        // Emission puts fields where there are four bytes.
        part.first_chunk_mut().unwrap_or_else(|| unreachable!())
    }

    /// Adjust the branches between the two parts, the second of which is to lie `distance` bytes further on
    /// than after the first.
    pub(super) fn separate(&mut self, distance: i64) {
        for place in 0..self.crossings.len() {
            let offset = self.crossings[place];
            let sign = if offset < self.code.len() { 1 } else { -1 };
            let field = self.field(offset);
            *field = (i32::from_le_bytes(*field) + (sign * distance) as i32).to_le_bytes();
        }
    }
}
