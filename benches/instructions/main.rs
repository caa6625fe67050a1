//! Fixed work for the core in virtual time, to be counted in instructions: `make bench-instructions` runs each workload under
//! callgrind (`scripts/instructions.py`). No clock, no socket, and every seed is fixed, so a count says what the code costs
//! and nothing about the machine's mood.

use std::process::ExitCode;
use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};

mod drive;

use drive::{Net, Role};

/// What was done, to divide by.
struct Done {
    /// Datagrams that left, both ways.
    datagrams: u64,
    /// Payload, both ways.
    bytes: u64,
    connections: u64,
}

fn main() -> ExitCode {
    let asked = std::env::args().nth(1).filter(|name| !name.starts_with('-'));
    let Some(name) = asked else {
        // `cargo bench` runs every bench
        println!("instructions are counted by: make bench-instructions");
        return ExitCode::SUCCESS;
    };
    let Some((_, work)) = WORKLOADS.iter().find(|(known, _)| *known == name) else {
        eprintln!("{name} is none of {:?}", WORKLOADS.map(|(name, _)| name));
        return ExitCode::FAILURE;
    };
    let done = work();
    println!("{} {} {}", done.datagrams, done.bytes, done.connections);
    ExitCode::SUCCESS
}

type Workload = fn() -> Done;

const WORKLOADS: [(&str, Workload); 7] = [
    ("handshakes", handshakes),
    ("bulk-cubic", || bulk(ControllerKind::Cubic, 0.0)),
    ("bulk-bbr", || bulk(ControllerKind::Bbr, 0.0)),
    ("bulk-ledbat", || bulk(ControllerKind::Ledbat, 0.0)),
    ("bulk-loss", || bulk(ControllerKind::default(), 0.01)),
    ("requests", requests),
    ("connections", connections),
];

/// 1,000 connections one after another: opened, ended in both directions, forgotten.
fn handshakes() -> Done {
    let mut net = Net::new(UtpConfig::default(), 0.0, || Role::Sink);
    measured(&mut net, |net| {
        for _ in 0..1_000 {
            net.connect(Role::Source { left: 0 });
            net.run();
        }
    });
    done(&net, 0, 1_000)
}

/// 64 MiB one way on one connection.
fn bulk(controller: ControllerKind, loss: f64) -> Done {
    let mut net = Net::new(UtpConfig { controller, ..UtpConfig::default() }, loss, || Role::Sink);
    measured(&mut net, |net| {
        net.connect(Role::Source { left: BULK });
        net.run();
    });
    done(&net, BULK, 1)
}

/// 1,000 requests and answers of 64 bytes, one at a time on one connection.
fn requests() -> Done {
    let mut net = Net::new(UtpConfig::default(), 0.0, || Role::Echo);
    measured(&mut net, |net| {
        net.connect(Role::Asker { left: 1_000, begun: false });
        net.run();
    });
    done(&net, 2 * 1_000 * drive::MESSAGE as u64, 1)
}

/// 1,000 connections at once share what one has in `bulk`.
fn connections() -> Done {
    let mut net = Net::new(UtpConfig::default(), 0.0, || Role::Sink);
    measured(&mut net, |net| {
        for _ in 0..1_000 {
            net.connect(Role::Source { left: BULK / 1_000 });
        }
        net.run();
    });
    done(&net, BULK / 1_000 * 1_000, 1_000)
}

/// Callgrind counts between the entry and the exit of this function, and so neither the start of the process nor the output.
#[inline(never)]
fn measured(net: &mut Net, work: impl FnOnce(&mut Net)) {
    work(net);
    assert!(net.now() < LIMIT, "not done after {LIMIT:?} of virtual time");
}

fn done(net: &Net, bytes: u64, connections: u64) -> Done {
    assert_eq!(net.received(), bytes, "everything arrived");
    Done { datagrams: net.datagrams(), bytes, connections }
}

const BULK: u64 = 64 << 20;
/// None takes a tenth of it: a thousand handshakes of two round trips and a time-wait of half a second each come closest.
const LIMIT: Duration = Duration::from_secs(6_000);
