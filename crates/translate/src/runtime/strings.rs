//! REP MOVS and REP STOS of 64-bit code over several pages, without leaving the cache.

use super::vcpu::VcpuCore;
use crate::cpu::{Exception, Outcome};
use crate::emit::StringShape;
use crate::mmu::walk::Kind;
use crate::state::gpr::{RAX, RCX, RDI, RSI};
use crate::system::memory::AccessMode;
use iced_x86::Instruction;

const PAGE: u64 = 4096;
/// The longest piece that is copied or filled without a look at what waits: what `system::string` has.
const PIECE: u64 = 64 << 10;

impl VcpuCore {
    /// Do as much of a forward REP MOVS or REP STOS with plain pointers as lies in plain RAM, up to 64 KiB.
    /// Returns whether anything was done; RIP is then behind it if it is over.
    ///
    /// # Errors
    /// A page fault or #GP, with the elements before it done.
    pub(super) fn string_in_place(&mut self, instruction: &Instruction) -> Outcome<bool> {
        let Some(shape) = StringShape::of(instruction).filter(|_| !self.mode().checks_alignment()) else {
            return Ok(false);
        };
        let before = self.cpu.state.gpr[RCX];
        let mut left = (PIECE >> shape.shift).min(before);
        while left > 0 {
            let done = self.string_piece(shape, left)?;
            if done == 0 {
                break;
            }
            left -= done;
        }
        let after = self.cpu.state.gpr[RCX];
        if after == 0 {
            self.cpu.state.rip = self.cpu.next_rip(instruction);
        }
        Ok(after != before || before == 0)
    }

    /// At most `most` elements, in pages that follow one another in the host. Returns how many; 0 if the first
    /// one is not in one page of plain RAM.
    fn string_piece(&mut self, shape: StringShape, most: u64) -> Outcome<u64> {
        let (from, to) = (self.cpu.state.gpr[RSI], self.cpu.state.gpr[RDI]);
        let mut bytes = most << shape.shift;
        let mut source = 0;
        // The source's page fault comes first.
        if shape.moves {
            let Some((host, size)) = self.host_run(from, bytes, Kind::Read)? else { return Ok(0) };
            if size >> shape.shift == 0 {
                return Ok(0);
            }
            (source, bytes) = (host, size);
        }
        let Some((target, size)) = self.host_run(to, bytes, Kind::Write)? else { return Ok(0) };
        let count = size >> shape.shift;
        // SAFETY: both runs are RAM of the guest's, in the host's mappings of memslots, which stay as long as
        // translated code may run; other vCPUs may access it, as they may with the guest's own instruction.
        unsafe { repeat(shape, source, target, count, self.cpu.state.gpr[RAX]) };
        let gpr = &mut self.cpu.state.gpr;
        let bytes = count << shape.shift;
        gpr[RCX] -= count;
        gpr[RDI] = to.wrapping_add(bytes);
        if shape.moves {
            gpr[RSI] = from.wrapping_add(bytes);
        }
        Ok(count)
    }

    /// The host address of `la`, and how many of the `bytes` from there on lie behind it. `None` if `la` is not
    /// in plain RAM.
    fn host_run(&mut self, la: u64, bytes: u64, kind: Kind) -> Result<Option<(u64, u64)>, Exception> {
        let Some(first) = self.plain_page(la, kind)? else { return Ok(None) };
        let mut size = PAGE - la % PAGE;
        while size < bytes {
            // A fault of a later page is due when its bytes are.
            let Ok(Some(next)) = self.plain_page(la.wrapping_add(size), kind) else { break };
            if next != first.wrapping_add(la % PAGE + size) {
                break;
            }
            size += PAGE;
        }
        Ok(Some((first + la % PAGE, size.min(bytes))))
    }

    /// The host page of `la`, if translated code may access it directly.
    fn plain_page(&mut self, la: u64, kind: Kind) -> Result<Option<u64>, Exception> {
        let write = kind == Kind::Write;
        let mmu = self.mode().mmu_index();
        if let Some(page) = self.tlb.find_data(&self.cpu.state.hot, mmu, write, la) {
            return Ok(Some(page));
        }
        let access = self.cpu.access(AccessMode::Current, kind);
        self.counters.walks += 1;
        let walk = self.cpu.translate_linear(la, access)?;
        let Some(page) = self.cpu.memory.host_page(walk.gpa) else { return Ok(None) };
        if write && !page.takes_stores() {
            return Ok(None);
        }
        if write && page.log_dirty {
            self.cpu.memory.mark_dirty(walk.gpa);
        }
        self.fill(la, &walk, page.host as u64, write);
        Ok(Some(page.host as u64))
    }
}

/// `count` elements, as the host's own instruction does them.
///
/// # Safety
/// `target` and, if it moves, `source` are host addresses of that many elements.
unsafe fn repeat(shape: StringShape, source: u64, target: u64, count: u64, value: u64) {
    macro_rules! string {
        ($instruction:literal) => {
            // SAFETY: as the caller promises. The direction flag is clear in compiled code.
            unsafe {
                std::arch::asm!($instruction, inout("rcx") count => _, inout("rdi") target => _,
                    inout("rsi") source => _, in("rax") value, options(nostack, preserves_flags))
            }
        };
    }
    match (shape.moves, shape.shift) {
        (true, 0) => string!("rep movsb"),
        (true, 1) => string!("rep movsw"),
        (true, 2) => string!("rep movsd"),
        (true, _) => string!("rep movsq"),
        (false, 0) => string!("rep stosb"),
        (false, 1) => string!("rep stosw"),
        (false, 2) => string!("rep stosd"),
        (false, _) => string!("rep stosq"),
    }
}
