//! How a proxy closes, under load too.

use std::time::Duration;

use keynet::error::Reason;
use keynet::proxy::{Close, Event};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::*;

#[test]
fn a_drain_lets_connections_end_and_takes_no_new_ones() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut client = tunnel(&near, &far).await;
        let mut there = far.subscribe();
        let closing = tokio::spawn({
            let far = far.clone();
            async move { far.close(Close::Drain).await }
        });
        until("it takes no new streams", || near.last_error(&far.node_id()).is_some() || !closing.is_finished()).await;
        // Until the drain has begun, streams are still taken.
        loop {
            let answer = ask(&near, connect_request(&near, &target(&far.node_id(), SERVICE)).as_bytes()).await;
            if answer.status != 200 {
                check_refusal(&answer, Reason::PeerClosed);
                break;
            }
        }
        assert!(!closing.is_finished());
        client.write_all(b"still here").await.unwrap();
        assert_eq!(read_exactly(&mut client, 10).await, b"still here");
        client.shutdown().await.unwrap();
        assert!(read_to_end(&mut client).await.unwrap().is_empty());
        timeout(LIMIT, closing).await.unwrap().unwrap();
        let ended = event(&mut there, |event| matches!(event, Event::Closed).then_some(()));
        ended.await;
        assert!(there.next().await.is_none());
        assert!(TcpStream::connect(far.forward_address()).await.is_err());
    });
}

#[test]
fn a_drain_that_takes_too_long_aborts() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let near_far = node(family).limits(|limits| limits.drain_timeout = Duration::from_millis(300)).start().await;
        know(&near_far, &far);
        let mut client = tunnel(&near_far, &far).await;
        timeout(LIMIT, near_far.close(Close::Drain)).await.unwrap();
        expect_reset(&mut client).await;
        drop(near);
        until("the other end hears of it", || far.connections().is_empty()).await;
    });
}

#[test]
fn a_drain_under_load_loses_nothing() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..10 {
            let mut stream = tunnel(&near, &far).await;
            clients.spawn(async move {
                let data = noise(n, 2_000_000);
                let (mut from, mut to) = stream.split();
                let writing = async {
                    to.write_all(&data).await.unwrap();
                    to.shutdown().await.unwrap();
                };
                let mut got = Vec::new();
                let reading = async { from.read_to_end(&mut got).await.unwrap() };
                tokio::join!(writing, reading);
                assert!(got == data);
            });
        }
        until("bytes flow", || near.stats().bytes_in > 100_000).await;
        timeout(LIMIT, async { tokio::join!(near.close(Close::Drain), far.close(Close::Drain)) }).await.unwrap();
        while let Some(result) = timeout(LIMIT, clients.join_next()).await.unwrap() {
            result.unwrap();
        }
    });
}

#[test]
fn an_abort_under_load_ends_everything_at_once() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..20 {
            let mut stream = tunnel(&near, &far).await;
            clients.spawn(async move {
                let data = noise(n, 100_000);
                let (mut from, mut to) = stream.split();
                let writing = async {
                    loop {
                        if let Err(error) = to.write_all(&data).await {
                            return error;
                        }
                    }
                };
                let reading = async { tokio::io::copy(&mut from, &mut tokio::io::sink()).await };
                // The reset is told once, to whoever asks first; the other sees the end of the stream.
                let (written, read) = tokio::join!(writing, reading);
                let told = [Some(written.kind()), read.err().map(|error| error.kind())];
                assert!(told.contains(&Some(std::io::ErrorKind::ConnectionReset)), "{told:?}");
            });
        }
        until("bytes flow", || near.stats().bytes_in > 5_000_000).await;
        let closes = [near.close(Close::Abort), near.close(Close::Drain), near.close(Close::Abort)];
        timeout(LIMIT, futures_join(closes)).await.unwrap();
        while let Some(result) = timeout(LIMIT, clients.join_next()).await.unwrap() {
            result.unwrap();
        }
        let mut ended = 0;
        while let Some(next) = events.next().await {
            if let Event::ConnectionClosed(info) = next {
                assert_eq!(info.reason, Some(Reason::ProxyClosed));
                ended += 1;
            }
        }
        assert_eq!(ended, 20);
        until("the other end hears of it", || far.connections().is_empty()).await;
        near.close(Close::Abort).await;
    });
}

async fn futures_join<F: std::future::Future<Output = ()>>(futures: [F; 3]) {
    let [a, b, c] = futures;
    tokio::join!(a, b, c);
}

#[test]
fn what_waits_for_a_closing_proxy_is_told() {
    both(|family| async move {
        let near = node(family).start().await;
        let nowhere = identity().node_id();
        let hole = tokio::net::UdpSocket::bind(family.any()).await.unwrap();
        near.add_peer(nowhere, vec![hole.local_addr().unwrap().to_string()]).unwrap();
        let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
        stream.write_all(connect_request(&near, &target(&nowhere, 1)).as_bytes()).await.unwrap();
        let waiting = tokio::spawn({
            let near = near.clone();
            async move { near.connect(nowhere, 1).await.map(drop) }
        });
        until("it is being dialled", || near.stats().tasks == 1).await;
        let (answer, ()) = tokio::join!(read_answer(stream), near.close(Close::Drain));
        check_refusal(&answer, Reason::ProxyClosed);
        assert_eq!(waiting.await.unwrap().unwrap_err().reason, Reason::ProxyClosed);
        assert_eq!(near.connect(nowhere, 1).await.unwrap_err().reason, Reason::ProxyClosed);
        assert_eq!(near.ping(nowhere, LIMIT).await.unwrap_err().reason, Reason::ProxyClosed);
    });
}

#[test]
fn a_proxy_that_nobody_holds_any_more_closes() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut client = tunnel(&near, &far).await;
        let mut events = near.subscribe();
        let address = near.forward_address();
        drop(near);
        expect_reset(&mut client).await;
        event(&mut events, |event| matches!(event, Event::Closed).then_some(())).await;
        assert!(TcpStream::connect(address).await.is_err());
    });
}

#[test]
fn a_closed_proxy_gives_its_ports_back_though_somebody_holds_it() {
    both(|family| async move {
        for how in [Close::Drain, Close::Abort] {
            let service = echo(family).await;
            let (near, far) = pair(family, service.address).await;
            let (client, stream) = (tunnel(&near, &far).await, near.connect(far.node_id(), SERVICE).await.unwrap());
            let (udp, tcp) = (near.proxy_address(), near.forward_address());
            drop(client);
            timeout(LIMIT, near.close(Close::Abort)).await.unwrap();
            timeout(LIMIT, far.close(how)).await.unwrap();
            std::net::UdpSocket::bind(udp).expect("the UDP port is free");
            std::net::UdpSocket::bind(far.proxy_address()).expect("the other UDP port is free");
            std::net::TcpListener::bind(tcp).expect("the TCP port is free");
            drop((near, far, stream));
        }
    });
}
