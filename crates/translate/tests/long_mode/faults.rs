//! Handlers that put a fault's vector out and begin anew.

use sublet_memory::GuestMemory;

/// Where the tables and code of a test machine are, below 4 GiB.
pub struct Places {
    pub idt: u64,
    pub handlers: u64,
    pub stack: u64,
    /// Where execution goes on after a fault.
    pub code: u64,
}

/// `mov esp,stack; mov eax,0x1000+vector; out 0x80,eax; jmp code`.
fn handler(places: &Places, at: u64, vector: u8) -> Vec<u8> {
    let mut code = vec![0xbc];
    code.extend((places.stack as u32).to_le_bytes());
    code.extend([0xb8, vector, 0x10, 0, 0, 0xe7, 0x80, 0xe9]);
    code.extend((places.code.wrapping_sub(at + 17) as u32).to_le_bytes());
    code
}

/// Write the handlers of vectors 0 to 31, in the segment of selector 8, and their gates.
pub fn put(memory: &GuestMemory, places: &Places) {
    for vector in 0..32u8 {
        let at = places.handlers + 32 * u64::from(vector);
        let gate = at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16) << 48;
        memory.write(places.idt + 16 * u64::from(vector), &gate.to_le_bytes()).unwrap();
        memory.write(at, &handler(places, at, vector)).unwrap();
    }
}
