//! Two tables that meet through two NATs, over a network that loses and delays, as both sides' words about their NATs make them
//! (`outlook.rs`). Every failure names its seed.

use std::collections::{HashMap, HashSet};

use super::super::address::is_local;
use super::network::Random;
use super::*;
use crate::addr::{Route, Via};

/// A NAT that lets in only whom it has sent to (RFC 4787 section 5, address and port dependent).
struct Nat {
    public: std::net::IpAddr,
    kind: Kind,
    /// The external port of each socket, and for symmetric NATs of each destination.
    mappings: HashMap<(Via, Option<SocketAddr>), u16>,
    owners: HashMap<u16, Via>,
    allowed: HashSet<(u16, SocketAddr)>,
    next: u16,
    /// Ports of others do not matter: a mapping is for an IP address, and whoever has one that the socket has sent to is let in.
    by_address: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One port for all destinations.
    Cone,
    /// Any port of a range for each destination.
    Symmetric { low: u16, high: u16 },
    /// The last one and this.
    Sequential { delta: i16 },
    /// Any port of a small block, though the few that servers saw followed one another.
    LooksSequential { block: u16 },
}

impl Nat {
    fn out(&mut self, random: &mut Random, via: Via, to: SocketAddr) -> SocketAddr {
        let to_each = !matches!(self.kind, Kind::Cone);
        let asked = if self.by_address { SocketAddr::new(to.ip(), 0) } else { to };
        let key = (via, to_each.then_some(asked));
        let port = match self.mappings.get(&key) {
            Some(port) => *port,
            None => {
                let port = loop {
                    let port = match self.kind {
                        Kind::Cone => 4_000 + via.0,
                        Kind::Symmetric { low, high } => low + random.below(u64::from(high - low) + 1) as u16,
                        Kind::Sequential { delta } => {
                            self.next = self.next.wrapping_add_signed(delta);
                            self.next
                        }
                        Kind::LooksSequential { block } => {
                            self.next / block * block + random.below(u64::from(block)) as u16
                        }
                    };
                    if !self.owners.contains_key(&port) {
                        break port;
                    }
                };
                self.mappings.insert(key, port);
                self.owners.insert(port, via);
                port
            }
        };
        self.allowed.insert((port, to));
        SocketAddr::new(self.public, port)
    }

    fn inward(&self, from: SocketAddr, port: u16) -> Option<Via> {
        let owner = *self.owners.get(&port)?;
        let known = |(port, to): &(u16, SocketAddr)| self.owners[port] == owner && to.ip() == from.ip();
        let lets_in = self.allowed.contains(&(port, from)) || (self.by_address && self.allowed.iter().any(known));
        lets_in.then_some(owner)
    }

    /// What the node behind it says of itself, when it has asked two servers.
    fn whereabouts(&mut self, random: &mut Random) -> Whereabouts {
        let server = |n: u32| SocketAddr::new(address(200 + n).ip(), 3_478);
        self.out(random, Via::MAIN, server(1));
        let seen = self.out(random, Via::MAIN, server(2));
        let (mapping, ports) = match self.kind {
            Kind::Cone => (Mapping::EndpointIndependent, Ports::Uniform),
            Kind::Symmetric { low, high } => (Mapping::AddressAndPortDependent, Ports::Block { low, high }),
            Kind::Sequential { delta } => {
                (Mapping::AddressAndPortDependent, Ports::Sequential { last: self.next, delta })
            }
            Kind::LooksSequential { .. } => {
                (Mapping::AddressAndPortDependent, Ports::Sequential { last: seen.port(), delta: 1 })
            }
        };
        let by_address = self.by_address && mapping == Mapping::AddressAndPortDependent;
        let profile = NatProfile {
            mapping: if by_address { Mapping::AddressDependent } else { mapping },
            filtering: match self.by_address {
                true => Filtering::AddressDependent,
                false => Filtering::AddressAndPortDependent,
            },
            ports,
            translated: Some(true),
            ..NatProfile::default()
        };
        let host = SocketAddr::from(([192, 168, 1, 7], 4_433));
        let candidates = vec![
            Candidate { kind: CandidateKind::Host, address: host },
            Candidate { kind: CandidateKind::ServerReflexive, address: seen },
        ];
        Whereabouts { candidates, profile, searches: true, direct_only: false, took: Duration::ZERO }
    }
}

enum Packet {
    Ping { transaction: [u8; 12], keys: Option<([u8; 16], [u8; 32])> },
    Pong { transaction: [u8; 12], observed: SocketAddr, key: Option<[u8; 32]> },
}

struct Side {
    table: PathTable,
    nat: Nat,
    plan: Option<Plan>,
    begins: Time,
    met: Option<(Time, Route)>,
    ended: usize,
    vias: usize,
    unused: HashSet<Via>,
}

struct World {
    now: Time,
    random: Random,
    loss: u64,
    sides: [Side; 2],
    wire: Vec<(Time, SocketAddr, SocketAddr, Packet)>,
    /// What went to addresses that are nobody's.
    astray: HashSet<SocketAddr>,
}

impl World {
    fn new(seed: u64, kinds: [Kind; 2], loss: u64) -> Self {
        Self::filtering(seed, kinds, loss, false)
    }

    fn filtering(seed: u64, kinds: [Kind; 2], loss: u64, by_address: bool) -> Self {
        let now = Time::from_millis(1_000_000);
        let mut random = Random::new(seed);
        let mut nats = [0, 1].map(|n: usize| Nat {
            public: address(1 + n as u32).ip(),
            kind: kinds[n],
            mappings: HashMap::new(),
            owners: HashMap::new(),
            allowed: HashSet::new(),
            next: 20_000 + random.below(20_000) as u16,
            by_address,
        });
        let told = [0, 1].map(|n: usize| nats[n].whereabouts(&mut random));
        let mut nats = nats.into_iter();
        let sides = [0, 1].map(|n: usize| {
            let draft = draft(&told[n], &told[1 - n], |_| false, random.next() as u32);
            let vias = draft.sockets.map_or(0, |(count, ..)| count);
            let mut plan = draft.with_sockets((1..=vias as u16).map(Via).collect());
            // where the rendezvous sees the other one
            plan.seen_at = vec![address(2 - n as u32).ip()];
            let plan = Some(plan);
            Side {
                table: PathTable::new(PathConfig::default(), [n as u8; 32]),
                nat: nats.next().unwrap(),
                plan,
                // what half a round trip is off by
                begins: now + millis(random.below(40)),
                met: None,
                ended: 0,
                vias,
                unused: HashSet::new(),
            }
        });
        Self { now, random, loss, sides, wire: Vec::new(), astray: HashSet::new() }
    }

    fn begin(&mut self) {
        for (n, side) in self.sides.iter_mut().enumerate() {
            if side.begins > self.now {
                continue;
            }
            if let Some(plan) = side.plan.take() {
                let names = [[1; 16], [2; 16]];
                let keys = PingKeys { key: [7; 32], local_name: names[n], remote_name: names[1 - n] };
                side.table.start_meeting(self.now, node(2 - n as u8), keys, plan, seconds(14)).unwrap();
            }
        }
    }

    fn send(&mut self, n: usize, via: Via, to: SocketAddr, packet: Packet, dies: bool) {
        let from = self.sides[n].nat.out(&mut self.random, via, to);
        if !dies && !self.random.chance(self.loss) {
            let delay = millis(10 + self.random.below(30));
            self.wire.push((self.now + delay, from, to, packet));
        }
    }

    fn drain(&mut self) {
        for n in 0..2 {
            while let Some(ping) = self.sides[n].table.poll_transmit(self.now) {
                let packet = Packet::Ping { transaction: ping.transaction, keys: ping.keys };
                self.send(n, ping.via, ping.to, packet, ping.ttl.is_some());
            }
            let (now, side) = (self.now, &mut self.sides[n]);
            while let Some(event) = side.table.poll_event() {
                match event {
                    PathEvent::Met { via, address, .. } => {
                        assert!(side.met.is_none(), "met twice");
                        side.met = Some((now, Route { via, to: address }));
                    }
                    PathEvent::MeetingEnded { met, .. } => {
                        assert_eq!(met, side.met.is_some());
                        side.ended += 1;
                    }
                    PathEvent::Unused { via } => {
                        side.unused.insert(via);
                    }
                    _ => {}
                }
            }
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, packet: Packet) {
        let Some(n) = self.sides.iter().position(|side| side.nat.public == to.ip()) else {
            self.astray.insert(to);
            return;
        };
        let (now, side) = (self.now, &mut self.sides[n]);
        let Some(via) = side.nat.inward(from, to.port()) else { return };
        let route = Route { via, to: from };
        match packet {
            Packet::Ping { transaction, keys } => {
                let ping = PingIn { transaction, session: keys.map(|(name, _)| name), size: 92, incarnation: None };
                let key = keys.map(|(_, key)| key);
                if let Some(pong) = side.table.handle_ping(now, route, &ping, |expected| Some(*expected) == key) {
                    let packet = Packet::Pong { transaction, observed: pong.observed, key: pong.key };
                    self.send(n, pong.via, pong.to, packet, false);
                }
            }
            Packet::Pong { transaction, observed, key } => {
                let pong = PongIn { transaction, observed, keyed: key.is_some(), incarnation: None };
                side.table.handle_pong(now, route, &pong, |expected| Some(*expected) == key);
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        loop {
            self.begin();
            self.drain();
            let timers = self.sides.iter().filter_map(|side| side.table.poll_timeout());
            let begins = self.sides.iter().filter(|side| side.plan.is_some()).map(|side| side.begins);
            let arrivals = self.wire.iter().map(|(at, ..)| *at);
            let next = timers.chain(begins).chain(arrivals).min().filter(|next| *next <= end);
            let Some(next) = next else { break };
            let now = self.now.max(next);
            self.now = now;
            let (due, rest) = std::mem::take(&mut self.wire).into_iter().partition(|(at, ..)| *at <= now);
            self.wire = rest;
            for (_, from, to, packet) in due {
                self.deliver(from, to, packet);
            }
            for side in &mut self.sides {
                side.table.handle_timeout(now);
                check(&side.table);
            }
        }
        self.now = end;
    }

    /// Both have met, over the same two ports; then both forget everything.
    fn meets(&mut self, within: Duration, what: &str) -> Duration {
        let start = self.now;
        self.run(within);
        let [a, b] = self.sides.each_ref().map(|side| side.met);
        let (Some((at_a, to_b)), Some((at_b, to_a))) = (a, b) else {
            panic!("{what}: not met in {within:?}: {a:?}, {b:?}");
        };
        for (n, (to, via)) in [(to_a.to, to_a.via), (to_b.to, to_b.via)].into_iter().enumerate() {
            assert_eq!(to.ip(), self.sides[n].nat.public, "{what}");
            assert!(via == Via::MAIN || self.sides[1 - n].vias > 0, "{what}");
        }
        self.run(seconds(300));
        for side in &self.sides {
            let table = &side.table;
            assert_eq!((side.ended, table.stats().meetings), (1, 0), "{what}");
            let maps = [table.remotes.len(), table.slots.len(), table.names.len(), table.nodes.len()];
            assert_eq!((maps, table.timers.len(), table.spares.len()), ([0; 4], 0, 0), "{what}");
            assert_eq!(side.unused.len(), side.vias, "{what}: every socket of a search is given back");
        }
        // but for the private address that each names, which might lead somewhere from the other's network
        let astray: Vec<_> = self.astray.iter().filter(|to| !is_local(to.ip())).collect();
        assert!(astray.is_empty(), "{what}: {astray:?}");
        at_a.max(at_b).since(start)
    }
}

#[test]
fn two_port_restricted_nats() {
    for seed in 0..60 {
        let mut world = World::new(seed, [Kind::Cone, Kind::Cone], seed % 6 * 5);
        world.meets(RendezvousConfig::default().direct_timeout, &format!("seed {seed}"));
    }
}

#[test]
fn a_symmetric_nat_and_a_strict_one_find_each_other_by_search() {
    for seed in 0..30 {
        let low = 1_024 + 1_024 * (seed % 60) as u16;
        let mut kinds = [Kind::Symmetric { low, high: low + 1_023 }, Kind::Cone];
        kinds.rotate_left(seed as usize % 2);
        let mut world = World::new(seed, kinds, seed % 4);
        world.meets(RendezvousConfig::default().search_timeout, &format!("seed {seed}"));
    }
}

#[test]
fn a_nat_that_only_seems_to_count_is_found_by_a_search_around_the_guess() {
    for seed in 0..60 {
        let block = [64, 128, 256][seed as usize % 3];
        let mut kinds = [Kind::LooksSequential { block }, Kind::Cone];
        kinds.rotate_left(seed as usize / 3 % 2);
        let mut world = World::new(seed, kinds, 0);
        world.meets(RendezvousConfig::default().prediction_timeout, &format!("seed {seed}, {kinds:?}"));
    }
}

#[test]
fn nats_that_count_are_predicted() {
    for seed in 0..60 {
        let delta = [1, 2, -1, 4][seed as usize % 4];
        let other = [Kind::Sequential { delta: 1 }, Kind::Sequential { delta: -2 }, Kind::Cone][seed as usize % 3];
        let mut kinds = [Kind::Sequential { delta }, other];
        kinds.rotate_left(seed as usize / 4 % 2);
        let mut world = World::new(seed, kinds, seed % 4);
        world.meets(RendezvousConfig::default().prediction_timeout, &format!("seed {seed}, {kinds:?}"));
    }
}

/// What each sends to the port that servers saw of the other comes in; the answer comes from the port that counts.
#[test]
fn two_nats_with_a_port_for_each_address_that_filter_by_address_meet() {
    for seed in 0..60 {
        let kind = Kind::Symmetric { low: 20_000, high: 59_999 };
        let mut world = World::filtering(seed, [kind, kind], seed % 4 * 5, true);
        world.meets(RendezvousConfig::default().direct_timeout, &format!("seed {seed}"));
    }
}
