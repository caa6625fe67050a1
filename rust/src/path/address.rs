//! Addresses in one form, and which of them may be sent to.

use std::net::{IpAddr, SocketAddr};

use crate::addr::{unmapped, Route};

/// One form for each address, so that they can be compared: IPv4 never mapped, no IPv6 flow label.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    match unmapped(address) {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            SocketAddr::V6(v6)
        }
        v4 => v4,
    }
}

/// The same for the far end of a route.
pub(super) fn canonical_route(route: impl Into<Route>) -> Route {
    let route = route.into();
    Route { to: canonical(route.to), ..route }
}

/// Whether the address is of this network only: RFC 1918, RFC 3927, RFC 4193, RFC 4291 section 2.5.6, and this machine itself.
pub fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback(),
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            v6.is_loopback() || first & 0xffc0 == 0xfe80 || first & 0xfe00 == 0xfc00
        }
    }
}

/// Whether a ping may go there: one host and one port (RFC 1122 section 3.2.1.3, RFC 4291 section 2.7). Directed
/// broadcast (RFC 919) cannot be told from outside of the subnet.
pub fn sendable(address: SocketAddr) -> bool {
    let ip_is_a_host = match address.ip() {
        IpAddr::V4(v4) => !(v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.octets()[0] == 0),
        IpAddr::V6(v6) => !(v6.is_unspecified() || v6.is_multicast()),
    };
    ip_is_a_host && address.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_form_for_each_address() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:5".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.1:5".parse().unwrap());
        let labelled = SocketAddr::V6(std::net::SocketAddrV6::new("2001:db8::1".parse().unwrap(), 5, 77, 3));
        let plain = SocketAddr::V6(std::net::SocketAddrV6::new("2001:db8::1".parse().unwrap(), 5, 0, 3));
        assert_eq!(canonical(labelled), plain);
    }

    #[test]
    fn one_host_and_one_port() {
        for bad in [
            "0.0.0.0:1",
            "0.1.2.3:1",
            "224.0.0.1:1",
            "239.1.2.3:1",
            "255.255.255.255:1",
            "[::]:1",
            "[ff02::1]:1",
            "192.0.2.1:0",
        ] {
            assert!(!sendable(bad.parse().unwrap()), "{bad}");
        }
        for good in ["127.0.0.1:1", "192.0.2.1:65535", "[::1]:1", "[fe80::1]:1", "10.0.0.255:9"] {
            assert!(sendable(good.parse().unwrap()), "{good}");
        }
    }
}
