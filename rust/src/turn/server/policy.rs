//! Which peers a client may reach through the relay. A relay stands in a network of its own: without rules it would be a door
//! into that network (RFC 8656 section 21.1.5; the CVEs of relays that forwarded to 127.0.0.1 or to mapped addresses).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// An address with the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    prefix: u8,
}

impl Network {
    /// `None`: the prefix is longer than the address.
    pub fn new(ip: IpAddr, prefix: u8) -> Option<Self> {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        (prefix <= longest).then_some(Self { ip, prefix })
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        match (self.ip, ip) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let shift = 32 - u32::from(self.prefix);
                (u32::from(own) ^ u32::from(other)).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let shift = 128 - u32::from(self.prefix);
                (u128::from(own) ^ u128::from(other)).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether it lies within the other as a whole.
    pub fn is_within(&self, other: &Self) -> bool {
        self.prefix >= other.prefix && other.contains(self.ip)
    }

    /// The first and the last address.
    #[cfg(test)]
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        let host = |bits: u8| u128::MAX.checked_shr(128 - u32::from(bits - self.prefix)).unwrap_or(0);
        match self.ip {
            IpAddr::V4(v4) => {
                let (first, host) = (u32::from(v4) & !(host(32) as u32), host(32) as u32);
                (IpAddr::V4(first.into()), IpAddr::V4((first | host).into()))
            }
            IpAddr::V6(v6) => {
                let first = u128::from(v6) & !host(128);
                (IpAddr::V6(first.into()), IpAddr::V6((first | host(128)).into()))
            }
        }
    }
}

/// `192.0.2.0/24`, `2001:db8::/32`, or one address.
impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix.parse().map_err(|_| BadNetwork)?)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| BadNetwork)?;
        Self::new(ip, prefix.unwrap_or(if ip.is_ipv4() { 32 } else { 128 })).ok_or(BadNetwork)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadNetwork;

impl fmt::Display for BadNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an address with a prefix, like 192.0.2.0/24 or 2001:db8::/32")
    }
}

impl std::error::Error for BadNetwork {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_their_addresses() {
        let has = |network: &str, ip: &str| network.parse::<Network>().unwrap().contains(ip.parse().unwrap());
        assert!(has("192.0.2.0/24", "192.0.2.255") && !has("192.0.2.0/24", "192.0.3.0"));
        assert!(has("192.0.2.7", "192.0.2.7") && !has("192.0.2.7", "192.0.2.6"));
        assert!(has("0.0.0.0/0", "203.0.113.9") && !has("0.0.0.0/0", "::1"));
        assert!(has("::/0", "::1") && has("fd00::/8", "fd12::1") && !has("fd00::/8", "fe80::1"));
        for broken in ["", "192.0.2.0/33", "::/129", "192.0.2.0/", "192.0.2/24", "a/8", "::1/-1"] {
            assert_eq!(broken.parse::<Network>(), Err(BadNetwork), "{broken}");
        }
    }
}
