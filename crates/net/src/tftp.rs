//! A TFTP server, for firmware that boots from the network: reading only, within one folder.
//!
//! A window of blocks is under way at a time, one unless the client asks for more, and every block is read
//! from the file when it is sent, so a transfer costs an open file and a few numbers.
//!
//! Reference: RFC 1350 "The TFTP Protocol"; RFC 2347 to RFC 2349 and RFC 7440 for options.

use crate::config::BootConfig;
use crate::context::Context;
use crate::host::Host;
use crate::timers::{Deadline, Timer};
use crate::wire::{read_u16, udp, Drop};
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where requests go.
pub const PORT: u16 = 69;

const TRANSFERS_MAXIMUM: usize = 16;
const BLOCK_DEFAULT: u16 = 512;
const BLOCK_RANGE: (u16, u16) = (8, 65_464);
const WINDOW_MAXIMUM: u16 = 64;
/// Bytes of the longest blocks that a window may have: what may wait for a guest that takes nothing.
const WINDOW_BYTES: u16 = u16::MAX;
const TIMEOUT_NS: u64 = 1_000_000_000;
const RETRIES_MAXIMUM: u32 = 8;
/// Ports of transfers start here, as the guest sees them.
const FIRST_PORT: u16 = 49_152;
/// IP and UDP headers, and TFTP's own.
const HEADERS: u16 = 32;

const READ_REQUEST: u16 = 1;
const WRITE_REQUEST: u16 = 2;
const DATA: u16 = 3;
const ACKNOWLEDGMENT: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;

const NOT_FOUND: u16 = 1;
const ACCESS: u16 = 2;
const ILLEGAL: u16 = 4;
const NO_OPTIONS: u16 = 8;

#[derive(Debug)]
struct Transfer {
    file: File,
    size: u64,
    block_size: u16,
    /// Blocks sent before an acknowledgment is waited for.
    window: u16,
    /// The options taken, until the client has acknowledged them.
    options: Option<Vec<u8>>,
    /// Blocks acknowledged; on the wire the number wraps.
    acknowledged: u64,
    /// Blocks sent at least once.
    sent: u64,
    /// The last block, once it has been sent: the first that is not full.
    last: Option<u64>,
    retries: u32,
}

/// All transfers, by machine and by our port.
#[derive(Debug, Default)]
pub struct Tftp {
    transfers: HashMap<(SocketAddr, u16), Transfer>,
    next_port: u16,
    deadline: Deadline,
}

/// A request to read, parsed.
struct Request<'a> {
    name: &'a str,
    options: Vec<(String, &'a str)>,
}

impl Tftp {
    /// Whether a datagram to a port of the router is for this server.
    pub fn owns(&self, guest: SocketAddr, port: u16) -> bool {
        port == PORT || self.transfers.contains_key(&(guest, port))
    }

    /// Take a datagram.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn input<H: Host>(
        &mut self,
        context: &mut Context<H>,
        guest: SocketAddr,
        server: SocketAddr,
        payload: &[u8],
    ) -> Result<(), Drop> {
        let operation = read_u16(payload, 0)?;
        let Some(boot) = context.config.boot.clone() else { return Err(Drop::NoFlow) };
        if server.port() != PORT {
            self.go_on(context, guest, server, operation, payload);
            return Ok(());
        }
        match operation {
            READ_REQUEST => self.begin(context, &boot, guest, server, &payload[2..]),
            WRITE_REQUEST => send(context, server, guest, &error(ACCESS, "this server only reads")),
            _ => send(context, server, guest, &error(ILLEGAL, "not a request")),
        }
        Ok(())
    }

    fn begin<H: Host>(
        &mut self,
        context: &mut Context<H>,
        boot: &BootConfig,
        guest: SocketAddr,
        server: SocketAddr,
        payload: &[u8],
    ) {
        let Some(request) = parse_request(payload) else {
            return send(context, server, guest, &error(ILLEGAL, "no file and mode"));
        };
        if self.transfers.len() >= TRANSFERS_MAXIMUM {
            return send(context, server, guest, &error(0, "too many transfers"));
        }
        let opened = open_beneath(&boot.root, request.name).and_then(|file| Ok((file.metadata()?, file)));
        match opened {
            Ok((metadata, file)) if metadata.is_file() => {
                let port = self.choose_port();
                let transfer = Transfer::new(file, metadata.len(), &request, context.config.mtu);
                let from = SocketAddr::new(server.ip(), port);
                let transfer = self.transfers.entry((guest, port)).insert_entry(transfer).into_mut();
                transfer.send_window(context, from, guest);
                self.arm(context);
            }
            _ => send(context, server, guest, &error(NOT_FOUND, "there is no such file")),
        }
    }

    fn choose_port(&mut self) -> u16 {
        self.next_port = self.next_port.wrapping_add(1) % (u16::MAX - FIRST_PORT);
        FIRST_PORT + self.next_port
    }

    fn go_on<H: Host>(
        &mut self,
        context: &mut Context<H>,
        guest: SocketAddr,
        server: SocketAddr,
        operation: u16,
        payload: &[u8],
    ) {
        let key = (guest, server.port());
        let Some(transfer) = self.transfers.get_mut(&key) else { return };
        let number = read_u16(payload, 2).ok().filter(|_| operation == ACKNOWLEDGMENT);
        // An old acknowledgment is no reason to send again (RFC 1123 §4.2.3.1).
        let news = number.is_some_and(|number| transfer.acknowledge(number));
        if operation == ERROR || transfer.is_over() {
            self.transfers.remove(&key);
        } else if news {
            transfer.send_window(context, server, guest);
            self.arm(context);
        }
    }

    fn arm<H: Host>(&mut self, context: &mut Context<H>) {
        let due = context.now + TIMEOUT_NS;
        context.timers.set(&mut self.deadline, due, Timer::Tftp);
    }

    /// Nobody has acknowledged anything for a while: send again, a few times. `entry`: as entered for.
    pub fn timeout<H: Host>(&mut self, context: &mut Context<H>, entry: u64) {
        let now = context.now;
        if !context.timers.is_due(&mut self.deadline, entry, now, Timer::Tftp) {
            return;
        }
        for ((guest, port), transfer) in &mut self.transfers {
            transfer.retries += 1;
            let from = SocketAddr::new(context.config.gateway_like(guest.ip()), *port);
            transfer.send_window(context, from, *guest);
        }
        self.transfers.retain(|_, transfer| transfer.retries < RETRIES_MAXIMUM);
        if !self.transfers.is_empty() {
            self.arm(context);
        }
    }
}

impl Transfer {
    fn new(file: File, size: u64, request: &Request<'_>, mtu: u16) -> Self {
        let mut transfer = Self {
            file,
            size,
            block_size: BLOCK_DEFAULT,
            window: 1,
            options: None,
            acknowledged: 0,
            sent: 0,
            last: None,
            retries: 0,
        };
        let accepted = transfer.negotiate(request, mtu);
        if !accepted.is_empty() {
            let mut message = OPTIONS.to_be_bytes().to_vec();
            for (name, value) in accepted {
                message.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
            }
            transfer.options = Some(message);
        }
        transfer
    }

    /// The options that are taken, with their values (RFC 2347).
    fn negotiate(&mut self, request: &Request<'_>, mtu: u16) -> Vec<(String, String)> {
        let mut accepted = Vec::new();
        for (name, value) in &request.options {
            let taken = match name.as_str() {
                "blksize" => value.parse().ok().filter(|size| *size >= BLOCK_RANGE.0).map(|size: u16| {
                    self.block_size = size.min(BLOCK_RANGE.1).min(mtu - HEADERS);
                    self.block_size.to_string()
                }),
                "tsize" => Some(self.size.to_string()),
                "windowsize" => value.parse().ok().filter(|count| *count > 0).map(|count: u16| {
                    self.window = count.min(WINDOW_MAXIMUM).min(WINDOW_BYTES / (mtu - HEADERS)).max(1);
                    self.window.to_string()
                }),
                "timeout" => Some((*value).to_owned()).filter(|value| value == "1"),
                _ => None,
            };
            accepted.extend(taken.map(|value| (name.clone(), value)));
        }
        accepted
    }

    /// Take the number of an acknowledged block; whether it is news.
    fn acknowledge(&mut self, number: u16) -> bool {
        if self.options.is_some() {
            if number == 0 {
                self.options = None;
                self.retries = 0;
            }
            return number == 0;
        }
        let more = u64::from(number.wrapping_sub(self.acknowledged as u16));
        if more == 0 || more > self.sent - self.acknowledged {
            return false;
        }
        self.acknowledged += more;
        self.retries = 0;
        true
    }

    fn is_over(&self) -> bool {
        self.last.is_some_and(|last| self.acknowledged >= last)
    }

    /// Send what follows the last acknowledgment: the options, or a window of blocks (RFC 7440 §4).
    fn send_window<H: Host>(&mut self, context: &mut Context<H>, from: SocketAddr, to: SocketAddr) {
        if let Some(options) = &self.options {
            return send(context, from, to, options);
        }
        for block in self.acknowledged + 1..=self.acknowledged + u64::from(self.window) {
            let (message, full) = self.read_block(block);
            send(context, from, to, &message);
            self.sent = self.sent.max(block);
            if !full {
                self.last = Some(block);
                return;
            }
        }
    }

    /// A block's message, and whether it is full. A file that cannot be read ends where that is: the client
    /// knows its size.
    fn read_block(&self, block: u64) -> (Vec<u8>, bool) {
        const HEADER: usize = 4;
        let mut message = vec![0; HEADER + usize::from(self.block_size)];
        message[..2].copy_from_slice(&DATA.to_be_bytes());
        message[2..HEADER].copy_from_slice(&(block as u16).to_be_bytes());
        let start = (block - 1) * u64::from(self.block_size);
        let mut filled = 0;
        while HEADER + filled < message.len() {
            match self.file.read_at(&mut message[HEADER + filled..], start + filled as u64) {
                Ok(0) | Err(_) => break,
                Ok(count) => filled += count,
            }
        }
        let full = filled == usize::from(self.block_size);
        message.truncate(HEADER + filled);
        (message, full)
    }
}

fn send<H: Host>(context: &mut Context<H>, from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    if let Some(path) = context.path(from.ip(), to.ip()) {
        if let Some(frame) = udp::frame(&path, (from.port(), to.port()), payload) {
            context.outbox.push(frame);
        }
    }
}

fn error(code: u16, text: &str) -> Vec<u8> {
    debug_assert!(code <= NO_OPTIONS);
    [&ERROR.to_be_bytes()[..], &code.to_be_bytes(), text.as_bytes(), &[0]].concat()
}

/// File, mode and options, each ended by a zero byte. Every mode is served as octets.
fn parse_request(payload: &[u8]) -> Option<Request<'_>> {
    let text = std::str::from_utf8(payload.strip_suffix(&[0])?).ok()?;
    let mut words = text.split('\0');
    let name = words.next().filter(|name| !name.is_empty())?;
    words.next()?;
    let mut options = Vec::new();
    while let (Some(option), Some(value)) = (words.next(), words.next()) {
        options.push((option.to_ascii_lowercase(), value));
    }
    Some(Request { name, options })
}

/// Open a file below a folder, whatever its name says: no way leads out of it, no link either.
///
/// Reference: Linux man-pages 6.03 openat2(2), `RESOLVE_IN_ROOT`: absolute names and `..` are taken from the
/// folder, as a client expects who asks for `/pxelinux.0`.
fn open_beneath(root: &Path, name: &str) -> io::Result<File> {
    let folder = File::open(root)?;
    let path = CString::new(name.replace('\\', "/"))?;
    let how = OpenHow {
        flags: (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK) as u64,
        mode: 0,
        resolve: libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS,
    };
    let pointer: *const OpenHow = &how;
    // SAFETY: the path ends with zero, and `how` is of the size given; both outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            folder.as_raw_fd(),
            path.as_ptr(),
            pointer,
            std::mem::size_of::<OpenHow>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

/// `struct open_how` of linux/openat2.h.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}
