//! A STUN server (RFC 8489) that helps with behaviour discovery (RFC 5780 section 6) as far as its addresses allow: with two
//! ports of one address it can answer from the other port, with a second IP address from there too.
//!
//! A question may be a bare header of 20 bytes, so an answer can be larger than it: 32 bytes over IPv4 and 44 over IPv6, which
//! with IP and UDP headers is 1.25 and 1.35 times the question. A refusal has 36. Everything else stays within the size of the
//! question, and all answers within two rate limits.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::limit::SourceLimit;
use crate::addr::{mapped, unmapped};
use crate::config::StunConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::stun::discovery::{decode_query, encode_answer, encode_refusal, Answer, Change, Query, CHANGE_REQUEST};

/// A running server. Dropping it stops it too, but does not wait.
pub struct StunServer {
    shared: Arc<Shared>,
    closing: watch::Sender<bool>,
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StunStats {
    /// Well-formed questions.
    pub queries: u64,
    pub answers: u64,
    /// Error 420.
    pub refused: u64,
    /// Questions that were not answered because of a limit.
    pub rate_limited: u64,
    /// Datagrams that are no question.
    pub malformed: u64,
    pub send_errors: u64,
}

#[derive(Default)]
struct Counters {
    queries: AtomicU64,
    answers: AtomicU64,
    refused: AtomicU64,
    rate_limited: AtomicU64,
    malformed: AtomicU64,
    send_errors: AtomicU64,
}

struct Shared {
    sockets: Vec<Port>,
    limit: Mutex<SourceLimit>,
    counters: Counters,
}

/// One bound socket.
struct Port {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl StunServer {
    /// Binds inside a tokio runtime; one to [`MAX_SOCKETS`] addresses.
    pub fn bind(addresses: &[SocketAddr], config: &StunConfig) -> Result<Self> {
        if addresses.is_empty() || addresses.len() > MAX_SOCKETS {
            let detail = format!("a STUN server has 1 to {MAX_SOCKETS} addresses, not {}", addresses.len());
            return Err(Error::new(Reason::InvalidArgument, Stage::Setup, detail));
        }
        let sockets = addresses.iter().map(|address| Port::bind(*address)).collect::<Result<Vec<_>>>()?;
        let limit = SourceLimit::new(
            config.answers_per_second,
            config.answers_per_second_per_network,
            config.networks,
            Instant::now(),
        );
        let shared = Arc::new(Shared { sockets, limit: Mutex::new(limit), counters: Counters::default() });
        let closing = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        for place in 0..shared.sockets.len() {
            let (shared, mut closed) = (shared.clone(), closing.subscribe());
            tasks.spawn(async move {
                tokio::select! {
                    () = shared.serve(place) => {}
                    // an error means that the server was dropped
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            });
        }
        Ok(Self { shared, closing, tasks: Mutex::new(Some(tasks)) })
    }

    /// The bound addresses, in the order of `bind`.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.shared.sockets.iter().map(|socket| socket.local).collect()
    }

    pub fn stats(&self) -> StunStats {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StunStats {
            queries: read(&counters.queries),
            answers: read(&counters.answers),
            refused: read(&counters.refused),
            rate_limited: read(&counters.rate_limited),
            malformed: read(&counters.malformed),
            send_errors: read(&counters.send_errors),
        }
    }

    /// Stops answering and waits for the tasks. A second call returns at once.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks {
            tasks.join_all().await;
        }
    }
}

impl Shared {
    async fn serve(&self, place: usize) {
        let Some(socket) = self.sockets.get(place) else { return };
        let mut buffer = vec![0; BUFFER];
        loop {
            // an error is not of this datagram but of an earlier one (ICMP), or of the system: then the next wait tells
            if socket.io.readable().await.is_err() {
                return;
            }
            let mut meta = [RecvMeta::default()];
            let received = socket.io.try_io(Interest::READABLE, || {
                socket.state.recv(UdpSockRef::from(&socket.io), &mut [IoSliceMut::new(&mut buffer)], &mut meta)
            });
            if received.is_err() {
                continue;
            }
            let [meta] = meta;
            let batch = buffer.get(..meta.len).unwrap_or_default();
            for datagram in batch.chunks(meta.stride.max(1)) {
                self.handle(place, &meta, datagram);
            }
        }
    }

    fn handle(&self, place: usize, meta: &RecvMeta, datagram: &[u8]) {
        let Ok(Some(query)) = decode_query(datagram) else {
            count(&self.counters.malformed);
            return;
        };
        count(&self.counters.queries);
        if !self.limit.lock().unwrap_or_else(PoisonError::into_inner).take(meta.addr, Instant::now()) {
            count(&self.counters.rate_limited);
            return;
        }
        let from = unmapped(meta.addr);
        let mut out = Vec::with_capacity(crate::stun::discovery::QUERY_BYTES);
        let sender = self.respond(place, meta, &query, datagram.len(), &mut out);
        let Some(socket) = sender.and_then(|sender| self.sockets.get(sender)) else { return };
        // the asked address, where the socket has several: the question's NAT lets nothing else in
        let source = (sender == Some(place)).then_some(meta.dst_ip).flatten();
        if socket.send(from, &out, source).is_err() {
            // a full buffer or no route: the client asks again
            count(&self.counters.send_errors);
        }
    }

    /// Writes the response, and says which socket sends it.
    fn respond(&self, place: usize, meta: &RecvMeta, query: &Query, room: usize, out: &mut Vec<u8>) -> Option<usize> {
        let sender = self.other(place, query.change);
        let (Some(sender), None) = (sender, query.unknown) else {
            encode_refusal(out, query.transaction, query.unknown.unwrap_or(CHANGE_REQUEST));
            count(&self.counters.refused);
            return Some(place);
        };
        // where a socket is bound to all addresses, the one that was asked
        let named = |place: usize| {
            let local = self.sockets.get(place)?.local;
            let ip = if local.ip().is_unspecified() { meta.dst_ip? } else { local.ip() };
            Some(unmapped(SocketAddr::new(ip, local.port())))
        };
        let both = self.other(place, Change { ip: true, port: true });
        let other = both.or_else(|| self.other(place, Change { ip: false, port: true }));
        let answer = Answer { observed: unmapped(meta.addr), origin: named(sender), other: other.and_then(named) };
        encode_answer(out, query.transaction, &answer, room);
        count(&self.counters.answers);
        Some(sender)
    }

    /// The socket whose address differs from that of `place` in just this way.
    fn other(&self, place: usize, change: Change) -> Option<usize> {
        let asked = self.sockets.get(place)?.local;
        self.sockets.iter().position(|socket| {
            let local = socket.local;
            local.is_ipv4() == asked.is_ipv4()
                && (local.ip() != asked.ip()) == change.ip
                && (local.port() != asked.port()) == change.port
        })
    }
}

impl Port {
    fn bind(address: SocketAddr) -> Result<Self> {
        Self::try_bind(address).map_err(|error| {
            Error::new(Reason::BindFailed, Stage::Setup, format!("STUN server: {error}")).with_address(address)
        })
    }

    fn try_bind(address: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let local = io.local_addr()?;
        Ok(Self { io, state, local })
    }

    fn send(&self, to: SocketAddr, contents: &[u8], source: Option<std::net::IpAddr>) -> io::Result<()> {
        let destination = if self.local.is_ipv6() { mapped(to) } else { to };
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip: source };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), &transmit))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Two IP addresses with two ports each: all that RFC 5780 has a use for.
pub const MAX_SOCKETS: usize = 4;
/// What the kernel puts together from one sender (GRO): up to 64 KiB.
const BUFFER: usize = 1 << 16;
