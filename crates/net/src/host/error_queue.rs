//! What the network said about datagrams sent before: the error queues of sockets.
//!
//! Reference: Linux man-pages 6.03: ip(7) "IP_RECVERR", ipv6(7), cmsg(3).

use super::address::{read_address, set_option, RawAddress};
use super::NetworkError;
use crate::wire::icmp;
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

const CONTROL_SIZE: usize = 512;

/// Have errors of the network queued for `receive_error`.
pub(super) fn queue_errors(socket: &OwnedFd, v4: bool) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    if v4 {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVERR, &1i32)
    } else {
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, &1i32)
    }
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

pub(super) fn receive_error(socket: &OwnedFd) -> Option<NetworkError> {
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
