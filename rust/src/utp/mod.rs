//! uTP (BEP 29), sans-IO: an [`Endpoint`] that finds the connection a datagram belongs to and answers strangers, and
//! [`Connection`]s that turn packets, bytes and time into packets, bytes and deadlines.
//!
//! Drive contract: give every datagram to [`Endpoint::handle`], then to the connection it names; after any change call
//! [`Connection::poll_transmit`] until it returns `None`, then ask [`Connection::poll_timeout`] when to come back.

pub mod congestion;
mod connection;
mod endpoint;
mod half_open;
pub mod mtu;
pub mod pacing;
pub mod packet;
mod recovery;
mod recv;
mod ring;
pub mod rtt;
mod send;
mod seq;
mod tags;
mod turns;

pub use connection::{Connection, Doubt, End, Heard, PathKey, ReadOutcome, State, Transmit, UtpStats, Wakes};
pub use endpoint::{ConnectError, Dropped, Endpoint, Handle, Routed};
pub use tags::TagKeys;
pub use turns::{Load, Turn, Turns};
