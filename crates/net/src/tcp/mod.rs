//! All TCP connections of a network.
//!
//! Reference: RFC 9293; RFC 5382 "NAT Behavioral Requirements for TCP".

pub mod connection;
pub mod local;
pub mod sequence;
mod transfer;

use crate::context::{Context, Refusal};
use crate::host::{Host, Ready, Token};
use crate::policy::Protocol;
use crate::slab::{Id, Slab};
use crate::timers::Timer;
use crate::wire::icmp::Unreachable;
use crate::wire::ip::{Ip, Path};
use crate::wire::tcp::{Header, Segment, ACK, RST, SYN};
use crate::wire::{ethernet, vnet, Drop};
use connection::{AckOwed, Connection, Phase};
use local::{LocalStream, Peer};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;

/// Connections at once.
pub const CONNECTIONS_MAXIMUM: usize = 8192;
/// Bytes on their way in one direction, over all connections.
const MEMORY_MAXIMUM: usize = 64 << 20;
const WINDOW_RANGE: (usize, usize) = (16 << 10, 1 << 20);
/// The resolver's port.
const DNS_PORT: u16 = 53;

/// All connections, by both ends as the guest sees them.
pub struct Tcp<S> {
    connections: Slab<Connection<S>>,
    by_ends: HashMap<(SocketAddr, SocketAddr), Id>,
    dirty: Vec<Id>,
    /// Connections to the resolver with something new from the guest.
    pub local_ready: Vec<Id>,
    /// Connections ever opened.
    pub opened: u64,
}

impl<S> Default for Tcp<S> {
    fn default() -> Self {
        Self {
            connections: Slab::new(CONNECTIONS_MAXIMUM),
            by_ends: HashMap::new(),
            dirty: Vec::new(),
            local_ready: Vec::new(),
            opened: 0,
        }
    }
}

impl<S> Tcp<S> {
    /// All connections.
    pub fn iter(&self) -> impl Iterator<Item = &Connection<S>> {
        self.connections.iter().map(|(_, connection)| connection)
    }

    /// The stream of a connection to the resolver, while it lives.
    pub fn local(&mut self, id: Id) -> Option<&mut LocalStream> {
        match &mut self.connections.get_mut(id)?.peer {
            Peer::Local(local) => Some(local),
            Peer::Host(_) => None,
        }
    }

    /// Window and queue of one connection: what is there, divided.
    fn share(&self) -> usize {
        (MEMORY_MAXIMUM / (self.connections.len() + 1)).clamp(WINDOW_RANGE.0, WINDOW_RANGE.1)
    }

    /// Take a segment of the guest.
    ///
    /// # Errors
    /// Why it is not carried.
    pub fn input<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        segment: &Segment<'_>,
    ) -> Result<(), Drop> {
        let ends = (
            SocketAddr::new(packet.source, segment.source),
            SocketAddr::new(packet.destination, segment.destination),
        );
        if let Some(&id) = self.by_ends.get(&ends) {
            self.with(context, id, |connection, context| connection.segment(context, segment));
            return Ok(());
        }
        if segment.flags & (SYN | ACK | RST) == SYN {
            return self.open(context, packet, segment, ends);
        }
        if !segment.has(RST) {
            refuse(context, ends, segment);
        }
        Err(Drop::NoFlow)
    }

    /// A SYN for a connection that is not there yet.
    fn open<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        segment: &Segment<'_>,
        ends: (SocketAddr, SocketAddr),
    ) -> Result<(), Drop> {
        if self.connections.is_full() {
            refuse(context, ends, segment);
            return Err(Drop::Full);
        }
        let id = self.connections.next_id();
        let dns = context.config.is_dns(ends.1.ip()) && ends.1.port() == DNS_PORT;
        let peer = if dns {
            Ok(Peer::Local(LocalStream::default()))
        } else {
            match context.reach(Protocol::Tcp, ends.1) {
                Ok(to) => connect(context, to, id).map(Peer::Host),
                Err(refusal) => {
                    refuse(context, ends, segment);
                    return if refusal == Refusal::Prohibited { Ok(()) } else { Err(Drop::NoFlow) };
                }
            }
        };
        match peer {
            Ok(peer) => {
                self.insert(context, Connection::from_guest(id, ends, peer, segment));
                if dns {
                    self.with(context, id, |connection, context| connection.accepted(context));
                }
            }
            Err(error) => match unreachable(&error) {
                Some(why) => context.report(packet, why),
                None => refuse(context, ends, segment),
            },
        }
        Ok(())
    }

    fn insert<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, mut connection: Connection<S>) {
        connection.limit = self.share();
        connection.arm(context);
        let ends = (connection.guest, connection.remote);
        if let Ok(id) = self.connections.insert(connection) {
            self.by_ends.insert(ends, id);
            self.opened += 1;
        }
    }

    /// A connection that somebody made to a forwarded port: `remote` is who the guest is to see.
    pub fn forward<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        socket: S,
        guest: SocketAddr,
        remote: SocketAddr,
    ) {
        let id = self.connections.next_id();
        let watched = context.host.watch(&socket, Token::Tcp(id));
        if watched.is_err() || self.connections.is_full() || self.is_used(guest, remote) {
            context.host.abort(socket);
            return;
        }
        self.insert(context, Connection::to_guest(id, (guest, remote), Peer::Host(socket)));
        self.with(context, id, |connection, context| {
            let first = context.host.random() as u32;
            connection.send_syn(context, first);
        });
    }

    /// Whether a connection between two ends exists.
    pub fn is_used(&self, guest: SocketAddr, remote: SocketAddr) -> bool {
        self.by_ends.contains_key(&(guest, remote))
    }

    /// A socket became ready.
    pub fn ready<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id, ready: Ready) {
        self.with(context, id, |connection, context| {
            connection.host_ended |= ready.ended;
            if connection.phase == Phase::Connecting {
                return conclude(connection, context, ready);
            }
            connection.readable |= ready.readable || ready.error;
            connection.writable |= ready.writable;
            pump(connection, context);
        });
    }

    /// A connection's deadline came; `entry` is when it was entered for.
    pub fn timeout<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id, entry: u64) {
        self.with(context, id, |connection, context| {
            let now = context.now;
            if context.timers.is_due(&mut connection.deadline, entry, now, Timer::Tcp(id)) {
                connection.timeout(context);
            }
        });
    }

    /// The outbox, or the resolver, has something for a connection again.
    pub fn resume<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id) {
        self.with(context, id, |connection, context| {
            connection.waits = false;
            if matches!(connection.peer, Peer::Local(_)) {
                connection.readable = true;
                connection.writable = true;
            }
            pump(connection, context);
        });
    }

    /// Send the acknowledgments that are owed since the last call.
    pub fn flush<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        for id in std::mem::take(&mut self.dirty) {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.flush(context);
            }
        }
    }

    /// Work on a connection, then note what it owes, or remove it.
    fn with<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        id: Id,
        work: impl FnOnce(&mut Connection<S>, &mut Context<H>),
    ) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        work(connection, context);
        if matches!(&connection.peer, Peer::Local(local) if !local.from_guest.is_empty() || local.guest_done)
        {
            self.local_ready.push(id);
        }
        if connection.phase == Phase::Over {
            self.remove(context, id);
        } else if connection.ack == AckOwed::Now {
            self.dirty.push(id);
        }
    }

    fn remove<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id) {
        let Some(connection) = self.connections.remove(id) else { return };
        self.by_ends.remove(&(connection.guest, connection.remote));
        let broken = connection.is_broken();
        if let (true, Peer::Host(socket)) = (broken, connection.peer) {
            context.host.abort(socket);
        }
    }
}

fn connect<H: Host>(context: &mut Context<H>, to: SocketAddr, id: Id) -> io::Result<H::Socket> {
    let socket = context.host.connect(to)?;
    context.host.watch(&socket, Token::Tcp(id))?;
    Ok(socket)
}

/// The host's attempt to connect is over.
fn conclude<H: Host>(connection: &mut Connection<H::Socket>, context: &mut Context<H>, ready: Ready) {
    let Peer::Host(socket) = &connection.peer else { return };
    if !ready.writable && !ready.error {
        return;
    }
    match context.host.connect_result(socket) {
        Ok(()) => {
            connection.readable = ready.readable;
            connection.accepted(context);
        }
        Err(error) => {
            match unreachable(&error) {
                Some(why) => report_connection(connection, context, why),
                None => connection.reset_guest(context),
            }
            connection.phase = Phase::Over;
        }
    }
}

/// Quote the SYN that cannot be delivered, as far as a guest looks at it.
fn report_connection<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>, why: Unreachable) {
    let link = (crate::config::ROUTER_MAC, crate::config::ROUTER_MAC);
    let path = Path { link, source: c.guest.ip(), destination: c.remote.ip() };
    let header = Header {
        ports: (c.guest.port(), c.remote.port()),
        sequence: c.receiver.next.wrapping_sub(1),
        flags: SYN,
        ..Header::default()
    };
    let frame = header.frame(&path, &[], u16::MAX);
    context.report_flow(c.guest.ip(), &frame[vnet::SIZE + ethernet::SIZE..], why);
}

fn pump<H: Host>(connection: &mut Connection<H::Socket>, context: &mut Context<H>) {
    if connection.phase == Phase::Open {
        transfer::to_host(connection, context);
        transfer::to_guest(connection, context);
        connection.finish_if_done(context);
    }
    if connection.phase != Phase::Over {
        connection.arm(context);
    }
}

/// How a failed connection is told to the guest: a router's error, or (`None`) a reset.
fn unreachable(error: &io::Error) -> Option<Unreachable> {
    match error.raw_os_error() {
        Some(libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => Some(Unreachable::Network),
        Some(libc::EHOSTUNREACH | libc::ETIMEDOUT | libc::EHOSTDOWN) => Some(Unreachable::Host),
        Some(libc::EACCES | libc::EPERM) => Some(Unreachable::Prohibited),
        _ => None,
    }
}

/// Answer a segment that belongs to no connection with a reset (RFC 9293 §3.10.7.1).
fn refuse<H: Host>(context: &mut Context<H>, ends: (SocketAddr, SocketAddr), segment: &Segment<'_>) {
    let Some(path) = context.path(ends.1.ip(), ends.0.ip()) else { return };
    let ports = (ends.1.port(), ends.0.port());
    let header = if segment.has(ACK) {
        Header { ports, sequence: segment.acknowledgment, flags: RST, ..Header::default() }
    } else {
        let acknowledgment = segment.sequence.wrapping_add(segment.length());
        Header { ports, acknowledgment, flags: RST | ACK, ..Header::default() }
    };
    context.outbox.push(header.frame(&path, &[], u16::MAX));
}
