//! What is measured, by name.

use keynet::config::{ControllerKind, SocketConfig, UtpConfig};
use keynet::net::NetConfig;

/// A transport, as set up here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct System {
    pub name: &'static str,
    /// What it is, for the table.
    pub what: &'static str,
    pub kind: Kind,
    pub tls: bool,
    /// At once, between two sockets.
    pub connections: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Keynet { controller: ControllerKind, batching: bool, own_buffers: bool },
    Librqbit,
    Quinn,
    Tcp,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// The client writes, the server counts.
    Bulk,
    /// Both write, both count.
    BothWays,
    /// 64 bytes there and back, one at a time.
    PingPong,
}

const fn one(name: &'static str, what: &'static str, kind: Kind, tls: bool) -> System {
    System { name, what, kind, tls, connections: 1 }
}

const fn thousand(name: &'static str, what: &'static str, kind: Kind, tls: bool) -> System {
    System { name, what, kind, tls, connections: 1_000 }
}

const CUBIC: Kind = Kind::Keynet { controller: ControllerKind::Cubic, batching: true, own_buffers: true };
const BBR: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: true, own_buffers: true };
const UNBATCHED: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: false, own_buffers: true };
const SMALL: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: true, own_buffers: false };

pub const SYSTEMS: [System; 16] = [
    one("keynet", "keynet uTP", BBR, false),
    one("keynet-cubic", "keynet uTP, CUBIC", CUBIC, false),
    one("keynet-unbatched", "keynet uTP, no GSO", UNBATCHED, false),
    one("keynet-small", "keynet uTP, the kernel's default buffers", SMALL, false),
    thousand("keynet-x1000", "keynet uTP, 1,000 connections", BBR, false),
    thousand("keynet-cubic-x1000", "keynet uTP, CUBIC, 1,000 connections", CUBIC, false),
    one("keynet-tls", "keynet TLS 1.3 over uTP", BBR, true),
    one("keynet-tls-cubic", "keynet TLS 1.3 over uTP, CUBIC", CUBIC, true),
    one("keynet-tls-small", "keynet TLS 1.3 over uTP, the kernel's default buffers", SMALL, true),
    one("keynet-tls-unbatched", "keynet TLS 1.3 over uTP, no GSO", UNBATCHED, true),
    thousand("keynet-tls-x1000", "keynet TLS 1.3 over uTP, 1,000 connections", BBR, true),
    thousand("keynet-tls-cubic-x1000", "keynet TLS 1.3 over uTP, CUBIC, 1,000 connections", CUBIC, true),
    one("librqbit-utp", "librqbit-utp 0.7", Kind::Librqbit, false),
    one("quinn", "quinn 0.11 (QUIC, TLS 1.3)", Kind::Quinn, true),
    one("tcp", "TCP, CUBIC", Kind::Tcp, false),
    one("tcp-tls", "TLS 1.3 (rustls) over TCP, CUBIC", Kind::Tcp, true),
];

impl System {
    pub fn named(name: &str) -> Self {
        SYSTEMS.into_iter().find(|system| system.name == name).unwrap_or_else(|| panic!("no system {name}"))
    }

    /// With many connections only their shares and their cost are of interest.
    pub fn has(self, workload: Workload) -> bool {
        self.connections == 1 || workload == Workload::Bulk
    }

    /// Flushing of librqbit-utp waits for the peer's ack, and needs not be asked for; TLS needs it.
    pub fn flushes(self) -> bool {
        self.kind != Kind::Librqbit
    }
}

impl Workload {
    pub const ALL: [Self; 3] = [Self::Bulk, Self::BothWays, Self::PingPong];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::BothWays => "both-ways",
            Self::PingPong => "ping-pong",
        }
    }

    pub fn named(name: &str) -> Self {
        Self::ALL.into_iter().find(|workload| workload.name() == name).unwrap_or_else(|| panic!("no workload {name}"))
    }
}

impl Kind {
    pub fn net_config(self) -> (NetConfig, UtpConfig) {
        let Self::Keynet { controller, batching, own_buffers } = self else { unreachable!("not keynet") };
        let utp = UtpConfig { controller, ..UtpConfig::default() };
        let default = SocketConfig::default();
        let socket = SocketConfig { batching, buffer: default.buffer.filter(|_| own_buffers) };
        (NetConfig { socket, utp: utp.clone(), ..NetConfig::default() }, utp)
    }
}
