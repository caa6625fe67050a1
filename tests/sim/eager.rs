//! Connections between nodes that share a key: data follows the SYN at once.

use std::time::Duration;

use keynet::config::{EndpointConfig, UtpConfig};
use keynet::utp::{End, Endpoint};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};

const KEY: [u8; 32] = [9; 32];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// 20 ms each way; A sends 3 kB and gets 1 kB back, as TLS and Open would.
fn pair(keys: [Option<[u8; 32]>; 2]) -> Pair {
    let utp = UtpConfig::default();
    let mut pair = Pair::symmetric(1, &utp, LinkConfig { delay: ms(20), ..LinkConfig::default() });
    for (host, key) in [A, B].into_iter().zip(keys) {
        pair.hosts[host].shared_key = key;
    }
    pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(1_000) };
    pair
}

fn dial(pair: &mut Pair) {
    pair.connect(A, &UtpConfig::default(), App { writes: 1, expects: 2, ..App::sending(3_000) });
}

fn run(pair: &mut Pair) {
    pair.run_out(ms(60_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (3_000, 1_000));
}

/// Milliseconds until the first byte arrives at B and at A.
fn first_bytes(pair: &mut Pair, since: keynet::time::Time) -> (u128, u128) {
    let at = |pair: &mut Pair, host| pair.app(host, 0).first_read.unwrap().since(since).as_millis();
    (at(pair, B), at(pair, A))
}

#[test]
fn data_arrives_with_the_syn() {
    for (keys, expected) in [([None; 2], (60, 80)), ([Some(KEY); 2], (20, 40))] {
        let mut pair = pair(keys);
        let start = pair.now;
        dial(&mut pair);
        run(&mut pair);
        assert_eq!(first_bytes(&mut pair, start), expected);
        assert_eq!(pair.stats(A, 0).resent, 0);
    }
}

/// The peer has restarted, say, and knows the key no more; or it knows another: as without a key, but for the 250 ms that an answer
/// which shows nothing of the key is held for a better one; and nothing is lost.
#[test]
fn a_key_that_only_one_side_knows_costs_round_trips_and_nothing_else() {
    for keys in [[Some(KEY), None], [Some(KEY), Some([8; 32])], [None, Some(KEY)]] {
        let mut pair = pair(keys);
        let start = pair.now;
        dial(&mut pair);
        run(&mut pair);
        let (there, _) = first_bytes(&mut pair, start);
        let held = if keys[0].is_some() { 250 } else { 0 };
        assert!((60..=200 + held).contains(&there), "{there} ms with {keys:?}");
    }
}

#[test]
fn a_lost_syn_does_not_matter_when_the_data_behind_it_arrives() {
    let mut pair = pair([Some(KEY); 2]);
    let start = pair.now;
    dial(&mut pair);
    let (to, syn) = pair.intercept(0).unwrap();
    assert_eq!((to, syn[0]), (B, 0x41));
    run(&mut pair);
    assert_eq!(first_bytes(&mut pair, start), (20, 40));
}

#[test]
fn a_lost_syn_ack_does_not_matter_either() {
    let mut pair = pair([Some(KEY); 2]);
    let start = pair.now;
    dial(&mut pair);
    pair.run_for(ms(20));
    let (to, syn_ack) = pair.intercept(0).unwrap();
    assert_eq!((to, syn_ack[0]), (A, 0x21));
    run(&mut pair);
    assert_eq!(first_bytes(&mut pair, start), (20, 40));
}

/// The SYN overtaken by all that follows it, and the answers to both in any order.
#[test]
fn order_does_not_matter() {
    for late in [A, B] {
        let mut pair = pair([Some(KEY); 2]);
        dial(&mut pair);
        if late == A {
            pair.run_for(ms(20));
        }
        let (host, first) = pair.intercept(0).unwrap();
        assert_eq!(host, late);
        pair.run_for(ms(25));
        pair.arrive(host, &first);
        pair.pump(host);
        run(&mut pair);
    }
}

/// A flood has filled the table of those who are still to confirm. With a cookie the two sides would count from different
/// numbers: one from the cookie's, the other from the one that came with the early data.
#[test]
fn a_full_table_does_not_part_those_who_agreed_on_a_number() {
    for (n, lost) in [None, Some(0), Some(1)].into_iter().enumerate() {
        let mut pair = pair([Some(KEY); 2]);
        let config = EndpointConfig { max_half_open: 0, ..EndpointConfig::default() };
        pair.hosts[B].endpoint = Endpoint::new(config, UtpConfig::default(), [n as u8; 32]);
        let start = pair.now;
        dial(&mut pair);
        if let Some(lost) = lost {
            pair.intercept(lost);
        }
        run(&mut pair);
        if lost.is_none() {
            assert_eq!(first_bytes(&mut pair, start), (20, 40));
            assert_eq!(pair.stats(A, 0).resent, 0);
        }
    }
}

/// The copy of a first datagram comes when its connection is over at B, and A has not heard of that.
#[test]
fn a_late_copy_does_not_start_over_with_the_same_numbers() {
    for what in [0, 1] {
        let mut pair = pair([Some(KEY); 2]);
        pair.connect(A, &UtpConfig::default(), App { writes: 1, finish: false, ..App::sending(3_000) });
        let copies: Vec<_> = (0..3).filter_map(|_| pair.intercept(0)).collect();
        for (host, copy) in &copies {
            pair.arrive(*host, copy);
        }
        pair.hosts[B].connections.values_mut().for_each(|connection| connection.abort());
        pair.links[B].config.down = true;
        pair.pump(B);
        assert!(pair.hosts[B].connections.is_empty());
        pair.links[B].config.down = false;
        pair.arrive(B, &copies[what].1);
        pair.arrive(B, &copies[1].1);
        assert!(pair.hosts[B].connections.is_empty(), "{what}");
    }
}

#[test]
fn what_was_finished_before_any_answer_is_delivered_without_its_program() {
    let mut pair = pair([Some(KEY); 2]);
    pair.hosts[B].template = App { expects: 1, ..App::default() };
    dial(&mut pair);
    let now = pair.local_now(A);
    pair.hosts[A].connections.values_mut().for_each(|connection| connection.detach(now));
    pair.run_out(ms(60_000));
    assert_eq!((pair.app(B, 0).read, pair.app(B, 0).eof), (3_000, true));
}

#[test]
fn nobody_answers_and_it_ends_like_any_dial() {
    let mut pair = pair([Some(KEY), None]);
    pair.links[A].config.down = true;
    dial(&mut pair);
    pair.run_out(ms(60_000));
    assert_eq!(pair.end(A, 0), Some(End::ConnectTimeout));
}
