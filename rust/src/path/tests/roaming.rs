//! A peer whose address changes.

use super::*;

fn moved(bench: &mut Bench) -> Vec<(SocketAddr, SocketAddr)> {
    let moved = |event: &PathEvent| match event {
        PathEvent::Moved { from, to, .. } => Some((from.to, to.to)),
        _ => None,
    };
    bench.events().iter().filter_map(moved).collect()
}

#[test]
fn a_peer_is_followed_to_the_address_that_answers_with_its_key() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(5));
    let pong = bench.keyed_ping(address(2), 1, 1).unwrap();
    assert_eq!((pong.to, pong.observed), (address(2), address(2)));
    let pings = bench.drain();
    assert_eq!(targets(&pings), [address(2)]);
    assert_eq!(pings[0].keys, Some((keys(1).remote_name, keys(1).key)));
    assert_eq!(bench.table.address_of(remote), Some(address(1)), "a ping alone moves nothing");
    assert_eq!(bench.table.remote_of(address(2)), None);
    bench.answer(&pings[0]);
    assert_eq!(bench.table.address_of(remote), Some(address(2)));
    assert_eq!(bench.table.remote_of(address(2)), Some(remote));
    assert_eq!(bench.table.addresses_of_node(&node(1)), [address(2), address(1)], "in use first");
    assert_eq!(moved(&mut bench), [(address(1), address(2))]);
    assert_eq!(bench.table.stats().moved, 1);
}

#[test]
fn while_the_old_path_was_just_heard_it_is_asked_first() {
    for old_answers in [true, false] {
        let mut bench = Bench::new();
        let remote = bench.peer(address(1), 1);
        bench.table.handle_utp(bench.now, remote, true);
        bench.keyed_ping(address(2), 1, 1);
        let ping = bench.drain().remove(0);
        bench.answer(&ping);
        assert_eq!(bench.table.address_of(remote), Some(address(1)));
        let challenge = bench.drain();
        assert_eq!(targets(&challenge), [address(1)]);
        if old_answers {
            bench.answer(&challenge[0]);
        }
        bench.pass(seconds(1));
        let expected = if old_answers { address(1) } else { address(2) };
        assert_eq!(bench.table.address_of(remote), Some(expected));
        assert_eq!(moved(&mut bench).len(), usize::from(!old_answers));
        assert_eq!(bench.table.remote_of(address(2)), Some(remote), "either way it is a proven path");
    }
}

#[test]
fn unkeyed_pings_never_move_anything() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(5));
    for _ in 0..5 {
        assert!(bench.unkeyed_ping(address(2)).is_some());
    }
    bench.pass(seconds(2));
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
    assert_eq!(bench.table.remote_of(address(2)), None);
    assert_eq!(moved(&mut bench), []);
}

#[test]
fn the_new_address_must_answer_itself() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(5));
    bench.keyed_ping(address(2), 1, 1);
    let ping = bench.drain().remove(0);
    bench.pong(address(1), ping.transaction, Some(keys(1).key));
    bench.pong(address(2), ping.transaction, None);
    bench.pong(address(2), ping.transaction, Some(keys(2).key));
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
    assert_eq!(bench.table.remote_of(address(2)), None);
    assert_eq!(bench.table.stats().forged, 3);
}

#[test]
fn an_address_that_does_not_answer_gets_five_pings_a_second() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    bench.pass(seconds(3));
    let mut pings = 0;
    for n in 0..200 {
        bench.keyed_ping(address(2), n, 1);
        pings += bench.drain().iter().filter(|ping| ping.to == address(2)).count();
        bench.now += millis(10);
    }
    assert_eq!(pings, 10, "in two seconds");
}

#[test]
fn a_fallback_is_tried_when_the_path_in_use_dies() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(5));
    bench.keyed_ping(address(2), 1, 1);
    let ping = bench.drain().remove(0);
    bench.answer(&ping);
    assert_eq!(bench.table.address_of(remote), Some(address(2)));
    // now 2 dies and 1 lives again
    let mut asked = Vec::new();
    for _ in 0..100 {
        for ping in bench.pass(millis(100)) {
            asked.push(ping.to);
            if ping.to == address(1) {
                bench.answer(&ping);
            }
        }
    }
    assert_eq!(bench.table.address_of(remote), Some(address(1)), "{asked:?}");
    assert!(!bench.events().iter().any(|event| matches!(event, PathEvent::Lost { .. })));
}

#[test]
fn data_on_another_path_moves_when_the_one_in_use_does_not_answer() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_utp(bench.now, remote, true);
    bench.keyed_ping(address(2), 1, 1);
    let ping = bench.drain().remove(0);
    bench.answer(&ping);
    let challenge = bench.drain().remove(0);
    bench.answer(&challenge);
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
    // the peer sends from 2 only; what comes from there does not show that 1 works
    let mut moved_after = None;
    for n in 0..60 {
        bench.table.handle_sent(bench.now, remote);
        bench.table.handle_utp_from(bench.now, address(2), remote, true);
        bench.pass(millis(100));
        if bench.table.address_of(remote) == Some(address(2)) {
            moved_after.get_or_insert(n);
        }
    }
    assert!(moved_after.is_some_and(|n| n <= 25), "{moved_after:?}");
    assert_eq!(bench.lost(), []);
}

#[test]
fn data_from_an_address_that_is_no_path_of_the_remote_counts_for_nothing() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    for _ in 0..300 {
        bench.table.handle_utp_from(bench.now, address(66), remote, true);
        bench.pass(millis(100));
    }
    assert_eq!(bench.lost(), [remote]);
}

#[test]
fn an_unheld_stranger_at_the_new_address_gives_way_and_a_held_one_shares_it() {
    for held in [false, true] {
        let mut bench = Bench::new();
        let remote = bench.peer(address(1), 1);
        bench.pass(seconds(5));
        let other = bench.table.remote_for(bench.now, address(2)).unwrap();
        if held {
            bench.table.hold(bench.now, other);
        }
        bench.keyed_ping(address(2), 1, 1);
        let ping = bench.drain().remove(0);
        bench.answer(&ping);
        assert_eq!(bench.table.address_of(remote), Some(address(2)));
        let at: Vec<_> = bench.table.remotes_at(address(2)).collect();
        assert_eq!(at, if held { vec![other, remote] } else { vec![remote] });
        assert_eq!(bench.table.remote_of(address(2)), Some(at[0]));
        if held {
            bench.table.release(bench.now, other);
            while bench.table.address_of(other).is_some() {
                for ping in bench.pass(seconds(1)) {
                    bench.answer(&ping);
                }
            }
            assert_eq!(bench.table.remote_of(address(2)), Some(remote), "the one that stays takes its place");
        }
    }
}

#[test]
fn a_stranger_is_not_reset_before_it_had_time_to_show_that_it_is_a_peer() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    assert!(bench.table.may_reset(bench.now, remote));
    let stranger = bench.table.remote_for(bench.now, address(2)).unwrap();
    assert!(!bench.table.may_reset(bench.now, stranger));
    for _ in 0..3 {
        bench.pass(seconds(1));
        assert_eq!(bench.table.remote_for(bench.now, address(2)), Ok(stranger));
    }
    assert!(bench.table.may_reset(bench.now, stranger));
    assert!(!bench.table.may_reset(bench.now, RemoteId(77)));
}

/// The address of a peer changes, and before it has noticed its program dials anew: the handshake is a stranger's at first.
#[test]
fn a_peer_that_dials_before_it_has_moved_is_not_reset() {
    let mut bench = Bench::new();
    let before = bench.peer(address(1), 1);
    bench.table.hold(bench.now, before);
    let dials = bench.table.remote_for(bench.now, address(2)).unwrap();
    bench.table.hold(bench.now, dials);
    assert!(!bench.table.may_reset(bench.now, dials), "its connection is of today, its stream of before");
    bench.table.bind_node(bench.now, dials, node(1), keys(7));
    assert!(!bench.table.may_reset(bench.now, dials), "it has said who it is");
    for _ in 0..3 {
        bench.pass(seconds(1));
    }
    assert!(bench.table.may_reset(bench.now, dials), "it has had its time");
    bench.table.release(bench.now, before);
    let other = bench.table.remote_for(bench.now, address(3)).unwrap();
    bench.table.bind_node(bench.now, other, node(2), keys(8));
    assert!(bench.table.may_reset(bench.now, other), "nothing hangs on another address of it");
}

#[test]
fn paths_of_one_remote_are_bounded_and_old_ones_go() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    for n in 2..50u8 {
        bench.pass(seconds(2));
        bench.keyed_ping(address(u32::from(n)), n, 1);
        let ping = bench.drain().into_iter().find(|ping| ping.to == address(u32::from(n))).unwrap();
        bench.answer(&ping);
        assert_eq!(bench.table.address_of(remote), Some(address(u32::from(n))));
        assert!(bench.table.slots.len() <= 8);
    }
    let in_use = bench.table.address_of(remote).unwrap();
    for _ in 0..600 {
        for ping in bench.pass(millis(100)) {
            if ping.to == in_use {
                bench.answer(&ping);
            }
        }
    }
    assert_eq!(bench.table.addresses_of_node(&node(1)), [in_use]);
    assert_eq!(bench.table.slots.len(), 1, "an address that a peer once had may be somebody else's by now");
}

#[test]
fn a_session_that_is_not_answered_is_replaced_by_the_newest() {
    // the peer restarted behind the same address: it knows only what the new handshake brought
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.bind_node(bench.now, remote, node(1), keys(2));
    let mut used = Vec::new();
    for _ in 0..200 {
        for ping in bench.pass(millis(100)) {
            let name = ping.keys.unwrap().0;
            used.push(name[0] ^ 0x80);
            if name == keys(2).remote_name {
                bench.answer(&ping);
            }
        }
    }
    assert_eq!(used[..3], [1, 1, 2]);
    assert!(used[3..].iter().all(|n| *n == 2), "{used:?}");
    assert_eq!(bench.lost(), []);
}

#[test]
fn a_node_that_changes_its_key_is_found_under_both_names() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.bind_node(bench.now, remote, node(2), keys(2));
    assert_eq!(bench.table.node_of(remote), Some(node(2)));
    for n in [1, 2] {
        assert_eq!(bench.table.addresses_of_node(&node(n)), [address(1)]);
    }
    for n in 3..60 {
        bench.table.bind_node(bench.now, remote, node(n), keys(n));
    }
    assert_eq!(bench.table.addresses_of_node(&node(1)), [], "sixteen names are enough");
    assert_eq!(bench.table.names.len(), 8);
}

#[test]
fn after_a_change_of_network_every_path_in_use_has_to_answer_anew() {
    let mut bench = Bench::new();
    let (one, idle) = (bench.peer(address(1), 1), bench.peer(address(2), 2));
    bench.table.release(bench.now, idle);
    bench.pass_answered(millis(100));
    let since = bench.now;
    let asked = bench.table.handle_network_change(since);
    assert_eq!(asked.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [node(1)], "nobody needs the other");
    let pings = bench.drain();
    assert_eq!(targets(&pings), [address(1)]);
    assert!(!bench.table.is_heard_since(&node(1), since));
    bench.now += millis(30);
    // what comes may come to an address that nothing is sent from any more
    bench.table.handle_utp_from(bench.now, address(1), one, false);
    assert!(!bench.table.is_heard_since(&node(1), since));
    bench.answer(&pings[0]);
    assert!(bench.table.is_heard_since(&node(1), since));
    assert!(!bench.table.is_heard_since(&node(1), bench.now));
    assert_eq!(bench.table.destinations(8), [address(1)]);
    assert_eq!(bench.table.destinations(0), []);
}

/// An observer is faster with a copy of each ping than the peer, from addresses of its own.
#[test]
fn copies_of_pings_from_elsewhere_keep_no_peer_from_roaming() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    let ping = |bench: &mut Bench, from: SocketAddr, count: u64| {
        let PingKeys { key, local_name, .. } = keys(1);
        let transaction = crate::path::outstanding::counted(&key, &local_name, count);
        let ping = PingIn { transaction, session: Some(local_name), size: 92, incarnation: None };
        bench.table.handle_ping(bench.now, from, &ping, |expected| *expected == key)
    };
    // recorded earlier
    for count in 0..25 {
        assert!(ping(&mut bench, address(1), count).is_some());
    }
    bench.table.handle_sent(bench.now, remote);
    for n in 0..1_000 {
        assert!(ping(&mut bench, address(100 + n % 20), u64::from(n % 25)).is_none(), "an old one");
        bench.pass(millis(1));
    }
    assert!(!targets(&bench.pass(seconds(1))).iter().any(|to| *to != address(1)), "nobody else is asked for it");
    assert!(ping(&mut bench, address(66), 30).is_some(), "the copy of a new one");
    assert!(ping(&mut bench, address(2), 30).is_none());
    assert!(ping(&mut bench, address(2), 31).is_some(), "the peer pings from its new address again");
    let back = bench.drain().into_iter().find(|ping| ping.to == address(2)).unwrap();
    bench.answer(&back);
    assert_eq!(bench.table.address_of(remote), Some(address(2)));
}

#[test]
fn a_copy_that_was_faster_costs_the_peer_no_answer() {
    let mut bench = Bench::new();
    bench.peer(address(1), 1);
    let PingKeys { key, local_name, .. } = keys(1);
    let transaction = crate::path::outstanding::counted(&key, &local_name, 7);
    let ping = PingIn { transaction, session: Some(local_name), size: 92, incarnation: None };
    for (from, answered) in [(address(66), true), (address(1), true), (address(66), false)] {
        let pong = bench.table.handle_ping(bench.now, from, &ping, |expected| *expected == key);
        assert_eq!(pong.is_some(), answered, "{from}");
    }
}

#[test]
fn one_address_uses_up_nobody_elses_pings_back() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_sent(bench.now, remote);
    bench.pass(seconds(2));
    let mut asked = std::collections::HashMap::new();
    for n in 0..80 {
        for (i, from) in [address(66), address(67), address(2)].into_iter().enumerate() {
            bench.keyed_ping(from, 3 * n + i as u8, 1);
            for ping in bench.drain() {
                *asked.entry(ping.to).or_insert(0) += 1;
            }
        }
        bench.now += millis(12);
    }
    assert!(asked.get(&address(2)).copied().unwrap_or(0) >= 4, "{asked:?}");
}
