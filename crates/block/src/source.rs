//! What is to be copied, window by window.

use crate::data_map::DataMap;
use crate::file::read_at;
use std::io;
use std::os::fd::RawFd;

/// Bytes that are read at once, from a multiple of it: more than this no longer fits into the processor's
/// second cache, and is then fetched twice.
pub const WINDOW: u64 = 1 << 20;

/// A part of a disk and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Descriptor and offset of the host's file; `None` for zeroes, and for what is not to be copied.
    pub place: Option<(RawFd, u64)>,
    /// Bytes.
    pub size: u64,
}

/// The windows of the source that hold data.
pub(crate) struct Source<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first of `pieces` that were taken already.
    taken: u64,
    offset: u64,
    map: DataMap,
    /// What the last window consisted of: memory that is used again.
    window: Vec<Piece>,
}

impl<'a> Source<'a> {
    /// `offset` is the byte of the disk where the first piece begins; with all sizes added, it stays below 2^63.
    pub(crate) fn new(offset: u64, pieces: &'a [Piece]) -> Self {
        Self { pieces, taken: 0, offset, map: DataMap::default(), window: Vec::new() }
    }

    /// Read the next window into `data`, which becomes as long; its disk offset, or `None` at the end.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn read_window(&mut self, data: &mut Vec<u8>) -> io::Result<Option<u64>> {
        let mut window = std::mem::take(&mut self.window);
        let start = self.next_window(&mut window);
        if start.is_some() {
            read_pieces(&window, data)?;
        }
        self.window = window;
        Ok(start)
    }

    /// Disk offset of the next window, and what it consists of; `None` at the end.
    fn next_window(&mut self, window: &mut Vec<Piece>) -> Option<u64> {
        loop {
            self.skip_zeroes();
            let start = self.offset;
            self.take_window(window)?;
            if window.iter().any(|piece| piece.place.is_some()) {
                return Some(start);
            }
        }
    }

    /// Leave out zeroes that go on, however long.
    fn skip_zeroes(&mut self) {
        while let Some((Piece { place: None, size }, rest)) = self.pieces.split_first() {
            self.offset += size - self.taken;
            self.taken = 0;
            self.pieces = rest;
        }
    }

    /// Put what is left up to a window's end into `window`, holes of files as zeroes.
    fn take_window(&mut self, window: &mut Vec<Piece>) -> Option<()> {
        window.clear();
        let end = (self.offset / WINDOW + 1) * WINDOW;
        while self.offset < end {
            let Some((piece, rest)) = self.pieces.split_first() else { break };
            let size = (piece.size - self.taken).min(end - self.offset);
            let place = piece.place.map(|(fd, host)| (fd, host + self.taken));
            let place = place.filter(|&(fd, host)| self.map.has_data(fd, host, size));
            window.push(Piece { place, size });
            self.offset += size;
            self.taken += size;
            if self.taken == piece.size {
                self.pieces = rest;
                self.taken = 0;
            }
        }
        (!window.is_empty()).then_some(())
    }
}

/// Read pieces one after the other into `data`, which becomes as long as they are.
fn read_pieces(pieces: &[Piece], data: &mut Vec<u8>) -> io::Result<()> {
    data.resize(pieces.iter().map(|piece| piece.size as usize).sum(), 0);
    let mut at = 0;
    for piece in pieces {
        let part = &mut data[at..at + piece.size as usize];
        let found = match piece.place {
            Some((fd, host)) => read_at(fd, part, host)?,
            None => 0,
        };
        part[found..].fill(0);
        at += part.len();
    }
    Ok(())
}
