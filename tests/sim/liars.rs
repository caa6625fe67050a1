//! Peers that lie, forget or are broken. Each costs no more than an honest one: bounded memory, at most a packet for a packet, no
//! timer that never rests; and the connection goes on, or ends with a reason.

use std::time::Duration;

use keynet::config::{ControllerKind, UtpConfig};
use keynet::utp::packet::{Header, Kind};
use keynet::utp::{End, State};

use crate::support::peer::Scripted;
use crate::support::rng::Rng;

/// Payload of a packet before anything is known of the path: 1232 - 20.
const FULL: usize = 1_212;
const KINDS: [ControllerKind; 3] = [ControllerKind::Cubic, ControllerKind::Bbr, ControllerKind::Ledbat];

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

/// Confirming only what was never sent is silence.
#[test]
fn acks_of_what_was_not_sent_are_silence() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[7; 4 * FULL]);
    let mut sent = 0;
    for n in 0..400u16 {
        let lie = Header { ack: it.ack.wrapping_add(5 + n * 37), ..it.header(Kind::State) };
        it.send_header(&lie, &[]);
        it.wait(ms(100));
        sent += it.sent.len();
        it.sent.clear();
    }
    assert_eq!(it.connection().end(), Some(End::Unanswered));
    assert!(sent < 100, "{sent} packets");
}

/// A window that is taken back while it is in use (RFC 9293 section 3.8.6): nothing more goes, nothing breaks, and all of it arrives
/// when there is room again.
#[test]
fn a_window_that_shrinks_stops_the_sender_and_nothing_else() {
    for controller in KINDS {
        let mut it = Scripted::capable(&UtpConfig { controller, ..utp() }, 10);
        it.write(&[7; 60 * FULL]);
        it.wait(ms(20));
        let mut got = Vec::new();
        for window in [20 * FULL as u32, 3 * FULL as u32, 100, 1, 0, u32::MAX, 0] {
            take(&mut it, &mut got);
            it.window = window;
            it.send(Kind::State, &[]);
            it.wait(ms(20));
        }
        it.sent.clear();
        for _ in 0..60 {
            it.wait(ms(1_000));
            it.send(Kind::State, &[]);
        }
        assert_eq!(it.connection().state(), State::Established, "it says that it is there, and full");
        assert!(it.sent.len() < 40, "{} probes in a minute", it.sent.len());
        it.window = 1 << 20;
        for _ in 0..200 {
            it.send(Kind::State, &[]);
            it.wait(ms(50));
            take(&mut it, &mut got);
        }
        assert_eq!(got.len(), 60 * FULL, "{controller:?}: {:?}", it.connection().stats());
    }
}

/// Ranges that go backwards, beyond what was sent, around the whole space, over what is confirmed, or twice over.
#[test]
fn ranges_that_make_no_sense_confirm_nothing() {
    let mut it = Scripted::capable(&utp(), 10);
    it.write(&[7; 4 * FULL]);
    it.wait(ms(20));
    it.ack = it.ack.wrapping_add(1);
    it.send(Kind::State, &[]);
    let una = it.ack.wrapping_add(1);
    let at = |n: i32| una.wrapping_add_signed(n as i16);
    let nonsense =
        [(at(2), at(1)), (at(3), at(300)), (at(-5), at(0)), (at(20_000), at(-20_000)), (at(0), at(1)), (at(1), at(1))];
    for (first, end) in nonsense {
        // (the part of one that was sent may count)
        it.ranges(&[(first, end); 60]);
    }
    let stats = it.connection().stats();
    assert!(stats.bytes_out <= 2 * FULL as u64 && stats.in_flight >= 2 * FULL as u64, "{stats:?}");
    let mut got = Vec::new();
    for _ in 0..20 {
        it.wait(ms(200));
        if take(&mut it, &mut got) > 0 {
            it.send(Kind::State, &[]);
        }
    }
    assert_eq!(it.connection().stats().bytes_out, 4 * FULL as u64);
}

/// A byte at a time for ever is a packet for a packet.
#[test]
fn windows_of_one_byte_for_ever_cost_a_packet_each() {
    for controller in KINDS {
        let mut it = Scripted::capable(&UtpConfig { controller, ..utp() }, 10);
        it.window = 1;
        it.send(Kind::State, &[]);
        it.write(&[7; 100_000]);
        let (mut got, mut asked) = (Vec::new(), 0);
        let memory = it.connection().stats().memory;
        for _ in 0..3_000 {
            let packets = take(&mut it, &mut got);
            assert!(packets <= 12, "{packets} at once");
            asked += packets;
            it.send(Kind::State, &[]);
            it.wait(ms(10));
        }
        assert!((2_000..4_000).contains(&got.len()) && asked <= got.len() + 100, "{} of {asked}", got.len());
        assert!(it.connection().stats().memory <= memory + (64 << 10), "{memory} {:?}", it.connection().stats());
    }
}

/// Everything is confirmed the moment it leaves, received or not: what is lost so is the liar's own. Nobody sends without end in no
/// time for it, and no buffer grows.
#[test]
fn acks_that_come_too_early_do_not_run_away() {
    for controller in KINDS {
        let config = UtpConfig { controller, ..utp() };
        let mut it = Scripted::capable(&config, 10);
        it.window = u32::MAX;
        let mut total = 0;
        for round in 0..2_000 {
            total += it.connection().write(&[7; 64 << 10]).unwrap();
            it.pump();
            while let Some(sent) = it.sent.pop_back() {
                it.sent.clear();
                it.ack = sent.header.seq;
                it.send(Kind::State, &[]);
            }
            if round % 10 == 0 {
                it.wait(ms(1));
            }
        }
        let stats = it.connection().stats();
        assert!(stats.memory <= 2 * config.send_buffer, "{stats:?}");
        assert!(stats.bytes_out <= total as u64 && stats.resent == 0, "{stats:?}");
        assert!(stats.packets_out <= (total / 1_000) as u64 + 4_000, "{controller:?} {stats:?}");
    }
}

/// Acks that go back, each with a report of its own: no byte counts twice, nothing that was confirmed is sent again.
#[test]
fn acks_that_go_back_undo_nothing() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[7; 8 * FULL]);
    it.wait(ms(20));
    let una = it.ack;
    it.ack = una.wrapping_add(8);
    it.send(Kind::State, &[]);
    it.sent.clear();
    for back in (0..=70).chain([1_000, 32_000]) {
        it.ack = una.wrapping_add(8).wrapping_sub(back);
        it.sack(&[0xff; 16]);
        it.wait(ms(10));
    }
    let stats = it.connection().stats();
    assert_eq!((stats.bytes_out, stats.resent, it.sent.len()), (8 * FULL as u64, 0, 0), "{stats:?}");
}

/// Two ends of one stream: the first that makes sense counts.
#[test]
fn ends_that_contradict_each_other_are_refused() {
    let mut it = Scripted::accepted(&utp(), 10);
    let fin = |it: &mut Scripted, ahead: u16| {
        let header = Header { seq: it.seq.wrapping_add(ahead), ..it.header(Kind::Fin) };
        it.send_header(&header, &[]);
    };
    it.data_ahead(2, b"c");
    fin(&mut it, 1);
    fin(&mut it, 3);
    fin(&mut it, 5);
    fin(&mut it, 4);
    it.data_ahead(3, b"beyond");
    it.data_ahead(6, b"far beyond");
    assert_eq!(it.connection().stats().refused, 5);
    it.data_ahead(1, b"b");
    it.data(b"a");
    fin(&mut it, 9);
    assert_eq!(it.read(), b"abc");
    assert!(it.is_at_eof());
}

/// Ten thousand copies of anything: an ack for a packet at most, and nothing is sent again for it.
#[test]
fn storms_of_copies_cost_a_packet_for_a_packet() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[7; 4 * FULL]);
    it.wait(ms(20));
    let resent = it.connection().stats().resent;
    for kind in [Kind::Data, Kind::Fin, Kind::State, Kind::Syn] {
        it.sent.clear();
        for _ in 0..10_000 {
            it.send(kind, if kind == Kind::Data { b"again" } else { b"" });
        }
        let answers = it.sent.len();
        assert!(answers <= if kind == Kind::State { 4 } else { 10_000 }, "{answers} answers to {kind:?}");
    }
    let stats = it.connection().stats();
    assert!(stats.resent - resent <= 1 && stats.bytes_in <= 5 && stats.memory < 128 << 10, "{stats:?}");
}

/// Timestamps are what the peer makes of them: whatever they say, a stream goes on, slowly at worst.
#[test]
fn timestamps_that_jump_starve_nobody() {
    for controller in KINDS {
        let mut rng = Rng::new(77);
        let mut it = Scripted::capable(&UtpConfig { controller, ..utp() }, 10);
        it.write(&[7; 200 * FULL]);
        let mut got = Vec::new();
        for _ in 0..2_000 {
            it.wait(ms(20));
            if take(&mut it, &mut got) > 0 {
                let header = it.header(Kind::State);
                let (timestamp, timestamp_difference) = (rng.next() as u32, rng.next() as u32);
                it.send_header(&Header { timestamp, timestamp_difference, ..header }, &[]);
            }
            if got.len() == 200 * FULL {
                break;
            }
        }
        assert_eq!(got.len(), 200 * FULL, "{controller:?}");
    }
}

/// The contract says that time never goes back. Should it ever, nothing panics, nobody loses a byte, and when the time has been
/// caught up with all is as before.
#[test]
fn a_clock_that_goes_back_breaks_nothing() {
    for controller in KINDS {
        let mut it = Scripted::capable(&UtpConfig { controller, ..utp() }, 10);
        let stream: Vec<u8> = (0..20 * FULL).map(|n| (n / 99) as u8).collect();
        let mut got = Vec::new();
        it.now += ms(3_600_000);
        it.write(&stream);
        for step in 0..400u64 {
            match step {
                5 | 9 => it.now = it.now - ms(3_000_000),
                7 | 12 => it.now += ms(2_999_900),
                _ => it.wait(ms(50)),
            }
            it.pump();
            if take(&mut it, &mut got) > 0 || step > 12 {
                it.send(Kind::State, &[]);
                it.data(b"x");
                it.read();
            }
        }
        assert!(got == stream || it.connection().end().is_some(), "{controller:?}");
        assert!(stream.starts_with(&got));
    }
}

/// A machine that was away for hours finds its connections over, with a reason, and all at once.
#[test]
fn a_clock_that_jumps_ahead_by_hours_ends_idle_connections() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"and then");
    it.sent.clear();
    it.now += ms(7_200_000);
    let now = it.now;
    it.connection().handle_timeout(now);
    it.pump();
    // what it had written was never acknowledged
    assert_eq!(it.connection().end(), Some(End::Unanswered));
    assert!(it.sent.is_empty() && it.connection().poll_timeout().is_none());
}
