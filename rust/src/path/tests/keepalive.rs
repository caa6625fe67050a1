//! Keep-alive, signs of life and dead peers.

use super::*;

#[test]
fn an_active_path_is_pinged_when_it_falls_silent() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_utp(bench.now, remote, true);
    let pings = bench.pass_timed(millis(2_500));
    assert_eq!(pings.len(), 1);
    assert_eq!((pings[0].0, pings[0].1.to), (bench.now, address(1)));
    assert_eq!(pings[0].1.keys, Some((keys(1).remote_name, keys(1).key)));
}

#[test]
fn data_that_comes_is_a_sign_of_life_and_saves_the_pings() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    for _ in 0..100 {
        bench.table.handle_sent(bench.now, remote);
        bench.table.handle_utp(bench.now, remote, false);
        assert_eq!(bench.pass(millis(900)), []);
    }
    assert_eq!(bench.lost(), []);
}

#[test]
fn data_that_goes_out_is_none() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    let mut pings = 0;
    for _ in 0..100 {
        bench.table.handle_sent(bench.now, remote);
        pings += bench.pass(millis(100)).len();
    }
    assert!((10..=12).contains(&pings), "after 250 ms, after 500 more, then one a second: {pings}");
    assert_eq!(bench.lost(), [remote]);
}

#[test]
fn an_idle_held_path_is_pinged_more_rarely() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    bench.pass_answered(seconds(60));
    let quiet = bench.pass_answered(seconds(150));
    assert_eq!(quiet.len(), 10, "every 15 s");
    assert_eq!(bench.lost(), []);
}

/// The names of these sessions make it the peer's part.
#[test]
fn of_two_ends_of_a_quiet_path_one_pings() {
    for (quiet, interval) in [(0, millis(2_500)), (60, seconds(15))] {
        let mut bench = Bench::new();
        let remote = bench.peer(address(1), 1);
        if quiet == 0 {
            bench.table.handle_utp(bench.now, remote, true);
        }
        bench.pass_answered(seconds(quiet));
        let mut pings = 0;
        for number in 0..16 {
            assert!(bench.keyed_ping(address(1), 100 + number, 1).is_some());
            pings += bench.pass_answered(interval).len();
        }
        assert!((3..=5).contains(&pings), "one in four intervals: {pings}");
        assert_eq!(bench.lost(), []);
    }
}

#[test]
fn whoever_pinged_for_both_is_lost_as_soon_as_others() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_utp(bench.now, remote, true);
    for number in 0..3 {
        assert!(bench.keyed_ping(address(1), 100 + number, 1).is_some());
        assert_eq!(bench.pass(millis(2_500)), []);
    }
    // 10 s after the last one
    assert!(bench.pass(millis(7_500)).len() >= 5);
    assert_eq!(bench.lost(), [remote]);
}

/// The pong did not arrive: perhaps nothing does.
#[test]
fn a_ping_that_comes_again_soon_is_followed_by_one_of_ours() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_utp(bench.now, remote, true);
    assert_eq!(bench.pass(millis(2_400)), []);
    assert!(bench.keyed_ping(address(1), 100, 1).is_some());
    assert_eq!(bench.pass(millis(250)), []);
    assert!(bench.keyed_ping(address(1), 101, 1).is_some());
    assert_eq!(bench.pass(millis(10)).len(), 1);
}

#[test]
fn a_silent_path_is_one_until_it_answers() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_sent(bench.now, remote);
    assert!(!bench.table.has_silent_path(&node(1)));
    let pings = bench.pass(seconds(3));
    assert!(bench.table.has_silent_path(&node(1)) && !bench.table.has_silent_path(&node(2)));
    bench.answer(pings.last().unwrap());
    assert!(!bench.table.has_silent_path(&node(1)));
    bench.table.handle_sent(bench.now, remote);
    bench.pass(seconds(20));
    assert_eq!(bench.lost(), [remote]);
    assert!(bench.table.has_silent_path(&node(1)), "it is looked for as long as somebody waits");
}

#[test]
fn a_path_that_wakes_up_is_checked_at_once() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass_answered(seconds(100));
    bench.pass_answered(seconds(10));
    let before = bench.now;
    bench.table.handle_sent(bench.now, remote);
    let pings = bench.pass_timed(millis(100));
    assert_eq!(pings.len(), 1);
    assert!(pings[0].0 <= before + millis(1));
}

#[test]
fn a_dead_peer_is_lost_once_within_ten_seconds_of_its_last_sign_of_life() {
    for sending in [false, true] {
        let mut bench = Bench::new();
        let remote = bench.peer(address(1), 1);
        bench.table.handle_utp(bench.now, remote, true);
        let last = bench.now;
        let mut lost_at = None;
        for _ in 0..600 {
            if sending {
                bench.table.handle_sent(bench.now, remote);
            }
            bench.pass(millis(100));
            for event in bench.events() {
                if let PathEvent::Missing { remote: lost, node: of, address: at, silent_for, .. } = event {
                    assert_eq!((lost, of, at), (remote, node(1), address(1)));
                    assert!(silent_for <= seconds(10), "{silent_for:?}");
                    assert_eq!(lost_at.replace(bench.now), None, "lost twice");
                }
            }
        }
        let after = lost_at.unwrap().since(last);
        let expected = if sending { seconds(9) } else { seconds(10) };
        assert!(after <= expected, "sending {sending}: {after:?}");
    }
}

#[test]
fn a_lost_remote_is_forgotten_when_released_and_its_address_is_free_at_once() {
    let mut bench = Bench::new();
    // nobody has proven to be anybody: nothing waits for it
    let remote = bench.remote(address(1));
    let pings = bench.pass(millis(2_500));
    bench.answer(&pings[0]);
    bench.pass(seconds(60));
    assert_eq!(bench.lost(), [remote]);
    assert_eq!(bench.table.address_of(remote), Some(address(1)), "for the resets");
    assert_eq!(bench.table.remote_of(address(1)), None);
    let next = bench.table.remote_for(bench.now, address(1)).unwrap();
    assert_ne!(next, remote);
    bench.table.release(bench.now, remote);
    assert_eq!(bench.table.address_of(remote), None);
    assert_eq!(bench.table.remote_of(address(1)), Some(next), "the new one stays");
    assert_eq!(bench.table.stats().remotes, 1);
    // late news about the old one does nothing
    bench.table.handle_utp(bench.now, remote, true);
    bench.table.handle_sent(bench.now, remote);
    bench.table.hold(bench.now, remote);
    assert_eq!(bench.pass(seconds(30)), []);
}

#[test]
fn one_answer_in_time_saves_the_path() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    for _ in 0..20 {
        bench.table.handle_utp(bench.now, remote, false);
        let mut pings = bench.pass(millis(2_500));
        pings.extend(bench.pass(millis(7_400)));
        assert!(pings.len() >= 7);
        bench.answer(pings.last().unwrap());
    }
    assert_eq!(bench.lost(), []);
}

#[test]
fn a_path_that_never_answered_a_ping_is_not_lost_for_that() {
    // libtorrent and others: they speak uTP and no STUN
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    let pings = bench.pass(seconds(600));
    assert!((40..100).contains(&pings.len()), "the NAT mapping is kept, without haste: {}", pings.len());
    assert!(pings.iter().all(|ping| ping.keys.is_none()));
    assert_eq!(bench.lost(), []);
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
}

#[test]
fn an_unkeyed_path_that_has_answered_is_lost_when_it_falls_silent() {
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    let pings = bench.pass(millis(2_500));
    bench.answer(&pings[0]);
    bench.pass(seconds(10));
    assert_eq!(bench.lost(), [remote]);
}

#[test]
fn nothing_is_sent_to_a_held_address_that_has_proven_nothing() {
    // a forged SYN makes a half-open connection; the address must not be pinged for it
    let mut bench = Bench::new();
    let remote = bench.table.remote_for(bench.now, address(1)).unwrap();
    bench.table.hold(bench.now, remote);
    bench.table.handle_sent(bench.now, remote);
    bench.table.handle_utp(bench.now, remote, false);
    assert_eq!(bench.pass(seconds(120)), []);
    bench.table.handle_utp(bench.now, remote, true);
    assert!(!bench.pass(seconds(20)).is_empty());
}

#[test]
fn a_released_peer_is_kept_alive_while_active_and_then_forgotten_in_silence() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_sent(bench.now, remote);
    bench.table.handle_utp(bench.now, remote, true);
    bench.table.release(bench.now, remote);
    let end_of_activity = bench.now + seconds(45);
    let mut pings = Vec::new();
    while bench.now < end_of_activity + seconds(60) {
        for (at, ping) in bench.pass_timed(millis(100)) {
            bench.answer(&ping);
            pings.push(at);
        }
    }
    assert!(pings.len() >= 15 && *pings.last().unwrap() <= end_of_activity);
    assert_eq!(bench.lost(), []);
    assert_eq!(bench.table.stats().remotes, 0);
    assert_eq!((bench.table.timers.len(), bench.table.names.len(), bench.table.slots.len()), (0, 0, 0));
}

#[test]
fn the_first_proof_brings_the_path_up_once() {
    let mut bench = Bench::new();
    let remote = bench.table.remote_for(bench.now, address(1)).unwrap();
    bench.table.hold(bench.now, remote);
    bench.table.handle_utp(bench.now, remote, false);
    assert_eq!(bench.events(), []);
    bench.table.handle_utp(bench.now, remote, true);
    bench.table.bind_node(bench.now, remote, node(1), keys(1));
    assert_eq!(bench.events(), [PathEvent::Up { remote, address: address(1) }]);
    assert_eq!(bench.table.addresses_of_node(&node(1)), [address(1)]);
    assert_eq!((bench.table.node_of(remote), bench.table.node_of(RemoteId(77))), (Some(node(1)), None));
}

#[test]
fn the_round_trip_time_is_measured_and_smoothed() {
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    assert_eq!(bench.table.rtt_of(remote), None);
    for (rtt, smoothed) in [(80, 80), (160, 90)] {
        let pings = bench.pass(millis(2_500));
        bench.now += millis(rtt);
        bench.answer(&pings[0]);
        assert_eq!(bench.table.rtt_of(remote), Some(millis(smoothed)));
    }
}

#[test]
fn our_own_address_is_reported_when_it_is_news_to_whoever_sees_it() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    bench.pass_answered(seconds(60));
    let news =
        |bench: &mut Bench| bench.events().into_iter().filter(|e| matches!(e, PathEvent::Observed { .. })).count();
    assert_eq!(news(&mut bench), 1);
    for n in 0..200u16 {
        let ping = bench.pass(seconds(15)).remove(0);
        let observed = SocketAddr::new(own().ip(), 5_000 + n % 2);
        let pong = PongIn { transaction: ping.transaction, observed, keyed: true, incarnation: None };
        bench.table.handle_pong(bench.now, ping.to, &pong, |_| true);
    }
    // the last of the first sixty seconds was another: 200 changes of mind, each told once
    assert_eq!(news(&mut bench), 200, "whoever sees us elsewhere than the last time says something new");
    for _ in 0..200 {
        let ping = bench.pass(seconds(15)).remove(0);
        let observed = SocketAddr::new(own().ip(), 5_001);
        let pong = PongIn { transaction: ping.transaction, observed, keyed: true, incarnation: None };
        bench.table.handle_pong(bench.now, ping.to, &pong, |_| true);
    }
    assert_eq!(news(&mut bench), 0, "what stays is no news");
}

impl Bench {
    /// Lets time pass, every ping answered at once.
    pub(super) fn pass_answered(&mut self, duration: Duration) -> Vec<PingOut> {
        let end = self.now + duration;
        let mut all = Vec::new();
        while self.now < end {
            for ping in self.pass(millis(100)) {
                self.answer(&ping);
                all.push(ping);
            }
        }
        all
    }
}
