//! When a peer that is reached over a relay is offered a direct path again. Nothing here waits, and the time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::addr::NodeId;
use crate::config::RelayConfig;

/// The peers that are reached over a relay, and when each is tried next.
#[derive(Debug)]
pub(super) struct Upgrades {
    first: Duration,
    most: Duration,
    tries: HashMap<NodeId, Try>,
    /// When this node has learnt last that it is somewhere else.
    moved: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Try {
    at: Instant,
    pause: Duration,
    last: Option<Instant>,
}

impl Upgrades {
    pub fn new(config: &RelayConfig) -> Self {
        Self { first: config.upgrade_after, most: config.upgrade_most, tries: HashMap::new(), moved: None }
    }

    /// Everything may be otherwise in another network.
    pub fn network_changed(&mut self) {
        self.tries.clear();
    }

    /// This node has an address that it did not have: what was told before was of another place, and is a reason for every relay in use.
    pub fn moved(&mut self, now: Instant) {
        self.moved = Some(now);
        for one in self.tries.values_mut() {
            one.pause = self.first;
            one.at = one.at.min(soonest(now, one.last));
        }
    }

    /// Who is to be tried now, `most` at once; the others are due in the next round. `relayed`: all who are reached over a relay.
    pub fn due(&mut self, now: Instant, relayed: &[NodeId], most: usize) -> Vec<NodeId> {
        self.tries.retain(|node, _| relayed.contains(node));
        // an exchange that was under way then may have told what no longer holds
        let has_moved = self.moved.is_some_and(|at| now.saturating_duration_since(at) < EXCHANGE);
        let mut due = Vec::new();
        for node in relayed {
            let at = if has_moved { now } else { now + self.first };
            let one = self.tries.entry(*node).or_insert(Try { at, pause: self.first, last: None });
            if one.at > now || due.len() >= most {
                continue;
            }
            one.pause = (one.pause * 2).min(self.most);
            (one.at, one.last) = (now + one.pause, Some(now));
            due.push(*node);
        }
        due
    }
}

/// An address that never stays the same costs a peer an exchange now and then, and no more.
fn soonest(now: Instant, last: Option<Instant>) -> Instant {
    last.map_or(now, |last| now.max(last + LEAST_BETWEEN))
}

const LEAST_BETWEEN: Duration = Duration::from_secs(5);
/// An exchange that began before the move has ended by then, or goes on with what holds now.
const EXCHANGE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: u8) -> Vec<NodeId> {
        (1..=count).map(|n| NodeId::from_public_key([n; 32])).collect()
    }

    fn upgrades() -> (Upgrades, Instant, Duration) {
        let config = RelayConfig::default();
        (Upgrades::new(&config), Instant::now(), config.upgrade_after)
    }

    #[test]
    fn a_relayed_peer_is_tried_after_a_while_and_then_less_and_less_often() {
        let (mut upgrades, start, first) = upgrades();
        let relayed = nodes(1);
        assert_eq!(upgrades.due(start, &relayed, 8), []);
        assert_eq!(upgrades.due(start + first, &relayed, 8), relayed);
        assert_eq!(upgrades.due(start + first * 2, &relayed, 8), []);
        assert_eq!(upgrades.due(start + first * 3, &relayed, 8), relayed);
    }

    #[test]
    fn a_new_own_address_is_a_reason_to_try_at_once() {
        let (mut upgrades, start, first) = upgrades();
        let relayed = nodes(1);
        upgrades.due(start, &relayed, 8);
        upgrades.moved(start + first / 4);
        assert_eq!(upgrades.due(start + first / 4, &relayed, 8), relayed);
    }

    #[test]
    fn who_is_relayed_since_a_moment_before_the_new_address_was_known_is_tried_at_once_too() {
        let (mut upgrades, start, _) = upgrades();
        upgrades.moved(start);
        let late = start + Duration::from_millis(600);
        assert_eq!(upgrades.due(late, &nodes(1), 8), nodes(1));
        assert_eq!(upgrades.due(start + EXCHANGE, &nodes(2), 8), [], "and who is later, in its time");
    }

    #[test]
    fn an_address_that_never_stays_the_same_makes_no_storm() {
        let (mut upgrades, start, _) = upgrades();
        let relayed = nodes(20);
        let mut tries = 0;
        for tenth in 0..600 {
            let now = start + Duration::from_millis(100) * tenth;
            upgrades.moved(now);
            if tenth % 10 == 0 {
                let due = upgrades.due(now, &relayed, 8);
                assert!(due.len() <= 8);
                tries += due.len();
            }
        }
        assert!(tries <= 20 * (60 / 5 + 1), "{tries} exchanges in a minute");
    }
}
