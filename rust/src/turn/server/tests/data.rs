//! Data in both directions: permissions, channels, rates.

use std::time::Duration;

use super::super::Framing;
use super::client::World;
use crate::config::RelayServerConfig;

#[test]
fn a_permission_lets_a_peer_in_for_five_minutes() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.inward(0, "8.8.8.8:53", 10), None);
    assert_eq!(world.permit(&guest, "8.8.8.8:1"), 0);
    assert_eq!(world.inward(0, "8.8.8.8:53", 10), Some((guest.client, Framing::Indication)), "from any port");
    assert_eq!(world.inward(0, "8.8.8.9:53", 10), None);
    assert_eq!(world.send(&guest, "8.8.8.8:99", b"out"), Some("8.8.8.8:99".parse().unwrap()));
    assert_eq!(world.send(&guest, "8.8.8.9:99", b"out"), None);
    world.pass(Duration::from_secs(299));
    assert_eq!(world.permit(&guest, "8.8.8.8:1"), 0);
    world.pass(Duration::from_secs(299));
    assert!(world.inward(0, "8.8.8.8:53", 10).is_some(), "it was refreshed");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.inward(0, "8.8.8.8:53", 10), None);
    assert_eq!(world.send(&guest, "8.8.8.8:99", b"out"), None);
    let stats = world.server.stats();
    assert_eq!((stats.datagrams_to_clients, stats.datagrams_to_peers, stats.dropped_unpermitted), (2, 1, 5));
}

#[test]
fn a_channel_leads_to_its_peer_for_ten_minutes() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.outward(&guest, 0x4000, 10), None);
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0);
    assert_eq!(world.outward(&guest, 0x4000, 10), Some("8.8.8.8:53".parse().unwrap()));
    assert_eq!(world.inward(0, "8.8.8.8:53", 10), Some((guest.client, Framing::Channel(0x4000))));
    assert_eq!(world.inward(0, "8.8.8.8:54", 10), Some((guest.client, Framing::Indication)), "it permits the address");
    world.pass(Duration::from_secs(301));
    assert_eq!(world.inward(0, "8.8.8.8:53", 10), None, "the permission has ended");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0, "refreshed, with the permission");
    assert!(world.inward(0, "8.8.8.8:53", 10).is_some());
    world.pass(Duration::from_secs(280));
    assert_eq!(world.ask_refresh(&guest), 0);
    world.pass(Duration::from_secs(321));
    assert_eq!(world.outward(&guest, 0x4000, 10), None);
    assert_eq!(world.bind(&guest, 0x4000, "8.8.4.4:53"), 0, "and the number is free");
}

#[test]
fn numbers_and_peers_belong_together() {
    let mut world = World::new();
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0);
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:54"), 400, "the number has another peer");
    assert_eq!(world.bind(&guest, 0x4001, "8.8.8.8:53"), 400, "the peer has another number");
    assert_eq!(world.bind(&guest, 0x4001, "8.8.8.8:54"), 0);
    for number in [0, 0x3fff, 0x7fff, 0x8000, 0xffff] {
        assert_eq!(world.bind(&guest, number, "8.8.8.8:55"), 400, "{number:#x}");
    }
    assert_eq!(world.bind(&guest, 0x7ffe, "8.8.8.8:55"), 0);
}

#[test]
fn allocations_are_apart() {
    let mut world = World::new();
    let (one, other) = (world.allocated("192.0.2.1:5000"), world.allocated("192.0.2.1:5001"));
    assert_eq!(world.bind(&one, 0x4000, "8.8.8.8:53"), 0);
    assert_eq!(world.outward(&other, 0x4000, 10), None);
    assert_eq!(world.inward(1, "8.8.8.8:53", 10), None);
    assert_eq!(world.bind(&other, 0x4000, "8.8.4.4:53"), 0);
    assert_eq!(world.outward(&other, 0x4000, 10), Some("8.8.4.4:53".parse().unwrap()));
    assert_eq!(world.outward(&one, 0x4000, 10), Some("8.8.8.8:53".parse().unwrap()));
}

#[test]
fn permissions_and_channels_are_bounded() {
    let config = RelayServerConfig { max_permissions: 3, max_channels: 2, ..RelayServerConfig::default() };
    let mut world = World::with(config, |_| {});
    let guest = world.allocated("192.0.2.1:5000");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.1:53"), 0);
    assert_eq!(world.bind(&guest, 0x4001, "8.8.8.2:53"), 0);
    assert_eq!(world.bind(&guest, 0x4002, "8.8.8.3:53"), 508);
    assert_eq!(world.bind(&guest, 0x4001, "8.8.8.2:53"), 0, "what is there can be refreshed");
    assert_eq!(world.permit(&guest, "8.8.8.3:1"), 0);
    assert_eq!(world.permit(&guest, "8.8.8.4:1"), 508);
    assert_eq!(world.permit(&guest, "8.8.8.3:1"), 0);
    world.pass(Duration::from_secs(301));
    assert_eq!(world.permit(&guest, "8.8.8.4:1"), 0, "those that ended make room");
}

#[test]
fn an_allocation_has_its_rate() {
    let config = RelayServerConfig {
        bytes_per_second_per_allocation: 1_000_000,
        bytes_per_second: 100_000_000,
        ..RelayServerConfig::default()
    };
    let mut world = World::with(config, |_| {});
    let guest = world.allocated("192.0.2.1:5000");
    let other = world.allocated("192.0.2.1:5001");
    assert_eq!(world.bind(&guest, 0x4000, "8.8.8.8:53"), 0);
    assert_eq!(world.bind(&other, 0x4000, "8.8.8.8:53"), 0);
    let (mut carried, mut of_other) = (0, 0);
    for _ in 0..4_000 {
        world.now += Duration::from_millis(1);
        carried += 10_000 * usize::from(world.outward(&guest, 0x4000, 10_000).is_some());
        of_other += 500 * usize::from(world.inward(1, "8.8.8.8:53", 500).is_some());
    }
    assert!((3_900_000..=4_400_000).contains(&carried), "{carried}");
    assert_eq!(of_other, 2_000_000, "the other is not held back");
    assert!(world.server.stats().dropped_rate > 0);
}

#[test]
fn all_together_have_a_rate() {
    let config = RelayServerConfig { bytes_per_second: 1_000_000, ..RelayServerConfig::default() };
    let mut world = World::with(config, |_| {});
    let guests: Vec<_> = (0..4).map(|n| world.allocated(&format!("192.0.2.1:{}", 5_000 + n))).collect();
    for guest in &guests {
        assert_eq!(world.bind(guest, 0x4000, "8.8.8.8:53"), 0);
    }
    let mut carried = 0;
    for _ in 0..4_000 {
        world.now += Duration::from_millis(1);
        for guest in &guests {
            carried += 1_000 * usize::from(world.outward(guest, 0x4000, 1_000).is_some());
        }
    }
    assert!((3_900_000..=4_400_000).contains(&carried), "{carried}");
}
