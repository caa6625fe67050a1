//! The client of relays against coturn, and against relays and proxies that misbehave. Everything is on loopback; nothing is
//! asserted about time but that it does not take for ever.

mod carrying;
mod coturn;
mod failing;
mod finding;
mod keeping;
#[path = "../support/machine.rs"]
mod machine;
mod support;
mod turn;
