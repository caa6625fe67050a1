//! keynet lets a program on one machine call a gRPC server on another when either or both sit behind a NAT, knowing only
//! the other node's public key.
//!
//! The layers, lowest first (a file imports only from its own folder and from lower layers; `tests/layers.rs` holds that):
//!
//! | layer | modules | what |
//! |---|---|---|
//! | 0 | [`addr`], [`bucket`], [`config`], [`error`], [`time`] | names of nodes, rates, every knob, every failure, the clock type |
//! | 1 | [`utp`], [`path`], [`stun`], [`http_connect`], [`http_forward`], [`socks5`], [`open`], [`tls`], [`turn`] | state machines and codecs: no sockets, no clock, no runtime |
//! | 2 | `net` | the one task that owns the UDP socket (tokio starts here) |
//! | 3 | `peer` | a link: uTP stream + TLS + the node at its other end |
//! | 3 | `nat` | what a node finds out about itself and its network, and a STUN server that helps others to |
//! | 3 | `relay` | TURN, client and server: what carries datagrams for those that no hole can be punched for |
//! | 4 | `rendezvous` | nodes that find each other by their keys |
//! | 5 | `proxy` | forward and reverse proxy, access list, splice |
//! | 6 | `python` | conversions for the Python package, nothing else |
//!
//! The core is driven from outside: bytes and the time go in (`handle_*`), datagrams, deadlines and events come out
//! (`poll_*`). Time, randomness and sockets are always arguments.

#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod addr;
pub mod bucket;
pub mod classify;
pub mod config;
pub mod error;
pub mod http_connect;
pub mod http_fields;
pub mod http_forward;
#[cfg(feature = "runtime")]
pub mod nat;
#[cfg(feature = "runtime")]
pub mod net;
pub mod open;
pub mod path;
#[cfg(feature = "runtime")]
pub mod peer;
#[cfg(feature = "runtime")]
pub mod proxy;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "runtime")]
pub mod relay;
#[cfg(feature = "runtime")]
pub mod rendezvous;
pub mod socks5;
pub mod stun;
pub mod time;
pub mod tls;
pub mod turn;
pub mod utp;
