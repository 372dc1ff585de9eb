//! The host's resolvers.
//!
//! Reference: Linux man-pages 6.03 resolv.conf(5).

use std::net::{IpAddr, SocketAddr};

const RESOLVERS_MAXIMUM: usize = 3;
const DNS_PORT: u16 = 53;

/// The `nameserver` lines (resolv.conf(5)).
pub(super) fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let named = words.next() == Some("nameserver");
        let word = words.next().filter(|_| named)?;
        let plain = word.split('%').next()?;
        plain.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT))
    };
    text.lines().filter_map(address).take(RESOLVERS_MAXIMUM).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_lines() {
        let text = "# x\nsearch a.test\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver x\n";
        let expected = ["192.0.2.1:53".parse().unwrap(), "[fe80::1]:53".parse().unwrap()];
        assert_eq!(parse_resolv_conf(text), expected);
    }
}
