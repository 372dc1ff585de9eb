//! What a test machine's code puts out, and how its handlers tell of faults.

use sublet_engine::{Exit, Vcpu};

/// A handler: `mov eax,vector; out 0x80,eax; mov rax,cr2; out 0x81,eax; hlt`.
pub fn handler(vector: u8) -> [u8; 13] {
    [0xb8, vector, 0, 0, 0, 0xe7, 0x80, 0x0f, 0x20, 0xd0, 0xe7, 0x81, 0xf4]
}

/// What comes out of a machine until it halts, by port, or guest-physical address, and data.
pub fn outputs(vcpu: &mut dyn Vcpu) -> Vec<(u64, u64)> {
    let mut out = Vec::new();
    loop {
        match vcpu.run().unwrap() {
            Exit::PioOut { port, data, .. } => out.push((u64::from(port), data)),
            Exit::MmioWrite { gpa, data, .. } => out.push((gpa, data)),
            Exit::MmioRead { gpa, .. } => {
                out.push((gpa, 0));
                vcpu.complete_read(0x1234_5678);
            }
            Exit::Hlt => return out,
            other => panic!("{other:?} after {out:x?}"),
        }
        assert!(out.len() < 100, "{out:x?}");
    }
}

/// Values put out at port 0x80.
pub fn shown(values: &[u64]) -> Vec<(u64, u64)> {
    values.iter().map(|&value| (0x80, value)).collect()
}
