//! Network address translation in user space: a router with its services and its policy.
//!
//! The guest's Ethernet frames come in, each behind a virtio offload header; what they ask for is done with
//! ordinary sockets of the host, so no privilege is needed. TCP is ended here on the guest's side and carried
//! on by the host's kernel on the other; the segments that cross the boundary to the guest are up to 64 KiB.
//!
//! [`stack::Stack`] is all behaviour and knows neither threads nor the kernel: it is given frames, readiness
//! and the time, and works through the [`host::Host`] trait, so that tests script both sides.
//! [`engine::Engine`] runs one on the real kernel, on the thread of whoever takes its frames.
//!
//! `docs/design/nat.md` tells why it is so.

pub mod config;
pub mod context;
pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
pub mod engine;
pub mod host;
pub mod neighbour;
pub mod outbox;
pub mod policy;
pub mod slab;
pub mod stack;
pub mod tcp;
pub mod tftp;
pub mod timers;
pub mod udp;
pub mod wire;
