//! What a NAT does (RFC 4787 sections 4 and 5), as a node tells its peers, and how it hands out ports.

use std::fmt;
use std::net::IpAddr;

/// On what a NAT lets a mapping depend (RFC 4787 section 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mapping {
    #[default]
    Unknown,
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// Whom a NAT lets in through a mapping (RFC 4787 section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filtering {
    #[default]
    Unknown,
    EndpointIndependent,
    AddressDependent,
    AddressAndPortDependent,
}

/// How a NAT picks the external port of a new mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ports {
    #[default]
    Unknown,
    /// The internal one.
    Preserved,
    /// The last one and a constant; `last` is the last that was seen.
    Sequential { last: u16, delta: i16 },
    /// Any of a block that belongs to the subscriber (RFC 7422), both ends included.
    Block { low: u16, high: u16 },
    /// Any.
    Uniform,
}

/// What a node knows of the NATs before it, taken together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NatProfile {
    pub mapping: Mapping,
    pub filtering: Filtering,
    pub ports: Ports,
    /// No server answered at all.
    pub udp_blocked: bool,
    /// Whether there is a NAT: the outside sees another address than the own. `None`: not known.
    pub translated: Option<bool>,
    /// The address that servers saw.
    pub external: Option<IpAddr>,
    /// Two ports of one server saw the same: the mapping may depend on the address, but not on the port. Not told to peers,
    /// who can do nothing with half of it.
    pub same_by_port: bool,
}

/// A profile cannot be read: it is cut short, or a field has a form that it cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadProfile;

/// Judges how a NAT hands out ports by (internal port, external port) of sockets that were opened one after the other.
pub fn judge_ports(samples: &[(u16, u16)]) -> Ports {
    let preserved = samples.iter().filter(|(internal, external)| internal == external).count();
    // one port may have been taken by somebody else
    if preserved >= 2 && preserved * 4 >= samples.len() * 3 {
        return Ports::Preserved;
    }
    let ports: Vec<u16> = samples.iter().map(|(_, external)| *external).collect();
    if let Some(sequence) = sequence(&ports) {
        return sequence;
    }
    if ports.len() < SAMPLES_FOR_A_BLOCK {
        return Ports::Unknown;
    }
    block(&ports).unwrap_or(Ports::Uniform)
}

/// Steps of one sign, none of them large: other hosts behind the NAT open mappings too. One step may be anything, where
/// the NAT came to the end of its range.
fn sequence(ports: &[u16]) -> Option<Ports> {
    let last = *ports.last()?;
    // wrapping: 65535 and 0 are neighbours
    let steps: Vec<i16> = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]) as i16).collect();
    let exceptions = usize::from(steps.len() >= 5);
    if steps.len() < 2 {
        return None;
    }
    for sign in [1, -1] {
        let regular = |step: &&i16| (1..=LARGEST_STEP).contains(&step.saturating_mul(sign));
        let fitting: Vec<i16> = steps.iter().filter(regular).copied().collect();
        if fitting.len() + exceptions >= steps.len() {
            // the smallest is the one without strangers in between
            let delta = fitting.into_iter().min_by_key(|step| step.unsigned_abs())?;
            return Some(Ports::Sequential { last, delta });
        }
    }
    None
}

/// The smallest block that holds them all. Blocks have a power of two as their size and begin at a multiple of it, or at
/// 1024 and a multiple of it, because the ports below 1024 are left out; n samples of a block twice that size lie in one half
/// with a probability of 2^(1 - n). Where the block begins at any other place, the outermost samples are as far from its ends
/// as samples are from one another, on average.
fn block(ports: &[u16]) -> Option<Ports> {
    let (min, max) = (u32::from(*ports.iter().min()?), u32::from(*ports.iter().max()?));
    let gap = (max - min) / (ports.len() as u32 - 1);
    let width = max - min + 2 * gap;
    let aligned = (SMALLEST_BLOCK_BITS..=LARGEST_BLOCK_BITS).find_map(|bits| {
        let size = 1_u32 << bits;
        [0, 1024 % size].into_iter().find_map(|offset| {
            let low = (min.checked_sub(offset)? / size) * size + offset;
            (max < low + size && low + size <= 1 << 16).then_some((low, low + size - 1))
        })
    });
    let (low, high) = match aligned {
        Some((low, high)) if high - low <= 2 * width.max(1 << SMALLEST_BLOCK_BITS) => (low, high),
        _ if width <= 1 << LARGEST_BLOCK_BITS => (min.saturating_sub(gap), max + gap),
        _ => return None,
    };
    Some(Ports::Block { low: u16::try_from(low).ok()?, high: u16::try_from(high).unwrap_or(u16::MAX) })
}

impl Ports {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Preserved => "preserved",
            Self::Sequential { .. } => "sequential",
            Self::Block { .. } => "block",
            Self::Uniform => "uniform",
        }
    }
}

impl NatProfile {
    /// Appends the profile: mapping, filtering, flags, kind of ports and its two numbers, family and address.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let translated = match self.translated {
            None => 0,
            Some(false) => TRANSLATION_KNOWN,
            Some(true) => TRANSLATION_KNOWN | TRANSLATED,
        };
        out.extend_from_slice(&[self.mapping as u8, self.filtering as u8]);
        out.push(translated | if self.udp_blocked { UDP_BLOCKED } else { 0 });
        let (kind, first, second) = match self.ports {
            Ports::Unknown => (0, 0, 0),
            Ports::Preserved => (1, 0, 0),
            Ports::Sequential { last, delta } => (2, last, delta as u16),
            Ports::Block { low, high } => (3, low, high),
            Ports::Uniform => (4, 0, 0),
        };
        out.push(kind);
        out.extend_from_slice(&first.to_be_bytes());
        out.extend_from_slice(&second.to_be_bytes());
        match self.external {
            None => out.push(0),
            Some(IpAddr::V4(v4)) => {
                out.push(4);
                out.extend_from_slice(&v4.octets());
            }
            Some(IpAddr::V6(v6)) => {
                out.push(6);
                out.extend_from_slice(&v6.octets());
            }
        }
    }

    /// Reads a profile. Words that are not known are read as unknown, and what stands behind the fields is left to later
    /// versions.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadProfile> {
        let ([mapping, filtering, flags, kind, a, b, c, d, family], rest) =
            bytes.split_first_chunk().ok_or(BadProfile)?;
        let (first, second) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
        let ports = match kind {
            1 => Ports::Preserved,
            2 => Ports::Sequential { last: first, delta: second as i16 },
            3 if first <= second => Ports::Block { low: first, high: second },
            3 => return Err(BadProfile),
            4 => Ports::Uniform,
            _ => Ports::Unknown,
        };
        let external = match family {
            0 => None,
            4 => Some(IpAddr::from(*rest.first_chunk::<4>().ok_or(BadProfile)?)),
            6 => Some(IpAddr::from(*rest.first_chunk::<16>().ok_or(BadProfile)?)),
            _ => return Err(BadProfile),
        };
        Ok(Self {
            mapping: Mapping::ALL.get(usize::from(*mapping)).copied().unwrap_or_default(),
            filtering: Filtering::ALL.get(usize::from(*filtering)).copied().unwrap_or_default(),
            ports,
            udp_blocked: flags & UDP_BLOCKED != 0,
            translated: (flags & TRANSLATION_KNOWN != 0).then_some(flags & TRANSLATED != 0),
            external,
            same_by_port: false,
        })
    }
}

impl Mapping {
    const ALL: [Self; 4] =
        [Self::Unknown, Self::EndpointIndependent, Self::AddressDependent, Self::AddressAndPortDependent];

    pub const fn name(self) -> &'static str {
        DEPENDENCE[self as usize]
    }
}

impl Filtering {
    const ALL: [Self; 4] =
        [Self::Unknown, Self::EndpointIndependent, Self::AddressDependent, Self::AddressAndPortDependent];

    pub const fn name(self) -> &'static str {
        DEPENDENCE[self as usize]
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Filtering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequential { last, delta } => write!(f, "{} ({delta:+} from {last})", self.name()),
            Self::Block { low, high } => write!(f, "{} ({low} to {high})", self.name()),
            Self::Unknown | Self::Preserved | Self::Uniform => f.write_str(self.name()),
        }
    }
}

impl fmt::Display for NatProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.udp_blocked {
            return f.write_str("UDP is blocked");
        }
        let nat = match self.translated {
            Some(false) => "no NAT",
            Some(true) => "NAT",
            None => "NAT unknown",
        };
        let mapping = match (self.mapping, self.same_by_port) {
            (Mapping::Unknown, true) => "endpoint-independent or address-dependent",
            (mapping, _) => mapping.name(),
        };
        write!(f, "{nat}, mapping {mapping}, filtering {}, ports {}", self.filtering, self.ports)
    }
}

impl fmt::Display for BadProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the NAT profile is broken")
    }
}

impl std::error::Error for BadProfile {}

/// The words of RFC 4787, in the order of the variants.
const DEPENDENCE: [&str; 4] = ["unknown", "endpoint-independent", "address-dependent", "address-and-port-dependent"];

const UDP_BLOCKED: u8 = 1;
const TRANSLATION_KNOWN: u8 = 2;
const TRANSLATED: u8 = 4;

/// A port further is not the next one. Eight random ports out of 1024 follow one another this closely once in 10^12 times.
const LARGEST_STEP: i16 = 16;
/// Five random ports of all 64,512 lie within 8192 once in a thousand times, six once in 5,000.
const SAMPLES_FOR_A_BLOCK: usize = 5;
/// Carriers give 64 ports at least (RFC 6888 asks for enough, RFC 7422 shows 1024 and 2048), and 8192 at most.
const SMALLEST_BLOCK_BITS: u32 = 6;
const LARGEST_BLOCK_BITS: u32 = 13;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng};

    const INTERNAL: u16 = 41_000;

    fn judged(externals: &[u16]) -> Ports {
        let samples: Vec<_> = externals.iter().enumerate().map(|(n, port)| (INTERNAL + n as u16, *port)).collect();
        judge_ports(&samples)
    }

    #[test]
    fn the_table_of_port_models() {
        let table: &[(&[u16], Ports)] = &[
            (&[], Ports::Unknown),
            (&[5_000], Ports::Unknown),
            (&[41_000], Ports::Unknown),
            (&[41_000, 41_001], Ports::Preserved),
            (&[41_000, 41_001, 1_024, 41_003, 41_004], Ports::Preserved),
            (&[5_000, 5_001], Ports::Unknown),
            (&[5_000, 5_001, 5_002], Ports::Sequential { last: 5_002, delta: 1 }),
            (&[5_000, 5_002, 5_004, 5_006], Ports::Sequential { last: 5_006, delta: 2 }),
            (&[5_000, 5_001, 5_004, 5_005, 5_009], Ports::Sequential { last: 5_009, delta: 1 }),
            (&[5_009, 5_008, 5_006, 5_005], Ports::Sequential { last: 5_005, delta: -1 }),
            (&[65_534, 65_535, 0, 1], Ports::Sequential { last: 1, delta: 1 }),
            (&[65_534, 65_535, 1_024, 1_025, 1_026, 1_027], Ports::Sequential { last: 1_027, delta: 1 }),
            (&[5_000, 9_000, 2_000], Ports::Unknown),
            (&[50_000, 9_000, 22_000, 61_000, 4_000], Ports::Uniform),
            (&[3_100, 3_900, 4_000, 3_500, 3_300], Ports::Block { low: 3_072, high: 4_095 }),
            // begins at 1024 + n * 2048
            (&[3_100, 4_900, 4_000, 3_500, 4_300], Ports::Block { low: 3_072, high: 5_119 }),
        ];
        for (externals, ports) in table {
            assert_eq!(judged(externals), *ports, "{externals:?}");
        }
    }

    /// Eight samples from each of 500 NATs of a kind.
    fn nats(mut sample: impl FnMut(&mut rand::rngs::StdRng) -> Vec<u16>) -> Vec<Ports> {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        (0..500).map(|_| judged(&sample(&mut rng))).collect()
    }

    #[test]
    fn random_ports_are_uniform_and_nothing_else() {
        let verdicts = nats(|rng| (0..8).map(|_| rng.random_range(1_024..=65_535)).collect());
        assert!(verdicts.iter().all(|ports| *ports == Ports::Uniform));
    }

    #[test]
    fn a_block_is_found_whole_and_not_much_larger() {
        for size in [512_u32, 1_024, 2_048, 4_096] {
            for begin in [|n: u32, size: u32| 1_024 + n * size, |n: u32, size: u32| 20_000 + n * (size / 7)] {
                let mut blocks = vec![];
                let verdicts = nats(|rng| {
                    let low = begin(rng.random_range(0..8), size);
                    blocks.push((low, low + size - 1));
                    (0..8).map(|_| rng.random_range(low..low + size) as u16).collect()
                });
                let mut covered = 0.0;
                let mut width = 0.0;
                for (ports, (low, high)) in verdicts.iter().zip(blocks) {
                    let Ports::Block { low: from, high: to } = *ports else { panic!("{ports:?} for {low} to {high}") };
                    let common = high.min(to.into()).saturating_sub(low.max(from.into()));
                    covered += f64::from(common) / f64::from(size - 1) / 500.0;
                    width += f64::from(to - from) / f64::from(size - 1) / 500.0;
                }
                assert!(covered > 0.9 && width < 1.5, "{size}: {covered} covered, {width} searched");
            }
        }
    }

    #[test]
    fn profiles_round_trip() {
        let profile = NatProfile {
            mapping: Mapping::AddressAndPortDependent,
            filtering: Filtering::AddressDependent,
            ports: Ports::Sequential { last: 65_535, delta: -3 },
            udp_blocked: false,
            translated: Some(true),
            external: Some("2001:db8::1".parse().unwrap()),
            same_by_port: false,
        };
        let block = NatProfile {
            ports: Ports::Block { low: 1_024, high: 2_047 },
            translated: Some(false),
            external: Some("192.0.2.1".parse().unwrap()),
            ..Default::default()
        };
        for profile in [profile, block, NatProfile::default(), NatProfile { udp_blocked: true, ..profile }] {
            let mut bytes = vec![];
            profile.encode(&mut bytes);
            assert_eq!(NatProfile::decode(&bytes), Ok(profile));
            for end in 0..bytes.len() {
                assert_eq!(NatProfile::decode(&bytes[..end]), Err(BadProfile), "cut at {end}");
            }
            bytes.push(9);
            assert_eq!(NatProfile::decode(&bytes), Ok(profile), "a field of a later version");
        }
    }

    #[test]
    fn profiles_in_words() {
        let profile =
            NatProfile { mapping: Mapping::EndpointIndependent, translated: Some(true), ..Default::default() };
        assert_eq!(profile.to_string(), "NAT, mapping endpoint-independent, filtering unknown, ports unknown");
        assert_eq!(Ports::Sequential { last: 7, delta: 1 }.to_string(), "sequential (+1 from 7)");
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_do_not(bytes: Vec<u8>) {
            if let Ok(profile) = NatProfile::decode(&bytes) {
                let mut again = vec![];
                profile.encode(&mut again);
                prop_assert_eq!(NatProfile::decode(&again), Ok(profile));
            }
        }

        #[test]
        fn any_samples_are_judged(samples: Vec<(u16, u16)>) {
            if let Ports::Block { low, high } = judge_ports(&samples) {
                prop_assert!(samples.iter().all(|(_, port)| (low..=high).contains(port)));
            }
        }
    }
}
