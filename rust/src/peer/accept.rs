//! Accepting: TLS and `Open`, within limits, and nothing else spent on whoever it is.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{timeout_at, Instant};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake, TlsStream};

use super::link::{explain, finish_raw, Link};
use super::places::{Place, Progress};
use super::Peers;
use crate::addr::unmapped;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::UtpStream;
use crate::open::{Answer, Open};

impl Peers {
    /// Shakes hands with whoever connected, and reads what it asks for; `place` learns how far that is. `None` when it asks for
    /// nothing and leaves in order (a ping, or a dial that won over another address).
    ///
    /// Errors: why it was turned away; it has been told already.
    pub async fn accept(&self, stream: UtpStream, place: &Place) -> Result<Option<(Link, Open)>> {
        let address = unmapped(stream.remote_address());
        let deadline = Instant::now() + self.limits.open_timeout;
        let mut link = self.handshake(stream, deadline, place).await.map_err(|error| error.with_address(address))?;
        place.advance(Progress::Open);
        let leaf = link.peer.leaf;
        let named = |error: Error| error.with_node(leaf).with_address(address);
        match timeout_at(deadline, link.receive()).await {
            Ok(Ok(Some(body))) => match Open::decode(&body).and_then(|open| self.check_name(open)) {
                Ok(open) => {
                    place.advance(Progress::Access);
                    link.note_terms(&open.terms);
                    if open.tags {
                        link.utp().start_tags();
                    }
                    Ok(Some((link, open)))
                }
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

    async fn handshake(&self, stream: UtpStream, deadline: Instant, place: &Place) -> Result<Link> {
        let start = Instant::now();
        let hello = self.hello(stream, deadline.min(start + self.tls.hello_timeout)).await?;
        place.advance(Progress::Tls);
        let accepting = hello.into_stream(self.current().tls.server_config()).into_fallible();
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

    /// Waits for the whole ClientHello, and no longer than `deadline`: it costs a stranger nothing not to send it.
    async fn hello(&self, stream: UtpStream, deadline: Instant) -> Result<StartHandshake<UtpStream>> {
        let mut acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        match timeout_at(deadline, &mut acceptor).await {
            Ok(Ok(hello)) => Ok(hello),
            Ok(Err(error)) => match acceptor.take_io() {
                Some(mut stream) => {
                    let error = explain(&error, &stream, Stage::Tls);
                    finish_raw(&mut stream, self.limits.linger.min(ALERT_LINGER)).await;
                    Err(error)
                }
                None => Err(Error::new(Reason::TlsFailed, Stage::Tls, error.to_string())),
            },
            Err(_) => Err(Error::new(Reason::TlsTimeout, Stage::Tls, "the peer sent no ClientHello in time")),
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

/// A stranger does not hold a handshake's place for longer than its alert may take.
const ALERT_LINGER: Duration = Duration::from_secs(2);
