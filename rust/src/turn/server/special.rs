//! Addresses that are no host of the open internet: a relay carries nothing to them unless its operator says so.
//!
//! Two tables. [`SPECIAL`] is what the registries of IANA set apart; [`PLATFORM`] is what cloud platforms answer at inside their own
//! networks: there a machine gets its credentials, by its address alone. Some of these lie in public space, as no registry tells.
//! The last column says where it is written down; both were compared with their sources in November 2026.

use std::net::IpAddr;
use std::sync::LazyLock;

use super::policy::Network;

/// Whether an address is of the open internet. What carries an IPv4 address inside (mapped, translated, 6to4, Teredo) is not: it
/// is a second name of an address that has its own.
pub fn is_public(ip: IpAddr) -> bool {
    // of IPv6 only 2000::/3 is handed out (IANA IPv6 address space): what is outside needs no row
    let unicast = match ip {
        IpAddr::V4(_) => true,
        IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000,
    };
    unicast && !OFF_LIMITS.iter().any(|network| network.contains(ip))
}

/// The network of a platform's own service that an address lies in. Whoever allows a network around it has not thought of that:
/// it is to be named itself, or something inside.
pub fn platform(ip: IpAddr) -> Option<Network> {
    PLATFORMS.iter().find(|network| network.contains(ip)).copied()
}

/// A network, and where it is written down what it is for.
type Row = (&'static str, &'static str);

fn networks(rows: &[Row]) -> impl Iterator<Item = Network> + '_ {
    // the test reads each row: none is left out here
    rows.iter().filter_map(|(network, _)| network.parse().ok())
}

static OFF_LIMITS: LazyLock<Vec<Network>> = LazyLock::new(|| networks(SPECIAL).chain(networks(PLATFORM)).collect());
static PLATFORMS: LazyLock<Vec<Network>> = LazyLock::new(|| networks(PLATFORM).collect());

/// The IANA special-purpose registries (RFC 6890) and what is not unicast. Anycast services of the registry (AS112, AMT, 6to4
/// relays) are marked there as reachable, but no node is ever at such an address.
const SPECIAL: &[Row] = &[
    ("0.0.0.0/8", "RFC 791, this network"),
    ("10.0.0.0/8", "RFC 1918, private"),
    ("100.64.0.0/10", "RFC 6598, shared"),
    ("127.0.0.0/8", "RFC 1122, loopback"),
    ("169.254.0.0/16", "RFC 3927, link-local"),
    ("172.16.0.0/12", "RFC 1918, private"),
    ("192.0.0.0/24", "RFC 6890, protocol assignments"),
    ("192.0.2.0/24", "RFC 5737, documentation"),
    ("192.31.196.0/24", "RFC 7535, AS112"),
    ("192.52.193.0/24", "RFC 7450, AMT"),
    ("192.88.99.0/24", "RFC 7526, 6to4 relays, deprecated"),
    ("192.168.0.0/16", "RFC 1918, private"),
    ("192.175.48.0/24", "RFC 7534, AS112"),
    ("198.18.0.0/15", "RFC 2544, benchmarking"),
    ("198.51.100.0/24", "RFC 5737, documentation"),
    ("203.0.113.0/24", "RFC 5737, documentation"),
    ("224.0.0.0/4", "RFC 1112, multicast"),
    ("240.0.0.0/4", "RFC 1112, reserved; and broadcast"),
    ("2001::/23", "RFC 2928, protocol assignments: Teredo, benchmarking, ORCHID, DRIP"),
    ("2001:db8::/32", "RFC 3849, documentation"),
    ("2002::/16", "RFC 3056, 6to4"),
    ("2620:4f:8000::/48", "RFC 7534, AS112"),
    ("3ffe::/16", "RFC 3701, 6bone, given back"),
    ("3fff::/20", "RFC 9637, documentation"),
];

/// Metadata, credentials, resolvers and clocks of platforms.
const PLATFORM: &[Row] = &[
    ("168.63.129.16", "Azure: WireServer, DNS, health probes"),
    ("169.254.169.254", "metadata of nearly every cloud"),
    ("169.254.170.2", "AWS: credentials of ECS tasks"),
    ("169.254.170.23", "AWS: credentials of EKS pods"),
    ("169.254.169.123", "AWS: clock"),
    ("169.254.169.253", "AWS: DNS"),
    ("169.254.0.23", "Tencent: metadata"),
    ("192.0.0.192", "Oracle Cloud Classic: metadata"),
    ("100.100.100.200", "Alibaba: metadata"),
    ("100.100.2.136/31", "Alibaba: DNS"),
    ("100.100.2.138", "Alibaba: DNS"),
    ("161.26.0.0/16", "IBM Cloud: services of the platform (DNS, NTP, packages)"),
    ("166.8.0.0/14", "IBM Cloud: private endpoints"),
    ("199.36.153.4/30", "Google Cloud: restricted.googleapis.com, inside its networks"),
    ("199.36.153.8/30", "Google Cloud: private.googleapis.com, inside its networks"),
    ("fd00:ec2::/64", "AWS: metadata (::254), DNS (::253), clock (::123), EKS (::23)"),
    ("fd20:ce::/64", "Google Cloud: metadata (::254)"),
    ("fd00:c1::/64", "Oracle Cloud: metadata (::a9fe:a9fe)"),
    ("fd00:42::/64", "Scaleway: metadata (::42)"),
    ("fe80::a9fe:a9fe", "OpenStack: metadata"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn every_row_is_a_network_with_a_source_and_off_limits_from_end_to_end() {
        for (text, source) in SPECIAL.iter().chain(PLATFORM) {
            let network: Network = text.parse().expect(text);
            let (first, last) = network.ends();
            assert!(!is_public(first) && !is_public(last), "{text}");
            assert!(source.len() > 5, "{text}");
        }
        assert_eq!(OFF_LIMITS.len(), SPECIAL.len() + PLATFORM.len());
    }

    #[test]
    fn what_is_not_of_the_open_internet() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.1.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:8.8.8.8",
            "::ffff:168.63.129.16",
            "::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::a83f:8110",
            "64:ff9b:1::1",
            "100::1",
            "100:0:0:1::1",
            "2001::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "3fff:fff:ffff::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
        ] {
            assert!(!is_public(ip(text)), "{text}");
        }
    }

    #[test]
    fn services_of_platforms_are_off_limits() {
        for text in [
            "168.63.129.16",
            "169.254.169.254",
            "169.254.170.2",
            "192.0.0.192",
            "100.100.100.200",
            "100.100.2.136",
            "161.26.0.10",
            "166.9.8.7",
            "199.36.153.10",
            "fd00:ec2::254",
            "fd20:ce::254",
        ] {
            assert!(!is_public(ip(text)), "{text}");
            assert!(platform(ip(text)).is_some(), "{text}");
        }
    }

    #[test]
    fn what_lies_beside_is_of_the_open_internet() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.1",
            "168.63.129.15",
            "168.63.129.17",
            "166.7.255.255",
            "166.12.0.0",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "192.88.98.1",
            "198.17.0.1",
            "198.20.0.0",
            "199.36.153.12",
            "203.0.112.255",
            "203.0.114.0",
            "223.255.255.255",
            "2001:200::1",
            "2001:4860::1",
            "2600::1",
            "2a00::1",
            "3fff:1000::1",
        ] {
            assert!(is_public(ip(text)), "{text}");
            assert!(platform(ip(text)).is_none(), "{text}");
        }
    }
}
