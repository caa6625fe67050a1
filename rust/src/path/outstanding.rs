//! Pings that wait for their pong.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use aws_lc_rs::hmac;

use super::MeetingId;
use crate::addr::{RemoteId, Route};
use crate::time::Time;

/// Why a ping was sent.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// To keep or to prove a path of this remote. Keyed: the local name of the session, the name for the peer, and
    /// the key.
    Path { remote: RemoteId, keys: Option<Keys> },
    /// To meet; always keyed.
    Meeting { id: MeetingId, keys: Keys },
    /// To punch; never keyed.
    Probe,
}

/// Copied, so that a pong still counts when its session has been displaced meanwhile.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) local_name: [u8; 16],
    pub(super) remote_name: [u8; 16],
    pub(super) key: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").finish_non_exhaustive()
    }
}

/// A ping on its way.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) to: Route,
    pub(super) sent: Time,
    pub(super) purpose: Purpose,
}

/// Transactions by id. An id is good for one pong; older ones are given up after `keep`, or when there are `cap` of
/// them.
#[derive(Debug)]
pub(super) struct Outstanding {
    by_id: HashMap<[u8; 12], Asked>,
    by_age: VecDeque<(Time, [u8; 12])>,
    keep: Duration,
    cap: usize,
    ids: Ids,
}

impl Outstanding {
    pub(super) fn new(seed: [u8; 32], keep: Duration, cap: usize) -> Self {
        Self { by_id: HashMap::new(), by_age: VecDeque::new(), keep, cap, ids: Ids::new(seed) }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Remembers the ping and names it.
    pub(super) fn insert(&mut self, asked: Asked) -> [u8; 12] {
        self.expire(asked.sent);
        let id = self.ids.next();
        self.by_age.push_back((asked.sent, id));
        self.by_id.insert(id, asked);
        id
    }

    pub(super) fn peek(&mut self, now: Time, id: &[u8; 12]) -> Option<&Asked> {
        self.expire(now);
        self.by_id.get(id)
    }

    pub(super) fn remove(&mut self, id: &[u8; 12]) -> Option<Asked> {
        self.by_id.remove(id)
    }

    fn expire(&mut self, now: Time) {
        while let Some((sent, id)) = self.by_age.front() {
            if now.since(*sent) <= self.keep && self.by_age.len() < self.cap {
                break;
            }
            self.by_id.remove(id);
            self.by_age.pop_front();
        }
    }
}

/// Transaction ids that nobody can guess (RFC 8489 section 5 asks for cryptographic randomness): a counter under
/// HMAC-SHA-256, keyed with the seed. A pseudo-random function of a counter never repeats sooner than chance, and
/// needs no other crate.
#[derive(Debug)]
struct Ids {
    key: hmac::Key,
    counter: u64,
}

impl Ids {
    fn new(seed: [u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &seed), counter: 0 }
    }

    fn next(&mut self) -> [u8; 12] {
        self.counter += 1;
        let tag = hmac::sign(&self.key, &self.counter.to_be_bytes());
        let mut id = [0; 12];
        for (to, from) in id.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(millis: u64) -> Asked {
        Asked {
            to: "192.0.2.1:1".parse::<std::net::SocketAddr>().unwrap().into(),
            sent: Time::from_millis(millis),
            purpose: Purpose::Probe,
        }
    }

    #[test]
    fn ids_depend_on_the_seed_and_differ() {
        let ids = |seed| {
            let mut ids = Ids::new(seed);
            (0..100).map(|_| ids.next()).collect::<std::collections::HashSet<_>>()
        };
        assert_eq!(ids([1; 32]).len(), 100);
        assert_eq!(ids([1; 32]), ids([1; 32]));
        assert!(ids([1; 32]).is_disjoint(&ids([2; 32])));
    }

    #[test]
    fn given_up_by_age_and_by_number() {
        let mut table = Outstanding::new([0; 32], Duration::from_secs(5), 10);
        let first = table.insert(asked(0));
        assert!(table.peek(Time::from_millis(5_000), &first).is_some());
        assert!(table.peek(Time::from_millis(5_001), &first).is_none());
        for _ in 0..1_000 {
            table.insert(asked(6_000));
        }
        assert!(table.len() <= 10 && table.by_age.len() <= 10);
    }
}
