//! Our own addresses as others saw them, in the order in which they did, and since when that is known or not known any more. A change of
//! network makes them doubtful, and no more; they go when a newer one takes their place.

use std::net::SocketAddr;

use tokio::time::Instant;

/// What servers saw.
#[derive(Debug)]
pub struct Observed {
    seen: Vec<Seen>,
    /// What is known of each family: IPv4, IPv6.
    families: [Family; 2],
}

/// The own address of one family, for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnAddress {
    pub ipv4: bool,
    /// Somebody has seen us there, and the last question was answered.
    pub known: bool,
    /// Since when it is known, or is not.
    pub since: Instant,
    /// The newest first. What was seen before it became unknown is still told to peers.
    pub addresses: Vec<SocketAddr>,
    /// When somebody last saw us there.
    pub confirmed: Option<Instant>,
    pub asked: Option<Round>,
}

/// A round of questions to servers where they see us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub began: Instant,
    pub servers: usize,
    pub answers: usize,
}

#[derive(Clone, Copy, Debug)]
struct Family {
    known: bool,
    since: Instant,
    confirmed: Option<Instant>,
    asked: Option<Round>,
}

#[derive(Debug)]
struct Seen {
    address: SocketAddr,
    by: SocketAddr,
    /// The network has changed since, or the address did not help: it is to be asked for again.
    doubted: bool,
}

impl Observed {
    pub fn new(now: Instant) -> Self {
        let family = Family { known: false, since: now, confirmed: None, asked: None };
        Self { seen: Vec::new(), families: [family; 2] }
    }

    /// `by` saw us at `address`. In a network with several ways out, servers see several addresses, and each is right. True: we were
    /// elsewhere before. Each server's sight of another port of one address is no news, unless all was in doubt.
    pub fn note(&mut self, address: SocketAddr, by: SocketAddr, now: Instant) -> bool {
        let is_new = !self.seen.iter().any(|seen| seen.address == address);
        let family = &mut self.families[usize::from(address.is_ipv6())];
        if is_new || !family.known {
            (family.known, family.since) = (true, now);
        }
        family.confirmed = Some(now);
        let of_family = |seen: &Seen| seen.address.is_ipv4() == address.is_ipv4();
        let mut before = self.seen.iter().filter(|seen| of_family(seen)).peekable();
        let is_known = |seen: &Seen| seen.address == address || (!seen.doubted && seen.address.ip() == address.ip());
        let is_elsewhere = before.peek().is_some() && !before.any(is_known);
        // what is doubted is older than what made it doubtful, whoever saw it
        self.seen.retain(|seen| !(of_family(seen) && (seen.doubted || seen.by == by)));
        if self.seen.iter().filter(|seen| of_family(seen)).count() >= MAX_OF_FAMILY {
            if let Some(oldest) = self.seen.iter().position(of_family) {
                self.seen.remove(oldest);
            }
        }
        self.seen.push(Seen { address, by, doubted: false });
        is_elsewhere
    }

    /// A round of questions is over. Where nobody has answered, it is not known any more where we are.
    pub fn asked(&mut self, ipv4: bool, round: Round) {
        let sure = self.is_sure(ipv4);
        let family = &mut self.families[usize::from(!ipv4)];
        family.asked = Some(round);
        let confirmed = family.confirmed.is_some_and(|at| at >= round.began);
        // who has nobody to ask knows no less than before, unless the network is another by now
        let in_vain = round.servers > 0 || !sure;
        if family.known && round.answers == 0 && in_vain && !confirmed {
            (family.known, family.since) = (false, round.began);
        }
    }

    /// What is known of the families that somebody was seen in, or asked in; of IPv4 in any case.
    pub fn own(&self) -> Vec<OwnAddress> {
        let all = self.addresses();
        let own = [true, false].into_iter().zip(&self.families).map(|(ipv4, family)| {
            let &Family { known, since, confirmed, asked } = family;
            let addresses = all.iter().copied().filter(|address| address.is_ipv4() == ipv4).collect();
            OwnAddress { ipv4, known, since, addresses, confirmed, asked }
        });
        let mut own: Vec<_> = own.filter(|one| one.confirmed.is_some() || one.has_asked()).collect();
        if own.is_empty() {
            let Family { known, since, confirmed, asked } = self.families[0];
            own.push(OwnAddress { ipv4: true, known, since, addresses: Vec::new(), confirmed, asked });
        }
        own
    }

    /// All of it may be otherwise now.
    pub fn doubt(&mut self) {
        self.seen.iter_mut().for_each(|seen| seen.doubted = true);
    }

    /// Whether an address of the family is known and nothing speaks against it.
    pub fn is_sure(&self, ipv4: bool) -> bool {
        self.seen.iter().any(|seen| seen.address.is_ipv4() == ipv4 && !seen.doubted)
    }

    /// The newest first; one port of each IP address: a NAT that gives another one to each server gives a peer yet another.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for seen in self.seen.iter().rev() {
            if !addresses.iter().any(|known| known.ip() == seen.address.ip()) {
                addresses.push(seen.address);
            }
        }
        addresses
    }
}

impl OwnAddress {
    fn has_asked(&self) -> bool {
        self.asked.is_some_and(|round| round.servers > 0)
    }
}

/// A host with more uplinks than that in use at a time is a router.
const MAX_OF_FAMILY: usize = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn observed(seen: &[(&str, &str)]) -> Observed {
        let now = Instant::now();
        let mut observed = Observed::new(now);
        for (address, by) in seen {
            observed.note(at(address), at(by), now);
        }
        observed
    }

    fn own_ipv4(observed: &Observed) -> OwnAddress {
        observed.own().into_iter().find(|one| one.ipv4).unwrap()
    }

    #[test]
    fn another_address_is_news_and_another_port_only_after_a_doubt() {
        let mut observed = Observed::new(Instant::now());
        let note =
            |observed: &mut Observed, address: &str, by: &str| observed.note(at(address), at(by), Instant::now());
        assert!(!note(&mut observed, "198.51.100.7:5000", ONE), "nothing was told before");
        assert!(!note(&mut observed, "[2001:db8::7]:5000", ONE), "of this family either");
        assert!(!note(&mut observed, "198.51.100.7:5001", OTHER), "a symmetric NAT");
        assert!(note(&mut observed, "198.51.100.8:5000", ONE));
        observed.doubt();
        assert!(!note(&mut observed, "198.51.100.8:5000", ONE), "it was in doubt without need");
        observed.doubt();
        assert!(note(&mut observed, "198.51.100.8:6000", ONE), "the NAT was started anew");
    }

    const ONE: &str = "203.0.113.1:7348";
    const OTHER: &str = "203.0.113.2:3478";

    #[test]
    fn what_is_doubted_stays_until_something_newer_takes_its_place() {
        let mut observed = observed(&[("198.51.100.7:5000", ONE), ("[2001:db8::7]:5000", "[2001:db8:5::1]:7348")]);
        assert!(observed.is_sure(true) && observed.is_sure(false));
        observed.doubt();
        assert!(!observed.is_sure(true));
        assert_eq!(observed.addresses(), [at("[2001:db8::7]:5000"), at("198.51.100.7:5000")]);
        observed.note(at("198.51.100.9:1"), at(OTHER), Instant::now());
        assert_eq!(observed.addresses(), [at("198.51.100.9:1"), at("[2001:db8::7]:5000")]);
        assert!(observed.is_sure(true) && !observed.is_sure(false));
    }

    #[test]
    fn what_was_seen_shortly_before_a_change_was_noticed_is_confirmed_or_replaced() {
        // a new network's address is there before the system says that there is a new network
        let mut observed = observed(&[("198.51.100.7:5000", ONE), ("198.51.100.9:1", ONE)]);
        observed.doubt();
        assert_eq!(observed.addresses(), [at("198.51.100.9:1")], "the late news takes nothing away");
        observed.note(at("198.51.100.9:1"), at(ONE), Instant::now());
        assert!(observed.is_sure(true));
    }

    #[test]
    fn two_ways_out_have_two_addresses_and_one_nat_has_one() {
        let observed =
            observed(&[("198.51.100.7:5000", ONE), ("198.51.100.7:5001", OTHER), ("192.0.2.9:6000", "203.0.113.3:1")]);
        assert_eq!(observed.addresses(), [at("192.0.2.9:6000"), at("198.51.100.7:5001")]);
    }

    #[test]
    fn an_address_is_unknown_from_the_first_question_that_nobody_answers_until_somebody_does() {
        let begin = Instant::now();
        let later = |seconds: u64| begin + Duration::from_secs(seconds);
        let round = |seconds: u64, answers| Round { began: later(seconds), servers: 3, answers };
        let mut observed = Observed::new(begin);
        let own = own_ipv4(&observed);
        assert_eq!((own.known, own.since, own.confirmed, own.asked), (false, begin, None, None));
        observed.asked(true, round(1, 0));
        assert_eq!((own_ipv4(&observed).known, own_ipv4(&observed).since), (false, begin), "it never was known");
        observed.note(at("198.51.100.7:5000"), at(ONE), later(2));
        observed.note(at("198.51.100.7:5000"), at(ONE), later(60));
        observed.asked(true, round(60, 1));
        let own = own_ipv4(&observed);
        assert_eq!((own.known, own.since, own.confirmed), (true, later(2), Some(later(60))), "known for as long");
        observed.asked(true, round(120, 0));
        observed.asked(true, round(180, 0));
        let own = own_ipv4(&observed);
        assert_eq!((own.known, own.since, own.asked), (false, later(120), Some(round(180, 0))));
        assert_eq!((own.addresses, own.confirmed), (vec![at("198.51.100.7:5000")], Some(later(60))), "what it was");
        observed.note(at("198.51.100.7:5000"), at(OTHER), later(200));
        assert_eq!((own_ipv4(&observed).known, own_ipv4(&observed).since), (true, later(200)));
        observed.note(at("198.51.100.8:1"), at(OTHER), later(300));
        assert_eq!(own_ipv4(&observed).since, later(300), "another address");
    }

    #[test]
    fn who_has_nobody_to_ask_knows_no_less_until_the_network_is_another() {
        let mut observed = observed(&[("198.51.100.7:5000", ONE)]);
        let nobody = Round { began: Instant::now(), servers: 0, answers: 0 };
        observed.asked(true, nobody);
        observed.asked(false, nobody);
        assert!(own_ipv4(&observed).known);
        assert_eq!(observed.own().len(), 1, "of IPv6 there is nothing to say");
        observed.doubt();
        observed.asked(true, Round { began: Instant::now() + Duration::from_secs(1), ..nobody });
        assert!(!own_ipv4(&observed).known);
    }

    #[test]
    fn there_is_a_bound() {
        let mut observed = Observed::new(Instant::now());
        for n in 0..100 {
            let address = SocketAddr::from(([198, 51, 100, n], 1));
            observed.note(address, SocketAddr::from(([203, 0, 113, n], 1)), Instant::now());
        }
        assert_eq!(observed.addresses().len(), MAX_OF_FAMILY);
        assert_eq!(observed.addresses()[0], at("198.51.100.99:1"));
    }
}
