//! BBR: sends at the bandwidth it measured and keeps about one bandwidth-delay product in flight, instead of filling the
//! queue until it overflows. States and gains of draft-ietf-ccwg-bbr (v3); what a loss means is decided in `bbr_model`.

use std::time::Duration;

use super::bbr_model::{Model, RoundEnd};
use super::{clamp_window, initial_window, AckSample, Controller, Handover, LossSample, MAX_RATE};
use crate::config::ControllerKind;
use crate::time::Time;

/// The model-based controller, for paths that lose packets without being full.
#[derive(Clone, Debug)]
pub struct Bbr {
    mss: f64,
    cwnd: f64,
    state: State,
    model: Model,
    startup: Startup,
    /// The most in flight that did not overflow the path, and this round's caution after a loss outside of probing.
    inflight_hi: f64,
    inflight_lo: f64,
    bw_lo: f64,
    rate: Option<f64>,
    /// The window to go back to after ProbeRTT or a timeout that was a mistake.
    saved_cwnd: f64,
    undo: Option<Undo>,
    loss_ignored_until: u64,
    /// Startup was ended by losses: what it took for the limits is a guess, and the first probe comes soon.
    guessed: bool,
    delivered: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Startup,
    Drain,
    /// Below the bandwidth until what probing left in the queue is gone.
    Down {
        since: Time,
    },
    Cruise {
        since: Time,
        rounds: u64,
        wait: Duration,
    },
    /// A round at the bandwidth without lower bounds, so that the probe starts from a full pipe.
    Refill {
        round: u64,
    },
    Up {
        since: Time,
        rounds: u32,
        stalled: u32,
        best: f64,
        /// The RTT before it, other connections' queue included.
        rtt: Duration,
    },
    /// Half a BDP in flight, to see the path without its queue. `done`: when both 200 ms and a round are over.
    ProbeRtt {
        done: Option<Time>,
        round: u64,
    },
}

/// Startup's search for the plateau.
#[derive(Clone, Copy, Debug, Default)]
struct Startup {
    full_bw: f64,
    rounds: u32,
    filled: bool,
}

#[derive(Clone, Copy, Debug)]
struct Undo {
    cwnd: f64,
    inflight_hi: f64,
    inflight_lo: f64,
    bw_lo: f64,
    /// The loss came while the bandwidth was still being looked for.
    searching: bool,
}

impl Bbr {
    pub fn new(max_payload: u16) -> Self {
        let mss = f64::from(max_payload.max(1));
        Self {
            mss,
            cwnd: initial_window(mss),
            state: State::Startup,
            model: Model::new(),
            startup: Startup::default(),
            inflight_hi: f64::INFINITY,
            inflight_lo: f64::INFINITY,
            bw_lo: f64::INFINITY,
            rate: None,
            saved_cwnd: 0.0,
            undo: None,
            loss_ignored_until: 0,
            guessed: false,
            delivered: 0,
        }
    }

    fn bw(&self) -> f64 {
        self.model.max_bw().min(self.bw_lo)
    }

    fn pacing_gain(&self) -> f64 {
        match self.state {
            State::Startup => 2.77,
            State::Drain => 0.5,
            State::Down { .. } => 0.9,
            State::Up { .. } => 1.25,
            State::Cruise { .. } | State::Refill { .. } | State::ProbeRtt { .. } => 1.0,
        }
    }

    fn cwnd_gain(&self) -> f64 {
        match self.state {
            State::Up { .. } => 2.25,
            // The bandwidth is known a round late: with 2 a window that could double grows by half (Linux has 2.89). Once a queue
            // shows, 2 is what is needed.
            State::Startup if !self.model.sees_queue() => 2.77,
            State::ProbeRtt { .. } => 0.5,
            _ => 2.0,
        }
    }

    /// More than the bandwidth is on its way on purpose: losses say something about `inflight_hi`.
    fn is_probing(&self) -> bool {
        matches!(self.state, State::Startup | State::Refill { .. } | State::Up { .. })
    }

    fn step(&mut self, ack: &AckSample) {
        let in_flight = ack.in_flight as f64;
        let bdp = self.model.bdp(self.bw()).unwrap_or(f64::INFINITY);
        match self.state {
            State::Startup => {
                self.look_for_plateau(ack);
                if self.startup.filled {
                    self.state = State::Drain;
                }
            }
            State::Drain if in_flight <= bdp => self.enter_down(ack.now),
            State::Down { since } => self.down(ack, since, bdp),
            State::Cruise { since, rounds, wait } => {
                // As often as Reno would reach this window again, so that Reno and Cubic get their turn (draft section 5.3.3.5).
                let reno_rounds = (bdp / self.mss).min(63.0) as u64;
                if ack.now.since(since) >= wait || self.model.rounds.saturating_sub(rounds) >= reno_rounds.max(8) {
                    self.enter_refill();
                }
            }
            State::Refill { round } if self.model.rounds > round => {
                let rtt = self.model.watched_rtt.unwrap_or(ack.srtt);
                self.state = State::Up { since: ack.now, rounds: 0, stalled: 0, best: self.model.max_bw(), rtt };
            }
            State::Up { .. } => self.up(ack),
            State::ProbeRtt { .. } => self.probe_rtt(ack, bdp),
            _ => {}
        }
        if self.model.rtt_expired(ack.now) && !matches!(self.state, State::ProbeRtt { .. }) {
            self.saved_cwnd = self.cwnd;
            self.model.watch_rtt();
            self.state = State::ProbeRtt { done: None, round: self.model.rounds };
        }
    }

    /// Three rounds in which the bandwidth grew by less than a quarter: the pipe is full.
    fn look_for_plateau(&mut self, ack: &AckSample) {
        if !self.model.round_start || ack.app_limited {
            return;
        }
        let bw = self.model.max_bw();
        if bw >= self.startup.full_bw * 1.25 {
            self.startup = Startup { full_bw: bw, rounds: 0, filled: false };
        } else {
            self.startup.rounds += 1;
            self.startup.filled = self.startup.rounds >= 3;
        }
    }

    fn down(&mut self, ack: &AckSample, since: Time, bdp: f64) {
        let room = (self.inflight_hi * HEADROOM).min(bdp);
        if (ack.in_flight as f64) <= room.max(4.0 * self.mss) {
            self.enter_cruise(ack.now);
        } else if self.is_time_to_probe(ack.now, since) {
            self.enter_refill();
        }
    }

    /// A queue that does not drain belongs to somebody else.
    fn is_time_to_probe(&self, now: Time, since: Time) -> bool {
        now.since(since) >= PROBE_EVERY
    }

    fn up(&mut self, ack: &AckSample) {
        let max_bw = self.model.max_bw();
        let State::Up { since, rounds, stalled, best, rtt } = &mut self.state else { return };
        if self.model.round_start {
            *rounds += 1;
            if max_bw > *best * 1.01 {
                *best = max_bw;
                *stalled = 0;
            } else {
                *stalled += 1;
            }
        }
        // What was sent above the bandwidth must have come back; with a queue of others that takes longer than the minimum RTT.
        let long_enough = *rounds >= 1 && ack.now.since(*since) > *rtt;
        let min_rtt = self.model.min_rtt.unwrap_or(*rtt);
        let ours = max_bw * (min_rtt + rtt.saturating_sub(min_rtt).mul_f64(FOREIGN)).as_secs_f64();
        if self.inflight_hi.is_finite() && self.cwnd >= self.inflight_hi - self.mss {
            // the bandwidth cannot grow before this bound does
            *stalled = 0;
            // One packet in the first round, then two, four ...: a path that became wider is found in a few rounds.
            let per_round = self.mss * f64::from(1u32 << (*rounds).min(20));
            self.inflight_hi += ack.acked as f64 * per_round / self.cwnd.max(self.mss);
        }
        // A queue that stood before is somebody else's: to yield to it would leave a connection that fills queues all the rest.
        let queue_stands = ack.in_flight as f64 >= 1.25 * ours;
        if long_enough && (queue_stands || *stalled >= 3) {
            self.model.next_cycle();
            self.enter_down(ack.now);
        }
    }

    fn probe_rtt(&mut self, ack: &AckSample, bdp: f64) {
        let State::ProbeRtt { done, round } = &mut self.state else { return };
        match *done {
            None if ack.in_flight as f64 <= (bdp * 0.5).max(4.0 * self.mss) + self.mss => {
                *done = Some(ack.now + PROBE_RTT);
                *round = self.model.rounds;
            }
            Some(at) if ack.now >= at && self.model.rounds > *round => {
                self.model.adopt_watched_rtt(ack.now);
                self.cwnd = self.cwnd.max(self.saved_cwnd);
                if self.startup.filled {
                    self.enter_cruise(ack.now);
                } else {
                    self.state = State::Startup;
                }
            }
            _ => {}
        }
    }

    fn enter_down(&mut self, now: Time) {
        self.state = State::Down { since: now };
    }

    fn enter_cruise(&mut self, now: Time) {
        // Two to three seconds; spread by what was delivered so that connections do not probe in step.
        let spread = self.delivered.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 34;
        let wait = match self.model.min_rtt {
            Some(rtt) if std::mem::take(&mut self.guessed) => rtt * 4,
            _ => PROBE_EVERY + Duration::from_nanos(spread.min(1_000_000_000)),
        };
        self.state = State::Cruise { since: now, rounds: self.model.rounds, wait };
    }

    fn enter_refill(&mut self) {
        self.bw_lo = f64::INFINITY;
        self.inflight_lo = f64::INFINITY;
        self.model.watch_rtt();
        self.state = State::Refill { round: self.model.rounds };
    }

    /// The losses of a round outside of probing: down to what got through, by 30 % at most.
    fn be_careful(&mut self, round: &RoundEnd) {
        if round.lost_to_queue && matches!(self.state, State::Down { .. } | State::Cruise { .. }) {
            let bw = if self.bw_lo.is_finite() { self.bw_lo } else { self.model.max_bw() };
            let inflight = if self.inflight_lo.is_finite() { self.inflight_lo } else { self.cwnd };
            self.bw_lo = round.bw.max(bw * BETA);
            self.inflight_lo = round.delivered.max(inflight * BETA);
        }
    }

    /// Probing overflowed the path: that much is the ceiling.
    fn retreat(&mut self, now: Time, in_flight: f64) {
        let bdp = self.model.bdp(self.bw()).unwrap_or(self.cwnd);
        // Startup overshoots by far more than 30 %, and losses taken off already make the flight look small.
        let least = if self.state == State::Startup { bdp } else { bdp.min(self.cwnd) * BETA };
        self.inflight_hi = in_flight.max(least).max(4.0 * self.mss).min(self.inflight_hi);
        self.loss_ignored_until = self.delivered.saturating_add(in_flight as u64);
        match self.state {
            State::Startup => {
                self.startup.filled = true;
                self.guessed = true;
                self.state = State::Drain;
            }
            State::Refill { .. } | State::Up { .. } => {
                self.model.next_cycle();
                self.enter_down(now);
            }
            _ => {}
        }
    }

    fn set_rate(&mut self, srtt: Duration) {
        let bw = self.bw();
        let rate = if bw > 0.0 {
            self.pacing_gain() * bw * MARGIN
        } else {
            self.pacing_gain() * self.cwnd / srtt.as_secs_f64().max(1e-6)
        };
        // Before the pipe is full, a low sample is the application's doing or the first round's.
        if self.startup.filled || self.rate.is_none_or(|old| rate > old) {
            self.rate = Some(rate.clamp(self.mss, MAX_RATE));
        }
    }

    fn set_window(&mut self, ack: &AckSample) {
        let acked = ack.acked as f64;
        match self.model.bdp(self.bw()) {
            Some(bdp) => {
                let quantum = (self.rate.unwrap_or(0.0) / 1000.0).clamp(2.0 * self.mss, 65_536.0);
                let wanted = (self.cwnd_gain() * bdp + self.model.extra_acked()).max(3.0 * quantum);
                if self.startup.filled {
                    self.cwnd = (self.cwnd + acked).min(wanted);
                } else if self.cwnd < wanted || ack.delivered < initial_window(self.mss) as u64 {
                    self.cwnd += acked;
                }
                if matches!(self.state, State::ProbeRtt { .. }) {
                    self.cwnd = self.cwnd.min(bdp * 0.5);
                }
            }
            None if ack.window_limited => self.cwnd += acked,
            None => {}
        }
        self.bound_window();
    }

    fn bound_window(&mut self) {
        let hi = match self.state {
            State::Cruise { .. } | State::ProbeRtt { .. } => self.inflight_hi * HEADROOM,
            _ => self.inflight_hi,
        };
        let bound = hi.min(self.inflight_lo).max(4.0 * self.mss);
        self.cwnd = clamp_window(self.cwnd.max(4.0 * self.mss).min(bound), self.mss);
    }

    fn remember(&mut self) {
        let Self { cwnd, inflight_hi, inflight_lo, bw_lo, .. } = *self;
        self.undo = Some(Undo { cwnd, inflight_hi, inflight_lo, bw_lo, searching: self.state == State::Startup });
    }
}

impl Controller for Bbr {
    fn kind(&self) -> ControllerKind {
        ControllerKind::Bbr
    }

    fn on_sent(&mut self, _now: Time, _bytes: u64, _in_flight: u64) {}

    fn on_ack(&mut self, ack: &AckSample) {
        self.delivered = ack.delivered;
        let probing = self.is_probing();
        if let Some(round) = self.model.on_ack(ack, probing, self.cwnd) {
            self.be_careful(&round);
        }
        self.step(ack);
        self.set_rate(ack.srtt);
        self.set_window(ack);
    }

    fn on_loss(&mut self, loss: &LossSample) {
        if loss.new_episode {
            self.remember();
        }
        self.delivered = self.delivered.max(loss.delivered);
        let too_much = self.model.on_loss(loss);
        // A bandwidth that still grows, and no queue: the path loses that much at any rate.
        let growing = self.state == State::Startup && self.startup.rounds == 0 && !self.model.sees_queue();
        if too_much && self.is_probing() && !growing && self.delivered >= self.loss_ignored_until {
            self.retreat(loss.now, loss.in_flight as f64 + loss.lost as f64);
            let before = self.cwnd;
            self.bound_window();
            self.cwnd = self.cwnd.min(before).max(2.0 * self.mss);
        }
    }

    fn on_timeout(&mut self, _now: Time, _in_flight: u64) {
        self.remember();
        // From here the window grows by what is acknowledged, up to what the model says.
        self.cwnd = clamp_window(0.0, self.mss);
    }

    fn on_spurious_loss(&mut self, _now: Time) {
        if let Some(undo) = self.undo.take() {
            self.cwnd = clamp_window(self.cwnd.max(undo.cwnd), self.mss);
            self.inflight_hi = self.inflight_hi.max(undo.inflight_hi);
            self.inflight_lo = self.inflight_lo.max(undo.inflight_lo);
            self.bw_lo = self.bw_lo.max(undo.bw_lo);
            if undo.searching && self.guessed {
                self.guessed = false;
                self.startup.filled = false;
                self.state = State::Startup;
            }
        }
    }

    /// The model is kept: packets leave at the measured rate, so there is no burst to fear.
    fn on_restart_after_idle(&mut self, now: Time, _idle: Duration) {
        self.model.on_idle(now);
    }

    fn on_mtu(&mut self, max_payload: u16) {
        self.mss = f64::from(max_payload.max(1));
        self.cwnd = clamp_window(self.cwnd, self.mss);
    }

    fn hand_over(&self) -> (u64, bool) {
        let bytes = self.model.bdp(self.bw()).unwrap_or(self.cwnd);
        (bytes as u64, self.startup.filled)
    }

    /// A full path is probed soon, because the bandwidth is the other's guess; any other is searched from there.
    fn take_over(&mut self, path: &Handover) {
        let bw = path.bytes as f64 / path.srtt.as_secs_f64().max(1e-6);
        self.model.take_over(path, bw);
        self.delivered = path.delivered;
        self.cwnd = clamp_window((path.bytes as f64).max(initial_window(self.mss)), self.mss);
        self.startup.full_bw = bw;
        if path.full {
            self.startup.filled = true;
            self.guessed = true;
            self.enter_cruise(path.now);
        }
        self.set_rate(path.srtt);
    }

    fn window(&self) -> u64 {
        clamp_window(self.cwnd, self.mss) as u64
    }

    fn pacing_rate(&self) -> Option<u64> {
        self.rate.map(|rate| rate as u64)
    }
}

/// How far a loss lowers a bound (draft BBR.Beta).
const BETA: f64 = 0.7;
/// What is left free below `inflight_hi` while cruising, for others (draft BBR.Headroom 0.15).
const HEADROOM: f64 = 0.85;
/// Slightly below the bandwidth, so that a wrong measurement does not build a queue (draft BBRPacingMarginPercent 1).
const MARGIN: f64 = 0.99;
/// How much of a queue that stood before a probe is taken for other connections'. By simulation: beside one CUBIC flow 0 leaves BBR
/// a third to two thirds of an equal share, 1 up to 1.7 times as much, and this 0.7 to 1.6 (tests/sim/sharing.rs).
const FOREIGN: f64 = 0.5;
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// draft BBR.ProbeRTTDuration.
const PROBE_RTT: Duration = Duration::from_millis(200);
