//! Guest stores and views of guest memory.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use sublet_memory::{GuestMemory, MemoryError, NewMemslot, RamBlock};

/// Two pages of RAM at 0x1000 with the dirty log on, then one page of ROM.
fn memory() -> GuestMemory {
    let memory = GuestMemory::new();
    let block = Arc::new(RamBlock::new(0x3000).unwrap());
    memory.set_memslot(0, 0x1000, 0x2000, block.clone(), 0, false, true).unwrap();
    memory.set_memslot(1, 0x3000, 0x1000, block, 0x2000, true, false).unwrap();
    memory
}

#[test]
fn stores_of_every_size_arrive_and_mark_dirty() {
    let memory = memory();
    for (gpa, data) in
        [(0x1000, &[1u8, 2, 3, 4, 5, 6, 7, 8][..]), (0x2004, &[1, 2, 3, 4]), (0x2ffd, &[1, 2, 3])]
    {
        assert!(memory.store(gpa, data));
        let mut back = vec![0; data.len()];
        memory.read(gpa, &mut back).unwrap();
        assert_eq!(back, data);
    }
    assert_eq!(memory.take_dirty(0), Some(vec![3]));
}

#[test]
fn rom_and_holes_take_no_stores() {
    let memory = memory();
    for gpa in [0, 0xfff, 0x2ffe, 0x3000, 0x4000, u64::MAX] {
        assert!(!memory.store(gpa, &[0xff; 4]), "{gpa:#x}");
    }
    assert_eq!(memory.load_u16(0x2ffe), Some(0));
}

#[test]
fn a_view_reads_what_is_ram() {
    let memory = memory();
    memory.write(0x2ffc, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let view = memory.view();
    assert_eq!((view.load_u32(0x2ffc), view.load_u32(0x3000)), (Some(0x0403_0201), Some(0x0807_0605)));
    assert_eq!((view.load_u64(0x2ffc), view.load_u8(0x4000), view.load_u16(0)), (None, None, None));
    let mut across = [0; 8];
    view.read(0x2ffc, &mut across).unwrap();
    assert_eq!(across, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(view.read(0x3ffc, &mut across).is_err());
}

fn page(slot: u32, gpa: u64) -> NewMemslot {
    let ram = Arc::new(RamBlock::new(0x1000).unwrap());
    NewMemslot { slot, gpa, size: 0x1000, ram, ram_offset: 0, readonly: false, log_dirty: false }
}

fn shown(memory: &GuestMemory) -> Vec<(u32, u64)> {
    memory.slots().iter().map(|slot| (slot.slot, slot.gpa)).collect()
}

#[test]
fn slots_change_places_in_one_go() {
    let memory = GuestMemory::new();
    memory.change_memslots(&[], vec![page(0, 0), page(1, 0x1000)]).unwrap();
    let before = memory.generation();
    memory.change_memslots(&[], vec![page(0, 0x1000), page(1, 0)]).unwrap();
    memory.change_memslots(&[1, 7], vec![page(2, 0)]).unwrap();
    assert_eq!((shown(&memory), memory.generation()), (vec![(2, 0), (0, 0x1000)], before + 2));
}

#[test]
fn one_bad_slot_leaves_all_as_they_were() {
    let memory = GuestMemory::new();
    memory.change_memslots(&[], vec![page(0, 0)]).unwrap();
    for bad in [page(2, 0x3000), page(2, 1), page(2, 1 << 53)] {
        let answer = memory.change_memslots(&[0], vec![page(1, 0x3000), bad]);
        assert!(matches!(answer, Err(MemoryError::BadSlot(text)) if text.starts_with("memslot 2")));
        assert_eq!(shown(&memory), [(0, 0)]);
    }
}

#[test]
fn bits_of_a_byte_are_set_and_cleared_where_it_can_be_written() {
    let memory = memory();
    memory.take_dirty(0);
    assert_eq!((memory.set_bits(0x2001, 0x81), memory.clear_bits(0x2001, 0x80)), (Some(0), Some(0x81)));
    assert_eq!(memory.load_u16(0x2000), Some(0x100));
    assert_eq!(memory.take_dirty(0), Some(vec![2]));
    assert_eq!((memory.set_bits(0x3000, 1), memory.clear_bits(0x4000, 1)), (None, None));
}
