//! Pacing: spreads a window over the round trip instead of letting it leave as one burst.

use crate::time::Time;

/// A token bucket that is told the rate each time, because the controller changes it with each ack.
///
/// It holds at most the larger of 2 ms of the rate and ten packets: timers of the runtime tick at 1 ms, so with less a link
/// of a few Gbit/s could not be filled; more would be a queue at the bottleneck for the next small message (64 KB are
/// 52 ms at 10 Mbit/s, ten packets are 12).
#[derive(Clone, Debug, Default)]
pub struct Pacer {
    /// Bytes that may leave; negative after a packet that was larger than what was left.
    tokens: i64,
    /// Up to when tokens were given out; `None` before the first packet (the bucket starts full).
    filled: Option<Time>,
}

impl Pacer {
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that may leave now at `rate` bytes per second; without a rate, any number.
    pub fn budget(&mut self, now: Time, rate: Option<u64>) -> u64 {
        let Some(rate) = rate else {
            // Whenever a rate comes, it starts with a full bucket.
            *self = Self::new();
            return u64::MAX;
        };
        self.fill(now, rate);
        u64::try_from(self.tokens).unwrap_or(0)
    }

    /// `bytes` left. More than the budget is a debt, paid before anything else leaves.
    pub fn sent(&mut self, bytes: u64) {
        self.tokens = self.tokens.saturating_sub_unsigned(bytes).max(-DEBT);
    }

    /// When `wanted` bytes (at most a full bucket) may leave, as known since the last call of [`Pacer::budget`].
    pub fn next(&self, now: Time, rate: u64, wanted: u64) -> Time {
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX).min(capacity(rate));
        let Ok(missing) = u64::try_from(wanted.saturating_sub(self.tokens)) else { return now };
        let from = self.filled.unwrap_or(now);
        let wait = (u128::from(missing) * NANOS).div_ceil(u128::from(rate.max(1)));
        let at = Time::from_nanos(from.as_nanos().saturating_add(u64::try_from(wait).unwrap_or(u64::MAX)));
        at.max(now)
    }

    fn fill(&mut self, now: Time, rate: u64) {
        let capacity = capacity(rate);
        let Some(filled) = self.filled else {
            self.tokens = capacity;
            self.filled = Some(now);
            return;
        };
        let rate = u128::from(rate.max(1));
        let earned = now.since(filled).as_nanos() * rate / NANOS;
        let tokens = self.tokens.saturating_add(i64::try_from(earned).unwrap_or(i64::MAX));
        if tokens >= capacity {
            self.tokens = capacity;
            self.filled = Some(now.max(filled));
        } else {
            // The time that did not make a whole byte is kept, or frequent calls would lose it each time.
            self.tokens = tokens;
            let used = u64::try_from(earned * NANOS / rate).unwrap_or(u64::MAX);
            self.filled = Some(Time::from_nanos(filled.as_nanos().saturating_add(used)));
        }
    }
}

/// What the bucket holds at this rate, in bytes.
fn capacity(rate: u64) -> i64 {
    i64::try_from(rate / 500).unwrap_or(i64::MAX / 4).clamp(TEN_PACKETS, i64::MAX / 4)
}

/// Ten full Ethernet packets: the initial window (RFC 6928) may leave at once.
const TEN_PACKETS: i64 = 10 * 1472;

/// A debt deeper than this is forgotten; one GSO batch has 64 KB.
const DEBT: i64 = 1 << 20;

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn without_a_rate_everything_may_leave() {
        assert_eq!(Pacer::new().budget(Time::ZERO, None), u64::MAX);
    }

    #[test]
    fn a_full_bucket_and_then_the_rate() {
        let mut pacer = Pacer::new();
        let rate = 1_250_000; // 10 Mbit/s
        let start = Time::from_millis(5);
        assert_eq!(pacer.budget(start, Some(rate)), 14_720);
        pacer.sent(14_720);
        assert_eq!(pacer.budget(start, Some(rate)), 0);
        let next = pacer.next(start, rate, 1472);
        assert_eq!(next.since(start), Duration::from_nanos(1_177_600));
        assert_eq!(pacer.budget(next, Some(rate)), 1472);
        assert_eq!(pacer.budget(start + Duration::from_secs(9), Some(rate)), 14_720);
    }

    #[test]
    fn fast_links_get_two_milliseconds() {
        let mut pacer = Pacer::new();
        assert_eq!(pacer.budget(Time::ZERO, Some(1_250_000_000)), 2_500_000);
    }

    #[test]
    fn a_rate_of_nothing_does_not_divide_by_it() {
        let mut pacer = Pacer::new();
        pacer.budget(Time::ZERO, Some(0));
        pacer.sent(20_000);
        assert!(pacer.next(Time::ZERO, 0, 1472) > Time::from_millis(1_000_000));
        assert_eq!(pacer.budget(Time::from_millis(1), Some(0)), 0);
    }

    proptest! {
        /// Over any run, what leaves is at most one bucket plus the rate times the time; and waiting until `next` helps.
        #[test]
        fn the_rate_holds(rate in 1_000u64..10_000_000_000, steps in proptest::collection::vec(0u64..3_000_000, 1..200)) {
            let mut pacer = Pacer::new();
            let mut now = Time::from_millis(1);
            let start = now;
            let mut sent = 0u128;
            for step in steps {
                now += Duration::from_nanos(step);
                let budget = pacer.budget(now, Some(rate));
                pacer.sent(budget);
                sent += u128::from(budget);
                let elapsed = now.since(start).as_nanos();
                prop_assert!(sent <= capacity(rate) as u128 + elapsed * u128::from(rate) / NANOS + 1);
                let next = pacer.next(now, rate, 1472);
                prop_assert!(next > now);
                prop_assert!(pacer.clone().budget(next, Some(rate)) >= 1472);
            }
        }

        #[test]
        fn nothing_panics(rate: u64, now: u64, later: u64, bytes: u64) {
            let mut pacer = Pacer::new();
            pacer.budget(Time::from_nanos(now), Some(rate));
            pacer.sent(bytes);
            pacer.budget(Time::from_nanos(later), Some(rate));
            pacer.next(Time::from_nanos(later), rate, bytes);
        }
    }
}
