//! Finding nodes: what the proxy tells the rendezvous client and the local network, and what it hears from them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::broadcast;

use super::events::Event;
use super::lifecycle::Phase;
use super::{Allow, Proxy, ProxyConfig, Shared};
use crate::addr::NodeId;
use crate::error::{Error, Result};
use crate::nat::{Lan, Neighbours};
use crate::path::{Candidate, NatProfile, PathView, Traffic};
use crate::relay::RelayStatus;
use crate::rendezvous::{Rendezvous, RendezvousEvent, Report, StationStatus};
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
    pub profile: Option<NatProfile>,
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
            let weak = Arc::downgrade(shared);
            let admits = move |peer: &PeerIdentity| admits(&weak, peer);
            Rendezvous::start(shared.peers.clone(), config.rendezvous.clone(), Arc::new(admits))
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
            last_error: peers.last_error(node),
        }
    }
}

/// Who is told where this node is: those who may use a service here, and those whom this node knows.
fn admits(shared: &Weak<Shared>, peer: &PeerIdentity) -> bool {
    let Some(shared) = shared.upgrade() else { return false };
    if peer.all.iter().any(|node| shared.peers.knows(node)) {
        return true;
    }
    let allow = shared.allow.read().unwrap_or_else(std::sync::PoisonError::into_inner);
    match &*allow {
        None => false,
        Some(Allow::Nodes(nodes)) => peer.all.iter().any(|node| nodes.contains(node)),
        // the function is asked about a service, when there is a connection
        Some(Allow::Anyone | Allow::Ask(_)) => true,
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

/// How long giving back a mapped port may hold up the end.
pub(super) const CLOSE_TIME: Duration = Duration::from_secs(1);
