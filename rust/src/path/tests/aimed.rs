//! Peers that name the addresses of others: what a node sends there is counted over all its meetings.

use std::net::IpAddr;

use super::*;
use crate::addr::Via;

impl Bench {
    /// A stranger with as many names as he likes wants another meeting.
    fn aims(&mut self, n: u32, plan: Plan) -> MeetingId {
        let mut keys = keys(0);
        keys.local_name[..4].copy_from_slice(&n.to_be_bytes());
        self.table.start_meeting(self.now, node(n as u8), keys, plan, seconds(14)).unwrap()
    }

    fn came(&mut self, n: u32, from: SocketAddr) {
        let mut name = keys(0).local_name;
        name[..4].copy_from_slice(&n.to_be_bytes());
        let ping = PingIn { transaction: [n as u8; 12], session: Some(name), size: 92, incarnation: None };
        assert!(self.table.handle_ping(self.now, from, &ping, |_| true).is_some());
        self.collect();
    }
}

fn ports(n: u32) -> Search {
    Search::Ports { ip: address(n).ip(), low: 1_024, high: 65_535, start: n, begin: Duration::ZERO }
}

/// Everything at one address that can be named there.
fn aimed(seen_at: Vec<IpAddr>) -> Plan {
    let at = |port| SocketAddr::new(address(7).ip(), port);
    let (candidates, guesses) = ((2_000..2_016).map(at).collect(), (3_000..3_020).map(at).collect());
    Plan { candidates, guesses, search: Some(ports(7)), seen_at, ..Plan::default() }
}

#[test]
fn a_third_party_gets_a_handful_whoever_names_it_how_often() {
    let mut bench = Bench::new();
    let mut sent = 0;
    for n in 0..48 {
        bench.aims(n, aimed(vec![address(9).ip()]));
        sent += bench.pass(millis(500)).len();
    }
    sent += bench.pass(seconds(20)).len();
    // 64 at once and 8 a second, for 44 s
    assert!(sent <= 64 + 8 * 44, "{sent} packets");
    assert!(bench.table.stats().rate_limited > 1_000);
}

#[test]
fn all_that_peers_name_together_is_limited_too() {
    let mut bench = Bench::new();
    let mut sent = 0;
    for n in 0..1_000 {
        let candidates = (0..16).map(|k| address(1_000 + n * 16 + k)).collect();
        bench.aims(n, Plan { candidates, ..Plan::default() });
        sent += bench.drain().len();
    }
    sent += bench.pass(seconds(10)).len();
    assert!((2_048..=2_048 + 256 * 10 + 1).contains(&sent), "{sent} packets to addresses without number");
}

#[test]
fn what_comes_from_an_address_is_answered_with_three_times_as_much() {
    let mut bench = Bench::new();
    for n in 0..20 {
        bench.aims(n, aimed(Vec::new()));
    }
    bench.pass(seconds(5));
    let before = bench.pass(millis(10)).len();
    // an onlooker repeats what he saw, from the address that he means; the answers are on their way already
    for n in 0..20 {
        bench.came(n, SocketAddr::new(address(7).ip(), 50 + n as u16));
    }
    // a search opens by that as well, at its own rate, and ends with the meetings
    let after = bench.drain().into_iter().filter(|ping| ping.to.port() < 1_000).count();
    assert!(before <= 2 && after <= 2 * 20, "{before}, then {after}");
}

#[test]
fn nothing_is_searched_where_nobody_was_seen() {
    let mut bench = Bench::new();
    bench.aims(1, Plan { search: Some(ports(7)), seen_at: vec![address(8).ip()], ..plan_of(1) });
    let before = bench.pass(seconds(2));
    assert!(before.iter().all(|ping| ping.to == address(1)), "{before:?}");
    // the peer comes from there itself: then the search begins
    bench.came(1, address(7));
    let after = bench.pass(seconds(2));
    assert!(after.iter().filter(|ping| ping.to.ip() == address(7).ip()).count() > 300);
}

#[test]
fn one_search_goes_on_at_a_time_and_all_have_their_turn() {
    let mut bench = Bench::new();
    for n in 1..=4 {
        bench.aims(n, Plan { search: Some(ports(n)), seen_at: vec![address(n).ip()], ..Plan::default() });
    }
    let mut asked = [0; 5];
    for ping in bench.pass(seconds(13)) {
        asked[usize::from(ping.to.to_string().split(['.', ':']).nth(3).unwrap().parse::<u8>().unwrap())] += 1;
    }
    assert!(asked[1..].iter().all(|count| *count >= 200), "{asked:?}");
    // one at the start, and one where the next turn begins
    assert!(asked.iter().sum::<i32>() <= 200 * 13 + 1 + 4, "what one search may send: {asked:?}");
    bench.pass(seconds(10));
    assert_eq!(bench.table.stats().meetings, 0);
    // and the next one finds the way free
    bench.aims(9, Plan { search: Some(ports(9)), seen_at: vec![address(9).ip()], ..Plan::default() });
    assert!(bench.pass(seconds(1)).len() > 190);
}

#[test]
fn whoever_has_found_the_peer_makes_way() {
    let mut bench = Bench::new();
    let vias: Vec<_> = (1..=16).map(Via).collect();
    let sockets = |n| Search::Sockets { vias: vias.clone(), to: address(n), begin: Duration::ZERO };
    for n in [1, 2] {
        bench.aims(n, Plan { search: Some(sockets(n)), seen_at: vec![address(n).ip()], ..Plan::default() });
    }
    let first = bench.pass(millis(100));
    assert!(first.iter().all(|ping| ping.to == address(1)), "{first:?}");
    let pong = PongIn { transaction: first[3].transaction, observed: own(), keyed: true, incarnation: None };
    bench.table.handle_pong(bench.now, crate::addr::Route { via: first[3].via, to: address(1) }, &pong, |_| true);
    let second = bench.pass(millis(100));
    assert_eq!(second.iter().filter(|ping| ping.to == address(2)).count(), 16, "{second:?}");
}

fn plan_of(n: u32) -> Plan {
    Plan { candidates: vec![address(n)], ..Plan::default() }
}
