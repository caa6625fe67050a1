//! Requests that the forward proxy must not serve.

use std::time::Duration;

use keynet::error::Reason;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::*;

#[test]
fn every_bad_request_is_answered_with_its_reason() {
    both(|family| async move {
        let near = node(family).start().await;
        let id = identity().node_id();
        let auth = authorization(&near);
        let good = target(&id, 1);
        let cases: Vec<(Reason, Vec<u8>)> = vec![
            (Reason::CredentialsRequired, format!("CONNECT {good} HTTP/1.1\r\n\r\n").into()),
            (
                Reason::CredentialsRequired,
                format!("CONNECT {good} HTTP/1.1\r\nProxy-Authorization: Basic dXNlcjp3cm9uZw==\r\n\r\n").into(),
            ),
            (Reason::CredentialsRequired, "CONNECT \u{e9} HTTP/1.1\r\n\r\n".into()),
            (Reason::BadRequest, format!("POST / HTTP/1.1\r\nContent-Length: 5\r\n{auth}\r\nhello").into()),
            (Reason::BadTarget, format!("CONNECT  HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT example.com:443 HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT a b:1 HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT \u{fc}.keynet:1 HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT {id}.keynet HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT {id}.keynet:70000 HTTP/1.1\r\n{auth}\r\n").into()),
            (Reason::BadTarget, format!("CONNECT {} HTTP/1.1\r\n{auth}\r\n", "x".repeat(10_000)).into()),
            (Reason::HeadTooLarge, format!("CONNECT {} HTTP/1.1\r\n{auth}\r\n", "x".repeat(20_000)).into()),
            (Reason::HeadTooLarge, format!("CONNECT {good} HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(200)).into()),
            (Reason::HeadTooLarge, format!("CONNECT {good} HTTP/1.1\r\n{}", "A: b\r\n".repeat(100_000)).into()),
            (Reason::BadRequest, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()),
            (Reason::BadRequest, b"hello\r\n\r\n".to_vec()),
            (Reason::BadRequest, format!("CONNECT {good} HTTP/3\r\n{auth}\r\n").into()),
            (
                Reason::BadRequest,
                "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://attacker.example\r\n\r\n".into(),
            ),
            (Reason::BadRequest, format!("CONNECT {good} HTTP/1.1\r\nSEC-FETCH-SITE: cross-site\r\n{auth}\r\n").into()),
            (Reason::UnknownNode, connect_request(&near, &good).into()),
        ];
        for (reason, request) in cases {
            let mut answer = ask(&near, &request).await;
            check_refusal(&answer, reason);
            let rest = read_to_end(&mut answer.stream).await.expect("an orderly end behind the answer");
            let body = String::from_utf8([answer.rest, rest].concat()).unwrap();
            assert!(answer.head.contains(&format!("Content-Length: {}", body.len())), "{}", answer.head);
            assert!(body.contains(reason.advice()), "{body}");
        }
        until("nothing is left", || near.stats().tasks == 0).await;
        assert_eq!(near.stats().clients, 0);
    });
}

#[test]
fn a_head_that_comes_drop_by_drop_runs_out_of_time() {
    both(|family| async move {
        let near = node(family).limits(|limits| limits.head_timeout = Duration::from_millis(300)).start().await;
        let mut events = near.subscribe();
        let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
        let mut silent = TcpStream::connect(near.forward_address()).await.unwrap();
        let (mut reading, mut writing) = stream.split();
        let slowly = async {
            while writing.write_all(b"A").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let answered = async {
            let mut byte = [0];
            tokio::io::AsyncReadExt::read_exact(&mut reading, &mut byte).await.unwrap();
        };
        tokio::select! {
            () = slowly => panic!("cut off without an answer"),
            () = answered => {}
        }
        assert_eq!(refusal(&mut events).await, Reason::HeadTimeout);
        assert_eq!(refusal(&mut events).await, Reason::HeadTimeout);
        let text = String::from_utf8(read_to_end(&mut silent).await.unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 408 "), "{text}");
        drop(stream);
        until("nothing is left", || near.stats().tasks == 0).await;
    });
}

#[test]
fn a_client_that_leaves_while_its_node_is_dialled_cancels_the_dial() {
    both(|family| async move {
        let near = node(family).start().await;
        let nowhere = identity().node_id();
        // Takes datagrams and never answers.
        let hole = tokio::net::UdpSocket::bind(family.any()).await.unwrap();
        near.add_peer(nowhere, vec![hole.local_addr().unwrap().to_string()]).unwrap();
        let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
        stream.write_all(connect_request(&near, &target(&nowhere, 1)).as_bytes()).await.unwrap();
        until("it is being served", || near.stats().tasks == 1).await;
        let mut bytes = [0; 2048];
        tokio::time::timeout(LIMIT, hole.recv_from(&mut bytes)).await.expect("a dial").unwrap();
        drop(stream);
        until("nothing is left", || near.stats().tasks == 0).await;
        assert_eq!(near.stats().clients, 0);
        assert!(near.last_error(&nowhere).is_none());
        until("the dial has ended", || near.stats().net.connections == 0).await;
    });
}

#[test]
fn a_node_that_does_not_answer_is_a_timeout() {
    both(|family| async move {
        let near = node(family).limits(|limits| limits.dial_timeout = Duration::from_millis(700)).start().await;
        let nowhere = identity().node_id();
        let hole = tokio::net::UdpSocket::bind(family.any()).await.unwrap();
        near.add_peer(nowhere, vec![hole.local_addr().unwrap().to_string()]).unwrap();
        let answer = refused(&near, &nowhere, Reason::PunchTimeout).await;
        assert_eq!(answer.status, 504);
        assert!(near.last_error(&nowhere).unwrap().to_string().contains(&hole.local_addr().unwrap().to_string()));
    });
}

#[test]
fn names_that_do_not_resolve_are_said_to_be_so() {
    both(|family| async move {
        let near = node(family).start().await;
        let id = identity().node_id();
        near.add_peer(id, vec!["keynet.invalid:1".to_owned()]).unwrap();
        let answer = refused(&near, &id, Reason::Unreachable).await;
        assert!(answer.proxy_status.contains("keynet.invalid"), "{}", answer.proxy_status);
    });
}
