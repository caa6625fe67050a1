//! Which way leads to a relay: certificates, proxies, and what blocks UDP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use keynet::addr::NodeId;
use keynet::error::Reason;
use keynet::relay::client::{allocate, reach, HttpProxy, RelaySpec};
use keynet::relay::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::coturn::{spec, v4, Coturn, PASSWORD, USER};
use crate::support::{allocated, options, run, Node, Peer};

#[test]
fn a_certificate_is_judged_by_its_key_or_by_its_authority() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let by = |query: String| spec(&format!("turns:{USER}:{PASSWORD}@localhost:{}{query}", coturn.tls_port));
        allocated(by(format!("?key={}", coturn.key))).await;
        allocated(by(format!("?ca={}", coturn.certificate().display()))).await;
        let stranger = NodeId::from_public_key([9; 32]);
        for (query, reason, words) in [
            (format!("?key={stranger}"), Reason::IdentityMismatch, "another key"),
            (String::new(), Reason::RelayUnreachable, "ca=FILE"),
            ("?ca=/no/such/file".to_owned(), Reason::InvalidArgument, "/no/such/file"),
        ] {
            let error = allocate(by(query), &options()).await.expect_err("trust");
            assert!(error.reason == reason && error.to_string().contains(words), "{error}");
        }
    });
}

#[test]
fn where_udp_is_swallowed_another_way_is_found() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let black_hole = Peer::bind(v4()).await;
        let ways = vec![spec(&format!("turn:a:b@{}", black_hole.address())), coturn.spec("tcp"), coturn.spec("tls")];
        let allocation = reach(ways, &options()).await.unwrap();
        assert_eq!(allocation.transport, Transport::Tcp);
    });
}

#[test]
fn a_way_that_has_failed_is_tried_again_while_another_is_silent() {
    run(async {
        let black_hole = Peer::bind(v4()).await;
        let starting = TcpListener::bind((v4(), 0)).await.unwrap();
        let tcp = spec(&format!("turn:a:b@{}?transport=tcp", starting.local_addr().unwrap()));
        let ways = vec![spec(&format!("turn:a:b@{}", black_hole.address())), tcp];
        let options = options();
        let reaching = reach(ways, &options);
        tokio::pin!(reaching);
        for attempt in 0..3 {
            tokio::select! {
                // each is closed at once, as by a program that is not ready
                accepted = starting.accept() => drop(accepted.unwrap()),
                ended = &mut reaching => panic!("attempt {attempt}: {:?}", ended.err()),
            }
        }
    });
}

#[test]
fn a_relay_that_names_another_in_its_place_is_followed() {
    run(async {
        let Some(there) = Coturn::start(v4(), &[]) else { return };
        for transport in ["udp", "tcp"] {
            let named = format!("alternate-server={}:{}", there.ip, there.port);
            let Some(here) = Coturn::start(v4(), &[&named]) else { return };
            let allocation = allocated(here.spec(transport)).await;
            assert_eq!(allocation.server, (there.ip, there.port).into());
            assert_eq!(allocation.transport.name(), transport);
            let mut node = Node::new(allocation);
            let peer = Peer::bind(v4()).await;
            node.send(peer.address(), vec![1; 4], 4).await;
            let (relayed, _) = peer.receive().await;
            peer.send(relayed, &[2; 4]).await;
            node.receive().await;
        }
    });
}

#[test]
fn relays_that_send_us_in_a_circle_are_given_up() {
    run(async {
        // one that answers every question with itself
        let relay = Peer::bind(v4()).await;
        let address = relay.address();
        let answers = async {
            loop {
                let (from, request) = relay.receive().await;
                let mut answer = vec![0x01, 0x13, 0, 20];
                answer.extend_from_slice(&request[4..20]);
                answer.extend_from_slice(&[0, 9, 0, 4, 0, 0, 3, 0]);
                answer.extend_from_slice(&[0x80, 0x23, 0, 8, 0, 1]);
                answer.extend_from_slice(&address.port().to_be_bytes());
                answer.extend_from_slice(&[127, 0, 0, 1]);
                relay.send(from, &answer).await;
            }
        };
        let options = options();
        tokio::select! {
            error = allocate(spec(&format!("turn:a:b@{address}")), &options) => {
                let error = error.expect_err("an allocation");
                assert!(error.reason == Reason::RelayRefused && error.detail.contains("asked already"), "{error}");
            }
            () = answers => unreachable!(),
        }
    });
}

#[test]
fn every_failure_of_a_race_is_told() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let mut refused = coturn.spec("tcp");
        refused.password = "wrong".to_owned().into();
        let closed = std::net::TcpListener::bind((v4(), 0)).unwrap().local_addr().unwrap();
        let ways = vec![spec(&format!("turn:a:b@{closed}?transport=tcp")), refused];
        let error = reach(ways, &options()).await.expect_err("an allocation");
        assert_eq!(error.reason, Reason::RelayRefused);
        assert!(error.detail.contains(&closed.to_string()) && error.detail.contains("401"), "{error}");
    });
}

#[test]
fn through_an_http_proxy() {
    run(async {
        let Some(coturn) = Coturn::start(v4(), &[]) else { return };
        let proxy = Proxy::start().await;
        for transport in ["tcp", "tls"] {
            let mut node = Node::at(proxy.before(coturn.spec(transport), "user:secret@")).await;
            let peer = Peer::bind(v4()).await;
            node.send(peer.address(), vec![1; 4], 4).await;
            let (relayed, _) = peer.receive().await;
            peer.send(relayed, &[2; 4]).await;
            node.receive().await;
        }
        let heads = proxy.heads.lock().unwrap().clone();
        assert!(heads[0].starts_with(&format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\n", coturn.port)), "{heads:?}");
        for (userinfo, words) in [("", "it wants a user and a password"), ("user:wrong@", "does not take this user")] {
            let error = allocate(proxy.before(coturn.spec("tcp"), userinfo), &options()).await.expect_err("407");
            assert!(error.reason == Reason::RelayRefused && error.to_string().contains(words), "{error}");
        }
        let error = allocate(proxy.before(coturn.spec("udp"), ""), &options()).await.expect_err("UDP");
        assert_eq!(error.reason, Reason::InvalidArgument);
        let closed = std::net::TcpListener::bind((v4(), 0)).unwrap().local_addr().unwrap();
        let unreachable = spec(&format!("turn:a:b@{closed}?transport=tcp"));
        let error = allocate(proxy.before(unreachable, "user:secret@"), &options()).await.expect_err("502");
        assert!(error.reason == Reason::RelayUnreachable && error.to_string().contains("502 Bad Gateway"), "{error}");
    });
}

/// A forward proxy that knows one user.
struct Proxy {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start() -> Self {
        let listener = TcpListener::bind((v4(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client, seen.clone()));
            }
        });
        Self { address, heads }
    }

    fn before(&self, mut spec: RelaySpec, userinfo: &str) -> RelaySpec {
        spec.proxy = Some(HttpProxy::parse(&format!("http://{userinfo}{}", self.address)).unwrap());
        spec
    }
}

async fn serve(mut client: TcpStream, seen: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    seen.lock().unwrap().push(head.clone());
    // user:secret
    if !head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n") {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        let _ = client.write_all(answer).await;
        return;
    }
    let target = head.split(' ').nth(1).unwrap();
    let Ok(mut server) = TcpStream::connect(target).await else {
        let _ = client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        return;
    };
    let _ = client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}
