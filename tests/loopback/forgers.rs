//! Somebody who can send in the name of a peer, and is told every number of its packets, but cannot see their tags.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use keynet::utp::packet::{Header, Kind, Packet};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::support::*;

/// What a forger has seen and sent, in both directions.
#[derive(Default)]
struct Counts {
    tagged: AtomicUsize,
    forged: AtomicUsize,
}

/// Carries datagrams between whoever sends to it and `far`, and puts forged ones behind those that have tags.
struct Forger {
    address: SocketAddr,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Forger {
    async fn start(family: Family, far: SocketAddr) -> Self {
        let inside = UdpSocket::bind(family.any()).await.unwrap();
        let outside = UdpSocket::bind(family.any()).await.unwrap();
        let address = inside.local_addr().unwrap();
        let counts = Arc::new(Counts::default());
        let seen = counts.clone();
        let task = tokio::spawn(async move {
            let (mut near, mut out, mut back) = (None, vec![0; 1 << 16], vec![0; 1 << 16]);
            // each side takes the other's untagged packets until it has one with a tag
            let mut tagged = [0; 2];
            loop {
                let (datagram, socket, to, side) = tokio::select! {
                    got = inside.recv_from(&mut out) => {
                        let (count, from) = got.unwrap();
                        near = Some(from);
                        (&out[..count], &outside, far, 0)
                    }
                    got = outside.recv_from(&mut back) => {
                        let Some(near) = near else { continue };
                        (&back[..got.unwrap().0], &inside, near, 1)
                    }
                };
                socket.send_to(datagram, to).await.unwrap();
                let Ok(packet) = Packet::parse(datagram) else { continue };
                if packet.tag.is_some() {
                    tagged[side] += 1;
                    seen.tagged.fetch_add(1, Ordering::Relaxed);
                }
                if tagged[side] < SETTLED {
                    continue;
                }
                for forged in forgeries(&packet.header) {
                    socket.send_to(&forged, to).await.unwrap();
                    seen.forged.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { address, counts, task }
    }
}

/// What ends or spoils a connection without tags: each with exactly the right numbers.
fn forgeries(header: &Header) -> Vec<Vec<u8>> {
    let next = Header { seq: header.seq.wrapping_add(1), ..*header };
    [Header { kind: Kind::Reset, ..*header }, Header { kind: Kind::Fin, ..next }, Header { kind: Kind::Data, ..next }]
        .into_iter()
        .flat_map(|header| [None, Some([7; 8])].map(|tag| (header, tag)))
        .map(|(header, tag)| {
            let mut datagram = Vec::new();
            header.tagged(tag).write(&mut datagram);
            datagram.extend_from_slice(if header.kind == Kind::Data { b"lies" } else { b"" });
            datagram
        })
        .collect()
}

/// Packets with tags after which the receiver surely takes no others.
const SETTLED: usize = 20;

#[test]
fn who_cannot_see_the_tags_neither_ends_nor_spoils_a_stream() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let near = node(family).start().await;
        let forger = Forger::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![forger.address.to_string()]).unwrap();
        let (mut reading, mut writing) = tunnel(&near, &far).await.into_split();
        let data = noise(7, 2 << 20);
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            writing.write_all(&sent).await.unwrap();
            writing.shutdown().await.unwrap();
        });
        let mut got = vec![0; data.len()];
        reading.read_exact(&mut got).await.unwrap();
        assert_eq!(reading.read(&mut [0; 1]).await.unwrap(), 0);
        writer.await.unwrap();
        assert!(got == data);
        let forged = forger.counts.forged.load(Ordering::Relaxed);
        assert!(forged > 1_000, "{forged}");
        near.close(keynet::proxy::Close::Drain).await;
        far.close(keynet::proxy::Close::Drain).await;
        forger.task.abort();
        let _ = forger.task.await;
    });
}

/// A node that knows no tags, at either end: the other leaves them out.
#[test]
fn a_node_that_knows_no_tags_gets_none() {
    both(|family| async move {
        for old in [0, 1] {
            let service = echo(family).await;
            let mut builders = [node(family), node(family).service(SERVICE, service.address)];
            builders[old].config.net.utp.tags = false;
            let [near, far] = builders;
            let (near, far) = (near.start().await, far.start().await);
            let forger = Forger::start(family, far.proxy_address()).await;
            near.add_peer(far.node_id(), vec![forger.address.to_string()]).unwrap();
            let mut client = tunnel(&near, &far).await;
            let data = noise(7, 100_000);
            client.write_all(&data).await.unwrap();
            client.shutdown().await.unwrap();
            assert!(read_to_end(&mut client).await.unwrap() == data);
            assert_eq!(forger.counts.tagged.load(Ordering::Relaxed), 0);
            near.close(keynet::proxy::Close::Drain).await;
            far.close(keynet::proxy::Close::Drain).await;
            forger.task.abort();
            let _ = forger.task.await;
        }
    });
}
