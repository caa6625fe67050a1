//! What a node can find out about itself and its network: what its NATs do ([`discover`]), its own addresses ([`Interfaces`])
//! and when they change ([`Watch`]), a port that its gateway opens ([`PortMapping`]), neighbours on the LAN ([`Lan`]); and the
//! server that others ask for the first of these ([`StunServer`]).
//!
//! Nothing here touches the socket that carries data. Each piece ends when it is dropped, and in order by its `close`.

mod away;
mod behaviour;
mod bell;
mod gateway;
mod interfaces;
mod lan;
mod limit;
mod mapping;
mod stun_server;
mod watch;
mod ways;

pub use behaviour::{discover, sample_port, sample_ports};
pub use gateway::is_nested;
pub use interfaces::{HostAddress, InterfaceKind, Interfaces};
pub use lan::{Lan, Neighbours};
pub use mapping::PortMapping;
pub use stun_server::{StunServer, StunStats, MAX_SOCKETS};
pub use watch::{Network, Targets, Watch};
pub use ways::Ways;
