//! Who does not see the packets of a connection changes nothing about it, however many it sends in the peer's name.

use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{EndpointConfig, UtpConfig};
use keynet::utp::packet::{Capability, Early, Header, Kind, Packet};
use keynet::utp::{Doubt, End, Endpoint, State};

use crate::support::link::LinkConfig;
use crate::support::pair::{App, Pair, A, B};
use crate::support::peer::Scripted;
use crate::support::rng::Rng;

const KINDS: [Kind; 4] = [Kind::Data, Kind::Fin, Kind::State, Kind::Reset];
/// As the pair of nodes share it beside the connection's own.
const KEY: [u8; 32] = [9; 32];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A connection with tags both ways, over 20 ms each way, on which `bytes` go each way.
fn tagged(bytes: u64) -> Pair {
    let utp = UtpConfig::default();
    let mut pair = Pair::symmetric(1, &utp, LinkConfig { delay: ms(20), ..LinkConfig::default() });
    // without a stream the tests write what they like
    let quiet = bytes == 0;
    let app = |writes| App { writes, expects: 3 - writes, finish: !quiet, trusting: quiet, ..App::sending(bytes) };
    pair.hosts[B].template = app(2);
    pair.connect(A, &utp, app(1));
    pair.run_until(ms(1_000), |pair| pair.connection(B, 0).is_some());
    pair.tag(A, 0);
    pair.run_until(ms(1_000), |pair| pair.stats(A, 0).tagged);
    // its ack, which has a tag, is on its way
    pair.run_for(ms(30));
    pair
}

/// A packet to a host's connection with the right id.
fn forged(pair: &mut Pair, to: usize, kind: Kind, seq: u16, ack: u16, tag: Option<[u8; 8]>) -> Vec<u8> {
    let connection = pair.connection(to, 0).expect("it lives");
    let connection_id = connection.receive_id();
    let header = Header { kind, connection_id, timestamp: 1, timestamp_difference: 1, window: 1 << 20, seq, ack };
    let mut datagram = Vec::new();
    header.tagged(tag).write(&mut datagram);
    datagram.extend_from_slice(if kind == Kind::Data { b"forged" } else { b"" });
    datagram
}

/// Every number there is, for every kind of packet, with the right id: without a tag, and with a guess.
#[test]
fn no_number_that_a_forger_can_guess_touches_a_connection_with_tags() {
    let mut pair = tagged(0);
    pair.run_for(ms(2_000));
    let before: Vec<_> = [A, B].map(|host| pair.stats(host, 0)).into();
    let sent = pair.datagrams;
    for kind in KINDS {
        for seq in 0..=u16::MAX {
            let (host, tag) = (usize::from(seq % 2), (seq % 3 == 0).then(|| u64::from(seq).to_be_bytes()));
            // a RESET is judged by its ack, data by both
            let datagram = forged(&mut pair, host, kind, seq, seq.wrapping_mul(3), tag);
            pair.arrive(host, &datagram);
        }
    }
    for host in [A, B] {
        let connection = pair.connection(host, 0).expect("it lives");
        assert_eq!((connection.state(), connection.readable()), (State::Established, 0));
        assert_eq!(connection.take_doubt(), Some(Doubt::Foreign), "the peer is asked");
        let (now, before) = (connection.stats(), before[host]);
        assert_eq!(now.refused - before.refused, 2 * 65_536, "each was refused");
        assert_eq!((now.bytes_in, now.window), (before.bytes_in, before.window));
    }
    assert_eq!(pair.datagrams, sent, "nothing was said to the forger or the peer");
}

/// The same where somebody knows the numbers, for they can be guessed: what the peer itself would send, but for the tag.
#[test]
fn who_knows_every_number_but_not_the_tag_does_nothing() {
    let mut pair = tagged(0);
    pair.run_for(ms(2_000));
    // what A would send next, as B takes it
    pair.connection(A, 0).expect("it lives").write(b"true").expect("room");
    pair.pump(A);
    let (to, genuine) = pair.intercept(0).expect("it is under way");
    assert_eq!(to, B);
    let packet = Packet::parse(&genuine).expect("well formed");
    assert!(packet.tag.is_some());
    for kind in KINDS {
        for tag in [None, Some([0; 8]), packet.tag] {
            // the right tag is of DATA
            let header = Header { kind, timestamp: packet.header.timestamp ^ 1, ..packet.header };
            let mut datagram = Vec::new();
            header.tagged(tag).write(&mut datagram);
            datagram.extend_from_slice(if kind == Kind::Data { b"lies" } else { b"" });
            pair.arrive(B, &datagram);
            let connection = pair.connection(B, 0).expect("it lives");
            assert_eq!((connection.state(), connection.readable()), (State::Established, 0), "{kind:?} {tag:?}");
        }
    }
    pair.arrive(B, &genuine);
    assert_eq!(pair.app(B, 0).read, 4, "the genuine one");
}

/// A forger that guesses at every moment of a transfer with losses, with all that can be guessed right.
#[test]
fn a_transfer_goes_on_next_to_a_forger() {
    let mut pair = tagged(3_000_000);
    for host in [A, B] {
        pair.links[host].config.loss = 0.01;
    }
    let mut rng = Rng::new(7);
    let mut forgeries = 0;
    pair.run_until(ms(100_000), |pair| {
        for host in [A, B] {
            let live = pair.connection(host, 0).is_some_and(|connection| connection.end().is_none());
            for _ in 0..if live { 3 } else { 0 } {
                let kind = rng.pick(&KINDS);
                let tag = rng.chance(0.5).then(|| rng.next().to_be_bytes());
                let datagram = forged(pair, host, kind, rng.next() as u16, rng.next() as u16, tag);
                pair.arrive(host, &datagram);
                forgeries += 1;
            }
        }
        pair.hosts.iter().all(|host| host.connections.is_empty())
    });
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (3_000_000, 3_000_000));
    assert!(forgeries > 2_000, "{forgeries}");
}

/// Between nodes with a key the SYN and its answer have tags too, and an answer without is kept waiting for a better one: of all
/// that somebody sends who knows the numbers of the SYN, nothing counts.
#[test]
fn the_handshake_of_nodes_with_a_key_carries_tags() {
    let utp = UtpConfig::default();
    let mut pair = Pair::symmetric(1, &utp, LinkConfig { delay: ms(20), ..LinkConfig::default() });
    for host in [A, B] {
        pair.hosts[host].shared_key = Some(KEY);
    }
    pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(1_000) };
    pair.connect(A, &utp, App { writes: 1, expects: 2, ..App::sending(3_000) });
    let (to, syn) = pair.intercept(0).expect("the SYN");
    assert_eq!((to, syn.len()), (B, 46));
    let header = Packet::parse(&syn).expect("well formed").header;
    // whoever guesses id and number, and says whatever it likes
    for seq in 0..=u16::MAX {
        let kind = if seq % 2 == 0 { Kind::State } else { Kind::Reset };
        let tag = (seq % 4 > 1).then(|| u64::from(seq).to_be_bytes());
        let forged = Header { kind, seq: seq & 0x7fff, ack: header.seq, timestamp: 1, ..header };
        let mut datagram = Vec::new();
        match kind {
            Kind::State => forged.tagged(tag).write_with_capability(Capability::new(None), &mut datagram),
            _ => forged.tagged(tag).write(&mut datagram),
        }
        if kind == Kind::State && is_agreed(&syn, forged.seq) {
            continue;
        }
        pair.arrive(A, &datagram);
        assert_eq!(pair.connection(A, 0).expect("it lives").state(), State::SynSent, "{seq}");
    }
    assert_eq!(pair.connection(A, 0).expect("it lives").take_doubt(), Some(Doubt::Foreign));
    pair.arrive(B, &syn);
    // the answer, and no longer than the question
    let last = pair.under_way() - 1;
    let (to, answer) = pair.intercept(last).expect("the SYN-ACK");
    let packet = Packet::parse(&answer).expect("well formed");
    assert!(to == A && answer.len() <= syn.len() && packet.tag.is_some());
    pair.arrive(A, &answer);
    let connection = pair.connection(A, 0).expect("it lives");
    assert!(connection.is_connected() && connection.is_tagged());
    pair.run_out(ms(60_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (3_000, 1_000));
}

/// The number of the SYN-ACK that the two nodes agree on, as the endpoint of B says it.
fn is_agreed(syn: &[u8], seq: u16) -> bool {
    let utp = UtpConfig::default();
    let mut endpoint = Endpoint::new(EndpointConfig::default(), utp, [3; 32]);
    let now = keynet::time::Time::from_millis(1_000);
    endpoint.handle(now, RemoteId(1), syn, Origin::default(), Some(&KEY));
    let mut answer = Vec::new();
    endpoint.poll_reply(&mut answer);
    Packet::parse(&answer).is_ok_and(|packet| packet.header.seq == seq)
}

/// The tags of the handshake go over into those of TLS, whichever side is first.
#[test]
fn tags_go_over_from_the_handshakes_keys_to_those_of_tls() {
    let utp = UtpConfig::default();
    let mut pair = Pair::symmetric(1, &utp, LinkConfig { delay: ms(20), loss: 0.02, ..LinkConfig::default() });
    for host in [A, B] {
        pair.hosts[host].shared_key = Some(KEY);
    }
    pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(500_000) };
    pair.connect(A, &utp, App { writes: 1, expects: 2, ..App::sending(500_000) });
    pair.run_until(ms(1_000), |pair| pair.stats(A, 0).tagged && pair.app_count(B) == 1 && pair.stats(B, 0).tagged);
    pair.tag(A, 0);
    pair.run_out(ms(60_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
    assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (500_000, 500_000));
}

/// Full packets are as large as without tags, and all of one size, for what sends them in one piece.
#[test]
fn tags_are_part_of_the_packet_and_not_beyond_it() {
    let utp = UtpConfig::default();
    for with_tags in [false, true] {
        let mut pair = Pair::symmetric(1, &utp, LinkConfig { delay: ms(20), mtu: 1_472, ..LinkConfig::default() });
        pair.connect(A, &utp, App { writes: 1, expects: 2, finish: false, ..App::sending(1) });
        pair.hosts[B].template = App { writes: 2, expects: 1, ..App::default() };
        pair.run_until(ms(1_000), |pair| pair.app_count(B) == 1);
        if with_tags {
            pair.tag(A, 0);
            pair.run_until(ms(1_000), |pair| pair.stats(A, 0).tagged);
        }
        let app = pair.app(A, 0);
        (app.to_write, app.finish, app.can_write) = (2_000_000, true, true);
        pair.pump(A);
        pair.run_out(ms(60_000));
        assert_eq!(pair.app(B, 0).read, 2_000_000);
        let stats = pair.stats(A, 0);
        assert_eq!((stats.datagram, stats.resent), (1_472, 0), "tags: {with_tags}");
    }
}

/// The peer lives and has forgotten the connection: its RESET is signed with the key of the two nodes.
#[test]
fn a_peer_that_has_forgotten_the_connection_ends_it_with_the_key_of_the_nodes() {
    for key in [Some(KEY), None] {
        let mut pair = tagged(0);
        for host in [A, B] {
            pair.hosts[host].shared_key = key;
        }
        let handle = pair.hosts[B].handles[0];
        pair.hosts[B].connections.remove(&handle);
        pair.hosts[B].endpoint.forget(handle);
        pair.connection(A, 0).expect("it lives").write(b"anybody there?").expect("room");
        pair.pump(A);
        if key.is_some() {
            pair.run_until(ms(1_000), |pair| pair.end(A, 0).is_some());
        } else {
            // it has restarted, and has no key: who receives what we send says so, and answers no ping
            pair.run_until(ms(1_000), |pair| {
                pair.connection(A, 0).is_some_and(|connection| connection.take_doubt() == Some(Doubt::Forgotten))
            });
            let asked = pair.local_now(A);
            pair.run_for(ms(500));
            assert_eq!(pair.end(A, 0), None, "the ping may still be answered");
            if pair.hosts[A].handles.len() == 1 {
                pair.run_until(ms(2_000), |pair| pair.end(A, 0).is_some());
            }
            assert!(pair.local_now(A).since(asked) >= ms(900));
        }
        assert_eq!(pair.end(A, 0), Some(End::Reset), "{key:?}");
    }
}

/// Somebody on the path can say that too. Then the peer answers the ping, and the connection goes on.
#[test]
fn a_peer_that_answers_pings_has_not_forgotten_the_connection() {
    let mut pair = tagged(0);
    pair.connection(A, 0).expect("it lives").write(b"seen by others").expect("room");
    pair.pump(A);
    let (_, seen) = pair.intercept(0).expect("it is under way");
    let header = Packet::parse(&seen).expect("well formed").header;
    let tag = Packet::parse(&seen).expect("well formed").tag;
    let Header { timestamp, window, seq, ack, .. } = header;
    let reset = Header {
        kind: Kind::Reset,
        timestamp: 1,
        timestamp_difference: timestamp,
        window,
        seq: ack,
        ack: seq,
        ..header
    };
    let mut datagram = Vec::new();
    reset.tagged(tag).write(&mut datagram);
    pair.arrive(A, &datagram);
    let now = pair.local_now(A);
    let connection = pair.connection(A, 0).expect("it lives");
    assert_eq!(connection.take_doubt(), Some(Doubt::Forgotten));
    connection.note_answer(now);
    pair.run_for(ms(5_000));
    assert_eq!((pair.end(A, 0), pair.app(B, 0).read), (None, 14));
    // a question that was asked before proves nothing about it
    pair.arrive(A, &datagram);
    pair.connection(A, 0).expect("it lives").note_answer(now);
    pair.run_until(ms(2_000), |pair| pair.end(A, 0).is_some());
}

/// RESET and the end in order carry tags like everything else.
#[test]
fn ends_arrive_with_tags() {
    let mut pair = tagged(0);
    pair.connection(A, 0).expect("it lives").abort();
    pair.pump(A);
    pair.run_until(ms(1_000), |pair| pair.end(B, 0).is_some());
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Aborted), Some(End::Reset)));
    let mut pair = tagged(10_000);
    pair.run_out(ms(10_000));
    assert_eq!((pair.end(A, 0), pair.end(B, 0)), (Some(End::Finished), Some(End::Finished)));
}

/// A side that has no keys yet, or does not want tags, takes the other's packets as ever.
#[test]
fn who_has_no_keys_reads_past_tags() {
    let old = UtpConfig { tags: false, ..UtpConfig::default() };
    for (dialler, acceptor) in [(old.clone(), UtpConfig::default()), (UtpConfig::default(), old)] {
        let mut pair = Pair::symmetric(1, &acceptor, LinkConfig { delay: ms(20), ..LinkConfig::default() });
        pair.hosts[B].template = App { writes: 2, expects: 1, ..App::sending(100_000) };
        pair.connect(A, &dialler, App { writes: 1, expects: 2, ..App::sending(100_000) });
        pair.run_until(ms(1_000), |pair| pair.app_count(B) == 1);
        pair.tag(A, 0);
        pair.run_out(ms(10_000));
        assert!(!pair.stats(A, 0).tagged, "the dialler saw none that it could check");
        assert_eq!((pair.app(B, 0).read, pair.app(A, 0).read), (100_000, 100_000));
    }
}

/// Data that claims to have come before any answer is judged as well: it skips the check of what it acknowledges.
#[test]
fn data_that_claims_to_be_early_shows_what_the_first_did() {
    let utp = UtpConfig::default();
    let mut it = Scripted::capable(&utp, 10);
    assert!(it.connection.is_some());
    for tag in 0..1_000u64 {
        let mut datagram = Vec::new();
        let early = Early { syn_seq: 10, tag: tag.to_be_bytes() };
        Header { ack: it.ack.wrapping_add(20_000), ..it.header(Kind::Data) }.write_early(&early, &mut datagram);
        datagram.extend_from_slice(b"forged");
        it.send_raw(&datagram);
    }
    assert_eq!(it.read(), b"");
    assert_eq!(it.connection().stats().refused, 1_000);
}

/// RFC 5961 section 3: peers without tags are asked what they mean, and a forger has to know the newest number. Of all numbers
/// two are that; the others change nothing, and have the peer asked twice a second at most.
#[test]
fn a_reset_without_a_tag_has_to_fit_exactly() {
    let utp = UtpConfig::default();
    let mut ended = 0;
    let mut questions = 0;
    for step in 0..1_024u16 {
        let mut it = Scripted::accepted(&utp, 10);
        for _ in 0..8 {
            it.write(&[1; 1_000]);
        }
        let newest = std::iter::from_fn(|| it.next(Kind::Data)).last().expect("data").header.seq;
        it.sent.clear();
        for ack in 0..64u16 {
            let ack = (step * 64 + ack).wrapping_add(newest);
            let forged = Header { ack, ..it.header(Kind::Reset) };
            it.send_header(&forged, &[]);
            if it.connection().end().is_some() {
                assert!(ack == newest || ack == newest.wrapping_add(1), "{ack}, not {newest}");
                ended += 1;
                it = Scripted::accepted(&utp, 10);
                it.sent.clear();
            }
        }
        questions += it.sent.iter().filter(|sent| sent.header.kind == Kind::State).count();
    }
    assert_eq!(ended, 1, "the newest; the run of numbers ends with its connection");
    assert!(questions <= 2, "{questions}");
}

/// What a peer without tags that has really forgotten us does with the question.
#[test]
fn a_peer_without_tags_that_is_asked_ends_the_connection() {
    let mut it = Scripted::accepted(&UtpConfig::default(), 10);
    for _ in 0..8 {
        it.write(&[1; 1_000]);
    }
    let first = it.expect(Kind::Data).header.seq;
    it.sent.clear();
    let reset = Header { ack: first, ..it.header(Kind::Reset) };
    it.send_header(&reset, &[]);
    let question = it.expect(Kind::State);
    assert_eq!(it.connection().end(), None);
    let reset = Header { ack: question.header.seq, ..it.header(Kind::Reset) };
    it.send_header(&reset, &[]);
    assert_eq!(it.connection().end(), Some(End::Reset));
}
