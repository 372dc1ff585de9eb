//! Vector instructions that touch memory element by element under a mask: gathers and scatters,
//! masked moves, compress and expand, and the masked operands of EVEX instructions.
//!
//! They work on `state.vector`. An element whose mask bit is clear is not accessed and cannot
//! fault. Gathers and scatters clear the mask bit of each element that is done, so that they go on
//! where they stopped (Intel SDM vol. 2D "VPGATHERDD/VPGATHERQD"; vol. 1 §15.6.4 "Memory Fault
//! Suppression").

use super::execute::{next, Flow, Step};
use super::operand::{operand_segment, sign_extend, truncate, MemoryOperand};
use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::mmu::walk::Kind;
use crate::state::{flag, gpr};
use crate::system::control::cr0;
use crate::system::memory::AccessMode;
use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};
use sublet_memory::PAGE_SIZE;

/// A vector register, zero-extended to 512 bits.
pub type VectorBytes = [u8; 64];

/// An element of 1, 2, 4 or 8 bytes.
fn element(vector: &VectorBytes, index: usize, size: u8) -> u64 {
    let at = index * usize::from(size);
    let mut bytes = [0; 8];
    bytes[..usize::from(size)].copy_from_slice(&vector[at..at + usize::from(size)]);
    u64::from_le_bytes(bytes)
}

fn set_element(vector: &mut VectorBytes, index: usize, size: u8, value: u64) {
    let at = index * usize::from(size);
    vector[at..at + usize::from(size)].copy_from_slice(&value.to_le_bytes()[..usize::from(size)]);
}

/// A gather or scatter.
#[derive(Debug, Clone, Copy)]
struct Indexed {
    /// The register with the data, and its bytes of an element.
    data: Register,
    data_size: u8,
    index: Register,
    index_size: u8,
    elements: usize,
}

/// Bytes of an element of data and of an index.
fn indexed_sizes(mnemonic: Mnemonic) -> Option<(u8, u8)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpgatherdd | M::Vgatherdps | M::Vpscatterdd | M::Vscatterdps => (4, 4),
        M::Vpgatherdq | M::Vgatherdpd | M::Vpscatterdq | M::Vscatterdpd => (8, 4),
        M::Vpgatherqd | M::Vgatherqps | M::Vpscatterqd | M::Vscatterqps => (4, 8),
        M::Vpgatherqq | M::Vgatherqpd | M::Vpscatterqq | M::Vscatterqpd => (8, 8),
        _ => return None,
    })
}

impl Indexed {
    fn new(i: &Instruction, data: Register) -> Option<Self> {
        let (data_size, index_size) = indexed_sizes(i.mnemonic())?;
        let index = i.memory_index();
        let fits = |register: Register, size: u8| register.size() / usize::from(size);
        let elements = fits(data, data_size).min(fits(index, index_size));
        Some(Self { data, data_size, index, index_size, elements })
    }
}

/// Bytes of an element that the mask of an EVEX memory operand counts, for the moves that this
/// module carries out.
fn packed_size(mnemonic: Mnemonic) -> Option<(bool, u8)> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Vpcompressb => (true, 1),
        M::Vpcompressw => (true, 2),
        M::Vpcompressd | M::Vcompressps => (true, 4),
        M::Vpcompressq | M::Vcompresspd => (true, 8),
        M::Vpexpandb => (false, 1),
        M::Vpexpandw => (false, 2),
        M::Vpexpandd | M::Vexpandps => (false, 4),
        M::Vpexpandq | M::Vexpandpd => (false, 8),
        _ => return None,
    })
}

impl Cpu {
    /// Carry the instruction out if it is one of this module's.
    pub(crate) fn dispatch_vector(&mut self, i: &Instruction) -> Option<Step> {
        if let Some((compress, size)) = packed_size(i.mnemonic()) {
            return Some(next(self.pack_or_unpack(i, compress, size)));
        }
        Some(match i.mnemonic() {
            mnemonic if indexed_sizes(mnemonic).is_some() => self.interruptible_gather(i),
            Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => next(self.mask_move(i, 4)),
            Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => next(self.mask_move(i, 8)),
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => next(self.mask_store_bytes(i)),
            Mnemonic::Maskmovq => next(self.mask_store_mmx(i)),
            _ => return None,
        })
    }

    /// #NM with CR0.TS.
    fn require_vector_unit(&self) -> Result<(), Exception> {
        match self.state.cr0 & cr0::TS != 0 {
            true => Err(Exception::DEVICE_NOT_AVAILABLE),
            false => Ok(()),
        }
    }

    /// The low `size` bytes of a value in memory, for an element.
    fn load_element(&mut self, at: MemoryOperand, index: usize, size: u8) -> Outcome<u64> {
        self.load(at.after(index as u64 * u64::from(size)), size)
    }

    fn store_element(&mut self, at: MemoryOperand, index: usize, size: u8, value: u64) -> Outcome {
        self.store(at.after(index as u64 * u64::from(size)), size, value)
    }

    /// As [`Self::load`], for what is exempt from alignment checks: gathers and VMASKMOV.
    fn load_unaligned(&mut self, at: MemoryOperand, size: u8) -> Outcome<u64> {
        let la = self.operand_linear(at, u64::from(size), Kind::Read)?;
        let value = self.read_linear(la, size, AccessMode::Current)?;
        self.watch(la, u64::from(size), false);
        Ok(value)
    }

    /// As [`Self::load_unaligned`], for scatters and VMASKMOV.
    fn store_unaligned(&mut self, at: MemoryOperand, size: u8, value: u64) -> Outcome {
        let la = self.operand_linear(at, u64::from(size), Kind::Write)?;
        self.write_linear(la, size, value, AccessMode::Current)?;
        self.watch(la, u64::from(size), true);
        Ok(())
    }

    /// Segment and alignment checks of an operand's first `size` bytes, which come before those of pages.
    fn check_vector(&self, at: MemoryOperand, size: usize, align: u64, kind: Kind) -> Result<(), Exception> {
        let la = self.operand_linear(at, size as u64, kind)?;
        match la % align != 0 && self.alignment_checked() {
            true => Err(Exception::with_code(17, 0)),
            false => Ok(()),
        }
    }

    /// Check that elements can be stored: a masked store that faults stores none of them.
    fn check_stores(
        &mut self,
        at: MemoryOperand,
        elements: impl Iterator<Item = usize>,
        size: u8,
    ) -> Result<(), Exception> {
        let access = self.access(AccessMode::Current, Kind::Write);
        let mut checked = None;
        for n in elements {
            let target = at.after(n as u64 * u64::from(size));
            let first = self.operand_linear(target, u64::from(size), Kind::Write)?;
            let last = first.wrapping_add(u64::from(size) - 1);
            for la in [first, first.max(last & !(PAGE_SIZE - 1))] {
                if checked != Some(la / PAGE_SIZE) {
                    self.translate_linear(la, access)?;
                    checked = Some(la / PAGE_SIZE);
                }
            }
        }
        Ok(())
    }

    /// Address of one element of a VSIB operand; `at` is the operand without its index.
    fn vsib_address(&self, i: &Instruction, at: MemoryOperand, op: &Indexed, n: usize) -> MemoryOperand {
        let indices = self.vector_register(op.index.number());
        let index = sign_extend(element(&indices, n, op.index_size), op.index_size);
        let scaled = (index as u64).wrapping_mul(u64::from(i.memory_index_scale()));
        MemoryOperand { offset: truncate(at.offset.wrapping_add(scaled), at.address_size), ..at }
    }

    /// A debug trap that waits comes in place of a fault that follows elements already done; the mask says where
    /// the instruction goes on (Intel SDM vol. 2D "VPGATHERDD/VPGATHERDQ").
    fn interruptible_gather(&mut self, i: &Instruction) -> Step {
        self.require_vector_unit()?;
        self.materialize_vectors();
        let before = self.elements_left(i);
        let outcome = self.gather_or_scatter(i);
        let trapped = self.state.rflags & flag::TF != 0 || self.debug_hits != 0;
        match outcome {
            Err(Stop::Exception(_)) if trapped && self.elements_left(i) != before => Ok(Flow::Set),
            outcome => next(outcome),
        }
    }

    /// What masks a gather or scatter: an opmask, or the sign bits of operand 2.
    fn elements_left(&self, i: &Instruction) -> (u64, VectorBytes) {
        match i.code().encoding() {
            EncodingKind::VEX => (0, self.vector_register(i.op2_register().number())),
            _ => (self.opmask(i.op_mask().number()), [0; 64]),
        }
    }

    fn gather_or_scatter(&mut self, i: &Instruction) -> Outcome {
        let vex = i.code().encoding() == EncodingKind::VEX;
        let scatter = i.op0_kind() == OpKind::Memory;
        let data = if scatter { i.op1_register() } else { i.op0_register() };
        let Some(op) = Indexed::new(i, data) else { return Err(Exception::UNDEFINED.into()) };
        match (vex, scatter) {
            (true, _) => self.gather_vex(i, &op),
            (false, true) => self.scatter(i, &op),
            (false, false) => self.gather_evex(i, &op),
        }
    }

    /// The mask is the sign bit of each element of operand 2.
    fn gather_vex(&mut self, i: &Instruction, op: &Indexed) -> Outcome {
        let mask = i.op2_register().number();
        let (data, index) = (op.data.number(), op.index.number());
        if data == index || data == mask || index == mask {
            return Err(Exception::UNDEFINED.into());
        }
        let at = self.memory_operand(i);
        let sign = 1 << (8 * u32::from(op.data_size) - 1);
        for n in 0..op.elements {
            let mut bits = self.vector_register(mask);
            if element(&bits, n, op.data_size) & sign == 0 {
                continue;
            }
            let value = self.load_unaligned(self.vsib_address(i, at, op, n), op.data_size)?;
            self.bus_reads.forget();
            self.set_vector_element(data, n, op.data_size, value);
            set_element(&mut bits, n, op.data_size, 0);
            self.set_vector_register(mask, &bits);
        }
        self.zero_vector_above(data, op.elements * usize::from(op.data_size));
        self.set_vector_register(mask, &[0; 64]);
        Ok(())
    }

    fn gather_evex(&mut self, i: &Instruction, op: &Indexed) -> Outcome {
        let mask = self.required_opmask(i)?;
        let data = op.data.number();
        if data == op.index.number() {
            return Err(Exception::UNDEFINED.into());
        }
        let at = self.memory_operand(i);
        for n in self.active_elements(mask, op.elements) {
            let value = self.load_unaligned(self.vsib_address(i, at, op, n), op.data_size)?;
            self.bus_reads.forget();
            self.set_vector_element(data, n, op.data_size, value);
            self.set_opmask(mask, self.opmask(mask) & !(1 << n));
        }
        self.zero_vector_above(data, op.elements * usize::from(op.data_size));
        self.set_opmask(mask, 0);
        Ok(())
    }

    /// Elements are stored in order, so that the last of overlapping ones wins. A store that
    /// leaves by an exit has its mask bit cleared first, and the instruction restarts.
    fn scatter(&mut self, i: &Instruction, op: &Indexed) -> Outcome {
        let mask = self.required_opmask(i)?;
        let at = self.memory_operand(i);
        let data = self.vector_register(op.data.number());
        for n in self.active_elements(mask, op.elements) {
            let target = self.vsib_address(i, at, op, n);
            let outcome = self.store_unaligned(target, op.data_size, element(&data, n, op.data_size));
            if !matches!(outcome, Err(Stop::Exception(_))) {
                self.set_opmask(mask, self.opmask(mask) & !(1 << n));
            }
            outcome?;
        }
        self.set_opmask(mask, 0);
        Ok(())
    }

    /// The opmask of an instruction that must have one other than k0.
    fn required_opmask(&self, i: &Instruction) -> Result<usize, Exception> {
        match i.has_op_mask() {
            true => Ok(i.op_mask().number()),
            false => Err(Exception::UNDEFINED),
        }
    }

    /// Numbers of the elements whose mask bit is set.
    fn active_elements(&self, mask: usize, elements: usize) -> impl Iterator<Item = usize> + use<> {
        let bits = self.opmask(mask);
        (0..elements).filter(move |n| bits >> n & 1 != 0)
    }

    /// VMASKMOV and VPMASKMOV: operand 1 is the mask, by sign bit.
    fn mask_move(&mut self, i: &Instruction, size: u8) -> Outcome {
        self.require_vector_unit()?;
        self.materialize_vectors();
        let mask = self.vector_register(i.op1_register().number());
        let elements = i.op1_register().size() / usize::from(size);
        let active = |n: &usize| element(&mask, *n, size) >> (8 * u32::from(size) - 1) != 0;
        let at = self.memory_operand(i);
        if i.op0_kind() == OpKind::Memory {
            let data = self.vector_register(i.op2_register().number());
            self.check_stores(at, (0..elements).filter(active), size)?;
            for n in (0..elements).filter(active) {
                self.store_unaligned(at.after(n as u64 * u64::from(size)), size, element(&data, n, size))?;
            }
            return Ok(());
        }
        let mut data = [0; 64];
        for n in (0..elements).filter(active) {
            let value = self.load_unaligned(at.after(n as u64 * u64::from(size)), size)?;
            set_element(&mut data, n, size, value);
        }
        self.set_vector_register(i.op0_register().number(), &data);
        Ok(())
    }

    /// The x87 status word's ES.
    fn x87_exception_pending(&mut self) -> bool {
        const ES: u8 = 1 << 7;
        self.materialize_components(1);
        self.state.vector.0[2] & ES != 0
    }

    /// The operand of MASKMOVDQU and MASKMOVQ: DS:rDI, with its segment prefix.
    fn mask_store_target(&self, i: &Instruction) -> MemoryOperand {
        let address_size = match i.op0_kind() {
            OpKind::MemorySegDI => 2,
            OpKind::MemorySegEDI => 4,
            _ => 8,
        };
        MemoryOperand {
            segment: operand_segment(i, self.state.code64()),
            offset: truncate(self.state.gpr[gpr::RDI], address_size),
            address_size,
        }
    }

    fn mask_store_bytes(&mut self, i: &Instruction) -> Outcome {
        self.require_vector_unit()?;
        self.materialize_vectors();
        let data = self.vector_register(i.op1_register().number());
        let mask = self.vector_register(i.op2_register().number());
        self.store_masked_bytes(self.mask_store_target(i), &data[..16], &mask[..16])
    }

    fn store_masked_bytes(&mut self, at: MemoryOperand, data: &[u8], mask: &[u8]) -> Outcome {
        // Whether bytes that are masked off can fault is up to the processor (Intel SDM vol. 2B
        // "MASKMOVDQU"); on those that were tried they do.
        // Segments are checked for the operand as a whole, before any page.
        self.check_vector(at, data.len(), 8, Kind::Write)?;
        self.check_stores(at, 0..data.len(), 1)?;
        for n in (0..data.len()).filter(|n| mask[*n] & 0x80 != 0) {
            self.store_element(at, n, 1, u64::from(data[n]))?;
        }
        Ok(())
    }

    /// MASKMOVQ, an MMX instruction: the x87 stack top becomes 0 and all registers are in use.
    fn mask_store_mmx(&mut self, i: &Instruction) -> Outcome {
        self.require_vector_unit()?;
        if self.x87_exception_pending() {
            return Err(Exception::new(16).into());
        }
        let data = self.mmx_register(i.op1_register().number()).to_le_bytes();
        let mask = self.mmx_register(i.op2_register().number()).to_le_bytes();
        // The x87 state changes even when the store faults.
        self.enter_mmx();
        self.store_masked_bytes(self.mask_store_target(i), &data, &mask)
    }

    /// VCOMPRESS to memory and VEXPAND from memory: active elements lie next to each other there.
    fn pack_or_unpack(&mut self, i: &Instruction, compress: bool, size: u8) -> Outcome {
        self.require_vector_unit()?;
        self.materialize_vectors();
        let register = if compress { i.op1_register() } else { i.op0_register() };
        let elements = register.size() / usize::from(size);
        let active: Vec<usize> = self.operand_elements(i, elements).collect();
        let at = self.memory_operand(i);
        if !active.is_empty() {
            let kind = if compress { Kind::Write } else { Kind::Read };
            let align = if i.has_op_mask() { u64::from(size) } else { 16 };
            self.check_vector(at, usize::from(size), align, kind)?;
        }
        let mut data = self.vector_register(register.number());
        if compress {
            self.check_stores(at, 0..active.len(), size)?;
            for (position, n) in active.into_iter().enumerate() {
                self.store_element(at, position, size, element(&data, n, size))?;
            }
            return Ok(());
        }
        if i.zeroing_masking() {
            data = [0; 64];
        }
        for (position, n) in active.into_iter().enumerate() {
            let value = self.load_element(at, position, size)?;
            set_element(&mut data, n, size, value);
        }
        data[register.size()..].fill(0);
        self.set_vector_register(register.number(), &data);
        Ok(())
    }

    /// The memory operand of an EVEX instruction as its mask lets it be read: elements with a clear
    /// mask bit are zero and not accessed. With embedded broadcast the one element is repeated.
    /// `size` is that of a mask element in memory.
    ///
    /// # Errors
    /// Those of the accesses to active elements.
    pub fn masked_operand(&mut self, i: &Instruction, size: u8) -> Outcome<VectorBytes> {
        let mut data = [0; 64];
        let at = self.memory_operand(i);
        if i.is_broadcast() {
            return self.broadcast_operand(i, at, size);
        }
        let elements = i.memory_size().size().min(64) / usize::from(size);
        for n in self.operand_elements(i, elements) {
            let value = self.load_element(at, n, size)?;
            set_element(&mut data, n, size, value);
        }
        Ok(data)
    }

    fn broadcast_operand(&mut self, i: &Instruction, at: MemoryOperand, size: u8) -> Outcome<VectorBytes> {
        let mut data = [0; 64];
        let elements = 64 / usize::from(size);
        if self.operand_elements(i, elements).next().is_some() {
            let value = self.load(at, size)?;
            (0..elements).for_each(|n| set_element(&mut data, n, size, value));
        }
        Ok(data)
    }

    /// Store the elements of `data` whose mask bit is set to the memory operand of an EVEX
    /// instruction.
    ///
    /// # Errors
    /// Those of the accesses to active elements.
    pub fn masked_store(&mut self, i: &Instruction, data: &VectorBytes, size: u8) -> Outcome {
        let at = self.memory_operand(i);
        let elements = i.memory_size().size().min(64) / usize::from(size);
        for n in self.operand_elements(i, elements) {
            self.store_element(at, n, size, element(data, n, size))?;
        }
        Ok(())
    }

    /// Numbers of the elements that an instruction's opmask, if it has one, lets through.
    fn operand_elements(&self, i: &Instruction, elements: usize) -> impl Iterator<Item = usize> + use<> {
        let mask = if i.has_op_mask() { self.opmask(i.op_mask().number()) } else { u64::MAX };
        (0..elements).filter(move |n| mask >> n & 1 != 0)
    }

    /// Write one element of a register, leaving the others.
    fn set_vector_element(&mut self, number: usize, index: usize, size: u8, value: u64) {
        let mut data = self.vector_register(number);
        set_element(&mut data, index, size, value);
        self.set_vector_register(number, &data);
    }

    /// Clear the bytes of a register from `bytes` up.
    fn zero_vector_above(&mut self, number: usize, bytes: usize) {
        let mut data = self.vector_register(number);
        data[bytes..].fill(0);
        self.set_vector_register(number, &data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::fixture::{cpu64, get, put, run, step, unmap, CODE, DATA};
    use iced_x86::{Decoder, DecoderOptions};

    /// `vpgatherdd ymm1, [rax + ymm2 * 4], ymm3`
    const GATHER_VEX: &[u8] = &[0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x90];
    /// `vpgatherqd xmm1, [rax + xmm2 * 4], xmm3`
    const GATHER_QD: &[u8] = &[0xc4, 0xe2, 0x61, 0x91, 0x0c, 0x90];
    /// `vpgatherdd zmm1 {k1}, [rax + zmm2 * 4]`
    const GATHER_EVEX: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0x90, 0x0c, 0x90];
    /// `vpscatterdd [rax + zmm2 * 4] {k1}, zmm1`
    const SCATTER: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0xa0, 0x0c, 0x90];
    /// `vpmaskmovd ymm1, ymm3, [rax]`
    const MASK_LOAD: &[u8] = &[0xc4, 0xe2, 0x65, 0x8c, 0x08];
    /// `maskmovdqu xmm1, xmm3`
    const MASKMOVDQU: &[u8] = &[0x66, 0x0f, 0xf7, 0xcb];
    /// `vpcompressd [rax] {k1}, zmm1`
    const COMPRESS: &[u8] = &[0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x08];
    /// `vpexpandd zmm1 {k1} {z}, [rax]`
    const EXPAND: &[u8] = &[0x62, 0xf2, 0x7d, 0xc9, 0x89, 0x08];
    /// `vaddps zmm1 {k1}, zmm2, [rax]`
    const MASKED_ADD: &[u8] = &[0x62, 0xf1, 0x6c, 0x49, 0x58, 0x08];

    fn words(list: impl Fn(usize) -> u32) -> VectorBytes {
        let mut data = [0; 64];
        (0..16).for_each(|n| set_element(&mut data, n, 4, u64::from(list(n))));
        data
    }

    /// Indices 0, 2, 4... in register 2, memory word n holding n + 100, address in RAX.
    fn ready() -> Cpu {
        let mut cpu = cpu64();
        cpu.materialize_vectors();
        for n in 0..64u64 {
            put(&cpu, DATA + 8 * n, (2 * n + 101) << 32 | (2 * n + 100));
        }
        cpu.state.gpr[gpr::RAX] = DATA;
        cpu.set_vector_register(2, &words(|n| 2 * n as u32));
        cpu.set_vector_register(1, &words(|_| 7));
        cpu
    }

    fn word(cpu: &Cpu, register: usize, index: usize) -> u64 {
        element(&cpu.vector_register(register), index, 4)
    }

    #[test]
    fn gather_takes_elements_with_the_sign_bit_and_clears_the_mask() {
        let mut cpu = ready();
        cpu.set_vector_register(3, &words(|n| if n % 2 == 0 { 1 << 31 } else { 1 }));
        step(&mut cpu, GATHER_VEX);
        assert_eq!([0, 1, 2, 7, 8].map(|n| word(&cpu, 1, n)), [100, 7, 104, 7, 0]);
        assert_eq!(cpu.vector_register(3), [0; 64]);
    }

    #[test]
    fn narrow_gather_clears_the_upper_half() {
        let mut cpu = ready();
        let mut index = [0; 64];
        set_element(&mut index, 1, 8, 3u64);
        cpu.set_vector_register(2, &index);
        cpu.set_vector_register(3, &[0xff; 64]);
        step(&mut cpu, GATHER_QD);
        assert_eq!([0, 1, 2, 3].map(|n| word(&cpu, 1, n)), [100, 103, 0, 0]);
    }

    #[test]
    fn a_faulting_gather_keeps_what_is_done() {
        let mut cpu = ready();
        cpu.state.gpr[gpr::RAX] = DATA + 0xff0;
        put(&cpu, DATA + 0xff0, 55);
        unmap(&cpu, DATA + 0x1000);
        cpu.set_vector_register(3, &[0xff; 64]);
        let stop = run(&mut cpu, GATHER_VEX);
        assert_eq!(stop, Err(Exception::page_fault(0, DATA + 0x1000).into()));
        assert_eq!((word(&cpu, 1, 0), word(&cpu, 1, 2)), (55, 7));
        assert_eq!((word(&cpu, 3, 1), word(&cpu, 3, 2)), (0, 0xffff_ffff));
        assert_eq!(cpu.state.rip, CODE);
    }

    #[test]
    fn gathers_refuse_equal_registers() {
        let mut cpu = ready();
        // vpgatherdd ymm2, [rax + ymm2 * 4], ymm3
        let same = [0xc4, 0xe2, 0x65, 0x90, 0x14, 0x90];
        let mut decoder = Decoder::with_ip(64, &same, CODE, DecoderOptions::NO_INVALID_CHECK);
        let stop = cpu.execute(&decoder.decode());
        assert_eq!(stop, Err(Exception::UNDEFINED.into()));
    }

    fn has_avx512(cpu: &Cpu) -> bool {
        cpu.state.xcr0 & 0xe0 == 0xe0
    }

    /// On hosts without AVX-512 the guest has no opmasks to test.
    #[test]
    fn evex_forms_use_the_opmask() {
        let mut cpu = ready();
        if !has_avx512(&cpu) {
            return;
        }
        cpu.set_opmask(1, 0b1000_0000_0000_0101);
        step(&mut cpu, GATHER_EVEX);
        assert_eq!([0, 1, 2, 15].map(|n| word(&cpu, 1, n)), [100, 7, 104, 130]);
        assert_eq!(cpu.opmask(1), 0);
        cpu.set_opmask(1, 0b10);
        step(&mut cpu, SCATTER);
        assert_eq!(get(&cpu, DATA + 8) as u32, 7);
        assert_eq!(get(&cpu, DATA) as u32, 100);
        cpu.set_opmask(1, 0b110);
        step(&mut cpu, COMPRESS);
        assert_eq!(get(&cpu, DATA), 104 << 32 | 7);
        step(&mut cpu, EXPAND);
        assert_eq!([0, 1, 2, 3].map(|n| word(&cpu, 1, n)), [0, 7, 104, 0]);
    }

    #[test]
    fn masked_operands_do_not_touch_what_is_masked_off() {
        let mut cpu = ready();
        if !has_avx512(&cpu) {
            return;
        }
        cpu.state.gpr[gpr::RAX] = DATA + 0x1000 - 8;
        put(&cpu, DATA + 0x1000 - 8, 2 << 32 | 1);
        unmap(&cpu, DATA + 0x1000);
        cpu.set_opmask(1, 0b10);
        let i = Decoder::with_ip(64, MASKED_ADD, CODE, DecoderOptions::NONE).decode();
        let data = cpu.masked_operand(&i, 4).expect("only the mapped element is read");
        assert_eq!((element(&data, 0, 4), element(&data, 1, 4)), (0, 2));
        assert_eq!(cpu.masked_store(&i, &words(|_| 9), 4), Ok(()));
        assert_eq!(get(&cpu, DATA + 0x1000 - 8), 9 << 32 | 1);
        cpu.set_opmask(1, 0b100);
        assert!(cpu.masked_operand(&i, 4).is_err());
    }

    #[test]
    fn masked_moves_touch_only_their_elements() {
        let mut cpu = ready();
        cpu.state.gpr[gpr::RAX] = DATA + 0x1000 - 4;
        put(&cpu, DATA + 0x1000 - 8, 77 << 32);
        unmap(&cpu, DATA + 0x1000);
        cpu.set_vector_register(3, &words(|n| if n == 0 { 1 << 31 } else { 0 }));
        step(&mut cpu, MASK_LOAD);
        assert_eq!([0, 1, 8].map(|n| word(&cpu, 1, n)), [77, 0, 0]);
        cpu.set_vector_register(3, &words(|n| if n == 1 { 0x0080_0080 } else { 0 }));
        cpu.set_vector_register(1, &std::array::from_fn(|n| n as u8));
        cpu.state.gpr[gpr::RDI] = DATA;
        put(&cpu, DATA, 0);
        step(&mut cpu, MASKMOVDQU);
        assert_eq!(get(&cpu, DATA), 4 << 32 | 6 << 48);
    }

    /// MASKMOVQ sees physical registers whatever the top of the stack, and then resets it.
    #[test]
    fn maskmovq_uses_physical_registers() {
        let mut cpu = cpu64();
        cpu.materialize_components(1);
        let area = &mut cpu.state.vector.0;
        area[3] = 6 << 3;
        (0..8).for_each(|slot| area[32 + 16 * slot] = ((slot + 6) % 8) as u8);
        assert_eq!((cpu.mmx_register(0), cpu.mmx_register(5)), (0, 5));
        cpu.state.vector.0[32 + 16 * 2..][..8].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0]);
        cpu.state.gpr[gpr::RDI] = DATA;
        // maskmovq mm3, mm0: mm0 is slot 2.
        step(&mut cpu, &[0x0f, 0xf7, 0xd8]);
        assert_eq!(get(&cpu, DATA), 3);
        assert_eq!((cpu.mmx_register(3), cpu.state.vector.0[4], cpu.state.vector.0[3]), (3, 0xff, 0));
        assert_eq!(cpu.state.vector.0[32 + 16 * 3], 3);
    }
}
