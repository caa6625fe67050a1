//! From which of this machine's addresses a path goes, where the node listens on all of them. The system would choose by its routes
//! alone, and a peer that asked another address (a virtual one, a stable IPv6 address beside a temporary one) would be answered from
//! one that it, or the NAT and the firewall before it, does not know.
//!
//! Only a choice that differs from the system's is kept to. What the system chooses follows when its routes change, as it should:
//! most paths are such.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::addr::{unmapped, Route};
use crate::time::Time;

/// What is known of the near ends of paths. Bounded: of two generations of [`GENERATION`] paths each the older is forgotten when
/// the newer is full, and what is forgotten is learnt again from the next datagram.
#[derive(Debug, Default)]
pub struct Locals {
    newer: HashMap<Route, Local>,
    older: HashMap<Route, Local>,
}

/// The near end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Local {
    ip: IpAddr,
    /// When something came there.
    heard: Time,
    /// The system would choose another.
    kept: bool,
}

impl Locals {
    /// A datagram of the peer at the far end came to `ip`, an address of ours. `firm`: it belongs to a connection, so that this is
    /// the path that the peer uses; a ping may also be one that it asks beside that. `usual`: what the system would send from.
    /// `leads`: whether what is sent from an address to another leaves by its interface. Otherwise the NAT at the other way out
    /// would show the peer an address that it knows nothing of.
    pub fn handle_arrival(
        &mut self,
        now: Time,
        route: Route,
        ip: IpAddr,
        firm: bool,
        usual: impl FnOnce(SocketAddr) -> Option<IpAddr>,
        leads: impl FnOnce(SocketAddr, IpAddr) -> bool,
    ) {
        if let Some(known) = self.find(route) {
            if known.ip == ip {
                known.heard = now;
                return;
            }
            if !firm && now.since(known.heard) < IN_USE {
                return;
            }
        }
        let kept = is_choosable(ip) && usual(route.to).is_some_and(|usual| usual != ip) && leads(route.to, ip);
        self.older.remove(&route);
        self.newer.insert(route, Local { ip, heard: now, kept });
        if self.newer.len() >= GENERATION {
            self.older = std::mem::take(&mut self.newer);
        }
    }

    /// The address that what goes along `route` has to come from; `None`: the system may choose.
    pub fn source(&self, route: Route) -> Option<IpAddr> {
        let local = self.newer.get(&route).or_else(|| self.older.get(&route))?;
        local.kept.then_some(local.ip)
    }

    /// The address that an answer to what came to `at` has to come from; `None`: the system may choose.
    pub fn answer_from(
        &mut self,
        route: Route,
        at: IpAddr,
        leads: impl FnOnce(SocketAddr, IpAddr) -> bool,
    ) -> Option<IpAddr> {
        match self.find(route) {
            Some(known) if known.ip == at => self.source(route),
            _ => leads(route.to, at).then_some(at),
        }
    }

    /// The address is none of ours any more.
    pub fn forget_address(&mut self, ip: IpAddr) {
        self.newer.retain(|_, local| local.ip != ip);
        self.older.retain(|_, local| local.ip != ip);
    }

    /// Whether the near end of this path is known.
    pub fn knows(&self, route: Route) -> bool {
        self.newer.contains_key(&route) || self.older.contains_key(&route)
    }

    fn find(&mut self, route: Route) -> Option<&mut Local> {
        match self.newer.contains_key(&route) {
            true => self.newer.get_mut(&route),
            false => self.older.get_mut(&route),
        }
    }
}

/// Whether datagrams may be sent from there at all: what came to a group or to everybody did not, and an address of one link means
/// nothing without the link, which the system finds.
pub fn is_choosable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast()),
        IpAddr::V6(v6) => {
            let link_local = v6.segments()[0] & 0xffc0 == 0xfe80;
            !(v6.is_unspecified() || v6.is_multicast() || link_local)
        }
    }
}

/// The address that the system sends from to there, by its routes; the port is 0. Connecting a UDP socket looks up the route and
/// sends nothing.
pub fn source_towards(to: SocketAddr) -> io::Result<SocketAddr> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let probe = std::net::UdpSocket::bind((any, 0))?;
    probe.connect(to)?;
    let mut source = probe.local_addr()?;
    source.set_port(0);
    Ok(source)
}

/// The same, as [`Locals::handle_arrival`] asks it.
pub fn usual_source(to: SocketAddr) -> Option<IpAddr> {
    source_towards(to).ok().map(|source| unmapped(source).ip())
}

/// The system's number of an interface, as an address of one link needs it. Only those that have an address have one here.
pub fn interface_number(name: &str) -> Option<u32> {
    let found = if_addrs::get_if_addrs().unwrap_or_default();
    found.into_iter().find(|one| one.name == name).and_then(|one| one.index)
}

/// As many paths as the table of strangers holds (`PathConfig::max_strangers`), so that they alone drive out nothing at once.
const GENERATION: usize = 4_096;
/// Two intervals of the pings on a path in use (`PathConfig::ping_active`): where something came within that time, a ping to another
/// of our addresses is one that the peer asks beside it.
const IN_USE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    fn route(n: u16) -> Route {
        SocketAddr::from(([198, 51, 100, 7], n)).into()
    }

    fn arrive(locals: &mut Locals, millis: u64, ip: IpAddr, firm: bool) -> Option<IpAddr> {
        locals.handle_arrival(Time::from_millis(millis), route(1), ip, firm, |_| Some(USUAL), |_, _| true);
        locals.source(route(1))
    }

    #[test]
    fn a_path_keeps_to_the_address_that_was_asked() {
        let mut locals = Locals::default();
        assert_eq!(locals.source(route(1)), None);
        assert_eq!(arrive(&mut locals, 0, OTHER, false), Some(OTHER));
        assert_eq!(locals.source(route(2)), None, "another path");
        locals.forget_address(OTHER);
        assert_eq!(locals.source(route(1)), None);
    }

    #[test]
    fn what_the_system_would_choose_is_left_to_it() {
        assert_eq!(arrive(&mut Locals::default(), 0, USUAL, true), None);
        for odd in ["224.0.0.1", "255.255.255.255", "fe80::1", "ff02::1"] {
            assert_eq!(arrive(&mut Locals::default(), 0, odd.parse().unwrap(), true), None, "{odd}");
        }
    }

    #[test]
    fn an_address_whose_interface_does_not_lead_there_is_not_kept_to() {
        let mut locals = Locals::default();
        locals.handle_arrival(Time::ZERO, route(1), OTHER, true, |_| Some(USUAL), |_, _| false);
        assert_eq!(locals.source(route(1)), None);
    }

    #[test]
    fn a_ping_beside_the_path_in_use_moves_nothing_and_data_does() {
        let mut locals = Locals::default();
        arrive(&mut locals, 0, USUAL, true);
        assert_eq!(arrive(&mut locals, 4_000, OTHER, false), None);
        assert_eq!(arrive(&mut locals, 4_000, OTHER, true), Some(OTHER));
        assert_eq!(arrive(&mut locals, 4_100, USUAL, false), Some(OTHER));
        assert_eq!(arrive(&mut locals, 9_100, USUAL, false), None, "nothing came to the other one for long");
    }

    #[test]
    fn the_table_has_a_cap_and_keeps_the_newest() {
        let mut locals = Locals::default();
        for n in 0..3 * GENERATION as u16 {
            locals.handle_arrival(Time::ZERO, route(n), OTHER, true, |_| Some(USUAL), |_, _| true);
        }
        assert!(locals.newer.len() + locals.older.len() <= 2 * GENERATION);
        assert_eq!(locals.source(route(3 * GENERATION as u16 - 1)), Some(OTHER));
        assert_eq!(locals.source(route(0)), None);
    }

    #[test]
    fn the_system_says_what_it_would_send_from() {
        let near: SocketAddr = "127.0.0.1:9".parse().unwrap();
        assert_eq!(usual_source(near), Some(near.ip()));
    }

    #[test]
    fn interfaces_have_numbers() {
        let all = if_addrs::get_if_addrs().unwrap();
        let loopback = all.iter().find(|one| one.is_loopback()).unwrap();
        assert!(interface_number(&loopback.name).is_some_and(|number| number > 0));
        assert_eq!(interface_number("no such interface"), None);
    }
}
