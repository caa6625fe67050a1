//! Which life of its node a peer is, and goodbyes.

use super::*;
use crate::addr::Incarnation;

const FIRST: Incarnation = [0xf1; 16];
const SECOND: Incarnation = [0xf2; 16];

/// A peer at `address(1)`, known under session 1, that has said which life it is.
fn introduced() -> (Bench, RemoteId) {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_incarnation(bench.now, remote, &keys(1).local_name, FIRST);
    bench.events();
    (bench, remote)
}

fn ended(bench: &mut Bench) -> Vec<(RemoteId, Incarnation, Why)> {
    let ended = |event: PathEvent| match event {
        PathEvent::LifeEnded { remote, incarnation, why, .. } => Some((remote, incarnation, why)),
        _ => None,
    };
    bench.events().into_iter().filter_map(ended).collect()
}

/// A handshake from `from`, over which the peer says which life it is.
fn handshake(bench: &mut Bench, from: SocketAddr, n: u8, incarnation: Incarnation) -> RemoteId {
    let remote = bench.table.remote_for(bench.now, from).unwrap();
    bench.table.hold(bench.now, remote);
    bench.table.bind_node(bench.now, remote, node(1), PingKeys { key: [n; 32], ..keys(n) });
    bench.table.handle_incarnation(bench.now, remote, &keys(n).local_name, incarnation);
    remote
}

#[test]
fn a_new_life_from_another_address_ends_the_one_that_does_not_answer_within_two_seconds() {
    let (mut bench, old) = introduced();
    let new = handshake(&mut bench, address(2), 2, SECOND);
    bench.pass(seconds(2));
    assert_eq!(ended(&mut bench), [(old, FIRST, Why::Restarted)]);
    assert_eq!(bench.table.remote_of(address(1)), None, "nothing is left of it");
    assert_eq!(bench.table.remote_of(address(2)), Some(new));
    assert!(bench.table.knows_incarnation(&node(1), &SECOND) && !bench.table.knows_incarnation(&node(1), &FIRST));
}

/// A node with a fixed port: the new process has the address of the old one, and the same remote.
#[test]
fn a_new_life_at_the_same_address_ends_the_old_one_and_stays() {
    let (mut bench, remote) = introduced();
    assert_eq!(handshake(&mut bench, address(1), 2, SECOND), remote);
    for ping in bench.pass(millis(900)) {
        let new = ping.keys.is_some_and(|(_, key)| key == [2; 32]);
        // the new process knows only its own session
        if new {
            bench.answer(&ping);
        }
    }
    bench.pass(seconds(2));
    assert_eq!(ended(&mut bench), [(remote, FIRST, Why::Restarted)]);
    assert_eq!(bench.table.remote_of(address(1)), Some(remote));
    assert!(bench.table.knows_incarnation(&node(1), &SECOND));
}

/// Two processes with one identity are no restart.
#[test]
fn an_earlier_life_that_answers_goes_on() {
    let (mut bench, old) = introduced();
    let new = handshake(&mut bench, address(2), 2, SECOND);
    for _ in 0..100 {
        for ping in bench.pass(millis(100)) {
            bench.answer(&ping);
        }
    }
    assert_eq!(ended(&mut bench), []);
    assert_eq!((bench.table.remote_of(address(1)), bench.table.remote_of(address(2))), (Some(old), Some(new)));
}

#[test]
fn the_first_pings_of_a_session_say_which_life_it_is_and_the_later_ones_are_short() {
    let mut bench = Bench::new();
    let remote = bench.remote(address(1));
    bench.table.bind_node(bench.now, remote, node(1), keys(1));
    let first = bench.pass(seconds(1)).remove(0);
    assert_eq!(first.incarnation, Some(bench.table.incarnation()));
    bench.answer(&first);
    let later = bench.pass_answered(seconds(60));
    assert!(!later.is_empty() && later.iter().all(|ping| ping.incarnation.is_none()));
    assert_ne!(bench.table.incarnation(), PathTable::new(PathConfig::default(), [8; 32]).incarnation());
}

#[test]
fn a_pong_and_a_ping_tell_of_a_new_life() {
    for by_ping in [false, true] {
        let (mut bench, old) = introduced();
        let new = bench.table.remote_for(bench.now, address(2)).unwrap();
        bench.table.hold(bench.now, new);
        bench.table.bind_node(bench.now, new, node(1), keys(2));
        let transaction = [7; 12];
        if by_ping {
            let ping = PingIn { transaction, session: Some(keys(2).local_name), size: 112, incarnation: Some(SECOND) };
            let pong = bench.table.handle_ping(bench.now, address(2), &ping, |key| *key == keys(2).key).unwrap();
            assert_eq!(pong.incarnation, Some(bench.table.incarnation()));
        } else {
            let ping = bench.pass(seconds(1)).into_iter().find(|ping| ping.to == address(2)).unwrap();
            let pong =
                PongIn { transaction: ping.transaction, observed: own(), keyed: true, incarnation: Some(SECOND) };
            bench.table.handle_pong(bench.now, address(2), &pong, |key| *key == keys(2).key);
        }
        bench.pass(seconds(2));
        assert_eq!(ended(&mut bench), [(old, FIRST, Why::Restarted)], "by ping: {by_ping}");
    }
}

#[test]
fn a_forged_ping_tells_of_none() {
    let (mut bench, _) = introduced();
    let ping = PingIn { transaction: [7; 12], session: Some(keys(1).local_name), size: 112, incarnation: Some(SECOND) };
    assert_eq!(bench.table.handle_ping(bench.now, address(1), &ping, |_| false), None);
    bench.pass(seconds(5));
    assert_eq!(ended(&mut bench), []);
}

/// The peer is met again at another address, and it is another life of it: the new path belongs to the old remote.
#[test]
fn a_meeting_tells_of_a_new_life() {
    let (mut bench, remote) = introduced();
    bench.pass(seconds(2));
    let plan = Plan { candidates: vec![address(5)], ..Plan::default() };
    bench.table.start_meeting(bench.now, node(1), keys(2), plan, seconds(10)).unwrap();
    let ping = bench.drain().into_iter().find(|ping| ping.to == address(5)).unwrap();
    assert_eq!(ping.incarnation, Some(bench.table.incarnation()));
    let pong = PongIn { transaction: ping.transaction, observed: own(), keyed: true, incarnation: Some(SECOND) };
    bench.table.handle_pong(bench.now, address(5), &pong, |_| true);
    for _ in 0..20 {
        for ping in bench.pass(millis(100)) {
            if ping.keys.is_some_and(|(_, key)| key == [2; 32]) && ping.to == address(5) {
                bench.answer(&ping);
            }
        }
    }
    assert_eq!(ended(&mut bench), [(remote, FIRST, Why::Restarted)]);
    assert_eq!(bench.table.address_of(remote), Some(address(5)), "the new life is reached there");
}

fn goodbye(bench: &mut Bench, n: u8, transaction: [u8; 12], genuine: bool) {
    bench.table.handle_goodbye(bench.now, &keys(n).local_name, transaction, |key| genuine && *key == keys(n).key);
}

#[test]
fn a_goodbye_ends_that_life_at_once() {
    let (mut bench, remote) = introduced();
    goodbye(&mut bench, 1, [1; 12], true);
    let events = bench.events();
    assert!(events.iter().any(|event| matches!(event, PathEvent::LifeEnded { why: Why::Gone, .. })));
    assert!(events.iter().any(|event| matches!(event, PathEvent::Lost { remote: lost, .. } if *lost == remote)));
    assert_eq!(bench.table.remote_of(address(1)), None);
}

#[test]
fn a_goodbye_counts_with_the_right_key_and_once() {
    let (mut bench, _) = introduced();
    goodbye(&mut bench, 1, [1; 12], false);
    goodbye(&mut bench, 9, [1; 12], true);
    bench.keyed_ping(address(1), 5, 1);
    goodbye(&mut bench, 1, [5; 12], true);
    assert_eq!(ended(&mut bench), []);
    assert_eq!(bench.table.stats().forged, 3);
}

#[test]
fn a_goodbye_of_one_life_leaves_the_other_alone() {
    let (mut bench, old) = introduced();
    let new = handshake(&mut bench, address(2), 2, SECOND);
    goodbye(&mut bench, 1, [1; 12], true);
    assert_eq!(ended(&mut bench), [(old, FIRST, Why::Gone)]);
    assert_eq!(bench.table.remote_of(address(2)), Some(new));
}

#[test]
fn a_node_that_ends_says_so_to_every_peer() {
    let (mut bench, _) = introduced();
    bench.remote(address(3));
    let farewells = bench.table.farewells();
    assert_eq!(farewells.len(), 1, "to whom it has a key");
    assert_eq!((farewells[0].to, farewells[0].keys), (address(1), (keys(1).remote_name, keys(1).key)));
}

/// Its host answers each ping with "port unreachable" for so long.
fn refuse(bench: &mut Bench, by: SocketAddr, duration: Duration) {
    let end = bench.now + duration;
    while bench.now < end {
        for ping in bench.pass(millis(100)) {
            bench.table.handle_refusal(bench.now, by.ip(), ping.to, &ping.transaction);
        }
    }
}

fn gone(bench: &mut Bench) -> bool {
    bench.events().iter().any(|event| matches!(event, PathEvent::Lost { why: Why::Gone, .. }))
}

#[test]
fn a_peer_whose_host_says_that_nobody_is_there_is_gone() {
    let (mut bench, remote) = introduced();
    bench.table.handle_sent(bench.now, remote);
    refuse(&mut bench, address(1), seconds(4));
    assert!(!gone(&mut bench), "a NAT may have been restarted");
    refuse(&mut bench, address(1), seconds(2));
    assert!(gone(&mut bench));
}

#[test]
fn a_relay_that_has_lost_an_allocation_says_nothing_of_the_peer_behind_it() {
    let (mut bench, remote) = introduced();
    bench.table.remotes.get_mut(&remote).unwrap().add_relays(&[address(1)]);
    bench.table.handle_sent(bench.now, remote);
    refuse(&mut bench, address(1), seconds(20));
    assert!(!gone(&mut bench), "it started anew, and so does the peer's allocation");
}

#[test]
fn who_is_not_the_host_says_nothing() {
    let (mut bench, remote) = introduced();
    bench.table.handle_sent(bench.now, remote);
    refuse(&mut bench, address(77), seconds(20));
    assert!(!gone(&mut bench), "a router on the way may be about to be restarted");
}

#[test]
fn refusals_of_what_was_never_sent_are_forged() {
    let (mut bench, remote) = introduced();
    bench.table.handle_sent(bench.now, remote);
    for n in 0..100 {
        bench.pass(millis(100));
        bench.table.handle_refusal(bench.now, address(1).ip(), address(1), &[n; 12]);
    }
    assert!(!gone(&mut bench));
}

#[test]
fn a_peer_that_answers_in_between_is_there() {
    let (mut bench, remote) = introduced();
    for _ in 0..10 {
        bench.table.handle_sent(bench.now, remote);
        refuse(&mut bench, address(1), millis(2_400));
        let ping = bench.pass(seconds(1)).pop().unwrap();
        bench.answer(&ping);
    }
    assert!(!gone(&mut bench));
}
