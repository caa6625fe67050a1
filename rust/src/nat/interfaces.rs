//! The own addresses, their subnets, and the gateway.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use if_addrs::{get_if_addrs, IfAddr, IfOperStatus};

use crate::path::is_virtual_range;

/// An address of this machine that UDP can be sent from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress {
    pub interface: String,
    pub ip: IpAddr,
    /// Bits of the subnet.
    pub prefix: u8,
    pub kind: InterfaceKind,
}

/// What an interface leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InterfaceKind {
    /// A network card, or what a container or a virtual machine takes for one.
    Network,
    /// A tunnel or a VPN: point to point.
    Tunnel,
    /// A bridge to containers or virtual machines on this machine, and their ends of it. No peer elsewhere is behind it.
    Virtual,
    Loopback,
}

impl InterfaceKind {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Network => "network",
            Self::Tunnel => "tunnel",
            Self::Virtual => "virtual",
            Self::Loopback => "loopback",
        }
    }

    fn of(name: &str, ip: IpAddr, point_to_point: bool) -> Self {
        if ip.is_loopback() {
            Self::Loopback
        } else if is_virtual_name(name) {
            Self::Virtual
        } else if point_to_point || TUNNEL_NAMES.iter().any(|prefix| name.starts_with(prefix)) {
            Self::Tunnel
        } else {
            Self::Network
        }
    }
}

impl HostAddress {
    /// Whether `ip` lies in the subnet of this address.
    pub fn covers(&self, ip: IpAddr) -> bool {
        match (self.ip, unmapped(ip)) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let host_bits = 32_u32.saturating_sub(self.prefix.into());
                (u64::from(own.to_bits()) >> host_bits) == (u64::from(other.to_bits()) >> host_bits)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let host_bits = 128_u32.saturating_sub(self.prefix.into());
                let network = |ip: u128| ip.checked_shr(host_bits).unwrap_or(0);
                network(own.to_bits()) == network(other.to_bits())
            }
            _ => false,
        }
    }
}

/// The own addresses at one moment, in a fixed order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(Vec<HostAddress>);

impl Interfaces {
    /// Asks the system. It does not block on the network.
    pub fn read() -> io::Result<Self> {
        let found = get_if_addrs()?;
        let up = found.into_iter().filter(|one| matches!(one.oper_status, IfOperStatus::Up | IfOperStatus::Unknown));
        Ok(Self::new(up.map(|one| {
            let prefix = match &one.addr {
                IfAddr::V4(v4) => v4.prefixlen,
                IfAddr::V6(v6) => v6.prefixlen,
            };
            let kind = InterfaceKind::of(&one.name, one.ip(), one.is_p2p);
            HostAddress { ip: one.ip(), prefix, kind, interface: one.name }
        })))
    }

    fn new(addresses: impl Iterator<Item = HostAddress>) -> Self {
        let mut addresses: Vec<HostAddress> = addresses.filter(|address| is_unicast(address.ip)).collect();
        // in a fixed order, so that two readings can be compared
        addresses.sort();
        addresses.dedup();
        addresses.truncate(MAX_ADDRESSES);
        Self(addresses)
    }

    /// All of them, loopback and IPv6 link-local ones too.
    pub fn all(&self) -> &[HostAddress] {
        &self.0
    }

    /// Those that a node may tell to others: without link-local ones, which mean nothing elsewhere without their zone, and
    /// without bridges. Loopback ones only if asked for: for nodes on one machine.
    pub fn candidates(&self, loopback: bool) -> impl Iterator<Item = &HostAddress> {
        self.0.iter().filter(move |address| match address.kind {
            InterfaceKind::Loopback => loopback,
            InterfaceKind::Virtual => false,
            InterfaceKind::Network | InterfaceKind::Tunnel => !is_link_local(address.ip),
        })
    }

    /// Whether `ip` is in the subnet of a network card of ours. Bridges do not count: every machine with Docker has the
    /// same.
    pub fn same_subnet(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|address| {
            let real = matches!(address.kind, InterfaceKind::Network | InterfaceKind::Loopback);
            real && address.covers(ip)
        })
    }

    /// Whether this is an address of ours.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|address| address.ip == unmapped(ip))
    }

    /// Where a gateway that maps ports may be: what the system's routes say, where they can be read (Linux); else the
    /// first address of each private subnet, which is where home routers are.
    pub fn gateways(&self) -> Vec<Ipv4Addr> {
        let mut routed: Vec<_> = default_routes().into_iter().map(|(gateway, _)| gateway).collect();
        routed.truncate(MAX_GATEWAYS);
        if !routed.is_empty() {
            return routed;
        }
        let real = self.0.iter().filter(|one| one.kind == InterfaceKind::Network && !is_virtual_range(one.ip));
        let guesses = real.filter_map(|one| match one.ip {
            IpAddr::V4(v4) if v4.is_private() && (16..=30).contains(&one.prefix) => {
                let host_bits = 32 - u32::from(one.prefix);
                Some(Ipv4Addr::from_bits(((v4.to_bits() >> host_bits) << host_bits) + 1))
            }
            _ => None,
        });
        guesses.filter(|gateway| !self.is_own((*gateway).into())).take(MAX_GATEWAYS).collect()
    }
}

impl Interfaces {
    /// The gateways of the default routes that are used: those with the lowest metric. Empty where routes cannot be read.
    pub fn gateways_in_use() -> Vec<Ipv4Addr> {
        used(&default_routes())
    }
}

fn used(routes: &[(Ipv4Addr, u32)]) -> Vec<Ipv4Addr> {
    let best = routes.iter().map(|(_, metric)| *metric).min();
    let mut used: Vec<_> =
        routes.iter().filter(|(_, metric)| Some(*metric) == best).map(|(gateway, _)| *gateway).collect();
    used.truncate(MAX_GATEWAYS);
    used
}

fn default_routes() -> Vec<(Ipv4Addr, u32)> {
    std::fs::read_to_string("/proc/net/route").map(|table| default_gateways(&table)).unwrap_or_default()
}

/// The gateways of default routes (destination and mask 0), with the metric, in the form of Linux' `/proc/net/route`: hexadecimal
/// numbers in the byte order of the machine, and the metric in decimal.
fn default_gateways(table: &str) -> Vec<(Ipv4Addr, u32)> {
    let gateway = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (destination, gateway) = (fields.next()?, fields.next()?);
        let (metric, mask) = (fields.nth(3)?.parse().ok()?, fields.next()?);
        let number = u32::from_str_radix(gateway, 16).ok().filter(|number| *number != 0)?;
        (destination == "00000000" && mask == "00000000").then(|| (Ipv4Addr::from(number.to_ne_bytes()), metric))
    };
    let mut found: Vec<_> = table.lines().skip(1).filter_map(gateway).take(MAX_ADDRESSES).collect();
    found.dedup();
    found
}

/// Whether an interface of this name is a bridge to containers or virtual machines.
pub(super) fn is_virtual_name(name: &str) -> bool {
    VIRTUAL_NAMES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_unicast(ip: IpAddr) -> bool {
    !(ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST))
}

/// RFC 3927 and RFC 4291 section 2.5.6.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn unmapped(ip: IpAddr) -> IpAddr {
    crate::addr::unmapped((ip, 0).into()).ip()
}

/// A machine with more has containers by the hundred; the first suffice to be reached.
const MAX_ADDRESSES: usize = 256;
const MAX_GATEWAYS: usize = 4;

/// How Docker, Podman, libvirt, LXC, Kubernetes' networks, VirtualBox and VMware name their bridges, and the machine's ends of
/// the cables to containers. A plain `br0` is left out: people bridge real cards with it.
const VIRTUAL_NAMES: [&str; 14] = [
    "docker",
    "br-",
    "podman",
    "cni",
    "virbr",
    "lxcbr",
    "lxdbr",
    "veth",
    "vnet",
    "flannel",
    "cali",
    "vboxnet",
    "vmnet",
    "vEthernet",
];
/// WireGuard, OpenVPN, macOS, Tailscale, ZeroTier, PPP.
const TUNNEL_NAMES: [&str; 6] = ["wg", "tun", "utun", "tailscale", "zt", "ppp"];

#[cfg(test)]
mod tests {
    use super::*;

    fn address(interface: &str, ip: &str, prefix: u8) -> HostAddress {
        let ip = ip.parse().unwrap();
        HostAddress { interface: interface.into(), ip, prefix, kind: InterfaceKind::of(interface, ip, false) }
    }

    fn a_machine() -> Interfaces {
        Interfaces::new(
            [
                address("lo", "127.0.0.1", 8),
                address("lo", "::1", 128),
                address("eth0", "192.168.1.7", 24),
                address("eth0", "2001:db8::7", 64),
                address("eth0", "fe80::7", 64),
                address("docker0", "172.17.0.1", 16),
                address("wg0", "10.9.0.2", 24),
                address("eth0", "224.0.0.1", 4),
            ]
            .into_iter(),
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn interfaces_by_name_and_address() {
        for (name, ip_text, kind) in [
            ("lo", "127.0.0.1", InterfaceKind::Loopback),
            ("eth0", "172.17.0.2", InterfaceKind::Network),
            ("br-0123456789ab", "172.18.0.1", InterfaceKind::Virtual),
            ("br0", "192.168.1.7", InterfaceKind::Network),
            ("utun4", "10.0.0.1", InterfaceKind::Tunnel),
        ] {
            assert_eq!(InterfaceKind::of(name, ip(ip_text), false), kind, "{name}");
        }
        assert_eq!(InterfaceKind::of("eth1", ip("10.0.0.1"), true), InterfaceKind::Tunnel);
    }

    #[test]
    fn what_is_told_to_others() {
        let told = |loopback| a_machine().candidates(loopback).map(|one| one.ip).collect::<Vec<_>>();
        assert_eq!(told(false), [ip("192.168.1.7"), ip("2001:db8::7"), ip("10.9.0.2")]);
        assert_eq!(told(true).len(), 5);
    }

    #[test]
    fn subnets() {
        let machine = a_machine();
        for near in ["192.168.1.255", "::ffff:192.168.1.1", "2001:db8::ffff", "127.9.9.9"] {
            assert!(machine.same_subnet(ip(near)), "{near}");
        }
        for far in ["192.168.2.7", "2001:db8:0:1::7", "172.17.0.2", "10.9.0.3", "8.8.8.8"] {
            assert!(!machine.same_subnet(ip(far)), "{far}");
        }
        assert!(address("eth0", "192.0.2.1", 0).covers(ip("8.8.8.8")));
        assert!(address("eth0", "2001:db8::1", 0).covers(ip("::9")));
        assert!(!address("eth0", "192.0.2.1", 32).covers(ip("192.0.2.2")));
        assert!(machine.is_own(ip("::ffff:192.168.1.7")) && !machine.is_own(ip("192.168.1.8")));
    }

    #[test]
    fn gateways_from_routes() {
        let big = |ip: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(ip));
        let header = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n";
        let table = format!(
            "{header}eth0\t00000000\t{}\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth0\t{}\t00000000\t0001\t0\t0\t100\t{}\t0\t0\t0\ngarbage\n\neth0 00000000 zz 3 0 0 1 00000000\n",
            big([192, 168, 1, 1]),
            big([192, 168, 1, 0]),
            big([255, 255, 255, 0]),
        );
        assert_eq!(default_gateways(&table), [(Ipv4Addr::new(192, 168, 1, 1), 100)]);
        assert_eq!(default_gateways(""), []);
    }

    #[test]
    fn of_several_default_routes_those_with_the_lowest_metric_are_used() {
        let [wifi, cable, lte] = [1, 2, 3].map(|n| Ipv4Addr::new(192, 168, n, 1));
        assert_eq!(used(&[(wifi, 600), (cable, 100), (lte, 1_000)]), [cable]);
        assert_eq!(used(&[(wifi, 100), (cable, 100)]), [wifi, cable]);
        assert_eq!(used(&[]), [] as [Ipv4Addr; 0]);
    }

    #[test]
    fn this_machine_has_a_loopback_address() {
        let machine = Interfaces::read().unwrap();
        assert!(machine.all().iter().any(|one| one.kind == InterfaceKind::Loopback && one.covers(one.ip)));
        assert_eq!(machine, Interfaces::read().unwrap());
    }
}
