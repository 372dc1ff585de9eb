//! Random input states: numbers at the edges of their types, every kind of floating-point value.

use crate::case::{CpuImage, DATA, PAGE, STACK};
use crate::rng::Rng;

/// Carry, parity, adjust, zero, sign, overflow.
pub const ARITHMETIC: u64 = 0x8d5;
/// Alignment check: misaligned accesses at privilege 3 are #AC.
pub const ALIGNMENT: u64 = 1 << 18;
/// Trap flag: #DB after the first instruction, or the first turn of a repeated one.
pub const TRAP: u64 = 1 << 8;
/// Direction flag.
pub const DIRECTION: u64 = 1 << 10;

const EDGES: [u64; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// A general register's value: an edge, a small number, or anything.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.below(4) {
        0 => rng.pick(&EDGES),
        1 => rng.below(256),
        2 => rng.next() & rng.pick(&[0xffff_ffff, 0xffff, u64::MAX]),
        _ => rng.next(),
    }
}

/// Bits of a double of every class, or of two singles.
fn number64(rng: &mut Rng) -> u64 {
    if rng.chance(40) {
        return u64::from(number32(rng)) | u64::from(number32(rng)) << 32;
    }
    let sign = rng.next() & 1 << 63;
    let fraction = rng.next() >> 12;
    let exponent: u64 = match rng.below(10) {
        0 => 0,
        1 => return sign,
        2 => 0x7ff,
        3 => return sign | 0x7ff << 52,
        4..=7 => rng.range(0x3e0, 0x420),
        _ => rng.below(0x800),
    };
    sign | exponent << 52 | fraction
}

/// Bits of a single of every class.
fn number32(rng: &mut Rng) -> u32 {
    let sign = (rng.next() as u32) & 1 << 31;
    let fraction = rng.next() as u32 >> 9;
    let exponent: u32 = match rng.below(10) {
        0 => 0,
        1 => return sign,
        2 => 0xff,
        3 => return sign | 0xff << 23,
        4..=7 => rng.range(0x70, 0x90) as u32,
        _ => rng.below(0x100) as u32,
    };
    sign | exponent << 23 | fraction
}

/// Fill with numbers, packed integers, or anything.
pub fn fill_numbers(rng: &mut Rng, bytes: &mut [u8]) {
    match rng.below(4) {
        0 => rng.fill(bytes),
        1 => bytes.chunks_mut(8).for_each(|chunk| copy_word(chunk, rng.pick(&EDGES))),
        _ => bytes.chunks_mut(8).for_each(|chunk| copy_word(chunk, number64(rng))),
    }
}

fn copy_word(chunk: &mut [u8], word: u64) {
    chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
}

/// An 80-bit x87 register: a number, a packed MMX value, or something odd (unnormal, pseudo-NaN).
fn x87_register(rng: &mut Rng) -> [u8; 10] {
    let (fraction, top) = match rng.below(6) {
        0 => (rng.next(), rng.next() as u16),
        1 => (integer(rng), 0xffff),
        2 => (0, (rng.next() as u16) & 0x8000),
        3 => (1 << 63 | (rng.next() & rng.pick(&[0, u64::MAX])), 0x7fff),
        4 => (rng.next() | 1 << 63, rng.range(0x3ffc, 0x4010) as u16 | (rng.next() as u16 & 0x8000)),
        _ => ((rng.below(1000) + 1) << 40 | 1 << 63, rng.range(0x3ff0, 0x4005) as u16),
    };
    let mut bytes = [0; 10];
    bytes[..8].copy_from_slice(&fraction.to_le_bytes());
    bytes[8..].copy_from_slice(&top.to_le_bytes());
    bytes
}

/// An MXCSR: mostly all exceptions masked; any rounding; sometimes flush modes or unmasked exceptions.
fn mxcsr(rng: &mut Rng) -> u32 {
    match rng.below(6) {
        0..=2 => 0x1f80,
        3 => 0x1f80 | (rng.next() as u32 & 0x603f),
        4 => 0x1f80 | (rng.next() as u32 & 0xe07f),
        _ => rng.next() as u32 & 0xffff,
    }
}

/// A control word: mostly the default; otherwise any precision, rounding and mask.
fn x87_control(rng: &mut Rng) -> u16 {
    match rng.below(5) {
        0..=2 => 0x37f,
        3 => 0x7f | (rng.pick(&[0_u16, 2, 3]) << 8) | ((rng.below(4) as u16) << 10),
        _ => 0x40 | (rng.next() as u16 & 0xf3f),
    }
}

/// A random state with the stack pointer in the middle of the stack.
pub fn state(rng: &mut Rng) -> CpuImage {
    let mut cpu = CpuImage::default();
    for value in &mut cpu.gpr {
        *value = integer(rng);
    }
    cpu.gpr[4] = STACK + PAGE + 8 * rng.below(16);
    cpu.gpr[5] = STACK + PAGE + 256 + 8 * rng.below(16);
    let bits = rng.next();
    let checked = bits >> 32 & 0x1f == 0;
    let stepped = bits >> 40 & 0x1f == 0;
    cpu.rflags = 0x202 | (bits & ARITHMETIC);
    cpu.rflags |= if checked { ALIGNMENT } else { 0 } | if stepped { TRAP } else { 0 };
    cpu.fs_base = DATA + 64 * rng.below(16);
    cpu.gs_base = DATA + 1024 + 64 * rng.below(16);
    x87(rng, &mut cpu);
    cpu.mxcsr = mxcsr(rng);
    for register in &mut cpu.vector {
        fill_numbers(rng, register);
    }
    for mask in &mut cpu.mask {
        *mask = integer(rng);
    }
    cpu
}

fn x87(rng: &mut Rng, cpu: &mut CpuImage) {
    for register in &mut cpu.x87.st {
        *register = x87_register(rng);
    }
    cpu.x87.control = x87_control(rng);
    cpu.x87.tag = rng.pick(&[0, 0xff, 0xff, rng.clone().next() as u8]);
    cpu.x87.status = (rng.next() as u16) & rng.pick(&[0x4700, 0x7800, 0x3800, 0x477f]);
    let pending = cpu.x87.status & !cpu.x87.control & 0x3f;
    if pending != 0 {
        cpu.x87.status |= 0x8080;
    }
}
