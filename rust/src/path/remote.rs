//! One remote: its paths, and when something has to happen about them. Reading only; what happens is in `alive.rs`.

use std::net::SocketAddr;
use std::time::Duration;

use super::limit::Limit;
use super::session::Sessions;
use super::spare::{Class, Filed};
use crate::addr::{NodeId, RemoteId};
use crate::config::PathConfig;
use crate::time::Time;

/// An address of a remote.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) address: SocketAddr,
    /// Something that we sent there was received: a pong came back, or an acknowledgement.
    pub(super) proven: bool,
    /// It has answered a ping. Others than keynet never do, and must not be given up for that.
    pub(super) answers: bool,
    /// The last sign of life that came from there; at first, when it was added.
    pub(super) heard: Time,
    /// Smoothed, from pings.
    pub(super) rtt: Option<Duration>,
}

/// A remote and the paths to it.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) id: RemoteId,
    pub(super) created: Time,
    /// Never empty. Those behind the first were proven by keyed pongs.
    pub(super) paths: Vec<Path>,
    /// Index of the one in use.
    pub(super) in_use: usize,
    /// Who it is, the last one bound first: a node keeps its former names when its key changes.
    pub(super) nodes: Vec<NodeId>,
    pub(super) sessions: Sessions,
    pub(super) holds: u32,
    /// The last sign of life on any path.
    pub(super) heard: Time,
    /// The last time that anything came, a sign of life or not: orders the strangers.
    pub(super) seen: Time,
    /// Until then it counts as active: `active_for` after the last data, in either direction.
    pub(super) active_until: Time,
    /// The first data sent since the path in use was heard.
    pub(super) waiting: Option<Time>,
    /// The first ping on the path in use that is not answered by any sign of life.
    pub(super) asked: Option<Time>,
    /// The last ping on the path in use.
    pub(super) pinged: Option<Time>,
    /// Pings since the last pong.
    pub(super) unanswered: u32,
    /// When the first session came, and how often a pong to confirm it was asked for since.
    pub(super) confirm: Option<(Time, u32)>,
    pub(super) up: bool,
    /// It has been reported lost: it is nothing but an address for what still holds it.
    pub(super) lost: bool,
    /// Pings to addresses of it that have not answered.
    pub(super) unproven_pings: Limit,
    /// Under what it is filed in the timers and among the spare remotes.
    pub(super) timer: Option<Time>,
    pub(super) spare: Option<Filed>,
}

impl Remote {
    pub(super) fn new(id: RemoteId, now: Time, address: SocketAddr, config: &PathConfig) -> Self {
        Self {
            id,
            created: now,
            paths: vec![Path::new(now, address)],
            in_use: 0,
            nodes: Vec::new(),
            sessions: Sessions::default(),
            holds: 0,
            heard: now,
            seen: now,
            active_until: Time::ZERO,
            waiting: None,
            asked: None,
            pinged: None,
            unanswered: 0,
            confirm: None,
            up: false,
            lost: false,
            unproven_pings: Limit::new(config.max_unproven_pings_per_second, 1),
            timer: None,
            spare: None,
        }
    }

    /// The path in use.
    pub(super) fn path(&self) -> Option<&Path> {
        self.paths.get(self.in_use)
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.path().map(|path| path.address)
    }

    pub(super) fn index_of(&self, address: SocketAddr) -> Option<usize> {
        self.paths.iter().position(|path| path.address == address)
    }

    pub(super) fn node(&self) -> Option<NodeId> {
        self.nodes.first().copied()
    }

    /// Not authenticated.
    pub(super) fn is_stranger(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn class(&self) -> Class {
        if self.is_stranger() {
            Class::Stranger
        } else {
            Class::Peer
        }
    }

    /// Only keyed pongs count.
    pub(super) fn is_keyed(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Missing pongs mean something.
    fn should_answer(&self) -> bool {
        self.is_keyed() || self.path().is_some_and(|path| path.answers)
    }

    /// Whether a ping on the path in use has been unanswered for longer than `ping_retry`.
    pub(super) fn is_stalled(&self, now: Time, config: &PathConfig) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) >= config.ping_retry)
    }

    /// Whether nothing came on the path in use for longer than `ping_retry`.
    pub(super) fn is_silent(&self, now: Time, config: &PathConfig) -> bool {
        self.path().is_some_and(|path| now.since(path.heard) > config.ping_retry)
    }

    /// Pings keep it alive. A stranger that nobody holds is not worth any, nor is an address that has proven nothing.
    fn is_kept_alive(&self, at: Time) -> bool {
        let wanted = self.holds > 0 || (!self.is_stranger() && at <= self.active_until);
        wanted && !self.lost && self.path().is_some_and(|path| path.proven)
    }

    /// When the next ping on the path in use is due.
    pub(super) fn ping_due(&self, config: &PathConfig) -> Option<Time> {
        let path = self.path()?;
        let due = match (self.asked, self.pinged) {
            (Some(_), Some(pinged)) if self.should_answer() => pinged + config.ping_retry,
            (Some(_), Some(pinged)) => self.after_quiet(pinged, config),
            (_, pinged) => {
                let quiet = self.after_quiet(path.heard, config);
                let waiting = self.waiting.map(|sent| sent + config.ping_retry);
                let confirm = self.confirm_due(config);
                let due = [waiting, confirm].into_iter().flatten().fold(quiet, Time::min);
                pinged.map_or(due, |pinged| due.max(pinged + config.ping_retry))
            }
        };
        self.is_kept_alive(due).then_some(due)
    }

    /// When the silence that began at `since` has lasted long enough for a ping.
    fn after_quiet(&self, since: Time, config: &PathConfig) -> Time {
        let soon = since + config.ping_active;
        if soon <= self.active_until {
            soon
        } else {
            since + config.ping_idle
        }
    }

    /// A new session is tried even while data flows, so that it can be relied on when the address changes.
    fn confirm_due(&self, config: &PathConfig) -> Option<Time> {
        let (since, tries) = self.confirm.filter(|(_, tries)| *tries < CONFIRM_TRIES && !self.sessions.confirmed())?;
        Some(since + config.ping_retry * (tries + 1))
    }

    /// When the remote is given up, if nothing comes until then.
    pub(super) fn lost_at(&self, config: &PathConfig) -> Option<Time> {
        let asked = self.asked.filter(|_| self.should_answer() && !self.lost)?;
        Some(asked.max(self.heard) + config.lost_after)
    }

    /// When a remote that nobody holds is forgotten: when pings have ended and nothing came for as long as they would
    /// have gone on.
    pub(super) fn forget_at(&self, config: &PathConfig) -> Option<Time> {
        (self.holds == 0).then(|| (self.seen + config.active_for).max(self.active_until))
    }

    /// When to look at it again.
    pub(super) fn deadline(&self, config: &PathConfig) -> Option<Time> {
        if self.lost {
            return None;
        }
        [self.ping_due(config), self.lost_at(config), self.forget_at(config)].into_iter().flatten().min()
    }
}

impl Path {
    pub(super) fn new(now: Time, address: SocketAddr) -> Self {
        Self { address, proven: false, answers: false, heard: now, rtt: None }
    }

    /// RFC 6298 section 2.3: seven parts of the old, one of the new.
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.rtt = Some(match self.rtt {
            Some(old) => (old * 7 + rtt) / 8,
            None => rtt,
        });
    }
}

/// As often is a new session tried while data flows; after that it waits for the next silence.
const CONFIRM_TRIES: u32 = 5;
