//! One connection: TCP towards the guest, a stream of the host on the other side.
//!
//! The link to the guest loses nothing and keeps order, so segments that come out of order are left for the
//! guest to send again, there is no congestion window towards it, and the retransmission timer is a safety
//! net for frames that a full queue or the guest itself lost. Everything else is RFC 9293.

use super::local::Peer;
use super::sequence::{after, distance, is_acceptable};
use super::transfer;
use crate::context::Context;
use crate::host::Host;
use crate::outbox::Frame;
use crate::slab::Id;
use crate::timers::{Deadline, Timer};
use crate::wire::ip::Path;
use crate::wire::tcp::{Header, Segment, ACK, FIN, PSH, RST, SYN};
use std::collections::VecDeque;
use std::net::SocketAddr;

const SECOND: u64 = 1_000_000_000;
/// RFC 6298 §2.1: before anything is measured.
pub const RTO_INITIAL: u64 = SECOND;
const RTO_MAXIMUM: u64 = 60 * SECOND;
/// RFC 9293 §3.8.3 (R2): some 100 seconds of attempts.
const RETRIES_MAXIMUM: u32 = 7;
/// RFC 5382 REQ-5: 2 hours and 4 minutes for established connections.
pub const ESTABLISHED_IDLE: u64 = (2 * 3600 + 4 * 60) * SECOND;
/// RFC 5382 REQ-5: 4 minutes while it opens or closes.
pub const TRANSITORY_IDLE: u64 = 4 * 60 * SECOND;
const DUPLICATES_FOR_RETRANSMIT: u32 = 3;
/// Our windows are in units of 128 bytes.
const SCALE: u8 = 7;
/// RFC 9293 §3.7.1: what a sender that says nothing takes, by version.
const MSS_DEFAULT: (u16, u16) = (536, 1220);

/// How far a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest's SYN is here; the host's connection attempt is under way.
    Connecting,
    /// We have sent SYN and ACK.
    SynReceived,
    /// We have sent SYN, for a forwarded port.
    SynSent,
    /// Data flows, in either direction that is not closed.
    Open,
    /// Over: to be removed.
    Over,
}

/// RFC 9293 §3.8.6.3: an acknowledgment may wait, far less than 500 ms, for data to go with.
pub const ACK_DELAY: u64 = 10_000_000;

/// Whether an acknowledgment is owed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AckOwed {
    /// No.
    #[default]
    No,
    /// Soon, unless an answer carries it.
    Soon,
    /// With the end of this round.
    Now,
}

/// A segment that the guest has not acknowledged.
#[derive(Debug)]
pub(super) struct Sent {
    pub start: u32,
    pub length: u32,
    pub frame: Frame,
}

/// What we send to the guest.
#[derive(Debug, Default)]
pub(super) struct Sender {
    /// Oldest unacknowledged number (SND.UNA).
    pub unacknowledged: u32,
    /// Next number (SND.NXT).
    pub next: u32,
    /// Bytes that the guest takes past `unacknowledged` (SND.WND).
    pub window: u32,
    pub scale: u8,
    pub mss: u16,
    pub sent: VecDeque<Sent>,
    pub duplicates: u32,
    /// The host's stream is at its end.
    pub ended: bool,
    pub fin_sent: bool,
}

impl Sender {
    /// Whether the guest owes an acknowledgment.
    pub fn outstanding(&self) -> bool {
        self.next != self.unacknowledged
    }

    /// Whether the guest knows that the host's stream is at its end.
    pub fn finished(&self) -> bool {
        self.fin_sent && !self.outstanding()
    }
}

/// What the guest sends.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    /// Next number expected (RCV.NXT).
    pub next: u32,
    /// Last number acknowledged.
    pub acknowledged: u32,
    /// Right edge of the window that we promised; never moves back.
    pub edge: u32,
    /// Whether the guest understands scaled windows.
    pub scaled: bool,
    /// In order, but not yet taken by the host.
    pub pending: VecDeque<u8>,
    /// The guest has sent FIN.
    pub ended: bool,
    /// The host has been told so.
    pub shut: bool,
}

/// One connection. `guest` is the machine's end, `remote` the other as the guest sees it.
#[derive(Debug)]
pub struct Connection<S> {
    /// The machine's end.
    pub guest: SocketAddr,
    /// The other end, as the machine sees it.
    pub remote: SocketAddr,
    /// How far it is.
    pub phase: Phase,
    /// Where data goes.
    pub peer: Peer<S>,
    pub(super) id: Id,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) readable: bool,
    /// The end of what the host sends has been reported, and may still be unread.
    pub(super) host_ended: bool,
    pub(super) writable: bool,
    /// Queued in the outbox's list of those that wait for room.
    pub(super) waits: bool,
    pub(super) ack: AckOwed,
    pub(super) retries: u32,
    pub(super) deadline: Deadline,
    /// Most bytes on their way in each direction.
    pub(super) limit: usize,
    /// Bytes of payload: from the guest, to the guest.
    pub bytes: (u64, u64),
}

impl<S> Connection<S> {
    /// A connection that the guest opens with `segment` (a SYN).
    pub fn from_guest(id: Id, ends: (SocketAddr, SocketAddr), peer: Peer<S>, segment: &Segment<'_>) -> Self {
        let mut connection = Self::new(id, ends, peer, Phase::Connecting);
        connection.learn_options(segment);
        connection.receiver.next = segment.sequence.wrapping_add(1);
        connection.receiver.edge = connection.receiver.next;
        connection
    }

    /// A connection that somebody made to a forwarded port.
    pub fn to_guest(id: Id, ends: (SocketAddr, SocketAddr), peer: Peer<S>) -> Self {
        let mut connection = Self::new(id, ends, peer, Phase::SynSent);
        connection.readable = true;
        connection.writable = true;
        connection
    }

    fn new(id: Id, ends: (SocketAddr, SocketAddr), peer: Peer<S>, phase: Phase) -> Self {
        Self {
            guest: ends.0,
            remote: ends.1,
            phase,
            peer,
            id,
            sender: Sender::default(),
            receiver: Receiver::default(),
            readable: false,
            host_ended: false,
            writable: false,
            waits: false,
            ack: AckOwed::No,
            retries: 0,
            deadline: Deadline::default(),
            limit: 0,
            bytes: (0, 0),
        }
    }

    fn learn_options(&mut self, segment: &Segment<'_>) {
        let default = if self.guest.is_ipv4() { MSS_DEFAULT.0 } else { MSS_DEFAULT.1 };
        self.sender.mss = segment.mss.unwrap_or(default).max(64);
        self.receiver.scaled = segment.scale.is_some();
        self.sender.scale = segment.scale.unwrap_or(0);
        self.sender.window = u32::from(segment.window);
    }

    /// The way to the machine, while its hardware address is known.
    pub(super) fn path<H: Host<Socket = S>>(&self, context: &Context<H>) -> Option<Path> {
        context.path(self.remote.ip(), self.guest.ip())
    }

    /// The header of the next segment: an acknowledgment, with `flags` on top.
    pub(super) fn header(&mut self, flags: u8) -> Header {
        self.ack = AckOwed::No;
        self.receiver.acknowledged = self.receiver.next;
        Header {
            ports: (self.remote.port(), self.guest.port()),
            sequence: self.sender.next,
            acknowledgment: self.receiver.next,
            flags: ACK | flags,
            window: self.promise_window(),
            options: None,
        }
    }

    /// The window to announce; what was promised before stays promised.
    fn promise_window(&mut self) -> u16 {
        let room = self.limit.saturating_sub(self.receiver.pending.len()) as u32;
        let wanted = self.receiver.next.wrapping_add(room);
        if after(wanted, self.receiver.edge) {
            self.receiver.edge = wanted;
        }
        let window = distance(self.receiver.edge, self.receiver.next).max(0) as u32;
        let units = if self.receiver.scaled { window >> SCALE } else { window };
        let units = u16::try_from(units).unwrap_or(u16::MAX);
        if !self.receiver.scaled {
            self.receiver.edge = self.receiver.next.wrapping_add(u32::from(units));
        }
        units
    }

    /// Send SYN, with ACK where it answers one.
    pub(super) fn send_syn<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, first: u32) {
        let answers = self.phase == Phase::SynReceived;
        let mut header = self.header(SYN);
        header.sequence = first;
        let scaled = !answers || self.receiver.scaled;
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        header.window = u16::try_from(self.limit).unwrap_or(u16::MAX);
        if !answers {
            header.flags = SYN;
            header.acknowledgment = 0;
        }
        let headers = if self.guest.is_ipv4() { 40 } else { 60 };
        header.options = Some((context.config.mtu - headers, scaled.then_some(SCALE)));
        self.sender.unacknowledged = first;
        self.sender.next = first.wrapping_add(1);
        if let Some(path) = self.path(context) {
            context.outbox.push(header.frame(&path, &[], u16::MAX));
        } else {
            context.ask_for(self.guest.ip());
        }
        self.arm(context);
    }

    /// Send a segment without data.
    pub(super) fn send_bare<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, flags: u8) {
        if let Some(path) = self.path(context) {
            let header = self.header(flags);
            context.outbox.push(header.frame(&path, &[], u16::MAX));
        }
    }

    /// The acknowledgment that is owed, if one is.
    pub fn flush<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        if self.ack == AckOwed::Now && self.phase == Phase::Open {
            self.send_bare(context, 0);
        }
    }

    /// Owe the guest an acknowledgment for data in order: at once for every second full segment.
    pub(super) fn owe_ack(&mut self) {
        let unacknowledged = distance(self.receiver.next, self.receiver.acknowledged);
        let full = unacknowledged >= 2 * i32::from(self.sender.mss);
        self.ack = self.ack.max(if full { AckOwed::Now } else { AckOwed::Soon });
    }

    /// The host's connection attempt succeeded, or the service is there.
    pub fn accepted<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        self.phase = Phase::SynReceived;
        self.writable = true;
        let first = context.host.random() as u32;
        self.send_syn(context, first);
    }

    /// End the connection with a reset to the guest.
    pub fn reset_guest<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        self.send_bare(context, RST);
        self.phase = Phase::Over;
    }

    /// Take a segment of the guest.
    pub fn segment<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, segment: &Segment<'_>) {
        match self.phase {
            Phase::Connecting if segment.has(RST) => self.phase = Phase::Over,
            Phase::Connecting | Phase::Over => {}
            Phase::SynSent => self.segment_in_syn_sent(context, segment),
            Phase::SynReceived | Phase::Open => self.segment_in_order(context, segment),
        }
        if self.phase != Phase::Over {
            self.arm(context);
        }
    }

    /// RFC 9293 §3.10.7.3: "SYN-SENT STATE".
    fn segment_in_syn_sent<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, segment: &Segment<'_>) {
        let acknowledges = segment.has(ACK) && segment.acknowledgment == self.sender.next;
        if !acknowledges {
            return;
        }
        if segment.has(RST) {
            self.phase = Phase::Over;
        } else if segment.has(SYN) {
            self.learn_options(segment);
            self.receiver.next = segment.sequence.wrapping_add(1);
            self.receiver.edge = self.receiver.next;
            self.sender.unacknowledged = self.sender.next;
            self.retries = 0;
            self.phase = Phase::Open;
            self.ack = AckOwed::Now;
            transfer::to_guest(self, context);
        }
    }

    /// RFC 9293 §3.10.7.4, with the checks of RFC 5961.
    fn segment_in_order<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, segment: &Segment<'_>) {
        if self.phase == Phase::SynReceived && segment.has(SYN) && !segment.has(ACK) {
            // Our answer was lost: the guest asks again.
            let first = self.sender.unacknowledged;
            return self.send_syn(context, first);
        }
        let window = distance(self.receiver.edge, self.receiver.next).max(0) as u32;
        if segment.has(RST) {
            return self.reset_by_guest(segment, window);
        }
        let acceptable = is_acceptable(segment.sequence, segment.length(), self.receiver.next, window);
        let challenge = segment.has(SYN) || !acceptable;
        if challenge || segment.has(ACK) && after(segment.acknowledgment, self.sender.next) {
            self.ack = AckOwed::Now;
        }
        if segment.has(SYN) || !segment.has(ACK) || after(segment.acknowledgment, self.sender.next) {
            return;
        }
        if acceptable || !after(segment.sequence, self.receiver.next) {
            self.acknowledged(context, segment);
        }
        if acceptable && self.phase == Phase::Open {
            transfer::from_guest(self, context, segment);
        }
        if self.phase == Phase::Open {
            transfer::to_guest(self, context);
        }
        self.finish_if_done(context);
    }

    /// RFC 5961 §3.2: only a reset at exactly the expected number ends the connection.
    fn reset_by_guest(&mut self, segment: &Segment<'_>, window: u32) {
        if segment.sequence == self.receiver.next {
            self.phase = Phase::Over;
        } else if is_acceptable(segment.sequence, 0, self.receiver.next, window) {
            self.ack = AckOwed::Now;
        }
    }

    /// RFC 9293 §3.10.7.4 "Check the ACK field"; RFC 5681 §3.2 for duplicates.
    fn acknowledged<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, segment: &Segment<'_>) {
        let number = segment.acknowledgment;
        let window = u32::from(segment.window) << self.sender.scale;
        if after(number, self.sender.unacknowledged) {
            self.sender.unacknowledged = number;
            self.sender.duplicates = 0;
            self.retries = 0;
            self.phase = Phase::Open;
            while self.sender.sent.front().is_some_and(|sent| !after(end_of(sent), number)) {
                self.sender.sent.pop_front();
            }
        } else if number == self.sender.unacknowledged {
            let duplicate =
                segment.length() == 0 && window == self.sender.window && self.sender.outstanding();
            self.sender.duplicates = if duplicate { self.sender.duplicates + 1 } else { 0 };
            if self.sender.duplicates == DUPLICATES_FOR_RETRANSMIT {
                self.retransmit(context);
            }
        } else {
            return;
        }
        self.sender.window = window;
    }

    /// Send the oldest unacknowledged segment again.
    fn retransmit<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        let Some(path) = self.path(context) else { return };
        let mut header = self.header(0);
        if let Some(sent) = self.sender.sent.front() {
            header.flags |= PSH;
            header.sequence = sent.start;
            let payload = &sent.frame[sent.frame.len() - sent.length as usize..];
            context.outbox.push(header.frame(&path, payload, self.sender.mss));
        } else if self.sender.fin_sent {
            header.sequence = self.sender.unacknowledged;
            header.flags |= FIN;
            context.outbox.push(header.frame(&path, &[], u16::MAX));
        }
    }

    /// The deadline came: something was lost, the window stays shut, or nobody has spoken for long.
    pub fn timeout<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        if self.ack == AckOwed::Soon && self.phase == Phase::Open {
            self.send_bare(context, 0);
            return self.arm(context);
        }
        let waits = self.sender.outstanding() || self.probes();
        if !waits || self.retries >= RETRIES_MAXIMUM {
            return self.reset_guest(context);
        }
        self.retries += 1;
        match self.phase {
            Phase::SynReceived | Phase::SynSent => {
                let first = self.sender.unacknowledged;
                return self.send_syn(context, first);
            }
            _ if self.sender.outstanding() => self.retransmit(context),
            _ => self.probe(context),
        }
        self.arm(context);
    }

    /// Whether data waits behind a window that is shut (RFC 9293 §3.8.6.1 "Zero-Window Probing").
    fn probes(&self) -> bool {
        self.phase == Phase::Open && self.sender.window == 0 && self.readable && !self.sender.fin_sent
    }

    /// An old number makes the guest say what its window is.
    fn probe<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        // The guest may keep its window shut for ever, as long as it answers.
        self.retries = self.retries.min(RETRIES_MAXIMUM - 1);
        if let Some(path) = self.path(context) {
            let mut header = self.header(0);
            header.sequence = header.sequence.wrapping_sub(1);
            context.outbox.push(header.frame(&path, &[], u16::MAX));
        }
    }

    /// Set the deadline that the state asks for.
    pub(super) fn arm<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        let half_closed = self.receiver.ended && self.sender.ended;
        let wait = if self.ack == AckOwed::Soon {
            ACK_DELAY
        } else if self.sender.outstanding() || self.probes() {
            (RTO_INITIAL << self.retries).min(RTO_MAXIMUM)
        } else if self.phase == Phase::Open && !half_closed {
            ESTABLISHED_IDLE
        } else {
            TRANSITORY_IDLE
        };
        context.timers.set(&mut self.deadline, context.now + wait, Timer::Tcp(self.id));
    }

    /// Over once both directions are closed and the guest knows; it gets its last acknowledgment first.
    pub(super) fn finish_if_done<H: Host<Socket = S>>(&mut self, context: &mut Context<H>) {
        if self.phase == Phase::Open && self.receiver.shut && self.sender.finished() {
            if self.ack != AckOwed::No {
                self.send_bare(context, 0);
            }
            self.phase = Phase::Over;
        }
    }

    /// Whether a reset is what the far end should see.
    pub(super) fn is_broken(&self) -> bool {
        !(self.receiver.shut && self.sender.finished())
    }
}

fn end_of(sent: &Sent) -> u32 {
    sent.start.wrapping_add(sent.length)
}
