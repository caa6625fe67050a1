//! What strangers make a node remember, counted in bytes of its heap: SYN floods from thousands of addresses, and thousands of
//! streams that never say who they are.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{EndpointConfig, UtpConfig};
use keynet::net::{Incoming, Net, NetConfig};
use keynet::time::Time;
use keynet::utp::packet::{Capability, Header, Kind, Packet};
use keynet::utp::{Connection, Endpoint, Handle, ReadOutcome, Routed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[allow(dead_code)]
#[path = "loopback/leaks.rs"]
mod leaks;

#[path = "support/machine.rs"]
mod machine;

fn header(kind: Kind, connection_id: u16, seq: u16, ack: u16) -> Header {
    Header { kind, connection_id, timestamp: 1, timestamp_difference: 0, window: 1 << 20, seq, ack }
}

/// SYNs as programs send them, and as somebody would who wants long answers to short questions.
fn syn(id: u16, seq: u16, shape: u32) -> Vec<u8> {
    let header = header(Kind::Syn, id, seq, 0);
    let mut out = Vec::new();
    match shape % 4 {
        0 => header.write(&mut out),
        1 => header.write_with_capability(Capability::new(None), &mut out),
        2 => {
            out.extend(header.encode(0x4B));
            out.extend([0, 3, b'k', b'n', 1]);
        }
        _ => {
            header.write_with_capability(Capability::new(None), &mut out);
            out.extend([0; 100]);
        }
    }
    out
}

fn origin(n: u32) -> Origin {
    Origin::of(SocketAddr::from(((n >> 8 | 10 << 24).to_be_bytes(), 1_024 + (n & 0xff) as u16)))
}

/// A flood from `from..to` addresses; every answer is as long as the question at most.
fn flood(endpoint: &mut Endpoint, now: Time, from: u32, to: u32) {
    let mut reply = Vec::new();
    for n in from..to {
        let question = syn(n as u16, (n >> 3) as u16, n);
        assert!(matches!(endpoint.handle_stranger(now, &question, origin(n)), Some(Routed::Answered)));
        reply.clear();
        let len = endpoint.poll_reply(&mut reply).expect("an answer");
        assert!(len <= question.len(), "{len} bytes in answer to {}", question.len());
    }
}

struct Dialler {
    remote: RemoteId,
    origin: Origin,
    id: u16,
    seq: u16,
    ack: u16,
}

/// A genuine dialler sends SYN and gets its answer.
fn dial(endpoint: &mut Endpoint, now: Time, n: u16, capable: bool) -> Dialler {
    let origin = Origin::of(SocketAddr::from(([192, 0, 2, 1], n)));
    let (id, seq) = (n.wrapping_mul(77), n.wrapping_mul(991));
    assert!(matches!(endpoint.handle_stranger(now, &syn(id, seq, capable.into()), origin), Some(Routed::Answered)));
    let mut reply = Vec::new();
    endpoint.poll_reply(&mut reply).expect("an answer");
    let answer = Packet::parse(&reply).unwrap();
    assert_eq!((answer.header.kind, answer.header.ack, answer.capability.is_some()), (Kind::State, seq, capable));
    Dialler {
        remote: RemoteId(u64::from(n)),
        origin,
        id: id.wrapping_add(1),
        seq: seq.wrapping_add(1),
        ack: answer.header.seq.wrapping_sub(1),
    }
}

impl Dialler {
    fn send(
        &self,
        endpoint: &mut Endpoint,
        now: Time,
        kind: Kind,
        ahead: u16,
        payload: &[u8],
    ) -> Option<(Handle, Box<Connection>)> {
        let mut datagram = Vec::new();
        header(kind, self.id, self.seq.wrapping_add(ahead), self.ack).write(&mut datagram);
        datagram.extend_from_slice(payload);
        match endpoint.handle(now, self.remote, &datagram, self.origin, None) {
            Routed::New(handle, mut connection, packet) => {
                connection.handle_packet(now, &packet);
                Some((handle, connection))
            }
            _ => None,
        }
    }
}

fn read(connection: &mut Connection) -> Vec<u8> {
    let mut buffer = [0; 4_096];
    match connection.read(&mut buffer) {
        Ok(ReadOutcome::Bytes(count)) => buffer[..count].to_vec(),
        _ => Vec::new(),
    }
}

#[test]
fn a_flood_costs_a_fixed_table_and_whoever_is_genuine_connects() {
    let _alone = leaks::alone();
    let config = EndpointConfig::default();
    let mut endpoint = Endpoint::new(config.clone(), UtpConfig::default(), [3; 32]);
    let mut now = Time::from_millis(3_600_000);
    flood(&mut endpoint, now, 0, 10_000);
    assert_eq!(endpoint.half_open(), config.max_half_open);
    let held = leaks::memory();
    flood(&mut endpoint, now, 10_000, 100_000);
    assert_eq!((endpoint.half_open(), endpoint.connections()), (config.max_half_open, 0));
    let grown = leaks::memory() - held;
    assert!(grown < 4_096, "{grown} bytes for 90,000 more SYNs");

    for (n, capable) in [(1, true), (2, false)] {
        for (kind, payload) in [(Kind::Data, &b"hello"[..]), (Kind::State, b""), (Kind::Fin, b"")] {
            let dialler = dial(&mut endpoint, now, 10 * n + kind as u16, capable);
            now += Duration::from_secs(1);
            flood(&mut endpoint, now, 0, 2_000);
            // what comes behind the first packet proves nothing, and is not turned away: it will come again
            assert!(dialler.send(&mut endpoint, now, Kind::Data, 1, b"second").is_none());
            assert_eq!(endpoint.poll_reply(&mut Vec::new()), None, "a RESET would end a genuine dial");
            let (handle, mut connection) =
                dialler.send(&mut endpoint, now, kind, 0, payload).unwrap_or_else(|| panic!("{kind:?} connects"));
            assert_eq!((read(&mut connection), connection.stats().capable), (payload.to_vec(), capable));
            assert!(endpoint.knows(dialler.remote, dialler.id));
            endpoint.forget(handle);
        }
    }
}

/// One cookie in 2^14 is guessed; a forger who sends all he can gets so many connections a second, and no more.
#[test]
fn guessed_cookies_are_few_and_rationed() {
    let _alone = leaks::alone();
    let config = EndpointConfig { max_half_open: 0, cookies_per_second: 3, ..EndpointConfig::default() };
    let mut endpoint = Endpoint::new(config, UtpConfig::default(), [3; 32]);
    let now = Time::from_millis(3_600_000);
    flood(&mut endpoint, now, 0, 1);
    let guess = |endpoint: &mut Endpoint, now, n: u32| {
        let forger = Dialler { remote: RemoteId(7), origin: origin(n), id: n as u16, seq: 1, ack: (n >> 5) as u16 };
        forger.send(endpoint, now, Kind::Data, 0, b"x").is_some()
    };
    let made = (0..200_000).filter(|n| guess(&mut endpoint, now, *n)).count();
    assert_eq!(made, 3, "12 of these are right, on average");
    let later = now + Duration::from_secs(1);
    let made = (200_000..400_000).filter(|n| guess(&mut endpoint, later, *n)).count();
    assert_eq!(made, 3);
}

/// Each takes the most that it can: its whole window early, then its whole window in order, then the packet between.
#[test]
fn two_thousand_strangers_hold_64_kib_each_at_most() {
    let _alone = leaks::alone();
    const STRANGERS: u16 = 2_048;
    let utp = UtpConfig::default();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), utp.clone(), [3; 32]);
    let now = Time::from_millis(3_600_000);
    let before = leaks::memory();
    let mut streams: HashMap<Handle, Box<Connection>> = HashMap::new();
    let packets = (utp.untrusted_window / 1_400) as u16;
    let early = packets + 1..packets + 40;
    for n in 0..STRANGERS {
        let dialler = dial(&mut endpoint, now, n, true);
        let (handle, connection) = dialler.send(&mut endpoint, now, Kind::State, 0, b"").expect("a connection");
        streams.insert(handle, connection);
        for ahead in early.clone().chain(0..packets + 40) {
            let mut datagram = Vec::new();
            header(Kind::Data, dialler.id, dialler.seq.wrapping_add(ahead), dialler.ack).write(&mut datagram);
            datagram.extend([7; 1_400]);
            let Routed::Known(handle, packet) = endpoint.handle(now, dialler.remote, &datagram, dialler.origin, None)
            else {
                panic!("the connection is known");
            };
            streams.get_mut(&handle).expect("kept").handle_packet(now, &packet);
        }
    }
    let readable: usize = streams.values().map(|stream| stream.readable()).sum();
    assert!(readable > usize::from(STRANGERS) * utp.untrusted_window, "they did their worst");
    let each = (leaks::memory() - before) / isize::try_from(STRANGERS).unwrap();
    assert!(each <= (64 << 10) + ENTRY, "{each} bytes each");
}

/// A connection without its buffers, its rows in tables, and the timers of its controller.
const ENTRY: isize = 4 << 10;

fn bind(at: &str) -> (Net, Incoming) {
    Net::bind(at.parse().unwrap(), NetConfig::default()).unwrap()
}

/// On a real socket, from thousands of ports: no table grows, and a peer that dials meanwhile connects and moves its data.
#[test]
fn a_flood_from_thousands_of_ports_on_a_real_socket() {
    let _alone = leaks::alone();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(flood_a_socket());
}

async fn flood_a_socket() {
    for at in machine::loopbacks("tests/flood").iter().copied() {
        let ((node, mut incoming), (peer, _)) = (bind(at), bind(at));
        let to = node.local_address();
        let send = |ports: u32| {
            for n in 0..ports {
                let socket = UdpSocket::bind(at).unwrap();
                for shape in 0..4 {
                    socket.send_to(&syn((8 * n + shape) as u16, n as u16, shape), to).unwrap();
                }
            }
        };
        send(1_000);
        arrived(&node, |stats| stats.half_open == EndpointConfig::default().max_half_open, || send(100)).await;
        let (held, datagrams) = (leaks::memory(), node.stats().datagrams_in);
        send(3_000);
        arrived(&node, |stats| stats.datagrams_in > datagrams + 4_000, || send(100)).await;
        let stats = node.stats();
        assert_eq!(stats.half_open, EndpointConfig::default().max_half_open);
        assert_eq!((stats.paths.remotes, stats.paths.strangers, stats.connections), (0, 0, 0), "{stats:?}");
        let grown = leaks::memory() - held;
        assert!(grown < 64 << 10, "{grown} bytes for some thousand more SYNs");

        // the table is still full, so the dialler gets a cookie
        let (dialled, accepted) = tokio::join!(peer.connect(to, UtpConfig::default()), async {
            send(500);
            incoming.accept().await
        });
        let (mut dialled, mut accepted) = (dialled.expect("a genuine peer gets in"), accepted.unwrap());
        assert!(accepted.stats().capable && node.stats().half_open >= EndpointConfig::default().max_half_open - 1);
        let (data, mut got) = (vec![9; 1 << 20], vec![0; 1 << 20]);
        let (sent, read) = tokio::join!(dialled.write_all(&data), accepted.read_exact(&mut got));
        sent.unwrap();
        read.unwrap();
        assert!(got == data);
        tokio::join!(node.close(), peer.close());
    }
}

/// Waits until the node has seen so much; what its socket buffer had no room for is sent again.
async fn arrived(node: &Net, seen: impl Fn(&keynet::net::NetStats) -> bool, again: impl Fn()) {
    for _ in 0..2_000 {
        if seen(&node.stats()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        again();
    }
    panic!("waited in vain: {:?}", node.stats());
}
