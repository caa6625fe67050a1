//! Peers that lie, forget or are broken. Each costs no more than an honest one: bounded memory, at most a packet for a packet, no
//! timer that never rests; and the connection goes on, or ends with a reason.

use std::time::Duration;

use keynet::config::UtpConfig;
use keynet::utp::packet::Kind;
use keynet::utp::End;

use crate::support::peer::Scripted;

/// Payload of a packet before anything is known of the path: 1232 - 20.
const FULL: usize = 1_212;

fn utp() -> UtpConfig {
    UtpConfig::default()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The peer's ack moves over what comes now, in order; what came of it in the first place is added to `got`.
fn take(it: &mut Scripted, got: &mut Vec<u8>) -> usize {
    let mut packets = 0;
    while let Some(data) = it.next(Kind::Data) {
        packets += 1;
        if data.header.seq == it.ack.wrapping_add(1) {
            it.ack = data.header.seq;
            got.extend(data.payload);
        }
    }
    packets
}

/// RFC 2018 section 8: a selective ack is advice, and a receiver short of memory may throw away what it has reported.
#[test]
fn a_peer_that_forgets_what_it_reported_loses_nothing() {
    let mut it = Scripted::accepted(&utp(), 10);
    let stream: Vec<u8> = (0..6 * FULL).map(|n| (n / 7) as u8).collect();
    it.write(&stream);
    it.sent.clear();
    it.wait(ms(20));
    it.sack(&[0b1_1111]);
    assert_eq!(it.connection().stats().bytes_out, 5 * FULL as u64);
    let mut got = Vec::new();
    it.wait(ms(200));
    assert_eq!(it.expect(Kind::Data).header.seq, it.ack.wrapping_add(1), "the missing one comes again");
    it.sent.clear();
    // it has arrived, and the five behind it are gone
    it.ack = it.ack.wrapping_add(1);
    got.extend_from_slice(&stream[..FULL]);
    it.send(Kind::State, &[]);
    for _ in 0..20 {
        if take(&mut it, &mut got) > 0 {
            it.send(Kind::State, &[]);
        }
        it.wait(ms(200));
    }
    assert_eq!(got.len(), stream.len(), "all of it came again");
    assert_eq!(got, stream);
    let stats = it.connection().stats();
    assert_eq!((stats.bytes_out, stats.in_flight), (stream.len() as u64, 0), "no byte counts twice: {stats:?}");
}

/// Reporting and forgetting the same packets for ever confirms nothing: it is silence.
#[test]
fn a_peer_that_reports_and_forgets_for_ever_is_given_up() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[7; 6 * FULL]);
    it.wait(ms(20));
    let mut sent = 0;
    for round in 0..1_000 {
        it.sack(if round % 2 == 0 { &[0b1_1111] } else { &[0] });
        it.wait(ms(100));
        sent += it.sent.len();
        it.sent.clear();
        if it.connection().end().is_some() {
            break;
        }
    }
    assert_eq!(it.connection().end(), Some(End::Unanswered));
    assert!(sent < 1_000, "{sent} packets");
}

/// A report of the very packet that the same ack says is missing.
#[test]
fn a_report_that_contradicts_its_own_ack_confirms_nothing() {
    let mut it = Scripted::capable(&utp(), 10);
    it.write(&[7; 3 * FULL]);
    it.wait(ms(20));
    let first = it.ack.wrapping_add(1);
    it.ranges(&[(first, first.wrapping_add(1))]);
    assert_eq!(it.connection().stats().bytes_out, 0);
    let mut got = Vec::new();
    for _ in 0..20 {
        it.wait(ms(200));
        if take(&mut it, &mut got) > 0 {
            it.send(Kind::State, &[]);
        }
    }
    assert_eq!(got.len(), 3 * FULL);
}

/// All that a stranger can make a stream hold before its application says who that is, in the order that takes the most.
#[test]
fn a_stream_of_a_stranger_holds_64_kib_at_most() {
    let mut it = Scripted::capable(&utp(), 10);
    let window = utp().untrusted_window;
    assert_eq!(it.connection().stats().memory, 0);
    let packets = (window / 1_400) as u16;
    for ahead in 0..200 {
        it.data_ahead(packets + 1 + ahead, &[1; 1_400]);
    }
    for _ in 0..200 {
        it.data(&[2; 1_400]);
        let memory = it.connection().stats().memory;
        assert!(memory <= 64 << 10, "{memory}");
    }
    assert!(it.connection().readable() > window, "what was early has followed");
    assert!(it.connection().readable() < 64 << 10);
}

/// Reading does not make a stranger's window grow; trust does, with the next packet, and that needs no packet of its own.
#[test]
fn trust_opens_the_window_at_once() {
    let mut it = Scripted::capable(&utp(), 10);
    for _ in 0..100 {
        it.data(&[1; 1_000]);
        it.read();
    }
    assert_eq!(it.last().header.window as usize, utp().untrusted_window - 1_000, "as of its last ack");
    it.connection().trust();
    it.write(b"Accepted");
    let data = it.expect(Kind::Data);
    assert_eq!(data.header.window, 1 << 20);
    assert!(it.sent.is_empty(), "{:?}", it.sent);
    it.ack = data.header.seq;
    it.data(&[1; 1_000]);
    it.read();
    it.connection().trust();
    assert!(!it.connection().wants_transmit(), "said once, it is known");
}
