//! Who is behind an address?

use std::time::Duration;

use keynet::proxy::{Event, Priority, Proxy, Role};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::*;

#[test]
fn a_service_knows_who_calls_before_it_has_read_a_byte() {
    both(|family| async move {
        let (sender, mut seen) = tokio::sync::mpsc::channel(16);
        let service = service(family, move |mut stream| {
            let _ = sender.try_send(stream.peer_addr().unwrap().to_string());
            async move { stream.read_u8().await.map(drop) }
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        for _ in 0..10 {
            let asking = tunnel(&near, &far);
            let looking = async {
                let peer = tokio::time::timeout(LIMIT, seen.recv()).await.unwrap().unwrap();
                far.connection_by_reverse(&peer).expect("the service's peer is known at once")
            };
            let (client, info) = tokio::join!(asking, looking);
            assert_eq!((info.role, info.node, info.service_port), (Role::Reverse, near.node_id(), SERVICE));
            assert_eq!(info.server_address, Some(service.address.to_string()));
            let reverse = info.reverse_address.clone().unwrap();

            let local = client.local_addr().unwrap().to_string();
            let forward = near.connection_by_client(&local).unwrap();
            assert_eq!((forward.role, forward.node), (Role::Forward, far.node_id()));
            assert_eq!(forward.client_address, Some(local.clone()));
            assert_eq!(forward.remote_address, far.proxy_address());
            assert_eq!(near.connections_of(&far.node_id()).len(), 1);

            drop(client);
            until("it has ended", || near.connections().is_empty() && far.connections().is_empty()).await;
            let after = far.connection_by_reverse(&reverse).expect("known for a while after the end");
            assert_eq!((after.node, after.closed.is_some()), (near.node_id(), true));
            assert!(near.connection_by_client(&local).is_some());
        }
        for unknown in ["127.0.0.1:1", "[::1]:1", "", "nonsense", "unix:"] {
            assert!(far.connection_by_reverse(unknown).is_none(), "{unknown}");
        }
    });
}

#[test]
fn tombstones_go_after_their_time() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address);
        let far = far.limits(|limits| limits.tombstone = Duration::from_millis(50)).start().await;
        let near = node(family).start().await;
        know(&near, &far);
        let client = tunnel(&near, &far).await;
        let reverse = far.connections().first().unwrap().reverse_address.clone().unwrap();
        drop(client);
        until("it is forgotten", || far.connection_by_reverse(&reverse).is_none()).await;
        assert_eq!(far.stats().tombstones, 0);
    });
}

#[test]
fn events_tell_a_connections_life() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let (mut here, mut there) = (near.subscribe(), far.subscribe());
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");
        client.shutdown().await.unwrap();
        assert!(read_to_end(&mut client).await.unwrap().is_empty());
        for (events, other) in [(&mut here, far.node_id()), (&mut there, near.node_id())] {
            assert!(matches!(events.next().await, Some(Event::PeerConnected { node, .. }) if node == other));
            let Some(Event::ConnectionOpened(opened)) = events.next().await else { panic!("opened") };
            let Some(Event::ConnectionClosed(closed)) = events.next().await else { panic!("closed") };
            assert_eq!((opened.id, opened.node, opened.reason), (closed.id, other, None));
            assert_eq!((closed.bytes_in, closed.bytes_out), (5, 5));
            assert!(closed.closed.unwrap() >= closed.opened && closed.rtt.is_some());
        }
    });
}

/// The priority of a CONNECT counts at both ends; a change of a live connection at the end that asks for it.
#[test]
fn the_priority_of_a_live_connection_changes() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut client = tunnel(&near, &far).await;
        let priorities = || [&near, &far].map(|node| node.connections().first().map(|info| info.priority));
        let (interactive, background) = (Some(Priority::Interactive), Some(Priority::Background));
        assert_eq!(priorities(), [interactive, interactive]);
        let id = |proxy: &Proxy| proxy.connections().first().unwrap().id;
        for (wanted, seen) in [(Priority::Background, background), (Priority::Interactive, interactive)] {
            assert!(far.set_priority(id(&far), wanted));
            assert_eq!(priorities(), [interactive, seen]);
            assert!(near.set_priority(id(&near), Priority::Background));
            client.write_all(b"still").await.unwrap();
            let mut echoed = [0; 5];
            client.read_exact(&mut echoed).await.unwrap();
            assert_eq!(&echoed, b"still");
            assert!(near.set_priority(id(&near), Priority::Interactive));
        }
        let last = id(&near);
        drop(client);
        until("it has ended", || near.connections().is_empty()).await;
        assert!(!near.set_priority(last, Priority::Background), "nothing is left to steer");
    });
}
