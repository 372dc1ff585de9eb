//! Where a host file has data, and where holes.

use std::os::fd::RawFd;

/// Answers for one place after another; what the host said last is kept.
#[derive(Default)]
pub struct DataMap {
    /// Descriptor, and half-open ranges of a hole and of the data behind it.
    known: Option<(RawFd, u64, u64, u64)>,
}

impl DataMap {
    /// Whether any of the `size` bytes at `offset` is data; also where the host cannot say.
    pub fn has_data(&mut self, fd: RawFd, offset: u64, size: u64) -> bool {
        let end = offset.saturating_add(size);
        let known = self.known.filter(|&(whose, from, _, to)| whose == fd && from <= offset && offset < to);
        let (_, _, data, _) = known.unwrap_or_else(|| self.look(fd, offset));
        data < end
    }

    fn look(&mut self, fd: RawFd, offset: u64) -> (RawFd, u64, u64, u64) {
        let (data, hole) = match seek(fd, offset, libc::SEEK_DATA) {
            Ok(data) => (data, seek(fd, data, libc::SEEK_HOLE).unwrap_or(u64::MAX)),
            Err(libc::ENXIO) => (u64::MAX, u64::MAX),
            Err(_) => (offset, u64::MAX),
        };
        let found = (fd, offset, data, hole);
        self.known = Some(found);
        found
    }
}

fn seek(fd: RawFd, offset: u64, whence: libc::c_int) -> Result<u64, i32> {
    let Ok(offset) = libc::off64_t::try_from(offset) else { return Err(libc::EINVAL) };
    // SAFETY: no memory is involved; a descriptor that is not open is an error.
    let place = unsafe { libc::lseek64(fd, offset, whence) };
    u64::try_from(place).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::write_at;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    #[test]
    fn holes_are_seen() {
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(16 << 20).expect("memory");
        let fd = file.as_raw_fd();
        write_at(fd, &[1; 8192], 4 << 20).expect("memory");
        let mut map = DataMap::default();
        assert!(!map.has_data(fd, 0, 4 << 20));
        assert!(map.has_data(fd, 0, (4 << 20) + 1));
        assert!(map.has_data(fd, (4 << 20) + 4096, 1 << 20));
        assert!(!map.has_data(fd, 8 << 20, 8 << 20));
        assert!(!map.has_data(fd, 1 << 30, 1));
        assert!(!map.has_data(fd, 0, 4 << 20));
    }

    #[test]
    fn who_cannot_say_has_data() {
        assert!(DataMap::default().has_data(-1, 0, 1));
    }
}
