//! The whole proxy on real sockets of this machine, over IPv4 and IPv6: a client, two nodes, a service.
#![cfg(feature = "runtime")]

mod bad_requests;
mod closing;
mod dials;
mod forgers;
mod http;
mod identities;
mod idle;
mod knowing;
mod last_words;
mod leaks;
mod liars;
mod limits;
mod load;
mod lookups;
#[path = "../support/machine.rs"]
mod machine;
mod revocation;
mod roaming;
mod silence;
mod socks;
mod streams;
mod support;
