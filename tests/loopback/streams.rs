//! What a tunnel carries, and how it ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use keynet::error::Reason;
use keynet::proxy::{Backend, LocalListener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::support::*;

#[test]
fn bytes_come_back_as_they_were_sent() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut client = tunnel(&near, &far).await;
        for length in [1, 100, 16_384, 1_000_000] {
            let sent = noise(length as u64, length);
            let (mut from, mut to) = client.split();
            let reading = async {
                let mut bytes = vec![0; length];
                from.read_exact(&mut bytes).await.unwrap();
                bytes
            };
            let (got, _) = tokio::join!(reading, to.write_all(&sent));
            assert!(got == sent, "{length} bytes");
        }
        client.shutdown().await.unwrap();
        assert!(read_to_end(&mut client).await.unwrap().is_empty());
        until("both ends have finished", || near.connections().is_empty() && far.connections().is_empty()).await;
        assert_eq!(near.stats().bytes_out, far.stats().bytes_in);
        assert_eq!(near.stats().bytes_in, near.stats().bytes_out);
    });
}

#[test]
fn bytes_that_come_with_the_head_or_before_the_answer_go_first() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut request = connect_request(&near, &target(&far.node_id(), SERVICE)).into_bytes();
        request.extend_from_slice(b"with the head,");
        let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
        stream.write_all(&request).await.unwrap();
        stream.write_all(b" behind it").await.unwrap();
        let mut answer = read_answer(stream).await;
        assert_eq!(answer.status, 200);
        let missing = b"with the head, behind it".len() - answer.rest.len();
        answer.rest.extend(read_exactly(&mut answer.stream, missing).await);
        assert_eq!(answer.rest, b"with the head, behind it");
    });
}

#[test]
fn a_server_may_speak_first() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            stream.write_all(b"220 hello\r\n").await?;
            stream.read_u8().await.map(drop)
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        for _ in 0..20 {
            let request = connect_request(&near, &target(&far.node_id(), SERVICE));
            let mut answer = ask(&near, request.as_bytes()).await;
            assert_eq!(answer.status, 200);
            let missing = 11 - answer.rest.len();
            answer.rest.extend(read_exactly(&mut answer.stream, missing).await);
            assert_eq!(answer.rest, b"220 hello\r\n");
        }
    });
}

#[test]
fn a_client_may_end_first_and_still_read() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await?;
            stream.write_all(&noise(all.len() as u64, 3_000_000)).await
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far).await;
        client.write_all(&noise(1, 2_000_000)).await.unwrap();
        client.shutdown().await.unwrap();
        assert!(read_to_end(&mut client).await.unwrap() == noise(2_000_000, 3_000_000));
        assert_eq!(end(&mut events).await, Reason::Finished);
    });
}

#[test]
fn a_server_may_end_first_and_still_read() {
    both(|family| async move {
        let got = Arc::new(AtomicU64::new(0));
        let counter = got.clone();
        let service = service(family, move |mut stream| {
            let counter = counter.clone();
            async move {
                stream.write_all(b"bye").await?;
                stream.shutdown().await?;
                let mut all = Vec::new();
                counter.store(stream.read_to_end(&mut all).await? as u64, Ordering::SeqCst);
                Ok(())
            }
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let mut events = far.subscribe();
        let request = connect_request(&near, &target(&far.node_id(), SERVICE));
        let mut answer = ask(&near, request.as_bytes()).await;
        assert_eq!(answer.status, 200);
        answer.rest.extend(read_to_end(&mut answer.stream).await.unwrap());
        assert_eq!(answer.rest, b"bye");
        let mut client = answer.stream;
        client.write_all(&noise(1, 2_000_000)).await.unwrap();
        drop(client);
        until("everything arrives behind the server's end", || got.load(Ordering::SeqCst) == 2_000_000).await;
        assert_eq!(end(&mut events).await, Reason::Finished);
    });
}

#[test]
fn a_reset_by_the_client_reaches_the_service() {
    both(|family| async move {
        let (sender, mut seen) = tokio::sync::mpsc::channel(16);
        let service = service(family, move |mut stream| {
            let sender = sender.clone();
            async move {
                let mut all = Vec::new();
                let _ = sender.try_send(stream.read_to_end(&mut all).await);
                Ok(())
            }
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let (mut here, mut there) = (near.subscribe(), far.subscribe());
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"half a mess").await.unwrap();
        until("the first bytes arrive", || far.stats().bytes_in == 11).await;
        client.set_zero_linger().unwrap();
        drop(client);
        let result = tokio::time::timeout(LIMIT, seen.recv()).await.unwrap().unwrap();
        assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(end(&mut here).await, Reason::ClientReset);
        assert_eq!(end(&mut there).await, Reason::PeerReset);
    });
}

#[test]
fn a_reset_by_the_service_reaches_the_client() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            stream.read_u8().await?;
            stream.set_zero_linger()
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let (mut here, mut there) = (near.subscribe(), far.subscribe());
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"x").await.unwrap();
        expect_reset(&mut client).await;
        assert_eq!(end(&mut here).await, Reason::PeerReset);
        assert_eq!(end(&mut there).await, Reason::ServiceReset);
    });
}

#[test]
fn a_reset_is_noticed_behind_a_slow_reader() {
    both(|family| async move {
        // Reads nothing: everything in between fills up.
        let service = service(family, |stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
            Ok(())
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        let mut client = tunnel(&near, &far).await;
        let data = noise(1, 1 << 20);
        // Until nothing more goes in for a while: the back-pressure is real, and bounded.
        let mut written = 0;
        while let Ok(result) = tokio::time::timeout(std::time::Duration::from_millis(500), client.write(&data)).await {
            written += result.unwrap();
            assert!(written < 1 << 30, "nobody holds the writer back");
        }
        client.set_zero_linger().unwrap();
        drop(client);
        assert_eq!(end(&mut events).await, Reason::ClientReset);
        until("the other end hears of it", || far.connections().is_empty()).await;
    });
}

#[test]
fn the_target_may_name_the_address() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let near = node(family).start().await;
        for service in ["", "&service=50051"] {
            let target = format!("{}/?nodeId={}{service}", far.proxy_address(), far.node_id());
            let answer = ask(&near, connect_request(&near, &target).as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.head);
        }
    });
}

#[test]
fn static_forwards_need_no_connect() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let tcp = near.forward(far.node_id(), SERVICE, LocalListener::Tcp(family.any()), &[]).await.unwrap();
        let mut client = TcpStream::connect(tcp.address()).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"hello");

        let path = std::env::temp_dir().join(format!("keynet-forward-{}-{family:?}.sock", std::process::id()));
        let unix = near.forward(far.node_id(), 0, LocalListener::Unix(path.clone()), &[]).await.unwrap();
        assert_eq!(unix.address(), format!("unix:{}", path.display()));
        let mut other = UnixStream::connect(&path).await.unwrap();
        other.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        other.read_exact(&mut bytes).await.unwrap();

        tcp.close().await;
        assert!(TcpStream::connect(tcp.address()).await.is_err());
        client.write_all(b"again").await.unwrap();
        assert_eq!(read_exactly(&mut client, 5).await, b"again", "live connections go on");
        near.close(keynet::proxy::Close::Abort).await;
        assert!(!path.exists(), "the socket's file goes with the proxy");
    });
}

#[test]
fn a_static_forward_carries_nothing_of_a_page_of_another_site() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let local = || LocalListener::Tcp(family.any());
        let guarded = near.forward(far.node_id(), SERVICE, local(), &["own.example".to_owned()]).await.unwrap();
        let open = near.forward(far.node_id(), SERVICE, local(), &["*".to_owned()]).await.unwrap();
        let page = "GET / HTTP/1.1\r\nHost: attacker.example\r\nUser-Agent: Mozilla/5.0\r\n\r\n";
        let own = "GET / HTTP/1.1\r\nHost: own.example\r\nUser-Agent: Mozilla/5.0\r\n\r\n";
        let program = "GET / HTTP/1.1\r\nHost: service.example\r\nUser-Agent: curl/8\r\n\r\n";
        // before there is a tunnel, and through one that stands
        for late in [false, true] {
            for (forward, request, carried) in
                [(&guarded, page, false), (&guarded, own, true), (&guarded, program, true), (&open, page, true)]
            {
                let mut client = TcpStream::connect(forward.address()).await.unwrap();
                if late {
                    until("the tunnel stands", || near.stats().connections == 1).await;
                }
                // in two pieces: what it is, is clear with the second
                let (first, second) = request.as_bytes().split_at(20);
                client.write_all(first).await.unwrap();
                client.write_all(second).await.unwrap();
                if carried {
                    assert_eq!(read_exactly(&mut client, request.len()).await, request.as_bytes(), "{late}");
                } else {
                    let answer = read_to_end(&mut client).await.unwrap_or_default();
                    let answer = String::from_utf8_lossy(&answer);
                    assert!(
                        answer.starts_with("HTTP/1.1 403 ") && answer.contains("attacker.example"),
                        "{late}: {answer}"
                    );
                }
                drop(client);
                until("it has ended", || near.stats().connections == 0 && near.stats().clients == 0).await;
            }
        }
    });
}

/// A program that says one letter and waits for its answer speaks no HTTP, whatever the letter.
#[test]
fn a_static_forward_carries_a_single_letter_that_could_begin_an_http_method() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let forward = near.forward(far.node_id(), SERVICE, LocalListener::Tcp(family.any()), &[]).await.unwrap();
        let mut client = TcpStream::connect(forward.address()).await.unwrap();
        for letters in ["P", "GET ", "G"] {
            client.write_all(letters.as_bytes()).await.unwrap();
            assert_eq!(read_exactly(&mut client, letters.len()).await, letters.as_bytes());
        }
    });
}

#[test]
fn a_static_forward_to_nowhere_resets() {
    both(|family| async move {
        let near = node(family).start().await;
        let stranger = identity().node_id();
        let forward = near.forward(stranger, 1, LocalListener::Tcp(family.any()), &[]).await.unwrap();
        // So early that it may hit the connecting itself.
        if let Ok(mut client) = TcpStream::connect(forward.address()).await {
            expect_reset(&mut client).await;
        }
        assert_eq!(near.last_error(&stranger).unwrap().reason, Reason::UnknownNode);
    });
}

#[test]
fn services_may_listen_on_a_unix_socket() {
    both(|family| async move {
        let path = std::env::temp_dir().join(format!("keynet-service-{}-{family:?}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let far = node(family).backend(SERVICE, Backend::Unix(path.clone())).start().await;
        let near = node(family).start().await;
        know(&near, &far);
        let client = tunnel(&near, &far).await;
        // The library's own listener: tokio's shows every peer as unnamed.
        let (_stream, from) = tokio::task::spawn_blocking(move || listener.accept()).await.unwrap().unwrap();
        let name = std::os::linux::net::SocketAddrExt::as_abstract_name(&from).map(<[u8]>::to_vec);
        let name = String::from_utf8(name.unwrap_or_else(|| panic!("{from:?} is no name"))).unwrap();
        let info = far.connection_by_reverse(&format!("unix-abstract:{name}")).unwrap();
        assert_eq!(info.node, near.node_id());
        drop(client);
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn a_rust_program_gets_a_stream() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut stream = near.connect(far.node_id(), SERVICE).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"hello");
        drop(stream);
        until("it has finished", || near.connections().is_empty() && far.connections().is_empty()).await;
        let error = near.connect(far.node_id(), 1).await.unwrap_err();
        assert_eq!(error.reason, Reason::ServiceNotFound);
    });
}

/// What `printf request | nc -N` does: the client's end comes long before the tunnel stands.
#[test]
fn a_client_of_a_static_forward_may_end_its_side_before_the_tunnel_stands() {
    both(|family| async move {
        let service = echo(family).await;
        let (near, far) = pair(family, service.address).await;
        let forward = near.forward(far.node_id(), SERVICE, LocalListener::Tcp(family.any()), &[]).await.unwrap();
        let mut client = TcpStream::connect(forward.address()).await.unwrap();
        client.write_all(b"all there is").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut client).await.unwrap(), b"all there is");
    });
}
