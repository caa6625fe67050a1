//! Names: of a node (its public key), and of a remote as the uTP and path layers know it; and datagrams
//! with the address they belong to.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use data_encoding::BASE32HEX_NOPAD;

/// The name of a node: its 32-byte Ed25519 public key.
///
/// The text form is multibase base32hex in lower case, `v` and 52 characters, so that it fits a DNS label (63 octets,
/// RFC 1035 section 2.3.4). It is always computed from a key, never read from a certificate's name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId([u8; 32]);

/// The text of a node id is wrong; the message says how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadNodeId(String);

impl NodeId {
    /// Length of the text form.
    pub const TEXT_LEN: usize = 53;

    /// The node of a key that came from outside, however it came. Fails for keys that are nobody's: points of small order,
    /// with which anyone can sign (whoever holds no key at all passes for such a node), and second spellings of a point
    /// (RFC 8032 section 5.1.3 step 1: y is not below p), with which one node has two names.
    pub fn of_key(key: [u8; 32]) -> Result<Self, BadNodeId> {
        match weakness(&key) {
            Some(why) => Err(BadNodeId(format!("{why}, which proves nothing about who uses it: not a node id"))),
            None => Ok(Self(key)),
        }
    }

    /// The node of a key that is known to be one: for tests. `tests/layers.rs` sees that nothing else makes nodes so.
    pub const fn from_public_key(key: [u8; 32]) -> Self {
        Self(key)
    }

    /// The Ed25519 public key that this id is.
    pub const fn public_key(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight characters, for logs.
    pub fn short(&self) -> String {
        self.to_string()[..8].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", BASE32HEX_NOPAD.encode(&self.0).to_ascii_lowercase())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl FromStr for NodeId {
    type Err = BadNodeId;

    /// Accepts upper and lower case (host names are case-insensitive).
    fn from_str(text: &str) -> Result<Self, BadNodeId> {
        let bad = |why: &str| {
            BadNodeId(format!("{why}; a node id is 'v' and 52 characters of 0-9 and a-v, as `keynet id` prints it"))
        };
        if text.len() != Self::TEXT_LEN {
            return Err(bad(&format!("a node id has {} characters, this has {}", Self::TEXT_LEN, text.len())));
        }
        let upper = text.to_ascii_uppercase();
        let body = upper.strip_prefix('V').ok_or_else(|| bad("a node id starts with 'v'"))?;
        let bytes = BASE32HEX_NOPAD.decode(body.as_bytes()).map_err(|e| bad(&format!("not base32hex: {e}")))?;
        Self::of_key(bytes.try_into().map_err(|_| bad("a node id holds 32 bytes"))?)
    }
}

/// What is wrong with a public key of Ed25519, if something is. A key that is no point of the curve is not looked for: no
/// signature holds under it, so nobody can prove to be it.
fn weakness(key: &[u8; 32]) -> Option<&'static str> {
    let mut y = *key;
    y[31] &= 0x7f; // the sign of x
    let [low, middle @ .., high] = &y;
    if *low >= 0xed && *high == 0x7f && middle.iter().all(|byte| *byte == 0xff) {
        return Some("the key is a point in a second spelling");
    }
    SMALL_ORDER.contains(&y).then_some("the key is a point of small order")
}

/// The y of every point whose order divides 8, little-endian, without the sign of x: table 1 of K. Chalkias, F. Garillot, V.
/// Nikolaenko, "Taming the many EdDSAs" (SSR 2020), less the second spellings.
const SMALL_ORDER: [[u8; 32]; 5] = [
    [0; 32],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    [
        0xec, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
    ],
];

impl fmt::Display for BadNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadNodeId {}

/// What the uTP endpoint knows of the other side: an opaque handle that the path table maps to addresses. Never re-used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RemoteId(pub u64);

/// Which of our sockets something goes through: 0 is the node's own, those below [`Via::FIRST_RELAY`] were opened to search for a
/// way through a NAT, and behind the others is a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via(pub u16);

impl Via {
    /// The node's own socket.
    pub const MAIN: Self = Self(0);
    /// From here on the numbers are relays.
    pub const FIRST_RELAY: u16 = 0x8000;

    /// What goes through it is carried by a relay of ours.
    pub const fn is_relay(self) -> bool {
        self.0 >= Self::FIRST_RELAY
    }
}

/// A way to an address: from which of our sockets, and where to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    pub via: Via,
    pub to: SocketAddr,
}

impl From<SocketAddr> for Route {
    fn from(to: SocketAddr) -> Self {
        Self { via: Via::MAIN, to }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.via {
            Via::MAIN => write!(f, "{}", self.to),
            Via(n) if self.via.is_relay() => write!(f, "{} through relay {}", self.to, n - Via::FIRST_RELAY),
            Via(n) => write!(f, "{} through socket {n}", self.to),
        }
    }
}

/// Datagrams to or from one peer, each of `stride` bytes, the last perhaps shorter.
#[derive(Clone, Debug)]
pub struct Datagrams {
    pub peer: SocketAddr,
    pub contents: Vec<u8>,
    pub stride: usize,
}

/// Where a datagram came from, as uTP needs it before there is a remote: bytes to tell one address from another, and nothing
/// that can be sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin([u8; 18]);

impl Origin {
    /// The same for an IPv4 address in either form.
    pub fn of(address: SocketAddr) -> Self {
        let mut bytes = [0; 18];
        let (ip, port) = bytes.split_at_mut(16);
        ip.copy_from_slice(&match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        });
        port.copy_from_slice(&address.port().to_be_bytes());
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What a datagram back may measure: IPv6 headers take 20 bytes more than IPv4's.
    pub fn max_datagram(&self) -> u16 {
        let ipv6 = !self.0.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);
        if ipv6 {
            1_452
        } else {
            u16::MAX
        }
    }
}

/// Which life of a node: random, and another one each time that it starts.
pub type Incarnation = [u8; 16];

/// What two nodes share after a TLS handshake to recognise each other's pings (docs/protocol.md section 2).
#[derive(Clone, PartialEq, Eq)]
pub struct PingKeys {
    /// The key of MESSAGE-INTEGRITY-SHA256.
    pub key: [u8; 32],
    /// The session name that the peer uses to ask us.
    pub local_name: [u8; 16],
    /// The session name that we use to ask the peer.
    pub remote_name: [u8; 16],
}

impl fmt::Debug for PingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PingKeys").finish_non_exhaustive()
    }
}

/// An IPv4 address as a plain one, also when a dual-stack socket reported it as `::ffff:a.b.c.d` (RFC 4291 section 2.5.5.2).
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => SocketAddr::from((v4, address.port())),
            None => address,
        },
        IpAddr::V4(_) => address,
    }
}

/// An IPv4 address in the mapped form that a dual-stack IPv6 socket takes; the inverse of [`unmapped`].
pub fn mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::from((Ipv6Addr::from(v4.to_ipv6_mapped().octets()), address.port())),
        IpAddr::V6(_) => address,
    }
}

/// An IPv6 address and the zone behind its `%` (RFC 4007 section 11); `%25`, as URIs write it (RFC 6874), is the same, unless it is
/// the number of an interface.
pub fn split_zone(text: &str) -> (&str, Option<&str>) {
    match text.split_once('%') {
        Some((ip, zone)) => {
            let name = zone.strip_prefix("25").filter(|name| name.starts_with(|c: char| !c.is_ascii_digit()));
            (ip, Some(name.unwrap_or(zone)))
        }
        None => (text, None),
    }
}

/// RFC 4291 section 2.5.6: every link has such addresses, and the same ones may be on several.
pub fn is_link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

/// What one customer has: an IPv4 /24 (many share one, none has a larger one for nothing), an IPv6 /56 (RFC 6177).
pub fn network_of(ip: IpAddr) -> [u8; 8] {
    let mut bytes = [0; 8];
    match unmapped(SocketAddr::new(ip, 0)).ip() {
        IpAddr::V4(v4) => bytes[..3].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => {
            bytes[..7].copy_from_slice(&v6.octets()[..7]);
            bytes[7] = 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trip(key: [u8; 32]) {
            prop_assume!(weakness(&key).is_none());
            let id = NodeId::from_public_key(key);
            let text = id.to_string();
            prop_assert_eq!(text.len(), NodeId::TEXT_LEN);
            prop_assert_eq!(text.parse::<NodeId>().unwrap(), id);
            prop_assert_eq!(text.to_uppercase().parse::<NodeId>().unwrap(), id);
        }

        #[test]
        fn any_text_parses_or_explains(text in ".{0,80}") {
            if let Err(e) = text.parse::<NodeId>() {
                prop_assert!(e.to_string().contains("a node id"));
            }
        }
    }

    /// Every spelling of every point of small order: canonical or not, with either sign.
    fn weak_keys() -> Vec<[u8; 32]> {
        let mut keys = SMALL_ORDER.to_vec();
        // y + p fits into 255 bits for y = 0 and 1 alone
        keys.extend([0xed, 0xee].map(|low| {
            let mut key = [0xff; 32];
            (key[0], key[31]) = (low, 0x7f);
            key
        }));
        let negative: Vec<_> = keys.iter().map(|key| [&key[..31], &[key[31] | 0x80]].concat()).collect();
        keys.extend(negative.into_iter().map(|key| <[u8; 32]>::try_from(key).unwrap()));
        keys
    }

    #[test]
    fn a_key_that_anyone_can_sign_with_is_no_node() {
        use aws_lc_rs::signature::{UnparsedPublicKey, ED25519};
        let mut forged = 0;
        for key in weak_keys() {
            // what the refusal is for: without any secret, R of small order and S = 0 pass for a signature of some messages
            let signs = (0..64u8).any(|message| {
                weak_keys().iter().any(|r| {
                    let signature = [&r[..], &[0; 32]].concat();
                    UnparsedPublicKey::new(&ED25519, key).verify(&[message], &signature).is_ok()
                })
            });
            forged += usize::from(signs);
            assert!(NodeId::of_key(key).is_err(), "{key:02x?}");
            let text = NodeId::from_public_key(key).to_string();
            assert!(text.parse::<NodeId>().unwrap_err().to_string().contains("not a node id"), "{text}");
        }
        assert!(forged >= 8, "only {forged} of {} could be signed with: is the list wrong?", weak_keys().len());
        assert!(format!("v{}", "0".repeat(52)).parse::<NodeId>().is_err());
    }

    #[test]
    fn every_second_spelling_of_a_point_is_refused_and_its_first_is_not() {
        for low in 0..=u8::MAX {
            for high in [0x7f, 0xff] {
                let mut key = [0xff; 32];
                (key[0], key[31]) = (low, high);
                // p = 2^255 - 19; p - 1 has order 2
                assert_eq!(NodeId::of_key(key).is_ok(), low < 0xec, "{low:02x} {high:02x}");
            }
        }
    }

    #[test]
    fn trailing_bits_must_be_zero() {
        let mut text = NodeId::from_public_key([127; 32]).to_string();
        text.pop();
        text.push('v');
        assert!(text.parse::<NodeId>().is_err());
    }

    #[test]
    fn origins_tell_addresses_apart_and_not_their_forms() {
        let at = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(at("192.0.2.1:5"), at("[::ffff:192.0.2.1]:5"));
        assert_ne!(at("192.0.2.1:5"), at("192.0.2.1:6"));
        assert_ne!(at("192.0.2.1:5"), at("192.0.2.2:5"));
        assert_eq!((at("192.0.2.1:5").max_datagram(), at("[2001:db8::1]:5").max_datagram()), (u16::MAX, 1_452));
    }

    #[test]
    fn zones_are_told_from_addresses() {
        for (text, expected) in [
            ("fe80::1", ("fe80::1", None)),
            ("fe80::1%eth0", ("fe80::1", Some("eth0"))),
            ("fe80::1%25eth0", ("fe80::1", Some("eth0"))),
            ("fe80::1%25", ("fe80::1", Some("25"))),
            ("fe80::1%251", ("fe80::1", Some("251"))),
            ("fe80::1%", ("fe80::1", Some(""))),
        ] {
            assert_eq!(split_zone(text), expected, "{text}");
        }
        assert!(is_link_local("febf::1".parse().unwrap()) && !is_link_local("fec0::1".parse().unwrap()));
    }

    #[test]
    fn mapped_addresses_round_trip() {
        let v4: SocketAddr = "192.0.2.1:5".parse().unwrap();
        assert_eq!(mapped(v4), "[::ffff:192.0.2.1]:5".parse().unwrap());
        assert_eq!(unmapped(mapped(v4)), v4);
        let v6: SocketAddr = "[2001:db8::1]:5".parse().unwrap();
        assert_eq!((mapped(v6), unmapped(v6)), (v6, v6));
    }
}
