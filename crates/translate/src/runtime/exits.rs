//! What translated code left the cache for.

use super::entry::exit;
use super::signals::HOST_FAULT;
use super::vcpu::{Next, VcpuCore};
use super::windows::HOST_FAULT_CODE;
use crate::cpu::{Exception, Stop};
use crate::frontend;
use crate::mode::{Mode, Width};
use crate::state::flag;
use crate::system::execute::retires;
use crate::system::known::Use;
use crate::system::memory::AccessMode;
use crate::system::operand::segment_index;
use iced_x86::{Decoder, Mnemonic};
use std::sync::atomic::Ordering;
use sublet_engine::Exit;

const DEBUG: u8 = 1;
const MATH_FAULT: u8 = 16;
/// Vector of #AC, as which a host may report a locked access that two cache lines hold.
const SPLIT_LOCK: u64 = 17;

impl VcpuCore {
    /// Debug traps of the instruction just run: single step and data breakpoints.
    pub(super) fn after_step(&mut self, next: Next) -> Next {
        let hits = std::mem::take(&mut self.cpu.debug_hits);
        if std::mem::take(&mut self.cpu.events.debug_shadow) {
            self.held_hits = hits;
            return next;
        }
        let trap = u64::from(self.stepping) << 14 | hits | std::mem::take(&mut self.held_hits);
        match next {
            _ if trap == 0 || self.faulted => next,
            Next::Continue | Next::Enter(_) => self.deliver_exception(Exception::debug(trap)),
            Next::Leave(exit) => {
                self.late_trap = if retires(&exit) { trap } else { 0 };
                next
            }
        }
    }

    pub(super) fn after_exit(&mut self) -> Next {
        self.faulted = false;
        if !self.unconfirmed.is_empty() && self.cpu.state.hot.exit_reason == exit::SYSTEM {
            // The instruction may be one that serialises.
            self.confirm_code();
        }
        let state = &mut *self.cpu.state;
        let hot = &mut state.hot;
        match hot.exit_reason {
            exit::LINK => {
                let number = hot.exit_argument;
                self.follow_link(number)
            }
            exit::INDIRECT => {
                self.counters.indirect += 1;
                let mode = Mode(hot.mode as u32);
                // The upper half of a narrow target may hold the mode, see `Mode::jump_tag`.
                let rip = if mode.is64() { hot.target } else { hot.target & 0xffff_ffff };
                state.rip = rip;
                if std::mem::take(&mut hot.dead_entry) != 0 {
                    self.tlb.jumps.forget(hot, mode, rip);
                }
                Next::Continue
            }
            exit::SYSTEM => {
                let number = hot.exit_argument;
                self.carry_out(number)
            }
            exit::FAULT => self.host_fault(),
            _ => match self.stopped.take() {
                Some(Stop::Exception(exception)) => self.raise(exception),
                Some(Stop::Exit(Exit::Interrupted)) | None => Next::Continue,
                Some(Stop::Exit(exit)) => Next::Leave(exit),
            },
        }
    }

    pub(super) fn raise(&mut self, exception: Exception) -> Next {
        self.faulted = true;
        if exception.vector == MATH_FAULT && !self.reports_math_errors() {
            return self.math_error_by_interrupt();
        }
        // INT1 reports what a load of SS held back together with itself.
        let held = if exception.vector == DEBUG { self.held_hits } else { 0 };
        self.deliver_exception(Exception { payload: exception.payload | held, ..exception })
    }

    /// RIP = that of the running block's page plus an offset, at the width of the mode.
    pub(super) fn set_rip_in_page(&mut self, page_offset: i64) {
        let rip = self.cpu.state.hot.rip_page.wrapping_add(page_offset as u64);
        self.cpu.state.rip = match self.mode().code() {
            Width::W64 => rip,
            Width::W32 | Width::W16 => rip & 0xffff_ffff,
        };
    }

    fn follow_link(&mut self, number: u64) -> Next {
        self.counters.links += 1;
        let link = self.cache.link(number);
        self.set_rip_in_page(link.delta);
        let alone = self.mode().single_step() || self.mode().is_alone();
        if alone || self.cpu.state.hot.permit.load(Ordering::SeqCst) == 0 {
            return Next::Continue;
        }
        let epoch = self.cache.epoch;
        let found = match self.block_at_rip() {
            Ok(found) => found,
            Err(Stop::Exception(exception)) => return self.raise(exception),
            Err(Stop::Exit(exit)) => return Next::Leave(exit),
        };
        let generation = self.tlb.generation(self.mode());
        if self.cache.epoch == epoch {
            self.cache.connect(number, found.block, generation);
        }
        Next::Enter(found.host)
    }

    /// Have compiled code carry out the instruction that ended the block.
    fn carry_out(&mut self, number: u64) -> Next {
        self.counters.system += 1;
        self.mode_stale = true;
        let instruction = self.cache.system_instruction(number);
        self.carried_out.count(instruction.mnemonic());
        self.set_rip_in_page(instruction.ip() as i64);
        if !self.cpu.posted_writes.is_empty() {
            // Device accesses stay in order.
            self.stepping = false;
            return Next::Continue;
        }
        match frontend::classify(&instruction, self.mode()) {
            frontend::Kind::Undefined => {
                let exception = self.undefined_or_too_long(&instruction);
                return self.raise(exception);
            }
            frontend::Kind::DeviceNotAvailable => return self.raise(Exception::DEVICE_NOT_AVAILABLE),
            _ => {}
        }
        if instruction.mnemonic() == Mnemonic::Pause {
            self.pause();
        }
        if super::vectors::uses_vectors(&instruction) {
            self.store_vectors();
        }
        let outcome = self.cpu.execute(&instruction);
        self.adjust_stepping(&instruction);
        match outcome {
            Ok(()) => {
                self.note_descriptors(&instruction);
                Next::Continue
            }
            Err(Stop::Exception(exception)) => self.raise(exception),
            Err(Stop::Exit(exit)) => Next::Leave(exit),
        }
    }

    /// Remember the descriptors that the instruction has loaded for the next time.
    fn note_descriptors(&mut self, instruction: &iced_x86::Instruction) {
        use crate::state::seg::{CS, DS, ES, FS, GS, SS};
        let into = instruction.op0_register();
        match instruction.mnemonic() {
            Mnemonic::Iretq if self.cpu.state.code64() => {
                self.cpu.note_descriptor(CS, Use::ReturnCode);
                self.cpu.note_descriptor(SS, Use::ReturnStack);
            }
            Mnemonic::Mov | Mnemonic::Pop if into.is_segment_register() && self.cpu.state.cpl() == 0 => {
                match segment_index(into) {
                    index @ (ES | DS) => self.cpu.note_descriptor(index, Use::Flat),
                    index @ (FS | GS) => self.cpu.note_descriptor(index, Use::Whole),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Software interrupts clear TF: no single-step trap follows in their handlers. Fast system calls go
    /// by the flags that they lead to.
    fn adjust_stepping(&mut self, instruction: &iced_x86::Instruction) {
        match instruction.mnemonic() {
            Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Rsm => self.stepping = false,
            Mnemonic::Into => self.stepping &= self.cpu.state.rflags & flag::OF == 0,
            Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => {
                self.stepping = self.cpu.state.rflags & flag::TF != 0;
            }
            _ => {}
        }
    }

    /// #UD, or #GP(0) for an instruction of more than 15 bytes.
    fn undefined_or_too_long(&mut self, instruction: &iced_x86::Instruction) -> Exception {
        if !instruction.is_invalid() || instruction.len() < frontend::MAX_INSTRUCTION_BYTES {
            return Exception::UNDEFINED;
        }
        // It would be valid with fewer prefixes.
        let mut bytes = [0; 2 * frontend::MAX_INSTRUCTION_BYTES];
        let la = self.linear_rip();
        if self.cpu.read_bytes(la, &mut bytes, AccessMode::System).is_err() {
            return Exception::UNDEFINED;
        }
        let bits = self.mode().code().bits();
        let too_long = (1..frontend::MAX_INSTRUCTION_BYTES)
            .take_while(|&skipped| is_legacy_prefix(bytes[skipped - 1]))
            .any(|skipped| {
                let rest = Decoder::new(bits, &bytes[skipped..], frontend::decoder_options()).decode();
                !rest.is_invalid() && rest.len() + skipped > frontend::MAX_INSTRUCTION_BYTES
            });
        if too_long {
            Exception::protection(0)
        } else {
            Exception::UNDEFINED
        }
    }

    fn host_fault(&mut self) -> Next {
        let (pc, vector) = (self.cpu.state.hot.fault_pc, self.cpu.state.hot.fault_vector);
        if vector == SPLIT_LOCK && (self.mode().windowed() || self.mode().kernel_windowed()) {
            // A locked access across pages: the host refuses what the guest may do.
            self.decline(pc);
            self.stopped = None;
            return Next::Continue;
        }
        if matches!(vector, HOST_FAULT | SPLIT_LOCK) {
            // Registers may hold host addresses (a string instruction's): nothing goes back to the guest.
            return Next::Leave(Exit::InternalError { code: HOST_FAULT_CODE });
        }
        let located = self.cache.locate(pc);
        let Some((_, page_offset)) = located else { return Next::Leave(Exit::InternalError { code: 3 }) };
        self.set_rip_in_page(i64::from(page_offset));
        let exception = match vector {
            13 => Exception::protection(0),
            vector => Exception::new(vector as u8),
        };
        self.raise(exception)
    }
}

fn is_legacy_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}
