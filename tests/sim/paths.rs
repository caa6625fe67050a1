//! A host that changes its path, or whose path was gone for a while: bytes go on, and what is known of one path is not taken
//! for the other. `KEYNET_CASES` sets the number of random cases.

use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};
use keynet::utp::congestion;
use keynet::utp::{Connection, End, PathKey};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};
use crate::support::rng::Rng;
use crate::support::Seed;

const KINDS: [ControllerKind; 3] = [ControllerKind::Cubic, ControllerKind::Ledbat, ControllerKind::Bbr];
/// Payload of a packet before anything is known of the path: 1232 - 20.
const FULL: u16 = 1_212;

/// What a new connection begins with.
fn initial_window(kind: ControllerKind) -> u64 {
    congestion::new(kind, &config(kind), FULL).window()
}

fn config(controller: ControllerKind) -> UtpConfig {
    UtpConfig { controller, ..UtpConfig::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A sends without end, over `first`; `second` is there too.
fn sending(kind: ControllerKind, first: LinkConfig, second: LinkConfig) -> Pair {
    let mut pair = Pair::symmetric(7, &config(kind), first);
    pair.add_path(11, second);
    pair.hosts[B].template = App { expects: 1, finish: false, ..App::default() };
    pair.connect(A, &config(kind), App { writes: 1, ..App::sending(1 << 40) });
    pair
}

fn connection(pair: &mut Pair, host: usize) -> &mut Connection {
    pair.hosts[host].connections.values_mut().next().expect("a connection")
}

fn both_move(pair: &mut Pair, path: usize, old_alive: bool) {
    pair.move_to(A, path, old_alive);
    pair.move_to(B, path, old_alive);
}

fn set_down(pair: &mut Pair, path: usize, down: bool) {
    for host in [A, B] {
        pair.link(path, host).config.down = down;
    }
}

fn random_path(rng: &mut Rng) -> LinkConfig {
    LinkConfig {
        rate: rng.pick(&[None, Some(12_500_000), Some(1_250_000)]),
        delay: Duration::from_micros(rng.below(60_000)),
        queue: rng.pick(&[60_000, 1_000_000]),
        loss: rng.pick(&[0.0, 0.0, 0.01, 0.05]),
        mtu: rng.pick(&[65_507, 1_472, 1_300, 1_232]),
        ..LinkConfig::default()
    }
}

#[test]
fn bytes_arrive_whatever_moves_when() {
    let cases = std::env::var("KEYNET_CASES").map_or(60, |n| n.parse().expect("a number of cases"));
    for n in 0..cases {
        moves(0x9A7_0000 + n);
    }
}

fn moves(seed: u64) {
    let _seed = Seed(seed);
    let mut rng = Rng::new(seed);
    let utp = config(KINDS[(seed % 3) as usize]);
    let mut pair = Pair::new(seed, &utp, random_path(&mut rng), random_path(&mut rng));
    for n in 0..5 {
        let link = random_path(&mut rng);
        pair.add_path(seed + n, link);
    }
    let (there, back) = (rng.below(3_000_000), rng.below(1_000_000));
    pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(back) };
    pair.connect(A, &utp, App { writes: 1, expects: 2, ..App::sending(there) });
    for _ in 0..rng.below(12) {
        pair.run_for(ms(rng.below(400)));
        let (host, path, silent) = (rng.pick(&[A, B]), rng.below(6) as usize, rng.chance(0.5));
        let old = pair.over[host];
        if silent && path != old {
            pair.link(old, host).config.down = true;
            pair.run_for(ms(rng.below(1_500)));
        }
        pair.link(path, host).config.down = false;
        pair.move_to(host, path, !silent);
    }
    pair.run_out(ms(600_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (there, back));
}

#[test]
fn after_a_silence_bytes_flow_at_once_over_the_new_path() {
    for kind in KINDS {
        let rtt = ms(60);
        let mut pair = sending(kind, LinkConfig::path(50, ms(40), 2.0), LinkConfig::path(50, rtt, 2.0));
        pair.run_for(ms(3_000));
        set_down(&mut pair, 0, true);
        pair.run_for(ms(2_500));
        let (before, old) = (pair.app(B, 0).read, pair.stats(A, 0));
        both_move(&mut pair, 1, false);
        let stats = pair.stats(A, 0);
        assert_eq!(stats.window, initial_window(kind), "{kind:?}");
        assert!(stats.resent > old.resent && stats.in_flight <= initial_window(kind), "{kind:?}: {stats:?}");
        // what had arrived and was not confirmed arrives again, and its ack says what is missing: half a round trip each, and
        // the time of a window on the link
        pair.run_for(rtt * 3 / 2 + ms(4));
        let first = pair.app(B, 0).read;
        assert!(first > before, "{kind:?}: nothing in a round trip and a half");
        pair.run_for(rtt);
        let second = pair.app(B, 0).read;
        assert!(second >= first + initial_window(kind), "{kind:?}: {first} and {second} in a round trip");
        let stats = pair.stats(A, 0);
        assert!(stats.window > initial_window(kind), "{kind:?}: no growth");
        assert!(
            stats.bytes_out > old.bytes_out + 8 * initial_window(kind),
            "{kind:?}: the old path had delivered more"
        );
        assert_eq!(
            stats.false_alarms, old.false_alarms,
            "{kind:?}: what the old path delivered is no alarm of the new one"
        );
        pair.run_for(ms(10_000));
        let rate = (pair.app(B, 0).read - second) / 10;
        assert!(rate > 3_000_000, "{kind:?}: {rate} bytes a second of 6,250,000");
        assert!(pair.stats(A, 0).min_rtt >= rtt, "{kind:?}: {:?} was measured on something else", pair.stats(A, 0));
    }
}

#[test]
fn an_upgrade_and_the_way_back_resend_nothing_and_keep_what_is_known() {
    for kind in KINDS {
        let slow = LinkConfig::path(20, ms(200), 8.0);
        let mut pair = sending(kind, slow, LinkConfig::path(100, ms(10), 8.0));
        pair.run_for(ms(6_000));
        let (old, rtt) = (pair.stats(A, 0).window, pair.stats(A, 0).rtt);
        assert!(old > 4 * initial_window(kind) && rtt >= ms(200), "{kind:?}: {old}");
        both_move(&mut pair, 1, true);
        let fresh = pair.stats(A, 0);
        assert_eq!((fresh.window, fresh.rtt), (initial_window(kind), Duration::ZERO), "{kind:?}");
        assert!(fresh.in_flight > 0, "{kind:?}: what is under way elsewhere counts");
        pair.run_for(ms(900));
        let fast = pair.stats(A, 0);
        assert!(fast.min_rtt >= ms(10) && fast.min_rtt < ms(20), "{kind:?}: {fast:?}");
        both_move(&mut pair, 0, true);
        let again = pair.stats(A, 0);
        assert_eq!((again.window, again.rtt), (old, rtt), "{kind:?}");
        pair.run_for(ms(3_000));
        let stats = pair.stats(A, 0);
        assert!(stats.min_rtt >= ms(200), "{kind:?}: {stats:?}");
        let dropped = pair.links[A].dropped + pair.link(1, A).dropped;
        let needless = stats.resent.saturating_sub(dropped);
        assert!(needless <= 2, "{kind:?} sent {needless} packets again for nothing: {stats:?}");
        assert_eq!((stats.timeouts, stats.false_alarms), (0, 0), "{kind:?}: {stats:?}");
    }
}

/// Its RTT is four times the timeout of the path that is used from then on.
#[test]
fn what_is_under_way_on_a_slow_path_is_waited_for() {
    for kind in KINDS {
        let mut pair = sending(kind, LinkConfig::path(100, ms(10), 8.0), LinkConfig::path(20, ms(800), 8.0));
        (pair.app(A, 0).to_write, pair.app(A, 0).finish) = (0, false);
        pair.run_for(ms(1_000));
        both_move(&mut pair, 1, true);
        for _ in 0..2 {
            pair.app(A, 0).to_write = pair.app(A, 0).written + 30_000;
            pair.pump(A);
            pair.run_for(ms(5_000));
        }
        pair.app(A, 0).to_write += 30_000;
        pair.pump(A);
        pair.run_for(ms(20));
        let before = pair.stats(A, 0);
        assert!(before.in_flight > 0 && before.rtt >= ms(800), "{kind:?}: {before:?}");
        both_move(&mut pair, 0, true);
        pair.run_for(ms(2_000));
        let after = pair.stats(A, 0);
        // the last packet may be repeated as a tail-loss probe
        assert!(after.resent <= before.resent + 1, "{kind:?}: {after:?}");
        assert_eq!((after.timeouts, after.bytes_out), (before.timeouts, pair.app(A, 0).written), "{kind:?}");
    }
}

#[test]
fn what_the_old_path_loses_is_no_signal_for_the_new_one() {
    let slow = LinkConfig::path(20, ms(100), 8.0);
    let mut pair = sending(ControllerKind::Cubic, slow, LinkConfig::path(1_000, ms(20), 8.0));
    pair.run_for(ms(2_000));
    pair.links[A].config.loss = 0.3;
    pair.run_for(ms(20));
    let (resent, dropped) = (pair.stats(A, 0).resent, pair.links[A].dropped);
    assert!(dropped > 0);
    both_move(&mut pair, 1, true);
    let mut window = 0;
    while pair.stats(A, 0).window < 4_000_000 {
        pair.run_for(ms(1));
        let stats = pair.stats(A, 0);
        assert!(stats.window >= window, "it shrank: {stats:?}");
        window = stats.window;
    }
    assert_eq!((pair.link(1, A).dropped, pair.stats(A, 0).timeouts), (0, 0));
    pair.run_for(ms(500));
    assert!(pair.stats(A, 0).resent > resent, "what was lost is sent again all the same");
}

#[test]
fn a_smaller_path_gets_its_own_size_and_what_was_cut_before_arrives_in_fragments() {
    for kind in KINDS {
        let small = LinkConfig { mtu: 1_300, ..LinkConfig::path(20, ms(20), 4.0) };
        let mut pair = sending(kind, LinkConfig::path(20, ms(40), 4.0), small);
        pair.run_for(ms(3_000));
        let large = pair.stats(A, 0).datagram;
        assert!(large > 1_300, "{large}");
        set_down(&mut pair, 0, true);
        pair.run_for(ms(150));
        let before = pair.app(B, 0).read;
        both_move(&mut pair, 1, false);
        assert_eq!(pair.stats(A, 0).datagram, 1_232);
        pair.run_for(ms(100));
        assert!(pair.app(B, 0).read > before, "{kind:?}: packets of {large} bytes are stuck");
        pair.run_for(ms(10_000));
        let found = pair.stats(A, 0).datagram;
        assert!(found > 1_280 && found <= 1_300, "{kind:?}: {found}");
        set_down(&mut pair, 0, false);
        both_move(&mut pair, 0, true);
        assert_eq!(pair.stats(A, 0).datagram, large);
    }
}

#[test]
fn the_owner_knows_a_bound_for_the_size() {
    let mut pair = sending(ControllerKind::Cubic, LinkConfig::path(20, ms(40), 4.0), LinkConfig::path(20, ms(40), 4.0));
    pair.run_for(ms(3_000));
    let now = pair.local_now(A);
    pair.over[A] = 1;
    connection(&mut pair, A).handle_path(now, PathKey(1), 1_260, true);
    pair.pump(A);
    pair.run_for(ms(3_000));
    assert_eq!(pair.stats(A, 0).datagram, 1_260);
}

#[test]
fn a_path_that_is_back_is_used_within_a_round_trip() {
    for kind in KINDS {
        let rtt = ms(40);
        let mut pair = sending(kind, LinkConfig::path(50, rtt, 2.0), LinkConfig::default());
        pair.run_for(ms(3_000));
        set_down(&mut pair, 0, true);
        pair.run_for(ms(5_000));
        set_down(&mut pair, 0, false);
        let now = pair.local_now(A);
        let timer = connection(&mut pair, A).poll_timeout().expect("data is outstanding").since(now);
        assert!(timer > rtt * 2, "{kind:?}: the timer would do, after {timer:?}");
        let (before, confirmed) = (pair.app(B, 0).read, pair.stats(A, 0).bytes_out);
        pair.path_back(A);
        let resent = pair.stats(A, 0).resent;
        pair.run_for(rtt / 4);
        pair.path_back(A);
        assert_eq!(pair.stats(A, 0).resent, resent, "{kind:?}: once in a round trip");
        pair.run_for(rtt * 3 / 4 + ms(2));
        assert!(pair.stats(A, 0).bytes_out > confirmed, "{kind:?}: nothing was confirmed in a round trip");
        // what had arrived before the silence and was not confirmed is not sent again any more
        pair.run_for(rtt / 2);
        assert!(pair.app(B, 0).read > before, "{kind:?}: nothing new half a round trip later");
        pair.run_for(ms(10_000));
        let rate = (pair.app(B, 0).read - before) / 10;
        assert!(rate > 3_000_000, "{kind:?}: {rate} bytes a second of 6,250,000");
    }
}

#[test]
fn a_path_that_is_back_means_nothing_to_who_waits_for_nothing() {
    let utp = config(ControllerKind::Cubic);
    let mut pair = Pair::symmetric(7, &utp, LinkConfig::default());
    pair.hosts[B].template = App { expects: 1, finish: false, ..App::default() };
    pair.connect(A, &utp, App { writes: 1, finish: false, ..App::sending(10_000) });
    pair.run_for(ms(1_000));
    let (datagrams, timer) = (pair.datagrams, connection(&mut pair, A).poll_timeout());
    pair.path_back(A);
    assert_eq!((pair.datagrams, connection(&mut pair, A).poll_timeout()), (datagrams, timer));
    assert_eq!(connection(&mut pair, A).unacked_since(), None);
}

/// Pings pass such a path, and the base size does not.
#[test]
fn who_gets_nothing_through_is_stuck_until_it_moves() {
    for kind in KINDS {
        let mut pair = sending(kind, LinkConfig::path(20, ms(40), 4.0), LinkConfig::path(20, ms(40), 4.0));
        for _ in 0..100 {
            pair.run_for(ms(30));
            let now = pair.local_now(A);
            assert!(!connection(&mut pair, A).is_stuck(now), "{kind:?}: {}", pair.describe());
        }
        pair.links[A].config.mtu = 600;
        for _ in 0..10 {
            // a path table that believes its pings does not hide it
            pair.run_for(ms(3_000));
            pair.path_back(A);
        }
        let now = pair.local_now(A);
        assert!(connection(&mut pair, A).is_stuck(now), "{kind:?}: {}", pair.describe());
        let before = pair.app(B, 0).read;
        both_move(&mut pair, 1, false);
        assert!(!connection(&mut pair, A).is_stuck(now), "{kind:?}");
        pair.run_for(ms(300));
        assert!(pair.app(B, 0).read > before + initial_window(kind), "{kind:?}");
    }
}

/// Only the host that receives learns of the new path late: its acks come over the old one, which still carries them.
#[test]
fn acks_may_take_another_path_than_the_data() {
    for kind in KINDS {
        let mut pair = sending(kind, LinkConfig::path(20, ms(200), 8.0), LinkConfig::path(100, ms(10), 8.0));
        pair.run_for(ms(4_000));
        pair.move_to(A, 1, true);
        pair.run_for(ms(2_000));
        let before = pair.app(B, 0).read;
        pair.move_to(B, 1, true);
        pair.run_for(ms(2_000));
        assert!(pair.app(B, 0).read > before + 5_000_000, "{kind:?}");
        let stats = pair.stats(A, 0);
        let needless = stats.resent.saturating_sub(pair.links[A].dropped + pair.link(1, A).dropped);
        assert!(needless <= 2 && stats.timeouts == 0, "{kind:?}: {needless} of {stats:?}");
    }
}

#[test]
fn four_paths_are_remembered_and_for_five_minutes() {
    let link = LinkConfig::path(20, ms(40), 4.0);
    let mut pair = sending(ControllerKind::Cubic, link.clone(), link.clone());
    let known = |pair: &mut Pair, path: usize| {
        both_move(pair, path, true);
        let known = pair.stats(A, 0).rtt > Duration::ZERO;
        pair.run_for(ms(1_000));
        known
    };
    for n in 2..5 {
        pair.add_path(n, link.clone());
    }
    pair.run_for(ms(1_000));
    assert_eq!([1, 2, 3, 0].map(|path| known(&mut pair, path)), [false, false, false, true]);
    assert_eq!([4, 1].map(|path| known(&mut pair, path)), [false, false], "path 1 was the oldest");
    assert!(known(&mut pair, 0));
    pair.app(A, 0).to_write = 0;
    pair.run_for(Duration::from_secs(301));
    assert!(!known(&mut pair, 4));
}
