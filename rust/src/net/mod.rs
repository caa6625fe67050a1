//! The UDP socket and the one task that owns it. tokio starts here: below there is no runtime, above there is no datagram.

mod clock;
mod conn;
mod core;
mod driver;
mod events;
mod locals;
mod meeting;
mod outside;
mod police;
mod refused;
pub(crate) mod socket;
mod sockets;
pub mod stagger;
mod stream;
pub mod uplink;
mod wire;

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::addr::{NodeId, PingKeys, RemoteId, Route, Via};
use crate::config::{EndpointConfig, PathConfig, RelayLimits, SocketConfig, UtpConfig};
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{MeetingId, PathStats, PathView, PunchId, Traffic};
use crate::time::Time;
use crate::utp::Dropped;
use conn::Doorbell;
use core::Core;
use socket::Socket;
use sockets::{NewSockets, Sockets};
use wire::Wires;

pub use crate::addr::Datagrams;
pub(crate) use clock::Clock;
pub use locals::{interface_number, source_towards, usual_source};
pub use meeting::{Meeting, MeetingState, Met};
pub use stream::{Helm, UtpStream};
pub use wire::Wire;

/// Knobs of everything below.
#[derive(Clone, Debug, Default)]
pub struct NetConfig {
    pub socket: SocketConfig,
    pub endpoint: EndpointConfig,
    pub path: PathConfig,
    pub utp: UtpConfig,
    pub relay: RelayLimits,
}

/// A path that has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    pub address: SocketAddr,
    pub rtt: Duration,
    /// Our own address as the other side saw it.
    pub observed: Option<SocketAddr>,
}

/// What happens to paths. Late subscribers miss what came before.
#[derive(Clone, Debug)]
pub enum NetEvent {
    /// A remote has proven that it receives what is sent to it.
    PathUp { remote: RemoteId, node: Option<NodeId>, address: SocketAddr },
    /// Nothing was heard from it for too long. Its connections are broken, or, with a node that had proven itself, wait for it
    /// for as long as [`UtpConfig::patience`] says.
    PathLost { remote: RemoteId, node: Option<NodeId>, address: SocketAddr, silent_for: Duration, reason: Reason },
    /// A life of a node is over: it has started anew, or has said goodbye. The connections with that life are broken.
    LifeEnded { remote: RemoteId, node: NodeId, address: SocketAddr, reason: Reason },
    /// A node whose path was lost answers again.
    PathFound { remote: RemoteId, node: NodeId, address: SocketAddr },
    PathMoved {
        remote: RemoteId,
        node: Option<NodeId>,
        from: Route,
        to: Route,
        /// By way of a relay, from now on.
        relayed: bool,
    },
    /// The only path to a node that is in use does not answer.
    PathSilent { remote: RemoteId, node: NodeId },
    /// A peer or a server saw our datagrams come from an address that is news.
    Observed { address: SocketAddr, by: SocketAddr },
}

/// Counters since the start, and how full the tables are.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetStats {
    pub datagrams_in: u64,
    pub datagrams_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Datagrams that are neither STUN nor uTP, or malformed.
    pub dropped_unknown: u64,
    pub dropped_malformed: u64,
    /// uTP packets for no connection.
    pub dropped_stray: u64,
    /// For want of room in a table.
    pub dropped_full: u64,
    pub send_errors: u64,
    /// For want of the rate that relays may be used at.
    pub dropped_relay_limit: u64,
    pub connections: usize,
    pub half_open: usize,
    pub paths: PathStats,
}

impl NetStats {
    fn count(&mut self, why: Dropped) {
        match why {
            Dropped::Malformed => self.dropped_malformed += 1,
            Dropped::Unknown => self.dropped_stray += 1,
            Dropped::Full => self.dropped_full += 1,
        }
    }
}

/// A node's socket. Cheap to clone; the last word is [`Net::close`].
#[derive(Clone, Debug)]
pub struct Net {
    inner: Arc<Inner>,
}

/// Connections that peers opened.
#[derive(Debug)]
pub struct Incoming {
    queue: mpsc::Receiver<UtpStream>,
}

impl Incoming {
    /// The next one; `None` after [`Net::close`].
    pub async fn accept(&mut self) -> Option<UtpStream> {
        self.queue.recv().await
    }
}

/// What the driver, the streams and the handles share.
#[derive(Debug)]
struct Inner {
    clock: Clock,
    local_address: SocketAddr,
    doorbell: Doorbell,
    core: Mutex<Core>,
    punches: Mutex<HashMap<PunchId, oneshot::Sender<Result<PathInfo>>>>,
    /// Who watches which meeting; one that ends is taken out.
    meetings: Mutex<HashMap<MeetingId, watch::Sender<MeetingState>>>,
    new_sockets: Mutex<NewSockets>,
    wires: Wires,
    socket_config: SocketConfig,
    events: broadcast::Sender<NetEvent>,
    closing: AtomicBool,
    closed: watch::Sender<bool>,
}

impl Net {
    /// Binds the socket and starts its driver; needs a tokio runtime around it.
    pub fn bind(listen: SocketAddr, mut config: NetConfig) -> Result<(Self, Incoming)> {
        let socket = Socket::bind(listen, &config.socket)?;
        let socket_config = config.socket.clone();
        config.endpoint.receive_burst = socket.receive_burst();
        let (accepted, queue) = mpsc::channel(ACCEPT_QUEUE);
        let (wires, carried) = Wires::new();
        let inner = Arc::new(Inner {
            clock: Clock::start(),
            local_address: socket.local_address(),
            doorbell: Doorbell::default(),
            core: Mutex::new(Core::new(config)?),
            punches: Mutex::default(),
            meetings: Mutex::default(),
            new_sockets: Mutex::default(),
            wires,
            socket_config,
            events: broadcast::Sender::new(EVENT_QUEUE),
            closing: AtomicBool::new(false),
            closed: watch::Sender::new(false),
        });
        tokio::spawn(driver::run(inner.clone(), Sockets::new(socket), carried, accepted));
        Ok((Self { inner }, Incoming { queue }))
    }

    pub fn local_address(&self) -> SocketAddr {
        self.inner.local_address
    }

    /// Opens a uTP connection, punching on the way. Dropping the future gives it up. Fails with `PunchTimeout` when nothing
    /// at all answered within `utp.connect_timeout`, with `ConnectTimeout` or `ConnectRefused` when something did.
    pub async fn connect(&self, address: SocketAddr, utp: UtpConfig) -> Result<UtpStream> {
        self.connect_along(address.into(), None, utp).await
    }

    /// The same along a route, to the remote that is `node` where several are at its end.
    pub async fn connect_along(&self, route: Route, node: Option<&NodeId>, utp: UtpConfig) -> Result<UtpStream> {
        let address = route.to;
        let (stream, punch) = self.inner.dial(route, node, &utp)?;
        let _punch = PunchGuard { inner: &self.inner, id: punch };
        let failed = match poll_fn(|cx| stream.poll_connected(cx)).await {
            Ok(()) => return Ok(stream),
            Err(reason) => reason,
        };
        let answered = self.inner.core().paths.rtt_of(stream.remote()).is_some();
        let waited = format!("waited {:.1} s", utp.connect_timeout.as_secs_f32());
        Err(match failed {
            Reason::ConnectTimeout if !answered => Error::new(Reason::PunchTimeout, Stage::Punch, waited),
            Reason::PeerLost if !answered => Error::new(Reason::PunchTimeout, Stage::Punch, "no answer"),
            Reason::ConnectTimeout => Error::new(Reason::ConnectTimeout, Stage::Utp, waited),
            Reason::PeerReset => Error::new(Reason::ConnectRefused, Stage::Utp, ""),
            reason => Error::new(reason, Stage::Utp, ""),
        }
        .with_address(address))
    }

    /// Pings the addresses by the punching schedule until one answers.
    pub async fn punch(&self, addresses: Vec<SocketAddr>, timeout: Duration) -> Result<PathInfo> {
        self.inner.check_open()?;
        let (done, answer) = oneshot::channel();
        let routes: Vec<_> = addresses.into_iter().map(Route::from).collect();
        let id = self.inner.start_punch(&routes, timeout, Some(done));
        let _punch = PunchGuard { inner: &self.inner, id: Some(id) };
        answer.await.unwrap_or_else(|_| Err(self.inner.closed_error()))
    }

    /// `node` has proven itself behind `remote`; its pings are recognised by `keys` from now on.
    pub fn bind_node(&self, remote: RemoteId, node: NodeId, keys: PingKeys) {
        let now = self.inner.clock.now();
        self.inner.core().paths.bind_node(now, remote, node, keys);
        self.inner.doorbell.ring_plain();
    }

    /// Addresses where `node` is known to be reachable now, the one in use first.
    pub fn live_addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        self.inner.core().paths.addresses_of_node(node)
    }

    /// The same as routes, of each of its remotes the one in use.
    pub fn live_routes(&self, node: &NodeId) -> Vec<Route> {
        let core = self.inner.core();
        let mut routes: Vec<Route> = Vec::new();
        for (_, route) in core.paths.routes_of_node(node) {
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        routes
    }

    /// Pings the paths to a node now, unless they were just heard.
    pub fn ask(&self, node: &NodeId) {
        self.inner.core().paths.ask_node(self.inner.clock.now(), node);
        self.inner.doorbell.ring_plain();
    }

    /// The same in any case. Returns the moment for [`Net::is_heard_since`].
    pub fn ask_anyway(&self, node: &NodeId) -> Time {
        let now = self.inner.clock.now();
        self.inner.core().paths.ask_node_anyway(now, node);
        self.inner.doorbell.ring_plain();
        now
    }

    /// This machine is in another network: pings every path that is in use. Returns the nodes, with the round trip where it is known,
    /// and the moment for [`Net::is_heard_since`].
    pub fn network_changed(&self) -> (Vec<(NodeId, Option<Duration>)>, Time) {
        let now = self.inner.clock.now();
        let asked = self.inner.core().paths.handle_network_change(now);
        self.inner.doorbell.ring_plain();
        (asked, now)
    }

    /// Whether the paths in use to a node have given a sign of life since then.
    pub fn is_heard_since(&self, node: &NodeId, since: Time) -> bool {
        self.inner.core().paths.is_heard_since(node, since)
    }

    /// Where what leaves by the own socket goes: some of the addresses in use.
    pub fn destinations(&self, most: usize) -> Vec<SocketAddr> {
        self.inner.core().paths.destinations(most)
    }

    /// Whether the only path to a node fell silent ([`NetEvent::PathSilent`]), and still is.
    pub fn has_silent_path(&self, node: &NodeId) -> bool {
        self.inner.core().paths.has_silent_path(node)
    }

    /// Every path to a node.
    pub fn paths(&self, node: &NodeId) -> Vec<PathView> {
        self.inner.core().paths.paths_of_node(self.inner.clock.now(), node)
    }

    /// What went between us and a node.
    pub fn traffic(&self, node: &NodeId) -> Traffic {
        self.inner.core().paths.traffic_of_node(node)
    }

    /// Ways that are about to close: what goes over them takes another path, where there is one.
    pub fn leave(&self, vias: &[Via]) {
        self.inner.core().paths.handle_leaving(self.inner.clock.now(), vias);
        self.inner.doorbell.ring_plain();
    }

    /// Whether a relay carries what goes to a node now.
    pub fn is_relayed(&self, node: &NodeId) -> bool {
        let core = self.inner.core();
        core.paths.routes_of_node(node).first().is_some_and(|(remote, _)| core.paths.is_relayed(*remote))
    }

    /// Nodes with connections that a relay carries.
    pub fn relayed_nodes(&self) -> Vec<NodeId> {
        self.inner.core().paths.relayed_nodes()
    }

    /// Every node to which there is a path.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.inner.core().paths.nodes().copied().collect()
    }

    pub fn subscribe(&self) -> broadcast::Receiver<NetEvent> {
        self.inner.events.subscribe()
    }

    pub fn stats(&self) -> NetStats {
        self.inner.core().stats()
    }

    /// The node is ending, or has ended.
    pub fn is_closing(&self) -> bool {
        self.inner.closing.load(Ordering::Acquire)
    }

    /// Resets what is left, ends the driver and closes the socket. Later calls wait for the end as well.
    pub async fn close(&self) {
        self.inner.closing.store(true, Ordering::Release);
        self.inner.doorbell.ring_plain();
        let mut closed = self.inner.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }
}

impl Inner {
    /// Never held across an await, and no code panics while it holds it.
    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn punches(&self) -> MutexGuard<'_, HashMap<PunchId, oneshot::Sender<Result<PathInfo>>>> {
        self.punches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meetings(&self) -> MutexGuard<'_, HashMap<MeetingId, watch::Sender<MeetingState>>> {
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn address_of(&self, remote: RemoteId) -> SocketAddr {
        self.core().address_of(remote)
    }

    fn check_open(&self) -> Result<()> {
        if self.closing.load(Ordering::Acquire) {
            return Err(self.closed_error());
        }
        Ok(())
    }

    fn closed_error(&self) -> Error {
        Error::new(Reason::ProxyClosed, Stage::Utp, "the socket was closed")
    }

    /// Starts a connection and, unless the path is known to work, a punching attempt.
    fn dial(
        self: &Arc<Self>,
        route: Route,
        node: Option<&NodeId>,
        utp: &UtpConfig,
    ) -> Result<(UtpStream, Option<PunchId>)> {
        let now = self.clock.now();
        let (conn, proven) = {
            let mut core = self.core();
            // asked under the lock: what comes after the driver's end would wait for ever
            self.check_open()?;
            core.dial(now, route, node, utp)?
        };
        let stream = UtpStream::new(conn.clone(), self.clone());
        self.doorbell.ring(&conn, &mut conn.lock());
        let punch = (!proven).then(|| self.start_punch(&[route], utp.connect_timeout, None));
        Ok((stream, punch))
    }

    fn start_punch(
        &self,
        routes: &[Route],
        timeout: Duration,
        done: Option<oneshot::Sender<Result<PathInfo>>>,
    ) -> PunchId {
        // taken in this order everywhere: core, then punches
        let mut core = self.core();
        let id = core.paths.start_punch(self.clock.now(), routes, timeout);
        // under the lock, as above; without a sender the attempt has ended
        if let Some(done) = done.filter(|_| self.check_open().is_ok()) {
            self.punches().insert(id, done);
        }
        drop(core);
        self.doorbell.ring_plain();
        id
    }
}

/// Ends a punching attempt when nobody waits for it any more.
struct PunchGuard<'a> {
    inner: &'a Inner,
    id: Option<PunchId>,
}

impl Drop for PunchGuard<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.inner.core().paths.stop_punch(id);
            self.inner.punches().remove(&id);
        }
    }
}

/// Connections that wait for `accept`; beyond it they are reset.
const ACCEPT_QUEUE: usize = 1_024;
/// Path events a subscriber may lag behind.
const EVENT_QUEUE: usize = 1_024;
