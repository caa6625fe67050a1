//! What BBR believes of the path: rounds, bandwidth, minimum RTT, ack aggregation, and which losses mean congestion.

use std::time::Duration;

use super::{AckSample, Handover, LossSample};
use crate::time::Time;

/// The path model. Rates in bytes per second, amounts in bytes.
#[derive(Clone, Debug)]
pub(super) struct Model {
    pub(super) rounds: u64,
    /// This ack began a round.
    pub(super) round_start: bool,
    round_end: u64,
    round_began_delivered: u64,
    /// Maxima of the previous and the current probing cycle.
    max_bw: [f64; 2],
    /// Largest rate sample of this round, and bytes delivered in it.
    pub(super) bw_latest: f64,
    pub(super) delivered_in_round: f64,
    /// The smallest of the mean RTTs of single rounds, over [`MIN_RTT_AGE`]: what packets take without a queue. What is in flight is the
    /// bandwidth times the mean RTT, so on a path with jitter the smallest RTT of single packets would starve the sender.
    pub(super) min_rtt: Option<Duration>,
    min_rtt_at: Time,
    /// The same since [`Model::watch_rtt`].
    pub(super) watched_rtt: Option<Duration>,
    srtt: Duration,
    /// The next round replaces the minimum: it is of a single packet, or had expired when the connection fell idle.
    renew_rtt: bool,
    loss: LossMeter,
    aggregation: Aggregation,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            rounds: 0,
            round_start: false,
            round_end: 0,
            round_began_delivered: 0,
            max_bw: [0.0; 2],
            bw_latest: 0.0,
            delivered_in_round: 0.0,
            min_rtt: None,
            min_rtt_at: Time::ZERO,
            watched_rtt: None,
            srtt: Duration::ZERO,
            renew_rtt: false,
            loss: LossMeter::default(),
            aggregation: Aggregation::default(),
        }
    }

    pub(super) fn take_over(&mut self, path: &Handover, bw: f64) {
        self.max_bw = [0.0, bw];
        self.min_rtt = Some(path.min_rtt.max(Duration::from_micros(1)));
        self.min_rtt_at = path.now;
        self.round_end = path.delivered;
        self.round_began_delivered = path.delivered;
    }

    /// Takes an ack in. `probing`: more than the bandwidth is being sent on purpose. Gives the judgement of the round that ended.
    pub(super) fn on_ack(&mut self, ack: &AckSample, probing: bool, window: f64) -> Option<RoundEnd> {
        self.round_start = ack.prior_delivered >= self.round_end;
        let ended = self.round_start.then(|| self.end_round(ack, probing));
        self.delivered_in_round = ack.delivered.saturating_sub(self.round_began_delivered) as f64;
        self.loss.on_ack(ack);
        if let Some(rate) = ack.delivery_rate {
            let rate = rate as f64;
            self.bw_latest = self.bw_latest.max(rate);
            if !ack.app_limited || rate >= self.max_bw() {
                let [_, current] = &mut self.max_bw;
                *current = current.max(rate);
            }
        }
        if let (None, Some(rtt)) = (self.min_rtt, ack.rtt) {
            self.on_rtt(ack.now, rtt);
            self.renew_rtt = true;
        }
        self.srtt = ack.srtt;
        self.aggregation.on_ack(ack, self.max_bw(), window, self.rounds);
        ended
    }

    fn end_round(&mut self, ack: &AckSample, probing: bool) -> RoundEnd {
        if let Some(mean) = self.loss.mean_rtt() {
            self.on_rtt(ack.now, mean);
        }
        let end = RoundEnd {
            lost_to_queue: self.loss.has_queue(self.min_rtt) && self.loss.is_above_usual(),
            bw: self.bw_latest,
            delivered: self.delivered_in_round,
        };
        self.loss.end_round(self.min_rtt, probing);
        self.rounds += 1;
        self.round_end = ack.delivered;
        self.round_began_delivered = ack.delivered.saturating_sub(ack.acked);
        self.bw_latest = 0.0;
        end
    }

    fn on_rtt(&mut self, now: Time, rtt: Duration) {
        self.watched_rtt = Some(self.watched_rtt.map_or(rtt, |old| old.min(rtt)));
        match self.min_rtt {
            Some(min) if rtt >= min && !self.renew_rtt => {
                // Close to the minimum is as good as the minimum: a connection that drains its queue by itself need not
                // stop for it every ten seconds.
                if rtt <= min + min / 32 {
                    self.min_rtt_at = now;
                }
            }
            _ => {
                self.min_rtt = Some(rtt.max(Duration::from_micros(1)));
                self.min_rtt_at = now;
                self.renew_rtt = false;
            }
        }
    }

    /// Losses. True when this round's are too many for the amount in flight.
    pub(super) fn on_loss(&mut self, loss: &LossSample) -> bool {
        self.loss.on_loss(loss);
        self.loss.is_excessive(loss.in_flight as f64 + loss.lost as f64, self.min_rtt)
    }

    pub(super) fn max_bw(&self) -> f64 {
        let [previous, current] = self.max_bw;
        previous.max(current)
    }

    /// A probing cycle ended: what was measured two cycles ago is forgotten.
    pub(super) fn next_cycle(&mut self) {
        let [_, current] = self.max_bw;
        if current > 0.0 {
            self.max_bw = [current, 0.0];
        }
    }

    /// Bandwidth times minimum RTT, or times [`HOST_DELAY`] where the path is shorter than that.
    pub(super) fn bdp(&self, bw: f64) -> Option<f64> {
        self.min_rtt.map(|rtt| bw * rtt.max(HOST_DELAY).as_secs_f64()).filter(|bdp| *bdp > 0.0)
    }

    pub(super) fn rtt_expired(&self, now: Time) -> bool {
        self.min_rtt.is_some() && now.since(self.min_rtt_at) > MIN_RTT_AGE
    }

    /// The smoothed RTT is an eighth above the minimum.
    pub(super) fn sees_queue(&self) -> bool {
        self.min_rtt.is_some_and(|min| self.srtt > min + min / 8 + JITTER)
    }

    /// The queue is being drained to see the minimum again.
    pub(super) fn watch_rtt(&mut self) {
        self.watched_rtt = None;
    }

    /// What was seen since is the new minimum.
    pub(super) fn adopt_watched_rtt(&mut self, now: Time) {
        self.min_rtt = self.watched_rtt.or(self.min_rtt);
        self.min_rtt_at = now;
    }

    pub(super) fn on_idle(&mut self, now: Time) {
        self.renew_rtt = self.rtt_expired(now);
    }

    /// Bytes that acks came in advance of the bandwidth: what a window needs on top to bridge their gaps.
    pub(super) fn extra_acked(&self) -> f64 {
        let [a, b] = self.aggregation.max;
        a.max(b)
    }
}

/// What a round told.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundEnd {
    /// Something was lost while a queue stood, beyond what this path always loses.
    pub(super) lost_to_queue: bool,
    pub(super) bw: f64,
    pub(super) delivered: f64,
}

/// Tells losses by overflow from losses by noise.
///
/// BBRv2 and v3 take any loss above 2 % for congestion, and so fall back on wireless paths that lose 3 % at any rate. An
/// overflow comes with a queue, and a queue with a longer RTT: losses in rounds without one are this path's own (`usual`) and
/// raise the ceiling. Without a queue more than 10 % still is too much: that is a policer.
#[derive(Clone, Copy, Debug, Default)]
struct LossMeter {
    delivered: f64,
    lost: f64,
    events: u32,
    rtt_sum: Duration,
    rtt_count: u32,
    usual: f64,
    quiet_rounds: f64,
    mss: f64,
}

impl LossMeter {
    fn on_ack(&mut self, ack: &AckSample) {
        self.delivered += ack.acked as f64;
        self.rtt_sum = self.rtt_sum.saturating_add(ack.rtt_sum);
        self.rtt_count = self.rtt_count.saturating_add(ack.rtt_count);
    }

    fn on_loss(&mut self, loss: &LossSample) {
        self.lost += loss.lost as f64;
        self.events += 1;
        // The size of a packet, as far as the losses show it: a floor for counts of packets.
        self.mss = if self.mss == 0.0 { loss.lost as f64 } else { self.mss.min(loss.lost as f64) };
    }

    fn mean_rtt(&self) -> Option<Duration> {
        self.rtt_sum.checked_div(self.rtt_count)
    }

    /// The mean RTT of the round is clearly above the minimum.
    fn has_queue(&self, min_rtt: Option<Duration>) -> bool {
        let (Some(min), Some(mean)) = (min_rtt, self.mean_rtt()) else { return false };
        mean > min + min / 16 + JITTER
    }

    /// `in_flight`: bytes in flight before the losses; the share is taken of the round or of the flight, whichever is more.
    fn is_excessive(&self, in_flight: f64, min_rtt: Option<Duration>) -> bool {
        let ceiling = if self.has_queue(min_rtt) { LOSS_CEILING } else { POLICER_CEILING };
        let of = (self.delivered + self.lost).max(in_flight);
        // Two packets of grace: on a path that holds twenty, one loss is 5 %.
        self.lost > of * (ceiling + 1.5 * self.usual) + 2.0 * self.mss
    }

    fn is_above_usual(&self) -> bool {
        self.lost > (self.delivered + self.lost) * (LOSS_CEILING / 2.0 + 1.5 * self.usual) + 2.0 * self.mss
    }

    fn end_round(&mut self, min_rtt: Option<Duration>, probing: bool) {
        let all = self.delivered + self.lost;
        if !probing && all > 0.0 && !self.has_queue(min_rtt) {
            // A plain mean of the first rounds, then the last eight or so.
            self.quiet_rounds = (self.quiet_rounds + 1.0).min(8.0);
            self.usual = (self.usual + (self.lost / all - self.usual) / self.quiet_rounds).min(0.25);
        }
        *self = Self { usual: self.usual, quiet_rounds: self.quiet_rounds, mss: self.mss, ..Self::default() };
    }
}

/// How far acks run ahead of the bandwidth when they come in bunches (draft-ietf-ccwg-bbr section 5.5.9).
#[derive(Clone, Copy, Debug, Default)]
struct Aggregation {
    began: Option<Time>,
    acked: f64,
    /// Maxima of the previous and the current five rounds.
    max: [f64; 2],
    rotated: u64,
}

impl Aggregation {
    fn on_ack(&mut self, ack: &AckSample, bw: f64, window: f64, round: u64) {
        if round >= self.rotated + 5 {
            let [_, current] = self.max;
            self.max = [current, 0.0];
            self.rotated = round;
        }
        let expected = self.began.map_or(0.0, |began| bw * ack.now.since(began).as_secs_f64());
        if self.began.is_none() || self.acked <= expected {
            self.began = Some(ack.now);
            self.acked = 0.0;
            return;
        }
        self.acked += ack.acked as f64;
        let [_, current] = &mut self.max;
        *current = current.max((self.acked - expected).clamp(0.0, window));
    }
}

/// What two busy hosts add to a round trip with their wake-ups and batches, which the minimum never shows. With less than
/// this much in flight they wait for each other: 17 Gbit/s on loopback, and 41 with it (benches/README.md). It is a queue of
/// 31 KB at 1 Gbit/s.
const HOST_DELAY: Duration = Duration::from_micros(250);

/// What timers and batches of acks add to an RTT without any queue.
const JITTER: Duration = Duration::from_micros(500);

/// draft-cardwell BBR v1: 10 s.
const MIN_RTT_AGE: Duration = Duration::from_secs(10);

/// draft-ietf-ccwg-bbr BBR.LossThresh.
const LOSS_CEILING: f64 = 0.02;
const POLICER_CEILING: f64 = 0.10;
