//! System calls' results and socket addresses, as Linux gives and takes them.
//!
//! Reference: Linux man-pages 6.03: ip(7), ipv6(7), getifaddrs(3).

use std::io::{self, Error};
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

pub(super) fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(Error::last_os_error());
    }
    Ok(result)
}

pub(super) fn owned(fd: i32) -> io::Result<OwnedFd> {
    let fd = check(fd)?;
    // SAFETY: the system call that gave this descriptor gave it to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

pub(super) fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let pointer: *const T = value;
    // SAFETY: `pointer` is to a live `T` of the length given.
    check(unsafe { libc::setsockopt(fd, level, name, pointer.cast(), size::<T>()) })?;
    Ok(())
}

/// A socket address as the kernel takes it.
pub(super) struct RawAddress {
    storage: libc::sockaddr_storage,
    pub(super) length: libc::socklen_t,
}

impl RawAddress {
    pub(super) fn empty() -> Self {
        // SAFETY: all zeros is a valid `sockaddr_storage`.
        Self { storage: unsafe { zeroed() }, length: size::<libc::sockaddr_storage>() }
    }

    pub(super) fn new(address: SocketAddr) -> Self {
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

    pub(super) fn pointer(&self) -> *const libc::sockaddr {
        let pointer: *const libc::sockaddr_storage = &self.storage;
        pointer.cast()
    }

    pub(super) fn pointer_mut(&mut self) -> *mut libc::sockaddr {
        let pointer: *mut libc::sockaddr_storage = &mut self.storage;
        pointer.cast()
    }

    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        // SAFETY: the storage is larger than any address that its family can have, and initialized.
        unsafe { read_address(self.pointer()) }
    }
}

/// The address behind a pointer.
///
/// # Safety
/// `pointer` is to as many initialized bytes as a `sockaddr_in6` has, aligned for one.
pub(super) unsafe fn read_address(pointer: *const libc::sockaddr) -> io::Result<SocketAddr> {
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
