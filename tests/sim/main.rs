//! The core in virtual time over a seeded network.

#[path = "../support/mod.rs"]
mod support;

mod goodput;
mod transfers;
