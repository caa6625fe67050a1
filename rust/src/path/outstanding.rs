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
    /// The peer has heard under them which life of ours we are.
    pub(super) introduced: bool,
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
        let id = match &asked.purpose {
            Purpose::Path { keys: Some(keys), .. } | Purpose::Meeting { keys, .. } => {
                counted(&keys.key, &keys.remote_name, self.ids.count())
            }
            Purpose::Path { keys: None, .. } | Purpose::Probe => self.ids.next(),
        };
        self.by_age.push_back((asked.sent, id));
        self.by_id.insert(id, asked);
        id
    }

    /// The number of the next keyed message; never the same again.
    pub(super) fn count(&mut self) -> u64 {
        self.ids.count()
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

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn next(&mut self) -> [u8; 12] {
        self.count();
        let tag = hmac::sign(&self.key, &self.counter.to_be_bytes());
        let mut id = [0; 12];
        for (to, from) in id.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        id
    }
}

/// The transaction id of the `count`-th keyed message of a node, to the session `name` of another: the number, so that what is
/// repeated can be told from what is new, and four bytes that show that it is one. The message is authenticated as a whole; they
/// only tell numbers from the random ids of nodes that do not count. So a keyed ping is as long as it always was, and those nodes
/// answer it.
pub(super) fn counted(key: &[u8; 32], name: &[u8; 16], count: u64) -> [u8; 12] {
    let mut id = [0; 12];
    let (number, check) = id.split_at_mut(8);
    number.copy_from_slice(&count.to_be_bytes());
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    // no STUN message begins like this: the key signs those as well
    context.update(b"keynet-count-1");
    context.update(name);
    context.update(number);
    check.iter_mut().zip(context.sign().as_ref()).for_each(|(to, from)| *to = *from);
    id
}

/// The number in a transaction id, if there is one.
pub(super) fn count_of(key: &[u8; 32], name: &[u8; 16], id: &[u8; 12]) -> Option<u64> {
    let count = u64::from_be_bytes(*id.first_chunk()?);
    (counted(key, name, count) == *id).then_some(count)
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
