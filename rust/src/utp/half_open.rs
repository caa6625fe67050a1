//! SYNs that were answered and not yet confirmed: a fixed table, and SYN cookies (RFC 4987 section 3.6) for those that find it
//! full. A cookie is the SYN-ACK's own sequence number, so whoever repeats it receives what is sent to its address; nothing is
//! remembered meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::Duration;

use aws_lc_rs::hmac;

use super::packet::{Capability, Early, Packet};
use crate::addr::Origin;
use crate::config::EndpointConfig;
use crate::time::Time;

/// What a confirmed SYN said, and how it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeted {
    pub syn_seq: u16,
    pub our_seq: u16,
    /// What the dialler said of itself.
    pub capability: Option<Capability>,
    /// What the tags are made with, of a dialler that has shown that it knows it.
    pub secret: Option<[u8; 32]>,
}

/// Who sent a SYN, and its connection id.
type Key = (Origin, u16);

/// The table and the cookies.
#[derive(Debug)]
pub struct HalfOpen {
    rows: HashMap<Key, Row>,
    of: HashMap<Origin, usize>,
    /// By age: the oldest times out first.
    order: BTreeMap<(Time, u64), Key>,
    made: u64,
    secret: Secret,
    /// When the last cookie was given out.
    cookie_at: Option<Time>,
}

#[derive(Debug)]
struct Row {
    at: (Time, u64),
    greeted: Greeted,
}

struct Secret(hmac::Key);

/// SYNs whose agreed number has been used: a late copy must not start over with the same numbers, or what is under way from
/// the first connection would fit into the second.
#[derive(Debug, Default)]
pub struct Spent {
    now: HashSet<(Key, u16)>,
    before: HashSet<(Key, u16)>,
    since: Time,
}

impl Spent {
    pub fn holds(&self, key: Key, syn_seq: u16) -> bool {
        self.now.contains(&(key, syn_seq)) || self.before.contains(&(key, syn_seq))
    }

    /// Remembered for one slot at least, unless more than [`MAX_SPENT`] come in less.
    pub fn note(&mut self, now: Time, key: Key, syn_seq: u16) {
        if self.now.len() >= MAX_SPENT || now.since(self.since) >= SPENT_SLOT {
            self.before = std::mem::take(&mut self.now);
            self.since = now;
        }
        self.now.insert((key, syn_seq));
    }
}

impl HalfOpen {
    /// `secret` must be unpredictable: cookies are made with it.
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            rows: HashMap::new(),
            of: HashMap::new(),
            order: BTreeMap::new(),
            made: 0,
            secret: Secret(hmac::Key::new(hmac::HMAC_SHA256, &secret)),
            cookie_at: None,
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Answers a SYN: with the number it was answered with before (or data is lost: UTP.md 2.3), with `fresh` if there is room
    /// in the table, with a cookie otherwise. A number that is `agreed` needs no cookie: it is computed again from what confirms it,
    /// and no other will do, for data may have come with the SYN that relies on it. `None`: who knows a secret was there before.
    pub fn greet(
        &mut self,
        now: Time,
        config: &EndpointConfig,
        key: Key,
        fresh: Greeted,
        agreed: bool,
    ) -> Option<Greeted> {
        let Greeted { syn_seq, capability, secret, .. } = fresh;
        if let Some(Row { greeted, .. }) = self.rows.get(&key) {
            if greeted.secret.is_some() && secret.is_none() {
                return None;
            }
            if greeted.syn_seq == syn_seq && greeted.secret.is_some() == secret.is_some() {
                return Some(*greeted);
            }
        }
        self.remove(&key);
        let held = self.of.get(&key.0).copied().unwrap_or(0);
        if self.rows.len() >= config.max_half_open || held >= config.max_half_open_per_remote {
            self.cookie_at = Some(now);
            if agreed {
                // nothing is remembered that its tags could be made with
                return Some(Greeted { secret: None, ..fresh });
            }
            let our_seq = self.cookie(slot(now), &key, syn_seq, capability.is_some());
            return Some(Greeted { our_seq, ..fresh });
        }
        self.made += 1;
        let at = (now, self.made);
        self.rows.insert(key, Row { at, greeted: fresh });
        self.order.insert(at, key);
        *self.of.entry(key.0).or_insert(0) += 1;
        Some(fresh)
    }

    /// What the tags are made with that the dialler of this SYN has shown.
    pub fn secret_of(&self, key: &Key, syn_seq: u16) -> Option<[u8; 32]> {
        self.rows.get(key).filter(|row| row.greeted.syn_seq == syn_seq)?.greeted.secret
    }

    /// The SYN that this packet confirms, from the table: the SYN-ACK consumed no number, so it acknowledges the one before.
    pub fn take(&mut self, key: &Key, packet: &Packet<'_>) -> Option<Greeted> {
        let greeted = self.rows.get(key)?.greeted;
        (packet.header.ack == greeted.our_seq.wrapping_sub(1)).then(|| self.remove(key))?;
        Some(greeted)
    }

    /// The same by cookie. Only the first packet after the SYN has the SYN's number in it; those behind it are sent again.
    pub fn recognise(&self, now: Time, key: &Key, packet: &Packet<'_>) -> Option<Greeted> {
        if !self.has_given_cookies(now) {
            return None;
        }
        let syn_seq = packet.header.seq.wrapping_sub(1);
        let our_seq = packet.header.ack.wrapping_add(1);
        let slots = [Some(slot(now)), slot(now).checked_sub(1)];
        let mut candidates = slots.into_iter().flatten().flat_map(|slot| [(slot, true), (slot, false)]);
        let (_, capable) = candidates.find(|(slot, capable)| self.cookie(*slot, key, syn_seq, *capable) == our_seq)?;
        // what else the capability said did not fit
        Some(Greeted { syn_seq, our_seq, capability: capable.then(|| Capability::new(None)), secret: None })
    }

    /// A packet that nobody knows may belong to a dialler that was given a cookie.
    pub fn has_given_cookies(&self, now: Time) -> bool {
        self.cookie_at.is_some_and(|at| slot(now) - slot(at).min(slot(now)) <= 1)
    }

    /// When the oldest row was made.
    pub fn oldest(&self) -> Option<Time> {
        self.order.first_key_value().map(|(&(at, _), _)| at)
    }

    pub fn drop_oldest(&mut self) {
        if let Some((_, key)) = self.order.first_key_value().map(|(at, key)| (*at, *key)) {
            self.remove(&key);
        }
    }

    pub fn remove(&mut self, key: &Key) {
        let Some(row) = self.rows.remove(key) else { return };
        self.order.remove(&row.at);
        if let Some(count) = self.of.get_mut(&key.0) {
            *count -= 1;
            if *count == 0 {
                self.of.remove(&key.0);
            }
        }
    }

    fn cookie(&self, slot: u64, (origin, id): &Key, syn_seq: u16, capable: bool) -> u16 {
        let mut context = hmac::Context::with_key(&self.secret.0);
        context.update(&slot.to_be_bytes());
        context.update(origin.as_bytes());
        context.update(&id.to_be_bytes());
        context.update(&syn_seq.to_be_bytes());
        context.update(&[capable.into()]);
        first_number(&context.sign())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What two nodes that share a key know of a connection before the first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The number of the SYN-ACK.
    pub our_seq: u16,
    /// What the dialler proves it with.
    pub early: Early,
    /// What the tags are made with until TLS has keys for them.
    pub secret: [u8; 32],
}

pub fn agree(key: &[u8; 32], syn_id: u16, syn_seq: u16) -> Agreement {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    // no STUN message begins like these: the key signs those as well
    let sign = |label: &[u8]| {
        let mut context = hmac::Context::with_key(&key);
        context.update(label);
        context.update(&syn_id.to_be_bytes());
        context.update(&syn_seq.to_be_bytes());
        context.sign()
    };
    let (signed, for_tags) = (sign(b"keynet-syn-1"), sign(b"keynet-tags-1"));
    let (mut tag, mut secret) = ([0; 8], [0; 32]);
    tag.copy_from_slice(&signed.as_ref()[2..10]);
    secret.copy_from_slice(for_tags.as_ref());
    Agreement { our_seq: first_number(&signed), early: Early { syn_seq, tag }, secret }
}

fn first_number(tag: &hmac::Tag) -> u16 {
    match tag.as_ref() {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

fn slot(now: Time) -> u64 {
    now.since(Time::ZERO).as_secs() / SLOT.as_secs()
}

/// A cookie is good in the slot it was made in and in the next one: for 32 to 64 s. A dialler goes on for `unanswered_timeout` =
/// 30 s with what it was told.
const SLOT: Duration = Duration::from_secs(32);

/// Longer than the other end of a dead connection lives: `unanswered_timeout` and `idle_timeout` of the defaults.
const SPENT_SLOT: Duration = Duration::from_secs(120);
/// As many as connections (`max_connections`): 200 KiB.
const MAX_SPENT: usize = 16_384;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::utp::packet::{Header, Kind};

    fn config() -> EndpointConfig {
        EndpointConfig { max_half_open: 0, ..EndpointConfig::default() }
    }

    fn origin(text: &str) -> Origin {
        Origin::of(text.parse().unwrap())
    }

    fn fresh(syn_seq: u16, our_seq: u16, capability: Option<Capability>) -> Greeted {
        Greeted { syn_seq, our_seq, capability, secret: None }
    }

    fn first(greeted: &Greeted) -> Packet<'static> {
        let header = Header {
            kind: Kind::Data,
            connection_id: 8,
            timestamp: 1,
            timestamp_difference: 0,
            window: 0,
            seq: greeted.syn_seq.wrapping_add(1),
            ack: greeted.our_seq.wrapping_sub(1),
        };
        Packet { payload: b"x", ..Packet::bare(header) }
    }

    #[test]
    fn a_cookie_is_good_for_one_slot_and_the_next() {
        for (given, good, bad) in [(0, 63, 64), (31, 63, 64), (32, 95, 96), (1_000_000, 1_000_031, 1_000_100)] {
            let at = |seconds: u64| Time::from_millis(seconds * 1_000);
            let mut table = HalfOpen::new([1; 32]);
            let key = (origin("192.0.2.1:7"), 7);
            for capability in [None, Some(Capability::new(None))] {
                let greeted = table.greet(at(given), &config(), key, fresh(65_535, 5, capability), false).unwrap();
                assert_eq!(table.recognise(at(given), &key, &first(&greeted)), Some(greeted));
                assert_eq!(table.recognise(at(good), &key, &first(&greeted)), Some(greeted), "{given} {good}");
                assert_eq!(table.recognise(at(bad), &key, &first(&greeted)), None, "{given} {bad}");
            }
            assert_eq!(table.len(), 0);
        }
    }

    /// One packet in 2^14 is a lucky guess: 16 bits, two slots, with and without the capability.
    #[test]
    fn a_cookie_is_bound_to_everything_that_the_syn_said() {
        let mut table = HalfOpen::new([1; 32]);
        let now = Time::from_millis(100_000);
        let (mut guessed, mut guesses) = (0, 0);
        for n in 0..4_000u16 {
            let key = (origin("192.0.2.1:7"), n);
            let greeted = table.greet(now, &config(), key, fresh(n, 0, None), false).unwrap();
            let mut others =
                vec![(origin("192.0.2.1:8"), n), (origin("192.0.2.2:7"), n), (origin("[2001:db8::1]:7"), n)];
            others.push((key.0, n.wrapping_add(1)));
            guessed += others.iter().filter(|key| table.recognise(now, key, &first(&greeted)).is_some()).count();
            let mut packet = first(&greeted);
            packet.header.seq = packet.header.seq.wrapping_add(1);
            guessed += usize::from(table.recognise(now, &key, &packet).is_some());
            guessed += usize::from(HalfOpen::new([2; 32]).recognise(now, &key, &first(&greeted)).is_some());
            guesses += 6;
        }
        assert!(guessed < 10, "{guessed} of {guesses}, not one in 16,384");
    }

    #[test]
    fn no_cookie_is_good_when_none_was_given() {
        let mut table = HalfOpen::new([1; 32]);
        let now = Time::from_millis(100_000);
        let key = (origin("192.0.2.1:7"), 7);
        let our_seq = table.cookie(slot(now), &key, 3, false);
        let forged = fresh(3, our_seq, None);
        assert_eq!(table.recognise(now, &key, &first(&forged)), None);
        table.greet(now, &config(), (origin("192.0.2.9:9"), 9), fresh(1, 0, None), false);
        assert_eq!(table.recognise(now, &key, &first(&forged)), Some(forged));
    }

    #[test]
    fn who_knows_a_secret_is_not_displaced() {
        let (now, key) = (Time::from_millis(1_000), (origin("192.0.2.1:7"), 7));
        let known = Greeted { secret: Some([1; 32]), ..fresh(10, 20, None) };
        let mut table = HalfOpen::new([1; 32]);
        let roomy = EndpointConfig::default();
        assert_eq!(table.greet(now, &roomy, key, fresh(10, 99, None), false), Some(fresh(10, 99, None)));
        assert_eq!(table.greet(now, &roomy, key, known, true), Some(known), "nobody has seen the first answer yet");
        for syn_seq in 0..=u16::MAX {
            assert_eq!(table.greet(now, &roomy, key, fresh(syn_seq, 99, None), false), None);
        }
        assert_eq!((table.secret_of(&key, 10), table.secret_of(&key, 11)), (known.secret, None));
        let mut full = HalfOpen::new([1; 32]);
        let forgotten = Greeted { secret: None, ..known };
        assert_eq!(full.greet(now, &config(), key, known, true), Some(forgotten), "the agreed number, without tags");
    }

    #[test]
    fn one_address_fills_its_own_rows_and_no_more() {
        let mut table = HalfOpen::new([1; 32]);
        let config = EndpointConfig { max_half_open: 100, max_half_open_per_remote: 7, ..EndpointConfig::default() };
        let now = Time::from_millis(1_000);
        for id in 0..1_000 {
            table.greet(now, &config, (origin("192.0.2.1:7"), id), fresh(1, 5, None), false);
        }
        assert_eq!(table.len(), 7);
        for id in 0..1_000 {
            table.greet(now, &config, (origin("192.0.2.2:7"), id), fresh(1, 5, None), false);
        }
        assert_eq!(table.len(), 14, "another address has its own");
    }

    #[test]
    fn a_number_that_was_used_is_known_in_its_slot_and_in_the_next() {
        let mut spent = Spent::default();
        let key = |id| (origin("192.0.2.1:7"), id);
        let at = |seconds: u64| Time::from_millis(seconds * 1_000);
        spent.note(at(1_000), key(1), 10);
        assert!(spent.holds(key(1), 10) && !spent.holds(key(1), 11) && !spent.holds(key(2), 10));
        spent.note(at(1_120), key(2), 20);
        assert!(spent.holds(key(1), 10), "a late copy comes up to two minutes later");
        spent.note(at(1_240), key(3), 30);
        assert!(!spent.holds(key(1), 10) && spent.holds(key(2), 20) && spent.holds(key(3), 30));
        (0..u16::MAX).for_each(|seq| spent.note(at(1_240), key(4), seq));
        assert!(spent.now.len() + spent.before.len() <= 2 * MAX_SPENT);
    }
}
