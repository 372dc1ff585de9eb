//! Between a disk and a guest's memory, without a copy in between.

use crate::in_place::{Direction, InPlace};
use crate::pieces::Pieces;
use sublet_memory::{GuestMemory, MemoryError, MemoryView, SMM_SPACE};

/// Guest-physical address and bytes.
pub type Segment = (u64, u64);

/// Whether a range is one that a device can name: what only system-management mode sees is not.
pub fn on_bus(gpa: u64, size: u64) -> bool {
    gpa.checked_add(size).is_some_and(|end| end <= SMM_SPACE)
}

/// Move what `segments` name from or to the disk at `offset`; whether all of it could be done here.
///
/// Where not, a part may have been moved: whoever then carries the request out otherwise moves it again.
pub fn transfer(
    disk: &InPlace,
    memory: &GuestMemory,
    offset: u64,
    segments: &[Segment],
    direction: Direction,
) -> bool {
    let sum = |sum: u64, (gpa, size): &Segment| sum.checked_add(*size).filter(|_| on_bus(*gpa, *size));
    let Some(size) = segments.iter().try_fold(0u64, sum) else { return false };
    let view = memory.view();
    let mut pieces = Pieces::default();
    if find(&view, segments, &mut pieces).is_err() {
        return false;
    }
    // SAFETY: the pieces lie in slots that `view` keeps, and a guest's memory is shared by nature.
    let done = unsafe { disk.transfer(offset, size, &mut pieces, direction) };
    if direction != Direction::ToDisk {
        // Also after a failure: a part may have been stored.
        segments.iter().for_each(|(gpa, size)| memory.written(&view, *gpa, *size));
    }
    done
}

/// Where the segments are in the host's memory.
fn find(view: &MemoryView, segments: &[Segment], pieces: &mut Pieces) -> Result<(), MemoryError> {
    segments
        .iter()
        .try_for_each(|(gpa, size)| view.host_pieces(*gpa, *size, |address, size| pieces.push(address, size)))
}
