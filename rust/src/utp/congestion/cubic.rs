//! CUBIC: RFC 9438, with HyStart++ (RFC 9406) to leave slow start and PRR (RFC 9937) to get through recovery.

use std::time::Duration;

use super::hystart::{Growth, HyStart};
use super::{clamp_window, initial_window, pace, AckSample, Controller, Handover, LossSample};
use crate::config::ControllerKind;
use crate::time::Time;

/// The loss-based controller that shares fairly with TCP.
#[derive(Clone, Debug)]
pub struct Cubic {
    mss: f64,
    /// Bytes, as all windows here.
    cwnd: f64,
    ssthresh: f64,
    curve: Curve,
    hystart: HyStart,
    recovery: Option<Recovery>,
    undo: Option<Undo>,
    /// A timeout happened and nothing was acknowledged since: the next one does not lower ssthresh again (RFC 5681 section 3.1).
    timed_out: bool,
    delivered: u64,
    srtt: Option<Duration>,
    last_ack: Option<Time>,
}

/// The cubic function and Reno's estimate beside it, for one congestion avoidance stage.
#[derive(Clone, Debug, Default)]
struct Curve {
    /// The window before the last reduction, after fast convergence; 0 when the stage did not begin with a loss.
    w_max: f64,
    /// The window just before the last reduction (RFC 9438 `cwnd_prior`): above it, Reno's estimate grows as Reno does.
    cwnd_prior: f64,
    epoch: Option<Epoch>,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// Time spent in this stage with the window in use; time in which the application had nothing to send does not count
    /// (RFC 9438 section 5.8).
    elapsed: Duration,
    w_max: f64,
    k: f64,
    w_est: f64,
}

/// Proportional rate reduction: what leaves is in proportion to what arrives, until the window has come down.
#[derive(Clone, Copy, Debug)]
struct Recovery {
    /// Bytes in flight when it began.
    flight: f64,
    delivered: f64,
    sent: f64,
    /// The window while it lasts.
    window: f64,
    /// It ends with the first packet confirmed that was sent after it began.
    ends_at: u64,
}

/// The state before the last reduction.
#[derive(Clone, Debug)]
struct Undo {
    cwnd: f64,
    ssthresh: f64,
    curve: Curve,
}

impl Cubic {
    pub fn new(max_payload: u16) -> Self {
        let mss = f64::from(max_payload.max(1));
        Self {
            mss,
            cwnd: initial_window(mss),
            ssthresh: f64::INFINITY,
            curve: Curve::default(),
            hystart: HyStart::new(),
            recovery: None,
            undo: None,
            timed_out: false,
            delivered: 0,
            srtt: None,
            last_ack: None,
        }
    }

    fn in_slow_start(&self) -> bool {
        self.cwnd < self.ssthresh
    }

    fn grow(&mut self, ack: &AckSample) {
        if self.in_slow_start() {
            // HyStart++ looks for the end of the first slow start only (RFC 9406 section 4.3): later ones know ssthresh.
            let growth =
                if self.ssthresh.is_infinite() { self.hystart.on_ack(ack, self.mss as u64) } else { Growth::Full };
            match growth {
                Growth::Full => self.cwnd = (self.cwnd + ack.acked as f64).min(self.ssthresh.max(self.cwnd)),
                Growth::Quarter => self.cwnd += ack.acked as f64 / 4.0,
                Growth::Leave => self.ssthresh = self.cwnd,
            }
            return;
        }
        let passed = self.last_ack.map_or(Duration::ZERO, |last| ack.now.since(last)).min(ack.srtt);
        self.cwnd = self.curve.grow(self.cwnd, ack.acked as f64, self.mss, passed, ack.srtt);
    }

    fn remember(&mut self) {
        self.undo = Some(Undo { cwnd: self.cwnd, ssthresh: self.ssthresh, curve: self.curve.clone() });
    }
}

impl Controller for Cubic {
    fn kind(&self) -> ControllerKind {
        ControllerKind::Cubic
    }

    fn on_sent(&mut self, _now: Time, bytes: u64, _in_flight: u64) {
        if let Some(recovery) = &mut self.recovery {
            recovery.sent += bytes as f64;
        }
    }

    fn on_ack(&mut self, ack: &AckSample) {
        self.delivered = ack.delivered;
        self.srtt = Some(ack.srtt);
        if ack.acked > 0 {
            self.timed_out = false;
        }
        let recovering = match &mut self.recovery {
            Some(recovery) if ack.prior_delivered < recovery.ends_at => {
                recovery.on_ack(ack, self.ssthresh, self.mss);
                true
            }
            _ => {
                self.recovery = None;
                false
            }
        };
        if !recovering && ack.window_limited {
            self.grow(ack);
            self.cwnd = clamp_window(self.cwnd, self.mss);
        }
        self.last_ack = Some(ack.now);
    }

    fn on_loss(&mut self, loss: &LossSample) {
        self.delivered = self.delivered.max(loss.delivered);
        if !loss.new_episode {
            return;
        }
        self.remember();
        let before = self.window() as f64;
        self.curve.reduce(self.cwnd);
        self.ssthresh = (self.cwnd * BETA).max(2.0 * self.mss);
        self.cwnd = self.ssthresh;
        let flight = loss.in_flight as f64 + loss.lost as f64;
        self.recovery = Some(Recovery {
            flight: flight.max(self.mss),
            delivered: 0.0,
            sent: 0.0,
            // One packet may go at once: the fast retransmit (RFC 9937 section 6).
            window: (loss.in_flight as f64 + self.mss).min(before),
            ends_at: self.delivered,
        });
    }

    fn on_timeout(&mut self, _now: Time, _in_flight: u64) {
        self.recovery = None;
        if !self.timed_out {
            self.remember();
            self.curve.reduce(self.cwnd);
            self.ssthresh = (self.cwnd * BETA).max(2.0 * self.mss);
        }
        self.timed_out = true;
        // RFC 9438 section 4.8: the stage that follows starts from its own window, not from the old maximum.
        self.curve.w_max = 0.0;
        self.cwnd = clamp_window(0.0, self.mss);
    }

    fn on_spurious_loss(&mut self, _now: Time) {
        if let Some(undo) = self.undo.take() {
            self.recovery = None;
            self.cwnd = self.cwnd.max(undo.cwnd);
            self.ssthresh = undo.ssthresh;
            self.curve = undo.curve;
        }
    }

    /// The window is kept for 10 s and then halved for each further 10 s, down to the initial one. RFC 5681 would restart from
    /// there after one RTO; that guards against a burst, which pacing prevents, and costs an RPC after a pause several round
    /// trips. RFC 7661 section 4.4 keeps an unused window for up to 5 minutes.
    fn on_restart_after_idle(&mut self, now: Time, idle: Duration) {
        let halvings = i32::try_from(idle.as_secs() / IDLE_HALVES.as_secs()).unwrap_or(i32::MAX).min(64);
        let initial = initial_window(self.mss);
        if halvings > 0 && self.cwnd > initial {
            self.ssthresh = self.ssthresh.max(self.cwnd * 0.75);
            self.cwnd = (self.cwnd * 0.5f64.powi(halvings)).max(initial);
            self.curve.epoch = None;
            self.recovery = None;
        }
        self.hystart.restart(self.delivered);
        self.last_ack = Some(now);
    }

    fn on_mtu(&mut self, max_payload: u16) {
        self.mss = f64::from(max_payload.max(1));
        self.cwnd = clamp_window(self.cwnd, self.mss);
    }

    fn hand_over(&self) -> (u64, bool) {
        (self.cwnd as u64, !self.in_slow_start())
    }

    fn take_over(&mut self, path: &Handover) {
        self.cwnd = clamp_window((path.bytes as f64).max(initial_window(self.mss)), self.mss);
        if path.full {
            self.ssthresh = self.cwnd;
        }
        self.srtt = Some(path.srtt);
        self.delivered = path.delivered;
        self.hystart.restart(path.delivered);
    }

    fn window(&self) -> u64 {
        let window = self.recovery.map_or(self.cwnd, |recovery| recovery.window);
        clamp_window(window, self.mss) as u64
    }

    /// As Linux: twice the window a round trip in slow start, 1.2 times later, so that pacing never is what limits.
    fn pacing_rate(&self) -> Option<u64> {
        let gain = if self.in_slow_start() { 2.0 } else { 1.2 };
        self.srtt.map(|srtt| pace(self.cwnd * gain, srtt))
    }
}

impl Curve {
    /// A loss at this window: remembers where the plateau is, lower than where it was when the window never got back there
    /// (fast convergence, RFC 9438 section 4.7).
    fn reduce(&mut self, cwnd: f64) {
        self.w_max = if cwnd < self.w_max { cwnd * (1.0 + BETA) / 2.0 } else { cwnd };
        self.cwnd_prior = cwnd;
        self.epoch = None;
    }

    /// The window after `acked` bytes more, `passed` after the previous ack (RFC 9438 sections 4.2 to 4.5).
    fn grow(&mut self, cwnd: f64, acked: f64, mss: f64, passed: Duration, srtt: Duration) -> f64 {
        let epoch = self.epoch.get_or_insert_with(|| Epoch::begin(cwnd, self.w_max, mss));
        epoch.elapsed += passed;
        let alpha = if epoch.w_est >= self.cwnd_prior { 1.0 } else { ALPHA };
        epoch.w_est += alpha * acked * mss / cwnd.max(mss);
        let now = epoch.at(epoch.elapsed, mss);
        if now < epoch.w_est {
            return cwnd.max(epoch.w_est);
        }
        let target = epoch.at(epoch.elapsed + srtt, mss).clamp(cwnd, 1.5 * cwnd);
        cwnd + (target - cwnd) * acked / cwnd.max(mss)
    }
}

impl Epoch {
    fn begin(cwnd: f64, w_max: f64, mss: f64) -> Self {
        let (w_max, k) = if w_max > cwnd { (w_max, cube_root((w_max - cwnd) / mss / C)) } else { (cwnd, 0.0) };
        Self { elapsed: Duration::ZERO, w_max, k, w_est: cwnd }
    }

    /// W_cubic(t) in bytes.
    fn at(&self, t: Duration, mss: f64) -> f64 {
        let from_plateau = t.as_secs_f64() - self.k;
        self.w_max + C * from_plateau * from_plateau * from_plateau * mss
    }
}

impl Recovery {
    fn on_ack(&mut self, ack: &AckSample, ssthresh: f64, mss: f64) {
        let acked = ack.acked as f64;
        let in_flight = ack.in_flight as f64;
        self.delivered += acked;
        let may_send = if in_flight > ssthresh {
            (self.delivered * ssthresh / self.flight).ceil() - self.sent
        } else {
            // Slow start back to ssthresh when losses or a silent application emptied the path (RFC 9937: PRR-SSRB).
            ((self.delivered - self.sent).max(acked) + mss).min(ssthresh - in_flight)
        };
        self.window = in_flight + may_send.max(0.0);
    }
}

/// By Newton's method: the C library's answers differ in the last bit between machines, and simulations must not.
fn cube_root(x: f64) -> f64 {
    let mut root = x.max(1.0);
    for _ in 0..80 {
        root -= (root - x / (root * root)) / 3.0;
    }
    root
}

/// RFC 9438 section 4.1, in segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438 section 4.6.
const BETA: f64 = 0.7;
/// 3 * (1 - BETA) / (1 + BETA), RFC 9438 section 4.3.
const ALPHA: f64 = 0.9 / 1.7;

const IDLE_HALVES: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const MSS: f64 = 1000.0;

    /// A controller in congestion avoidance after a loss at `segments`.
    fn after_loss_at(segments: f64) -> Cubic {
        let mut cubic = Cubic::new(1000);
        cubic.cwnd = segments * MSS;
        cubic.on_loss(&loss(segments, 0));
        cubic.recovery = None;
        cubic
    }

    fn loss(in_flight: f64, delivered: u64) -> LossSample {
        LossSample {
            now: Time::from_millis(1000),
            lost: 1000,
            in_flight: ((in_flight - 1.0) * MSS) as u64,
            newest_lost_sent: Time::ZERO,
            new_episode: true,
            delivered,
        }
    }

    fn ack(millis: u64, acked: u64, rtt: u64, delivered: u64, prior_delivered: u64) -> AckSample {
        AckSample {
            now: Time::from_millis(millis),
            acked,
            prior_in_flight: 1 << 20,
            in_flight: 1 << 19,
            rtt: Some(Duration::from_millis(rtt)),
            rtt_sum: Duration::from_millis(rtt),
            rtt_count: 1,
            min_rtt: Duration::from_millis(100),
            srtt: Duration::from_millis(rtt),
            delay_micros: None,
            delivery_rate: None,
            app_limited: false,
            delivered,
            prior_delivered,
            window_limited: true,
        }
    }

    /// RFC 9438 equations 1 and 2 with C = 0.4 and beta = 0.7, worked out by hand.
    #[test]
    fn the_curve_of_rfc_9438() {
        // (W_max, K = cbrt(0.3 * W_max / 0.4), then t and W_cubic(t) in segments)
        let table = [
            (100.0, 4.2172, [(0.0, 70.0), (1.0, 86.6817), (4.2172, 100.0), (5.2172, 100.4), (8.4343, 130.0)]),
            (1000.0, 9.0856, [(0.0, 700.0), (5.0, 972.7189), (9.0856, 1000.0), (14.0856, 1050.0), (18.1712, 1300.0)]),
        ];
        for (w_max, k, points) in table {
            let epoch = Epoch::begin(0.7 * w_max * MSS, w_max * MSS, MSS);
            assert!((epoch.k - k).abs() < 1e-3, "K = {}", epoch.k);
            for (t, segments) in points {
                let got = epoch.at(Duration::from_secs_f64(t), MSS) / MSS;
                assert!((got - segments).abs() < 0.02, "W({t}) = {got}, not {segments}");
            }
        }
    }

    #[test]
    fn a_loss_takes_three_tenths_and_fast_convergence_more() {
        let mut cubic = after_loss_at(100.0);
        assert_eq!((cubic.cwnd, cubic.ssthresh, cubic.curve.w_max), (70_000.0, 70_000.0, 100_000.0));
        cubic.on_loss(&loss(70.0, 0));
        assert!((cubic.curve.w_max - 70_000.0 * 0.85).abs() < 1e-6);
        assert_eq!(cubic.curve.cwnd_prior, 70_000.0);
    }

    #[test]
    fn back_at_the_plateau_after_k_seconds() {
        let mut cubic = after_loss_at(1000.0);
        let mut delivered = 0;
        // K = 9.09 s; one ack of 50 segments at a time, as many as the window a round trip of 100 ms
        let mut millis = 1000.0;
        while millis < 10_086.0 {
            millis += 100.0 * 50_000.0 / cubic.cwnd;
            delivered += 50_000;
            cubic.on_ack(&ack(millis as u64, 50_000, 100, delivered, delivered - 50_000));
        }
        assert!((990_000.0..1_010_000.0).contains(&cubic.cwnd), "{}", cubic.cwnd);
    }

    #[test]
    fn small_windows_grow_as_reno_does() {
        // W_max = 10, RTT 10 ms: K = 1.96 s, but Reno's estimate gains 0.529 segments a round trip and wins.
        let mut cubic = after_loss_at(10.0);
        for n in 0..70 {
            cubic.on_ack(&ack(1000 + n * 10 / 7, 1000, 10, 1000 * n, 1000 * n));
        }
        // ten round trips of about 7 to 12 segments, each 0.529 segments
        assert!((10_500.0..13_000.0).contains(&cubic.cwnd), "{}", cubic.cwnd);
    }

    #[test]
    fn an_application_without_data_grows_nothing() {
        let mut cubic = after_loss_at(100.0);
        for n in 0..1000 {
            cubic.on_ack(&AckSample { window_limited: false, ..ack(1000 + n * 100, 1000, 100, n * 1000, n * 1000) });
        }
        assert_eq!(cubic.cwnd, 70_000.0);
        // and the time does not count afterwards: the first round trip grows by the curve's beginning only
        cubic.on_ack(&ack(101_100, 70_000, 100, 1 << 30, 1 << 30));
        assert!(cubic.cwnd < 75_000.0, "{}", cubic.cwnd);
    }

    #[test]
    fn a_mistaken_loss_is_undone() {
        let mut cubic = Cubic::new(1000);
        cubic.cwnd = 100_000.0;
        cubic.on_loss(&loss(100.0, 0));
        cubic.on_spurious_loss(Time::ZERO);
        assert_eq!((cubic.window(), cubic.ssthresh, cubic.curve.w_max), (100_000, f64::INFINITY, 0.0));
        cubic.on_timeout(Time::ZERO, 0);
        assert_eq!(cubic.window(), 2000);
        cubic.on_timeout(Time::ZERO, 0);
        assert_eq!(cubic.ssthresh, 70_000.0, "a timeout after a timeout lowers no more");
        cubic.on_spurious_loss(Time::ZERO);
        assert_eq!(cubic.window(), 100_000);
    }

    /// PRR: with every packet acknowledged singly, 7 of 10 acks let one out, until 70 are in flight.
    #[test]
    fn recovery_sends_in_proportion() {
        let mut cubic = Cubic::new(1000);
        cubic.cwnd = 100_000.0;
        cubic.on_loss(&loss(100.0, 50_000));
        assert_eq!(cubic.window(), 100_000, "one packet goes at once: 99 in flight and the fast retransmit");
        let (mut in_flight, mut sent) = (99_000, 0);
        for n in 1..=99u64 {
            in_flight -= 1000;
            let sample = AckSample { in_flight, ..ack(1000 + n, 1000, 100, 50_000 + n * 1000, n * 500) };
            cubic.on_ack(&sample);
            while in_flight + 1000 <= cubic.window() {
                in_flight += 1000;
                sent += 1;
                cubic.on_sent(Time::ZERO, 1000, in_flight);
            }
        }
        assert!((69..=71).contains(&sent), "{sent}");
        assert!((69_000..=71_000).contains(&in_flight), "{in_flight}");
        cubic.on_ack(&ack(2000, 1000, 100, 200_000, 50_000));
        assert!(cubic.recovery.is_none());
    }

    #[test]
    fn slow_start_ends_when_the_round_trip_grows() {
        let mut cubic = Cubic::new(1000);
        let mut delivered = 0;
        for round in 0..40u64 {
            let rtt = if round < 5 { 100 } else { 130 };
            let (packets, before) = ((cubic.cwnd / MSS) as u64, delivered);
            for _ in 0..packets.min(64) {
                delivered += 1000;
                cubic.on_ack(&ack(1000 + round * 100, 1000, rtt, delivered, before));
            }
        }
        assert!(cubic.ssthresh.is_finite(), "HyStart++ left slow start");
        assert!(cubic.cwnd < 2_000_000.0);
    }

    #[test]
    fn idle_time_lowers_the_window_by_halves() {
        let mut cubic = after_loss_at(1000.0);
        cubic.on_restart_after_idle(Time::from_millis(5000), Duration::from_secs(9));
        assert_eq!(cubic.cwnd, 700_000.0);
        cubic.on_restart_after_idle(Time::from_millis(25_000), Duration::from_secs(20));
        assert_eq!(cubic.cwnd, 175_000.0);
        cubic.on_restart_after_idle(Time::from_millis(25_000), Duration::from_secs(20_000));
        assert_eq!(cubic.cwnd, 10_000.0);
    }
}
