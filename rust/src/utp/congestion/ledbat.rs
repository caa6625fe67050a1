//! LEDBAT (RFC 6817) with the guards of LEDBAT++ (draft-irtf-iccrg-ledbat-plus-plus): for transfers that must not be noticed.
//!
//! From LEDBAT++ come the gain that shrinks on short paths, the multiplicative decrease, the slow start that ends early, and
//! the periodic slowdowns: without them a later connection takes the queue of an earlier one for the length of the path.

use std::time::Duration;

use super::{clamp_window, pace, AckSample, Controller, Handover, LossSample};
use crate::config::ControllerKind;
use crate::time::Time;

/// The delay-based controller that yields to everything else.
#[derive(Clone, Debug)]
pub struct Ledbat {
    mss: f64,
    cwnd: f64,
    ssthresh: f64,
    /// The queueing delay to aim at, as configured.
    target: Duration,
    /// What is aimed at now: less than `target` where the queue overflows before it is that long.
    reachable: Duration,
    one_way: OneWayDelay,
    /// The last RTTs above the minimum; its smallest is the queue of both directions.
    round_trip: Recent<Duration>,
    queue: Duration,
    phase: Phase,
    next_slowdown: Option<Time>,
    undo: Option<Undo>,
    timed_out: bool,
    srtt: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first slow start: ends when a queue is seen.
    SlowStart,
    Avoidance,
    /// Two packets for two round trips, so that the queue drains and the base delay shows.
    Slowdown {
        began: Time,
        until: Time,
    },
    /// Slow start back to where it was.
    Climb {
        began: Time,
    },
}

/// The state before the last reduction.
#[derive(Clone, Copy, Debug)]
struct Undo {
    cwnd: f64,
    ssthresh: f64,
    reachable: Duration,
    phase: Phase,
}

impl Ledbat {
    /// `target`: queueing delay; RFC 6817 section 2.4.2 allows at most 100 ms.
    pub fn new(target: Duration, max_payload: u16) -> Self {
        let mss = f64::from(max_payload.max(1));
        let target = target.clamp(MIN_TARGET, Duration::from_millis(100));
        Self {
            mss,
            cwnd: 2.0 * mss,
            ssthresh: f64::INFINITY,
            target,
            reachable: target,
            one_way: OneWayDelay::default(),
            round_trip: Recent::default(),
            queue: Duration::ZERO,
            phase: Phase::SlowStart,
            next_slowdown: None,
            undo: None,
            timed_out: false,
            srtt: None,
        }
    }

    /// Queueing delay on the way to the peer, as far as known now.
    ///
    /// The one-way delay is exact but believes two clocks; the round trip needs one clock but has the way back in it. The
    /// smaller of the two is right whichever of them is off: drift and clock steps cannot make a queue.
    fn measure(&mut self, ack: &AckSample) {
        let one_way = ack.delay_micros.and_then(|delay| self.one_way.queue(ack.now, delay));
        if let Some(rtt) = ack.rtt {
            self.round_trip.push(rtt.saturating_sub(ack.min_rtt));
        }
        let round_trip = self.round_trip.iter().min().copied();
        if let Some(queue) = one_way.into_iter().chain(round_trip).min() {
            self.queue = queue;
        }
    }

    /// LEDBAT++ section 4.2: 1 / min(16, ceil(2 * target / base)), so that a short path is not filled faster than TCP would.
    fn gain(&self, base: Duration) -> f64 {
        let ratio = 2.0 * self.target.as_secs_f64() / base.as_secs_f64().max(1e-6);
        1.0 / ratio.ceil().clamp(1.0, 16.0)
    }

    fn grow_slowly_started(&mut self, ack: &AckSample, gain: f64) {
        if ack.window_limited {
            self.cwnd = (self.cwnd + ack.acked as f64 * gain).min(self.ssthresh.max(self.cwnd));
        }
        if self.queue > self.reachable.mul_f64(0.75) || self.cwnd >= self.ssthresh {
            self.leave_slow_start(ack.now, ack.srtt);
        }
    }

    fn leave_slow_start(&mut self, now: Time, srtt: Duration) {
        let wait = match self.phase {
            Phase::Climb { began } => now.since(began) * 9,
            _ => srtt * 2,
        };
        self.next_slowdown = Some(now + wait);
        self.phase = Phase::Avoidance;
    }

    /// Above the target down in proportion to the excess, by half a round trip at most. Below it one packet more a round trip;
    /// while there is hardly a queue, 3 % of the window, or a lone transfer would need minutes to fill a long path.
    fn steer(&mut self, ack: &AckSample, gain: f64) {
        let share = ack.acked as f64 / self.cwnd.max(self.mss);
        let excess = self.queue.as_secs_f64() / self.reachable.as_secs_f64() - 1.0;
        let step = gain * self.mss;
        if excess > 0.0 {
            self.cwnd += (step - self.cwnd * excess).clamp(-self.cwnd / 2.0, 0.0) * share.min(1.0);
        } else if ack.window_limited {
            let step = if excess < -0.75 { step.max(self.cwnd / 32.0) } else { step };
            self.cwnd += step * share;
        }
    }

    fn remember(&mut self) {
        let Self { cwnd, ssthresh, reachable, phase, .. } = *self;
        self.undo = Some(Undo { cwnd, ssthresh, reachable, phase });
    }

    fn begin_slowdown(&mut self, now: Time, srtt: Duration) {
        self.ssthresh = self.cwnd;
        self.cwnd = 2.0 * self.mss;
        self.phase = Phase::Slowdown { began: now, until: now + srtt * 2 };
        self.next_slowdown = None;
        // A queue that once was shorter than the target may have been another path's: forgotten by and by.
        self.reachable = self.reachable.mul_f64(1.05).min(self.target);
    }
}

impl Controller for Ledbat {
    fn kind(&self) -> ControllerKind {
        ControllerKind::Ledbat
    }

    fn on_sent(&mut self, _now: Time, _bytes: u64, _in_flight: u64) {}

    fn on_ack(&mut self, ack: &AckSample) {
        self.srtt = Some(ack.srtt);
        self.timed_out &= ack.acked == 0;
        self.measure(ack);
        let gain = self.gain(ack.min_rtt);
        match self.phase {
            Phase::SlowStart | Phase::Climb { .. } => self.grow_slowly_started(ack, gain),
            Phase::Avoidance if self.next_slowdown.is_some_and(|at| ack.now >= at) => {
                self.begin_slowdown(ack.now, ack.srtt);
            }
            Phase::Avoidance => self.steer(ack, gain),
            Phase::Slowdown { began, until } if ack.now >= until => self.phase = Phase::Climb { began },
            Phase::Slowdown { .. } => {}
        }
        self.cwnd = clamp_window(self.cwnd, self.mss);
    }

    fn on_loss(&mut self, loss: &LossSample) {
        if !loss.new_episode {
            return;
        }
        self.remember();
        if self.queue > MIN_TARGET && self.queue < self.reachable {
            // The queue overflowed before the target was reached: aim lower, or this would be a loss-based controller.
            self.reachable = (self.queue / 2).max(MIN_TARGET);
        }
        self.cwnd = clamp_window(self.cwnd / 2.0, self.mss).min(self.cwnd.max(2.0 * self.mss));
        self.ssthresh = self.cwnd;
        if matches!(self.phase, Phase::SlowStart | Phase::Climb { .. }) {
            self.leave_slow_start(loss.now, self.srtt.unwrap_or(Duration::from_millis(100)));
        }
    }

    fn on_timeout(&mut self, now: Time, _in_flight: u64) {
        if !self.timed_out {
            self.remember();
            self.ssthresh = (self.cwnd / 2.0).max(2.0 * self.mss);
        }
        self.timed_out = true;
        self.cwnd = clamp_window(0.0, self.mss);
        self.phase = Phase::Climb { began: now };
    }

    fn on_spurious_loss(&mut self, _now: Time) {
        if let Some(undo) = self.undo.take() {
            self.cwnd = clamp_window(self.cwnd.max(undo.cwnd), self.mss);
            self.ssthresh = undo.ssthresh;
            self.reachable = undo.reachable;
            self.phase = undo.phase;
        }
    }

    /// What the path was like before is not known any more, and a background transfer has time.
    fn on_restart_after_idle(&mut self, now: Time, idle: Duration) {
        if idle >= Duration::from_secs(1) && matches!(self.phase, Phase::Avoidance | Phase::Climb { .. }) {
            self.ssthresh = self.ssthresh.min(self.cwnd);
            self.cwnd = (self.cwnd / 2.0).max(2.0 * self.mss);
            self.phase = Phase::Climb { began: now };
        }
    }

    fn on_mtu(&mut self, max_payload: u16) {
        self.mss = f64::from(max_payload.max(1));
        self.cwnd = clamp_window(self.cwnd, self.mss);
    }

    /// What it leaves to others is not known, so the path is never full.
    fn hand_over(&self) -> (u64, bool) {
        let before_slowdown = matches!(self.phase, Phase::Slowdown { .. } | Phase::Climb { .. });
        let bytes = if before_slowdown && self.ssthresh.is_finite() { self.ssthresh.max(self.cwnd) } else { self.cwnd };
        (bytes as u64, false)
    }

    /// Yields from there: what is above the target goes within a few round trips, and the slowdown that follows shows the base delay.
    fn take_over(&mut self, path: &Handover) {
        self.cwnd = clamp_window(path.bytes as f64, self.mss);
        self.ssthresh = self.cwnd;
        self.srtt = Some(path.srtt);
        self.phase = Phase::Avoidance;
        self.next_slowdown = Some(path.now + path.srtt * 2);
    }

    fn window(&self) -> u64 {
        clamp_window(self.cwnd, self.mss) as u64
    }

    fn pacing_rate(&self) -> Option<u64> {
        let gain = if matches!(self.phase, Phase::SlowStart | Phase::Climb { .. }) { 2.0 } else { 1.2 };
        self.srtt.map(|srtt| pace(self.cwnd * gain, srtt))
    }
}

/// The minima of ten minutes, one a minute (RFC 6817 section 3.4.2), and the last samples. Everything wraps at 2^32 µs, and the
/// peer's clock has nothing to do with ours: only differences to the minimum mean anything.
#[derive(Clone, Debug, Default)]
struct OneWayDelay {
    base: [Option<u32>; 10],
    minute: Time,
    current: Recent<u32>,
}

impl OneWayDelay {
    /// Takes a sample in; gives the queueing delay.
    fn queue(&mut self, now: Time, delay: u32) -> Option<Duration> {
        let minutes = usize::try_from(now.since(self.minute).as_secs() / 60).unwrap_or(usize::MAX);
        if minutes > 0 {
            let shift = minutes.min(self.base.len());
            self.base.rotate_right(shift);
            self.base.iter_mut().take(shift).for_each(|slot| *slot = None);
            self.minute = now;
        }
        let newest = self.base.first_mut()?;
        *newest = Some(newest.map_or(delay, |old| earlier(old, delay)));
        self.current.push(delay);
        let base = self.base.iter().flatten().copied().reduce(earlier)?;
        let current = self.current.iter().copied().reduce(earlier)?;
        // Negative when the base was taken from a later sample than all current ones: no queue.
        let micros = u32::try_from(current.wrapping_sub(base).cast_signed()).unwrap_or(0);
        Some(Duration::from_micros(micros.into()))
    }
}

/// The smaller of two wrapping delays, which are less than 35 minutes apart.
fn earlier(a: u32, b: u32) -> u32 {
    if a.wrapping_sub(b).cast_signed() < 0 {
        a
    } else {
        b
    }
}

/// The last four samples (RFC 6817 section 3.4.2 CURRENT_FILTER): a single late packet is no queue.
#[derive(Clone, Debug)]
struct Recent<T> {
    samples: [Option<T>; 4],
    next: usize,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { samples: [const { None }; 4], next: 0 }
    }
}

impl<T> Recent<T> {
    fn push(&mut self, sample: T) {
        if let Some(slot) = self.samples.get_mut(self.next) {
            *slot = Some(sample);
        }
        self.next = (self.next + 1) % self.samples.len();
    }

    fn iter(&self) -> impl Iterator<Item = &T> {
        self.samples.iter().flatten()
    }
}

/// Below this a queue cannot be told from the jitter of timers and wireless links.
const MIN_TARGET: Duration = Duration::from_millis(2);

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(n: u64) -> Time {
        Time::from_millis(1 + n * 60_000)
    }

    fn repeated(delays: &mut OneWayDelay, now: Time, delay: u32) -> Duration {
        (0..4).filter_map(|_| delays.queue(now, delay)).last().unwrap()
    }

    #[test]
    fn a_queue_is_the_difference_to_the_smallest_delay() {
        let mut delays = OneWayDelay::default();
        assert_eq!(repeated(&mut delays, minutes(0), 5_000_000), Duration::ZERO);
        assert_eq!(repeated(&mut delays, minutes(0), 5_030_000), Duration::from_millis(30));
        assert_eq!(delays.queue(minutes(0), 5_900_000), Some(Duration::from_millis(30)), "one late packet is no queue");
    }

    #[test]
    fn delays_wrap() {
        let mut delays = OneWayDelay::default();
        repeated(&mut delays, minutes(0), u32::MAX - 9_999);
        assert_eq!(repeated(&mut delays, minutes(0), 20_000), Duration::from_millis(30));
        assert_eq!(repeated(&mut delays, minutes(0), u32::MAX - 19_999), Duration::ZERO);
        assert_eq!(repeated(&mut delays, minutes(0), 20_000), Duration::from_millis(40));
    }

    #[test]
    fn the_base_is_forgotten_after_ten_minutes() {
        let mut delays = OneWayDelay::default();
        repeated(&mut delays, minutes(0), 1_000);
        for minute in 1..10 {
            assert_eq!(repeated(&mut delays, minutes(minute), 51_000), Duration::from_millis(50));
        }
        assert_eq!(repeated(&mut delays, minutes(10), 51_000), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_steps_makes_no_queue() {
        let mut ledbat = Ledbat::new(Duration::from_millis(60), 1000);
        let mut now = Time::from_millis(1);
        for (delay, count) in [(1_000_000u32, 400), (3_000_000, 400), (4_000_000_000, 400)] {
            for _ in 0..count {
                now += Duration::from_millis(10);
                ledbat.on_ack(&AckSample {
                    now,
                    acked: 1000,
                    prior_in_flight: ledbat.window(),
                    in_flight: ledbat.window() - 1000,
                    rtt: Some(Duration::from_millis(51)),
                    rtt_sum: Duration::from_millis(51),
                    rtt_count: 1,
                    min_rtt: Duration::from_millis(50),
                    srtt: Duration::from_millis(51),
                    delay_micros: Some(delay),
                    delivery_rate: None,
                    app_limited: false,
                    delivered: 0,
                    prior_delivered: 0,
                    window_limited: true,
                });
            }
            assert!(ledbat.queue <= Duration::from_millis(1));
        }
        assert!(ledbat.window() > 100_000, "{}", ledbat.window());
    }
}
