//! Datagrams and echo requests: one socket of the host for each port (or ping process) of the guest.
//!
//! Reference: RFC 4787 "NAT Behavioral Requirements for Unicast UDP" (mapping: endpoint-independent, REQ-1;
//! filtering: address- and port-dependent, REQ-8); RFC 5508 for ICMP.

use crate::context::{is_routable, Context, Refusal};
use crate::host::{Host, Manner, NetworkError, Token};
use crate::policy::Protocol;
use crate::slab::{Id, Slab};
use crate::timers::{Deadline, Timer};
use crate::wire::icmp::{self, Echo, Unreachable};
use crate::wire::ip::{self, Ip, Path};
use crate::wire::{ethernet, fragment, udp, vnet, Drop};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Flows at once.
pub const FLOWS_MAXIMUM: usize = 1024;
const PEERS_MAXIMUM: usize = 1024;
const SECOND: u64 = 1_000_000_000;
/// RFC 4787 REQ-5: five minutes.
pub const UDP_IDLE: u64 = 300 * SECOND;
/// RFC 5508 REQ-2: at least sixty seconds.
pub const PING_IDLE: u64 = 60 * SECOND;
/// Datagrams taken from one socket before others have their turn.
const BURST: usize = 256;

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// UDP datagrams.
    Udp,
    /// Echo requests; the "port" is the identifier.
    Ping,
}

#[derive(Debug)]
struct PeerEntry {
    /// The peer as the guest sees it.
    seen: SocketAddr,
    expires: u64,
}

/// All that one port of the guest sends.
#[derive(Debug)]
pub struct Flow<S> {
    /// Datagrams, or echo requests.
    pub kind: Kind,
    /// The machine's end.
    pub guest: SocketAddr,
    /// Payload from the guest, and to it.
    pub bytes: (u64, u64),
    socket: S,
    by_real: HashMap<SocketAddr, PeerEntry>,
    by_seen: HashMap<SocketAddr, SocketAddr>,
    deadline: Deadline,
    forwarded: bool,
    /// How the last datagram left.
    manner: Option<Manner>,
}

impl<S> Flow<S> {
    fn new(kind: Kind, guest: SocketAddr, socket: S, forwarded: bool) -> Self {
        Self {
            kind,
            guest,
            bytes: (0, 0),
            socket,
            by_real: HashMap::new(),
            by_seen: HashMap::new(),
            deadline: Deadline::default(),
            forwarded,
            manner: None,
        }
    }

    /// Peers that may answer.
    pub fn peers(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.by_seen.keys().copied()
    }

    fn idle(&self) -> u64 {
        match self.kind {
            Kind::Udp => UDP_IDLE,
            Kind::Ping => PING_IDLE,
        }
    }

    /// Note that a peer was spoken to; false when there are too many.
    fn note(&mut self, now: u64, real: SocketAddr, seen: SocketAddr) -> bool {
        let expires = now + self.idle();
        if self.by_real.len() >= PEERS_MAXIMUM && !self.by_real.contains_key(&real) {
            self.forget(now);
            if self.by_real.len() >= PEERS_MAXIMUM {
                return false;
            }
        }
        self.by_real.insert(real, PeerEntry { seen, expires });
        self.by_seen.insert(seen, real);
        true
    }

    fn forget(&mut self, now: u64) {
        self.by_real.retain(|_, peer| peer.expires > now);
        let by_real = &self.by_real;
        self.by_seen.retain(|_, real| by_real.contains_key(real));
    }
}

/// All flows of a network.
pub struct Udp<S> {
    flows: Slab<Flow<S>>,
    by_guest: HashMap<(Kind, SocketAddr), Id>,
    forwards: Vec<Id>,
    identification: u32,
}

impl<S> std::default::Default for Udp<S> {
    fn default() -> Self {
        let flows = Slab::new(FLOWS_MAXIMUM);
        Self { flows, by_guest: HashMap::new(), forwards: Vec::new(), identification: 0 }
    }
}

impl<S> Udp<S> {
    /// All flows.
    pub fn iter(&self) -> impl Iterator<Item = &Flow<S>> {
        self.flows.iter().map(|(_, flow)| flow)
    }

    /// Take a datagram of the guest.
    ///
    /// # Errors
    /// Why it is not carried.
    pub fn input<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        datagram: &udp::Udp<'_>,
    ) -> Result<(), Drop> {
        let guest = SocketAddr::new(packet.source, datagram.source);
        let seen = SocketAddr::new(packet.destination, datagram.destination);
        self.output(context, packet, (Kind::Udp, guest), seen, datagram.payload)
    }

    /// Take an echo request of the guest for somebody else.
    ///
    /// # Errors
    /// Why it is not carried.
    pub fn ping<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        echo: &Echo<'_>,
    ) -> Result<(), Drop> {
        let guest = SocketAddr::new(packet.source, echo.identifier);
        let seen = SocketAddr::new(packet.destination, 0);
        let message = icmp::echo_request_message(echo, packet.source.is_ipv4());
        self.output(context, packet, (Kind::Ping, guest), seen, &message)
    }

    fn output<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        key: (Kind, SocketAddr),
        seen: SocketAddr,
        data: &[u8],
    ) -> Result<(), Drop> {
        if packet.hop_limit <= 1 {
            context.report(packet, Unreachable::Expired);
            return Ok(());
        }
        let real = match self.known(context.now, key, seen) {
            Some((id, real)) => return self.send(context, packet, id, (real, seen), data),
            None => match context.reach(protocol_of(key.0), seen) {
                Ok(real) => real,
                Err(Refusal::Prohibited) => {
                    context.report(packet, Unreachable::Prohibited);
                    return Ok(());
                }
                Err(Refusal::NoService) => {
                    context.report(packet, Unreachable::Port);
                    return Err(Drop::NoFlow);
                }
            },
        };
        match self.flow_for(context, key, real) {
            Ok(id) => self.send(context, packet, id, (real, seen), data),
            Err(reason) => {
                context.report(packet, Unreachable::Prohibited);
                Err(reason)
            }
        }
    }

    /// The flow that a peer is already a part of, and the peer's real address.
    fn known(&mut self, now: u64, key: (Kind, SocketAddr), seen: SocketAddr) -> Option<(Id, SocketAddr)> {
        let own = self.by_guest.get(&key).copied();
        for id in self.forwards.iter().copied().chain(own) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if (flow.kind, flow.guest) != key {
                continue;
            }
            let live = |real: &SocketAddr| flow.by_real.get(real).is_some_and(|peer| peer.expires > now);
            if let Some(real) = flow.by_seen.get(&seen).copied().filter(live) {
                return Some((id, real));
            }
        }
        None
    }

    fn flow_for<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        key: (Kind, SocketAddr),
        real: SocketAddr,
    ) -> Result<Id, Drop> {
        // A guest's IPv6 flow may lead to an IPv4 address only by a mapped one: nobody needs that.
        if key.1.is_ipv4() != real.is_ipv4() {
            return Err(Drop::NotForUs);
        }
        if let Some(&id) = self.by_guest.get(&key) {
            return Ok(id);
        }
        let any: IpAddr = match real {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = match key.0 {
            Kind::Udp => context.host.open_udp(SocketAddr::new(any, 0)),
            Kind::Ping => context.host.open_ping(real.is_ipv4()),
        };
        let id = self.flows.next_id();
        let flow = Flow::new(key.0, key.1, socket.map_err(|_| Drop::Full)?, false);
        context.host.watch(&flow.socket, Token::Udp(id)).map_err(|_| Drop::Full)?;
        let id = self.flows.insert(flow).map_err(|_| Drop::Full)?;
        self.by_guest.insert(key, id);
        Ok(id)
    }

    fn send<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        packet: &Ip<'_>,
        id: Id,
        (real, seen): (SocketAddr, SocketAddr),
        data: &[u8],
    ) -> Result<(), Drop> {
        let flow = self.flows.get_mut(id).ok_or(Drop::NoFlow)?;
        if !flow.note(context.now, real, seen) {
            return Err(Drop::Full);
        }
        let due = context.now + flow.idle();
        context.timers.set(&mut flow.deadline, due, Timer::Udp(id));
        flow.bytes.0 += data.len() as u64;
        flow.set_manner(context, Manner { hops: packet.hop_limit - 1, whole: packet.dont_fragment });
        if let Err(error) = context.host.send_to(&flow.socket, data, real) {
            let errno = error.raw_os_error().unwrap_or(0);
            let mtu = if errno == libc::EMSGSIZE { flow.take_mtu(context) } else { None };
            if let Some(why) = meaning(errno, mtu.unwrap_or(context.config.mtu.into())) {
                context.report(packet, why);
            }
        }
        Ok(())
    }

    /// A socket of ours became ready.
    pub fn ready<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        for _ in 0..BURST {
            let mut data = std::mem::take(&mut context.scratch);
            let received = context.host.receive_from(&flow.socket, &mut data);
            match received {
                Ok(from) => {
                    if let Some(path) = flow.answer(context, from) {
                        self.identification = self.identification.wrapping_add(1);
                        deliver(flow, context, &path, &data, self.identification);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    context.scratch = data;
                    flow.report_errors(context);
                    return;
                }
                Err(_) => flow.report_errors(context),
            }
            context.scratch = data;
        }
        // There is more: be told again, after the others.
        let _ = context.host.watch(&flow.socket, Token::Udp(id));
    }

    /// A flow's deadline came.
    pub fn timeout<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id, entry: u64) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let now = context.now;
        if !context.timers.is_due(&mut flow.deadline, entry, now, Timer::Udp(id)) {
            return;
        }
        flow.forget(now);
        if !flow.forwarded {
            let key = (flow.kind, flow.guest);
            self.by_guest.remove(&key);
            self.flows.remove(id);
        }
    }

    /// Forward a bound socket's datagrams to a machine.
    ///
    /// # Errors
    /// The host's, or that there are too many flows.
    pub fn forward<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        socket: S,
        guest: SocketAddr,
    ) -> io::Result<()> {
        let id = self.flows.next_id();
        context.host.watch(&socket, Token::Udp(id))?;
        let flow = Flow::new(Kind::Udp, guest, socket, true);
        let id = self.flows.insert(flow).map_err(|_| io::ErrorKind::QuotaExceeded)?;
        self.forwards.push(id);
        Ok(())
    }
}

fn protocol_of(kind: Kind) -> Protocol {
    match kind {
        Kind::Udp => Protocol::Udp,
        Kind::Ping => Protocol::Icmp,
    }
}

/// What the guest is told of an error of the host; `mtu` is that of the way, where it is too small.
fn meaning(errno: i32, mtu: u32) -> Option<Unreachable> {
    match errno {
        libc::ECONNREFUSED => Some(Unreachable::Port),
        libc::ENETUNREACH | libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL => Some(Unreachable::Network),
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Some(Unreachable::Host),
        libc::EACCES | libc::EPERM => Some(Unreachable::Prohibited),
        libc::EMSGSIZE => Some(Unreachable::TooBig(mtu)),
        _ => None,
    }
}

impl<S> Flow<S> {
    /// The way of a peer's datagram to the guest; `None` for a peer that the guest never spoke to.
    fn answer<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        from: SocketAddr,
    ) -> Option<(Path, u16)> {
        let key = if self.kind == Kind::Ping { SocketAddr::new(from.ip(), 0) } else { from };
        if self.forwarded && !self.by_real.contains_key(&key) {
            let seen = self.name_for(context, key);
            self.note(context.now, key, seen);
        }
        let peer = self.by_real.get(&key)?;
        if peer.expires <= context.now && !self.forwarded {
            return None;
        }
        Some((context.path(peer.seen.ip(), self.guest.ip())?, peer.seen.port()))
    }

    /// What the guest sees of somebody who speaks to a forwarded port: his address, unless it is one that the
    /// guest could not answer; then the gateway with a port that stands for him.
    fn name_for<H: Host<Socket = S>>(&self, context: &mut Context<H>, from: SocketAddr) -> SocketAddr {
        let answerable = is_routable(from.ip())
            && from.is_ipv4() == self.guest.is_ipv4()
            && !context.config.contains(from.ip())
            && !context.host.is_local(from.ip());
        if answerable {
            return from;
        }
        let gateway = context.config.gateway_like(self.guest.ip());
        let free = |port: &u16| !self.by_seen.contains_key(&SocketAddr::new(gateway, *port));
        let port = (from.port()..=u16::MAX).chain(1024..from.port()).find(free).unwrap_or(from.port());
        SocketAddr::new(gateway, port)
    }

    /// Have datagrams leave as the guest's own did. A host that will not sends them as it likes.
    fn set_manner<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, manner: Manner) {
        if self.manner != Some(manner) {
            let set = context.host.set_manner(&self.socket, self.guest.is_ipv4(), manner);
            self.manner = set.is_ok().then_some(manner);
        }
    }

    /// How long a packet may be, after one was too long for the host's way; what else the network said of the
    /// guest's datagrams is passed on.
    fn take_mtu<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) -> Option<u32> {
        let mut mtu = None;
        for _ in 0..BURST {
            let Some(error) = context.host.receive_error(&self.socket) else { break };
            if error.errno == libc::EMSGSIZE {
                mtu = Some(error.mtu);
            } else {
                self.report_error(context, &error);
            }
        }
        mtu.filter(|mtu| *mtu > 0)
    }

    /// Pass on what the network said about the guest's datagrams.
    fn report_errors<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        for _ in 0..BURST {
            let Some(error) = context.host.receive_error(&self.socket) else { return };
            self.report_error(context, &error);
        }
    }

    fn report_error<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, error: &NetworkError) {
        let key = if self.kind == Kind::Ping {
            SocketAddr::new(error.destination.ip(), 0)
        } else {
            error.destination
        };
        let Some(peer) = self.by_real.get(&key) else { return };
        let Some(mut why) = meaning(error.errno, error.mtu) else { return };
        let on_the_way = error.reporter.filter(|reporter| *reporter != error.destination.ip());
        if error.errno == libc::EHOSTUNREACH && error.expired {
            why = Unreachable::Expired;
        }
        let from = match on_the_way {
            Some(router) if router.is_ipv4() == self.guest.is_ipv4() && is_routable(router) => router,
            Some(_) | None if why == Unreachable::Port => peer.seen.ip(),
            _ => context.config.gateway_like(self.guest.ip()),
        };
        let quote = self.quote(peer.seen, error.sequence);
        context.report_from(from, self.guest.ip(), &quote, why);
    }

    /// The start of a packet that the guest sent to `seen`; `sequence` is an echo request's.
    fn quote(&self, seen: SocketAddr, sequence: u16) -> Vec<u8> {
        let link = (crate::config::ROUTER_MAC, crate::config::ROUTER_MAC);
        let path = Path { link, source: self.guest.ip(), destination: seen.ip() };
        let frame = match self.kind {
            Kind::Udp => udp::frame(&path, (self.guest.port(), seen.port()), &[]).unwrap_or_default(),
            Kind::Ping => {
                let kind = if seen.is_ipv4() { 8 } else { 128 };
                let [a, b] = self.guest.port().to_be_bytes();
                let [c, d] = sequence.to_be_bytes();
                icmp::frame(&path, (kind, 0), [a, b, c, d], &[], ip::HOP_LIMIT)
            }
        };
        frame.get(vnet::SIZE + ethernet::SIZE..).unwrap_or_default().to_vec()
    }
}

/// Send the guest a peer's datagram, in fragments where it is longer than the MTU.
fn deliver<H: Host>(
    flow: &mut Flow<H::Socket>,
    context: &mut Context<H>,
    (path, port): &(Path, u16),
    data: &[u8],
    identification: u32,
) {
    let (frame, protocol) = match flow.kind {
        Kind::Udp => (udp::frame(path, (*port, flow.guest.port()), data), ip::UDP),
        Kind::Ping => {
            let v4 = path.source.is_ipv4();
            let echo = icmp::echo_reply_of(data, v4)
                .map(|echo| icmp::echo_reply(path, &Echo { identifier: flow.guest.port(), ..echo }));
            (echo, if v4 { ip::ICMP } else { ip::ICMPV6 })
        }
    };
    let Some(frame) = frame else { return };
    if context.outbox.is_full() {
        context.outbox.dropped += 1;
        return;
    }
    flow.bytes.1 += data.len() as u64;
    for piece in fragment::split(path, frame, protocol, context.config.mtu.into(), identification) {
        context.outbox.push(piece);
    }
}
