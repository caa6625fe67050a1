//! The table in virtual time. `Bench` is one table with a hand-made outside; `network.rs` lets two tables talk over a
//! bad network.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::addr::{PingKeys, Route};
use crate::config::{PathConfig, RendezvousConfig};
use crate::time::Time;

mod aimed;
mod forgery;
mod keepalive;
mod lives;
mod meeting;
mod nats;
mod network;
mod operations;
mod punching;
mod relays;
mod roaming;
mod room;
mod silence;

/// A table and its clock.
struct Bench {
    now: Time,
    table: PathTable,
    events: Vec<PathEvent>,
}

impl Bench {
    fn new() -> Self {
        Self::with(PathConfig::default())
    }

    fn with(config: PathConfig) -> Self {
        Self { now: Time::from_millis(1_000_000), table: PathTable::new(config, [7; 32]), events: Vec::new() }
    }

    /// A held, proven, unauthenticated remote.
    fn remote(&mut self, address: SocketAddr) -> RemoteId {
        let remote = self.table.remote_for(self.now, address).unwrap();
        self.table.hold(self.now, remote);
        self.table.handle_utp(self.now, remote, true);
        self.drain();
        remote
    }

    /// A held remote of a node, with session `n` confirmed in both directions.
    fn peer(&mut self, address: SocketAddr, n: u8) -> RemoteId {
        let remote = self.remote(address);
        self.table.bind_node(self.now, remote, node(n), keys(n));
        let pings = self.pass(PathConfig::default().ping_retry);
        assert_eq!(pings.len(), 1, "one ping confirms the session");
        self.answer(&pings[0]);
        remote
    }

    fn drain(&mut self) -> Vec<PingOut> {
        self.collect();
        std::iter::from_fn(|| self.table.poll_transmit(self.now)).collect()
    }

    /// Lets time pass; returns what was sent.
    fn pass(&mut self, duration: Duration) -> Vec<PingOut> {
        self.pass_timed(duration).into_iter().map(|(_, ping)| ping).collect()
    }

    fn pass_timed(&mut self, duration: Duration) -> Vec<(Time, PingOut)> {
        let end = self.now + duration;
        let mut sent: Vec<_> = self.drain().into_iter().map(|ping| (self.now, ping)).collect();
        while let Some(at) = self.table.poll_timeout().filter(|at| *at <= end) {
            // a deadline may lie in the past: then it is due now
            self.now = self.now.max(at);
            self.table.handle_timeout(self.now);
            assert!(self.table.poll_timeout().is_none_or(|next| next > self.now), "time does not go on");
            sent.extend(self.drain().into_iter().map(|ping| (self.now, ping)));
        }
        self.now = end;
        sent
    }

    /// The pong that a right-minded receiver would send.
    fn answer(&mut self, ping: &PingOut) {
        let key = ping.keys.map(|(_, key)| key);
        self.pong(Route { via: ping.via, to: ping.to }, ping.transaction, key);
    }

    fn pong(&mut self, from: impl Into<Route>, transaction: [u8; 12], key: Option<[u8; 32]>) {
        let pong = PongIn { transaction, observed: own(), keyed: key.is_some(), incarnation: None };
        self.table.handle_pong(self.now, from, &pong, |expected| Some(*expected) == key);
        self.collect();
    }

    /// A ping that the peer of session `n` sends.
    fn keyed_ping(&mut self, from: SocketAddr, transaction: u8, n: u8) -> Option<PongOut> {
        let ping =
            PingIn { transaction: [transaction; 12], session: Some(keys(n).local_name), size: 92, incarnation: None };
        let pong = self.table.handle_ping(self.now, from, &ping, |key| *key == keys(n).key);
        self.collect();
        pong
    }

    fn unkeyed_ping(&mut self, from: SocketAddr) -> Option<PongOut> {
        let ping = PingIn { transaction: [9; 12], session: None, size: 44, incarnation: None };
        let pong = self.table.handle_ping(self.now, from, &ping, |_| unreachable!("there is nothing to verify"));
        self.collect();
        pong
    }

    fn collect(&mut self) {
        if self.table.remotes.len() < 100 {
            check(&self.table);
        }
        while let Some(event) = self.table.poll_event() {
            self.events.push(event);
        }
    }

    fn events(&mut self) -> Vec<PathEvent> {
        self.collect();
        std::mem::take(&mut self.events)
    }

    /// Who counts as gone, whether connections wait for it or not.
    fn lost(&mut self) -> Vec<RemoteId> {
        let lost = |event: &PathEvent| match event {
            PathEvent::Lost { remote, .. } | PathEvent::Missing { remote, .. } => Some(*remote),
            _ => None,
        };
        self.events().iter().filter_map(lost).collect()
    }

    /// Everything by which the table can be told from another.
    fn face(&self, remotes: &[RemoteId]) -> Vec<(Option<SocketAddr>, Option<Duration>, Vec<SocketAddr>)> {
        let table = &self.table;
        let node = |remote| table.node_of(remote).map(|node| table.addresses_of_node(&node)).unwrap_or_default();
        remotes.iter().map(|remote| (table.address_of(*remote), table.rtt_of(*remote), node(*remote))).collect()
    }
}

/// The ways by which a remote is found, and what the remote itself knows, must agree.
fn check(table: &PathTable) {
    for (address, slot) in &table.slots {
        for id in std::iter::once(&slot.first).chain(&slot.others) {
            let remote = table.remotes.get(id).unwrap_or_else(|| panic!("{address:?} leads to {id:?}, which is gone"));
            assert!(remote.index_of(*address).is_some() && !remote.lost);
        }
    }
    for (name, id) in &table.names {
        assert!(table.remotes[id].sessions.names().any(|other| other == *name));
    }
    for (node, ids) in &table.nodes {
        assert!(!ids.is_empty() && ids.iter().all(|id| table.remotes[id].nodes.contains(node)));
    }
    let mut timers = table.punches.timers() + table.meetings.timers();
    let mut spares = 0;
    for (id, remote) in &table.remotes {
        assert_eq!(*id, remote.id);
        assert!(remote.in_use < remote.paths.len());
        spares += usize::from(remote.spare.is_some());
        timers += usize::from(remote.timer.is_some());
        if remote.lost {
            assert!(remote.holds > 0 && remote.spare.is_none() && remote.timer.is_none());
            continue;
        }
        assert_eq!(remote.spare.is_some(), remote.holds == 0);
        assert!(remote.spare.is_none_or(|(class, ..)| class == remote.class()));
        assert!(remote.paths.iter().all(|path| table.remotes_at(path.route).any(|other| other == *id)));
        assert!(remote.sessions.names().all(|name| table.names.get(&name) == Some(id)));
        assert!(remote.nodes.iter().all(|node| table.nodes[node].contains(id)));
        let deadline = remote.deadline(&table.config);
        assert!(deadline.is_none() || remote.timer.is_some_and(|timer| Some(timer) <= deadline), "nobody will wake it");
    }
    assert_eq!((table.spares.len(), table.timers.len()), (spares, timers), "something was left behind");
}

fn address(n: u32) -> SocketAddr {
    SocketAddr::from(([198, 51, (n >> 8) as u8, n as u8], 1000 + (n >> 16) as u16))
}

fn own() -> SocketAddr {
    "203.0.113.1:4433".parse().unwrap()
}

fn node(n: u8) -> NodeId {
    NodeId::from_public_key([n; 32])
}

fn keys(n: u8) -> PingKeys {
    PingKeys { key: [n; 32], local_name: [n; 16], remote_name: [n ^ 0x80; 16] }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn targets(pings: &[PingOut]) -> Vec<SocketAddr> {
    pings.iter().map(|ping| ping.to).collect()
}
