//! What was written arrives, byte for byte, in bounded time, whatever the path does.

use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};
use keynet::utp::End;

use crate::support::link::LinkConfig;
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
