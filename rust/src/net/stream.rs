//! A uTP connection as tokio sees it: bytes in, bytes out, back-pressure both ways.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::conn::{Conn, ConnState};
use super::Inner;
use crate::addr::{Incarnation, NodeId, RemoteId, Route};
use crate::config::ControllerKind;
use crate::error::{Error, Reason, Stage};
use crate::utp::{ReadOutcome, TagKeys, UtpStats};

/// A connected uTP stream. Dropping it resets the connection, unless our direction was shut down: then what was written is
/// still delivered.
#[derive(Debug)]
pub struct UtpStream {
    conn: Arc<Conn>,
    inner: Arc<Inner>,
}

impl UtpStream {
    pub(super) fn new(conn: Arc<Conn>, inner: Arc<Inner>) -> Self {
        Self { conn, inner }
    }

    /// Who is at the other end, as the path table knows it.
    pub fn remote(&self) -> RemoteId {
        self.conn.remote
    }

    /// Where packets go now; it can change while the stream lives.
    /// Whether a relay carries it now, ours or the peer's.
    pub fn is_relayed(&self) -> bool {
        self.inner.core().paths.is_relayed(self.conn.remote)
    }

    /// The node at the other end, as a handshake from the same address and port has proven it before. That this connection came about
    /// shows that whoever has opened it receives what is sent there.
    pub fn known_node(&self) -> Option<NodeId> {
        self.inner.core().paths.node_of(self.conn.remote)
    }

    /// The way to the peer now.
    pub fn route(&self) -> Route {
        self.inner.core().route_of(self.conn.remote)
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.inner.address_of(self.conn.remote)
    }

    /// Ends both directions at once, with RESET.
    pub fn reset(&self) {
        Self::abort(&self.conn, &self.inner);
    }

    fn abort(conn: &Arc<Conn>, inner: &Inner) {
        let mut state = conn.lock();
        state.utp.abort();
        let wakes = state.utp.take_wakes();
        state.wake(wakes);
        inner.doorbell.ring(conn, &mut state);
    }

    pub fn stats(&self) -> UtpStats {
        self.conn.lock().utp.stats()
    }

    /// Whether something that was written is not confirmed yet, and may still be.
    pub fn owes(&self) -> bool {
        let state = self.conn.lock();
        let load = state.utp.load();
        state.reason().is_none() && (load.unsent || load.in_flight > 0)
    }

    /// Why it broke; `None` while it lives and when it ended in order.
    pub fn failure(&self) -> Option<Reason> {
        self.conn.lock().reason()
    }

    /// Offers the peer the whole receive window: for the acceptor, once it knows who that is and will read what comes.
    pub fn trust(&self) {
        let mut state = self.conn.lock();
        state.utp.trust();
        if state.utp.wants_transmit() {
            self.inner.doorbell.ring(&self.conn, &mut state);
        }
    }

    /// The keys of TLS for the tags of its packets; see [`crate::utp::Connection::set_tag_keys`].
    pub fn set_tag_keys(&self, keys: TagKeys) {
        self.conn.lock().utp.set_tag_keys(keys);
    }

    /// The peer may use tags from now on.
    pub fn takes_tags(&self) -> bool {
        self.conn.lock().utp.takes_tags()
    }

    /// The peer has the keys: what leaves has tags from now on, beginning with an ack, so that the peer's has them too.
    pub fn start_tags(&self) {
        let mut state = self.conn.lock();
        state.utp.start_tags();
        self.inner.doorbell.ring(&self.conn, &mut state);
    }

    /// How long a silence of the peer the stream outlives; [`crate::config::UtpConfig::patience`] at first.
    pub fn patience(&self) -> Duration {
        self.conn.lock().utp.patience()
    }

    pub fn set_patience(&self, patience: Duration) {
        let mut state = self.conn.lock();
        state.utp.set_patience(patience);
        self.inner.doorbell.ring(&self.conn, &mut state);
    }

    /// Which life of this node it is.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.core().paths.incarnation()
    }

    /// The node at the other end has said which life it is, over this stream, whose ping session is `session` on our side.
    pub fn note_life(&self, node: NodeId, session: &[u8; 16], incarnation: Incarnation) {
        let life = (node, incarnation);
        let mut core = self.inner.core();
        self.conn.lock().life = Some(life);
        core.paths.handle_incarnation(self.inner.clock.now(), self.conn.remote, session, incarnation);
        let past = core.of_forgotten_lives(&life);
        drop(core);
        self.inner.end(past, Reason::PeerRestarted);
        self.inner.doorbell.ring_plain();
    }

    /// Puts another congestion controller in charge.
    pub fn set_controller(&self, kind: ControllerKind) {
        self.conn.lock().utp.set_controller(kind);
    }

    /// Who is in charge of what is sent.
    pub fn controller(&self) -> ControllerKind {
        self.conn.lock().utp.controller()
    }

    /// For who wants to change that while the stream is in other hands.
    pub fn helm(&self) -> Helm {
        Helm(Arc::downgrade(&self.conn), Arc::downgrade(&self.inner))
    }

    /// Waits until what is written will leave at once: until the SYN-ACK is here, unless the two nodes know each other.
    pub(super) fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        let mut state = self.conn.lock();
        if let Some(reason) = state.reason() {
            return Poll::Ready(Err(reason));
        }
        if state.utp.may_send_data() {
            return Poll::Ready(Ok(()));
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until both directions have ended and the peer has confirmed ours, or the connection broke.
    pub async fn ended(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.conn.lock();
            if state.utp.end().is_some() {
                return Poll::Ready(());
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn broken(&self, state: &ConnState) -> io::Error {
        let reason = state.reason().unwrap_or(Reason::Finished);
        let kind = match reason {
            Reason::PeerLost | Reason::ConnectTimeout => io::ErrorKind::TimedOut,
            Reason::Finished => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::ConnectionReset,
        };
        io::Error::new(kind, Error::new(reason, Stage::Stream, ""))
    }
}

/// Steers a stream without keeping it.
#[derive(Clone, Debug, Default)]
pub struct Helm(Weak<Conn>, Weak<Inner>);

impl Helm {
    /// As [`UtpStream::set_controller`]. False: the stream is gone.
    pub fn set_controller(&self, kind: ControllerKind) -> bool {
        let Some((conn, _)) = self.upgrade() else { return false };
        conn.lock().utp.set_controller(kind);
        true
    }

    /// As [`UtpStream::reset`].
    pub fn reset(&self) {
        if let Some((conn, inner)) = self.upgrade() {
            UtpStream::abort(&conn, &inner);
        }
    }

    fn upgrade(&self) -> Option<(Arc<Conn>, Arc<Inner>)> {
        Some((self.0.upgrade()?, self.1.upgrade()?))
    }

    /// The figures of its uTP connection.
    pub fn stats(&self) -> Option<UtpStats> {
        self.0.upgrade().map(|conn| conn.lock().utp.stats())
    }

    /// What was sent again and again has not arrived, nor has anything else. False also when the stream is gone.
    pub fn is_unheard(&self) -> bool {
        let Some(conn) = self.0.upgrade() else { return false };
        let stats = conn.lock().utp.stats();
        stats.timeouts >= UNHEARD_TIMEOUTS && stats.bytes_out == 0
    }
}

/// One packet that is lost twice in a row is bad luck still.
const UNHEARD_TIMEOUTS: u64 = 3;

impl AsyncRead for UtpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.conn.lock();
        let outcome = state.utp.read(buf.initialize_unfilled());
        match outcome {
            Ok(ReadOutcome::Bytes(count)) => {
                buf.advance(count);
                if state.utp.wants_transmit() {
                    self.inner.doorbell.ring(&self.conn, &mut state);
                }
                Poll::Ready(Ok(()))
            }
            Ok(ReadOutcome::Eof) => Poll::Ready(Ok(())),
            Ok(ReadOutcome::Pending) => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(_) => Poll::Ready(Err(self.broken(&state))),
        }
    }
}

impl AsyncWrite for UtpStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.conn.lock();
        let was_idle = state.utp.is_quiet();
        match state.utp.write(buf) {
            Ok(0) if !buf.is_empty() => {
                state.writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(count) => {
                if was_idle {
                    self.inner.doorbell.ring(&self.conn, &mut state);
                }
                Poll::Ready(Ok(count))
            }
            Err(_) => Poll::Ready(Err(self.broken(&state))),
        }
    }

    /// Written bytes leave by themselves; nothing waits for acks.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = self.conn.lock();
        match state.reason() {
            Some(_) => Poll::Ready(Err(self.broken(&state))),
            None => Poll::Ready(Ok(())),
        }
    }

    /// FIN follows what was written; returns at once.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        let mut state = self.conn.lock();
        state.utp.finish();
        self.inner.doorbell.ring(&self.conn, &mut state);
        Poll::Ready(Ok(()))
    }
}

impl Drop for UtpStream {
    fn drop(&mut self) {
        let mut state = self.conn.lock();
        (state.reader, state.writer) = (None, None);
        state.utp.detach(self.inner.clock.now());
        self.inner.doorbell.ring(&self.conn, &mut state);
    }
}
