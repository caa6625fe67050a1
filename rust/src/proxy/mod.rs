//! The proxy: the forward and the reverse side of a node, and everything a program asks it.
//!
//! | file | what |
//! |---|---|
//! | `settings` | what a proxy is told when it starts |
//! | `forward` | local clients on their way to services of other nodes |
//! | `http` | local clients that name whole URLs: one request after the other, over streams that are kept for a while |
//! | `access` | who may use the services, and what a change of that means for those who are connected |
//! | `asking` | `allow=` as a function: whose question is asked next |
//! | `reverse`, `backend` | peers on their way to services here: limits, the connection to the service |
//! | `tunnel`, `splice` | bytes, and what the end of one side means for the other |
//! | `local` | TCP and UNIX sockets on this machine |
//! | `registry` | which connections there are, looked up by address |
//! | `finding` | how other nodes are found by their key; what is known of them |
//! | `events` | what subscribers are told |
//! | `quiet` | how often strangers can make this node say something |
//! | `lifecycle` | the phases from start to close, and the tasks that have to end |

mod access;
mod asking;
mod backend;
mod events;
mod finding;
mod forward;
mod http;
mod lifecycle;
mod local;
mod quiet;
mod registry;
mod reverse;
mod settings;
mod splice;
mod tunnel;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use tokio::sync::{broadcast, watch, Semaphore};

pub use crate::open::Priority;
pub use crate::peer::PingReport;
pub use asking::Denials;
pub use events::{Event, Events};
pub use finding::{Explanation, NodeStatus, PeerStatus};
pub use local::LocalListener;
pub use quiet::Quiet;
pub use registry::{ConnectionInfo, PacketSize, Role};
pub use settings::{AccessRequest, Allow, Backend, BoxFuture, Close, ProxyConfig, Service};
pub use tunnel::Tunnel;

use crate::addr::{unmapped, NodeId};
use crate::config::ProxyLimits;
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::Credentials;
use crate::net::{Net, NetEvent, NetStats, PathInfo};
use crate::peer::{Link, Peers};
use crate::tls::Identity;
use access::Access;
use events::Publisher;
use finding::Finding;
use forward::{Serves, Wanted, REFUSAL_PLACES};
use lifecycle::{Lifecycle, Phase};
use local::Listener;
use registry::Registry;

/// A node's proxy, both roles. Clones share it; when the last one is dropped, it is aborted.
#[derive(Clone)]
pub struct Proxy {
    handle: Arc<Handle>,
}

/// Aborts the proxy when nobody holds it any more. Its tasks hold [`Shared`] only.
struct Handle {
    shared: Arc<Shared>,
}

/// What the tasks of a proxy share.
struct Shared {
    peers: Arc<Peers>,
    limits: ProxyLimits,
    /// Where its tasks run: the access list may be replaced from anywhere.
    runtime: tokio::runtime::Handle,
    credentials: (String, String),
    check: Credentials,
    forward_address: SocketAddr,
    services: RwLock<BTreeMap<u16, Service>>,
    access: Access,
    registry: Registry,
    publisher: Publisher,
    lifecycle: Lifecycle,
    /// Permits to accept local clients: those that are served, and some that are refused.
    accepted: Arc<Semaphore>,
    /// Places for local clients that are served.
    clients: Arc<Semaphore>,
    /// Streams to HTTP services that wait for the next request.
    pool: http::Pool,
    finding: OnceLock<Finding>,
    /// Nodes of which subscribers know that they are connected.
    connected: Mutex<HashMap<NodeId, SocketAddr>>,
    refusals: AtomicU64,
    /// Log lines about peers that were refused, and events about those without a name.
    quiet_log: Quiet,
    quiet_events: Quiet,
}

/// Counters since the start, and what there is now.
#[derive(Clone, Debug)]
pub struct ProxyStats {
    /// Local clients now.
    pub clients: usize,
    /// Tunnels now, both roles.
    pub connections: usize,
    /// Tasks now that serve a client or a peer's stream, whatever its state.
    pub tasks: usize,
    /// Closed connections that can still be looked up.
    pub tombstones: usize,
    pub opened: u64,
    pub closed: u64,
    /// Tunnels that did not come about.
    pub refused: u64,
    /// Payload bytes from and to other nodes.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub net: NetStats,
}

impl Proxy {
    /// Binds the UDP socket and the forward proxy's listener, and serves both until [`Self::close`]. Needs a tokio runtime.
    ///
    /// Errors: `InvalidArgument`, `BindFailed`, or what is wrong with the identity.
    pub async fn start(identity: Identity, config: ProxyConfig) -> Result<Self> {
        config.check()?;
        let credentials = config.credentials.clone().map_or_else(random_credentials, Ok)?;
        let check = Credentials::new(&credentials.0, &credentials.1)?;
        let listener = Listener::bind(&LocalListener::Tcp(config.forward)).await?;
        let forward_address = listener.socket_address().unwrap_or(config.forward);
        let utp = config.net.utp.clone();
        let finding = config.clone();
        let (net, incoming) = Net::bind(config.listen, config.net)?;
        let paths = net.subscribe();
        let limits = config.limits;
        let peers = Peers::new(net, identity, utp, config.tls, limits.clone())?;
        let publisher = Publisher::new(limits.event_queue);
        let shared = Arc::new(Shared {
            peers,
            runtime: tokio::runtime::Handle::current(),
            credentials,
            check,
            forward_address,
            services: RwLock::new(config.services),
            access: Access::new(config.allow),
            registry: Registry::new(publisher.clone(), limits.tombstone, limits.max_tombstones),
            publisher,
            lifecycle: Lifecycle::default(),
            accepted: Arc::new(Semaphore::new(limits.max_clients.saturating_add(REFUSAL_PLACES))),
            clients: Arc::new(Semaphore::new(limits.max_clients)),
            pool: http::Pool::default(),
            finding: OnceLock::new(),
            connected: Mutex::default(),
            refusals: AtomicU64::new(0),
            quiet_log: Quiet::new(32, 60),
            quiet_events: Quiet::new(64, 600),
            limits,
        });
        let _ = shared.finding.set(Finding::start(&shared, &finding)?);
        let never = std::future::pending();
        shared.lifecycle.spawn_loop(forward::serve(shared.clone(), listener, Serves::Connect, never));
        shared.lifecycle.spawn_loop(reverse::serve(shared.clone(), incoming));
        shared.lifecycle.spawn_loop(watch_paths(shared.clone(), paths));
        let proxy = Self { handle: Arc::new(Handle { shared }) };
        let (node, listen) = (proxy.node_id(), proxy.proxy_address());
        tracing::info!(%node, %listen, forward = %forward_address, "node started");
        Ok(proxy)
    }

    /// The key that this node uses now.
    pub fn node_id(&self) -> NodeId {
        self.shared().peers.identity().node_id()
    }

    /// Where the forward proxy listens.
    pub fn forward_address(&self) -> SocketAddr {
        self.shared().forward_address
    }

    /// The UDP socket.
    pub fn proxy_address(&self) -> SocketAddr {
        self.shared().peers.net.local_address()
    }

    /// User and password of the forward proxy.
    pub fn credentials(&self) -> (String, String) {
        self.shared().credentials.clone()
    }

    /// Names the addresses of a node, `host:port` or `[v6]:port`, in place of those named before; names are resolved at each
    /// dial. Errors: `InvalidArgument`.
    pub fn add_peer(&self, node: NodeId, addresses: Vec<String>) -> Result<()> {
        self.shared().peers.add_peer(node, addresses)
    }

    /// Forgets a node's addresses. Live connections go on, and so do paths while they live.
    pub fn remove_peer(&self, node: &NodeId) {
        self.shared().peers.remove_peer(node);
    }

    /// The nodes that were added, with their addresses.
    pub fn peers(&self) -> Vec<(NodeId, Vec<String>)> {
        self.shared().peers.peers()
    }

    /// Punches towards a node that will dial this one: opens our own NAT for it, and waits for it to answer.
    ///
    /// Errors: `UnknownNode`, `PunchTimeout`, `ProxyClosed`.
    pub async fn expect(&self, node: NodeId, timeout: Duration) -> Result<PathInfo> {
        let expected = self.unless_closed(self.shared().peers.expect(node, timeout)).await;
        expected.inspect_err(|error| tracing::info!(%error, "punching failed"))
    }

    /// Connects to a node, shakes hands, and reports how that went; asks for no service.
    ///
    /// Errors: as a CONNECT, with the stage that failed.
    pub async fn ping(&self, node: NodeId, timeout: Duration) -> Result<PingReport> {
        let report = self.unless_closed(self.shared().peers.ping(node, timeout)).await;
        report.inspect_err(|error| tracing::info!(%error, "ping failed"))
    }

    /// A stream to a service of another node. Errors: as a CONNECT.
    pub async fn connect(&self, node: NodeId, service_port: u16) -> Result<Tunnel> {
        let shared = self.shared();
        let wanted = Wanted { node, service_port, address: None, priority: Priority::Interactive, patience: None };
        let (link, mut entry) = self.unless_closed(forward::connect(shared, &wanted, None)).await?;
        entry.open();
        Ok(Tunnel::new(link, entry, shared.limits.linger))
    }

    /// Listens on `local` for programs that cannot speak CONNECT: each connection goes to that service of that node. A node
    /// that cannot be reached shows as a reset, and in [`Self::last_error`]. Runs until it or the proxy is closed.
    ///
    /// HTTP requests that pages in a browser have sent are refused, unless they are of this machine, or of one of the `browser_hosts`;
    /// `*` lets all of them in.
    ///
    /// Errors: `BindFailed`, `ProxyClosed`.
    pub async fn forward(
        &self,
        node: NodeId,
        service_port: u16,
        local: LocalListener,
        browser_hosts: &[String],
    ) -> Result<Forward> {
        // no page gets at a UNIX socket
        let guards = matches!(local, LocalListener::Tcp(_)) && !browser_hosts.iter().any(|host| host == "*");
        let guard = guards.then(|| browser_hosts.into());
        let listener = self.unless_closed(Listener::bind(&local)).await?;
        let address = listener.address();
        let (closing, mut closed) = watch::channel(false);
        let shared = self.shared().clone();
        self.shared().lifecycle.spawn_loop(async move {
            let closed = async move {
                if closed.wait_for(|closed| *closed).await.is_err() {
                    // The handle was dropped, which does not close the listener.
                    std::future::pending::<()>().await;
                }
            };
            forward::serve(shared, listener, Serves::Static { node, service_port, guard }, closed).await;
        });
        Ok(Forward { address, closing })
    }

    /// New handshakes use this identity; live connections go on. Errors: what is wrong with it.
    pub fn rotate(&self, identity: Identity) -> Result<()> {
        self.shared().peers.rotate(identity)?;
        if let Some(finding) = self.shared().finding.get() {
            finding.renew();
        }
        tracing::info!(node = %self.node_id(), "identity replaced");
        Ok(())
    }

    /// Adds or replaces a service, or takes it away; live connections to it go on.
    pub fn set_service(&self, port: u16, service: Option<Service>) {
        let mut services = self.shared().services.write().unwrap_or_else(PoisonError::into_inner);
        match service {
            Some(service) => services.insert(port, service),
            None => services.remove(&port),
        };
    }

    /// Replaces the access list. Streams of nodes that are not on it any more, by any of their names, end with `AccessRevoked`,
    /// and their nodes are told; a function is asked about each stream that stands.
    pub fn set_allow(&self, allow: Allow) {
        self.shared().replace_allow(allow, true);
    }

    /// Replaces the access list for streams that are opened from now on; those that stand go on.
    pub fn set_allow_for_new(&self, allow: Allow) {
        self.shared().replace_allow(allow, false);
    }

    /// Ends every live connection with a node, by any of its names, and says how many there were: those to services here with
    /// `AccessRevoked`, those to its services with `Cancelled`. It may connect again, as far as the access list lets it.
    pub fn disconnect(&self, node: &NodeId) -> usize {
        self.shared().disconnect(node)
    }

    /// Every live connection, in the order in which they began.
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        self.shared().registry.live()
    }

    /// Live connections with a node, by any of its names.
    pub fn connections_of(&self, node: &NodeId) -> Vec<ConnectionInfo> {
        let mut all = self.connections();
        all.retain(|info| info.nodes.contains(node));
        all
    }

    /// Changes the priority of a live connection, for what this node sends; what the peer sends is the peer's to say. False:
    /// no connection has this id (any more).
    pub fn set_priority(&self, id: u64, priority: Priority) -> bool {
        let shared = self.shared();
        shared.registry.set_priority(id, priority, shared.peers.controller(priority))
    }

    /// Forward side: the connection of the local client at `address`, its `ip:port` as the forward proxy saw it.
    pub fn connection_by_client(&self, address: &str) -> Option<ConnectionInfo> {
        self.shared().registry.by_client(address)
    }

    /// Reverse side: the connection that the service sees as its peer `address` (`ip:port`, `unix-abstract:...`, or as gRPC's
    /// `context.peer()` writes them), also for a while after its end. `None`: unknown, which must be taken for a stranger.
    pub fn connection_by_reverse(&self, address: &str) -> Option<ConnectionInfo> {
        self.shared().registry.by_reverse(address)
    }

    /// Why the last dial to a node failed, or else how the last connection with it broke; `None` when neither did.
    pub fn last_error(&self, node: &NodeId) -> Option<Error> {
        let shared = self.shared();
        shared.peers.last_error(node).or_else(|| shared.registry.last_failure(node))
    }

    /// Everything that happens from now on.
    pub fn subscribe(&self) -> Events {
        let shared = self.shared();
        let events = shared.publisher.subscribe();
        if shared.lifecycle.phase() == Phase::Closed {
            return Events::ended();
        }
        events
    }

    pub fn stats(&self) -> ProxyStats {
        let shared = self.shared();
        let (totals, tombstones) = shared.registry.totals();
        ProxyStats {
            clients: shared.limits.max_clients.saturating_sub(shared.clients.available_permits()),
            connections: shared.registry.live_count(),
            tasks: shared.lifecycle.connections(),
            tombstones,
            opened: totals.opened,
            closed: totals.closed,
            refused: shared.refusals.load(Ordering::Relaxed),
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
            net: shared.peers.net.stats(),
        }
    }

    /// Closes the proxy. Any number of calls wait for the same end; an abort hurries a drain that is under way. Dropping the
    /// future does not stop the closing.
    pub async fn close(&self, how: Close) {
        let shared = self.shared();
        shared.begin_close(how);
        shared.lifecycle.reached(Phase::Closed).await;
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// Errors: `ProxyClosed` as soon as the proxy begins to close.
    async fn unless_closed<T>(&self, work: impl std::future::Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.shared().lifecycle.reached(Phase::Draining) => {
                Err(Error::new(Reason::ProxyClosed, Stage::Setup, "the proxy is closed"))
            }
            result = work => result,
        }
    }
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy")
            .field("node", &self.node_id())
            .field("listen", &self.proxy_address())
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Without a runtime its tasks are gone already.
        if tokio::runtime::Handle::try_current().is_ok() {
            self.shared.begin_close(Close::Abort);
        }
    }
}

/// A listener for programs without CONNECT support. Dropping it does not close it.
#[derive(Debug)]
pub struct Forward {
    address: String,
    closing: watch::Sender<bool>,
}

impl Forward {
    /// `ip:port`, or `unix:` and the path.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Takes no more connections; live ones go on. Returns when the listener is gone.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        // Until the listener's task, which holds the other end, is gone.
        self.closing.closed().await;
    }
}

impl Shared {
    /// Starts closing, once; a second call can only hurry it.
    fn begin_close(self: &Arc<Self>, how: Close) {
        let first = self.lifecycle.advance(Phase::Draining);
        if how == Close::Abort {
            self.lifecycle.advance(Phase::Aborting);
        }
        if first {
            tracing::info!(node = %self.peers.identity().node_id(), ?how, "node closing");
            tokio::spawn(self.clone().finish_close());
        }
    }

    async fn finish_close(self: Arc<Self>) {
        let drained = async {
            self.lifecycle.connections_ended().await;
            self.registry.emptied().await;
            // sessions with rendezvous nodes are connections too
            self.stop_finding().await;
            self.delivered().await;
        };
        tokio::select! {
            () = drained => {}
            () = self.lifecycle.reached(Phase::Aborting) => {}
            () = tokio::time::sleep(self.limits.drain_timeout) => {}
        }
        self.lifecycle.advance(Phase::Aborting);
        self.stop_finding().await;
        let ended = async {
            self.lifecycle.connections_ended().await;
            self.lifecycle.loops_ended().await;
        };
        if tokio::time::timeout(ABORT_TIME, ended).await.is_err() {
            tracing::warn!("tasks of the proxy do not end");
        }
        // Bounded: when the runtime under the socket is gone, nobody is left to say that it is closed.
        if tokio::time::timeout(ABORT_TIME, self.peers.net.close()).await.is_err() {
            tracing::warn!("the socket does not close");
        }
        self.lifecycle.advance(Phase::Closed);
        tracing::info!(node = %self.peers.identity().node_id(), "node closed");
        self.publisher.publish(Event::Closed);
    }

    /// Leaves the rendezvous nodes and the local network.
    async fn stop_finding(&self) {
        if let Some(finding) = self.finding.get() {
            let _ = tokio::time::timeout(finding::CLOSE_TIME, finding.close()).await;
        }
    }

    /// Waits until uTP has handed over what ended tunnels had left to it: closing the socket would lose that.
    async fn delivered(&self) {
        while self.peers.net.stats().connections > 0 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// A link to a node has come about: subscribers hear of it when it is the first.
    fn met(&self, link: &Link) {
        let (node, address, relayed) = (link.peer.leaf, link.address, link.utp().is_relayed());
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.len() >= MAX_CONNECTED {
            connected.retain(|node, _| !self.peers.net.live_addresses(node).is_empty());
        }
        if connected.insert(node, address).is_none() {
            tracing::info!(%node, %address, "peer connected");
            self.publisher.publish(Event::PeerConnected { node, address, relayed });
        }
    }

    /// A life of a node is over; the next one may be there already.
    fn life_ended(&self, node: NodeId, address: SocketAddr, reason: Reason) {
        let alive = self.peers.net.live_addresses(&node).first().copied();
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.remove(&node).is_none() {
            return;
        }
        tracing::info!(%node, %address, %reason, "peer lost");
        self.publisher.publish(Event::PeerLost { node, address, reason });
        drop(connected);
        if let Some(alive) = alive {
            self.found(node, unmapped(alive));
        }
    }

    /// A node whose path was lost answers again.
    fn found(&self, node: NodeId, address: SocketAddr) {
        // somebody whom the access list turned away has a key as well for a while
        if !self.registry.live().iter().any(|one| one.node == node) {
            return;
        }
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.len() < MAX_CONNECTED && connected.insert(node, address).is_none() {
            tracing::info!(%node, %address, "peer connected again");
            let relayed = self.peers.net.is_relayed(&node);
            self.publisher.publish(Event::PeerConnected { node, address, relayed });
        }
    }

    fn lost(&self, node: NodeId, address: SocketAddr, silent_for: Duration, reason: Reason) {
        if !self.peers.net.live_addresses(&node).is_empty() {
            return;
        }
        let mut connected = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if connected.remove(&node).is_some() {
            self.peers.note_heard(node, silent_for);
            tracing::info!(%node, %address, %reason, "peer lost");
            self.publisher.publish(Event::PeerLost { node, address, reason });
        }
    }
}

/// Turns what happens to paths into what happens to nodes.
async fn watch_paths(shared: Arc<Shared>, mut paths: broadcast::Receiver<NetEvent>) {
    loop {
        let event = tokio::select! {
            biased;
            () = shared.lifecycle.reached(Phase::Aborting) => return,
            event = paths.recv() => event,
        };
        match event {
            Ok(NetEvent::PathLost { node: Some(node), address, silent_for, reason, .. }) => {
                shared.lost(node, unmapped(address), silent_for, reason);
            }
            Ok(NetEvent::LifeEnded { node, address, reason, .. }) => shared.life_ended(node, unmapped(address), reason),
            Ok(NetEvent::PathFound { node, address, .. }) => shared.found(node, unmapped(address)),
            Ok(NetEvent::PathMoved { node: Some(node), from, to, relayed, .. }) => {
                let was_relayed = from.via.is_relay();
                let (from, to) = (unmapped(from.to), unmapped(to.to));
                if (from, was_relayed) == (to, relayed) {
                    continue; // through another socket or relay of ours: the peer is where it was
                }
                shared.publisher.publish(Event::PathChanged { node, from, to, relayed });
            }
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "path events were missed");
                let known: Vec<_> = {
                    let connected = shared.connected.lock().unwrap_or_else(PoisonError::into_inner);
                    connected.iter().map(|(node, address)| (*node, *address)).collect()
                };
                let lost = |(node, address)| shared.lost(node, address, Duration::ZERO, Reason::PeerLost);
                known.into_iter().for_each(lost);
            }
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

/// 160 bits each: nobody guesses them, and they need no escaping anywhere.
fn random_credentials() -> Result<(String, String)> {
    let mut bytes = [0; 20];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Reason::Internal, Stage::Setup, format!("no randomness: {error}")))?;
    Ok(("keynet".to_owned(), BASE32_NOPAD.encode(&bytes).to_ascii_lowercase()))
}

/// Tasks are dropped where they stand when the proxy aborts, so this is reached only when their runtime has gone.
const ABORT_TIME: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Connected nodes that are kept before those without a path are thrown out.
const MAX_CONNECTED: usize = 16_384;
