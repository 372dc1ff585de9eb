//! Special registers as a Python dictionary.
//!
//! A segment is `(selector, base, limit, attributes)`, its attributes as bits 40 to 55 of a segment
//! descriptor have them (Intel SDM vol. 3A §3.4.5 "Segment Descriptors"; the four bits of the limit
//! are zero), and bit 16 set when the segment is unusable.

use pyo3::prelude::*;
use pyo3::types::PyDict;
use sublet_engine::{DescriptorTable, Segment, Sregs};

/// Names of `Sregs::segments`, in its order.
const SEGMENT_NAMES: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];
const CONTROL_NAMES: [&str; 7] = ["cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"];

/// All registers by name.
///
/// # Errors
/// Those of the dictionary.
pub fn to_dict<'py>(py: Python<'py>, sregs: &Sregs) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let mut copy = *sregs;
    for name in CONTROL_NAMES {
        if let Some(slot) = control_slot(&mut copy, name) {
            dict.set_item(name, *slot)?;
        }
    }
    for (name, segment) in SEGMENT_NAMES.iter().zip(&sregs.segments) {
        dict.set_item(name, segment_tuple(segment))?;
    }
    dict.set_item("ldtr", segment_tuple(&sregs.ldtr))?;
    dict.set_item("tr", segment_tuple(&sregs.tr))?;
    dict.set_item("gdt", (sregs.gdt.base, sregs.gdt.limit))?;
    dict.set_item("idt", (sregs.idt.base, sregs.idt.limit))?;
    Ok(dict)
}

/// Set one register by name; `false` when there is none of that name.
///
/// # Errors
/// The value is of another type or out of range.
pub fn set(sregs: &mut Sregs, name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Some(slot) = control_slot(sregs, name) {
        *slot = value.extract()?;
    } else if let Some(slot) = segment_slot(sregs, name) {
        *slot = segment(value.extract()?);
    } else if let Some(slot) = table_slot(sregs, name) {
        let (base, limit) = value.extract()?;
        *slot = DescriptorTable { base, limit };
    } else {
        return Ok(false);
    }
    Ok(true)
}

fn control_slot<'a>(sregs: &'a mut Sregs, name: &str) -> Option<&'a mut u64> {
    match name {
        "cr0" => Some(&mut sregs.cr0),
        "cr2" => Some(&mut sregs.cr2),
        "cr3" => Some(&mut sregs.cr3),
        "cr4" => Some(&mut sregs.cr4),
        "cr8" => Some(&mut sregs.cr8),
        "efer" => Some(&mut sregs.efer),
        "apic_base" => Some(&mut sregs.apic_base),
        _ => None,
    }
}

fn segment_slot<'a>(sregs: &'a mut Sregs, name: &str) -> Option<&'a mut Segment> {
    match name {
        "ldtr" => Some(&mut sregs.ldtr),
        "tr" => Some(&mut sregs.tr),
        _ => SEGMENT_NAMES.iter().position(|known| *known == name).map(|index| &mut sregs.segments[index]),
    }
}

fn table_slot<'a>(sregs: &'a mut Sregs, name: &str) -> Option<&'a mut DescriptorTable> {
    match name {
        "gdt" => Some(&mut sregs.gdt),
        "idt" => Some(&mut sregs.idt),
        _ => None,
    }
}

fn segment_tuple(segment: &Segment) -> (u16, u64, u32, u32) {
    let attributes = u32::from(segment.kind & 0xf)
        | u32::from(segment.s) << 4
        | u32::from(segment.dpl & 3) << 5
        | u32::from(segment.present) << 7
        | u32::from(segment.avl) << 12
        | u32::from(segment.l) << 13
        | u32::from(segment.db) << 14
        | u32::from(segment.g) << 15
        | u32::from(segment.unusable) << 16;
    (segment.selector, segment.base, segment.limit, attributes)
}

fn segment((selector, base, limit, attributes): (u16, u64, u32, u32)) -> Segment {
    let bit = |index: u32| attributes >> index & 1 != 0;
    Segment {
        base,
        limit,
        selector,
        kind: (attributes & 0xf) as u8,
        present: bit(7),
        dpl: (attributes >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: bit(16),
    }
}
