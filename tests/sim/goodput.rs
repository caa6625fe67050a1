//! Goodput by loss, round trip and controller, as text: a regression is a diff of `goodput.txt`. Write it anew with
//! `KEYNET_BLESS=1 cargo test --no-default-features --test sim goodput`.

use std::fmt::Write;
use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};

const KINDS: [(ControllerKind, &str); 3] =
    [(ControllerKind::Cubic, "cubic"), (ControllerKind::Bbr, "bbr"), (ControllerKind::Ledbat, "ledbat")];
const LOSSES: [f64; 6] = [0.0, 0.001, 0.01, 0.03, 0.1, 0.2];

/// Megabits a second of payload over the first ten seconds, connection set-up included.
fn goodput(kind: ControllerKind, link: LinkConfig) -> f64 {
    let utp = UtpConfig { controller: kind, ..UtpConfig::default() };
    let back = LinkConfig { loss: 0.0, ..link.clone() };
    let mut pair = Pair::new(0x600D, &utp, link, back);
    pair.hosts[B].template = App { trusting: true, finish: false, ..App::default() };
    pair.connect(A, &utp, App { to_write: u64::MAX, trusting: true, ..App::default() });
    pair.run_for(SECONDS);
    pair.app(B, 0).read as f64 * 8.0 / 1e6 / SECONDS.as_secs_f64()
}

fn table() -> String {
    let mut text = String::from(
        "Goodput in Mbit/s over the first 10 s: 1 connection, drop-tail queue of 1 BDP, random loss one way.\n",
    );
    for (mbit, rtts) in [(10, &[20u64, 100][..]), (100, &[20, 50, 200])] {
        for rtt in rtts {
            writeln!(text, "\n{mbit} Mbit/s, RTT {rtt} ms").unwrap();
            writeln!(text, "{:>8} {}", "loss %", LOSSES.map(|loss| format!("{:>7}", loss * 100.0)).concat()).unwrap();
            for (kind, name) in KINDS {
                let cells = LOSSES.map(|loss| {
                    let link = LinkConfig::path(mbit, Duration::from_millis(*rtt), 1.0).losing(loss);
                    format!("{:>7.2}", goodput(kind, link))
                });
                writeln!(text, "{name:>8} {}", cells.concat()).unwrap();
            }
        }
    }
    text
}

#[test]
fn goodput_is_what_it_was() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/sim/goodput.txt");
    let now = table();
    if std::env::var_os("KEYNET_BLESS").is_some() {
        std::fs::write(path, &now).unwrap();
    }
    let before = std::fs::read_to_string(path).unwrap_or_default();
    assert!(now == before, "goodput changed; if that is meant, run with KEYNET_BLESS=1 and commit the file.\n{now}");
}

const SECONDS: Duration = Duration::from_secs(10);
