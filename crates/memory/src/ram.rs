//! A block of host memory that backs guest RAM.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Anonymous, page-aligned memory shared by reference; zero-filled; unmapped when dropped.
///
/// The memory is a `memfd`, so that a snapshot or another process can map it.
#[derive(Debug)]
pub struct RamBlock {
    base: *mut u8,
    size: usize,
    fd: OwnedFd,
    code: Box<[AtomicU64]>,
}

// SAFETY: the mapping is plain memory that lives as long as the block. The guest and its devices
// race on it by nature, as they do on real memory; accessors use raw copies and atomics only.
unsafe impl Send for RamBlock {}
// SAFETY: as above.
unsafe impl Sync for RamBlock {}

impl RamBlock {
    /// Map `size` bytes, rounded up to a page.
    ///
    /// # Errors
    /// `size` is 0 or too large, or the host has no memory to map.
    pub fn new(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size)
            .ok()
            .and_then(|size| size.checked_next_multiple_of(crate::PAGE_SIZE as usize))
            .filter(|size| *size > 0 && *size <= isize::MAX as usize)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the name is a valid C string; the result is checked.
        let raw = unsafe { libc::memfd_create(c"sublet-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        // SAFETY: `fd` is open.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new mapping at an address the kernel chooses; the result is checked.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: advice on our own mapping; failure is harmless (huge pages are an optimisation).
        unsafe { libc::madvise(base, size, libc::MADV_HUGEPAGE) };
        Ok(Self { base: base.cast(), size, fd, code: zeroed(size / crate::PAGE_SIZE as usize) })
    }

    /// First byte of the mapping.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Bytes mapped.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// For each page the vCPUs that hold code translated from it, a bit each.
    pub(crate) fn code_marks(&self, offset: u64) -> &AtomicU64 {
        &self.code[(offset / crate::PAGE_SIZE) as usize]
    }

    /// The `memfd` behind the mapping.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

impl Drop for RamBlock {
    fn drop(&mut self) {
        // SAFETY: `base` and `size` are those of the mapping made in `new`; no reference outlives
        // the block, because memslots hold it by `Arc`.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// One vCPU holds code translated from one page of RAM, until this is dropped.
#[derive(Debug)]
pub struct CodeMark {
    ram: Arc<RamBlock>,
    offset: u64,
    vcpu: u32,
}

impl CodeMark {
    /// Mark the page at `offset`; also returns the marks of before, a bit for each vCPU.
    pub(crate) fn new(ram: Arc<RamBlock>, offset: u64, vcpu: u32) -> (Self, u64) {
        let before = ram.code_marks(offset).fetch_or(1 << vcpu, Ordering::SeqCst);
        (Self { ram, offset: offset & !(crate::PAGE_SIZE - 1), vcpu }, before)
    }

    /// Host address of the page.
    pub fn host_page(&self) -> u64 {
        self.ram.base() as u64 + self.offset
    }
}

impl Drop for CodeMark {
    fn drop(&mut self) {
        self.ram.code_marks(self.offset).fetch_and(!(1 << self.vcpu), Ordering::SeqCst);
    }
}

/// Counters whose memory the host gives when they are first touched.
fn zeroed(count: usize) -> Box<[AtomicU64]> {
    let plain = Box::into_raw(vec![0u64; count].into_boxed_slice());
    // SAFETY: `AtomicU64` has the size, alignment and values of `u64` (on x86-64), and the box is owned.
    unsafe { Box::from_raw(plain as *mut [AtomicU64]) }
}
