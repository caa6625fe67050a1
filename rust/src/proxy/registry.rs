//! Which connections there are, and which there were a moment ago: the answer to "who is behind this address?".
//!
//! gRPC asks for its peer late, so a closed connection can still be looked up for a while (its tombstone). An address that is
//! not here is unknown, and whoever asks has to take that for a no.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{watch, Notify};

use super::events::{Event, Publisher};
use super::splice::Counters;
use crate::addr::{unmapped, NodeId};
use crate::config::ControllerKind;
use crate::error::{Culprit, Error, Reason, Stage};
use crate::net::Helm;
use crate::open::Priority;
use crate::peer::Link;

/// Which end of a tunnel this proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A local client connects to a service of the other node.
    Forward,
    /// The other node connects to a service here.
    Reverse,
}

/// One tunnel, with the addresses named as in the picture of the design.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// Unique within the proxy, never re-used.
    pub id: u64,
    pub role: Role,
    /// The other node, by the key it uses now.
    pub node: NodeId,
    /// Every name that the other node has proven, newest first.
    pub nodes: Vec<NodeId>,
    pub service_port: u16,
    /// How what this node sends shares the path.
    pub priority: Priority,
    /// Forward: the local client, as the forward proxy sees it; none behind a UNIX socket.
    pub client_address: Option<String>,
    /// Reverse: what the service sees as its peer, `ip:port` or `unix-abstract:...`.
    pub reverse_address: Option<String>,
    /// Reverse: the service.
    pub server_address: Option<String>,
    /// This node's UDP socket.
    pub proxy_address: SocketAddr,
    /// The other node's UDP socket, as it was when the connection opened.
    pub remote_address: SocketAddr,
    pub opened: SystemTime,
    pub closed: Option<SystemTime>,
    /// Why it ended.
    pub reason: Option<Reason>,
    /// Payload bytes from the other node.
    pub bytes_in: u64,
    /// Payload bytes to the other node.
    pub bytes_out: u64,
    /// A relay carried it when it opened.
    pub relayed: bool,
    /// Forward: how long each stage of opening it took, in their order.
    pub stages: Vec<(&'static str, Duration)>,
    /// Round-trip time of the uTP connection, when last looked at.
    pub rtt: Option<Duration>,
}

/// Which UDP payloads a path carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketSize {
    pub carried: u16,
    /// Nothing larger than the least that full packets have was seen to arrive.
    pub unproven: bool,
    /// The smallest that is known to be lost.
    pub lost: Option<u16>,
}

impl ConnectionInfo {
    /// A tunnel that begins now on this link; its TCP addresses are filled in as they become known.
    pub(super) fn of(role: Role, link: &Link, service_port: u16, proxy_address: SocketAddr) -> Self {
        Self {
            id: 0,
            role,
            node: link.peer.leaf,
            nodes: link.peer.all.clone(),
            service_port,
            priority: Priority::Interactive,
            client_address: None,
            reverse_address: None,
            server_address: None,
            proxy_address,
            remote_address: link.address,
            opened: SystemTime::now(),
            closed: None,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            relayed: link.utp().is_relayed(),
            stages: Vec::new(),
            rtt: None,
        }
    }
}

/// A live connection: what is fixed, and what changes while bytes flow.
#[derive(Debug)]
pub(super) struct Connection {
    pub fixed: ConnectionInfo,
    pub counters: Counters,
    rtt_nanos: AtomicU64,
    priority: Mutex<Priority>,
    /// Whose it is now: an HTTP service's stream serves one local client after the other.
    client: Mutex<Option<String>>,
    /// Not of a tombstone: it would keep the memory of the stream.
    helm: Mutex<Option<Helm>>,
    /// Why this node ends it, if it does.
    cut: Mutex<Option<Reason>>,
    cut_told: Notify,
    /// A task waits for [`Self::was_cut`], and ends it properly.
    minded: AtomicBool,
    end: Mutex<Option<(SystemTime, Instant, Reason)>>,
}

impl Connection {
    pub fn set_rtt(&self, rtt: Duration) {
        let nanos = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
        self.rtt_nanos.store(nanos, Ordering::Relaxed);
    }

    /// Whose priority [`Registry::set_priority`] changes.
    pub fn steered_by(&self, helm: Helm) {
        *lock(&self.helm) = Some(helm);
    }

    /// Ends the tunnel, whatever flows in it. The first reason stays.
    pub fn cut(&self, reason: Reason) {
        lock(&self.cut).get_or_insert(reason);
        self.cut_told.notify_one();
        if !self.minded.load(Ordering::SeqCst) {
            // what stands and is in nobody's care yet, or in the hands of a Rust program
            lock(&self.helm).as_ref().map(Helm::reset);
        }
    }

    /// Why this node has ended it.
    pub fn cut_for(&self) -> Option<Reason> {
        *lock(&self.cut)
    }

    /// Waits until this node ends it; for the one task that minds it.
    pub async fn was_cut(&self) -> Reason {
        self.minded.store(true, Ordering::SeqCst);
        loop {
            if let Some(reason) = self.cut_for() {
                return reason;
            }
            self.cut_told.notified().await;
        }
    }

    pub fn info(&self) -> ConnectionInfo {
        let end = *lock(&self.end);
        let rtt = self.rtt_nanos.load(Ordering::Relaxed);
        let ended = self.counters.ended.load(Ordering::SeqCst);
        ConnectionInfo {
            closed: end.map(|(at, _, _)| at).or_else(|| ended.then(SystemTime::now)),
            reason: end.map(|(_, _, reason)| reason),
            bytes_in: self.counters.into.load(Ordering::Relaxed),
            bytes_out: self.counters.out.load(Ordering::Relaxed),
            rtt: (rtt > 0).then(|| Duration::from_nanos(rtt)),
            priority: *lock(&self.priority),
            client_address: lock(&self.client).clone(),
            ..self.fixed.clone()
        }
    }

    fn keys(&self) -> [Option<Key>; 2] {
        let key = |map: fn(Name) -> Key, text: &Option<String>| text.as_deref().map(|text| map(Name::parse(text)));
        [key(Key::Client, &lock(&self.client)), key(Key::Reverse, &self.fixed.reverse_address)]
    }
}

/// The table of connections. Clone shares it.
#[derive(Clone, Debug)]
pub(super) struct Registry {
    inner: Arc<Mutex<Inner>>,
    /// How many connections there are.
    live: watch::Sender<usize>,
    publisher: Publisher,
    tombstone: Duration,
    max_tombstones: usize,
}

#[derive(Debug, Default)]
struct Inner {
    last_id: u64,
    live: HashMap<u64, Arc<Connection>>,
    addresses: HashMap<Key, Arc<Connection>>,
    /// Closed connections, oldest first.
    closed: VecDeque<Arc<Connection>>,
    /// How many streams from peers there are, and how many are counted for each name: those that let a peer in. A name
    /// that is made for the occasion gives it no more.
    streams: usize,
    streams_of: HashMap<NodeId, usize>,
    totals: Totals,
}

/// Sums over connections that have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub opened: u64,
    pub closed: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Registry {
    pub fn new(publisher: Publisher, tombstone: Duration, max_tombstones: usize) -> Self {
        Self { inner: Arc::default(), live: watch::Sender::new(0), publisher, tombstone, max_tombstones }
    }

    /// Enters a connection; from now on its addresses can be looked up. The id in `info` is replaced.
    pub fn enter(&self, mut info: ConnectionInfo) -> Entry {
        let mut inner = lock(&self.inner);
        self.bury(&mut inner);
        inner.last_id += 1;
        info.id = inner.last_id;
        let connection = Arc::new(Connection {
            priority: Mutex::new(info.priority),
            client: Mutex::new(info.client_address.clone()),
            fixed: info,
            counters: Counters::default(),
            rtt_nanos: AtomicU64::new(0),
            helm: Mutex::new(None),
            cut: Mutex::new(None),
            cut_told: Notify::new(),
            minded: AtomicBool::new(false),
            end: Mutex::new(None),
        });
        inner.live.insert(connection.fixed.id, connection.clone());
        self.live.send_replace(inner.live.len());
        for key in connection.keys().into_iter().flatten() {
            inner.addresses.insert(key, connection.clone());
        }
        Entry { registry: self.clone(), connection, opened: false, finished: false }
    }

    /// Takes one of the places for streams from peers; it counts for each of `names`. Errors: the text of a refusal.
    pub fn reserve(&self, names: &[NodeId], max: usize, max_per_node: usize) -> Result<Place, String> {
        let mut inner = lock(&self.inner);
        let total = inner.streams;
        if total >= max {
            return Err(format!("{total} streams are open here, no more are taken"));
        }
        let held = names.iter().filter_map(|name| inner.streams_of.get(name)).max().copied().unwrap_or(0);
        if held >= max_per_node {
            return Err(format!("this node has {held} streams open, no more are taken"));
        }
        inner.streams += 1;
        for name in names {
            *inner.streams_of.entry(*name).or_default() += 1;
        }
        Ok(Place { registry: self.clone(), names: names.to_vec() })
    }

    /// Every live connection itself.
    pub fn connections(&self) -> Vec<Arc<Connection>> {
        lock(&self.inner).live.values().cloned().collect()
    }

    /// Whether a stream that this peer has opened was let in, and lives.
    pub fn serves(&self, peer: &NodeId) -> bool {
        lock(&self.inner).streams_of.get(peer).is_some_and(|held| *held > 0)
    }

    pub fn live(&self) -> Vec<ConnectionInfo> {
        let connections = self.connections();
        let mut all: Vec<_> = connections.iter().map(|connection| connection.info()).collect();
        all.sort_unstable_by_key(|info| info.id);
        all
    }

    /// What packets get through to a node, as its connections have found out: that which knows most.
    pub fn packet_size(&self, node: &NodeId) -> Option<PacketSize> {
        let of_node = |one: &Arc<Connection>| one.fixed.nodes.contains(node) || one.fixed.node == *node;
        let stats = self.connections().into_iter().filter(of_node).filter_map(|one| lock(&one.helm).as_ref()?.stats());
        let sizes = stats.map(|stats| PacketSize {
            carried: stats.datagram,
            unproven: stats.datagram_unproven,
            lost: stats.datagram_lost,
        });
        sizes.max_by_key(|size| (size.lost.is_some(), size.carried))
    }

    /// Changes how fast a live connection sends. False: there is none of this id.
    pub fn set_priority(&self, id: u64, priority: Priority, controller: ControllerKind) -> bool {
        let Some(connection) = lock(&self.inner).live.get(&id).cloned() else { return false };
        let steered = lock(&connection.helm).as_ref().is_some_and(|helm| helm.set_controller(controller));
        if steered {
            *lock(&connection.priority) = priority;
        }
        steered
    }

    pub fn live_count(&self) -> usize {
        lock(&self.inner).live.len()
    }

    /// A live connection serves another local client from now on, or none for a while.
    pub fn hand_over(&self, connection: &Arc<Connection>, client: Option<SocketAddr>) {
        let mut inner = lock(&self.inner);
        inner.forget_addresses(connection);
        *lock(&connection.client) = client.map(|client| client.to_string());
        for key in connection.keys().into_iter().flatten() {
            inner.addresses.insert(key, connection.clone());
        }
    }

    /// Waits until no connection is left.
    pub async fn emptied(&self) {
        let _ = self.live.subscribe().wait_for(|live| *live == 0).await;
    }

    /// The connection of the local client at `address` (`ip:port`), also shortly after its end.
    pub fn by_client(&self, address: &str) -> Option<ConnectionInfo> {
        self.find(&Key::Client(Name::parse(address)))
    }

    /// The connection that a service sees as coming from `address`, also shortly after its end.
    pub fn by_reverse(&self, address: &str) -> Option<ConnectionInfo> {
        self.find(&Key::Reverse(Name::parse(address)))
    }

    /// How the newest connection to or from a node ended, when that was a failure of the way or of the peer and none has been opened
    /// since; as long as closed connections are remembered.
    pub fn last_failure(&self, node: &NodeId) -> Option<Error> {
        let mut inner = lock(&self.inner);
        self.bury(&mut inner);
        let newest = inner.closed.iter().filter(|one| one.fixed.nodes.contains(node)).max_by_key(|one| one.fixed.id)?;
        if inner.live.values().any(|one| one.fixed.id > newest.fixed.id && one.fixed.nodes.contains(node)) {
            return None;
        }
        let (_, _, reason) = lock(&newest.end).as_ref().copied()?;
        let fault = matches!(reason.culprit(), Culprit::Peer | Culprit::Network | Culprit::Service | Culprit::Keynet);
        let info = newest.info();
        let text = format!("the connection for service port {} ended so", info.service_port);
        fault.then(|| Error::new(reason, Stage::Stream, text).with_node(*node).with_address(info.remote_address))
    }

    /// Sums over everything so far, live connections included; and how many tombstones there are.
    pub fn totals(&self) -> (Totals, usize) {
        let inner = lock(&self.inner);
        let mut totals = inner.totals;
        for connection in inner.live.values() {
            totals.bytes_in += connection.counters.into.load(Ordering::Relaxed);
            totals.bytes_out += connection.counters.out.load(Ordering::Relaxed);
        }
        (totals, inner.closed.len())
    }

    fn find(&self, key: &Key) -> Option<ConnectionInfo> {
        let mut inner = lock(&self.inner);
        self.bury(&mut inner);
        inner.addresses.get(key).map(|connection| connection.info())
    }

    /// Forgets what has been closed for long enough, and the oldest beyond the cap.
    fn bury(&self, inner: &mut Inner) {
        while let Some(oldest) = inner.closed.front() {
            let due = match *lock(&oldest.end) {
                Some((_, at, _)) => at.elapsed() >= self.tombstone,
                None => true,
            };
            if !due && inner.closed.len() <= self.max_tombstones {
                break;
            }
            if let Some(gone) = inner.closed.pop_front() {
                inner.forget_addresses(&gone);
            }
        }
    }

    fn finish(&self, connection: &Arc<Connection>, reason: Reason, opened: bool) {
        let mut inner = lock(&self.inner);
        if inner.live.remove(&connection.fixed.id).is_none() {
            return;
        }
        self.live.send_replace(inner.live.len());
        *lock(&connection.helm) = None;
        *lock(&connection.end) = Some((SystemTime::now(), Instant::now(), reason));
        let info = connection.info();
        inner.totals.bytes_in += info.bytes_in;
        inner.totals.bytes_out += info.bytes_out;
        inner.totals.closed += u64::from(opened);
        inner.closed.push_back(connection.clone());
        self.bury(&mut inner);
        drop(inner);
        if opened {
            self.publisher.publish(Event::ConnectionClosed(info));
        }
    }
}

impl Inner {
    fn forget_addresses(&mut self, gone: &Arc<Connection>) {
        for key in gone.keys().into_iter().flatten() {
            // The address may belong to a later connection by now.
            if self.addresses.get(&key).is_some_and(|current| Arc::ptr_eq(current, gone)) {
                self.addresses.remove(&key);
            }
        }
        // Maps keep the space of their fullest moment otherwise.
        if self.addresses.capacity() > 1024 && self.addresses.len() < self.addresses.capacity() / 4 {
            self.addresses.shrink_to_fit();
        }
    }
}

/// A live connection's place in the table. When it is dropped without [`Self::finish`], the proxy was closed over it.
#[derive(Debug)]
pub(super) struct Entry {
    registry: Registry,
    pub connection: Arc<Connection>,
    opened: bool,
    finished: bool,
}

impl Entry {
    /// The tunnel stands: tells the subscribers.
    pub fn open(&mut self) {
        if !std::mem::replace(&mut self.opened, true) {
            lock(&self.registry.inner).totals.opened += 1;
            self.registry.publisher.publish(Event::ConnectionOpened(self.connection.info()));
        }
    }

    pub fn finish(mut self, reason: Reason) {
        self.finished = true;
        self.registry.finish(&self.connection, reason, self.opened);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.finished {
            self.registry.finish(&self.connection, Reason::ProxyClosed, self.opened);
        }
    }
}

/// One of the places for streams from peers; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    registry: Registry,
    names: Vec<NodeId>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = lock(&self.registry.inner);
        inner.streams = inner.streams.saturating_sub(1);
        for name in &self.names {
            if let Some(held) = inner.streams_of.get_mut(name) {
                *held -= 1;
                if *held == 0 {
                    inner.streams_of.remove(name);
                }
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Client(Name),
    Reverse(Name),
}

/// An address as a key: however it is written, the same one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Socket(SocketAddr),
    Text(String),
}

impl Name {
    /// Also takes what gRPC's `context.peer()` says: `ipv4:1.2.3.4:5`, `ipv6:%5B::1%5D:5`, `unix-abstract:...` (FACTS.md).
    fn parse(text: &str) -> Self {
        let text = text.trim();
        let bare = text.strip_prefix("ipv4:").or_else(|| text.strip_prefix("ipv6:")).unwrap_or(text);
        let decoded = bare.replace("%5B", "[").replace("%5D", "]").replace("%5b", "[").replace("%5d", "]");
        match decoded.parse() {
            Ok(address) => Self::Socket(unmapped(address)),
            Err(_) => Self::Text(text.replace("%2F", "/").replace("%2f", "/")),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these, and a table is better read than lost.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(client: Option<&str>, reverse: Option<&str>) -> ConnectionInfo {
        let node = NodeId::from_public_key([1; 32]);
        ConnectionInfo {
            id: 0,
            role: if client.is_some() { Role::Forward } else { Role::Reverse },
            node,
            nodes: vec![node],
            service_port: 1,
            priority: Priority::Interactive,
            client_address: client.map(str::to_owned),
            reverse_address: reverse.map(str::to_owned),
            server_address: None,
            proxy_address: "127.0.0.1:1".parse().unwrap(),
            remote_address: "127.0.0.1:2".parse().unwrap(),
            opened: SystemTime::now(),
            closed: None,
            reason: None,
            bytes_in: 0,
            bytes_out: 0,
            relayed: false,
            stages: Vec::new(),
            rtt: None,
        }
    }

    #[test]
    fn a_failure_of_the_newest_connection_is_told_until_another_is_opened() {
        let registry = registry(Duration::from_secs(60), 10);
        let node = NodeId::from_public_key([1; 32]);
        assert!(registry.last_failure(&node).is_none());
        registry.enter(info(Some("127.0.0.1:1"), None)).finish(Reason::Finished);
        assert!(registry.last_failure(&node).is_none(), "an end in order is no failure");
        registry.enter(info(Some("127.0.0.1:2"), None)).finish(Reason::PeerLost);
        let error = registry.last_failure(&node).unwrap();
        assert_eq!((error.reason, error.stage, error.node), (Reason::PeerLost, Stage::Stream, Some(node)));
        assert!(registry.last_failure(&NodeId::from_public_key([2; 32])).is_none());
        let later = registry.enter(info(Some("127.0.0.1:3"), None));
        assert!(registry.last_failure(&node).is_none(), "another one is open");
        later.finish(Reason::ClientReset);
        assert!(registry.last_failure(&node).is_none(), "the client left by itself");
    }

    fn registry(tombstone: Duration, max: usize) -> Registry {
        Registry::new(Publisher::new(16), tombstone, max)
    }

    #[test]
    fn a_connection_is_found_by_its_addresses_however_they_are_written() {
        let registry = registry(Duration::from_secs(60), 10);
        let v6 = registry.enter(info(None, Some("[::1]:5000")));
        let unix = registry.enter(info(None, Some("unix-abstract:keynet/v0/1")));
        let client = registry.enter(info(Some("127.0.0.1:6000"), None));
        for text in ["[::1]:5000", "ipv6:[::1]:5000", "ipv6:%5B::1%5D:5000"] {
            assert_eq!(registry.by_reverse(text).unwrap().id, v6.connection.info().id, "{text}");
        }
        for text in ["unix-abstract:keynet/v0/1", "unix-abstract:keynet%2Fv0%2F1"] {
            assert_eq!(registry.by_reverse(text).unwrap().id, unix.connection.info().id, "{text}");
        }
        for text in ["127.0.0.1:6000", "ipv4:127.0.0.1:6000", "[::ffff:127.0.0.1]:6000"] {
            assert_eq!(registry.by_client(text).unwrap().id, client.connection.info().id, "{text}");
        }
        for text in ["", "127.0.0.1:6001", "unix:", "unix-abstract:keynet/v0/2", "ipv4:"] {
            assert!(registry.by_reverse(text).is_none() && registry.by_client(text).is_none(), "{text}");
        }
        assert!(registry.by_reverse("127.0.0.1:6000").is_none(), "a client is no reverse address");
    }

    #[test]
    fn a_closed_connection_is_remembered_for_a_while() {
        let registry = registry(Duration::from_secs(60), 10);
        let entry = registry.enter(info(None, Some("127.0.0.1:1")));
        entry.finish(Reason::Finished);
        let found = registry.by_reverse("127.0.0.1:1").unwrap();
        assert!(found.closed.is_some());
        assert_eq!(found.reason, Some(Reason::Finished));
        assert!(registry.live().is_empty());
    }

    #[test]
    fn tombstones_expire_and_have_a_cap() {
        let short = registry(Duration::ZERO, 10);
        short.enter(info(None, Some("127.0.0.1:1"))).finish(Reason::Finished);
        assert!(short.by_reverse("127.0.0.1:1").is_none());

        let few = registry(Duration::from_secs(60), 2);
        for port in 1..=5 {
            drop(few.enter(info(None, Some(&format!("127.0.0.1:{port}")))));
        }
        let known: Vec<_> = (1..=5).filter(|port| few.by_reverse(&format!("127.0.0.1:{port}")).is_some()).collect();
        assert_eq!(known, [4, 5]);
        assert_eq!(few.totals().1, 2);
    }

    #[test]
    fn an_address_used_again_belongs_to_the_later_connection() {
        let registry = registry(Duration::from_secs(60), 1);
        registry.enter(info(None, Some("127.0.0.1:1"))).finish(Reason::Finished);
        let later = registry.enter(info(None, Some("127.0.0.1:1")));
        registry.enter(info(None, Some("127.0.0.1:2"))).finish(Reason::Finished);
        registry.enter(info(None, Some("127.0.0.1:3"))).finish(Reason::Finished);
        assert_eq!(registry.by_reverse("127.0.0.1:1").unwrap().id, later.connection.info().id);
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let registry = registry(Duration::ZERO, 0);
        let [a, b, c] = [1, 2, 3].map(|n| NodeId::from_public_key([n; 32]));
        let first = registry.reserve(&[a], 2, 1).unwrap();
        assert!(registry.reserve(&[a], 2, 1).is_err());
        assert!(registry.reserve(&[c, a], 2, 1).is_err(), "another name beside it gives it no more");
        let second = registry.reserve(&[b], 2, 1).unwrap();
        assert!(registry.reserve(&[c], 2, 1).is_err());
        drop((first, second));
        assert!(registry.reserve(&[a, b], 2, 1).is_ok());
        assert!(lock(&registry.inner).streams_of.is_empty() && lock(&registry.inner).streams == 0);
    }
}
