use super::super::stun_server::StunServer;
use super::*;
use crate::config::StunConfig;
use crate::path::Ports;

/// Whether this machine has IPv6; containers often have none.
fn has_ipv6() -> bool {
    let found = std::net::UdpSocket::bind("[::1]:0").is_ok();
    if !found {
        assert!(std::env::var("CI").map_or(true, |ci| ci != "true"), "this machine has no IPv6");
    }
    found
}

/// The families that this machine has.
fn loopbacks() -> &'static [&'static str] {
    let both = &["127.0.0.1", "::1"];
    &both[..if has_ipv6() { 2 } else { 1 }]
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn quick() -> DiscoveryConfig {
    DiscoveryConfig { query_timeout: Duration::from_millis(500), ..Default::default() }
}

const DEADLINE: Duration = Duration::from_secs(30);

fn server(addresses: &[&str]) -> StunServer {
    let addresses: Vec<_> = addresses.iter().map(|address| at(address)).collect();
    StunServer::bind(&addresses, &StunConfig::default()).unwrap()
}

/// Two addresses with the same two ports, as RFC 5780 wants them.
fn full_server(first: &str, second: &str) -> StunServer {
    for port in (20_000..60_000).step_by(7) {
        let addresses: Vec<_> = [(first, port), (first, port + 1), (second, port), (second, port + 1)]
            .map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port))
            .to_vec();
        if let Ok(server) = StunServer::bind(&addresses, &StunConfig::default()) {
            return server;
        }
    }
    panic!("no two free ports on {first} and {second}");
}

#[test]
fn mappings_by_what_differs() {
    use Mapping::*;
    let (a1, a2, b1) = (at("192.0.2.1:1"), at("192.0.2.1:2"), at("198.51.100.1:1"));
    let (x, y, z) = (at("203.0.113.1:10"), at("203.0.113.1:11"), at("203.0.113.1:12"));
    let table: &[(&[(SocketAddr, SocketAddr)], Mapping)] = &[
        (&[], Unknown),
        (&[(a1, x)], Unknown),
        (&[(a1, x), (a2, x)], Unknown),
        (&[(a1, x), (a2, y)], AddressAndPortDependent),
        (&[(a1, x), (b1, x)], EndpointIndependent),
        (&[(a1, x), (a2, x), (b1, x)], EndpointIndependent),
        (&[(a1, x), (b1, y)], AddressDependent),
        (&[(a1, x), (a2, x), (b1, y)], AddressDependent),
        (&[(a1, x), (b1, y), (a2, z)], AddressAndPortDependent),
    ];
    for (seen, mapping) in table {
        assert_eq!(judge_mapping(seen, Some(true)), *mapping, "{seen:?}");
        assert_eq!(judge_mapping(seen, Some(false)), EndpointIndependent);
    }
}

#[test]
fn filterings_by_what_arrives() {
    use Elsewhere::*;
    let table = [
        (Arrived, Arrived, Filtering::EndpointIndependent),
        (Arrived, Silent, Filtering::EndpointIndependent),
        (Silent, Arrived, Filtering::AddressDependent),
        (Silent, Silent, Filtering::AddressAndPortDependent),
        (Refused, Silent, Filtering::AddressAndPortDependent),
        (Refused, Arrived, Filtering::Unknown),
        (Refused, Refused, Filtering::Unknown),
        (Silent, Refused, Filtering::Unknown),
    ];
    for (both, port, filtering) in table {
        assert_eq!(judge_filtering(both, port), filtering, "{both:?}, {port:?}");
    }
}

#[tokio::test]
async fn loopback_is_no_nat() {
    let server = full_server("127.0.0.1", "127.0.0.2");
    let profile = discover(&server.addresses()[..1], DEADLINE, &quick()).await;
    let expected = NatProfile {
        mapping: Mapping::EndpointIndependent,
        filtering: Filtering::EndpointIndependent,
        ports: Ports::Preserved,
        udp_blocked: false,
        translated: Some(false),
        external: Some("127.0.0.1".parse().unwrap()),
        same_by_port: true,
    };
    assert_eq!(profile, expected);
    let stats = server.stats();
    assert_eq!((stats.refused, stats.malformed, stats.rate_limited), (0, 0, 0), "{stats:?}");
    server.close().await;
}

#[tokio::test]
async fn one_address_cannot_tell_the_filtering() {
    for ip in loopbacks() {
        let any_port = SocketAddr::new(ip.parse().unwrap(), 0).to_string();
        let server = server(&[&any_port, &any_port]);
        let profile = discover(&server.addresses()[..1], DEADLINE, &quick()).await;
        assert_eq!(profile.filtering, Filtering::Unknown);
        assert_eq!((profile.mapping, profile.ports), (Mapping::EndpointIndependent, Ports::Preserved));
        assert_eq!(server.stats().refused, 1, "another IP address");
        server.close().await;
    }
}

#[tokio::test]
async fn a_socket_for_all_addresses_names_the_one_that_was_asked() {
    let server = server(&["[::]:0", "[::]:0"]);
    let ports: Vec<u16> = server.addresses().iter().map(SocketAddr::port).collect();
    for ip in loopbacks() {
        let ip: IpAddr = ip.parse().unwrap();
        let asked = SocketAddr::new(ip, ports[0]);
        let socket = bind(asked, &quick()).unwrap();
        let seen = ask_all(&socket, &[asked], Duration::from_secs(5), &quick(), |heard| heard[0].is_some()).await;
        let answer = seen[0].answer;
        assert_eq!(answer.observed, SocketAddr::new(ip, socket.local_addr().unwrap().port()));
        assert_eq!(answer.origin, Some(asked));
        assert_eq!(answer.other, Some(SocketAddr::new(ip, ports[1])));
    }
    server.close().await;
}

#[tokio::test]
async fn silence_is_blocked_udp() {
    let deaf = bind(at("127.0.0.1:1"), &quick()).unwrap();
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), deaf.local_addr().unwrap().port());
    let profile = discover(&[address], DEADLINE, &quick()).await;
    assert!(profile.udp_blocked);
    assert_eq!((profile.mapping, profile.filtering, profile.ports), Default::default());
    assert_eq!(sample_port(address, &quick()).await, None);
    assert_eq!(discover(&[], DEADLINE, &quick()).await, NatProfile::default(), "nobody to ask");
}

#[tokio::test]
async fn a_silent_server_holds_up_nobody() {
    let deaf = bind(at("127.0.0.1:1"), &quick()).unwrap();
    let deaf = SocketAddr::new("127.0.0.1".parse().unwrap(), deaf.local_addr().unwrap().port());
    let full = full_server("127.0.0.1", "127.0.0.2");
    let plain = server(&["127.0.0.1:0"]);
    let endless = DiscoveryConfig { query_timeout: Duration::MAX, ..Default::default() };
    // the second cannot tell the filtering, so that another that could is waited for
    for (answering, filtering) in [(&full, Filtering::EndpointIndependent), (&plain, Filtering::Unknown)] {
        let servers = [deaf, answering.addresses()[0]];
        let profile = timeout(DEADLINE, discover(&servers, Duration::from_secs(86_400), &endless)).await.unwrap();
        assert_eq!((profile.filtering, profile.ports), (filtering, Ports::Preserved));
    }
}

#[tokio::test]
async fn ipv6_is_asked_when_ipv4_is_silent() {
    let deaf = bind(at("127.0.0.1:1"), &quick()).unwrap();
    if !has_ipv6() {
        return;
    }
    let server = server(&["[::1]:0"]);
    let servers =
        [SocketAddr::new("127.0.0.1".parse().unwrap(), deaf.local_addr().unwrap().port()), server.addresses()[0]];
    let profile = discover(&servers, DEADLINE, &quick()).await;
    assert!(!profile.udp_blocked);
    assert_eq!(profile.external, Some("::1".parse().unwrap()));
    server.close().await;
}

#[tokio::test]
async fn answers_of_strangers_are_no_answers() {
    // one who knows the transaction but is not the server
    let server = bind(at("127.0.0.1:1"), &quick()).unwrap();
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), server.local_addr().unwrap().port());
    let stranger = bind(address, &quick()).unwrap();
    let lying = tokio::spawn(async move {
        let mut buffer = [0; BUFFER];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        let query = crate::stun::discovery::decode_query(&buffer[..length]).unwrap().unwrap();
        let mut out = vec![];
        let answer = Answer { observed: at("203.0.113.1:1"), origin: None, other: None };
        crate::stun::discovery::encode_answer(&mut out, query.transaction, &answer, QUERY_BYTES);
        stranger.send_to(&out, from).await.unwrap();
        server
    });
    assert_eq!(sample_port(address, &quick()).await, None);
    lying.await.unwrap();
}

#[tokio::test]
async fn plain_clients_get_a_plain_answer() {
    let server = server(&["127.0.0.1:0"]);
    let socket = bind(server.addresses()[0], &quick()).unwrap();
    let header = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], b"transaction1"].concat();
    socket.send_to(b"no STUN at all", server.addresses()[0]).await.unwrap();
    socket.send_to(&header, server.addresses()[0]).await.unwrap();
    let mut buffer = [0; BUFFER];
    let (length, _) = timeout(DEADLINE, socket.recv_from(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(length, 32);
    let answer = decode_reply(&buffer[..length]).unwrap().unwrap().answer.unwrap();
    assert_eq!(answer.observed.port(), socket.local_addr().unwrap().port());
    let stats = server.stats();
    assert_eq!((stats.queries, stats.answers, stats.malformed), (1, 1, 1));
    server.close().await;
    server.close().await;
}

#[tokio::test]
async fn a_flood_is_not_answered() {
    let config = StunConfig { answers_per_second_per_network: 10, ..Default::default() };
    let server = StunServer::bind(&[at("127.0.0.1:0")], &config).unwrap();
    let samples = sample_ports(server.addresses()[0], 40, &quick()).await;
    let stats = server.stats();
    assert!(samples.len() < 40 && stats.rate_limited > 0, "{stats:?}");
    server.close().await;
}

#[tokio::test]
async fn a_closed_server_frees_its_ports() {
    let first = server(&["127.0.0.1:0", "127.0.0.1:0"]);
    let addresses = first.addresses();
    assert!(StunServer::bind(&addresses, &StunConfig::default()).is_err(), "taken");
    first.close().await;
    drop(first);
    StunServer::bind(&addresses, &StunConfig::default()).unwrap().close().await;
    assert!(StunServer::bind(&[], &StunConfig::default()).is_err());
}
