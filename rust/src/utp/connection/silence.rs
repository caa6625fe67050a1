//! A peer that does not answer: how long a connection waits for it. That the peer is silent, the path finds out; here it only
//! counts for how long.

use std::time::Duration;

use super::{Connection, End};
use crate::time::Time;

#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    /// The first question to the peer that it did not answer.
    pub(super) since: Option<Time>,
    /// When the last silence ended; the start of the connection at first.
    pub(super) ended: Time,
    /// What the connection puts up with.
    pub(super) patience: Duration,
}

impl Connection {
    /// The path says that the peer has not answered since `since`, on whichever connection. What waits for an answer goes on
    /// waiting, until [`Connection::handle_path_back`] or until its patience is over.
    pub fn handle_silence(&mut self, since: Time) {
        self.silence.since.get_or_insert(since);
    }

    /// How long a silence of the peer it outlives.
    pub fn patience(&self) -> Duration {
        self.silence.patience
    }

    pub fn set_patience(&mut self, patience: Duration) {
        self.silence.patience = patience;
    }

    /// This process did nothing for a while: what it did not hear meanwhile says nothing about the peer.
    pub fn handle_pause(&mut self, now: Time) {
        self.silence.ended = now;
        self.silence.since = self.silence.since.map(|_| now);
        self.last_received = self.last_received.max(now);
    }

    pub(super) fn end_silence(&mut self, now: Time) {
        if self.silence.since.take().is_some() {
            self.silence.ended = now;
        }
    }

    /// When it gives the peer up. Without a word on the wire: nobody is there to hear it.
    pub(super) fn given_up_at(&self) -> Option<(Time, End)> {
        if let Some(since) = self.silence.since {
            return Some((since + self.silence.patience, End::Unanswered));
        }
        let idle = (self.idle_at(), End::Idle);
        let unanswered = (self.tx.outstanding() > 0)
            .then(|| (self.unanswered_since() + self.config.unanswered_timeout, End::Unanswered));
        unanswered.into_iter().chain([idle]).min_by_key(|(at, _)| *at)
    }
}
