//! A port that the gateway opens for us, by PCP, NAT-PMP or UPnP, for as long as it is wanted.

mod upnp;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::{watch, Notify};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{timeout, Instant};

use super::gateway::{
    decode_nat_pmp, decode_nat_pmp_address, decode_pcp, encode_nat_pmp, encode_pcp, server_of, MapAnswer, MapRequest,
    Mapped, NAT_PMP_ADDRESS_REQUEST,
};
use super::interfaces::Interfaces;
use crate::config::HostConfig;

/// A mapping that is asked for, renewed, and given back at the end. Without a gateway that maps ports it stays `None`, and
/// asks again every [`HostConfig::mapping_retry`].
pub struct PortMapping {
    external: watch::Receiver<Option<SocketAddr>>,
    again: Arc<Notify>,
    closing: watch::Sender<bool>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl PortMapping {
    /// Starts inside a tokio runtime. `gateways`: where PCP and NAT-PMP servers are; none: where the system's routes lead, and
    /// UPnP is tried there too.
    pub fn start(local_port: u16, gateways: Vec<SocketAddr>, config: &HostConfig) -> Self {
        let (sender, external) = watch::channel(None);
        let (closing, closed) = watch::channel(false);
        let again = Arc::new(Notify::new());
        let mut nonce = [0; 12];
        // RFC 6887 section 11.2 wants it random; without randomness zero works too, for a gateway without attackers near it
        let _ = getrandom::fill(&mut nonce);
        let keeper = Keeper { local_port, gateways, nonce, config: config.clone(), external: sender, lease: None };
        let task = tokio::spawn(keeper.run(again.clone(), closed));
        Self { external, again, closing, task: Mutex::new(Some(task)) }
    }

    /// The external address, as it changes. It may be that of a gateway behind another NAT: see `is_nested`.
    pub fn external(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.external.clone()
    }

    /// Asks at once: after a change of network.
    pub fn refresh(&self) {
        self.again.notify_one();
    }

    /// Gives the port back and waits for that, for as long as a question to the gateway takes.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// Who keeps a mapping.
enum Via {
    Pcp(SocketAddr),
    NatPmp(SocketAddr),
    Upnp(Box<upnp::Device>),
}

struct Lease {
    via: Via,
    external: SocketAddrV4,
    until: Instant,
}

struct Keeper {
    local_port: u16,
    gateways: Vec<SocketAddr>,
    nonce: [u8; 12],
    config: HostConfig,
    external: watch::Sender<Option<SocketAddr>>,
    lease: Option<Lease>,
}

impl Keeper {
    async fn run(mut self, again: Arc<Notify>, mut closed: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.ask() => {}
                _ = closed.wait_for(|closed| *closed) => break,
            }
            let external = self.lease.as_ref().map(|lease| SocketAddr::V4(lease.external));
            self.external.send_if_modified(|told| std::mem::replace(told, external) != external);
            let pause = match &self.lease {
                Some(lease) => (lease.until.saturating_duration_since(Instant::now()) / 2).max(SHORTEST_PAUSE),
                None => self.config.mapping_retry,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = again.notified() => {}
                // also when the owner is gone
                _ = closed.wait_for(|closed| *closed) => break,
            }
        }
        if let Some(lease) = self.lease.take() {
            self.external.send_replace(None);
            self.give_back(lease).await;
        }
    }

    /// Makes or renews the mapping. A lease outlives a silent gateway until it runs out.
    async fn ask(&mut self) {
        let renewed = match &self.lease {
            // no other search for who is known; but who does not answer may be that of a network that was left
            Some(Lease { via: Via::Upnp(device), .. }) => self.ask_upnp(device).await,
            _ => None,
        };
        let found = match renewed {
            Some(lease) => Some(lease),
            None => self.find().await,
        };
        match found {
            Some(lease) => self.lease = Some(lease),
            None => drop(self.lease.take_if(|lease| lease.until <= Instant::now())),
        }
    }

    /// The search by UPnP takes its time meanwhile, but nothing is mapped by it before the others have failed: a gateway that
    /// speaks all three would open two ports, and one of them would have to be given back.
    async fn find(&self) -> Option<Lease> {
        // ends with this function
        let mut search = JoinSet::new();
        let mut gateways = self.gateways.clone();
        if gateways.is_empty() {
            let routed = Interfaces::read().unwrap_or_default().gateways();
            gateways.extend(routed.iter().map(|gateway| server_of(*gateway)));
            if !routed.is_empty() {
                search.spawn(upnp::search(routed, self.config.upnp_patience));
            }
        }
        for gateway in gateways {
            if let Some(lease) = self.ask_gateway(gateway).await {
                return Some(lease);
            }
        }
        let device = search.join_next().await?.ok()??;
        self.ask_upnp(&device).await
    }

    /// PCP, and where it is not spoken NAT-PMP, which both have the same port (RFC 6887 appendix A). That NAT-PMP is there is asked at
    /// the same time, so that a gateway that says nothing is waited for once.
    async fn ask_gateway(&self, gateway: SocketAddr) -> Option<Lease> {
        let (socket, old_socket) = (connect(gateway).await?, connect(gateway).await?);
        let request = self.request(&socket, self.config.mapping_lifetime)?;
        let question = encode_pcp(&request);
        let asked = exchange(&socket, &question, &self.config, |bytes| decode_pcp(bytes, &request));
        let address = exchange(&old_socket, &NAT_PMP_ADDRESS_REQUEST, &self.config, decode_nat_pmp_address);
        let mapped = async {
            match asked.await {
                Some(MapAnswer::Mapped(mapped)) => Err(mapped),
                _ => Ok(()),
            }
        };
        // done early with what PCP has mapped
        let ip = match tokio::try_join!(mapped, async { Ok(address.await) }) {
            Err(mapped) => return self.lease(Via::Pcp(gateway), mapped.external_ip?, mapped),
            Ok(((), ip)) => ip?,
        };
        let question = encode_nat_pmp(&request);
        let answer = exchange(&old_socket, &question, &self.config, |bytes| decode_nat_pmp(bytes, &request)).await?;
        let MapAnswer::Mapped(mapped) = answer else { return None };
        self.lease(Via::NatPmp(gateway), ip, mapped)
    }

    async fn ask_upnp(&self, device: &upnp::Device) -> Option<Lease> {
        let wanted = self.lease.as_ref().map_or(self.local_port, |lease| lease.external.port());
        let (lifetime, patience) = (self.config.mapping_lifetime, self.config.upnp_patience);
        let external = upnp::map(device, self.local_port, wanted, lifetime, patience).await?;
        let mapped = Mapped { external_port: external.port(), external_ip: None, lifetime };
        self.lease(Via::Upnp(Box::new(device.clone())), *external.ip(), mapped)
    }

    fn request(&self, socket: &UdpSocket, lifetime: Duration) -> Option<MapRequest> {
        let IpAddr::V4(client) = socket.local_addr().ok()?.ip() else { return None };
        let suggested = self.lease.as_ref().map(|lease| lease.external);
        Some(MapRequest { nonce: self.nonce, client, internal: self.local_port, suggested, lifetime })
    }

    fn lease(&self, via: Via, ip: Ipv4Addr, mapped: Mapped) -> Option<Lease> {
        let external = SocketAddrV4::new(ip, mapped.external_port);
        let lifetime = mapped.lifetime.min(self.config.mapping_lifetime);
        // a gateway without a link upwards says 0.0.0.0
        (crate::path::sendable(external.into()) && !lifetime.is_zero()).then(|| {
            tracing::debug!(by = via.name(), %external, ?lifetime, "port mapped");
            Lease { via, external, until: Instant::now() + lifetime }
        })
    }

    async fn give_back(&self, lease: Lease) {
        let gateway = match lease.via {
            Via::Pcp(gateway) | Via::NatPmp(gateway) => gateway,
            Via::Upnp(device) => {
                return upnp::give_back(&device, lease.external.port(), self.config.upnp_patience).await;
            }
        };
        let Some(socket) = connect(gateway).await else { return };
        let Some(request) = self.request(&socket, Duration::ZERO) else { return };
        if matches!(lease.via, Via::Pcp(_)) {
            let request = MapRequest { suggested: None, ..request };
            exchange(&socket, &encode_pcp(&request), &self.config, |bytes| decode_pcp(bytes, &request)).await;
        } else {
            exchange(&socket, &encode_nat_pmp(&request), &self.config, |bytes| decode_nat_pmp(bytes, &request)).await;
        }
    }
}

impl Via {
    const fn name(&self) -> &'static str {
        match self {
            Self::Pcp(_) => "PCP",
            Self::NatPmp(_) => "NAT-PMP",
            Self::Upnp(_) => "UPnP",
        }
    }
}

async fn connect(gateway: SocketAddr) -> Option<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
    // from others than the gateway nothing is received
    socket.connect(gateway).await.ok()?;
    Some(socket)
}

/// Asks until `read` finds an answer, each time waiting twice as long.
async fn exchange<T>(
    socket: &UdpSocket,
    question: &[u8],
    config: &HostConfig,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Option<T> {
    let mut pause = config.gateway_retransmit;
    for _ in 0..config.gateway_attempts {
        // refused: nobody listens at the gateway's port (ICMP), and asking again changes nothing
        socket.send(question).await.ok()?;
        let answer = timeout(pause, async {
            let mut buffer = [0; LARGEST_ANSWER];
            loop {
                let length = socket.recv(&mut buffer).await.ok()?;
                if let Some(answer) = read(buffer.get(..length).unwrap_or_default()) {
                    return Some(answer);
                }
            }
        });
        match answer.await {
            Ok(answer) => return answer,
            Err(_) => pause *= 2,
        }
    }
    None
}

/// RFC 6887 section 7.
const LARGEST_ANSWER: usize = 1_100;
/// RFC 6887 section 11.2.1: renewals are at least this far apart.
const SHORTEST_PAUSE: Duration = Duration::from_secs(4);

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> HostConfig {
        HostConfig { gateway_retransmit: Duration::from_millis(100), ..Default::default() }
    }

    /// A gateway that maps each port to itself plus 1000 at 192.0.2.1, and tells the lifetimes that it was asked for.
    async fn gateway(pcp: bool) -> (SocketAddr, watch::Receiver<Vec<u32>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (asked, receiver) = watch::channel(vec![]);
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
                let answer = match buffer[0] {
                    2 if !pcp => vec![0, 0x81, 0, 1, 0, 0, 0, 9],
                    2 => {
                        asked.send_modify(|all| all.push(u32::from_be_bytes(buffer[4..8].try_into().unwrap())));
                        let port = u16::from_be_bytes([buffer[40], buffer[41]]) + 1_000;
                        let mut out = buffer[..length].to_vec();
                        out[1] = 0x81;
                        out[8..24].fill(0);
                        out[42..44].copy_from_slice(&port.to_be_bytes());
                        out[44..60].copy_from_slice(&Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets());
                        out
                    }
                    0 if buffer[1] == 0 => vec![0, 0x80, 0, 0, 0, 0, 0, 9, 192, 0, 2, 1],
                    _ => {
                        asked.send_modify(|all| all.push(u32::from_be_bytes(buffer[8..12].try_into().unwrap())));
                        let port = u16::from_be_bytes([buffer[4], buffer[5]]) + 1_000;
                        let mut out = vec![0, 0x81, 0, 0, 0, 0, 0, 9, buffer[4], buffer[5]];
                        out.extend_from_slice(&port.to_be_bytes());
                        out.extend_from_slice(&buffer[8..12]);
                        out
                    }
                };
                socket.send_to(&answer, from).await.unwrap();
            }
        });
        (address, receiver)
    }

    #[tokio::test]
    async fn a_port_is_mapped_and_given_back() {
        for pcp in [true, false] {
            let (address, asked) = gateway(pcp).await;
            let mapping = PortMapping::start(4_433, vec![address], &config());
            let mut external = mapping.external();
            let found = *external.wait_for(Option::is_some).await.unwrap();
            assert_eq!(found, Some("192.0.2.1:5433".parse().unwrap()), "PCP {pcp}");
            mapping.close().await;
            assert_eq!(*external.borrow(), None);
            assert_eq!(*asked.borrow(), [7_200, 0]);
        }
    }

    #[tokio::test]
    async fn it_is_renewed_on_request() {
        let (address, mut asked) = gateway(true).await;
        let mapping = PortMapping::start(4_433, vec![address], &config());
        mapping.external().wait_for(Option::is_some).await.unwrap();
        mapping.refresh();
        asked.wait_for(|asked| asked.len() == 2).await.unwrap();
        mapping.close().await;
    }

    #[tokio::test]
    async fn nothing_listens_at_the_gateway() {
        let deaf = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mapping = PortMapping::start(4_433, vec![deaf.local_addr().unwrap()], &config());
        let mut buffer = [0; 64];
        let (length, _) = deaf.recv_from(&mut buffer).await.unwrap();
        assert_eq!((length, buffer[0]), (60, 2), "PCP first");
        assert_eq!(*mapping.external().borrow(), None);
        mapping.close().await;
    }
}
