//! Accepting: TLS and `Open`, within limits, and nothing else spent on whoever it is.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{timeout_at, Instant};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::link::{explain, finish_raw, Link};
use super::Peers;
use crate::addr::unmapped;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::UtpStream;
use crate::open::{Answer, Open};

impl Peers {
    /// Shakes hands with whoever connected, and reads what it asks for. `None` when it asks for nothing and leaves in order
    /// (a ping, or a dial that won over another address).
    ///
    /// Errors: why it was turned away; it has been told already.
    pub async fn accept(&self, stream: UtpStream) -> Result<Option<(Link, Open)>> {
        let address = unmapped(stream.remote_address());
        let deadline = Instant::now() + self.limits.open_timeout;
        let mut link = self.handshake(stream, deadline).await.map_err(|error| error.with_address(address))?;
        let leaf = link.peer.leaf;
        let named = |error: Error| error.with_node(leaf).with_address(address);
        match timeout_at(deadline, link.receive()).await {
            Ok(Ok(Some(body))) => match Open::decode(&body).and_then(|open| self.check_name(open)) {
                Ok(open) => Ok(Some((link, open))),
                Err(error) => {
                    let error = named(error);
                    self.refuse(link, &error).await;
                    Err(error)
                }
            },
            Ok(Ok(None)) => {
                // It has left; whether it hears our goodbye does not matter.
                let _ = link.finish(self.limits.linger).await;
                Ok(None)
            }
            Ok(Err(error)) => {
                let error = named(error);
                match error.reason {
                    // A dial that lost the race against another address: nobody was turned away.
                    Reason::PeerReset => return Ok(None),
                    Reason::ProtocolViolation => self.refuse(link, &error).await,
                    _ => link.reset(),
                }
                Err(error)
            }
            Err(_) => {
                let error = named(Error::new(Reason::OpenTimeout, Stage::Open, "the peer did not send Open"));
                link.reset();
                Err(error)
            }
        }
    }

    /// Tells the peer why not, and ends the link in order so that it hears.
    pub async fn refuse(&self, mut link: Link, error: &Error) {
        if link.answer(&Answer::refused(error)).await.is_ok() {
            let _ = link.finish(self.limits.linger).await;
        }
    }

    /// One of the places for handshakes from this source; `None` when it holds as many as it may.
    pub fn admit(self: &Arc<Self>, source: SocketAddr) -> Option<Admission> {
        let source = network(source);
        let mut handshakes = self.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        let held = handshakes.entry(source).or_default();
        if *held >= self.limits.max_handshakes_per_source {
            return None;
        }
        *held += 1;
        Some(Admission { peers: self.clone(), source })
    }

    async fn handshake(&self, stream: UtpStream, deadline: Instant) -> Result<Link> {
        let start = Instant::now();
        let acceptor = TlsAcceptor::from(self.current().tls.server_config());
        let accepting = acceptor.accept(stream).into_fallible();
        let accepted = match timeout_at(deadline.min(start + self.tls.handshake_timeout), accepting).await {
            Ok(Ok(accepted)) => TlsStream::Server(accepted),
            Ok(Err((error, mut stream))) => {
                let error = explain(&error, &stream, Stage::Tls);
                finish_raw(&mut stream, self.limits.linger.min(ALERT_LINGER)).await;
                return Err(error);
            }
            Err(_) => return Err(Error::new(Reason::TlsTimeout, Stage::Tls, "the peer did not finish the handshake")),
        };
        match self.judge(&accepted, None) {
            Ok(peer) => Ok(Link::new(accepted, peer, (Duration::ZERO, start.elapsed()))),
            Err(error) => {
                turn_away(accepted, &error, self.limits.linger.min(ALERT_LINGER)).await;
                Err(error)
            }
        }
    }

    /// The dialler says whom it believes to talk to; with a rotated identity this node has several names.
    fn check_name(&self, open: Open) -> Result<Open> {
        let names = self.identity().node_ids();
        match &open.node {
            Some(node) if !names.contains(node) => {
                let text = format!("this node is not {node}");
                Err(Error::new(Reason::IdentityMismatch, Stage::Open, text))
            }
            _ => Ok(open),
        }
    }
}

/// Tells a peer that has no link yet, for the handshake went well (it was resumed, say), why it gets none.
async fn turn_away(mut stream: TlsStream<UtpStream>, error: &Error, within: Duration) {
    let text = format!("{}: {}", error.reason.name(), error.detail);
    let answer = Answer::Refused { reason: Reason::RejectedByPeer, text };
    let told = async {
        stream.write_all(&answer.encode()).await?;
        stream.shutdown().await
    };
    if let Ok(Ok(())) = tokio::time::timeout(within, told).await {
        finish_raw(stream.get_mut().0, within).await;
    }
}

/// A place among the handshakes under way; dropping it frees the place.
pub struct Admission {
    peers: Arc<Peers>,
    source: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut handshakes = self.peers.handshakes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = handshakes.get_mut(&self.source) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                handshakes.remove(&self.source);
            }
        }
    }
}

/// One customer's addresses: an IPv4 address, or a /64 of IPv6 (RFC 6177).
fn network(source: SocketAddr) -> IpAddr {
    match unmapped(source).ip() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

/// A stranger does not hold a handshake's place for longer than its alert may take.
const ALERT_LINGER: Duration = Duration::from_secs(2);
