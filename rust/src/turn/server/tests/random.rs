//! Random operations against a model that knows only the rules: who has what, until when.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;

use super::client::{lifetime, udp, Guest, World};
use crate::config::RelayServerConfig;
use crate::time::Time;
use crate::turn::message as stun;

#[derive(Clone, Debug)]
enum Operation {
    Allocate(usize),
    Refresh(usize, u32),
    Permit(usize, usize),
    Bind(usize, u16, usize),
    ToPeer(usize, u16),
    FromPeer(usize, usize),
    Pass(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let (client, peer, number) = (0..CLIENTS, 0..PEERS, 0x4000u16..0x4004);
    prop_oneof![
        client.clone().prop_map(Operation::Allocate),
        (client.clone(), prop_oneof![Just(0), 60u32..4_000]).prop_map(|(c, s)| Operation::Refresh(c, s)),
        (client.clone(), peer.clone()).prop_map(|(c, p)| Operation::Permit(c, p)),
        (client.clone(), number.clone(), peer.clone()).prop_map(|(c, n, p)| Operation::Bind(c, n, p)),
        (client.clone(), number).prop_map(|(c, n)| Operation::ToPeer(c, n)),
        (client, peer).prop_map(|(c, p)| Operation::FromPeer(c, p)),
        (1u64..400).prop_map(Operation::Pass),
    ]
}

/// What one client has, as the RFC says it.
#[derive(Default)]
struct Model {
    /// Of the last allocation.
    id: Option<u64>,
    until: Option<Time>,
    permissions: HashMap<usize, Time>,
    channels: HashMap<u16, (usize, Time)>,
}

impl Model {
    fn lives(&self, now: Time) -> bool {
        self.until.is_some_and(|until| until > now)
    }

    fn permits(&self, peer: usize, now: Time) -> bool {
        // two peers share an address
        self.permissions.iter().any(|(other, until)| other / 2 == peer / 2 && *until > now)
    }

    fn channel(&self, number: u16, now: Time) -> Option<usize> {
        self.channels.get(&number).filter(|(_, until)| *until > now).map(|(peer, _)| *peer)
    }

    fn number(&self, peer: usize, now: Time) -> Option<u16> {
        self.channels.iter().find(|(_, (other, until))| *other == peer && *until > now).map(|(number, _)| *number)
    }
}

fn peer_text(peer: usize) -> String {
    format!("8.8.8.{}:{}", peer / 2, 1_000 + peer % 2)
}

struct Run {
    world: World,
    guests: Vec<Guest>,
    models: Vec<Model>,
    made: u64,
}

impl Run {
    fn new() -> Self {
        let config = RelayServerConfig { nonce_lifetime: Duration::from_secs(7_200), ..RelayServerConfig::default() };
        let mut world = World::with(config, |_| {});
        let guests =
            (0..CLIENTS).map(|n| world.guest(&format!("192.0.2.1:{}", 5_000 + n), "alice", "secret-a")).collect();
        Self { world, guests, models: (0..CLIENTS).map(|_| Model::default()).collect(), made: 0 }
    }

    fn step(&mut self, operation: &Operation) {
        self.refresh_nonces();
        let now = self.world.now;
        match *operation {
            Operation::Allocate(c) => {
                let guest = self.guest(c);
                let expected = if self.models[c].lives(now) { 437 } else { 0 };
                assert_eq!(self.world.ask(&guest, stun::ALLOCATE, &[udp()]).code, expected);
                if expected == 0 {
                    let until = Some(now + Duration::from_secs(600));
                    self.models[c] = Model { id: Some(self.made), until, ..Model::default() };
                    self.made += 1;
                }
            }
            Operation::Refresh(c, seconds) => {
                let guest = self.guest(c);
                let code = self.world.ask(&guest, stun::REFRESH, &[lifetime(seconds)]).code;
                assert_eq!(code, if self.models[c].lives(now) { 0 } else { 437 });
                if code == 0 {
                    self.models[c].until = Some(now + Duration::from_secs(seconds.min(3_600).into()));
                }
            }
            Operation::Permit(c, p) => {
                let guest = self.guest(c);
                let code = self.world.permit(&guest, &peer_text(p));
                assert_eq!(code, if self.models[c].lives(now) { 0 } else { 437 });
                if code == 0 {
                    self.models[c].permissions.insert(p, now + Duration::from_secs(300));
                }
            }
            Operation::Bind(c, number, p) => self.bind(c, number, p),
            Operation::ToPeer(c, number) => {
                let guest = self.guest(c);
                let expected = self.models[c].channel(number, now).filter(|_| self.models[c].lives(now));
                let found = self.world.outward(&guest, number, 100);
                assert_eq!(found, expected.map(|peer| peer_text(peer).parse().unwrap()));
            }
            Operation::FromPeer(c, p) => {
                let model = &self.models[c];
                let found = self.world.inward(model.id.unwrap_or(u64::MAX), &peer_text(p), 100);
                assert_eq!(found.is_some(), model.lives(now) && model.permits(p, now));
                if let Some((client, framing)) = found {
                    use super::super::Framing;
                    assert_eq!(client, self.guests[c].client);
                    assert_eq!(framing, model.number(p, now).map_or(Framing::Indication, Framing::Channel));
                }
            }
            Operation::Pass(seconds) => self.world.pass(Duration::from_secs(seconds)),
        }
        let living = self.models.iter().filter(|model| model.lives(self.world.now)).count();
        assert!(self.world.sockets.open.len() >= living);
    }

    fn bind(&mut self, c: usize, number: u16, p: usize) {
        let (guest, now) = (self.guest(c), self.world.now);
        let model = &mut self.models[c];
        let free = model.channel(number, now).is_none_or(|peer| peer == p);
        let alone = model.number(p, now).is_none_or(|bound| bound == number);
        let expected = match model.lives(now) {
            false => 437,
            true if free && alone => 0,
            true => 400,
        };
        assert_eq!(self.world.bind(&guest, number, &peer_text(p)), expected);
        if expected == 0 {
            model.permissions.insert(p, now + Duration::from_secs(300));
            model.channels.insert(number, (p, now + Duration::from_secs(600)));
        }
    }

    /// Nonces that are good; the rate of answers to strangers is another test's.
    fn refresh_nonces(&mut self) {
        for c in 0..CLIENTS {
            self.guests[c].nonce = self.world.challenge(&self.guests[c].client);
            self.world.now += Duration::from_millis(20);
        }
    }

    fn guest(&self, c: usize) -> Guest {
        self.guests[c].clone()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_server_does_what_the_rules_say(operations in prop::collection::vec(operation(), 1..120)) {
        let mut run = Run::new();
        for operation in &operations {
            run.step(operation);
        }
        // and in the end everything ends
        run.world.pass(Duration::from_secs(3_601));
        prop_assert!(run.world.sockets.open.is_empty());
        prop_assert_eq!(run.world.server.stats().allocations, 0);
    }
}

const CLIENTS: usize = 3;
const PEERS: usize = 6;
