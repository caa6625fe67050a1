//! A relay in use; and how one takes the place of another without a moment in which there is none.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::client::{is_clearly_nearer, Carrier};
use super::known::Key;
use super::Transport;
use crate::addr::Via;

pub(super) struct InUse<C = Carrier> {
    pub relay: String,
    pub introduction: bool,
    pub via: Via,
    pub addresses: Vec<SocketAddr>,
    pub transport: Transport,
    pub proxy: Option<String>,
    pub rtt: Duration,
    pub since: Instant,
    pub carrier: C,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Current,
    /// It carries, as far as is known, but another is looked for. If that is not found until then, it is as good as before.
    Doubted(Instant),
    /// Another has taken its place; it goes then.
    Replaced(Instant),
}

impl<C> InUse<C> {
    pub fn key(&self) -> Key<'_> {
        Key { host: &self.relay, introduction: self.introduction }
    }

    pub fn is_current(&self) -> bool {
        self.standing == Standing::Current
    }

    pub fn is_replaced(&self) -> bool {
        matches!(self.standing, Standing::Replaced(_))
    }
}

/// All of them.
pub(super) struct InUses<C = Carrier>(Vec<InUse<C>>);

impl<C> Default for InUses<C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<C> InUses<C> {
    pub fn add(&mut self, one: InUse<C>) {
        self.0.push(one);
    }

    /// Relays that carry to everybody.
    pub fn have(&self) -> usize {
        self.0.iter().filter(|one| !one.introduction && one.is_current()).count()
    }

    /// With the ways to rendezvous nodes.
    pub fn any(&self) -> usize {
        self.0.iter().filter(|one| one.is_current()).count()
    }

    pub fn uses(&self, key: Key<'_>) -> bool {
        self.0.iter().any(|one| one.is_current() && one.key() == key)
    }

    /// The best there is at this relay.
    pub fn at(&self, key: Key<'_>) -> Option<&InUse<C>> {
        self.chosen().find(|one| one.key() == key).or_else(|| self.0.iter().find(|one| one.key() == key))
    }

    pub fn iter(&self) -> impl Iterator<Item = &InUse<C>> {
        self.0.iter()
    }

    /// What is used from now on: one at each relay, those of which nothing is doubted first.
    pub fn chosen(&self) -> impl Iterator<Item = &InUse<C>> {
        let current = self.0.iter().filter(|one| one.is_current());
        let doubted = self.0.iter().filter(|one| matches!(one.standing, Standing::Doubted(_)) && !self.uses(one.key()));
        current.chain(doubted)
    }

    /// What works is to be had anew: those of which this is said.
    pub fn doubt(&mut self, now: Instant, whom: impl Fn(&InUse<C>) -> bool) {
        for one in self.0.iter_mut().filter(|one| one.is_current() && whom(one)) {
            one.standing = Standing::Doubted(now + DOUBTED_FOR);
        }
    }

    /// Others have come into use: those at the same relay give way, and when there are as many as there should be, all that are doubted.
    pub fn replace(&mut self, now: Instant, at_once: usize) {
        let full = self.have() >= at_once;
        let gives_way = |one: &InUse<C>| matches!(one.standing, Standing::Doubted(_)) && (full || self.uses(one.key()));
        let give_way: Vec<bool> = self.0.iter().map(gives_way).collect();
        for (one, _) in self.0.iter_mut().zip(give_way).filter(|(_, gives_way)| *gives_way) {
            one.standing = Standing::Replaced(now + LINGER);
        }
        self.trim();
    }

    /// Of those that were replaced only the last few are kept.
    fn trim(&mut self) {
        let mut surplus = self.0.iter().filter(|one| one.is_replaced()).count().saturating_sub(MAX_REPLACED);
        // they stand in the order in which they came into use
        self.0.retain(|one| {
            let goes = surplus > 0 && one.is_replaced();
            surplus -= usize::from(goes);
            !goes
        });
    }

    /// The farthest one that such a relay should take the place of. Over TCP one lost packet holds up all behind it: that is no better
    /// than UDP, however near.
    pub fn farther_than(&self, rtt: Duration, transport: Transport) -> Option<Via> {
        let others = self.0.iter().filter(|one| one.is_current() && !one.introduction);
        let farthest = others.max_by_key(|one| one.rtt)?;
        let as_good = transport == Transport::Udp || farthest.transport != Transport::Udp;
        (as_good && is_clearly_nearer(rtt, farthest.rtt)).then_some(farthest.via)
    }

    /// Another has taken its place.
    pub fn give_up(&mut self, via: Via, now: Instant) {
        for one in self.0.iter_mut().filter(|one| one.via == via) {
            one.standing = Standing::Replaced(now + LINGER);
        }
        self.trim();
    }

    /// What is due: those that were replaced go; those that were doubted for long enough have shown that they work.
    ///
    /// True: one is given up that may be in use still.
    pub fn settle(&mut self, now: Instant, at_once: usize) -> bool {
        let mut given_up = false;
        self.0.retain(|one| !matches!(one.standing, Standing::Replaced(until) if until <= now));
        for at in 0..self.0.len() {
            if matches!(self.0[at].standing, Standing::Doubted(until) if until <= now) {
                let room = self.0[at].introduction || self.have() < at_once;
                given_up |= !room;
                self.0[at].standing = if room { Standing::Current } else { Standing::Replaced(now + LINGER) };
            }
        }
        given_up
    }

    /// When something is due.
    pub fn settles_at(&self) -> Option<Instant> {
        let due = |one: &InUse<C>| match one.standing {
            Standing::Current => None,
            Standing::Doubted(until) | Standing::Replaced(until) => Some(until),
        };
        self.0.iter().filter_map(due).min()
    }

    /// Takes those out for which this does not hold.
    pub fn retain(&mut self, keep: impl FnMut(&InUse<C>) -> bool) {
        self.0.retain(keep);
    }

    pub fn take(&mut self) -> Vec<InUse<C>> {
        std::mem::take(&mut self.0)
    }
}

/// A change of networks comes as two or three. With as many again that are doubted, and those in use, there is room among the wires
/// (16, `net/wire.rs`).
const MAX_REPLACED: usize = 6;
/// By then the relay was asked twice whether it is there, and had the time to answer (15 s and 3.75 s, `client/session.rs`).
const DOUBTED_FOR: Duration = Duration::from_secs(40);
/// Peers are met anew over what took its place, by way of a rendezvous, and then find out that the old way does not answer: round
/// trips, of which each may lose a packet. An allocation more for as long costs a relay nothing.
const LINGER: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn one(relay: &str, n: u16) -> InUse<()> {
        InUse {
            relay: relay.to_owned(),
            introduction: false,
            via: Via(n),
            addresses: Vec::new(),
            transport: Transport::Udp,
            proxy: None,
            rtt: Duration::ZERO,
            since: Instant::now(),
            carrier: (),
            standing: Standing::Current,
        }
    }

    fn two() -> (InUses<()>, Instant) {
        let mut all = InUses::default();
        all.add(one("a", 1));
        all.add(one("b", 2));
        (all, Instant::now())
    }

    fn chosen(all: &InUses<()>) -> Vec<u16> {
        all.chosen().map(|one| one.via.0).collect()
    }

    fn replaced(all: &InUses<()>) -> Vec<u16> {
        all.iter().filter(|one| one.is_replaced()).map(|one| one.via.0).collect()
    }

    #[test]
    fn what_is_doubted_is_used_until_another_is_there_and_goes_a_while_later() {
        let (mut all, now) = two();
        all.doubt(now, |_| true);
        assert_eq!((all.have(), chosen(&all)), (0, vec![1, 2]));
        all.add(one("b", 3));
        all.replace(now + SECOND, 2);
        assert_eq!((chosen(&all), replaced(&all)), (vec![3, 1], vec![2]), "the new one first, one of each relay");
        all.settle(now + 2 * SECOND, 2);
        assert_eq!(replaced(&all), [2]);
        all.settle(now + SECOND + LINGER, 2);
        assert_eq!(all.iter().map(|one| one.via.0).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn when_there_are_as_many_as_wanted_all_that_are_doubted_give_way() {
        let (mut all, now) = two();
        all.doubt(now, |_| true);
        all.add(one("c", 3));
        all.replace(now, 2);
        assert_eq!(replaced(&all), Vec::<u16>::new());
        all.add(one("d", 4));
        all.replace(now, 2);
        assert_eq!((chosen(&all), replaced(&all)), (vec![3, 4], vec![1, 2]));
    }

    #[test]
    fn what_nothing_took_the_place_of_is_as_good_as_before_after_a_while() {
        let (mut all, now) = two();
        all.doubt(now, |_| true);
        all.add(one("c", 3));
        all.replace(now, 2);
        assert_eq!(all.settles_at(), Some(now + DOUBTED_FOR));
        all.settle(now + DOUBTED_FOR, 2);
        assert_eq!((all.have(), chosen(&all), replaced(&all)), (2, vec![1, 3], vec![2]), "as many as there should be");
    }

    #[test]
    fn the_farthest_gives_way_to_one_that_is_clearly_nearer_and_no_worse() {
        let (mut all, now) = two();
        (all.0[0].rtt, all.0[1].rtt) = (80 * SECOND / 1000, 50 * SECOND / 1000);
        let to = |all: &InUses<()>, ms: u32, transport| all.farther_than(ms * SECOND / 1000, transport);
        assert_eq!(to(&all, 78, Transport::Udp), None, "about as near");
        assert_eq!(to(&all, 20, Transport::Tls), None, "behind one lost packet everything waits");
        assert_eq!(to(&all, 60, Transport::Udp), Some(Via(1)));
        all.give_up(Via(1), now);
        assert_eq!((all.have(), replaced(&all)), (1, vec![1]));
        assert_eq!(to(&all, 60, Transport::Udp), None, "what is left is nearer");
        all.0[1].transport = Transport::Tcp;
        assert_eq!(to(&all, 20, Transport::Tls), Some(Via(2)));
    }

    #[test]
    fn however_often_the_network_changes_few_are_kept() {
        let (mut all, now) = two();
        for n in 3..100 {
            all.doubt(now, |_| true);
            all.add(one("a", n));
            all.replace(now, 2);
        }
        assert_eq!(replaced(&all), [93, 94, 95, 96, 97, 98]);
        assert_eq!(chosen(&all), [99, 2]);
    }
}
