//! Two nodes that have agreed to meet.

use std::collections::HashSet;

use super::*;
use crate::addr::{Route, Via};

fn plan(candidates: &[u32]) -> Plan {
    Plan { candidates: candidates.iter().map(|n| address(*n)).collect(), ..Plan::default() }
}

impl Bench {
    fn meet(&mut self, n: u8, plan: Plan) -> MeetingId {
        self.table.start_meeting(self.now, node(n), keys(n), plan, seconds(10)).unwrap()
    }

    fn met(&mut self) -> Vec<(RemoteId, SocketAddr)> {
        let met = |event: &PathEvent| match event {
            PathEvent::Met { remote, address, .. } => Some((*remote, *address)),
            _ => None,
        };
        self.events().iter().filter_map(met).collect()
    }

    fn ended(&mut self) -> Vec<(bool, MeetingReport)> {
        let ended = |event: &PathEvent| match event {
            PathEvent::MeetingEnded { met, report, .. } => Some((*met, report.clone())),
            _ => None,
        };
        self.events().iter().filter_map(ended).collect()
    }
}

#[test]
fn all_candidates_are_pinged_by_the_schedule_with_the_shared_key() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let start = bench.now;
    let sent = bench.pass_timed(seconds(1));
    let moments: Vec<_> =
        sent.iter().filter(|(_, ping)| ping.to == address(1)).map(|(at, _)| at.since(start)).collect();
    assert_eq!(moments, [0, 33, 67, 133, 267, 533].map(millis));
    assert!(sent.iter().all(|(_, ping)| ping.keys == Some((keys(1).remote_name, keys(1).key)) && ping.ttl.is_none()));
    assert_eq!(sent.len(), 12);
    bench.pass(seconds(10));
    let ended = bench.ended();
    assert!(matches!(&ended[..], [(false, report)] if report.answered.is_empty() && report.pings > 12), "{ended:?}");
    assert_eq!(bench.pass(seconds(5)), [], "and then there is silence");
}

#[test]
fn the_first_answer_makes_the_path_and_binds_the_node() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let pings = bench.drain();
    bench.now += millis(40);
    bench.answer(&pings[1]);
    let met = bench.met();
    assert_eq!(met.len(), 1);
    let (remote, at) = met[0];
    assert_eq!((at, bench.table.node_of(remote)), (address(2), Some(node(1))));
    assert_eq!(bench.table.addresses_of_node(&node(1)), [address(2)]);
    assert_eq!(bench.table.rtt_of(remote), Some(millis(40)));
    assert!(bench.table.shared_keys(remote).own.is_some(), "data may follow the SYN at once");
}

#[test]
fn the_peer_is_answered_wherever_it_comes_from_and_asked_back_there() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1]));
    bench.drain();
    // its NAT shows another address than the one that it knows of
    let pong = bench.keyed_ping(address(9), 1, 1).unwrap();
    assert_eq!((pong.to, pong.key), (address(9), Some(keys(1).key)));
    let back = bench.drain();
    assert_eq!(targets(&back), [address(9)]);
    bench.answer(&back[0]);
    assert_eq!(bench.met().iter().map(|(_, at)| *at).collect::<Vec<_>>(), [address(9)]);
}

#[test]
fn an_answer_from_another_port_of_the_peer_is_asked_there_and_proves_nothing() {
    let mut bench = Bench::new();
    let seen_at = vec![address(3).ip()];
    bench.meet(1, Plan { seen_at, ..plan(&[1]) });
    let pings = bench.drain();
    let other_port = SocketAddr::new(address(1).ip(), 999);
    let (asked, key) = (pings[0].transaction, Some(keys(1).key));
    bench.pong(other_port, asked, Some([66; 32]));
    bench.pong(other_port, asked, None);
    bench.pong(address(66), asked, key);
    assert_eq!(bench.drain(), [], "neither without the key, nor from where nobody has seen the peer");
    bench.pong(other_port, asked, key);
    assert_eq!(bench.met(), [], "what came from there says not that anything arrives there");
    let back = bench.drain();
    assert_eq!(targets(&back), [other_port]);
    bench.pong(address(3), asked, key);
    assert_eq!(targets(&bench.drain()), [address(3)], "where the rendezvous sees the peer");
    bench.answer(&back[0]);
    assert_eq!(bench.met().iter().map(|(_, at)| *at).collect::<Vec<_>>(), [other_port]);
}

#[test]
fn who_does_not_know_the_key_gets_nothing() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1]));
    let pings = bench.drain();
    let ping = PingIn { transaction: [1; 12], session: Some(keys(1).local_name), size: 92, incarnation: None };
    assert_eq!(bench.table.handle_ping(bench.now, address(66), &ping, |_| false), None);
    bench.pong(address(1), pings[0].transaction, Some([66; 32]));
    bench.pong(address(66), pings[0].transaction, Some(keys(1).key));
    bench.pong(address(1), pings[0].transaction, None);
    assert_eq!((bench.drain(), bench.met()), (vec![], vec![]));
    assert_eq!(bench.table.stats().forged, 4);
}

#[test]
fn pings_that_are_repeated_from_many_places_are_asked_back_at_few() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1]));
    bench.drain();
    for n in 0..2_000 {
        bench.keyed_ping(address(100 + n), 1, 1);
        bench.keyed_ping(address(100 + n), 2, 1);
    }
    let back = bench.drain();
    assert_eq!(back.len(), 512, "once each, and no more than the table has room for");
}

#[test]
fn a_better_candidate_takes_over_while_the_meeting_settles() {
    let mut bench = Bench::new();
    let near = SocketAddr::from(([192, 168, 1, 9], 7));
    bench.meet(1, Plan { candidates: vec![near, address(2)], ..Plan::default() });
    let pings = bench.drain();
    bench.now += millis(30);
    bench.answer(&pings[1]);
    let (remote, _) = bench.met()[0];
    bench.answer(&pings[0]);
    assert_eq!(bench.table.address_of(remote), Some(near), "in the same network, and no slower");
    assert_eq!(bench.table.addresses_of_node(&node(1)), [near, address(2)], "one remote has them both");
    bench.pass_answered(seconds(3));
    assert!(matches!(&bench.ended()[..], [(true, report)] if !report.answered.is_empty()));
}

#[test]
fn behind_an_answer_the_others_are_tried_a_little_longer_and_in_no_hurry() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let pings = bench.drain();
    let start = bench.now;
    bench.now += millis(20);
    bench.answer(&pings[0]);
    let later = bench.pass_timed(seconds(3));
    let others: Vec<_> =
        later.iter().filter(|(_, ping)| ping.to == address(2)).map(|(at, _)| at.since(start)).collect();
    assert_eq!(others, [533, 1_067].map(millis));
}

#[test]
fn where_the_exchange_was_slow_nothing_is_said_twice_in_a_hurry() {
    let mut bench = Bench::new();
    bench.meet(1, Plan { round_trip: seconds(4), ..plan(&[1]) });
    let start = bench.now;
    let moments: Vec<_> = bench.pass_timed(seconds(2)).iter().map(|(at, _)| at.since(start)).collect();
    assert_eq!(moments, [0, 533, 1_067].map(millis));
}

#[test]
fn what_is_in_a_private_network_is_pinged_half_as_often() {
    let mut bench = Bench::new();
    let inside = SocketAddr::from(([192, 168, 1, 9], 7));
    bench.meet(1, Plan { candidates: vec![inside, address(2)], ..Plan::default() });
    let start = bench.now;
    let sent = bench.pass_timed(seconds(1));
    let moments: Vec<_> = sent.iter().filter(|(_, ping)| ping.to == inside).map(|(at, _)| at.since(start)).collect();
    assert_eq!(moments, [0, 67, 267].map(millis));
}

#[test]
fn a_path_that_is_a_little_faster_is_not_worth_a_move() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let pings = bench.drain();
    bench.now += millis(40);
    bench.answer(&pings[0]);
    let (remote, _) = bench.met()[0];
    let pings = bench.pass(millis(493));
    bench.now += millis(36);
    pings[pings.len() - 2..].iter().for_each(|ping| bench.answer(ping));
    assert_eq!(bench.table.address_of(remote), Some(address(1)));
    assert_eq!(bench.table.addresses_of_node(&node(1)).len(), 2);
}

#[test]
fn the_best_path_beside_the_one_in_use_is_kept_warm_and_takes_over_when_that_dies() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let pings = bench.drain();
    bench.now += millis(20);
    pings.iter().for_each(|ping| bench.answer(ping));
    let (remote, _) = bench.met()[0];
    bench.table.hold(bench.now, remote);
    let sent = bench.pass_answered(seconds(120));
    let spare = sent.iter().filter(|ping| ping.to == address(2)).count();
    assert!(
        (7..=16).contains(&spare),
        "every 15 s, beside the five of the meeting and while it was contested: {spare}"
    );
    assert_eq!(bench.table.addresses_of_node(&node(1)), [address(1), address(2)]);
    // the path in use falls silent, the other one answers
    bench.table.handle_sent(bench.now, remote);
    let start = bench.now;
    while bench.table.address_of(remote) == Some(address(1)) && bench.now.since(start) < seconds(10) {
        let pings = bench.pass(millis(50));
        pings.iter().filter(|ping| ping.to == address(2)).for_each(|ping| bench.answer(ping));
    }
    assert_eq!(bench.table.address_of(remote), Some(address(2)));
    assert!(bench.now.since(start) < millis(6_500), "{:?}", bench.now.since(start));
}

#[test]
fn data_that_is_stuck_moves_to_a_path_that_answers_and_to_no_other() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1, 2]));
    let pings = bench.drain();
    bench.now += millis(20);
    pings.iter().for_each(|ping| bench.answer(ping));
    let (remote, _) = bench.met()[0];
    bench.table.hold(bench.now, remote);
    bench.pass_answered(seconds(5));
    // the other path was good a moment ago, and is not known to be now
    bench.pass(millis(100));
    bench.now += seconds(2);
    let in_use = bench.table.address_of(remote).unwrap();
    let other = if in_use == address(1) { address(2) } else { address(1) };
    bench.table.handle_stuck(bench.now, remote);
    assert_eq!(bench.table.address_of(remote), Some(in_use));
    let asked = bench.drain();
    assert_eq!(targets(&asked), [other]);
    bench.table.handle_stuck(bench.now, remote);
    assert_eq!(bench.drain(), [], "once is enough");
    bench.answer(&asked[0]);
    bench.table.handle_stuck(bench.now, remote);
    assert_eq!(bench.table.address_of(remote), Some(other));
}

#[test]
fn a_node_that_is_met_again_keeps_its_remote() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(2));
    let again = keys(2);
    bench.table.start_meeting(bench.now, node(1), again.clone(), plan(&[5]), seconds(10)).unwrap();
    let ping = bench.drain().into_iter().find(|ping| ping.to == address(5)).unwrap();
    bench.answer(&ping);
    assert_eq!(bench.met(), [(remote, address(5))]);
    assert_eq!(bench.table.address_of(remote), Some(address(5)), "the old one had fallen silent");
}

#[test]
fn silence_is_reported_once_and_so_is_its_end() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.events();
    bench.table.handle_sent(bench.now, remote);
    let pings = bench.pass(seconds(5));
    let silent = |event: &&PathEvent| matches!(event, PathEvent::Silent { .. });
    assert_eq!(bench.events().iter().filter(silent).count(), 1);
    bench.answer(pings.last().unwrap());
    assert!(bench.events().contains(&PathEvent::Back { remote }));
}

#[test]
fn guesses_come_first_and_in_their_order() {
    let mut bench = Bench::new();
    let guesses: Vec<_> = (50..60).map(address).collect();
    bench.meet(1, Plan { guesses: guesses.clone(), ..plan(&[1]) });
    assert_eq!(targets(&bench.drain()), guesses);
    let later = bench.pass(millis(60));
    assert_eq!(targets(&later)[0], address(1));
}

#[test]
fn the_opening_shot_has_few_hops() {
    let mut bench = Bench::new();
    bench.meet(1, Plan { opening_ttl: Some(2), ..plan(&[1]) });
    let ttls: Vec<_> = bench.pass(millis(100)).iter().map(|ping| ping.ttl).collect();
    assert_eq!(ttls[..3], [Some(2), None, None]);
}

#[test]
fn a_search_asks_each_port_once_at_a_bounded_rate_and_ends() {
    let mut bench = Bench::new();
    let ip = address(3).ip();
    let search = Search::Ports { ip, low: 2_000, high: 2_999, start: 77, begin: millis(100) };
    bench.meet(1, Plan { search: Some(search), seen_at: vec![address(3).ip()], ..Plan::default() });
    assert_eq!(bench.pass(millis(99)), []);
    let second = bench.pass(seconds(1)).len();
    assert!((199..=201).contains(&second), "200 a second: {second}");
    let rest = bench.pass(seconds(20));
    let ports: HashSet<u16> = rest.iter().map(|ping| ping.to.port()).collect();
    assert_eq!((second + rest.len(), ports.len()), (1_000, rest.len()), "each port once");
    assert!(rest.iter().all(|ping| ping.to.ip() == ip && (2_000..3_000).contains(&ping.to.port())));
}

#[test]
fn what_was_slept_through_is_not_sent_at_once() {
    let ip = address(3).ip();
    let vias: Vec<_> = (1..=40).map(Via).collect();
    let ports = Search::Ports { ip, low: 2_000, high: 60_000, start: 77, begin: Duration::ZERO };
    let sockets = Search::Sockets { vias, to: address(3), begin: Duration::ZERO };
    for (search, most) in [(None, 0), (Some(ports), 4), (Some(sockets), 4 * 16)] {
        let mut bench = Bench::new();
        let guesses: Vec<_> = (50..60).map(address).collect();
        bench.meet(1, Plan { guesses, search, seen_at: vec![ip], ..plan(&[1]) });
        bench.drain();
        bench.now += seconds(5);
        bench.table.handle_timeout(bench.now);
        let burst = bench.drain().len();
        assert!(burst <= 10 + 1 + most, "{burst}");
        assert!(bench.table.poll_timeout().is_some_and(|at| at > bench.now), "and nothing is due at once");
        let on = bench.pass(seconds(3)).len();
        assert!(on >= most.min(40), "the search goes on: {on}");
    }
}

#[test]
fn a_search_from_many_sockets_ends_with_one_of_them() {
    let mut bench = Bench::new();
    let vias: Vec<_> = (1..=40).map(Via).collect();
    let search = Search::Sockets { vias, to: address(3), begin: Duration::ZERO };
    bench.meet(1, Plan { search: Some(search), seen_at: vec![address(3).ip()], ..Plan::default() });
    let pings = bench.pass(millis(50));
    assert_eq!(pings.iter().map(|ping| ping.via).collect::<HashSet<_>>().len(), 40);
    // the peer's question comes in through one of them
    let hit = Route { via: Via(17), to: address(3) };
    let ping = PingIn { transaction: [1; 12], session: Some(keys(1).local_name), size: 92, incarnation: None };
    let pong = bench.table.handle_ping(bench.now, hit, &ping, |key| *key == keys(1).key).unwrap();
    assert_eq!((pong.via, pong.to), (Via(17), address(3)));
    let back = bench.drain();
    assert_eq!((back[0].via, back[0].to), (Via(17), address(3)));
    let pong = PongIn { transaction: back[0].transaction, observed: own(), keyed: true, incarnation: None };
    bench.table.handle_pong(bench.now, hit, &pong, |_| true);
    let remote = bench.met()[0].0;
    assert_eq!(bench.table.route_of(remote), Some(hit));
    bench.pass_answered_via(seconds(3), Via(17));
    let unused: HashSet<_> = bench.take_unused();
    assert_eq!(unused.len(), 39);
    assert!(!unused.contains(&Via(17)));
    bench.pass(seconds(60));
    assert!(bench.take_unused().contains(&Via(17)), "when nobody needs the path, its socket goes");
}

impl Bench {
    fn pass_answered_via(&mut self, duration: Duration, via: Via) {
        for _ in 0..duration.as_millis() / 20 {
            for ping in self.pass(millis(20)) {
                if ping.via == via {
                    let pong =
                        PongIn { transaction: ping.transaction, observed: own(), keyed: true, incarnation: None };
                    self.table.handle_pong(self.now, Route { via, to: ping.to }, &pong, |_| true);
                }
            }
        }
    }

    fn take_unused(&mut self) -> HashSet<Via> {
        let unused = |event: &PathEvent| match event {
            PathEvent::Unused { via } => Some(*via),
            _ => None,
        };
        self.events().iter().filter_map(unused).collect()
    }
}

#[test]
fn meetings_are_bounded_and_names_are_not_shared() {
    let mut bench = Bench::new();
    bench.meet(1, plan(&[1]));
    let again = bench.table.start_meeting(bench.now, node(2), keys(1), plan(&[2]), seconds(1));
    assert_eq!(again, None);
    let mut made = 1;
    for n in 0..2_000_u32 {
        let mut keys = keys(9);
        keys.local_name[..4].copy_from_slice(&n.to_be_bytes());
        made += usize::from(bench.table.start_meeting(bench.now, node(3), keys, Plan::default(), seconds(1)).is_some());
    }
    assert_eq!((made, bench.table.stats().meetings), (1_024, 1_024));
    bench.pass(seconds(20));
    assert_eq!(bench.table.stats().meetings, 0);
}
