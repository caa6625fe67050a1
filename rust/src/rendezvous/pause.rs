//! How long a node waits before it tries a rendezvous again.
//!
//! One that does not answer is tried every second or so, however long it has been away: an attempt is a packet a second, and whoever
//! waits for it to come back counts the seconds. One that answers, and has no room, is left alone for longer and longer. Each node
//! waits for a random part of that: ten thousand that were lost together do not come again together.

use std::time::Duration;

use crate::config::RendezvousConfig;
use crate::error::Reason;

pub struct Pause {
    first: Duration,
    most: Duration,
    most_busy: Duration,
    next: Duration,
}

impl Pause {
    pub fn new(config: &RendezvousConfig) -> Self {
        let (first, most, most_busy) = (config.reconnect_after, config.reconnect_most, config.reconnect_most_busy);
        Self { first, most, most_busy, next: first }
    }

    /// A session has stood for long enough to be a good one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }

    /// After an attempt or a session that ended for this reason. `random`: any number, evenly spread.
    pub fn after(&mut self, reason: Reason, random: u32) -> Duration {
        let busy = reason == Reason::RendezvousBusy;
        let most = if busy { self.most_busy } else { self.most };
        let pause = self.next.min(most);
        self.next = (self.next * 2).min(self.most_busy);
        part(pause / 2, random) + pause / 2
    }

    /// After a rendezvous that has said that it goes, and how far its nodes are to be spread.
    pub fn after_going(&mut self, spread: Duration, random: u32) -> Duration {
        self.next = self.first;
        self.first / 2 + part(spread.min(MOST_SPREAD), random)
    }
}

fn part(of: Duration, random: u32) -> Duration {
    of.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Nobody can have a node wait for long.
const MOST_SPREAD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_was_away_for_minutes_is_tried_every_second_or_so() {
        let config = RendezvousConfig::default();
        let mut pause = Pause::new(&config);
        let pauses: Vec<_> = (0..50).map(|_| pause.after(Reason::RendezvousUnreachable, u32::MAX)).collect();
        assert_eq!(pauses[0], config.reconnect_after);
        assert!(pauses.windows(2).all(|two| two[0] <= two[1]));
        assert!(pauses[49] + Duration::from_millis(500) <= Duration::from_secs(2), "and a dial works within 2 s");
    }

    #[test]
    fn one_that_has_no_room_is_left_alone() {
        let config = RendezvousConfig::default();
        let mut pause = Pause::new(&config);
        let last = (0..20).map(|_| pause.after(Reason::RendezvousBusy, u32::MAX)).last();
        assert_eq!(last, Some(config.reconnect_most_busy));
        assert!(pause.after(Reason::RendezvousUnreachable, u32::MAX) <= config.reconnect_most);
        pause.reset();
        assert_eq!(pause.after(Reason::RendezvousBusy, u32::MAX), config.reconnect_after);
    }

    #[test]
    fn nodes_that_were_lost_together_come_again_one_after_the_other() {
        let config = RendezvousConfig::default();
        let numbers = || (0..=100u32).map(|n| n * (u32::MAX / 100));
        for (reason, rounds) in [(Reason::RendezvousUnreachable, 8), (Reason::RendezvousBusy, 8)] {
            let nth = |random| {
                let mut pause = Pause::new(&config);
                (0..rounds).map(|_| pause.after(reason, random)).last().unwrap_or_default()
            };
            let all: Vec<_> = numbers().map(nth).collect();
            assert!(all[100] + Duration::from_millis(1) >= all[0] * 2, "{all:?}");
        }
        let told: Vec<_> =
            numbers().map(|random| Pause::new(&config).after_going(Duration::from_secs(4), random)).collect();
        assert!(told[100] >= told[0] + Duration::from_millis(3_900), "{told:?}");
        let liar = Pause::new(&config).after_going(Duration::from_secs(86_400), u32::MAX);
        assert!(liar <= MOST_SPREAD + config.reconnect_after);
    }
}
