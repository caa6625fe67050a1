//! The path table behind the STUN codec, as the runtime puts them together: pings leave as datagrams, datagrams come back from
//! anywhere, genuine or not, in any order, while time passes and meetings come and go. The table is so small that everything collides.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use keynet::addr::{unmapped, NodeId, PingKeys, RemoteId, Route, Via};
use keynet::config::PathConfig;
use keynet::path::{MeetingId, PathEvent, PathTable, PingIn, PingOut, Plan, PongIn, PunchId, Search};
use keynet::stun::{self, Message};
use keynet::time::Time;

use super::input::Input;

/// No panic, no timer that spins, the caps hold, `Up` and `Lost` are said once, and traffic of a node with keys moves only to
/// where a keyed pong came from; when everybody lets go, nothing is left.
pub fn operations(data: &[u8]) {
    let mut input = Input::new(data);
    let config = PathConfig { max_strangers: 3, max_remotes: 6, ..PathConfig::default() };
    let mut outside = Outside {
        now: Time::from_millis(1_000),
        table: PathTable::new(config, [5; 32]),
        remotes: Vec::new(),
        held: Vec::new(),
        punches: Vec::new(),
        meetings: Vec::new(),
        vias: HashSet::new(),
        last_via: 0,
        pings: Vec::new(),
        proven: Vec::new(),
        up: Vec::new(),
        lost: Vec::new(),
    };
    for _ in 0..MAX_OPERATIONS {
        if input.is_empty() {
            break;
        }
        outside.operate(&mut input);
        outside.drain();
    }
    outside.let_go();
}

/// What the outside knows: the handles it was given, and the pings it has seen.
struct Outside {
    now: Time,
    table: PathTable,
    remotes: Vec<RemoteId>,
    held: Vec<RemoteId>,
    punches: Vec<PunchId>,
    meetings: Vec<MeetingId>,
    /// Sockets of searches that have not been given back.
    vias: HashSet<Via>,
    last_via: u16,
    /// Something went through another socket than the node's own.
    pings: Vec<PingOut>,
    /// Where a keyed pong came from that the table took, and where handshakes took place.
    proven: Vec<SocketAddr>,
    up: Vec<RemoteId>,
    lost: Vec<RemoteId>,
}

impl Outside {
    fn operate(&mut self, input: &mut Input<'_>) {
        match input.u8() {
            240..=247 => self.meet(input),
            248..=250 => {
                let n = usize::from(input.u8()) % self.meetings.len().max(1);
                if let Some(&meeting) = self.meetings.get(n) {
                    self.table.stop_meeting(self.now, meeting);
                }
            }
            251..=255 => {
                let via = Via(u16::from(input.u8() % 8));
                self.ping(input, via);
            }
            operation => self.older(operation % 16, input),
        }
    }

    fn older(&mut self, operation: u8, input: &mut Input<'_>) {
        let now = self.now;
        match operation {
            0 => self.remotes.extend(self.table.remote_for(now, address(input))),
            1 => {
                let remote = self.remote(input);
                self.held.push(remote);
                self.table.hold(now, remote);
            }
            2 => self.table.release(now, self.remote(input)),
            3 => {
                let (remote, session) = (self.remote(input), input.u8() % 20);
                // the handshake itself came over this one
                self.proven.extend(self.table.address_of(remote));
                self.table.bind_node(now, remote, NodeId::from_public_key([session % 4; 32]), keys(session));
            }
            4 => self.table.handle_utp(now, self.remote(input), input.u8() & 1 == 1),
            5 => {
                let (from, remote) = (address(input), self.remote(input));
                self.table.handle_utp_from(now, from, remote, input.u8() & 1 == 1);
            }
            6 => self.table.handle_sent(now, self.remote(input)),
            7 => self.arrive(address(input).into(), input.short()),
            8 => self.ping(input, Via::MAIN),
            9..=11 => self.pong(input),
            12 => {
                let to: Vec<_> = (0..input.u8() % 5).map(|_| address(input)).collect();
                let timeout = Duration::from_millis(u64::from(input.u16() % 5_000));
                self.punches.push(self.table.start_punch(now, &to, timeout));
            }
            13 => {
                let n = usize::from(input.u8()) % self.punches.len().max(1);
                if let Some(&punch) = self.punches.get(n) {
                    self.table.stop_punch(punch);
                }
            }
            14 => self.pass(Duration::from_millis(u64::from(input.u8()))),
            _ => self.pass(Duration::from_millis(u64::from(input.u16() % 20_000))),
        }
    }

    fn remote(&self, input: &mut Input<'_>) -> RemoteId {
        let n = usize::from(input.u8()) % self.remotes.len().max(1);
        self.remotes.get(n).copied().unwrap_or(RemoteId(99))
    }

    /// Two nodes have agreed to meet, and what they told each other made this plan.
    fn meet(&mut self, input: &mut Input<'_>) {
        let (session, how) = (input.u8() % 20, input.u8());
        let candidates: Vec<_> = (0..how % 4).map(|_| address(input)).collect();
        let guesses: Vec<_> = (0..how / 4 % 4).map(|_| address(input)).collect();
        let begin = Duration::from_millis(u64::from(input.u8()));
        let count = u16::from(input.u8() % 20);
        let vias: Vec<_> = (0..count).map(|n| Via(self.last_via + 1 + n)).collect();
        self.last_via += count;
        let search = match how >> 6 {
            0 => None,
            1 => {
                Some(Search::Ports { ip: [192, 0, 2, 9].into(), low: 0, high: input.u16(), start: input.u32(), begin })
            }
            _ => Some(Search::Sockets { vias: vias.clone(), to: SocketAddr::from(([192, 0, 2, 9], 1)), begin }),
        };
        let searches_from = if how >> 7 > 0 { vias } else { Vec::new() };
        let opening_ttl = (how & 0x10 > 0).then_some(2);
        let relay = Via(Via::FIRST_RELAY + u16::from(how % 2));
        let relayed = guesses.iter().map(|to| Route { via: relay, to: *to }).collect();
        let peer_relays: Vec<_> = candidates.iter().take(usize::from(session % 3)).copied().collect();
        let last = peer_relays.iter().map(|to| Route { via: relay, to: *to }).collect();
        let direct_only = session % 5 == 0;
        let seen_at = if how & 1 > 0 { vec![[192, 0, 2, 9].into()] } else { Vec::new() };
        let plan = Plan {
            candidates,
            guesses,
            search,
            seen_at,
            opening_ttl,
            relayed,
            last,
            peer_relays,
            head_start: begin,
            direct_only,
            ..Plan::default()
        };
        let timeout = Duration::from_millis(u64::from(input.u16() % 15_000));
        let node = NodeId::from_public_key([session % 4; 32]);
        if let Some(id) = self.table.start_meeting(self.now, node, keys(session), plan, timeout) {
            self.meetings.push(id);
            self.vias.extend(searches_from);
        }
    }

    /// A peer's or a forger's ping.
    fn ping(&mut self, input: &mut Input<'_>, via: Via) {
        let (from, transaction, session) = (address(input), [input.u8(); 12], input.u8());
        let keys = keys(session % 20);
        let mut datagram = Vec::new();
        let named = (&keys.local_name, &keys.key);
        match session {
            0..100 => stun::encode_ping(&mut datagram, transaction, Some(named)),
            100..180 => stun::encode_introduction(&mut datagram, transaction, named, &[session % 3; 16]),
            180..200 => stun::encode_goodbye(&mut datagram, transaction, named),
            _ => stun::encode_ping(&mut datagram, transaction, None),
        }
        damage(&mut datagram, input);
        self.arrive(Route { via, to: from }, &datagram);
    }

    /// An answer to a ping that was sent: from there or from elsewhere, in order or damaged, keyed or not.
    fn pong(&mut self, input: &mut Input<'_>) {
        let back = usize::from(input.u8() % 32);
        let Some(ping) = self.pings.iter().rev().nth(back).cloned() else { return };
        let how = input.u8();
        let from = if how & 0x07 == 7 { address(input) } else { ping.to };
        let observed = if how & 0x38 == 0x38 { address(input) } else { SocketAddr::from(([192, 0, 2, 200], 7)) };
        let key = match how >> 6 {
            3 => Some([0xbb; 32]),
            2 if how & 0x20 > 0 => None,
            _ => ping.keys.map(|(_, key)| key),
        };
        let mut datagram = Vec::new();
        stun::encode_pong(&mut datagram, ping.transaction, observed, key.as_ref(), usize::MAX);
        damage(&mut datagram, input);
        self.arrive(Route { via: ping.via, to: from }, &datagram);
    }

    /// A datagram that was classified as STUN, as the runtime takes it.
    fn arrive(&mut self, from: Route, datagram: &[u8]) {
        match stun::decode(datagram) {
            Ok(Message::Ping(ping)) => {
                let stun::Ping { transaction, session, incarnation } = ping;
                let ping = PingIn { transaction, session, incarnation, size: datagram.len() };
                let verified = |key: &[u8; 32]| stun::verify(datagram, key);
                let Some(pong) = self.table.handle_ping(self.now, from, &ping, verified) else { return };
                assert_eq!((pong.transaction, pong.key.is_some()), (ping.transaction, ping.session.is_some()));
                let mut out = Vec::new();
                let (key, life) = (pong.key.as_ref(), pong.incarnation.as_ref());
                stun::encode_answer(&mut out, pong.transaction, pong.observed, key, life, pong.room);
                assert!(out.len() <= datagram.len(), "a pong larger than its ping");
            }
            Ok(Message::Pong(pong)) => {
                let mut genuine = false;
                let stun::Pong { transaction, observed, keyed, incarnation } = pong;
                let pong = PongIn { transaction, observed, keyed, incarnation };
                self.table.handle_pong(self.now, from, &pong, |key| {
                    genuine = stun::verify(datagram, key);
                    genuine
                });
                if genuine {
                    self.proven.push(unmapped(from.to));
                }
            }
            Ok(Message::Goodbye(stun::Goodbye { transaction, session })) => {
                self.table.handle_goodbye(self.now, &session, transaction, |key| stun::verify(datagram, key));
            }
            Ok(Message::Other) | Err(_) => {}
        }
    }

    fn drain(&mut self) {
        for n in 0.. {
            assert!(n < 1_000, "pings without end");
            let Some(ping) = self.table.poll_transmit(self.now) else { break };
            assert!(keynet::path::sendable(ping.to), "{ping:?}");
            self.pings.push(ping);
        }
        while let Some(event) = self.table.poll_event() {
            match event {
                PathEvent::Up { remote, .. } => {
                    assert!(!self.up.contains(&remote), "up twice");
                    self.up.push(remote);
                }
                PathEvent::Lost { remote, .. } => {
                    assert!(!self.lost.contains(&remote), "lost twice");
                    self.lost.push(remote);
                }
                PathEvent::Punched { remote, .. } | PathEvent::Met { remote, .. } => self.remotes.push(remote),
                PathEvent::Unused { via } => {
                    self.vias.remove(&via);
                }
                PathEvent::Moved { remote, node, from, to, .. } => {
                    assert!(from != to && !self.lost.contains(&remote));
                    assert!(node.is_none() || self.proven.contains(&to.to), "moved to {to:?} without proof");
                }
                _ => {}
            }
        }
        let stats = self.table.stats();
        assert!(stats.remotes <= 6 && stats.strangers <= 3, "{stats:?}");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut at_once = 0;
        while let Some(at) = self.table.poll_timeout().filter(|at| *at <= end) {
            at_once = if at > self.now { 0 } else { at_once + 1 };
            assert!(at_once < 100, "a timer that is due again at once");
            self.now = at.max(self.now);
            self.table.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn let_go(&mut self) {
        for remote in std::mem::take(&mut self.held) {
            self.table.release(self.now, remote);
        }
        self.pass(Duration::from_secs(300));
        let stats = self.table.stats();
        // pings that nobody answered are cleared away by the next one
        assert_eq!((stats.remotes, stats.strangers, stats.punches), (0, 0, 0), "{stats:?}");
        assert_eq!(stats.meetings, 0, "{stats:?}");
        assert!(self.vias.is_empty(), "sockets that nobody gives back: {:?}", self.vias);
    }
}

/// A byte changes, sometimes.
fn damage(datagram: &mut [u8], input: &mut Input<'_>) {
    if let 0xe0.. = input.u8() {
        let at = usize::from(input.u8()) % datagram.len();
        datagram[at] ^= input.u8();
    }
}

/// Few addresses, some of which nothing can be sent to, two of which are one.
fn address(input: &mut Input<'_>) -> SocketAddr {
    match input.u8() % 16 {
        n @ 0..=9 => SocketAddr::from(([192, 0, 2, n + 1], 1)),
        10 => SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x0201], 1)),
        11 => SocketAddr::from(([0xfe80, 0, 0, 0, 0, 0, 0, 1], 5)),
        12 => SocketAddr::from(([0, 0, 0, 0], 1)),
        13 => SocketAddr::from(([192, 0, 2, 1], 0)),
        14 => SocketAddr::from(([224, 0, 0, 1], 1)),
        _ => SocketAddr::from((input.array::<4>(), input.u16())),
    }
}

fn keys(session: u8) -> PingKeys {
    PingKeys { key: [session; 32], local_name: [session; 16], remote_name: [session ^ 0x80; 16] }
}

/// More would only make an input slow.
const MAX_OPERATIONS: usize = 300;
