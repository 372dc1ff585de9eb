//! What a guest may reach.
//!
//! Rules are tried in order and the first that matches decides; what no rule matches is allowed. A rule by
//! name allows the addresses that our own resolver gave this guest for that name, for as long as the answer
//! lives: an address that the guest has from elsewhere is only an address.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;

const ADDRESSES_MAXIMUM: usize = 4096;
const GRACE_NS: u64 = 30_000_000_000;
const TTL_MAXIMUM_S: u32 = 86_400;
const RECENT_MAXIMUM: usize = 64;
const LOG_INTERVAL_NS: u64 = 1_000_000_000;
const LOG_BURST: u32 = 5;

/// What a rule can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests, of both versions.
    Icmp,
}

impl Protocol {
    /// Name in rules and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Icmp => "icmp",
        }
    }
}

/// Which addresses a rule is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// All.
    Any,
    /// Those that share so many bits with one.
    Network(IpAddr, u8),
    /// Those of a name, in lower case without the last dot; `*.` in front: of all names below it.
    Name(String),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Allow, or deny.
    pub allow: bool,
    /// Only this protocol.
    pub protocol: Option<Protocol>,
    /// Only these addresses.
    pub target: Target,
    /// Only these ports; `None`: all, and protocols without ports.
    pub ports: Option<RangeInclusive<u16>>,
}

impl Rule {
    fn covers(&self, protocol: Protocol, port: u16) -> bool {
        let port_fits = match &self.ports {
            None => true,
            Some(ports) => protocol != Protocol::Icmp && ports.contains(&port),
        };
        port_fits && self.protocol.is_none_or(|only| only == protocol)
    }

    fn is_for_name(&self, name: &str) -> bool {
        match &self.target {
            Target::Name(pattern) => name_matches(pattern, name),
            _ => false,
        }
    }

    fn denies_everything(&self) -> bool {
        !self.allow && self.protocol.is_none() && self.target == Target::Any && self.ports.is_none()
    }
}

fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => {
            name.strip_suffix(parent).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
        }
        None => pattern == name,
    }
}

/// Whether the first `bits` bits of two addresses of one version are equal.
pub fn shares_prefix(a: IpAddr, b: IpAddr, bits: u8) -> bool {
    let (a, b, width) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a)), u128::from(u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), u128::from(b), 128),
        _ => return false,
    };
    bits == 0 || (a ^ b) >> (width - u32::from(bits).min(width)) == 0
}

/// All rules, and whether names may be asked for that no rule names.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// In order.
    pub rules: Vec<Rule>,
    /// Resolve every name even where the rules end with "deny everything".
    pub open_names: bool,
}

/// A refusal, as statistics and the log show it.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Of which protocol.
    pub protocol: Protocol,
    /// Where the guest wanted to go: an address, or a name that it asked for.
    pub target: String,
    /// Which port; 0 without.
    pub port: u16,
}

/// The policy at work: with the addresses that names have now, and the count of refusals.
#[derive(Debug, Default)]
pub struct Gate {
    policy: Policy,
    addresses: HashMap<(usize, IpAddr), u64>,
    /// Refusals since the start.
    pub denied: u64,
    recent: VecDeque<Denial>,
    log_window: (u64, u32),
}

impl Gate {
    /// A gate with no name resolved yet.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Whether a packet may go to an address.
    pub fn allows(&self, now: u64, protocol: Protocol, address: IpAddr, port: u16) -> bool {
        let matching = self.policy.rules.iter().enumerate().find(|(index, rule)| {
            rule.covers(protocol, port) && self.is_for_address(now, *index, rule, address)
        });
        matching.is_none_or(|(_, rule)| rule.allow)
    }

    fn is_for_address(&self, now: u64, index: usize, rule: &Rule, address: IpAddr) -> bool {
        match &rule.target {
            Target::Any => true,
            Target::Network(network, bits) => shares_prefix(*network, address, *bits),
            Target::Name(_) => self.addresses.get(&(index, address)).is_some_and(|expires| *expires > now),
        }
    }

    /// Whether the resolver may ask for a name (lower case, no last dot).
    ///
    /// Where everything else is denied, a name that no rule names is too: a question is a message out.
    pub fn allows_name(&self, name: &str) -> bool {
        match self.policy.rules.iter().find(|rule| rule.is_for_name(name)) {
            Some(rule) => rule.allow,
            None => self.policy.open_names || !self.policy.rules.iter().any(Rule::denies_everything),
        }
    }

    /// Note an address that the resolver gave the guest for a name, for `ttl` seconds and a little longer.
    pub fn learn(&mut self, now: u64, name: &str, address: IpAddr, ttl: u32) {
        let expires = now + u64::from(ttl.min(TTL_MAXIMUM_S)) * 1_000_000_000 + GRACE_NS;
        for (index, rule) in self.policy.rules.iter().enumerate() {
            if !rule.is_for_name(name) {
                continue;
            }
            if self.addresses.len() >= ADDRESSES_MAXIMUM {
                self.addresses.retain(|_, expires| *expires > now);
            }
            if self.addresses.len() < ADDRESSES_MAXIMUM {
                let known = self.addresses.entry((index, address)).or_default();
                *known = expires.max(*known);
            }
        }
    }

    /// Count a refusal; a few a second are kept for the log.
    pub fn deny(&mut self, now: u64, denial: Denial) {
        self.denied += 1;
        if now >= self.log_window.0 + LOG_INTERVAL_NS {
            self.log_window = (now, 0);
        }
        if self.log_window.1 < LOG_BURST {
            self.log_window.1 += 1;
            self.recent.push_back(denial);
            self.recent.truncate(RECENT_MAXIMUM);
        }
    }

    /// Refusals to log, at most five for a second.
    pub fn take_denials(&mut self) -> Vec<Denial> {
        self.recent.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, protocol: Option<Protocol>, target: Target, port: Option<u16>) -> Rule {
        Rule { allow, protocol, target, ports: port.map(|port| port..=port) }
    }

    fn gate(rules: Vec<Rule>) -> Gate {
        Gate::new(Policy { rules, open_names: false })
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn without_rules_everything_is_allowed() {
        let gate = gate(vec![]);
        assert!(gate.allows(0, Protocol::Tcp, at("192.0.2.1"), 80) && gate.allows_name("example"));
    }

    #[test]
    fn the_first_matching_rule_decides() {
        let gate = gate(vec![
            rule(false, None, Target::Network(at("10.1.0.0"), 16), None),
            rule(true, Some(Protocol::Tcp), Target::Network(at("10.0.0.0"), 8), Some(5432)),
            rule(false, None, Target::Any, None),
        ]);
        assert!(gate.allows(0, Protocol::Tcp, at("10.2.0.1"), 5432));
        assert!(!gate.allows(0, Protocol::Udp, at("10.2.0.1"), 5432));
        assert!(!gate.allows(0, Protocol::Tcp, at("10.2.0.1"), 5433));
        assert!(!gate.allows(0, Protocol::Tcp, at("10.1.0.1"), 5432));
        assert!(!gate.allows(0, Protocol::Icmp, at("10.2.0.1"), 0));
    }

    #[test]
    fn a_name_allows_what_it_resolved_to_until_it_expires() {
        let mut gate = gate(vec![
            rule(true, None, Target::Name("*.example".into()), Some(443)),
            rule(false, None, Target::Any, None),
        ]);
        let address = at("2001:db8::7");
        assert!(!gate.allows(0, Protocol::Tcp, address, 443));
        gate.learn(0, "other.test", address, 60);
        assert!(!gate.allows(0, Protocol::Tcp, address, 443));
        gate.learn(0, "www.example", address, 60);
        assert!(gate.allows(89_000_000_000, Protocol::Tcp, address, 443));
        assert!(!gate.allows(89_000_000_000, Protocol::Tcp, address, 80));
        assert!(!gate.allows(90_000_000_000, Protocol::Tcp, address, 443));
    }

    #[test]
    fn names_that_no_rule_names_are_not_asked_for_under_deny_everything() {
        let rules =
            vec![rule(true, None, Target::Name("a.test".into()), None), rule(false, None, Target::Any, None)];
        assert!(gate(rules.clone()).allows_name("a.test"));
        assert!(!gate(rules.clone()).allows_name("secret.b.test"));
        assert!(Gate::new(Policy { rules, open_names: true }).allows_name("secret.b.test"));
    }

    #[test]
    fn wildcards_need_a_label() {
        assert!(name_matches("*.example", "a.example") && name_matches("*.example", "a.b.example"));
        assert!(!name_matches("*.example", "example") && !name_matches("*.example", "badexample"));
        assert!(!name_matches("*.example", ".example"));
    }

    #[test]
    fn the_addresses_of_names_are_bounded() {
        let mut gate = gate(vec![rule(true, None, Target::Name("a.test".into()), None)]);
        for index in 0..ADDRESSES_MAXIMUM as u32 + 10 {
            gate.learn(0, "a.test", IpAddr::V4(index.into()), 1);
        }
        assert_eq!(gate.addresses.len(), ADDRESSES_MAXIMUM);
        gate.learn(40_000_000_000, "a.test", at("192.0.2.9"), 1);
        assert_eq!(gate.addresses.len(), 1);
    }

    #[test]
    fn refusals_are_all_counted_and_few_are_logged() {
        let mut gate = gate(vec![]);
        for _ in 0..100 {
            gate.deny(0, Denial { protocol: Protocol::Tcp, target: "x".into(), port: 1 });
        }
        assert_eq!((gate.denied, gate.take_denials().len()), (100, LOG_BURST as usize));
    }
}
