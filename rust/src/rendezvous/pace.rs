//! How long a step of an exchange takes to be answered, as this node has lately seen it, and what follows from that: when a step is
//! said again, and for how long a dial has its turn.
//!
//! A rendezvous that has much to pass on is slow, and so is a peer that many invite. Whoever said everything again after a fixed second
//! would make them slower still. RFC 6298's estimate is the usual way out; the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Pace {
    /// What a step is said again after at least.
    least: Duration,
    seen: Option<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    smoothed: Duration,
    deviation: Duration,
    at: Instant,
}

impl Pace {
    pub fn new(least: Duration) -> Self {
        Self { least, seen: None }
    }

    /// A step was answered so long after it was first said, repetitions included: what the answer is to does not matter, for it is
    /// the crowd on the way that is measured.
    pub fn answered(&mut self, now: Instant, took: Duration) {
        self.seen = Some(match self.fresh(now) {
            None => Seen { smoothed: took, deviation: took / 2, at: now },
            Some(Seen { smoothed, deviation, .. }) => Seen {
                smoothed: (smoothed * 7 + took) / 8,
                deviation: (deviation * 3 + smoothed.abs_diff(took)) / 4,
                at: now,
            },
        });
    }

    /// When a step that nobody answers is said again for the first time.
    pub fn repeat_after(&self, now: Instant) -> Duration {
        let expected = self.fresh(now).map_or(self.least, |seen| seen.smoothed + seen.deviation * 4);
        expected.clamp(self.least, self.least * MOST_STEPS)
    }

    /// For how long a dial has its turn: while the rendezvous is slow, those that have begun are let finish before others begin.
    pub fn turn(&self, now: Instant) -> Duration {
        self.fresh(now).map_or(UNKNOWN_TURN, |seen| (seen.smoothed * 2).clamp(LEAST_TURN, MOST_TURN))
    }

    /// What was seen long ago says nothing of now.
    fn fresh(&self, now: Instant) -> Option<Seen> {
        self.seen.filter(|seen| now.saturating_duration_since(seen.at) < FRESH)
    }
}

/// So many times the least at most: a signal that is lost with the session is said again within a third of a dial.
const MOST_STEPS: u32 = 4;
/// A round trip of a long path by way of a third node, and the first pings.
const LEAST_TURN: Duration = Duration::from_millis(750);
/// As long as nobody has answered: the peers are not there, or there is a crowd.
const UNKNOWN_TURN: Duration = Duration::from_millis(1_500);
/// Whoever does not answer takes nobody's turn for longer.
const MOST_TURN: Duration = Duration::from_secs(3);
const FRESH: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn where_nothing_is_known_a_second_is_waited() {
        let pace = Pace::new(SECOND);
        let now = Instant::now();
        assert_eq!((pace.repeat_after(now), pace.turn(now)), (SECOND, UNKNOWN_TURN));
    }

    #[test]
    fn a_quick_rendezvous_makes_nobody_hasty() {
        let (mut pace, now) = (Pace::new(SECOND), Instant::now());
        (0..50).for_each(|_| pace.answered(now, Duration::from_millis(30)));
        assert_eq!((pace.repeat_after(now), pace.turn(now)), (SECOND, LEAST_TURN));
    }

    #[test]
    fn a_slow_one_is_given_the_time_that_it_takes_and_no_more_than_a_few_seconds() {
        let (mut pace, now) = (Pace::new(SECOND), Instant::now());
        (0..50).for_each(|_| pace.answered(now, SECOND * 2));
        assert!(pace.repeat_after(now) >= SECOND * 2 && pace.repeat_after(now) < SECOND * 3);
        assert_eq!(pace.turn(now), MOST_TURN);
        (0..50).for_each(|_| pace.answered(now, SECOND * 60));
        assert_eq!((pace.repeat_after(now), pace.turn(now)), (SECOND * MOST_STEPS, MOST_TURN));
    }

    #[test]
    fn what_was_slow_a_while_ago_is_measured_anew() {
        let (mut pace, now) = (Pace::new(SECOND), Instant::now());
        (0..50).for_each(|_| pace.answered(now, SECOND * 3));
        assert_eq!(pace.repeat_after(now + FRESH), SECOND);
        pace.answered(now + FRESH, Duration::from_millis(100));
        assert_eq!(pace.repeat_after(now + FRESH), SECOND);
    }
}
