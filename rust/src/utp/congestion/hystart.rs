//! HyStart++ (RFC 9406): leaves slow start when the round-trip time says that a queue builds, before it overflows.

use std::time::Duration;

use super::AckSample;

/// Slow start's own state: rounds and their smallest RTT.
#[derive(Clone, Debug)]
pub(super) struct HyStart {
    /// The round ends when a packet is confirmed that was sent at or after this many delivered bytes.
    round_end: u64,
    round_min: Option<Duration>,
    /// The last samples. RFC 9406 compares the minimum of the whole round; when packets are paced over it, its first ones have no
    /// queue yet, and a queue would show a round later, when the window has doubled once more.
    recent: [Option<Duration>; N_RTT_SAMPLE],
    last_round_min: Option<Duration>,
    /// The largest value of what `judge` compares in this round, and by how much it rose above the smallest in the last one: a rise of
    /// that much is the path's jitter.
    round_high: Duration,
    last_round_rise: Duration,
    samples: usize,
    acked: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    SlowStart,
    /// Conservative slow start: a pause of growth that tells a queue from jitter.
    Conservative {
        baseline: Duration,
        /// At this RTT it is none.
        certain: Duration,
        rounds: u32,
    },
}

/// What slow start does with this ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    /// By as much as was acknowledged.
    Full,
    /// By a quarter of it.
    Quarter,
    /// Slow start is over.
    Leave,
}

impl HyStart {
    pub(super) fn new() -> Self {
        Self {
            round_end: 0,
            round_min: None,
            recent: [None; N_RTT_SAMPLE],
            last_round_min: None,
            round_high: Duration::ZERO,
            last_round_rise: Duration::ZERO,
            samples: 0,
            acked: 0,
            phase: Phase::SlowStart,
        }
    }

    /// Begins again: after a timeout, or after the connection was idle.
    pub(super) fn restart(&mut self, delivered: u64) {
        *self = Self { round_end: delivered, ..Self::new() };
    }

    pub(super) fn on_ack(&mut self, ack: &AckSample, mss: u64) -> Growth {
        if ack.prior_delivered >= self.round_end && self.end_round(ack.delivered) {
            return Growth::Leave;
        }
        self.acked = self.acked.saturating_add(ack.acked);
        if let Some(rtt) = ack.rtt {
            if let Some(slot) = self.recent.get_mut(self.samples % N_RTT_SAMPLE) {
                *slot = Some(rtt);
            }
            self.samples += 1;
            self.round_min = Some(self.round_min.map_or(rtt, |old| old.min(rtt)));
        }
        if self.enough_samples(mss) && self.judge() {
            return Growth::Leave;
        }
        match self.phase {
            Phase::SlowStart => Growth::Full,
            Phase::Conservative { .. } => Growth::Quarter,
        }
    }

    /// True when conservative slow start has lasted its rounds.
    fn end_round(&mut self, delivered: u64) -> bool {
        self.round_end = delivered;
        if let Some(min) = self.round_min.take() {
            self.last_round_min = Some(min);
            self.last_round_rise = self.round_high.saturating_sub(min);
        }
        self.round_high = Duration::ZERO;
        self.recent = [None; N_RTT_SAMPLE];
        self.samples = 0;
        self.acked = 0;
        let Phase::Conservative { rounds, .. } = &mut self.phase else { return false };
        *rounds += 1;
        *rounds >= CSS_ROUNDS
    }

    /// True when there is no doubt left.
    fn judge(&mut self) -> bool {
        let Some(now) = self.recent.iter().flatten().min().copied() else { return false };
        self.round_high = self.round_high.max(now);
        match self.phase {
            Phase::SlowStart => {
                let Some(last) = self.last_round_min else { return false };
                let threshold = (last / 8).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH).max(self.last_round_rise);
                if now >= last + threshold {
                    self.phase = Phase::Conservative { baseline: now, certain: now + threshold, rounds: 0 };
                }
            }
            // The RTT went down again: it was jitter.
            Phase::Conservative { baseline, .. } if now < baseline => self.phase = Phase::SlowStart,
            // A queue that goes on growing is no jitter. Five rounds by a quarter each would treble the window.
            Phase::Conservative { certain, .. } => return now >= certain,
        }
        false
    }

    /// RFC 9406 wants 8 samples a round, assuming an ack for every second packet. Our peers acknowledge up to 32 packets at
    /// once, so a smaller number of acks counts too when it stands for as many packets as 16 such acks.
    fn enough_samples(&self, mss: u64) -> bool {
        self.samples >= N_RTT_SAMPLE || (self.samples >= N_RTT_SAMPLE / 2 && self.acked >= 32 * mss)
    }
}

const MIN_RTT_THRESH: Duration = Duration::from_millis(4);
const MAX_RTT_THRESH: Duration = Duration::from_millis(16);
const N_RTT_SAMPLE: usize = 8;
const CSS_ROUNDS: u32 = 5;
