//! How a node is reached, and how one hears that it has gone.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use keynet::error::Reason;
use keynet::proxy::{Event, Proxy};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::support::*;

/// Connection ids of the uTP SYNs that arrive until `done`.
async fn syns(hole: &UdpSocket, done: impl std::future::Future<Output = ()>) -> HashSet<[u8; 2]> {
    let mut seen = HashSet::new();
    let mut datagram = [0; 2048];
    tokio::pin!(done);
    loop {
        tokio::select! {
            () = &mut done => return seen,
            received = hole.recv_from(&mut datagram) => {
                received.unwrap();
                if datagram[0] == 0x41 {
                    seen.insert([datagram[2], datagram[3]]);
                }
            }
        }
    }
}

#[test]
fn all_who_want_a_node_share_its_first_dial() {
    both(|family| async move {
        let near = node(family).start().await;
        let wanted = identity().node_id();
        let hole = UdpSocket::bind(family.any()).await.unwrap();
        near.add_peer(wanted, vec![hole.local_addr().unwrap().to_string()]).unwrap();
        let request = connect_request(&near, &target(&wanted, 1));
        let mut clients = Vec::new();
        for _ in 0..20 {
            let mut client = TcpStream::connect(near.forward_address()).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            clients.push(client);
        }
        let first = syns(&hole, until("all are being served", || near.stats().tasks == 20)).await;
        let more = syns(&hole, tokio::time::sleep(Duration::from_millis(300))).await;
        let ids: HashSet<_> = first.union(&more).collect();
        assert_eq!(ids.len(), 1, "one connection is tried, not one for each client");

        // The dial goes on as long as one of them wants it, whoever started it.
        let last = clients.pop().unwrap();
        drop(clients);
        until("the others have gone", || near.stats().tasks == 1).await;
        assert_eq!(near.stats().net.connections, 1);
        drop(last);
        until("nobody wants it any more", || near.stats().tasks == 0 && near.stats().net.connections == 0).await;
    });
}

#[test]
fn a_failed_first_dial_fails_for_all_who_shared_it() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let wanted = identity().node_id();
        near.add_peer(wanted, vec![far.proxy_address().to_string()]).unwrap();
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..10 {
            let near = near.clone();
            clients.spawn(async move { refused(&near, &wanted, Reason::IdentityMismatch).await.status });
        }
        while let Some(status) = clients.join_next().await {
            assert_eq!(status.unwrap(), 502);
        }
    });
}

/// The far node lives in a runtime of its own, which ends without a word: what its machine losing power looks like from here.
struct Doomed {
    proxy: Proxy,
    runtime: tokio::runtime::Runtime,
}

impl Doomed {
    async fn start(builder: Builder) -> Self {
        let start = move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
            let proxy = runtime.block_on(builder.start());
            Self { proxy, runtime }
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    }

    /// Everything of it is gone when this returns, memory too.
    fn kill(self) {
        let Self { proxy, runtime } = self;
        let stopping = std::thread::spawn(move || {
            runtime.shutdown_timeout(Duration::from_secs(10));
            // in a thread without a runtime it says nothing more to anybody
            drop(proxy);
        });
        stopping.join().unwrap();
    }
}

#[test]
fn a_peer_that_dies_without_a_word_is_noticed() {
    both(|family| async move {
        let service = echo(family).await;
        let far = Doomed::start(node(family).service(SERVICE, service.address)).await;
        let near = node(family).start().await;
        know(&near, &far.proxy);
        let id = far.proxy.node_id();
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far.proxy).await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");

        far.kill();
        let start = Instant::now();
        expect_reset(&mut client).await;
        let lost = event(&mut events, |event| match event {
            Event::PeerLost { node, reason, .. } => Some((*node, *reason)),
            _ => None,
        });
        assert_eq!(lost.await, (id, Reason::PeerGone), "its host says so");
        // within 10 s by the path table's rules, which its own tests hold in virtual time
        println!("noticed after {:.1} s", start.elapsed().as_secs_f32());
        assert!(near.connections().is_empty());
        until("nothing is left", || near.stats().tasks == 0).await;
    });
}

#[test]
fn a_peer_that_comes_back_is_reached_again() {
    both(|family| async move {
        let service = echo(family).await;
        let builder = node(family).service(SERVICE, service.address);
        let (identity, mut config) = (builder.identity.clone(), builder.config.clone());
        let far = builder.start().await;
        let near = node(family).start().await;
        know(&near, &far);
        let mut client = tunnel(&near, &far).await;
        config.listen = far.proxy_address();
        far.close(keynet::proxy::Close::Abort).await;
        drop(far);
        expect_reset(&mut client).await;
        // The socket goes with the last task that holds it, a moment after the proxy has closed.
        let starting = async {
            loop {
                match Proxy::start(identity.clone(), config.clone()).await {
                    Ok(proxy) => return proxy,
                    Err(error) => assert_eq!(error.reason, Reason::BindFailed),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let far = timeout(LIMIT, starting).await.unwrap();
        let mut client = timeout(LIMIT, tunnel(&near, &far)).await.unwrap();
        client.write_all(b"again").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"again");
    });
}

#[test]
fn nodes_can_expect_each_other() {
    both(|family| async move {
        let (near, far) = (node(family).start().await, node(family).start().await);
        let error = near.expect(far.node_id(), LIMIT).await.unwrap_err();
        assert_eq!(error.reason, Reason::UnknownNode);
        know(&near, &far);
        let path = near.expect(far.node_id(), LIMIT).await.unwrap();
        assert_eq!(path.address, far.proxy_address());
        assert_eq!(path.observed, Some(near.proxy_address()));
    });
}

#[test]
fn a_dialled_node_can_dial_back_over_the_same_path() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let near = node(family).service(SERVICE, service.address).start().await;
        know(&near, &far);
        drop(tunnel(&near, &far).await);
        // Nobody has told `far` an address.
        assert!(far.peers().is_empty());
        drop(tunnel(&far, &near).await);
    });
}

#[test]
fn a_background_tunnel_carries_bytes_too() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let target = target(&far.node_id(), SERVICE);
        let request =
            format!("CONNECT {target} HTTP/1.1\r\n{}Keynet-Priority: background\r\n\r\n", authorization(&near));
        let mut answer = ask(&near, request.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.head);
        let data = noise(3, 200_000);
        let (mut from, mut to) = answer.stream.split();
        let mut got = vec![0; data.len()];
        let reading = async { tokio::io::AsyncReadExt::read_exact(&mut from, &mut got).await.unwrap() };
        tokio::join!(reading, async { to.write_all(&data).await.unwrap() });
        assert!(got == data);
    });
}
