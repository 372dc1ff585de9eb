//! Stateless DHCPv6: machines make their addresses from the advertised prefix, and ask here for the rest.
//!
//! Reference: RFC 8415 §18.3.6 "Receipt of Information-request Messages"; RFC 3646 for the resolver.

use crate::config::{ROUTER_LINK_LOCAL, ROUTER_MAC};
use crate::context::Context;
use crate::dns::message::encode_name;
use crate::host::Host;
use crate::wire::{read_u16, udp, Drop};
use std::net::IpAddr;

/// Ports of server and client.
pub const PORTS: (u16, u16) = (547, 546);

const INFORMATION_REQUEST: u8 = 11;
const REPLY: u8 = 7;
const OPTION_CLIENT: u16 = 1;
const OPTION_SERVER: u16 = 2;
const OPTION_DNS: u16 = 23;
const OPTION_DOMAIN: u16 = 24;
/// A DUID by hardware address: type 3, Ethernet (RFC 8415 §11.4).
const DUID_LINK: [u8; 4] = [0, 3, 0, 1];
const IDENTIFIER_MAXIMUM: usize = 130;

/// Answer a client's message; other kinds than questions for information are for servers with addresses.
///
/// # Errors
/// Why it is not answered.
pub fn input<H: Host>(context: &mut Context<H>, source: IpAddr, message: &[u8]) -> Result<(), Drop> {
    let header = message.get(..4).ok_or(Drop::Truncated)?;
    let Some(network) = context.config.v6 else { return Err(Drop::NotForUs) };
    if header[0] != INFORMATION_REQUEST {
        return Err(Drop::NotForUs);
    }
    let mut reply = vec![REPLY, header[1], header[2], header[3]];
    if let Some(client) = find_option(&message[4..], OPTION_CLIENT)? {
        add_option(&mut reply, OPTION_CLIENT, &client[..client.len().min(IDENTIFIER_MAXIMUM)]);
    }
    add_option(&mut reply, OPTION_SERVER, &[&DUID_LINK[..], &ROUTER_MAC.0].concat());
    add_option(&mut reply, OPTION_DNS, &network.dns.octets());
    add_option(&mut reply, OPTION_DOMAIN, &encode_name(&context.config.domain));
    let path = context.path(ROUTER_LINK_LOCAL.into(), source).ok_or(Drop::NoFlow)?;
    if let Some(frame) = udp::frame(&path, PORTS, &reply) {
        context.outbox.push(frame);
    }
    Ok(())
}

fn find_option(mut options: &[u8], wanted: u16) -> Result<Option<&[u8]>, Drop> {
    while !options.is_empty() {
        let (code, length) = (read_u16(options, 0)?, usize::from(read_u16(options, 2)?));
        let value = options.get(4..4 + length).ok_or(Drop::Truncated)?;
        if code == wanted {
            return Ok(Some(value));
        }
        options = &options[4 + length..];
    }
    Ok(None)
}

fn add_option(message: &mut Vec<u8>, code: u16, value: &[u8]) {
    message.extend(code.to_be_bytes());
    message.extend((value.len() as u16).to_be_bytes());
    message.extend(value);
}
