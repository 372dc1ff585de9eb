//! Data through a connection, and what keeps it within bounds.

use crate::network::{config, only_tcp, Network, Open, Packet, SECOND};
use sublet_net::host::Ready;
use sublet_net::wire::tcp::{Header, ACK, PSH};

fn open() -> Open {
    Open::new(Network::new(config()))
}

fn payloads(packets: &[Packet]) -> Vec<usize> {
    packets.iter().map(|p| if let Packet::Tcp(seen) = p { seen.payload.len() } else { 0 }).collect()
}

#[test]
fn rfc9293_3_10_7_4_data_in_order_reaches_the_host_and_is_acknowledged() {
    let mut open = open();
    open.say(b"hello");
    assert_eq!(open.host().sent, b"hello");
    let ack = only_tcp(open.say(&[1; 2920]));
    assert_eq!((ack.flags, ack.acknowledgment), (ACK, open.mine));
}

#[test]
fn rfc9293_3_8_6_3_an_acknowledgment_waits_a_little_for_an_answer_to_go_with() {
    let mut open = open();
    assert_eq!(open.say(b"question"), []);
    let ack = only_tcp(open.network.wait(SECOND / 100));
    assert_eq!((ack.flags, ack.acknowledgment), (ACK, open.mine));
    assert_eq!(open.say(b"question"), []);
    let answer = only_tcp(open.hear(b"answer"));
    assert_eq!((answer.acknowledgment, answer.payload.len()), (open.mine, 6));
    open.acknowledge(6);
    assert_eq!(open.network.wait(SECOND), []);
}

#[test]
fn rfc9293_3_10_7_4_what_came_before_is_not_delivered_twice() {
    let mut open = open();
    let first = open.header(ACK | PSH);
    open.say(b"hello");
    let again = only_tcp(open.send(first, b"hello"));
    assert_eq!(again.acknowledgment, open.mine);
    let overlap = Header { sequence: open.mine.wrapping_sub(2), ..open.header(ACK) };
    open.send(overlap, b"lo world");
    assert_eq!(open.host().sent, b"hello world");
}

#[test]
fn rfc5681_4_2_a_gap_is_acknowledged_at_once_with_what_is_missing() {
    let mut open = open();
    let gap = Header { sequence: open.mine + 10, ..open.header(ACK) };
    let ack = only_tcp(open.send(gap, b"late"));
    assert_eq!((ack.acknowledgment, open.host().sent.len()), (open.mine, 0));
}

#[test]
fn rfc9293_3_8_6_a_host_that_takes_nothing_closes_the_window() {
    let mut open = open();
    open.host().room = 0;
    let mut total = 0;
    let chunk = vec![7; 32_000];
    let last = loop {
        let ack = only_tcp(open.say(&chunk));
        total += chunk.len();
        if ack.window == 0 || total > 4 << 20 {
            break ack;
        }
    };
    assert_eq!(last.window, 0);
    assert!(total <= (1 << 20) + chunk.len());
    let socket = open.socket;
    open.host().room = usize::MAX;
    let update = only_tcp(open.network.ready(socket));
    assert!(update.window > 0);
    assert_eq!(open.host().sent.len() as u32, update.acknowledgment - 5001);
}

#[test]
fn rfc9293_3_8_6_data_past_the_window_is_not_taken() {
    let mut open = open();
    open.host().room = 0;
    for _ in 0..200 {
        let header = open.header(ACK);
        let ack = only_tcp(open.send(header, &[1; 30_000]));
        open.mine = ack.acknowledgment;
    }
    assert!(open.mine.wrapping_sub(5001) <= 1 << 20);
}

#[test]
fn rfc9293_3_8_6_the_guest_s_window_is_respected() {
    let mut open = Open::with_window(Network::new(config()), 30);
    // 30 << 7 bytes: two full segments and a part of a third that waits for an acknowledgment.
    let sent = open.hear(&[1; 10_000]);
    assert_eq!(payloads(&sent), [1460, 1460]);
    open.theirs += 2920;
    let header = Header { window: 30, ..open.header(ACK) };
    assert_eq!(payloads(&open.send(header, &[])), [1460, 1460]);
}

#[test]
fn segments_are_as_long_as_the_device_takes_them() {
    let mut open = open();
    open.network.stack.context.segmentation = (true, true);
    let sent = open.hear(&[1; 100_000]);
    assert_eq!(payloads(&sent), [44 * 1460, 100_000 - 44 * 1460]);
}

#[test]
fn rfc6298_5_4_an_unacknowledged_segment_is_sent_again_after_longer_and_longer_waits() {
    let mut open = open();
    let sent = only_tcp(open.hear(b"data"));
    assert_eq!(open.network.wait(SECOND - 1), []);
    assert_eq!(only_tcp(open.network.wait(1)), sent);
    assert_eq!(open.network.wait(2 * SECOND - 1), []);
    assert_eq!(only_tcp(open.network.wait(1)).payload, b"data");
    assert_eq!(open.acknowledge(4), []);
    assert_eq!(open.network.wait(3600 * SECOND), []);
}

#[test]
fn rfc5681_3_2_three_duplicates_bring_the_missing_segment() {
    let mut open = open();
    open.hear(b"data");
    assert_eq!(open.acknowledge(0), []);
    assert_eq!(open.acknowledge(0), []);
    assert_eq!(only_tcp(open.acknowledge(0)).payload, b"data");
}

#[test]
fn rfc9293_3_8_6_1_a_shut_window_is_probed() {
    let mut open = Open::with_window(Network::new(config()), 0);
    assert_eq!(open.hear(b"data"), []);
    let probe = only_tcp(open.network.wait(SECOND));
    assert_eq!((probe.sequence, probe.payload.len()), (open.theirs - 1, 0));
    let header = open.header(ACK);
    assert_eq!(only_tcp(open.send(header, &[])).payload, b"data");
}

#[test]
fn rfc5961_5_2_an_acknowledgment_of_what_was_never_sent_is_challenged() {
    let mut open = open();
    let header = Header { acknowledgment: open.theirs + 100, ..open.header(ACK) };
    let ack = only_tcp(open.send(header, b"data"));
    assert_eq!((ack.acknowledgment, open.host().sent.len()), (open.mine, 0));
}

#[test]
fn rfc5382_req_5_an_idle_connection_lives_two_hours_and_four_minutes() {
    let mut open = open();
    open.network.wait((2 * 3600 + 4 * 60 - 1) * SECOND);
    assert_eq!(open.connections(), 1);
    open.network.wait(2 * SECOND);
    assert_eq!(open.connections(), 0);
}

/// What a socket says when it has something to read, and whether nothing comes after it.
fn readable(ended: bool) -> Ready {
    Ready { readable: true, writable: false, error: false, ended }
}

#[test]
fn a_short_read_is_the_last_unless_the_end_has_been_reported() {
    for (ended, asked) in [(false, 1), (true, 2)] {
        let mut open = open();
        open.host().incoming.push_back(Ok(b"x".to_vec()));
        open.host().receives = 0;
        let token = open.host().token.unwrap();
        open.network.stack.ready(0, token, readable(ended));
        assert_eq!(payloads(&open.network.collect()), [1]);
        assert_eq!(open.host().receives, asked);
    }
}

#[test]
fn a_full_outbox_leaves_the_data_with_the_host() {
    let mut open = open();
    open.network.stack.context.segmentation = (true, true);
    let socket = open.socket;
    open.host().incoming.push_back(Ok(vec![1; 60_000]));
    while !open.network.stack.context.outbox.is_full() {
        open.network.stack.context.outbox.push(vec![0; 100_000]);
    }
    let token = open.network.socket(socket).token.unwrap();
    open.network.stack.ready(0, token, readable(false));
    open.network.stack.settle();
    assert_eq!(open.host().incoming.len(), 1);
    while open.network.stack.take().is_some() {}
    assert_eq!(payloads(&open.network.collect()), [60_000]);
}
