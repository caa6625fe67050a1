//! Everything has a cap, and a sentence about what happens there.

use std::time::Duration;

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
        builder.config.services.insert(1, Backend::Tcp("127.0.0.1:1".to_owned()));
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
