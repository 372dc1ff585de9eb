//! Blocks, their links and their parts, without a guest.

#![allow(clippy::unwrap_used)]
use super::{CodeCache, CodeMemory, Location, NewLink, Start, Translation, NONE};
use crate::mode::Mode;

const DEAD_STUB: [u8; 16] = [0xcc; 16];

fn at(gpa: u64) -> Start {
    Start::anywhere(gpa, Mode(0))
}

/// A block that is little more than a jump, so that its link lies in its first 8 bytes.
fn jump() -> Translation {
    let link = NewLink { patch: 3, unlinked: 8, delta: 0, guard: None };
    Translation { code: vec![0x90; 16], guest_length: 2, links: vec![link], ..Translation::default() }
}

fn first_bytes(cache: &CodeCache, host: u64) -> [u8; 8] {
    assert!((cache.host_range().0..cache.host_range().1).contains(&host));
    // SAFETY: the address lies in the cache's readable mapping.
    unsafe { (host as *const [u8; 8]).read() }
}

#[test]
fn what_an_emptied_cache_held_is_freed_as_it_fills_again() {
    let mut cache = CodeCache::new(CodeMemory::new(1 << 16).unwrap(), &DEAD_STUB);
    let mut fill = |pages: u64| {
        for block in 0..pages {
            cache.insert(at(0x1000 * block), None, &mut jump()).unwrap();
        }
        cache.clear();
        cache.discarded.pages()
    };
    assert_eq!(fill(100), 100);
    assert_eq!(fill(10), 20 + 10);
    assert_eq!(fill(100), 100);
}

#[test]
fn the_parts_of_a_block_find_each_other() {
    let mut cache = CodeCache::new(CodeMemory::new(1 << 16).unwrap(), &DEAD_STUB);
    // Each part ends with a jump to the start of the other.
    let part = |to: i32| [&[0x90; 11][..], &[0xe9], &to.to_le_bytes()].concat();
    for gpa in [0x1000, 0x1100] {
        let locations = vec![
            Location { host_offset: 0, page_offset: gpa as u16 },
            Location { host_offset: 16, page_offset: gpa as u16 + 1 },
        ];
        let mut translation = Translation {
            code: part(0),
            cold: part(-32),
            crossings: vec![12, 28],
            locations,
            ..Translation::default()
        };
        let usual = cache.insert(at(gpa), None, &mut translation).unwrap();
        let start = cache.host_address(usual);
        let cold = start + 16 + distance(&cache, start + 12);
        assert_eq!(cold + 16 + distance(&cache, cold + 12), start);
        assert_eq!(cache.locate(start + 15), Some((usual.block, gpa as u16)));
        assert_eq!(cache.locate(cold), Some((usual.block, gpa as u16 + 1)));
        assert_eq!(cache.locate(cold + 15), Some((usual.block, gpa as u16 + 1)));
    }
}

/// The sign-extended displacement at a host address.
fn distance(cache: &CodeCache, host: u64) -> u64 {
    let bytes = first_bytes(cache, host);
    i64::from(i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])) as u64
}

#[test]
fn a_dead_block_stays_dead_when_what_it_led_to_dies() {
    let mut cache = CodeCache::new(CodeMemory::new(1 << 16).unwrap(), &DEAD_STUB);
    let from = cache.insert(at(0x1000), None, &mut jump()).unwrap();
    let to = cache.insert(at(0x1100), None, &mut jump()).unwrap();
    cache.connect(0, to.block, 1);
    assert!(cache.invalidate(0x1000, 1));
    let dead = first_bytes(&cache, cache.host_address(from));
    assert_eq!(dead[0], 0xe9);
    assert!(cache.invalidate(0x1100, 1));
    assert_eq!(first_bytes(&cache, cache.host_address(from)), dead);
}

#[test]
fn links_to_a_block_are_undone_with_it_and_no_others() {
    // From behind the displacement to the block's ninth byte.
    const UNLINKED: [u8; 4] = [1, 0, 0, 0];
    let mut cache = CodeCache::new(CodeMemory::new(1 << 16).unwrap(), &DEAD_STUB);
    let gpas = [0x1000, 0x1100, 0x1200, 0x1300, 0x1400];
    let blocks = gpas.map(|gpa| cache.insert(at(gpa), None, &mut jump()).unwrap());
    let [.., one, other] = blocks.map(|known| known.block);
    for number in 0..3 {
        cache.connect(number, one, 1);
    }
    assert!(cache.links[..3].iter().all(|link| link.to == one));
    for number in [1, 0, 2] {
        // An unguarded link leads where it leads for good; one that was undone may lead elsewhere.
        cache.leave_list(number);
        cache.enter_list(number, if number == 2 { one } else { other });
    }
    assert!(cache.invalidate(0x1300, 1));
    assert_eq!([0, 1, 2].map(|number: usize| cache.links[number].to == other), [true, true, false]);
    assert_eq!(first_bytes(&cache, cache.host_address(blocks[2]))[3..7], UNLINKED);
    assert!(cache.invalidate(0x1400, 1));
    assert!(cache.links.iter().all(|link| link.to == NONE));
    assert_eq!(first_bytes(&cache, cache.host_address(blocks[1]))[3..7], UNLINKED);
}
