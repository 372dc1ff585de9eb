//! What test machines in 64-bit mode have in common.

use sublet_engine::{Segment, Sregs};

/// 64-bit mode with flat segments at a privilege level, on the page tables at `tables`.
pub fn sregs(tables: u64, privilege: u8) -> Sregs {
    let data = segment(3, false, privilege);
    Sregs {
        segments: [data, segment(11, true, privilege), data, data, data, data],
        cr0: 0x8000_0033,
        cr3: tables,
        cr4: 0x6a0,
        efer: 0x500,
        ..Sregs::default()
    }
}

fn segment(kind: u8, long: bool, dpl: u8) -> Segment {
    Segment {
        limit: u32::MAX,
        selector: 8 | u16::from(dpl),
        kind,
        present: true,
        dpl,
        s: true,
        l: long,
        db: !long,
        g: true,
        ..Segment::default()
    }
}
