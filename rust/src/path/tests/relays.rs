//! Paths over relays: direct ones come first, and everything moves when one goes.

use super::*;
use crate::addr::{Route, Via};

const RELAY: Via = Via(Via::FIRST_RELAY);

/// Direct candidates, an address that a relay keeps for the peer, and the peer's address through a relay of ours.
fn plan(direct: &[u32], kept: u32, through: u32) -> Plan {
    Plan {
        candidates: direct.iter().map(|n| address(*n)).collect(),
        relayed: vec![address(kept).into(), Route { via: RELAY, to: address(through) }],
        peer_relays: vec![address(kept)],
        head_start: millis(250),
        ..Plan::default()
    }
}

fn to(pings: &[PingOut], via: Via, n: u32) -> PingOut {
    pings.iter().find(|ping| ping.via == via && ping.to == address(n)).unwrap().clone()
}

impl Bench {
    fn start(&mut self, plan: Plan) -> Vec<PingOut> {
        self.table.start_meeting(self.now, node(1), keys(1), plan, seconds(10)).unwrap();
        self.drain()
    }

    /// With what leaves in the first 100 ms: relays are asked then.
    fn start_all(&mut self, plan: Plan) -> Vec<PingOut> {
        let mut pings = self.start(plan);
        pings.extend(self.pass(millis(100)));
        pings
    }

    fn paths_met(&mut self) -> Vec<(RemoteId, Route, bool)> {
        let met = |event: &PathEvent| match event {
            PathEvent::Met { remote, address, via, relayed, .. } => {
                Some((*remote, Route { via: *via, to: *address }, *relayed))
            }
            _ => None,
        };
        self.events().iter().filter_map(met).collect()
    }

    /// A path over our relay, in use, of a node that somebody holds.
    fn relayed_peer(&mut self) -> RemoteId {
        let pings = self.start(Plan { head_start: Duration::ZERO, ..plan(&[], 8, 1) });
        self.now += millis(40);
        self.answer(&to(&pings, RELAY, 1));
        let (remote, ..) = self.paths_met()[0];
        self.table.hold(self.now, remote);
        remote
    }
}

#[test]
fn relays_are_asked_in_time_for_the_end_of_the_head_start_and_taken_then() {
    let mut bench = Bench::new();
    let pings = bench.start(plan(&[1, 2], 8, 1));
    assert_eq!(targets(&pings), [address(1), address(2)]);
    assert!(bench.pass(millis(99)).iter().all(|ping| ping.via == Via::MAIN && ping.to != address(8)));
    let pings = bench.pass(millis(1));
    bench.now += millis(60);
    bench.answer(&to(&pings, Via::MAIN, 8));
    bench.now += millis(20);
    bench.answer(&to(&pings, RELAY, 1));
    assert_eq!(bench.paths_met(), [], "direct ways come first");
    bench.pass(millis(80));
    let met = bench.paths_met();
    assert!(matches!(&met[..], [(_, route, true)] if *route == address(8).into()), "the quicker of the two: {met:?}");
}

#[test]
fn a_direct_answer_in_time_makes_the_path_and_nothing_is_relayed() {
    let mut bench = Bench::new();
    let pings = bench.start_all(plan(&[1], 8, 1));
    bench.now += millis(20);
    bench.answer(&to(&pings, RELAY, 1));
    bench.now += millis(100);
    bench.answer(&to(&pings, Via::MAIN, 1));
    let met = bench.paths_met();
    assert!(matches!(&met[..], [(_, route, false)] if *route == address(1).into()), "{met:?}");
}

#[test]
fn punching_goes_on_behind_a_relay_and_a_direct_path_takes_over_however_slow_it_is() {
    let mut bench = Bench::new();
    let pings = bench.start_all(plan(&[1], 8, 1));
    bench.now += millis(10);
    bench.answer(&to(&pings, RELAY, 1));
    bench.pass(millis(300));
    let (remote, route, _) = bench.paths_met()[0];
    assert_eq!(bench.table.route_of(remote), Some(route));
    bench.table.hold(bench.now, remote);
    let later = bench.pass_answering(seconds(4), |ping| ping.via == RELAY);
    let direct = later.iter().rev().find(|ping| ping.via == Via::MAIN && ping.to == address(1)).unwrap().clone();
    bench.now += millis(90);
    bench.answer(&direct);
    assert_eq!(bench.table.route_of(remote), Some(address(1).into()), "90 ms direct are better than 10 over a relay");
    let paths = bench.table.paths_of_node(bench.now, &node(1));
    assert_eq!(paths.iter().map(|path| path.relayed).collect::<Vec<_>>(), [false, true], "it stays, as the next best");
}

#[test]
fn no_relay_is_better_than_a_direct_path() {
    let mut bench = Bench::new();
    let pings = bench.start_all(plan(&[1], 8, 1));
    bench.answer(&to(&pings, Via::MAIN, 1));
    let (remote, ..) = bench.paths_met()[0];
    bench.now += millis(1);
    bench.answer(&to(&pings, RELAY, 1));
    bench.pass_answering(seconds(3), |_| true);
    assert_eq!(bench.table.route_of(remote), Some(address(1).into()));
}

#[test]
fn where_nothing_else_can_help_a_relay_is_taken_at_once() {
    let mut bench = Bench::new();
    let pings = bench.start(Plan { head_start: Duration::ZERO, ..plan(&[1], 8, 1) });
    bench.now += millis(30);
    bench.answer(&to(&pings, RELAY, 1));
    assert!(matches!(bench.paths_met()[..], [(_, Route { via: RELAY, .. }, true)]));
}

#[test]
fn a_search_goes_on_behind_a_relay() {
    let mut bench = Bench::new();
    let search = Search::Ports { ip: address(1).ip(), low: 2_000, high: 2_999, start: 0, begin: Duration::ZERO };
    let seen_at = vec![address(1).ip()];
    let pings = bench.start(Plan { search: Some(search), seen_at, head_start: Duration::ZERO, ..plan(&[], 8, 1) });
    bench.now += millis(30);
    bench.answer(&to(&pings, RELAY, 1));
    let (remote, ..) = bench.paths_met()[0];
    let searched = bench.pass(millis(500));
    let hit = searched.iter().rev().find(|ping| ping.via == Via::MAIN && (2_000..3_000).contains(&ping.to.port()));
    let hit = hit.expect("ports are still asked").clone();
    bench.answer(&hit);
    assert_eq!(bench.table.route_of(remote), Some(hit.to.into()));
    bench.pass_answering(seconds(3), |_| true);
    let still = bench.pass(seconds(1)).iter().any(|ping| (2_000..3_000).contains(&ping.to.port()) && ping.to != hit.to);
    assert!(!still, "it has found what it looked for");
}

#[test]
fn when_a_relay_goes_its_paths_go() {
    let mut bench = Bench::new();
    let remote = bench.relayed_peer();
    bench.events();
    bench.table.handle_closed(bench.now, RELAY);
    let events = bench.events();
    assert!(
        events.iter().any(|event| matches!(event, PathEvent::Silent { remote: r, .. } if *r == remote)),
        "{events:?}"
    );
    // a new meeting finds a way before the peer counts as lost
    let again = Plan { candidates: vec![address(1)], ..Plan::default() };
    let pings = bench.start_again(again);
    bench.answer(&to(&pings, Via::MAIN, 1));
    assert_eq!(bench.table.route_of(remote), Some(address(1).into()), "the same remote, so that its streams live");
}

/// Whether a ping of the peer that comes by this way is answered.
fn answers(bench: &mut Bench, via: Via, transaction: u8) -> bool {
    let ping =
        PingIn { transaction: [transaction; 12], session: Some(keys(1).local_name), size: 92, incarnation: None };
    let from = Route { via, to: address(1) };
    bench.table.handle_ping(bench.now, from, &ping, |key| *key == keys(1).key).is_some()
}

#[test]
fn who_uses_a_relay_that_is_about_to_be_given_up_moves_while_it_carries() {
    let mut bench = Bench::new();
    let second = Via(Via::FIRST_RELAY + 1);
    let relayed = [RELAY, second].map(|via| Route { via, to: address(1) });
    let pings = bench.start(Plan { relayed: relayed.to_vec(), head_start: Duration::ZERO, ..Plan::default() });
    for (via, wait) in [(RELAY, 10), (second, 50)] {
        bench.now += millis(wait);
        bench.answer(&to(&pings, via, 1));
    }
    let (remote, ..) = bench.paths_met()[0];
    bench.table.hold(bench.now, remote);
    bench.pass_answering(seconds(12), |_| true);
    assert_eq!(bench.table.route_of(remote), Some(relayed[0]), "the quicker one");
    bench.events();
    assert!(answers(&mut bench, RELAY, 1));
    bench.table.handle_leaving(bench.now, &[RELAY]);
    assert_eq!(bench.table.route_of(remote), Some(relayed[1]));
    assert!(matches!(&bench.events()[..], [PathEvent::Moved { .. }]));
    assert!(!answers(&mut bench, RELAY, 2), "the peer is to follow");
    assert!(answers(&mut bench, second, 3));
    bench.pass_answering(seconds(30), |_| true);
    assert_eq!(bench.table.route_of(remote), Some(relayed[1]), "it does not go back");
    bench.events();
    bench.table.handle_closed(bench.now, RELAY);
    assert_eq!(bench.events(), [], "nobody notices the end");
}

#[test]
fn who_has_no_other_path_stays_on_a_relay_until_it_is_gone() {
    let mut bench = Bench::new();
    let remote = bench.relayed_peer();
    let before = bench.table.route_of(remote);
    bench.pass_answering(seconds(12), |ping| ping.via == RELAY);
    bench.table.handle_leaving(bench.now, &[RELAY]);
    assert_eq!(bench.table.route_of(remote), before);
    assert!(answers(&mut bench, RELAY, 1));
}

#[test]
fn when_a_relay_goes_and_another_path_is_warm_that_one_is_taken_at_once() {
    let mut bench = Bench::new();
    let pings = bench.start(Plan { head_start: Duration::ZERO, ..plan(&[], 8, 1) });
    bench.now += millis(40);
    bench.answer(&to(&pings, RELAY, 1));
    bench.answer(&to(&pings, Via::MAIN, 8));
    let (remote, ..) = bench.paths_met()[0];
    bench.table.hold(bench.now, remote);
    bench.events();
    bench.table.handle_closed(bench.now, RELAY);
    assert_eq!(bench.table.route_of(remote), Some(address(8).into()));
    let events = bench.events();
    assert!(matches!(&events[..], [PathEvent::Moved { .. }]), "{events:?}");
    assert_eq!(bench.table.paths_of_node(bench.now, &node(1)).len(), 1);
}

#[test]
fn what_a_peer_sees_of_us_through_a_relay_is_no_address_of_ours() {
    let mut bench = Bench::new();
    bench.relayed_peer();
    assert!(!bench.events().iter().any(|event| matches!(event, PathEvent::Observed { .. })));
}

impl Bench {
    /// Another meeting with the same node, under new keys.
    fn start_again(&mut self, plan: Plan) -> Vec<PingOut> {
        self.table.start_meeting(self.now, node(1), keys(2), plan, seconds(10)).unwrap();
        self.drain()
    }

    /// Lets time pass while some pings are answered as soon as they are sent; returns all of them.
    fn pass_answering(&mut self, duration: Duration, answered: impl Fn(&PingOut) -> bool) -> Vec<PingOut> {
        let end = self.now + duration;
        let mut all = Vec::new();
        while self.now < end {
            let sent = self.pass(millis(10));
            sent.iter().filter(|ping| answered(ping)).for_each(|ping| self.answer(ping));
            all.extend(sent);
        }
        all
    }
}

#[test]
fn a_meeting_in_search_of_a_direct_path_does_not_make_relays_forgotten() {
    let mut bench = Bench::new();
    let pings = bench.start(Plan { head_start: Duration::ZERO, ..plan(&[], 8, 1) });
    bench.now += millis(40);
    bench.answer(&to(&pings, Via::MAIN, 8));
    let (remote, ..) = bench.paths_met()[0];
    bench.table.hold(bench.now, remote);
    let pings = bench.start_again(Plan { candidates: vec![address(1)], ..Plan::default() });
    bench.now += millis(90);
    bench.answer(&to(&pings, Via::MAIN, 1));
    assert_eq!(bench.table.route_of(remote), Some(address(1).into()));
    let relayed: Vec<_> = bench.table.paths_of_node(bench.now, &node(1)).iter().map(|path| path.relayed).collect();
    assert_eq!(relayed, [false, true]);
}

#[test]
fn every_way_over_a_relay_that_answered_is_known_when_the_path_is_made() {
    let mut bench = Bench::new();
    let pings = bench.start_all(plan(&[1], 8, 1));
    bench.now += millis(30);
    bench.answer(&to(&pings, RELAY, 1));
    bench.answer(&to(&pings, Via::MAIN, 8));
    bench.pass(millis(300));
    assert_eq!(bench.paths_met().len(), 1);
    // the peer may send by any of them, and what comes from an unknown address is a stranger's
    assert_eq!(bench.table.paths_of_node(bench.now, &node(1)).len(), 2);
}

#[test]
fn an_answer_that_there_is_no_room_for_does_not_stop_time() {
    let config = PathConfig { max_remotes: 1, max_strangers: 1, ..PathConfig::default() };
    let mut bench = Bench::with(config);
    bench.remote(address(77));
    let pings = bench.start_all(plan(&[], 8, 1));
    bench.now += millis(10);
    bench.answer(&to(&pings, RELAY, 1));
    bench.pass(seconds(2));
    assert_eq!(bench.paths_met(), []);
}

#[test]
fn who_wants_direct_paths_only_makes_none_of_what_comes_over_relays() {
    let mut bench = Bench::new();
    bench.start(Plan { direct_only: true, relayed: Vec::new(), ..plan(&[1], 8, 1) });
    let pong = bench.keyed_ping(address(8), 1, 1);
    assert!(pong.is_some(), "the peer is answered, so that it knows that its way is one");
    let over = Route { via: RELAY, to: address(1) };
    let ping = PingIn { transaction: [2; 12], session: Some(keys(1).local_name), size: 92, incarnation: None };
    bench.table.handle_ping(bench.now, over, &ping, |key| *key == keys(1).key);
    let asked = bench.drain();
    assert!(!asked.iter().any(|ping| ping.to == address(8) || ping.via == RELAY), "and not asked back: {asked:?}");
}

#[test]
fn a_peer_that_nobody_needs_is_forgotten_with_its_relay() {
    let mut bench = Bench::new();
    let remote = bench.relayed_peer();
    bench.table.release(bench.now, remote);
    bench.table.handle_closed(bench.now, RELAY);
    assert_eq!(bench.table.routes_of_node(&node(1)), [], "the next call finds it anew");
}

#[test]
fn the_way_that_is_kept_warm_does_not_go_with_the_relay_in_use() {
    let mut bench = Bench::new();
    let second = Via(Via::FIRST_RELAY + 1);
    let relayed = [(RELAY, 1), (RELAY, 2), (second, 1)].map(|(via, n)| Route { via, to: address(n) });
    let pings = bench.start(Plan { relayed: relayed.to_vec(), head_start: Duration::ZERO, ..Plan::default() });
    for (n, via, wait) in [(1, RELAY, 10), (2, RELAY, 2), (1, second, 30)] {
        bench.now += millis(wait);
        bench.answer(&to(&pings, via, n));
    }
    let (remote, ..) = bench.paths_met()[0];
    bench.table.hold(bench.now, remote);
    let in_use = bench.table.route_of(remote).unwrap();
    assert_eq!(in_use.via, RELAY);
    let sent = bench.pass_answering(seconds(60), |ping| ping.via == RELAY && ping.to == in_use.to);
    assert!(sent.iter().any(|ping| ping.via == second), "{sent:?}");
}

#[test]
fn from_relay_to_relay_is_what_is_left_when_nothing_else_has_helped() {
    let mut bench = Bench::new();
    let last = Route { via: RELAY, to: address(8) };
    bench.start(Plan { last: vec![last], ..plan(&[1], 8, 1) });
    let is_last = |pings: &[PingOut]| pings.iter().filter(|ping| (ping.via, ping.to) == (RELAY, address(8))).count();
    assert_eq!(is_last(&bench.pass(millis(490))), 0);
    let pings = bench.pass(seconds(1));
    assert!(is_last(&pings) > 0);
    bench.answer(&to(&pings, RELAY, 8));
    let met = bench.paths_met();
    assert!(matches!(&met[..], [(_, route, true)] if *route == last), "{met:?}");
    assert_eq!(is_last(&bench.pass(seconds(1))), 0, "a way that was found is not looked for");
}

#[test]
fn our_relay_lets_in_what_the_peer_proves_to_send_from() {
    let mut bench = Bench::new();
    bench.start(plan(&[1], 8, 1));
    bench.keyed_ping(address(5), 1, 1).unwrap();
    assert_eq!(targets(&bench.drain()), [address(5)], "relays in their time");
    let through = to(&bench.pass(millis(100)), RELAY, 5);
    bench.keyed_ping(address(5), 2, 1).unwrap();
    assert!(bench.drain().iter().all(|ping| ping.via == Via::MAIN), "once; then it belongs to the rounds");
    bench.now += millis(300);
    bench.answer(&through);
    assert!(matches!(&bench.paths_met()[..], [(_, Route { via: RELAY, .. }, true)]));
}

#[test]
fn what_comes_from_the_peers_relay_says_nothing_of_where_the_peer_is() {
    let mut bench = Bench::new();
    bench.start(plan(&[1], 8, 1));
    bench.keyed_ping(address(8), 1, 1).unwrap();
    assert!(bench.drain().iter().all(|ping| ping.via == Via::MAIN));
}

#[test]
fn a_ping_that_comes_late_is_answered_through_our_relay_at_once() {
    let mut bench = Bench::new();
    bench.start_all(plan(&[1], 8, 1));
    bench.keyed_ping(address(5), 1, 1).unwrap();
    let pings = bench.drain();
    assert_eq!(targets(&pings), [address(5), address(5)]);
    to(&pings, RELAY, 5);
}

#[test]
fn behind_a_direct_path_relays_are_asked_until_one_answers_and_thrice_at_most() {
    let through = |pings: &[PingOut]| pings.iter().filter(|ping| ping.via == RELAY).count();
    for (answers, most) in [(false, 3), (true, 1)] {
        let mut bench = Bench::new();
        let pings = bench.start(plan(&[1], 8, 1));
        bench.now += millis(30);
        bench.answer(&to(&pings, Via::MAIN, 1));
        let asked = bench.pass_answering(seconds(3), |ping| answers && ping.via == RELAY);
        assert_eq!(through(&asked), most);
    }
}

#[test]
fn where_the_exchange_was_slow_relays_wait_for_direct_answers_as_long() {
    let mut bench = Bench::new();
    bench.start(Plan { round_trip: millis(600), ..plan(&[1], 8, 1) });
    assert!(bench.pass(millis(449)).iter().all(|ping| ping.via == Via::MAIN && ping.to == address(1)));
    let pings = bench.pass(millis(1));
    bench.answer(&to(&pings, RELAY, 1));
    bench.pass(millis(100));
    assert_eq!(bench.paths_met(), []);
    bench.pass(millis(50));
    assert_eq!(bench.paths_met().len(), 1);
}
