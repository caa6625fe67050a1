//! The keys that a remote and we share, one set from each TLS session (docs/protocol.md section 2).

use std::time::Duration;

use super::outstanding::{count_of, Keys};
use crate::addr::{Incarnation, PingKeys};
use crate::time::Time;

/// At most [`MAX_SESSIONS`], chosen so that both sides keep some of the same even when hundreds of handshakes finish
/// in different orders at the two ends:
///
/// - The one that we ping with, the one that the peer last pinged with, and the newest are never displaced. (What one
///   side pings with, the other has seen in a ping, so it is protected at both ends.)
/// - Of the others, first those go that had their time (`patience`) and were not used in it, the longest unused first.
/// - Of the rest, the ones with the largest rank, a number that both sides compute from the session: of the same 500
///   sessions both keep the same, whatever the order of arrival.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    list: Vec<Session>,
    /// The last one confirmed by a pong: what we ping with.
    current: Option<[u8; 16]>,
    /// The one that the peer's last genuine ping named.
    peers: Option<[u8; 16]>,
    installed: u64,
}

#[derive(Debug)]
struct Session {
    keys: PingKeys,
    /// Larger is newer.
    order: u64,
    /// When it was installed, or last used by either side in an authenticated way.
    used: Time,
    /// What came in under it, to notice what comes again.
    window: Window,
    /// Which life of its node the peer is, as far as it has said.
    incarnation: Option<Incarnation>,
    /// The peer has heard which life of ours we are.
    introduced: bool,
}

/// What became of a ping that is genuine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    New,
    /// It was taken before.
    Again,
    /// So many were taken since that nobody knows any more.
    Old,
}

/// The pings of one session: each is taken once. A peer counts its pings, and so it is enough to remember the largest numbers
/// (RFC 4303 section 3.4.3; by how many came and not by their distance, for the peer counts its pings to others as well). One that
/// does not count them (keynet before 0.2) can be taken at its word only as long as its last pings are remembered.
#[derive(Debug, Default)]
struct Window {
    /// In order.
    counts: Vec<u64>,
    seen: Vec<[u8; 12]>,
}

impl Window {
    fn take(&mut self, count: u64) -> Heard {
        let Err(at) = self.counts.binary_search(&count) else { return Heard::Again };
        if at == 0 && self.counts.len() >= WINDOW {
            return Heard::Old;
        }
        self.counts.insert(at, count);
        if self.counts.len() > WINDOW {
            self.counts.remove(0);
        }
        Heard::New
    }

    fn take_uncounted(&mut self, transaction: [u8; 12]) -> Heard {
        // who counts, always counts
        if !self.counts.is_empty() || self.seen.contains(&transaction) {
            return Heard::Old;
        }
        if self.seen.len() >= REMEMBERED_PINGS {
            self.seen.remove(0);
        }
        self.seen.push(transaction);
        Heard::New
    }
}

impl Session {
    /// The same at both ends, where local and remote name are swapped.
    fn rank(&self) -> [u8; 16] {
        self.keys.local_name.min(self.keys.remote_name)
    }

    fn keys(&self) -> Keys {
        let PingKeys { key, local_name, remote_name } = self.keys;
        Keys { local_name, remote_name, key, introduced: self.introduced }
    }
}

impl Sessions {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether a pong has confirmed the one we ping with.
    pub(super) fn confirmed(&self) -> bool {
        self.current.is_some()
    }

    /// The names that the peer may use.
    pub(super) fn names(&self) -> impl Iterator<Item = [u8; 16]> + '_ {
        self.list.iter().map(|session| session.keys.local_name)
    }

    /// Adds one; returns the name of the one that it displaced.
    pub(super) fn install(&mut self, now: Time, keys: PingKeys, patience: Duration) -> Option<[u8; 16]> {
        if self.list.iter().any(|session| session.keys == keys) {
            return None;
        }
        self.installed += 1;
        let evicted = (self.list.len() >= MAX_SESSIONS).then(|| self.evict(now, patience)).flatten();
        let (order, window) = (self.installed, Window::default());
        self.list.push(Session { keys, order, used: now, window, incarnation: None, introduced: false });
        evicted
    }

    fn evict(&mut self, now: Time, patience: Duration) -> Option<[u8; 16]> {
        let free = |session: &&Session| {
            let name = Some(session.keys.local_name);
            name != self.current && name != self.peers
        };
        let stale = |session: &&Session| now.since(session.used) > patience;
        let oldest = self.list.iter().filter(free).filter(stale).min_by_key(|session| session.used);
        let name =
            oldest.or_else(|| self.list.iter().filter(free).max_by_key(|session| session.rank()))?.keys.local_name;
        self.list.retain(|session| session.keys.local_name != name);
        Some(name)
    }

    /// The key under which the peer's ping must verify.
    pub(super) fn key(&self, name: &[u8; 16]) -> Option<Keys> {
        self.list.iter().find(|session| session.keys.local_name == *name).map(Session::keys)
    }

    /// The key under which both ends expect what we start: the peer has seen it in our pings.
    pub(super) fn own_key(&self) -> Option<[u8; 32]> {
        Some(self.key(&self.current?)?.key)
    }

    /// The same for what the peer starts.
    pub(super) fn peers_key(&self) -> Option<[u8; 32]> {
        Some(self.key(&self.peers?)?.key)
    }

    /// What to ping with, when so many pings since the last pong went unanswered: twice the current one, twice the
    /// newest, then each one once, smallest rank first; then again from the start.
    pub(super) fn pick(&self, unanswered: u32) -> Option<Keys> {
        let newest = self.list.iter().max_by_key(|session| session.order)?;
        let current = self.list.iter().find(|session| Some(session.keys.local_name) == self.current).unwrap_or(newest);
        let mut order = vec![current, current];
        if current.order != newest.order {
            order.extend([newest, newest]);
        }
        if unanswered as usize >= order.len() {
            let mut rest: Vec<_> = self.list.iter().collect();
            rest.sort_by_key(|session| session.rank());
            order.extend(rest);
        }
        order.get(unanswered as usize % order.len()).map(|session| session.keys())
    }

    /// A genuine ping came under this name.
    pub(super) fn pinged(&mut self, now: Time, name: &[u8; 16], transaction: [u8; 12]) -> Heard {
        let Some(session) = self.list.iter_mut().find(|session| session.keys.local_name == *name) else {
            return Heard::Old;
        };
        let heard = match count_of(&session.keys.key, name, &transaction) {
            Some(count) => session.window.take(count),
            None => session.window.take_uncounted(transaction),
        };
        if heard == Heard::New {
            session.used = now;
            self.peers = Some(*name);
        }
        heard
    }

    /// Whose session it is, as far as the peer has said.
    pub(super) fn incarnation_of(&self, name: &[u8; 16]) -> Option<Incarnation> {
        self.list.iter().find(|session| session.keys.local_name == *name)?.incarnation
    }

    /// False: it was known, or there is no such session. A session stays with the incarnation that it had first.
    pub(super) fn set_incarnation(&mut self, name: &[u8; 16], incarnation: Incarnation) -> bool {
        let session = self.list.iter_mut().find(|session| session.keys.local_name == *name);
        match session.filter(|session| session.incarnation.is_none()) {
            Some(session) => {
                session.incarnation = Some(incarnation);
                true
            }
            None => false,
        }
    }

    /// Those that have sessions.
    pub(super) fn incarnations(&self) -> Vec<Incarnation> {
        let mut all: Vec<_> = self.list.iter().filter_map(|session| session.incarnation).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The newest session with an incarnation.
    pub(super) fn of_incarnation(&self, incarnation: &Incarnation) -> Option<Keys> {
        let own = self.list.iter().filter(|session| session.incarnation.as_ref() == Some(incarnation));
        own.max_by_key(|session| session.order).map(Session::keys)
    }

    /// Takes the sessions with an incarnation away, or those of which nothing is known; returns their names.
    pub(super) fn end(&mut self, incarnation: Option<Incarnation>) -> Vec<[u8; 16]> {
        let (ended, left) =
            std::mem::take(&mut self.list).into_iter().partition(|one: &Session| one.incarnation == incarnation);
        self.list = left;
        let names: Vec<_> = ended.into_iter().map(|session| session.keys.local_name).collect();
        self.current = self.current.filter(|name| !names.contains(name));
        self.peers = self.peers.filter(|name| !names.contains(name));
        names
    }

    /// A genuine pong came to a ping of ours under this session. It becomes the one that we ping with when it is
    /// newer, or when the current one went unanswered.
    pub(super) fn ponged(&mut self, now: Time, name: &[u8; 16], unanswered: u32) {
        let order_of = |name: Option<[u8; 16]>| {
            self.list.iter().find(|session| Some(session.keys.local_name) == name).map(|session| session.order)
        };
        let (Some(this), current) = (order_of(Some(*name)), order_of(self.current)) else { return };
        if unanswered > TRIES || current.is_none_or(|current| this > current) {
            self.current = Some(*name);
        }
        if let Some(session) = self.list.iter_mut().find(|session| session.keys.local_name == *name) {
            session.used = now;
            session.introduced = true;
        }
    }
}

/// docs/protocol.md section 2.
const MAX_SESSIONS: usize = 8;
/// Counts that are remembered: eight paths may be pinged at once, of which some are slower than the others by seconds.
const WINDOW: usize = 64;
/// The same of a peer that does not count its pings. One that is repeated while this many younger ones came in between counts as
/// new: it is answered, and asked back within limits, and is no sign of life.
const REMEMBERED_PINGS: usize = 16;
/// Pings with one session before another is tried.
const TRIES: u32 = 2;

#[cfg(test)]
mod tests {
    use super::super::outstanding::counted;
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(7_500);

    /// The same session as its two ends see it.
    fn both(n: u32) -> (PingKeys, PingKeys) {
        // a multiplicative hash scatters the ranks
        let scatter = |salt: u64| (u64::from(n) + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        let name = |salt: u64| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&scatter(salt));
            name[8..12].copy_from_slice(&n.to_be_bytes());
            name
        };
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        let (a, b) = (name(1 << 40), name(2 << 40));
        (PingKeys { key, local_name: a, remote_name: b }, PingKeys { key, local_name: b, remote_name: a })
    }

    fn at(millis: u64) -> Time {
        Time::from_millis(millis)
    }

    #[test]
    fn twice_the_current_one_then_the_newest_then_all() {
        let mut sessions = Sessions::default();
        assert!(sessions.pick(0).is_none());
        for n in 0..3 {
            sessions.install(at(0), both(n).0, PATIENCE);
        }
        let picked = |sessions: &Sessions, unanswered| sessions.pick(unanswered).unwrap().key[3];
        assert_eq!([0, 1].map(|n| picked(&sessions, n)), [2, 2], "nothing is confirmed: the newest");
        sessions.ponged(at(1), &both(1).0.local_name, 0);
        assert_eq!([0, 1, 2, 3].map(|n| picked(&sessions, n)), [1, 1, 2, 2]);
        let mut all = [4, 5, 6].map(|n| picked(&sessions, n));
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2]);
        assert_eq!(picked(&sessions, 7), 1, "from the start");
        sessions.ponged(at(1), &both(0).0.local_name, 0);
        assert_eq!(picked(&sessions, 0), 1, "an older one that still works does not win");
        sessions.ponged(at(1), &both(0).0.local_name, 4);
        assert_eq!(picked(&sessions, 0), 0, "unless the newer ones do not");
    }

    #[test]
    fn the_session_in_use_survives_500_simultaneous_handshakes() {
        let (mut a, mut b) = (Sessions::default(), Sessions::default());
        a.install(at(0), both(0).0, PATIENCE);
        b.install(at(0), both(0).1, PATIENCE);
        // a pings with it
        assert_eq!(b.pinged(at(1), &both(0).1.local_name, [1; 12]), Heard::New);
        a.ponged(at(2), &both(0).0.local_name, 0);
        // a minute later they finish in another order at each end
        for n in 0..500u32 {
            a.install(at(60_000), both(1 + n).0, PATIENCE);
            b.install(at(60_000), both(1 + (n * 7 + 250) % 500).1, PATIENCE);
            let used = a.pick(0).unwrap();
            assert_eq!(used.local_name, both(0).0.local_name);
            assert!(b.key(&used.remote_name).is_some(), "after {n}");
        }
    }

    #[test]
    fn after_500_handshakes_at_first_contact_both_sides_share_sessions() {
        for shift in [0, 1, 100, 499] {
            let (mut a, mut b) = (Sessions::default(), Sessions::default());
            for n in 0..500u32 {
                a.install(at(0), both(n).0, PATIENCE);
                b.install(at(0), both((n * 7 + shift) % 500).1, PATIENCE);
            }
            assert_eq!((a.list.len(), b.list.len()), (MAX_SESSIONS, MAX_SESSIONS));
            let common = a.names().filter(|_| true).count();
            assert_eq!(common, MAX_SESSIONS);
            let shared = a.list.iter().filter(|session| b.key(&session.keys.remote_name).is_some()).count();
            assert!(shared >= 6, "{shared}");
            // and some ping within the patience (one a second) finds one
            assert!((0..6).any(|tries| b.key(&a.pick(tries).unwrap().remote_name).is_some()));
        }
    }

    #[test]
    fn sessions_of_a_former_life_of_the_peer_make_room() {
        let mut a = Sessions::default();
        for n in 0..8 {
            a.install(at(0), both(n).0, PATIENCE);
        }
        a.ponged(at(10), &both(7).0.local_name, 0);
        // the peer restarts, and knows only what follows
        let mut b = Sessions::default();
        for n in 100..600u32 {
            a.install(at(60_000), both(n).0, PATIENCE);
            b.install(at(60_000), both(100 + (n * 3) % 500).1, PATIENCE);
        }
        assert!((0..7).any(|tries| b.key(&a.pick(tries).unwrap().remote_name).is_some()));
    }

    #[test]
    fn a_repeated_ping_is_noticed() {
        let mut sessions = Sessions::default();
        let name = both(1).0.local_name;
        sessions.install(at(0), both(1).0, PATIENCE);
        assert_eq!(sessions.pinged(at(1), &name, [1; 12]), Heard::New);
        assert_eq!(sessions.pinged(at(2), &name, [1; 12]), Heard::Old);
        for n in 2..100 {
            assert_eq!(sessions.pinged(at(3), &name, [n; 12]), Heard::New);
        }
        assert!(sessions.list[0].window.seen.len() <= REMEMBERED_PINGS);
        assert_eq!(sessions.pinged(at(4), &both(2).0.local_name, [1; 12]), Heard::Old, "unknown");
    }

    #[test]
    fn a_counted_ping_is_taken_once_for_good() {
        let mut sessions = Sessions::default();
        let PingKeys { key, local_name: name, .. } = both(1).0;
        sessions.install(at(0), both(1).0, PATIENCE);
        let mut ping = |count: u64| sessions.pinged(at(1), &name, counted(&key, &name, count));
        // three of four are for others, and neighbours overtake each other
        let order: Vec<u64> = (0..1_000u64).map(|n| 4 * (n ^ 1)).collect();
        assert!(order.iter().all(|count| ping(*count) == Heard::New));
        assert!(order.iter().all(|count| ping(*count) != Heard::New), "whatever is repeated");
        assert_eq!(ping(4_000), Heard::New);
        assert_eq!(ping(3_994), Heard::New, "it was late");
        assert_eq!(ping(1), Heard::Old, "nobody knows whether it came before");
        assert!(sessions.list[0].window.counts.len() <= WINDOW);
    }

    #[test]
    fn who_counts_cannot_be_made_one_who_does_not() {
        let mut sessions = Sessions::default();
        let PingKeys { key, local_name: name, .. } = both(1).0;
        sessions.install(at(0), both(1).0, PATIENCE);
        assert_eq!(sessions.pinged(at(1), &name, counted(&key, &name, 1)), Heard::New);
        assert_eq!(sessions.pinged(at(1), &name, [7; 12]), Heard::Old);
        assert_eq!(sessions.pinged(at(1), &name, counted(&key, &both(1).0.remote_name, 2)), Heard::Old, "one of ours");
    }

    #[test]
    fn the_sessions_of_a_life_end_together() {
        let mut sessions = Sessions::default();
        for n in 0..6 {
            sessions.install(at(0), both(n).0, PATIENCE);
            let incarnation = [(n % 2) as u8; 16];
            if n < 4 {
                assert!(sessions.set_incarnation(&both(n).0.local_name, incarnation));
                assert!(!sessions.set_incarnation(&both(n).0.local_name, [9; 16]), "it stays with the first");
            }
        }
        sessions.ponged(at(1), &both(3).0.local_name, 0);
        assert_eq!(sessions.incarnations(), [[0; 16], [1; 16]]);
        assert_eq!(sessions.end(Some([1; 16])).len(), 2);
        assert!(!sessions.confirmed(), "it was the one to ping with");
        assert_eq!((sessions.incarnations(), sessions.list.len()), (vec![[0; 16]], 4));
        assert_eq!(sessions.end(None).len(), 2);
    }
}
