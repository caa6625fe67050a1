//! What this machine lacks for a test. `make test` names at its end what did not run; in CI everything must.

use std::io::Write;
use std::net::{Ipv6Addr, UdpSocket};
use std::{env, fs, thread};

/// Notes that a test, or a part of it, does not run. In CI (`CI=true`) it fails.
pub fn left_out(what: &str, why: &str) {
    assert!(env::var("CI").map_or(true, |ci| ci != "true"), "{why}");
    eprintln!("SKIPPED: {why}");
    if let Some(list) = env::var_os("KEYNET_NOT_RUN") {
        let line = format!("{what}::{}\t{why}\n", thread::current().name().unwrap_or("?"));
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
}

/// Whether there is a loopback address of IPv6. Containers often have none.
pub fn has_ipv6(what: &str) -> bool {
    let found = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !found {
        left_out(what, "this machine has no IPv6");
    }
    found
}

/// Where sockets of a test are bound: once for each family that the machine has.
#[allow(dead_code)] // some crates of tests have types of their own for it
pub fn loopbacks(what: &str) -> &'static [&'static str] {
    let both = &["127.0.0.1:0", "[::1]:0"];
    &both[..if has_ipv6(what) { 2 } else { 1 }]
}
