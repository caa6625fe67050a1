//! Ways over relays (TURN, RFC 8656): which of them a meeting tries. One side's relay is enough; where both have one, either
//! may turn out to be the quicker.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::is_local;
use super::candidate::{Candidate, CandidateKind};
use super::outlook::{may_try, Draft, Outlook, Whereabouts};
use super::profile::Mapping;
use crate::addr::{Route, Via};

/// A relay of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRelay {
    pub via: Via,
    /// What the relay keeps for this node; at most one address of each family.
    pub addresses: Vec<SocketAddr>,
}

impl OwnRelay {
    /// Where the relay can send to: it has an address of that family, and a relay on the internet has no business in networks of ours.
    pub fn reaches(&self, to: IpAddr) -> bool {
        let suits = |own: &SocketAddr| own.is_ipv4() == to.is_ipv4() && (is_local(own.ip()) || may_try(to, |_| false));
        self.addresses.iter().any(suits)
    }
}

impl Draft {
    /// Adds ways over relays. `near`: as for [`super::draft`]. Nothing, when either side wants direct paths only.
    pub fn with_relays(
        mut self,
        own: &Whereabouts,
        peer: &Whereabouts,
        relays: &[OwnRelay],
        near: impl Fn(IpAddr) -> bool,
    ) -> Self {
        if own.direct_only || peer.direct_only {
            return self;
        }
        let from_here =
            self.plan.peer_relays.iter().filter(|address| may_try(address.ip(), &near)).copied().map(Route::from);
        let mut routes: Vec<Route> = from_here.collect();
        let both_cut_off = own.may_be_cut_off() && peer.may_be_cut_off();
        let mut last = Vec::new();
        for relay in relays.iter().take(MAX_OWN_RELAYS) {
            let reachable = peer.candidates.iter().filter(|one| relay.reaches(one.address.ip()));
            let (relays, sockets): (Vec<_>, Vec<_>) = reachable.partition(|one| one.kind == CandidateKind::Relayed);
            let through = |one: &&Candidate| Route { via: relay.via, to: one.address };
            routes.extend(sockets.iter().take(MAX_TARGETS).map(through));
            // from relay to relay at once only where neither has anything else; it is also what is left when the addresses that the
            // peer has told are not those that it sends from
            let of_relays = if both_cut_off { &mut routes } else { &mut last };
            of_relays.extend(relays.iter().take(MAX_TARGETS).map(through));
        }
        self.plan.last = last;
        self.plan.head_start = match self.outlook {
            // a search takes longer than that, where it succeeds
            Outlook::BothSymmetric | Outlook::Search => Duration::ZERO,
            Outlook::Direct | Outlook::Prediction if own.is_cut_off() || peer.is_cut_off() => Duration::ZERO,
            Outlook::Direct | Outlook::Prediction => HEAD_START,
        };
        self.plan.relayed = routes;
        self
    }
}

impl Whereabouts {
    /// The same, as far as is known.
    fn may_be_cut_off(&self) -> bool {
        self.profile.udp_blocked || self.profile.mapping == Mapping::Unknown
    }

    /// No address of its own can be tried: UDP does not leave its network.
    pub(super) fn is_cut_off(&self) -> bool {
        self.profile.udp_blocked
    }
}

/// What RFC 8305 section 5 gives the preferred address, and a direct path of a quarter of a second's round trip.
const HEAD_START: Duration = Duration::from_millis(250);
const MAX_OWN_RELAYS: usize = 2;
/// Addresses of the peer that one relay is sent to: each is a permission there.
const MAX_TARGETS: usize = 6;

#[cfg(test)]
mod tests {
    use super::super::{draft, NatProfile};
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn side(addresses: &[(CandidateKind, &str)]) -> Whereabouts {
        let candidates = addresses.iter().map(|(kind, text)| Candidate { kind: *kind, address: at(text) }).collect();
        Whereabouts { candidates, ..Whereabouts::default() }
    }

    fn far(_: IpAddr) -> bool {
        false
    }

    fn relay(n: u16, addresses: &[&str]) -> OwnRelay {
        OwnRelay { via: Via(Via::FIRST_RELAY + n), addresses: addresses.iter().map(|text| at(text)).collect() }
    }

    fn planned(own: &Whereabouts, peer: &Whereabouts, relays: &[OwnRelay]) -> super::super::Plan {
        draft(own, peer, far, 0).with_relays(own, peer, relays, far).with_sockets(Vec::new())
    }

    #[test]
    fn each_relay_is_sent_to_what_it_can_reach() {
        use CandidateKind::{Host, Relayed, ServerReflexive};
        let peer = side(&[
            (Host, "192.168.1.2:4000"),
            (ServerReflexive, "198.51.100.7:5000"),
            (Host, "[2001:db8::7]:4000"),
            (Relayed, "203.0.113.9:6000"),
        ]);
        let own = side(&[]);
        let plan = planned(&own, &peer, &[relay(0, &["203.0.113.8:7000"])]);
        let through = |to: &str| Route { via: Via(Via::FIRST_RELAY), to: at(to) };
        let expected = [at("203.0.113.9:6000").into(), through("198.51.100.7:5000"), through("203.0.113.9:6000")];
        assert_eq!(plan.relayed, expected);
        assert!(plan.last.is_empty(), "neither knows that it has anything but relays");
        let has_udp = NatProfile { mapping: Mapping::EndpointIndependent, ..NatProfile::default() };
        let own = Whereabouts { profile: has_udp, ..own };
        let plan = planned(&own, &peer, &[relay(0, &["203.0.113.8:7000"])]);
        assert_eq!(plan.relayed, expected[..2]);
        assert_eq!(plan.last, expected[2..], "from relay to relay when nothing else helps");
        assert_eq!(plan.peer_relays, [at("203.0.113.9:6000")]);
        assert!(!plan.candidates.contains(&at("203.0.113.9:6000")), "what a relay keeps is no direct address");
    }

    #[test]
    fn a_relay_inside_a_network_reaches_into_it() {
        let peer = side(&[(CandidateKind::Host, "192.168.1.2:4000")]);
        assert_eq!(planned(&side(&[]), &peer, &[relay(0, &["10.0.0.1:7000"])]).relayed.len(), 1);
        assert!(planned(&side(&[]), &peer, &[relay(0, &["203.0.113.8:7000"])]).relayed.is_empty());
    }

    #[test]
    fn one_side_that_wants_direct_paths_only_is_enough() {
        let peer = side(&[(CandidateKind::Relayed, "203.0.113.9:6000")]);
        let strict = Whereabouts { direct_only: true, ..side(&[(CandidateKind::Relayed, "203.0.113.8:6000")]) };
        assert!(planned(&strict, &peer, &[relay(0, &["203.0.113.8:7000"])]).relayed.is_empty());
        assert!(planned(&peer, &strict, &[relay(0, &["203.0.113.9:7000"])]).relayed.is_empty());
    }

    #[test]
    fn who_has_no_udp_waits_for_no_direct_path() {
        let peer = side(&[(CandidateKind::Relayed, "203.0.113.9:6000")]);
        let blocked = Whereabouts { profile: NatProfile { udp_blocked: true, ..NatProfile::default() }, ..side(&[]) };
        assert_eq!(planned(&blocked, &peer, &[]).head_start, Duration::ZERO);
        assert_eq!(planned(&side(&[]), &peer, &[]).head_start, HEAD_START);
    }
}
