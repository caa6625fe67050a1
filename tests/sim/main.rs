//! The core in virtual time over a seeded network.

#[path = "../support/mod.rs"]
mod support;

mod eager;
mod flow;
mod golden;
mod goodput;
mod idle;
mod jitter;
mod liars;
mod paths;
mod random;
mod sharing;
mod silence;
mod tags;
mod transfers;
