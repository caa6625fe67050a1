//! Rate limits.

use std::time::Duration;

use crate::time::Time;

/// Evenly spaced permits, of which `burst` may be saved up (the generic cell rate algorithm of ITU-T I.371: one
/// number of state).
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    spacing: Duration,
    tolerance: Duration,
    /// When the saved permits are complete again.
    full_at: Time,
}

impl Limit {
    /// `per_second` zero: never.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let spacing = match per_second {
            0 => Duration::MAX,
            n => Duration::from_secs(1) / n,
        };
        Self { spacing, tolerance: spacing.saturating_mul(burst.saturating_sub(1)), full_at: Time::ZERO }
    }

    pub(super) fn take(&mut self, now: Time) -> bool {
        if self.spacing == Duration::MAX || self.full_at > now + self.tolerance {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.spacing;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(limit: &mut Limit, millis: std::ops::Range<u64>) -> usize {
        millis.filter(|at| limit.take(Time::from_millis(*at))).count()
    }

    #[test]
    fn evenly_spaced_without_burst() {
        let mut limit = Limit::new(5, 1);
        assert_eq!(taken(&mut limit, 0..1_000), 5);
        assert_eq!(taken(&mut limit, 1_000..2_000), 5);
        assert_eq!(taken(&mut limit, 60_000..60_001), 1);
    }

    #[test]
    fn a_burst_is_saved_up() {
        let mut limit = Limit::new(100, 20);
        assert_eq!((0..1_000).filter(|_| limit.take(Time::ZERO)).count(), 20);
        assert_eq!(taken(&mut limit, 0..1_000), 99);
        assert!(!Limit::new(0, 5).take(Time::from_millis(1)));
    }
}
