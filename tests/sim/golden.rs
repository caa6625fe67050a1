//! Situations that other uTP programs are known to get wrong, or to produce: UTP.md 1.1, 2.3 to 2.6 and 4.6. Each against a peer
//! whose packets are written by hand.

use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::UtpConfig;
use keynet::utp::packet::{Header, Kind};
use keynet::utp::{Dropped, End, Routed, State};

use crate::support::peer::{Scripted, REMOTE};

fn utp() -> UtpConfig {
    UtpConfig::default()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// libutp drops a repeated SYN, so that one lost SYN-ACK costs the connection.
#[test]
fn a_lost_syn_ack_is_repeated_with_its_number() {
    let mut it = Scripted::new(&utp());
    let first = it.dial(100);
    it.wait(ms(300));
    let second = it.dial(100);
    assert_eq!(second.header.seq, first.header.seq);
    it.data(b"hello");
    assert_eq!(it.read(), b"hello");
}

/// utp-rs repeated it with the current number and lost what was written in between.
#[test]
fn a_syn_repeated_after_data_does_no_harm() {
    let mut it = Scripted::accepted(&utp(), 100);
    it.write(b"speaks first");
    let data = it.expect(Kind::Data);
    let late = Header { connection_id: 500, seq: 100, ack: 0, ..it.header(Kind::Syn) };
    it.send_header(&late, &[]);
    assert!(it.sent.iter().all(|sent| sent.header.kind != Kind::Reset), "{:?}", it.sent);
    it.ack = data.header.seq;
    it.data(b"and then");
    assert_eq!(it.read(), b"and then");
    assert_eq!(it.connection().state(), State::Established);
}

/// The acceptor's first DATA has the SYN-ACK's number.
#[test]
fn the_syn_ack_consumes_no_number() {
    let mut it = Scripted::new(&utp());
    let answer = it.dial(100);
    it.send(Kind::State, &[]);
    it.write(b"x");
    assert_eq!(it.expect(Kind::Data).header.seq, answer.header.seq);

    let mut it = Scripted::new(&utp());
    it.start(&utp());
    let syn = it.expect(Kind::Syn);
    it.answer(&syn, 7_000);
    let state = it.expect(Kind::State);
    assert_eq!(state.header.ack, 6_999, "what came before the SYN-ACK's number");
    assert_eq!(state.header.connection_id, syn.header.connection_id.wrapping_add(1));
    it.ack = syn.header.seq;
    it.data(b"first");
    assert_eq!(it.read(), b"first");
}

/// A peer that repeats its SYN-ACK (librqbit does, every 200 ms) has lost nothing.
#[test]
fn repeated_syn_acks_are_no_duplicate_acks() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    let syn = it.expect(Kind::Syn);
    it.answer(&syn, 7_000);
    it.write(b"data");
    it.expect(Kind::Data);
    for _ in 0..5 {
        it.answer(&syn, 7_000);
    }
    assert!(it.next(Kind::Data).is_none(), "sent again although nothing is lost");
    assert_eq!(it.connection().stats().resent, 0);
}

/// Some SYN-ACKs say that there is no room; that is no closed window.
#[test]
fn a_syn_ack_without_window_is_no_zero_window() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    let syn = it.expect(Kind::Syn);
    it.window = 0;
    it.answer(&syn, 1);
    it.write(b"data");
    it.expect(Kind::Data);
}

/// libutp ignores FIN before data: connect-then-close leaves its peer hanging.
#[test]
fn fin_may_come_first() {
    let mut it = Scripted::new(&utp());
    it.dial(65_535);
    it.send(Kind::Fin, &[]);
    assert!(it.is_at_eof());
    let answer = it.last();
    assert_eq!((answer.header.kind, answer.header.ack), (Kind::State, 0), "the FIN is acknowledged");
    it.connection().finish();
    it.pump();
    let fin = it.expect(Kind::Fin);
    it.seq = 1;
    it.ack = fin.header.seq;
    it.send(Kind::State, &[]);
    assert_eq!(it.connection().end(), Some(End::Finished));
    it.wait(ms(5_000));
    assert!(it.connection().is_drained());
}

/// librqbit drops a FIN that comes before missing data.
#[test]
fn fin_out_of_order_is_kept() {
    let mut it = Scripted::accepted(&utp(), 10);
    let fin = Header { seq: it.seq.wrapping_add(2), ..it.header(Kind::Fin) };
    it.send_header(&fin, &[]);
    assert!(!it.is_at_eof());
    it.data_ahead(1, b"world");
    it.data(b"hello ");
    assert_eq!(it.read(), b"hello world");
    assert!(it.is_at_eof());
    assert_eq!(it.last().header.ack, fin.seq);
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.connection().finish();
    it.pump();
    let fin = it.expect(Kind::Fin);
    it.wait(ms(3_000));
    assert_eq!(it.expect(Kind::Fin).header.seq, fin.header.seq);
    // and when its ack is lost, our side goes on answering the peer's copy
    it.ack = fin.header.seq;
    it.send(Kind::Fin, &[]);
    assert_eq!(it.connection().end(), Some(End::Finished));
    it.sent.clear();
    it.wait(ms(200));
    it.send(Kind::Fin, &[]);
    assert_eq!(it.last().header.ack, it.seq);
}

/// After FIN, libtorrent's STATE carries FIN's number, libutp's the one after it.
#[test]
fn state_may_carry_the_number_of_fin_or_the_next() {
    for after in [0, 1] {
        let mut it = Scripted::accepted(&utp(), 10);
        it.send(Kind::Fin, &[]);
        it.write(b"still talking");
        let data = it.expect(Kind::Data);
        let ack = Header { seq: it.seq.wrapping_add(after), ack: data.header.seq, ..it.header(Kind::State) };
        it.send_header(&ack, &[]);
        assert_eq!(it.connection().stats().in_flight, 0, "the ack counts");
        assert_eq!(it.connection().state(), State::Established, "half closed");
    }
}

#[test]
fn data_past_the_end_is_refused() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.send(Kind::Fin, &[]);
    it.data_ahead(1, b"ghost");
    it.data_ahead(0, b"ghost");
    assert_eq!(it.read(), b"");
    assert!(it.is_at_eof());
}

/// A peer may answer our FIN with RESET when it has everything.
#[test]
fn reset_in_answer_to_fin_is_an_end_in_order() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.send(Kind::Fin, &[]);
    it.connection().finish();
    it.pump();
    let fin = it.expect(Kind::Fin);
    it.ack = fin.header.seq;
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Finished));
}

#[test]
fn reset_refuses_a_dial() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    let syn = it.expect(Kind::Syn);
    it.id = syn.header.connection_id;
    it.ack = syn.header.seq.wrapping_add(5);
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().state(), State::SynSent, "a forged one");
    it.ack = syn.header.seq;
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Refused));
}

/// libutp takes any RESET with the right id: 2^16 guesses kill a connection.
#[test]
fn a_reset_with_a_wrong_ack_is_ignored() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"data");
    let data = it.expect(Kind::Data);
    for wrong in [data.header.seq.wrapping_add(3), data.header.seq.wrapping_sub(1_000), data.header.seq ^ 0x8000] {
        let forged = Header { ack: wrong, ..it.header(Kind::Reset) };
        it.send_header(&forged, &[]);
        assert_eq!(it.connection().state(), State::Established, "ack {wrong}");
    }
    it.ack = data.header.seq;
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Reset));
}

/// Not even somebody who knows every number of a connection can touch it from elsewhere.
#[test]
fn packets_from_another_remote_are_not_of_the_connection() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"data");
    it.ack = it.expect(Kind::Data).header.seq;
    for kind in [Kind::Reset, Kind::Fin, Kind::Data, Kind::State] {
        for id in [it.id, it.id.wrapping_sub(1)] {
            let mut forged = Vec::new();
            Header { connection_id: id, ..it.header(kind) }.write(&mut forged);
            forged.extend_from_slice(if kind == Kind::Data { b"forged" } else { b"" });
            let routed = it.endpoint.handle(it.now, RemoteId(REMOTE.0 + 1), &forged, Origin::default(), None);
            assert!(!matches!(routed, Routed::Known(..) | Routed::New(..)), "{kind:?} {id}");
        }
    }
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Reset), "the same numbers from the peer itself");
}

/// RESETs carry either id of the connection.
#[test]
fn a_reset_may_carry_the_id_we_send_with() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.id = 500;
    it.send(Kind::Reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Reset));
}

#[test]
fn strangers_get_a_reset_and_a_reset_gets_nothing() {
    let mut it = Scripted::new(&utp());
    it.id = 77;
    it.seq = 1234;
    it.send(Kind::Data, b"who are you?");
    let reset = it.expect(Kind::Reset);
    assert_eq!((reset.header.connection_id, reset.header.ack), (77, 1234));
    it.send(Kind::Reset, &[]);
    assert!(it.sent.is_empty());
    assert_eq!(it.dropped, [Dropped::Unknown, Dropped::Unknown]);
}

/// libutp's keep-alive acknowledges one packet less than before, every 29 s.
#[test]
fn a_keep_alive_that_goes_back_by_one_is_harmless() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"data");
    let data = it.expect(Kind::Data);
    it.ack = data.header.seq;
    it.send(Kind::State, &[]);
    for _ in 0..10 {
        it.wait(ms(20_000));
        let old = Header { ack: it.ack.wrapping_sub(1), ..it.header(Kind::State) };
        it.send_header(&old, &[]);
    }
    let stats = it.connection().stats();
    assert_eq!((stats.resent, stats.in_flight), (0, 0));
    assert_eq!(it.connection().state(), State::Established);
}

/// The update that opens a closed window is lost; libtorrent waits for ever, libutp for 15 s.
#[test]
fn a_lost_window_update_is_found_by_probes() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.window = 0;
    it.send(Kind::State, &[]);
    it.write(&[5; 4_000]);
    assert!(it.next(Kind::Data).is_none(), "there is no room");
    it.wait(ms(10_000));
    let probe = it.expect(Kind::Data);
    assert_eq!(probe.payload.len(), 1);
    assert!(it.sent.len() <= 8, "probes back off: {}", it.sent.len());
    it.window = 1 << 20;
    it.ack = probe.header.seq;
    it.send(Kind::State, &[]);
    let mut got = 1;
    while let Some(data) = it.next(Kind::Data) {
        if data.header.seq == it.ack.wrapping_add(1) {
            got += data.payload.len();
            it.ack = data.header.seq;
            it.send(Kind::State, &[]);
        }
    }
    assert_eq!(got, 4_000);
}

/// A reader that wakes up tells the sender that there is room again, without being asked.
#[test]
fn a_window_that_opens_is_announced() {
    let utp = UtpConfig { initial_window: 8 << 10, receive_buffer: 8 << 10, ..utp() };
    let mut it = Scripted::accepted(&utp, 10);
    for _ in 0..8 {
        it.data(&[1; 1_024]);
    }
    assert_eq!(it.last().header.window, 0);
    assert_eq!(it.read().len(), 8 << 10);
    let update = it.last();
    assert_eq!((update.header.kind, update.header.window), (Kind::State, 8 << 10));
}

#[test]
fn windows_of_one_byte_are_used() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.window = 1;
    it.send(Kind::State, &[]);
    it.write(b"four");
    let mut got = Vec::new();
    for _ in 0..4 {
        it.wait(ms(3_000));
        let data = it.expect(Kind::Data);
        assert_eq!(data.payload.len(), 1);
        got.extend(data.payload);
        it.ack = data.header.seq;
        it.sent.clear();
        it.send(Kind::State, &[]);
    }
    assert_eq!(got, b"four");
}

/// Numbers wrap, with holes on both sides of the wrap, in both directions.
#[test]
fn holes_across_the_wrap_are_filled() {
    let mut it = Scripted::accepted(&utp(), 65_530);
    // the next number is 65531
    for ahead in [1, 3, 5, 6, 8] {
        it.data_ahead(ahead, &[ahead as u8; 3]);
    }
    let report = it.last();
    assert_eq!(report.header.ack, 65_530);
    let runs = [(65_532, 65_533), (65_534, 65_535), (0, 2), (3, 4)];
    assert_eq!(report.sacked, runs);
    for ahead in [0, 2, 4, 7] {
        it.data_ahead(ahead, &[ahead as u8; 3]);
    }
    let expected: Vec<u8> = (0..9).flat_map(|n| [n; 3]).collect();
    assert_eq!(it.read(), expected);
    assert_eq!(it.last().header.ack, 3);
}

/// A selective ack of any length counts: libtorrent's are not padded to four bytes.
#[test]
fn selective_acks_of_odd_length_count() {
    for bits in [&[0b0000_0111u8][..], &[0b0000_0111, 0, 0], &[0b0000_0111, 0, 0, 0, 0], &[7; 37]] {
        let mut it = Scripted::accepted(&utp(), 10);
        it.write(&[9; 12 * 1_212]);
        let first = it.expect(Kind::Data);
        it.sent.clear();
        it.wait(ms(20));
        it.sack(bits);
        let again = it.expect(Kind::Data);
        assert_eq!(again.header.seq, first.header.seq, "three later ones arrived, so this one is lost");
        assert_eq!(again.payload, first.payload);
        assert_eq!(it.connection().state(), State::Established);
    }
}

/// Bits for packets that were never sent mean nothing.
#[test]
fn a_selective_ack_of_what_was_not_sent_is_ignored() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"one");
    it.sent.clear();
    it.wait(ms(20));
    it.sack(&[0xff; 32]);
    let stats = it.connection().stats();
    assert_eq!((stats.bytes_out, stats.resent), (0, 0));
}

#[test]
fn an_ack_of_what_was_not_sent_is_refused() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"one");
    let data = it.expect(Kind::Data);
    for ahead in [1, 2, 1_000, 32_000] {
        let lie = Header { ack: data.header.seq.wrapping_add(ahead), ..it.header(Kind::State) };
        it.send_header(&lie, &[]);
    }
    assert_eq!(it.connection().stats().bytes_out, 0);
    it.ack = data.header.seq;
    it.send(Kind::State, &[]);
    assert_eq!(it.connection().stats().bytes_out, 3);
}

/// An old uTorrent sends 0x7fffffff for "no delay known", everybody 0, and both clocks may be at 0.
#[test]
fn odd_delays_and_timestamps_are_no_samples() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[3; 3_000]);
    for (timestamp, difference) in [(0, 0x7fff_ffff), (0, 0), (u32::MAX, u32::MAX), (1, 0x8000_0000)] {
        let odd = Header { timestamp, timestamp_difference: difference, ..it.header(Kind::State) };
        it.send_header(&odd, &[]);
        it.data(b"x");
    }
    assert_eq!(it.read(), b"xxxx");
    let last = it.last().header;
    assert!(last.timestamp != 0 && last.timestamp_difference != 0 && last.timestamp_difference != 0x7fff_ffff);
}

/// A sender whose packets carry no timestamp gets no delay in return.
#[test]
fn no_timestamp_no_difference() {
    let mut it = Scripted::new(&utp());
    it.id = 500;
    it.seq = 1;
    let syn = Header { timestamp: 0, ..it.header(Kind::Syn) };
    it.send_header(&syn, &[]);
    assert_eq!(it.last().header.timestamp_difference, 0);
}

/// A peer that takes data and never acknowledges is given up, with a reason, after the configured time.
#[test]
fn withheld_acks_end_the_connection() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(b"hello?");
    for _ in 0..60 {
        it.wait(ms(1_000));
        // it is alive, it just never acknowledges
        it.data(b"chatter");
    }
    assert_eq!(it.connection().end(), Some(End::Unanswered));
    assert!(it.sent.len() < 300, "{} packets", it.sent.len());
}

#[test]
fn a_silent_peer_is_given_up() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.wait(ms(700_000));
    assert_eq!(it.connection().end(), Some(End::Idle));
}

#[test]
fn nobody_answers_a_dial() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    it.wait(ms(60_000));
    assert_eq!(it.connection().end(), Some(End::ConnectTimeout));
    let syns = it.sent.iter().filter(|sent| sent.header.kind == Kind::Syn).count();
    assert!((8..=25).contains(&syns), "{syns} SYNs");
}

/// More than the window offers is refused: memory stays within what was advertised.
#[test]
fn a_peer_that_ignores_the_window_is_refused() {
    let utp = UtpConfig { initial_window: 16 << 10, receive_buffer: 16 << 10, ..utp() };
    let mut it = Scripted::accepted(&utp, 10);
    for ahead in 0..200u16 {
        it.data_ahead(ahead + 1, &[1; 1_400]);
    }
    assert!(it.connection().stats().memory <= (16 << 10) + 3_000, "{:?}", it.connection().stats());
    // the missing one is taken all the same: without it nothing would ever be free again
    it.data(&[1; 1_400]);
    let got = it.read().len();
    assert!((12 * 1_400..=(16 << 10) + 3_000).contains(&got), "{got}");
}

#[test]
fn duplicates_are_acknowledged_and_dropped() {
    let mut it = Scripted::accepted(&utp(), 10);
    for _ in 0..3 {
        it.send(Kind::Data, b"once");
    }
    assert_eq!(it.read(), b"once");
    assert_eq!(it.last().header.ack, it.seq);
}

/// The last packet is lost: a probe comes after two round trips, not after a timeout.
#[test]
fn a_lost_tail_is_probed() {
    let mut it = Scripted::accepted(&utp(), 10);
    for _ in 0..5 {
        it.write(b"warm up");
        let data = it.expect(Kind::Data);
        it.wait(ms(20));
        it.ack = data.header.seq;
        it.send(Kind::State, &[]);
        it.sent.clear();
    }
    it.write(b"lost");
    let lost = it.expect(Kind::Data);
    it.wait(ms(100));
    let again = it.expect(Kind::Data);
    assert_eq!((again.header.seq, &again.payload), (lost.header.seq, &lost.payload));
    assert!(again.at.since(lost.at) <= ms(60), "{:?}", again.at.since(lost.at));
}

/// A slow path takes longer than any patience with a silent peer: while acks come, what was written is delivered.
#[test]
fn what_was_written_before_letting_go_is_delivered_however_slow_the_path() {
    let mut it = Scripted::accepted(&utp(), 100);
    it.write(&[7; 100_000]);
    it.connection().finish();
    let now = it.now;
    it.connection().detach(now);
    it.pump();
    let mut got = 0;
    for _ in 0..600 {
        it.wait(ms(500));
        let mut fin = None;
        while let Some(sent) = it.sent.pop_front() {
            assert_ne!(sent.header.kind, Kind::Reset, "{got} of 100,000 bytes had been delivered");
            let next = it.ack.wrapping_add(1);
            // one packet gets through at a time
            if sent.header.seq == next && fin.is_none() {
                it.ack = next;
                got += sent.payload.len();
                fin = Some(sent.header.kind == Kind::Fin);
            }
        }
        if fin.is_some() {
            it.send(Kind::State, &[]);
        }
        if fin == Some(true) {
            assert_eq!(got, 100_000);
            // the peer's own end may take a moment: the patience starts now
            it.wait(ms(5_000));
            it.send(Kind::Fin, &[]);
            assert!(matches!(it.connection().state(), State::TimeWait { .. }), "{:?}", it.connection().state());
            return;
        }
    }
    panic!("{got} bytes in five minutes");
}

/// A peer that never reads does not hold what nobody owns any more for ever.
#[test]
fn a_closed_window_does_not_keep_a_connection_without_an_application() {
    let mut it = Scripted::accepted(&utp(), 100);
    it.write(b"hello");
    it.connection().finish();
    let now = it.now;
    it.connection().detach(now);
    it.pump();
    it.window = 0;
    for _ in 0..120 {
        it.send(Kind::State, &[]);
        it.wait(ms(1_000));
    }
    assert!(it.connection().end().is_some(), "{:?}", it.connection().state());
}

/// A blind forger knows addresses and perhaps the connection id, not where the stream stands: an ack of long ago says so, and
/// a forged end would cut the stream off as a forged RESET would.
#[test]
fn an_end_with_an_ack_from_nowhere_is_refused() {
    for back in [300, 5_000, 32_000] {
        let mut it = Scripted::accepted(&utp(), 100);
        let forged = Header { seq: it.seq.wrapping_add(3), ack: it.ack.wrapping_sub(back), ..it.header(Kind::Fin) };
        it.send_header(&forged, &[]);
        for _ in 0..10 {
            it.data(b"x");
        }
        it.send(Kind::Fin, &[]);
        assert_eq!(it.read(), b"xxxxxxxxxx", "{back} back");
        assert!(it.is_at_eof());
    }
}

/// libtorrent answers a repeated SYN with a second connection under the same id, and only that one hears us: on a path of
/// more than 33 ms the first SYN-ACK belongs to nobody by the time our data comes. Its number may be any.
#[test]
fn of_two_syn_acks_the_newer_one_counts() {
    for number in [30_000, 6_999, 6_784, 7_033, 65_535] {
        let mut it = Scripted::new(&utp());
        it.start(&utp());
        it.wait(ms(40));
        let syn = it.expect(Kind::Syn);
        it.answer(&syn, 7_000);
        it.write(b"data");
        it.expect(Kind::Data);
        it.wait(ms(33));
        it.answer(&syn, number);
        it.wait(ms(1_100));
        let again = it.expect(Kind::Data);
        assert_eq!((again.header.ack, &again.payload[..]), (number - 1, &b"data"[..]));
        it.ack = again.header.seq;
        it.data(b"first");
        assert_eq!(it.read(), b"first");
        assert_eq!(it.connection().stats().in_flight, 0);
    }
}

/// An acceptor that speaks first has not begun anew because its ack overtakes its data, and a SYN-ACK that comes late is old.
#[test]
fn neither_overtaken_data_nor_an_old_syn_ack_begin_anew() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    it.wait(ms(40));
    let syn = it.expect(Kind::Syn);
    let old =
        Header { connection_id: syn.header.connection_id, seq: 50_000, ack: syn.header.seq, ..it.header(Kind::State) };
    it.wait(ms(1));
    it.answer(&syn, 7_000);
    it.seq = 7_003;
    it.send(Kind::State, &[]);
    it.send_header(&old, &[]);
    it.seq = 7_000;
    it.data(b"speaks first");
    assert_eq!(it.read(), b"speaks first");
    it.answer(&syn, 30_000);
    it.seq = 7_001;
    it.data(b", and goes on");
    assert_eq!(it.read(), b", and goes on");
}
