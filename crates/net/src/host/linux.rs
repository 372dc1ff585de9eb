//! The host as Linux has it: non-blocking sockets in one epoll set, edge-triggered.
//!
//! Reference: Linux man-pages 6.03: socket(7), ip(7), ipv6(7), tcp(7), udp(7), icmp(7), epoll(7), cmsg(3).

use super::route::{self, Routes};
use super::{Host, NetworkError, Ready, Token};
use crate::wire::icmp;
use std::io::{self, Error};
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLV_CONF_MAXIMUM: u64 = 64 << 10;
const RESOLVERS_MAXIMUM: usize = 3;
const DNS_PORT: u16 = 53;
const BACKLOG: i32 = 128;
const RESERVE: RawFd = 128;
const DATAGRAM_MAXIMUM: usize = 65_536;
const CONTROL_SIZE: usize = 512;
/// Datagrams are taken in bursts; the default of the kernel holds few large ones.
const UDP_BUFFER: i32 = 1 << 20;
/// The kernel doubles it; more than that of one connection is waste with thousands.
const EVENTS_AT_ONCE: usize = 64;

/// Sockets of this process.
pub struct LinuxHost {
    epoll: OwnedFd,
    /// Descriptors from here on are left to the rest of the process: its disks, its terminal.
    reserved: RawFd,
    routes: Routes,
}

/// What `epoll_wait` reports.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What was registered, see [`Token::pack`].
    pub number: u64,
    /// What became possible.
    pub ready: Ready,
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the system call that gave this descriptor gave it to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let pointer: *const T = value;
    // SAFETY: `pointer` is to a live `T` of the length given.
    check(unsafe { libc::setsockopt(fd, level, name, pointer.cast(), size::<T>()) })?;
    Ok(())
}

/// A socket address as the kernel takes it.
struct RawAddress {
    storage: libc::sockaddr_storage,
    length: libc::socklen_t,
}

impl RawAddress {
    fn empty() -> Self {
        // SAFETY: all zeros is a valid `sockaddr_storage`.
        Self { storage: unsafe { zeroed() }, length: size::<libc::sockaddr_storage>() }
    }

    fn new(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        let target: *mut libc::sockaddr_storage = &mut raw.storage;
        match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
                    sin_zero: [0; 8],
                };
                // SAFETY: `sockaddr_storage` is as large and as aligned as every socket address.
                unsafe { target.cast::<libc::sockaddr_in>().write(sin) };
                raw.length = size::<libc::sockaddr_in>();
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { target.cast::<libc::sockaddr_in6>().write(sin6) };
                raw.length = size::<libc::sockaddr_in6>();
            }
        }
        raw
    }

    fn pointer(&self) -> *const libc::sockaddr {
        let pointer: *const libc::sockaddr_storage = &self.storage;
        pointer.cast()
    }

    fn pointer_mut(&mut self) -> *mut libc::sockaddr {
        let pointer: *mut libc::sockaddr_storage = &mut self.storage;
        pointer.cast()
    }

    fn address(&self) -> io::Result<SocketAddr> {
        // SAFETY: the storage is larger than any address that its family can have, and initialized.
        unsafe { read_address(self.pointer()) }
    }
}

/// The address behind a pointer.
///
/// # Safety
/// `pointer` is to as many initialized bytes as a `sockaddr_in6` has, aligned for one.
unsafe fn read_address(pointer: *const libc::sockaddr) -> io::Result<SocketAddr> {
    // SAFETY: the caller's promise covers both families.
    unsafe {
        match i32::from((*pointer).sa_family) {
            libc::AF_INET => {
                let sin = pointer.cast::<libc::sockaddr_in>().read_unaligned();
                let address = Ipv4Addr::from(u32::from_be(sin.sin_addr.s_addr));
                Ok(SocketAddr::new(address.into(), u16::from_be(sin.sin_port)))
            }
            libc::AF_INET6 => {
                let sin6 = pointer.cast::<libc::sockaddr_in6>().read_unaligned();
                let address = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
                Ok(SocketAddr::new(address.into(), u16::from_be(sin6.sin6_port)))
            }
            _ => Err(Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        }
    }
}

fn open(v4: bool, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: takes no pointers.
    let socket =
        owned(unsafe { libc::socket(family, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, protocol) })?;
    if !v4 {
        set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, &1i32)?;
    }
    Ok(socket)
}

fn bind(socket: &OwnedFd, at: SocketAddr) -> io::Result<()> {
    let raw = RawAddress::new(at);
    // SAFETY: the address is of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), raw.pointer(), raw.length) })?;
    Ok(())
}

/// Have errors of the network queued for `receive_error`.
fn queue_errors(socket: &OwnedFd, v4: bool) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    if v4 {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVERR, &1i32)
    } else {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1i32)
    }
}

impl LinuxHost {
    /// An empty epoll set.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll, reserved: descriptor_limit().saturating_sub(RESERVE), routes: Routes::new() })
    }

    /// A new socket, unless it is one of the last descriptors: a guest that opens flows must not take them.
    fn admit(&self, socket: OwnedFd) -> io::Result<OwnedFd> {
        if socket.as_raw_fd() >= self.reserved {
            return Err(Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(socket)
    }

    /// A second handle on the epoll set, for the thread that waits.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn poller(&self) -> io::Result<Poller> {
        Ok(Poller { epoll: self.epoll.try_clone()? })
    }
}

/// How many descriptors this process may have.
fn descriptor_limit() -> RawFd {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives over the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    if result < 0 {
        return RawFd::MAX;
    }
    RawFd::try_from(limit.rlim_cur).unwrap_or(RawFd::MAX)
}

fn control(epoll: &OwnedFd, operation: i32, fd: RawFd, number: u64) -> io::Result<()> {
    let interest = libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP | libc::EPOLLET;
    let mut event = libc::epoll_event { events: interest as u32, u64: number };
    // SAFETY: `event` lives over the call.
    check(unsafe { libc::epoll_ctl(epoll.as_raw_fd(), operation, fd, &mut event) })?;
    Ok(())
}

/// Waits for readiness.
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Register a descriptor that is no socket of the stack under a number of its own.
    ///
    /// # Errors
    /// The system call's.
    pub fn add(&self, fd: RawFd, number: u64) -> io::Result<()> {
        control(&self.epoll, libc::EPOLL_CTL_ADD, fd, number)
    }

    /// Wait for events; without `timeout_ms`, until there is one.
    ///
    /// # Errors
    /// The system call's, but for an interruption, which reports no events.
    pub fn wait(&self, timeout_ms: Option<u32>, events: &mut Vec<Event>) -> io::Result<()> {
        let mut raw = [libc::epoll_event { events: 0, u64: 0 }; EVENTS_AT_ONCE];
        let timeout = timeout_ms.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX));
        // SAFETY: `raw` has room for as many events as are asked for.
        let result = check(unsafe {
            libc::epoll_wait(self.epoll.as_raw_fd(), raw.as_mut_ptr(), EVENTS_AT_ONCE as i32, timeout)
        });
        let count = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other? as usize,
        };
        events.clear();
        events.extend(
            raw[..count].iter().map(|event| Event { number: event.u64, ready: readiness(event.events) }),
        );
        Ok(())
    }
}

fn readiness(bits: u32) -> Ready {
    let has = |bit: i32| bits & bit as u32 != 0;
    let error = has(libc::EPOLLERR) || has(libc::EPOLLHUP);
    Ready {
        readable: has(libc::EPOLLIN) || has(libc::EPOLLRDHUP) || error,
        writable: has(libc::EPOLLOUT) || error,
        error,
        ended: has(libc::EPOLLRDHUP) || error,
    }
}

impl Host for LinuxHost {
    type Socket = OwnedFd;

    fn watch(&mut self, socket: &OwnedFd, token: Token) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        match control(&self.epoll, libc::EPOLL_CTL_ADD, fd, token.pack()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                control(&self.epoll, libc::EPOLL_CTL_MOD, fd, token.pack())
            }
            other => other,
        }
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.admit(open(to.is_ipv4(), libc::SOCK_STREAM, 0)?)?;
        prepare_stream(&socket)?;
        let raw = RawAddress::new(to);
        // SAFETY: the address is of the length given.
        let result = check(unsafe { libc::connect(socket.as_raw_fd(), raw.pointer(), raw.length) });
        match result {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    }

    fn connect_result(&mut self, socket: &OwnedFd) -> io::Result<()> {
        let mut value = 0i32;
        let mut length = size::<i32>();
        let pointer: *mut i32 = &mut value;
        // SAFETY: `pointer` is to an i32, as `length` says.
        check(unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ERROR,
                pointer.cast(),
                &mut length,
            )
        })?;
        match value {
            0 => Ok(()),
            errno => Err(Error::from_raw_os_error(errno)),
        }
    }

    fn listen(&mut self, at: SocketAddr) -> io::Result<OwnedFd> {
        let socket = open(at.is_ipv4(), libc::SOCK_STREAM, 0)?;
        set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR, &1i32)?;
        bind(&socket, at)?;
        // SAFETY: takes no pointers.
        check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
        Ok(socket)
    }

    fn accept(&mut self, listener: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
        let mut raw = RawAddress::empty();
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let pointer = raw.pointer_mut();
        // SAFETY: address and length are of the same, live `RawAddress`.
        let socket = owned(unsafe { libc::accept4(listener.as_raw_fd(), pointer, &mut raw.length, flags) })?;
        let socket = self.admit(socket)?;
        prepare_stream(&socket)?;
        let from = raw.address()?;
        Ok((socket, from))
    }

    fn send(&mut self, socket: &OwnedFd, data: &[u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are of one slice.
        let count =
            unsafe { libc::send(socket.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_NOSIGNAL) };
        usize::try_from(count).map_err(|_| Error::last_os_error())
    }

    fn receive(&mut self, socket: &OwnedFd, into: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
        into.reserve(limit);
        let spare = &mut into.spare_capacity_mut()[..limit];
        // SAFETY: pointer and length are of the vector's spare capacity.
        let count = unsafe { libc::recv(socket.as_raw_fd(), spare.as_mut_ptr().cast(), limit, 0) };
        let count = usize::try_from(count).map_err(|_| Error::last_os_error())?;
        let length = into.len() + count;
        // SAFETY: the kernel has initialized `count` bytes past the old length.
        unsafe { into.set_len(length) };
        Ok(count)
    }

    fn shutdown(&mut self, socket: &OwnedFd) -> io::Result<()> {
        // SAFETY: takes no pointers.
        check(unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_WR) })?;
        Ok(())
    }

    fn abort(&mut self, socket: OwnedFd) {
        let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
        // Without it the peer sees an end in place of a reset: nothing that a caller could do better.
        let _ = set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, &at_once);
    }

    fn open_udp(&mut self, at: SocketAddr) -> io::Result<OwnedFd> {
        let socket = self.admit(open(at.is_ipv4(), libc::SOCK_DGRAM, 0)?)?;
        // Only a wish: the kernel has an upper bound of its own.
        let _ = set_option(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &UDP_BUFFER);
        queue_errors(&socket, at.is_ipv4())?;
        bind(&socket, at)?;
        Ok(socket)
    }

    fn open_ping(&mut self, v4: bool) -> io::Result<OwnedFd> {
        let protocol = if v4 { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
        let socket = self.admit(open(v4, libc::SOCK_DGRAM, protocol)?)?;
        queue_errors(&socket, v4)?;
        Ok(socket)
    }

    fn send_to(&mut self, socket: &OwnedFd, data: &[u8], to: SocketAddr, hops: u8) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        if to.is_ipv4() {
            set_option(fd, libc::IPPROTO_IP, libc::IP_TTL, &i32::from(hops))?;
        } else {
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &i32::from(hops))?;
        }
        let raw = RawAddress::new(to);
        let send = || {
            // SAFETY: data and address are of the lengths given.
            let count = unsafe {
                libc::sendto(
                    fd,
                    data.as_ptr().cast(),
                    data.len(),
                    libc::MSG_NOSIGNAL,
                    raw.pointer(),
                    raw.length,
                )
            };
            if count < 0 {
                return Err(Error::last_os_error());
            }
            Ok(())
        };
        // The first attempt may report what happened to an earlier datagram; that is queued as well.
        send().or_else(|_| send())
    }

    fn receive_from(&mut self, socket: &OwnedFd, into: &mut Vec<u8>) -> io::Result<SocketAddr> {
        into.clear();
        into.reserve(DATAGRAM_MAXIMUM);
        let mut raw = RawAddress::empty();
        let spare = into.spare_capacity_mut();
        let (data, room) = (spare.as_mut_ptr(), spare.len());
        let pointer = raw.pointer_mut();
        // SAFETY: data and address are of the lengths given.
        let count =
            unsafe { libc::recvfrom(socket.as_raw_fd(), data.cast(), room, 0, pointer, &mut raw.length) };
        let count = usize::try_from(count).map_err(|_| Error::last_os_error())?;
        // SAFETY: the kernel has initialized the first `count` bytes.
        unsafe { into.set_len(count) };
        raw.address()
    }

    fn receive_error(&mut self, socket: &OwnedFd) -> Option<NetworkError> {
        receive_error(socket)
    }

    fn is_local(&mut self, address: IpAddr) -> bool {
        self.routes.is_local(address)
    }

    fn resolvers(&mut self) -> Vec<SocketAddr> {
        use std::io::Read;
        let mut text = String::new();
        let file = std::fs::File::open(RESOLV_CONF);
        let read = file.and_then(|file| file.take(RESOLV_CONF_MAXIMUM).read_to_string(&mut text));
        match read {
            Ok(_) => parse_resolv_conf(&text),
            Err(_) => Vec::new(),
        }
    }

    fn random(&mut self) -> u64 {
        let mut bytes = [0; 8];
        // SAFETY: pointer and length are of one array.
        let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if count == 8 {
            return u64::from_ne_bytes(bytes);
        }
        // A seeded hash of nothing: unguessable too, as hash maps need it to be.
        use std::hash::{BuildHasher, Hasher};
        std::collections::hash_map::RandomState::new().build_hasher().finish()
    }
}

/// No delay of short segments, and no connection that a vanished peer keeps for ever.
fn prepare_stream(socket: &OwnedFd) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, &1i32)?;
    set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, &1i32)
}

/// The `nameserver` lines (resolv.conf(5)).
fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let named = words.next() == Some("nameserver");
        let word = words.next().filter(|_| named)?;
        let plain = word.split('%').next()?;
        plain.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT))
    };
    text.lines().filter_map(address).take(RESOLVERS_MAXIMUM).collect()
}

/// `struct sock_extended_err` of linux/errqueue.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExtendedError {
    errno: u32,
    origin: u8,
    kind: u8,
    code: u8,
    pad: u8,
    info: u32,
    data: u32,
}

/// Where a control message comes from; its buffer is aligned as `cmsghdr` asks.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_SIZE]);

fn receive_error(socket: &OwnedFd) -> Option<NetworkError> {
    let mut raw = RawAddress::empty();
    let mut control = ControlBuffer([0; CONTROL_SIZE]);
    // What was sent: for a ping socket, an ICMP header; it stays zero as far as there is less.
    let mut sent = [0u8; icmp::SIZE];
    let mut iov = libc::iovec { iov_base: sent.as_mut_ptr().cast(), iov_len: sent.len() };
    // SAFETY: all zeros is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_name = raw.pointer_mut().cast();
    message.msg_namelen = raw.length;
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control.0);
    // SAFETY: all pointers in `message` are to live buffers of the lengths it says.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_ERRQUEUE) };
    if count < 0 {
        return None;
    }
    let (error, reporter) = extended_error(&message)?;
    Some(NetworkError {
        destination: raw.address().ok()?,
        reporter: reporter.map(|address| address.ip()),
        errno: error.errno as i32,
        expired: matches!((error.origin, error.kind), (2, 11) | (3, 3)),
        mtu: error.info,
        sequence: u16::from_be_bytes([sent[6], sent[7]]),
    })
}

/// The error in a message's control data, and who reported it.
fn extended_error(message: &libc::msghdr) -> Option<(ExtendedError, Option<SocketAddr>)> {
    // SAFETY: the kernel has written well-formed control messages, which these macros walk within the
    // length that it left in `message`; what is read lies inside one message, as its length is checked.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            let kind = ((*header).cmsg_level, (*header).cmsg_type);
            let room = (*header).cmsg_len.saturating_sub(libc::CMSG_LEN(0) as usize);
            let ours = kind == (libc::IPPROTO_IP, libc::IP_RECVERR)
                || kind == (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
            if ours && room >= size_of::<ExtendedError>() {
                let data = libc::CMSG_DATA(header);
                let error = data.cast::<ExtendedError>().read_unaligned();
                let offender = data.add(size_of::<ExtendedError>());
                let whole = room >= size_of::<ExtendedError>() + size_of::<libc::sockaddr_in>();
                let reporter = whole.then(|| read_offender(offender)).flatten();
                return Some((error, reporter));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// The address after an extended error; its family is `AF_UNSPEC` when nobody reported it.
///
/// # Safety
/// `pointer` is to a socket address as the kernel writes it, inside a buffer of `CONTROL_SIZE`.
unsafe fn read_offender(pointer: *const u8) -> Option<SocketAddr> {
    // SAFETY: the caller's promise; the buffer goes on past a short address.
    unsafe { read_address(pointer.cast()).ok() }
}

/// Whether an address is one of an interface of this host, for hosts where routes cannot be asked for.
pub(super) fn is_interface_address(address: IpAddr) -> bool {
    route::interface_addresses().is_ok_and(|all| all.contains(&address))
}

/// An address from a list that `getifaddrs` gave.
///
/// # Safety
/// `pointer` is null or to a socket address of its family's size.
pub(super) unsafe fn interface_address(pointer: *const libc::sockaddr) -> Option<IpAddr> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { read_address(pointer).ok().map(|address| address.ip()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_lines() {
        let text = "# x\nsearch a.test\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\n";
        let expected = ["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }

    #[test]
    fn the_host_knows_its_own_addresses() {
        let mut host = LinuxHost::new().unwrap();
        assert!(host.is_local("127.0.0.1".parse().unwrap()));
        assert!(host.is_local("127.9.9.9".parse().unwrap()));
        assert!(!host.is_local("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn a_refused_datagram_is_reported_with_its_destination() {
        let mut host = LinuxHost::new().unwrap();
        let probe = host.open_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        host.send_to(&probe, b"x", closed, 64).unwrap();
        let mut error = None;
        for _ in 0..200 {
            error = error.or_else(|| host.receive_error(&probe));
            std::thread::sleep(std::time::Duration::from_millis(if error.is_some() { 0 } else { 5 }));
        }
        let error = error.unwrap();
        assert_eq!((error.destination, error.errno), (closed, libc::ECONNREFUSED));
        assert_eq!(error.reporter, Some(closed.ip()));
    }
}
