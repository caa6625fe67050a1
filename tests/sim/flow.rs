//! More of what other uTP programs get wrong (CONTRIBUTING.md has the list): ids and handshakes, both directions at once, what an ack
//! says, what a timer means.

use std::collections::HashSet;
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{ControllerKind, EndpointConfig, UtpConfig};
use keynet::time::Time;
use keynet::utp::packet::{Header, Kind};
use keynet::utp::{ConnectError, End, Endpoint, State};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};
use crate::support::peer::{Scripted, REMOTE};

/// Payload of a packet before anything is known of the path: 1232 - 20.
const FULL: usize = 1_212;

fn utp() -> UtpConfig {
    UtpConfig::default()
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// libtorrent draws ids without looking, librqbit walks and stops at four, utp-rs deadlocks: here a remote can have every pair of
/// ids that there is, and no packet of one connection is ever taken for another's.
#[test]
fn connection_ids_of_one_remote_never_clash() {
    let config = EndpointConfig { max_connections: 40_000, ..EndpointConfig::default() };
    let mut endpoint = Endpoint::new(config, utp(), [3; 32]);
    let mut ids = HashSet::new();
    let mut connect = |endpoint: &mut Endpoint| {
        let (_, connection) = endpoint.connect(Time::from_millis(1_000), REMOTE, &utp(), u16::MAX, None)?;
        assert_eq!(connection.send_id(), connection.receive_id().wrapping_add(1));
        assert!(ids.insert(connection.receive_id()) && ids.insert(connection.send_id()), "an id twice");
        Ok::<_, ConnectError>(ids.len() / 2)
    };
    let made = (0..40_000).map_while(|_| connect(&mut endpoint).ok()).last();
    assert!(made.is_some_and(|made| made >= 16_384), "{made:?}");
    assert_eq!(connect(&mut endpoint), Err(ConnectError::NoId), "and then it says so");
    assert!(
        endpoint.connect(Time::from_millis(1_000), RemoteId(5), &utp(), u16::MAX, None).is_ok(),
        "others have their own"
    );
}

/// Programs whose random numbers have no seed can be predicted, and their connections forged.
#[test]
fn ids_and_first_numbers_follow_from_the_seed_alone() {
    let syn = |seed| {
        let mut endpoint = Endpoint::new(EndpointConfig::default(), utp(), seed);
        let (_, mut connection) = endpoint.connect(Time::from_millis(1), REMOTE, &utp(), u16::MAX, None).unwrap();
        let mut out = Vec::new();
        connection.poll_transmit(Time::from_millis(1), 1, &mut out).unwrap();
        (out[2..4].to_vec(), out[16..18].to_vec())
    };
    let all: HashSet<_> = (0..=255).map(|n| syn([n; 32])).collect();
    assert_eq!((all.len(), syn([1; 32])), (256, syn([1; 32])));
}

/// libtorrent's and librqbit's SYNs have no window, and the latter's timestamps are milliseconds.
#[test]
fn a_syn_without_window_and_with_milliseconds_is_a_syn() {
    let mut it = Scripted::new(&utp());
    (it.id, it.seq) = (500, 10);
    let syn = Header { window: 0, timestamp: 1_000, ..it.header(Kind::Syn) };
    it.send_header(&syn, &[]);
    let answer = it.expect(Kind::State);
    (it.id, it.seq, it.ack) = (501, 11, answer.header.seq.wrapping_sub(1));
    it.data(b"hello");
    it.window = 0;
    it.write(b"not before it says so");
    it.expect(Kind::Data);
}

/// libutp keeps it for ever, and its table of 3,000 with it.
#[test]
fn a_syn_that_nobody_confirms_is_forgotten() {
    let mut it = Scripted::new(&utp());
    it.dial(100);
    assert_eq!(it.endpoint.half_open(), 1);
    let at = it.endpoint.poll_timeout().expect("a timer");
    it.endpoint.handle_timeout(at);
    assert_eq!((it.endpoint.half_open(), it.endpoint.poll_timeout()), (0, None));
}

/// libtorrent makes a second socket of it.
#[test]
fn a_repeated_syn_makes_one_connection() {
    let mut it = Scripted::new(&utp());
    it.dial(100);
    it.dial(100);
    it.data(b"once");
    it.dial_again(100);
    it.data(b" and for all");
    assert_eq!((it.read().as_slice(), it.endpoint.connections()), (&b"once and for all"[..], 1));
}

/// Whoever sends packets of no connection, from wherever he says, makes a node send so many RESETs a second and no more.
#[test]
fn resets_are_so_many_a_second() {
    let config = EndpointConfig { resets_per_second: 5, ..EndpointConfig::default() };
    let mut endpoint = Endpoint::new(config, utp(), [7; 32]);
    let mut answered = [0; 3];
    for at in 0..3_000u64 {
        let id = at as u16;
        let header = Header {
            kind: [Kind::Data, Kind::State, Kind::Fin][at as usize % 3],
            connection_id: id,
            timestamp: 1,
            timestamp_difference: 0,
            window: 0,
            seq: id,
            ack: id,
        };
        let mut datagram = Vec::new();
        header.write(&mut datagram);
        if header.kind == Kind::Data {
            datagram.push(b'x');
        }
        let origin = Origin::of(([192, 0, 2, id as u8], 7).into());
        endpoint.handle(Time::from_millis(at), RemoteId(at), &datagram, origin, None);
        answered[at as usize / 1_000] += usize::from(endpoint.poll_reply(&mut Vec::new()).is_some());
    }
    assert_eq!(answered, [5; 3]);
}

/// When a connection that dials into silence sends SYNs within `seconds`; somebody there answers a ping at `punched`.
fn syns(patient: bool, punched: Option<u64>, seconds: u64) -> Vec<u64> {
    let mut endpoint = Endpoint::new(EndpointConfig::default(), utp(), [7; 32]);
    let (_, mut dial) = endpoint.connect(Time::ZERO, REMOTE, &utp(), u16::MAX, None).expect("room");
    if patient {
        dial.be_patient();
    }
    let mut sent = Vec::new();
    for at in 0..seconds * 1_000 {
        let now = Time::from_millis(at);
        if punched == Some(at) {
            dial.handle_punched(now);
        }
        dial.handle_timeout(now);
        sent.extend(dial.poll_transmit(now, 1, &mut Vec::new()).map(|_| at));
    }
    sent
}

/// transmission makes a second connection of a copy, finds that it has one to that address already, and ends it. On a path of more
/// than 33 ms every dial came to that.
#[test]
fn who_has_answered_no_ping_gets_no_quick_copies_of_a_syn() {
    assert_eq!(syns(true, None, 4), [0, 1_000, 2_000, 3_000]);
    // keynet nodes answer, and know copies
    assert_eq!(syns(true, Some(50), 1), [0, 83, 133, 267, 533]);
    assert_eq!(syns(true, Some(990), 2), [0, 1_000, 1_067], "its turn had come");
    assert_eq!(syns(false, None, 1), [0, 33, 67, 133, 267, 533]);
}

/// libtorrent takes the number of DATA that comes before the SYN-ACK, and drops what is in it.
#[test]
fn data_before_the_syn_ack_is_not_lost() {
    let mut it = Scripted::new(&utp());
    it.start(&utp());
    let syn = it.expect(Kind::Syn);
    (it.id, it.seq, it.ack) = (syn.header.connection_id, 7_000, syn.header.seq);
    it.send(Kind::Data, b"too early");
    assert_eq!(it.connection().state(), State::SynSent);
    it.answer(&syn, 7_000);
    it.data(b"too early");
    assert_eq!(it.read(), b"too early");
}

/// libutp lets nothing be written until the first DATA has come.
#[test]
fn the_acceptor_may_speak_first() {
    let mut it = Scripted::new(&utp());
    it.dial(100);
    it.send(Kind::State, &[]);
    it.write(b"welcome");
    assert_eq!(it.expect(Kind::Data).payload, b"welcome");
}

/// librqbit answers FIN with FIN at once, and what it had not sent yet is gone.
#[test]
fn what_was_not_sent_before_the_peers_end_still_is() {
    let mut it = Scripted::accepted(&utp(), 10);
    let stream: Vec<u8> = (0..100_000u32).map(|n| (n / 77) as u8).collect();
    it.write(&stream);
    it.send(Kind::Fin, &[]);
    assert!(it.is_at_eof());
    let mut got = Vec::new();
    for _ in 0..200 {
        while let Some(data) = it.next(Kind::Data) {
            if data.header.seq == it.ack.wrapping_add(1) {
                it.ack = data.header.seq;
                got.extend(data.payload);
            }
        }
        it.wait(ms(10));
        it.send(Kind::State, &[]);
    }
    assert!(got == stream);
    it.write(b"half a connection lives as long as it likes");
    it.expect(Kind::Data);
}

/// libutp's DATA takes the place of the ack, and never carries its selective part.
#[test]
fn holes_are_reported_while_data_flows_the_other_way() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.data_ahead(1, b"early");
    it.sent.clear();
    it.write(b"busy");
    it.data_ahead(2, b"earlier");
    it.write(b"busier");
    let reports = it.sent.iter().filter(|sent| !sent.sacked.is_empty()).count();
    let data = it.sent.iter().filter(|sent| sent.header.kind == Kind::Data).count();
    assert!(reports >= 1 && data == 2, "{:?}", it.sent);
}

/// libtorrent counts what is confirmed selectively in place of what is confirmed by the number in the same packet.
#[test]
fn one_ack_counts_for_both_of_its_parts() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.write(&[5; 6 * FULL]);
    it.wait(ms(20));
    it.ack = it.ack.wrapping_add(2);
    it.sack(&[0b11]);
    assert_eq!(it.connection().stats().bytes_out, 4 * FULL as u64);
    it.ack = it.ack.wrapping_add(4);
    it.send(Kind::State, &[]);
    assert_eq!(it.connection().stats().bytes_out, 6 * FULL as u64);
}

/// utp-rs could build 8 MB of it.
#[test]
fn a_selective_ack_never_outgrows_a_datagram() {
    let mut it = Scripted::accepted(&utp(), 10);
    for ahead in [1, 1_000, 20_000, 32_000, 32_767, 40_000] {
        it.data_ahead(ahead, b"far out");
        let report = it.last();
        let reach = report.sacked.iter().map(|(_, end)| end.wrapping_sub(report.header.ack)).max();
        assert!(reach.is_some_and(|reach| reach <= 2 + 8 * 124), "{reach:?}");
    }
}

/// The delay that a sender sees is the path's: how long the ack waited here is not in it. librqbit's acks say 40 ms of queue.
#[test]
fn the_delay_reported_is_that_of_the_arrival() {
    let mut it = Scripted::accepted(&utp(), 10);
    for _ in 0..20 {
        it.data(b"the first acks are never held back");
    }
    it.wait(ms(1_000));
    it.sent.clear();
    let sent = it.now.as_micros() as u32 - 12_345;
    let late = Header { timestamp: sent, ..it.header(Kind::Data) };
    it.send_header(&late, b"waits for a second one");
    it.seq = it.seq.wrapping_add(1);
    it.now += ms(7);
    it.write(b"and the ack leaves on this");
    assert_eq!(it.expect(Kind::Data).header.timestamp_difference, 12_345);
}

/// libtorrent measures round trips on packets that were sent again, and takes the ack of the first for that of the second.
#[test]
fn round_trips_are_not_measured_on_what_was_sent_again() {
    let mut it = Scripted::accepted(&utp(), 10);
    for _ in 0..10 {
        it.write(b"measured");
        let data = it.expect(Kind::Data);
        it.now += ms(100);
        it.ack = data.header.seq;
        it.send(Kind::State, &[]);
        it.sent.clear();
    }
    let before = it.connection().stats().rtt;
    it.write(b"slow");
    let first = it.expect(Kind::Data);
    while it.next(Kind::Data).is_none() {
        it.wait(ms(10));
    }
    it.now += ms(1);
    it.ack = first.header.seq;
    it.send(Kind::State, &[]);
    assert_eq!(it.connection().stats().rtt, before);
}

/// libudx had an endless loop there, and duplicate acks that are only late are no loss.
#[test]
fn acks_in_any_order_are_harmless() {
    for turn in 0..8u16 {
        let mut it = Scripted::accepted(&utp(), 65_530);
        it.write(&[5; 8 * FULL]);
        it.wait(ms(20));
        let una = it.ack;
        for n in 0..8 {
            it.ack = una.wrapping_add((n * 3 + turn) % 8 + 1);
            it.send(Kind::State, &[]);
        }
        let stats = it.connection().stats();
        assert_eq!((stats.bytes_out, stats.in_flight, stats.resent), (8 * FULL as u64, 0, 0));
    }
}

/// A socket that takes nothing for a while is no path that loses: what never left cannot be lost (libtorrent #7107).
#[test]
fn what_could_not_be_sent_is_not_lost() {
    let mut it = Scripted::accepted(&utp(), 10);
    assert!(it.connection().write(&[5; 4 * FULL]).is_ok());
    for _ in 0..100 {
        it.now += ms(100);
        let now = it.now;
        it.connection().handle_timeout(now);
    }
    it.pump();
    let stats = it.connection().stats();
    assert_eq!((stats.timeouts, stats.resent, stats.packets_out), (0, 0, 4), "{stats:?}");
}

/// libutp's report spans 30 packets, and 4 are sent again for each ack: a burst takes it many round trips, or a second of silence.
#[test]
fn a_burst_of_hundreds_is_repaired_in_a_few_round_trips() {
    for controller in [ControllerKind::Cubic, ControllerKind::Bbr] {
        let utp = UtpConfig { controller, ..utp() };
        let mut pair = Pair::symmetric(0xE00, &utp, LinkConfig::path(200, ms(50), 1.0));
        pair.hosts[B].template = App { expects: 1, ..App::default() };
        pair.connect(A, &utp, App { writes: 1, ..App::sending(32 << 20) });
        pair.run_for(ms(500));
        let dropped = pair.links[A].dropped;
        pair.links[A].config.down = true;
        pair.run_for(ms(25));
        pair.links[A].config.down = false;
        let burst = pair.links[A].dropped - dropped;
        assert!(burst > 200, "{burst}");
        let sent = pair.app(A, 0).written - pair.stats(A, 0).bytes_out;
        let wanted = pair.app(B, 0).read + sent.min(4 << 20);
        pair.run_until(ms(600), |pair| pair.app(B, 0).read >= wanted);
        assert_eq!(pair.stats(A, 0).timeouts, 0, "{controller:?}");
        pair.run_out(ms(60_000));
        assert_eq!((pair.end(A, 0), pair.stats(A, 0).timeouts), (Some(End::Finished), 0));
    }
}

/// Every probe for a larger size vanishes: nobody waits for it, and nobody slows down.
#[test]
fn a_lost_mtu_probe_stalls_nobody() {
    for controller in [ControllerKind::Cubic, ControllerKind::Bbr, ControllerKind::Ledbat] {
        let utp = UtpConfig { controller, ..utp() };
        let link = LinkConfig { mtu: 1_232, ..LinkConfig::path(50, ms(20), 4.0) };
        let mut pair = Pair::symmetric(0xE01, &utp, link);
        pair.hosts[B].template = App { expects: 1, ..App::default() };
        pair.connect(A, &utp, App { writes: 1, ..App::sending(8 << 20) });
        pair.run_until(ms(4_000), |pair| pair.hosts.iter().all(|host| host.connections.is_empty()));
        let stats = pair.stats(A, 0);
        assert!(pair.links[A].dropped > 0 && stats.timeouts == 0 && stats.datagram == 1_232, "{stats:?}");
        let needless = stats.resent.saturating_sub(pair.links[A].dropped);
        assert!(needless <= 1, "{controller:?}: one tail probe and not the whole flight: {stats:?}");
    }
}

/// libutp lingers for 60 ms after the end, and a FIN that comes again later gets RESET.
#[test]
fn an_end_that_is_repeated_late_is_answered_and_harmless() {
    let mut it = Scripted::accepted(&utp(), 10);
    it.connection().finish();
    it.pump();
    it.ack = it.expect(Kind::Fin).header.seq;
    it.send(Kind::Fin, &[]);
    it.wait(ms(400));
    it.sent.clear();
    it.send(Kind::Fin, &[]);
    assert_eq!((it.last().header.kind, it.connection().end()), (Kind::State, Some(End::Finished)));
    it.wait(ms(4_000));
    assert!(it.connection().is_drained());
}

/// Clocks that drift apart look like a queue that fills (or drains): LEDBAT must not starve for it, the others not notice.
#[test]
fn clocks_that_drift_apart_cost_little() {
    for controller in [ControllerKind::Cubic, ControllerKind::Bbr, ControllerKind::Ledbat] {
        for (here, there) in [(500, -500), (-500, 500)] {
            let utp = UtpConfig { controller, ..utp() };
            let mut pair = Pair::symmetric(0xE02, &utp, LinkConfig::path(10, ms(50), 2.0));
            (pair.hosts[A].clock.fast, pair.hosts[B].clock.fast) = (here, there);
            pair.hosts[B].template = App { expects: 1, ..App::default() };
            pair.connect(A, &utp, App { writes: 1, ..App::sending(64 << 20) });
            // 54 s at the link's rate; the clocks are 120 ms apart by the end of it
            pair.run_until(ms(120_000), |pair| pair.hosts.iter().all(|host| host.connections.is_empty()));
            assert_eq!(pair.app(B, 0).read, 64 << 20);
            assert_eq!(pair.end(A, 0), Some(End::Finished));
        }
    }
}

/// The same addresses under another form, and another port: the handshake of one is not the other's.
#[test]
fn a_confirmation_from_elsewhere_is_none() {
    let mut it = Scripted::new(&utp());
    it.dial(100);
    let mut datagram = Vec::new();
    it.header(Kind::Data).write(&mut datagram);
    datagram.extend_from_slice(b"x");
    let elsewhere = Origin::of("192.0.2.1:9".parse().unwrap());
    it.endpoint.handle(it.now, RemoteId(77), &datagram, elsewhere, None);
    assert_eq!((it.endpoint.connections(), it.endpoint.half_open()), (0, 1));
    it.data(b"x");
    assert_eq!(it.read(), b"x");
}
