//! Neighbours on the same LAN, by mDNS (RFC 6762) and DNS-SD (RFC 6763): each node is a service `<node id>._keynet._udp.local.`
//! with its UDP port and addresses. Names and addresses in it are claims like any other: the TLS handshake proves them.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mdns_sd::{IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::interfaces::{is_virtual_name, Interfaces};
use crate::addr::NodeId;
use crate::config::HostConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::path::sendable;

/// Who is there, and where. A table and not a stream of events: whoever looks late has missed nothing, and a flood of
/// announcements fills no queue.
pub type Neighbours = Arc<BTreeMap<NodeId, Vec<SocketAddr>>>;

/// Announces a node on the LAN and listens for others. Dropping it stops both, without the good-byes that `close` says.
pub struct Lan {
    daemon: ServiceDaemon,
    announced: Vec<String>,
    neighbours: watch::Receiver<Neighbours>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Lan {
    /// Starts inside a tokio runtime. `nodes` are the names of this node, the current one and those before a rotation.
    pub fn start(nodes: &[NodeId], port: u16, config: &HostConfig) -> Result<Self> {
        Self::start_on(MDNS_PORT, nodes, port, config)
    }

    fn start_on(mdns_port: u16, nodes: &[NodeId], port: u16, config: &HostConfig) -> Result<Self> {
        let daemon = ServiceDaemon::new_with_port(mdns_port).map_err(failed)?;
        // what others on a bridge of this machine are told, they can find out by its addresses
        let bridges = IfPredicate::new(|interface| is_virtual_name(&interface.name));
        daemon.disable_interface(IfKind::Predicate(bridges)).map_err(failed)?;
        let events = daemon.browse(SERVICE).map_err(failed)?;
        let mut announced = vec![];
        for node in nodes.iter().take(MAX_NAMES) {
            let service = announcement(*node, port)?;
            announced.push(service.get_fullname().to_owned());
            daemon.register(service).map_err(failed)?;
        }
        let (sender, neighbours) = watch::channel(Neighbours::default());
        let table = Table::new(nodes, config);
        let task = tokio::spawn(listen(events, table, sender));
        Ok(Self { daemon, announced, neighbours, task: Mutex::new(Some(task)) })
    }

    /// The neighbours, as they come and go.
    pub fn neighbours(&self) -> watch::Receiver<Neighbours> {
        self.neighbours.clone()
    }

    /// Says good-bye and waits until the sockets are closed; in a second at most each.
    pub async fn close(&self) {
        for name in &self.announced {
            if let Ok(done) = self.daemon.unregister(name) {
                let _ = timeout(GOOD_BYE, done.recv_async()).await;
            }
        }
        if let Ok(done) = self.daemon.shutdown() {
            let _ = timeout(GOOD_BYE, done.recv_async()).await;
        }
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        // after `close` an error: it has ended
        let _ = self.daemon.shutdown();
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

async fn listen(events: Receiver<ServiceEvent>, mut table: Table, told: watch::Sender<Neighbours>) {
    while let Ok(event) = events.recv_async().await {
        let changed = match event {
            ServiceEvent::ServiceResolved(service) => {
                let interfaces = Interfaces::read().unwrap_or_default();
                table.found(&service, |ip| interfaces.same_subnet(ip))
            }
            ServiceEvent::ServiceRemoved(_, name) => table.gone(&name),
            _ => false,
        };
        if changed {
            told.send_replace(Arc::new(table.neighbours.clone()));
        }
    }
}

struct Table {
    own: HashSet<NodeId>,
    neighbours: BTreeMap<NodeId, Vec<SocketAddr>>,
    max_neighbours: usize,
    max_addresses: usize,
}

impl Table {
    fn new(own: &[NodeId], config: &HostConfig) -> Self {
        Self {
            own: own.iter().copied().collect(),
            neighbours: BTreeMap::new(),
            max_neighbours: config.max_neighbours,
            max_addresses: config.max_neighbour_addresses,
        }
    }

    /// Whether that is news. Addresses outside of the own subnets are dropped: an announcement must not have us send
    /// datagrams to somebody far away. In a full table there is no room for newcomers.
    fn found(&mut self, service: &ResolvedService, same_subnet: impl Fn(IpAddr) -> bool) -> bool {
        let Some(node) = node_of(service.get_fullname()).filter(|node| !self.own.contains(node)) else { return false };
        let port = service.get_port();
        let mut addresses: Vec<SocketAddr> =
            service.get_addresses().iter().map(|ip| SocketAddr::new(ip.to_ip_addr(), port)).collect();
        // link-local ones would need the zone of the interface on which they came
        let usable = |address: &SocketAddr| {
            let ip = address.ip();
            let link_local = matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
            sendable(*address) && !link_local && same_subnet(ip)
        };
        addresses.retain(usable);
        addresses.sort();
        addresses.truncate(self.max_addresses);
        let known = self.neighbours.contains_key(&node);
        if addresses.is_empty() {
            return self.neighbours.remove(&node).is_some();
        }
        if !known && self.neighbours.len() >= self.max_neighbours {
            return false;
        }
        self.neighbours.insert(node, addresses.clone()) != Some(addresses)
    }

    fn gone(&mut self, name: &str) -> bool {
        node_of(name).is_some_and(|node| self.neighbours.remove(&node).is_some())
    }
}

fn announcement(node: NodeId, port: u16) -> Result<ServiceInfo> {
    let host = format!("{node}.local.");
    let no_properties: &[(&str, &str)] = &[];
    let service = ServiceInfo::new(SERVICE, &node.to_string(), &host, "", port, no_properties).map_err(failed)?;
    Ok(service.enable_addr_auto())
}

/// The first label of a service's name, if the rest is ours.
fn node_of(name: &str) -> Option<NodeId> {
    let (label, rest) = name.split_once('.')?;
    // DNS compares without case
    rest.eq_ignore_ascii_case(SERVICE).then(|| label.parse().ok())?
}

fn failed(error: mdns_sd::Error) -> Error {
    Error::new(Reason::BindFailed, Stage::Setup, format!("mDNS: {error}"))
}

/// RFC 6335 section 5.1: at most 15 characters.
const SERVICE: &str = "_keynet._udp.local.";
/// RFC 6762 section 5.
const MDNS_PORT: u16 = 5_353;
/// As many as a chain has certificates.
const MAX_NAMES: usize = 16;
const GOOD_BYE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_public_key([byte.wrapping_add(1); 32])
    }

    fn service(node: NodeId, port: u16, ips: &[&str]) -> ResolvedService {
        let ips = ips.join(",");
        let host = format!("{node}.local.");
        let none: &[(&str, &str)] = &[];
        ServiceInfo::new(SERVICE, &node.to_string(), &host, &ips[..], port, none).unwrap().as_resolved_service()
    }

    fn near(ip: IpAddr) -> bool {
        ip.to_string().starts_with("192.168.1.")
    }

    #[test]
    fn names_of_nodes_and_of_others() {
        let id = node(7).to_string();
        assert_eq!(node_of(&format!("{id}.{SERVICE}")), Some(node(7)));
        assert_eq!(node_of(&format!("{}.{}", id.to_uppercase(), SERVICE.to_uppercase())), Some(node(7)));
        for name in ["", "x", SERVICE, &format!("printer.{SERVICE}"), &format!("{id}._http._tcp.local."), &id] {
            assert_eq!(node_of(name), None, "{name:?}");
        }
    }

    #[test]
    fn neighbours_come_move_and_go() {
        let mut table = Table::new(&[node(1)], &HostConfig::default());
        let here = service(node(2), 4_433, &["192.168.1.9", "10.0.0.9", "224.0.0.1"]);
        assert!(table.found(&here, near));
        assert_eq!(table.neighbours[&node(2)], ["192.168.1.9:4433".parse().unwrap()]);
        assert!(!table.found(&here, near), "no news");
        assert!(table.found(&service(node(2), 4_434, &["192.168.1.9"]), near));
        assert!(!table.found(&service(node(1), 4_433, &["192.168.1.8"]), near), "that is us");
        assert!(!table.found(&service(node(3), 4_433, &["10.0.0.9"]), near), "not here");
        assert!(!table.gone(&format!("{}.{SERVICE}", node(3))));
        assert!(table.gone(&format!("{}.{SERVICE}", node(2))));
        assert!(table.neighbours.is_empty());
    }

    #[test]
    fn a_flood_fills_no_table() {
        let config = HostConfig { max_neighbours: 3, max_neighbour_addresses: 2, ..Default::default() };
        let mut table = Table::new(&[], &config);
        let many: Vec<String> = (1..9).map(|n| format!("192.168.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for n in 0..9 {
            assert_eq!(table.found(&service(node(n), 4_433, &many), near), n < 3);
        }
        assert!(table.neighbours.values().all(|addresses| addresses.len() == 2));
        assert!(table.found(&service(node(0), 1, &many), near), "those that are known may still move");
    }

    /// Whether a datagram to the group comes back on the loopback interface.
    fn multicast_works() -> bool {
        let loopback = std::net::Ipv4Addr::LOCALHOST;
        let attempt = || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            socket.bind(&SocketAddr::from(([0, 0, 0, 0], 0)).into())?;
            socket.set_multicast_if_v4(&loopback)?;
            let socket = std::net::UdpSocket::from(socket);
            socket.join_multicast_v4(&std::net::Ipv4Addr::new(224, 0, 0, 251), &loopback)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send_to(b"hello", (std::net::Ipv4Addr::new(224, 0, 0, 251), socket.local_addr()?.port()))?;
            socket.recv(&mut [0; 8])
        };
        attempt().is_ok()
    }

    /// On a port of its own, so that it meets no mDNS of this machine.
    #[tokio::test]
    async fn two_nodes_of_one_machine_find_each_other() {
        // where the system lets no multicast through there is nothing to test
        if !multicast_works() {
            return;
        }
        let config = HostConfig::default();
        let [first, second] =
            [(1, 4_001), (2, 4_002)].map(|(byte, port)| Lan::start_on(15_353, &[node(byte)], port, &config).unwrap());
        let mut seen = first.neighbours();
        let found = timeout(Duration::from_secs(60), seen.wait_for(|seen| seen.contains_key(&node(2)))).await;
        assert!(found.unwrap().unwrap()[&node(2)].iter().all(|address| address.port() == 4_002));
        second.close().await;
        seen.wait_for(|seen| seen.is_empty()).await.unwrap();
        first.close().await;
    }
}
