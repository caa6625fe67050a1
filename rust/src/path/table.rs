//! The table: which remotes there are, and where. Time-outs and moves are in `alive.rs`, pings and pongs in
//! `ping.rs`, punching in `punch.rs`.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::hmac;

use super::address::{canonical, canonical_route, sendable};
use super::limit::Limit;
use super::meeting::Meetings;
use super::outstanding::{Asked, Keys, Outstanding, Purpose};
use super::punch::Punches;
use super::remote::{Path, Remote};
use super::spare::{Class, Spares};
use super::timers::{Owner, Timers};
use super::unproven::Unproven;
use super::{PathEvent, PathStats, PathView, PingOut, SharedKeys, TableFull, Traffic};
use crate::addr::{Incarnation, NodeId, PingKeys, RemoteId, Route};
use crate::config::PathConfig;
use crate::time::Time;

/// See the [module](super).
///
/// Addresses may be passed in either form, plain or IPv4-mapped; the ones that come out are plain.
pub struct PathTable {
    pub(super) config: PathConfig,
    pub(super) remotes: HashMap<RemoteId, Remote>,
    pub(super) slots: HashMap<Route, Slot>,
    /// Which remote a session name belongs to.
    pub(super) names: HashMap<[u8; 16], RemoteId>,
    pub(super) nodes: HashMap<NodeId, Vec<RemoteId>>,
    /// Who may be evicted: strangers first, then peers; never those that are held.
    pub(super) spares: Spares,
    pub(super) timers: Timers,
    pub(super) outstanding: Outstanding,
    pub(super) punches: Punches,
    pub(super) meetings: Meetings,
    /// What goes to addresses that peers have named.
    pub(super) unproven: Unproven,
    /// Pongs to addresses that have not proven themselves.
    pub(super) stranger_pongs: Limit,
    /// Our own addresses as others saw them lately.
    observed: VecDeque<SocketAddr>,
    /// Who saw us last where: an address that was left and taken again is news to whoever forgot it.
    observers: VecDeque<(SocketAddr, SocketAddr)>,
    transmits: VecDeque<(Route, Purpose, Option<u8>)>,
    pub(super) events: VecDeque<PathEvent>,
    pub(super) counters: PathStats,
    pub(super) incarnation: Incarnation,
    last_id: u64,
}

/// The remotes at one address. Normally one; a second when a peer has moved to an address at which it had already
/// opened another connection.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) first: RemoteId,
    pub(super) others: Vec<RemoteId>,
}

impl PathTable {
    /// `seed` must be random: transaction ids come from it.
    pub fn new(mut config: PathConfig, seed: [u8; 32]) -> Self {
        for interval in [&mut config.ping_active, &mut config.ping_idle, &mut config.ping_retry] {
            *interval = (*interval).max(SHORTEST_INTERVAL);
        }
        let cap = config.max_remotes.saturating_mul(PINGS_PER_REMOTE);
        let pongs = config.max_stranger_pongs_per_second;
        let mut incarnation = Incarnation::default();
        let random = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &seed), b"keynet-incarnation");
        incarnation.iter_mut().zip(random.as_ref()).for_each(|(to, from)| *to = *from);
        Self {
            outstanding: Outstanding::new(seed, config.lost_after, cap),
            stranger_pongs: Limit::new(pongs, pongs),
            config,
            remotes: HashMap::new(),
            slots: HashMap::new(),
            names: HashMap::new(),
            nodes: HashMap::new(),
            spares: Spares::default(),
            timers: Timers::default(),
            punches: Punches::default(),
            meetings: Meetings::default(),
            unproven: Unproven::new(),
            observed: VecDeque::new(),
            observers: VecDeque::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            counters: PathStats::default(),
            incarnation,
            last_id: 0,
        }
    }

    /// The remote that is reached at this address. Constant time.
    pub fn remote_of(&self, from: impl Into<Route>) -> Option<RemoteId> {
        self.slots.get(&canonical_route(from)).map(|slot| slot.first)
    }

    /// All remotes that are reached at this address, the one of [`remote_of`](Self::remote_of) first. A packet that
    /// the first knows nothing of may belong to another: connections that a peer had before it moved.
    pub fn remotes_at(&self, from: impl Into<Route>) -> impl Iterator<Item = RemoteId> + '_ {
        let slot = self.slots.get(&canonical_route(from));
        slot.into_iter().flat_map(|slot| std::iter::once(slot.first).chain(slot.others.iter().copied()))
    }

    /// The remote at this address; a new one if there is none.
    ///
    /// The longest unheard stranger makes room when there are too many of them, and a peer that nobody holds when
    /// there are too many remotes.
    pub fn remote_for(&mut self, now: Time, address: impl Into<Route>) -> Result<RemoteId, TableFull> {
        let route = canonical_route(address);
        if let Some(slot) = self.slots.get(&route) {
            if let Some(remote) = self.remotes.get_mut(&slot.first) {
                remote.seen = now;
            }
            return Ok(slot.first);
        }
        self.new_remote(now, route)
    }

    /// A new remote, beside others that may be at this address.
    pub(super) fn new_remote(&mut self, now: Time, route: Route) -> Result<RemoteId, TableFull> {
        if !sendable(route.to) {
            return Err(TableFull);
        }
        self.make_room()?;
        self.last_id += 1;
        let id = RemoteId(self.last_id);
        let mut remote = Remote::new(id, now, route, &self.config);
        self.spares.insert(&mut remote.spare, (Class::Stranger, now, id));
        let deadline = remote.deadline(&self.config);
        self.timers.set(&mut remote.timer, Owner::Remote(id), deadline);
        self.remotes.insert(id, remote);
        match self.slots.get_mut(&route) {
            Some(slot) if slot.others.len() < MAX_ALIASES => slot.others.push(id),
            Some(_) => {
                self.forget(id);
                return Err(TableFull);
            }
            None => {
                self.slots.insert(route, Slot { first: id, others: Vec::new() });
            }
        }
        Ok(id)
    }

    /// Where to send what is for this remote. Constant time. A lost remote keeps its last address while it is held,
    /// so that its connections can be reset.
    pub fn address_of(&self, remote: RemoteId) -> Option<SocketAddr> {
        self.route_of(remote).map(|route| route.to)
    }

    /// The same, with the socket that it goes through.
    pub fn route_of(&self, remote: RemoteId) -> Option<Route> {
        self.remotes.get(&remote)?.route()
    }

    /// Whether a packet that no connection knows may be answered with RESET. Not at once when it comes from a
    /// stranger: it may be a peer that does not know yet that its address has changed, and the RESET would end a
    /// connection that is about to be followed there. A peer that sends notices the silence after one `ping_retry`
    /// and pings; with two more for lost packets it has moved, or is somebody else. That it has dialled from there
    /// meanwhile, or even said who it is, changes nothing.
    pub fn may_reset(&self, now: Time, remote: RemoteId) -> bool {
        self.remotes.get(&remote).is_some_and(|entry| {
            let may_have_moved = entry.is_stranger() || self.is_in_use_elsewhere(entry);
            !may_have_moved || now.since(entry.created) >= self.config.ping_retry * MOVING_RETRIES
        })
    }

    /// Whether connections hang on another remote of the same node.
    fn is_in_use_elsewhere(&self, entry: &Remote) -> bool {
        let remotes = entry.nodes.iter().filter_map(|node| self.nodes.get(node)).flatten();
        let mut others = remotes.filter(|id| **id != entry.id).filter_map(|id| self.remotes.get(id));
        others.any(|other| other.holds > 0)
    }

    /// One more connection or dial needs the remote: it is kept alive and never evicted.
    pub fn hold(&mut self, now: Time, remote: RemoteId) {
        let Some(entry) = self.remotes.get_mut(&remote) else { return };
        entry.holds += 1;
        entry.seen = now;
        if entry.holds == 1 {
            self.spares.remove(&mut entry.spare);
            self.look_again(remote);
        }
    }

    /// The counterpart of [`hold`](Self::hold).
    pub fn release(&mut self, now: Time, remote: RemoteId) {
        let Some(entry) = self.remotes.get_mut(&remote) else { return };
        entry.holds = entry.holds.saturating_sub(1);
        if entry.holds > 0 {
            return;
        }
        if entry.lost || entry.missing {
            self.forget(remote);
            return;
        }
        entry.seen = now;
        self.file_as_spare(remote);
        self.look_again(remote);
        if self.spares.strangers() > self.config.max_strangers {
            self.evict();
        }
    }

    /// After authentication: the remote is this node, and its pings are known by these keys. Proves the path in use,
    /// for the handshake went over it.
    ///
    /// A remote can be bound to several nodes, as the names of one whose key changes.
    pub fn bind_node(&mut self, now: Time, remote: RemoteId, node: NodeId, keys: PingKeys) {
        let Some(entry) = self.remotes.get_mut(&remote).filter(|entry| !entry.lost) else { return };
        if self.names.get(&keys.local_name).is_some_and(|other| *other != remote) {
            return; // a name of 128 random bits that is taken: not from a handshake
        }
        let name = keys.local_name;
        if !entry.is_keyed() {
            entry.confirm = Some((now, 0));
            // an answer without a key said nothing about this node
            entry.unanswered = 0;
        }
        self.names.insert(name, remote);
        if let Some(evicted) = entry.sessions.install(now, keys, self.config.lost_after) {
            self.names.remove(&evicted);
        }
        let known = entry.nodes.iter().position(|other| *other == node);
        let dropped = match known {
            Some(index) => {
                entry.nodes.remove(index);
                None
            }
            None => (entry.nodes.len() >= MAX_NODES).then(|| entry.nodes.pop()).flatten(),
        };
        entry.nodes.insert(0, node);
        let at_node = self.nodes.entry(node).or_default();
        if !at_node.contains(&remote) {
            at_node.push(remote);
        }
        if let Some(node) = dropped {
            self.unlink_node(&node, remote);
        }
        if self.remotes.get(&remote).is_some_and(|entry| entry.spare.is_some()) {
            self.file_as_spare(remote);
        }
        self.prove(remote, None);
        self.look_again(remote);
    }

    /// Addresses that are proven paths to the node, unless it does not answer: of each of its remotes, the one in use, last heard first; then
    /// the others.
    pub fn addresses_of_node(&self, node: &NodeId) -> Vec<SocketAddr> {
        let remotes = self.reached(node);
        let paths = remotes.flat_map(|remote| {
            let in_use = remote.in_use;
            remote.paths.iter().enumerate().map(move |(index, path)| (index != in_use, path))
        });
        let mut paths: Vec<_> = paths.filter(|(_, path)| path.proven).collect();
        paths.sort_by_key(|(alternate, path)| (*alternate, std::cmp::Reverse(path.heard)));
        let mut addresses: Vec<SocketAddr> = Vec::with_capacity(paths.len());
        for (_, path) in paths {
            if !addresses.contains(&path.route.to) {
                addresses.push(path.route.to);
            }
        }
        addresses
    }

    /// The remotes of a node that do not count as gone.
    fn reached(&self, node: &NodeId) -> impl Iterator<Item = &Remote> + '_ {
        let remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        remotes.filter(|remote| !remote.missing)
    }

    /// The remotes of a node and how they are reached, the one last heard first; only those to which a path is proven.
    pub fn routes_of_node(&self, node: &NodeId) -> Vec<(RemoteId, Route)> {
        let remotes = self.reached(node);
        let mut proven: Vec<_> = remotes.filter(|remote| remote.path().is_some_and(|path| path.proven)).collect();
        proven.sort_by_key(|remote| std::cmp::Reverse(remote.heard));
        proven.into_iter().filter_map(|remote| Some((remote.id, remote.route()?))).collect()
    }

    /// Every path to a node, those in use first.
    pub fn paths_of_node(&self, now: Time, node: &NodeId) -> Vec<PathView> {
        let remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        let views = remotes.flat_map(|remote| {
            remote.paths.iter().enumerate().map(move |(index, path)| PathView {
                via: path.route.via,
                address: path.route.to,
                relayed: remote.is_relayed(path.route),
                in_use: index == remote.in_use,
                used_for: (index == remote.in_use).then(|| now.since(remote.chosen)),
                proven: path.proven,
                rtt: path.rtt,
                silent_for: now.since(path.heard),
                connections: remote.holds,
            })
        });
        let mut views: Vec<_> = views.collect();
        views.sort_by_key(|view| !view.in_use);
        views
    }

    /// Every node that a remote is bound to.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> + '_ {
        self.nodes.keys()
    }

    /// Whether a relay carries what is for the remote now.
    pub fn is_relayed(&self, remote: RemoteId) -> bool {
        self.remotes.get(&remote).is_some_and(Remote::uses_relay)
    }

    /// So much came from the remote along `from`, and so much went to it on the path in use. Constant time.
    pub fn count(&mut self, id: RemoteId, from: Option<Route>, received: usize, sent: usize) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let relayed = match from {
            Some(from) => remote.is_relayed(from),
            None => remote.uses_relay(),
        };
        let (received, sent, traffic) = (received as u64, sent as u64, &mut remote.traffic);
        if relayed {
            traffic.relayed_in += received;
            traffic.relayed_out += sent;
            self.counters.relayed_in += received;
            self.counters.relayed_out += sent;
        } else {
            traffic.direct_in += received;
            traffic.direct_out += sent;
        }
    }

    /// What went between us and a node, as long as it has been known without a break.
    pub fn traffic_of_node(&self, node: &NodeId) -> Traffic {
        let remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        remotes.fold(Traffic::default(), |sum, remote| Traffic {
            direct_in: sum.direct_in + remote.traffic.direct_in,
            direct_out: sum.direct_out + remote.traffic.direct_out,
            relayed_in: sum.relayed_in + remote.traffic.relayed_in,
            relayed_out: sum.relayed_out + remote.traffic.relayed_out,
        })
    }

    /// Nodes to which a relay carries everything, because no direct path is known.
    pub fn relayed_nodes(&self) -> Vec<NodeId> {
        let live = self.remotes.values().filter(|remote| !remote.lost && remote.holds > 0);
        live.filter(|remote| remote.uses_relay()).filter_map(Remote::node).collect()
    }

    /// The node that the remote last authenticated as.
    pub fn node_of(&self, remote: RemoteId) -> Option<NodeId> {
        self.remotes.get(&remote)?.node()
    }

    /// The smoothed round-trip time of the path in use, as pings measured it.
    pub fn rtt_of(&self, remote: RemoteId) -> Option<Duration> {
        self.remotes.get(&remote)?.path()?.rtt
    }

    /// The keys of the pings, as far as both ends are sure to know them: under which we start something, and the peer does.
    pub fn shared_keys(&self, remote: RemoteId) -> SharedKeys {
        let live = self.remotes.get(&remote).filter(|remote| !remote.lost);
        live.map_or_else(SharedKeys::default, |remote| SharedKeys {
            own: remote.sessions.own_key(),
            peers: remote.sessions.peers_key(),
        })
    }

    /// When a remote last gave a sign of life, and how many connections hold it.
    pub fn company_of(&self, remote: RemoteId) -> Option<(Time, usize)> {
        let remote = self.remotes.get(&remote).filter(|remote| !remote.lost)?;
        Some((remote.heard, remote.holds as usize))
    }

    /// The next ping to send.
    pub fn poll_transmit(&mut self, now: Time) -> Option<PingOut> {
        let (to, purpose, ttl) = self.transmits.pop_front()?;
        let keys = match &purpose {
            Purpose::Path { keys, .. } => keys.as_ref(),
            Purpose::Meeting { keys, .. } => Some(keys),
            Purpose::Probe => None,
        };
        let incarnation = keys.filter(|keys| !keys.introduced).map(|_| self.incarnation);
        let keys = keys.map(|Keys { remote_name, key, .. }| (*remote_name, *key));
        let transaction = self.outstanding.insert(Asked { to, sent: now, purpose });
        self.counters.pings_out += 1;
        Some(PingOut { via: to.via, to: to.to, transaction, keys, incarnation, ttl })
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<PathEvent> {
        self.events.pop_front()
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due. Constant time for practical purposes: a descent along
    /// the edge of a search tree.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    pub fn stats(&self) -> PathStats {
        PathStats {
            remotes: self.remotes.len(),
            strangers: self.spares.strangers(),
            punches: self.punches.len(),
            meetings: self.meetings.len(),
            outstanding: self.outstanding.len(),
            ..self.counters
        }
    }

    /// Queues a ping. At the cap it is dropped, like one that the network loses: all of them are repeated.
    pub(super) fn ping(&mut self, to: Route, purpose: Purpose) {
        self.ping_within(to, purpose, None);
    }

    /// The same, for a ping that is to die after so many hops.
    pub(super) fn ping_within(&mut self, to: Route, purpose: Purpose, ttl: Option<u8>) {
        if self.transmits.len() < self.config.max_remotes.saturating_mul(2) {
            self.transmits.push_back((to, purpose, ttl));
        }
    }

    /// Reports an address of our own, if it is news, or if whoever sees us there saw us elsewhere the last time.
    pub(super) fn observe(&mut self, address: SocketAddr, by: SocketAddr) {
        let address = canonical(address);
        if !sendable(address) {
            return;
        }
        let known =
            self.observers.iter().position(|(who, _)| *who == by).and_then(|place| self.observers.remove(place));
        if self.observers.len() >= MAX_OBSERVERS {
            self.observers.pop_front();
        }
        self.observers.push_back((by, address));
        let moved = known.is_some_and(|(_, before)| before != address);
        let is_new = !self.observed.contains(&address);
        if is_new {
            if self.observed.len() >= MAX_OBSERVED {
                self.observed.pop_front();
            }
            self.observed.push_back(address);
        }
        if is_new || moved {
            self.events.push_back(PathEvent::Observed { address, by });
        }
    }

    /// The path at `address` (`None`: the one in use) is proven.
    pub(super) fn prove(&mut self, id: RemoteId, route: Option<Route>) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let index = route.map_or(Some(remote.in_use), |route| remote.index_of(route));
        let Some(path) = index.and_then(|index| remote.paths.get_mut(index)) else { return };
        path.proven = true;
        let address = path.route.to;
        if !remote.up {
            remote.up = true;
            self.events.push_back(PathEvent::Up { remote: id, address });
        }
    }

    /// A keyed pong has come from an address that is new for this remote. False: there is no room for it.
    pub(super) fn add_path(&mut self, now: Time, id: RemoteId, address: Route) -> bool {
        let taken = self.slots.get(&address).map(|slot| (slot.first, slot.others.len()));
        if let Some((first, others)) = taken {
            let stranger = self.remotes.get(&first).is_some_and(|other| other.is_stranger() && other.holds == 0);
            if stranger {
                self.forget(first);
            } else if others >= MAX_ALIASES {
                return false;
            }
        }
        let Some(remote) = self.remotes.get_mut(&id) else { return false };
        if remote.paths.len() >= MAX_PATHS {
            let in_use = remote.in_use;
            let alternates = remote.paths.iter().enumerate().filter(|(index, _)| *index != in_use);
            let Some((oldest, _)) = alternates.min_by_key(|(_, path)| path.heard) else { return false };
            self.drop_path(id, oldest);
        }
        let Some(remote) = self.remotes.get_mut(&id) else { return false };
        remote.paths.push(Path::new(now, address));
        match self.slots.get_mut(&address) {
            Some(slot) => slot.others.push(id),
            None => {
                self.slots.insert(address, Slot { first: id, others: Vec::new() });
            }
        }
        true
    }

    /// Removes a path that is not in use.
    pub(super) fn drop_path(&mut self, id: RemoteId, index: usize) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        if index == remote.in_use || index >= remote.paths.len() {
            return;
        }
        let path = remote.paths.remove(index);
        if remote.in_use > index {
            remote.in_use -= 1;
        }
        self.vacate(path.route, id);
    }

    /// Takes everything away by which a remote can be found, except its handle.
    pub(super) fn unlink(&mut self, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        self.timers.set(&mut remote.timer, Owner::Remote(id), None);
        self.spares.remove(&mut remote.spare);
        for name in remote.sessions.names() {
            // a lost remote comes here twice, and the name may be another's by then
            if self.names.get(&name) == Some(&id) {
                self.names.remove(&name);
            }
        }
        let addresses: Vec<_> = remote.paths.iter().map(|path| path.route).collect();
        let nodes = remote.nodes.clone();
        for address in addresses {
            self.vacate(address, id);
        }
        for node in nodes {
            self.unlink_node(&node, id);
        }
    }

    pub(super) fn forget(&mut self, id: RemoteId) {
        self.unlink(id);
        self.remotes.remove(&id);
    }

    /// Brings the timer up to date.
    pub(super) fn look_again(&mut self, id: RemoteId) {
        if let Some(remote) = self.remotes.get_mut(&id) {
            let deadline = remote.deadline(&self.config);
            self.timers.set(&mut remote.timer, Owner::Remote(id), deadline);
        }
    }

    fn vacate(&mut self, address: Route, id: RemoteId) {
        let Some(slot) = self.slots.get_mut(&address) else { return };
        if slot.first != id {
            slot.others.retain(|other| *other != id);
        } else if slot.others.is_empty() {
            self.slots.remove(&address);
            self.release_via(address.via);
        } else {
            slot.first = slot.others.remove(0);
        }
    }

    fn unlink_node(&mut self, node: &NodeId, id: RemoteId) {
        let Some(remotes) = self.nodes.get_mut(node) else { return };
        remotes.retain(|other| *other != id);
        if remotes.is_empty() {
            self.nodes.remove(node);
        }
    }

    fn file_as_spare(&mut self, id: RemoteId) {
        if let Some(remote) = self.remotes.get_mut(&id) {
            let place = (remote.class(), remote.seen, id);
            self.spares.insert(&mut remote.spare, place);
        }
    }

    fn make_room(&mut self) -> Result<(), TableFull> {
        if self.spares.strangers() >= self.config.max_strangers {
            self.evict();
        }
        if self.remotes.len() >= self.config.max_remotes && !self.evict() {
            return Err(TableFull);
        }
        Ok(())
    }

    /// Forgets the longest unheard stranger; if there is none, the longest unheard peer that nobody holds. False:
    /// neither.
    fn evict(&mut self) -> bool {
        while let Some((_, filed, id)) = self.spares.first() {
            let newer = self.remotes.get(&id).is_some_and(|remote| remote.seen > filed);
            if newer {
                self.file_as_spare(id);
            } else {
                self.forget(id);
                return true;
            }
        }
        false
    }
}

/// Paths of one remote: a peer has one address at a time, and while it moves two, of each family; two relays of each side.
const MAX_PATHS: usize = 8;
/// A ping interval of zero would make pings without end.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(10);
/// Further remotes at one address.
const MAX_ALIASES: usize = 8;
/// The first ping from a new address, and two repetitions.
const MOVING_RETRIES: u32 = 3;
/// Names of one remote: as many as a certificate chain has (docs/protocol.md section 4).
const MAX_NODES: usize = 16;
/// Own addresses that are remembered, so that peers who see different ones do not make an event each time.
const MAX_OBSERVED: usize = 16;
/// Those whose word counts are a few servers; peers come and go among them.
const MAX_OBSERVERS: usize = 32;
/// Unanswered pings that are remembered, by remote, on average: one a second for as long as a path takes to be lost.
const PINGS_PER_REMOTE: usize = 8;
