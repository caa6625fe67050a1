//! What strangers send changes nothing.

use super::*;

/// A peer in the middle of being pinged, and a bench to measure changes by.
fn pinged() -> (Bench, RemoteId, PingOut) {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    let ping = bench.pass(millis(2_500)).remove(0);
    bench.events();
    (bench, remote, ping)
}

fn changes_nothing(attack: impl FnOnce(&mut Bench, &PingOut)) {
    let (mut bench, remote, ping) = pinged();
    let (face, deadline, forged) = (bench.face(&[remote]), bench.table.poll_timeout(), bench.table.stats().forged);
    attack(&mut bench, &ping);
    assert_eq!(bench.face(&[remote]), face);
    assert_eq!(bench.table.poll_timeout(), deadline);
    assert_eq!(bench.drain(), [], "nothing is sent for it");
    assert_eq!(bench.events(), []);
    assert!(bench.table.stats().forged > forged, "it is counted");
    // the genuine pong still counts
    let pongs = bench.table.stats().pongs_in;
    bench.answer(&ping);
    assert_eq!(bench.table.stats().pongs_in, pongs + 1);
}

#[test]
fn pong_with_an_unknown_transaction() {
    changes_nothing(|bench, ping| bench.pong(ping.to, [0xee; 12], Some(keys(1).key)));
}

#[test]
fn pong_with_the_right_transaction_from_another_address() {
    changes_nothing(|bench, ping| bench.pong(address(66), ping.transaction, Some(keys(1).key)));
}

#[test]
fn pong_with_a_wrong_key() {
    changes_nothing(|bench, ping| bench.pong(ping.to, ping.transaction, Some([0xee; 32])));
}

#[test]
fn unkeyed_pong_to_a_keyed_ping() {
    changes_nothing(|bench, ping| bench.pong(ping.to, ping.transaction, None));
}

#[test]
fn ping_under_an_unknown_session() {
    changes_nothing(|bench, _| assert_eq!(bench.keyed_ping(address(66), 1, 2), None));
    changes_nothing(|bench, _| assert_eq!(bench.keyed_ping(address(1), 1, 2), None));
}

#[test]
fn ping_with_a_wrong_key() {
    for from in [address(1), address(66)] {
        changes_nothing(|bench, _| {
            let ping = PingIn { transaction: [3; 12], session: Some(keys(1).local_name), size: 92, incarnation: None };
            assert_eq!(bench.table.handle_ping(bench.now, from, &ping, |_| false), None);
        });
    }
}

#[test]
fn replayed_pong() {
    let (mut bench, remote, ping) = pinged();
    bench.answer(&ping);
    let (face, deadline) = (bench.face(&[remote]), bench.table.poll_timeout());
    for from in [ping.to, address(66)] {
        bench.now += millis(50);
        bench.answer(&PingOut { to: from, ..ping.clone() });
    }
    assert_eq!(bench.table.stats().forged, 2);
    assert_eq!((bench.face(&[remote]), bench.table.poll_timeout()), (face, deadline));
}

#[test]
fn replayed_ping() {
    let (mut bench, ..) = pinged();
    assert!(bench.keyed_ping(address(1), 5, 1).is_some());
    for from in [address(1), address(66)] {
        assert_eq!(bench.keyed_ping(from, 5, 1), None);
        assert_eq!(bench.drain(), []);
    }
    assert_eq!(bench.table.stats().forged, 2);
}

#[test]
fn a_genuine_ping_is_no_sign_of_life() {
    // it may be an old one, recorded and sent again; only what answers us counts
    let (mut bench, remote, _) = pinged();
    for n in 0..100 {
        assert!(bench.keyed_ping(address(1), n, 1).is_some());
        bench.pass(millis(100));
    }
    assert_eq!(bench.lost(), [remote]);
}

#[test]
fn a_late_pong_is_none() {
    let (mut bench, _, ping) = pinged();
    bench.now += millis(7_501);
    bench.answer(&ping);
    assert_eq!(bench.table.stats().forged, 1);
}

#[test]
fn an_unkeyed_pong_asked_for_before_the_handshake_says_nothing_after_it() {
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    let ping = bench.pass(millis(2_500)).remove(0);
    bench.table.bind_node(bench.now, remote, node(1), keys(1));
    bench.answer(&ping);
    assert_eq!(bench.table.rtt_of(remote), None);
    bench.pass(seconds(30));
    assert_eq!(bench.lost(), [remote], "it is no sign of life");
}

#[test]
fn pings_are_answered_as_they_were_asked() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    let keyed = bench.keyed_ping(address(1), 1, 1).unwrap();
    let expected = PongOut {
        via: Via::MAIN,
        to: address(1),
        transaction: [1; 12],
        observed: address(1),
        key: Some(keys(1).key),
        incarnation: None,
        room: 92,
    };
    assert_eq!(keyed, expected);
    let mapped = crate::addr::mapped(address(66));
    let unkeyed = bench.unkeyed_ping(mapped).unwrap();
    assert_eq!((unkeyed.to, unkeyed.observed, unkeyed.key, unkeyed.room), (address(66), address(66), None, 44));
    assert_eq!(bench.table.remote_of(address(66)), None, "nothing is remembered of strangers");
}

#[test]
fn stranger_pongs_are_limited_and_peers_are_not() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    let answered = (0..10_000).filter(|n| bench.unkeyed_ping(address(100 + n)).is_some()).count();
    assert_eq!(answered, 200);
    assert!(bench.keyed_ping(address(1), 1, 1).is_some(), "with a key");
    assert!(bench.unkeyed_ping(address(1)).is_some(), "from a proven path");
    bench.table.start_punch(bench.now, &[address(5)], seconds(10));
    assert!(bench.unkeyed_ping(address(5)).is_some(), "from where we punch to");
    assert_eq!(bench.table.stats().rate_limited, 9_800);
    bench.pass(seconds(1));
    assert!(bench.unkeyed_ping(address(99)).is_some());
}

#[test]
fn nothing_goes_to_groups_and_nowhere() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    for bad in [
        "224.0.0.1:5",
        "255.255.255.255:5",
        "0.0.0.0:5",
        "[::]:5",
        "[ff02::1]:5",
        "198.51.0.9:0",
        "[::ffff:224.0.0.1]:5",
    ] {
        let bad: SocketAddr = bad.parse().unwrap();
        assert_eq!(bench.unkeyed_ping(bad), None, "{bad}");
        assert_eq!(bench.keyed_ping(bad, 1, 1), None, "{bad}");
        assert_eq!(bench.table.remote_for(bench.now, bad), Err(TableFull), "{bad}");
        bench.table.start_punch(bench.now, &[bad], seconds(10));
        assert_eq!(bench.drain(), [], "{bad}");
    }
    assert_eq!(bench.table.stats().unsendable, 14);
}
