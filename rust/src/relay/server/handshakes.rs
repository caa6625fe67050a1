//! How many TLS handshakes one network may have a second: each costs this machine a signature and a key exchange, and the other side
//! next to nothing.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::addr::network_of;
use crate::bucket::Bucket;
use crate::config::RelayServerConfig;
use crate::time::Time;

/// A fixed table: a network belongs to the row that a keyed hash gives it, and nobody can choose whose row he shares.
pub struct Handshakes {
    rows: Mutex<Vec<Bucket>>,
    hasher: RandomState,
}

impl Handshakes {
    pub fn new(config: &RelayServerConfig) -> Self {
        let rate = u64::from(config.handshakes_per_second_per_network);
        // what a network has open at once, it may also begin again at once: when the relay was started anew
        let burst = (rate * BURST_SECONDS).max(1);
        let rows = vec![Bucket::new(rate, burst, Time::ZERO); config.networks.max(1)];
        Self { rows: Mutex::new(rows), hasher: RandomState::new() }
    }

    /// Whether one more may begin.
    pub fn take(&self, from: IpAddr, now: Time) -> bool {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.hasher.hash_one(network_of(from)) as usize % rows.len();
        rows.get_mut(place).is_none_or(|row| row.take(1, now))
    }
}

const BURST_SECONDS: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_above_its_handshakes_leaves_the_others_theirs() {
        let config = RelayServerConfig { handshakes_per_second_per_network: 10, ..RelayServerConfig::default() };
        let handshakes = Handshakes::new(&config);
        let ip = |text: &str| text.parse().unwrap();
        let taken = |from: &str, now| (0..1_000).filter(|_| handshakes.take(ip(from), now)).count();
        assert_eq!(taken("192.0.2.1", Time::ZERO), 50, "five seconds' at once");
        assert_eq!(taken("192.0.2.200", Time::ZERO), 0, "it is one network");
        assert_eq!(taken("192.0.2.1", Time::from_millis(1_000)), 10);
        let others = (0..8).filter(|n| handshakes.take(ip(&format!("198.51.{n}.1")), Time::ZERO)).count();
        assert!(others >= 7, "another row, unless the hash puts both in one");
    }
}
