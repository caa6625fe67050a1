//! What two nodes say of where they are, true or not, and what either does after it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keynet::addr::{NodeId, PingKeys, Via};
use keynet::config::PathConfig;
use keynet::path::{
    decode_candidates, draft, is_local, sendable, Candidate, CandidateKind, Draft, Filtering, Mapping, NatProfile,
    OwnRelay, PathTable, Ports, Whereabouts, MAX_CANDIDATES,
};
use keynet::time::Time;

use super::input::Input;

/// Any bytes are read or refused, and what was read is written and read the same. Whatever a peer says, nothing goes to where
/// nothing may go, and not more than the plan may have; and two nodes that can try each other's addresses come to one outlook.
pub fn any_two(data: &[u8]) {
    let _ = (decode_candidates(data), NatProfile::decode(data));
    let mut input = Input::new(data);
    let (own, peer) = (side(&mut input), side(&mut input));
    for told in [&own, &peer] {
        let again = Whereabouts::decode(&told.encode()).expect("what is written can be read");
        assert_eq!(Whereabouts::decode(&again.encode()), Some(again), "the same again");
    }
    let far = input.u8() & 1 == 0;
    let near = |ip: IpAddr| !far && matches!(ip, IpAddr::V4(v4) if v4.octets()[..2] == [192, 168]);
    let start = input.u32();
    let at_own = draft(&own, &peer, near, start);
    let relay = OwnRelay { via: Via(Via::FIRST_RELAY), addresses: vec![SocketAddr::from(([203, 0, 113, 9], 9))] };
    let with_relays = at_own.clone().with_relays(&own, &peer, &[relay], near).with_sockets(Vec::new());
    assert!(with_relays.relayed.is_empty() || !(own.direct_only || peer.direct_only));
    assert!(with_relays.relayed.iter().all(|route| allowed(route.to.ip(), near) && sendable(route.to)));
    bounded(&at_own, near);
    carried_out(at_own, near);

    let all = |_: IpAddr| true;
    if outside(&own) && outside(&peer) {
        assert_eq!(draft(&own, &peer, all, start).outlook, draft(&peer, &own, all, start).outlook);
    }
}

fn bounded(draft: &Draft, near: impl Fn(IpAddr) -> bool) {
    let Draft { plan, sockets, .. } = draft;
    assert!(plan.candidates.len() <= MAX_CANDIDATES && plan.guesses.len() <= 20, "{plan:?}");
    for address in plan.guesses.iter().chain(sockets.as_ref().map(|(_, to, _)| to)) {
        assert!(allowed(address.ip(), &near) && sendable(*address), "{address}");
    }
    let inside: Vec<_> = plan.candidates.iter().filter(|one| !allowed(one.ip(), &near)).collect();
    assert!(inside.len() <= 4 && inside.iter().all(|one| is_of_a_site(one.ip())), "{inside:?}");
    assert!(plan.candidates.iter().all(|address| sendable(*address)), "{plan:?}");
    assert!(sockets.as_ref().is_none_or(|(count, ..)| (64..=256).contains(count)), "{sockets:?}");
}

/// RFC 1918, RFC 6598, RFC 4193: a router may lead there from another subnet.
fn is_of_a_site(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(v6) => v6.segments()[0] & 0xfe00 == 0xfc00,
    }
}

/// Everything that the plan does in its time, if nobody ever answers.
fn carried_out(draft: Draft, near: impl Fn(IpAddr) -> bool) {
    let vias = draft.sockets.map_or(0, |(count, ..)| count);
    let plan = draft.with_sockets((1..=vias as u16).map(Via).collect());
    let (mut now, timeout) = (Time::from_millis(1_000), Duration::from_secs(14));
    let mut table = PathTable::new(PathConfig::default(), [3; 32]);
    let keys = PingKeys { key: [1; 32], local_name: [2; 16], remote_name: [3; 16] };
    let end = now + timeout;
    table.start_meeting(now, NodeId::from_public_key([9; 32]), keys, plan, timeout).expect("a meeting");
    let mut each: HashMap<SocketAddr, usize> = HashMap::new();
    while let Some(at) = table.poll_timeout().filter(|at| *at <= end) {
        now = now.max(at);
        table.handle_timeout(now);
        while let Some(ping) = table.poll_transmit(now) {
            let ip = ping.to.ip();
            assert!((allowed(ip, &near) || is_of_a_site(ip)) && sendable(ping.to), "{ping:?}");
            *each.entry(ping.to).or_default() += 1;
        }
    }
    let inside = each.keys().filter(|to| !allowed(to.ip(), &near)).count();
    assert!(inside <= 4, "{inside} addresses of a network that may be somebody else's");
    let (total, most) = (each.values().sum::<usize>(), each.values().max().copied().unwrap_or(0));
    // 19 rounds of candidates, 6 of guesses, and one port once; or 7 times 256 sockets
    assert!(most <= 19 + 6 + 1 + 7 * vias, "{most} to one address");
    assert!(total <= 16 * 19 + 20 * 6 + 2_048 + 7 * vias, "{total} pings");
    assert_eq!(table.stats().meetings, 0);
}

/// Not of a network that is somebody else's, unless it is ours as well.
fn allowed(ip: IpAddr, near: impl Fn(IpAddr) -> bool) -> bool {
    let shared = matches!(ip, IpAddr::V4(v4) if v4.octets()[0] == 100 && (64..128).contains(&v4.octets()[1]));
    near(ip) || !(is_local(ip) || shared)
}

fn outside(side: &Whereabouts) -> bool {
    side.candidates.iter().any(|one| one.kind == CandidateKind::ServerReflexive && one.address.is_ipv4())
}

/// As it comes over the wire: from any bytes, or by choices.
fn side(input: &mut Input<'_>) -> Whereabouts {
    if input.u8() == 0xff {
        return Whereabouts::decode(input.short()).unwrap_or_default();
    }
    let mappings =
        [Mapping::EndpointIndependent, Mapping::AddressDependent, Mapping::AddressAndPortDependent, Mapping::Unknown];
    let filterings = [
        Filtering::AddressAndPortDependent,
        Filtering::AddressDependent,
        Filtering::EndpointIndependent,
        Filtering::Unknown,
    ];
    let (mapping, filtering, kind) = (input.pick(&mappings), input.pick(&filterings), input.u8());
    let ports = match kind % 5 {
        0 => Ports::Uniform,
        1 => Ports::Sequential { last: input.u16(), delta: input.near().cast_signed() },
        2 => {
            let (one, other) = (input.u16(), input.u16());
            Ports::Block { low: one.min(other), high: one.max(other) }
        }
        3 => Ports::Preserved,
        _ => Ports::Unknown,
    };
    let translated = [Some(true), Some(false), None][usize::from(kind >> 6) % 3];
    let profile = NatProfile { mapping, filtering, ports, translated, ..NatProfile::default() };
    let candidates = (0..input.u8() % 20).map(|_| candidate(input)).collect();
    let flags = input.u8();
    let took = Duration::from_millis(input.near().into());
    let told = Whereabouts { candidates, profile, searches: flags & 1 == 0, direct_only: flags & 2 == 0, took };
    // a peer can only say what can be written
    Whereabouts::decode(&told.encode()).expect("what is written can be read")
}

fn candidate(input: &mut Input<'_>) -> Candidate {
    use CandidateKind::{Host, PeerReflexive, PortMapped, Relayed, ServerReflexive};
    let kind = input.pick(&[ServerReflexive, Host, PeerReflexive, PortMapped, Relayed]);
    let address = match input.u8() % 12 {
        0..=3 => SocketAddr::from(([198, 51, 100, input.u8()], 5_000)),
        4 => SocketAddr::from(([192, 168, 1, input.u8()], 4_000)),
        5 => SocketAddr::from(([127, 0, 0, 1], input.u16())),
        6 => SocketAddr::from(([100, 64 + input.u8() % 64, 0, 1], 5_000)),
        7 => SocketAddr::from(([224, 0, 0, 251], 5_353)),
        8 => SocketAddr::from(([255, 255, 255, 255], 9)),
        9 => SocketAddr::from(([0, 0, 0, 0, 0, 0xffff, 0x0a00, 1], 5_000)),
        10 => SocketAddr::from((input.array::<16>(), input.u16())),
        _ => SocketAddr::from((input.array::<4>(), input.u16())),
    };
    Candidate { kind, address }
}
