//! Pieces of memory that one access to a file fills or takes, one after the other.

use crate::file::outcome;
use std::io;
use std::os::fd::RawFd;

/// Pieces that one system call takes at most (`IOV_MAX`).
const CALL_MAXIMUM: usize = 1024;

/// A list of (address, bytes), no piece empty. It says nothing of whether the memory is there.
#[derive(Debug, Default)]
pub struct Pieces {
    list: Vec<libc::iovec>,
    first: usize,
}

impl Pieces {
    /// Add a piece at the end.
    pub fn push(&mut self, address: *mut u8, size: usize) {
        if size > 0 {
            self.list.push(libc::iovec { iov_base: address.cast(), iov_len: size });
        }
    }

    /// Forget all pieces.
    pub fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
    }

    /// Take the first `size` bytes away, as a list of their own.
    pub fn split(&mut self, mut size: usize) -> Self {
        let mut head = Self::default();
        while let Some(piece) = self.list.get(self.first).filter(|_| size > 0) {
            let part = piece.iov_len.min(size);
            head.push(piece.iov_base.cast(), part);
            self.advance(part);
            size -= part;
        }
        head
    }

    fn advance(&mut self, mut size: usize) {
        while let Some(piece) = self.list.get_mut(self.first) {
            if size < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(size).cast();
                piece.iov_len -= size;
                return;
            }
            size -= piece.iov_len;
            self.first += 1;
        }
    }

    fn rest(&self) -> (*const libc::iovec, i32) {
        let rest = &self.list[self.first..];
        (rest.as_ptr(), rest.len().min(CALL_MAXIMUM) as i32)
    }

    /// Fill the pieces from `offset` of a file on, with zeroes past its end.
    ///
    /// # Errors
    /// What the host says.
    ///
    /// # Safety
    /// Each piece is good for stores of its bytes. Others may race on them: they may be a guest's RAM.
    pub unsafe fn read_at(&mut self, fd: RawFd, mut offset: u64) -> io::Result<()> {
        while self.first < self.list.len() {
            let (pieces, count) = self.rest();
            // SAFETY: the caller's promise, and `count` pieces are there.
            match outcome(unsafe { libc::preadv64(fd, pieces, count, offset as libc::off64_t) })? {
                Some(0) => {
                    // SAFETY: the caller's promise.
                    unsafe { self.zero() };
                }
                moved => {
                    self.advance(moved.unwrap_or(0));
                    offset += moved.unwrap_or(0) as u64;
                }
            }
        }
        Ok(())
    }

    /// Fill the pieces from `offset` of a file on with what the host has in memory, without waiting for its disk.
    ///
    /// # Errors
    /// Some of it is not in memory, is past the file's end, or the host cannot say. Pieces may be filled.
    ///
    /// # Safety
    /// As for [`Self::read_at`].
    pub unsafe fn read_cached_at(&self, fd: RawFd, offset: u64) -> io::Result<()> {
        let (pieces, count) = self.rest();
        let size: usize = self.list[self.first..].iter().map(|piece| piece.iov_len).sum();
        // SAFETY: the caller's promise, and `count` pieces are there.
        let moved = unsafe { libc::preadv2(fd, pieces, count, offset as libc::off64_t, libc::RWF_NOWAIT) };
        match outcome(moved)? {
            Some(moved) if moved == size => Ok(()),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// # Safety
    /// As for [`Self::read_at`].
    unsafe fn zero(&mut self) {
        for piece in &self.list[self.first..] {
            // SAFETY: the caller's promise.
            unsafe { std::ptr::write_bytes(piece.iov_base.cast::<u8>(), 0, piece.iov_len) };
        }
        self.first = self.list.len();
    }

    /// Write the pieces to a file from `offset` on.
    ///
    /// # Errors
    /// What the host says; a part may have been written.
    ///
    /// # Safety
    /// Each piece is good for loads of its bytes. Others may race on them: they may be a guest's RAM.
    pub unsafe fn write_at(&mut self, fd: RawFd, mut offset: u64) -> io::Result<()> {
        while self.first < self.list.len() {
            let (pieces, count) = self.rest();
            // SAFETY: the caller's promise, and `count` pieces are there.
            let moved = outcome(unsafe { libc::pwritev64(fd, pieces, count, offset as libc::off64_t) })?;
            if moved == Some(0) {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(moved.unwrap_or(0));
            offset += moved.unwrap_or(0) as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    fn pieces(memory: &mut [[u8; 3]]) -> Pieces {
        let mut list = Pieces::default();
        for part in memory {
            list.push(part.as_mut_ptr(), part.len());
        }
        list
    }

    #[test]
    fn more_pieces_than_a_call_takes_are_written_and_read() {
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        let count = CALL_MAXIMUM + 10;
        let mut source: Vec<[u8; 3]> = (0..count).map(|n| [n as u8, (n >> 8) as u8, 7]).collect();
        // SAFETY: the pieces are of `source`, which nothing else uses meanwhile.
        unsafe { pieces(&mut source).write_at(file.as_raw_fd(), 5) }.expect("a memory file takes bytes");
        let mut target = vec![[0xff; 3]; count + 1];
        // SAFETY: as above.
        unsafe { pieces(&mut target).read_at(file.as_raw_fd(), 5) }.expect("it is open");
        assert_eq!(target[..count], source[..]);
        assert_eq!(target[count], [0; 3]);
    }

    #[test]
    fn what_is_in_memory_is_read_at_once_and_the_end_is_not() {
        let (file, mut source) = (crate::file::on_disk(), [[1, 2, 3], [4, 5, 6]]);
        // SAFETY: the pieces are of `source`, which nothing else uses meanwhile.
        unsafe { pieces(&mut source).write_at(file.as_raw_fd(), 7) }.expect("there is room");
        let mut target = [[0; 3]; 2];
        // SAFETY: as above.
        match unsafe { pieces(&mut target).read_cached_at(file.as_raw_fd(), 7) } {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            said => said.expect("it is in memory"),
        }
        assert_eq!(target, source);
        // SAFETY: as above.
        unsafe { pieces(&mut target).read_cached_at(file.as_raw_fd(), 8) }.expect_err("it ends before");
    }

    #[test]
    fn a_list_is_split_within_a_piece() {
        let mut memory = [[0; 3]; 3];
        let base = memory.as_mut_ptr() as usize;
        let mut list = pieces(&mut memory);
        let head = list.split(4);
        let shape = |list: &Pieces| -> Vec<(usize, usize)> {
            list.list[list.first..].iter().map(|p| (p.iov_base as usize - base, p.iov_len)).collect()
        };
        assert_eq!(shape(&head), [(0, 3), (3, 1)]);
        assert_eq!(shape(&list), [(4, 2), (6, 3)]);
    }

    #[test]
    fn a_closed_file_is_an_error() {
        let mut memory = [[0; 3]];
        // SAFETY: the pieces are of `memory`.
        let said = unsafe { pieces(&mut memory).read_at(-1, 0) };
        assert_eq!(said.expect_err("none").raw_os_error(), Some(libc::EBADF));
    }
}
