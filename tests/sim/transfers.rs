//! What was written arrives, byte for byte, in bounded time, whatever the path does.

use std::time::Duration;

use keynet::config::{ControllerKind, EndpointConfig, UtpConfig};
use keynet::utp::{End, Endpoint};

use crate::support::link::{Bursts, LinkConfig};
use crate::support::pair::{App, Pair, A, B};
use crate::support::Seed;

const KINDS: [ControllerKind; 3] = [ControllerKind::Cubic, ControllerKind::Ledbat, ControllerKind::Bbr];

fn config(controller: ControllerKind) -> UtpConfig {
    UtpConfig { controller, ..UtpConfig::default() }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Sends `there` bytes from A to B and `back` the other way, and checks that both ends finish in order.
fn transfer(seed: u64, utp: &UtpConfig, link: LinkConfig, there: u64, back: u64, limit: Duration) -> Pair {
    let _seed = Seed(seed);
    let mut pair = Pair::symmetric(seed, utp, link);
    pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(back) };
    pair.connect(A, utp, App { writes: 1, expects: 2, ..App::sending(there) });
    pair.run_out(limit);
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (there, back));
    assert!(pair.app(A, 0).eof && pair.app(B, 0).eof);
    pair
}

#[test]
fn a_clean_path_carries_everything_without_sending_twice() {
    for kind in KINDS {
        let pair = transfer(1, &config(kind), LinkConfig::path(100, ms(20), 8.0), 4 << 20, 0, ms(60_000));
        let stats = pair.stats(A, 0);
        assert_eq!((stats.resent, stats.timeouts), (0, 0), "{kind:?}: {stats:?}");
    }
}

#[test]
fn random_loss() {
    for kind in KINDS {
        for (n, loss) in [0.001, 0.01, 0.05, 0.1, 0.2].into_iter().enumerate() {
            let link = LinkConfig::path(100, ms(20), 1.0).losing(loss);
            transfer(0x100 + n as u64, &config(kind), link, 1 << 20, 1 << 18, ms(600_000));
        }
    }
}

/// The sizes of the issue; the largest ones where that does not take for ever.
#[test]
fn large_transfers() {
    for (n, mib, loss) in [(0, 64, 0.0), (1, 16, 0.001), (2, 64, 0.01), (3, 8, 0.05), (4, 4, 0.2)] {
        let link = LinkConfig::path(1_000, ms(5), 1.0).losing(loss);
        transfer(0x200 + n, &config(ControllerKind::Bbr), link, mib << 20, 0, ms(600_000));
    }
    for kind in [ControllerKind::Cubic, ControllerKind::Ledbat] {
        transfer(0x210, &config(kind), LinkConfig::path(1_000, ms(5), 1.0), 64 << 20, 0, ms(600_000));
        transfer(0x211, &config(kind), LinkConfig::path(1_000, ms(5), 1.0).losing(0.01), 8 << 20, 0, ms(600_000));
    }
}

#[test]
fn bursts_of_loss() {
    let bursts = Some(Bursts { good: ms(300), bad: ms(30), loss: 0.9 });
    for kind in KINDS {
        let link = LinkConfig { bursts, ..LinkConfig::path(50, ms(40), 1.0) };
        transfer(0x300, &config(kind), link, 2 << 20, 0, ms(600_000));
    }
}

/// What a socket of 120 kB would drop is not sent, as long as its owner said how much it holds; a long path takes more.
#[test]
fn a_small_socket_buffer_is_not_overrun() {
    for kind in KINDS {
        for (delay, most) in [(Duration::from_micros(50), 114_688), (ms(10), 10 * 114_688)] {
            let utp = config(kind);
            let path = LinkConfig { rate: Some(250_000_000), delay, queue: 120_000, ..LinkConfig::default() };
            let back = LinkConfig { delay, ..LinkConfig::default() };
            let mut pair = Pair::new(0x380, &utp, path, back);
            let small = EndpointConfig { receive_burst: Some(120_000), ..EndpointConfig::default() };
            pair.hosts[B].endpoint = Endpoint::new(small, utp.clone(), [7; 32]);
            pair.hosts[B].template = App { expects: 1, ..App::default() };
            pair.connect(A, &utp, App { writes: 1, ..App::sending(8 << 20) });
            let mut in_flight = 0;
            pair.run_until(ms(600_000), |pair| {
                in_flight = in_flight.max(pair.stats(A, 0).in_flight);
                pair.app(A, 0).is_done()
            });
            assert!(in_flight <= most, "{kind:?}: {in_flight} in flight");
            if delay < ms(1) {
                assert_eq!(pair.stats(A, 0).resent, 0, "{kind:?}");
            } else if kind != ControllerKind::Ledbat {
                assert!(in_flight > 114_688, "{kind:?}: a long path is filled, not {in_flight}");
            }
        }
    }
}

/// Reordering is not loss: hardly anything is sent again but what the queue dropped.
#[test]
fn reordering() {
    for kind in KINDS {
        let link = LinkConfig { reorder: 0.05, reorder_by: ms(4), ..LinkConfig::path(100, ms(20), 4.0) };
        let pair = transfer(0x400, &config(kind), link, 8 << 20, 0, ms(60_000));
        let stats = pair.stats(A, 0);
        let needless = stats.resent.saturating_sub(pair.links[A].dropped);
        assert!(needless < stats.packets_out / 200, "{kind:?} sent {needless} packets again for nothing: {stats:?}");
    }
}

#[test]
fn duplication_and_jitter() {
    for kind in KINDS {
        let link = LinkConfig { duplicate: 0.3, jitter: ms(15), ..LinkConfig::path(100, ms(20), 2.0) };
        transfer(0x500, &config(kind), link, 4 << 20, 1 << 20, ms(60_000));
    }
}

#[test]
fn everything_at_once() {
    for (n, kind) in (0..).zip(KINDS) {
        let link = LinkConfig {
            reorder: 0.2,
            duplicate: 0.1,
            jitter: ms(10),
            mtu: 1_300,
            ..LinkConfig::path(20, ms(80), 0.5).losing(0.05)
        };
        transfer(0x600 + n, &config(kind), link, 1 << 20, 1 << 20, ms(600_000));
    }
}

/// Buffers of a few packets at each end, and a queue of three packets between them.
#[test]
fn small_buffers() {
    for kind in KINDS {
        let utp = UtpConfig { send_buffer: 4_000, initial_window: 4_000, receive_buffer: 4_000, ..config(kind) };
        let link = LinkConfig { queue: 4_500, ..LinkConfig::path(10, ms(10), 1.0) };
        transfer(0x700, &utp, link.clone(), 1 << 20, 1 << 18, ms(600_000));
        transfer(0x701, &utp, link.losing(0.02), 1 << 18, 1 << 18, ms(600_000));
    }
}

/// Nothing at all, one byte, and the sizes around a packet.
#[test]
fn edges() {
    for size in [0, 1, 1_211, 1_212, 1_213, 2_424, 65_535, 65_536] {
        transfer(size, &config(ControllerKind::Cubic), LinkConfig::default(), size, 0, ms(10_000));
        transfer(size, &config(ControllerKind::Cubic), LinkConfig::default(), size, size, ms(10_000));
    }
}

/// More packets than the sequence number has bits for, with holes at each wrap.
#[test]
fn numbers_wrap_many_times() {
    let utp = UtpConfig { max_datagram: 200, min_datagram: 200, ..config(ControllerKind::Bbr) };
    let link = LinkConfig::path(1_000, ms(2), 2.0).losing(0.001);
    transfer(0x800, &utp, link, 40 << 20, 0, ms(600_000));
}

/// Half of a connection ends early, the other goes on.
#[test]
fn half_close() {
    let mut pair = Pair::symmetric(0x900, &config(ControllerKind::Cubic), LinkConfig::path(10, ms(50), 1.0));
    pair.hosts[B].template = App { writes: 2, expects: 1, finish: false, ..App::sending(4 << 20) };
    pair.connect(A, &UtpConfig::default(), App { writes: 1, expects: 2, ..App::sending(100) });
    pair.run_until(ms(10_000), |pair| !pair.hosts[B].handles.is_empty() && pair.app(B, 0).eof);
    pair.run_until(ms(60_000), |pair| pair.app(A, 0).read == 4 << 20);
    assert!(!pair.app(A, 0).eof);
    pair.app(B, 0).finish = true;
    pair.pump(B);
    pair.run_out(ms(10_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
}

/// A reader that stops stops the writer, holds no more than was offered, and nothing times out meanwhile.
#[test]
fn a_reader_pauses_for_an_hour() {
    let utp = UtpConfig { receive_buffer: 256 << 10, initial_window: 64 << 10, ..config(ControllerKind::Cubic) };
    let mut pair = Pair::symmetric(0xA00, &utp, LinkConfig::path(100, ms(20), 1.0));
    pair.hosts[B].template = App { expects: 1, paused: true, ..App::default() };
    pair.connect(A, &utp, App { writes: 1, ..App::sending(8 << 20) });
    pair.run_for(ms(3_600_000));
    assert!(pair.stats(B, 0).memory <= 600 << 10, "{:?}", pair.stats(B, 0));
    assert!(pair.datagrams < 10_000, "{} datagrams for nothing", pair.datagrams);
    pair.app(B, 0).paused = false;
    pair.pump(B);
    pair.run_out(ms(60_000));
    assert_eq!(pair.app(B, 0).read, 8 << 20);
    assert_eq!(pair.end(A, 0), Some(End::Finished));
}

/// The largest size that passes is found, and a path that shrinks later does not stop the transfer.
#[test]
fn the_path_mtu_is_found_and_followed() {
    let link = LinkConfig { mtu: 1_420, ..LinkConfig::path(100, ms(20), 1.0) };
    let mut pair = Pair::symmetric(0xB00, &config(ControllerKind::Cubic), link);
    pair.hosts[B].template = App { expects: 1, ..App::default() };
    pair.connect(A, &UtpConfig::default(), App { writes: 1, ..App::sending(64 << 20) });
    pair.run_for(ms(2_000));
    let found = pair.stats(A, 0).datagram;
    assert!((1_408..=1_420).contains(&found), "{found}");
    pair.links[A].config.mtu = 1_300;
    pair.run_for(ms(5_000));
    let stats = pair.stats(A, 0);
    assert_eq!(stats.datagram, 1_232, "{stats:?}");
    pair.run_out(ms(60_000));
    assert_eq!(pair.app(B, 0).read, 64 << 20);
}

/// Many connections share a path: all of it is used, and with the same controller they get like shares (Jain's index). BBR's
/// do so only slowly: at 8 packets per connection and round trip its estimates stay apart for minutes.
#[test]
fn many_connections_share() {
    for (kind, fair) in [(ControllerKind::Cubic, 0.95), (ControllerKind::Bbr, 0.7)] {
        let utp = config(kind);
        let mut pair = Pair::symmetric(0xC02, &utp, LinkConfig::path(100, ms(20), 1.0));
        pair.hosts[B].template = App { trusting: true, ..App::default() };
        for _ in 0..20 {
            pair.connect(A, &utp, App { trusting: true, ..App::sending(u64::MAX) });
        }
        pair.run_for(ms(20_000));
        let before: Vec<u64> = (0..20).map(|n| pair.app(B, n).read).collect();
        pair.run_for(ms(20_000));
        let shares: Vec<f64> = (0..20).map(|n| (pair.app(B, n).read - before[n]) as f64).collect();
        let (sum, squares) = shares.iter().fold((0.0, 0.0), |(sum, squares), x| (sum + x, squares + x * x));
        let jain = sum * sum / (20.0 * squares);
        assert!(jain > fair, "{kind:?}: {jain:.3} {shares:?}");
        assert!(sum * 8.0 / 20e6 > 85.0, "{kind:?}: {:.1} Mbit/s", sum * 8.0 / 20e6);
    }
}

/// Nobody vouches for the dialler: its stream is slow and small, and loses nothing.
#[test]
fn a_stream_that_is_never_trusted_arrives() {
    let utp = config(ControllerKind::Bbr);
    let mut pair = Pair::symmetric(0xD00, &utp, LinkConfig::path(100, ms(20), 1.0).losing(0.01));
    pair.trust = false;
    pair.hosts[B].template = App { expects: 1, ..App::default() };
    pair.connect(A, &utp, App { writes: 1, ..App::sending(2 << 20) });
    pair.run_until(ms(60_000), |pair| {
        let held = pair.hosts[B].connections.values().map(|connection| connection.stats().memory).max();
        assert!(held.unwrap_or(0) <= 64 << 10);
        pair.hosts.iter().all(|host| host.connections.is_empty())
    });
    assert_eq!(pair.app(B, 0).read, 2 << 20);
}

/// 64 MiB where one packet in twenty is lost, and where one in a hundred is and others overtake each other: all of it arrives, in the
/// time that the controller takes, and hardly anything is sent again but what was lost.
#[test]
fn large_transfers_under_heavy_loss() {
    for (n, kind) in (0..).zip(KINDS) {
        let path = LinkConfig::path(100, ms(20), 2.0);
        let reordered = LinkConfig { reorder: 0.05, reorder_by: ms(4), ..path.clone().losing(0.01) };
        for (seed, link) in [(0xF00 + n, path.losing(0.05)), (0xF10 + n, reordered)] {
            let pair = transfer(seed, &config(kind), link, 64 << 20, 0, ms(3_600_000));
            let stats = pair.stats(A, 0);
            let needless = stats.resent.saturating_sub(pair.links[A].dropped);
            assert!(
                needless < stats.packets_out / 100,
                "{kind:?} sent {needless} packets again for nothing: {stats:?}"
            );
        }
    }
}
