//! The fallback interpreter: one instruction that the translator does not emit as host code.

use crate::cpu::{Cpu, Exception, Outcome, Stop};
use crate::state::gpr;
use iced_x86::{Code, Instruction, Mnemonic};
use sublet_engine::Exit;

/// Where RIP goes when an instruction has been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// To the next instruction.
    Next,
    /// The instruction has set RIP itself (or restarts).
    Set,
}

/// Result of one instruction's function.
pub type Step = Outcome<Flow>;

/// Shorthand for functions that always go on to the next instruction.
pub(crate) fn next(outcome: Outcome) -> Step {
    outcome.map(|()| Flow::Next)
}

/// Whether the instruction has retired when `run` leaves with this exit.
pub(crate) fn retires(exit: &Exit) -> bool {
    !matches!(exit, Exit::PioIn { .. } | Exit::MmioRead { .. })
}

impl Cpu {
    /// Carry out one instruction. On entry RIP is its address; on success RIP and all state are
    /// those after it (a repeated string instruction with iterations left stays at its address,
    /// so that interrupts are taken in between).
    ///
    /// # Errors
    /// [`Stop::Exception`] with the state before the instruction (string instructions, gathers and
    /// scatters: with the elements before the faulting one done); [`Stop::Exit`] as described there.
    pub fn execute(&mut self, instruction: &Instruction) -> Outcome {
        let next_rip = self.next_rip(instruction);
        self.bus_reads.restart();
        let step = self.dispatch(instruction, next_rip);
        match &step {
            // It starts over, and makes its stores again.
            Err(Stop::Exit(exit)) if !retires(exit) => self.posted_writes.clear(),
            _ => self.bus_reads.forget(),
        }
        match step {
            Ok(Flow::Next) => {
                self.state.rip = next_rip;
                Ok(())
            }
            Ok(Flow::Set) => Ok(()),
            Err(Stop::Exit(exit)) => {
                if retires(&exit) && !self.restarts_after_exit(instruction) {
                    self.state.rip = next_rip;
                }
                Err(Stop::Exit(exit))
            }
            Err(stop) => Err(stop),
        }
    }

    /// Instructions that keep their own progress, and set RIP themselves when an exit finished them.
    fn restarts_after_exit(&self, instruction: &Instruction) -> bool {
        instruction.is_string_instruction() || instruction.is_vsib()
    }

    fn dispatch(&mut self, i: &Instruction, next_rip: u64) -> Step {
        if i.is_string_instruction() {
            return self.string_instruction(i, next_rip);
        }
        match self.dispatch_common(i, next_rip) {
            Some(step) => step,
            None => match self.dispatch_state(i) {
                Some(step) => step,
                None => match self.dispatch_legacy(i, next_rip) {
                    Some(step) => step,
                    None => self.dispatch_vector(i).unwrap_or(Err(Exception::UNDEFINED.into())),
                },
            },
        }
    }

    /// Flags, time, control transfers, port I/O: what runs often.
    fn dispatch_common(&mut self, i: &Instruction, next_rip: u64) -> Option<Step> {
        Some(match i.mnemonic() {
            Mnemonic::Cli => next(self.cli()),
            Mnemonic::Sti => next(self.sti()),
            Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => next(self.pushf(i)),
            Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => next(self.popf(i)),
            Mnemonic::Clac => next(self.set_ac(false)),
            Mnemonic::Stac => next(self.set_ac(true)),
            Mnemonic::Cld | Mnemonic::Std | Mnemonic::Clc | Mnemonic::Stc | Mnemonic::Cmc => {
                next(self.change_flag(i.mnemonic()))
            }
            Mnemonic::Lahf | Mnemonic::Sahf => next(self.flags_and_ah(i.mnemonic())),
            Mnemonic::Hlt => next(self.halt()),
            Mnemonic::Pause | Mnemonic::Nop | Mnemonic::Fnop | Mnemonic::Endbr64 | Mnemonic::Endbr32 => {
                Ok(Flow::Next)
            }
            Mnemonic::Syscall => self.transfer(next_rip, |cpu, next| cpu.syscall(next)),
            Mnemonic::Sysret => self.transfer(next_rip, |cpu, _| cpu.sysret(false)),
            Mnemonic::Sysretq => self.transfer(next_rip, |cpu, _| cpu.sysret(true)),
            Mnemonic::Sysenter => self.transfer(next_rip, |cpu, _| cpu.sysenter()),
            Mnemonic::Sysexit => self.transfer(next_rip, |cpu, _| cpu.sysexit(false)),
            Mnemonic::Sysexitq => self.transfer(next_rip, |cpu, _| cpu.sysexit(true)),
            Mnemonic::Iret => self.transfer(next_rip, |cpu, _| cpu.iret(2)),
            Mnemonic::Iretd => self.transfer(next_rip, |cpu, _| cpu.iret(4)),
            Mnemonic::Iretq => self.transfer(next_rip, |cpu, _| cpu.iret(8)),
            Mnemonic::Int => {
                let vector = i.immediate8();
                self.transfer(next_rip, move |cpu, next| cpu.int_n(vector, next))
            }
            Mnemonic::Int3 => self.transfer(next_rip, |cpu, next| cpu.software_interrupt(3, next)),
            Mnemonic::Int1 => self.icebp(next_rip),
            Mnemonic::Swapgs => next(self.swapgs()),
            Mnemonic::Rdtsc => next(self.rdtsc()),
            Mnemonic::Rdtscp => next(self.rdtscp()),
            Mnemonic::Rdpid => next(self.rdpid(i)),
            Mnemonic::Rdpmc => next(self.rdpmc()),
            Mnemonic::In => next(self.port_in(i)),
            Mnemonic::Out => next(self.port_out(i)),
            Mnemonic::Cpuid => next(self.cpuid_instruction()),
            Mnemonic::Rdmsr => next(self.rdmsr()),
            Mnemonic::Wrmsr => next(self.wrmsr()),
            Mnemonic::Vmcall | Mnemonic::Vmmcall => self.hypercall(),
            Mnemonic::Rsm => self.transfer(next_rip, |cpu, _| cpu.rsm()),
            _ => return None,
        })
    }

    /// Control, debug and descriptor-table registers, caches, TLBs, extended state.
    fn dispatch_state(&mut self, i: &Instruction) -> Option<Step> {
        Some(match i.mnemonic() {
            Mnemonic::Mov => return self.mov_special(i),
            Mnemonic::Clts => next(self.clts()),
            Mnemonic::Lmsw => next(self.lmsw(i)),
            Mnemonic::Smsw => next(self.smsw(i)),
            Mnemonic::Invlpg => next(self.invlpg(i)),
            Mnemonic::Invpcid => next(self.invpcid(i)),
            Mnemonic::Invd | Mnemonic::Wbinvd => next(self.require_cpl0().map_err(Stop::from)),
            Mnemonic::Wbnoinvd => next(self.require_cpl0().map_err(Stop::from)),
            Mnemonic::Xgetbv => next(self.xgetbv()),
            Mnemonic::Xsetbv => next(self.xsetbv()),
            Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => next(self.read_segment_base(i)),
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => next(self.write_segment_base(i)),
            Mnemonic::Lgdt | Mnemonic::Lidt => next(self.load_table(i)),
            Mnemonic::Sgdt | Mnemonic::Sidt => next(self.store_table(i)),
            Mnemonic::Sldt | Mnemonic::Str => next(self.store_system_selector(i)),
            Mnemonic::Lldt | Mnemonic::Ltr => next(self.load_system_segment(i)),
            Mnemonic::Lar | Mnemonic::Lsl => next(self.query_descriptor(i)),
            Mnemonic::Verr | Mnemonic::Verw => next(self.verify(i)),
            Mnemonic::Fxsave | Mnemonic::Fxsave64 => next(self.fxsave(i)),
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => next(self.fxrstor(i)),
            Mnemonic::Xsave | Mnemonic::Xsave64 | Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => {
                next(self.xsave(i))
            }
            Mnemonic::Xsavec | Mnemonic::Xsavec64 | Mnemonic::Xsaves | Mnemonic::Xsaves64 => {
                next(self.xsave(i))
            }
            Mnemonic::Xrstor | Mnemonic::Xrstor64 | Mnemonic::Xrstors | Mnemonic::Xrstors64 => {
                next(self.xrstor(i))
            }
            Mnemonic::Fnstenv | Mnemonic::Fstenv | Mnemonic::Fnsave | Mnemonic::Fsave => {
                next(self.store_x87(i))
            }
            Mnemonic::Fninit => next(self.initialise_x87()),
            Mnemonic::Fnclex => next(self.clear_x87_exceptions()),
            Mnemonic::Fldenv | Mnemonic::Frstor => next(self.load_x87(i)),
            _ => return None,
        })
    }

    /// MOV with a control, debug or segment register; `None` for any other MOV.
    fn mov_special(&mut self, i: &Instruction) -> Option<Step> {
        Some(match i.code() {
            Code::Mov_r32_cr | Code::Mov_r64_cr => next(self.mov_from_cr(i)),
            Code::Mov_cr_r32 | Code::Mov_cr_r64 => next(self.mov_to_cr(i)),
            Code::Mov_r32_dr | Code::Mov_r64_dr => next(self.mov_from_dr(i)),
            Code::Mov_dr_r32 | Code::Mov_dr_r64 => next(self.mov_to_dr(i)),
            Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
                next(self.mov_from_segment(i))
            }
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
                next(self.mov_to_segment(i))
            }
            _ => return None,
        })
    }

    /// An instruction that sets RIP itself.
    fn transfer(&mut self, next_rip: u64, run: impl FnOnce(&mut Self, u64) -> Outcome) -> Step {
        run(self, next_rip).map(|()| Flow::Set)
    }

    /// INT1: a debug trap, without the gate's privilege check of INT n.
    fn icebp(&mut self, next_rip: u64) -> Step {
        self.state.rip = next_rip;
        Err(Exception::debug(0).into())
    }

    /// VMCALL and VMMCALL: no hypercall interface is offered. At CPL 0 the machine outside hears
    /// of it, and RAX is all ones, "no such call", in every interface that defines one.
    fn hypercall(&mut self) -> Step {
        if self.state.cpl() != 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let gpr = &mut self.state.gpr;
        let args = [gpr[gpr::RBX], gpr[gpr::RCX], gpr[gpr::RDX], gpr[gpr::RSI]];
        let number = std::mem::replace(&mut gpr[gpr::RAX], u64::MAX);
        Err(Stop::Exit(Exit::Hypercall { number, args }))
    }
}
