//! When a connection wants to be called, and what it does then.

use std::time::Duration;

use super::super::recovery::Alarm;
use super::super::send::FinState;
use super::{Connection, End, State, LINGER};
use crate::time::Time;

impl Connection {
    /// When [`Connection::handle_timeout`] is due; `None` when it is over.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Closed(_) => None,
            State::SynSent => {
                let next = self.syn.next.min(self.syn.started + self.config.connect_timeout);
                Some(self.held_until().map_or(next, |until| until.min(next)))
            }
            State::TimeWait { until } => Some(self.ack.at.map_or(until, |at| at.min(until))),
            State::Established => self.established_timeout(),
        }
    }

    fn established_timeout(&self) -> Option<Time> {
        let recovery = self.recovery.deadline(&self.tx, &self.rtt).map(|(at, _)| at);
        let persist = self.persist.and_then(|persist| persist.at);
        let given_up = self.given_up_at().map(|(at, _)| at);
        let quiet = Some(self.keep_alive_at());
        let forgotten = self.forgotten_at();
        [recovery, persist, given_up, self.ack.at, self.pace_at, self.abandoned_at(), self.rest_at(), quiet, forgotten]
            .into_iter()
            .flatten()
            .min()
    }

    /// Does what is due. Call [`Connection::poll_transmit`] afterwards.
    pub fn handle_timeout(&mut self, now: Time) {
        match self.state {
            State::Closed(_) => {}
            State::SynSent => {
                if now >= self.syn.started + self.config.connect_timeout {
                    self.close(End::ConnectTimeout);
                } else {
                    self.take_held(now);
                }
            }
            State::TimeWait { until } => {
                self.check_ack_timer(now);
                if now >= until {
                    self.close(End::Finished);
                }
            }
            State::Established => self.handle_established_timeout(now),
        }
    }

    fn handle_established_timeout(&mut self, now: Time) {
        if let Some((_, end)) = self.given_up_at().filter(|(at, _)| now >= *at) {
            return self.close(end);
        }
        if self.abandoned_at().is_some_and(|at| now >= at) {
            return self.abort();
        }
        self.check_forgotten(now);
        self.check_ack_timer(now);
        if self.pace_at.is_some_and(|at| now >= at) {
            self.pace_at = None;
        }
        if let Some(persist) = self.persist.as_mut().filter(|persist| persist.at.is_some_and(|at| now >= at)) {
            persist.at = None;
            persist.due = true;
            persist.tries += 1;
        }
        if now >= self.keep_alive_at() {
            self.ack.now = true;
        }
        if self.rest_at().is_some_and(|at| now >= at) {
            self.give_memory_back();
        }
        match self.recovery.deadline(&self.tx, &self.rtt) {
            Some((at, alarm)) if now >= at => self.handle_alarm(now, alarm),
            _ => {}
        }
    }

    fn handle_alarm(&mut self, now: Time, alarm: Alarm) {
        match alarm {
            Alarm::Reorder => {
                let losses = self.recovery.detect(now, &mut self.tx, &self.rtt);
                self.report_losses(now, &losses);
            }
            Alarm::Probe => self.probe_due = true,
            Alarm::Timeout => self.handle_retransmission_timeout(now),
        }
    }

    fn handle_retransmission_timeout(&mut self, now: Time) {
        self.stats.timeouts += 1;
        let in_flight = self.tx.in_flight();
        let full = self.tx.segments().next().is_some_and(|(_, segment)| segment.len >= self.max_payload());
        let losses = self.recovery.handle_timeout(now, &mut self.tx);
        if losses.probe > 0 {
            self.mtu.handle_probe_lost(now, losses.probe);
        }
        if losses.packets == 0 && losses.probe == 0 {
            // only what another path was given: no news of this one
            return;
        }
        if self.peer_window < u64::from(self.max_payload()) {
            // the peer has no room and drops what we probe with: this is no congestion
            return;
        }
        self.controller.on_timeout(now, in_flight);
        self.full_timeouts = if full { self.full_timeouts + 1 } else { 0 };
        if self.full_timeouts >= BLACK_HOLE_TIMEOUTS {
            self.handle_too_large(now);
        }
    }

    /// What is sent is larger than the path carries (this machine says so, or nothing of that size arrives): back to the base
    /// size. What was cut already says [`Transmit::may_fragment`](super::Transmit) from now on.
    pub fn handle_too_large(&mut self, now: Time) {
        self.mtu.handle_black_hole(now);
        self.controller.on_mtu(self.max_payload());
    }

    /// Until then a connection without an application waits: for the peer's end, and while ours is on its way for progress. A
    /// slow path takes as long as it takes; who confirms nothing, a closed window included, holds it no longer.
    fn abandoned_at(&self) -> Option<Time> {
        let at = self.detached?;
        let arrived = self.tx.fin() == FinState::Confirmed;
        Some(if arrived { at } else { at.max(self.last_progress + LINGER) })
    }

    /// A peer that says it has no room is answering, as long as it says so and acknowledges what it did before: one whose
    /// acks have gone back (it forgot, or it lies) is not. When it has room again, what it had none for takes its time.
    pub(super) fn unanswered_since(&self) -> Time {
        self.last_progress.max(self.last_full).max(self.silence.ended)
    }

    /// The next keep-alive. Whether the peer lives, the path finds out with pings of its own; what a keep-alive finds out is
    /// whether it still knows this connection. Many connections take turns, spread by their ids, so that those which were
    /// opened together do not all ask together.
    fn keep_alive_at(&self) -> Time {
        let share = KEEP_ALIVE_SHARE.saturating_mul(u32::try_from(self.company.connections).unwrap_or(u32::MAX));
        let spread = share / 2 + share.saturating_mul(u32::from(self.receive_id)) / (1 << 16);
        self.last_sent + self.config.keep_alive.max(spread)
    }

    pub(super) fn idle_at(&self) -> Time {
        self.last_received.max(self.company.heard).max(self.silence.ended) + self.idle_timeout()
    }

    /// When the memory of empty buffers goes back; `None` when there is none to give.
    fn rest_at(&self) -> Option<Time> {
        let spare = self.tx.has_spare() || self.rx.has_spare();
        spare.then(|| self.last_sent.max(self.last_received) + REST_AFTER)
    }

    /// Plain peers do not answer keep-alives and send few of their own: they get more time.
    fn idle_timeout(&self) -> Duration {
        if self.peer.is_some() {
            self.config.idle_timeout
        } else {
            self.config.idle_timeout * 8
        }
    }

    fn check_ack_timer(&mut self, now: Time) {
        if self.ack.at.is_some_and(|at| now >= at) {
            self.ack.at = None;
            self.ack.now = true;
        }
    }

    fn give_memory_back(&mut self) {
        if self.tx.has_spare() {
            self.tx.shrink();
            self.recovery.shrink();
        }
        if self.rx.has_spare() {
            self.rx.shrink();
        }
    }
}

/// All connections to one peer together send ten keep-alives a second at most: 250 of them still have one every 25 s.
const KEEP_ALIVE_SHARE: Duration = Duration::from_millis(100);
/// Buffers that were empty for so long are given back: what asks again after a pause of a second can afford an allocation,
/// and what does not shall not hold memory for thousands of connections.
const REST_AFTER: Duration = Duration::from_secs(1);
/// Full packets that time out this often in a row are presumed too large for the path (RFC 8899 section 4.3).
const BLACK_HOLE_TIMEOUTS: u32 = 2;
