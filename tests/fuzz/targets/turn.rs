//! A TURN server among clients, strangers and peers that do whatever the input says.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keynet::config::RelayServerConfig;
use keynet::time::Time;
use keynet::turn::channel;
use keynet::turn::credentials::long_term_key;
use keynet::turn::message::{self as stun, Integrity, Message, MessageClass, Writer};
use keynet::turn::server::{
    is_public, AllocationId, Client, Family, Link, Moment, NoSocket, Outcome, Server, Setup, Sockets, Users,
};

use super::input::Input;

/// Sockets are opened and closed once each; nothing leads to an address that is not of the open internet, but to the one that was
/// named; over UDP no network is sent more than it sent until it has authenticated; and nothing outgrows its bounds.
pub fn operations(data: &[u8]) {
    let mut run = Run::new();
    let mut input = Input::new(data);
    while !input.is_empty() {
        run.step(&mut input);
        run.check();
    }
    run.pass(Duration::from_secs(4_000));
    assert!(run.sockets.0.is_empty(), "a socket outlives its allocation");
    assert_eq!(run.server.stats().allocations, 0);
    frames(data);
}

struct Run {
    server: Server,
    sockets: Numbers,
    now: Time,
    /// The last nonce that each client was given.
    nonces: [Vec<u8>; CLIENTS],
    /// Bytes from and to each network whose address nothing has proven.
    balance: HashMap<u8, (usize, usize)>,
}

#[derive(Default)]
pub(super) struct Numbers(pub BTreeMap<(u64, u8), u16>);

impl Sockets for Numbers {
    fn open(&mut self, allocation: AllocationId, family: Family, _: bool) -> Result<SocketAddr, NoSocket> {
        if self.0.len() >= 2 * ALLOCATIONS {
            return Err(NoSocket::Full);
        }
        let port = (self.0.len() as u16..).find(|port| !self.0.values().any(|taken| taken == port)).unwrap_or(0);
        assert!(self.0.insert((allocation.0, family as u8), port).is_none(), "opened twice");
        Ok(SocketAddr::new(own(family), 50_000 + port))
    }

    fn close(&mut self, allocation: AllocationId, family: Family) {
        assert!(self.0.remove(&(allocation.0, family as u8)).is_some(), "closed what was not open");
    }
}

impl Run {
    fn new() -> Self {
        let config = RelayServerConfig {
            max_allocations: ALLOCATIONS,
            max_permissions: 4,
            max_channels: 3,
            networks: 64,
            ..RelayServerConfig::default()
        };
        let users = Users {
            listed: NAMES[..2].iter().map(|name| (name.to_string(), "p".to_owned())).collect(),
            secrets: vec![],
            introduction_peers: vec![introduction()],
        };
        let setup = Setup { users, allowed_peers: vec![], own: vec![own(Family::V4), own(Family::V6)] };
        let now = Time::from_millis(1 << 30);
        let server = Server::new(config, setup, &[5; 32], now);
        Self { server, sockets: Numbers::default(), now, nonces: Default::default(), balance: HashMap::new() }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let n = usize::from(input.u8()) % CLIENTS;
        match input.u8() % 8 {
            0 => {
                let message = input.short().to_vec();
                self.handle(n, &message, false);
            }
            1 => {
                let message = request(input, None);
                self.handle(n, &message, false);
            }
            2..=4 => {
                let name = input.pick(NAMES);
                let message = request(input, Some((name, &self.nonces[n])));
                self.handle(n, &message, true);
            }
            5 => {
                let found = self.server.forward_to_peer(
                    self.now,
                    &client(n),
                    0x4000 | (input.u16() % 8),
                    input.u16().into(),
                    1,
                );
                if let Some((_, peer)) = found {
                    self.check_peer(peer);
                }
            }
            6 => {
                let id = AllocationId(input.u8().into());
                let _ = self.server.forward_to_client(self.now, id, peer(input), input.u16().into(), 1);
            }
            _ => {
                let time = Duration::from_millis(u64::from(input.u16()) * 16);
                self.pass(time);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.server.handle_timeout(self.now, &mut self.sockets);
    }

    fn handle(&mut self, n: usize, bytes: &[u8], may_be_signed: bool) {
        let (client, moment) = (client(n), Moment { now: self.now, unix: 1_700_000_000 });
        match self.server.handle(moment, &client, bytes, &mut self.sockets) {
            Outcome::Nothing => {}
            Outcome::Answer(answer) => {
                let message = Message::read(&answer).expect("a broken answer");
                assert_ne!(message.class, MessageClass::Request);
                if let Some(nonce) = message.nonce {
                    self.nonces[n] = nonce.to_vec();
                }
                assert!(message.integrity().is_none() || may_be_signed, "a stranger was served");
                // who echoes a nonce, or has an allocation, has proven where it is
                if !may_be_signed && !client.link.is_stream() && !self.server.serves(&client) {
                    self.balance.entry(network(n)).or_default().1 += answer.len();
                }
            }
            Outcome::Relay { peer, .. } => self.check_peer(peer),
        }
        if !client.link.is_stream() {
            self.balance.entry(network(n)).or_default().0 += bytes.len();
        }
    }

    fn check_peer(&self, peer: SocketAddr) {
        let relayed = peer.ip() == own(Family::V4) || peer.ip() == own(Family::V6);
        assert!(is_public(peer.ip()) || peer == introduction(), "reached {peer}");
        assert!(!relayed || self.sockets.0.values().any(|port| 50_000 + port == peer.port()), "reached {peer}");
    }

    fn check(&self) {
        let received: usize = self.balance.values().map(|(received, _)| received).sum();
        let sent: usize = self.balance.values().map(|(_, sent)| sent).sum();
        assert!(sent <= received, "{sent} bytes for {received}");
        let allocations = self.server.stats().allocations as usize;
        assert!(allocations <= ALLOCATIONS && self.sockets.0.len() <= 2 * ALLOCATIONS);
        assert!(self.sockets.0.len() >= allocations);
    }
}

/// A request or an indication, signed if a name is given.
fn request(input: &mut Input<'_>, who: Option<(&str, &[u8])>) -> Vec<u8> {
    let methods =
        [stun::ALLOCATE, stun::REFRESH, stun::CREATE_PERMISSION, stun::CHANNEL_BIND, stun::SEND, stun::BINDING, 0x00a];
    let class = if input.u8() & 7 == 0 { MessageClass::Indication } else { MessageClass::Request };
    let mut message = Writer::new(class, input.pick(&methods), input.array());
    for _ in 0..input.u8() % 6 {
        match input.u8() % 8 {
            0 => message.put(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]),
            1 => message.put(stun::LIFETIME, &input.u32().to_be_bytes()),
            2 => message.put_address(stun::XOR_PEER_ADDRESS, peer(input)),
            3 => message.put(stun::CHANNEL_NUMBER, &[0x40, input.u8() & 7, 0, 0]),
            4 => message.put(stun::REQUESTED_ADDRESS_FAMILY, &[input.u8() & 3, 0, 0, 0]),
            5 => message.put(stun::ADDITIONAL_ADDRESS_FAMILY, &[input.u8() & 3, 0, 0, 0]),
            6 => message.put(stun::DATA_ATTRIBUTE, input.short()),
            _ => message.put(input.u16(), input.short()),
        }
    }
    if let Some((name, nonce)) = who {
        message.put(stun::USERNAME, name.as_bytes());
        message.put(stun::REALM, b"keynet");
        message.put(stun::NONCE, nonce);
        let password = if name == "keynet" { "keynet" } else { "p" };
        let integrity = if input.u8() & 1 == 0 { Integrity::Sha1 } else { Integrity::Sha256 };
        message.sign(&long_term_key(name.as_bytes(), "keynet", password), integrity);
    }
    message.finish()
}

fn peer(input: &mut Input<'_>) -> SocketAddr {
    let port = u16::from(input.u8());
    match input.u8() % 8 {
        0 => SocketAddr::from((input.array::<4>(), port)),
        1 => SocketAddr::from((input.array::<16>(), port)),
        2 => introduction(),
        3 => SocketAddr::new(own(Family::V4), 50_000 + port),
        4 => SocketAddr::from(([8, 8, 8, input.u8()], port)),
        5 => SocketAddr::from(([127, 0, 0, 1], port)),
        6 => "[2600::9]:7".parse().expect("an address"),
        _ => SocketAddr::new(own(Family::V6), 50_000 + port),
    }
}

/// Any bytes are a frame of a stream, or none, and what is one has room for its payload.
fn frames(data: &[u8]) {
    if let Ok(Some(size)) = channel::frame_length(data) {
        assert!((4..=65_555).contains(&size));
        if let Some((_, length)) = channel::read_header(data) {
            assert!(channel::HEADER + length <= size);
        }
    }
    if let Some((number, length)) = channel::read_datagram(data) {
        assert!(channel::is_number(number) && channel::HEADER + length <= data.len());
    }
}

fn client(n: usize) -> Client {
    let link = if n == CLIENTS - 1 { Link::Stream(7) } else { Link::Datagrams(0) };
    Client { address: SocketAddr::from(([203, 0, 114, n as u8 / 2], 5_000 + n as u16)), local: None, link }
}

fn network(n: usize) -> u8 {
    n as u8 / 2
}

fn own(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([198, 52, 100, 1]),
        Family::V6 => IpAddr::from([0x2600, 0, 0, 0, 0, 0, 0, 1u16]),
    }
}

fn introduction() -> SocketAddr {
    SocketAddr::from(([10, 9, 9, 9], 7_348))
}

const CLIENTS: usize = 5;
const ALLOCATIONS: usize = 4;
const NAMES: &[&str] = &["alice", "bob", "keynet", "nobody"];
