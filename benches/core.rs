//! Criterion benches of the core: codecs, the classifier, and a bulk transfer in virtual time (no sockets, no clock: what the
//! state machines themselves cost). `cargo bench --bench core`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{criterion_group, criterion_main, BatchSize, Criterion, Throughput};
use keynet::classify::classify;
use keynet::config::{ControllerKind, UtpConfig};
use keynet::stun;
use keynet::utp::packet::{Header, Kind, Packet};

#[path = "../tests/support/mod.rs"]
mod support;

use support::link::LinkConfig;
use support::pair::{App, Pair, A};

fn header(kind: Kind) -> Header {
    Header { kind, connection_id: 7, timestamp: 1, timestamp_difference: 2, window: 1 << 20, seq: 3, ack: 4 }
}

fn codecs(criterion: &mut Criterion) {
    let mut data = Vec::new();
    header(Kind::Data).write(&mut data);
    data.resize(1_472, 0x55);
    let mut state = Vec::new();
    let ranges: Vec<_> = (0..40).map(|i| (i * 100, i * 100 + 20)).collect();
    header(Kind::State).write_with_ranges(&ranges, &mut state);
    let mut ping = Vec::new();
    stun::encode_ping(&mut ping, [1; 12], Some((&[2; 16], &[3; 32])));

    let mut group = criterion.benchmark_group("codec");
    group.throughput(Throughput::Elements(1));
    group.bench_function("classify", |b| b.iter(|| classify(black_box(&data))));
    group.bench_function("parse DATA", |b| b.iter(|| Packet::parse(black_box(&data)).is_ok()));
    group.bench_function("parse STATE, 40 ranges", |b| {
        b.iter(|| Packet::parse(black_box(&state)).map(|packet| packet.sacked().count()));
    });
    group.bench_function("write header", |b| b.iter(|| black_box(header(Kind::Data)).encode(0)));
    group.bench_function("verify a keyed ping", |b| b.iter(|| stun::verify(black_box(&ping), &[3; 32])));
    group.finish();
}

/// One connection moves 4 MiB between two endpoints; the link is virtual, so this is computing time only.
fn transfer(criterion: &mut Criterion) {
    const BYTES: u64 = 4 << 20;
    let mut group = criterion.benchmark_group("transfer in virtual time");
    group.throughput(Throughput::Bytes(BYTES));
    group.sample_size(20);
    for (name, loss) in [("no loss", 0.0), ("1 % loss", 0.01)] {
        for controller in [ControllerKind::Cubic, ControllerKind::Bbr] {
            let utp = UtpConfig { controller, ..UtpConfig::default() };
            let link = LinkConfig::path(1_000, Duration::from_millis(10), 1.0).losing(loss);
            group.bench_function(format!("{name}, {controller:?}"), |b| {
                b.iter_batched(
                    || Pair::new(1, &utp, link.clone(), link.clone().losing(0.0)),
                    |mut pair| {
                        pair.connect(A, &utp, App { trusting: true, ..App::sending(BYTES) });
                        pair.run_out(Duration::from_secs(600));
                    },
                    BatchSize::PerIteration,
                );
            });
        }
    }
    group.finish();
}

criterion_group!(benches, codecs, transfer);
criterion_main!(benches);
