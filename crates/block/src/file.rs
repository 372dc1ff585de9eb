//! Positioned access to a host file by its descriptor.

use std::io;
use std::os::fd::RawFd;

/// Read at `offset` until `data` is full or the file ends; returns the bytes read.
///
/// # Errors
/// What the host says; an interrupted call is made again.
pub fn read_at(fd: RawFd, data: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let rest = &mut data[done..];
        // SAFETY: `rest` is good for stores of its length; a descriptor that is not open is an error.
        let count = unsafe {
            libc::pread64(fd, rest.as_mut_ptr().cast(), rest.len(), (offset + done as u64) as libc::off64_t)
        };
        match outcome(count)? {
            Some(0) => break,
            Some(count) => done += count,
            None => {}
        }
    }
    Ok(done)
}

/// Write all of `data` at `offset`.
///
/// # Errors
/// As [`read_at`]; a part may have been written.
pub fn write_at(fd: RawFd, data: &[u8], offset: u64) -> io::Result<()> {
    let mut done = 0;
    while done < data.len() {
        let rest = &data[done..];
        // SAFETY: `rest` is good for loads of its length; a descriptor that is not open is an error.
        let count = unsafe {
            libc::pwrite64(fd, rest.as_ptr().cast(), rest.len(), (offset + done as u64) as libc::off64_t)
        };
        match outcome(count)? {
            Some(0) => return Err(io::ErrorKind::WriteZero.into()),
            Some(count) => done += count,
            None => {}
        }
    }
    Ok(())
}

/// The bytes that a system call moved; `None` when a signal came before any.
pub(crate) fn outcome(count: libc::ssize_t) -> io::Result<Option<usize>> {
    if let Ok(count) = usize::try_from(count) {
        return Ok(Some(count));
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        error => Err(error),
    }
}

/// A file without a name, of a file system rather than of memory, where reads that must not wait are known.
#[cfg(test)]
pub(crate) fn on_disk() -> std::fs::File {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("sublet-block-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path).expect("there is a folder for it");
    std::fs::remove_file(path).expect("it was made");
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    fn temporary() -> File {
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) }
    }

    #[test]
    fn reads_what_was_written_and_stops_at_the_end() {
        let file = temporary();
        write_at(file.as_raw_fd(), b"abcdef", 10).expect("a memory file takes bytes");
        let mut data = [0xff; 8];
        assert_eq!(read_at(file.as_raw_fd(), &mut data, 12).expect("it is open"), 4);
        assert_eq!(&data, b"cdef\xff\xff\xff\xff");
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        assert_eq!(read_at(-1, &mut [0], 0).expect_err("none").raw_os_error(), Some(libc::EBADF));
        assert_eq!(write_at(-1, &[0], 0).expect_err("none").raw_os_error(), Some(libc::EBADF));
    }
}
