//! Punching attempts.

use super::*;
use crate::config::{punch_moment, PUNCH_SCHEDULE};

#[test]
fn pings_follow_the_schedule() {
    let mut bench = Bench::new();
    let start = bench.now;
    bench.table.start_punch(start, &[address(1), address(2)], seconds(10));
    let pings = bench.pass_timed(seconds(10));
    for target in [address(1), address(2)] {
        let moments: Vec<_> =
            pings.iter().filter(|(_, ping)| ping.to == target).map(|(at, _)| at.since(start)).collect();
        let expected: Vec<_> = (0..).map(punch_moment).take_while(|moment| *moment < seconds(10)).collect();
        assert_eq!(moments, expected);
    }
    assert!(pings.iter().all(|(_, ping)| ping.keys.is_none()));
}

#[test]
fn the_first_to_answer_wins() {
    let mut bench = Bench::new();
    let id = bench.table.start_punch(bench.now, &[address(1), address(2)], seconds(10));
    bench.pass(millis(30));
    let pings = bench.pass(millis(100));
    let ping = pings.iter().find(|ping| ping.to == address(2)).unwrap();
    bench.answer(ping);
    let events = bench.events();
    let Some(PathEvent::Punched { id: of, remote, address: at, observed, rtt }) =
        events.iter().find(|event| matches!(event, PathEvent::Punched { .. }))
    else {
        panic!("{events:?}")
    };
    assert_eq!((*of, *at, *observed), (id, address(2), own()));
    assert!(*rtt <= millis(100));
    assert_eq!(bench.table.remote_of(address(2)), Some(*remote));
    assert!(events.contains(&PathEvent::Up { remote: *remote, address: address(2) }));
    assert_eq!(bench.pass(seconds(20)), [], "nothing more is sent");
    assert_eq!(bench.events(), []);
    assert_eq!(bench.table.stats().punches, 0);
}

#[test]
fn an_attempt_without_an_answer_says_what_it_tried() {
    let mut bench = Bench::new();
    let id = bench.table.start_punch(bench.now, &[address(1), address(2), address(1)], seconds(3));
    bench.pass(millis(2_999));
    assert_eq!(bench.events(), []);
    bench.pass(millis(1));
    assert_eq!(bench.events(), [PathEvent::PunchFailed { id, tried: vec![address(1), address(2)] }]);
    assert_eq!(bench.pass(seconds(20)), []);
    assert_eq!((bench.table.timers.len(), bench.table.stats().punches), (0, 0));
}

#[test]
fn an_attempt_without_a_usable_address_fails_at_once() {
    let mut bench = Bench::new();
    let id = bench.table.start_punch(bench.now, &["224.0.0.1:1".parse::<SocketAddr>().unwrap()], seconds(3));
    assert_eq!(bench.events(), [PathEvent::PunchFailed { id, tried: vec![] }]);
}

#[test]
fn attempts_to_one_address_share_the_pings() {
    let mut bench = Bench::new();
    let first = bench.table.start_punch(bench.now, &[address(1)], seconds(10));
    let mut pings = bench.pass(millis(20));
    let more: Vec<_> = (0..99).map(|_| bench.table.start_punch(bench.now, &[address(1)], seconds(10))).collect();
    pings.extend(bench.pass(millis(480)));
    assert_eq!(pings.len(), 5, "as one attempt would send");
    bench.answer(&pings[4]);
    let winners: Vec<_> = bench
        .events()
        .into_iter()
        .filter_map(|event| match event {
            PathEvent::Punched { id, .. } => Some(id),
            _ => None,
        })
        .collect();
    assert_eq!(winners, [&[first], &more[..]].concat());
}

#[test]
fn a_later_attempt_gets_the_quick_pings_again() {
    let mut bench = Bench::new();
    bench.table.start_punch(bench.now, &[address(1)], seconds(60));
    bench.pass(millis(20_200));
    bench.table.start_punch(bench.now, &[address(1)], seconds(10));
    assert_eq!(bench.pass(millis(600)).len(), 6);
}

#[test]
fn a_stopped_attempt_sends_and_says_nothing_more() {
    let mut bench = Bench::new();
    let id = bench.table.start_punch(bench.now, &[address(1)], seconds(10));
    let ping = bench.pass(millis(10)).remove(0);
    bench.table.stop_punch(id);
    bench.table.stop_punch(id);
    bench.answer(&ping);
    assert_eq!(bench.pass(seconds(20)), []);
    assert!(!bench.events().iter().any(|event| !matches!(event, PathEvent::Observed { .. })));
    assert_eq!((bench.table.timers.len(), bench.table.stats().punches, bench.table.stats().remotes), (0, 0, 0));
}

#[test]
fn starting_and_stopping_makes_no_storm() {
    let mut bench = Bench::new();
    let mut pings = 0;
    for _ in 0..1_000 {
        let id = bench.table.start_punch(bench.now, &[address(1)], seconds(10));
        pings += bench.pass(millis(1)).len();
        bench.table.stop_punch(id);
    }
    let spacing = PUNCH_SCHEDULE[1].as_millis() as usize;
    assert!(pings <= 1_000 / spacing + 1, "{pings}");
}

#[test]
fn a_ping_from_a_candidate_is_answered_and_asked_back_at_once() {
    let mut bench = Bench::new();
    bench.table.start_punch(bench.now, &[address(1)], seconds(10));
    bench.pass(millis(3_000));
    assert!(bench.unkeyed_ping(address(1)).is_some());
    assert_eq!(targets(&bench.drain()), [address(1)]);
    // but not more often than the schedule is at its quickest
    for _ in 0..100 {
        assert!(bench.unkeyed_ping(address(1)).is_some());
    }
    assert_eq!(bench.drain(), []);
}

#[test]
fn a_stranger_cannot_win_an_attempt() {
    let mut bench = Bench::new();
    let id = bench.table.start_punch(bench.now, &[address(1)], seconds(3));
    let ping = bench.pass(millis(10)).remove(0);
    let neighbour = SocketAddr::new(address(1).ip(), 9);
    assert!(bench.unkeyed_ping(neighbour).is_some(), "it is answered");
    assert_eq!(bench.drain(), [], "but not asked");
    bench.pong(neighbour, ping.transaction, None);
    bench.pong(address(1), ping.transaction, Some([1; 32]));
    bench.pass(seconds(3));
    assert_eq!(bench.events(), [PathEvent::PunchFailed { id, tried: vec![address(1)] }]);
}

#[test]
fn punching_to_a_peer_that_is_known_finds_its_remote() {
    let mut bench = Bench::new();
    let known = bench.peer(address(1), 1);
    bench.events();
    let id = bench.table.start_punch(bench.now, &[address(1)], seconds(3));
    let ping = bench.pass(millis(10)).remove(0);
    bench.answer(&ping);
    let events = bench.events();
    assert!(
        matches!(events[..], [PathEvent::Punched { id: of, remote, .. }] if (of, remote) == (id, known)),
        "{events:?}"
    );
}

#[test]
fn attempts_and_candidates_are_bounded() {
    let mut bench = Bench::new();
    let many: Vec<_> = (0..100).map(address).collect();
    bench.table.start_punch(bench.now, &many, seconds(3));
    assert_eq!(bench.drain().len(), 16);
    for _ in 0..10_000 {
        bench.table.start_punch(bench.now, &[address(1)], seconds(3));
    }
    assert_eq!(bench.table.stats().punches, 8_192);
    bench.collect();
    let failed = bench.events().len();
    assert_eq!(failed, 10_001 - 8_192);
    bench.pass(seconds(60));
    assert_eq!((bench.table.stats().punches, bench.table.timers.len()), (0, 0));
}
