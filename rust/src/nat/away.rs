//! Notices that the machine has slept, or that this process stood still: what NATs and peers knew of us may be gone, and the
//! machine may be somewhere else.

use std::time::{Duration, Instant};

/// Two clocks: one that stops when the machine sleeps, one that does not.
#[derive(Debug)]
pub struct Away {
    awake: Instant,
    always: Option<Duration>,
}

impl Away {
    pub fn new(awake: Instant, always: Option<Duration>) -> Self {
        Self { awake, always }
    }

    /// Whether the time since the last call was spent asleep, or lasted longer than `expected` by far.
    pub fn was(&mut self, awake: Instant, always: Option<Duration>, expected: Duration) -> bool {
        let ran = awake.saturating_duration_since(self.awake);
        let passed = match (self.always, always) {
            (Some(before), Some(now)) => now.saturating_sub(before),
            // a clock that cannot be read says nothing
            _ => ran,
        };
        (self.awake, self.always) = (awake, always);
        passed.saturating_sub(ran) >= ASLEEP || ran.saturating_sub(expected) >= STOOD_STILL
    }
}

/// The clock that goes on while the machine sleeps (CLOCK_BOOTTIME, which proc(5) gives as `/proc/uptime`).
#[cfg(target_os = "linux")]
pub fn always() -> Option<Duration> {
    parse_uptime(&std::fs::read_to_string("/proc/uptime").ok()?)
}

/// The clock on the wall goes on as well. Somebody who sets it makes us look once without need.
#[cfg(not(target_os = "linux"))]
pub fn always() -> Option<Duration> {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(any(target_os = "linux", test))]
fn parse_uptime(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The clocks are not read at the same instant, and one has hundredths of a second only; a sleep shorter than this breaks nothing.
const ASLEEP: Duration = Duration::from_secs(2);
/// The shortest time for which NATs in use keep a mapping is 10 s (docs/nat-matrix.md); a busy machine may hold us up for a second.
const STOOD_STILL: Duration = Duration::from_secs(8);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_clock_that_goes_on_while_the_other_stands_is_a_sleep() {
        let start = Instant::now();
        let mut away = Away::new(start, Some(100 * SECOND));
        assert!(!away.was(start + 5 * SECOND, Some(105 * SECOND), 5 * SECOND));
        assert!(!away.was(start + 10 * SECOND, Some(111 * SECOND), 5 * SECOND), "they are not read at one instant");
        assert!(away.was(start + 11 * SECOND, Some(3_712 * SECOND), 5 * SECOND), "an hour asleep");
        assert!(!away.was(start + 12 * SECOND, Some(3_713 * SECOND), 5 * SECOND), "once");
        assert!(!away.was(start + 13 * SECOND, Some(10 * SECOND), 5 * SECOND), "set back");
    }

    #[test]
    fn a_process_that_stood_still_was_away_too() {
        let start = Instant::now();
        let mut away = Away::new(start, None);
        assert!(!away.was(start + 6 * SECOND, None, 5 * SECOND));
        assert!(away.was(start + 66 * SECOND, None, 5 * SECOND));
    }

    #[test]
    fn the_uptime_of_the_system() {
        assert_eq!(parse_uptime("350735.47 234388.90\n"), Some(Duration::from_secs_f64(350_735.47)));
        for odd in ["", "x", "-1 2", "inf", "1e300"] {
            assert_eq!(parse_uptime(odd), None, "{odd}");
        }
        let now = always().unwrap();
        assert!(always().unwrap() >= now);
    }
}
