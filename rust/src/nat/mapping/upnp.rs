//! A port of a gateway that speaks UPnP (Internet Gateway Device, WANIPConnection), which is all that many routers at home do.
//!
//! Anybody in the local network can answer a search. Only a gateway that our routes lead to is listened to, and the crate
//! takes no URLs but those at the address that answered, 1 MiB of an answer and 64 levels of XML.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use igd_next::aio::tokio::{search_gateway, Tokio};
use igd_next::{AddPortError, GatewayIpVersion, PortMappingProtocol, SearchOptions};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A gateway that answered.
pub(super) type Device = igd_next::aio::Gateway<Tokio>;

/// Searches by multicast, as it is meant, and asks the gateways themselves, where multicast is lost (wireless networks).
pub(super) async fn search(gateways: Vec<Ipv4Addr>, patience: Duration) -> Option<Device> {
    let mut searches = JoinSet::new();
    let asked = std::iter::once(MULTICAST).chain(gateways.iter().copied());
    for address in asked.map(|ip| SocketAddr::from((ip, PORT))) {
        let mut options = SearchOptions::default();
        options.broadcast_address = address;
        options.timeout = Some(patience);
        options.single_search_timeout = Some(patience);
        options.gateway_ip_version = GatewayIpVersion::V4;
        searches.spawn(search_gateway(options));
    }
    while let Some(found) = searches.join_next().await {
        if let Ok(Ok(device)) = found {
            if gateways.iter().any(|gateway| IpAddr::V4(*gateway) == device.addr.ip()) {
                return Some(device);
            }
            tracing::debug!(address = %device.addr, "UPnP: this is no gateway of ours");
        }
    }
    None
}

/// Makes or renews a mapping: to `wanted` if that is free.
pub(super) async fn map(
    device: &Device,
    internal: u16,
    wanted: u16,
    lifetime: Duration,
    patience: Duration,
) -> Option<SocketAddrV4> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
    let mapped = timeout(patience, async {
        let IpAddr::V4(ip) = device.get_external_ip().await.ok()? else { return None };
        let local = SocketAddr::new(source_towards(device.addr).await?, internal);
        // a lease without an end is not asked for where a gateway has no other: who is killed would leave the port open for ever
        let port = match device.add_port(UDP, wanted, local, seconds, NAME).await {
            Ok(()) => wanted,
            Err(AddPortError::PortInUse) => device.add_any_port(UDP, local, seconds, NAME).await.ok()?,
            Err(error) => {
                tracing::debug!(gateway = %device.addr, %error, "UPnP: the port is not mapped");
                return None;
            }
        };
        Some(SocketAddrV4::new(ip, port))
    });
    mapped.await.ok().flatten()
}

pub(super) async fn give_back(device: &Device, external: u16, patience: Duration) {
    let _ = timeout(patience, device.remove_port(UDP, external)).await;
}

async fn source_towards(gateway: SocketAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    socket.connect(gateway).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

const UDP: PortMappingProtocol = PortMappingProtocol::UDP;
/// What the owner of the router sees.
const NAME: &str = "keynet";
/// UPnP Device Architecture 1.0 section 1.
const MULTICAST: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const PORT: u16 = 1_900;
