//! Our own addresses as others saw them, in the order in which they did. A change of network makes them doubtful, and no more; they go
//! when a newer one takes their place.

use std::net::SocketAddr;

/// What servers saw.
#[derive(Debug, Default)]
pub struct Observed(Vec<Seen>);

#[derive(Debug)]
struct Seen {
    address: SocketAddr,
    by: SocketAddr,
    /// The network has changed since, or the address did not help: it is to be asked for again.
    doubted: bool,
}

impl Observed {
    /// `by` saw us at `address`. In a network with several ways out, servers see several addresses, and each is right.
    pub fn note(&mut self, address: SocketAddr, by: SocketAddr) {
        let of_family = |seen: &Seen| seen.address.is_ipv4() == address.is_ipv4();
        // what is doubted is older than what made it doubtful, whoever saw it
        self.0.retain(|seen| !(of_family(seen) && (seen.doubted || seen.by == by)));
        if self.0.iter().filter(|seen| of_family(seen)).count() >= MAX_OF_FAMILY {
            if let Some(oldest) = self.0.iter().position(of_family) {
                self.0.remove(oldest);
            }
        }
        self.0.push(Seen { address, by, doubted: false });
    }

    /// All of it may be otherwise now.
    pub fn doubt(&mut self) {
        self.0.iter_mut().for_each(|seen| seen.doubted = true);
    }

    /// Whether an address of the family is known and nothing speaks against it.
    pub fn is_sure(&self, ipv4: bool) -> bool {
        self.0.iter().any(|seen| seen.address.is_ipv4() == ipv4 && !seen.doubted)
    }

    /// The newest first; one port of each IP address: a NAT that gives another one to each server gives a peer yet another.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let mut addresses: Vec<SocketAddr> = Vec::new();
        for seen in self.0.iter().rev() {
            if !addresses.iter().any(|known| known.ip() == seen.address.ip()) {
                addresses.push(seen.address);
            }
        }
        addresses
    }
}

/// A host with more uplinks than that in use at a time is a router.
const MAX_OF_FAMILY: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn observed(seen: &[(&str, &str)]) -> Observed {
        let mut observed = Observed::default();
        seen.iter().for_each(|(address, by)| observed.note(at(address), at(by)));
        observed
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
        observed.note(at("198.51.100.9:1"), at(OTHER));
        assert_eq!(observed.addresses(), [at("198.51.100.9:1"), at("[2001:db8::7]:5000")]);
        assert!(observed.is_sure(true) && !observed.is_sure(false));
    }

    #[test]
    fn what_was_seen_shortly_before_a_change_was_noticed_is_confirmed_or_replaced() {
        // a new network's address is there before the system says that there is a new network
        let mut observed = observed(&[("198.51.100.7:5000", ONE), ("198.51.100.9:1", ONE)]);
        observed.doubt();
        assert_eq!(observed.addresses(), [at("198.51.100.9:1")], "the late news takes nothing away");
        observed.note(at("198.51.100.9:1"), at(ONE));
        assert!(observed.is_sure(true));
    }

    #[test]
    fn two_ways_out_have_two_addresses_and_one_nat_has_one() {
        let observed =
            observed(&[("198.51.100.7:5000", ONE), ("198.51.100.7:5001", OTHER), ("192.0.2.9:6000", "203.0.113.3:1")]);
        assert_eq!(observed.addresses(), [at("192.0.2.9:6000"), at("198.51.100.7:5001")]);
    }

    #[test]
    fn there_is_a_bound() {
        let mut observed = Observed::default();
        for n in 0..100 {
            let address = SocketAddr::from(([198, 51, 100, n], 1));
            observed.note(address, SocketAddr::from(([203, 0, 113, n], 1)));
        }
        assert_eq!(observed.addresses().len(), MAX_OF_FAMILY);
        assert_eq!(observed.addresses()[0], at("198.51.100.99:1"));
    }
}
