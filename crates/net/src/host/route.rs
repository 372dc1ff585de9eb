//! Whether an address leads back to this host: the kernel's routes are asked.
//!
//! Every address that the kernel would deliver locally has a route of type `RTN_LOCAL`: those of interfaces,
//! all of 127/8, and what an administrator has declared. A list of interface addresses would miss the last.
//!
//! Reference: Linux man-pages 6.03 rtnetlink(7), netlink(7).

use super::{address, linux};
use std::io::{self, Error};
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const HEADER: usize = 16;
const ROUTE: usize = 12;
const ATTRIBUTE: usize = 4;
const ANSWER_MAXIMUM: usize = 4096;

/// Asks the kernel for routes.
pub struct Routes {
    socket: Option<OwnedFd>,
    sequence: u32,
}

impl Routes {
    /// Open the socket; without one (some sandboxes have none) interface addresses have to do.
    pub fn new() -> Self {
        Self { socket: open().ok(), sequence: 0 }
    }

    /// Whether packets to an address stay on this host, or go to a group.
    pub fn is_local(&mut self, address: IpAddr) -> bool {
        match self.route_type(address) {
            Ok(kind) => kind != libc::RTN_UNICAST && !unreachable(kind),
            Err(error) if is_no_route(&error) => false,
            Err(_) => linux::is_interface_address(address),
        }
    }

    fn route_type(&mut self, address: IpAddr) -> io::Result<u8> {
        let socket = self.socket.as_ref().ok_or_else(|| Error::from_raw_os_error(libc::ENOTSUP))?;
        self.sequence = self.sequence.wrapping_add(1);
        let request = compose(address, self.sequence);
        // SAFETY: pointer and length are of one vector.
        let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(Error::last_os_error());
        }
        loop {
            let mut answer = [0u8; ANSWER_MAXIMUM];
            // SAFETY: pointer and length are of one array. The kernel answers at once.
            let count =
                unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
            let count = usize::try_from(count).map_err(|_| Error::last_os_error())?;
            if let Some(result) = read_answer(&answer[..count], self.sequence) {
                return result;
            }
        }
    }
}

impl Default for Routes {
    fn default() -> Self {
        Self::new()
    }
}

fn unreachable(kind: u8) -> bool {
    matches!(kind, libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT | libc::RTN_BLACKHOLE)
}

fn is_no_route(error: &Error) -> bool {
    let errno = error.raw_os_error();
    matches!(errno, Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd =
        unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `RTM_GETROUTE` for one address; fields are in the host's byte order.
fn compose(address: IpAddr, sequence: u32) -> Vec<u8> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET as u8, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6 as u8, v6.octets().to_vec()),
    };
    let length = HEADER + ROUTE + ATTRIBUTE + octets.len();
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(libc::RTM_GETROUTE.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend(0u32.to_ne_bytes());
    message.extend([family, octets.len() as u8 * 8]);
    message.extend([0; ROUTE - 2]);
    message.extend(((ATTRIBUTE + octets.len()) as u16).to_ne_bytes());
    message.extend(libc::RTA_DST.to_ne_bytes());
    message.extend(octets);
    message
}

/// The type of the route in an answer; `None` for an answer to an earlier question.
fn read_answer(answer: &[u8], sequence: u32) -> Option<io::Result<u8>> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    if word(8)? != sequence {
        return None;
    }
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if kind == libc::RTM_NEWROUTE {
        // rtm_type is the eighth byte of `struct rtmsg`.
        return answer.get(HEADER + 7).map(|kind| Ok(*kind));
    }
    let errno = word(HEADER).map_or(libc::EIO, |value| (value as i32).wrapping_neg());
    Some(Err(Error::from_raw_os_error(errno)))
}

/// The addresses of all interfaces.
///
/// # Errors
/// `getifaddrs`'s.
pub fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` takes a pointer, which `freeifaddrs` gets back below.
    if unsafe { libc::getifaddrs(&mut list) } < 0 {
        return Err(Error::last_os_error());
    }
    let mut addresses = Vec::new();
    let mut entry = list;
    while !entry.is_null() {
        // SAFETY: entries form a list that ends with null, and live until `freeifaddrs`.
        unsafe {
            addresses.extend(address::interface_address((*entry).ifa_addr));
            entry = (*entry).ifa_next;
        }
    }
    // SAFETY: `list` is what `getifaddrs` gave, and no pointer into it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(addresses)
}

const _: () = assert!(size_of::<libc::nlmsghdr>() == HEADER);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_local_and_is_an_interface_address() {
        let loopback: IpAddr = "127.0.0.1".parse().unwrap();
        assert!(Routes::new().is_local(loopback));
        assert!(interface_addresses().unwrap().contains(&loopback));
    }

    #[test]
    fn an_answer_to_another_question_is_skipped() {
        let mut answer = vec![0; HEADER + ROUTE];
        answer[4..6].copy_from_slice(&libc::RTM_NEWROUTE.to_ne_bytes());
        answer[8..12].copy_from_slice(&5u32.to_ne_bytes());
        answer[HEADER + 7] = libc::RTN_LOCAL;
        assert!(read_answer(&answer, 4).is_none());
        assert_eq!(read_answer(&answer, 5).unwrap().unwrap(), libc::RTN_LOCAL);
        assert!(read_answer(&answer[..10], 5).is_none());
    }
}
