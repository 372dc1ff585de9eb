//! Data through a connection, both ways, never more than either side has room for.

use super::connection::{AckOwed, Connection, Phase, Sent};
use super::local::Peer;
use super::sequence::distance;
use crate::context::Context;
use crate::host::Host;
use crate::wire::tcp::{Header, Segment, FIN, PSH, SIZE};
use std::io::ErrorKind;
use std::sync::Arc;

/// Bytes of payload that fit one packet of 65,535 bytes over either version.
const PAYLOAD_MAXIMUM: usize = 65_535 - 60;
/// A frame this many times larger than its content is copied, so that little data holds little memory.
const SLACK: usize = 4;

/// Take the data and the FIN of an acceptable segment.
pub fn from_guest<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>, segment: &Segment<'_>) {
    let skipped = distance(c.receiver.next, segment.sequence);
    if segment.length() > 0 && skipped != 0 {
        c.ack = AckOwed::Now;
    }
    // A gap: the guest sends what is missing again.
    let Ok(skipped) = usize::try_from(skipped) else { return };
    let fresh = segment.payload.get(skipped..).unwrap_or(&[]);
    let room = distance(c.receiver.edge, c.receiver.next).max(0) as usize;
    let taken = &fresh[..fresh.len().min(room)];
    if taken.len() < fresh.len() {
        c.ack = AckOwed::Now;
    }
    if !c.receiver.ended {
        c.receiver.next = c.receiver.next.wrapping_add(taken.len() as u32);
        c.bytes.0 += taken.len() as u64;
        if !taken.is_empty() {
            c.owe_ack();
        }
        deliver(c, context, taken);
    }
    let whole = segment.sequence.wrapping_add(segment.payload.len() as u32) == c.receiver.next;
    if segment.has(FIN) && whole && !c.receiver.ended {
        c.receiver.ended = true;
        c.receiver.next = c.receiver.next.wrapping_add(1);
        c.ack = AckOwed::Now;
    }
    to_host(c, context);
}

/// Give data to the host, past the queue when nothing waits there.
fn deliver<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>, data: &[u8]) {
    let direct = if c.receiver.pending.is_empty() { send_all(c, context, data) } else { 0 };
    c.receiver.pending.extend(&data[direct..]);
}

/// Send until the host takes no more; how much it took.
fn send_all<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>, data: &[u8]) -> usize {
    let mut done = 0;
    while c.writable && done < data.len() {
        match c.peer.send(context, &data[done..]) {
            Ok(count) => done += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                c.writable = false;
                if error.kind() != ErrorKind::WouldBlock {
                    c.reset_guest(context);
                }
            }
        }
    }
    done
}

/// Drain what waits for the host, and pass the guest's FIN on after it.
pub fn to_host<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>) {
    let before = c.receiver.pending.len();
    while c.writable && !c.receiver.pending.is_empty() && c.phase != Phase::Over {
        let chunk = std::mem::take(&mut c.receiver.pending);
        let done = send_all(c, context, chunk.as_slices().0);
        c.receiver.pending = chunk;
        c.receiver.pending.drain(..done);
    }
    if before > 0 && c.receiver.pending.is_empty() {
        c.receiver.pending.shrink_to(0);
    }
    announce_room(c, before);
    if c.receiver.ended && c.receiver.pending.is_empty() && !c.receiver.shut && c.phase == Phase::Open {
        // An error here means that the peer is gone; receiving tells.
        let _ = c.peer.shutdown(context);
        c.receiver.shut = true;
    }
}

/// Tell the guest of a window that opened by half of what it can be (RFC 9293 §3.8.6.2.2).
fn announce_room<S>(c: &mut Connection<S>, before: usize) {
    let promised = distance(c.receiver.edge, c.receiver.next).max(0) as usize;
    let room = c.limit.saturating_sub(c.receiver.pending.len());
    if before > c.receiver.pending.len() && !c.receiver.ended && room >= promised + c.limit / 2 {
        c.ack = AckOwed::Now;
    }
}

/// Send the guest what the host has, as far as windows and queues allow.
pub fn to_guest<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>) {
    while c.readable && !c.sender.ended && c.phase == Phase::Open {
        let Some(room) = room_for_segment(c, context) else { break };
        if context.outbox.is_full() {
            if !c.waits {
                c.waits = true;
                context.outbox.wait(c.id);
            }
            break;
        }
        send_segment(c, context, room);
    }
    if c.sender.ended && !c.sender.fin_sent && c.phase == Phase::Open {
        c.send_bare(context, FIN);
        c.sender.next = c.sender.next.wrapping_add(1);
        c.sender.fin_sent = true;
    }
}

/// Bytes that the next segment may have; `None`: wait rather than send a silly one (RFC 9293 §3.8.6.2.1).
fn room_for_segment<H: Host>(c: &Connection<H::Socket>, context: &Context<H>) -> Option<usize> {
    let mss = usize::from(c.sender.mss);
    let flying = distance(c.sender.next, c.sender.unacknowledged).max(0) as usize;
    let room = (c.sender.window as usize).min(c.limit).saturating_sub(flying);
    let (v4, v6) = context.segmentation;
    let cut_by_device = if c.guest.is_ipv4() { v4 } else { v6 };
    let most = if cut_by_device { PAYLOAD_MAXIMUM } else { mss };
    let segments = room.min(most) / mss;
    match segments {
        0 if room == 0 || c.sender.outstanding() => None,
        0 => Some(room),
        _ => Some(segments * mss),
    }
}

/// Receive into a frame and send it.
fn send_segment<H: Host>(c: &mut Connection<H::Socket>, context: &mut Context<H>, room: usize) {
    let Some(path) = c.path(context) else {
        c.readable = false;
        return;
    };
    let start = path.transport() + SIZE;
    let mut frame = std::mem::take(&mut context.scratch);
    frame.clear();
    frame.resize(start, 0);
    match c.peer.receive(context, &mut frame, room) {
        Ok(0) => {
            c.sender.ended = true;
            context.scratch = frame;
        }
        Ok(count) => {
            // Less than asked for: the socket is empty, and what comes from now on is reported anew
            // (epoll(7), question 9).
            let emptied = count < room && matches!(c.peer, Peer::Host(_));
            c.readable = !emptied || c.host_ended;
            let header = c.header(PSH);
            let mss = c.sender.mss;
            header.seal(&path, &mut frame, mss);
            let frame = fitted(context, frame);
            record(c, &header, frame.clone(), count);
            context.outbox.push(frame);
        }
        Err(error) => {
            context.scratch = frame;
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => c.readable = false,
                _ => c.reset_guest(context),
            }
        }
    }
}

/// Share the frame; one that is mostly empty is copied and its memory used again.
fn fitted<H: Host>(context: &mut Context<H>, frame: Vec<u8>) -> Arc<Vec<u8>> {
    if frame.capacity() <= frame.len() * SLACK {
        return Arc::new(frame);
    }
    let small = Arc::new(frame.as_slice().to_vec());
    context.scratch = frame;
    // The offload header is not cleared by the next user's `resize`, which clears all.
    small
}

fn record<S>(c: &mut Connection<S>, header: &Header, frame: Arc<Vec<u8>>, count: usize) {
    c.bytes.1 += count as u64;
    c.sender.next = c.sender.next.wrapping_add(count as u32);
    c.sender.sent.push_back(Sent { start: header.sequence, length: count as u32, frame });
}
