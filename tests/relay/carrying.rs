//! Datagrams through a relay.

use std::net::IpAddr;
use std::time::Duration;

use keynet::relay::client::{allocate, Allocation, CarryState, RelaySpec};
use keynet::relay::Transport;

use crate::coturn::{v4, v6, Coturn};
use crate::machine::has_ipv6;
use crate::support::{allocated, options, run, within, Node, Peer};

#[test]
fn datagrams_go_and_come_by_udp() {
    each_family(|ip| run(there_and_back(ip, "udp", Transport::Udp)));
}

#[test]
fn datagrams_go_and_come_by_tcp() {
    each_family(|ip| run(there_and_back(ip, "tcp", Transport::Tcp)));
}

#[test]
fn datagrams_go_and_come_by_tls() {
    each_family(|ip| run(there_and_back(ip, "tls", Transport::Tls)));
}

fn each_family(test: impl Fn(IpAddr)) {
    test(v4());
    if has_ipv6("tests/relay") {
        test(v6());
    }
}

async fn there_and_back(ip: IpAddr, transport: &str, wanted: Transport) {
    // coturn gives IPv4 where no family is named, and has none here
    let family = if ip.is_ipv4() { "ipv4" } else { "keep" };
    let Some(coturn) = Coturn::start(ip, &[&format!("allocation-default-address-family={family}")]) else { return };
    let allocation = allocated(coturn.spec(transport)).await;
    assert_eq!((allocation.transport, allocation.server.ip()), (wanted, ip));
    assert_eq!(allocation.mapped.map(|mapped| mapped.ip()), Some(ip));
    let mut node = Node::new(allocation);
    let peer = Peer::bind(ip).await;
    node.send(peer.address(), b"first".to_vec(), 5).await;
    let (from, datagram) = peer.receive().await;
    assert!(datagram == b"first" && node.relayed.contains(&from));
    peer.send(from, b"answer").await;
    assert_eq!(node.receive().await, (peer.address(), vec![b"answer".to_vec()]));

    // a batch of odd sizes
    let batch: Vec<u8> = (0..20 * 1001 + 7).map(|at| (at % 251) as u8).collect();
    node.send(peer.address(), batch.clone(), 1001).await;
    let mut arrived = Vec::new();
    for _ in 0..21 {
        let (_, datagram) = peer.receive().await;
        peer.send(from, &datagram).await;
        arrived.extend(datagram);
    }
    assert_eq!(arrived, batch);
    let mut back = Vec::new();
    while back.len() < batch.len() {
        let (_, datagrams) = node.receive().await;
        back.extend(datagrams.concat());
    }
    assert_eq!(back, batch);

    let stats = node.carrier.stats();
    assert_eq!((stats.datagrams_out, stats.datagrams_in, stats.dropped), (22, 22, 0));
    assert_eq!((stats.bytes_out, stats.bytes_in), (batch.len() as u64 + 5, batch.len() as u64 + 6));
    assert_eq!((stats.peers, stats.channels), (1, 1));
    let mut state = node.carrier.state();
    node.carrier.close().await;
    assert_eq!(*state.borrow_and_update(), CarryState::Closed);
}

#[test]
fn a_relay_with_both_families_gives_both() {
    run(async {
        if !has_ipv6("tests/relay") {
            return;
        }
        let Some(coturn) = Coturn::start(v4(), &["relay-ip=::1"]) else { return };
        let mut node = Node::at(coturn.spec("udp")).await;
        assert_eq!(node.relayed.iter().filter(|relayed| relayed.is_ipv6()).count(), 1, "{:?}", node.relayed);
        assert_eq!(node.relayed.len(), 2);
        for ip in [v4(), v6()] {
            let peer = Peer::bind(ip).await;
            node.send(peer.address(), vec![1; 9], 9).await;
            let (from, _) = peer.receive().await;
            assert_eq!(from.is_ipv4(), ip.is_ipv4());
            peer.send(from, &[2; 8]).await;
            assert_eq!(node.receive().await, (peer.address(), vec![vec![2; 8]]));
        }
    });
}

#[test]
fn two_nodes_meet_at_their_relays() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let (mut one, mut two) = (Node::at(coturn.spec("udp")).await, Node::at(coturn.spec("tcp")).await);
        // as pings do: both send, again and again, until the permissions are there
        loop {
            one.send(two.relayed[0], b"ping".to_vec(), 4).await;
            two.send(one.relayed[0], b"pong".to_vec(), 4).await;
            tokio::task::yield_now().await;
            if let Ok((_, got)) = two.incoming.try_recv() {
                assert_eq!((got.peer, &got.contents[..4]), (one.relayed[0], &b"ping"[..]));
                break;
            }
        }
        assert_eq!(one.receive().await.0, two.relayed[0]);
    });
}

#[test]
fn a_peer_that_comes_from_another_port_is_heard() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let mut node = Node::at(coturn.spec("udp")).await;
        let (peer, other) = (Peer::bind(v4()).await, Peer::bind(v4()).await);
        node.send(peer.address(), vec![1], 1).await;
        let (relayed, _) = peer.receive().await;
        // the permission is for the IP address: this arrives as an indication, without a channel
        other.send(relayed, b"moved").await;
        assert_eq!(node.receive().await, (other.address(), vec![b"moved".to_vec()]));
        node.send(other.address(), b"seen".to_vec(), 4).await;
        assert_eq!(other.receive().await.1, b"seen");
    });
}

#[test]
fn what_is_dropped_is_given_back() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &["user-quota=1"]) else { return };
        for transport in ["udp", "tcp", "udp"] {
            drop(when_free(coturn.spec(transport)).await);
            drop(Node::new(when_free(coturn.spec(transport)).await));
        }
        when_free(coturn.spec("tls")).await.release().await;
        allocated(coturn.spec("udp")).await;
    });
}

/// When the user's only allocation is free again: what is given back in the background takes its time.
async fn when_free(spec: RelaySpec) -> Allocation {
    let tried = async {
        loop {
            match allocate(spec.clone(), &options()).await {
                Ok(allocation) => return allocation,
                Err(error) => assert!(error.to_string().contains("486"), "{error}"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    within("the quota is free again", tried).await
}

const PAUSE: Duration = Duration::from_millis(50);
