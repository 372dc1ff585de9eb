//! Counters shared with the worker process, and what is printed.

use crate::case::{Case, Class};
use crate::compare::hex;
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Failures printed in full.
const MOST_PRINTED: u64 = 15;
/// Failures printed at all, the later ones as one line.
const MOST_LISTED: u64 = 2000;
/// Classes of the summary.
const CLASSES: usize = Class::ALL.len();

/// Counters in memory that the worker and its supervisor share, so that nothing is lost when the
/// code under test kills the worker.
#[derive(Debug)]
pub struct Board {
    /// Index of the case that the translated side runs now.
    pub current: AtomicU64,
    /// Index of the first case that nobody has run.
    pub next: AtomicU64,
    /// Set when the worker went through all its cases.
    pub finished: AtomicU64,
    /// Cases that the native side could not run.
    pub not_run: AtomicU64,
    passed: [AtomicU64; CLASSES],
    failed: [AtomicU64; CLASSES],
    printed: AtomicU64,
    /// Cases by the vector that ended them.
    ended: [AtomicU64; 32],
}

impl Board {
    /// A board in shared memory.
    ///
    /// # Errors
    /// The host's, when it has no memory to share.
    pub fn shared() -> std::io::Result<&'static Self> {
        let size = std::mem::size_of::<Self>();
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping, page-aligned and zero, which is a valid board; never unmapped.
        unsafe {
            let at = libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0);
            if at == libc::MAP_FAILED {
                return Err(std::io::Error::last_os_error());
            }
            Ok(&*at.cast::<Self>())
        }
    }

    /// Count a case that agreed.
    pub fn pass(&self, class: Class) {
        self.passed[class as usize].fetch_add(1, Relaxed);
    }

    /// Count a case that did not, and print it unless many have been.
    pub fn fail(&self, index: u64, case: &Case, why: &str) {
        self.failed[case.class as usize].fetch_add(1, Relaxed);
        let count = self.printed.fetch_add(1, Relaxed);
        let (name, class) = (&case.name, case.class.name());
        if count < MOST_PRINTED {
            println!("FAILED case {index}: {name} ({class})\n{}{why}", describe(case));
        } else if count < MOST_LISTED {
            println!("FAILED case {index}: {name} ({class}): {}", one_line(why));
        }
    }

    /// Count the exception that ended a case.
    pub fn ended(&self, vector: u8) {
        self.ended[usize::from(vector) % 32].fetch_add(1, Relaxed);
    }

    /// Sum of failed cases.
    pub fn failures(&self) -> u64 {
        self.failed.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// The summary by class, and the closing line.
    pub fn print(&self) {
        println!("{:16} {:>8} {:>8} {:>8}", "class", "cases", "passed", "failed");
        for class in Class::ALL {
            let passed = self.passed[class as usize].load(Relaxed);
            let failed = self.failed[class as usize].load(Relaxed);
            if passed + failed > 0 {
                println!("{:16} {:>8} {passed:>8} {failed:>8}", class.name(), passed + failed);
            }
        }
        let ends = self.ended.iter().enumerate().map(|(vector, count)| (vector, count.load(Relaxed)));
        let ends: Vec<String> = ends
            .filter(|(_, count)| *count > 0)
            .map(|(vector, count)| format!("{} {count}", VECTOR_NAMES.get(vector).unwrap_or(&"other")))
            .collect();
        println!("ended by {}", ends.join(", "));
        let passed: u64 = self.passed.iter().map(|count| count.load(Relaxed)).sum();
        println!("{passed} passed, {} failed", self.failures());
    }
}

const VECTOR_NAMES: [&str; 20] = [
    "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "9", "#TS", "#NP", "#SS", "#GP", "#PF",
    "15", "#MF", "#AC", "#MC", "#XM",
];

/// The first difference, without its indentation.
fn one_line(why: &str) -> String {
    let lines: Vec<&str> = why.lines().take(2).map(str::trim).collect();
    lines.join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Disassembly and the input state that matters at a glance.
pub fn describe(case: &Case) -> String {
    let mut text = String::new();
    let code = case.memory.iter().find(|(address, _)| *address == case.code_address());
    if let Some((_, bytes)) = code {
        let mut formatter = IntelFormatter::new();
        let mut decoder = Decoder::with_ip(case.bits, bytes, case.cpu.rip, DecoderOptions::NONE);
        while decoder.can_decode() {
            let instruction = decoder.decode();
            let mut line = String::new();
            formatter.format(&instruction, &mut line);
            let start = (instruction.ip() - case.cpu.rip) as usize;
            let raw: String =
                bytes[start..start + instruction.len()].iter().map(|b| format!("{b:02x}")).collect();
            text.push_str(&format!("    {:#x}: {raw:24} {line}\n", instruction.ip()));
        }
    }
    for (row, registers) in case.cpu.gpr.chunks(4).enumerate() {
        let row: Vec<String> = registers
            .iter()
            .enumerate()
            .map(|(column, value)| format!("{:>3} {value:016x}", GPR_NAMES[4 * row + column]))
            .collect();
        text.push_str(&format!("    {}\n", row.join("  ")));
    }
    if let Some(selectors) = case.selectors {
        text.push_str(&format!("    es cs ss ds fs gs {selectors:x?}\n"));
    }
    let (cpu, x87) = (&case.cpu, &case.cpu.x87);
    text.push_str(&format!(
        "    rflags {:x}  mxcsr {:x}  fcw {:x}  fsw {:x}  ftw {:x}  st0 {}\n",
        cpu.rflags,
        cpu.mxcsr,
        x87.control,
        x87.status,
        x87.tag,
        hex(&x87.st[0])
    ));
    text
}

const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
