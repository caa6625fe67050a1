//! A NAT between the nodes forgets its mapping: the near node's packets come from another port from one moment to the next.

use std::net::SocketAddr;
use std::sync::Arc;

use keynet::proxy::Event;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::*;

/// Relays between whoever sends to `inside` and `far`, from an outside port that can be exchanged.
struct Nat {
    inside: SocketAddr,
    outside: watch::Sender<Arc<UdpSocket>>,
    family: Family,
    task: JoinHandle<()>,
}

impl Nat {
    async fn start(family: Family, far: SocketAddr) -> Self {
        let inside = UdpSocket::bind(family.any()).await.unwrap();
        let address = inside.local_addr().unwrap();
        let (outside, mut current) = watch::channel(Self::port(family).await);
        let task = tokio::spawn(async move {
            let mut near = None;
            let (mut out, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                let socket = current.borrow_and_update().clone();
                tokio::select! {
                    got = inside.recv_from(&mut out) => {
                        let (count, from) = got.unwrap();
                        near = Some(from);
                        socket.send_to(&out[..count], far).await.unwrap();
                    }
                    got = socket.recv_from(&mut back) => {
                        let (count, _) = got.unwrap();
                        if let Some(near) = near {
                            inside.send_to(&back[..count], near).await.unwrap();
                        }
                    }
                    changed = current.changed() => if changed.is_err() { return },
                }
            }
        });
        Self { inside: address, outside, family, task }
    }

    async fn port(family: Family) -> Arc<UdpSocket> {
        Arc::new(UdpSocket::bind(family.any()).await.unwrap())
    }

    /// The old mapping is gone, with what was on its way through it.
    async fn rebind(&self) -> SocketAddr {
        let port = Self::port(self.family).await;
        let address = port.local_addr().unwrap();
        self.outside.send_replace(port);
        address
    }

    async fn stop(self) {
        drop(self.outside);
        self.task.await.unwrap();
    }
}

#[test]
fn a_tunnel_survives_a_nat_that_forgets_its_mapping() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let near = node(family).start().await;
        let nat = Nat::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![nat.inside.to_string()]).unwrap();
        let mut events = far.subscribe();
        let client = tunnel(&near, &far).await;

        // an echo of bytes that never stop, in both directions at once
        let data = noise(7, 24 << 20);
        let (mut reading, mut writing) = client.into_split();
        let sent = data.clone();
        let writer = tokio::spawn(async move {
            writing.write_all(&sent).await.unwrap();
            writing.shutdown().await.unwrap();
        });
        let mut got = vec![0; data.len()];
        let (first, rest) = got.split_at_mut(4 << 20);
        reading.read_exact(first).await.unwrap();
        let moved = nat.rebind().await;
        reading.read_exact(rest).await.unwrap();
        assert_eq!(reading.read(&mut [0; 1]).await.unwrap(), 0);
        writer.await.unwrap();
        assert!(got == data);

        let to = event(&mut events, |event| match event {
            Event::PathChanged { node, to, .. } => Some((*node, *to)),
            _ => None,
        });
        assert_eq!(to.await, (near.node_id(), moved));
        near.close(keynet::proxy::Close::Drain).await;
        far.close(keynet::proxy::Close::Drain).await;
        nat.stop().await;
    });
}
