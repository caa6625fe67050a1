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
    /// 64 bytes there and back, one at a time.
    PingPong,
}

const fn keynet(name: &'static str, what: &'static str, kind: Kind, tls: bool) -> System {
    System { name, what, kind, tls }
}

const CUBIC: Kind = Kind::Keynet { controller: ControllerKind::Cubic, batching: true, own_buffers: true };
const BBR: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: true, own_buffers: true };
const UNBATCHED: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: false, own_buffers: true };
const SMALL: Kind = Kind::Keynet { controller: ControllerKind::Bbr, batching: true, own_buffers: false };

pub const SYSTEMS: [System; 12] = [
    keynet("keynet", "keynet uTP", BBR, false),
    keynet("keynet-cubic", "keynet uTP, CUBIC", CUBIC, false),
    keynet("keynet-unbatched", "keynet uTP, no GSO", UNBATCHED, false),
    keynet("keynet-small", "keynet uTP, the kernel's default buffers", SMALL, false),
    keynet("keynet-tls", "keynet TLS 1.3 over uTP", BBR, true),
    keynet("keynet-tls-cubic", "keynet TLS 1.3 over uTP, CUBIC", CUBIC, true),
    keynet("keynet-tls-small", "keynet TLS 1.3 over uTP, the kernel's default buffers", SMALL, true),
    keynet("keynet-tls-unbatched", "keynet TLS 1.3 over uTP, no GSO", UNBATCHED, true),
    System { name: "librqbit-utp", what: "librqbit-utp 0.7", kind: Kind::Librqbit, tls: false },
    System { name: "quinn", what: "quinn 0.11 (QUIC, TLS 1.3)", kind: Kind::Quinn, tls: true },
    System { name: "tcp", what: "TCP, CUBIC", kind: Kind::Tcp, tls: false },
    System { name: "tcp-tls", what: "TLS 1.3 (rustls) over TCP, CUBIC", kind: Kind::Tcp, tls: true },
];

impl System {
    pub fn named(name: &str) -> Self {
        SYSTEMS.into_iter().find(|system| system.name == name).unwrap_or_else(|| panic!("no system {name}"))
    }

    /// Flushing of librqbit-utp waits for the peer's ack, and needs not be asked for; TLS needs it.
    pub fn flushes(self) -> bool {
        self.kind != Kind::Librqbit
    }
}

impl Workload {
    pub const ALL: [Self; 2] = [Self::Bulk, Self::PingPong];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
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
