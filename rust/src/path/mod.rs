//! Paths: which addresses lead to a remote, and whether they still do (DESIGN.md, decisions 4 and 7 to 9;
//! docs/protocol.md section 2).
//!
//! [`PathTable`] maps a [`RemoteId`] to the addresses proven for it and picks one; it keeps NAT mappings open,
//! notices dead peers, follows a peer whose address changes, and punches. It neither reads nor writes datagrams:
//! pings and pongs come in as [`PingIn`] and [`PongIn`] and go out as [`PongOut`] and [`PingOut`], and the caller
//! turns them into STUN.
//!
//! Drive it like the rest of the core: `handle_*`, then [`PathTable::poll_transmit`] and [`PathTable::poll_event`]
//! until both are empty, then [`PathTable::handle_timeout`] at the time that [`PathTable::poll_timeout`] names.
//!
//! Invariants:
//! - An address is added to a remote that has keys only after a keyed pong came from it, to a ping that was sent there.
//! - Only pongs and valid uTP packets are signs of life. A ping proves nothing: it can be a replay.
//! - No timer and no lookup costs more than the logarithm of the number of remotes, and no table grows without a cap.

mod address;
mod alive;
mod candidate;
mod limit;
mod lives;
mod meeting;
mod outlook;
mod outstanding;
mod ping;
mod profile;
mod punch;
mod relayed;
mod remote;
mod search;
mod session;
mod spare;
mod table;
mod timers;
mod unproven;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::addr::{Incarnation, NodeId, RemoteId, Route, Via};
use crate::time::Time;

pub use address::{is_local, sendable};
pub use candidate::{
    decode_candidates, encode_candidates, is_virtual_range, rank_candidates, BadCandidates, Candidate, CandidateKind,
    MAX_CANDIDATES,
};
pub use meeting::{MeetingId, MeetingReport, Plan};
pub use outlook::{draft, is_for_everybody, Draft, Outlook, Whereabouts};
pub use profile::{judge_ports, BadProfile, Filtering, Mapping, NatProfile, Ports};
pub use relayed::OwnRelay;
pub use search::Search;
pub use table::PathTable;

/// Keys that both ends of a path know by now, whose pings have shown it.
#[derive(Clone, Copy, Default)]
pub struct SharedKeys {
    /// For what we start: the one of our pings.
    pub own: Option<[u8; 32]>,
    /// For what the peer starts.
    pub peers: Option<[u8; 32]>,
}

/// A ping that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingIn {
    pub transaction: [u8; 12],
    /// The session that it claims to belong to.
    pub session: Option<[u8; 16]>,
    /// Which life of its node the sender claims to be.
    pub incarnation: Option<Incarnation>,
    /// Bytes of the datagram: the pong must not be larger.
    pub size: usize,
}

/// A pong that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PongIn {
    pub transaction: [u8; 12],
    /// Where our ping was seen to come from.
    pub observed: SocketAddr,
    /// It claims to be keyed.
    pub keyed: bool,
    /// Which life of its node the sender claims to be.
    pub incarnation: Option<Incarnation>,
}

/// A ping to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct PingOut {
    pub via: Via,
    pub to: SocketAddr,
    pub transaction: [u8; 12],
    /// The receiver's session name, and the key.
    pub keys: Option<([u8; 16], [u8; 32])>,
    /// Says which life of ours we are; with keys only.
    pub incarnation: Option<Incarnation>,
    /// It is to die after so many hops (RFC 791 time to live, RFC 8200 hop limit).
    pub ttl: Option<u8>,
}

/// A pong to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct PongOut {
    pub via: Via,
    pub to: SocketAddr,
    pub transaction: [u8; 12],
    /// What goes into XOR-MAPPED-ADDRESS; never an IPv4-mapped IPv6 address.
    pub observed: SocketAddr,
    pub key: Option<[u8; 32]>,
    /// Says which life of ours we are; with a key only.
    pub incarnation: Option<Incarnation>,
    /// Bytes of the ping: no pong may be larger.
    pub room: usize,
}

/// A goodbye to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Farewell {
    pub via: Via,
    pub to: SocketAddr,
    pub transaction: [u8; 12],
    /// The receiver's session name, and the key.
    pub keys: ([u8; 16], [u8; 32]),
}

/// Why what there was with a peer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not answer.
    Silent,
    /// Its node has started anew.
    Restarted,
    /// It said goodbye, or its machine says that nobody is there.
    Gone,
}

/// A path of a node, for people to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathView {
    pub via: Via,
    pub address: SocketAddr,
    /// A relay carries what goes there, ours (then `via` is one) or the peer's.
    pub relayed: bool,
    pub in_use: bool,
    /// For how long it has been the one in use.
    pub used_for: Option<Duration>,
    pub proven: bool,
    pub rtt: Option<Duration>,
    /// How long ago it gave a sign of life.
    pub silent_for: Duration,
    /// Live connections over the remote that it belongs to.
    pub connections: u32,
}

/// Bytes of datagrams from and to a node, as far as they belong to connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub direct_in: u64,
    pub direct_out: u64,
    /// What a relay carried, ours or the peer's.
    pub relayed_in: u64,
    pub relayed_out: u64,
}

/// A punching attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PunchId(u64);

/// No room for another remote: all of them are in use. Also said of an address that nothing can be sent to (port 0,
/// multicast, …).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathEvent {
    /// The attempt ended well: `address` answered first. `remote` has it as a proven path.
    Punched { id: PunchId, remote: RemoteId, address: SocketAddr, rtt: Duration, observed: SocketAddr },
    /// The attempt ended without an answer from any of these.
    PunchFailed { id: PunchId, tried: Vec<SocketAddr> },
    /// The first path of the remote is proven: it answered a ping, or acknowledged data. Once a remote; not later than
    /// [`PathTable::bind_node`].
    Up { remote: RemoteId, address: SocketAddr },
    /// Nothing came for `silent_for`, while pings went out, and no connection with a proven node waits for it. Once a remote,
    /// and the last word about it: its addresses are strangers from now on, and it is forgotten as soon as nobody holds it.
    Lost { remote: RemoteId, node: Option<NodeId>, address: SocketAddr, silent_for: Duration, why: Why },
    /// A life of the node is over, and with it every connection with that life.
    LifeEnded { remote: RemoteId, node: NodeId, address: SocketAddr, incarnation: Incarnation, why: Why },
    /// The node has not answered for as long as [`Lost`](Self::Lost) takes, and connections wait for it: it is asked on. `since`:
    /// when the first of the questions without an answer was sent. Once a silence; [`Found`](Self::Found) ends it.
    Missing { remote: RemoteId, node: NodeId, address: SocketAddr, since: Time, silent_for: Duration },
    /// A node that was [`Missing`](Self::Missing) is reached again.
    Found { remote: RemoteId, node: NodeId, address: SocketAddr },
    /// What is sent to the remote goes to another address from now on.
    /// `relayed`: by way of a relay; `alive`: the path that is left still works, as far as is known.
    Moved { remote: RemoteId, node: Option<NodeId>, from: Route, to: Route, relayed: bool, alive: bool },
    /// The path in use fell silent: pings go unanswered, and no other path is known. Once a silence, of nodes only.
    Silent { remote: RemoteId, node: NodeId },
    /// The path in use answers again after a silence.
    Back { remote: RemoteId },
    /// The meeting has made a path; the remote is bound to the node.
    Met {
        id: MeetingId,
        remote: RemoteId,
        via: Via,
        address: SocketAddr,
        relayed: bool,
        rtt: Duration,
        observed: SocketAddr,
        pings: u32,
    },
    /// Nothing more is tried.
    MeetingEnded { id: MeetingId, node: NodeId, met: bool, report: MeetingReport },
    /// Nothing goes through this socket any more, and nobody waits for anything on it.
    Unused { via: Via },
    /// A peer or server saw our datagrams come from this address, which is news.
    Observed { address: SocketAddr, by: SocketAddr },
}

/// Counters since the start, and how full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStats {
    pub remotes: usize,
    /// Remotes that no peer has authenticated and nobody holds.
    pub strangers: usize,
    pub punches: usize,
    pub meetings: usize,
    /// Pings that wait for their pong.
    pub outstanding: usize,
    pub pings_in: u64,
    pub pings_out: u64,
    /// Pongs that answered a ping of ours.
    pub pongs_in: u64,
    pub pongs_out: u64,
    /// Pings and pongs that changed nothing: unknown session or transaction, wrong key, wrong address, replayed.
    pub forged: u64,
    /// Pings that were not answered or not asked back because of a limit.
    pub rate_limited: u64,
    /// Pings from addresses that nothing can be sent to.
    pub unsendable: u64,
    pub lost: u64,
    pub moved: u64,
    /// Bytes of connections that relays carried.
    pub relayed_in: u64,
    pub relayed_out: u64,
}

impl fmt::Debug for PingOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keyed = self.keys.is_some();
        f.debug_struct("PingOut").field("to", &self.to).field("keyed", &keyed).finish_non_exhaustive()
    }
}

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Farewell").field("to", &self.to).finish_non_exhaustive()
    }
}

impl fmt::Debug for PongOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keyed = self.key.is_some();
        f.debug_struct("PongOut").field("to", &self.to).field("keyed", &keyed).finish_non_exhaustive()
    }
}

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no room for another remote")
    }
}

impl std::error::Error for TableFull {}
