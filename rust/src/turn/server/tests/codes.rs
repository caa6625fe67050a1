//! Every request, and every error code that it may be answered with.

use std::time::Duration;

use super::client::{lifetime, peer, udp, World};
use crate::config::RelayServerConfig;
use crate::turn::credentials::{limited_name, limited_password};
use crate::turn::message::{self as stun, Integrity, Message, Writer};
use stun_types::message::MessageClass;

#[test]
fn an_allocation_is_made_refreshed_and_ended() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let answer = world.ask(&guest, stun::ALLOCATE, &[udp()]);
    assert_eq!((answer.code, answer.lifetime()), (0, 600));
    assert_eq!(answer.count(stun::XOR_RELAYED_ADDRESS), 1);
    assert_eq!(answer.count(stun::XOR_MAPPED_ADDRESS), 1);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[lifetime(3_000)]).lifetime(), 3_000);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[lifetime(1_000_000)]).lifetime(), 3_600, "an hour at most");
    assert_eq!(world.sockets.open.len(), 1);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[lifetime(0)]).lifetime(), 0);
    assert!(world.sockets.open.is_empty());
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 437);
    assert_eq!(world.server.stats().allocations, 0);
}

#[test]
fn an_allocation_ends_by_itself() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    world.pass(Duration::from_secs(599));
    assert_eq!(world.sockets.open.len(), 1);
    world.pass(Duration::from_secs(2));
    assert!(world.sockets.open.is_empty());
    assert_eq!(world.ask(&guest, stun::CREATE_PERMISSION, &[]).code, 437);
}

#[test]
fn what_expired_is_gone_before_it_is_swept() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0);
    world.now += Duration::from_secs(601);
    assert_eq!(world.outward(&guest, 0x4000, 10), None);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 437);
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0, "and may be made anew");
    assert_eq!(world.sockets.open.len(), 1);
}

#[test]
fn an_allocate_that_comes_again_is_answered_again() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let first = world.ask_as(&guest, stun::ALLOCATE, [1; 12], &[udp()]);
    let again = world.ask_as(&guest, stun::ALLOCATE, [1; 12], &[udp()]);
    assert_eq!(first.value(stun::XOR_RELAYED_ADDRESS), again.value(stun::XOR_RELAYED_ADDRESS));
    assert_eq!(world.ask_as(&guest, stun::ALLOCATE, [2; 12], &[udp()]).code, 437);
    assert_eq!(world.sockets.open.len(), 1);
}

#[test]
fn families() {
    let mut world = World::new();
    let v6 = (stun::REQUESTED_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    let additional = (stun::ADDITIONAL_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    let mut asked = |attributes: &[(u16, Vec<u8>)]| {
        let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
        let answer = world.ask(&guest, stun::ALLOCATE, attributes);
        world.ask(&guest, stun::REFRESH, &[lifetime(0)]);
        (answer.code, answer.count(stun::XOR_RELAYED_ADDRESS))
    };
    assert_eq!(asked(&[udp(), v6.clone()]), (0, 1));
    assert_eq!(asked(&[udp(), additional.clone()]), (0, 2));
    assert_eq!(asked(&[udp(), v6.clone(), additional.clone()]), (400, 0));
    assert_eq!(asked(&[udp(), (stun::ADDITIONAL_ADDRESS_FAMILY, vec![1, 0, 0, 0])]), (400, 0));
    assert_eq!(asked(&[udp(), (stun::REQUESTED_ADDRESS_FAMILY, vec![3, 0, 0, 0])]), (440, 0));
    world.sockets.no_v6 = true;
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp(), v6]).code, 440);
    let answer = world.ask(&guest, stun::ALLOCATE, &[udp(), additional]);
    assert_eq!((answer.code, answer.count(stun::XOR_RELAYED_ADDRESS)), (0, 1));
    assert_eq!(answer.value(stun::ADDRESS_ERROR_CODE), Some(&[2, 0, 4, 40][..]));
}

#[test]
fn one_of_two_families_can_be_given_back() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let v4 = (stun::REQUESTED_ADDRESS_FAMILY, vec![1, 0, 0, 0]);
    let both = (stun::ADDITIONAL_ADDRESS_FAMILY, vec![2, 0, 0, 0]);
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp(), both]).code, 0);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[v4.clone(), lifetime(0)]).code, 0);
    assert_eq!(world.sockets.open.len(), 1);
    assert_eq!(world.permit(&guest, "8.8.8.8:1"), 443);
    assert_eq!(world.permit(&guest, "[2600::9]:1"), 0);
    assert_eq!(world.ask(&guest, stun::REFRESH, &[v4, lifetime(60)]).code, 443);
}

#[test]
fn what_an_allocate_may_lack_or_ask_too_much() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let mut code = |attributes: &[(u16, Vec<u8>)]| world.ask(&guest, stun::ALLOCATE, attributes).code;
    assert_eq!(code(&[]), 400, "no REQUESTED-TRANSPORT");
    assert_eq!(code(&[(stun::REQUESTED_TRANSPORT, vec![6, 0, 0, 0])]), 442, "TCP");
    assert_eq!(code(&[udp(), (stun::EVEN_PORT, vec![0x80])]), 508, "and the next");
    assert_eq!(code(&[udp(), (stun::RESERVATION_TOKEN, vec![1; 8])]), 508);
    assert_eq!(code(&[udp(), (0x7fff, vec![])]), 420);
    world.sockets.full = true;
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 508);
    world.sockets.full = false;
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp(), (stun::DONT_FRAGMENT, vec![]), (0x8022, vec![1])]).code, 0);
}

#[test]
fn an_even_port() {
    let mut world = World::new();
    for n in 0..4 {
        let guest = world.guest(&format!("192.0.2.1:{n}"), "alice", "secret-a");
        assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp(), (stun::EVEN_PORT, vec![0])]).code, 0);
    }
    assert!(world.sockets.open.values().all(|address| address.port() % 2 == 0));
}

#[test]
fn unknown_attributes_are_named() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let answer = world.ask(&guest, stun::ALLOCATE, &[udp(), (0x7ffe, vec![]), (0x7fff, vec![1, 2, 3])]);
    assert_eq!(answer.value(stun::UNKNOWN_ATTRIBUTES), Some(&[0x7f, 0xfe, 0x7f, 0xff][..]));
}

#[test]
fn sha256_is_answered_with_sha256() {
    let mut world = World::new();
    let mut guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    guest.integrity = Integrity::Sha256;
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
}

#[test]
fn who_sends_no_or_half_credentials() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let mut request = Writer::new(MessageClass::Request, stun::ALLOCATE, [1; 12]);
    request.put(0x8026, &[0; 24]);
    request.put(stun::USERNAME, b"alice");
    request.sign(&guest.key(), Integrity::Sha1);
    let answer = world.raw(&guest.client, &request.finish()).unwrap();
    assert_eq!(answer.code, 400);
}

#[test]
fn wrong_credentials() {
    let mut world = World::new();
    for (name, password) in [("alice", "wrong"), ("nobody", "secret-a"), ("", "")] {
        let guest = world.guest("192.0.2.1:5000", name, password);
        let answer = world.ask(&guest, stun::ALLOCATE, &[udp()]);
        assert_eq!(answer.code, 401);
        assert!(answer.value(stun::NONCE).is_some() && answer.value(stun::REALM).is_some());
        assert!(Message::read(&answer.bytes).unwrap().integrity().is_none());
    }
    assert_eq!(world.server.stats().auth_failures, 3);
}

#[test]
fn a_nonce_ends_and_is_of_one_client() {
    let mut world = World::new();
    let mut guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let other = world.guest("192.0.2.2:5000", "alice", "secret-a");
    let mine = std::mem::replace(&mut guest.nonce, other.nonce);
    let stale = world.ask(&guest, stun::ALLOCATE, &[udp()]);
    assert_eq!(stale.code, 438);
    guest.nonce = mine;
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
    world.pass(Duration::from_secs(300));
    assert_eq!(world.ask(&guest, stun::REFRESH, &[lifetime(3_600)]).code, 0);
    world.pass(Duration::from_secs(3_590));
    let stale = world.ask(&guest, stun::REFRESH, &[]);
    assert_eq!(stale.code, 438);
    guest.nonce = stale.value(stun::NONCE).unwrap().to_vec();
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 0);
}

#[test]
fn names_that_end() {
    let mut world = World::new();
    let name = limited_name(world.unix + 100, "node-1");
    let mut guest = world.guest("192.0.2.1:5000", &name, &limited_password("shared", name.as_bytes()));
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0);
    world.pass(Duration::from_secs(101));
    assert_eq!(world.permit(&guest, "8.8.8.8:1"), 0, "what was granted goes on");
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 0, "as long as it is refreshed");
    let late = world.guest("192.0.2.2:5000", &name, &limited_password("shared", name.as_bytes()));
    assert_eq!(world.ask(&late, stun::ALLOCATE, &[udp()]).code, 401, "nothing new is");
    // a name of the same node that ends later is as good
    let name = limited_name(world.unix + 100, "node-1");
    guest = world.guest("192.0.2.1:5000", &name, &limited_password("shared", name.as_bytes()));
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 0);
    assert_eq!(world.permit(&guest, "8.8.4.4:1"), 0);
    let name = limited_name(world.unix + 100, "node-2");
    guest = world.guest("192.0.2.1:5000", &name, &limited_password("shared", name.as_bytes()));
    assert_eq!(world.ask(&guest, stun::REFRESH, &[]).code, 441, "somebody else");
    let wrong = limited_name(world.unix + 100, "node-3");
    guest = world.guest("192.0.2.3:5000", &wrong, &limited_password("guess", wrong.as_bytes()));
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 401);
}

#[test]
fn quotas() {
    let config = RelayServerConfig {
        max_allocations: 6,
        max_allocations_per_user: 4,
        max_allocations_per_network: 2,
        ..RelayServerConfig::default()
    };
    let mut world = World::with(config, |_| {});
    let mut code = |address: &str, name: &str, password: &str| {
        let guest = world.guest(address, name, password);
        world.ask(&guest, stun::ALLOCATE, &[udp()]).code
    };
    assert_eq!(code("192.0.2.1:1", "alice", "secret-a"), 0);
    assert_eq!(code("192.0.2.1:2", "alice", "secret-a"), 0);
    assert_eq!(code("192.0.2.9:3", "alice", "secret-a"), 486, "the network has two");
    assert_eq!(code("192.0.3.1:1", "alice", "secret-a"), 0);
    assert_eq!(code("192.0.3.1:2", "alice", "secret-a"), 0);
    assert_eq!(code("192.0.4.1:1", "alice", "secret-a"), 486, "the user has four");
    assert_eq!(code("192.0.4.1:1", "bob", "secret-b"), 0);
    assert_eq!(code("192.0.4.1:2", "bob", "secret-b"), 0);
    assert_eq!(code("192.0.5.1:1", "bob", "secret-b"), 508, "all have six");
    assert_eq!(world.server.stats().over_quota, 3);
    world.pass(Duration::from_secs(601));
    let guest = world.guest("192.0.2.1:1", "alice", "secret-a");
    assert_eq!(world.ask(&guest, stun::ALLOCATE, &[udp()]).code, 0, "what has ended counts no more");
}

#[test]
fn another_user_of_the_same_address() {
    let mut world = World::new();
    world.allocated("192.0.2.1:5000");
    let bob = world.guest("192.0.2.1:5000", "bob", "secret-b");
    assert_eq!(world.ask(&bob, stun::REFRESH, &[lifetime(0)]).code, 441);
    assert_eq!(world.permit(&bob, "8.8.8.8:1"), 441);
    assert_eq!(world.bind(&bob, 0x4000, "8.8.8.8:1"), 441);
    assert_eq!(world.ask(&bob, stun::ALLOCATE, &[udp()]).code, 437);
    assert_eq!(world.sockets.open.len(), 1);
}

#[test]
fn permissions_and_channels_need_their_arguments() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.ask(&guest, stun::CREATE_PERMISSION, &[]).code, 400);
    assert_eq!(world.ask(&guest, stun::CHANNEL_BIND, &[]).code, 400);
    let two: Vec<_> = (0..2).map(|n| peer(&format!("8.8.8.{n}:1"), world.next_transaction())).collect();
    assert_eq!(world.ask(&guest, stun::CREATE_PERMISSION, &two).code, 0, "several at once");
    let number = (stun::CHANNEL_NUMBER, vec![0x40, 0, 0, 0]);
    assert_eq!(world.ask(&guest, stun::CHANNEL_BIND, std::slice::from_ref(&number)).code, 400);
    let both: Vec<_> =
        (0..2).map(|n| peer(&format!("8.8.8.{n}:1"), world.next_transaction())).chain([number]).collect();
    assert_eq!(world.ask(&guest, stun::CHANNEL_BIND, &both).code, 400);
    assert_eq!(world.permit(&guest, "[2600::9]:1"), 443);
    assert_eq!(world.bind(&guest, 0x4000, "[2600::9]:1"), 443);
    let many: Vec<_> = (0..40).map(|n| peer(&format!("8.8.9.{n}:1"), world.next_transaction())).collect();
    assert_eq!(world.ask(&guest, stun::CREATE_PERMISSION, &many).code, 508);
}

#[test]
fn methods_that_are_not_served() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    // Connect of RFC 6062
    assert_eq!(world.ask(&guest, 0x00a, &[]).code, 400);
}

#[test]
fn binding() {
    let mut world = World::new();
    let guest = world.guest("192.0.2.1:5000", "alice", "secret-a");
    let mut request = Writer::new(MessageClass::Request, stun::BINDING, [1; 12]);
    request.put(0x8026, &[0; 20]);
    let answer = world.raw(&guest.client, &request.finish()).unwrap();
    assert_eq!(answer.code, 0);
    assert_eq!(answer.count(stun::XOR_MAPPED_ADDRESS), 1);
    let mut request = Writer::new(MessageClass::Request, stun::BINDING, [1; 12]);
    request.put(3, &[0; 20]);
    assert_eq!(world.raw(&guest.client, &request.finish()).unwrap().code, 420);
    let indication = Writer::new(MessageClass::Indication, stun::BINDING, [1; 12]).finish();
    assert!(world.raw(&guest.client, &indication).is_none());
}
