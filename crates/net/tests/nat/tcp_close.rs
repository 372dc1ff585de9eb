//! How connections end.

use crate::network::{config, only_tcp, Network, Open, Packet, SECOND};
use sublet_net::wire::tcp::{Header, ACK, FIN, RST, SYN};

fn open() -> Open {
    Open::new(Network::new(config()))
}

#[test]
fn rfc9293_3_6_the_guest_closes_first() {
    let mut open = open();
    let header = open.header(FIN | ACK);
    let ack = only_tcp(open.send(header, b"bye"));
    assert_eq!(ack.acknowledgment, open.mine + 4);
    assert!(open.host().shut);
    assert_eq!(open.host().sent, b"bye");
    open.mine += 4;
    // Half closed: the host may go on.
    assert_eq!(only_tcp(open.hear(b"more")).payload, b"more");
    open.acknowledge(4);
    let fin = only_tcp(open.hear(b""));
    assert_eq!(fin.flags & FIN, FIN);
    open.acknowledge(1);
    assert_eq!(open.connections(), 0);
    assert!(!open.host().aborted);
}

#[test]
fn rfc9293_3_6_the_host_closes_first() {
    let mut open = open();
    let fin = only_tcp(open.hear(b""));
    assert_eq!((fin.flags, fin.sequence), (FIN | ACK, open.theirs));
    open.acknowledge(1);
    // Half closed: the guest may go on.
    open.say(b"more");
    assert_eq!(open.host().sent, b"more");
    let header = open.header(FIN | ACK);
    assert_eq!(only_tcp(open.send(header, &[])).acknowledgment, open.mine + 1);
    assert_eq!((open.connections(), open.host().aborted), (0, false));
}

#[test]
fn rfc9293_3_6_a_lost_fin_is_sent_again() {
    let mut open = open();
    let fin = only_tcp(open.hear(b""));
    let again = only_tcp(open.network.wait(SECOND));
    assert_eq!((again.flags, again.sequence), (fin.flags, fin.sequence));
}

#[test]
fn rfc9293_3_6_data_that_waits_goes_before_the_end() {
    let mut open = open();
    open.host().room = 2;
    let header = open.header(FIN | ACK);
    open.send(header, b"hello");
    assert!(!open.host().shut);
    let socket = open.socket;
    open.host().room = 100;
    open.network.ready(socket);
    assert!(open.host().shut);
    assert_eq!(open.host().sent, b"hello");
}

#[test]
fn rfc5961_3_2_a_reset_at_the_expected_number_reaches_the_host() {
    let mut open = open();
    let header = open.header(RST);
    assert_eq!(open.send(header, &[]), []);
    assert_eq!((open.connections(), open.host().aborted), (0, true));
}

#[test]
fn rfc5961_3_2_another_reset_in_the_window_is_challenged() {
    let mut open = open();
    let header = Header { sequence: open.mine + 5, ..open.header(RST) };
    assert_eq!(only_tcp(open.send(header, &[])).flags, ACK);
    let outside = Header { sequence: open.mine.wrapping_sub(5), ..open.header(RST) };
    assert_eq!(open.send(outside, &[]), []);
    assert_eq!(open.connections(), 1);
}

#[test]
fn rfc5961_4_2_a_syn_in_a_connection_is_challenged() {
    let mut open = open();
    let header = Header { flags: SYN, acknowledgment: 0, ..open.header(SYN) };
    assert_eq!(only_tcp(open.send(header, &[])).flags, ACK);
    assert_eq!(open.connections(), 1);
}

#[test]
fn a_reset_of_the_host_reaches_the_guest() {
    let mut open = open();
    let socket = open.socket;
    open.host().incoming.push_back(Err(libc::ECONNRESET));
    let reset = only_tcp(open.network.ready(socket));
    assert_eq!((reset.flags & RST, reset.sequence), (RST, open.theirs));
    assert_eq!(open.connections(), 0);
}

#[test]
fn rfc9293_3_8_3_a_guest_that_answers_nothing_is_given_up() {
    let mut open = open();
    open.hear(b"data");
    let mut seen = Vec::new();
    for _ in 0..10 {
        seen.extend(open.network.wait(61 * SECOND));
    }
    let last = seen.last();
    assert!(matches!(last, Some(Packet::Tcp(segment)) if segment.flags & RST != 0), "{last:?}");
    assert_eq!((open.connections(), open.host().aborted), (0, true));
}
