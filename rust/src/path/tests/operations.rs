//! Any sequence of operations, on a table so small that everything collides.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::addr::{Route, Via};

#[derive(Clone, Debug)]
enum Operation {
    RemoteFor(u32),
    Hold(usize),
    Release(usize),
    Bind(usize, u8),
    Utp(usize, Option<u32>, bool),
    Sent(usize),
    KeyedPing {
        from: u32,
        transaction: u8,
        session: u8,
    },
    UnkeyedPing(u32),
    /// Answers the n-th ping that was sent, from where it went to or from elsewhere, with its key or another.
    Pong {
        ping: usize,
        elsewhere: Option<u32>,
        forged: bool,
    },
    Punch(Vec<u32>, u64),
    StopPunch(u64),
    /// With candidates, guesses and perhaps sockets of a search.
    Meet(Vec<u32>, u8, u8, u64),
    StopMeeting(usize),
    CloseRelay(u8),
    LeaveRelay(u8),
    ChangeNetwork,
    Pass(u64),
}

fn operation() -> impl Strategy<Value = Operation> {
    let (at, remote) = (0..8u32, 0..12usize);
    prop_oneof![
        1 => at.clone().prop_map(Operation::RemoteFor),
        1 => remote.clone().prop_map(Operation::Hold),
        1 => remote.clone().prop_map(Operation::Release),
        1 => (remote.clone(), 1..20u8).prop_map(|(remote, n)| Operation::Bind(remote, n)),
        1 => (remote.clone(), prop::option::of(at.clone()), any::<bool>()).prop_map(|(r, f, p)| Operation::Utp(r, f, p)),
        1 => remote.prop_map(Operation::Sent),
        1 => (at.clone(), any::<u8>(), 1..20u8)
            .prop_map(|(from, transaction, session)| Operation::KeyedPing { from, transaction, session }),
        1 => at.clone().prop_map(Operation::UnkeyedPing),
        4 => (0..30usize, prop::option::weighted(0.1, at.clone()), prop::bool::weighted(0.1))
            .prop_map(|(ping, elsewhere, forged)| Operation::Pong { ping, elsewhere, forged }),
        1 => (prop::collection::vec(at, 0..4), 0..5_000u64).prop_map(|(to, timeout)| Operation::Punch(to, timeout)),
        1 => (0..10u64).prop_map(Operation::StopPunch),
        2 => (prop::collection::vec(0..8u32, 0..6), 0..20u8, 0..6u8, 0..15_000u64)
            .prop_map(|(to, session, sockets, timeout)| Operation::Meet(to, session, sockets, timeout)),
        1 => (0..10usize).prop_map(Operation::StopMeeting),
        1 => (0..2u8).prop_map(Operation::CloseRelay),
        1 => (0..2u8).prop_map(Operation::LeaveRelay),
        1 => Just(Operation::ChangeNetwork),
        3 => (0..20_000u64).prop_map(Operation::Pass),
    ]
}

/// What the outside knows: the handles it was given, and the pings it has seen.
struct Outside {
    bench: Bench,
    remotes: Vec<RemoteId>,
    pings: Vec<PingOut>,
    up: Vec<RemoteId>,
    lost: Vec<RemoteId>,
    meetings: Vec<MeetingId>,
    /// Sockets of searches that have not been given back.
    vias: HashSet<Via>,
    last_via: u16,
}

impl Outside {
    fn run(&mut self, operation: Operation) {
        let now = self.bench.now;
        let remote = |n: usize| self.remotes.get(n % self.remotes.len().max(1)).copied().unwrap_or(RemoteId(99));
        let table = &mut self.bench.table;
        match operation {
            Operation::RemoteFor(at) => self.remotes.extend(table.remote_for(now, address(at))),
            Operation::Hold(n) => table.hold(now, remote(n)),
            Operation::Release(n) => table.release(now, remote(n)),
            Operation::Bind(n, session) => table.bind_node(now, remote(n), node(session % 4), keys(session)),
            Operation::Utp(n, None, proven) => table.handle_utp(now, remote(n), proven),
            Operation::Utp(n, Some(at), proven) => table.handle_utp_from(now, address(at), remote(n), proven),
            Operation::Sent(n) => table.handle_sent(now, remote(n)),
            Operation::KeyedPing { from, transaction, session } => {
                self.bench.keyed_ping(address(from), transaction, session);
            }
            Operation::UnkeyedPing(from) => {
                self.bench.unkeyed_ping(address(from));
            }
            Operation::Pong { ping, elsewhere, forged } => {
                let Some(ping) = self.pings.iter().rev().nth(ping).cloned() else { return };
                let key = ping.keys.map(|(_, key)| if forged { [0xbb; 32] } else { key });
                let from = Route { via: ping.via, to: elsewhere.map_or(ping.to, address) };
                let pong =
                    PongIn { transaction: ping.transaction, observed: own(), keyed: key.is_some(), incarnation: None };
                table.handle_pong(now, from, &pong, |expected| Some(*expected) == key);
            }
            Operation::Punch(to, timeout) => {
                let to: Vec<_> = to.into_iter().map(address).collect();
                table.start_punch(now, &to, millis(timeout));
            }
            Operation::StopPunch(n) => table.stop_punch(PunchId(n)),
            Operation::Meet(to, session, sockets, timeout) => {
                let to: Vec<_> = to.into_iter().map(address).collect();
                let vias: Vec<_> = (0..u16::from(sockets)).map(|n| Via(self.last_via + 1 + n)).collect();
                self.last_via += u16::from(sockets);
                let begin = millis(u64::from(session) * 20);
                let search = match (to.first(), vias.is_empty()) {
                    (Some(to), false) => Some(Search::Sockets { vias: vias.clone(), to: *to, begin }),
                    (Some(to), true) => {
                        Some(Search::Ports { ip: to.ip(), low: 998, high: 1_020, start: timeout as u32, begin })
                    }
                    (None, _) => None,
                };
                let opening_ttl = (session % 2 == 0).then_some(2);
                let guesses = to[to.len() / 2..].to_vec();
                let has_sockets = matches!(search, Some(Search::Sockets { .. }));
                let relay = Via(Via::FIRST_RELAY + u16::from(session % 2));
                let relayed = to.iter().map(|to| Route { via: relay, to: *to }).collect();
                let peer_relays: Vec<_> = to.iter().take(usize::from(session % 3)).copied().collect();
                let last = peer_relays.iter().map(|to| Route { via: relay, to: *to }).collect();
                let head_start = millis(u64::from(session % 4) * 100);
                let direct_only = session % 5 == 0;
                let plan = Plan {
                    candidates: to,
                    guesses,
                    opening_ttl,
                    relayed,
                    last,
                    peer_relays,
                    head_start,
                    round_trip: millis(u64::from(session % 3) * 400),
                    direct_only,
                    search_ttl: opening_ttl.filter(|_| session % 3 == 0),
                    seen_at: search.iter().map(Search::ip).collect(),
                    own_relays: Vec::new(),
                    search,
                };
                let made = table.start_meeting(now, node(session % 4), keys(session), plan, millis(timeout));
                if made.is_some() && has_sockets {
                    self.vias.extend(vias);
                }
                self.meetings.extend(made);
            }
            Operation::StopMeeting(n) => {
                if let Some(id) = self.meetings.get(n % self.meetings.len().max(1)) {
                    table.stop_meeting(now, *id);
                }
            }
            Operation::ChangeNetwork => drop(table.handle_network_change(now)),
            Operation::LeaveRelay(n) => table.handle_leaving(now, &[Via(Via::FIRST_RELAY + u16::from(n))]),
            Operation::CloseRelay(n) => table.handle_closed(now, Via(Via::FIRST_RELAY + u16::from(n))),
            Operation::Pass(duration) => self.pings.extend(self.bench.pass(millis(duration))),
        }
        self.pings.extend(self.bench.drain());
        for event in self.bench.events() {
            match event {
                PathEvent::Up { remote, .. } => {
                    assert!(!self.up.contains(&remote), "up twice");
                    self.up.push(remote);
                }
                PathEvent::Lost { remote, .. } => {
                    assert!(!self.lost.contains(&remote), "lost twice");
                    self.lost.push(remote);
                }
                PathEvent::Unused { via } => {
                    self.vias.remove(&via);
                }
                PathEvent::Moved { remote, from, to, .. } => {
                    assert!(from != to && !self.lost.contains(&remote));
                }
                _ => {}
            }
        }
        let stats = self.bench.table.stats();
        assert!(stats.remotes <= 6 && stats.strangers <= 3, "{stats:?}");
    }
}

proptest! {
    #[test]
    fn any_sequence_of_operations_leaves_the_table_whole(
        operations in prop::collection::vec(operation(), 1..200)
    ) {
        let config = PathConfig { max_strangers: 3, max_remotes: 6, ..PathConfig::default() };
        let bench = Bench::with(config);
        let mut outside = Outside {
            bench,
            remotes: vec![],
            pings: vec![],
            up: vec![],
            lost: vec![],
            meetings: vec![],
            vias: HashSet::new(),
            last_via: 0,
        };
        for operation in operations {
            outside.run(operation);
        }
        // and when everybody lets go, nothing is left
        for remote in outside.remotes.clone() {
            for _ in 0..200 {
                outside.bench.table.release(outside.bench.now, remote);
            }
        }
        outside.run(Operation::Pass(300_000));
        prop_assert!(outside.vias.is_empty(), "sockets were not given back: {:?}", outside.vias);
        let table = &outside.bench.table;
        prop_assert_eq!((table.remotes.len(), table.slots.len(), table.names.len()), (0, 0, 0));
        prop_assert_eq!((table.nodes.len(), table.timers.len(), table.spares.len()), (0, 0, 0));
        prop_assert_eq!(table.stats().meetings, 0);
    }
}
