//! Finding nodes: what the proxy tells the rendezvous client and the local network, and what it hears from them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{broadcast, Semaphore};
use tokio::time::{timeout, Instant};

use super::events::Event;
use super::lifecycle::Phase;
use super::registry::PacketSize;
use super::{AccessRequest, Allow, Proxy, ProxyConfig, Shared};
use crate::addr::NodeId;
use crate::error::{Error, Result};
use crate::nat::{Lan, Neighbours};
use crate::path::{Candidate, PathView, Traffic};
use crate::peer::LastDial;
use crate::relay::RelayStatus;
use crate::rendezvous::{Admitted, Gate, Learned, OwnAddress, Rendezvous, RendezvousEvent, Report, StationStatus};
use crate::tls::PeerIdentity;

/// What finds other nodes for this one; both parts are optional.
#[derive(Default)]
pub(super) struct Finding {
    rendezvous: Option<Rendezvous>,
    lan: Option<Lan>,
}

/// A node as this one sees it now.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub node: NodeId,
    pub paths: Vec<PathView>,
    pub connections: usize,
    /// Payload of the live connections.
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Bytes of datagrams, by whether a relay carried them.
    pub traffic: Traffic,
}

/// How this node stands in the network.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    pub candidates: Vec<Candidate>,
    /// Where others see this node.
    pub own_addresses: Vec<OwnAddress>,
    pub profile: Option<Learned>,
    pub rendezvous: Vec<StationStatus>,
    pub relays: Vec<RelayStatus>,
    pub peers: Vec<PeerStatus>,
}

/// What is known of a node, and how the last attempt to reach it went.
#[derive(Clone, Debug)]
pub struct Explanation {
    pub node: NodeId,
    pub known_addresses: Vec<String>,
    pub paths: Vec<PathView>,
    pub meeting: Option<Report>,
    /// What its live connections have found out.
    pub packet_size: Option<PacketSize>,
    /// The last sign of life.
    pub heard: Option<Instant>,
    pub last_dial: Option<LastDial>,
    pub last_error: Option<Error>,
}

impl Finding {
    pub(super) fn start(shared: &Arc<Shared>, config: &ProxyConfig) -> Result<Self> {
        let nodes = shared.peers.identity().node_ids();
        let lan = match config.lan {
            true => Some(Lan::start(&nodes, shared.peers.net.local_address().port(), &config.rendezvous.host)?),
            false => None,
        };
        let options = &config.rendezvous;
        let wanted = !(options.servers.is_empty() && options.stun.is_empty() && options.relays.is_empty());
        let rendezvous = wanted.then(|| {
            let stations = options.servers.iter().map(|server| server.node).collect();
            let door =
                Door { shared: Arc::downgrade(shared), stations, questions: Arc::new(Semaphore::new(MAX_QUESTIONS)) };
            Rendezvous::start(shared.peers.clone(), config.rendezvous.clone(), Arc::new(door))
        });
        if let Some(rendezvous) = &rendezvous {
            shared.lifecycle.spawn_loop(watch_rendezvous(shared.clone(), rendezvous.subscribe()));
        }
        if let Some(lan) = &lan {
            shared.lifecycle.spawn_loop(watch_neighbours(shared.clone(), lan.neighbours()));
        }
        Ok(Self { rendezvous, lan })
    }

    /// The node has another key.
    pub(super) fn renew(&self) {
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous.renew();
        }
    }

    pub(super) async fn close(&self) {
        if let Some(rendezvous) = &self.rendezvous {
            rendezvous.close().await;
        }
        if let Some(lan) = &self.lan {
            lan.close().await;
        }
    }
}

impl Proxy {
    /// How this node stands in the network: its addresses, its NAT, its rendezvous nodes and its peers.
    pub fn status(&self) -> NodeStatus {
        let shared = self.shared();
        let finding = shared.finding.get();
        let rendezvous = finding.and_then(|finding| finding.rendezvous.as_ref());
        let mut traffic: HashMap<NodeId, (usize, u64, u64)> = HashMap::new();
        for info in shared.registry.live() {
            let entry = traffic.entry(info.node).or_default();
            *entry = (entry.0 + 1, entry.1 + info.bytes_in, entry.2 + info.bytes_out);
        }
        let mut nodes = shared.peers.net.nodes();
        nodes.sort_unstable();
        let peer = |node: NodeId| {
            let (connections, bytes_in, bytes_out) = traffic.get(&node).copied().unwrap_or_default();
            let (paths, traffic) = (shared.peers.net.paths(&node), shared.peers.net.traffic(&node));
            PeerStatus { node, paths, connections, bytes_in, bytes_out, traffic }
        };
        NodeStatus {
            candidates: rendezvous.map(Rendezvous::candidates).unwrap_or_default(),
            own_addresses: rendezvous.map(Rendezvous::own_addresses).unwrap_or_default(),
            profile: rendezvous.and_then(Rendezvous::profile),
            rendezvous: rendezvous.map(Rendezvous::status).unwrap_or_default(),
            relays: rendezvous.map(Rendezvous::relays).unwrap_or_default(),
            peers: nodes.into_iter().map(peer).collect(),
        }
    }

    /// What was tried to reach a node, what answered, and which path is in use.
    pub fn explain(&self, node: &NodeId) -> Explanation {
        let peers = &self.shared().peers;
        let rendezvous = self.shared().finding.get().and_then(|finding| finding.rendezvous.as_ref());
        let leaf = peers.leaf(node);
        let report = |node: &NodeId| rendezvous.and_then(|rendezvous| rendezvous.report(node));
        let mut known_addresses = peers.named_addresses(node);
        known_addresses.extend(peers.neighbour_addresses(node).iter().map(SocketAddr::to_string));
        Explanation {
            node: *node,
            known_addresses,
            paths: peers.net.paths(&leaf),
            meeting: [report(node), report(&leaf)].into_iter().flatten().max_by_key(|report| report.when),
            packet_size: self.shared().registry.packet_size(&leaf),
            heard: peers.heard(&leaf),
            last_dial: peers.last_dial(node),
            last_error: self.last_error(node),
        }
    }
}

/// Who is told where this node is: those who may use a service here, and those whom this node knows.
struct Door {
    shared: Weak<Shared>,
    /// The rendezvous nodes: that this node is connected to them makes them nobody who may learn more.
    stations: Vec<NodeId>,
    /// Places for questions to the program.
    questions: Arc<Semaphore>,
}

impl Gate for Door {
    /// The program named it, dialled it with success, or listed it; or it uses a service here, and so was let in.
    fn is_friend(&self, node: &NodeId) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        if shared.peers.is_named(node) || (shared.peers.has_dialled(node) && !self.stations.contains(node)) {
            return true;
        }
        let listed = match shared.access.now() {
            Some(Allow::Nodes(nodes)) => nodes.contains(node),
            None | Some(Allow::Anyone | Allow::Ask(_)) => false,
        };
        listed || shared.registry.serves(node)
    }

    fn admits(&self, peer: &PeerIdentity) -> Admitted {
        let Some(shared) = self.shared.upgrade() else { return Box::pin(std::future::ready(false)) };
        match shared.access.now() {
            None | Some(Allow::Nodes(_)) => return Box::pin(std::future::ready(false)),
            Some(Allow::Anyone) => return Box::pin(std::future::ready(true)),
            Some(Allow::Ask(_)) => {}
        }
        // which service it wants, and from where, is not known before there is a connection
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let request =
            AccessRequest { node: peer.leaf, all: peer.all.clone(), service_port: 0, remote_address: nowhere };
        let (questions, limit) = (self.questions.clone(), shared.limits.open_timeout);
        Box::pin(async move {
            let asked = async {
                let _place = questions.acquire_owned().await.ok()?;
                // in turn with those who have connected: introductions are from nowhere, and so one network
                Some(shared.access.check(&request, limit).await.is_ok())
            };
            timeout(limit, asked).await.ok().flatten().unwrap_or(false)
        })
    }
}

async fn watch_rendezvous(shared: Arc<Shared>, mut events: broadcast::Receiver<RendezvousEvent>) {
    loop {
        let event = tokio::select! {
            biased;
            () = shared.lifecycle.reached(Phase::Aborting) => return,
            event = events.recv() => event,
        };
        match event {
            Ok(RendezvousEvent::Connected { node, address, observed }) => {
                shared.publisher.publish(Event::RendezvousConnected { node, address, observed });
            }
            Ok(RendezvousEvent::Lost { node, address, error, was_connected: _ }) => {
                shared.publisher.publish(Event::RendezvousLost { node, address, error });
            }
            Ok(RendezvousEvent::NetworkChanged { addresses }) => {
                shared.publisher.publish(Event::NetworkChanged { addresses });
            }
            Ok(RendezvousEvent::MeetingFailed { node, error }) => {
                shared.publisher.publish(Event::MeetingFailed { node, error });
            }
            Ok(RendezvousEvent::RelayConnected { relay, addresses }) => {
                shared.publisher.publish(Event::RelayConnected { relay, addresses });
            }
            Ok(RendezvousEvent::RelayLost { relay, error }) => {
                shared.publisher.publish(Event::RelayLost { relay, error });
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "events of the rendezvous were missed");
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

async fn watch_neighbours(shared: Arc<Shared>, mut neighbours: tokio::sync::watch::Receiver<Neighbours>) {
    loop {
        let found = neighbours.borrow_and_update().clone();
        shared.peers.set_neighbours((*found).clone());
        tokio::select! {
            () = shared.lifecycle.reached(Phase::Aborting) => return,
            changed = neighbours.changed() => if changed.is_err() { return },
        }
    }
}

/// Questions about who may learn where this node is, that wait for the program's answer at once: a function that takes its time has time
/// left for those who have a connection already.
const MAX_QUESTIONS: usize = 4;
/// How long giving back a mapped port may hold up the end.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(1);
