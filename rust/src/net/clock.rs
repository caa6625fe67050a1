//! The one place that reads the monotonic clock: it never goes back, whoever sets the time of day, and stands still while the
//! machine sleeps.

use std::time::{Duration, Instant};

use crate::time::Time;

/// Turns the machine's monotonic clock into the core's [`Time`], and back for timers.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub fn now(&self) -> Time {
        EPOCH + self.start.elapsed()
    }

    pub fn instant(&self, time: Time) -> Instant {
        self.start + time.since(EPOCH)
    }
}

/// The clock starts here rather than at zero, so that "a little before the start" exists.
const EPOCH: Time = Time::from_nanos(Duration::from_secs(3_600).as_nanos() as u64);
