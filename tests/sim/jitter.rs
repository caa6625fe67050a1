//! Goodput on paths whose delay varies from packet to packet, in order and out of order, as text: Wi-Fi and LTE are like that. A regression
//! is a diff of `jitter.txt`. Write it anew with `KEYNET_BLESS=1 cargo test --no-default-features --test sim jitter`.

use std::fmt::Write;
use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};

const KINDS: [(ControllerKind, &str); 3] =
    [(ControllerKind::Cubic, "cubic"), (ControllerKind::Bbr, "bbr"), (ControllerKind::Ledbat, "ledbat")];

/// Mbit/s, mean delay of one direction in ms, and by how much each packet differs from it at most.
const PATHS: [(u64, u64, u64); 4] = [(300, 9, 6), (100, 15, 6), (50, 20, 15), (20, 40, 20)];

/// What one direction draws: the number of draws, whether packets overtake each other, and whether the way back does it too.
const JITTERS: [(&str, u32, bool, bool); 4] = [
    ("even, overtaking, both ways", 1, true, true),
    ("bell, overtaking, both ways", 4, true, true),
    ("even, in order, both ways", 1, false, true),
    ("even, overtaking, one way", 1, true, false),
];

/// Megabits a second of payload over the first eight seconds, connection set-up included.
fn goodput(kind: ControllerKind, path: (u64, u64, u64), jitter: (&str, u32, bool, bool)) -> f64 {
    let (mbit, mean, spread) = path;
    let (_, draws, reorders, both) = jitter;
    let utp = UtpConfig { controller: kind, ..UtpConfig::default() };
    let jittery = LinkConfig {
        delay: Duration::from_millis(mean - spread),
        jitter: Duration::from_millis(2 * spread),
        jitter_reorders: reorders,
        jitter_draws: draws,
        ..LinkConfig::default()
    };
    let there = LinkConfig { rate: Some(mbit * 125_000), queue: 900 * 1_500, ..jittery.clone() };
    let steady = LinkConfig { delay: Duration::from_millis(mean), ..LinkConfig::default() };
    let mut pair = Pair::new(0x600D, &utp, there, if both { jittery } else { steady });
    pair.hosts[B].template = App { trusting: true, finish: false, ..App::default() };
    pair.connect(A, &utp, App { to_write: u64::MAX, trusting: true, ..App::default() });
    pair.run_for(SECONDS);
    pair.app(B, 0).read as f64 * 8.0 / 1e6 / SECONDS.as_secs_f64()
}

#[test]
fn goodput_under_jitter_is_what_it_was() {
    let mut text = String::from(
        "Goodput in Mbit/s over the first 8 s: 1 connection, queue of 900 packets, the delay of each packet is its own.\n",
    );
    for path in PATHS {
        let (mbit, mean, spread) = path;
        writeln!(text, "\n{mbit} Mbit/s, each way {mean} ms, give or take {spread} ms").unwrap();
        writeln!(text, "{:>28} {}", "", KINDS.map(|(_, name)| format!("{name:>7}")).concat()).unwrap();
        for jitter in JITTERS {
            let cells = KINDS.map(|(kind, _)| goodput(kind, path, jitter));
            // Other controllers take long delays for congestion; the default one must not (kernel BBR: nine tenths of the rate).
            assert!(cells[1] >= 0.87 * mbit as f64, "BBR, {path:?}, {}: {:.1} Mbit/s", jitter.0, cells[1]);
            writeln!(text, "{:>28} {}", jitter.0, cells.map(|cell| format!("{cell:>7.1}")).concat()).unwrap();
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/jitter.txt");
    if std::env::var_os("KEYNET_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text == before, "goodput changed; if that is meant, run with KEYNET_BLESS=1 and commit the file.\n{text}");
}

const SECONDS: Duration = Duration::from_secs(8);
