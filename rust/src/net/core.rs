//! The sans-IO parts of a node together: endpoint, path table and the connections by slot. The driver holds its lock for
//! one batch at a time; `Net` holds it to start things.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::conn::Conn;
use super::{NetConfig, NetStats};
use crate::addr::{Origin, RemoteId};
use crate::config::UtpConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{sendable, PathTable};
use crate::time::Time;
use crate::utp::{ConnectError, Connection, Endpoint, Handle};

pub struct Core {
    pub endpoint: Endpoint,
    pub paths: PathTable,
    conns: Vec<Option<Arc<Conn>>>,
    /// One live entry for each connection at most; stale ones are skipped.
    pub timers: BinaryHeap<Reverse<(Time, Handle)>>,
    pub stats: NetStats,
}

impl Core {
    pub fn new(config: NetConfig) -> Result<Self> {
        Ok(Self {
            endpoint: Endpoint::new(config.endpoint, config.utp, seed()?),
            paths: PathTable::new(config.path, seed()?),
            conns: Vec::new(),
            timers: BinaryHeap::new(),
            stats: NetStats::default(),
        })
    }

    /// A connection towards `address`, and whether that path is known to work.
    pub fn dial(&mut self, now: Time, address: SocketAddr, utp: &UtpConfig) -> Result<(Arc<Conn>, bool)> {
        if !sendable(address) {
            // `[::]:4433`, as a node shows its own socket, is what people copy
            let what = "nothing can be sent there: it is not the address of one host";
            return Err(Error::new(Reason::Unreachable, Stage::Punch, what).with_address(address));
        }
        let full = |what: &str| Error::new(Reason::TooManyConnections, Stage::Utp, what).with_address(address);
        let remote = self.paths.remote_for(now, address).map_err(|_| full("no room for another remote address"))?;
        let proven = self.paths.rtt_of(remote).is_some();
        let (handle, utp) = self.endpoint.connect(now, remote, utp, Origin::of(address).max_datagram()).map_err(
            |error| match error {
                ConnectError::Full => full("max_connections are open"),
                ConnectError::NoId => full("every connection id towards this address is taken"),
            },
        )?;
        Ok((self.insert(now, handle, utp), proven))
    }

    pub fn insert(&mut self, now: Time, handle: Handle, utp: Connection) -> Arc<Conn> {
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
            }
        }
    }

    pub fn all(&self) -> impl Iterator<Item = &Arc<Conn>> {
        self.conns.iter().flatten()
    }

    /// Where packets for `remote` go; an unspecified address when it is forgotten.
    pub fn address_of(&self, remote: RemoteId) -> SocketAddr {
        self.paths.address_of(remote).unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 0).into())
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

fn seed() -> Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| Error::new(Reason::Internal, Stage::Setup, format!("no randomness: {error}")))?;
    Ok(seed)
}
