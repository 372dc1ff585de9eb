//! Network boot.

use crate::network::{config, Network, Packet, MAC, SECOND};
use std::net::SocketAddr;
use std::path::PathBuf;
use sublet_net::config::{BootConfig, Config};
use sublet_net::wire::ethernet::Mac;
use sublet_net::wire::ip::Path;
use sublet_net::wire::udp;

const SERVER: &str = "10.0.2.2:69";

/// A folder with a file of 1,000 bytes, a link out of it, and a secret beside it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let base = std::env::temp_dir().join(format!("sublet-tftp-{}-{name}", std::process::id()));
        let root = base.join("root");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("boot"), vec![7; 1000]).unwrap();
        std::fs::write(root.join("even"), vec![7; 512]).unwrap();
        std::fs::write(base.join("secret"), b"secret").unwrap();
        std::os::unix::fs::symlink(base.join("secret"), root.join("link")).unwrap();
        Self(base)
    }

    fn network(&self) -> Network {
        let boot = Some(BootConfig { root: self.0.join("root"), file: "boot".into() });
        Network::new(Config { boot, ..config() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read_request(words: &[&str]) -> Vec<u8> {
    let mut message = vec![0, 1];
    for word in words {
        message.extend(word.as_bytes());
        message.push(0);
    }
    message
}

fn only(packets: &[Packet]) -> (SocketAddr, Vec<u8>) {
    match packets {
        [Packet::Udp(from, _, payload)] => (*from, payload.clone()),
        _ => panic!("one datagram expected: {packets:?}"),
    }
}

#[test]
fn rfc1350_2_a_file_comes_block_by_block() {
    let folder = Folder::new("blocks");
    let mut network = folder.network();
    let (from, first) = only(&network.udp(2000, SERVER.parse().unwrap(), &read_request(&["/boot", "octet"])));
    assert_eq!((&first[..4], first.len()), (&[0, 3, 0, 1][..], 516));
    let (_, second) = only(&network.udp(2000, from, &[0, 4, 0, 1]));
    assert_eq!((&second[..4], second.len()), (&[0, 3, 0, 2][..], 492));
    assert_eq!(network.udp(2000, from, &[0, 4, 0, 2]), []);
    assert_eq!(network.wait(10 * SECOND), []);
}

#[test]
fn rfc1350_6_a_file_of_whole_blocks_ends_with_an_empty_one() {
    let folder = Folder::new("even");
    let mut network = folder.network();
    let (from, _) = only(&network.udp(2000, SERVER.parse().unwrap(), &read_request(&["even", "octet"])));
    assert_eq!(only(&network.udp(2000, from, &[0, 4, 0, 1])).1, [0, 3, 0, 2]);
}

#[test]
fn rfc2348_options_are_negotiated() {
    let folder = Folder::new("options");
    let mut network = folder.network();
    let request = read_request(&["boot", "octet", "blksize", "9000", "tsize", "0", "unknown", "1"]);
    let (from, answer) = only(&network.udp(2000, SERVER.parse().unwrap(), &request));
    assert_eq!(answer, b"\0\x06blksize\x001468\0tsize\x001000\0");
    assert_eq!(only(&network.udp(2000, from, &[0, 4, 0, 0])).1.len(), 1004);
}

/// Numbers of the blocks in some packets.
fn blocks(packets: &[Packet]) -> Vec<u16> {
    let number = |packet: &Packet| match packet {
        Packet::Udp(_, _, payload) => u16::from_be_bytes([payload[2], payload[3]]),
        _ => panic!("a datagram expected: {packet:?}"),
    };
    packets.iter().map(number).collect()
}

#[test]
fn rfc7440_4_a_window_of_blocks_is_sent_and_goes_on_after_what_came() {
    let folder = Folder::new("window");
    let mut network = folder.network();
    let request = read_request(&["boot", "octet", "blksize", "100", "windowsize", "4"]);
    let (from, answer) = only(&network.udp(2000, SERVER.parse().unwrap(), &request));
    assert_eq!(answer, b"\0\x06blksize\x00100\0windowsize\x004\0");
    assert_eq!(blocks(&network.udp(2000, from, &[0, 4, 0, 0])), [1, 2, 3, 4]);
    assert_eq!(blocks(&network.udp(2000, from, &[0, 4, 0, 2])), [3, 4, 5, 6], "3 was lost");
    assert_eq!(blocks(&network.wait(SECOND)), [3, 4, 5, 6], "so was the acknowledgment");
    assert_eq!(network.udp(2000, from, &[0, 4, 0, 9]), [], "a block that was never sent");
    assert_eq!(blocks(&network.udp(2000, from, &[0, 4, 0, 6])), [7, 8, 9, 10]);
    assert_eq!(blocks(&network.udp(2000, from, &[0, 4, 0, 10])), [11], "the empty end");
    assert_eq!(network.udp(2000, from, &[0, 4, 0, 11]), []);
    assert_eq!(network.wait(10 * SECOND), []);
}

#[test]
fn rfc2349_a_client_that_wanted_only_the_size_ends_with_an_error() {
    let folder = Folder::new("size");
    let mut network = folder.network();
    let request = read_request(&["boot", "octet", "tsize", "0"]);
    let (from, _) = only(&network.udp(2000, SERVER.parse().unwrap(), &request));
    assert_eq!(network.udp(2000, from, &[0, 5, 0, 0, 0]), []);
    assert_eq!(network.wait(10 * SECOND), []);
}

#[test]
fn rfc1350_2_a_lost_block_is_sent_again_and_given_up_in_the_end() {
    let folder = Folder::new("lost");
    let mut network = folder.network();
    let (_, first) = only(&network.udp(2000, SERVER.parse().unwrap(), &read_request(&["boot", "octet"])));
    assert_eq!(only(&network.wait(SECOND)).1, first);
    let sent: usize = (0..20).map(|_| network.wait(SECOND).len()).sum();
    assert_eq!(sent, 7);
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let folder = Folder::new("paths");
    let mut network = folder.network();
    for name in ["../secret", "/../secret", "x/../../secret", "link", "..\\secret", ".", "none", "a\u{1}"] {
        let answer = network.udp(2000, SERVER.parse().unwrap(), &read_request(&[name, "octet"]));
        assert_eq!(only(&answer).1[..2], [0, 5], "{name}");
    }
    let write = [&[0, 2][..], b"x\0octet\0"].concat();
    assert_eq!(only(&network.udp(2000, SERVER.parse().unwrap(), &write)).1[..4], [0, 5, 0, 2]);
}

#[test]
fn rfc8415_18_3_6_information_is_given_and_addresses_are_not() {
    let mut network = Network::new(config());
    let path = Path {
        link: (MAC, Mac([0x33, 0x33, 0, 1, 0, 2])),
        source: "fe80::9".parse().unwrap(),
        destination: "ff02::1:2".parse().unwrap(),
    };
    let ask = |kind: u8| udp::frame(&path, (546, 547), &[kind, 1, 2, 3, 0, 1, 0, 2, 9, 9]).unwrap();
    let (_, reply) = only(&network.frame(ask(11)));
    assert_eq!(reply[..10], [7, 1, 2, 3, 0, 1, 0, 2, 9, 9]);
    let dns: std::net::Ipv6Addr = "fd00::3".parse().unwrap();
    assert!(reply.windows(16).any(|window| window == dns.octets()));
    assert_eq!(network.frame(ask(1)), []);
}
