//! A session with the connection it runs over. Whoever lets go of it, at whatever point, gives the allocation back: a relay would
//! keep an address for ten minutes otherwise.

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::{sleep_until, timeout};

use super::link::Link;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::Clock;
use crate::time::Time;
use crate::turn::client::{Alternate, Event, Granted, Session};

pub(super) struct Lease(Option<Open>);

/// What comes of asking for an allocation.
pub(super) enum Answer {
    Granted(Box<Lease>, Granted),
    /// Another server is to be asked.
    Elsewhere(Alternate),
}

pub(super) struct Open {
    pub session: Session,
    pub link: Link,
    pub clock: Clock,
}

impl Lease {
    /// Asks for an allocation, and waits for the answer.
    pub(super) async fn obtain(link: Link, username: &str, password: &str) -> Result<Answer> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)
            .map_err(|error| Error::new(Reason::Internal, Stage::Setup, format!("no randomness: {error}")))?;
        let clock = Clock::start();
        let session = Session::new(clock.now(), username, password, link.is_stream(), seed);
        let mut lease = Self(Some(Open { session, link, clock }));
        let Some(open) = &mut lease.0 else { return Err(gone()) };
        match open.next_event().await? {
            Event::Allocated(granted) => Ok(Answer::Granted(Box::new(lease), granted)),
            Event::Redirected(alternate) => Ok(Answer::Elsewhere(alternate)),
            Event::Failed(error) => Err(error),
            Event::Deleted => Err(gone()),
        }
    }

    pub(super) fn open(&mut self) -> Option<&mut Open> {
        self.0.as_mut()
    }

    /// Gives the allocation back and waits until the relay has said so, or could have.
    pub(super) async fn release(mut self) {
        if let Some(open) = self.0.take() {
            open.release().await;
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(open) = self.0.take().filter(|open| !open.session.is_over()) else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(open.release());
        }
    }
}

impl Open {
    /// Runs the session until something happens; datagrams of peers are left out.
    async fn next_event(&mut self) -> Result<Event> {
        loop {
            self.flush();
            if let Some(event) = self.session.poll_event() {
                return Ok(event);
            }
            tokio::select! {
                ready = self.link.ready() => {
                    let (session, now) = (&mut self.session, self.clock.now());
                    let received = self.link.receive(|packet| { session.handle_packet(now, packet); });
                    ready.and(received).map_err(|error| {
                        let what = match error.kind() {
                            std::io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
                            _ => error.to_string(),
                        };
                        Error::new(Reason::RelayUnreachable, Stage::Relay, what)
                    })?;
                }
                () = sleep_or_wait(&self.clock, self.session.poll_timeout()) => self.session.handle_timeout(self.clock.now()),
            }
        }
    }

    /// Sends what the session has; how many datagrams did not leave.
    pub(super) fn flush(&mut self) -> u64 {
        let mut dropped = 0;
        while let Some(transmit) = self.session.poll_transmit() {
            dropped += self.link.send(transmit);
        }
        dropped
    }

    async fn release(mut self) {
        self.session.delete(self.clock.now());
        let _ = timeout(RELEASE, self.next_event()).await;
    }
}

pub(super) async fn sleep_or_wait(clock: &Clock, until: Option<Time>) {
    match until {
        Some(until) => sleep_until(clock.instant(until).into()).await,
        None => std::future::pending().await,
    }
}

fn gone() -> Error {
    Error::new(Reason::RelayLost, Stage::Relay, "the allocation was given back")
}

/// Two tries of a request, and a long round trip. What is not confirmed by then ends by itself.
const RELEASE: Duration = Duration::from_secs(2);
