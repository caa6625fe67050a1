//! Round-trip time of a connection: RFC 6298 sections 2 and 3, RFC 8985 section 7.2.

use std::time::Duration;

use crate::config::UtpConfig;
use crate::time::Time;

/// Smoothed round-trip time, its variation, its minimum, and the timer values that follow from them.
///
/// The caller keeps Karn's rule: samples come only from packets that were sent once, or whose copy is known.
#[derive(Clone, Debug)]
pub struct Rtt {
    smoothed: Option<Smoothed>,
    minimum: MinHistory,
    min_rto: Duration,
    initial_rto: Duration,
    max_rto: Duration,
    max_ack_delay: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Smoothed {
    latest: Duration,
    srtt: Duration,
    var: Duration,
}

impl Rtt {
    pub fn new(config: &UtpConfig) -> Self {
        Self {
            smoothed: None,
            minimum: MinHistory::default(),
            min_rto: config.min_rto,
            initial_rto: config.initial_rto,
            max_rto: config.max_rto.max(config.min_rto),
            max_ack_delay: config.max_ack_delay,
        }
    }

    /// Takes a measurement in: RFC 6298 sections 2.2 and 2.3, alpha 1/8, beta 1/4.
    pub fn sample(&mut self, now: Time, rtt: Duration) {
        // A zero would make rates infinite; a day is beyond any path and keeps the sums far from overflow.
        let rtt = rtt.clamp(Duration::from_micros(1), LONGEST);
        self.minimum.add(now, rtt);
        self.smoothed = Some(match self.smoothed {
            None => Smoothed { latest: rtt, srtt: rtt, var: rtt / 2 },
            Some(old) => Smoothed {
                latest: rtt,
                var: (old.var * 3 + old.srtt.abs_diff(rtt)) / 4,
                srtt: (old.srtt * 7 + rtt) / 8,
            },
        });
    }

    pub fn has_sample(&self) -> bool {
        self.smoothed.is_some()
    }

    /// The smoothed RTT; `initial_rto / 3` before the first sample (RFC 9002 section 6.2.2 starts at 333 ms and 1 s likewise).
    pub fn srtt(&self) -> Duration {
        self.smoothed.map_or(self.initial_rto / 3, |s| s.srtt)
    }

    /// The mean deviation; half of [`Rtt::srtt`] before the first sample.
    pub fn var(&self) -> Duration {
        self.smoothed.map_or(self.initial_rto / 6, |s| s.var)
    }

    /// The newest sample, or what [`Rtt::srtt`] says before the first.
    pub fn latest(&self) -> Duration {
        self.smoothed.map_or_else(|| self.srtt(), |s| s.latest)
    }

    /// The smallest sample of the last five minutes (at least four whole ones), or what [`Rtt::srtt`] says before the first.
    ///
    /// Five minutes, as in Linux (`tcp_min_rtt_wlen` = 300 s), because the users of this value (reordering window, queue
    /// estimate) want the length of the path without its queues. A window of 10 s would forget it under one bulk transfer; a
    /// value for life would survive a change of path. BBR, which needs 10 s, drains the queue for its own filter.
    pub fn min(&self) -> Duration {
        self.minimum.value().unwrap_or_else(|| self.srtt())
    }

    /// The retransmission timeout without back-off.
    ///
    /// RFC 6298 section 2.3 with the peer's ack delay added as in RFC 9002 section 6.2.1: with a 200 ms floor instead of
    /// 1 s, a steady 195 ms path would otherwise leave less than one delayed ack of room.
    pub fn rto(&self) -> Duration {
        match self.smoothed {
            None => self.initial_rto.min(self.max_rto),
            Some(s) => (s.srtt + (s.var * 4).max(GRANULARITY) + self.max_ack_delay).clamp(self.min_rto, self.max_rto),
        }
    }

    /// The probe timeout: 2 * SRTT + the peer's ack delay (RFC 8985 section 7.2), or the initial RTO before a sample.
    ///
    /// The ack delay is always added, not only for a single packet in flight: keynet's receivers also hold acks of longer
    /// flights back. Never later than [`Rtt::rto`].
    pub fn pto(&self) -> Duration {
        match self.smoothed {
            None => self.initial_rto.min(self.max_rto),
            Some(s) => (s.srtt * 2 + self.max_ack_delay).max(GRANULARITY).min(self.rto()),
        }
    }
}

/// Minima of five consecutive minutes, newest first.
#[derive(Clone, Debug, Default)]
struct MinHistory {
    slots: [Option<Duration>; 5],
    started: Time,
}

impl MinHistory {
    fn add(&mut self, now: Time, rtt: Duration) {
        let passed = now.since(self.started).as_secs() / SLOT.as_secs();
        if passed > 0 {
            // Slots without a sample repeat nothing: they stay empty, and leave with the others.
            let shift = usize::try_from(passed).unwrap_or(usize::MAX).min(self.slots.len());
            self.slots.rotate_right(shift);
            self.slots.iter_mut().take(shift).for_each(|slot| *slot = None);
            self.started = now;
        }
        if let Some(newest) = self.slots.first_mut() {
            *newest = Some(newest.map_or(rtt, |old| old.min(rtt)));
        }
    }

    fn value(&self) -> Option<Duration> {
        self.slots.iter().flatten().min().copied()
    }
}

const SLOT: Duration = Duration::from_secs(60);

/// The resolution of timers that RFC 6298 calls G; tokio's wheel ticks at 1 ms.
const GRANULARITY: Duration = Duration::from_millis(1);

const LONGEST: Duration = Duration::from_secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn before_the_first_sample_the_initial_timeout_holds() {
        let rtt = Rtt::new(&UtpConfig::default());
        assert!(!rtt.has_sample());
        assert_eq!(rtt.rto(), ms(1000));
        assert_eq!(rtt.pto(), ms(1000));
        assert!(rtt.min() > Duration::ZERO);
    }

    #[test]
    fn numbers_of_rfc_6298() {
        let mut rtt = Rtt::new(&UtpConfig::default());
        rtt.sample(Time::from_millis(100), ms(100));
        assert_eq!((rtt.srtt(), rtt.var(), rtt.min()), (ms(100), ms(50), ms(100)));
        assert_eq!(rtt.rto(), ms(100 + 200 + 10));
        rtt.sample(Time::from_millis(200), ms(180));
        // var = 3/4 * 50 + 1/4 * |100 - 180| = 57.5; srtt = 7/8 * 100 + 1/8 * 180 = 110
        assert_eq!((rtt.srtt(), rtt.var()), (ms(110), Duration::from_micros(57_500)));
        assert_eq!((rtt.latest(), rtt.min()), (ms(180), ms(100)));
        assert_eq!(rtt.rto(), ms(110 + 230 + 10));
        assert_eq!(rtt.pto(), ms(230));
    }

    #[test]
    fn the_floor_and_the_ceiling_hold() {
        let mut rtt = Rtt::new(&UtpConfig::default());
        for n in 0..100 {
            rtt.sample(Time::from_millis(n), ms(1));
        }
        assert_eq!(rtt.rto(), ms(200));
        assert_eq!(rtt.pto(), ms(12));
        rtt.sample(Time::from_millis(200), Duration::from_secs(1 << 40));
        assert_eq!(rtt.rto(), Duration::from_secs(60));
    }

    #[test]
    fn the_minimum_is_forgotten_after_five_minutes() {
        let mut rtt = Rtt::new(&UtpConfig::default());
        rtt.sample(Time::from_millis(0), ms(10));
        for second in 1..240 {
            rtt.sample(Time::from_millis(second * 1000), ms(50));
        }
        assert_eq!(rtt.min(), ms(10));
        for second in 240..301 {
            rtt.sample(Time::from_millis(second * 1000), ms(50));
        }
        assert_eq!(rtt.min(), ms(50));
        rtt.sample(Time::from_millis(100_000_000), ms(70));
        assert_eq!(rtt.min(), ms(70));
    }

    proptest! {
        #[test]
        fn timers_stay_in_order(samples in proptest::collection::vec((0u64..400_000, 0u64..u64::MAX), 0..50)) {
            let config = UtpConfig::default();
            let mut rtt = Rtt::new(&config);
            let mut now = Time::ZERO;
            for (step, nanos) in samples {
                now += ms(step);
                rtt.sample(now, Duration::from_nanos(nanos));
                prop_assert!(rtt.pto() <= rtt.rto());
                prop_assert!(rtt.rto() >= config.min_rto && rtt.rto() <= config.max_rto);
                prop_assert!(rtt.min() <= rtt.latest() && rtt.min() > Duration::ZERO);
            }
        }
    }
}
