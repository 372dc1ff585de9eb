//! Where the parts of an XSAVE area and of its images lie.

use crate::state::{XsaveArea, XSAVE_AREA_BYTES};
use std::ops::Range;

pub(super) const X87: u64 = 1 << 0;
pub(super) const SSE: u64 = 1 << 1;
pub(super) const AVX: u64 = 1 << 2;
pub(super) const COMPACTED: u64 = 1 << 63;
/// SSE, AVX and AVX-512.
pub(super) const VECTORS: u64 = 0xe6;

pub(super) const LEGACY_BYTES: usize = 512;
pub(super) const HEADER: usize = 512;
pub(super) const HEADER_BYTES: usize = 64;
/// Where the extended region begins.
pub(crate) const EXTENDED: usize = HEADER + HEADER_BYTES;
/// FCW, FSW, abridged FTW and FOP.
pub(super) const X87_CONTROL: Range<usize> = 0..8;
/// What images hold zeros in: FOP, FIP and FDP.
pub(crate) const X87_HIDDEN: Range<usize> = 6..24;
/// FIP and FDP.
pub(super) const X87_POINTERS: Range<usize> = 8..24;
pub(super) const MXCSR: Range<usize> = 24..28;
pub(super) const MXCSR_MASK: Range<usize> = 28..32;
pub(super) const X87_REGISTERS: Range<usize> = 32..160;
pub(super) const XMM_REGISTERS: usize = 160;
pub(super) const MXCSR_RESET: u32 = 0x1f80;
pub(super) const FCW_RESET: u16 = 0x037f;
/// Used when the host reports a mask of zero (Intel SDM vol. 1 §11.6.6).
pub(super) const DEFAULT_MXCSR_MASK: u32 = 0xffbf;
/// State components of the extended region that the engine knows.
pub(super) const EXTENDED_COMPONENTS: [u32; 4] = [2, 5, 6, 7];

/// Where a component lies in the standard format: offset and size in bytes, and whether the
/// compacted format aligns it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Component {
    pub offset: usize,
    pub size: usize,
    pub aligned: bool,
}

pub(super) fn get_u32(area: &[u8], at: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&area[at..at + 4]);
    u32::from_le_bytes(bytes)
}

pub(super) fn get_u64(area: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&area[at..at + 8]);
    u64::from_le_bytes(bytes)
}

/// Host layout of a component of the extended region; `None` if the host lacks it.
///
/// The layout never changes, so CPUID (slow under a hypervisor) is asked once per process.
pub(super) fn host_component(number: u32) -> Option<Component> {
    static LAYOUT: std::sync::OnceLock<[Option<Component>; 8]> = std::sync::OnceLock::new();
    let layout = LAYOUT.get_or_init(|| {
        let mut table = [None; 8];
        for number in EXTENDED_COMPONENTS {
            let r = core::arch::x86_64::__cpuid_count(0xd, number);
            let (offset, size) = (r.ebx as usize, r.eax as usize);
            let fits = offset >= EXTENDED && offset + size <= XSAVE_AREA_BYTES;
            if size != 0 && fits {
                table[number as usize] = Some(Component { offset, size, aligned: r.ecx & 2 != 0 });
            }
        }
        table
    });
    layout.get(number as usize).copied().flatten()
}

/// Bits of MXCSR that the host has.
pub(super) fn host_mxcsr_mask() -> u32 {
    static MASK: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    *MASK.get_or_init(|| {
        let mut area = XsaveArea([0; XSAVE_AREA_BYTES]);
        // SAFETY: FXSAVE is part of every x86-64 processor; the area is aligned to 64 bytes and
        // longer than the 512 that it writes.
        unsafe { core::arch::x86_64::_fxsave(area.0.as_mut_ptr()) };
        match get_u32(&area.0, MXCSR_MASK.start) {
            0 => DEFAULT_MXCSR_MASK,
            mask => mask,
        }
    })
}

/// Offsets in an image of a given format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    Standard,
    /// With the XCOMP_BV that says which components have room.
    Compacted(u64),
}

impl Format {
    pub(super) fn offset(self, number: u32) -> Option<usize> {
        let Self::Compacted(components) = self else {
            return host_component(number).map(|component| component.offset);
        };
        let mut at = EXTENDED;
        for earlier in EXTENDED_COMPONENTS.into_iter().filter(|n| components >> n & 1 != 0) {
            let component = host_component(earlier)?;
            if component.aligned {
                at = at.next_multiple_of(64);
            }
            if earlier == number {
                return Some(at);
            }
            at += component.size;
        }
        None
    }

    /// Bytes of an image with these components.
    pub(super) fn size(self, components: u64) -> usize {
        let end = |n: u32| Some(self.offset(n)? + host_component(n)?.size);
        EXTENDED_COMPONENTS
            .into_iter()
            .filter(|n| components >> n & 1 != 0)
            .filter_map(end)
            .fold(EXTENDED, usize::max)
    }
}

/// Where the bytes of a vector register lie in the area: (bytes of the register, offset).
pub(super) fn vector_parts(number: usize) -> [Option<(Range<usize>, usize)>; 3] {
    let part = |component: u32, bytes: Range<usize>, index: usize| {
        let size = bytes.len();
        host_component(component).map(|component| (bytes, component.offset + index * size))
    };
    match number {
        0..=15 => {
            let xmm = Some((0..16, XMM_REGISTERS + 16 * number));
            [xmm, part(2, 16..32, number), part(6, 32..64, number)]
        }
        _ => [part(7, 0..64, number & 15), None, None],
    }
}

/// Parts of an image to be written to guest memory, in ascending order; adjacent ones merge.
pub(super) struct Image {
    pub bytes: XsaveArea,
    pub runs: Vec<Range<usize>>,
}

impl Image {
    pub(super) fn new() -> Self {
        Self { bytes: XsaveArea([0; XSAVE_AREA_BYTES]), runs: Vec::with_capacity(8) }
    }

    pub(super) fn put(&mut self, at: usize, data: &[u8]) {
        self.bytes.0[at..at + data.len()].copy_from_slice(data);
        match self.runs.last_mut() {
            Some(last) if last.end == at => last.end += data.len(),
            _ => self.runs.push(at..at + data.len()),
        }
    }
}

/// Where an image in the compacted format is, or is to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImagePlace {
    /// Linear address.
    pub la: u64,
    /// The components that the instruction asks for.
    pub components: u64,
    /// Bytes, at most 4096.
    pub size: usize,
}

/// XSTATE_BV of an image.
pub(crate) fn in_use_of(image: &[u8]) -> u64 {
    get_u64(image, HEADER)
}

/// The parts that saving in the compacted format writes of an image with room for `components`, when those in
/// `saved` are in use. In ascending order, adjacent ones merged.
pub(crate) fn saved_runs(saved: u64, components: u64) -> impl Iterator<Item = Range<usize>> {
    let legacy = |component: u64, part: Range<usize>| (saved & component != 0).then_some(part);
    let [avx, masks, upper, high] = EXTENDED_COMPONENTS.map(|number| {
        let at = Format::Compacted(components).offset(number).filter(|_| saved >> number & 1 != 0)?;
        Some(at..at + host_component(number)?.size)
    });
    let parts = [
        legacy(X87, X87_CONTROL.start..X87_POINTERS.end),
        legacy(SSE, MXCSR.start..MXCSR_MASK.end),
        legacy(X87, X87_REGISTERS),
        legacy(SSE, XMM_REGISTERS..XMM_REGISTERS + 256),
        Some(HEADER..HEADER + 16),
        avx,
        masks,
        upper,
        high,
    ];
    let mut parts = parts.into_iter().flatten().peekable();
    std::iter::from_fn(move || {
        let mut run: Range<usize> = parts.next()?;
        while let Some(next) = parts.next_if(|next| next.start == run.end) {
            run.end = next.end;
        }
        Some(run)
    })
}
