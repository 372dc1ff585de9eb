//! The far end of a connection: a socket of the host, or a service of the router itself.

use crate::context::Context;
use crate::host::Host;
use std::collections::VecDeque;
use std::io;

const LOCAL_MAXIMUM: usize = 128 << 10;

/// A stream to a service of the router: two bounded queues.
#[derive(Debug, Default)]
pub struct LocalStream {
    /// What the guest sent and the service has not used.
    pub from_guest: Vec<u8>,
    /// What the service answered.
    pub to_guest: VecDeque<u8>,
    /// Whether the guest sends no more.
    pub guest_done: bool,
    /// Whether the service sends no more.
    pub service_done: bool,
    /// Questions that the service still has to answer.
    pub unanswered: usize,
}

impl LocalStream {
    /// Queue an answer behind its length in two bytes; the last one after the guest's end ends the stream.
    ///
    /// A guest that asks and never reads loses answers past the bound, and its connection.
    pub fn answer(&mut self, message: &[u8]) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.to_guest.len() + message.len() > LOCAL_MAXIMUM {
            self.service_done = true;
            return;
        }
        self.to_guest.extend((message.len() as u16).to_be_bytes());
        self.to_guest.extend(message);
        self.service_done |= self.guest_done && self.unanswered == 0;
    }
}

/// Where a connection's data goes.
#[derive(Debug)]
pub enum Peer<S> {
    /// A socket.
    Host(S),
    /// The router's own resolver.
    Local(LocalStream),
}

fn would_block() -> io::Error {
    io::ErrorKind::WouldBlock.into()
}

impl<S> Peer<S> {
    /// Send; how much was taken.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room, or the socket's.
    pub fn send<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, data: &[u8]) -> io::Result<usize> {
        match self {
            Peer::Host(socket) => context.host.send(socket, data),
            Peer::Local(local) => {
                let room = LOCAL_MAXIMUM - local.from_guest.len().min(LOCAL_MAXIMUM);
                let taken = data.len().min(room);
                if taken == 0 {
                    return Err(would_block());
                }
                local.from_guest.extend_from_slice(&data[..taken]);
                Ok(taken)
            }
        }
    }

    /// Append what there is, at most `limit` bytes; 0 at the end.
    ///
    /// # Errors
    /// `WouldBlock` when there is nothing, or the socket's.
    pub fn receive<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        into: &mut Vec<u8>,
        limit: usize,
    ) -> io::Result<usize> {
        match self {
            Peer::Host(socket) => context.host.receive(socket, into, limit),
            Peer::Local(local) => {
                let count = local.to_guest.len().min(limit);
                if count == 0 && !local.service_done {
                    return Err(would_block());
                }
                into.extend(local.to_guest.drain(..count));
                Ok(count)
            }
        }
    }

    /// Send no more.
    ///
    /// # Errors
    /// The socket's.
    pub fn shutdown<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) -> io::Result<()> {
        match self {
            Peer::Host(socket) => context.host.shutdown(socket),
            Peer::Local(local) => {
                local.guest_done = true;
                Ok(())
            }
        }
    }
}
