//! Who may talk to whom: every identity rule, broken once by the dialler and once by the acceptor where both can break it.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keynet::addr::NodeId;
use keynet::config::{TlsConfig, UtpConfig};
use keynet::error::Reason;
use keynet::net::{Net, NetConfig};
use keynet::proxy::{Allow, Event};
use keynet::tls::{forge, Identity, TlsContext};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

/// A service that counts who connects to it.
async fn counted(family: Family) -> (Service, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let service = service(family, move |mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move { stream.read_u8().await.map(drop) }
    })
    .await;
    (service, count)
}

#[test]
fn another_node_at_the_address_is_a_mismatch() {
    both(|family| async move {
        let (service, count) = counted(family).await;
        let (near, far) = pair(family, service.address).await;
        let wanted = identity().node_id();
        near.add_peer(wanted, vec![far.proxy_address().to_string()]).unwrap();
        let answer = refused(&near, &wanted, Reason::IdentityMismatch).await;
        assert_eq!(answer.status, 502);
        // Also when the path to that address is proven for the node that is there.
        drop(tunnel(&near, &far).await);
        refused(&near, &wanted, Reason::IdentityMismatch).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn the_right_node_wins_over_wrong_ones_and_dead_addresses() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let wrong = node(family).start().await;
        let dead = tokio::net::UdpSocket::bind(family.any()).await.unwrap();
        let addresses = [dead.local_addr().unwrap(), wrong.proxy_address(), far.proxy_address()];
        near.add_peer(far.node_id(), addresses.iter().map(ToString::to_string).collect()).unwrap();
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(read_exactly(&mut client, 1).await, b"x");
        assert!(near.last_error(&far.node_id()).is_none());
    });
}

/// The acceptor shows `shown`; whoever wants `wanted` must not take it.
async fn acceptor_is_refused(family: Family, shown: Identity, wanted: NodeId, reason: Reason) {
    let (service, count) = counted(family).await;
    let far = node(family).identity(shown).service(SERVICE, service.address).start().await;
    let near = node(family).start().await;
    near.add_peer(wanted, vec![far.proxy_address().to_string()]).unwrap();
    refused(&near, &wanted, reason).await;
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert!(near.connections().is_empty() && far.connections().is_empty());
}

/// The dialler shows `shown`; the acceptor must turn it away before it dials its service, and say so.
async fn dialler_is_refused(family: Family, shown: Identity, reason: Reason) {
    let (service, count) = counted(family).await;
    let far = node(family).service(SERVICE, service.address).start().await;
    let near = node(family).identity(shown).start().await;
    know(&near, &far);
    let mut events = far.subscribe();
    refused(&near, &far.node_id(), Reason::RejectedByPeer).await;
    assert_eq!(refusal(&mut events).await, reason);
    let error = near.ping(far.node_id(), LIMIT).await.unwrap_err();
    assert_eq!(error.reason, Reason::RejectedByPeer, "a ping hears of it too");
    assert_eq!(count.load(Ordering::SeqCst), 0);
    until("nothing is left", || far.stats().tasks == 0).await;
}

#[test]
fn an_expired_leaf_is_refused_on_both_sides() {
    both(|family| async move {
        let expired = || forge::expired(SystemTime::now()).unwrap();
        let shown = expired();
        let wanted = shown.node_id();
        acceptor_is_refused(family, shown, wanted, Reason::CertificateExpired).await;
        dialler_is_refused(family, expired(), Reason::CertificateExpired).await;
    });
}

#[test]
fn a_broken_chain_is_refused_on_both_sides() {
    both(|family| async move {
        let victim = identity();
        let forged = || forge::broken_chain(&victim, SystemTime::now()).unwrap();
        acceptor_is_refused(family, forged(), victim.node_id(), Reason::ChainBroken).await;
        dialler_is_refused(family, forged(), Reason::ChainBroken).await;
    });
}

#[test]
fn an_over_long_chain_is_refused_on_both_sides() {
    both(|family| async move {
        let forged = || forge::over_long(SystemTime::now()).unwrap();
        let shown = forged();
        let wanted = shown.node_id();
        acceptor_is_refused(family, shown, wanted, Reason::ChainTooLong).await;
        dialler_is_refused(family, forged(), Reason::ChainTooLong).await;
    });
}

#[test]
fn a_lying_name_is_refused_on_both_sides() {
    both(|family| async move {
        let victim = identity().node_id();
        let forged = || forge::lying_name(&victim, SystemTime::now()).unwrap();
        acceptor_is_refused(family, forged(), victim, Reason::NameMismatch).await;
        dialler_is_refused(family, forged(), Reason::NameMismatch).await;
    });
}

#[test]
fn a_dialler_without_a_certificate_is_refused() {
    both(|family| async move {
        let (service, count) = counted(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let mut events = far.subscribe();
        let context = TlsContext::new(&identity(), &TlsConfig::default()).unwrap();
        let context = forge::without_client_certificate(&context);
        let (net, _incoming) = Net::bind(family.any(), NetConfig::default()).unwrap();
        let stream = net.connect(far.proxy_address(), UtpConfig::default()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(context.client_config());
        let mut tls = connector.connect(TlsContext::server_name(&far.node_id()), stream).await.unwrap();
        // TLS 1.3: the client is done before the server has judged it. Asking does not help.
        let _ = tls.write_all(&[0, 3, 1, 0xc3, 0x83]).await;
        let _ = tls.flush().await;
        let mut all = Vec::new();
        assert!(tokio::time::timeout(LIMIT, tls.read_to_end(&mut all)).await.unwrap().is_err() && all.is_empty());
        assert_eq!(refusal(&mut events).await, Reason::CertificateMissing);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        net.close().await;
    });
}

#[test]
fn a_node_that_is_not_on_the_access_list_is_denied() {
    both(|family| async move {
        let (service, count) = counted(family).await;
        let friend = identity();
        let allow = Allow::Nodes(HashSet::from([friend.node_id()]));
        let far = node(family).service(SERVICE, service.address).allow(allow).start().await;
        let mut events = far.subscribe();
        let near = node(family).start().await;
        know(&near, &far);
        let answer = refused(&near, &far.node_id(), Reason::AccessDenied).await;
        assert_eq!(answer.status, 403);
        assert_eq!(refusal(&mut events).await, Reason::AccessDenied);
        // A stranger does not even learn which services there are.
        let answer = ask(&near, connect_request(&near, &target(&far.node_id(), 9)).as_bytes()).await;
        check_refusal(&answer, Reason::AccessDenied);
        assert_eq!(count.load(Ordering::SeqCst), 0);
        let near = node(family).identity(friend).start().await;
        know(&near, &far);
        drop(tunnel(&near, &far).await);
        far.set_allow(Allow::Nodes(HashSet::new()));
        refused(&near, &far.node_id(), Reason::AccessDenied).await;
    });
}

#[test]
fn the_program_can_be_asked_and_silence_is_a_no() {
    both(|family| async move {
        let service = echo(family).await;
        let friend = identity();
        let wanted = friend.node_id();
        let allow = Allow::Ask(Arc::new(move |request| {
            Box::pin(async move {
                assert_eq!(request.service_port, SERVICE);
                if request.node != wanted {
                    std::future::pending::<()>().await;
                }
                request.all == [wanted]
            })
        }));
        let far = node(family).service(SERVICE, service.address).allow(allow);
        let far = far.limits(|limits| limits.open_timeout = Duration::from_millis(500)).start().await;
        let near = node(family).identity(friend).start().await;
        know(&near, &far);
        drop(tunnel(&near, &far).await);
        let stranger = node(family).start().await;
        know(&stranger, &far);
        refused(&stranger, &far.node_id(), Reason::AccessDenied).await;
    });
}

#[test]
fn services_that_are_absent_or_refuse_are_told_apart() {
    both(|family| async move {
        let far = node(family).service(SERVICE, nobody(family).await).start().await;
        let near = node(family).start().await;
        know(&near, &far);
        assert_eq!(refused(&near, &far.node_id(), Reason::ServiceRefused).await.status, 502);
        let answer = ask(&near, connect_request(&near, &target(&far.node_id(), 9)).as_bytes()).await;
        check_refusal(&answer, Reason::ServiceNotFound);
        far.set_service(SERVICE, None);
        assert_eq!(refused(&near, &far.node_id(), Reason::ServiceNotFound).await.status, 404);
        let service = echo(family).await;
        far.set_service(SERVICE, Some(keynet::proxy::Backend::Tcp(service.address.to_string()).into()));
        drop(tunnel(&near, &far).await);
        until("nothing is left", || far.stats().tasks == 0 && near.stats().tasks == 0).await;
    });
}

#[test]
fn a_rotated_node_keeps_its_name_and_its_connections() {
    both(|family| async move {
        let service = echo(family).await;
        let old = identity();
        let far = node(family).identity(old.clone()).service(SERVICE, service.address).start().await;
        let near = node(family).start().await;
        know(&near, &far);
        let mut client = tunnel(&near, &far).await;
        let new = old.rotate(SystemTime::now()).unwrap();
        far.rotate(new.clone()).unwrap();
        assert_eq!(far.node_id(), new.node_id());

        client.write_all(b"old").await.unwrap();
        assert_eq!(read_exactly(&mut client, 3).await, b"old");
        for name in [old.node_id(), new.node_id(), old.node_id()] {
            near.add_peer(name, vec![far.proxy_address().to_string()]).unwrap();
            let answer = ask(&near, connect_request(&near, &target(&name, SERVICE)).as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
        }
        let report = near.ping(old.node_id(), LIMIT).await.unwrap();
        assert_eq!(report.leaf, new.node_id());

        // Somebody else altogether is no rotation.
        far.set_allow(Allow::Nodes(HashSet::from([near.node_id()])));
        near.rotate(identity()).unwrap();
        refused(&near, &far.node_id(), Reason::AccessDenied).await;
    });
}

/// Both nodes rotate, again and again, while bytes flow; old names keep working, and access lists know them.
#[test]
fn rotation_goes_unnoticed_by_live_traffic() {
    both(|family| async move {
        let service = echo(family).await;
        let (first_near, first_far) = (identity(), identity());
        let allow = Allow::Nodes(HashSet::from([first_near.node_id()]));
        let far = node(family).identity(first_far.clone()).service(SERVICE, service.address).allow(allow).start().await;
        let near = node(family).identity(first_near.clone()).start().await;
        know(&near, &far);
        let client = tunnel(&near, &far).await;
        let stop = Arc::new(AtomicUsize::new(0));
        let traffic = tokio::spawn(flow(client, stop.clone()));
        let (mut near_identity, mut far_identity) = (first_near, first_far.clone());
        for _ in 0..5 {
            let before = near.stats().bytes_in;
            until("bytes flow", || near.stats().bytes_in > before + 1_000_000).await;
            (near_identity, far_identity) =
                (near_identity.rotate(SystemTime::now()).unwrap(), far_identity.rotate(SystemTime::now()).unwrap());
            near.rotate(near_identity.clone()).unwrap();
            far.rotate(far_identity.clone()).unwrap();
            // A handshake with the new keys, which agree on new keys for the path under the flowing bytes as well.
            let report = near.ping(first_far.node_id(), LIMIT).await.unwrap();
            assert_eq!((report.leaf, far.node_id()), (far_identity.node_id(), far_identity.node_id()));
            let answer = ask(&near, connect_request(&near, &target(&first_far.node_id(), SERVICE)).as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
        }
        stop.store(1, Ordering::SeqCst);
        assert!(traffic.await.unwrap() > 5_000_000);
    });
}

/// Sends until it is told to stop and checks what comes back; the number of bytes.
async fn flow(mut client: tokio::net::TcpStream, stop: Arc<AtomicUsize>) -> usize {
    let (mut from, mut to) = client.split();
    let sent = AtomicUsize::new(0);
    let writing = async {
        for seed in 1.. {
            if stop.load(Ordering::SeqCst) > 0 {
                break;
            }
            to.write_all(&noise(seed, 100_000)).await.unwrap();
            sent.fetch_add(100_000, Ordering::SeqCst);
        }
        to.shutdown().await.unwrap();
    };
    let reading = async {
        let mut piece = vec![0; 100_000];
        for seed in 1.. {
            if let Err(error) = from.read_exact(&mut piece).await {
                assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "an end in order");
                return (seed as usize - 1) * piece.len();
            }
            assert!(piece == noise(seed, 100_000), "piece {seed}");
        }
        0
    };
    let ((), got) = tokio::join!(writing, reading);
    assert_eq!(got, sent.load(Ordering::SeqCst));
    got
}

#[test]
fn access_lists_know_rotated_nodes_by_their_old_names() {
    both(|family| async move {
        let service = echo(family).await;
        let old = identity();
        let allow = Allow::Nodes(HashSet::from([old.node_id()]));
        let far = node(family).service(SERVICE, service.address).allow(allow).start().await;
        let near = node(family).identity(old.rotate(SystemTime::now()).unwrap()).start().await;
        know(&near, &far);
        let mut events = far.subscribe();
        drop(tunnel(&near, &far).await);
        let info = event(&mut events, |event| match event {
            Event::ConnectionOpened(info) => Some(info.clone()),
            _ => None,
        })
        .await;
        assert_eq!(info.node, near.node_id());
        assert_eq!(info.nodes, [near.node_id(), old.node_id()]);
        assert!(!far.connections_of(&old.node_id()).is_empty() || far.connections().is_empty());
    });
}

#[test]
fn a_ping_reports_how_the_node_answered() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut events = far.subscribe();
        let first = near.ping(far.node_id(), LIMIT).await.unwrap();
        assert_eq!((first.leaf, first.address), (far.node_id(), far.proxy_address()));
        assert!(first.tls_version.contains("1_3") && first.tls_group.contains("MLKEM"), "{first:?}");
        assert!(!first.resumed);
        assert!(near.ping(far.node_id(), LIMIT).await.unwrap().resumed, "the second handshake is cheap");
        let unknown = near.ping(identity().node_id(), LIMIT).await.unwrap_err();
        assert_eq!(unknown.reason, Reason::UnknownNode);
        drop(tunnel(&near, &far).await);
        // A ping is no refusal: the first thing that happens at the other end is the tunnel.
        let opened = event(&mut events, |event| match event {
            Event::ConnectionRefused { error, .. } => Some(Err(error.clone())),
            Event::ConnectionOpened(info) => Some(Ok(info.node)),
            _ => None,
        });
        assert_eq!(opened.await, Ok(near.node_id()));
    });
}
