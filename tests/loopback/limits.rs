//! Everything has a cap, and a sentence about what happens there.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keynet::config::UtpConfig;
use keynet::error::Reason;
use keynet::net::{Net, NetConfig};
use keynet::proxy::{Allow, Backend, Proxy};

use crate::support::*;

#[test]
fn clients_beyond_the_limit_are_told_so() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let near = node(family).limits(|limits| limits.max_clients = 2).start().await;
        know(&near, &far);
        let held = [tunnel(&near, &far).await, tunnel(&near, &far).await];
        let answer = ask(&near, connect_request(&near, &target(&far.node_id(), SERVICE)).as_bytes()).await;
        check_refusal(&answer, Reason::TooManyConnections);
        assert_eq!(answer.status, 503);
        drop((held, answer));
        until("there is room again", || near.stats().clients == 0).await;
        drop(tunnel(&near, &far).await);
    });
}

#[test]
fn a_peer_with_too_many_streams_is_told_so() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address);
        let far = far.limits(|limits| limits.max_streams_per_node = 2).start().await;
        let (near, other) = (node(family).start().await, node(family).start().await);
        know(&near, &far);
        know(&other, &far);
        let held = [tunnel(&near, &far).await, tunnel(&near, &far).await];
        assert_eq!(refused(&near, &far.node_id(), Reason::PeerBusy).await.status, 503);
        drop(tunnel(&other, &far).await);
        drop(held);
        until("there is room again", || far.connections().is_empty()).await;
        drop(tunnel(&near, &far).await);
    });
}

#[test]
fn a_stranger_that_says_nothing_is_dropped_and_holds_few_places() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address);
        let far = far.limits(|limits| {
            limits.open_timeout = Duration::from_millis(500);
            limits.max_handshakes_per_source = 4;
        });
        let far = far.start().await;
        let mut events = far.subscribe();
        let (net, _incoming) = Net::bind(family.any(), NetConfig::default()).unwrap();
        let mut streams = Vec::new();
        for n in 0..5 {
            match net.connect(far.proxy_address(), UtpConfig::default()).await {
                Ok(stream) => streams.push(stream),
                // The reset may overtake the news that it is connected.
                Err(error) => assert_eq!((error.reason, n), (Reason::ConnectRefused, 4)),
            }
        }
        assert_eq!(refusal(&mut events).await, Reason::PeerBusy);
        for _ in 0..4 {
            assert_eq!(refusal(&mut events).await, Reason::TlsTimeout);
        }
        until("nothing is left", || far.stats().tasks == 0).await;
        assert!(far.connections().is_empty());
        net.close().await;
    });
}

/// A name that is made for the occasion gives a node no more streams than it has.
#[test]
fn fresh_keys_of_one_node_count_for_the_name_that_lets_it_in() {
    both(|family| async move {
        let service = echo(family).await;
        let root = identity();
        let listed = Allow::Nodes(HashSet::from([root.node_id()]));
        let asked = Allow::Ask(Arc::new(|_| Box::pin(async { true })));
        for allow in [listed, asked] {
            let far = node(family).service(SERVICE, service.address).allow(allow);
            let far = far.limits(|limits| limits.max_streams_per_node = 2).start().await;
            let mut held = Vec::new();
            for n in 0..3 {
                let near = node(family).identity(root.rotate(SystemTime::now()).unwrap()).start().await;
                know(&near, &far);
                match n {
                    2 => drop(refused(&near, &far.node_id(), Reason::PeerBusy).await),
                    _ => held.push((tunnel(&near, &far).await, near)),
                }
            }
        }
    });
}

/// Who is being judged holds his place meanwhile: otherwise strangers without number could wait for a slow access list.
#[test]
fn the_place_of_a_handshake_is_held_until_the_access_list_has_answered() {
    both(|family| async move {
        let service = echo(family).await;
        let (answer, answered) = tokio::sync::watch::channel(false);
        let allow = Allow::Ask(Arc::new(move |_| {
            let mut answered = answered.clone();
            Box::pin(async move { answered.wait_for(|answered| *answered).await.is_ok() })
        }));
        let far = node(family).service(SERVICE, service.address).allow(allow);
        let far = far.limits(|limits| limits.max_handshakes_per_source = 1).start().await;
        let (first, second) = (node(family).start().await, node(family).start().await);
        let mut events = far.subscribe();
        know(&first, &far);
        know(&second, &far);
        let request = connect_request(&first, &target(&far.node_id(), SERVICE));
        let waiting = async { check_tunnel(ask(&first, request.as_bytes()).await) };
        let other = async {
            until("the first is judged", || far.stats().tasks == 1).await;
            // whether it is asked already does not matter: it holds the only place in any case
            let answer_of_second =
                ask(&second, connect_request(&second, &target(&far.node_id(), SERVICE)).as_bytes()).await;
            assert_ne!(answer_of_second.status, 200);
            assert_eq!(refusal(&mut events).await, Reason::PeerBusy);
            answer.send_replace(true);
        };
        tokio::join!(waiting, other);
        drop(tunnel(&second, &far).await);
    });
}

fn check_tunnel(answer: Answer) {
    assert_eq!(answer.status, 200, "{}", answer.head);
}

#[test]
fn a_service_that_does_not_accept_is_a_timeout() {
    both(|family| async move {
        // A full backlog: the kernel drops further SYNs.
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(family.any()),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )
        .unwrap();
        socket.bind(&family.any().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _full = std::net::TcpStream::connect(address).unwrap();

        let far = node(family).service(SERVICE, address);
        let far = far.limits(|limits| limits.service_timeout = Duration::from_millis(400)).start().await;
        let near = node(family).start().await;
        know(&near, &far);
        assert_eq!(refused(&near, &far.node_id(), Reason::ServiceTimeout).await.status, 504);
        until("nothing is left", || far.stats().tasks == 0 && far.connections().is_empty()).await;
    });
}

#[test]
fn arguments_that_cannot_work_are_refused_at_the_start() {
    both(|family| async move {
        let mut builder = node(family);
        builder.config.services.insert(1, Backend::Tcp("127.0.0.1:1".to_owned()).into());
        let error = Proxy::start(builder.identity, builder.config).await.unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument);
        assert!(error.detail.contains("allow"), "{error}");

        let running = node(family).allow(Allow::Anyone).start().await;
        let mut builder = node(family);
        builder.config.forward = running.forward_address();
        let error = Proxy::start(builder.identity, builder.config).await.unwrap_err();
        assert_eq!(error.reason, Reason::BindFailed);
        assert!(error.to_string().contains(&running.forward_address().to_string()), "{error}");

        let error = running.add_peer(identity().node_id(), vec!["no port".to_owned()]).unwrap_err();
        assert_eq!(error.reason, Reason::InvalidArgument);
    });
}
