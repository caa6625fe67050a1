//! What strangers can make a node say: log lines and events without a name behind them, in bounds.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::bucket::Bucket;
use crate::time::Time;

/// Lets a few things be said at once, and then so many a minute; counts what is left out.
#[derive(Debug)]
pub struct Quiet {
    since: Instant,
    held: Mutex<(Bucket, u64)>,
}

impl Quiet {
    /// `at_once` of 0 says nothing.
    pub fn new(at_once: u64, per_minute: u64) -> Self {
        let bucket = Bucket::new(per_minute, at_once.saturating_mul(TOKENS), Time::ZERO);
        Self { since: Instant::now(), held: Mutex::new((bucket, 0)) }
    }

    /// How many were left out before this one, if it may be said now.
    pub fn may_say(&self) -> Option<u64> {
        self.at(Time::ZERO + self.since.elapsed())
    }

    fn at(&self, now: Time) -> Option<u64> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0.take(TOKENS, now) {
            return Some(std::mem::take(&mut held.1));
        }
        held.1 += 1;
        None
    }
}

/// One a minute is one token a second.
const TOKENS: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_said_a_few_times_and_counted() {
        let quiet = Quiet::new(5, 6);
        let said: Vec<_> = (0..600_000).filter_map(|millis| quiet.at(Time::from_millis(millis))).collect();
        // five at once, and six in each of ten minutes
        assert!((64..=65).contains(&said.len()), "{}", said.len());
        assert_eq!(said[..5], [0; 5]);
        assert!(said[5..].iter().all(|unsaid| (9_000..=10_000).contains(unsaid)), "{said:?}");
    }
}
