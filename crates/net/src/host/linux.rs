//! The host as Linux has it: non-blocking sockets in one epoll set, edge-triggered.
//!
//! Reference: Linux man-pages 6.03: socket(7), ip(7), ipv6(7), tcp(7), udp(7), icmp(7), epoll(7), cmsg(3).

use super::address::{check, owned, set_option, size, RawAddress};
use super::error_queue::{queue_errors, receive_error};
use super::poller::{control, Poller};
use super::resolv_conf::parse_resolv_conf;
use super::route::{self, Routes};
use super::{Host, Manner, NetworkError, Token};
use std::io::{self, Error};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

const RESOLV_CONF: &str = "/etc/resolv.conf";
const RESOLV_CONF_MAXIMUM: u64 = 64 << 10;
const BACKLOG: i32 = 128;
const RESERVE: RawFd = 128;
const DATAGRAM_MAXIMUM: usize = 65_536;
/// Datagrams are taken in bursts; the default of the kernel holds few large ones.
const UDP_BUFFER: i32 = 1 << 20;

/// Sockets of this process.
pub struct LinuxHost {
    epoll: OwnedFd,
    /// Descriptors from here on are left to the rest of the process: its disks, its terminal.
    reserved: RawFd,
    routes: Routes,
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

    fn set_manner(&mut self, socket: &OwnedFd, v4: bool, manner: Manner) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        let hops = i32::from(manner.hops);
        if v4 {
            let discover = if manner.whole { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_WANT };
            set_option(fd, libc::IPPROTO_IP, libc::IP_TTL, &hops)?;
            set_option(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &discover)
        } else {
            let discover = if manner.whole { libc::IPV6_PMTUDISC_DO } else { libc::IPV6_PMTUDISC_WANT };
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &hops)?;
            set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &discover)
        }
    }

    fn send_to(&mut self, socket: &OwnedFd, data: &[u8], to: SocketAddr) -> io::Result<()> {
        let fd = socket.as_raw_fd();
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

/// Whether an address is one of an interface of this host, for hosts where routes cannot be asked for.
pub(super) fn is_interface_address(address: IpAddr) -> bool {
    route::interface_addresses().is_ok_and(|all| all.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        host.send_to(&probe, b"x", closed).unwrap();
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
