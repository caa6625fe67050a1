//! Rates of anything that is counted: bytes, answers.

use std::time::Duration;

use crate::time::Time;

/// A token bucket: so many a second, and what a burst may take at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled: Time,
}

impl Bucket {
    /// `per_second` of 0 lets everything through.
    pub fn new(per_second: u64, burst: u64, now: Time) -> Self {
        Self { per_second, burst, tokens: burst, filled: now }
    }

    /// Whether there are so many, without taking them.
    pub fn has(&mut self, amount: u64, now: Time) -> bool {
        let gained = now.since(self.filled).as_nanos() * u128::from(self.per_second) / NANOS;
        // what is less than one token stays in the time
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX)).min(self.burst);
            self.filled = match self.tokens == self.burst {
                true => now,
                false => self.filled + Duration::from_nanos((gained * NANOS / u128::from(self.per_second)) as u64),
            };
        }
        self.per_second == 0 || self.tokens >= amount
    }

    pub fn take(&mut self, amount: u64, now: Time) -> bool {
        let has = self.has(amount, now);
        if has && self.per_second != 0 {
            self.tokens -= amount;
        }
        has
    }
}

const NANOS: u128 = 1_000_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let mut bucket = Bucket::new(1_000, 100, Time::ZERO);
        let mut taken = 0;
        for micros in (0..1_000_000u64).step_by(137) {
            taken += u64::from(bucket.take(1, Time::from_nanos(micros * 1_000)));
        }
        assert!((1_095..=1_100).contains(&taken), "{taken}");
    }

    #[test]
    fn a_bucket_of_large_amounts_keeps_its_rate() {
        let mut bucket = Bucket::new(1_000_000, 64_000, Time::ZERO);
        let sent: u64 = (0..10_000).map(|ms| 60_000 * u64::from(bucket.take(60_000, Time::from_millis(ms)))).sum();
        assert!((9_940_000..=10_060_000).contains(&sent), "{sent}");
    }
}
