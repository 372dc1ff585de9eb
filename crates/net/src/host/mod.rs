//! What the stack needs of the host: sockets, and a few facts. Nothing here blocks.

mod address;
mod error_queue;
pub mod linux;
pub mod poller;
mod resolv_conf;
pub mod route;

use crate::slab::Id;
use std::io;
use std::net::{IpAddr, SocketAddr};

/// Whose socket became ready: a kind and an [`Id`] in one number, as epoll carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// A TCP connection's.
    Tcp(Id),
    /// A UDP or ping flow's.
    Udp(Id),
    /// A DNS query's.
    Dns(Id),
    /// A forwarded port's.
    Forward(u32),
}

impl Token {
    /// As one number.
    pub fn pack(self) -> u64 {
        let (kind, index, generation) = match self {
            Token::Tcp(id) => (1, id.index, id.generation),
            Token::Udp(id) => (2, id.index, id.generation),
            Token::Dns(id) => (3, id.index, id.generation),
            Token::Forward(index) => (4, index, 0),
        };
        kind << 56 | u64::from(generation) << 32 | u64::from(index)
    }

    /// Inverse of `pack`; `None` for a number that it does not give.
    pub fn unpack(number: u64) -> Option<Token> {
        let id = Id { index: number as u32, generation: (number >> 32) as u32 & 0xFF_FFFF };
        match number >> 56 {
            1 => Some(Token::Tcp(id)),
            2 => Some(Token::Udp(id)),
            3 => Some(Token::Dns(id)),
            4 => Some(Token::Forward(id.index)),
            _ => None,
        }
    }
}

/// What became possible on a socket since the host last said so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There is something to receive: data, the end, an error.
    pub readable: bool,
    /// There is room to send, or a connection attempt is over.
    pub writable: bool,
    /// An error waits to be fetched.
    pub error: bool,
    /// The other side sends no more: the end, or an error, comes after the data and is not told again.
    pub ended: bool,
}

/// What a datagram's IP header says of its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Hops that it may take.
    pub hops: u8,
    /// Nobody may split it.
    pub whole: bool,
}

/// What the network said about a datagram sent before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkError {
    /// Where the datagram was to go.
    pub destination: SocketAddr,
    /// Who says so: a router on the way, the destination, or nobody.
    pub reporter: Option<IpAddr>,
    /// The error's number.
    pub errno: i32,
    /// The datagram took too many hops.
    pub expired: bool,
    /// The MTU that would have fitted, with EMSGSIZE.
    pub mtu: u32,
    /// Which of a ping socket's requests; zero where the kernel does not say.
    pub sequence: u16,
}

/// The host. A socket is closed when it is dropped; every socket is non-blocking.
///
/// # Errors
/// Those of the system calls of the same names; `WouldBlock` promises a later [`Ready`].
pub trait Host {
    /// An owned socket.
    type Socket;

    /// Report readiness of `socket` under `token` from now on: once when it comes, until used up.
    fn watch(&mut self, socket: &Self::Socket, token: Token) -> io::Result<()>;
    /// Begin a TCP connection; `Ready::writable` tells that the attempt is over.
    fn connect(&mut self, to: SocketAddr) -> io::Result<Self::Socket>;
    /// How the attempt ended.
    fn connect_result(&mut self, socket: &Self::Socket) -> io::Result<()>;
    /// Listen for TCP connections.
    fn listen(&mut self, at: SocketAddr) -> io::Result<Self::Socket>;
    /// Take a waiting connection, and who made it.
    fn accept(&mut self, listener: &Self::Socket) -> io::Result<(Self::Socket, SocketAddr)>;
    /// Send on a stream; how much was taken.
    fn send(&mut self, socket: &Self::Socket, data: &[u8]) -> io::Result<usize>;
    /// Append at most `limit` bytes of a stream; 0 at its end.
    fn receive(&mut self, socket: &Self::Socket, into: &mut Vec<u8>, limit: usize) -> io::Result<usize>;
    /// Send no more on a stream.
    fn shutdown(&mut self, socket: &Self::Socket) -> io::Result<()>;
    /// Close a stream so that the peer sees a reset.
    fn abort(&mut self, socket: Self::Socket);
    /// Open a UDP socket bound to `at`.
    fn open_udp(&mut self, at: SocketAddr) -> io::Result<Self::Socket>;
    /// Open a socket for echo requests of one version.
    fn open_ping(&mut self, v4: bool) -> io::Result<Self::Socket>;
    /// How datagrams to addresses of one version leave from now on.
    fn set_manner(&mut self, socket: &Self::Socket, v4: bool, manner: Manner) -> io::Result<()>;
    /// Send a datagram. One that may not be split and is too long is refused with `EMSGSIZE`, and
    /// [`Self::receive_error`] tells how long it may be.
    fn send_to(&mut self, socket: &Self::Socket, data: &[u8], to: SocketAddr) -> io::Result<()>;
    /// Replace `into` by one datagram, and say who sent it.
    fn receive_from(&mut self, socket: &Self::Socket, into: &mut Vec<u8>) -> io::Result<SocketAddr>;
    /// What the network said about an earlier datagram, if anything.
    fn receive_error(&mut self, socket: &Self::Socket) -> Option<NetworkError>;
    /// Whether an address is the host's own, whatever the reason.
    fn is_local(&mut self, address: IpAddr) -> bool;
    /// The host's resolvers, at most three.
    fn resolvers(&mut self) -> Vec<SocketAddr>;
    /// 64 bits that nobody can guess.
    fn random(&mut self) -> u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing() {
        let id = Id { index: 0xFFFF_FFFE, generation: 0xFF_FFFF };
        for token in [Token::Tcp(id), Token::Udp(id), Token::Dns(id), Token::Forward(7)] {
            assert_eq!(Token::unpack(token.pack()), Some(token));
        }
        assert_eq!(Token::unpack(0), None);
    }
}
