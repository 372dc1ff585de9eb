//! Queues of packets against virtio 1.2 §2.7, and drivers that break its rules.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use sublet_memory::{GuestMemory, RamBlock, SMM_SPACE};
use sublet_virtio::{Placement, Positions, Put, Ring};

const SIZE: u16 = 8;
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x4000;
const RAM: u64 = 0x10000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Driver {
    memory: Arc<GuestMemory>,
    index: u16,
}

impl Driver {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::new());
        let ram = Arc::new(RamBlock::new(RAM).unwrap());
        memory.set_memslot(0, 0, RAM, ram, 0, false, false).unwrap();
        Self { memory, index: 0 }
    }

    fn ring(&self, event_idx: bool) -> Ring {
        let at = Placement {
            size: SIZE,
            descriptors: TABLE,
            available: AVAILABLE,
            used: USED,
            event_idx,
            indirect: true,
        };
        Ring::new(self.memory.clone(), at, Positions::default()).unwrap()
    }

    fn describe(&self, table: u64, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&address.to_le_bytes());
        raw[8..12].copy_from_slice(&length.to_le_bytes());
        raw[12..14].copy_from_slice(&flags.to_le_bytes());
        raw[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write(table + 16 * index, &raw).unwrap();
    }

    fn offer(&mut self, head: u16) {
        let slot = AVAILABLE + 4 + 2 * u64::from(self.index % SIZE);
        self.memory.write(slot, &head.to_le_bytes()).unwrap();
        self.index = self.index.wrapping_add(1);
        self.memory.write(AVAILABLE + 2, &self.index.to_le_bytes()).unwrap();
    }

    fn bytes(&self, at: u64, size: usize) -> Vec<u8> {
        let mut data = vec![0; size];
        self.memory.read(at, &mut data).unwrap();
        data
    }
}

fn packet(size: usize) -> Vec<u8> {
    (0..12 + size).map(|at| if at < 12 { 0 } else { at as u8 }).collect()
}

#[test]
fn s5_1_6_4_a_packet_is_spread_over_buffers_and_their_number_is_told() {
    let mut driver = Driver::new();
    for index in 0..3 {
        driver.describe(TABLE, index, BUFFERS + 100 * index, 100, WRITE, 0);
        driver.offer(index as u16);
    }
    let data = packet(200);
    let put = driver.ring(false).put(&[&data], 12, true).unwrap();
    assert_eq!(put, Put { done: 1, too_large: 0, bytes: 200, interrupt: true });
    assert_eq!(driver.bytes(BUFFERS + 10, 2), [3, 0]);
    assert_eq!(driver.bytes(BUFFERS + 12, 200), data[12..]);
    assert_eq!(driver.bytes(USED + 4, 24)[16..], [2, 0, 0, 0, 12, 0, 0, 0]);
}

#[test]
fn what_has_no_room_stays_and_the_driver_is_asked_to_notify() {
    let mut driver = Driver::new();
    driver.describe(TABLE, 0, BUFFERS, 2000, WRITE, 0);
    driver.offer(0);
    let mut ring = driver.ring(true);
    let (first, second) = (packet(60), packet(3000));
    assert_eq!(ring.put(&[&first, &second], 12, true).unwrap().done, 1);
    assert_eq!(driver.bytes(USED + 4 + 8 * u64::from(SIZE), 2), [1, 0], "avail_event");
    assert_eq!(ring.positions(), Positions { available: 1, used: 1, signalled: 1 });
}

#[test]
fn buffers_taken_and_not_done_are_taken_again() {
    let mut driver = Driver::new();
    for index in 0..3 {
        driver.describe(TABLE, index, BUFFERS, 100, 0, 0);
        driver.offer(index as u16);
    }
    let mut ring = driver.ring(false);
    assert_eq!(ring.take(3, 250).unwrap().len(), 2, "within the budget");
    assert!(ring.give_back(1).unwrap());
    let heads: Vec<u16> = ring.take(3, 250).unwrap().iter().map(|chain| chain.head).collect();
    assert_eq!(heads, [1, 2]);
}

#[test]
fn s2_7_a_driver_that_breaks_a_rule_is_at_fault() {
    type Break = fn(&mut Driver);
    let cases: [(&str, Break); 12] = [
        ("9 chains available", |d| d.memory.write(AVAILABLE + 2, &9u16.to_le_bytes()).unwrap()),
        ("descriptor 8", |d| d.offer(8)),
        ("descriptor 300", |d| {
            d.describe(TABLE, 0, BUFFERS, 100, NEXT, 300);
            d.offer(0);
        }),
        ("loops", |d| {
            d.describe(TABLE, 0, BUFFERS, 100, NEXT, 0);
            d.offer(0);
        }),
        ("readable descriptor after", |d| {
            d.describe(TABLE, 0, BUFFERS, 100, NEXT | WRITE, 1);
            d.describe(TABLE, 1, BUFFERS, 100, 0, 0);
            d.offer(0);
        }),
        ("indirect table of 15", |d| {
            d.describe(TABLE, 0, BUFFERS, 15, INDIRECT, 0);
            d.offer(0);
        }),
        ("nested", |d| {
            d.describe(TABLE, 0, BUFFERS, 16, INDIRECT, 0);
            d.describe(BUFFERS, 0, BUFFERS, 16, INDIRECT, 0);
            d.offer(0);
        }),
        ("indirect descriptor 9", |d| {
            d.describe(TABLE, 0, BUFFERS, 32, INDIRECT, 0);
            d.describe(BUFFERS, 0, BUFFERS, 16, NEXT, 9);
            d.offer(0);
        }),
        ("not RAM", |d| {
            d.describe(TABLE, 0, RAM - 16, 16, INDIRECT, 0);
            d.describe(RAM - 16, 0, BUFFERS, 100, NEXT, 0);
            d.describe(TABLE, 1, RAM, 32, INDIRECT, 0);
            d.offer(1);
        }),
        ("past the address space", |d| {
            d.describe(TABLE, 0, u64::MAX, 2, 0, 0);
            d.offer(0);
        }),
        ("past the address space", |d| {
            d.describe(TABLE, 0, SMM_SPACE | BUFFERS, 100, 0, 0);
            d.offer(0);
        }),
        ("4 GiB", |d| {
            d.describe(TABLE, 0, BUFFERS, u32::MAX, NEXT, 1);
            d.describe(TABLE, 1, BUFFERS, 100, 0, 0);
            d.offer(0);
        }),
    ];
    for (sentence, break_rule) in cases {
        let mut driver = Driver::new();
        break_rule(&mut driver);
        let fault = driver.ring(false).take(8, u64::MAX).expect_err(sentence);
        assert!(fault.0.contains(sentence), "{sentence}: {fault}");
    }
}

#[test]
fn a_receive_buffer_outside_ram_or_too_short_is_a_fault() {
    for (address, length) in [(RAM, 2000), (RAM - 10, 2000), (BUFFERS, 11), (u64::MAX - 5000, 2000)] {
        let mut driver = Driver::new();
        driver.describe(TABLE, 0, address, length, WRITE, 0);
        driver.offer(0);
        assert!(driver.ring(false).put(&[&packet(60)], 12, true).is_err(), "{address:#x}");
    }
}

#[test]
fn random_rings_do_no_harm() {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for _ in 0..2000 {
        let mut driver = Driver::new();
        for index in 0..u64::from(SIZE) {
            let address = [BUFFERS, TABLE, RAM - 40, random() << 30][random() as usize % 4] + random() % 64;
            let length = [100, 2000, 16 * (random() as u32 % 9), u32::MAX][random() as usize % 4];
            driver.describe(TABLE, index, address, length, random() as u16 % 8, random() as u16 % 10);
        }
        (0..random() % 10).for_each(|_| driver.offer(random() as u16 % 9));
        let mut ring = driver.ring(random() % 2 == 0);
        let data = packet(random() as usize % 4000);
        let merge = random() % 2 == 0;
        let _ = ring.put(&[&data, &[], &data], 10 + 2 * (random() as usize % 2), merge);
        let _ = ring.take(4, random() << 8);
        let _ = ring.give_back(random() as usize % 6);
    }
}
