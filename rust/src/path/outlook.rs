//! What two nodes tell each other about where they are, and what follows from both sides' words: which addresses to try, what to
//! predict, what to search, and what is hopeless (PUNCH.md 3.2, phase 2). Both sides compute it from the same two texts, so that
//! each does its part.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::address::is_local;
use super::candidate::{decode_candidates, encode_candidates, rank_candidates};
use super::candidate::{Candidate, CandidateKind, MAX_CANDIDATES};
use super::meeting::Plan;
use super::profile::{Filtering, Mapping, NatProfile, Ports};
use super::search::Search;
use crate::addr::Via;

/// What a node tells a peer about where it is; sealed, so that only the peer reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whereabouts {
    pub candidates: Vec<Candidate>,
    pub profile: NatProfile,
    /// It takes part in a search of ports.
    pub searches: bool,
    /// It wants no relay in between, of either side.
    pub direct_only: bool,
    /// How long the node took to find out, before it answered: the peer counts round trips by its answer.
    pub took: Duration,
}

/// How a meeting is going to be, as far as both profiles tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// The addresses that are known will do.
    Direct,
    /// The next ports of one NAT, or of both, are guessed.
    Prediction,
    /// One side opens many sockets, the other asks many ports.
    Search,
    /// Both NATs give each destination another port, unpredictably: only an address outside of them can help.
    BothSymmetric,
}

/// A plan before its sockets are there.
#[derive(Clone, Debug)]
pub struct Draft {
    pub plan: Plan,
    /// So many sockets are to ask this address, from then on.
    pub sockets: Option<(usize, SocketAddr, Duration)>,
    pub outlook: Outlook,
}

impl Whereabouts {
    pub fn encode(&self) -> Vec<u8> {
        let mut profile = Vec::new();
        self.profile.encode(&mut profile);
        // a profile has 26 bytes at most
        let [high, low] = u16::try_from(self.took.as_millis()).unwrap_or(u16::MAX).to_be_bytes();
        let mut out =
            vec![VERSION, u8::from(self.searches) | u8::from(self.direct_only) << 1, high, low, profile.len() as u8];
        out.extend_from_slice(&profile);
        encode_candidates(&mut out, &self.candidates);
        out
    }

    /// `None`: broken, or of a version that is not known.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ([version, flags, high, low, length], rest) = bytes.split_first_chunk()?;
        let (profile, candidates) = rest.split_at_checked(usize::from(*length))?;
        (*version == VERSION).then_some(())?;
        Some(Self {
            candidates: decode_candidates(candidates).ok()?,
            profile: NatProfile::decode(profile).ok()?,
            searches: flags & 1 == 1,
            direct_only: flags & 2 == 2,
            took: Duration::from_millis(u16::from_be_bytes([*high, *low]).into()),
        })
    }

    /// The address that others see, for IPv4, where NATs are. Behind a firewall without a NAT it is the host's own.
    fn outside(&self) -> Option<SocketAddr> {
        let of = |kind: CandidateKind| {
            let suits = move |one: &&Candidate| one.kind == kind && one.address.is_ipv4();
            self.candidates.iter().filter(suits).map(|one| one.address)
        };
        let host = || of(CandidateKind::Host).find(|address| !is_local(address.ip()));
        of(CandidateKind::ServerReflexive).next().or_else(host)
    }

    fn is_symmetric(&self) -> bool {
        matches!(self.profile.mapping, Mapping::AddressDependent | Mapping::AddressAndPortDependent)
    }

    /// Packets from a port that was not asked before do not come in, or that is not known.
    fn is_strict(&self) -> bool {
        matches!(self.profile.filtering, Filtering::AddressAndPortDependent | Filtering::Unknown)
    }

    /// Ports that the NAT is likely to give next, the next one first.
    fn next_ports(&self, count: u16) -> Vec<SocketAddr> {
        let (Some(outside), Ports::Sequential { last, delta }) = (self.outside(), self.profile.ports) else {
            return Vec::new();
        };
        let nth = |n: u16| last.wrapping_add_signed(delta.wrapping_mul(n.cast_signed()));
        (1..=count).map(|n| SocketAddr::new(outside.ip(), nth(n))).filter(|address| address.port() != 0).collect()
    }
}

/// What this side does. `near`: one of our own networks has this address in it. `start` is random: where a search begins.
pub fn draft(own: &Whereabouts, peer: &Whereabouts, near: impl Fn(IpAddr) -> bool, start: u32) -> Draft {
    let inside = inside(&peer.candidates, &near);
    // what is guessed or searched lies at one of these addresses as well
    let mut candidates = peer.candidates.clone();
    candidates.retain(|one| may_try(one.address.ip(), &near));
    let peer = &Whereabouts { candidates, ..peer.clone() };
    let relays = peer.candidates.iter().filter(|one| one.kind == CandidateKind::Relayed).map(|one| one.address);
    let peer_relays = relays.take(MAX_PEER_RELAYS).collect();
    let mut candidates = peer.candidates.clone();
    candidates.retain(|one| one.kind != CandidateKind::Relayed);
    candidates.truncate(MAX_CANDIDATES - inside.len());
    candidates.extend(inside);
    rank_candidates(&mut candidates, &near);
    // whoever lets everybody in has nothing to open; a NAT that meets a packet before its host has sent one may give the host another port
    let opens = own.profile.filtering != Filtering::EndpointIndependent && own.profile.translated.is_some();
    let opens = opens && peer.profile.translated == Some(true);
    let mut draft = Draft {
        plan: Plan {
            candidates: candidates.iter().map(|one| one.address).collect(),
            opening_ttl: opens.then_some(OPENING_TTL),
            peer_relays,
            ..Plan::default()
        },
        sockets: None,
        outlook: Outlook::Direct,
    };
    match (own.is_symmetric(), peer.is_symmetric()) {
        (false, false) => {}
        (true, true) => both_symmetric(&mut draft, own, peer),
        (false, true) if own.is_strict() => ask_many_ports(&mut draft, own, peer, start),
        (true, false) if peer.is_strict() => ask_from_many_ports(&mut draft, own, peer),
        // whoever lets in what it has sent anything to, or anybody, has only to be asked
        _ => {}
    }
    draft
}

/// Where both NATs count, each side's n-th new destination meets the other's.
fn both_symmetric(draft: &mut Draft, own: &Whereabouts, peer: &Whereabouts) {
    let counts = |side: &Whereabouts| matches!(side.profile.ports, Ports::Sequential { .. });
    let open = |side: &Whereabouts| side.profile.filtering == Filtering::EndpointIndependent;
    let by_address = |side: &Whereabouts| {
        side.profile.mapping == Mapping::AddressDependent && side.profile.filtering == Filtering::AddressDependent
    };
    if by_address(own) && by_address(peer) {
        // what is sent to the port that servers saw comes in, and what comes back shows the port that counts for the two
        return;
    }
    if open(own) || open(peer) {
        return;
    }
    if counts(own) && counts(peer) {
        draft.plan.guesses = peer.next_ports(GUESSES_EACH);
        draft.plan.opening_ttl = None;
        draft.outlook = Outlook::Prediction;
    } else {
        draft.outlook = Outlook::BothSymmetric;
    }
}

/// The peer's NAT gives us another port than it gave its servers, and ours lets in only that one.
fn ask_many_ports(draft: &mut Draft, own: &Whereabouts, peer: &Whereabouts, start: u32) {
    let Some(outside) = peer.outside() else { return };
    let (low, high) = match peer.profile.ports {
        Ports::Sequential { last, .. } => {
            draft.plan.guesses = peer.next_ports(GUESSES_ONE);
            draft.plan.opening_ttl = None;
            draft.outlook = Outlook::Prediction;
            if own.searches && peer.searches {
                draft.plan.search = around(outside.ip(), last, start);
            }
            return;
        }
        Ports::Block { low, high } => (low.max(FIRST_PORT), high.max(FIRST_PORT)),
        Ports::Unknown | Ports::Preserved | Ports::Uniform => (FIRST_PORT, u16::MAX),
    };
    if own.searches && peer.searches {
        let begin = search_begin(own);
        draft.plan.search = Some(Search::Ports { ip: outside.ip(), low, high, start, begin });
        draft.plan.opening_ttl = None;
        draft.outlook = Outlook::Search;
    }
}

/// After guesses that missed: a NAT that keeps the parity of ports, or draws them from a small block, can look as if it counted. The
/// port is near the last one all the same, and the other side needs only the one socket.
fn around(ip: IpAddr, last: u16, start: u32) -> Option<Search> {
    let low = last.saturating_sub(AROUND).max(FIRST_PORT);
    let high = last.saturating_add(AROUND).max(FIRST_PORT);
    Some(Search::Ports { ip, low, high, start, begin: AFTER_MISS })
}

/// The other half of that.
fn ask_from_many_ports(draft: &mut Draft, own: &Whereabouts, peer: &Whereabouts) {
    let Some(outside) = peer.outside() else { return };
    draft.plan.opening_ttl = None;
    let block = match own.profile.ports {
        Ports::Sequential { .. } => {
            // the peer guesses our next ports: let this be the first new destination
            draft.plan.guesses = vec![outside];
            draft.outlook = Outlook::Prediction;
            return;
        }
        Ports::Block { low, high } => usize::from(high - low) + 1,
        Ports::Unknown | Ports::Preserved | Ports::Uniform => usize::from(u16::MAX - FIRST_PORT) + 1,
    };
    if own.searches && peer.searches {
        let count = (block / PORTS_A_SOCKET).clamp(LEAST_SOCKETS, MOST_SOCKETS);
        draft.sockets = Some((count, outside, Duration::ZERO));
        // such a router may be one that gives its host another port towards whoever has sent something to the one it wants
        draft.plan.search_ttl = (peer.profile.ports == Ports::Preserved).then_some(OPENING_TTL);
        draft.outlook = Outlook::Search;
    }
}

/// Sockets that are not asked yet do no harm, so the side that opens them begins at once; the one that asks waits a moment when
/// it is not known whether its NAT is strict at all.
fn search_begin(own: &Whereabouts) -> Duration {
    match own.profile.filtering {
        Filtering::Unknown => SEARCH_AFTER_DOUBT,
        _ => SEARCH_AFTER,
    }
}

impl Draft {
    /// The plan, once its sockets are there.
    pub fn with_sockets(mut self, vias: Vec<Via>) -> Plan {
        if let Some((_, to, begin)) = self.sockets.filter(|_| !vias.is_empty()) {
            self.plan.search = Some(Search::Sockets { vias, to, begin });
        }
        self.plan
    }
}

/// Addresses of a private network that a router may lead to from here: other subnets of a company, a tunnel's, a carrier's behind its
/// NAT. They may as well be somebody else's, so a few are asked, and nothing is guessed or searched there.
fn inside(candidates: &[Candidate], near: impl Fn(IpAddr) -> bool) -> Vec<Candidate> {
    let routed = |one: &&Candidate| {
        let ip = one.address.ip();
        one.kind != CandidateKind::Relayed && is_of_a_site(ip) && !near(ip)
    };
    let mut inside: Vec<_> = candidates.iter().filter(routed).copied().collect();
    rank_candidates(&mut inside, |_| false);
    inside.truncate(MAX_INSIDE);
    inside
}

/// Of networks with routers in them that are not the internet: RFC 1918, RFC 6598, RFC 4193.
fn is_of_a_site(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || is_shared(v4),
        IpAddr::V6(v6) => v6.segments()[0] & 0xfe00 == 0xfc00,
    }
}

/// RFC 6598: between a carrier's NAT and its customers.
fn is_shared(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64
}

/// Addresses of networks that are not for everybody are searched only from inside of them: elsewhere they are somebody else's.
pub(super) fn may_try(ip: IpAddr, near: impl Fn(IpAddr) -> bool) -> bool {
    near(ip) || is_for_everybody(ip)
}

/// Not of a private, shared (RFC 6598), link-local or loopback network.
pub fn is_for_everybody(ip: IpAddr) -> bool {
    let shared = matches!(ip, IpAddr::V4(v4) if is_shared(v4));
    !(is_local(ip) || shared)
}

const VERSION: u8 = 1;
/// A host has one or two addresses in a private network, of each family; what is more is an attempt to have us look around in ours.
const MAX_INSIDE: usize = 4;
/// Two relays, each with an address of either family.
pub(super) const MAX_PEER_RELAYS: usize = 4;
/// Enough to pass the NAT next door, and not so many as to reach the peer's: two NATs have at least two routers between them.
const OPENING_TTL: u8 = 2;
/// Each ping to a new destination takes a port, so neither side may have many more than the other.
const GUESSES_EACH: u16 = 12;
/// The lab needed about 13 (PUNCH.md); packets of other programs take some.
const GUESSES_ONE: u16 = 20;
/// NATs leave the well-known ports alone (RFC 4787 REQ-3 a).
const FIRST_PORT: u16 = 1024;
/// PUNCH.md 3.1: of a block of 1024 ports, 64 sockets and 128 questions meet with 98.7 %.
const PORTS_A_SOCKET: usize = 16;
const LEAST_SOCKETS: usize = 64;
const MOST_SOCKETS: usize = 256;
/// Ports to either side of the last one: most of a block of 512, whichever of it the last one was, and in 2.6 s.
const AROUND: u16 = 256;
/// The guesses have been repeated three times by then, and the search ends within the time for a prediction.
const AFTER_MISS: Duration = Duration::from_millis(800);
/// The sockets of the other side have asked by then.
const SEARCH_AFTER: Duration = Duration::from_millis(150);
/// Two round trips of a long path: what can be had by plain punching is there by then.
const SEARCH_AFTER_DOUBT: Duration = Duration::from_millis(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn side(last: u8, mapping: Mapping, filtering: Filtering, ports: Ports) -> Whereabouts {
        let outside = SocketAddr::from(([198, 51, 100, last], 5_000));
        Whereabouts {
            candidates: vec![
                Candidate { kind: CandidateKind::Host, address: SocketAddr::from(([192, 168, last, 2], 4_000)) },
                Candidate { kind: CandidateKind::ServerReflexive, address: outside },
            ],
            profile: NatProfile { mapping, filtering, ports, translated: Some(true), ..NatProfile::default() },
            searches: true,
            direct_only: false,
            took: Duration::from_millis(7),
        }
    }

    fn cone(last: u8, filtering: Filtering) -> Whereabouts {
        side(last, Mapping::EndpointIndependent, filtering, Ports::Preserved)
    }

    fn symmetric(last: u8, ports: Ports) -> Whereabouts {
        side(last, Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, ports)
    }

    fn far(_: IpAddr) -> bool {
        false
    }

    /// It gives each address a port, and lets in whoever has the address of somebody it has sent to.
    fn by_address(last: u8) -> Whereabouts {
        let mut told = symmetric(last, Ports::Uniform);
        told.profile.mapping = Mapping::AddressDependent;
        told.profile.filtering = Filtering::AddressDependent;
        told
    }

    #[test]
    fn the_first_shot_of_whoever_filters_leaves_no_trace_in_a_nat() {
        let nat = |filtering, translated| {
            let mut told = cone(2, filtering);
            told.profile.translated = translated;
            told
        };
        let (strict, open) = (Filtering::AddressAndPortDependent, Filtering::EndpointIndependent);
        let (yes, no) = (Some(true), Some(false));
        let opening = |own: &Whereabouts, peer: &Whereabouts| draft(own, peer, far, 0).plan.opening_ttl.is_some();
        assert!(opening(&nat(strict, yes), &nat(strict, yes)));
        assert!(opening(&nat(strict, no), &nat(strict, yes)), "a firewall");
        assert!(!opening(&nat(strict, yes), &nat(strict, no)), "there is no NAT that could be disturbed");
        assert!(!opening(&nat(open, no), &nat(strict, yes)), "a public host has nothing to open");
    }

    #[test]
    fn some_sockets_of_a_search_spare_a_nat_that_preserves_ports() {
        let mut peer = cone(1, Filtering::AddressAndPortDependent);
        peer.profile.ports = Ports::Uniform;
        assert_eq!(draft(&symmetric(2, Ports::Uniform), &peer, far, 0).plan.search_ttl, None);
        peer.profile.ports = Ports::Preserved;
        assert!(draft(&symmetric(2, Ports::Uniform), &peer, far, 0).plan.search_ttl.is_some());
    }

    #[test]
    fn both_sides_come_to_the_same_outlook() {
        use Filtering::{AddressAndPortDependent, AddressDependent, EndpointIndependent, Unknown};
        let counting = Ports::Sequential { last: 7_000, delta: 1 };
        let table = [
            (cone(1, EndpointIndependent), symmetric(2, Ports::Uniform), Outlook::Direct),
            (cone(1, AddressDependent), symmetric(2, Ports::Uniform), Outlook::Direct),
            (cone(1, AddressAndPortDependent), cone(2, AddressAndPortDependent), Outlook::Direct),
            (cone(1, AddressAndPortDependent), symmetric(2, Ports::Uniform), Outlook::Search),
            (cone(1, Unknown), symmetric(2, Ports::Uniform), Outlook::Search),
            (cone(1, AddressAndPortDependent), symmetric(2, Ports::Block { low: 2_048, high: 3_071 }), Outlook::Search),
            (cone(1, AddressAndPortDependent), symmetric(2, counting), Outlook::Prediction),
            (symmetric(1, counting), symmetric(2, counting), Outlook::Prediction),
            (symmetric(1, counting), symmetric(2, Ports::Uniform), Outlook::BothSymmetric),
            (symmetric(1, Ports::Uniform), symmetric(2, Ports::Uniform), Outlook::BothSymmetric),
            (by_address(1), by_address(2), Outlook::Direct),
            (by_address(1), symmetric(2, Ports::Uniform), Outlook::BothSymmetric),
        ];
        for (a, b, outlook) in table {
            let (at_a, at_b) = (draft(&a, &b, far, 1), draft(&b, &a, far, 2));
            assert_eq!((at_a.outlook, at_b.outlook), (outlook, outlook), "{a:?} and {b:?}");
            if outlook == Outlook::Search {
                assert!(at_b.sockets.is_some() && at_a.plan.search.is_some(), "each does its half");
            }
        }
    }

    #[test]
    fn a_host_behind_a_firewall_alone_is_found_at_its_own_address() {
        let mut firewalled = cone(1, Filtering::AddressAndPortDependent);
        firewalled.profile.translated = Some(false);
        let own: SocketAddr = "203.0.113.9:4000".parse().unwrap();
        firewalled.candidates = vec![Candidate { kind: CandidateKind::Host, address: own }];
        let other = symmetric(2, Ports::Uniform);
        assert_eq!(draft(&other, &firewalled, far, 0).sockets.map(|(_, to, _)| to), Some(own));
        assert!(draft(&firewalled, &other, far, 0).plan.search.is_some());
    }

    #[test]
    fn private_addresses_are_tried_last_and_first_from_inside() {
        let peer = cone(2, Filtering::EndpointIndependent);
        let tried = |near: fn(IpAddr) -> bool| draft(&cone(1, Filtering::Unknown), &peer, near, 0).plan.candidates;
        assert_eq!(tried(far), ["198.51.100.2:5000".parse().unwrap(), "192.168.2.2:4000".parse().unwrap()]);
        assert_eq!(tried(|_| true)[0], "192.168.2.2:4000".parse().unwrap(), "the nearest first");
    }

    #[test]
    fn other_subnets_of_a_private_network_are_tried_and_what_no_router_leads_to_is_not() {
        use CandidateKind::{Host, PortMapped, Relayed, ServerReflexive};
        let tried = |kind, addresses: &[&str]| {
            let at = |text: &&str| Candidate { kind, address: text.parse().unwrap() };
            let candidates = addresses.iter().map(at).collect();
            let peer = Whereabouts { candidates, ..Whereabouts::default() };
            draft(&cone(1, Filtering::Unknown), &peer, far, 0).plan.candidates
        };
        let sites = ["10.73.2.2:1", "172.20.1.1:1", "100.64.7.7:1", "[fd00:2::7]:1"];
        for kind in [Host, PortMapped, ServerReflexive] {
            assert_eq!(tried(kind, &sites).len(), sites.len(), "{kind}");
            let elsewhere = ["127.0.0.1:1", "169.254.1.1:1", "[::1]:1", "[fe80::1]:1"];
            assert_eq!(tried(kind, &elsewhere), [], "{kind}");
        }
        assert_eq!(tried(Relayed, &sites), [], "a relay is for everybody, or in a network of ours");
        let many: Vec<_> = (1..=16).map(|n| format!("10.1.{n}.1:1")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(tried(Host, &many).len(), MAX_INSIDE);
    }

    #[test]
    fn what_is_not_for_everybody_is_guessed_and_searched_only_from_inside() {
        for ip in ["10.0.0.1", "100.64.0.1", "169.254.1.1", "127.0.0.1", "::1", "fe80::1", "fd00::1"] {
            assert!(!may_try(ip.parse().unwrap(), far), "{ip}");
        }
        assert!(may_try("100.128.0.1".parse().unwrap(), far) && may_try("2001:db8::1".parse().unwrap(), far));
    }

    #[test]
    fn nothing_is_searched_where_nothing_may_be_tried() {
        let counting = Ports::Sequential { last: 7_000, delta: 1 };
        for ip in ["10.0.0.1", "127.0.0.1", "100.64.0.1", "169.254.169.254"] {
            for (own, ports) in [
                (cone(1, Filtering::Unknown), Ports::Uniform),
                (cone(1, Filtering::Unknown), counting),
                (symmetric(1, counting), counting),
            ] {
                let mut liar = symmetric(2, ports);
                liar.candidates[1].address.set_ip(ip.parse().unwrap());
                let plan = draft(&own, &liar, far, 0).plan;
                assert!(plan.search.is_none() && plan.guesses.is_empty(), "{plan:?}");
                assert!(plan.candidates.len() <= 2, "{plan:?}");
            }
        }
        let mut liar = cone(2, Filtering::Unknown);
        liar.candidates[1].address.set_ip("10.0.0.1".parse().unwrap());
        assert!(draft(&symmetric(1, Ports::Uniform), &liar, far, 0).sockets.is_none());
    }

    #[test]
    fn well_known_ports_are_not_searched() {
        for (low, high) in [(0, 0), (0, 1_000), (53, 2_000)] {
            let peer = symmetric(2, Ports::Block { low, high });
            let plan = draft(&cone(1, Filtering::AddressAndPortDependent), &peer, far, 0).plan;
            let Some(Search::Ports { low, high, .. }) = plan.search else { panic!("{plan:?}") };
            assert!(low == 1_024 && high >= low, "{low} to {high}");
        }
    }

    #[test]
    fn guesses_follow_the_count_and_its_direction() {
        let up = symmetric(2, Ports::Sequential { last: 65_534, delta: 1 }).next_ports(3);
        assert_eq!(up.iter().map(SocketAddr::port).collect::<Vec<_>>(), [65_535, 1], "port 0 is no port");
        let down = symmetric(2, Ports::Sequential { last: 7_000, delta: -2 }).next_ports(3);
        assert_eq!(down.iter().map(SocketAddr::port).collect::<Vec<_>>(), [6_998, 6_996, 6_994]);
    }

    #[test]
    fn nobody_searches_who_was_not_agreed_with() {
        let mut b = symmetric(2, Ports::Uniform);
        b.searches = false;
        let a = cone(1, Filtering::AddressAndPortDependent);
        assert!(draft(&a, &b, far, 0).plan.search.is_none() && draft(&b, &a, far, 0).sockets.is_none());
    }

    #[test]
    fn a_guess_that_misses_is_followed_by_a_search_near_it() {
        let counting = symmetric(2, Ports::Sequential { last: 7_000, delta: 1 });
        let own = cone(1, Filtering::AddressAndPortDependent);
        let plan = draft(&own, &counting, far, 5).plan;
        let Some(Search::Ports { low, high, begin, .. }) = plan.search else { panic!("{plan:?}") };
        assert_eq!((low, high, begin), (6_744, 7_256, AFTER_MISS));
        assert!(!plan.guesses.is_empty(), "the guesses come first");
        let edge = symmetric(2, Ports::Sequential { last: 65_500, delta: -1 });
        let plan = draft(&own, &edge, far, 5).plan;
        assert!(matches!(plan.search, Some(Search::Ports { low: 65_244, high: 65_535, .. })), "{plan:?}");
        let unwilling = Whereabouts { searches: false, ..counting };
        assert!(draft(&own, &unwilling, far, 5).plan.search.is_none());
    }

    #[test]
    fn a_small_block_takes_few_sockets() {
        let small = symmetric(2, Ports::Block { low: 2_048, high: 3_071 });
        let (sockets, to, _) = draft(&small, &cone(1, Filtering::AddressAndPortDependent), far, 0).sockets.unwrap();
        assert_eq!((sockets, to), (64, "198.51.100.1:5000".parse().unwrap()));
        let any = symmetric(2, Ports::Uniform);
        let (sockets, ..) = draft(&any, &cone(1, Filtering::AddressAndPortDependent), far, 0).sockets.unwrap();
        assert_eq!(sockets, 256);
    }

    #[test]
    fn what_is_told_is_read_back() {
        let told = symmetric(9, Ports::Block { low: 1, high: 2 });
        let bytes = told.encode();
        assert_eq!(Whereabouts::decode(&bytes), Some(told));
        for end in 0..bytes.len() {
            assert_eq!(Whereabouts::decode(&bytes[..end]), None, "cut at {end}");
        }
        let mut later = bytes;
        later[0] = 2;
        assert_eq!(Whereabouts::decode(&later), None);
    }
}
