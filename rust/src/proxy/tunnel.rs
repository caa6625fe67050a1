//! A tunnel that stands: the splice and what its end means for both sides; and a tunnel in the hands of a Rust program.

use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{ready, Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::local::LocalStream;
use super::registry::{ConnectionInfo, Entry, Role};
use super::splice::{splice, Outcome};
use crate::config::ProxyLimits;
use crate::error::{Error, Reason};
use crate::peer::Link;
use crate::tls::is_access_denied;

/// Carries bytes until the tunnel ends, passes the end on to the side that does not know of it, and enters the reason.
pub(super) async fn carry(
    local: LocalStream,
    mut link: Link,
    early: Vec<u8>,
    entry: Entry,
    role: Role,
    limits: &ProxyLimits,
) -> Reason {
    let connection = entry.connection.clone();
    connection.set_rtt(link.rtt());
    let failure = |stream: &tokio_rustls::TlsStream<crate::net::UtpStream>| {
        let reason = stream.get_ref().0.failure()?;
        Some(io::Error::other(Error::new(reason, crate::error::Stage::Stream, "")))
    };
    let outcome = tokio::select! {
        biased;
        reason = connection.was_cut() => Err(reason),
        outcome = splice(&local, &mut link.stream, early, &connection.counters, limits.splice_buffer, failure) => Ok(outcome),
    };
    connection.set_rtt(link.rtt());
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(reason) => {
            // the program on this side hears it first: what it writes meanwhile would go nowhere
            entry.finish(reason);
            drop(local);
            match reason {
                Reason::AccessRevoked => Box::pin(link.dismiss(limits.linger.min(DISMISS_TIME))).await,
                _ => link.reset(),
            }
            return reason;
        }
    };
    if let Outcome::Finished = outcome {
        let reason = match link.finish(limits.linger).await {
            Ok(()) => Reason::Finished,
            Err(error) => broken_by(&error, None),
        };
        // the local port is another program's as soon as it is free: whoever asks must not hear that it is this node
        entry.finish(reason);
        local.finish();
        return reason;
    }
    let answered = matches!(outcome, Outcome::LinkClosed(_));
    let reason = broken(outcome, &mut link, role, limits.linger).await;
    tracing::debug!(id = connection.info().id, ?role, %reason, "one side broke");
    entry.finish(reason);
    if answered && reason == Reason::Finished {
        local.finish_unread(limits.linger).await;
    }
    reason
}

/// Ends the link of a tunnel of which one side broke; what that means for the connection. Dropping the local side resets what is left
/// of it.
async fn broken(outcome: Outcome, link: &mut Link, role: Role, linger: Duration) -> Reason {
    let reason = match outcome {
        Outcome::Local(error) => {
            tracing::debug!(?role, %error, "the local side broke");
            // what it said before is the other side's, whole
            link.delivered(linger).await;
            match role {
                Role::Forward => Reason::ClientReset,
                Role::Reverse => Reason::ServiceReset,
            }
        }
        Outcome::LocalClosed => {
            link.delivered(linger).await;
            Reason::Finished
        }
        // it says of itself that it is gone: nothing was cut off that anybody waited for
        Outcome::LinkClosed(error) => match broken_by(&error, link.utp().failure()) {
            Reason::PeerReset => Reason::Finished,
            reason => reason,
        },
        Outcome::Link(error) => broken_by(&error, link.utp().failure()),
        Outcome::Finished => Reason::Finished,
    };
    link.reset();
    reason
}

pub(super) fn broken_by(error: &io::Error, failure: Option<Reason>) -> Reason {
    let ours = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    if tls.is_some_and(is_access_denied) {
        return Reason::AccessRevoked;
    }
    match (ours, failure, error.kind()) {
        (Some(ours), _, _) => ours.reason,
        (None, Some(reason), _) => reason,
        // TLS ended without close_notify: cut off, by whomever (RFC 8446 section 6.1).
        (None, None, io::ErrorKind::UnexpectedEof) => Reason::PeerReset,
        (None, None, io::ErrorKind::TimedOut) => Reason::PeerLost,
        (None, None, io::ErrorKind::InvalidData) => Reason::ProtocolViolation,
        _ => Reason::PeerReset,
    }
}

/// How long a peer that has lost its access may take to read so.
const DISMISS_TIME: Duration = Duration::from_secs(1);

/// A stream to a service of another node, for programs in Rust. Dropping it resets it, unless both directions have ended.
#[derive(Debug)]
pub struct Tunnel {
    /// Both are there until the tunnel is dropped.
    link: Option<Link>,
    entry: Option<Entry>,
    linger: Duration,
    read_ended: bool,
    write_ended: bool,
    failed: Option<Reason>,
}

impl Tunnel {
    pub(super) fn new(link: Link, entry: Entry, linger: Duration) -> Self {
        entry.connection.set_rtt(link.rtt());
        Self { link: Some(link), entry: Some(entry), linger, read_ended: false, write_ended: false, failed: None }
    }

    /// What the proxy knows of it; `None` never happens while the tunnel lives.
    pub fn info(&self) -> Option<ConnectionInfo> {
        self.entry.as_ref().map(|entry| entry.connection.info())
    }

    fn link(&mut self) -> io::Result<&mut Link> {
        self.link.as_mut().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn broken(&mut self, error: io::Error) -> io::Error {
        let failure = self.link.as_ref().and_then(|link| link.utp().failure());
        let cut = self.entry.as_ref().and_then(|entry| entry.connection.cut_for());
        self.failed.get_or_insert(cut.unwrap_or_else(|| broken_by(&error, failure)));
        error
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.link()?.stream).poll_read(cx, buf));
        let n = buf.filled().len() - before;
        self.read_ended |= result.is_ok() && n == 0 && buf.remaining() > 0;
        if let Some(entry) = &self.entry {
            entry.connection.counters.into.fetch_add(n as u64, Ordering::Relaxed);
        }
        Poll::Ready(result.map_err(|error| self.broken(error)))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.link()?.stream).poll_write(cx, data));
        if let (Ok(n), Some(entry)) = (&result, &self.entry) {
            entry.connection.counters.out.fetch_add(*n as u64, Ordering::Relaxed);
        }
        Poll::Ready(result.map_err(|error| self.broken(error)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.link()?.stream).poll_flush(cx));
        Poll::Ready(result.map_err(|error| self.broken(error)))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.link()?.stream).poll_shutdown(cx));
        self.write_ended |= result.is_ok();
        Poll::Ready(result.map_err(|error| self.broken(error)))
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let (Some(mut link), Some(entry)) = (self.link.take(), self.entry.take()) else { return };
        entry.connection.set_rtt(link.rtt());
        let runtime = tokio::runtime::Handle::try_current();
        match (self.failed, self.read_ended && self.write_ended, runtime) {
            (Some(reason), _, _) => entry.finish(reason),
            (None, true, Ok(runtime)) => {
                let linger = self.linger;
                runtime.spawn(async move {
                    let reason = match link.finish(linger).await {
                        Ok(()) => Reason::Finished,
                        Err(error) => broken_by(&error, None),
                    };
                    entry.finish(reason);
                });
            }
            _ => {
                link.reset();
                let reason = entry.connection.cut_for().unwrap_or(Reason::Cancelled);
                entry.finish(reason);
            }
        }
    }
}
