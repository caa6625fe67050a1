//! A peer that falls silent: connections wait for it as long as they were told to, and go on at once when it is back.

use std::time::Duration;

use keynet::config::UtpConfig;
use keynet::utp::End;

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};
use crate::support::Seed;

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A transfer under way from A to B, and B has something to say as well.
fn sending(patience: u64) -> Pair {
    let _seed = Seed(1);
    let utp = UtpConfig { patience: seconds(patience), ..UtpConfig::default() };
    let mut pair = Pair::symmetric(1, &utp, LinkConfig::path(20, Duration::from_millis(40), 4.0));
    pair.hosts[B].template = App { finish: false, ..App::sending(1 << 40) };
    pair.connect(A, &utp, App { finish: false, ..App::sending(1 << 40) });
    pair.run_until(seconds(10), |pair| pair.hosts[B].handles.len() == 1 && pair.app(B, 0).read > 1_000_000);
    pair
}

/// Nothing gets through in either direction, and the path says so as soon as it knows.
fn outage(pair: &mut Pair, length: u64) {
    pair.links.iter_mut().for_each(|link| link.config.down = true);
    for host in [A, B] {
        let since = pair.local_now(host);
        pair.hosts[host].connections.values_mut().for_each(|connection| connection.handle_silence(since));
    }
    pair.run_for(seconds(length));
    pair.links.iter_mut().for_each(|link| link.config.down = false);
}

#[test]
fn a_transfer_outlives_a_silence_that_is_shorter_than_its_patience() {
    for length in [20, 60, 300] {
        let mut pair = sending(length + 5);
        outage(&mut pair, length);
        let (there, back) = (pair.app(B, 0).read, pair.app(A, 0).read);
        assert_eq!((pair.end(A, 0), pair.end(B, 0)), (None, None), "after {length} s");
        // the pings of both get through again
        [A, B].into_iter().for_each(|host| pair.path_back(host));
        pair.run_for(Duration::from_millis(500));
        assert!(pair.app(B, 0).read > there && pair.app(A, 0).read > back, "after {length} s: {}", pair.describe());
        pair.run_for(seconds(60));
        assert_eq!((pair.end(A, 0), pair.end(B, 0)), (None, None), "a minute after {length} s");
    }
}

#[test]
fn a_silence_that_is_longer_ends_it() {
    let mut pair = sending(75);
    outage(&mut pair, 74);
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (None, None));
    let mut pair = sending(75);
    outage(&mut pair, 76);
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Unanswered), Some(End::Unanswered)));
}

#[test]
fn a_connection_without_patience_ends_as_soon_as_its_peer_is_missed() {
    let mut pair = sending(0);
    outage(&mut pair, 1);
    assert_eq!(pair.end(A, 0), Some(End::Unanswered));
}

/// The path answers, the connection does not: the peer has forgotten it, and cannot say so.
#[test]
fn a_peer_that_is_back_and_acknowledges_nothing_is_given_up() {
    let mut pair = sending(75);
    outage(&mut pair, 20);
    pair.links.iter_mut().for_each(|link| link.config.down = true);
    pair.path_back(A);
    pair.run_for(seconds(29));
    assert_eq!(pair.end(A, 0), None);
    pair.run_for(seconds(2));
    assert_eq!(pair.end(A, 0), Some(End::Unanswered));
}

#[test]
fn what_is_written_meanwhile_is_bounded() {
    let mut pair = sending(75);
    outage(&mut pair, 1);
    pair.links.iter_mut().for_each(|link| link.config.down = true);
    let written = pair.app(A, 0).written;
    pair.run_for(seconds(60));
    let held = pair.stats(A, 0).memory;
    assert!(held <= 2 * UtpConfig::default().send_buffer, "{held}");
    assert!(pair.app(A, 0).written - written <= UtpConfig::default().send_buffer as u64);
}

#[test]
fn a_pause_of_this_process_is_no_silence_of_the_peer() {
    let mut pair = sending(5);
    pair.links.iter_mut().for_each(|link| link.config.down = true);
    pair.run_for(seconds(28));
    let now = pair.local_now(A);
    pair.hosts[A].connections.values_mut().for_each(|connection| connection.handle_pause(now));
    pair.run_for(seconds(20));
    assert_eq!(pair.end(A, 0), None);
}
