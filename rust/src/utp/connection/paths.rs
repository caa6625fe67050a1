//! A connection whose packets take another path: what was measured on the old one waits for its return, and what was under
//! way there is sent again or waited for. RFC 9000 section 9.4 (new path, new estimates; its losses are no signal for the new
//! one), RFC 9002 section 6.2 (probe instead of waiting).

use std::time::Duration;

use super::super::congestion::{self, Controller};
use super::super::mtu::MtuSearch;
use super::super::pacing::Pacer;
use super::super::packet::HEADER_LEN;
use super::super::recovery::Reordering;
use super::super::rtt::Rtt;
use super::{Connection, State};
use crate::time::Time;

/// A path as its owner names it: the same key, the same way through the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathKey(pub u64);

/// Which path is in use, and what is known of those that were.
#[derive(Debug)]
pub(super) struct Paths {
    current: Option<PathKey>,
    since: Time,
    /// When [`Connection::handle_path_back`] last did something.
    answered: Option<Time>,
    /// The one left last is the last.
    aside: Vec<Aside>,
}

/// What was found out about a path that is not in use.
#[derive(Debug)]
struct Aside {
    key: PathKey,
    left: Time,
    rtt: Rtt,
    mtu: MtuSearch,
    controller: Box<dyn Controller>,
    pacer: Pacer,
    reordering: Reordering,
}

impl Paths {
    pub(super) fn new(now: Time) -> Self {
        Self { current: None, since: now, answered: None, aside: Vec::new() }
    }

    fn take(&mut self, now: Time, key: PathKey) -> Option<Aside> {
        self.aside.retain(|path| now.since(path.left) < KEPT);
        let at = self.aside.iter().position(|path| path.key == key)?;
        Some(self.aside.remove(at))
    }

    fn put(&mut self, path: Aside) {
        if self.aside.len() >= MAX_ASIDE {
            self.aside.remove(0);
        }
        self.aside.push(path);
    }
}

impl Connection {
    /// What is sent goes over `path` from now on, which carries datagrams of `max_datagram` at most as far as its owner knows.
    /// The first call only names the path in use, and one with the name of the path in use does nothing. `old_alive`: what is
    /// under way on the old path may still arrive; otherwise all of it is sent again. Call [`Connection::poll_transmit`]
    /// afterwards.
    pub fn handle_path(&mut self, now: Time, path: PathKey, max_datagram: u16, old_alive: bool) {
        if matches!(self.state, State::Closed(_)) || self.paths.current == Some(path) {
            return;
        }
        match self.paths.current.replace(path) {
            Some(old) => self.change_path(now, old, path, max_datagram, old_alive),
            None => {
                self.mtu.limit(max_datagram);
                self.controller.on_mtu(self.max_payload());
            }
        }
    }

    fn change_path(&mut self, now: Time, old: PathKey, path: PathKey, max_datagram: u16, old_alive: bool) {
        self.end_silence(now);
        let kind = self.controller.kind();
        let known = self.paths.take(now, path);
        let idle = known.as_ref().map(|known| now.since(known.left));
        let next = known.unwrap_or_else(|| self.fresh(now, path, max_datagram));
        let grace = slowest(&self.rtt).max(slowest(&next.rtt)).min(LONGEST_GRACE);
        let reordering = self.recovery.handle_path(now, &mut self.tx, grace, !old_alive, next.reordering);
        self.mtu.handle_probe_unsent();
        self.paths.put(Aside {
            key: old,
            left: now,
            rtt: std::mem::replace(&mut self.rtt, next.rtt),
            mtu: std::mem::replace(&mut self.mtu, next.mtu),
            controller: std::mem::replace(&mut self.controller, next.controller),
            pacer: std::mem::replace(&mut self.pacer, next.pacer),
            reordering,
        });
        self.mtu.limit(max_datagram);
        self.set_controller(kind);
        self.controller.on_mtu(self.max_payload());
        if let Some(idle) = idle.filter(|_| self.rtt.has_sample()) {
            self.controller.on_restart_after_idle(now, idle);
        }
        self.paths.since = now;
        self.paths.answered = None;
        (self.pace_at, self.probe_due, self.full_timeouts) = (None, false, 0);
        // what waits to be sent again has only the window to wait for
        self.window_limited = self.recovery.next_lost(&self.tx).is_some();
        // the acks of what the peer sent may have been lost with the old path
        self.ack.now |= !old_alive && self.is_connected();
    }

    /// What is known of a path on which nothing was sent yet.
    fn fresh(&self, now: Time, key: PathKey, max_datagram: u16) -> Aside {
        let mtu = MtuSearch::new(&self.config, max_datagram);
        let payload = mtu.current() - HEADER_LEN as u16;
        Aside {
            key,
            left: now,
            rtt: Rtt::new(&self.config),
            mtu,
            controller: congestion::new(self.controller.kind(), &self.config, payload),
            pacer: Pacer::new(),
            reordering: Reordering::default(),
        }
    }

    /// The path in use had fallen silent and answers again: what was sent into the silence is sent again now, and not when the
    /// timer that grew meanwhile goes off. At most once in a round trip; nothing happens when nothing waits for an answer.
    /// Call [`Connection::poll_transmit`] afterwards.
    pub fn handle_path_back(&mut self, now: Time) {
        self.end_silence(now);
        let lately = self.paths.answered.is_some_and(|at| now.since(at) < self.rtt.srtt());
        if self.tx.outstanding() == 0 || lately || !self.is_connected() {
            return;
        }
        self.paths.answered = Some(now);
        self.probe_due |= self.recovery.handle_path_back(now, &mut self.tx, &self.rtt);
    }

    /// Since when something waits for an answer and nothing of it was answered, over the path in use. A peer that says it has
    /// no room answers.
    pub fn unacked_since(&self) -> Option<Time> {
        let since = self.last_progress.max(self.last_full).max(self.paths.since);
        (self.tx.outstanding() > 0).then_some(since)
    }

    /// Nothing moves over the path in use, though the base size was tried as well. That pings pass says nothing against it.
    pub fn is_stuck(&self, now: Time) -> bool {
        self.is_connected() && self.unacked_since().is_some_and(|since| now >= since + self.rtt.rto() * STUCK_TIMEOUTS)
    }
}

/// A round trip at its slowest: the spread that RFC 6298 section 2 allows for. Nothing without a measurement.
fn slowest(rtt: &Rtt) -> Duration {
    if rtt.has_sample() {
        rtt.srtt() + rtt.var() * 4
    } else {
        Duration::ZERO
    }
}

/// Beside the one in use: a direct path for each of the two IP families, and a relayed one, which is what a pair of hosts has
/// at a time (DESIGN: candidates of RFC 8445 are host, reflexive and relayed). About a kilobyte each.
const MAX_ASIDE: usize = 3;
/// As long as a minimum RTT is believed (rtt.rs); RFC 7661 section 4.4 too keeps an unused window for 5 minutes at most.
const KEPT: Duration = Duration::from_secs(300);
/// As long as the retransmission timer ever waits (recovery.rs): what is later than that is lost for everybody.
const LONGEST_GRACE: Duration = Duration::from_secs(4);
/// Timeouts of 1, 2 and 4 times the RTO: the second one falls back to the base size (timers.rs), and the third was its chance.
const STUCK_TIMEOUTS: u32 = 7;
