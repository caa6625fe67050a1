//! NAT behaviour discovery (RFC 5780 section 4), with throw-away sockets: what is asked here leaves no mapping of the socket that
//! carries data.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use crate::addr::unmapped;
use crate::config::DiscoveryConfig;
use crate::net::uplink::prefer;
use crate::path::{judge_ports, Filtering, Mapping, NatProfile};
use crate::stun::discovery::{decode_reply, encode_query, Answer, Change, QUERY_BYTES};

/// Finds out what the NATs before this machine do, with the help of STUN servers. One server with one address tells whether
/// UDP passes and how ports are handed out; the mapping takes two addresses and ports, the filtering a server with two
/// addresses (RFC 5780). What cannot be told is unknown. IPv6 servers are asked if no IPv4 server is given, or none answers.
///
/// It ends by `deadline`, with what is known until then.
pub async fn discover(servers: &[SocketAddr], deadline: Duration, config: &DiscoveryConfig) -> NatProfile {
    let mut profile = NatProfile::default();
    // if nothing answers, that is to be known before the end
    let wait = config.query_timeout.min(deadline * 3 / 4);
    let _ = timeout(deadline, async {
        for ipv4 in [true, false] {
            let of_family: Vec<SocketAddr> = servers.iter().map(|server| unmapped(*server)).collect();
            let of_family: Vec<SocketAddr> =
                of_family.into_iter().filter(|server| server.is_ipv4() == ipv4).take(MAX_SERVERS).collect();
            if of_family.is_empty() {
                continue;
            }
            investigate(&mut profile, &of_family, wait, config).await;
            if !profile.udp_blocked {
                return;
            }
        }
    })
    .await;
    profile
}

/// The external port of a fresh mapping, after one round trip; `None`: no answer.
///
/// Where ports are handed out in order, what the sample tells is used up by every further mapping: of a new socket, and, behind a
/// NAT with address-dependent mapping, of any socket that sends to a new address. So this comes last, when everything else
/// about the own side is known, and from then on the only new mappings are those of the pings to the peer, whose ports are the
/// ones predicted. A question that is repeated goes through the mapping that it has, and takes no other port.
pub async fn sample_port(server: SocketAddr, config: &DiscoveryConfig) -> Option<u16> {
    let server = unmapped(server);
    let (_, external) = sample(bind(server, config).ok()?, server, config.query_timeout, config).await?;
    Some(external)
}

/// (Internal, external) ports of `count` fresh mappings, in the order in which they were made.
pub async fn sample_ports(server: SocketAddr, count: usize, config: &DiscoveryConfig) -> Vec<(u16, u16)> {
    let server = unmapped(server);
    let mut tasks = JoinSet::new();
    for place in 0..count.min(MAX_SAMPLES) {
        let Ok(socket) = bind(server, config) else { continue };
        let of_task = config.clone();
        tasks.spawn(async move { (place, sample(socket, server, of_task.query_timeout, &of_task).await) });
        // datagrams that leave one after the other arrive in that order, mostly
        sleep(config.sample_spacing).await;
    }
    let mut samples = tasks.join_all().await;
    samples.sort_by_key(|(place, _)| *place);
    samples.into_iter().filter_map(|(_, ports)| ports).collect()
}

async fn sample(socket: UdpSocket, server: SocketAddr, wait: Duration, config: &DiscoveryConfig) -> Option<(u16, u16)> {
    let internal = socket.local_addr().ok()?.port();
    let heard = ask_one(&socket, (server, Change::default()), wait, config).await?;
    Some((internal, heard.answer?.observed.port()))
}

/// All questions about servers of one family. What is found is written down at once.
///
/// It takes one round trip to find a server that can tell the filtering, and then all else at once: another round trip if
/// everything is answered, [`patience`] if something is not. The samples of ports are asked for last, so that `last` of a
/// sequence is not followed by mappings of the other questions.
async fn investigate(profile: &mut NatProfile, servers: &[SocketAddr], wait: Duration, config: &DiscoveryConfig) {
    profile.udp_blocked = true;
    let mut routed = vec![];
    for server in servers {
        // without a route there is nothing to wait for
        if source_towards(*server, config).await.is_some() {
            routed.push(*server);
        }
    }
    let Some(socket) = routed.first().and_then(|server| bind(*server, config).ok()) else { return };
    let mut seen = ask_all(&socket, &routed, wait, config, |heard| {
        let mut answers =
            routed.iter().zip(heard).filter_map(|(server, heard)| Some((server, heard.as_ref()?.answer?)));
        heard.iter().all(Option::is_some) || answers.any(|(server, answer)| has_two_ips(*server, &answer))
    })
    .await;
    let Some(first) = seen.first().copied() else { return };
    profile.udp_blocked = false;
    profile.external = Some(first.answer.observed.ip());
    if let (Ok(port), Some(ip)) =
        (socket.local_addr().map(|local| local.port()), source_towards(first.server, config).await)
    {
        profile.translated = Some(first.answer.observed != SocketAddr::new(ip, port));
    }
    let wait = wait.min(patience(first.rtt, config));
    let mut others = other_targets(&seen);
    let needed = others.len();
    // those that were not waited for: what they say is worth having if it comes in time
    others.extend(routed.iter().filter(|server| seen.iter().all(|seen| seen.server != **server)));
    let (further, filtering, samples) = tokio::join!(
        ask_all(&socket, &others, wait, config, |heard| heard.iter().take(needed).all(Option::is_some)),
        find_filtering(&seen, wait, config),
        sample_ports(first.server, config.port_samples, config),
    );
    seen.extend(further);
    let pairs: Vec<_> = seen.iter().map(|seen| (seen.server, seen.answer.observed)).collect();
    profile.mapping = judge_mapping(&pairs, profile.translated);
    profile.same_by_port = sees_no_port(&pairs);
    profile.filtering = filtering;
    profile.ports = judge_ports(&samples);
}

/// How long answers are waited for where one came after `rtt`: every repetition has the time to come through.
fn patience(rtt: Duration, config: &DiscoveryConfig) -> Duration {
    config.retransmit * config.attempts.saturating_sub(1) + RTT_MARGIN * rtt
}

/// A server that answered.
#[derive(Clone, Copy)]
struct Seen {
    server: SocketAddr,
    answer: Answer,
    rtt: Duration,
}

/// Those that answered, until it is `enough`.
async fn ask_all(
    socket: &UdpSocket,
    servers: &[SocketAddr],
    wait: Duration,
    config: &DiscoveryConfig,
    enough: impl Fn(&[Option<Heard>]) -> bool,
) -> Vec<Seen> {
    let questions: Vec<_> = servers.iter().map(|server| (*server, Change::default())).collect();
    let heard = exchange(socket, &questions, wait, config, enough).await;
    let seen = servers.iter().zip(heard).filter_map(|(server, heard)| {
        let heard = heard?;
        Some(Seen { server: *server, answer: heard.answer?, rtt: heard.rtt })
    });
    seen.collect()
}

/// Addresses that the servers have beside those that were asked. A server behind a one-to-one NAT names itself by an inner
/// address; the address that reached it is right, and its other port is.
fn other_targets(seen: &[Seen]) -> Vec<SocketAddr> {
    let mut known: HashSet<SocketAddr> = seen.iter().map(|seen| seen.server).collect();
    let mut targets = vec![];
    for Seen { server, answer, .. } in seen {
        let Some(other) = answer.other else { continue };
        let same_ip = answer.origin.is_some_and(|origin| origin.ip() == other.ip()) || other.ip() == server.ip();
        let elsewhere = (!same_ip).then_some(other);
        for target in [Some(SocketAddr::new(server.ip(), other.port())), elsewhere].into_iter().flatten() {
            let usable = target.is_ipv4() == server.is_ipv4() && crate::path::sendable(target);
            if usable && targets.len() < MAX_SERVERS && known.insert(target) {
                targets.push(target);
            }
        }
    }
    targets
}

/// From (server, where it saw us) of one socket. Different addresses for two ports of one server show that the port matters;
/// different ones for two servers show that the address does, at least.
fn judge_mapping(seen: &[(SocketAddr, SocketAddr)], translated: Option<bool>) -> Mapping {
    if translated == Some(false) {
        return Mapping::EndpointIndependent;
    }
    let mut verdict = Mapping::Unknown;
    for (place, (server, observed)) in seen.iter().enumerate() {
        for (other, observed_there) in seen.iter().skip(place + 1) {
            match (server.ip() == other.ip(), observed == observed_there) {
                (true, false) => return Mapping::AddressAndPortDependent,
                (false, false) => verdict = Mapping::AddressDependent,
                (false, true) => verdict = verdict.max(Mapping::EndpointIndependent),
                // one address cannot tell
                (true, true) => {}
            }
        }
    }
    verdict
}

/// Whether two ports of one server saw the same address.
fn sees_no_port(seen: &[(SocketAddr, SocketAddr)]) -> bool {
    let same = |(server, observed): &(SocketAddr, SocketAddr), (other, there): &(SocketAddr, SocketAddr)| {
        server.ip() == other.ip() && server.port() != other.port() && observed == there
    };
    seen.iter().enumerate().any(|(place, one)| seen.iter().skip(place + 1).any(|other| same(one, other)))
}

/// With two fresh sockets, so that neither has sent anything to where the answer comes from.
async fn find_filtering(seen: &[Seen], wait: Duration, config: &DiscoveryConfig) -> Filtering {
    let with_two_ips = seen.iter().find(|seen| has_two_ips(seen.server, &seen.answer));
    let Some(server) = with_two_ips.or_else(|| seen.iter().find(|seen| seen.answer.other.is_some())) else {
        return Filtering::Unknown;
    };
    let (both, port) = tokio::join!(
        asked_from_elsewhere(server.server, Change { ip: true, port: true }, wait, config),
        asked_from_elsewhere(server.server, Change { ip: false, port: true }, wait, config),
    );
    judge_filtering(both, port)
}

/// Whether a server says that it can answer from another IP address.
fn has_two_ips(server: SocketAddr, answer: &Answer) -> bool {
    answer
        .other
        .is_some_and(|other| other.ip() != server.ip() && answer.origin.is_none_or(|origin| origin.ip() != other.ip()))
}

/// What came of a question whose answer was asked for from another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Elsewhere {
    Arrived,
    Silent,
    /// The server cannot.
    Refused,
}

fn judge_filtering(both: Elsewhere, port: Elsewhere) -> Filtering {
    match (both, port) {
        (Elsewhere::Arrived, _) => Filtering::EndpointIndependent,
        (Elsewhere::Silent, Elsewhere::Arrived) => Filtering::AddressDependent,
        // nothing came, but the server had confirmed that it has another port
        (_, Elsewhere::Silent) => Filtering::AddressAndPortDependent,
        // from another port it comes through, another address was not to be had
        (Elsewhere::Refused, Elsewhere::Arrived) | (_, Elsewhere::Refused) => Filtering::Unknown,
    }
}

async fn asked_from_elsewhere(
    server: SocketAddr,
    change: Change,
    wait: Duration,
    config: &DiscoveryConfig,
) -> Elsewhere {
    let Ok(socket) = bind(server, config) else { return Elsewhere::Refused };
    match ask_one(&socket, (server, change), wait, config).await {
        None => Elsewhere::Silent,
        Some(heard) if heard.answer.is_some() && heard.from != server => Elsewhere::Arrived,
        Some(_) => Elsewhere::Refused,
    }
}

/// A reply.
#[derive(Clone, Copy)]
struct Heard {
    /// `None`: refused.
    answer: Option<Answer>,
    from: SocketAddr,
    /// From the first question on, whichever was answered: never too small.
    rtt: Duration,
}

async fn ask_one(
    socket: &UdpSocket,
    question: (SocketAddr, Change),
    wait: Duration,
    config: &DiscoveryConfig,
) -> Option<Heard> {
    let heard = exchange(socket, &[question], wait, config, |heard| heard.iter().all(Option::is_some)).await;
    heard.first().copied().flatten()
}

/// Asks several questions from one socket at once, each up to [`DiscoveryConfig::attempts`] times, and waits for the replies:
/// until they are `enough`, or [`patience`] with the first is over, or `wait`.
async fn exchange(
    socket: &UdpSocket,
    questions: &[(SocketAddr, Change)],
    mut wait: Duration,
    config: &DiscoveryConfig,
    enough: impl Fn(&[Option<Heard>]) -> bool,
) -> Vec<Option<Heard>> {
    let mut heard = vec![None; questions.len()];
    let mut transactions = vec![[0; 12]; questions.len()];
    for transaction in &mut transactions {
        if getrandom::fill(transaction).is_err() {
            return heard;
        }
    }
    let start = Instant::now();
    let mut rounds = 0;
    let mut buffer = [0; BUFFER];
    while !enough(&heard) {
        let due = if rounds < config.attempts { config.retransmit * rounds } else { wait };
        let next = start + due.min(wait);
        if Instant::now() >= next {
            if rounds == config.attempts || due >= wait && rounds > 0 {
                break;
            }
            rounds += 1;
            for ((question, transaction), _) in
                questions.iter().zip(&transactions).zip(&heard).filter(|(_, heard)| heard.is_none())
            {
                let mut out = Vec::with_capacity(QUERY_BYTES);
                encode_query(&mut out, *transaction, question.1);
                // unreachable now may be reachable at the next try
                let _ = socket.send_to(&out, question.0).await;
            }
            continue;
        }
        let Ok(Ok((length, from))) = timeout_at(next, socket.recv_from(&mut buffer)).await else { continue };
        let Ok(Some(reply)) = decode_reply(buffer.get(..length).unwrap_or_default()) else { continue };
        let Some(place) = transactions.iter().position(|transaction| *transaction == reply.transaction) else {
            continue;
        };
        let from = unmapped(from);
        let plain =
            questions.get(place).is_some_and(|(server, change)| *change == Change::default() && *server != from);
        if let (Some(slot @ None), false) = (heard.get_mut(place), plain) {
            let rtt = start.elapsed();
            *slot = Some(Heard { answer: reply.answer, from, rtt });
            wait = wait.min(patience(rtt, config));
        }
    }
    heard
}

fn bind(towards: SocketAddr, config: &DiscoveryConfig) -> io::Result<UdpSocket> {
    let any: IpAddr = if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    if let Some(interface) = config.interface.filter(|_| towards.is_ipv4()) {
        prefer(&socket, Some(interface))?;
    }
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The own address that datagrams to there get; connecting sends nothing.
async fn source_towards(server: SocketAddr, config: &DiscoveryConfig) -> Option<IpAddr> {
    let socket = bind(server, config).ok()?;
    socket.connect(server).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// For the way there and back, and as much again for a queue that was not there before.
const RTT_MARGIN: u32 = 2;
/// Servers asked, and other addresses of theirs: more tell nothing new.
const MAX_SERVERS: usize = 8;
/// Sockets that one sampling opens.
const MAX_SAMPLES: usize = 64;
/// Answers of other servers may carry more than ours; none comes near the MTU of Ethernet.
const BUFFER: usize = 1_500;

#[cfg(test)]
mod tests;
