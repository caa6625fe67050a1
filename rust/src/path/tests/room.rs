//! Tables at their caps.

use super::*;

#[test]
fn addresses_are_the_same_in_either_form() {
    let mut bench = Bench::new();
    let remote = bench.remote(crate::addr::mapped(address(1)));
    assert_eq!(bench.table.remote_of(address(1)), Some(remote));
    assert_eq!(bench.table.remote_of(crate::addr::mapped(address(1))), Some(remote));
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
}

#[test]
fn the_longest_unheard_stranger_makes_room() {
    let config = PathConfig { max_strangers: 4, ..PathConfig::default() };
    let mut bench = Bench::with(config);
    let ids: Vec<_> = (0..4)
        .map(|n| {
            bench.now += millis(1);
            bench.table.remote_for(bench.now, address(n)).unwrap()
        })
        .collect();
    bench.now += millis(1);
    bench.table.handle_utp(bench.now, ids[0], false);
    bench.table.remote_for(bench.now, address(1)).unwrap();
    bench.table.remote_for(bench.now, address(9)).unwrap();
    let alive: Vec<_> = ids.iter().map(|id| bench.table.address_of(*id).is_some()).collect();
    assert_eq!(alive, [true, true, false, true]);
    assert_eq!(bench.table.stats().strangers, 4);
}

#[test]
fn what_is_held_is_never_evicted() {
    let config = PathConfig { max_strangers: 10, max_remotes: 100, ..PathConfig::default() };
    let mut bench = Bench::with(config);
    let held: Vec<_> = (0..20).map(|n| bench.remote(address(n))).collect();
    let peer = bench.peer(address(50), 1);
    for n in 1_000..20_000 {
        bench.table.remote_for(bench.now, address(n)).unwrap();
        assert!(bench.table.stats().remotes <= 31);
    }
    assert!(held.iter().chain([&peer]).all(|id| bench.table.address_of(*id).is_some()));
    assert!(bench.table.slots.len() <= 31 && bench.table.timers.len() <= 31);
}

#[test]
fn a_full_table_gives_up_strangers_then_unheld_peers_then_nothing() {
    let config = PathConfig { max_strangers: 2, max_remotes: 3, ..PathConfig::default() };
    let mut bench = Bench::with(config);
    let peer = bench.peer(address(1), 1);
    bench.remote(address(2));
    let stranger = bench.table.remote_for(bench.now, address(3)).unwrap();
    bench.table.release(bench.now, peer);
    bench.remote(address(4));
    assert_eq!((bench.table.address_of(stranger), bench.table.address_of(peer)), (None, Some(address(1))));
    bench.remote(address(5));
    assert_eq!(bench.table.address_of(peer), None);
    assert_eq!(bench.table.addresses_of_node(&node(1)), []);
    assert_eq!(bench.table.remote_for(bench.now, address(6)), Err(TableFull));
    assert_eq!(bench.table.stats().remotes, 3);
}

#[test]
fn strangers_are_forgotten_when_they_fall_silent() {
    let mut bench = Bench::new();
    for n in 0..100 {
        bench.table.remote_for(bench.now, address(n)).unwrap();
    }
    assert_eq!(bench.pass(seconds(60)), []);
    assert_eq!((bench.table.stats().remotes, bench.table.slots.len(), bench.table.timers.len()), (0, 0, 0));
    assert_eq!(bench.events(), []);
}

#[test]
fn strangers_that_are_released_are_bounded_too() {
    let config = PathConfig { max_strangers: 4, ..PathConfig::default() };
    let mut bench = Bench::with(config);
    let held: Vec<_> = (0..100).map(|n| bench.remote(address(n))).collect();
    for id in held {
        bench.now += millis(1);
        bench.table.release(bench.now, id);
    }
    assert_eq!((bench.table.stats().strangers, bench.table.stats().remotes), (4, 4));
    assert!(bench.table.remote_of(address(99)).is_some(), "the last heard stay");
}

#[test]
fn holds_are_counted() {
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    bench.table.hold(bench.now, remote);
    bench.table.release(bench.now, remote);
    bench.pass(seconds(600));
    assert!(bench.table.address_of(remote).is_some());
    bench.table.release(bench.now, remote);
    bench.table.release(bench.now, remote);
    bench.pass(seconds(600));
    assert_eq!(bench.table.address_of(remote), None);
}

#[test]
fn handles_are_never_used_again() {
    let mut bench = Bench::new();
    let first = bench.table.remote_for(bench.now, address(1)).unwrap();
    bench.pass(seconds(100));
    let second = bench.table.remote_for(bench.now, address(1)).unwrap();
    assert_ne!(first, second);
}

#[test]
fn five_hundred_handshakes_at_once_leave_the_path_alive() {
    // both ends, with the handshakes finishing in different orders; session 0 is in use
    let session = |n: u32| {
        let name = |salt: u64| {
            let mut name = [0; 16];
            name[..8].copy_from_slice(&(u64::from(n) + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
            name
        };
        let (mut key, a, b) = ([0; 32], name(1 << 32), name(2 << 32));
        key[..4].copy_from_slice(&n.to_be_bytes());
        (PingKeys { key, local_name: a, remote_name: b }, PingKeys { key, local_name: b, remote_name: a })
    };
    let (mut a, mut b) = (Bench::new(), Bench::new());
    let (at_a, at_b) = (a.remote(address(2)), b.remote(address(1)));
    for round in 0..5 {
        for n in 0..500 {
            let n = round * 1_000 + n;
            a.table.bind_node(a.now, at_a, node(2), session(n).0);
            let shuffled = round * 1_000 + ((n * 7 + 123) % 500);
            b.table.bind_node(b.now, at_b, node(1), session(shuffled).1);
        }
        for _ in 0..600 {
            exchange(&mut a, &mut b, address(1));
            exchange(&mut b, &mut a, address(2));
        }
        assert_eq!((a.lost(), b.lost()), (vec![], vec![]), "round {round}");
        assert_eq!((a.table.names.len(), b.table.names.len()), (8, 8));
    }
    // one of them pings for both
    assert!(a.table.stats().pongs_in + b.table.stats().pongs_in > 20);
}

/// A tenth of a second of `one`, whose pings reach `other` from `from` and are answered at once.
fn exchange(one: &mut Bench, other: &mut Bench, from: SocketAddr) {
    for ping in one.pass(millis(100)) {
        let (name, key) = ping.keys.unwrap();
        let arriving = PingIn { transaction: ping.transaction, session: Some(name), size: 92, incarnation: None };
        if let Some(pong) = other.table.handle_ping(other.now, from, &arriving, |expected| *expected == key) {
            one.pong(ping.to, pong.transaction, pong.key);
        }
    }
}

#[test]
fn data_does_not_touch_the_timers_packet_by_packet() {
    let mut bench = Bench::new();
    let ids: Vec<_> = (0..65_536).map(|n| bench.remote(address(n))).collect();
    assert_eq!(bench.table.timers.len(), 65_536);
    let before = bench.table.timers.changes;
    // three seconds, in which each remote sends and receives thirty times
    for _ in 0..30 {
        for id in &ids {
            bench.table.handle_sent(bench.now, *id);
            bench.table.handle_utp(bench.now, *id, true);
        }
        assert_eq!(bench.pass(millis(100)), []);
    }
    let changes = bench.table.timers.changes - before;
    assert!(changes <= 6 * ids.len(), "two a second for each remote: {changes}");
}
