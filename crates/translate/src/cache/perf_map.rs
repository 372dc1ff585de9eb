//! `/tmp/perf-PID.map`: names of translated blocks for `perf report`.
//!
//! Reference: Linux tools/perf/Documentation/jit-interface.txt. Written when the environment has
//! [`VARIABLE`]; up to 64 MiB, so that a guest that makes code for ever does not fill the disk.

use crate::mode::Mode;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The environment variable that asks for the file.
pub const VARIABLE: &str = "SUBLET_PERF_MAP";
const MOST_BYTES: u64 = 64 << 20;

struct Map {
    file: BufWriter<File>,
    left: u64,
}

/// Whether the file is wanted.
pub fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

fn map() -> Option<&'static Mutex<Map>> {
    static MAP: OnceLock<Option<Mutex<Map>>> = OnceLock::new();
    MAP.get_or_init(|| {
        if !is_wanted() {
            return None;
        }
        let path = format!("/tmp/perf-{}.map", std::process::id());
        let _ = std::fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).ok()?;
        Some(Mutex::new(Map { file: BufWriter::new(file), left: MOST_BYTES }))
    })
    .as_ref()
}

/// Name the host code of a block by where the guest's code is, and by its mode.
pub fn name(host: u64, length: usize, gpa: u64, mode: Mode) {
    let Some(map) = map() else { return };
    let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
    let side = match mode.cpl() {
        3 if mode.windowed() => "windowed",
        3 => "user",
        _ => "kernel",
    };
    let line = format!("{host:x} {length:x} guest-{side}@{gpa:#x}\n");
    if map.left >= line.len() as u64 && map.file.write_all(line.as_bytes()).is_ok() {
        map.left -= line.len() as u64;
        // perf reads the file at any time; a line is small beside the translation that it names.
        let _ = map.file.flush();
    }
}
