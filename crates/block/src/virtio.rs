//! Reads and writes of a virtio block device, taken from its queue and put back without the interpreter.
//!
//! Only what is plainly right and plainly there is served here. The first request that is anything else,
//! a mistake of the driver's among it, stays in the queue, and the device model (`devices/virtio`)
//! takes it as if this code did not exist.
//!
//! Reference: virtio 1.2 §2.7 "Split Virtqueues", §5.2.6 "Device Operation".

use crate::dma::{on_bus, transfer, Segment};
use crate::in_place::{Direction, InPlace};
use sublet_memory::{GuestMemory, MemoryView};

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const DESC_SIZE: u64 = 16;
const USED_ELEM_SIZE: u64 = 8;
/// Entries of an indirect table that are looked at.
const MAX_INDIRECT: u64 = 1024;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const S_OK: u8 = 0;
const HEADER_SIZE: u64 = 16;
const SECTOR: u64 = 512;
/// Bytes of one request; larger ones are for the device model, which takes them apart.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes of one request that are served without waiting: copying more would keep the vCPU too long.
const MAX_BYTES_AT_ONCE: u64 = 64 << 10;

/// Where a queue is, and how far the device has come in it. All positions wrap at 2^16.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    /// Entries, a power of two up to 32768.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub desc_table: u64,
    /// Of the available ring.
    pub avail_ring: u64,
    /// Of the used ring.
    pub used_ring: u64,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Position of the next chain to take.
    pub next_avail: u16,
    /// Position of the next chain to return.
    pub next_used: u16,
}

impl Ring {
    /// Whether it has entries, and all of its parts are where a device may look.
    fn is_sound(&self) -> bool {
        let bytes = DESC_SIZE * u64::from(self.size) + 8;
        self.size > 0
            && [self.desc_table, self.avail_ring, self.used_ring].iter().all(|gpa| on_bus(*gpa, bytes))
    }
}

/// What of a queue is served at once.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Requests.
    pub limit: u16,
    /// Whether writes are.
    pub writes: bool,
    /// Whether the host's disk may be waited for. Otherwise only small reads of what the host has in memory
    /// are served: so a vCPU may do it on its way.
    pub wait: bool,
}

/// A request that can be served.
#[derive(Debug, Default)]
struct Request {
    head: u16,
    direction: Option<Direction>,
    offset: u64,
    data: Vec<Segment>,
    status: u64,
}

/// Serve requests from the queue's next one on, as many as `share` says, and return them to the driver; how many.
///
/// The caller moves both positions on by that number, and decides whether to interrupt.
pub fn serve(memory: &GuestMemory, ring: &Ring, disk: &InPlace, share: Share) -> u16 {
    let mut request = Request::default();
    let mut served = 0;
    while served < share.limit && ring.is_sound() {
        let Some(written) = serve_one(memory, ring, disk, served, share, &mut request) else { break };
        if give_back(memory, ring, served, request.head, written).is_none() {
            break;
        }
        served += 1;
    }
    if served > 0 {
        // The ring took an element before, so it is there.
        let _ = memory.write(ring.used_ring + 2, &ring.next_used.wrapping_add(served).to_le_bytes());
    }
    served
}

/// Carry the request out that is `ahead` of the next one; the bytes written to the guest's memory.
fn serve_one(
    memory: &GuestMemory,
    ring: &Ring,
    disk: &InPlace,
    ahead: u16,
    share: Share,
    request: &mut Request,
) -> Option<u32> {
    parse(&memory.view(), ring, ahead, request)?;
    let data: u64 = request.data.iter().map(|(_, size)| size).sum();
    let direction = match request.direction? {
        Direction::ToDisk => Some(Direction::ToDisk).filter(|_| share.writes && share.wait),
        _ if share.wait => Some(Direction::FromDisk),
        _ => Some(Direction::FromCache).filter(|_| data <= MAX_BYTES_AT_ONCE),
    }?;
    if !transfer(disk, memory, request.offset, &request.data, direction) {
        return None;
    }
    memory.write(request.status, &[S_OK]).ok()?;
    Some(if direction == Direction::ToDisk { 1 } else { data as u32 + 1 })
}

/// Put a chain into the used ring, not yet counted there.
fn give_back(memory: &GuestMemory, ring: &Ring, ahead: u16, head: u16, written: u32) -> Option<()> {
    let place = u64::from(ring.next_used.wrapping_add(ahead) % ring.size);
    let mut element = [0; USED_ELEM_SIZE as usize];
    element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
    element[4..].copy_from_slice(&written.to_le_bytes());
    memory.write(ring.used_ring + 4 + USED_ELEM_SIZE * place, &element).ok()
}

/// Read the request that is `ahead` of the next one; `None` when there is none, or none for us.
fn parse(view: &MemoryView, ring: &Ring, ahead: u16, request: &mut Request) -> Option<()> {
    let next = ring.next_avail.wrapping_add(ahead);
    let available = view.load_u16(ring.avail_ring + 2)?.wrapping_sub(next);
    if available == 0 || available > ring.size {
        return None;
    }
    request.head = view.load_u16(ring.avail_ring + 4 + 2 * u64::from(next % ring.size))?;
    let table = Table { gpa: ring.desc_table, entries: u64::from(ring.size) };
    let mut chain = Chain::default();
    request.data.clear();
    if let Some(indirect) = chain.walk(view, table, request.head, &mut request.data)? {
        if !ring.indirect || !request.data.is_empty() {
            return None;
        }
        if chain.walk(view, indirect, 0, &mut request.data)?.is_some() {
            return None;
        }
    }
    complete(view, &chain, request)
}

/// A descriptor table, the queue's own or an indirect one.
#[derive(Debug, Clone, Copy)]
struct Table {
    gpa: u64,
    entries: u64,
}

impl Table {
    /// Address, bytes, flags and next.
    fn descriptor(&self, view: &MemoryView, index: u16) -> Option<(u64, u64, u16, u16)> {
        if u64::from(index) >= self.entries {
            return None;
        }
        let mut raw = [0; DESC_SIZE as usize];
        view.read(self.gpa + DESC_SIZE * u64::from(index), &mut raw).ok()?;
        let number = |at: usize, size: usize| {
            raw[at..at + size].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
        };
        Some((number(0, 8), number(8, 4), number(12, 2) as u16, number(14, 2) as u16))
    }
}

/// How many of a chain's segments the device reads; the rest it writes.
#[derive(Debug, Default)]
struct Chain {
    readable: usize,
}

impl Chain {
    /// Collect the segments of a chain; an indirect table where its first descriptor names one.
    fn walk(
        &mut self,
        view: &MemoryView,
        table: Table,
        head: u16,
        segments: &mut Vec<Segment>,
    ) -> Option<Option<Table>> {
        let mut index = head;
        for _ in 0..table.entries {
            let (gpa, size, flags, next) = table.descriptor(view, index)?;
            if flags & DESC_F_INDIRECT != 0 {
                return indirect_table(gpa, size, flags).map(Some);
            }
            let write = flags & DESC_F_WRITE != 0;
            if size == 0 || !on_bus(gpa, size) || (!write && segments.len() > self.readable) {
                return None;
            }
            segments.push((gpa, size));
            self.readable += usize::from(!write);
            if flags & DESC_F_NEXT == 0 {
                return Some(None);
            }
            index = next;
        }
        None
    }
}

fn indirect_table(gpa: u64, size: u64, flags: u16) -> Option<Table> {
    let entries = size / DESC_SIZE;
    let right = size % DESC_SIZE == 0 && (1..=MAX_INDIRECT).contains(&entries) && flags & DESC_F_NEXT == 0;
    (right && on_bus(gpa, size)).then_some(Table { gpa, entries })
}

/// Take header and status byte off the segments, and leave the data's.
fn complete(view: &MemoryView, chain: &Chain, request: &mut Request) -> Option<()> {
    let (gpa, size) = *request.data.first().filter(|_| chain.readable > 0)?;
    let mut header = [0; HEADER_SIZE as usize];
    if size < HEADER_SIZE || chain.readable == request.data.len() {
        return None;
    }
    view.read(gpa, &mut header).ok()?;
    request.data[0] = (gpa + HEADER_SIZE, size - HEADER_SIZE);
    let last = request.data.last_mut()?;
    last.1 -= 1;
    request.status = last.0 + last.1;
    let kind = u32::from_le_bytes(header[..4].try_into().ok()?);
    let sector = u64::from_le_bytes(header[8..].try_into().ok()?);
    request.direction = match kind {
        T_IN => Some(Direction::FromDisk),
        T_OUT => Some(Direction::ToDisk),
        _ => None,
    };
    request.offset = sector.checked_mul(SECTOR)?;
    keep_data(chain.readable, request)
}

/// Leave the segments that the request moves, and see that they are whole sectors.
fn keep_data(readable: usize, request: &mut Request) -> Option<()> {
    match request.direction? {
        Direction::ToDisk => request.data.truncate(readable),
        _ => drop(request.data.drain(..readable)),
    }
    let size = request.data.iter().map(|(_, size)| size).sum::<u64>();
    (size % SECTOR == 0 && size <= MAX_BYTES).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::in_place::Layout;
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd};
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;
    use sublet_memory::{RamBlock, SMM_SPACE};

    const RAM: u64 = 1 << 20;
    const TABLE: u64 = 0x1000;
    const AVAIL: u64 = 0x2000;
    const USED: u64 = 0x3000;
    const HEADERS: u64 = 0x4000;
    const STATUS: u64 = 0x5000;
    const DATA: u64 = 0x10000;
    const DISK: u64 = 128 << 10;
    const QUEUE: u16 = 8;

    struct Guest {
        memory: GuestMemory,
        file: File,
        disk: InPlace,
        ring: Ring,
    }

    fn guest() -> Guest {
        let memory = GuestMemory::new();
        let ram = Arc::new(RamBlock::new(RAM).expect("the host has a MiB"));
        memory.set_memslot(1, SMM_SPACE, RAM, ram.clone(), 0, false, false).expect("it is the first slot");
        memory.set_memslot(0, 0, RAM, ram, 0, false, true).expect("it is the only slot");
        // SAFETY: the name is a C string; a failed call gives -1, which every later call refuses.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), libc::MFD_CLOEXEC)) };
        file.set_len(DISK).expect("a memory file grows");
        let disk = InPlace::new(Some(file.as_raw_fd()), Layout::Flat, DISK, true);
        let ring = Ring {
            size: QUEUE,
            desc_table: TABLE,
            avail_ring: AVAIL,
            used_ring: USED,
            indirect: true,
            next_avail: 0,
            next_used: 0,
        };
        Guest { memory, file, disk, ring }
    }

    impl Guest {
        fn put(&self, gpa: u64, bytes: &[u8]) {
            self.memory.write(gpa, bytes).expect("it is RAM");
        }

        fn get<const N: usize>(&self, gpa: u64) -> [u8; N] {
            let mut bytes = [0; N];
            self.memory.read(gpa, &mut bytes).expect("it is RAM");
            bytes
        }

        fn descriptor(&self, table: u64, index: u16, gpa: u64, size: u32, flags: u16) {
            let at = table + DESC_SIZE * u64::from(index);
            self.put(at, &gpa.to_le_bytes());
            self.put(at + 8, &size.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes());
            self.put(at + 14, &(index + 1).to_le_bytes());
        }

        fn header(&self, kind: u32, sector: u64) {
            self.put(HEADERS, &kind.to_le_bytes());
            self.put(HEADERS + 8, &sector.to_le_bytes());
        }

        /// Header, data and status in three descriptors, made available as chain 0.
        fn request(&self, kind: u32, sector: u64, size: u32) {
            self.header(kind, sector);
            let flow = if kind == T_IN { DESC_F_WRITE } else { 0 };
            self.descriptor(TABLE, 0, HEADERS, 16, DESC_F_NEXT);
            self.descriptor(TABLE, 1, DATA, size, DESC_F_NEXT | flow);
            self.descriptor(TABLE, 2, STATUS, 1, DESC_F_WRITE);
            self.put(STATUS, &[0xff]);
            self.put(AVAIL + 2, &1u16.to_le_bytes());
        }

        fn serve(&self) -> u16 {
            serve(&self.memory, &self.ring, &self.disk, Share { limit: 16, writes: true, wait: true })
        }

        fn serve_at_once(&self) -> u16 {
            serve(&self.memory, &self.ring, &self.disk, Share { limit: 16, writes: true, wait: false })
        }
    }

    #[test]
    fn a_read_puts_the_disks_bytes_into_memory_and_marks_them_dirty() {
        let guest = guest();
        guest.file.write_all_at(&[5; 1024], 1024).expect("a memory file takes bytes");
        guest.request(T_IN, 2, 1024);
        guest.memory.take_dirty(0);
        assert_eq!(guest.serve(), 1);
        assert_eq!(guest.get::<1025>(DATA)[1023..], [5, 0]);
        assert_eq!(guest.get(STATUS), [S_OK]);
        assert_eq!(guest.get(USED + 2), [1, 0]);
        assert_eq!(guest.get(USED + 4), [0, 0, 0, 0, 1, 4, 0, 0]);
        let page = (DATA / 4096) as u32;
        assert_ne!(guest.memory.take_dirty(0).expect("the slot is there")[0] & 1 << page, 0);
    }

    #[test]
    fn a_write_through_an_indirect_table_reaches_the_disk() {
        let guest = guest();
        guest.header(T_OUT, 3);
        guest.put(DATA, &[9; 512]);
        let table = 0x6000;
        guest.descriptor(table, 0, HEADERS, 16, DESC_F_NEXT);
        guest.descriptor(table, 1, DATA, 200, DESC_F_NEXT);
        guest.descriptor(table, 2, DATA + 200, 312, DESC_F_NEXT);
        guest.descriptor(table, 3, STATUS, 1, DESC_F_WRITE);
        guest.descriptor(TABLE, 5, table, 64, DESC_F_INDIRECT);
        guest.put(AVAIL + 2, &1u16.to_le_bytes());
        guest.put(AVAIL + 4, &5u16.to_le_bytes());
        assert_eq!(guest.serve(), 1);
        let mut data = [0; 514];
        guest.file.read_exact_at(&mut data, 1535).expect("it is as long");
        assert_eq!((data[0], data[1], data[512], data[513]), (0, 9, 9, 0));
        assert_eq!(guest.get(USED + 4), [5, 0, 0, 0, 1, 0, 0, 0]);
    }

    /// A request that is left in the queue: what is wrong with it, and how it comes to be so.
    type Row = (&'static str, fn(&mut Guest));

    #[test]
    fn what_is_not_plain_stays_in_the_queue() {
        let rows: &[Row] = &[
            ("a flush", |g| g.header(4, 0)),
            ("past the end", |g| g.header(T_IN, DISK / SECTOR - 1)),
            ("past any end", |g| g.header(T_IN, u64::MAX)),
            ("half a sector", |g| g.descriptor(TABLE, 1, DATA, 700, DESC_F_NEXT | DESC_F_WRITE)),
            ("no RAM", |g| g.descriptor(TABLE, 1, RAM - 512, 1024, DESC_F_NEXT | DESC_F_WRITE)),
            ("past the address space", |g| {
                g.descriptor(TABLE, 1, u64::MAX - 5, 1024, DESC_F_NEXT | DESC_F_WRITE);
            }),
            ("memory of system-management mode", |g| {
                g.descriptor(TABLE, 1, SMM_SPACE | DATA, 1024, DESC_F_NEXT | DESC_F_WRITE);
            }),
            ("a ring in that memory", |g| g.ring.desc_table |= SMM_SPACE),
            ("a short header", |g| g.descriptor(TABLE, 0, HEADERS, 15, DESC_F_NEXT)),
            ("no status", |g| g.descriptor(TABLE, 0, HEADERS, 16, 0)),
            ("a status that is read", |g| g.descriptor(TABLE, 2, STATUS, 1, 0)),
            ("a loop", |g| g.put(TABLE + 14, &0u16.to_le_bytes())),
            ("a chain past the table", |g| g.put(TABLE + 14, &QUEUE.to_le_bytes())),
            ("a head past the table", |g| g.put(AVAIL + 4, &QUEUE.to_le_bytes())),
            ("nothing available", |g| g.put(AVAIL + 2, &0u16.to_le_bytes())),
            ("too much available", |g| g.put(AVAIL + 2, &(QUEUE + 1).to_le_bytes())),
            ("an indirect table of nothing", |g| g.descriptor(TABLE, 0, 0x6000, 0, DESC_F_INDIRECT)),
            ("a shut gate", |g| g.disk.gate.shut()),
            ("a queue without entries", |g| g.ring.size = 0),
        ];
        for (what, spoil) in rows {
            let mut guest = guest();
            guest.request(T_IN, 2, 1024);
            spoil(&mut guest);
            assert_eq!(guest.serve(), 0, "{what}");
            assert_eq!(guest.get(USED + 2), [0, 0], "{what}");
        }
    }

    #[test]
    fn indirect_tables_are_refused_without_the_feature_and_inside_each_other() {
        let mut guest = guest();
        guest.request(T_IN, 0, 512);
        for index in 0..3 {
            let raw: [u8; 16] = guest.get(TABLE + DESC_SIZE * index);
            guest.put(0x6000 + DESC_SIZE * index, &raw);
        }
        guest.descriptor(TABLE, 0, 0x6000, 48, DESC_F_INDIRECT);
        guest.ring.indirect = false;
        assert_eq!(guest.serve(), 0);
        guest.ring.indirect = true;
        guest.descriptor(0x6000, 0, 0x6000, 48, DESC_F_INDIRECT);
        assert_eq!(guest.serve(), 0);
        guest.descriptor(0x6000, 0, HEADERS, 16, DESC_F_NEXT);
        assert_eq!(guest.serve(), 1);
    }

    #[test]
    fn without_waiting_small_reads_alone_are_served() {
        let mut guest = guest();
        let file = crate::file::on_disk();
        file.write_all_at(&[5; DISK as usize], 0).expect("there is room");
        guest.disk = InPlace::new(Some(file.as_raw_fd()), Layout::Flat, DISK, true);
        guest.request(T_OUT, 2, 1024);
        assert_eq!(guest.serve_at_once(), 0);
        guest.request(T_IN, 0, MAX_BYTES_AT_ONCE as u32 + 512);
        assert_eq!(guest.serve_at_once(), 0);
        guest.request(T_IN, 2, 1024);
        // A host that does not know such reads serves none.
        if guest.serve_at_once() == 1 {
            assert_eq!(guest.get::<1025>(DATA)[1023..], [5, 0]);
            assert_eq!(guest.get(STATUS), [0]);
        } else {
            assert_eq!(guest.get(STATUS), [0xff]);
        }
    }

    #[test]
    fn a_failing_host_leaves_the_request_to_the_device_model() {
        let mut guest = guest();
        guest.disk = InPlace::new(Some(-1), Layout::Flat, DISK, true);
        guest.request(T_IN, 0, 512);
        assert_eq!(guest.serve(), 0);
        assert_eq!(guest.get(STATUS), [0xff]);
    }

    #[test]
    fn positions_wrap() {
        let mut guest = guest();
        guest.request(T_IN, 0, 512);
        guest.ring.next_avail = u16::MAX;
        guest.ring.next_used = u16::MAX;
        guest.put(AVAIL + 2, &0u16.to_le_bytes());
        assert_eq!(guest.serve(), 1);
        assert_eq!(guest.get(USED + 2), [0, 0]);
        assert_eq!(guest.get(USED + 4 + 8 * 7), [0, 0, 0, 0, 1, 2, 0, 0]);
    }
}
