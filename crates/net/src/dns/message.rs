//! DNS messages, as far as a forwarder reads and writes them.
//!
//! Reference: RFC 1035 §4 "Messages"; RFC 3596 for AAAA.

use crate::wire::{read_u16, read_u32, write_u16};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of a header.
pub const HEADER: usize = 12;
/// An address of IPv4.
pub const TYPE_A: u16 = 1;
/// Another name.
pub const TYPE_CNAME: u16 = 5;
/// A name for an address.
pub const TYPE_PTR: u16 = 12;
/// An address of IPv6.
pub const TYPE_AAAA: u16 = 28;
const CLASS_IN: u16 = 1;
const POINTERS_MAXIMUM: usize = 32;
const NAME_MAXIMUM: usize = 255;
const RECORDS_MAXIMUM: usize = 256;
const LOCAL_TTL_S: u32 = 5;

/// How a query ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// With an answer, maybe an empty one.
    Ok = 0,
    /// It makes no sense.
    FormatError = 1,
    /// No resolver answered.
    ServerFailure = 2,
    /// There is no such name.
    NoName = 3,
    /// Of a kind that is not served.
    NotImplemented = 4,
}

/// The question of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// In lower case, without the last dot.
    pub name: String,
    /// Which records.
    pub kind: u16,
    /// End of the question in the message.
    pub end: usize,
}

/// Read a query with exactly one question.
///
/// # Errors
/// How to answer what is none; `None`: not at all.
pub fn parse_query(message: &[u8]) -> Result<Question, Option<Code>> {
    if message.len() < HEADER || message[2] & 0x80 != 0 {
        return Err(None);
    }
    if message[2] & 0x78 != 0 {
        return Err(Some(Code::NotImplemented));
    }
    parse_question(message).ok_or(Some(Code::FormatError))
}

fn parse_question(message: &[u8]) -> Option<Question> {
    if read_u16(message, 4).ok()? != 1 {
        return None;
    }
    let (name, at) = read_name(message, HEADER)?;
    let kind = read_u16(message, at).ok()?;
    let class = read_u16(message, at + 2).ok()?;
    (class == CLASS_IN).then_some(Question { name, kind, end: at + 4 })
}

/// Whether a message answers a query that has `id` and `question`.
pub fn answers(message: &[u8], id: u16, question: &Question) -> bool {
    let response = message.len() >= HEADER && message[2] & 0x80 != 0;
    let asked =
        || parse_question(message).is_some_and(|q| q.name == question.name && q.kind == question.kind);
    response && read_u16(message, 0) == Ok(id) && asked()
}

/// The addresses that an answer gives for its question, through its aliases, with seconds to live.
pub fn addresses(message: &[u8], question: &Question) -> Vec<(IpAddr, u32)> {
    let mut names = vec![question.name.clone()];
    let mut found = Vec::new();
    let count = usize::from(read_u16(message, 6).unwrap_or(0)).min(RECORDS_MAXIMUM);
    let mut at = question.end;
    for _ in 0..count {
        let Some(record) = read_record(message, at) else { break };
        at = record.end;
        if !names.contains(&record.name) {
            continue;
        }
        match record.kind {
            TYPE_CNAME => names.extend(read_name(message, record.data.0).map(|(name, _)| name)),
            TYPE_A | TYPE_AAAA => {
                let bytes = &message[record.data.0..record.data.1];
                found.extend(address(bytes).map(|address| (address, record.ttl)));
            }
            _ => {}
        }
    }
    found
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

struct Record {
    name: String,
    kind: u16,
    ttl: u32,
    data: (usize, usize),
    end: usize,
}

fn read_record(message: &[u8], at: usize) -> Option<Record> {
    let (name, at) = read_name(message, at)?;
    let length = usize::from(read_u16(message, at + 8).ok()?);
    let end = at + 10 + length;
    message.get(..end)?;
    Some(Record {
        name,
        kind: read_u16(message, at).ok()?,
        ttl: read_u32(message, at + 4).ok()?,
        data: (at + 10, end),
        end,
    })
}

/// A name in lower case, and where it ends. Pointers are followed within bounds (RFC 1035 §4.1.4).
///
/// A label with a dot, or a byte that is no printable ASCII, is kept apart by an escape, so that no name can
/// be taken for another.
fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    let mut end = None;
    for _ in 0..POINTERS_MAXIMUM + NAME_MAXIMUM {
        let length = usize::from(*message.get(at)?);
        match length {
            0 => return Some((name, end.unwrap_or(at + 1))),
            1..=63 => {
                let label = message.get(at + 1..at + 1 + length)?;
                push_label(&mut name, label);
                at += 1 + length;
            }
            192.. => {
                end = end.or(Some(at + 2));
                at = usize::from(read_u16(message, at).ok()? & 0x3FFF);
            }
            _ => return None,
        }
        if name.len() > 4 * NAME_MAXIMUM {
            return None;
        }
    }
    None
}

fn push_label(name: &mut String, label: &[u8]) {
    if !name.is_empty() {
        name.push('.');
    }
    for &byte in label {
        if byte.is_ascii_graphic() && byte != b'.' && byte != b'\\' {
            name.push(byte.to_ascii_lowercase() as char);
        } else {
            name.push_str(&format!("\\{byte:03}"));
        }
    }
}

/// An answer to a query, with at most one record: `data` of the question's type.
pub fn respond(query: &[u8], question: Option<&Question>, code: Code, data: Option<&[u8]>) -> Vec<u8> {
    let end = question.map_or(HEADER, |question| question.end);
    let mut message = query[..end].to_vec();
    let recursion_desired = query[2] & 1;
    message[2] = 0x80 | recursion_desired;
    message[3] = 0x80 | code as u8;
    write_u16(&mut message, 4, u16::from(question.is_some()));
    write_u16(&mut message, 6, u16::from(data.is_some()));
    message[8..12].fill(0);
    if let (Some(question), Some(data)) = (question, data) {
        message.extend([0xC0, HEADER as u8]);
        message.extend(question.kind.to_be_bytes());
        message.extend(CLASS_IN.to_be_bytes());
        message.extend(LOCAL_TTL_S.to_be_bytes());
        message.extend((data.len() as u16).to_be_bytes());
        message.extend(data);
    }
    message
}

/// A name as it is on the wire.
pub fn encode_name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        bytes.push(label.len() as u8);
        bytes.extend(label);
    }
    bytes.push(0);
    bytes
}

/// The address in the name of a PTR question for IPv4.
pub fn reversed_v4(name: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut labels = name.strip_suffix(".in-addr.arpa")?.split('.').rev();
    for octet in &mut octets {
        *octet = labels.next()?.parse().ok()?;
    }
    labels.next().is_none().then_some(octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        message.extend(encode_name(name));
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    fn answer(records: &[(&str, u16, Vec<u8>)]) -> (Vec<u8>, Question) {
        let query = query("WWW.example", TYPE_A);
        let question = parse_query(&query).unwrap();
        let mut message = respond(&query, Some(&question), Code::Ok, None);
        write_u16(&mut message, 6, records.len() as u16);
        for (name, kind, data) in records {
            message.extend(encode_name(name));
            message.extend(kind.to_be_bytes());
            message.extend([0, 1, 0, 0, 0, 60]);
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        }
        (message, question)
    }

    #[test]
    fn rfc1035_4_1_2_a_question_is_read() {
        let question = parse_query(&query("WWW.Example", TYPE_AAAA)).unwrap();
        assert_eq!((question.name.as_str(), question.kind), ("www.example", TYPE_AAAA));
    }

    #[test]
    fn rfc1035_4_1_4_pointer_loops_end() {
        let mut message = query("a", TYPE_A);
        message[HEADER..HEADER + 2].copy_from_slice(&[0xC0, HEADER as u8]);
        assert_eq!(parse_query(&message), Err(Some(Code::FormatError)));
    }

    #[test]
    fn addresses_follow_aliases_and_nothing_else() {
        let (message, question) = answer(&[
            ("www.example", TYPE_CNAME, encode_name("cdn.test")),
            ("other.test", TYPE_A, vec![192, 0, 2, 9]),
            ("cdn.test", TYPE_A, vec![192, 0, 2, 1]),
        ]);
        assert!(answers(&message, 0x1234, &question));
        assert_eq!(addresses(&message, &question), [(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 60)]);
    }

    #[test]
    fn no_prefix_of_an_answer_panics() {
        let (message, question) = answer(&[("www.example", TYPE_A, vec![192, 0, 2, 1])]);
        for length in 0..message.len() {
            let cut = &message[..length];
            let _ = parse_query(cut);
            assert!(length < question.end || addresses(cut, &question).is_empty());
        }
    }

    #[test]
    fn a_dot_in_a_label_is_no_separator() {
        let mut message = query("a.b", TYPE_A);
        message[HEADER..HEADER + 5].copy_from_slice(&[3, b'a', b'.', b'b', 0]);
        assert_eq!(parse_query(&message).unwrap().name, "a\\046b");
    }

    #[test]
    fn rfc1035_3_5_reverse_names() {
        assert_eq!(reversed_v4("15.2.0.10.in-addr.arpa"), Some(Ipv4Addr::new(10, 0, 2, 15)));
        assert_eq!(reversed_v4("1.15.2.0.10.in-addr.arpa"), None);
    }
}
