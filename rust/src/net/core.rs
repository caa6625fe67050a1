//! The sans-IO parts of a node together: endpoint, path table and the connections by slot. The driver holds its lock for
//! one batch at a time; `Net` holds it to start things.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::conn::{Conn, ConnState};
use super::locals::Locals;
use super::outside::Questions;
use super::police::Police;
use super::{NetConfig, NetStats};
use crate::addr::{Incarnation, NodeId, Origin, RemoteId, Route};
use crate::config::UtpConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{sendable, PathTable};
use crate::time::Time;
use crate::utp::{ConnectError, Connection, Endpoint, Handle, PathKey, Turn, Turns};

pub struct Core {
    pub endpoint: Endpoint,
    pub paths: PathTable,
    pub locals: Locals,
    pub questions: Questions,
    conns: Vec<Option<Arc<Conn>>>,
    /// Of remotes to which somebody sends in bulk.
    turns: HashMap<RemoteId, Turns>,
    /// One live entry for each connection at most; stale ones are skipped.
    pub timers: BinaryHeap<Reverse<(Time, Handle)>>,
    pub stats: NetStats,
    pub police: Police,
}

impl Core {
    pub fn new(config: NetConfig) -> Result<Self> {
        Ok(Self {
            endpoint: Endpoint::new(config.endpoint, config.utp, seed()?),
            paths: PathTable::new(config.path, seed()?),
            locals: Locals::default(),
            questions: Questions::default(),
            conns: Vec::new(),
            turns: HashMap::new(),
            timers: BinaryHeap::new(),
            stats: NetStats::default(),
            police: Police::new(config.relay, Time::ZERO),
        })
    }

    /// A connection along `route`, and whether that path is known to work. Where several remotes are at the address, the one of
    /// `node` is meant.
    pub fn dial(
        &mut self,
        now: Time,
        route: Route,
        node: Option<&NodeId>,
        utp: &UtpConfig,
    ) -> Result<(Arc<Conn>, bool)> {
        let address = route.to;
        if !sendable(address) {
            // `[::]:4433`, as a node shows its own socket, is what people copy
            let what = "nothing can be sent there: it is not the address of one host";
            return Err(Error::new(Reason::Unreachable, Stage::Punch, what).with_address(address));
        }
        let full = |what: &str| Error::new(Reason::TooManyConnections, Stage::Utp, what).with_address(address);
        let of_node = node.and_then(|node| {
            let routes = self.paths.routes_of_node(node);
            routes.into_iter().find(|(_, known)| *known == route).map(|(remote, _)| remote)
        });
        let remote = match of_node {
            Some(remote) => remote,
            None => self.paths.remote_for(now, route).map_err(|_| full("no room for another remote address"))?,
        };
        let proven = self.paths.rtt_of(remote).is_some();
        let key = self.paths.shared_keys(remote).own.filter(|_| proven);
        let cap = self.max_datagram(remote, route);
        let (handle, mut utp) =
            self.endpoint.connect(now, remote, utp, cap, key.as_ref()).map_err(|error| match error {
                ConnectError::Full => full("max_connections are open"),
                ConnectError::NoId => full("every connection id towards this address is taken"),
            })?;
        match self.paths.rtt_of(remote) {
            Some(rtt) => utp.expect_answer_in(rtt),
            None => utp.be_patient(),
        }
        Ok((self.insert(now, handle, utp), proven))
    }

    pub fn insert(&mut self, now: Time, handle: Handle, mut utp: Connection) -> Arc<Conn> {
        if let Some(route) = self.paths.route_of(utp.remote()) {
            utp.handle_path(now, path_key(route), self.max_datagram(utp.remote(), route), true);
        }
        let conn = Arc::new(Conn::new(handle, utp));
        if self.conns.len() <= handle.slot() {
            self.conns.resize(handle.slot() + 1, None);
        }
        self.paths.hold(now, conn.remote);
        self.conns[handle.slot()] = Some(conn.clone());
        conn
    }

    pub fn find(&self, handle: Handle) -> Option<&Arc<Conn>> {
        self.conns.get(handle.slot())?.as_ref().filter(|conn| conn.handle == handle)
    }

    pub fn forget(&mut self, now: Time, handle: Handle) {
        if let Some(slot) = self.conns.get_mut(handle.slot()) {
            if let Some(conn) = slot.take_if(|conn| conn.handle == handle) {
                self.endpoint.forget(handle);
                self.paths.release(now, conn.remote);
                if let Entry::Occupied(mut turns) = self.turns.entry(conn.remote) {
                    turns.get_mut().forget(handle, conn.lock().turn);
                    if turns.get().is_empty() {
                        turns.remove();
                    }
                }
            }
        }
    }

    /// Says how much `conn` may send now, where others send to the same remote as well.
    pub fn take_turn(&mut self, conn: &Conn, state: &mut ConnState) {
        let load = state.utp.load();
        let small = matches!(state.turn, Turn::Free { left } if left > 0);
        let sharing = if small && !self.turns.contains_key(&conn.remote) {
            state.turn = if load.unsent || load.in_flight > 0 { state.turn } else { Turn::RESTED };
            1
        } else {
            let turns = self.turns.entry(conn.remote).or_default();
            state.turn = turns.step(conn.handle, state.turn, &load);
            turns.sharing()
        };
        state.utp.set_share(state.turn.allowance(&load), sharing);
    }

    /// The next connection to `remote` whose turn has come.
    pub fn next_turn(&mut self, remote: RemoteId) -> Option<Arc<Conn>> {
        let turns = self.turns.get_mut(&remote)?;
        while let Some((handle, turn)) = turns.poll_next() {
            match self.conns.get(handle.slot()).and_then(Option::as_ref).filter(|conn| conn.handle == handle) {
                Some(conn) => {
                    conn.lock().turn = turn;
                    return Some(conn.clone());
                }
                None => turns.forget(handle, turn),
            }
        }
        None
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Conn>> {
        self.conns.iter().flatten()
    }

    /// Where packets for `remote` go; an unspecified address when it is forgotten.
    pub fn address_of(&self, remote: RemoteId) -> SocketAddr {
        self.route_of(remote).to
    }

    /// The same, with the socket.
    pub fn route_of(&self, remote: RemoteId) -> Route {
        self.paths.route_of(remote).unwrap_or_else(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into())
    }

    /// The largest datagram on a path of a remote. A node that has proven itself may have paths of both families, and over relays:
    /// what is cut for one must get through over the others as well, for in uTP it cannot be made smaller.
    pub fn max_datagram(&self, remote: RemoteId, route: Route) -> u16 {
        let cap = Origin::of(route.to).max_datagram();
        match route.via.is_relay() || self.paths.node_of(remote).is_some() {
            true => cap.min(COMMON_DATAGRAM),
            false => cap,
        }
    }

    /// Live connections of a remote.
    pub fn of_remote(&self, remote: RemoteId) -> Vec<Arc<Conn>> {
        self.all().filter(|conn| conn.remote == remote).cloned().collect()
    }

    /// This process did nothing for a while: nobody has been silent for that.
    pub fn handle_pause(&mut self, now: Time) {
        tracing::info!("this process was stopped for a while, or had no CPU");
        self.paths.handle_pause(now);
        for conn in self.all() {
            conn.lock().utp.handle_pause(now);
        }
    }

    /// Connections with a life of a node.
    pub fn of_life(&self, life: &(NodeId, Incarnation)) -> Vec<Arc<Conn>> {
        self.all().filter(|conn| conn.lock().life.as_ref() == Some(life)).cloned().collect()
    }

    /// Connections with earlier lives of a node, of which nothing is left that could be asked.
    pub fn of_forgotten_lives(&self, (node, incarnation): &(NodeId, Incarnation)) -> Vec<Arc<Conn>> {
        let is_past = |life: &(NodeId, Incarnation)| {
            life.0 == *node && life.1 != *incarnation && !self.paths.knows_incarnation(node, &life.1)
        };
        self.all().filter(|conn| conn.lock().life.as_ref().is_some_and(is_past)).cloned().collect()
    }

    /// Throws stale timers out when they are the most: a busy connection leaves one behind at each turn.
    pub fn sweep_timers(&mut self) {
        if self.timers.len() <= 4 * self.endpoint.connections() + 64 {
            return;
        }
        let all = std::mem::take(&mut self.timers);
        let live =
            |(at, handle): &(Time, Handle)| self.find(*handle).is_some_and(|conn| conn.lock().timer == Some(*at));
        self.timers = all.into_iter().filter(|Reverse(entry)| live(entry)).collect();
    }

    /// The next connection timer, the endpoint's and the paths' together.
    pub fn poll_timeout(&self) -> Option<Time> {
        let conns = self.timers.peek().map(|Reverse((at, _))| *at);
        [conns, self.endpoint.poll_timeout(), self.paths.poll_timeout()].into_iter().flatten().min()
    }

    pub fn stats(&self) -> NetStats {
        NetStats {
            connections: self.endpoint.connections(),
            half_open: self.endpoint.half_open(),
            paths: self.paths.stats(),
            ..self.stats
        }
    }
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What Ethernet carries in either family, also by way of a relay: 1500 - 48 of IPv6 and UDP headers - 4 of ChannelData (RFC 8656
/// section 12.4).
const COMMON_DATAGRAM: u16 = 1_448;

/// Names a route for uTP, which knows no addresses: FNV-1a, for two of a handful must only not be the same by chance.
pub fn path_key(route: Route) -> PathKey {
    let [high, low] = route.via.0.to_be_bytes();
    let origin = Origin::of(route.to);
    let bytes = origin.as_bytes().iter().copied().chain([high, low]);
    PathKey(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}

fn seed() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| Error::new(Reason::Internal, Stage::Setup, format!("no randomness: {error}")))?;
    Ok(seed)
}
