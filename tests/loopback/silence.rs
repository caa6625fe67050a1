//! A peer that falls silent, starts anew, or says goodbye, on real sockets.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use keynet::error::Reason;
use keynet::proxy::{self, Backend, Close, Event};
use tokio::io::AsyncWriteExt;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::support::*;

/// Carries datagrams between whoever sends to `inside` and `far`, unless it is cut.
struct Cable {
    inside: SocketAddr,
    cut: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Cable {
    async fn start(family: Family, far: SocketAddr) -> Self {
        let (inside, outside) =
            (UdpSocket::bind(family.any()).await.unwrap(), UdpSocket::bind(family.any()).await.unwrap());
        let (address, cut) = (inside.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let is_cut = cut.clone();
        let task = tokio::spawn(async move {
            let mut near = None;
            let (mut out, mut back) = (vec![0; 1 << 16], vec![0; 1 << 16]);
            loop {
                tokio::select! {
                    got = inside.recv_from(&mut out) => {
                        let Ok((count, from)) = got else { continue };
                        near = Some(from);
                        if !is_cut.load(Ordering::Relaxed) {
                            let _ = outside.send_to(&out[..count], far).await;
                        }
                    }
                    got = outside.recv_from(&mut back) => {
                        let Ok((count, _)) = got else { continue };
                        if let Some(near) = near.filter(|_| !is_cut.load(Ordering::Relaxed)) {
                            let _ = inside.send_to(&back[..count], near).await;
                        }
                    }
                }
            }
        });
        Self { inside: address, cut, task }
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Quick to notice, and as patient as `patience` says.
fn impatient(mut builder: Builder, patience: Duration) -> Builder {
    let net = &mut builder.config.net;
    (net.path.lost_after, net.path.ping_active) = (Duration::from_secs(1), Duration::from_millis(500));
    net.utp.patience = patience;
    builder
}

fn lost(event: &Event) -> Option<Reason> {
    match event {
        Event::PeerLost { reason, .. } => Some(*reason),
        _ => None,
    }
}

#[test]
fn a_tunnel_outlives_an_outage_that_is_reported() {
    both(|family| async move {
        let service = echo(family).await;
        let far = impatient(node(family).service(SERVICE, service.address), Duration::from_secs(60)).start().await;
        let near = impatient(node(family), Duration::from_secs(60)).start().await;
        let cable = Cable::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![cable.inside.to_string()]).unwrap();
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"before").await.unwrap();
        assert_eq!(read_exactly(&mut client, 6).await, b"before");

        cable.cut.store(true, Ordering::Relaxed);
        client.write_all(b"meanwhile").await.unwrap();
        assert_eq!(event(&mut events, lost).await, Reason::PeerLost);
        // one more dial is under way when the path comes back
        let request = connect_request(&near, &target(&far.node_id(), SERVICE));
        let dial = tokio::time::timeout(Duration::from_millis(200), ask(&near, request.as_bytes()));
        assert!(dial.await.is_err());
        cable.cut.store(false, Ordering::Relaxed);
        let back = |event: &Event| matches!(event, Event::PeerConnected { .. }).then_some(());
        event(&mut events, back).await;
        assert_eq!(read_exactly(&mut client, 9).await, b"meanwhile");
        near.close(Close::Abort).await;
        far.close(Close::Abort).await;
    });
}

#[test]
fn a_tunnel_without_patience_ends_with_the_report() {
    both(|family| async move {
        let service = echo(family).await;
        let far = impatient(node(family).service(SERVICE, service.address), Duration::from_secs(60)).start().await;
        let near = impatient(node(family), Duration::ZERO).start().await;
        let cable = Cable::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![cable.inside.to_string()]).unwrap();
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"before").await.unwrap();
        assert_eq!(read_exactly(&mut client, 6).await, b"before");
        cable.cut.store(true, Ordering::Relaxed);
        expect_reset(&mut client).await;
        assert_eq!(end(&mut events).await, Reason::PeerLost);
        // the other side was told that nobody waits for it
        until("it ends there too", || far.connections().is_empty()).await;
        near.close(Close::Abort).await;
        far.close(Close::Abort).await;
    });
}

#[test]
fn a_service_and_a_connection_may_have_a_patience_of_their_own() {
    both(|family| async move {
        let echo = echo(family).await;
        let (little, much) = (Duration::from_secs(2), Duration::from_secs(60));
        let mut builder = impatient(node(family).service(SERVICE, echo.address), little);
        let backend = Backend::Tcp(echo.address.to_string());
        builder.config.services.insert(PATIENT, proxy::Service { backend, patience: Some(much) });
        let far = builder.start().await;
        let near = impatient(node(family), little).start().await;
        let cable = Cable::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![cable.inside.to_string()]).unwrap();
        let mut usual = tunnel(&near, &far).await;
        let patient = connect_request(&near, &target(&far.node_id(), PATIENT));
        let asking = connect_request(&near, &target(&far.node_id(), SERVICE));
        let asking = asking.replacen("\r\n", "\r\nKeynet-Patience: 60\r\n", 1);
        let mut others = Vec::new();
        for request in [patient, asking] {
            let answer = ask(&near, request.as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
            others.push(answer.stream);
        }
        for client in others.iter_mut().chain([&mut usual]) {
            client.write_all(b"before").await.unwrap();
            assert_eq!(read_exactly(client, 6).await, b"before");
        }

        cable.cut.store(true, Ordering::Relaxed);
        expect_reset(&mut usual).await;
        until("it ends there too", || far.connections().len() == 2).await;
        cable.cut.store(false, Ordering::Relaxed);
        for client in &mut others {
            client.write_all(b"and after").await.unwrap();
            assert_eq!(read_exactly(client, 9).await, b"and after");
        }
        near.close(Close::Abort).await;
        far.close(Close::Abort).await;
    });
}

/// A service that is more patient than its node.
const PATIENT: u16 = SERVICE + 1;

/// The same key, from another port, while the first one is still believed to be there.
#[test]
fn a_caller_that_starts_anew_ends_what_it_had_open() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let first = node(family);
        let again = node(family).identity(first.identity.clone());
        let near = first.start().await;
        let cable = Cable::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![cable.inside.to_string()]).unwrap();
        let mut events = far.subscribe();
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");

        // nothing of its end is heard
        cable.cut.store(true, Ordering::Relaxed);
        near.close(Close::Abort).await;
        let near = again.start().await;
        know(&near, &far);
        let mut client = tunnel(&near, &far).await;
        assert_eq!(end(&mut events).await, Reason::PeerRestarted);
        client.write_all(b"again").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"again");
        assert_eq!(far.connections().len(), 1, "the new one stays");
        near.close(Close::Abort).await;
        far.close(Close::Abort).await;
    });
}

#[test]
fn a_service_that_starts_anew_ends_what_was_open_to_it() {
    both(|family| async move {
        let service = echo(family).await;
        let first = node(family).service(SERVICE, service.address);
        let again = node(family).service(SERVICE, service.address).identity(first.identity.clone());
        let far = first.start().await;
        let near = node(family).start().await;
        let cable = Cable::start(family, far.proxy_address()).await;
        near.add_peer(far.node_id(), vec![cable.inside.to_string()]).unwrap();
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");

        cable.cut.store(true, Ordering::Relaxed);
        far.close(Close::Abort).await;
        let far = again.start().await;
        know(&near, &far);
        let _new = tunnel(&near, &far).await;
        expect_reset(&mut client).await;
        assert_eq!(end(&mut events).await, Reason::PeerRestarted);
        near.close(Close::Abort).await;
        far.close(Close::Abort).await;
    });
}

#[test]
fn a_goodbye_is_heard_by_a_peer_without_streams() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        drop(tunnel(&near, &far).await);
        far.close(Close::Drain).await;
        assert_eq!(event(&mut events, lost).await, Reason::PeerGone);
        near.close(Close::Abort).await;
    });
}
