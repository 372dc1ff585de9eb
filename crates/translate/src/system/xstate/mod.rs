//! The FXSAVE and XSAVE families, and the x87 environment.
//!
//! The guest's registers are in `state.vector`, a standard-format XSAVE area of the host's layout.
//! Images in guest memory are built from it byte by byte. x87 instruction and data pointers would
//! be addresses of the host: all images hold zeros there (as processors without deferred x87
//! exceptions pending do, AMD APM vol. 2 §11.4.4 "FXSAVE and FXRSTOR").
//!
//! Rules: Intel SDM vol. 1 chapter 13 "Managing State Using the XSAVE Feature Set".

use crate::cpu::{Cpu, Exception, Outcome};
use crate::mmu::walk::Kind;
use crate::system::control::cr0;
use crate::system::memory::AccessMode;
use crate::system::operand::MemoryOperand;
use iced_x86::{Instruction, Mnemonic};
use layout::{
    get_u32, get_u64, host_component, host_mxcsr_mask, Format, Image, AVX, COMPACTED, EXTENDED_COMPONENTS,
    HEADER, HEADER_BYTES, LEGACY_BYTES, MXCSR, MXCSR_MASK, MXCSR_RESET, SSE, X87, X87_CONTROL, X87_POINTERS,
    X87_REGISTERS, XMM_REGISTERS,
};
pub(crate) use layout::{in_use_of, saved_runs, ImagePlace, EXTENDED, X87_HIDDEN};
use std::ops::Range;

mod layout;
mod registers;
mod x87;

impl Cpu {
    /// Bytes of a standard-format image with these components.
    pub fn standard_size(&self, components: u64) -> u32 {
        Format::Standard.size(components) as u32
    }

    /// Bytes of a compacted image with these components.
    pub fn compacted_size(&self, components: u64) -> u32 {
        Format::Compacted(components).size(components) as u32
    }

    /// Bytes of a component's registers that the current mode reaches: outside 64-bit code
    /// registers 8 and up do not exist.
    fn reachable_bytes(&self, number: u32, size: usize) -> usize {
        match number {
            _ if self.state.code64() => size,
            1 | 2 => size.min(128),
            6 => size.min(256),
            7 => 0,
            _ => size,
        }
    }

    /// #NM with CR0.TS (and CR0.EM, for the FXSAVE and x87 forms).
    fn require_fpu(&self, bits: u64) -> Result<(), Exception> {
        match self.state.cr0 & bits != 0 {
            true => Err(Exception::DEVICE_NOT_AVAILABLE),
            false => Ok(()),
        }
    }

    /// Linear address of an image of `size` bytes; #GP(0) unless aligned.
    fn image_address(
        &self,
        at: MemoryOperand,
        size: usize,
        align: u64,
        kind: Kind,
    ) -> Result<u64, Exception> {
        let la = self.operand_linear(at, size as u64, kind)?;
        match la % align {
            0 => Ok(la),
            _ => Err(Exception::protection(0)),
        }
    }

    /// Linear address of FXSAVE's image: #AC(0) unless aligned to 4 bytes, where a program has asked for it, and
    /// #GP(0) unless to 16.
    fn legacy_image_address(&self, at: MemoryOperand, kind: Kind) -> Result<u64, Exception> {
        self.check_image_alignment(self.operand_linear(at, LEGACY_BYTES as u64, kind)?, 4)?;
        self.image_address(at, LEGACY_BYTES, 16, kind)
    }

    /// #AC(0) for an image that is not aligned to `words` bytes, where a program has asked for it.
    fn check_image_alignment(&self, la: u64, words: u64) -> Result<(), Exception> {
        match la % words != 0 && self.alignment_checked() {
            true => Err(Exception::with_code(17, 0)),
            false => Ok(()),
        }
    }

    fn write_image(&mut self, la: u64, image: &Image) -> Outcome {
        for run in &image.runs {
            self.write_bytes(
                la.wrapping_add(run.start as u64),
                &image.bytes.0[run.clone()],
                AccessMode::Current,
            )?;
        }
        Ok(())
    }

    pub(crate) fn fxsave(&mut self, i: &Instruction) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        let la = self.legacy_image_address(self.memory_operand(i), Kind::Write)?;
        self.materialize_components(X87 | SSE);
        let mut image = Image::new();
        self.put_x87(&mut image);
        self.put_mxcsr(&mut image);
        image.put(X87_REGISTERS.start, &self.state.vector.0[X87_REGISTERS]);
        self.put_xmm(&mut image);
        self.write_image(la, &image)
    }

    fn put_x87(&self, image: &mut Image) {
        image.put(X87_CONTROL.start, &self.state.vector.0[0..6]);
        image.put(6, &[0; 18]);
    }

    fn put_mxcsr(&self, image: &mut Image) {
        image.put(MXCSR.start, &self.mxcsr().to_le_bytes());
        image.put(MXCSR_MASK.start, &host_mxcsr_mask().to_le_bytes());
    }

    fn put_xmm(&self, image: &mut Image) {
        let size = self.reachable_bytes(1, 256);
        image.put(XMM_REGISTERS, &self.state.vector.0[XMM_REGISTERS..XMM_REGISTERS + size]);
    }

    pub(crate) fn fxrstor(&mut self, i: &Instruction) -> Outcome {
        self.require_fpu(cr0::TS | cr0::EM)?;
        let la = self.legacy_image_address(self.memory_operand(i), Kind::Read)?;
        let mut image = [0; LEGACY_BYTES];
        self.read_bytes(la, &mut image, AccessMode::Current)?;
        self.check_mxcsr(get_u32(&image, MXCSR.start))?;
        self.materialize_components(X87 | SSE);
        self.take_x87(&image);
        self.take_mxcsr(get_u32(&image, MXCSR.start));
        self.take_component(1, &image[XMM_REGISTERS..XMM_REGISTERS + 256]);
        Ok(())
    }

    fn check_mxcsr(&self, value: u32) -> Result<(), Exception> {
        match value & !host_mxcsr_mask() {
            0 => Ok(()),
            _ => Err(Exception::protection(0)),
        }
    }

    fn take_mxcsr(&mut self, value: u32) {
        self.state.vector.0[MXCSR].copy_from_slice(&value.to_le_bytes());
    }

    /// Load the x87 component; pointers to instruction and data stay zero.
    fn take_x87(&mut self, image: &[u8]) {
        let area = &mut self.state.vector.0;
        area[0..6].copy_from_slice(&image[0..6]);
        area[6..X87_POINTERS.end].fill(0);
        area[X87_REGISTERS].copy_from_slice(&image[X87_REGISTERS]);
    }

    /// Load the reachable registers of component 1 (XMM) or one of the extended region.
    fn take_component(&mut self, number: u32, data: &[u8]) {
        let offset = match number {
            1 => XMM_REGISTERS,
            _ => match host_component(number) {
                Some(component) => component.offset,
                None => return,
            },
        };
        let size = self.reachable_bytes(number, data.len());
        self.state.vector.0[offset..offset + size].copy_from_slice(&data[..size]);
    }

    /// XSAVE, XSAVEOPT, XSAVEC and XSAVES (Intel SDM vol. 1 §13.7 to §13.11).
    pub(crate) fn xsave(&mut self, i: &Instruction) -> Outcome {
        let mnemonic = i.mnemonic();
        let supervisor = matches!(mnemonic, Mnemonic::Xsaves | Mnemonic::Xsaves64);
        let compacted = supervisor || matches!(mnemonic, Mnemonic::Xsavec | Mnemonic::Xsavec64);
        let standard = matches!(mnemonic, Mnemonic::Xsave | Mnemonic::Xsave64);
        self.check_xsave(supervisor)?;
        let enabled = self.state.xcr0 | if supervisor { self.state.xss } else { 0 };
        let wanted = self.edx_eax() & enabled;
        let format = if compacted { Format::Compacted(wanted) } else { Format::Standard };
        let la = self.image_address(self.memory_operand(i), format.size(wanted), 64, Kind::Write)?;
        let mut in_use = self.components_in_use() & wanted;
        if compacted && wanted & SSE != 0 && self.mxcsr() != MXCSR_RESET {
            in_use |= SSE;
        }
        let saved = if standard { wanted } else { in_use };
        self.materialize_components(saved);
        let old =
            if compacted { 0 } else { self.read_u64(la.wrapping_add(HEADER as u64), AccessMode::Current)? };
        let mut image = Image::new();
        let with_mxcsr = if compacted { saved & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
        self.put_legacy(&mut image, saved, with_mxcsr);
        image.put(HEADER, &(old & !wanted | in_use).to_le_bytes());
        if compacted {
            image.put(HEADER + 8, &(wanted | COMPACTED).to_le_bytes());
        }
        self.put_extended(&mut image, format, saved);
        self.write_image(la, &image)
    }

    /// Where the image of XSAVEC, XSAVES, XRSTOR or XRSTORS in 64-bit code is. `None` if the instruction faults
    /// before it accesses memory, or if the host's form of it would do something else.
    pub(crate) fn compacted_image(&self, i: &Instruction) -> Option<ImagePlace> {
        let supervisor = matches!(i.mnemonic(), Mnemonic::Xsaves64 | Mnemonic::Xrstors64);
        self.check_xsave(supervisor).ok()?;
        let components = self.edx_eax() & self.state.xcr0;
        let size = Format::Compacted(components).size(components);
        let la = self.image_address(self.memory_operand(i), size, 64, Kind::Read).ok()?;
        let plain = self.state.code64() && self.state.xss == 0 && components != 0;
        plain.then_some(ImagePlace { la, components, size })
    }

    /// Bytes of the image whose first [`EXTENDED`] these are. `None` if it is not in the compacted format, or if
    /// loading it faults.
    pub(crate) fn compacted_image_size(&self, image: &[u8], place: &ImagePlace) -> Option<usize> {
        let (format, present) = check_header(image, self.state.xcr0, true).ok()?;
        if present & SSE != 0 {
            self.check_mxcsr(get_u32(image, MXCSR.start)).ok()?;
        }
        Some(format.size(place.components & present))
    }

    fn check_xsave(&self, supervisor: bool) -> Result<(), Exception> {
        self.require_osxsave()?;
        if supervisor {
            self.require_cpl0()?;
        }
        self.require_fpu(cr0::TS)
    }

    fn put_legacy(&self, image: &mut Image, saved: u64, with_mxcsr: bool) {
        if saved & X87 != 0 {
            self.put_x87(image);
        }
        if with_mxcsr {
            self.put_mxcsr(image);
        }
        if saved & X87 != 0 {
            image.put(X87_REGISTERS.start, &self.state.vector.0[X87_REGISTERS]);
        }
        if saved & SSE != 0 {
            self.put_xmm(image);
        }
    }

    fn put_extended(&self, image: &mut Image, format: Format, saved: u64) {
        for number in EXTENDED_COMPONENTS.into_iter().filter(|n| saved >> n & 1 != 0) {
            if let (Some(at), Some(component)) = (format.offset(number), host_component(number)) {
                let size = self.reachable_bytes(number, component.size);
                image.put(at, &self.state.vector.0[component.offset..component.offset + size]);
            }
        }
    }

    /// XRSTOR and XRSTORS (Intel SDM vol. 1 §13.8, §13.12). All of the image is read and checked
    /// before any register changes.
    pub(crate) fn xrstor(&mut self, i: &Instruction) -> Outcome {
        let supervisor = matches!(i.mnemonic(), Mnemonic::Xrstors | Mnemonic::Xrstors64);
        self.check_xsave(supervisor)?;
        let enabled = self.state.xcr0 | if supervisor { self.state.xss } else { 0 };
        let wanted = self.edx_eax() & enabled;
        let at = self.memory_operand(i);
        let la = self.image_address(at, EXTENDED, 64, Kind::Read)?;
        let mut image = Image::new();
        self.read_bytes(la, &mut image.bytes.0[..EXTENDED], AccessMode::Current)?;
        let (format, present) = check_header(&image.bytes.0, enabled, supervisor)?;
        let size = format.size(wanted & present);
        if size > EXTENDED {
            self.operand_linear(at, size as u64, Kind::Read)?;
            let rest = &mut image.bytes.0[EXTENDED..size];
            self.read_bytes(la.wrapping_add(EXTENDED as u64), rest, AccessMode::Current)?;
        }
        self.restore_mxcsr(&image.bytes.0, format, wanted, present)?;
        self.restore_components(&image.bytes.0, format, wanted, present);
        Ok(())
    }

    /// The standard format loads MXCSR with SSE or AVX, whatever XSTATE_BV says; the compacted
    /// one treats it as part of the SSE component.
    fn restore_mxcsr(
        &mut self,
        image: &[u8],
        format: Format,
        wanted: u64,
        present: u64,
    ) -> Result<(), Exception> {
        let value = get_u32(image, MXCSR.start);
        let (load, reset) = match format {
            Format::Standard => (wanted & (SSE | AVX) != 0, false),
            Format::Compacted(_) => (wanted & present & SSE != 0, wanted & !present & SSE != 0),
        };
        if load {
            self.check_mxcsr(value)?;
            self.take_mxcsr(value);
        } else if reset {
            self.take_mxcsr(MXCSR_RESET);
        }
        Ok(())
    }

    fn restore_components(&mut self, image: &[u8], format: Format, wanted: u64, present: u64) {
        self.materialize_components(wanted);
        if wanted & X87 != 0 {
            match present & X87 != 0 {
                true => self.take_x87(image),
                false => self.reset_component(0),
            }
        }
        for number in [1, 2, 5, 6, 7].into_iter().filter(|n| wanted >> n & 1 != 0) {
            let size = if number == 1 { 256 } else { host_component(number).map_or(0, |c| c.size) };
            let offset = if number == 1 { Some(XMM_REGISTERS) } else { format.offset(number) };
            match offset.filter(|_| present >> number & 1 != 0) {
                Some(at) => self.take_component(number, &image[at..at + size]),
                None => self.take_component(number, &[0; 1024 + 512][..size.min(1536)]),
            }
        }
        self.mark_initial(wanted & !present);
    }

    /// Components set to their initial configuration are not in use; outside 64-bit code the
    /// upper registers of a component may still be.
    fn mark_initial(&mut self, components: u64) {
        let whole = if self.state.code64() { components } else { components & X87 };
        self.set_in_use(self.components_in_use() & !whole);
    }
}

/// Check the header of an image to be restored; its format and XSTATE_BV.
fn check_header(image: &[u8], enabled: u64, supervisor: bool) -> Result<(Format, u64), Exception> {
    let present = get_u64(image, HEADER);
    let components = get_u64(image, HEADER + 8);
    let zeros = |range: Range<usize>| image[range].iter().all(|byte| *byte == 0);
    let compacted = components & COMPACTED != 0;
    let listed = components & !COMPACTED;
    let good = match compacted {
        true => listed & !enabled == 0 && present & !listed == 0 && zeros(HEADER + 16..HEADER + HEADER_BYTES),
        false => !supervisor && present & !enabled == 0 && zeros(HEADER + 8..HEADER + 24),
    };
    match (good, compacted) {
        (false, _) => Err(Exception::protection(0)),
        (true, true) => Ok((Format::Compacted(listed), present)),
        (true, false) => Ok((Format::Standard, present)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Stop;
    use crate::state::gpr;
    use crate::system::control::cr4;
    use crate::system::fixture::{cpu64, get, put, run, step, DATA};

    const FXSAVE: &[u8] = &[0x0f, 0xae, 0x00];
    const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x08];
    const XSAVE: &[u8] = &[0x0f, 0xae, 0x20];
    const XRSTOR: &[u8] = &[0x0f, 0xae, 0x28];
    const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x20];
    const XSAVES: &[u8] = &[0x0f, 0xc7, 0x28];
    const XRSTORS: &[u8] = &[0x0f, 0xc7, 0x18];
    const FNSTENV: &[u8] = &[0xd9, 0x30];
    const FNSAVE: &[u8] = &[0xdd, 0x30];
    const FRSTOR: &[u8] = &[0xdd, 0x20];
    const GP: Result<(), Stop> = Err(Stop::Exception(Exception::protection(0)));

    /// A vCPU with a value in every register and the image's address in RAX.
    fn filled() -> Cpu {
        let mut cpu = cpu64();
        let all = cpu.state.xcr0;
        cpu.materialize_components(all);
        for number in 0..32 {
            cpu.set_vector_register(number, &std::array::from_fn(|n| (n + 3 * number) as u8 | 1));
        }
        for number in 0..8 {
            cpu.set_opmask(number, 0x1111 * number as u64);
        }
        let area = &mut cpu.state.vector.0;
        area[0..5].copy_from_slice(&[0x7f, 3, 0, 0x28, 0x0f]);
        // What the host may have left in the pointers.
        area[X87_POINTERS].fill(0xee);
        (0..8).for_each(|n| area[32 + 16 * n..42 + 16 * n].fill(n as u8 + 1));
        cpu.take_mxcsr(0x1fa0);
        cpu.state.gpr[gpr::RAX] = DATA;
        cpu
    }

    /// Run an instruction with a feature mask in EDX:EAX; its operand moves from [RAX] to [RBX].
    fn with_mask(cpu: &mut Cpu, mask: u64, code: &[u8]) -> Outcome {
        let mut patched = code.to_vec();
        if let Some(last) = patched.last_mut() {
            *last |= 3;
        }
        cpu.state.gpr[gpr::RBX] = DATA;
        cpu.set_edx_eax(mask);
        run(cpu, &patched)
    }

    fn registers(cpu: &Cpu) -> Vec<Vec<u8>> {
        let mut all: Vec<Vec<u8>> = (0..32).map(|n| cpu.vector_register(n).to_vec()).collect();
        all.extend((0..8).map(|n| cpu.opmask(n).to_le_bytes().to_vec()));
        all.push(cpu.state.vector.0[0..5].to_vec());
        all.push(cpu.state.vector.0[X87_REGISTERS].to_vec());
        all.push(cpu.mxcsr().to_le_bytes().to_vec());
        all
    }

    fn clear(cpu: &mut Cpu) {
        (0..8).for_each(|n| cpu.reset_component(n));
        cpu.take_mxcsr(MXCSR_RESET);
        cpu.set_in_use(0);
    }

    #[test]
    fn every_format_round_trips() {
        for (save, restore) in [(XSAVE, XRSTOR), (XSAVEC, XRSTOR), (XSAVES, XRSTORS)] {
            let mut cpu = filled();
            let before = registers(&cpu);
            assert_eq!(with_mask(&mut cpu, u64::MAX, save), Ok(()));
            clear(&mut cpu);
            assert_eq!(with_mask(&mut cpu, u64::MAX, restore), Ok(()));
            assert_eq!(registers(&cpu), before);
            assert_eq!(get(&cpu, DATA + 8), 0, "no host address in FIP");
        }
    }

    #[test]
    fn fxsave_round_trips_and_wants_alignment() {
        let mut cpu = filled();
        step(&mut cpu, FXSAVE);
        assert_eq!((get(&cpu, DATA + 8), get(&cpu, DATA + 16)), (0, 0));
        let xmm5 = cpu.vector_register(5);
        clear(&mut cpu);
        step(&mut cpu, FXRSTOR);
        assert_eq!(cpu.vector_register(5)[..16], xmm5[..16]);
        assert_eq!(cpu.mxcsr(), 0x1fa0);
        cpu.state.gpr[gpr::RAX] = DATA + 8;
        assert_eq!(run(&mut cpu, FXSAVE), GP);
    }

    /// Intel SDM vol. 1 §13.7: components not asked for keep their bit and bytes.
    #[test]
    fn xsave_honours_the_mask() {
        let mut cpu = filled();
        put(&cpu, DATA + 512, 0xf0);
        put(&cpu, DATA + 160, 0xabcd);
        assert_eq!(with_mask(&mut cpu, X87 | AVX, XSAVE), Ok(()));
        assert_eq!(get(&cpu, DATA + 512), 0xf0 | X87 | AVX);
        assert_eq!(get(&cpu, DATA + 160), 0xabcd);
        assert_eq!(get(&cpu, DATA + 24) as u32, 0x1fa0);
    }

    /// Intel SDM vol. 1 §13.10: XSAVEC writes only what is in use, and says what has room.
    #[test]
    fn xsavec_skips_initial_components() {
        let mut cpu = filled();
        cpu.set_in_use(X87);
        cpu.take_mxcsr(MXCSR_RESET);
        assert_eq!(with_mask(&mut cpu, 7, XSAVEC), Ok(()));
        assert_eq!(get(&cpu, DATA + 512), X87);
        assert_eq!(get(&cpu, DATA + 520), 7 | COMPACTED);
    }

    /// Intel SDM vol. 1 §13.8.1: what XRSTOR refuses.
    #[test]
    fn xrstor_checks_the_header_before_loading() {
        let mut cpu = filled();
        assert_eq!(with_mask(&mut cpu, u64::MAX, XSAVE), Ok(()));
        let before = registers(&cpu);
        let checks = [(512, 1 << 62), (520, 1), (528, 1), (520, 1 << 9 | COMPACTED), (24, 0xffff_ffff)];
        for (offset, bad) in checks {
            let good = get(&cpu, DATA + offset);
            put(&cpu, DATA + offset, bad);
            assert_eq!(with_mask(&mut cpu, u64::MAX, XRSTOR), GP, "offset {offset}");
            put(&cpu, DATA + offset, good);
        }
        assert_eq!(with_mask(&mut cpu, u64::MAX, XRSTORS), GP);
        assert_eq!(registers(&cpu), before);
    }

    #[test]
    fn xrstor_resets_what_the_image_lacks() {
        let mut cpu = filled();
        put(&cpu, DATA + 24, u64::from(MXCSR_RESET));
        assert_eq!(with_mask(&mut cpu, AVX | SSE, XRSTOR), Ok(()));
        assert_eq!(cpu.components_in_use() & (AVX | SSE), 0);
        assert_ne!(cpu.components_in_use() & X87, 0);
        cpu.materialize_vectors();
        assert_eq!(cpu.vector_register(3)[..32], [0; 32]);
    }

    #[test]
    fn ts_traps_and_osxsave_is_needed() {
        let mut cpu = filled();
        cpu.state.cr0 |= cr0::TS;
        assert_eq!(run(&mut cpu, FXSAVE), Err(Exception::DEVICE_NOT_AVAILABLE.into()));
        cpu.state.cr4 &= !cr4::OSXSAVE;
        assert_eq!(run(&mut cpu, XSAVE), Err(Exception::UNDEFINED.into()));
    }

    /// Intel SDM vol. 1 §8.1.10, figure 8-9: 32-bit protected-mode environment.
    #[test]
    fn fnstenv_expands_tags_and_masks_exceptions() {
        let mut cpu = filled();
        // Top of stack 5, physical registers 0 to 3 in use: zero, then special (unnormal).
        let area = &mut cpu.state.vector.0;
        area[0] = 0x40;
        area[32 + 16 * 3..32 + 16 * 3 + 10].fill(0);
        step(&mut cpu, FNSTENV);
        assert_eq!(get(&cpu, DATA), 0xffff_2800_ffff_0340);
        assert_eq!(get(&cpu, DATA + 8), 0xffff_ffa9, "tags, then a FIP of zero");
        assert_eq!(cpu.state.vector.0[0], 0x7f);
    }

    #[test]
    fn fnsave_and_frstor_round_trip() {
        let mut cpu = filled();
        let before = registers(&cpu);
        step(&mut cpu, FNSAVE);
        assert_eq!(cpu.state.vector.0[4], 0);
        step(&mut cpu, FRSTOR);
        let x87 = |all: &[Vec<u8>]| all[40].clone();
        assert_eq!(x87(&registers(&cpu)), x87(&before));
        assert_eq!(cpu.state.vector.0[32..42], [1; 10]);
    }
}
