//! One request and its answer: both directions at once, for a service may answer before it has the whole request.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use tokio::io::{split, AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio_rustls::TlsStream;

use super::super::forward::revoked;
use super::super::local::LocalStream;
use super::super::registry::Connection;
use super::super::tunnel::broken_by;
use super::super::Shared;
use super::pool::Upstream;
use crate::config::ProxyLimits;
use crate::error::{Error, Reason, Stage};
use crate::http_forward::{AnswerHead, Body, Fault, Framing, Request, Response};
use crate::net::UtpStream;

/// What has become of an exchange.
pub enum Outcome {
    /// The answer is through. `client`: it may ask again; `upstream`: it may serve again.
    Done { client: bool, upstream: Option<Upstream> },
    /// The service speaks another protocol from now on.
    Switched(Upstream),
    /// Nothing of an answer went to the client.
    Failed(Error),
    /// The client has gone, or has to see that its answer is cut off.
    Gone,
}

/// What ends an exchange before its answer is through.
enum Trouble {
    /// The client broke, or ended inside its request.
    Client,
    /// The client's request breaks the rules.
    Request(Error),
    /// The service's answer does.
    Service(Error),
    /// The stream to the service broke.
    Stream(io::Error),
    /// This node ends it.
    Cut(Reason),
}

/// How far the two directions are.
#[derive(Default)]
struct Progress {
    /// The request is on its way to the end of its body.
    sent: AtomicBool,
    /// The client will not say anything more.
    ended: AtomicBool,
    /// Something of an answer went to the client.
    begun: AtomicBool,
}

/// An answer that is through.
enum Answered {
    Whole { client: bool, upstream: bool },
    Switched,
}

type Stream = TlsStream<UtpStream>;

/// Sends the request and passes the answer on. `inbox`: what the client has sent behind the head; what is left of it in the end is the next
/// request's.
pub async fn exchange(
    shared: &Arc<Shared>,
    client: &LocalStream,
    mut upstream: Upstream,
    request: &Request,
    inbox: &mut Vec<u8>,
) -> Outcome {
    upstream.served += 1;
    let (connection, progress) = (upstream.entry.connection.clone(), Progress::default());
    connection.set_rtt(upstream.link.rtt());
    let (reading, writing) = split(&mut upstream.link.stream);
    let flow = Flow { client, request, connection: &connection, limits: &shared.limits, progress: &progress };
    let answered = tokio::select! {
        biased;
        reason = connection.was_cut() => Err(Trouble::Cut(reason)),
        trouble = flow.upload(writing, inbox) => Err(trouble),
        answered = flow.download(reading) => answered,
    };
    match answered {
        Ok(Answered::Switched) => Outcome::Switched(upstream),
        Ok(Answered::Whole { client, upstream: good }) => {
            let (sent, ended) = (progress.sent.load(Ordering::SeqCst), progress.ended.load(Ordering::SeqCst));
            let upstream = match (good && sent && !ended, sent) {
                (true, _) => Some(upstream),
                (false, true) => {
                    upstream.end(shared);
                    None
                }
                (false, false) => {
                    // it has answered without having read everything
                    upstream.link.reset();
                    upstream.entry.finish(Reason::Finished);
                    None
                }
            };
            Outcome::Done { client: client && !ended, upstream }
        }
        Err(trouble) => failed(shared, upstream, trouble, progress.begun.load(Ordering::SeqCst)),
    }
}

/// Ends the stream of an exchange that did not get through.
fn failed(shared: &Arc<Shared>, upstream: Upstream, trouble: Trouble, begun: bool) -> Outcome {
    let nodes = upstream.entry.connection.fixed.nodes.clone();
    let error = match trouble {
        Trouble::Client => {
            upstream.cut(shared, Reason::ClientReset);
            return Outcome::Gone;
        }
        Trouble::Request(error) => {
            upstream.link.reset();
            upstream.entry.finish(Reason::ClientReset);
            error
        }
        Trouble::Service(error) => {
            upstream.link.reset();
            upstream.entry.finish(error.reason);
            error
        }
        Trouble::Stream(error) => {
            let reason = broken_by(&error, upstream.link.utp().failure());
            let error = Error::new(reason, Stage::Stream, "the stream to the service broke before there was an answer");
            let error = error.with_address(upstream.link.address);
            upstream.link.reset();
            upstream.entry.finish(reason);
            error
        }
        Trouble::Cut(reason) => {
            upstream.link.reset();
            upstream.entry.finish(reason);
            Error::new(reason, Stage::Stream, "the connection was ended on this node")
        }
    };
    if error.reason == Reason::AccessRevoked {
        revoked(shared, &nodes);
    }
    tracing::debug!(%error, begun, "an HTTP exchange failed");
    if begun {
        Outcome::Gone
    } else {
        Outcome::Failed(error)
    }
}

/// Both directions of one exchange.
struct Flow<'a> {
    client: &'a LocalStream,
    request: &'a Request,
    connection: &'a Connection,
    limits: &'a ProxyLimits,
    progress: &'a Progress,
}

impl Flow<'_> {
    /// Sends the request, and then minds the client until the answer is through. Returns when that makes no sense any more.
    async fn upload(&self, mut service: WriteHalf<&mut Stream>, inbox: &mut Vec<u8>) -> Trouble {
        match self.send(&mut service, inbox).await {
            Ok(()) => {}
            // it takes nothing more, but what it has said before may be an answer
            Err(Trouble::Stream(_)) => {
                self.client.broken().await;
                return Trouble::Client;
            }
            Err(trouble) => return trouble,
        }
        self.progress.sent.store(true, Ordering::SeqCst);
        let mut buffer = vec![0; AHEAD_SIZE];
        while inbox.len() < MAX_AHEAD {
            match self.client.read(&mut buffer).await {
                Ok(0) => {
                    // the service decides what it means that its client has said all it had to say
                    self.progress.ended.store(true, Ordering::SeqCst);
                    let _ = service.shutdown().await;
                    break;
                }
                Ok(n) => inbox.extend_from_slice(buffer.get(..n).unwrap_or_default()),
                Err(_) => return Trouble::Client,
            }
        }
        self.client.broken().await;
        Trouble::Client
    }

    async fn send(&self, service: &mut WriteHalf<&mut Stream>, inbox: &mut Vec<u8>) -> Result<(), Trouble> {
        let framing = self.request.body.unwrap_or(Framing::Length(0));
        let (mut body, mut out) = (Body::new(framing, framing), self.request.head.clone());
        let taken = body.take(inbox, &mut out).map_err(in_request)?;
        inbox.drain(..taken);
        let mut buffer = Vec::new();
        loop {
            service.write_all(&out).await.map_err(Trouble::Stream)?;
            service.flush().await.map_err(Trouble::Stream)?;
            self.connection.counters.out.fetch_add(out.len() as u64, Ordering::Relaxed);
            if body.is_done() {
                return Ok(());
            }
            out.clear();
            buffer.resize(self.limits.splice_buffer, 0);
            let n = self.client.read(&mut buffer).await.map_err(|_| Trouble::Client)?;
            if n == 0 {
                // half a request is none, and its service must not take it for a whole one
                return Err(Trouble::Client);
            }
            let read = buffer.get(..n).unwrap_or_default();
            let taken = body.take(read, &mut out).map_err(in_request)?;
            inbox.extend_from_slice(read.get(taken..).unwrap_or_default());
        }
    }

    async fn download(&self, mut service: ReadHalf<&mut Stream>) -> Result<Answered, Trouble> {
        let (response, rest, announced) = self.head(&mut service).await?;
        let mut out = response.head;
        if response.status == SWITCHING {
            out.extend_from_slice(&rest);
            self.pass_on(&out).await?;
            return Ok(Answered::Switched);
        }
        let (reads, writes) = response.body.unwrap_or((Framing::Length(0), Framing::Length(0)));
        let mut body = Body::new(reads, writes);
        let mut stray = body.take(&rest, &mut out).map_err(in_answer)? < rest.len();
        let mut buffer = Vec::new();
        loop {
            self.pass_on(&out).await?;
            if body.is_done() {
                return Ok(Answered::Whole { client: !announced, upstream: response.keep && !stray });
            }
            out.clear();
            buffer.resize(self.limits.splice_buffer, 0);
            match service.read(&mut buffer).await.map_err(Trouble::Stream)? {
                0 => body.handle_end(&mut out).map_err(in_answer)?,
                n => {
                    let read = buffer.get(..n).unwrap_or_default();
                    stray = body.take(read, &mut out).map_err(in_answer)? < read.len();
                }
            }
        }
    }

    /// The head of the final answer, what came along behind it, and whether the client was told that its connection ends with it. Interim
    /// answers are passed on.
    async fn head(&self, service: &mut ReadHalf<&mut Stream>) -> Result<(Response, Vec<u8>, bool), Trouble> {
        let mut rest = Vec::new();
        for _ in 0..=self.limits.max_interim_answers {
            let (head, behind) = self.collect(service, rest).await?;
            let close = !self.request.keep || !self.progress.sent.load(Ordering::SeqCst);
            let response = Response::parse(&head, &self.request.asked, close).map_err(Trouble::Service)?;
            rest = behind;
            if response.is_switching() && !self.progress.sent.load(Ordering::SeqCst) {
                return Err(Trouble::Service(bad("the service changes the protocol in the middle of the request")));
            }
            if !response.is_interim() {
                return Ok((response, rest, close));
            }
            if !self.request.asked.old {
                self.pass_on(&response.head).await?;
            }
        }
        Err(Trouble::Service(bad("the service sends one interim answer after the other")))
    }

    async fn collect(
        &self,
        service: &mut ReadHalf<&mut Stream>,
        early: Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<u8>), Trouble> {
        let mut head = AnswerHead::new(self.limits.max_answer_head);
        let mut buffer = early;
        loop {
            if let Some(length) = head.handle_bytes(&buffer).map_err(Trouble::Service)? {
                let (head, rest) = head.split(length);
                return Ok((head.to_vec(), rest.to_vec()));
            }
            buffer.resize(HEAD_SIZE, 0);
            match service.read(&mut buffer).await.map_err(Trouble::Stream)? {
                0 if head.is_empty() => {
                    let text = "the service ended the connection without an answer";
                    return Err(Trouble::Service(Error::new(Reason::ServiceReset, Stage::Service, text)));
                }
                0 => {
                    return Err(Trouble::Service(bad("the service ended the connection inside the head of its answer")))
                }
                n => buffer.truncate(n),
            }
        }
    }

    async fn pass_on(&self, bytes: &[u8]) -> Result<(), Trouble> {
        if !bytes.is_empty() {
            self.progress.begun.store(true, Ordering::SeqCst);
            self.client.write_all(bytes).await.map_err(|_| Trouble::Client)?;
            self.connection.counters.into.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn in_request(fault: Fault) -> Trouble {
    Trouble::Request(Error::new(
        Reason::BadRequest,
        Stage::Request,
        format!("in the body of the request, {}", said(fault)),
    ))
}

fn in_answer(fault: Fault) -> Trouble {
    Trouble::Service(bad(format!("in the body of the answer, {}", said(fault))))
}

fn said(fault: Fault) -> String {
    match fault {
        Fault::Malformed(text) => text,
        Fault::CutShort => "the end came early".to_owned(),
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Reason::ServiceProtocolError, Stage::Service, text)
}

const SWITCHING: u16 = 101;
/// A usual head with a small body fits.
const HEAD_SIZE: usize = 16 << 10;
/// What is read ahead of a client that has not got its answer yet, for its next requests; beyond it the client waits.
const MAX_AHEAD: usize = 64 << 10;
const AHEAD_SIZE: usize = 4 << 10;
