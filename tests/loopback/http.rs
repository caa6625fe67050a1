//! Clients that name whole URLs.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use keynet::error::Reason;
use keynet::proxy::{Event, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::*;

/// One message as its receiver reads it.
#[derive(Debug)]
struct Message {
    head: String,
    body: Vec<u8>,
}

/// A receiver that is plain and exact: what it reads is what is there.
struct Reader {
    bytes: Vec<u8>,
}

impl Reader {
    fn new() -> Self {
        Self { bytes: Vec::new() }
    }

    async fn more(&mut self, stream: &mut TcpStream) -> io::Result<()> {
        let read = timeout(LIMIT, stream.read_buf(&mut self.bytes)).await.expect("bytes in time")?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    async fn line(&mut self, stream: &mut TcpStream) -> io::Result<String> {
        loop {
            if let Some(end) = self.bytes.windows(2).position(|two| two == b"\r\n") {
                let line = self.bytes.drain(..end + 2).collect::<Vec<_>>();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.more(stream).await?;
        }
    }

    async fn exactly(&mut self, stream: &mut TcpStream, length: usize) -> io::Result<Vec<u8>> {
        while self.bytes.len() < length {
            self.more(stream).await?;
        }
        Ok(self.bytes.drain(..length).collect())
    }

    /// A head, and the body that it announces by length or in chunks; trailers stand at the end of the head.
    async fn message(&mut self, stream: &mut TcpStream) -> io::Result<Message> {
        let mut head = String::new();
        loop {
            let line = self.line(stream).await?;
            if line.is_empty() {
                break;
            }
            head += &format!("{line}\n");
        }
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let mut body = Vec::new();
        if let Some(length) = field("Content-Length: ") {
            body = self.exactly(stream, length.parse().unwrap()).await?;
        } else if field("Transfer-Encoding: ").is_some() {
            loop {
                let size = usize::from_str_radix(&self.line(stream).await?, 16).unwrap();
                if size == 0 {
                    break;
                }
                body.extend(self.exactly(stream, size).await?);
                assert_eq!(self.line(stream).await?, "");
            }
            loop {
                let line = self.line(stream).await?;
                if line.is_empty() {
                    break;
                }
                head += &format!("trailer {line}\n");
            }
        }
        Ok(Message { head, body })
    }
}

/// Answers each request with `answer`, byte for byte, and goes on as long as that does not say otherwise.
async fn answering(family: Family, answer: &'static [u8]) -> Service {
    service(family, move |mut stream| async move {
        let mut reader = Reader::new();
        loop {
            reader.message(&mut stream).await?;
            stream.write_all(answer).await?;
        }
    })
    .await
}

/// Tells what it got: the head and the body are the body of its answer. The number of its connections stands in the second.
async fn mirror(family: Family) -> (Service, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    let service = service(family, move |mut stream| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut reader = Reader::new();
            loop {
                let Message { head, body } = reader.message(&mut stream).await?;
                let text = [head.as_bytes(), b"\n", &body].concat();
                let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Back: 1\r\n\r\n", text.len());
                stream.write_all(&[length.as_bytes(), &text].concat()).await?;
            }
        }
    })
    .await;
    (service, connections)
}

fn url(far: &Proxy) -> String {
    format!("http://{}.keynet:{SERVICE}", far.node_id())
}

fn request(near: &Proxy, far: &Proxy, line: &str, fields: &str) -> String {
    let (method, path) = line.split_once(' ').unwrap();
    format!("{method} {}{path} HTTP/1.1\r\nHost: x\r\n{}{fields}\r\n", url(far), authorization(near))
}

async fn client(near: &Proxy) -> TcpStream {
    let stream = TcpStream::connect(near.forward_address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn quiet(near: Proxy, far: Proxy) {
    drop((near, far));
}

#[test]
fn many_requests_of_many_clients_go_over_one_stream() {
    both(|family| async move {
        let (service, connections) = mirror(family).await;
        let (near, far) = pair(family, service.address).await;
        for round in 0..3 {
            let (mut stream, mut reader) = (client(&near).await, Reader::new());
            for number in 0..3 {
                let fields = format!("X-Number: {round}{number}\r\nProxy-Connection: keep-alive\r\n");
                stream.write_all(request(&near, &far, "GET /a?b", &fields).as_bytes()).await.unwrap();
                let answer = reader.message(&mut stream).await.unwrap();
                assert!(
                    answer.head.starts_with("HTTP/1.1 200 OK\n")
                        && answer.head.contains("X-Back: 1\nVia: 1.1 keynet\n")
                );
                let got = String::from_utf8(answer.body).unwrap();
                let host = format!("Host: {}.keynet:{SERVICE}\n", far.node_id());
                assert_eq!(got, format!("GET /a?b HTTP/1.1\n{host}X-Number: {round}{number}\nVia: 1.1 keynet\n\n"));
            }
            assert_eq!(near.connections().len(), 1);
            // the answer is there a moment before the stream can be had by somebody else
            let is_kept = || near.connections().iter().all(|info| info.client_address.is_none());
            until("the stream waits for the next request", is_kept).await;
            drop(stream);
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        until("the stream that nobody wants ends", || near.connections().is_empty() && near.stats().tasks == 0).await;
        quiet(near, far).await;
    });
}

#[test]
fn bodies_go_through_whole_in_every_framing() {
    both(|family| async move {
        let (service, _) = mirror(family).await;
        let (near, far) = pair(family, service.address).await;
        let body = noise(7, 3 << 20);
        let (mut stream, mut reader) = (client(&near).await, Reader::new());
        let head = request(&near, &far, "POST /", &format!("Content-Length: {}\r\n", body.len()));
        let (mut from, mut to) = stream.split();
        let (_, answer) =
            tokio::join!(async { to.write_all(&[head.as_bytes(), &body].concat()).await.unwrap() }, async {
                let mut bytes = Vec::new();
                while !bytes.ends_with(&body[body.len() - 64..]) {
                    assert!(timeout(LIMIT, from.read_buf(&mut bytes)).await.unwrap().unwrap() > 0);
                }
                bytes
            });
        assert!(answer.windows(64).any(|part| part == &body[..64]));
        let chunks = b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nSum: 1\r\nHost: evil\r\n\r\n";
        let head = request(&near, &far, "POST /", "Transfer-Encoding: chunked\r\nTrailer: Sum\r\n");
        stream.write_all(&[head.as_bytes(), chunks].concat()).await.unwrap();
        let got = String::from_utf8(reader.message(&mut stream).await.unwrap().body).unwrap();
        assert!(
            got.contains("Transfer-Encoding: chunked\n") && got.ends_with("trailer Sum: 1\n\nhello world"),
            "{got}"
        );
        quiet(near, far).await;
    });
}

#[test]
fn requests_that_come_at_once_or_in_pieces_have_their_answers_in_order() {
    both(|family| async move {
        let (service, _) = mirror(family).await;
        let (near, far) = pair(family, service.address).await;
        let all = [
            request(&near, &far, "POST /1", "Content-Length: 3\r\n") + "abc",
            request(&near, &far, "GET /2", ""),
            request(&near, &far, "POST /3", "Transfer-Encoding: chunked\r\n") + "1\r\nx\r\n0\r\n\r\n",
            request(&near, &far, "GET /4", "Connection: close\r\n"),
        ]
        .concat();
        let mut found = Vec::new();
        for step in [1, 7, 100, usize::MAX] {
            let (mut stream, mut reader) = (client(&near).await, Reader::new());
            for piece in all.as_bytes().chunks(step.min(all.len())) {
                stream.write_all(piece).await.unwrap();
            }
            let mut answers = Vec::new();
            for number in 1..=4 {
                let answer = reader.message(&mut stream).await.unwrap();
                let text = String::from_utf8(answer.body).unwrap();
                assert!(text.contains(&format!(" /{number} HTTP/1.1\n")), "{text}");
                assert_eq!(answer.head.contains("Connection: close"), number == 4);
                answers.push(text);
            }
            assert_eq!(read_to_end(&mut stream).await.unwrap(), b"");
            found.push(answers);
        }
        assert!(found.iter().all(|answers| *answers == found[0]));
        quiet(near, far).await;
    });
}

#[test]
fn answers_are_framed_for_the_client() {
    const CASES: &[(&[u8], &str, &str)] = &[
        (b"HTTP/1.0 200 OK\r\n\r\nto the end", "GET /", "to the end"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", "GET /", "to the end"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a\r\nto\r\n8\r\n the end\r\n0\r\n\r\n",
            "GET /",
            "to the end",
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "GET /", ""),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "GET /", ""),
    ];
    both(|family| async move {
        for (answer, line, body) in CASES {
            let ends = !answer.windows(7).any(|part| part == b"chunked" || part == b"No Cont" || part == b"Not Mod");
            let service = service(family, move |mut stream| async move {
                let mut reader = Reader::new();
                loop {
                    reader.message(&mut stream).await?;
                    stream.write_all(answer).await?;
                    if ends {
                        return stream.shutdown().await;
                    }
                }
            })
            .await;
            let (near, far) = pair(family, service.address).await;
            let (mut stream, mut reader) = (client(&near).await, Reader::new());
            for _ in 0..2 {
                stream.write_all(request(&near, &far, line, "").as_bytes()).await.unwrap();
                let answer = reader.message(&mut stream).await.unwrap();
                assert_eq!(String::from_utf8(answer.body).unwrap(), *body, "{}", answer.head);
            }
            // HTTP/1.0 knows no chunks, and keeps no connection
            let old = request(&near, &far, line, "").replace("HTTP/1.1", "HTTP/1.0");
            let mut answer = ask(&near, old.as_bytes()).await;
            let rest = [answer.rest.clone(), read_to_end(&mut answer.stream).await.unwrap()].concat();
            assert_eq!(String::from_utf8(rest).unwrap(), *body, "{}", answer.head);
            assert!(!answer.head.contains("chunked"), "{}", answer.head);
            quiet(near, far).await;
        }
    });
}

#[test]
fn heads_alone_are_answered_with_heads() {
    both(|family| async move {
        let service = answering(family, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
        let (near, far) = pair(family, service.address).await;
        let mut stream = client(&near).await;
        for _ in 0..2 {
            stream.write_all(request(&near, &far, "HEAD /", "").as_bytes()).await.unwrap();
            let answer = read_answer(stream).await;
            assert!(answer.rest.is_empty() && answer.head.contains("Content-Length: 1000\r\n"), "{}", answer.head);
            stream = answer.stream;
        }
        // a refusal has none either
        let nobody = format!(
            "HEAD http://{}.keynet:1/ HTTP/1.1\r\nHost: a\r\n{}\r\n",
            identity().node_id(),
            authorization(&near)
        );
        let mut answer = ask(&near, nobody.as_bytes()).await;
        assert_eq!(answer.status, 404);
        assert_eq!(read_to_end(&mut answer.stream).await.unwrap(), b"");
        quiet(near, far).await;
    });
}

#[test]
fn interim_answers_and_expectations_go_through() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            let mut reader = Reader::new();
            let mut head = String::new();
            loop {
                let line = reader.line(&mut stream).await?;
                if line.is_empty() {
                    break;
                }
                head += &line;
            }
            assert!(head.contains("Expect: 100-continue"), "{head}");
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await?;
            let body = reader.exactly(&mut stream, 5).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await?;
            stream.write_all(&body).await?;
            reader.more(&mut stream).await
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let (mut stream, mut reader) = (client(&near).await, Reader::new());
        let head = request(&near, &far, "PUT /", "Content-Length: 5\r\nExpect: 100-continue\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(reader.message(&mut stream).await.unwrap().head.contains("103 Early Hints\nLink: x\n"));
        assert!(reader.message(&mut stream).await.unwrap().head.starts_with("HTTP/1.1 100 Continue\n"));
        stream.write_all(b"hello").await.unwrap();
        assert_eq!(reader.message(&mut stream).await.unwrap().body, b"hello");
        quiet(near, far).await;
    });
}

#[test]
fn a_service_may_answer_before_it_has_the_request() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            let mut reader = Reader::new();
            while !reader.line(&mut stream).await?.is_empty() {}
            stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!").await?;
            // it reads nothing more: what comes is for nobody
            stream.shutdown().await?;
            tokio::time::sleep(LIMIT).await;
            Ok(())
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let (mut stream, mut reader) = (client(&near).await, Reader::new());
        let head = request(&near, &far, "POST /", "Content-Length: 100000000\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[0; 1000]).await.unwrap();
        let answer = reader.message(&mut stream).await.unwrap();
        assert!(answer.head.starts_with("HTTP/1.1 413 Too Large\n") && answer.head.contains("Connection: close\n"));
        assert_eq!(answer.body, b"no!");
        assert_eq!(read_to_end(&mut stream).await.unwrap(), b"");
        drop(stream);
        until("nothing is left", || near.connections().is_empty()).await;
        quiet(near, far).await;
    });
}

#[test]
fn another_protocol_has_the_stream_for_itself() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            let mut reader = Reader::new();
            let message = reader.message(&mut stream).await?;
            if message.head.contains(" /no ") {
                return stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno").await;
            }
            assert!(message.head.ends_with("Connection: Upgrade\nUpgrade: echo/1\n"), "{}", message.head);
            stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo/1\r\n\r\nfirst")
                .await?;
            stream.write_all(&reader.bytes).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
            to.shutdown().await
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let upgrade = "Connection: Upgrade\r\nUpgrade: echo/1\r\n";
        let mut answer = ask(&near, request(&near, &far, "GET /no", upgrade).as_bytes()).await;
        assert_eq!(
            (answer.status, read_exactly(&mut answer.stream, 2 - answer.rest.len()).await.len()),
            (403, 2 - answer.rest.len())
        );
        drop(answer);
        let mut answer = ask(&near, (request(&near, &far, "GET /", upgrade) + "early").as_bytes()).await;
        assert_eq!(answer.status, 101);
        let mut got = answer.rest.clone();
        got.extend(read_exactly(&mut answer.stream, 10 - got.len()).await);
        assert_eq!(got, b"firstearly");
        answer.stream.write_all(&[0, 255, 13, 10]).await.unwrap();
        answer.stream.shutdown().await.unwrap();
        assert_eq!(read_to_end(&mut answer.stream).await.unwrap(), [0, 255, 13, 10]);
        until("nothing is left", || near.connections().is_empty()).await;
        quiet(near, far).await;
    });
}

#[test]
fn what_a_service_does_wrong_is_said_or_shows() {
    const CASES: &[(&[u8], Option<Reason>)] = &[
        (b"", Some(Reason::ServiceReset)),
        (b"SSH-2.0-x\r\n", Some(Reason::ServiceProtocolError)),
        (b"HTTP/1.1 200 OK\n\n", Some(Reason::ServiceProtocolError)),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Some(Reason::ServiceProtocolError)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Some(Reason::ServiceProtocolError)),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            Some(Reason::ServiceProtocolError),
        ),
        (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", Some(Reason::ServiceProtocolError)),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Some(Reason::ServiceProtocolError)),
        // here the answer has begun
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", None),
    ];
    both(|family| async move {
        for (answer, reason) in CASES {
            let service = service(family, move |mut stream| async move {
                Reader::new().message(&mut stream).await?;
                stream.write_all(answer).await?;
                stream.shutdown().await
            })
            .await;
            let (near, far) = pair(family, service.address).await;
            let mut answer = ask(&near, request(&near, &far, "GET /", "").as_bytes()).await;
            match reason {
                Some(reason) => {
                    check_refusal(&answer, *reason);
                    assert_eq!(answer.status, 502);
                    let rest = read_to_end(&mut answer.stream).await.unwrap();
                    let text = String::from_utf8([answer.rest, rest].concat()).unwrap();
                    assert!(text.contains(&far.node_id().to_string()) && text.contains(reason.advice()), "{text}");
                }
                None => expect_reset(&mut answer.stream).await,
            }
            until("nothing is left", || near.connections().is_empty()).await;
            quiet(near, far).await;
        }
    });
}

#[test]
fn a_client_that_leaves_in_the_middle_takes_its_stream_along() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            let mut reader = Reader::new();
            while !reader.line(&mut stream).await?.is_empty() {}
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
            loop {
                stream.write_all(b"4\r\ntick\r\n").await?;
            }
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        // while it reads
        let answer = ask(&near, request(&near, &far, "GET /", "").as_bytes()).await;
        drop(answer);
        assert_eq!(end(&mut events).await, Reason::ClientReset);
        // while it sends
        let answer = ask(&near, (request(&near, &far, "POST /", "Content-Length: 10\r\n") + "half").as_bytes()).await;
        drop(answer);
        assert_eq!(end(&mut events).await, Reason::ClientReset);
        until("nothing is left", || near.stats().tasks == 0).await;
        quiet(near, far).await;
    });
}

#[test]
fn what_cannot_be_passed_on_is_answered_with_its_reason() {
    both(|family| async move {
        let (service, _) = mirror(family).await;
        let (near, far) = pair(family, service.address).await;
        let (auth, url) = (authorization(&near), url(&far));
        let cases = [
            (Reason::CredentialsRequired, format!("GET {url}/ HTTP/1.1\r\nHost: a\r\n\r\n")),
            (
                Reason::CredentialsRequired,
                format!("GET {url}/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic eDp5\r\n\r\n"),
            ),
            (Reason::CredentialsRequired, "GET http://example.com/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
            (Reason::BadTarget, format!("GET http://example.com/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
            (Reason::BadTarget, format!("GET https://a.keynet/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
            (Reason::BadRequest, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned()),
            (
                Reason::BadRequest,
                format!("GET {url}/ HTTP/1.1\r\nHost: a\r\nOrigin: http://attacker.example\r\n{auth}\r\n"),
            ),
            (
                Reason::BadRequest,
                format!("POST {url}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n{auth}\r\n"),
            ),
            (
                Reason::BadRequest,
                format!(
                    "POST {url}/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n{auth}\r\n"
                ),
            ),
            (
                Reason::BadRequest,
                format!("POST {url}/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{auth}\r\nzz\r\n"),
            ),
            (Reason::BadRequest, format!("GET {url}/ HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n{auth}\r\n")),
            (Reason::BadRequest, format!("GET {url}/ HTTP/1.1\nHost: a\n{}\n", auth.replace('\r', ""))),
            (Reason::HeadTooLarge, format!("GET {url}/{} HTTP/1.1\r\nHost: a\r\n{auth}\r\n", "x".repeat(64 << 10))),
            (Reason::HeadTooLarge, format!("GET {url}/ HTTP/1.1\r\nHost: a\r\n{auth}{}\r\n", "A: b\r\n".repeat(200))),
            (Reason::MethodNotAllowed, format!("TRACE {url}/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n")),
            (
                Reason::ServiceNotFound,
                format!("GET http://{}.keynet/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n", far.node_id()),
            ),
            (
                Reason::UnknownNode,
                format!("GET http://{}.keynet/ HTTP/1.1\r\nHost: a\r\n{auth}\r\n", identity().node_id()),
            ),
        ];
        for (reason, request) in cases {
            let mut answer = ask(&near, request.as_bytes()).await;
            check_refusal(&answer, reason);
            let rest = read_to_end(&mut answer.stream).await.expect("an orderly end behind the answer");
            let text = String::from_utf8([answer.rest, rest].concat()).unwrap();
            assert!(text.contains(reason.advice()), "{text}");
            assert_eq!(
                text.contains("no_proxy=example.com"),
                request.contains("http://example.com") && reason == Reason::BadTarget
            );
        }
        until("nothing is left", || near.stats().tasks == 0).await;
        quiet(near, far).await;
    });
}

#[test]
fn a_stream_that_its_service_ends_is_not_used_again() {
    both(|family| async move {
        // closes after each answer, and does not say so before
        let service = service(family, |mut stream| async move {
            let message = Reader::new().message(&mut stream).await?;
            let length = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", message.body.len());
            stream.write_all(&[length.as_bytes(), &message.body].concat()).await?;
            stream.shutdown().await
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let (mut stream, mut reader) = (client(&near).await, Reader::new());
        for _ in 0..5 {
            stream.write_all(request(&near, &far, "GET /", "").as_bytes()).await.unwrap();
            assert!(reader.message(&mut stream).await.unwrap().head.starts_with("HTTP/1.1 200 OK\n"));
            until("its end is noticed", || near.connections().is_empty()).await;
            stream
                .write_all((request(&near, &far, "POST /", "Content-Length: 2\r\n") + "hi").as_bytes())
                .await
                .unwrap();
            assert_eq!(reader.message(&mut stream).await.unwrap().body, b"hi");
            until("its end is noticed", || near.connections().is_empty()).await;
        }
        quiet(near, far).await;
    });
}

#[test]
fn priorities_do_not_share_streams_and_ending_them_is_heard() {
    both(|family| async move {
        let (service, connections) = mirror(family).await;
        let (near, far) = pair(family, service.address).await;
        let mut events = near.subscribe();
        let (mut stream, mut reader) = (client(&near).await, Reader::new());
        for (priority, count) in [("interactive", 1), ("background", 2), ("interactive", 2)] {
            let fields = format!("Keynet-Priority: {priority}\r\n");
            stream.write_all(request(&near, &far, "GET /", &fields).as_bytes()).await.unwrap();
            reader.message(&mut stream).await.unwrap();
            assert_eq!(connections.load(Ordering::SeqCst), count);
        }
        // they wait for nobody, and are ended all the same
        assert_eq!(near.disconnect(&far.node_id()), 2);
        for _ in 0..2 {
            assert_eq!(end(&mut events).await, Reason::Cancelled);
        }
        stream.write_all(request(&near, &far, "GET /", "").as_bytes()).await.unwrap();
        reader.message(&mut stream).await.unwrap();
        let opened = event(&mut events, |event| match event {
            Event::ConnectionOpened(info) => Some(info.client_address.clone()),
            _ => None,
        });
        assert_eq!(opened.await, Some(stream.local_addr().unwrap().to_string()));
        quiet(near, far).await;
    });
}

#[test]
fn a_drain_waits_for_the_answer_under_way() {
    both(|family| async move {
        let service = service(family, |mut stream| async move {
            Reader::new().message(&mut stream).await?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf").await?;
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            stream.write_all(b"full").await?;
            Reader::new().more(&mut stream).await
        })
        .await;
        let (near, far) = pair(family, service.address).await;
        let answer = ask(&near, request(&near, &far, "GET /", "").as_bytes()).await;
        let (mut stream, rest) = (answer.stream, answer.rest);
        let (_, read) = tokio::join!(near.close(keynet::proxy::Close::Drain), read_to_end(&mut stream));
        assert_eq!([rest, read.unwrap()].concat(), b"halffull");
        quiet(near, far).await;
    });
}
