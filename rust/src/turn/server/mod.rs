//! A TURN server (RFC 8656) without sockets: UDP relayed addresses for clients over UDP, TCP and TLS.
//!
//! Written here because the crate `turn-server-proto` searches all clients for each packet and has no limits, no rules for peers and
//! no users that end.
//!
//! Read with RFC 8656 sections 7 to 12 and 21. The owner hands in what arrived; what is to be sent comes back. Data takes a
//! way of its own ([`Server::forward_to_peer`], [`Server::forward_to_client`]): one look-up for a whole batch, whose bytes the owner moves.
//!
//! Not here: TCP relayed addresses (RFC 6062), reserved ports (EVEN-PORT with its bit, RESERVATION-TOKEN: error 508), ICMP, mobility, and
//! PASSWORD-ALGORITHMS, whose announcement needs a nonce of 13 characters more, and so an answer to strangers that outweighs
//! the question. MESSAGE-INTEGRITY-SHA256 is taken, with the usual key.

mod allocation;
mod limits;
mod nonce;
mod policy;
mod requests;
mod shares;
mod special;
#[cfg(test)]
mod tests;
mod users;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::bucket::Bucket;
use crate::config::RelayServerConfig;
use crate::time::Time;
use allocation::Allocation;
use limits::Strangers;
use nonce::Nonces;
use shares::Shares;

pub use policy::{BadNetwork, Network};
pub use special::is_public;
pub use users::{Account, Owner, Users};

/// Who is at the other end of a transport, and of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    pub address: SocketAddr,
    /// Our address that it uses, where that is known: answers leave from there.
    pub local: Option<IpAddr>,
    pub link: Link,
}

/// What a client comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// One of our sockets.
    Datagrams(u8),
    /// A TCP or TLS connection, each with a number of its own. Its handshake has proven the address.
    Stream(u64),
}

impl Link {
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Stream(_))
    }
}

/// Never re-used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AllocationId(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    V4 = 0,
    V6 = 1,
}

impl Family {
    pub const fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// Where relayed addresses come from.
pub trait Sockets {
    /// Opens one, of an even port if wanted, and says which address peers are to be told.
    fn open(&mut self, allocation: AllocationId, family: Family, even: bool) -> Result<SocketAddr, NoSocket>;
    /// There is one of this allocation and family.
    fn close(&mut self, allocation: AllocationId, family: Family);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSocket {
    /// The relay has no address of that family.
    Family,
    /// No port, or no descriptor, is left.
    Full,
}

/// Both clocks: one that never goes back, and the date.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Time,
    /// Seconds since 1970.
    pub unix: u64,
}

/// What becomes of a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    Nothing,
    /// To the client it came from.
    Answer(Vec<u8>),
    /// From the relayed address of the peer's family.
    Relay {
        allocation: AllocationId,
        peer: SocketAddr,
        data: &'a [u8],
    },
}

/// How a peer's datagram goes on to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Channel(u16),
    /// [`data_indication`].
    Indication,
}

/// Counters since the start, and what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Now.
    pub allocations: u64,
    pub allocated: u64,
    /// Payload, and how many datagrams.
    pub bytes_to_peers: u64,
    pub bytes_to_clients: u64,
    pub datagrams_to_peers: u64,
    pub datagrams_to_clients: u64,
    /// Wrong name or password; a first request without any is none of these.
    pub auth_failures: u64,
    /// Error 403.
    pub forbidden: u64,
    /// Errors 486 and 508.
    pub over_quota: u64,
    /// Answers to strangers that a limit kept back.
    pub unanswered: u64,
    /// Broken messages.
    pub malformed: u64,
    /// Datagrams without an allocation, a channel, or a permission.
    pub dropped_unpermitted: u64,
    /// Datagrams above the bytes a second.
    pub dropped_rate: u64,
}

/// Whom the server serves and where it stands.
#[derive(Clone, Default)]
pub struct Setup {
    pub users: Users,
    /// Peers that are reached although they are not of the open internet.
    pub allowed_peers: Vec<Network>,
    /// Our addresses, by all names: peers there are relayed addresses or forbidden.
    pub own: Vec<IpAddr>,
}

pub struct Server {
    config: RelayServerConfig,
    setup: Setup,
    /// Goes up with each [`Self::set_users`].
    accounts: u64,
    nonces: Nonces,
    strangers: Strangers,
    shares: Shares,
    allocations: HashMap<AllocationId, Allocation>,
    clients: HashMap<Client, AllocationId>,
    relayed: HashMap<SocketAddr, AllocationId>,
    /// Allocations of each network; those with introduction credentials are counted by themselves.
    of_network: HashMap<([u8; 8], bool), usize>,
    next: u64,
    swept: Time,
    stats: Stats,
}

impl Server {
    /// `seed` makes the nonces: random, and secret.
    pub fn new(config: RelayServerConfig, setup: Setup, seed: &[u8; 32], now: Time) -> Self {
        Self {
            nonces: Nonces::new(seed, config.nonce_lifetime),
            strangers: Strangers::new(
                config.answers_per_second,
                config.answers_per_second_per_network,
                config.networks,
                now,
            ),
            shares: Shares::new(config.bytes_per_second, now),
            config,
            setup,
            accounts: 0,
            allocations: HashMap::new(),
            clients: HashMap::new(),
            relayed: HashMap::new(),
            of_network: HashMap::new(),
            next: 0,
            swept: now,
            stats: Stats::default(),
        }
    }

    pub fn stats(&self) -> Stats {
        Stats { allocations: self.allocations.len() as u64, ..self.stats }
    }

    /// New accounts; allocations live on until they are to be refreshed.
    pub fn set_users(&mut self, users: Users) {
        self.setup.users = users;
        self.accounts += 1;
    }

    /// Other secrets for names that end; what was allocated under those before lives on for as long as it is refreshed.
    pub fn set_secrets(&mut self, secrets: Vec<String>) {
        self.setup.users.secrets = secrets;
    }

    /// The addresses of the machine, when they have changed: what was a peer of the open internet may be this machine now.
    pub fn set_own(&mut self, own: Vec<IpAddr>) {
        self.setup.own = own;
    }

    /// `datagrams` of one client for one channel, with so many bytes of payload in all: from which allocation they go, and
    /// where. `None`: they are dropped.
    pub fn forward_to_peer(
        &mut self,
        now: Time,
        client: &Client,
        channel: u16,
        bytes: usize,
        datagrams: usize,
    ) -> Option<(AllocationId, SocketAddr)> {
        let found = self.clients.get(client).and_then(|id| {
            let allocation = self.allocations.get(id).filter(|allocation| allocation.expires > now)?;
            Some((*id, allocation.peer_of(channel, now)?))
        });
        let Some((id, peer)) = found.filter(|(id, peer)| self.may_still_reach(*id, *peer)) else {
            self.stats.dropped_unpermitted += datagrams as u64;
            return None;
        };
        self.pay(id, now, bytes, datagrams)?;
        self.stats.bytes_to_peers += bytes as u64;
        self.stats.datagrams_to_peers += datagrams as u64;
        Some((id, peer))
    }

    /// `datagrams` of one peer at the relayed address of an allocation: to which client they go, and how.
    pub fn forward_to_client(
        &mut self,
        now: Time,
        id: AllocationId,
        peer: SocketAddr,
        bytes: usize,
        datagrams: usize,
    ) -> Option<(Client, Framing)> {
        let found = self.allocations.get(&id).filter(|allocation| {
            let introduced = allocation.owner != Owner::Introduction || self.is_introduction_peer(peer);
            allocation.expires > now && allocation.is_permitted(peer.ip(), now) && introduced
        });
        let Some(allocation) = found else {
            self.stats.dropped_unpermitted += datagrams as u64;
            return None;
        };
        let client = allocation.client;
        let framing = allocation.channel_to(peer, now).map_or(Framing::Indication, Framing::Channel);
        self.pay(id, now, bytes, datagrams)?;
        self.stats.bytes_to_clients += bytes as u64;
        self.stats.datagrams_to_clients += datagrams as u64;
        Some((client, framing))
    }

    /// A connection has ended, and with it its allocation (RFC 8656 section 3.1).
    pub fn handle_gone(&mut self, client: &Client, sockets: &mut dyn Sockets) {
        if let Some(id) = self.clients.get(client).copied() {
            self.remove(id, sockets);
        }
    }

    /// Whether a client has an allocation.
    pub fn serves(&self, client: &Client) -> bool {
        self.clients.contains_key(client)
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Time> {
        (!self.allocations.is_empty()).then_some(self.swept + SWEEP)
    }

    /// Ends what has expired.
    pub fn handle_timeout(&mut self, now: Time, sockets: &mut dyn Sockets) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        self.shares.count(now);
        let expired = |allocation: &Allocation| allocation.expires <= now;
        let gone: Vec<_> = self.allocations.iter().filter(|(_, one)| expired(one)).map(|(id, _)| *id).collect();
        for id in gone {
            self.remove(id, sockets);
        }
        for allocation in self.allocations.values_mut() {
            allocation.sweep(now);
        }
    }

    /// Takes bytes from what the allocation, its user and all together may have, or from none.
    fn pay(&mut self, id: AllocationId, now: Time, bytes: usize, datagrams: usize) -> Option<()> {
        let allocation = self.allocations.get_mut(&id)?;
        let bytes = bytes as u64;
        if self.shares.may(&allocation.owner, bytes, now) && allocation.bucket.take(bytes, now) {
            self.shares.take(&allocation.owner, bytes, now);
            return Some(());
        }
        self.stats.dropped_rate += datagrams as u64;
        None
    }

    /// Whether an allocation may have to do with a peer; without a port: with any of that address.
    fn may_reach(&self, owner: &Owner, peer: IpAddr, port: Option<u16>) -> bool {
        let introductions = &self.setup.users.introduction_peers;
        let introduced = introductions.iter().any(|one| one.ip() == peer && port.is_none_or(|port| port == one.port()));
        if introduced || *owner == Owner::Introduction {
            return introduced;
        }
        if port == Some(0) || peer.is_unspecified() {
            return false;
        }
        if self.is_allowed(peer) {
            return true;
        }
        match self.setup.own.contains(&peer) {
            true => port.is_none_or(|port| self.relayed.contains_key(&SocketAddr::new(peer, port))),
            false => is_public(peer),
        }
    }

    /// Whether the operator has let clients reach this peer. A service of the platform is not meant by who allows all around it.
    fn is_allowed(&self, peer: IpAddr) -> bool {
        let around = special::platform(peer);
        let named = |network: &Network| around.is_none_or(|platform| network.is_within(&platform));
        self.setup.allowed_peers.iter().any(|network| network.contains(peer) && named(network))
    }

    /// A relayed address of ours that was let go may be some other program's port by now.
    fn may_still_reach(&self, id: AllocationId, peer: SocketAddr) -> bool {
        !self.setup.own.contains(&peer.ip())
            || self
                .allocations
                .get(&id)
                .is_some_and(|allocation| self.may_reach(&allocation.owner, peer.ip(), Some(peer.port())))
    }

    fn is_introduction_peer(&self, peer: SocketAddr) -> bool {
        self.setup.users.introduction_peers.contains(&peer)
    }

    fn insert(&mut self, id: AllocationId, allocation: Allocation, now: Time) {
        self.clients.insert(allocation.client, id);
        self.relayed.extend(allocation.relayed.iter().flatten().map(|address| (*address, id)));
        self.shares.add(&allocation.owner, now);
        *self.of_network.entry(allocation.network()).or_default() += 1;
        self.stats.allocated += 1;
        self.allocations.insert(id, allocation);
    }

    fn remove(&mut self, id: AllocationId, sockets: &mut dyn Sockets) {
        let Some(allocation) = self.allocations.remove(&id) else { return };
        self.clients.remove(&allocation.client);
        for address in allocation.relayed.iter().flatten() {
            self.relayed.remove(address);
            sockets.close(id, Family::of(address.ip()));
        }
        self.shares.remove(&allocation.owner);
        if let Some(count) = self.of_network.get_mut(&allocation.network()) {
            *count -= 1;
            if *count == 0 {
                self.of_network.remove(&allocation.network());
            }
        }
    }
}

/// A quarter of a second at once, and a batch of the largest size in any case.
fn bucket(bytes_per_second: u64, now: Time) -> Bucket {
    Bucket::new(bytes_per_second, burst(bytes_per_second), now)
}

fn burst(bytes_per_second: u64) -> u64 {
    (bytes_per_second / 4).max(128 << 10)
}

/// A peer's datagram for a client without a channel to that peer. `None`: it is too large for a message.
pub fn data_indication(peer: SocketAddr, data: &[u8], transaction: [u8; 12]) -> Option<Vec<u8>> {
    requests::data_indication(peer, data, transaction)
}

/// What has expired is no longer used from that moment on; this is when its memory and its port are given back.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(1);
