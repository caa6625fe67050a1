//! Relays: TURN (RFC 8656) for nodes between which no datagram passes directly. Packets of uTP go through unchanged, and a relay
//! sees ciphertext only.

pub mod client;
mod filling;
mod in_use;
mod keeper;
mod known;
mod segments;
pub mod server;
mod uri;

pub use keeper::{RelayEvent, RelayStatus, Relays};
pub use uri::{RelayUri, Transport};
