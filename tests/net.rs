//! The driver on real sockets: uTP streams between two nodes on loopback, IPv4 and IPv6.

use std::net::SocketAddr;
use std::time::Duration;

use keynet::addr::{NodeId, PingKeys};
use keynet::config::{ControllerKind, PathConfig, SocketConfig, UtpConfig};
use keynet::error::Reason;
use keynet::net::{Incoming, Net, NetConfig, UtpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

#[path = "support/machine.rs"]
mod machine;

fn loopbacks() -> impl Iterator<Item = &'static str> {
    machine::loopbacks("tests/net").iter().copied()
}

fn bind(at: &str) -> (Net, Incoming) {
    Net::bind(at.parse().unwrap(), NetConfig::default()).unwrap()
}

async fn pair(at: &str, utp: UtpConfig) -> (Net, Net, UtpStream, UtpStream) {
    let ((a, _), (b, mut incoming)) = (bind(at), bind(at));
    let (dialled, accepted) = tokio::join!(a.connect(b.local_address(), utp), incoming.accept());
    let accepted = accepted.unwrap();
    accepted.trust();
    (a, b, dialled.unwrap(), accepted)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_arrive_in_both_directions_at_once() {
    for at in loopbacks() {
        for controller in [ControllerKind::Cubic, ControllerKind::Ledbat, ControllerKind::Bbr] {
            let (a, b, dialled, accepted) = pair(at, UtpConfig { controller, ..UtpConfig::default() }).await;
            let (mut dr, mut dw) = tokio::io::split(dialled);
            let (mut ar, mut aw) = tokio::io::split(accepted);
            let data = pattern(20 << 20);
            let write = |mut to: tokio::io::WriteHalf<UtpStream>, data: Vec<u8>| async move {
                to.write_all(&data).await.unwrap();
                to.shutdown().await.unwrap();
                to
            };
            let (mut there, mut back) = (Vec::new(), Vec::new());
            let writers = tokio::spawn({
                let (there, back) = (data.clone(), data[..1 << 20].to_vec());
                async move {
                    dw = write(dw, there).await;
                    aw = write(aw, back).await;
                    (dw, aw)
                }
            });
            let (r1, r2) = tokio::join!(ar.read_to_end(&mut there), dr.read_to_end(&mut back));
            r1.unwrap();
            r2.unwrap();
            writers.await.unwrap();
            assert!(there == data && back == data[..1 << 20], "{at} {controller:?}");
            tokio::join!(a.close(), b.close());
        }
    }
}

/// All of 127.0.0.0/8 is this machine on Linux; towards 127.0.0.1 it sends from there unless it is told otherwise.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_on_all_addresses_answers_from_the_one_that_was_asked() {
    for everywhere in ["0.0.0.0:0", "[::]:0"] {
        let ((a, _), (b, mut incoming)) = (bind("127.0.0.1:0"), bind(everywhere));
        let second = SocketAddr::from(([127, 0, 0, 2], b.local_address().port()));
        let (dialled, accepted) = tokio::join!(a.connect(second, UtpConfig::default()), incoming.accept());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        accepted.trust();
        let data = pattern(1 << 20);
        let mut arrived = vec![0; data.len()];
        for _ in 0..2 {
            let (wrote, read) = tokio::join!(accepted.write_all(&data), dialled.read_exact(&mut arrived));
            wrote.unwrap();
            read.unwrap();
            assert!(arrived == data, "{everywhere}");
            std::mem::swap(&mut dialled, &mut accepted);
        }
        let path = a.punch(vec![second], Duration::from_secs(10)).await.unwrap();
        assert_eq!(path.address, second);
        tokio::join!(a.close(), b.close());
    }
}

#[tokio::test]
async fn without_batching_and_with_the_systems_buffers_every_datagram_is_a_call_of_its_own() {
    let socket = SocketConfig { batching: false, buffer: None };
    let plain = || NetConfig { socket: socket.clone(), ..NetConfig::default() };
    let bind = |config| Net::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    let ((a, _), (b, mut incoming)) = (bind(plain()), bind(plain()));
    let (dialled, accepted) = tokio::join!(a.connect(b.local_address(), UtpConfig::default()), incoming.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    let data = pattern(1 << 20);
    let mut there = vec![0; data.len()];
    let (wrote, read) = tokio::join!(dialled.write_all(&data), accepted.read_exact(&mut there));
    wrote.unwrap();
    read.unwrap();
    assert!(there == data);
    assert!(a.stats().datagrams_out >= data.len() as u64 / 1472);
}

#[tokio::test]
async fn the_acceptor_may_speak_first() {
    for at in loopbacks() {
        let (_a, _b, mut dialled, mut accepted) = pair(at, UtpConfig::default()).await;
        accepted.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        dialled.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello");
    }
}

#[tokio::test]
async fn a_dropped_stream_is_a_reset_at_the_other_end() {
    for at in loopbacks() {
        let (_a, _b, dialled, mut accepted) = pair(at, UtpConfig::default()).await;
        drop(dialled);
        let error = accepted.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(accepted.failure(), Some(Reason::PeerReset), "{error}");
    }
}

#[tokio::test]
async fn what_was_written_before_shutdown_arrives_though_the_stream_is_dropped() {
    for at in loopbacks() {
        let (_a, b, mut dialled, mut accepted) = pair(at, UtpConfig::default()).await;
        let data = pattern(200_000);
        dialled.write_all(&data).await.unwrap();
        dialled.shutdown().await.unwrap();
        drop(dialled);
        let mut got = Vec::new();
        accepted.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, data);
        accepted.shutdown().await.unwrap();
        drop(accepted);
        wait_until(|| b.stats().connections == 0).await;
    }
}

#[tokio::test]
async fn nobody_there_is_a_punch_timeout_and_a_refusal_is_a_refusal() {
    for at in loopbacks() {
        let (a, _incoming) = bind(at);
        let silent = std::net::UdpSocket::bind(at).unwrap();
        let utp = UtpConfig { connect_timeout: Duration::from_millis(500), ..UtpConfig::default() };
        let address = silent.local_addr().unwrap();
        let error = a.connect(address, utp).await.unwrap_err();
        assert_eq!((error.reason, error.address), (Reason::PunchTimeout, Some(address)));

        // whoever is there wants no connection
        let silent = std::net::UdpSocket::bind(at).unwrap();
        let address = silent.local_addr().unwrap();
        let answer = std::thread::spawn(move || {
            let mut datagram = [0; 2_000];
            silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            loop {
                let (_, from) = silent.recv_from(&mut datagram).unwrap();
                if datagram[0] == 0x41 {
                    // a RESET for the id of the SYN, which acknowledges its number
                    let reset = [&[0x31, 0], &datagram[2..4], &[0; 14], &datagram[16..18]].concat();
                    silent.send_to(&reset, from).unwrap();
                    return silent;
                }
            }
        });
        let error = a.connect(address, UtpConfig::default()).await.unwrap_err();
        assert_eq!((error.reason, error.address), (Reason::ConnectRefused, Some(address)));
        drop(answer.join().unwrap());
        wait_until(|| a.stats().connections == 0).await;
    }
}

#[tokio::test]
async fn who_answers_no_pings_gets_fewer_syns_than_pings() {
    for at in loopbacks() {
        let (a, _incoming) = bind(at);
        let plain = tokio::net::UdpSocket::bind(at).await.unwrap();
        let address = plain.local_addr().unwrap();
        let dial = tokio::spawn(async move { a.connect(address, UtpConfig::default()).await.map(drop) });
        let (mut pings, mut syns) = (0, 0);
        // the third is due after 67 ms, and so is a SYN that is repeated as often
        while pings < 3 {
            let mut datagram = [0; 2_000];
            plain.recv_from(&mut datagram).await.unwrap();
            *(if datagram[0] == 0x41 { &mut syns } else { &mut pings }) += 1;
        }
        assert!(syns < pings, "{syns}");
        dial.abort();
    }
}

#[tokio::test]
async fn punching_tells_both_addresses() {
    for at in loopbacks() {
        let ((a, _ia), (b, _ib)) = (bind(at), bind(at));
        let path = a.punch(vec![b.local_address()], Duration::from_secs(5)).await.unwrap();
        assert_eq!((path.address, path.observed), (b.local_address(), Some(a.local_address())));
        let nowhere = SocketAddr::new(a.local_address().ip(), 1);
        let error = a.punch(vec![nowhere], Duration::from_millis(300)).await.unwrap_err();
        assert_eq!(error.reason, Reason::PunchTimeout);
        assert!(error.detail.contains(&nowhere.to_string()), "{error}");
    }
}

#[tokio::test]
async fn closing_resets_streams_and_refuses_more() {
    for at in loopbacks() {
        let (a, b, mut dialled, mut accepted) = pair(at, UtpConfig::default()).await;
        a.close().await;
        assert!(accepted.read(&mut [0; 10]).await.is_err());
        assert!(dialled.write(b"x").await.is_err());
        assert_eq!(dialled.failure(), Some(Reason::ProxyClosed));
        let error = a.connect(b.local_address(), UtpConfig::default()).await.unwrap_err();
        assert_eq!(error.reason, Reason::ProxyClosed);
    }
}

#[tokio::test]
async fn the_port_is_free_as_soon_as_close_returns() {
    for at in loopbacks() {
        let (a, _b, _dialled, _accepted) = pair(at, UtpConfig::default()).await;
        let address = a.local_address();
        a.close().await;
        std::net::UdpSocket::bind(address).expect("streams and handles that are still held do not hold the socket");
    }
}

async fn wait_until(mut condition: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("waited 20 s in vain");
}

/// More than may send in bulk at a time, and before them as many whose readers do not read: those hold nobody up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_in_bulk_all_finish_though_others_stand_still() {
    const MANY: usize = 40;
    let ((a, _), (b, mut incoming)) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let (mut still, mut writers, mut readers) = (Vec::new(), JoinSet::new(), JoinSet::new());
    for n in 0..2 * MANY {
        let (dialled, accepted) = tokio::join!(a.connect(b.local_address(), UtpConfig::default()), incoming.accept());
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        accepted.trust();
        let data = pattern(3 << 20);
        if n < MANY {
            still.push(accepted);
            writers.spawn(async move { dialled.write_all(&data).await.map(|()| dialled).ok() });
            continue;
        }
        writers.spawn(async move {
            dialled.write_all(&data).await.unwrap();
            dialled.shutdown().await.unwrap();
            Some(dialled)
        });
        readers.spawn(async move {
            let mut got = Vec::new();
            accepted.read_to_end(&mut got).await.unwrap();
            assert!(got == pattern(3 << 20));
        });
        if n == MANY {
            // their windows are full: a mebibyte each
            wait_until(|| b.stats().bytes_in >= (MANY as u64) << 20).await;
        }
    }
    while let Some(read) = readers.join_next().await {
        read.unwrap();
    }
    drop(still);
    a.close().await;
    while writers.join_next().await.is_some() {}
}

/// Each would send one every 50 ms on its own, and the path's pings are enough to see that the peer lives.
#[tokio::test]
async fn idle_connections_to_one_peer_share_their_keep_alives() {
    const CONNECTIONS: usize = 100;
    let often = Duration::from_millis(50);
    let utp = UtpConfig { keep_alive: often, ..UtpConfig::default() };
    let path = PathConfig { ping_active: often, ping_retry: often, ..PathConfig::default() };
    let config = || NetConfig { utp: utp.clone(), path: path.clone(), ..NetConfig::default() };
    let bind = || Net::bind("127.0.0.1:0".parse().unwrap(), config()).unwrap();
    let ((a, _), (b, mut incoming)) = (bind(), bind());
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        let (dialled, accepted) = tokio::join!(a.connect(b.local_address(), utp.clone()), incoming.accept());
        held.push((dialled.unwrap(), accepted.unwrap()));
    }
    // each has learnt by now that it is not alone, or asks once more
    let pings = |more: u64| {
        let wanted = a.stats().paths.pings_out + more;
        let a = &a;
        async move { wait_until(|| a.stats().paths.pings_out >= wanted).await }
    };
    pings(4).await;
    let before = a.stats();
    pings(10).await;
    let after = a.stats();
    let pings_and_pongs = |stats: &keynet::net::NetStats| stats.paths.pings_out + stats.paths.pongs_out;
    let sent = after.datagrams_out - before.datagrams_out;
    let kept_alive = sent - (pings_and_pongs(&after) - pings_and_pongs(&before));
    assert!(kept_alive < 5 * CONNECTIONS as u64, "{kept_alive} keep-alives, and {sent} datagrams in all");
    assert_eq!((a.stats().connections, b.stats().connections), (CONNECTIONS, CONNECTIONS));
    drop(held);
}

/// What starts in the very moment of closing ends as well: nobody waits for a driver that has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dials_and_punches_that_race_with_close_all_end() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = silent.local_addr().unwrap();
    let soon = Duration::from_millis(1);
    let utp = UtpConfig { connect_timeout: soon, ..UtpConfig::default() };
    for _ in 0..200 {
        let (a, _incoming) = bind("127.0.0.1:0");
        let tasks = (0..8).map(|n| {
            let (a, utp) = (a.clone(), utp.clone());
            tokio::spawn(async move {
                loop {
                    let error = match n % 2 {
                        0 => a.connect(to, utp.clone()).await.unwrap_err(),
                        _ => a.punch(vec![to], soon).await.unwrap_err(),
                    };
                    if error.reason == Reason::ProxyClosed {
                        return;
                    }
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        tokio::time::sleep(Duration::from_millis(5)).await;
        a.close().await;
        for task in tasks {
            tokio::time::timeout(Duration::from_secs(5), task).await.expect("it hangs").unwrap();
        }
    }
}

/// librqbit's flush waits until everything is confirmed: a round trip and a delayed ack for each message.
#[tokio::test]
async fn a_flush_does_not_wait_for_acks() {
    for at in loopbacks() {
        let (a, _incoming) = bind(at);
        let peer = std::net::UdpSocket::bind(at).unwrap();
        let address = peer.local_addr().unwrap();
        // takes the connection, and confirms nothing after that
        let answer = std::thread::spawn(move || {
            let mut datagram = [0; 2_000];
            peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            loop {
                let (_, from) = peer.recv_from(&mut datagram).unwrap();
                if datagram[0] == 0x41 {
                    let mut state = datagram[..20].to_vec();
                    (state[0], state[1]) = (0x21, 0);
                    state.copy_within(16..18, 18);
                    peer.send_to(&state, from).unwrap();
                    return peer;
                }
            }
        });
        let mut stream = a.connect(address, UtpConfig::default()).await.unwrap();
        let _silent = answer.join().unwrap();
        stream.write_all(b"one message").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!((stream.stats().bytes_out, stream.failure()), (0, None), "nothing was confirmed");
    }
}

/// A stream is steered while it is in other hands, between bytes; and a helm keeps no stream.
#[tokio::test]
async fn a_stream_changes_its_controller_while_it_is_used() {
    let (a, b, mut dialled, mut accepted) = pair("127.0.0.1:0", UtpConfig::default()).await;
    let helm = dialled.helm();
    for kind in [ControllerKind::Ledbat, ControllerKind::Cubic, ControllerKind::Bbr] {
        assert!(helm.set_controller(kind));
        assert_eq!((dialled.controller(), accepted.controller()), (kind, ControllerKind::default()));
        let data = pattern(1 << 20);
        let mut got = vec![0; data.len()];
        let (wrote, read) = tokio::join!(dialled.write_all(&data), accepted.read_exact(&mut got));
        wrote.unwrap();
        read.unwrap();
        assert!(got == data, "{kind:?}");
    }
    drop((dialled, accepted));
    tokio::join!(a.close(), b.close());
    assert!(!helm.set_controller(ControllerKind::Ledbat));
}

/// Two nodes that have pinged each other under a key: what the second connection carries does not wait for an answer.
#[tokio::test]
async fn nodes_that_share_a_key_do_not_wait_for_an_answer() {
    for at in loopbacks() {
        let ((a, _), (b, mut incoming)) = (bind(at), bind(at));
        let utp = UtpConfig::default;
        let (first, accepted) = tokio::join!(a.connect(b.local_address(), utp()), incoming.accept());
        let (first, accepted) = (first.unwrap(), accepted.unwrap());
        assert!(first.stats().packets_in > 0, "strangers wait");
        let (key, x, y) = ([1; 32], [2; 16], [3; 16]);
        let node = |n: u8| NodeId::from_public_key([n; 32]);
        a.bind_node(first.remote(), node(1), PingKeys { key, local_name: x, remote_name: y });
        b.bind_node(accepted.remote(), node(2), PingKeys { key, local_name: y, remote_name: x });
        let mut tries = 0;
        loop {
            let mut dialled = a.connect(b.local_address(), utp()).await.unwrap();
            let waited = dialled.stats().packets_in > 0;
            dialled.write_all(b"at once").await.unwrap();
            let mut accepted = incoming.accept().await.unwrap();
            accepted.trust();
            let mut got = [0; 7];
            accepted.read_exact(&mut got).await.unwrap();
            accepted.write_all(b"and back").await.unwrap();
            let mut back = [0; 8];
            dialled.read_exact(&mut back).await.unwrap();
            assert_eq!((&got, &back), (b"at once", b"and back"));
            if !waited {
                break;
            }
            // the pings under the new key are still on their way
            tries += 1;
            assert!(tries < 100, "{at}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::join!(a.close(), b.close());
    }
}
