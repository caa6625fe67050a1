//! How much may go over relays: they are somebody's machines, and somebody pays for what they carry.

use std::collections::HashMap;

use crate::addr::RemoteId;
use crate::bucket::Bucket;
use crate::config::RelayLimits;
use crate::time::Time;

/// Token buckets for what this node sends over relays, its own and its peers': one for all, and one for each peer.
#[derive(Debug)]
pub(super) struct Police {
    limits: RelayLimits,
    all: Bucket,
    peers: HashMap<RemoteId, Bucket>,
}

impl Police {
    pub(super) fn new(limits: RelayLimits, now: Time) -> Self {
        Self { all: bucket(limits.bytes_per_second, now), limits, peers: HashMap::new() }
    }

    pub(super) fn is_limited(&self) -> bool {
        let RelayLimits { bytes_per_second: all, bytes_per_second_per_peer: each } = self.limits;
        all != u64::MAX || each != u64::MAX
    }

    /// Whether so much may go to a peer over a relay; what may not is lost, and congestion control makes less of it.
    pub(super) fn may_pass(&mut self, now: Time, remote: RemoteId, bytes: usize) -> bool {
        if !self.is_limited() {
            return true;
        }
        let each = self.limits.bytes_per_second_per_peer;
        if self.peers.len() >= MAX_PEERS && !self.peers.contains_key(&remote) {
            // those that are full again need no memory
            self.peers.retain(|_, peer| !peer.has(each, now));
            if self.peers.len() >= MAX_PEERS {
                return false;
            }
        }
        let peer = self.peers.entry(remote).or_insert_with(|| bucket(each, now));
        let bytes = bytes as u64;
        // a peer above its own limit takes nothing from the others
        self.all.has(bytes, now) && peer.take(bytes, now) && self.all.take(bytes, now)
    }
}

/// A second's worth may go at once.
fn bucket(limit: u64, now: Time) -> Bucket {
    match limit {
        u64::MAX => Bucket::new(0, 0, now),
        limit => Bucket::new(limit, limit, now),
    }
}

/// Peers over relays at once, under a limit.
const MAX_PEERS: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(police: &mut Police, remote: u64, seconds: std::ops::Range<u64>) -> usize {
        let millis = seconds.start * 1_000..seconds.end * 1_000;
        millis.filter(|n| police.may_pass(Time::from_millis(*n), RemoteId(remote), 1_000)).count()
    }

    #[test]
    fn one_peer_gets_its_rate_and_all_of_them_theirs() {
        let limits = RelayLimits { bytes_per_second: 300_000, bytes_per_second_per_peer: 100_000 };
        let mut police = Police::new(limits, Time::ZERO);
        let alone = passed(&mut police, 1, 0..10);
        assert!((1_090..=1_101).contains(&alone), "a second's worth at once, and ten: {alone}");
        let millis = 10_000..20_000;
        let mut each = [0; 6];
        for n in millis {
            for (remote, count) in each.iter_mut().enumerate() {
                *count += usize::from(police.may_pass(Time::from_millis(n), RemoteId(10 + remote as u64), 1_000));
            }
        }
        let all: usize = each.iter().sum();
        assert!((3_250..=3_310).contains(&all), "{each:?}");
        assert!(each.iter().all(|count| *count <= 1_101), "{each:?}");
    }

    #[test]
    fn without_limits_everything_passes_and_nothing_is_remembered() {
        let mut police = Police::new(RelayLimits::default(), Time::ZERO);
        assert_eq!(passed(&mut police, 1, 0..1), 1_000);
        assert!(police.peers.is_empty());
    }

    #[test]
    fn peers_that_have_their_rate_back_are_forgotten() {
        let limits = RelayLimits { bytes_per_second: u64::MAX, bytes_per_second_per_peer: 1_000 };
        let mut police = Police::new(limits, Time::ZERO);
        for n in 0..3 * MAX_PEERS as u64 {
            let now = Time::from_millis(n * 10);
            police.may_pass(now, RemoteId(n), 1_000);
        }
        assert!(police.peers.len() <= MAX_PEERS);
    }
}
