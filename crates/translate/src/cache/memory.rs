//! The memory that holds translated code: written through one mapping, run through another.
//!
//! W^X: no page is ever writable and executable in the same mapping.
//!
//! Code that seldom runs grows down from the end, all other up from the start, so that what runs often lies close
//! together.

use super::perf_map;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Two mappings of one `memfd`: read-write and read-execute.
#[derive(Debug)]
pub struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    size: usize,
    /// End of the code that grows up.
    used: usize,
    /// Start of the code that grows down.
    cold_start: usize,
    /// End of the part that has been asked to be in huge pages.
    huge: usize,
}

// SAFETY: the mappings are owned; all writes go through `&mut self`.
unsafe impl Send for CodeMemory {}

const HUGE_PAGE: usize = 2 << 20;

/// Blocks start at multiples of this, so that their first 8 bytes can be replaced atomically.
pub const BLOCK_ALIGN: usize = 16;

impl CodeMemory {
    /// Slack kept for alignment.
    pub const ROOM: usize = 64;

    /// Map `size` bytes twice.
    ///
    /// # Errors
    /// The host refuses to map memory executable, or has none.
    pub fn new(size: usize) -> io::Result<Self> {
        let (writable, executable) = if perf_map::is_wanted() {
            map_for_perf(size)?
        } else {
            map_file_twice(&memory_file(size)?, size)?
        };
        Ok(Self { writable, executable, size, used: 0, cold_start: size, huge: 0 })
    }

    /// First executable byte.
    pub fn base(&self) -> u64 {
        self.executable as u64
    }

    /// Bytes in all.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Bytes taken by code.
    pub fn used(&self) -> usize {
        self.used + self.size - self.cold_start
    }

    /// Where code that seldom runs begins.
    pub fn cold_start(&self) -> usize {
        self.cold_start
    }

    /// Find room for `usual` bytes of code and `cold` bytes that seldom run. Returns their offsets, or `None` when
    /// they do not fit.
    pub fn place(&mut self, usual: usize, cold: usize) -> Option<(usize, usize)> {
        let start = self.used.next_multiple_of(BLOCK_ALIGN);
        let end = start.checked_add(usual)?;
        let cold_start = self.cold_start.checked_sub(cold)?;
        if end > cold_start {
            return None;
        }
        (self.used, self.cold_start) = (end, cold_start);
        self.use_huge_pages();
        Some((start, cold_start))
    }

    /// Have the host put what is in use of the usual code in huge pages, if it can: a large program's spans more
    /// small ones than the processor remembers. Each is asked for once a quarter of it is used.
    fn use_huge_pages(&mut self) {
        while self.huge + HUGE_PAGE / 4 < self.used && self.huge + HUGE_PAGE <= self.size {
            // SAFETY: the range lies in the mapping and keeps its contents; a refusal changes nothing.
            unsafe {
                let start = self.executable.add(self.huge).cast_mut().cast();
                libc::madvise(start, HUGE_PAGE, libc::MADV_COLLAPSE);
            }
            self.huge += HUGE_PAGE;
        }
    }

    /// Write code at a place that has been found.
    pub fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(offset.checked_add(code.len()).is_some_and(|end| end <= self.size));
        // SAFETY: checked above.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(offset), code.len()) };
    }

    /// The bytes of code from `offset` on, `most` or as many as there are.
    pub fn read(&self, offset: usize, most: usize) -> &[u8] {
        let start = offset.min(self.size);
        // SAFETY: the range lies in the mapping, which is written to by `&mut self` only.
        unsafe { std::slice::from_raw_parts(self.writable.add(start), most.min(self.size - start)) }
    }

    /// Replace the 32-bit value at `offset`, as one store where the bytes share a cache line.
    pub fn patch32(&mut self, offset: usize, value: i32) {
        assert!(offset + 4 <= self.size);
        // SAFETY: checked above; the field may be unaligned, and x86 makes a store inside one
        // cache line atomic.
        unsafe { self.writable.add(offset).cast::<i32>().write_unaligned(value) };
    }

    /// Replace the first 8 bytes of a block by one store.
    pub fn patch_start(&mut self, offset: usize, bytes: [u8; 8]) {
        assert!(offset % BLOCK_ALIGN == 0 && offset + 8 <= self.size);
        // SAFETY: checked above; aligned to 16.
        unsafe { self.writable.add(offset).cast::<u64>().write_volatile(u64::from_le_bytes(bytes)) };
    }

    /// Forget all code past the first `keep` bytes.
    pub fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
        self.cold_start = self.size;
    }
}

fn memory_file(size: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a valid C string; the result is checked.
    let raw = unsafe { libc::memfd_create(c"sublet-code".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` is a descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: `fd` is open.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size as libc::off_t) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// The mapping to write through, and the one to run.
fn map_file_twice(fd: &OwnedFd, size: usize) -> io::Result<(*mut u8, *mut u8)> {
    let writable = map(fd, size, libc::PROT_READ | libc::PROT_WRITE)?;
    match map(fd, size, libc::PROT_READ | libc::PROT_EXEC) {
        Ok(executable) => Ok((writable, executable)),
        Err(error) => {
            // SAFETY: the mapping made just above.
            unsafe { libc::munmap(writable.cast(), size) };
            Err(error)
        }
    }
}

/// The same of memory that has no file: perf takes names from its map only for such.
fn map_for_perf(size: usize) -> io::Result<(*mut u8, *mut u8)> {
    let kind = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: new mappings at addresses that the kernel chooses: `mremap` of no bytes maps shared memory
    // a second time (mremap(2)). Results are checked.
    unsafe {
        let writable =
            libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, kind, -1, 0);
        if writable == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let executable = libc::mremap(writable, 0, size, libc::MREMAP_MAYMOVE);
        if executable == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(writable, size);
            return Err(error);
        }
        if libc::mprotect(executable, size, libc::PROT_READ | libc::PROT_EXEC) != 0 {
            let error = io::Error::last_os_error();
            libc::munmap(writable, size);
            libc::munmap(executable, size);
            return Err(error);
        }
        Ok((writable.cast(), executable.cast()))
    }
}

/// Map the file where huge pages can begin.
fn map(fd: &OwnedFd, size: usize, protection: i32) -> io::Result<*mut u8> {
    let start = reserve(size)?;
    // SAFETY: replaces the mapping just made; the result is checked.
    let at = unsafe {
        let kind = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        libc::mmap(start, size, protection, kind, fd.as_raw_fd(), 0)
    };
    if at == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        // SAFETY: the mapping made just above.
        unsafe { libc::munmap(start, size) };
        return Err(error);
    }
    Ok(at.cast())
}

/// `size` bytes of addresses that begin at a multiple of a huge page.
fn reserve(size: usize) -> io::Result<*mut libc::c_void> {
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping at an address the kernel chooses, of which what is too much at either end is unmapped.
    unsafe {
        let first = libc::mmap(std::ptr::null_mut(), size + HUGE_PAGE, libc::PROT_NONE, kind, -1, 0);
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let before = (first as usize).next_multiple_of(HUGE_PAGE) - first as usize;
        let start = first.byte_add(before);
        if before > 0 {
            libc::munmap(first, before);
        }
        if before < HUGE_PAGE {
            libc::munmap(start.byte_add(size), HUGE_PAGE - before);
        }
        Ok(start)
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings were made in `new` with this size; translated code runs only
        // while the cache that owns this is borrowed by the VM.
        unsafe {
            libc::munmap(self.writable.cast(), self.size);
            libc::munmap(self.executable.cast_mut().cast(), self.size);
        }
    }
}
