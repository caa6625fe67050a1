//! What strangers and dishonest clients try.

use std::time::Duration;

use super::super::{data_indication, Client, Link, Outcome, Users};
use super::client::{lifetime, networks, peer, udp, Fake, World, RELAY_V4};
use crate::config::RelayServerConfig;
use crate::turn::credentials::limited_password;
use crate::turn::message::{self as stun, Integrity, Writer};
use stun_types::message::MessageClass;

fn stranger(address: &str) -> Client {
    Client { address: address.parse().unwrap(), local: None, link: Link::Datagrams(0) }
}

/// What clients send first: libwebrtc the bare minimum (28 bytes), aioice with LIFETIME (36), a STUN client a bare header.
fn first_requests() -> Vec<Vec<u8>> {
    let bare = Writer::new(MessageClass::Request, stun::BINDING, [1; 12]);
    let mut small = Writer::new(MessageClass::Request, stun::ALLOCATE, [1; 12]);
    small.put(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    let mut usual = Writer::new(MessageClass::Request, stun::ALLOCATE, [1; 12]);
    usual.put(stun::LIFETIME, &[0, 0, 2, 88]);
    usual.put(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    vec![bare.finish(), small.finish(), usual.finish()]
}

#[test]
fn a_forged_source_is_never_sent_more_than_was_sent_in_its_name() {
    for request in first_requests() {
        let mut world = World::new();
        let victim = stranger("203.0.114.5:5000");
        let (mut received, mut sent) = (0, 0);
        for _ in 0..200 {
            received += request.len();
            sent += world.raw(&victim, &request).map_or(0, |answer| answer.bytes.len());
            assert!(sent <= received, "{sent} for {received}");
            world.pass(Duration::from_millis(50));
        }
        assert!(sent > 0, "and yet it is answered");
    }
}

#[test]
fn a_client_with_a_small_request_gets_its_answer_by_repeating_it() {
    for request in first_requests() {
        let mut world = World::new();
        let client = stranger("203.0.114.5:5000");
        let tries = (1..10).find(|_| world.raw(&client, &request).is_some());
        assert_eq!(tries, Some(2), "{} bytes", request.len());
    }
}

#[test]
fn over_tcp_the_address_is_proven_and_the_first_request_is_answered() {
    let mut world = World::new();
    let client = Client { link: Link::Stream(1), ..stranger("203.0.114.5:5000") };
    for request in first_requests() {
        assert!(world.raw(&client, &request).is_some());
    }
}

#[test]
fn a_flood_of_forged_addresses_takes_no_allocation_from_those_that_have_one() {
    let config = RelayServerConfig { nonce_lifetime: Duration::from_secs(60), ..RelayServerConfig::default() };
    let mut world = World::with(config, |_| {});
    let mut guest = world.allocated("192.0.2.7:5");
    world.pass(Duration::from_secs(300));
    let request = first_requests().pop().unwrap();
    for network in 0..4_000u32 {
        let forged = format!("{}:5", std::net::Ipv4Addr::from(0x0a00_0000 + network * 256));
        world.raw(&stranger(&forged), &request);
        world.raw(&stranger(&forged), &request);
    }
    assert!(world.raw(&stranger("192.0.2.9:5"), &request).is_none(), "what there was for strangers is used up");
    let stale = world.ask(&guest, stun::REFRESH, &[]);
    assert_eq!(stale.code, 438, "it is told all the same");
    guest.nonce = stale.value(stun::NONCE).unwrap().to_vec();
    assert_eq!(world.ask_refresh(&guest), 0);
}

#[test]
fn a_datagram_that_fits_in_no_message_becomes_none() {
    let (v4, v6) = ("192.0.2.1:5".parse().unwrap(), "[2600::9]:5".parse().unwrap());
    for (peer, most) in [(v4, 65_516), (v6, 65_504)] {
        let message = data_indication(peer, &vec![7; most], [1; 12]).unwrap();
        assert_eq!(stun::Message::read(&message).unwrap().data.map(<[u8]>::len), Some(most));
        assert_eq!(data_indication(peer, &vec![7; most + 1], [1; 12]), None, "its length would wrap");
    }
}

#[test]
fn a_flood_of_first_requests_is_answered_at_a_rate() {
    let mut world = World::new();
    let request = &first_requests()[1];
    let (mut answers, mut bytes) = (0, 0);
    for n in 0..60_000 {
        let one = stranger(&format!("203.0.114.{}:{}", n % 250, 1_000 + n % 50_000));
        let answer = world.raw(&one, request).map(|answer| answer.bytes.len());
        answers += usize::from(answer.is_some());
        bytes += answer.unwrap_or_default();
    }
    // what the network may have, and what is there for the newcomers of all crowded networks together
    assert!((50..=50 + 2_000).contains(&answers), "{answers} at once to one network");
    assert!(bytes <= 60_000 * request.len(), "and never more than came from there");
    assert_eq!(world.server.stats().unanswered as usize, 60_000 - answers);
    assert_eq!(world.server.stats().allocations, 0);
}

#[test]
fn guessing_passwords_is_slow() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "guess");
    let request = guest.request(stun::ALLOCATE, [1; 12], &[udp()]);
    let answers = (0..10_000).filter(|_| world.raw(&guest.client, &request).is_some()).count();
    assert!(answers <= 50, "{answers}");
}

#[test]
fn peers_that_are_not_of_the_open_internet() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let both = (stun::ADDITIONAL_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp(), both]).code, 0);
    for forbidden in [
        "127.0.0.1:80",
        "0.0.0.0:80",
        "10.0.0.1:80",
        "172.16.0.1:80",
        "192.168.1.1:80",
        "169.254.169.254:80",
        "100.64.0.1:80",
        "224.0.0.251:5353",
        "255.255.255.255:9",
        "[::1]:80",
        "[::]:80",
        "[fe80::1]:80",
        "[fd00::1]:80",
        "[ff02::1]:80",
        "[::ffff:127.0.0.1]:80",
        "[::ffff:8.8.8.8]:80",
        "[64:ff9b::7f00:1]:80",
        "[2002:7f00:1::1]:80",
    ] {
        assert_eq!(world.permit(&guest, forbidden), 403, "{forbidden}");
        assert_eq!(world.bind(&guest, 0x4000, forbidden), 403, "{forbidden}");
        assert_eq!(world.send(&guest, forbidden, b"x"), None, "{forbidden}");
    }
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:0"), 403, "port 0");
    let mixed: Vec<_> = ["8.8.8.8:1", "10.0.0.1:1"].iter().map(|text| peer(text, world.next_transaction())).collect();
    assert_eq!(world.ask(&guest, stun::CREATE_PERMISSION, &mixed).code, 403);
    assert_eq!(world.inward(0, "8.8.8.8:1", 10), None, "all or none");
    assert!(world.server.stats().forbidden > 30);
}

#[test]
fn networks_that_are_allowed_are_reached() {
    let mut world = World::with(RelayServerConfig::default(), |setup| setup.allowed_peers = networks(&["10.0.0.0/8"]));
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.bind(&guest, 0x4000, "10.0.0.1:80"), 0);
    assert_eq!(world.bind(&guest, 0x4001, "172.16.0.1:80"), 403);
}

#[test]
fn services_of_a_platform_are_reached_only_when_they_are_named() {
    let allowed = ["100.64.0.0/10", "169.254.0.0/16", "168.63.129.16"];
    let mut world = World::with(RelayServerConfig::default(), |setup| setup.allowed_peers = networks(&allowed));
    let guest = world.allocated("192.0.2.1:5000");
    for (peer, code) in [
        ("100.64.0.1:80", 0),
        ("100.100.100.200:80", 403),
        ("169.254.7.7:80", 0),
        ("169.254.169.254:80", 403),
        ("168.63.129.16:53", 0),
    ] {
        assert_eq!(world.permit(&guest, peer), code, "{peer}");
    }
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.permit(&guest, "168.63.129.16:53"), 403);
}

#[test]
fn an_address_that_the_machine_is_given_is_no_peer_any_more() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0);
    assert!(world.outward(&guest, 0x4000, 10).is_some());
    world.server.set_own(vec!["8.8.8.8".parse().unwrap()]);
    assert_eq!(world.outward(&guest, 0x4000, 10), None);
    assert_eq!(world.send(&guest, "8.8.8.8:53", b"x"), None);
    assert_eq!(world.bind(&guest, 0x4001, "8.8.8.8:54"), 403);
}

#[test]
fn two_allocations_of_a_user_leave_another_his_share() {
    let config = RelayServerConfig {
        bytes_per_second: 4_000_000,
        bytes_per_second_per_allocation: 2_000_000,
        ..RelayServerConfig::default()
    };
    let mut world = World::with(config, |_| {});
    let greedy = [world.allocated("192.0.2.1:5000"), world.allocated("192.0.2.1:5001")];
    let other = world.guest("192.0.3.1:5000", "bob", "secret-b");
    assert_eq!(world.ask(&other, stun::ALLOCATE, &[udp()]).code, 0);
    for guest in greedy.iter().chain([&other]) {
        assert_eq!(world.bind(guest, 0x4000, "8.8.8.8:53"), 0);
    }
    let (mut asked, mut carried) = (0, 0);
    for _ in 0..5_000 {
        world.pass(Duration::from_millis(1));
        for _ in 0..5 {
            for guest in &greedy {
                let _ = world.outward(guest, 0x4000, 1_000);
            }
        }
        // a megabyte a second: half of what an equal share is
        asked += 1;
        carried += usize::from(world.outward(&other, 0x4000, 1_000).is_some());
    }
    assert_eq!(carried, asked);
    assert!(world.server.stats().dropped_rate > 10_000, "there was not enough for all");
}

#[test]
fn a_secret_that_is_replaced_ends_no_allocation_and_other_accounts_do() {
    let mut world = World::new();
    let name = "9999999999:node";
    let password = limited_password("shared", name.as_bytes());
    let guest = world.guest("192.0.2.1:5000", name, &password);
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
    world.server.set_secrets(vec!["new".to_owned()]);
    assert_eq!(world.ask_refresh(&guest), 0);
    let newcomer = world.guest("192.0.2.1:5001", name, &password);
    assert_eq!(world.ask(&newcomer, stun::ALLOCATE, &[udp()]).code, 401);
    let newer = world.guest("192.0.2.1:5002", name, &limited_password("new", name.as_bytes()));
    assert_eq!(world.ask(&newer, stun::ALLOCATE, &[udp()]).code, 0);
    world.server.set_users(Users { secrets: vec!["third".to_owned()], ..Users::default() });
    assert_eq!(world.ask_refresh(&guest), 401);
}

#[test]
fn the_relay_itself_is_reached_at_relayed_addresses_only() {
    let mut world = World::new();
    let (one, other) = (world.allocated("192.0.2.1:5000"), world.allocated("192.0.2.1:5001"));
    let relayed = world.sockets.open[&(1, 0)].to_string();
    assert_eq!(world.bind(&one, 0x4000, &format!("{RELAY_V4}:22")), 403);
    assert_eq!(world.bind(&one, 0x4000, &format!("{RELAY_V4}:3478")), 403);
    assert_eq!(world.bind(&one, 0x4000, &relayed), 0);
    assert!(world.outward(&one, 0x4000, 10).is_some());
    assert_eq!(world.send(&one, &format!("{RELAY_V4}:22"), b"x"), None, "the permission is for the address");
    assert_eq!(world.ask(&other, stun::REFRESH, &[lifetime(0)]).code, 0);
    assert_eq!(world.outward(&one, 0x4000, 10), None, "the port may be somebody else's now");
}

#[test]
fn introduction_leads_to_the_rendezvous_and_nowhere_else() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "keynet", "keynet");
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
    for forbidden in ["8.8.8.8:53", "10.9.9.9:7349", "10.9.9.8:7348", "198.51.100.1:50001"] {
        assert_eq!(world.bind(&guest, 0x4001, forbidden), 403, "{forbidden}");
    }
    assert_eq!(world.permit(&guest, "8.8.8.8:53"), 403);
    assert_eq!(world.bind(&guest, 0x4000, "10.9.9.9:7348"), 0);
    assert!(world.outward(&guest, 0x4000, 10).is_some());
    assert!(world.inward(0, "10.9.9.9:7348", 10).is_some());
    assert_eq!(world.inward(0, "10.9.9.9:7349", 10), None, "another program of that machine");
    assert_eq!(world.send(&guest, "10.9.9.9:7349", b"x"), None);
    let carried = (0..1_000).filter(|_| world.outward(&guest, 0x4000, 1_000).is_some()).count();
    assert!(carried < 200, "{carried}: a rate of its own");
}

#[test]
fn introductions_have_a_quota() {
    let config = RelayServerConfig { max_introductions: 2, ..RelayServerConfig::default() };
    let mut world = World::with(config, |_| {});
    let mut code = |n: u8, name: &str, password: &str| {
        let guest = world.guest(&format!("192.0.{n}.1:5000"), name, password);
        world.ask(&guest, stun::ALLOCATE, &[udp()]).code
    };
    assert_eq!([code(1, "keynet", "keynet"), code(2, "keynet", "keynet"), code(3, "keynet", "keynet")], [0, 0, 486]);
    assert_eq!(code(3, "alice", "secret-a"), 0, "users have theirs");
}

#[test]
fn one_network_does_not_have_all_introductions() {
    let config = RelayServerConfig { max_introductions: 4, ..RelayServerConfig::default() };
    let mut world = World::with(config, |_| {});
    let mut code = |network: u8, host: u8| {
        let guest = world.guest(&format!("192.0.{network}.{host}:5000"), "keynet", "keynet");
        world.ask(&guest, stun::ALLOCATE, &[udp()]).code
    };
    assert_eq!([code(1, 1), code(1, 2), code(1, 3)], [0, 0, 486]);
    assert_eq!(code(2, 1), 0, "there is room for others");
}

#[test]
fn a_connection_that_ends_takes_its_allocation_along() {
    let mut world = World::new();
    let client = Client { link: Link::Stream(7), ..stranger("192.0.2.1:5000") };
    let guest = world.guest_by(client, "alice", "secret-a");
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
    let World { server, sockets, .. } = &mut world;
    server.handle_gone(&client, sockets);
    assert!(world.sockets.open.is_empty());
    assert!(!world.server.serves(&client));
}

#[test]
fn broken_messages_change_nothing() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    let whole = guest.request(stun::REFRESH, [5; 12], &[lifetime(0)]);
    for at in 0..whole.len() {
        let answer = world.raw(&guest.client, &whole[..at]);
        assert!(answer.is_none(), "cut at {at}");
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        if let Some(answer) = world.raw(&guest.client, &flipped) {
            assert_ne!(answer.code, 0, "byte {at} is not covered");
        }
        world.pass(Duration::from_millis(50));
    }
    assert_eq!(world.server.stats().allocations, 1);
    let mut longer = whole.clone();
    longer.extend_from_slice(&[0; 4]);
    assert!(world.raw(&guest.client, &longer).is_none());
    assert_eq!(world.raw(&guest.client, &whole).unwrap().code, 0);
}

#[test]
fn indications_that_lack_something() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.permit(&guest, "8.8.8.8:1"), 0);
    let (one, data) = (peer("8.8.8.8:1", [5; 12]), (stun::DATA_ATTRIBUTE, vec![1, 2]));
    for attributes in [
        vec![],
        vec![one.clone()],
        vec![data.clone()],
        vec![one.clone(), one.clone(), data.clone()],
        vec![one, data, (0x7fff, vec![])],
    ] {
        let mut message = Writer::new(MessageClass::Indication, stun::SEND, [5; 12]);
        for (kind, value) in &attributes {
            message.put(*kind, value);
        }
        let bytes = message.finish();
        let moment = world.moment();
        let outcome = world.server.handle(moment, &guest.client, &bytes, &mut Fake::default());
        assert_eq!(outcome, Outcome::Nothing, "{attributes:?}");
    }
}

#[test]
fn what_stands_behind_the_signature_does_not_count() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    let mut request = Writer::new(MessageClass::Request, stun::REFRESH, [5; 12]);
    for (kind, value) in [(stun::USERNAME, &b"alice"[..]), (stun::REALM, b"keynet"), (stun::NONCE, &guest.nonce)] {
        request.put(kind, value);
    }
    request.sign(&guest.key(), Integrity::Sha1);
    request.put(stun::LIFETIME, &[0; 4]);
    assert_eq!(world.raw(&guest.client, &request.finish()).unwrap().lifetime(), 600);
}
