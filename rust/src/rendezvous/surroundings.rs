//! Where this node is, as far as it can find out: its interfaces, what servers and peers see of it, what its gateway opened, and
//! what its NAT does.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{watch, Notify};
use tokio::time::{timeout, Instant};

use super::observed::{Observed, OwnAddress, Round};
use crate::addr::unmapped;
use crate::config::{DiscoveryConfig, HostConfig};
use crate::nat::{self, Interfaces, PortMapping, Watch};
use crate::net::uplink::interface_with;
use crate::net::{usual_source, Net};
use crate::path::{
    is_for_everybody, rank_candidates, sendable, Candidate, CandidateKind, Mapping, NatProfile, Ports, Whereabouts,
};

/// What is known, and the tasks that find it out.
pub struct Surroundings {
    local: SocketAddr,
    searches: bool,
    discovery: DiscoveryConfig,
    watch: Watch,
    mapping: Option<PortMapping>,
    state: Arc<Mutex<State>>,
    /// The NAT's profile; `None` until it was looked for once in this network.
    profile: watch::Sender<Option<Learned>>,
    /// What it was in the network before this one.
    profile_before: Mutex<Option<Learned>>,
    /// Goes up with each observation, and when a round of questions is over.
    heard: watch::Sender<u64>,
    /// Goes up when we are seen at an address at which we were not seen before.
    moves: watch::Sender<u64>,
    /// Servers are to be asked where they see us.
    pub ask: Notify,
}

/// What the NAT does, and when that was found out.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    pub profile: NatProfile,
    pub at: Instant,
    /// In the network before this one.
    pub elsewhere: bool,
}

struct State {
    /// STUN servers, by where they answer.
    servers: Vec<SocketAddr>,
    /// Our own addresses as others saw them.
    observed: Observed,
    /// The same by interfaces that the system sends to peers by and not to the servers: ours there, and what was seen.
    elsewhere: Vec<(Ipv4Addr, SocketAddr)>,
    /// Nobody of the family answered when that was asked last: IPv4, IPv6.
    unheard: [bool; 2],
}

impl Surroundings {
    /// `net` has the node's own socket. Starts inside a tokio runtime.
    pub fn start(net: &Net, port_mapping: bool, searches: bool, host: &HostConfig) -> Self {
        let (local, peers) = (net.local_address(), net.clone());
        let observed = Observed::new(Instant::now());
        let state =
            Arc::new(Mutex::new(State { servers: Vec::new(), observed, elsewhere: Vec::new(), unheard: [false; 2] }));
        let loopback = local.ip().is_loopback();
        let of_watch = state.clone();
        // the ways to those that this node has to do with
        let targets = move || {
            let servers = of_watch.lock().unwrap_or_else(PoisonError::into_inner).servers.clone();
            let mut targets: Vec<IpAddr> = servers.iter().map(SocketAddr::ip).collect();
            targets.extend(peers.destinations(MAX_PEERS_LOOKED_AT).iter().map(|address| unmapped(*address).ip()));
            targets
        };
        Self {
            local,
            searches,
            discovery: DiscoveryConfig::default(),
            watch: Watch::start(host, Arc::new(targets)),
            mapping: (port_mapping && !loopback).then(|| PortMapping::start(local.port(), Vec::new(), host)),
            state,
            profile: watch::Sender::new(None),
            profile_before: Mutex::default(),
            heard: watch::Sender::new(0),
            moves: watch::Sender::new(0),
            ask: Notify::new(),
        }
    }

    /// The number of the network, which changes with it.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.watch.generation()
    }

    /// Changes when this node has learnt that it is seen elsewhere than before.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// There is a route to somebody, or a network of our own.
    pub fn is_online(&self) -> bool {
        let network = self.watch.network();
        let network = network.borrow();
        network.ways.any() || network.interfaces.candidates(false).next().is_some()
    }

    pub fn profile(&self) -> Option<Learned> {
        let now = *self.profile.borrow();
        let before = || *self.profile_before.lock().unwrap_or_else(PoisonError::into_inner);
        now.or_else(|| before().map(|before| Learned { elsewhere: true, ..before }))
    }

    /// What is known of the own addresses, and since when.
    pub fn own(&self) -> Vec<OwnAddress> {
        self.lock().observed.own()
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

    /// The servers to ask where they see us: of each IP address one, and some of either family.
    pub fn observers(&self) -> Vec<SocketAddr> {
        let servers = self.lock().servers.clone();
        let network = self.watch.network();
        let mut chosen: Vec<SocketAddr> = Vec::new();
        for server in servers {
            let of_family = chosen.iter().filter(|one| one.is_ipv4() == server.is_ipv4()).count();
            let known = chosen.iter().any(|one| one.ip() == server.ip());
            if of_family < MAX_OBSERVERS && !known && network.borrow().ways.leads_to(server.ip()) {
                chosen.push(server);
            }
        }
        chosen
    }

    /// Questions by interfaces that peers may be reached by, where the system takes others towards the servers: our address at the
    /// interface, its number, and the server.
    pub fn elsewhere(&self) -> Vec<(Ipv4Addr, u32, SocketAddr)> {
        // a server in a private network is reached by the interface to that network and by no other
        let asked = |server: &SocketAddr| server.is_ipv4() && is_for_everybody(server.ip());
        let servers: Vec<_> = self.observers().into_iter().filter(asked).take(SAMPLED).collect();
        let sources: Vec<_> = servers.iter().filter_map(|server| usual_source(*server)).collect();
        let exits = self.watch.network().borrow().ways.other_exits(sources);
        self.lock().elsewhere.retain(|(exit, _)| exits.contains(exit));
        let numbered = exits.into_iter().filter_map(|exit| Some((exit, interface_with(exit.into())?)));
        numbered.flat_map(|(exit, number)| servers.iter().map(move |server| (exit, number, *server))).collect()
    }

    /// A server saw us there by that interface.
    pub fn observe_elsewhere(&self, exit: Ipv4Addr, address: SocketAddr) {
        if sendable(address) && !address.ip().is_loopback() {
            let mut state = self.lock();
            state.elsewhere.retain(|(known, _)| *known != exit);
            state.elsewhere.truncate(MAX_ELSEWHERE);
            state.elsewhere.push((exit, address));
        }
    }

    /// Whether peers see us elsewhere than the servers do.
    pub fn is_elsewhere(&self) -> bool {
        !self.lock().elsewhere.is_empty()
    }

    /// Somebody saw us come from there. One who is elsewhere cannot have seen us on the loopback, and whoever believed that
    /// would try what peers say of it.
    pub fn observe(&self, address: SocketAddr, by: SocketAddr) {
        let address = unmapped(address);
        if !sendable(address) || (address.ip().is_loopback() && !unmapped(by).ip().is_loopback()) {
            return;
        }
        let mut state = self.lock();
        let is_elsewhere = state.observed.note(address, unmapped(by), Instant::now());
        state.unheard[usize::from(address.is_ipv6())] = false;
        drop(state);
        if is_elsewhere {
            self.moves.send_modify(|moves| *moves += 1);
        }
        self.heard.send_modify(|heard| *heard += 1);
    }

    /// A round of questions is over: of IPv4, and of IPv6.
    pub fn asked(&self, ipv4: Round, ipv6: Round) {
        let mut state = self.lock();
        state.unheard = [ipv4.answers == 0, ipv6.answers == 0];
        state.observed.asked(true, ipv4);
        state.observed.asked(false, ipv6);
        drop(state);
        self.heard.send_modify(|heard| *heard += 1);
    }

    /// What was seen may be otherwise by now: it is asked for again, and told until there is something newer.
    pub fn doubt(&self) {
        self.lock().observed.doubt();
        self.ask.notify_one();
    }

    /// Everything was seen from another network.
    pub fn network_changed(&self) {
        self.lock().unheard = [false; 2];
        self.doubt();
        let before = self.profile.send_replace(None);
        if before.is_some() {
            *self.profile_before.lock().unwrap_or_else(PoisonError::into_inner) = before;
        }
        if let Some(mapping) = &self.mapping {
            mapping.refresh();
        }
    }

    /// Whether an own address is known in each family in which somebody can be asked, and answers.
    pub fn is_sure(&self) -> bool {
        let observers = self.observers();
        let state = self.lock();
        let is_sure = |ipv4: bool| state.observed.is_sure(ipv4) || state.unheard[usize::from(!ipv4)];
        [true, false].into_iter().all(|ipv4| is_sure(ipv4) || observers.iter().all(|one| one.is_ipv4() != ipv4))
    }

    /// Waits for the own address where it is not known, or doubtful: for an answer to the questions that are asked now.
    async fn own_address(&self) {
        let mut heard = self.heard.subscribe();
        heard.mark_unchanged();
        if self.is_sure() {
            return;
        }
        self.ask.notify_one();
        let sure = async {
            while heard.changed().await.is_ok() {
                if self.is_sure() {
                    return;
                }
            }
        };
        let _ = timeout(OWN_ADDRESS_PATIENCE, sure).await;
    }

    /// How servers are asked what the NAT does: where there are several ways out, the NAT that peers see counts.
    fn towards_peers(&self) -> DiscoveryConfig {
        let interface = self.elsewhere().first().map(|(_, number, _)| *number);
        DiscoveryConfig { interface, ..self.discovery.clone() }
    }

    /// Asks the servers what the NAT does.
    pub async fn discover(&self) {
        let servers = self.lock().servers.clone();
        let (network, number) = (self.generation(), *self.generation().borrow());
        let config = self.towards_peers();
        let mut profile = nat::discover(&servers, DISCOVERY_DEADLINE, &config).await;
        if config.interface.is_some() && profile.udp_blocked {
            // servers may be reached by the usual interface only
            profile = nat::discover(&servers, DISCOVERY_DEADLINE, &self.discovery).await;
        }
        tracing::debug!(%profile, servers = servers.len(), "NAT behaviour");
        // what was asked in another network says nothing of this one
        if *network.borrow() == number {
            self.profile.send_replace(Some(Learned { profile, at: Instant::now(), elsewhere: false }));
        }
    }

    /// What a peer is told: as soon as the NAT's behaviour is known, or when `patience` is over. Where the NAT counts its
    /// ports, the last one is asked for anew.
    pub async fn whereabouts(&self, patience: Duration) -> Whereabouts {
        let begin = Instant::now();
        let mut profile = self.profile.subscribe();
        let known = async {
            let learned = profile.wait_for(Option::is_some).await.ok().and_then(|learned| *learned);
            learned.map(|learned| learned.profile)
        };
        let before = *self.profile_before.lock().unwrap_or_else(PoisonError::into_inner);
        // in a network that has changed, somebody waits for the path to come back
        let patience = if before.is_some() { patience.min(PROFILE_PATIENCE) } else { patience };
        let (known, ()) = tokio::join!(timeout(patience, known), self.own_address());
        let mut profile = known.ok().flatten().unwrap_or_default();
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
        let config = self.towards_peers();
        for server in servers {
            if let Ok(Some(port)) = timeout(SAMPLE_TIMEOUT, nat::sample_port(server, &config)).await {
                return Some(port);
            }
        }
        None
    }

    /// The addresses at which this node may be reached, the best first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let network = self.watch.network().borrow().clone();
        let observed = self.lock().seen();
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
        let on_loopback = self.lock().observed.addresses().iter().any(|address| address.ip().is_loopback());
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

impl State {
    /// Where others saw us, or would: what peers are likely to see first.
    fn seen(&self) -> Vec<SocketAddr> {
        let mut seen: Vec<_> = self.elsewhere.iter().map(|(_, address)| *address).collect();
        seen.extend(
            self.observed
                .addresses()
                .into_iter()
                .filter(|one| self.elsewhere.iter().all(|(_, known)| known.ip() != one.ip())),
        );
        seen
    }
}

/// Each rendezvous node names a few; ten tell no more than four.
const MAX_SERVERS: usize = 16;
/// A round trip of a path over a satellite, and one repetition. What is not known then is guessed from the last time.
const SAMPLE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Of interfaces; one more takes the place of the oldest.
const MAX_ELSEWHERE: usize = 3;
/// Together less than a peer waits for an answer.
const SAMPLED: usize = 2;
/// Asked where they see us, of each family: one that is down, one behind another uplink, and one more.
const MAX_OBSERVERS: usize = 3;
/// Peers whose route is watched: with one that leads elsewhere most others do.
const MAX_PEERS_LOOKED_AT: usize = 16;
/// A dial waits so long for what a round trip to a server tells; a second is a round trip of a bad path, and one repetition.
const OWN_ADDRESS_PATIENCE: Duration = Duration::from_secs(1);
/// After a change of network plain addresses and relays bring most paths back at once, whatever the NAT does; those that need more are
/// met again. Questions about the NAT take some six round trips.
const PROFILE_PATIENCE: Duration = Duration::from_millis(200);
/// PUNCH.md, phase 0.
const DISCOVERY_DEADLINE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::NetConfig;

    #[tokio::test]
    async fn what_cannot_be_true_is_not_believed() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (net, _incoming) = Net::bind(at("0.0.0.0:0"), NetConfig::default()).unwrap();
        let surroundings = Surroundings::start(&net, false, true, &HostConfig::default());
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
        net.close().await;
    }

    /// Whatever interface the system uses towards everybody else.
    #[tokio::test]
    async fn servers_of_a_private_network_are_asked_by_the_usual_interface_alone() {
        let (net, _incoming) = Net::bind("0.0.0.0:0".parse().unwrap(), NetConfig::default()).unwrap();
        let surroundings = Surroundings::start(&net, false, true, &HostConfig::default());
        for server in ["127.0.0.1:7348", "10.77.0.1:7348", "100.64.7.1:3478"] {
            surroundings.add_server(server.parse().unwrap());
        }
        assert_eq!(surroundings.elsewhere(), []);
        surroundings.close().await;
        net.close().await;
    }

    #[tokio::test]
    async fn a_change_of_network_takes_nothing_away_and_a_dial_waits_for_what_is_new() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (net, _incoming) = Net::bind(at("0.0.0.0:0"), NetConfig::default()).unwrap();
        let surroundings = Surroundings::start(&net, false, true, &HostConfig::default());
        let server = at("127.0.0.1:7348");
        surroundings.add_server(server);
        assert!(!surroundings.is_sure());
        surroundings.observe(at("127.0.0.1:5"), server);
        assert!(surroundings.is_sure());
        surroundings.network_changed();
        assert!(!surroundings.is_sure());
        assert!(surroundings.candidates().iter().any(|one| one.address == at("127.0.0.1:5")), "nothing newer is known");
        let (_, ()) = tokio::join!(surroundings.own_address(), async {
            surroundings.ask.notified().await;
            surroundings.observe(at("127.0.0.1:6"), server);
        });
        let told: Vec<_> = surroundings.candidates().iter().map(|one| one.address).collect();
        assert!(told.contains(&at("127.0.0.1:6")) && !told.contains(&at("127.0.0.1:5")), "{told:?}");
        surroundings.doubt();
        let nobody = Round { began: Instant::now(), servers: 1, answers: 0 };
        surroundings.asked(nobody, nobody);
        let own = surroundings.own();
        assert!(!own[0].known && own[0].addresses == [at("127.0.0.1:6")], "{own:?}");
        // nobody answers: nothing is waited for (this would take a second each time)
        surroundings.own_address().await;
        surroundings.close().await;
        net.close().await;
    }
}
