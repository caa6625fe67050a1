//! Candidates: addresses at which a node may be reachable, their order (RFC 8445 section 5.1.2), and their wire form.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::address::{canonical, sendable};

/// How an address came to be known (RFC 8445 section 5.1.1; a mapped port is a host candidate of another kind there).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CandidateKind {
    /// An address of an own interface.
    Host,
    /// What a STUN server saw.
    ServerReflexive,
    /// What a peer saw.
    PeerReflexive,
    /// What the gateway was asked for by PCP, NAT-PMP or UPnP.
    PortMapped,
    /// An address of a relay.
    Relayed,
}

/// An address at which a node may be reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Candidate {
    pub kind: CandidateKind,
    pub address: SocketAddr,
}

/// A list of candidates cannot be read: cut short, longer than it says, or above the cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadCandidates;

impl CandidateKind {
    /// Every kind, at the place of its code.
    const ALL: [Self; 5] = [Self::Host, Self::ServerReflexive, Self::PeerReflexive, Self::PortMapped, Self::Relayed];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ServerReflexive => "server-reflexive",
            Self::PeerReflexive => "peer-reflexive",
            Self::PortMapped => "port-mapped",
            Self::Relayed => "relayed",
        }
    }
}

impl fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Candidate {
    /// The priority of RFC 8445 section 5.1.2.1, higher first. `same_subnet`: one of our own interfaces, and no virtual one,
    /// has this address in its subnet.
    pub fn rank(&self, same_subnet: bool) -> u32 {
        let ipv6 = self.address.is_ipv6();
        // component 1 of 1; RFC 8421 section 4 prefers IPv6 where all else is equal
        (self.type_preference(same_subnet) << 24) + (u32::from(ipv6) << 8) + 255
    }

    /// 0 to 126. The order is keynet's, and the values are those of RFC 8445 section 5.1.2.2 where it has some. A
    /// reflexive address in a virtual range is no Docker bridge, but what another NAT gave.
    fn type_preference(&self, same_subnet: bool) -> u32 {
        match self.kind {
            CandidateKind::Host if same_subnet => 126,
            CandidateKind::Host if is_virtual_range(self.address.ip()) => 0,
            CandidateKind::Host if is_global_v6(self.address.ip()) => 124,
            CandidateKind::PortMapped => 118,
            CandidateKind::PeerReflexive => 110,
            CandidateKind::ServerReflexive => 100,
            CandidateKind::Host => 50,
            CandidateKind::Relayed => 10,
        }
    }
}

/// Best first, each address once (under its best kind), at most [`MAX_CANDIDATES`]: the lowest go.
pub fn rank_candidates(candidates: &mut Vec<Candidate>, same_subnet: impl Fn(IpAddr) -> bool) {
    let rank = |candidate: &Candidate| candidate.rank(same_subnet(candidate.address.ip()));
    // stable: equal ones stay in the order in which they were found
    candidates.sort_by_key(|candidate| std::cmp::Reverse(rank(candidate)));
    let mut kept: Vec<Candidate> = Vec::with_capacity(MAX_CANDIDATES);
    for candidate in candidates.iter() {
        let known = kept.iter().any(|other| other.address == candidate.address);
        if !known && kept.len() < MAX_CANDIDATES {
            kept.push(*candidate);
        }
    }
    *candidates = kept;
}

/// Appends a list: a count, then for each a kind, a family (4 or 6), a port and an address. What is beyond the cap is left
/// out.
pub fn encode_candidates(out: &mut Vec<u8>, candidates: &[Candidate]) {
    let candidates = candidates.get(..MAX_CANDIDATES).unwrap_or(candidates);
    // at most 16
    out.push(candidates.len() as u8);
    for candidate in candidates {
        out.push(CandidateKind::ALL.iter().position(|kind| *kind == candidate.kind).unwrap_or(0) as u8);
        let address = canonical(candidate.address);
        let (family, ip) = match address.ip() {
            IpAddr::V4(v4) => (4, v4.octets().to_vec()),
            IpAddr::V6(v6) => (6, v6.octets().to_vec()),
        };
        out.push(family);
        out.extend_from_slice(&address.port().to_be_bytes());
        out.extend_from_slice(&ip);
    }
}

/// Reads a list that fills `bytes`. Candidates of kinds that are not known, and those that nothing can be sent to from
/// here (multicast, port 0, IPv6 link-local without its zone), are left out.
pub fn decode_candidates(bytes: &[u8]) -> Result<Vec<Candidate>, BadCandidates> {
    let (count, mut rest) = bytes.split_first().ok_or(BadCandidates)?;
    if usize::from(*count) > MAX_CANDIDATES {
        return Err(BadCandidates);
    }
    let mut candidates = Vec::with_capacity(usize::from(*count));
    for _ in 0..*count {
        let ([kind, family, high, low], tail) = rest.split_first_chunk().ok_or(BadCandidates)?;
        let (ip, tail) = match family {
            4 => read_ip::<4>(tail)?,
            6 => read_ip::<16>(tail)?,
            _ => return Err(BadCandidates),
        };
        rest = tail;
        let address = canonical(SocketAddr::new(ip, u16::from_be_bytes([*high, *low])));
        if let Some(kind) = CandidateKind::ALL.get(usize::from(*kind)) {
            if sendable(address) && !is_link_local_v6(address.ip()) {
                candidates.push(Candidate { kind: *kind, address });
            }
        }
    }
    if rest.is_empty() {
        Ok(candidates)
    } else {
        Err(BadCandidates)
    }
}

fn read_ip<const N: usize>(bytes: &[u8]) -> Result<(IpAddr, &[u8]), BadCandidates>
where
    IpAddr: From<[u8; N]>,
{
    let (ip, rest) = bytes.split_first_chunk::<N>().ok_or(BadCandidates)?;
    Ok((IpAddr::from(*ip), rest))
}

/// The IPv6 addresses that routers forward (RFC 4291 section 2.4): 2000::/3 is all that has been assigned so far.
fn is_global_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.octets()[0] >> 5 == 1)
}

fn is_link_local_v6(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80)
}

/// Subnets that software on one machine gives to its own bridges, so that every machine has the same ones.
pub fn is_virtual_range(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            VIRTUAL_RANGES.iter().any(|(network, bits)| v4.to_bits() >> (32 - bits) == network.to_bits() >> (32 - bits))
        }
        IpAddr::V6(_) => false,
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.address)
    }
}

impl fmt::Display for BadCandidates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the list of candidates is broken")
    }
}

impl std::error::Error for BadCandidates {}

/// A host has a handful of addresses of each kind; what is more is an attempt to make us ping others.
pub const MAX_CANDIDATES: usize = 16;

/// The defaults of Docker's first bridge, Podman, libvirt and LXC.
const VIRTUAL_RANGES: [(Ipv4Addr, u32); 4] = [
    (Ipv4Addr::new(172, 17, 0, 0), 16),
    (Ipv4Addr::new(10, 88, 0, 0), 16),
    (Ipv4Addr::new(192, 168, 122, 0), 24),
    (Ipv4Addr::new(10, 0, 3, 0), 24),
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(kind: CandidateKind, address: &str) -> Candidate {
        Candidate { kind, address: address.parse().unwrap() }
    }

    #[test]
    fn the_order_of_the_tiers() {
        use CandidateKind::*;
        let best_first = [
            candidate(Host, "192.168.1.7:1"),
            candidate(Host, "[2001:db8::7]:1"),
            candidate(PortMapped, "192.0.2.1:1"),
            candidate(PeerReflexive, "192.0.2.1:4"),
            candidate(ServerReflexive, "192.0.2.1:2"),
            candidate(Host, "10.9.8.7:1"),
            candidate(Relayed, "192.0.2.9:1"),
            candidate(Host, "172.17.0.1:1"),
        ];
        let near = |ip: IpAddr| ip.to_string().starts_with("192.168.1.");
        for shift in 0..best_first.len() {
            let mut shuffled = best_first.to_vec();
            shuffled.rotate_left(shift);
            rank_candidates(&mut shuffled, near);
            assert_eq!(shuffled, best_first, "rotated by {shift}");
        }
    }

    #[test]
    fn a_bridge_of_ones_own_is_near_if_the_caller_says_so() {
        let docker = candidate(CandidateKind::Host, "172.17.0.5:1");
        let mapped = candidate(CandidateKind::PortMapped, "192.0.2.1:1");
        assert!(docker.rank(true) > mapped.rank(true) && docker.rank(false) < mapped.rank(false));
        assert!(is_virtual_range("172.17.255.1".parse().unwrap()) && !is_virtual_range("172.18.0.1".parse().unwrap()));
    }

    #[test]
    fn each_address_once_and_no_more_than_the_cap() {
        let mut many: Vec<_> =
            (1..60).map(|port| candidate(CandidateKind::Host, &format!("10.0.0.1:{port}"))).collect();
        many.push(candidate(CandidateKind::PortMapped, "10.0.0.1:1"));
        rank_candidates(&mut many, |_| false);
        assert_eq!(many.len(), MAX_CANDIDATES);
        assert_eq!(many[0].kind, CandidateKind::PortMapped);
        assert_eq!(many.iter().filter(|one| one.address.port() == 1).count(), 1);
    }

    #[test]
    fn lists_round_trip() {
        let list = [
            candidate(CandidateKind::Host, "192.168.1.7:4433"),
            candidate(CandidateKind::ServerReflexive, "[2001:db8::7]:65535"),
            candidate(CandidateKind::Relayed, "192.0.2.9:1"),
        ];
        let mut bytes = vec![];
        encode_candidates(&mut bytes, &list);
        assert_eq!(decode_candidates(&bytes), Ok(list.to_vec()));
        for end in 0..bytes.len() {
            assert_eq!(decode_candidates(&bytes[..end]), Err(BadCandidates), "cut at {end}");
        }
        bytes.push(0);
        assert_eq!(decode_candidates(&bytes), Err(BadCandidates), "longer than it says");
        assert_eq!(decode_candidates(&[17]), Err(BadCandidates));
        assert_eq!(decode_candidates(&[0]), Ok(vec![]));
    }

    #[test]
    fn what_cannot_be_used_is_left_out() {
        let mut bytes = vec![];
        let list = [
            candidate(CandidateKind::Host, "224.0.0.1:5"),
            candidate(CandidateKind::Host, "192.0.2.1:0"),
            candidate(CandidateKind::Host, "[fe80::1]:5"),
            candidate(CandidateKind::Host, "[::ffff:192.0.2.1]:5"),
        ];
        encode_candidates(&mut bytes, &list);
        assert_eq!(decode_candidates(&bytes), Ok(vec![candidate(CandidateKind::Host, "192.0.2.1:5")]));
        let of_the_future = [1, 99, 4, 0, 5, 192, 0, 2, 1];
        assert_eq!(decode_candidates(&of_the_future), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_bytes_give_few_usable_candidates(bytes: Vec<u8>) {
            if let Ok(candidates) = decode_candidates(&bytes) {
                prop_assert!(candidates.len() <= MAX_CANDIDATES);
                prop_assert!(candidates.iter().all(|one| sendable(one.address)));
                let mut again = vec![];
                encode_candidates(&mut again, &candidates);
                prop_assert_eq!(decode_candidates(&again), Ok(candidates));
            }
        }
    }
}
