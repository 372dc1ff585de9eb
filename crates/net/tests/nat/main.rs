//! Wire scripts: a machine's frames on one side, a scripted host on the other, and a clock that stands still.
//!
//! Each test is named after the clause that it holds the router to.

#![allow(clippy::unwrap_used)]

mod dhcp;
mod dns;
mod fake_host;
mod hostile;
mod network;
mod reach;
mod tcp_close;
mod tcp_flow;
mod tcp_open;
mod tftp;
mod udp;
