//! Where this node is, as far as it can find out: its interfaces, what servers and peers see of it, what its gateway opened, and
//! what its NAT does.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{timeout, Instant};

use crate::addr::unmapped;
use crate::config::{DiscoveryConfig, HostConfig};
use crate::nat::{self, Interfaces, Network, PortMapping, Watch};
use crate::path::{rank_candidates, sendable, Candidate, CandidateKind, Mapping, NatProfile, Ports, Whereabouts};

/// What is known, and the tasks that find it out.
pub struct Surroundings {
    local: SocketAddr,
    searches: bool,
    discovery: DiscoveryConfig,
    watch: Watch,
    mapping: Option<PortMapping>,
    state: Mutex<State>,
    /// The NAT's profile; `None` until it was looked for once.
    profile: watch::Sender<Option<NatProfile>>,
}

#[derive(Default)]
struct State {
    /// STUN servers, by where they answer.
    servers: Vec<SocketAddr>,
    /// Our own addresses as others saw them last, of each family.
    observed: Vec<SocketAddr>,
}

impl Surroundings {
    /// `local`: the node's own socket. Starts inside a tokio runtime.
    pub fn start(local: SocketAddr, port_mapping: bool, searches: bool, host: &HostConfig) -> Self {
        let loopback = local.ip().is_loopback();
        Self {
            local,
            searches,
            discovery: DiscoveryConfig::default(),
            watch: Watch::start(host),
            mapping: (port_mapping && !loopback).then(|| PortMapping::start(local.port(), Vec::new(), host)),
            state: Mutex::default(),
            profile: watch::Sender::new(None),
        }
    }

    pub fn network(&self) -> watch::Receiver<Network> {
        self.watch.network()
    }

    pub fn profile(&self) -> Option<NatProfile> {
        *self.profile.borrow()
    }

    /// Adds a STUN server. True: it is news.
    pub fn add_server(&self, server: SocketAddr) -> bool {
        let server = unmapped(server);
        let mut state = self.lock();
        let news = sendable(server) && !state.servers.contains(&server) && state.servers.len() < MAX_SERVERS;
        if news {
            state.servers.push(server);
        }
        news
    }

    /// Whether what this address says of us is believed.
    pub fn is_server(&self, address: SocketAddr) -> bool {
        self.lock().servers.contains(&address)
    }

    /// Somebody saw us come from there. One who is elsewhere cannot have seen us on the loopback, and whoever believed that
    /// would try what peers say of it.
    pub fn observe(&self, address: SocketAddr, by: SocketAddr) {
        let address = unmapped(address);
        if !sendable(address) || (address.ip().is_loopback() && !unmapped(by).ip().is_loopback()) {
            return;
        }
        let mut state = self.lock();
        state.observed.retain(|known| known.is_ipv4() != address.is_ipv4());
        state.observed.push(address);
    }

    /// Everything was seen from another network.
    pub fn forget(&self) {
        self.lock().observed.clear();
        if let Some(mapping) = &self.mapping {
            mapping.refresh();
        }
    }

    /// Asks the servers what the NAT does.
    pub async fn discover(&self) {
        let servers = self.lock().servers.clone();
        let profile = nat::discover(&servers, DISCOVERY_DEADLINE, &self.discovery).await;
        tracing::debug!(%profile, servers = servers.len(), "NAT behaviour");
        self.profile.send_replace(Some(profile));
    }

    /// What a peer is told: as soon as the NAT's behaviour is known, or when `patience` is over. Where the NAT counts its
    /// ports, the last one is asked for anew.
    pub async fn whereabouts(&self, patience: Duration) -> Whereabouts {
        let begin = Instant::now();
        let mut profile = self.profile.subscribe();
        let known = async { profile.wait_for(Option::is_some).await.ok().and_then(|profile| *profile) };
        let mut profile = timeout(patience, known).await.ok().flatten().unwrap_or_default();
        let symmetric = !matches!(profile.mapping, Mapping::Unknown | Mapping::EndpointIndependent);
        if let (true, Ports::Sequential { delta, .. }) = (symmetric, profile.ports) {
            if let Some(last) = self.sample_port().await {
                profile.ports = Ports::Sequential { last, delta };
            }
        }
        Whereabouts {
            candidates: self.candidates(),
            profile,
            searches: self.searches,
            direct_only: false,
            took: begin.elapsed(),
        }
    }

    /// The port that the NAT gives now; not every server need be alive.
    async fn sample_port(&self) -> Option<u16> {
        let servers: Vec<_> = self.lock().servers.iter().copied().filter(SocketAddr::is_ipv4).take(SAMPLED).collect();
        for server in servers {
            if let Ok(Some(port)) = timeout(SAMPLE_TIMEOUT, nat::sample_port(server, &self.discovery)).await {
                return Some(port);
            }
        }
        None
    }

    /// The addresses at which this node may be reached, the best first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let network = self.watch.network().borrow().clone();
        let observed = self.lock().observed.clone();
        let port = self.local.port();
        let mut candidates = Vec::new();
        let host = |ip: IpAddr| Candidate { kind: CandidateKind::Host, address: SocketAddr::new(ip, port) };
        let bound = unmapped(self.local).ip();
        if bound.is_unspecified() {
            let v6_too = self.local.is_ipv6();
            let own = network.interfaces.candidates(false).map(|address| address.ip);
            candidates.extend(own.filter(|ip| ip.is_ipv4() || v6_too).map(host));
        } else {
            candidates.push(host(bound));
        }
        let mapped = self.mapping.as_ref().and_then(|mapping| *mapping.external().borrow());
        candidates.extend(mapped.map(|address| Candidate { kind: CandidateKind::PortMapped, address }));
        for address in observed {
            let kind = match network.interfaces.is_own(address.ip()) {
                true => CandidateKind::Host,
                false => CandidateKind::ServerReflexive,
            };
            candidates.push(Candidate { kind, address });
        }
        // the peer ranks them by where it is itself; here they are only brought into an order and within the cap
        rank_candidates(&mut candidates, |_| false);
        candidates
    }

    /// Whether an address is in a network of ours: then it may be tried even if it is private.
    pub fn near(&self) -> impl Fn(IpAddr) -> bool {
        let interfaces: Interfaces = self.watch.network().borrow().interfaces.clone();
        let on_loopback = self.lock().observed.iter().any(|address| address.ip().is_loopback());
        let loopback = on_loopback || unmapped(self.local).ip().is_loopback();
        move |ip| if ip.is_loopback() { loopback } else { interfaces.same_subnet(ip) }
    }

    pub async fn close(&self) {
        if let Some(mapping) = &self.mapping {
            mapping.close().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each rendezvous node names a few; ten tell no more than four.
const MAX_SERVERS: usize = 16;
/// A round trip, and one repetition. What is not known then is guessed from the last time.
const SAMPLE_TIMEOUT: Duration = Duration::from_millis(500);
const SAMPLED: usize = 3;
/// PUNCH.md, phase 0.
const DISCOVERY_DEADLINE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_true_is_not_believed() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let surroundings = Surroundings::start(at("0.0.0.0:4433"), false, true, &HostConfig::default());
        for lie in ["127.0.0.1:5", "224.0.0.1:5", "255.255.255.255:5", "203.0.113.9:0", "[ff02::1]:5"] {
            surroundings.observe(at(lie), at("203.0.113.1:7348"));
            assert!(!surroundings.candidates().iter().any(|one| one.address == at(lie)), "{lie}");
            assert_eq!(surroundings.add_server(at(lie)), lie == "127.0.0.1:5", "{lie}");
        }
        assert!(!surroundings.near()("127.0.0.1".parse().unwrap()));
        surroundings.observe(at("203.0.113.9:5"), at("203.0.113.1:7348"));
        assert!(surroundings.candidates().iter().any(|one| one.address == at("203.0.113.9:5")));
        surroundings.observe(at("127.0.0.1:5"), at("127.0.0.1:7348"));
        assert!(surroundings.near()("127.0.0.1".parse().unwrap()));
        surroundings.close().await;
    }
}
