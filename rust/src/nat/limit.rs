//! Rate limits against strangers: one for all, one for each network that asks.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::addr::network_of;

/// Evenly spaced permits, `burst` of them saved up, for a fixed number of rows. A network belongs to the row that a keyed
/// hash gives it: nothing is remembered or thrown out, and nobody can choose whose row he shares.
pub(super) struct SourceLimit {
    all: Bucket,
    rows: Vec<Bucket>,
    hasher: RandomState,
}

impl SourceLimit {
    pub(super) fn new(all_per_second: u32, source_per_second: u32, rows: usize, now: Instant) -> Self {
        Self {
            all: Bucket::new(all_per_second, now),
            rows: vec![Bucket::new(source_per_second, now); rows.max(1)],
            hasher: RandomState::new(),
        }
    }

    /// Whether `source` may have one more.
    pub(super) fn take(&mut self, source: SocketAddr, now: Instant) -> bool {
        let place = self.hasher.hash_one(network_of(source.ip())) as usize % self.rows.len();
        let row = self.rows.get_mut(place);
        // a source above its own limit takes nothing from the others
        row.is_some_and(|row| row.take(now)) && self.all.take(now)
    }
}

/// The generic cell rate algorithm (ITU-T I.371): one moment of state. Half a second's permits can be saved up.
#[derive(Clone, Copy)]
struct Bucket {
    spacing: Duration,
    tolerance: Duration,
    full_at: Instant,
}

impl Bucket {
    fn new(per_second: u32, now: Instant) -> Self {
        let spacing = Duration::from_secs(1) / per_second.max(1);
        Self { spacing, tolerance: Duration::from_millis(500), full_at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        if self.full_at > now + self.tolerance {
            return false;
        }
        self.full_at = self.full_at.max(now) + self.spacing;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(source: SocketAddr) -> [u8; 8] {
        network_of(source.ip())
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_flood_from_one_network_leaves_the_others_theirs() {
        let now = Instant::now();
        let mut limit = SourceLimit::new(1_000, 20, 4_096, now);
        let granted = (0..100).filter(|host| limit.take(at(&format!("192.0.2.{host}:1")), now)).count();
        assert_eq!(granted, 11, "half a second's permits, and the one that is due");
        // another row, unless the hash puts both in one: 1 in 4096 each
        let others = (0..8).filter(|n| limit.take(at(&format!("198.51.{n}.1:1")), now)).count();
        assert!(others >= 7);
        assert!(limit.take(at("192.0.2.1:1"), now + Duration::from_millis(50)));
    }

    #[test]
    fn the_sum_is_limited_too() {
        let now = Instant::now();
        let mut limit = SourceLimit::new(20, 1_000, 4_096, now);
        let granted = (0..200).filter(|n| limit.take(at(&format!("198.51.{n}.1:1")), now)).count();
        assert_eq!(granted, 11);
    }

    #[test]
    fn one_customer_is_one_network() {
        assert_eq!(network(at("192.0.2.1:5")), network(at("[::ffff:192.0.2.9]:6")));
        assert_eq!(network(at("[2001:db8:0:1ff::1]:5")), network(at("[2001:db8:0:100::2]:5")));
        assert_ne!(network(at("[2001:db8:0:1ff::1]:5")), network(at("[2001:db8:0:200::1]:5")));
        assert_ne!(network(at("192.0.2.1:5")), network(at("192.0.3.1:5")));
    }
}
