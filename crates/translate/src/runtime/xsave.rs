//! XSAVEC, XSAVES and their reverse by the host's own instructions: what a kernel does at each switch between
//! programs.
//!
//! The image goes through an area of the vCPU's: the host would write its own addresses into the x87 pointers,
//! and would fault on an image that another vCPU changes while it is loaded. Whatever is not the usual case
//! (an image outside RAM, in the standard format, of some components only) is the compiled form's in
//! `system::xstate`, whose results are the same.

use super::entry;
use super::vcpu::VcpuCore;
use crate::cpu::Stop;
use crate::mmu::walk::Kind;
use crate::system::memory::AccessMode;
use crate::system::xstate::{in_use_of, saved_runs, ImagePlace, EXTENDED, X87_HIDDEN};
use iced_x86::{Instruction, Mnemonic};

/// The most pages an image lies in.
const PAGES: usize = 2;

impl VcpuCore {
    /// Carry the instruction out, if it is one of these in the usual case; otherwise nothing has happened.
    pub(super) fn host_xsave(&mut self, instruction: &Instruction) -> Option<Result<(), Stop>> {
        if self.vectors_in_area || !std::is_x86_feature_detected!("xsavec") {
            return None;
        }
        let done = match instruction.mnemonic() {
            Mnemonic::Xsavec64 | Mnemonic::Xsaves64 => self.save_compacted(instruction)?,
            Mnemonic::Xrstor64 | Mnemonic::Xrstors64 => self.restore_compacted(instruction)?,
            _ => return None,
        };
        Some(done.map(|()| self.cpu.state.rip = self.cpu.next_rip(instruction)))
    }

    fn save_compacted(&mut self, instruction: &Instruction) -> Option<Result<(), Stop>> {
        let place = self.cpu.compacted_image(instruction)?;
        let pages = match self.image_pages(&place, Kind::Write)? {
            Ok(pages) => pages,
            Err(stop) => return Some(Err(stop)),
        };
        let area = &mut self.image.0;
        // SAFETY: the state's vector arrays are up to date, as everywhere in calls from translated code; the area
        // is aligned and of 4 KiB, and `components` within what the host enables.
        unsafe { entry::save_compacted(self.cpu.state.as_mut_ptr(), area.as_mut_ptr(), place.components) };
        area[X87_HIDDEN].fill(0);
        for run in saved_runs(in_use_of(area), place.components) {
            store_run(&self.cpu.memory, &pages, place.la & 0xfff, &area[run.clone()], run.start as u64);
        }
        Some(Ok(()))
    }

    fn restore_compacted(&mut self, instruction: &Instruction) -> Option<Result<(), Stop>> {
        let place = self.cpu.compacted_image(instruction)?;
        if place.components != self.xcr0_host {
            return None;
        }
        let header = ImagePlace { size: EXTENDED, ..place };
        if let Err(stop) = self.fetch_image(&header, 0)? {
            return Some(Err(stop));
        }
        let size = self.cpu.compacted_image_size(&self.image.0, &place)?;
        if size > EXTENDED {
            if let Err(stop) = self.fetch_image(&ImagePlace { size, ..place }, EXTENDED)? {
                return Some(Err(stop));
            }
        }
        self.image.0[X87_HIDDEN].fill(0);
        // SAFETY: as in `save_compacted`; header and MXCSR have just been checked, in a copy of our own.
        unsafe { entry::load_x87(self.cpu.state.as_mut_ptr(), self.image.0.as_ptr(), place.components) };
        Some(Ok(()))
    }

    /// Read the image from offset `from` on.
    fn fetch_image(&mut self, place: &ImagePlace, from: usize) -> Option<Result<(), Stop>> {
        let pages = match self.image_pages(place, Kind::Read)? {
            Ok(pages) => pages,
            Err(stop) => return Some(Err(stop)),
        };
        let mut at = from;
        while at < place.size {
            let offset = (place.la & 0xfff) as usize + at;
            let size = (place.size - at).min(4096 - offset % 4096);
            let gpa = pages[offset / 4096] + (offset % 4096) as u64;
            self.cpu.memory.read(gpa, &mut self.image.0[at..at + size]).ok()?;
            at += size;
        }
        Some(Ok(()))
    }

    /// The guest-physical addresses of the pages of an image. `None` unless all are RAM.
    fn image_pages(&mut self, place: &ImagePlace, kind: Kind) -> Option<Result<[u64; PAGES], Stop>> {
        let access = self.cpu.access(AccessMode::Current, kind);
        let last = place.la.wrapping_add(place.size as u64 - 1);
        let mut pages = [0; PAGES];
        let count = if (place.la ^ last) & !0xfff == 0 { 1 } else { PAGES };
        for (page, la) in pages.iter_mut().zip([place.la, last & !0xfff]).take(count) {
            *page = match self.cpu.translate_linear(la, access) {
                Ok(walk) => walk.gpa & !0xfff,
                Err(exception) => return Some(Err(exception.into())),
            };
            self.cpu.memory.host_page(*page).filter(|host| kind == Kind::Read || !host.readonly)?;
        }
        Some(Ok(pages))
    }
}

/// Store bytes of an image that begins at offset `start` of the first page, at `offset` in it.
fn store_run(
    memory: &sublet_memory::GuestMemory,
    pages: &[u64; PAGES],
    start: u64,
    data: &[u8],
    offset: u64,
) {
    let at = start + offset;
    let (head, tail) = data.split_at(data.len().min((4096 - at % 4096) as usize));
    for (at, piece) in [(at, head), (at + head.len() as u64, tail)] {
        if !piece.is_empty() {
            memory.store(pages[(at / 4096) as usize] + at % 4096, piece);
        }
    }
}
