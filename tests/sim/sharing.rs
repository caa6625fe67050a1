//! Who gets how much of a link that several connections share.

use std::time::Duration;

use keynet::config::ControllerKind::{Bbr, Cubic, Ledbat};
use keynet::config::{ControllerKind, UtpConfig};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};

fn config(controller: ControllerKind) -> UtpConfig {
    UtpConfig { controller, ..UtpConfig::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn pair_on(link: LinkConfig) -> Pair {
    let mut pair = Pair::symmetric(0x5EED, &UtpConfig::default(), link);
    pair.hosts[B].template = App { trusting: true, ..App::default() };
    pair
}

fn start(pair: &mut Pair, kind: ControllerKind) {
    pair.connect(A, &config(kind), App { trusting: true, ..App::sending(u64::MAX) });
}

/// Mbit/s of the two connections over the next `time`.
fn rates(pair: &mut Pair, time: Duration) -> [f64; 2] {
    let before = [0, 1].map(|n| pair.app(B, n).read);
    pair.run_for(time);
    [0, 1].map(|n| (pair.app(B, n).read - before[n]) as f64 * 8e-6 / time.as_secs_f64())
}

/// Beside one CUBIC flow that has taken the link: between half and twice an equal share, over half a minute after the first.
#[test]
fn bbr_and_cubic_share_a_link() {
    for (mbit, rtt, bdps) in
        [(50, 40, 1.0), (20, 80, 1.0), (100, 20, 1.0), (50, 40, 0.5), (50, 40, 2.0), (10, 100, 1.0)]
    {
        for head_start in [500, 5_000] {
            let mut pair = pair_on(LinkConfig::path(mbit, ms(rtt), bdps));
            start(&mut pair, Cubic);
            pair.run_for(ms(head_start));
            start(&mut pair, Bbr);
            pair.run_for(ms(20_000));
            let shares = rates(&mut pair, ms(30_000)).map(|rate| rate * 2.0 / mbit as f64);
            assert!((0.5..2.0).contains(&shares[1]), "{mbit} Mbit/s, {rtt} ms, {bdps} BDP: {shares:?}");
            assert!(shares[0] + shares[1] > 1.85, "{mbit} Mbit/s, {rtt} ms, {bdps} BDP: {shares:?}");
        }
    }
}

/// A background transfer leaves one CUBIC flow nine tenths, whoever came first.
#[test]
fn ledbat_yields_to_cubic() {
    for (mbit, rtt, bdps) in [(50, 40, 1.0), (20, 80, 1.0), (100, 20, 1.0), (10, 100, 2.0)] {
        for kinds in [[Cubic, Ledbat], [Ledbat, Cubic]] {
            let mut pair = pair_on(LinkConfig::path(mbit, ms(rtt), bdps));
            start(&mut pair, kinds[0]);
            pair.run_for(ms(2_000));
            start(&mut pair, kinds[1]);
            pair.run_for(ms(10_000));
            let shares = rates(&mut pair, ms(30_000)).map(|rate| rate / mbit as f64);
            let background = if kinds[0] == Ledbat { shares[0] } else { shares[1] };
            assert!(background < 0.1, "{kinds:?} on {mbit} Mbit/s, {rtt} ms, {bdps} BDP: {shares:?}");
        }
    }
}

/// On a long fat path hardly a second goes into finding the bandwidth, and the search does not lose a queue's worth of packets.
#[test]
fn the_bandwidth_is_found_soon_and_without_a_flood() {
    for kind in [Bbr, Cubic] {
        let mut pair = pair_on(LinkConfig::path(500, ms(100), 1.0));
        start(&mut pair, kind);
        pair.run_for(ms(8_000));
        let rate = pair.app(B, 0).read as f64 * 8e-6 / 8.0;
        // 484 Mbit/s is what the headers leave; ten packets doubling each round trip take 1.1 s to it
        assert!(rate > 415.0, "{kind:?}: {rate:.1} Mbit/s");
        // the queue holds 4,200 packets
        assert!(pair.links[A].dropped < 1_000, "{kind:?}: {} dropped", pair.links[A].dropped);
    }
}

/// A path that loses a fifth of everything is still found to be fast: what is lost without a queue is no reason to stop looking.
#[test]
fn heavy_loss_does_not_end_the_search() {
    let mut pair = pair_on(LinkConfig::path(100, ms(50), 1.0).losing(0.2));
    pair.links[B].config.loss = 0.0;
    start(&mut pair, Bbr);
    pair.run_for(ms(10_000));
    let rate = pair.app(B, 0).read as f64 * 8e-6 / 10.0;
    assert!(rate > 40.0, "{rate:.1} Mbit/s");
}

/// A connection whose controller is changed goes on where it was: nothing is lost by the change, hardly any rate after it.
#[test]
fn a_change_of_controller_keeps_the_rate() {
    for (mbit, rtt) in [(100, 50), (50, 100)] {
        for kinds in [[Cubic, Bbr], [Bbr, Cubic], [Bbr, Ledbat], [Cubic, Ledbat], [Ledbat, Bbr], [Ledbat, Cubic]] {
            let mut pair = pair_on(LinkConfig::path(mbit, ms(rtt), 1.0));
            start(&mut pair, kinds[0]);
            pair.run_for(ms(10_000));
            let handle = pair.hosts[A].handles[0];
            let window = pair.stats(A, 0).window;
            pair.hosts[A].connections.get_mut(&handle).unwrap().set_controller(kinds[1]);
            let after = pair.stats(A, 0);
            assert!(after.window >= window / 3 && after.pacing_rate.is_some(), "{kinds:?}: {window} -> {after:?}");
            let read = pair.app(B, 0).read;
            pair.run_for(ms(2_000));
            let rate = (pair.app(B, 0).read - read) as f64 * 8e-6 / 2.0;
            // LEDBAT yields from a full queue and stops for a look at the base delay
            let least = if kinds[1] == Ledbat { 0.4 } else { 0.75 };
            assert!(rate > least * mbit as f64, "{kinds:?} on {mbit} Mbit/s, {rtt} ms: {rate:.1} Mbit/s");
        }
    }
}

/// A transfer in the foreground that is sent to the background yields, and takes its share again when it comes back.
#[test]
fn a_live_connection_moves_to_the_background_and_back() {
    let mut pair = pair_on(LinkConfig::path(50, ms(40), 1.0));
    start(&mut pair, Cubic);
    pair.run_for(ms(2_000));
    start(&mut pair, Bbr);
    pair.run_for(ms(10_000));
    let handle = pair.hosts[A].handles[1];
    for (kind, share) in [(Ledbat, 0.0..0.1), (Bbr, 0.2..0.9), (Ledbat, 0.0..0.1)] {
        pair.hosts[A].connections.get_mut(&handle).unwrap().set_controller(kind);
        pair.run_for(ms(10_000));
        let rates = rates(&mut pair, ms(20_000));
        assert!(share.contains(&(rates[1] / 50.0)), "{kind:?}: {rates:?}");
    }
}
