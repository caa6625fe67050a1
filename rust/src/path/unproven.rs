//! What goes to addresses that have shown nothing yet, over all meetings together: peers name addresses, and may name those of others.
//!
//! Each IP address (of IPv6, each /64) gets a handful of pings and then a few a second, however many meetings name it; all of them
//! together have a limit as well. An address at which the rendezvous sees the peer itself has more, since it can be made up only by
//! both together. Every genuine ping that comes from an address is worth three packets to there, and one that answers is no longer
//! limited for a while.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::limit::Limit;
use crate::time::Time;

/// How much is known of an address that a peer has named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// The peer says that it is there.
    Named,
    /// The rendezvous sees the peer there, or it is a relay of our own.
    Vouched,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Unproven {
    places: HashMap<IpAddr, Place>,
    /// The oldest first.
    order: VecDeque<IpAddr>,
    named: Limit,
    vouched: Limit,
}

#[derive(Debug)]
struct Place {
    named: Limit,
    vouched: Limit,
    /// Packets that came from there are worth so many to there.
    earned: u32,
    answered: Option<Time>,
}

impl Unproven {
    pub(super) fn new() -> Self {
        Self {
            places: HashMap::new(),
            order: VecDeque::new(),
            named: Limit::new(NAMED_OF_ALL.0, NAMED_OF_ALL.1),
            vouched: Limit::new(VOUCHED_OF_ALL.0, VOUCHED_OF_ALL.1),
        }
    }

    /// Whether a ping may go there now; it is counted.
    pub(super) fn take(&mut self, now: Time, to: IpAddr, word: Word) -> bool {
        let place = self.place(to);
        if place.answered.is_some_and(|at| now.since(at) < PROVEN_FOR) {
            return true;
        }
        if place.earned > 0 {
            place.earned -= 1;
            return true;
        }
        match word {
            Word::Named => place.named.take(now) && self.named.take(now),
            Word::Vouched => place.vouched.take(now) && self.vouched.take(now),
        }
    }

    /// A genuine ping came from there, and its answer goes back.
    pub(super) fn heard(&mut self, from: IpAddr) {
        let place = self.place(from);
        place.earned = (place.earned + WORTH - 1).min(MOST_EARNED);
    }

    /// A genuine answer came from there.
    pub(super) fn answered(&mut self, now: Time, from: IpAddr) {
        self.place(from).answered = Some(now);
    }

    fn place(&mut self, ip: IpAddr) -> &mut Place {
        let ip = whole(ip);
        if !self.places.contains_key(&ip) {
            if self.places.len() >= MAX_PLACES {
                // whoever fills the table has paid for each row with a ping out of what all have together
                if let Some(oldest) = self.order.pop_front() {
                    self.places.remove(&oldest);
                }
            }
            self.order.push_back(ip);
        }
        self.places.entry(ip).or_insert_with(|| Place {
            named: Limit::new(NAMED_OF_ONE.0, NAMED_OF_ONE.1),
            vouched: Limit::new(VOUCHED_OF_ONE.0, VOUCHED_OF_ONE.1),
            earned: 0,
            answered: None,
        })
    }
}

/// A host has a /64 of IPv6 to itself.
fn whole(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
    }
}

// Each: pings a second, and at once.

/// A meeting sends 15 pings in 10 s to each of a few ports of an address: the handful is four of them.
const NAMED_OF_ONE: (u32, u32) = (8, 64);
/// Sixty peers at once, each with two addresses of its own network, for the first second; then 188 kbit/s.
const NAMED_OF_ALL: (u32, u32) = (256, 2_048);
/// Sixty peers behind one NAT at once, for the first second.
const VOUCHED_OF_ONE: (u32, u32) = (64, 512);
/// A thousand peers that dial at once; then 754 kbit/s.
const VOUCHED_OF_ALL: (u32, u32) = (1_024, 8_192);
/// Packets that one from an address is worth to there: the answer, a ping back, and one more.
const WORTH: u32 = 3;
const MOST_EARNED: u32 = 1_024;
/// Shorter than the shortest life that NATs give to a mapping in RFC 4787 REQ-5.
const PROVEN_FOR: Duration = Duration::from_secs(60);
const MAX_PLACES: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> IpAddr {
        std::net::Ipv4Addr::from(0xcb00_0000 + n).into()
    }

    fn taken(unproven: &mut Unproven, to: impl Fn(u64) -> IpAddr, word: Word, seconds: u64) -> u64 {
        (0..seconds * 1_000)
            .map(|ms| (0..5).filter(|_| unproven.take(Time::from_millis(ms), to(ms), word)).count() as u64)
            .sum()
    }

    #[test]
    fn one_address_gets_a_handful_and_a_few_a_second() {
        let mut unproven = Unproven::new();
        let count = taken(&mut unproven, |_| ip(1), Word::Named, 10);
        assert!((64..=64 + 80).contains(&count), "{count}");
        let count = taken(&mut Unproven::new(), |_| ip(1), Word::Vouched, 10);
        assert!((512..=512 + 640).contains(&count), "{count}");
    }

    #[test]
    fn all_addresses_together_have_a_limit_too() {
        let mut unproven = Unproven::new();
        let count = taken(&mut unproven, |ms| ip(ms as u32), Word::Named, 10);
        assert!((2_048..=2_048 + 2_560).contains(&count), "{count}");
        let count = taken(&mut unproven, |ms| ip(ms as u32), Word::Vouched, 10);
        assert!((8_192..=8_192 + 10_240).contains(&count), "{count}");
        assert!(unproven.places.len() <= MAX_PLACES && unproven.order.len() <= MAX_PLACES);
    }

    #[test]
    fn what_comes_from_an_address_is_worth_three_times_as_much() {
        let mut unproven = Unproven::new();
        while unproven.take(Time::ZERO, ip(1), Word::Named) {}
        (0..10).for_each(|_| unproven.heard(ip(1)));
        let back = (0..100).filter(|_| unproven.take(Time::ZERO, ip(1), Word::Named)).count();
        assert_eq!(back + 10, 30, "with the answers");
        (0..5_000).for_each(|_| unproven.heard(ip(1)));
        assert!(unproven.places[&ip(1)].earned <= MOST_EARNED);
    }

    #[test]
    fn who_answers_is_not_limited_for_a_while() {
        let mut unproven = Unproven::new();
        while unproven.take(Time::ZERO, ip(1), Word::Named) {}
        unproven.answered(Time::ZERO, ip(1));
        assert!((0..1_000).all(|_| unproven.take(Time::from_millis(59_000), ip(1), Word::Named)));
        let later = Time::from_millis(61_000);
        assert_eq!((0..1_000).filter(|_| unproven.take(later, ip(1), Word::Named)).count(), 64);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut unproven = Unproven::new();
        let within = |n: u128| IpAddr::from(Ipv6Addr::from(0x2001_0db8_u128 << 96 | n));
        assert_eq!((0..1_000).filter(|n| unproven.take(Time::ZERO, within(*n), Word::Named)).count(), 64);
    }
}
