//! Hostile datagrams on real sockets while two nodes talk: nothing a stranger sends disturbs them, and what a stranger can
//! make a node remember is bounded.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use keynet::config::{EndpointConfig, PathConfig, UtpConfig};
use keynet::net::{Net, NetConfig, UtpStream};
use keynet::stun;
use keynet::utp::packet::{Header, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "support/machine.rs"]
mod machine;

fn loopbacks() -> impl Iterator<Item = &'static str> {
    machine::loopbacks("tests/hostile").iter().copied()
}

struct Talk {
    a: Net,
    b: Net,
    dialled: UtpStream,
    accepted: UtpStream,
}

async fn talk(at: &str, config: NetConfig) -> Talk {
    let (a, _) = Net::bind(at.parse().unwrap(), config.clone()).unwrap();
    let (b, mut incoming) = Net::bind(at.parse().unwrap(), config).unwrap();
    let (dialled, accepted) = tokio::join!(a.connect(b.local_address(), UtpConfig::default()), incoming.accept());
    // later connections are accepted and held: dropping a stream resets it
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Some(stream) = incoming.accept().await {
            held.push(stream);
        }
    });
    Talk { a, b, dialled: dialled.unwrap(), accepted: accepted.unwrap() }
}

impl Talk {
    /// Both directions still carry every byte.
    async fn works(&mut self) {
        let data: Vec<u8> = (0..3 << 20).map(|i: u32| (i ^ (i >> 9)) as u8).collect();
        let mut got = vec![0; data.len()];
        for _ in 0..2 {
            let (from, to) = (&mut self.dialled, &mut self.accepted);
            let (sent, read) = tokio::join!(from.write_all(&data), to.read_exact(&mut got));
            sent.unwrap();
            read.unwrap();
            assert!(got == data);
            std::mem::swap(&mut self.dialled, &mut self.accepted);
        }
    }

    /// Closes both nodes: neither a task nor a socket is left of them.
    async fn end(self, sockets_before: usize) {
        let Self { a, b, dialled, accepted } = self;
        tokio::join!(a.close(), b.close());
        drop((a, b, dialled, accepted));
        let metrics = tokio::runtime::Handle::current().metrics();
        wait_until("no task is left", || metrics.num_alive_tasks() == 0).await;
        // other tests of this process open and close sockets too: at some moment there are no more than before
        wait_until("no socket is left", || sockets() <= sockets_before).await;
    }
}

fn sockets() -> usize {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let target = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
    entries.filter_map(target).filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

fn stranger(at: &str) -> UdpSocket {
    UdpSocket::bind(at).unwrap()
}

fn packet(kind: Kind, connection_id: u16, seq: u16, ack: u16) -> Vec<u8> {
    let header = Header { kind, connection_id, timestamp: 1, timestamp_difference: 0, window: 1 << 20, seq, ack };
    let mut out = Vec::new();
    header.write(&mut out);
    if kind == Kind::Data {
        out.extend_from_slice(b"forged");
    }
    out
}

/// Sends in small batches so that the receiver's socket buffer holds them all.
async fn flood(socket: &UdpSocket, to: SocketAddr, datagrams: impl Iterator<Item = Vec<u8>>) {
    for (n, datagram) in datagrams.enumerate() {
        let _ = socket.send_to(&datagram, to);
        if n % 64 == 63 {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited 20 s in vain until {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_truncated_datagrams_are_counted_and_dropped() {
    for at in loopbacks() {
        let before = sockets();
        let mut talk = talk(at, NetConfig::default()).await;
        let (socket, to) = (stranger(at), talk.b.local_address());
        let mut state = 0x2545_f491u32;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        let garbage = (0..3_000).map(|_| (0..random() % 100).map(|_| random() as u8).collect());
        flood(&socket, to, garbage).await;
        let mut ping = Vec::new();
        stun::encode_ping(&mut ping, [9; 12], Some((&[1; 16], &[2; 32])));
        let mut state = packet(Kind::State, 1, 2, 3);
        state[1] = 1;
        state.extend([0, 4, 1, 2, 3, 4]);
        let cut = [ping, state].into_iter().flat_map(|whole| (0..whole.len()).map(move |len| whole[..len].to_vec()));
        flood(&socket, to, cut).await;
        talk.works().await;
        let stats = talk.b.stats();
        assert!(stats.dropped_unknown > 2_000, "{stats:?}");
        assert!(stats.dropped_malformed > 0, "{stats:?}");
        assert_eq!(stats.connections, 1);
        drop(socket);
        talk.end(before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_forged_from_a_third_address_do_not_disturb_a_connection() {
    for at in loopbacks() {
        let before = sockets();
        let mut talk = talk(at, NetConfig::default()).await;
        talk.works().await;
        let socket = stranger(at);
        for to in [talk.a.local_address(), talk.b.local_address()] {
            // every connection id there is, so the right one too
            flood(&socket, to, (0..=u16::MAX).map(|id| packet(Kind::Reset, id, id, id))).await;
            for kind in [Kind::Data, Kind::Fin, Kind::State] {
                flood(&socket, to, (0..8_000).map(|id| packet(kind, id * 8, id, id))).await;
            }
        }
        talk.works().await;
        assert_eq!((talk.dialled.failure(), talk.accepted.failure()), (None, None));
        drop(socket);
        talk.end(before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_pongs_change_nothing_and_are_counted() {
    for at in loopbacks() {
        let before = sockets();
        let mut talk = talk(at, NetConfig::default()).await;
        let socket = stranger(at);
        let (to, address) = (talk.a.local_address(), talk.dialled.remote_address());
        let pongs = (0..2_000u32).map(|n| {
            let mut transaction = [0; 12];
            transaction[..4].copy_from_slice(&n.to_be_bytes());
            let mut pong = Vec::new();
            let elsewhere = "192.0.2.66:666".parse().unwrap();
            stun::encode_pong(&mut pong, transaction, elsewhere, (n % 2 == 0).then_some(&[7; 32]), 1_000);
            pong
        });
        flood(&socket, to, pongs).await;
        wait_until("the pongs are counted", || talk.a.stats().paths.forged >= 1_900).await;
        assert_eq!(talk.dialled.remote_address(), address);
        talk.works().await;
        drop(socket);
        talk.end(before).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_syn_flood_from_many_ports_costs_a_fixed_table() {
    let config = NetConfig {
        endpoint: EndpointConfig {
            max_half_open: 500,
            max_half_open_per_remote: 20,
            half_open_timeout: Duration::from_secs(2),
            ..EndpointConfig::default()
        },
        path: PathConfig { max_strangers: 200, ..PathConfig::default() },
        ..NetConfig::default()
    };
    for at in loopbacks() {
        let before = sockets();
        let mut talk = talk(at, config.clone()).await;
        let to = talk.b.local_address();
        for _ in 0..400 {
            let socket = stranger(at);
            flood(&socket, to, (0..40).map(|id| packet(Kind::Syn, id * 2, id, 0))).await;
        }
        let stats = talk.b.stats();
        assert!(stats.half_open <= 500, "{stats:?}");
        assert_eq!(stats.paths.remotes, 1, "a SYN alone makes no remote: {stats:?}");
        assert_eq!(stats.connections, 1, "a SYN alone makes no connection");
        talk.works().await;
        let (another, incoming) = Net::bind(at.parse().unwrap(), NetConfig::default()).unwrap();
        let stream = another.connect(to, UtpConfig::default()).await.expect("a genuine peer gets in after the flood");
        wait_until("half-open connections are forgotten", || talk.b.stats().half_open == 0).await;
        another.close().await;
        drop((another, incoming, stream));
        talk.end(before).await;
    }
}
