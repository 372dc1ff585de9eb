//! A host whose sockets do what a test says.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use sublet_net::host::{Host, Manner, NetworkError, Token};

/// What a socket of the fake is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection that the router makes.
    Stream(SocketAddr),
    /// A forwarded port, or a connection to one.
    Listener(SocketAddr),
    /// Datagrams.
    Udp(SocketAddr),
    /// Echo requests.
    Ping,
}

/// One socket and what happened to it.
#[derive(Debug)]
pub struct FakeSocket {
    pub kind: Kind,
    pub token: Option<Token>,
    /// What `connect_result` reports; 0: success.
    pub connect_errno: i32,
    /// What the stream gives: data, or an error's number. An empty chunk is the end.
    pub incoming: VecDeque<Result<Vec<u8>, i32>>,
    /// How often somebody asked for it.
    pub receives: usize,
    /// What was sent on the stream, and how much more it takes.
    pub sent: Vec<u8>,
    pub room: usize,
    pub shut: bool,
    pub aborted: bool,
    pub manner: Manner,
    /// Bytes that a datagram may have unless it may be split.
    pub longest: usize,
    pub datagrams_in: VecDeque<(SocketAddr, Vec<u8>)>,
    pub datagrams_out: Vec<(SocketAddr, Vec<u8>, u8)>,
    pub errors: VecDeque<NetworkError>,
    pub waiting: VecDeque<SocketAddr>,
}

/// All sockets, by number.
#[derive(Debug, Default)]
pub struct FakeHost {
    pub sockets: Vec<FakeSocket>,
    pub local: Vec<IpAddr>,
    pub resolvers: Vec<SocketAddr>,
    /// What `connect` fails with at once.
    pub connect_errno: i32,
    /// Whether echo sockets are refused.
    pub no_ping: bool,
    random: u64,
}

fn would_block<T>() -> io::Result<T> {
    Err(io::ErrorKind::WouldBlock.into())
}

impl FakeHost {
    fn open(&mut self, kind: Kind) -> usize {
        self.sockets.push(FakeSocket {
            kind,
            token: None,
            connect_errno: 0,
            incoming: VecDeque::new(),
            receives: 0,
            sent: Vec::new(),
            room: usize::MAX,
            shut: false,
            aborted: false,
            manner: Manner { hops: 64, whole: false },
            longest: usize::MAX,
            datagrams_in: VecDeque::new(),
            datagrams_out: Vec::new(),
            errors: VecDeque::new(),
            waiting: VecDeque::new(),
        });
        self.sockets.len() - 1
    }
}

impl Host for FakeHost {
    type Socket = usize;

    fn watch(&mut self, socket: &usize, token: Token) -> io::Result<()> {
        self.sockets[*socket].token = Some(token);
        Ok(())
    }

    fn connect(&mut self, to: SocketAddr) -> io::Result<usize> {
        if self.connect_errno != 0 {
            return Err(io::Error::from_raw_os_error(self.connect_errno));
        }
        Ok(self.open(Kind::Stream(to)))
    }

    fn connect_result(&mut self, socket: &usize) -> io::Result<()> {
        match self.sockets[*socket].connect_errno {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn listen(&mut self, at: SocketAddr) -> io::Result<usize> {
        Ok(self.open(Kind::Listener(at)))
    }

    fn accept(&mut self, listener: &usize) -> io::Result<(usize, SocketAddr)> {
        let Some(from) = self.sockets[*listener].waiting.pop_front() else { return would_block() };
        Ok((self.open(Kind::Stream(from)), from))
    }

    fn send(&mut self, socket: &usize, data: &[u8]) -> io::Result<usize> {
        let socket = &mut self.sockets[*socket];
        let taken = data.len().min(socket.room);
        if taken == 0 {
            return would_block();
        }
        socket.room -= taken;
        socket.sent.extend(&data[..taken]);
        Ok(taken)
    }

    fn receive(&mut self, socket: &usize, into: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
        self.sockets[*socket].receives += 1;
        let incoming = &mut self.sockets[*socket].incoming;
        match incoming.front_mut() {
            None => would_block(),
            Some(Err(errno)) => Err(io::Error::from_raw_os_error(*errno)),
            Some(Ok(data)) => {
                let count = data.len().min(limit);
                into.extend(data.drain(..count));
                if data.is_empty() && count > 0 {
                    incoming.pop_front();
                }
                Ok(count)
            }
        }
    }

    fn shutdown(&mut self, socket: &usize) -> io::Result<()> {
        self.sockets[*socket].shut = true;
        Ok(())
    }

    fn abort(&mut self, socket: usize) {
        self.sockets[socket].aborted = true;
    }

    fn open_udp(&mut self, at: SocketAddr) -> io::Result<usize> {
        Ok(self.open(Kind::Udp(at)))
    }

    fn open_ping(&mut self, _v4: bool) -> io::Result<usize> {
        if self.no_ping {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        Ok(self.open(Kind::Ping))
    }

    fn set_manner(&mut self, socket: &usize, _v4: bool, manner: Manner) -> io::Result<()> {
        self.sockets[*socket].manner = manner;
        Ok(())
    }

    fn send_to(&mut self, socket: &usize, data: &[u8], to: SocketAddr) -> io::Result<()> {
        let socket = &mut self.sockets[*socket];
        if socket.manner.whole && data.len() > socket.longest {
            return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
        }
        socket.datagrams_out.push((to, data.to_vec(), socket.manner.hops));
        Ok(())
    }

    fn receive_from(&mut self, socket: &usize, into: &mut Vec<u8>) -> io::Result<SocketAddr> {
        let Some((from, data)) = self.sockets[*socket].datagrams_in.pop_front() else { return would_block() };
        *into = data;
        Ok(from)
    }

    fn receive_error(&mut self, socket: &usize) -> Option<NetworkError> {
        self.sockets[*socket].errors.pop_front()
    }

    fn is_local(&mut self, address: IpAddr) -> bool {
        self.local.contains(&address)
    }

    fn resolvers(&mut self) -> Vec<SocketAddr> {
        self.resolvers.clone()
    }

    fn random(&mut self) -> u64 {
        self.random += 1000;
        self.random
    }
}
