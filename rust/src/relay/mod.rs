//! Relays: what carries datagrams between nodes that no hole can be punched for (TURN, RFC 8656).

pub mod server;
