//! Whoever ends, or closes, right behind the last byte loses nothing of what was said.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::support::*;

/// What a TCP connection takes before its other end has read anything: what the system of one who has closed still holds when an
/// answer finds nobody, that system throws away.
const MOST: usize = 50_000;

#[test]
fn a_client_may_end_with_its_request_and_still_hears_the_answer() {
    both(|family| async move {
        let counting = service(family, |mut stream| async move {
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await?;
            stream.write_all(format!("got {} bytes", said.len()).as_bytes()).await?;
            stream.shutdown().await
        });
        let counting = counting.await;
        let (near, far) = pair(family, counting.address).await;
        for length in [5, 50_000, 200_000] {
            let mut request = connect_request(&near, &target(&far.node_id(), SERVICE)).into_bytes();
            request.extend(noise(1, length));
            let mut stream = TcpStream::connect(near.forward_address()).await.unwrap();
            let mut sending = TcpStream::from_std(socket2_clone(&stream)).unwrap();
            let send = async move {
                sending.write_all(&request).await.unwrap();
                sending.shutdown().await.unwrap();
            };
            let mut heard = Vec::new();
            let (_, read) = tokio::join!(send, stream.read_to_end(&mut heard));
            read.unwrap();
            let heard = String::from_utf8(heard).unwrap();
            assert!(heard.starts_with("HTTP/1.1 200 "), "{heard}");
            assert!(heard.ends_with(&format!("\r\n\r\ngot {length} bytes")), "{heard}");
        }
    });
}

/// The same socket once more, so that it can be written while it is read.
fn socket2_clone(stream: &TcpStream) -> std::net::TcpStream {
    socket2::SockRef::from(stream).try_clone().unwrap().into()
}

#[test]
fn what_a_client_says_before_it_closes_arrives_though_the_service_answers() {
    both(|family| async move {
        let (heard, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let (counted, closed) = (heard.clone(), gone.clone());
        let talking = service(family, move |mut stream| {
            let (counted, closed) = (counted.clone(), closed.clone());
            async move {
                closed.notified().await;
                let mut piece = vec![0; 10_000];
                loop {
                    let n = stream.read(&mut piece).await?;
                    if n == 0 {
                        return Ok(());
                    }
                    counted.fetch_add(n, Ordering::Relaxed);
                    // the client's machine answers this with a reset
                    let _ = stream.write_all(&piece[..n]).await;
                }
            }
        });
        let talking = talking.await;
        let (near, far) = pair(family, talking.address).await;
        let mut client = tunnel(&near, &far).await;
        let said = noise(2, MOST);
        client.write_all(&said).await.unwrap();
        drop(client);
        gone.notify_one();
        until("the service has heard everything", || heard.load(Ordering::Relaxed) == said.len()).await;
        until("both ends have finished", || near.connections().is_empty() && far.connections().is_empty()).await;
    });
}

#[test]
fn what_a_service_says_before_it_closes_arrives_though_the_client_goes_on() {
    both(|family| async move {
        let said = Arc::new(noise(3, MOST));
        let saying = said.clone();
        let brief = service(family, move |mut stream| {
            let saying = saying.clone();
            async move {
                stream.read_u8().await?;
                stream.write_all(&saying).await
            }
        });
        let brief = brief.await;
        let (near, far) = pair(family, brief.address).await;
        let mut client = tunnel(&near, &far).await;
        client.write_all(b"?").await.unwrap();
        let mut heard = vec![0; 1];
        client.read_exact(&mut heard).await.unwrap();
        let (mut reading, mut writing) = client.into_split();
        let going_on = tokio::spawn(async move { while writing.write_all(&[7; 1_000]).await.is_ok() {} });
        let mut piece = vec![0; 20_000];
        while heard.len() < said.len() {
            let n = reading.read(&mut piece).await.unwrap();
            assert!(n > 0, "the end after {} of {} bytes", heard.len(), said.len());
            heard.extend_from_slice(&piece[..n]);
        }
        assert!(heard == *said);
        drop(reading);
        going_on.await.unwrap();
    });
}

/// The service ends its answer in order and closes while the client still sends: its system answers that with a reset, which
/// must not take away what the client has not read yet.
#[test]
fn an_answer_that_ended_in_order_arrives_whole_though_its_client_still_sends() {
    both(|family| async move {
        let (said, close) = (Arc::new(noise(4, ANSWER)), Arc::new(Notify::new()));
        let (saying, closing) = (said.clone(), close.clone());
        let brief = service(family, move |mut stream| {
            let (saying, closing) = (saying.clone(), closing.clone());
            async move {
                stream.read_u8().await?;
                stream.write_all(&saying).await?;
                stream.shutdown().await?;
                closing.notified().await;
                Ok(())
            }
        });
        let brief = brief.await;
        let (near, far) = pair(family, brief.address).await;
        let socket = match family {
            Family::V4 => tokio::net::TcpSocket::new_v4(),
            Family::V6 => tokio::net::TcpSocket::new_v6(),
        };
        let socket = socket.unwrap();
        // most of the answer waits on the node's side of the connection
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut client = socket.connect(near.forward_address()).await.unwrap();
        let request = connect_request(&near, &target(&far.node_id(), SERVICE));
        client.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        client.write_all(b"?").await.unwrap();
        let carried = || near.connections().iter().all(|info| info.bytes_in == ANSWER as u64);
        until("the node has handed the answer over", carried).await;
        close.notify_one();
        while !near.connections().is_empty() {
            client.write_all(&[7; 100]).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.unwrap();
        assert!(heard == *said, "{} of {ANSWER} bytes", heard.len());
    });
}

/// What the system takes from the node on behalf of a client that reads nothing.
const ANSWER: usize = 200_000;
