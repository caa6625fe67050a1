//! Which of our addresses the system sends from, towards those that matter. A change of these is a change of network; any other
//! address that comes or goes is not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The ways out of this machine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// For each destination the source address of what is sent there; `None`: there is no route.
    sources: BTreeMap<IpAddr, Option<IpAddr>>,
    /// IPv4 source addresses of what is sent to the internet at large: several where several routes are of equal rank, or each has a
    /// part of the internet.
    exits: BTreeSet<Ipv4Addr>,
    /// Of the default route in use. Another network may give the same address: then its gateway differs, with luck.
    gateways: Vec<Ipv4Addr>,
}

impl Ways {
    pub fn new(sources: impl IntoIterator<Item = (IpAddr, Option<IpAddr>)>, gateways: Vec<Ipv4Addr>) -> Self {
        Self { sources: sources.into_iter().collect(), exits: BTreeSet::new(), gateways }
    }

    /// Source addresses by which peers may be sent to, the one towards anywhere first, where the servers are not all sent to from that.
    /// `servers`: the source addresses towards them. Empty: everybody is sent to from one address.
    pub fn other_exits(&self, servers: impl IntoIterator<Item = IpAddr>) -> Vec<Ipv4Addr> {
        let main = self.sources.get(&ANYWHERE[0]).copied().flatten();
        let mut exits: Vec<_> = self.exits.iter().copied().collect();
        exits.sort_by_key(|exit| Some(IpAddr::from(*exit)) != main);
        exits.truncate(MAX_EXITS);
        match exits.len() > 1 || servers.into_iter().any(|source| Some(source) != main) {
            true => exits,
            false => Vec::new(),
        }
    }

    /// Whether something that is in both leads elsewhere.
    pub fn differ(&self, other: &Self) -> bool {
        let elsewhere =
            |(to, source): (&IpAddr, &Option<IpAddr>)| other.sources.get(to).is_some_and(|now| now != source);
        self.gateways != other.gateways || self.exits != other.exits || self.sources.iter().any(elsewhere)
    }

    /// Takes over which destinations matter now, without a change of those that mattered before.
    pub fn follow(&mut self, now: &Self) {
        self.sources.retain(|to, _| now.sources.contains_key(to));
        for (to, source) in &now.sources {
            self.sources.entry(*to).or_insert(*source);
        }
    }

    /// There is a route to anybody.
    pub fn any(&self) -> bool {
        self.sources.values().any(Option::is_some)
    }

    /// Whether there is a route to this destination, as far as it was looked for.
    pub fn leads_to(&self, to: IpAddr) -> bool {
        self.sources.get(&to).is_none_or(Option::is_some)
    }
}

/// Asks the system for them.
#[derive(Debug, Default)]
pub struct Scout {
    /// The local port of the questions: where a route is chosen by ports too, the same question has the same answer.
    port: u16,
}

impl Scout {
    /// Towards these and towards anywhere. It sends nothing.
    pub fn look(&mut self, targets: &[IpAddr], gateways: Vec<Ipv4Addr>) -> Ways {
        let all = ANYWHERE.iter().chain(targets).copied().take(MAX_TARGETS);
        let sources: Vec<_> = all.map(|to| (to, self.source_towards(to))).collect();
        let exits = INTERNET.iter().filter_map(|to| match self.source_towards(IpAddr::from(*to))? {
            IpAddr::V4(exit) if !exit.is_loopback() => Some(exit),
            _ => None,
        });
        let exits = exits.collect();
        Ways { exits, ..Ways::new(sources, gateways) }
    }

    fn source_towards(&mut self, to: IpAddr) -> Option<IpAddr> {
        let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        // somebody else may have taken the port meanwhile
        let socket = UdpSocket::bind((any, self.port)).or_else(|_| UdpSocket::bind((any, 0))).ok()?;
        self.port = socket.local_addr().ok()?.port();
        socket.connect(SocketAddr::new(to, DISCARD)).ok()?;
        let source = socket.local_addr().ok()?.ip();
        (!source.is_unspecified()).then_some(source)
    }
}

/// What a default route leads to: addresses for documentation (RFC 5737, RFC 3849), to which nobody has a route of their own.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// Addresses all over the internet, to see whether one way leads to all of it. Nothing is sent there. Of two routes of equal rank one is
/// missed once in 32,768 times.
#[rustfmt::skip]
const INTERNET: [[u8; 4]; 16] = [
    [4, 0, 0, 1], [17, 9, 0, 2], [31, 0, 7, 3], [44, 1, 0, 4], [59, 0, 3, 5], [77, 8, 0, 6], [98, 0, 1, 7], [121, 4, 0, 8],
    [133, 0, 9, 9], [150, 2, 0, 10], [166, 0, 5, 11], [178, 6, 0, 12], [186, 0, 2, 13], [195, 3, 0, 14], [209, 0, 8, 15], [221, 5, 0, 16],
];
/// A host with more uplinks than that in use at a time is a router.
const MAX_EXITS: usize = 4;
/// Destinations that are looked at: servers and peers.
const MAX_TARGETS: usize = 32;
/// RFC 863. A port has to be named.
const DISCARD: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn ways(sources: &[(&str, &str)]) -> Ways {
        Ways::new(sources.iter().map(|(to, source)| (ip(to), source.parse().ok())), Vec::new())
    }

    #[test]
    fn only_another_source_towards_the_same_destination_is_a_change() {
        let before = ways(&[("203.0.113.1", "192.168.1.2"), ("2001:db8::1", "-")]);
        let mut followed = before.clone();
        let more = ways(&[("203.0.113.1", "192.168.1.2"), ("203.0.113.9", "10.0.0.2")]);
        assert!(!before.differ(&more), "whom we know changes nothing");
        followed.follow(&more);
        assert_eq!(followed, more);
        assert!(followed.differ(&ways(&[("203.0.113.9", "192.168.1.2")])));
        assert!(before.differ(&ways(&[("203.0.113.1", "-")])), "the route is gone");
        assert!(before.differ(&ways(&[("2001:db8::1", "2001:db8::7")])), "there is IPv6 now");
        assert!(before.any() && !ways(&[("203.0.113.1", "-")]).any());
        let elsewhere = Ways { gateways: vec![Ipv4Addr::new(192, 168, 1, 1)], ..before.clone() };
        assert!(before.differ(&elsewhere));
    }

    #[test]
    fn an_exit_by_which_no_server_is_asked_is_told() {
        let with = |sources: &[(&str, &str)], exits: &[&str]| {
            let exits = exits.iter().map(|exit| exit.parse().unwrap()).collect();
            Ways { exits, ..ways(sources) }
        };
        let exits = |ways: &Ways| {
            ways.other_exits(ways.sources[&ip("203.0.113.1")]).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let one = with(&[("192.0.2.1", "192.168.1.2"), ("203.0.113.1", "192.168.1.2")], &["192.168.1.2"]);
        assert_eq!(exits(&one), [""; 0]);
        let split = with(&[("192.0.2.1", "192.168.1.2"), ("203.0.113.1", "192.168.2.2")], &["192.168.1.2"]);
        assert_eq!(exits(&split), ["192.168.1.2"], "peers are sent to by the other way");
        let equal = ["192.168.1.2", "192.168.2.2"];
        let both = with(&[("192.0.2.1", "192.168.2.2"), ("203.0.113.1", "192.168.2.2")], &equal);
        assert_eq!(exits(&both), ["192.168.2.2", "192.168.1.2"], "the usual one first");
        assert!(one.differ(&both));
    }

    #[test]
    fn the_loopback_is_reached_from_itself() {
        let mut scout = Scout::default();
        let ways = scout.look(&[ip("127.0.0.1")], Vec::new());
        assert_eq!(ways.sources[&ip("127.0.0.1")], Some(ip("127.0.0.1")));
        let port = scout.port;
        assert!(!scout.look(&[ip("127.0.0.1")], Vec::new()).differ(&ways));
        assert_eq!(scout.port, port, "the same question");
    }
}
