//! A peer that does not answer is reported, and waited for.

use super::*;

fn returned(bench: &mut Bench) -> Vec<(RemoteId, SocketAddr)> {
    let found = |event: PathEvent| match event {
        PathEvent::Found { remote, address, .. } => Some((remote, address)),
        _ => None,
    };
    bench.events().into_iter().filter_map(found).collect()
}

#[test]
fn a_missing_peer_is_asked_every_second_for_as_long_as_somebody_waits() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(30));
    assert_eq!(bench.lost(), [remote]);
    let pings = bench.pass_timed(seconds(300));
    assert!((290..=310).contains(&pings.len()), "{}", pings.len());
    assert!(pings.windows(2).all(|pair| pair[1].0.since(pair[0].0) <= millis(1_050)));
    assert_eq!(bench.lost(), [], "reported once");
    assert!(bench.table.has_silent_path(&node(1)), "it is looked for elsewhere as well");
}

#[test]
fn a_missing_peer_that_answers_is_found_on_the_remote_that_it_had() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(60));
    assert_eq!(bench.lost(), [remote]);
    assert_eq!(bench.table.addresses_of_node(&node(1)), [], "no way to it is known to work");
    let pings = bench.pass(seconds(1));
    bench.answer(pings.last().unwrap());
    assert_eq!(returned(&mut bench), [(remote, address(1))]);
    assert_eq!(bench.table.addresses_of_node(&node(1)), [address(1)]);
    assert!(!bench.table.has_silent_path(&node(1)));
    // and it may go missing again
    bench.pass(seconds(30));
    assert_eq!(bench.lost(), [remote]);
}

#[test]
fn a_missing_peer_may_come_back_from_another_address() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(60));
    assert!(bench.keyed_ping(address(2), 50, 1).is_some());
    let back = bench.drain().into_iter().find(|ping| ping.to == address(2)).unwrap();
    bench.answer(&back);
    assert_eq!(bench.table.address_of(remote), Some(address(2)));
    assert_eq!(returned(&mut bench), [(remote, address(2))]);
}

#[test]
fn a_missing_peer_is_forgotten_when_nobody_waits_any_more() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.pass(seconds(60));
    bench.table.release(bench.now, remote);
    assert_eq!((bench.table.address_of(remote), bench.table.remote_of(address(1))), (None, None));
    assert_eq!(bench.pass(seconds(60)), []);
}

#[test]
fn a_peer_that_nobody_waits_for_is_lost() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_sent(bench.now, remote);
    bench.table.release(bench.now, remote);
    bench.pass(seconds(20));
    assert!(bench.events().iter().any(|event| matches!(event, PathEvent::Lost { .. })));
    assert_eq!(bench.table.stats().remotes, 0);
}

#[test]
fn what_was_not_heard_while_this_process_was_stopped_is_no_silence() {
    let mut bench = Bench::new();
    let remote = bench.peer(address(1), 1);
    bench.table.handle_sent(bench.now, remote);
    let pings = bench.pass(millis(300));
    // an hour later the first thing that it does is to look at its timers; the answer waits in the socket
    bench.now += seconds(3_600);
    bench.table.handle_pause(bench.now);
    bench.table.handle_timeout(bench.now);
    assert_eq!(bench.lost(), []);
    let again = bench.drain();
    assert!(!pings.is_empty() && !again.is_empty(), "it is asked again at once");
    bench.answer(&again[0]);
    bench.pass(millis(100));
    assert_eq!((bench.lost(), bench.table.address_of(remote)), (Vec::new(), Some(address(1))));
}
