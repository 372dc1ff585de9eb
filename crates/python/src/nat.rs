//! `NatEngine`: a network of `sublet_net`.

use crate::error::{guarded, host_error, InvalidError};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::{PyBytes, PyDict, PyList};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::time::Duration;
use sublet_net::config::{BootConfig, Config, Forward, Reservation, Transport, V6Config};
use sublet_net::engine::Engine;
use sublet_net::policy::{Policy, Protocol, Rule, Target};
use sublet_net::udp::Kind;
use sublet_net::wire::ethernet::Mac;

/// A router in user space with one network behind it.
#[pyclass(frozen, name = "NatEngine", module = "sublet.core._native")]
pub struct PyNatEngine {
    engine: Engine,
}

type ForwardRow = (String, String, Option<String>, u16);
type FlowRow = (&'static str, String, String, String, u64, u64);

fn invalid(what: &str, value: &str) -> PyErr {
    InvalidError::new_err(format!("{value:?} is no {what}"))
}

fn parsed<T: FromStr>(what: &str, text: &str) -> PyResult<T> {
    text.parse().map_err(|_| invalid(what, text))
}

/// A required entry of the configuration.
fn entry<'py, T>(config: &Bound<'py, PyDict>, name: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    let value = config.get_item(name)?;
    value.ok_or_else(|| invalid("configuration without", name))?.extract()
}

fn address<T: FromStr>(config: &Bound<'_, PyDict>, name: &str) -> PyResult<T> {
    parsed("address", &entry::<String>(config, name)?)
}

fn read_config(config: &Bound<'_, PyDict>) -> PyResult<Config> {
    let resolvers: Vec<String> = entry(config, "resolvers")?;
    let prefix_length: u8 = entry(config, "prefix_length")?;
    if !(8..=30).contains(&prefix_length) {
        return Err(invalid("prefix length", &prefix_length.to_string()));
    }
    let boot: Option<(String, String)> = entry(config, "boot")?;
    Ok(Config {
        gateway: address(config, "gateway")?,
        prefix_length,
        dns: address(config, "dns")?,
        first_lease: address(config, "first_lease")?,
        v6: read_v6(config)?,
        mtu: entry::<u16>(config, "mtu")?.clamp(576, 65_520),
        host_access: entry(config, "host_access")?,
        resolvers: resolvers.iter().map(|text| parsed("resolver", text)).collect::<PyResult<_>>()?,
        domain: entry(config, "domain")?,
        reservations: read_reservations(config)?,
        policy: read_policy(config)?,
        boot: boot.map(|(root, file)| BootConfig { root: root.into(), file }),
    })
}

fn read_v6(config: &Bound<'_, PyDict>) -> PyResult<Option<V6Config>> {
    let texts: Option<(String, String, String)> = entry(config, "v6")?;
    texts
        .map(|(prefix, gateway, dns)| {
            Ok(V6Config {
                prefix: parsed("prefix", &prefix)?,
                gateway: parsed("address", &gateway)?,
                dns: parsed("address", &dns)?,
            })
        })
        .transpose()
}

fn read_reservations(config: &Bound<'_, PyDict>) -> PyResult<Vec<Reservation>> {
    let rows: Vec<([u8; 6], String, String)> = entry(config, "reservations")?;
    let read = |(mac, address, name): ([u8; 6], String, String)| {
        Ok(Reservation { mac: Mac(mac), address: parsed::<Ipv4Addr>("address", &address)?, name })
    };
    rows.into_iter().map(read).collect()
}

/// Rules as rows: allow, protocol, kind of target, target, prefix length, ports.
fn read_policy(config: &Bound<'_, PyDict>) -> PyResult<Policy> {
    type Row = (bool, Option<String>, String, String, u8, Option<(u16, u16)>);
    let rows: Vec<Row> = entry(config, "rules")?;
    let read = |(allow, protocol, kind, target, bits, ports): Row| {
        Ok(Rule {
            allow,
            protocol: protocol.map(|name| read_protocol(&name)).transpose()?,
            target: match kind.as_str() {
                "any" => Target::Any,
                "name" => Target::Name(target),
                "network" => Target::Network(parsed::<IpAddr>("address", &target)?, bits),
                _ => return Err(invalid("kind of target", &kind)),
            },
            ports: ports.map(|(first, last)| first..=last),
        })
    };
    let rules = rows.into_iter().map(read).collect::<PyResult<_>>()?;
    Ok(Policy { rules, open_names: entry(config, "open_names")? })
}

fn read_protocol(name: &str) -> PyResult<Protocol> {
    match name {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        _ => Err(invalid("protocol", name)),
    }
}

fn read_forward((transport, listen, machine, port): &ForwardRow) -> PyResult<Forward> {
    Ok(Forward {
        transport: match transport.as_str() {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(invalid("protocol", transport)),
        },
        listen: parsed("address and port", listen)?,
        address: machine.as_ref().map(|text| parsed("address", text)).transpose()?,
        port: *port,
    })
}

fn refused((error, forward): (std::io::Error, Option<Forward>)) -> PyErr {
    let errno = error.raw_os_error().unwrap_or(0);
    match forward {
        Some(forward) => host_error(format!("cannot listen on {}: {error}", forward.listen), errno),
        None => host_error(format!("cannot start the network: {error}"), errno),
    }
}

#[pymethods]
impl PyNatEngine {
    #[new]
    fn new(config: &Bound<'_, PyDict>, forwards: Vec<ForwardRow>) -> PyResult<Self> {
        let forwards = forwards.iter().map(read_forward).collect::<PyResult<Vec<_>>>()?;
        let engine = Engine::start(read_config(config)?, &forwards).map_err(refused)?;
        Ok(Self { engine })
    }

    fn send(&self, py: Python<'_>, packets: Vec<PyBackedBytes>) -> PyResult<()> {
        let send = || {
            self.engine.send(packets.iter().map(|packet| &**packet));
            Ok(())
        };
        py.detach(|| guarded(send))
    }

    fn take<'py>(
        &self,
        py: Python<'py>,
        limit: usize,
        timeout_ms: Option<u64>,
    ) -> PyResult<Bound<'py, PyList>> {
        let timeout = timeout_ms.map(Duration::from_millis);
        let frames = py.detach(|| guarded(|| Ok(self.engine.take(limit, timeout))))?;
        PyList::new(py, frames.iter().map(|frame| PyBytes::new(py, frame)))
    }

    fn wait_for_room(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            guarded(|| {
                self.engine.wait_for_room();
                Ok(())
            })
        })
    }

    fn has_room(&self) {
        self.engine.has_room();
    }

    fn set_segmentation(&self, v4: bool, v6: bool) {
        self.engine.inspect(|stack, _| stack.context.segmentation = (v4, v6));
    }

    fn closed(&self) -> bool {
        self.engine.is_closed()
    }

    fn leases(&self) -> Vec<(String, String, String, u64)> {
        self.engine.inspect(|stack, now| {
            let row = |(mac, lease): (Mac, &sublet_net::dhcp4::Lease)| {
                let left = lease.expires.saturating_sub(now) / 1_000_000_000;
                (mac.to_string(), lease.address.to_string(), lease.name.clone(), left)
            };
            stack.dhcp4.leases(now).map(row).collect()
        })
    }

    fn flows(&self) -> Vec<FlowRow> {
        self.engine.inspect(|stack, _| {
            let connections = stack.tcp.iter().map(|c| {
                let state = format!("{:?}", c.phase).to_lowercase();
                ("tcp", c.guest.to_string(), c.remote.to_string(), state, c.bytes.0, c.bytes.1)
            });
            let datagrams = stack.udp.iter().map(|flow| {
                let kind = if flow.kind == Kind::Udp { "udp" } else { "icmp" };
                let peers = shown(flow.peers());
                (kind, flow.guest.to_string(), peers, "open".to_owned(), flow.bytes.0, flow.bytes.1)
            });
            connections.chain(datagrams).collect()
        })
    }

    fn statistics(&self) -> BTreeMap<String, u64> {
        self.engine.inspect(|stack, _| {
            let mut rows: BTreeMap<String, u64> =
                stack.context.drops().map(|(name, count)| (format!("dropped.{name}"), count)).collect();
            let outbox = &stack.context.outbox;
            let totals = [
                ("dropped.guest_slow", outbox.dropped),
                ("denied", stack.context.gate.denied),
                ("packets.from_guest", stack.received.0),
                ("bytes.from_guest", stack.received.1),
                ("packets.to_guest", outbox.sent.0),
                ("bytes.to_guest", outbox.sent.1),
                ("tcp.opened", stack.tcp.opened),
                ("dns.asked", stack.dns.asked),
            ];
            rows.extend(totals.map(|(name, count)| (name.to_owned(), count)));
            rows
        })
    }

    fn take_denials(&self) -> Vec<(&'static str, String, u16)> {
        self.engine.inspect(|stack, _| {
            let denials = stack.context.gate.take_denials();
            denials.into_iter().map(|d| (d.protocol.name(), d.target, d.port)).collect()
        })
    }

    fn close(&self) {
        self.engine.close();
    }
}

/// A few peers of a flow, for people.
fn shown(peers: impl Iterator<Item = impl Display>) -> String {
    const SHOWN: usize = 4;
    let mut texts: Vec<String> = peers.take(SHOWN + 1).map(|peer| peer.to_string()).collect();
    if texts.len() > SHOWN {
        texts[SHOWN] = "...".into();
    }
    texts.join(" ")
}
