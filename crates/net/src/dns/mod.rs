//! The resolver that guests are told of: it asks the host's resolvers, and tells the policy what they said.
//!
//! Queries over UDP are asked over UDP, those over TCP over TCP, so that truncation works end to end. Each
//! query has its own socket, port and number, so that nobody off the way can answer it (RFC 5452).

pub mod message;

use crate::context::Context;
use crate::dhcp4::Dhcp4;
use crate::host::{Host, Ready, Token};
use crate::policy::{Denial, Protocol};
use crate::slab::{Id, Slab};
use crate::timers::{Deadline, Timer};
use crate::wire::{udp, write_u16, Drop};
use message::{Code, Question};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port of DNS.
pub const PORT: u16 = 53;
/// Queries at once.
const QUERIES_MAXIMUM: usize = 256;
const ATTEMPT_NS: u64 = 3_000_000_000;
const ATTEMPTS_MAXIMUM: usize = 4;
const MESSAGE_MAXIMUM: usize = 65_535;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A datagram from the first address to the second.
    Udp(SocketAddr, SocketAddr),
    /// A connection.
    Tcp(Id),
}

/// An answer that is ready.
#[derive(Debug)]
pub struct Answer {
    /// For whom.
    pub client: Client,
    /// The whole message.
    pub message: Vec<u8>,
}

#[derive(Debug)]
struct Query<S> {
    client: Client,
    /// The guest's message, with our number in place of its own.
    message: Vec<u8>,
    guest_number: [u8; 2],
    number: u16,
    question: Question,
    servers: Vec<SocketAddr>,
    attempt: usize,
    socket: Option<S>,
    /// What a resolver has sent over TCP so far, and whether it was asked.
    stream: Vec<u8>,
    asked: bool,
    deadline: Deadline,
}

impl<S> Query<S> {
    fn server(&self) -> Option<SocketAddr> {
        self.servers.get(self.attempt % self.servers.len().max(1)).copied()
    }
}

/// All queries under way.
pub struct Dns<S> {
    queries: Slab<Query<S>>,
    answers: Vec<Answer>,
    /// Queries ever asked.
    pub asked: u64,
}

impl<S> Default for Dns<S> {
    fn default() -> Self {
        Self { queries: Slab::new(QUERIES_MAXIMUM), answers: Vec::new(), asked: 0 }
    }
}

impl<S> Dns<S> {
    /// Answers that became ready.
    pub fn take_answers(&mut self) -> Vec<Answer> {
        std::mem::take(&mut self.answers)
    }

    /// Take a guest's query.
    ///
    /// # Errors
    /// Why it is not answered.
    pub fn query<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        dhcp: &Dhcp4,
        client: Client,
        query: &[u8],
    ) -> Result<(), Drop> {
        let question = match message::parse_query(query) {
            Ok(question) => question,
            Err(None) => return Err(Drop::Malformed),
            Err(Some(code)) => {
                self.answer(client, message::respond(query, None, code, None));
                return Ok(());
            }
        };
        if let Some(answer) = local_answer(context, dhcp, query, &question) {
            self.answer(client, answer);
        } else if context.gate.allows_name(&question.name) {
            self.ask(context, client, query, question);
        } else {
            context.count(Drop::Denied);
            let denial = Denial { protocol: Protocol::Udp, target: question.name.clone(), port: PORT };
            context.gate.deny(context.now, denial);
            self.answer(client, message::respond(query, Some(&question), Code::NoName, None));
        }
        Ok(())
    }

    fn answer(&mut self, client: Client, message: Vec<u8>) {
        self.answers.push(Answer { client, message });
    }

    fn ask<H: Host<Socket = S>>(
        &mut self,
        context: &mut Context<H>,
        client: Client,
        query: &[u8],
        question: Question,
    ) {
        let mut servers = context.config.resolvers.clone();
        if servers.is_empty() {
            servers = context.host.resolvers();
        }
        if servers.is_empty() || self.queries.is_full() {
            self.answer(client, message::respond(query, Some(&question), Code::ServerFailure, None));
            return;
        }
        let number = context.host.random() as u16;
        let mut message = query.to_vec();
        write_u16(&mut message, 0, number);
        let query = Query {
            client,
            message,
            guest_number: [query[0], query[1]],
            number,
            question,
            servers,
            attempt: 0,
            socket: None,
            stream: Vec::new(),
            asked: false,
            deadline: Deadline::default(),
        };
        self.asked += 1;
        if let Ok(id) = self.queries.insert(query) {
            self.attempt(context, id);
        }
    }

    /// Ask the next resolver, until one can be asked or all were.
    fn attempt<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id) {
        let Some(query) = self.queries.get_mut(id) else { return };
        while query.attempt < ATTEMPTS_MAXIMUM {
            if open(context, query, id).is_some() {
                let due = context.now + ATTEMPT_NS;
                context.timers.set(&mut query.deadline, due, Timer::Dns(id));
                return;
            }
            query.attempt += 1;
        }
        self.fail(id);
    }

    fn fail(&mut self, id: Id) {
        let Some(mut query) = self.queries.remove(id) else { return };
        query.message[..2].copy_from_slice(&query.guest_number);
        let answer = message::respond(&query.message, Some(&query.question), Code::ServerFailure, None);
        self.answer(query.client, answer);
    }

    /// A resolver's socket became ready.
    pub fn ready<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id, ready: Ready) {
        let Some(query) = self.queries.get_mut(id) else { return };
        let outcome = match query.client {
            Client::Udp(..) => receive_datagram(context, query),
            Client::Tcp(_) => receive_stream(context, query, ready),
        };
        match outcome {
            Outcome::Wait => {}
            Outcome::Failed => {
                query.attempt += 1;
                self.attempt(context, id);
            }
            Outcome::Done(mut answer) => {
                let Some(query) = self.queries.remove(id) else { return };
                for (address, ttl) in message::addresses(&answer, &query.question) {
                    context.gate.learn(context.now, &query.question.name, address, ttl);
                }
                answer[..2].copy_from_slice(&query.guest_number);
                self.answer(query.client, answer);
            }
        }
    }

    /// A resolver did not answer in time; `entry` is when the deadline was entered for.
    pub fn timeout<H: Host<Socket = S>>(&mut self, context: &mut Context<H>, id: Id, entry: u64) {
        let Some(query) = self.queries.get_mut(id) else { return };
        let now = context.now;
        if context.timers.is_due(&mut query.deadline, entry, now, Timer::Dns(id)) {
            query.attempt += 1;
            self.attempt(context, id);
        }
    }
}

enum Outcome {
    Wait,
    Failed,
    Done(Vec<u8>),
}

/// Open a socket to the query's resolver and ask, over UDP at once.
fn open<H: Host>(context: &mut Context<H>, query: &mut Query<H::Socket>, id: Id) -> Option<()> {
    let server = query.server()?;
    query.stream.clear();
    query.asked = false;
    let socket = match query.client {
        Client::Udp(..) => {
            let any: IpAddr =
                if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = context.host.open_udp(SocketAddr::new(any, 0)).ok()?;
            context.host.send_to(&socket, &query.message, server).ok()?;
            socket
        }
        Client::Tcp(_) => context.host.connect(server).ok()?,
    };
    context.host.watch(&socket, Token::Dns(id)).ok()?;
    query.socket = Some(socket);
    Some(())
}

fn receive_datagram<H: Host>(context: &mut Context<H>, query: &mut Query<H::Socket>) -> Outcome {
    let Some(socket) = &query.socket else { return Outcome::Wait };
    let mut data = Vec::new();
    loop {
        match context.host.receive_from(socket, &mut data) {
            Ok(from) => {
                let expected = Some(from) == query.server();
                if expected && message::answers(&data, query.number, &query.question) {
                    return Outcome::Done(data);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let refused = context.host.receive_error(socket).is_some();
                return if refused { Outcome::Failed } else { Outcome::Wait };
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Outcome::Failed,
        }
    }
}

/// Over TCP each message comes after its length in two bytes (RFC 1035 §4.2.2).
fn receive_stream<H: Host>(context: &mut Context<H>, query: &mut Query<H::Socket>, ready: Ready) -> Outcome {
    let Some(socket) = &query.socket else { return Outcome::Wait };
    if !query.asked {
        if !ready.writable && !ready.error {
            return Outcome::Wait;
        }
        let mut request = (query.message.len() as u16).to_be_bytes().to_vec();
        request.extend(&query.message);
        let connected = context.host.connect_result(socket).is_ok();
        // The first message fits any socket's empty buffer.
        if !connected || context.host.send(socket, &request).ok() != Some(request.len()) {
            return Outcome::Failed;
        }
        query.asked = true;
    }
    loop {
        let limit = MESSAGE_MAXIMUM + 2 - query.stream.len();
        match context.host.receive(socket, &mut query.stream, limit) {
            Ok(0) => return Outcome::Failed,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Wait,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return Outcome::Failed,
        }
        if let Some(answer) = first_message(&query.stream) {
            let right = message::answers(answer, query.number, &query.question);
            return if right { Outcome::Done(answer.to_vec()) } else { Outcome::Failed };
        }
    }
}

/// The first whole message of a stream.
pub fn first_message(stream: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes([*stream.first()?, *stream.get(1)?]));
    stream.get(2..2 + length)
}

/// The answer about a machine of the network, if the question is about one.
fn local_answer<H: Host>(
    context: &Context<H>,
    dhcp: &Dhcp4,
    query: &[u8],
    question: &Question,
) -> Option<Vec<u8>> {
    let respond = |data: Option<&[u8]>| message::respond(query, Some(question), Code::Ok, data);
    if question.kind == message::TYPE_PTR {
        let address = message::reversed_v4(&question.name)?;
        let name = dhcp.name_of(context.now, address)?;
        let full = message::encode_name(&format!("{name}.{}", context.config.domain));
        return Some(respond(Some(&full)));
    }
    let suffix = format!(".{}", context.config.domain);
    let (label, ours) = match question.name.strip_suffix(&suffix) {
        Some(label) => (label, true),
        None => (question.name.as_str(), false),
    };
    match dhcp.find_name(context.now, label) {
        Some(address) if question.kind == message::TYPE_A => Some(respond(Some(&address.octets()))),
        Some(_) => Some(respond(None)),
        None if ours => Some(message::respond(query, Some(question), Code::NoName, None)),
        None => None,
    }
}

/// The frame that carries an answer to a client over UDP.
pub fn datagram<H: Host>(
    context: &Context<H>,
    from: SocketAddr,
    to: SocketAddr,
    message: &[u8],
) -> Option<Vec<u8>> {
    let path = context.path(from.ip(), to.ip())?;
    udp::frame(&path, (from.port(), to.port()), message)
}
