//! Peers: how a link to one comes about, from either side. A link is a uTP stream with TLS over it and the node at its other
//! end proven.

mod accept;
mod contact;
mod dial;
mod link;
mod places;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use dial::{resolve, scoped, Dial, PingReport};
pub use link::Link;
pub use places::{Place, Places, Ticket};

use crate::addr::{NodeId, Route};
use crate::config::{ControllerKind, ProxyLimits, TlsConfig, UtpConfig};
use crate::error::{Error, Result};
use crate::net::{Net, PathInfo};
use crate::open::Priority;
use crate::tls::{Identity, PeerIdentity, TlsContext};
use contact::Contact;
use table::Table;

/// This node among its peers: its socket, its identity, what it knows of others.
pub struct Peers {
    pub net: Net,
    identity: RwLock<Current>,
    utp: UtpConfig,
    tls: TlsConfig,
    limits: ProxyLimits,
    table: Mutex<Table>,
    /// First dials that are under way, for all who want the same.
    contacts: Mutex<HashMap<contact::Key, Weak<Contact>>>,
    /// Dials to nodes to which a path is proven: each node has its own limit, so that none is in another's way.
    turns: Mutex<HashMap<NodeId, Arc<Semaphore>>>,
    /// Places for handshakes of those who connect.
    pub places: Arc<Places>,
    /// Who opens paths to nodes whose addresses are not known.
    finder: OnceLock<Weak<dyn Finder>>,
    /// Nodes of the local network, by their own word.
    neighbours: Mutex<BTreeMap<NodeId, Vec<SocketAddr>>>,
}

/// How a dial ended.
#[derive(Clone, Debug)]
pub struct LastDial {
    pub at: Instant,
    /// `None`: well.
    pub error: Option<Error>,
}

/// Opens paths to nodes of which only the key is known.
pub trait Finder: Send + Sync {
    /// When it is done there is a path to the node. Errors: why not.
    fn find(self: Arc<Self>, node: NodeId, deadline: Instant) -> Finding;
}

/// A search under way; dropping it ends it.
pub type Finding = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// The identity that new handshakes use.
#[derive(Clone)]
struct Current {
    identity: Identity,
    tls: TlsContext,
}

impl Peers {
    pub fn new(net: Net, identity: Identity, utp: UtpConfig, tls: TlsConfig, limits: ProxyLimits) -> Result<Arc<Self>> {
        let current = Current { tls: TlsContext::new(&identity, &tls)?, identity };
        Ok(Arc::new(Self {
            net,
            identity: RwLock::new(current),
            utp,
            tls,
            table: Mutex::new(Table::new(limits.max_peers, limits.max_addresses)),
            places: Places::new(&limits),
            limits,
            contacts: Mutex::default(),
            turns: Mutex::default(),
            finder: OnceLock::new(),
            neighbours: Mutex::default(),
        }))
    }

    pub fn identity(&self) -> Identity {
        self.current().identity
    }

    /// The moment by which the dates of others are judged.
    pub fn judging_time(&self) -> SystemTime {
        self.current().identity.judging_time(now())
    }

    /// New handshakes, in both roles, use this identity; live links go on.
    pub fn rotate(&self, identity: Identity) -> Result<()> {
        let current = Current { tls: TlsContext::new(&identity, &self.tls)?, identity };
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// Errors: `InvalidArgument` for addresses that are none, or too many peers.
    pub fn add_peer(&self, node: NodeId, addresses: Vec<String>) -> Result<()> {
        self.table().add(node, addresses)
    }

    pub fn remove_peer(&self, node: &NodeId) {
        self.table().remove(node);
    }

    /// The peers that have been added, with their addresses.
    pub fn peers(&self) -> Vec<(NodeId, Vec<String>)> {
        self.table().peers()
    }

    /// What went wrong when this node was last dialled, unless a dial has succeeded since.
    pub fn last_error(&self, node: &NodeId) -> Option<Error> {
        self.table().last_error(node)
    }

    /// Remembers what went wrong with a node.
    pub fn note(&self, node: NodeId, error: Error) {
        self.table().note(node, Some(error));
    }

    /// Remembers how a dial ended, now.
    pub fn note_dial(&self, node: NodeId, error: Option<Error>) {
        self.table().note_dial(node, LastDial { at: Instant::now(), error });
    }

    pub fn last_dial(&self, node: &NodeId) -> Option<LastDial> {
        self.table().last_dial(node)
    }

    /// Remembers when the last sign of life came from a node that is lost.
    pub fn note_heard(&self, node: NodeId, silent_for: Duration) {
        if let Some(at) = Instant::now().checked_sub(silent_for) {
            self.table().note_heard(node, at);
        }
    }

    /// The last sign of life of a node, as far as is known.
    pub fn heard(&self, node: &NodeId) -> Option<Instant> {
        let paths = self.net.paths(node);
        let silent_for = paths.iter().filter(|path| path.proven).map(|path| path.silent_for).min();
        let live = silent_for.and_then(|silent_for| Instant::now().checked_sub(silent_for));
        live.max(self.table().heard(node))
    }

    /// Punches towards a node that will dial us: opens our own NAT and waits for an answer.
    ///
    /// Errors: `UnknownNode` when no address of it is known, `PunchTimeout`.
    pub async fn expect(&self, node: NodeId, timeout: std::time::Duration) -> Result<PathInfo> {
        let addresses = self.resolve_all(node, timeout).await?;
        self.net.punch(addresses, timeout).await.map_err(|error| error.with_node(node))
    }

    /// From now on nodes are also looked for through `finder`; the first one stays.
    pub fn find_through(&self, finder: Weak<dyn Finder>) {
        let _ = self.finder.set(finder);
    }

    fn finder(&self) -> Option<Arc<dyn Finder>> {
        self.finder.get()?.upgrade()
    }

    /// Who is in the local network now, in place of whoever was.
    pub fn set_neighbours(&self, neighbours: BTreeMap<NodeId, Vec<SocketAddr>>) {
        *self.neighbours.lock().unwrap_or_else(PoisonError::into_inner) = neighbours;
    }

    /// Where a node of the local network says it is.
    pub fn neighbour_addresses(&self, node: &NodeId) -> Vec<SocketAddr> {
        let neighbours = self.neighbours.lock().unwrap_or_else(PoisonError::into_inner);
        neighbours.get(node).cloned().unwrap_or_default()
    }

    /// Whether the program named this node.
    pub fn is_named(&self, node: &NodeId) -> bool {
        self.table().is_named(node)
    }

    /// Whether the program has dialled this node with success. That there is a path to it says nothing: strangers have one too.
    pub fn has_dialled(&self, node: &NodeId) -> bool {
        self.table().has_dialled(node)
    }

    /// Remembers which key a node uses, for the name by which it was looked for, and for those that the program has told.
    pub fn learn(&self, peer: &PeerIdentity, wanted: Option<&NodeId>) {
        self.table().learn_of(peer.leaf, &peer.all, wanted);
    }

    /// The access list has let a node in; `listed` are those of its names that the list itself has.
    pub fn let_in(&self, peer: &PeerIdentity, listed: &[NodeId]) {
        self.learn(peer, None);
        let mut table = self.table();
        table.learn_leaf(peer.leaf, listed);
        table.welcome(peer.leaf);
    }

    /// Whether the node was let in before, since the access list is what it is.
    pub fn is_welcome(&self, node: &NodeId) -> bool {
        self.table().is_welcome(node)
    }

    pub fn forget_welcomes(&self) {
        self.table().forget_welcomes();
    }

    pub fn tls_config(&self) -> &TlsConfig {
        &self.tls
    }

    /// The key that a node uses now, as far as is known.
    pub fn leaf(&self, node: &NodeId) -> NodeId {
        self.table().leaf(node)
    }

    /// The addresses that the program named for a node.
    pub fn named_addresses(&self, node: &NodeId) -> Vec<String> {
        self.table().addresses(node)
    }

    /// Routes over which a node has proven itself, in use first.
    fn live_routes(&self, node: &NodeId) -> Vec<Route> {
        let leaf = self.table().leaf(node);
        let mut routes = self.net.live_routes(&leaf);
        if leaf != *node {
            routes.extend(self.net.live_routes(node));
        }
        routes
    }

    fn current(&self) -> Current {
        self.identity.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who decides how fast a stream of this priority sends.
    pub fn controller(&self, priority: Priority) -> ControllerKind {
        match priority {
            Priority::Interactive => self.utp.controller,
            Priority::Background => ControllerKind::Ledbat,
        }
    }

    fn utp_config(&self, priority: Priority) -> UtpConfig {
        UtpConfig { controller: self.controller(priority), ..self.utp.clone() }
    }
}

/// TLS is judged by the machine's clock.
pub fn now() -> SystemTime {
    SystemTime::now()
}
