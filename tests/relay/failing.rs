//! Relays that refuse, forget, and die.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use data_encoding::BASE64;
use keynet::error::{Error, Reason, Stage};
use keynet::relay::client::{allocate, CarryState, RelaySpec};

use crate::coturn::{spec, v4, Coturn};
use crate::support::{allocated, options, run, Node, Peer};

async fn refusal(spec: RelaySpec) -> Error {
    allocate(spec, &options()).await.expect_err("an allocation")
}

#[test]
fn a_wrong_password_is_refused_with_the_relays_words() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        for transport in ["udp", "tcp", "tls"] {
            let mut spec = coturn.spec(transport);
            spec.password = "looking-glass".to_owned().into();
            let error = refusal(spec).await;
            assert_eq!((error.reason, error.stage), (Reason::RelayRefused, Stage::Relay));
            assert!(error.to_string().contains("401 Unauthorized"), "{error}");
            assert!(!format!("{error:?}").contains("looking-glass"));
        }
    });
}

#[test]
fn credentials_with_a_time_limit() {
    run(async {
        let secret = "static-auth-secret=rabbit-hole";
        let Some(coturn) = Coturn::start_with(v4(), &["use-auth-secret", secret]) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let limited = |until: u64| {
            let mut spec = coturn.spec("udp");
            spec.username = format!("{until}:a-node");
            let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"rabbit-hole");
            spec.password = BASE64.encode(hmac::sign(&key, spec.username.as_bytes()).as_ref()).into();
            spec
        };
        allocated(limited(now + 600)).await.release().await;
        let error = refusal(limited(now - 600)).await;
        assert!(error.reason == Reason::RelayRefused && error.to_string().contains("its time has passed"), "{error}");
    });
}

#[test]
fn a_nonce_that_has_become_stale_is_replaced() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &["stale-nonce=1"]) else { return };
        let mut node = Node::at(coturn.spec("udp")).await;
        let allocation = allocated(coturn.spec("tcp")).await;
        // coturn counts in seconds
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let peer = Peer::bind(v4()).await;
        node.send(peer.address(), vec![1; 4], 4).await;
        let (relayed, _) = peer.receive().await;
        peer.send(relayed, &[2; 4]).await;
        node.receive().await;
        node.carrier.close().await;
        allocation.release().await;
        let log = coturn.log();
        assert!(log.contains("Wrong nonce") || log.contains("438"), "the nonce was not stale:\n{log}");
    });
}

#[test]
fn a_relay_that_was_killed_is_noticed() {
    for transport in ["udp", "tcp", "tls"] {
        run(async {
            let Some(mut coturn) = Coturn::start(v4(), &[]) else { return };
            let node = Node::at(coturn.spec(transport)).await;
            let peer = Peer::bind(v4()).await;
            node.send(peer.address(), vec![1; 4], 4).await;
            peer.receive().await;
            coturn.kill();
            // who waits for answers goes on sending
            let sending = async {
                while node.outgoing.send(datagram(&peer)).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            let ended = tokio::select! { ended = node.ended() => ended, () = sending => node.ended().await };
            match ended {
                CarryState::Lost(error) => assert_eq!((error.reason, error.stage), (Reason::RelayLost, Stage::Relay)),
                other => panic!("{transport}: {other:?}"),
            }
        });
    }
}

fn datagram(peer: &Peer) -> keynet::net::Datagrams {
    keynet::net::Datagrams { peer: peer.address(), contents: vec![1; 4], stride: 4 }
}

#[test]
fn a_relay_that_has_forgotten_us_is_lost() {
    run(async {
        let Some(mut coturn) = Coturn::start(v4(), &[]) else { return };
        let node = Node::at(coturn.spec("udp")).await;
        coturn.restart();
        let peer = Peer::bind(v4()).await;
        node.send(peer.address(), vec![1; 4], 4).await;
        match node.ended().await {
            CarryState::Lost(error) => assert_eq!(error.reason, Reason::RelayLost, "{error}"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_peer_that_the_relay_forbids_costs_only_its_own_datagrams() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &["denied-peer-ip=127.0.0.66"]) else { return };
        let mut node = Node::at(coturn.spec("udp")).await;
        node.send("127.0.0.66:9".parse().unwrap(), vec![1; 40], 10).await;
        let peer = Peer::bind(v4()).await;
        node.send(peer.address(), vec![2; 4], 4).await;
        let (relayed, _) = peer.receive().await;
        peer.send(relayed, &[3; 4]).await;
        node.receive().await;
        crate::support::within("the datagrams are counted", async {
            while node.carrier.stats().dropped == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(node.carrier.stats().channels, 1);
    });
}

#[test]
fn a_quota_is_named() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &["user-quota=1"]) else { return };
        let _first = allocated(coturn.spec("udp")).await;
        let error = refusal(coturn.spec("tcp")).await;
        assert_eq!(error.reason, Reason::RelayRefused);
        assert!(error.to_string().contains("486") && error.to_string().contains("as many allocations"), "{error}");
    });
}

#[test]
fn nobody_there() {
    run(async {
        // a socket that never answers, and a port where nothing listens
        let silent = Peer::bind(v4()).await;
        let closed = std::net::TcpListener::bind((v4(), 0)).unwrap().local_addr().unwrap();
        for uri in [format!("turn:a:b@{}", silent.address()), format!("turn:a:b@{closed}?transport=tcp")] {
            let error = refusal(spec(&uri)).await;
            assert_eq!(error.reason, Reason::RelayUnreachable, "{error}");
        }
        let error = refusal(spec("turn:a:b@no-such-name.invalid")).await;
        assert_eq!(error.reason, Reason::RelayUnreachable, "{error}");
    });
}
