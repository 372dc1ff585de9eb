//! String instructions, with and without repeat prefixes.
//!
//! RAM is moved in pieces that stay within a page of the source and of the destination; what
//! crosses a page, is not RAM, or lies in a segment with limits goes element by element. One call
//! does a bounded amount of work and then returns with RIP still at the instruction. At a fault the
//! registers say exactly which elements are done (Intel SDM vol. 2B "REP").

use super::execute::{Flow, Step};
use super::operand::{operand_segment, truncate};
use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::mmu::walk::Kind;
use crate::state::{flag, gpr, seg};
use crate::system::memory::AccessMode;
use iced_x86::{Instruction, Mnemonic, OpKind};
use sublet_engine::Exit;
use sublet_memory::PAGE_SIZE;

/// Bytes that one call moves at most.
const BYTES_PER_CALL: u64 = 64 * 1024;
/// Elements that one call carries out one at a time at most.
const SLOW_ELEMENTS: u64 = 1024;
/// Bytes of a piece.
const PIECE: usize = PAGE_SIZE as usize;

/// What the instruction does with each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    Load,
    Scan,
    Compare,
    In,
    Out,
}

/// When the repetition ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repeat {
    Once,
    /// REP.
    Count,
    /// REPE and REPNE: while ZF is this.
    While(bool),
}

/// A decoded string instruction.
#[derive(Debug, Clone, Copy)]
struct StringOp {
    operation: Operation,
    repeat: Repeat,
    /// Bytes of an element: 1, 2, 4 or 8.
    size: u8,
    /// Address size in bytes: 2, 4 or 8.
    address_size: u8,
    /// Segment of the source.
    segment: usize,
}

fn operation(mnemonic: Mnemonic) -> Option<(Operation, u8)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Movsb => (Operation::Move, 1),
        M::Movsw => (Operation::Move, 2),
        M::Movsd => (Operation::Move, 4),
        M::Movsq => (Operation::Move, 8),
        M::Stosb => (Operation::Store, 1),
        M::Stosw => (Operation::Store, 2),
        M::Stosd => (Operation::Store, 4),
        M::Stosq => (Operation::Store, 8),
        M::Lodsb => (Operation::Load, 1),
        M::Lodsw => (Operation::Load, 2),
        M::Lodsd => (Operation::Load, 4),
        M::Lodsq => (Operation::Load, 8),
        M::Scasb => (Operation::Scan, 1),
        M::Scasw => (Operation::Scan, 2),
        M::Scasd => (Operation::Scan, 4),
        M::Scasq => (Operation::Scan, 8),
        M::Cmpsb => (Operation::Compare, 1),
        M::Cmpsw => (Operation::Compare, 2),
        M::Cmpsd => (Operation::Compare, 4),
        M::Cmpsq => (Operation::Compare, 8),
        M::Insb => (Operation::In, 1),
        M::Insw => (Operation::In, 2),
        M::Insd => (Operation::In, 4),
        M::Outsb => (Operation::Out, 1),
        M::Outsw => (Operation::Out, 2),
        M::Outsd => (Operation::Out, 4),
        _ => return None,
    })
}

/// Address size of an implicit memory operand.
fn implicit_address_size(kind: OpKind) -> Option<u8> {
    match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    }
}

impl StringOp {
    fn new(i: &Instruction, code64: bool) -> Option<Self> {
        let (operation, size) = operation(i.mnemonic())?;
        let conditional = matches!(operation, Operation::Scan | Operation::Compare);
        let repeat = match (i.has_repe_prefix(), i.has_repne_prefix()) {
            (false, false) => Repeat::Once,
            (_, unequal) if conditional => Repeat::While(!unequal),
            _ => Repeat::Count,
        };
        Some(Self {
            operation,
            repeat,
            size,
            address_size: (0..i.op_count()).find_map(|n| implicit_address_size(i.op_kind(n)))?,
            segment: operand_segment(i, code64),
        })
    }

    fn uses_source(&self) -> bool {
        matches!(self.operation, Operation::Move | Operation::Load | Operation::Compare | Operation::Out)
    }

    fn uses_destination(&self) -> bool {
        !matches!(self.operation, Operation::Load | Operation::Out)
    }
}

impl Cpu {
    pub(crate) fn string_instruction(&mut self, i: &Instruction, next_rip: u64) -> Step {
        let Some(op) = StringOp::new(i, self.state.code64()) else { return Err(Exception::UNDEFINED.into()) };
        if matches!(op.operation, Operation::In | Operation::Out) {
            self.check_port_access(self.state.gpr[gpr::RDX] as u16, op.size)?;
        }
        if op.repeat == Repeat::Once {
            return match self.string_element(&op) {
                Ok(()) => Ok(Flow::Next),
                Err(stop) => Err(self.retire_on_exit(stop, next_rip)),
            };
        }
        self.repeat_string(&op, next_rip)
    }

    /// Repeat until the count or condition ends it, or this call's share of work is done.
    fn repeat_string(&mut self, op: &StringOp, next_rip: u64) -> Step {
        let stepping = self.state.rflags & flag::TF != 0;
        let allowed = if stepping { 1 } else { SLOW_ELEMENTS };
        let mut bytes = 0;
        let mut elements = 0;
        while self.string_count(op) > 0 {
            if bytes >= BYTES_PER_CALL || elements >= allowed {
                return Ok(Flow::Set);
            }
            let done = if stepping { 0 } else { self.string_piece(op)? };
            if done > 0 {
                bytes += done * u64::from(op.size);
                self.count_down(op, done);
                continue;
            }
            elements += 1;
            let outcome = self.string_element(op);
            if element_done(&outcome) {
                self.count_down(op, 1);
            }
            let ended = self.string_count(op) == 0;
            outcome.map_err(|stop| if ended { self.retire_on_exit(stop, next_rip) } else { stop })?;
            if !self.posted_writes.is_empty() || self.debug_hits != 0 {
                // The device sees each store before the next; a breakpoint traps after its element.
                return Ok(if ended { Flow::Next } else { Flow::Set });
            }
            if matches!(op.repeat, Repeat::While(equal) if (self.state.rflags & flag::ZF != 0) != equal) {
                break;
            }
        }
        Ok(Flow::Next)
    }

    /// An exit that carries data out ends the instruction: RIP moves on.
    fn retire_on_exit(&mut self, stop: Stop, next_rip: u64) -> Stop {
        if element_done(&Err(stop)) {
            self.state.rip = next_rip;
        }
        stop
    }

    /// Elements left, at the address size.
    fn string_count(&self, op: &StringOp) -> u64 {
        truncate(self.state.gpr[gpr::RCX], op.address_size)
    }

    fn count_down(&mut self, op: &StringOp, elements: u64) {
        let left = self.state.gpr[gpr::RCX].wrapping_sub(elements);
        self.gpr_merge(gpr::RCX, op.address_size, left);
    }

    /// RSI or RDI at the address size.
    fn index(&self, op: &StringOp, register: usize) -> u64 {
        truncate(self.state.gpr[register], op.address_size)
    }

    /// Move RSI and RDI past `elements`, in the direction that DF says.
    fn advance(&mut self, op: &StringOp, elements: u64) {
        let distance = elements.wrapping_mul(u64::from(op.size));
        let step = if self.state.rflags & flag::DF != 0 { distance.wrapping_neg() } else { distance };
        for (used, register) in [(op.uses_source(), gpr::RSI), (op.uses_destination(), gpr::RDI)] {
            if used {
                let index = self.state.gpr[register].wrapping_add(step);
                self.gpr_merge(register, op.address_size, index);
            }
        }
    }

    fn read_source(&mut self, op: &StringOp) -> Outcome<u64> {
        self.read_seg(op.segment, self.index(op, gpr::RSI), op.size)
    }

    fn read_destination(&mut self, op: &StringOp) -> Outcome<u64> {
        self.read_seg(seg::ES, self.index(op, gpr::RDI), op.size)
    }

    fn write_destination(&mut self, op: &StringOp, value: u64) -> Outcome {
        self.write_seg(seg::ES, self.index(op, gpr::RDI), op.size, value)
    }

    /// One element. RSI and RDI advance if it is done, even when its data leaves by an exit.
    fn string_element(&mut self, op: &StringOp) -> Outcome {
        let outcome = self.string_data(op);
        if element_done(&outcome) {
            self.advance(op, 1);
            self.bus_reads.forget();
        }
        outcome
    }

    fn string_data(&mut self, op: &StringOp) -> Outcome {
        let accumulator = truncate(self.state.gpr[gpr::RAX], op.size);
        let port = self.state.gpr[gpr::RDX] as u16;
        match op.operation {
            Operation::Move => {
                let value = self.read_source(op)?;
                self.write_destination(op, value)
            }
            Operation::Store => self.write_destination(op, accumulator),
            Operation::Load => {
                let value = self.read_source(op)?;
                self.gpr_merge(gpr::RAX, op.size, value);
                Ok(())
            }
            Operation::Scan => {
                let value = self.read_destination(op)?;
                self.compare(accumulator, value, op.size);
                Ok(())
            }
            Operation::Compare => {
                let (first, second) = (self.read_source(op)?, self.read_destination(op)?);
                self.compare(first, second, op.size);
                Ok(())
            }
            Operation::In => self.string_in(op, port),
            Operation::Out => {
                let value = self.read_source(op)?;
                self.pio_write(port, op.size, value)
            }
        }
    }

    /// INS: the destination is checked first, because reading a port may have effects.
    fn string_in(&mut self, op: &StringOp, port: u16) -> Outcome {
        let offset = self.index(op, gpr::RDI);
        let la = self.segment_linear(seg::ES, offset, u64::from(op.size), Kind::Write)?;
        let access = self.access(AccessMode::Current, Kind::Write);
        self.translate_linear(la, access)?;
        self.translate_linear(la.wrapping_add(u64::from(op.size) - 1), access)?;
        let value = self.pio_read(port, op.size)?;
        self.write_destination(op, value)
    }

    /// Flags of CMP.
    fn compare(&mut self, first: u64, second: u64, size: u8) {
        let result = truncate(first.wrapping_sub(second), size);
        let sign = 1 << (8 * u32::from(size) - 1);
        self.set_result_flags(result, size);
        self.assign_flag(flag::CF, first < second);
        self.assign_flag(flag::OF, (first ^ second) & (first ^ result) & sign != 0);
        self.assign_flag(flag::AF, (first ^ second ^ result) & 0x10 != 0);
    }

    /// Do several elements of a repeated MOVS or STOS at once; 0 when none can be.
    /// RSI and RDI advance, RCX is the caller's.
    ///
    /// # Errors
    /// Faults of the first element.
    fn string_piece(&mut self, op: &StringOp) -> Outcome<u64> {
        let fast = matches!(op.operation, Operation::Move | Operation::Store) && self.unlimited_segments(op);
        if !fast || self.watching {
            return Ok(0);
        }
        let mut elements = self.string_count(op).min(PIECE as u64 / u64::from(op.size));
        let destination = self.flat_address(op, gpr::RDI, seg::ES);
        elements = elements.min(self.elements_in_page(op, destination, gpr::RDI));
        let source = self.flat_address(op, gpr::RSI, op.segment);
        if op.operation == Operation::Move {
            elements = elements.min(self.elements_in_page(op, source, gpr::RSI));
        }
        if elements < 2 || self.alignment_checked() {
            return Ok(0);
        }
        let done = match op.operation {
            Operation::Move => self.move_piece(op, source, destination, elements)?,
            _ => self.store_piece(op, destination, elements)?,
        };
        self.advance(op, done);
        Ok(done)
    }

    /// Segments without limits that matter: 64-bit code, or flat 4 GiB data segments.
    fn unlimited_segments(&self, op: &StringOp) -> bool {
        let flat = |segment: usize, writable: bool| {
            let register = &self.state.segments[segment];
            let expand_down = register.kind() & 0b1100 == 0b0100;
            let data = register.kind() & 8 == 0 && !expand_down && (!writable || register.kind() & 2 != 0);
            register.present() && data && register.limit == u32::MAX
        };
        self.state.code64() || (flat(seg::ES, true) && (!op.uses_source() || flat(op.segment, false)))
    }

    /// Linear address of RSI or RDI in a segment without limits.
    fn flat_address(&self, op: &StringOp, register: usize, segment: usize) -> u64 {
        let based = !self.state.code64() || segment >= seg::FS;
        let base = if based { self.state.segments[segment].base } else { 0 };
        let la = base.wrapping_add(self.index(op, register));
        if self.state.long_mode() {
            la
        } else {
            truncate(la, 4)
        }
    }

    /// Whole elements from `la` on (downwards with DF) that lie in its page and do not wrap the index.
    fn elements_in_page(&self, op: &StringOp, la: u64, register: usize) -> u64 {
        let size = u64::from(op.size);
        let within = la % PAGE_SIZE;
        let index = self.index(op, register);
        if self.state.rflags & flag::DF != 0 {
            if within + size > PAGE_SIZE {
                return 0;
            }
            return (within / size + 1).min(index / size + 1);
        }
        let to_wrap = truncate(u64::MAX, op.address_size) - index;
        ((PAGE_SIZE - within) / size).min(to_wrap / size)
    }

    /// Guest-physical address of the lowest of `elements` in RAM, the first of which is at `la`;
    /// `None` when it is something else. All lie in one page.
    fn ram_address(&mut self, op: &StringOp, la: u64, elements: u64, kind: Kind) -> Outcome<Option<u64>> {
        let gpa = self.translate_linear(la, self.access(AccessMode::Current, kind))?.gpa;
        let page = self.memory.host_page(gpa).filter(|page| kind == Kind::Read || !page.readonly);
        let below = match self.state.rflags & flag::DF != 0 {
            true => (elements - 1) * u64::from(op.size),
            false => 0,
        };
        Ok(page.map(|_| gpa - below))
    }

    fn store_piece(&mut self, op: &StringOp, la: u64, elements: u64) -> Outcome<u64> {
        let Some(gpa) = self.ram_address(op, la, elements, Kind::Write)? else { return Ok(0) };
        let bytes = elements as usize * usize::from(op.size);
        let pattern = self.state.gpr[gpr::RAX].to_le_bytes();
        if pattern[..usize::from(op.size)].iter().all(|byte| *byte == pattern[0]) {
            return Ok(if self.memory.fill(gpa, bytes as u64, pattern[0]) { elements } else { 0 });
        }
        let mut data = [0; PIECE];
        for element in data[..bytes].chunks_exact_mut(usize::from(op.size)) {
            element.copy_from_slice(&pattern[..usize::from(op.size)]);
        }
        let written = self.memory.write(gpa, &data[..bytes]).is_ok();
        Ok(if written { elements } else { 0 })
    }

    /// Overlapping operands whose elements feed each other are left to the
    /// caller's element-by-element way, except forward copies, which repeat a pattern.
    fn move_piece(&mut self, op: &StringOp, from: u64, to: u64, elements: u64) -> Outcome<u64> {
        let source = self.ram_address(op, from, elements, Kind::Read)?;
        let target = self.ram_address(op, to, elements, Kind::Write)?;
        let (Some(source), Some(target)) = (source, target) else { return Ok(0) };
        let bytes = elements as usize * usize::from(op.size);
        let ahead = target.wrapping_sub(source);
        let behind = source.wrapping_sub(target);
        let backwards = self.state.rflags & flag::DF != 0;
        let feeding = if backwards { behind } else { ahead };
        if feeding == 0 || feeding >= bytes as u64 {
            return Ok(if self.memory.copy(source, target, bytes as u64) { elements } else { 0 });
        }
        if backwards || feeding < u64::from(op.size) {
            return Ok(0);
        }
        let mut data = [0; PIECE];
        let period = feeding as usize;
        let copied = self.memory.read(source, &mut data[..period]).is_ok();
        repeat_pattern(&mut data[..bytes], period);
        let written = copied && self.memory.write(target, &data[..bytes]).is_ok();
        Ok(if written { elements } else { 0 })
    }
}

/// Fill `data` with copies of its first `period` bytes.
fn repeat_pattern(data: &mut [u8], period: usize) {
    let mut filled = period;
    while filled < data.len() {
        let piece = filled.min(data.len() - filled);
        data.copy_within(..piece, filled);
        filled += piece;
    }
}

/// Whether an element's effects are complete: also when its data leaves by an exit.
fn element_done(outcome: &Outcome) -> bool {
    match outcome {
        Ok(()) => true,
        Err(Stop::Exit(exit)) => !matches!(exit, Exit::PioIn { .. } | Exit::MmioRead { .. }),
        Err(Stop::Exception(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fixture::{cpu64, get, put, run, step, unmap, CODE, DATA, RAM};

    const REP_MOVSB: &[u8] = &[0xf3, 0xa4];
    const REP_MOVSQ: &[u8] = &[0xf3, 0x48, 0xa5];
    const REP_STOSQ: &[u8] = &[0xf3, 0x48, 0xab];
    const REPNE_SCASB: &[u8] = &[0xf2, 0xae];
    const REPE_CMPSB: &[u8] = &[0xf3, 0xa6];

    fn ready(source: u64, destination: u64, count: u64) -> Cpu {
        let mut cpu = cpu64();
        for word in 0..4096 {
            put(&cpu, DATA + 8 * word, word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        }
        cpu.state.gpr[gpr::RSI] = source;
        cpu.state.gpr[gpr::RDI] = destination;
        cpu.state.gpr[gpr::RCX] = count;
        cpu
    }

    fn bytes(cpu: &Cpu, at: u64, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        cpu.memory.read(at, &mut data).expect("RAM");
        data
    }

    /// What the architecture says: one element after the other.
    fn model(cpu: &Cpu, size: u64) -> Vec<u8> {
        let mut ram = bytes(cpu, 0, RAM as usize);
        let step = if cpu.state.rflags & flag::DF != 0 { 0u64.wrapping_sub(size) } else { size };
        let (mut from, mut to) = (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]);
        for _ in 0..cpu.state.gpr[gpr::RCX] {
            ram.copy_within(from as usize..(from + size) as usize, to as usize);
            (from, to) = (from.wrapping_add(step), to.wrapping_add(step));
        }
        ram
    }

    fn finish(cpu: &mut Cpu, code: &[u8]) {
        while cpu.state.rip == CODE {
            step(cpu, code);
        }
    }

    fn moves_like_the_model(mut cpu: Cpu, code: &[u8], size: u64) {
        let expected = model(&cpu, size);
        let (from, to) = (cpu.state.gpr[gpr::RSI], cpu.state.gpr[gpr::RDI]);
        let distance = size.wrapping_mul(cpu.state.gpr[gpr::RCX]);
        let backwards = cpu.state.rflags & flag::DF != 0;
        let moved = if backwards { distance.wrapping_neg() } else { distance };
        finish(&mut cpu, code);
        // The page tables below have gained accessed and dirty flags.
        let data = DATA as usize..;
        assert!(
            bytes(&cpu, 0, RAM as usize)[data.clone()] == expected[data],
            "memory differs: {from:#x} to {to:#x}"
        );
        assert_eq!(cpu.state.gpr[gpr::RSI], from.wrapping_add(moved));
        assert_eq!(cpu.state.gpr[gpr::RDI], to.wrapping_add(moved));
        assert_eq!((cpu.state.gpr[gpr::RCX], cpu.state.rip), (0, CODE + code.len() as u64));
    }

    #[test]
    fn overlapping_moves_equal_element_by_element() {
        for distance in [-4097i64, -100, -9, -8, -3, -1, 0, 1, 3, 7, 8, 9, 16, 100, 4095, 5000] {
            for backwards in [false, true] {
                let start = DATA + 0x3ff3;
                let mut bytewise = ready(start, start.wrapping_add_signed(distance), 6000);
                let mut wordwise = ready(start, start.wrapping_add_signed(distance), 900);
                if backwards {
                    bytewise.state.rflags |= flag::DF;
                    wordwise.state.rflags |= flag::DF;
                }
                moves_like_the_model(bytewise, REP_MOVSB, 1);
                moves_like_the_model(wordwise, REP_MOVSQ, 8);
            }
        }
    }

    #[test]
    fn work_is_bounded_and_restarts() {
        let mut cpu = ready(0, DATA, 40_000);
        step(&mut cpu, REP_STOSQ);
        assert_eq!(cpu.state.rip, CODE);
        let left = cpu.state.gpr[gpr::RCX];
        assert!(left < 40_000 && left > 0);
        assert_eq!(cpu.state.gpr[gpr::RDI], DATA + 8 * (40_000 - left));
        finish(&mut cpu, REP_STOSQ);
        assert_eq!(cpu.state.gpr[gpr::RCX], 0);
    }

    #[test]
    fn a_fault_leaves_the_registers_at_the_element() {
        let mut cpu = ready(0, DATA + 0xff0, 100);
        cpu.state.gpr[gpr::RAX] = 0x55;
        unmap(&cpu, DATA + 0x1000);
        let stop = run(&mut cpu, REP_STOSQ);
        assert_eq!(stop, Err(Exception::page_fault(2, DATA + 0x1000).into()));
        assert_eq!((cpu.state.gpr[gpr::RDI], cpu.state.gpr[gpr::RCX]), (DATA + 0x1000, 98));
        assert_eq!(get(&cpu, DATA + 0xff8), 0x55);
        assert_eq!(cpu.state.rip, CODE);
    }

    #[test]
    fn backward_fault_reports_the_element_s_address() {
        let mut cpu = ready(0, DATA + 0x1ff8, 600);
        cpu.state.rflags |= flag::DF;
        unmap(&cpu, DATA);
        unmap(&cpu, DATA + 0x1000);
        let stop = run(&mut cpu, REP_STOSQ);
        assert_eq!(stop, Err(Exception::page_fault(2, DATA + 0x1ff8).into()));
    }

    #[test]
    fn scan_and_compare_stop_at_the_condition() {
        let mut cpu = ready(DATA + 0x100, DATA, 64);
        cpu.memory.write(DATA, b"hello, world\0").expect("RAM");
        cpu.memory.write(DATA + 0x100, b"hello, there\0").expect("RAM");
        step(&mut cpu, REPE_CMPSB);
        assert_eq!(cpu.state.gpr[gpr::RDI], DATA + 8);
        assert_eq!(cpu.state.gpr[gpr::RCX], 56);
        // 't' - 'w' borrows.
        assert_eq!(cpu.state.rflags & (flag::CF | flag::ZF), flag::CF);
        cpu.state.rip = CODE;
        cpu.state.gpr[gpr::RAX] = 0;
        step(&mut cpu, REPNE_SCASB);
        assert_eq!(cpu.state.gpr[gpr::RDI], DATA + 13);
        assert_ne!(cpu.state.rflags & flag::ZF, 0);
    }

    #[test]
    fn a_count_of_zero_does_nothing() {
        let mut cpu = ready(u64::MAX, 1 << 62, 0);
        let flags = cpu.state.rflags;
        step(&mut cpu, REPE_CMPSB);
        assert_eq!((cpu.state.rip, cpu.state.rflags), (CODE + 2, flags));
    }

    /// With a 32-bit address size the registers wrap and lose their upper halves.
    #[test]
    fn short_addresses_truncate() {
        let mut cpu = ready(0, DATA | 7 << 32, 2 | 5 << 32);
        step(&mut cpu, &[0x67, 0xf3, 0xaa]);
        assert_eq!((cpu.state.gpr[gpr::RDI], cpu.state.gpr[gpr::RCX]), (DATA + 2, 0));
    }

    #[test]
    fn outs_and_ins_restart_per_element() {
        let mut cpu = ready(DATA, DATA + 0x1000, 2);
        cpu.state.gpr[gpr::RDX] = 0x80;
        cpu.memory.write(DATA, b"ab").expect("RAM");
        for (left, data) in [(1, b'a'), (0, b'b')] {
            let exit = Exit::PioOut { port: 0x80, size: 1, data: u64::from(data) };
            assert_eq!(run(&mut cpu, &[0xf3, 0x6e]), Err(Stop::Exit(exit)));
            assert_eq!(cpu.state.gpr[gpr::RCX], left);
        }
        assert_eq!((cpu.state.rip, cpu.state.gpr[gpr::RSI]), (CODE + 2, DATA + 2));
        (cpu.state.rip, cpu.state.gpr[gpr::RCX]) = (CODE, 1);
        assert_eq!(run(&mut cpu, &[0xf3, 0x6c]), Err(Stop::Exit(Exit::PioIn { port: 0x80, size: 1 })));
        assert_eq!(cpu.state.gpr[gpr::RCX], 1);
        cpu.completed_read = Some((true, 0x80, 1, 0x77));
        step(&mut cpu, &[0xf3, 0x6c]);
        assert_eq!((get(&cpu, DATA + 0x1000) & 0xff, cpu.state.gpr[gpr::RCX]), (0x77, 0));
    }
}
