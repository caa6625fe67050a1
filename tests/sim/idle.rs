//! Connections that do nothing: what they hold, what they send, and that they stay.

use std::time::Duration;

use keynet::config::UtpConfig;

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};
use crate::support::Seed;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A connection over which 100,000 bytes went each way, and that stays open.
fn idle(company: Option<usize>) -> Pair {
    let _seed = Seed(1);
    let utp = UtpConfig::default();
    let mut pair = Pair::symmetric(1, &utp, LinkConfig::path(100, Duration::from_millis(20), 8.0));
    pair.company = company;
    pair.hosts[B].template = App { writes: 2, expects: 1, finish: false, ..App::sending(100_000) };
    pair.connect(A, &utp, App { writes: 1, expects: 2, finish: false, ..App::sending(100_000) });
    pair.run_until(seconds(10), |pair| {
        pair.hosts[B].handles.len() == 1 && pair.app(A, 0).read == 100_000 && pair.app(B, 0).read == 100_000
    });
    pair
}

#[test]
fn a_connection_gives_its_buffers_back_within_two_seconds() {
    let mut pair = idle(None);
    assert!(pair.stats(A, 0).memory + pair.stats(B, 0).memory > 0);
    pair.run_for(seconds(2));
    assert_eq!((pair.stats(A, 0).memory, pair.stats(B, 0).memory), (0, 0));
}

#[test]
fn a_connection_on_its_own_sends_every_25_seconds_and_stays() {
    let mut pair = idle(None);
    let before = pair.datagrams;
    pair.run_for(seconds(3_600));
    assert_eq!(pair.datagrams - before, 2 * 3_600 / 25);
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (None, None));
}

#[test]
fn one_of_ten_thousand_to_a_living_peer_asks_seldom_and_stays() {
    let mut pair = idle(Some(10_000));
    let before = pair.datagrams;
    pair.run_for(seconds(36_000));
    // ten a second, shared by 10,000: one in 500 to 1500 seconds, from each side
    let sent = pair.datagrams - before;
    assert!((2 * 36_000 / 1_500..=2 * 36_000 / 500).contains(&sent), "{sent}");
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (None, None));
}

#[test]
fn a_peer_that_gives_no_sign_of_life_is_dropped_as_before() {
    let mut pair = idle(None);
    pair.links.iter_mut().for_each(|link| link.config.down = true);
    pair.run_for(seconds(76));
    assert!(pair.end(A, 0).is_some() && pair.end(B, 0).is_some(), "{}", pair.describe());
}
