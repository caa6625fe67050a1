//! Two tables over a network that loses, delays, repeats and forges, while one of them gets a new address now and
//! then. Random operations; every failure names its seed.

use super::*;

/// The generator of Marsaglia's xorshift family, enough for tests and repeatable everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..10 {
            random.next();
        }
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(super) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug)]
enum Packet {
    Ping { transaction: [u8; 12], keys: Option<([u8; 16], [u8; 32])> },
    Pong { transaction: [u8; 12], observed: SocketAddr, key: Option<[u8; 32]> },
    Data,
}

struct Side {
    table: PathTable,
    remote: RemoteId,
    /// Where the others see it.
    address: SocketAddr,
    lost: usize,
    moved: usize,
}

struct World {
    now: Time,
    random: Random,
    sides: [Side; 2],
    /// When, from, to, what.
    wire: Vec<(Time, SocketAddr, SocketAddr, Packet)>,
    recorded: Vec<(SocketAddr, Packet)>,
    loss: u64,
    cut: bool,
    next_address: u32,
}

const ATTACKER: u32 = 66;

impl World {
    fn new(seed: u64, loss: u64) -> Self {
        let now = Time::from_millis(1_000_000);
        let random = Random::new(seed);
        let addresses = [address(1), address(2)];
        let sides = [0, 1].map(|n: usize| {
            let mut table = PathTable::new(PathConfig::default(), [n as u8; 32]);
            let remote = table.remote_for(now, addresses[1 - n]).unwrap();
            table.hold(now, remote);
            table.handle_utp(now, remote, true);
            Side { table, remote, address: addresses[n], lost: 0, moved: 0 }
        });
        let (recorded, wire) = (Vec::new(), Vec::new());
        let mut world = Self { now, random, sides, wire, recorded, loss, cut: false, next_address: 100 };
        world.handshake(1);
        world
    }

    fn handshake(&mut self, n: u8) {
        let here = PingKeys { key: [n; 32], local_name: [n; 16], remote_name: [n ^ 0x80; 16] };
        let there = PingKeys { key: [n; 32], local_name: [n ^ 0x80; 16], remote_name: [n; 16] };
        for (side, keys) in self.sides.iter_mut().zip([here, there]) {
            side.table.bind_node(self.now, side.remote, node(1), keys);
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, packet: Packet) {
        if self.recorded.len() < 1_000 {
            self.recorded.push((from, packet.clone()));
        }
        let copies = if self.random.chance(2) { 2 } else { 1 };
        for _ in 0..copies {
            if !self.random.chance(self.loss) {
                let delay = millis(5 + self.random.below(60));
                self.wire.push((self.now + delay, from, to, packet.clone()));
            }
        }
    }

    fn drain(&mut self) {
        for n in 0..2 {
            while let Some(ping) = self.sides[n].table.poll_transmit(self.now) {
                let packet = Packet::Ping { transaction: ping.transaction, keys: ping.keys };
                self.send(self.sides[n].address, ping.to, packet);
            }
            while let Some(event) = self.sides[n].table.poll_event() {
                match event {
                    PathEvent::Lost { remote, .. } | PathEvent::Missing { remote, .. }
                        if remote == self.sides[n].remote =>
                    {
                        self.sides[n].lost += 1;
                    }
                    PathEvent::Moved { remote, to, .. } => {
                        assert_eq!(remote, self.sides[n].remote);
                        assert_ne!(to.to.ip(), address(ATTACKER).ip(), "the attacker took the path over");
                        self.sides[n].moved += 1;
                    }
                    _ => {}
                }
            }
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, packet: Packet) {
        let Some(n) = self.sides.iter().position(|side| side.address == to) else { return };
        if self.cut && from.ip() != address(ATTACKER).ip() {
            return;
        }
        let (now, side) = (self.now, &mut self.sides[n]);
        match packet {
            Packet::Ping { transaction, keys } => {
                let ping = PingIn { transaction, session: keys.map(|(name, _)| name), size: 92, incarnation: None };
                let key = keys.map(|(_, key)| key);
                if let Some(pong) = side.table.handle_ping(now, from, &ping, |expected| Some(*expected) == key) {
                    let packet = Packet::Pong { transaction, observed: pong.observed, key: pong.key };
                    self.send(to, pong.to, packet);
                }
            }
            Packet::Pong { transaction, observed, key } => {
                let pong = PongIn { transaction, observed, keyed: key.is_some(), incarnation: None };
                side.table.handle_pong(now, from, &pong, |expected| Some(*expected) == key);
            }
            Packet::Data => {
                let of: Vec<_> = side.table.remotes_at(from).collect();
                if of.contains(&side.remote) {
                    side.table.handle_utp_from(now, from, side.remote, true);
                }
            }
        }
    }

    /// Runs until `end`; `step` is what else happens, ten times a second.
    fn run(&mut self, duration: Duration, mut step: impl FnMut(&mut World)) {
        let end = self.now + duration;
        let mut next_step = self.now;
        while self.now < end {
            self.drain();
            let timers = self.sides.iter().filter_map(|side| side.table.poll_timeout()).min();
            let arrival = self.wire.iter().map(|(at, ..)| *at).min();
            let next = [timers, arrival, Some(next_step), Some(end)].into_iter().flatten().min().unwrap();
            self.now = self.now.max(next);
            let now = self.now;
            let mut arrived: Vec<_> = Vec::new();
            self.wire.retain(|(at, from, to, packet)| {
                let due = *at <= now;
                if due {
                    arrived.push((*from, *to, packet.clone()));
                }
                !due
            });
            for (from, to, packet) in arrived {
                self.deliver(from, to, packet);
            }
            for side in &mut self.sides {
                side.table.handle_timeout(now);
                check(&side.table);
            }
            if self.now >= next_step {
                next_step = self.now + millis(100);
                step(self);
            }
        }
        self.drain();
    }

    fn data(&mut self) {
        for n in 0..2 {
            let side = &mut self.sides[n];
            side.table.handle_sent(self.now, side.remote);
            let (from, to) = (side.address, side.table.address_of(side.remote).unwrap());
            self.send(from, to, Packet::Data);
        }
    }

    /// The first side gets another address, as behind a NAT that forgets.
    fn rebind(&mut self) {
        self.next_address += 1;
        self.sides[0].address = address(self.next_address);
    }

    /// Somebody who sees all packets, sends what he likes under any address, and has no key.
    fn attack(&mut self) {
        let victim = self.random.below(2) as usize;
        let to = self.sides[victim].address;
        let attacker = SocketAddr::new(address(ATTACKER).ip(), 1 + self.random.below(1_000) as u16);
        let peer = self.sides[1 - victim].address;
        let from = if self.random.chance(50) { attacker } else { peer };
        let recorded = self.random.below(self.recorded.len().max(1) as u64) as usize;
        let packet = match (self.random.below(4), self.recorded.get(recorded)) {
            (0, Some((_, packet))) if !matches!(packet, Packet::Data) => packet.clone(),
            (1, Some((_, Packet::Ping { transaction, .. }))) => {
                Packet::Pong { transaction: *transaction, observed: attacker, key: Some([0xbb; 32]) }
            }
            (2, Some((_, Packet::Ping { transaction, .. }))) => {
                Packet::Pong { transaction: *transaction, observed: attacker, key: None }
            }
            (3, Some((_, Packet::Ping { keys: Some((name, _)), .. }))) => {
                Packet::Ping { transaction: [self.random.below(256) as u8; 12], keys: Some((*name, [0xbb; 32])) }
            }
            _ => Packet::Ping { transaction: [self.random.below(256) as u8; 12], keys: None },
        };
        self.wire.push((self.now + millis(1), from, to, packet));
    }

    fn lost(&self) -> [usize; 2] {
        [self.sides[0].lost, self.sides[1].lost]
    }

    fn other_operations(&mut self) {
        let n = self.random.below(2) as usize;
        let stranger = address(10_000 + self.random.below(10_000) as u32);
        let (now, table) = (self.now, &mut self.sides[n].table);
        match self.random.below(4) {
            0 => drop(table.remote_for(now, stranger)),
            1 => drop(table.start_punch(now, &[stranger], millis(self.random.below(3_000)))),
            2 => {
                if let Ok(remote) = table.remote_for(now, stranger) {
                    table.hold(now, remote);
                    table.handle_utp(now, remote, self.random.chance(50));
                    table.release(now, remote);
                }
            }
            _ => {
                let remote = self.sides[n].remote;
                self.sides[n].table.hold(now, remote);
                self.sides[n].table.release(now, remote);
            }
        }
    }
}

#[test]
fn a_path_survives_loss_attacks_and_new_addresses_and_then_dies_once() {
    for seed in 0..60 {
        let mut world = World::new(seed, seed % 6);
        let mut handshakes = 1u8;
        for _ in 0..6 {
            let busy = world.random.below(3) * 40;
            world.run(seconds(25), |world| {
                if world.random.chance(busy) {
                    world.data();
                }
                if world.random.chance(60) {
                    world.attack();
                }
                if world.random.chance(20) {
                    world.other_operations();
                }
            });
            assert_eq!(world.lost(), [0, 0], "seed {seed}: lost while the peer lived");
            let seen = world.sides[1].table.address_of(world.sides[1].remote);
            assert_eq!(seen, Some(world.sides[0].address), "seed {seed}: not followed");
            assert!(world.sides[1].table.stats().outstanding < 1_000, "seed {seed}");
            if world.random.chance(70) {
                world.rebind();
            }
            if world.random.chance(40) && handshakes < 60 {
                handshakes += 1;
                let n = handshakes;
                world.handshake(n);
            }
        }
        world.cut = true;
        let lost_before = world.lost();
        world.run(seconds(24), |world| {
            if world.random.chance(60) {
                world.attack();
            }
        });
        assert_eq!((lost_before, world.lost()), ([0, 0], [1, 1]), "seed {seed}: dead, and noticed once");
    }
}

#[test]
fn under_load_a_dead_peer_is_noticed_within_ten_seconds_and_a_new_address_within_three() {
    for seed in 0..20 {
        let mut world = World::new(seed, 1);
        world.run(seconds(5), |world| world.data());
        world.rebind();
        world.run(seconds(3), |world| world.data());
        assert_eq!(world.sides[1].moved, 1, "seed {seed}");
        assert_eq!(world.sides[1].table.address_of(world.sides[1].remote), Some(world.sides[0].address), "seed {seed}");
        world.run(seconds(5), |world| world.data());
        world.cut = true;
        world.run(seconds(10), |world| {
            if world.lost() == [0, 0] {
                world.data();
            }
        });
        assert_eq!(world.lost(), [1, 1], "seed {seed}");
    }
}

#[test]
fn two_sides_that_punch_find_each_other_through_heavy_loss() {
    for seed in 0..30 {
        let mut world = World::new(seed, 40);
        for n in 0..2usize {
            let table = PathTable::new(PathConfig::default(), [n as u8 + 9; 32]);
            let other = world.sides[1 - n].address;
            world.sides[n].table = table;
            world.sides[n].table.start_punch(world.now, &[address(77), other], seconds(10));
        }
        world.wire.clear();
        world.run(seconds(10), |_| {});
        for side in &world.sides {
            assert_eq!(side.table.stats().punches, 0, "seed {seed}");
            assert!(side.table.stats().pongs_in >= 1 && side.table.stats().pings_out <= 40, "seed {seed}");
        }
    }
}
