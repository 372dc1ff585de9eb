//! What of a disk can be read, and overwritten, where it lies in a host file.

use crate::gate::Gate;
use crate::pieces::Pieces;
use crate::table::Table;
use std::collections::HashMap;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// QCOW2's bits of an L2 entry ("QCOW2 image format", "Cluster mapping table").
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// An extended entry's bitmap when every subcluster holds data.
const ALL_ALLOCATED: u64 = 0xffff_ffff;

/// Which way the bytes of a request go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the disk into memory.
    FromDisk,
    /// As `FromDisk`, but only what the host has in its own memory: nothing waits for its disk.
    FromCache,
    /// From memory to the disk.
    ToDisk,
}

/// How the disk's bytes lie in the file.
#[derive(Debug, Clone, Copy)]
pub enum Layout {
    /// Byte n of the disk is byte n of the file.
    Flat,
    /// QCOW2's clusters of `1 << bits` bytes, named by L2 tables.
    Clusters {
        /// Logarithm of a cluster's bytes.
        bits: u32,
        /// Entries of 16 bytes, with a bitmap of subclusters.
        extended: bool,
    },
    /// Clusters of `1 << bits` bytes that need not be aligned in the file, named by tables of
    /// [`PLACES`] entries in QCOW2's shape.
    Places {
        /// Logarithm of a cluster's bytes.
        bits: u32,
    },
}

/// Entries of a table of [`Layout::Places`].
pub const PLACES: usize = 1 << PLACES_BITS;
const PLACES_BITS: u32 = 9;

/// What looking a cluster up takes.
#[derive(Clone, Copy)]
struct Shape {
    bits: u32,
    table_bits: u32,
    extended: bool,
    /// Bytes that a cluster's place in the file is a multiple of.
    alignment: u64,
}

impl Layout {
    fn shape(self) -> Option<Shape> {
        match self {
            Self::Flat => None,
            Self::Clusters { bits, extended } => {
                let entry_bits = if extended { 4 } else { 3 };
                Some(Shape { bits, table_bits: bits - entry_bits, extended, alignment: 1 << bits })
            }
            Self::Places { bits } => {
                Some(Shape { bits, table_bits: PLACES_BITS, extended: false, alignment: 1 })
            }
        }
    }
}

/// Bytes that lie side by side in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where, in the file.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// The way past a disk's format: everything that stays where it is. What is not mapped here, the format
/// answers, and so it does while the gate is shut.
pub struct InPlace {
    fd: Option<RawFd>,
    /// The file goes through the host's page cache.
    cached: bool,
    layout: Layout,
    size: AtomicU64,
    writable: AtomicBool,
    tables: RwLock<HashMap<u64, Arc<Table>>>,
    /// Who moves bytes now.
    pub gate: Gate,
}

impl std::fmt::Debug for InPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InPlace").field("fd", &self.fd).field("layout", &self.layout).finish_non_exhaustive()
    }
}

impl InPlace {
    /// A disk of `size` bytes in the file `fd`, which its owner closes after a last [`Gate::shut`].
    /// Without a file nothing is moved here, and only the gate is of use.
    pub fn new(fd: Option<RawFd>, layout: Layout, size: u64, writable: bool) -> Self {
        Self {
            fd,
            cached: fd.is_some_and(goes_through_cache),
            layout,
            size: size.into(),
            writable: writable.into(),
            tables: RwLock::default(),
            gate: Gate::default(),
        }
    }

    /// The disk has this many bytes now. The caller has the gate shut.
    pub fn resize(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    /// Whether anything may be overwritten here. The caller has the gate shut, or is the only one yet.
    pub fn set_writable(&self, writable: bool) {
        self.writable.store(writable, Ordering::SeqCst);
    }

    /// Let `table` answer for the clusters that L1 entry `index` names, in place of the one before.
    pub fn attach(&self, index: u64, table: Table) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).insert(index, Arc::new(table));
    }

    /// Forget the table of L1 entry `index`.
    pub fn detach(&self, index: u64) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).remove(&index);
    }

    /// Forget all tables.
    pub fn clear(&self) {
        self.tables.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether the table of L1 entry `index` was looked at since the last call.
    pub fn take_used(&self, index: u64) -> bool {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        tables.get(&index).is_some_and(|table| table.take_used())
    }

    /// Whether a range lies inside the disk.
    pub fn contains(&self, offset: u64, size: u64) -> bool {
        offset.checked_add(size).is_some_and(|end| end <= self.size.load(Ordering::SeqCst))
    }

    /// Where a range of the disk is, if all of it can be read (`write`: overwritten) where it is.
    ///
    /// The caller holds a pass from before this call until it has moved the bytes: then none of the
    /// clusters becomes another's meanwhile.
    fn find(&self, offset: u64, size: u64, write: bool, extents: &mut Vec<Extent>) -> Option<()> {
        extents.clear();
        let refused = write && !self.writable.load(Ordering::SeqCst);
        if refused || !self.contains(offset, size) {
            return None;
        }
        let end = offset + size;
        let Some(shape) = self.layout.shape() else {
            extents.push(Extent { offset, size });
            return Some(());
        };
        let Shape { bits, table_bits, .. } = shape;
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = offset;
        while at < end {
            let cluster = at >> bits;
            let table = tables.get(&(cluster >> table_bits))?;
            table.touch();
            let index = (cluster & ((1 << table_bits) - 1)) as usize;
            let host = place(table, index, shape, write)?;
            let inside = at & ((1 << bits) - 1);
            let piece = ((1 << bits) - inside).min(end - at);
            append(extents, Extent { offset: host + inside, size: piece });
            at += piece;
        }
        Some(())
    }

    /// Fill `data` from `offset` on, with zeroes past the file's end; whether that could be done here.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let mut pieces = Pieces::default();
        pieces.push(data.as_mut_ptr(), data.len());
        // SAFETY: the one piece is `data`.
        unsafe { self.transfer(offset, data.len() as u64, &mut pieces, Direction::FromDisk) }
    }

    /// Write all of `data` at `offset`; whether that could be done here. A part may have been written.
    pub fn write(&self, offset: u64, data: &[u8]) -> bool {
        let mut pieces = Pieces::default();
        pieces.push(data.as_ptr().cast_mut(), data.len());
        // SAFETY: the one piece is `data`, and it is only loaded from.
        unsafe { self.transfer(offset, data.len() as u64, &mut pieces, Direction::ToDisk) }
    }

    /// Move `size` bytes between the disk at `offset` and `pieces`, which hold as many; whether that could
    /// be done here. Where not, a part may have been moved. `pieces` are used up.
    ///
    /// An error of the host is not told: the format makes the request again and meets it, too.
    ///
    /// # Safety
    /// Each piece is good for what is done with it: loads for `ToDisk`, stores for the others.
    pub unsafe fn transfer(&self, offset: u64, size: u64, pieces: &mut Pieces, direction: Direction) -> bool {
        let Some(fd) = self.fd.filter(|_| self.cached || direction != Direction::FromCache) else {
            return false;
        };
        let Some(_pass) = self.gate.enter() else { return false };
        let mut extents = Vec::new();
        if self.find(offset, size, direction == Direction::ToDisk, &mut extents).is_none() {
            return false;
        }
        extents.iter().all(|extent| {
            let mut part =
                if extent.size == size { std::mem::take(pieces) } else { pieces.split(extent.size as usize) };
            // SAFETY: the caller's promise.
            let moved = unsafe {
                match direction {
                    Direction::FromDisk => part.read_at(fd, extent.offset),
                    Direction::FromCache => part.read_cached_at(fd, extent.offset),
                    Direction::ToDisk => part.write_at(fd, extent.offset),
                }
            };
            moved.is_ok()
        })
    }
}

/// Whether a file is not past the page cache (O_DIRECT), where a read that must not wait waits all the same.
fn goes_through_cache(fd: RawFd) -> bool {
    // SAFETY: no memory is involved; a descriptor that is not open is an error.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_DIRECT == 0
}

/// Where a cluster is in the file, if it is there plainly.
fn place(table: &Table, index: usize, shape: Shape, write: bool) -> Option<u64> {
    let entry = table.get(if shape.extended { 2 * index } else { index });
    if shape.extended && table.get(2 * index + 1) != ALL_ALLOCATED {
        return None;
    }
    let host = entry & OFFSET_MASK;
    let plain = host != 0 && host & (shape.alignment - 1) == 0 && entry & (COMPRESSED | ZERO) == 0;
    let own = !write || (entry & COPIED != 0 && table.writable());
    (plain && own).then_some(host)
}

/// Add an extent, as part of the last where it goes on.
fn append(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.offset + last.size == next.offset => last.size += next.size,
        _ => extents.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::store;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};

    const BITS: u32 = 9;
    const CLUSTER: u64 = 1 << BITS;
    const TABLE_ENTRIES: usize = 64;

    struct Disk {
        file: File,
        places: InPlace,
        entries: *mut u64,
    }

    /// A disk of one table of 64 clusters of 512 bytes, and the file that it is in.
    fn disk(entries: &[u64], extended: bool) -> Disk {
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        let layout = Layout::Clusters { bits: BITS, extended };
        let size = CLUSTER * TABLE_ENTRIES as u64;
        let places = InPlace::new(Some(file.as_raw_fd()), layout, size, true);
        let mut owned = vec![0u64; TABLE_ENTRIES];
        owned[..entries.len()].copy_from_slice(entries);
        let entries = owned.as_mut_ptr();
        // SAFETY: the vector is the owner, and is not changed but by `store`.
        places.attach(0, unsafe { Table::new(entries, TABLE_ENTRIES, true, Box::new(owned)) });
        Disk { file, places, entries }
    }

    #[test]
    fn neighbours_are_one_extent() {
        let disk = disk(&[COPIED | 0x1000, COPIED | 0x1200, COPIED | 0x800], false);
        let mut extents = Vec::new();
        disk.places.find(256, 1280, true, &mut extents).expect("all is there");
        assert_eq!(extents, [Extent { offset: 0x1100, size: 768 }, Extent { offset: 0x800, size: 512 }]);
    }

    #[test]
    fn what_was_written_is_read_and_past_the_end_of_the_file_are_zeroes() {
        let disk = disk(&[COPIED | 0x400, COPIED | 0x200], false);
        assert!(disk.places.write(256, &[7; 512]));
        let mut data = [0xff; 1024];
        assert!(disk.places.read(0, &mut data));
        assert_eq!(data[..256], [0; 256]);
        assert_eq!(data[256..768], [7; 512]);
        assert_eq!(data[768..], [0; 256]);
        assert_eq!(disk.file.metadata().expect("it is open").len(), 0x600);
    }

    #[test]
    fn what_is_not_plainly_there_is_not_found() {
        let rows = [0, COPIED, COMPRESSED | 0x1000, COPIED | ZERO | 0x1000];
        for entry in rows {
            let disk = disk(&[entry], false);
            assert!(!disk.places.read(0, &mut [0]), "{entry:#x}");
            assert!(!disk.places.write(0, &[0]), "{entry:#x}");
        }
    }

    #[test]
    fn an_entry_between_two_clusters_names_none_unless_it_may() {
        let disk = disk(&[COPIED | 0x1200], false);
        let table = disk.places.tables.read().expect("nobody panicked")[&0].clone();
        let find = |layout: Layout| place(&table, 0, layout.shape().expect("it has clusters"), true);
        assert_eq!(find(Layout::Clusters { bits: 9, extended: false }), Some(0x1200));
        assert_eq!(find(Layout::Clusters { bits: 12, extended: false }), None);
        assert_eq!(find(Layout::Places { bits: 12 }), Some(0x1200));
    }

    #[test]
    fn places_are_in_tables_of_their_own_size() {
        let mut disk = disk(&[COPIED | 0x200], false);
        disk.places.layout = Layout::Places { bits: BITS };
        let size = 2 * PLACES as u64 * CLUSTER;
        disk.places.resize(size);
        let mut extents = Vec::new();
        assert!(disk.places.find(0, 1, true, &mut extents).is_some());
        assert!(disk.places.find(PLACES as u64 * CLUSTER, 1, false, &mut extents).is_none());
        let mut owned = vec![0u64; PLACES];
        owned[1] = COPIED | 0x400;
        let entries = owned.as_mut_ptr();
        // SAFETY: the vector is the owner, and is not changed.
        disk.places.attach(1, unsafe { Table::new(entries, PLACES, true, Box::new(owned)) });
        disk.places.find((PLACES as u64 + 1) * CLUSTER + 7, 1, true, &mut extents).expect("it is there");
        assert_eq!(extents, [Extent { offset: 0x407, size: 1 }]);
    }

    #[test]
    fn a_shared_cluster_is_read_only() {
        let disk = disk(&[0x200], false);
        assert!(disk.places.read(0, &mut [0]));
        assert!(!disk.places.write(0, &[0]));
    }

    #[test]
    fn an_extended_entry_counts_when_all_of_it_is_data() {
        let disk = disk(&[COPIED | 0x200, ALL_ALLOCATED, COPIED | 0x400, 1], true);
        assert!(disk.places.write(0, &[0; 512]));
        assert!(!disk.places.read(512, &mut [0]));
    }

    #[test]
    fn nothing_is_found_outside_the_disk_or_without_its_table() {
        let disk = disk(&[COPIED | 0x200; TABLE_ENTRIES], false);
        let size = CLUSTER * TABLE_ENTRIES as u64;
        assert!(disk.places.read(size - 1, &mut [0]));
        assert!(!disk.places.read(size, &mut [0]));
        assert!(!disk.places.read(u64::MAX, &mut [0]));
        disk.places.resize(2 * size);
        assert!(!disk.places.read(size, &mut [0]));
        disk.places.detach(0);
        assert!(!disk.places.read(0, &mut [0]));
    }

    #[test]
    fn a_change_of_the_table_is_seen() {
        let disk = disk(&[COPIED | 0x200], false);
        // SAFETY: the table holds 64 entries, and lives.
        unsafe { store(disk.entries, &[0]) };
        assert!(!disk.places.read(0, &mut [0]));
    }

    #[test]
    fn nothing_is_moved_while_the_gate_is_shut() {
        let disk = disk(&[COPIED | 0x200], false);
        disk.places.gate.shut();
        assert!(!disk.places.read(0, &mut [0]));
        disk.places.gate.open();
        disk.places.set_writable(false);
        assert!(!disk.places.write(0, &[0]));
        assert!(disk.places.read(0, &mut [0]));
    }
}
