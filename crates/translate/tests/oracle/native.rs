//! Runs cases on the real processor, in this process.
//!
//! There is no assembly trampoline: the kernel's signal frames carry the whole user-visible state
//! both ways. `ud2` raises a signal, whose handler keeps the frame ("home") and puts the case's
//! state there; returning from the handler starts the snippet. The snippet's exception raises the
//! next signal, whose handler keeps that frame as the outcome and puts home back.

use crate::case::{Case, CpuImage, Fault, Outcome, Pristine, Target, CODE};
use crate::segments::{self, Selectors};
use crate::xstate::Layout;
use std::collections::BTreeMap;
use std::ptr::{addr_of, addr_of_mut};

/// Index in `gregs` of each general register in encoding order (`sys/ucontext.h`).
const GREG: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
const GREG_RIP: usize = 16;
const GREG_FLAGS: usize = 17;
const GREG_SEGMENTS: usize = 18;
const GREG_ERROR: usize = 19;
const GREG_VECTOR: usize = 20;
const GREG_CR2: usize = 22;

/// Linux's selectors for 32-bit code, 64-bit code and data at privilege 3.
const CODE32: u64 = 0x23;
const CODE64: u64 = 0x33;
const USER_DATA: u64 = 0x2b;

/// `sw_reserved` of a frame's FPU area: the kernel's own description of it.
const SW_RESERVED: std::ops::Range<usize> = 464..512;
const FRAME_BYTES: usize = 16384;
const SIGNALS: [libc::c_int; 5] = [libc::SIGTRAP, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL, libc::SIGBUS];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Entering,
    Running,
}

#[repr(C, align(64))]
struct Area([u8; FRAME_BYTES]);

/// What the handler and the runner tell each other. One thread, and the handler runs only inside
/// [`enter`], so accesses never overlap.
struct Exchange {
    phase: Phase,
    gregs: [i64; 23],
    area: Area,
    area_bytes: usize,
    home_gregs: [i64; 23],
    home: Area,
    home_fs: u64,
    home_gs: u64,
    fs: u64,
    gs: u64,
    /// Of a case that chooses its segments: those that a frame does not hold are loaded and read
    /// by the handler.
    selectors: Option<Selectors>,
}

static mut EXCHANGE: Exchange = Exchange {
    phase: Phase::Idle,
    gregs: [0; 23],
    area: Area([0; FRAME_BYTES]),
    area_bytes: 0,
    home_gregs: [0; 23],
    home: Area([0; FRAME_BYTES]),
    home_fs: 0,
    home_gs: 0,
    fs: 0,
    gs: 0,
    selectors: None,
};

/// The FS and GS bases, through FSGSBASE instructions.
unsafe fn read_bases() -> (u64, u64) {
    let (fs, gs): (u64, u64);
    // SAFETY: `NativeTarget::new` made sure that the kernel enabled FSGSBASE.
    unsafe {
        std::arch::asm!("rdfsbase {}", "rdgsbase {}", out(reg) fs, out(reg) gs, options(nomem, nostack));
    }
    (fs, gs)
}

/// Set the FS and GS bases. No thread-local storage may be touched until they are set back.
unsafe fn write_bases(fs: u64, gs: u64) {
    // SAFETY: as in `read_bases`; both bases are canonical, since CPUs refuse to hold others.
    unsafe {
        std::arch::asm!("wrfsbase {}", "wrgsbase {}", in(reg) fs, in(reg) gs, options(nostack));
    }
}

/// Load ES, DS, FS and GS. No thread-local storage may be touched until they are back.
unsafe fn load_selectors(selectors: &Selectors) {
    let [es, _, _, ds, fs, gs] = *selectors;
    // SAFETY: the selectors are of present data or readable code of the local table, or null.
    unsafe {
        std::arch::asm!(
            "mov es, {0:x}", "mov ds, {1:x}", "mov fs, {2:x}", "mov gs, {3:x}",
            in(reg) es, in(reg) ds, in(reg) fs, in(reg) gs, options(nostack)
        );
    }
}

/// Read ES, DS, FS and GS into their places, and make them Linux's again.
unsafe fn read_selectors(selectors: &mut Selectors) {
    let (es, ds, fs, gs): (u16, u16, u16, u16);
    // SAFETY: 0x2b is Linux's flat data segment; the bases are set by the caller afterwards.
    unsafe {
        std::arch::asm!(
            "mov {0:x}, es", "mov {1:x}, ds", "mov {2:x}, fs", "mov {3:x}, gs",
            "mov es, {4:x}", "mov ds, {4:x}", "mov fs, {5:x}", "mov gs, {5:x}",
            out(reg) es, out(reg) ds, out(reg) fs, out(reg) gs, in(reg) 0x2b, in(reg) 0, options(nostack)
        );
    }
    selectors[0] = es;
    selectors[3..].copy_from_slice(&[ds, fs, gs]);
}

/// The FPU area of a frame, and its size; without the kernel's description of it.
unsafe fn frame_area(context: *mut libc::ucontext_t) -> (*mut u8, usize) {
    // SAFETY: the kernel points `fpregs` at the frame's FPU area; bytes 480..484 of it hold the
    // size of the XSAVE image (`struct _fpx_sw_bytes.xstate_size`).
    unsafe {
        let area = (*context).uc_mcontext.fpregs.cast::<u8>();
        let size = area.add(480).cast::<u32>().read_unaligned() as usize;
        (area, size.min(FRAME_BYTES))
    }
}

unsafe fn copy_area(from: *const u8, to: *mut u8, size: usize) {
    // SAFETY: the caller passes two areas of at least `size` bytes, which do not overlap.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, SW_RESERVED.start);
        let rest = size - SW_RESERVED.end;
        std::ptr::copy_nonoverlapping(from.add(SW_RESERVED.end), to.add(SW_RESERVED.end), rest);
    }
}

unsafe extern "C" fn on_signal(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: synchronous signals of the only thread that runs snippets; the frame is the kernel's.
    // FS and GS are put right before anything that could use thread-local storage, and NT and ID,
    // which signal delivery leaves as the snippet had them, are cleared.
    unsafe {
        std::arch::asm!("push 0x202", "popfq");
        let exchange = &mut *addr_of_mut!(EXCHANGE);
        let context = context.cast::<libc::ucontext_t>();
        let (area, size) = frame_area(context);
        let gregs = &mut (*context).uc_mcontext.gregs;
        match exchange.phase {
            Phase::Entering => {
                exchange.home_gregs = *gregs;
                copy_area(area, exchange.home.0.as_mut_ptr(), size);
                (exchange.home_fs, exchange.home_gs) = read_bases();
                *gregs = exchange.gregs;
                copy_area(exchange.area.0.as_ptr(), area, size);
                exchange.phase = Phase::Running;
                match &exchange.selectors {
                    Some(selectors) => load_selectors(selectors),
                    None => write_bases(exchange.fs, exchange.gs),
                }
            }
            Phase::Running => {
                (exchange.fs, exchange.gs) = read_bases();
                if let Some(selectors) = &mut exchange.selectors {
                    read_selectors(selectors);
                }
                write_bases(exchange.home_fs, exchange.home_gs);
                exchange.gregs = *gregs;
                exchange.area_bytes = size;
                copy_area(area, exchange.area.0.as_mut_ptr(), size);
                *gregs = exchange.home_gregs;
                gregs[GREG_RIP] += 2;
                copy_area(exchange.home.0.as_ptr(), area, size);
                exchange.phase = Phase::Idle;
            }
            Phase::Idle => {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
    }
}

/// Signal handlers and the alternate stack; puts the former ones back when dropped, because the
/// translated side has handlers of its own.
struct Handlers {
    former: Vec<(libc::c_int, libc::sigaction)>,
    former_stack: libc::stack_t,
    _stack: Vec<u8>,
}

impl Handlers {
    fn install() -> Self {
        let mut stack = vec![0_u8; 1 << 17];
        // SAFETY: plain C structures for which zero is a valid value; the stack outlives its use,
        // because `drop` takes it back first.
        unsafe {
            let new = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            let mut former_stack = std::mem::zeroed();
            libc::sigaltstack(&new, &mut former_stack);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            let former = SIGNALS
                .iter()
                .map(|signal| {
                    let mut old = std::mem::zeroed();
                    libc::sigaction(*signal, &action, &mut old);
                    (*signal, old)
                })
                .collect();
            Self { former, former_stack, _stack: stack }
        }
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        // SAFETY: gives back what `install` was given.
        unsafe {
            for (signal, action) in &self.former {
                libc::sigaction(*signal, action, std::ptr::null_mut());
            }
            libc::sigaltstack(&self.former_stack, std::ptr::null_mut());
        }
    }
}

/// The real processor, with the regions mapped at their addresses in this process.
pub struct NativeTarget {
    layout: Layout,
    original: Pristine,
    expected: Pristine,
}

impl NativeTarget {
    /// Map the regions.
    ///
    /// # Errors
    /// A sentence, when the addresses are taken or the kernel does not enable FSGSBASE.
    pub fn new(layout: Layout) -> Result<Self, String> {
        // SAFETY: AT_HWCAP2 is a plain query; bit 1 says that FSGSBASE is enabled.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 == 0 {
            return Err("the kernel does not let programs set the FS base".to_owned());
        }
        let target = Self { layout, original: Pristine::new(), expected: Pristine::new() };
        for (region, contents) in target.original.regions() {
            map(region.base, contents, region.writable, region.executable)?;
        }
        load_data_segments();
        Ok(target)
    }

    /// Use the regions that a parent process mapped before this one was forked.
    pub fn inherited(layout: Layout) -> Self {
        load_data_segments();
        Self { layout, original: Pristine::new(), expected: Pristine::new() }
    }

    /// Run several cases; handlers are in place only for as long as this takes.
    /// `before` is told the index of each.
    pub fn run_all(&mut self, cases: &[Case], before: impl Fn(usize)) -> Vec<Result<Outcome, String>> {
        let handlers = Handlers::install();
        let run = |(index, case)| {
            before(index);
            self.run_one(case)
        };
        let outcomes = cases.iter().enumerate().map(run).collect();
        drop(handlers);
        outcomes
    }

    fn run_one(&mut self, case: &Case) -> Result<Outcome, String> {
        self.expected.apply(case);
        for (address, bytes) in &case.memory {
            write_through(*address, bytes);
        }
        prepare(case, &self.layout);
        enter();
        let outcome = collect(case, &self.layout, &self.expected);
        self.expected.restore(case, &self.original);
        self.undo(case, &outcome);
        Ok(outcome)
    }

    fn undo(&self, case: &Case, outcome: &Outcome) {
        for (address, bytes) in &case.memory {
            if let Some(original) = self.original.at(*address, bytes.len()) {
                write_through(*address, original);
            }
        }
        for address in outcome.memory.keys() {
            if let Some(original) = self.original.at(*address, 1) {
                write_through(*address, original);
            }
        }
    }
}

impl Target for NativeTarget {
    fn run(&mut self, case: &Case) -> Result<Outcome, String> {
        self.run_all(std::slice::from_ref(case), |_| {}).remove(0)
    }
}

fn map(base: u64, contents: &[u8], writable: bool, executable: bool) -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    let all = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a fresh mapping at an address that `MAP_FIXED_NOREPLACE` guarantees to be free, then
    // filled and given its protection.
    unsafe {
        let at = libc::mmap(base as *mut libc::c_void, contents.len(), all, flags, -1, 0);
        if at as u64 != base {
            return Err(format!("cannot map {base:#x}: {}", std::io::Error::last_os_error()));
        }
        libc::memcpy(at, contents.as_ptr().cast(), contents.len());
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let execute = if executable { libc::PROT_EXEC } else { 0 };
        libc::mprotect(at, contents.len(), libc::PROT_READ | write | execute);
    }
    Ok(())
}

/// 32-bit code needs data segments; 64-bit code does not look at them.
fn load_data_segments() {
    // SAFETY: 0x2b is Linux's flat data segment for privilege 3.
    unsafe {
        std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) USER_DATA, options(nomem, nostack));
    }
}

/// Write to a region of ours. Read-only regions are never in a case's memory.
fn write_through(address: u64, bytes: &[u8]) {
    // SAFETY: the generator keeps a case's bytes inside the writable regions mapped by `new`, and
    // changed bytes can only lie there.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) }
}

fn prepare(case: &Case, layout: &Layout) {
    // SAFETY: the handler is not running; see `Exchange`.
    let exchange = unsafe { &mut *addr_of_mut!(EXCHANGE) };
    for (value, index) in case.cpu.gpr.iter().zip(GREG) {
        exchange.gregs[index] = *value as i64;
    }
    exchange.gregs[GREG_RIP] = case.cpu.rip as i64;
    exchange.gregs[GREG_FLAGS] = case.cpu.rflags as i64;
    let flat = (USER_DATA, if case.bits == 32 { CODE32 } else { CODE64 });
    let chosen =
        |selectors: Selectors| (u64::from(selectors[segments::SS]), u64::from(selectors[segments::CS]));
    let (stack, code) = case.selectors.map_or(flat, chosen);
    exchange.gregs[GREG_SEGMENTS] = (stack << 48 | code) as i64;
    exchange.selectors = case.selectors;
    exchange.fs = case.cpu.fs_base;
    exchange.gs = case.cpu.gs_base;
    layout.store(&case.cpu, &mut exchange.area.0);
    exchange.phase = Phase::Entering;
}

/// Raise the signal that starts the snippet; returns when the snippet has ended.
#[inline(never)]
fn enter() {
    // SAFETY: the handlers bring every register back to what it is here, past the `ud2`.
    unsafe { std::arch::asm!("ud2") }
}

fn collect(case: &Case, layout: &Layout, expected: &Pristine) -> Outcome {
    // SAFETY: the handler is not running; see `Exchange`.
    let exchange = unsafe { &*addr_of!(EXCHANGE) };
    let mut cpu = CpuImage::default();
    for (value, index) in cpu.gpr.iter_mut().zip(GREG) {
        *value = exchange.gregs[index] as u64;
    }
    cpu.rip = exchange.gregs[GREG_RIP] as u64;
    cpu.rflags = exchange.gregs[GREG_FLAGS] as u64;
    (cpu.fs_base, cpu.gs_base) = (exchange.fs, exchange.gs);
    layout.load(&exchange.area.0[..exchange.area_bytes], &mut cpu);
    if case.bits != 64 {
        // With a 16-bit stack, the upper half of RSP is of the kernel's own stack (espfix64).
        cpu.truncate();
    }
    let mut selectors = exchange.selectors;
    if let Some(selectors) = &mut selectors {
        selectors[segments::CS] = exchange.gregs[GREG_SEGMENTS] as u16;
        selectors[segments::SS] = (exchange.gregs[GREG_SEGMENTS] >> 48) as u16;
    }
    Outcome { fault: fault(&exchange.gregs), cpu, selectors, memory: changes(expected) }
}

fn fault(gregs: &[i64; 23]) -> Fault {
    let vector = gregs[GREG_VECTOR] as u8;
    let page_fault = vector == 14;
    let error_code = if matches!(vector, 10..=14) { gregs[GREG_ERROR] as u32 } else { 0 };
    Fault { vector, error_code, address: if page_fault { gregs[GREG_CR2] as u64 } else { 0 } }
}

fn changes(expected: &Pristine) -> BTreeMap<u64, u8> {
    let mut changed = BTreeMap::new();
    for (region, contents) in expected.regions().filter(|(region, _)| region.writable) {
        // SAFETY: the region is mapped as long as the process lives, and nothing else writes now.
        let now = unsafe { std::slice::from_raw_parts(region.base as *const u8, contents.len()) };
        expected.changes(region.base, now, &mut changed);
    }
    changed
}

/// Install the local descriptor table. False when the host's kernel has none.
pub fn install_segments() -> bool {
    segments::TABLE.iter().enumerate().all(|(index, entry)| {
        let words = [index as u32, entry.base, entry.limit, entry.user_flags()];
        // SAFETY: `modify_ldt` function 17 reads one `struct user_desc`, which is these four words.
        unsafe { libc::syscall(libc::SYS_modify_ldt, 17, words.as_ptr(), 16_usize) == 0 }
    })
}

/// Whether 32-bit code runs in this process at all.
pub fn compat_works(target: &mut NativeTarget) -> bool {
    // inc eax; int3. In 64-bit mode the first byte would be a REX prefix of the second.
    let mut cpu = CpuImage { rip: CODE, ..CpuImage::default() };
    cpu.gpr[0] = 41;
    let case = Case {
        class: crate::case::Class::Compat,
        name: "probe".to_owned(),
        bits: 32,
        cpu,
        memory: vec![(CODE, vec![0x40, 0xcc])],
        selectors: None,
        ignored: Vec::new(),
        ignored_flags: 0,
        any_address_in_page: false,
        any_fault: false,
        partial_registers: Vec::new(),
    };
    matches!(target.run(&case), Ok(outcome) if outcome.fault.vector == 3 && outcome.cpu.gpr[0] == 42)
}
