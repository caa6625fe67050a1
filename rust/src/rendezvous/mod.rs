//! Rendezvous: two nodes that know only each other's key find each other through a third that both can reach, and open a path.
//!
//! | file | what |
//! |---|---|
//! | `station` | one rendezvous node: the session with it |
//! | `wire` | the gRPC messages of that session |
//! | `exchange` | invitation, answer, go: the dialler's half, and the meeting |
//! | `answering` | the other half |
//! | `invitations` | which invitation is answered next, and which are turned away |
//! | `surroundings` | where this node is: interfaces, NAT, mapped port |
//! | `pace` | how slow exchanges are at present, and what follows from that |
//! | `observed` | the own addresses as others saw them, with their age |
//! | `moves` | what a change of network brings, and a path that falls silent |
//! | `relays` | what relays add: candidates, a way to the rendezvous, direct paths in place of relayed ones |
//! | `turns` | how many own dials look for their peers at once |
//! | `upgrades` | when those that are reached over a relay are offered a direct path again |
//! | `report` | how meetings went, so that it can be explained |
//!
//! The rendezvous sees who looks for whom, and nothing else: names are proven and addresses sealed end to end
//! ([`crate::tls::introduction`]).

mod answering;
mod exchange;
mod invitations;
mod moves;
mod observed;
mod pace;
mod pause;
mod relays;
mod report;
mod station;
mod surroundings;
mod turns;
mod unanswered;
mod upgrades;
mod wire;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, Notify};
use tokio::task::JoinHandle;
use tokio::time::{sleep, Instant};

pub use observed::{OwnAddress, Round};
pub use relays::DirectOnly;
use relays::Named;
pub use report::{Report, Role};
pub use station::{Server, StationStatus};
pub use surroundings::Learned;

use crate::addr::{unmapped, NodeId};
use crate::config::{HostConfig, RelayConfig, RendezvousConfig};
use crate::error::Error;
use crate::net::NetEvent;
use crate::path::{is_local, Candidate};
use crate::peer::{resolve, Finder, Peers};
use crate::relay::client::RelaySpec;
use crate::relay::{RelayStatus, Relays};
use crate::tls::PeerIdentity;
use exchange::{Ear, Heard, Words};
use invitations::Invitations;
use pace::Pace;
use report::Reports;
use station::Station;
use surroundings::Surroundings;
use turns::Turns;
use wire::{Cause, FromRendezvous, Welcome};

/// Who may learn where this node is.
pub trait Gate: Send + Sync {
    /// Whether this node knows the other, or has it on its access list: without asking anybody.
    fn is_friend(&self, node: &NodeId) -> bool;

    /// Whether somebody who is no friend may learn it all the same. May ask the program, and take its time.
    fn admits(&self, peer: &PeerIdentity) -> Admitted;
}

/// The answer of a [`Gate`], on its way.
pub type Admitted = Pin<Box<dyn Future<Output = bool> + Send>>;

/// What a node is told about finding others.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub servers: Vec<Server>,
    /// Further STUN servers, `host:port`.
    pub stun: Vec<String>,
    pub port_mapping: bool,
    pub search_ports: bool,
    /// Relays that the user named.
    pub relays: Vec<RelaySpec>,
    pub direct_only: DirectOnly,
    pub config: RendezvousConfig,
    pub relay: RelayConfig,
    pub host: HostConfig,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum RendezvousEvent {
    Connected { node: NodeId, address: SocketAddr, observed: Option<SocketAddr> },
    Lost { node: NodeId, address: String, error: Error, was_connected: bool },
    NetworkChanged { addresses: Vec<SocketAddr> },
    MeetingFailed { node: NodeId, error: Error },
    RelayConnected { relay: String, addresses: Vec<SocketAddr> },
    RelayLost { relay: String, error: Error },
}

/// A node's presence at its rendezvous nodes. Dropping it ends that.
pub struct Rendezvous {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks share.
struct Inner {
    peers: Arc<Peers>,
    config: RendezvousConfig,
    surroundings: Surroundings,
    relays: Relays,
    relay_config: RelayConfig,
    /// What each rendezvous calls the relays that it has named.
    named: Mutex<HashMap<NodeId, Named>>,
    direct_only: DirectOnly,
    stations: Vec<Arc<Station>>,
    gate: Arc<dyn Gate>,
    exchanges: Mutex<Exchanges>,
    invitations: Mutex<Invitations>,
    /// An invitation has arrived, or an answer has ended.
    knock: Notify,
    /// Places for own dials that begin.
    turns: Turns,
    pace: Mutex<Pace>,
    reports: Mutex<Reports>,
    events: broadcast::Sender<RendezvousEvent>,
    /// A session has begun or an attempt has failed.
    progress: Notify,
    /// A session has begun: what was said over those before may be lost.
    sessions: Notify,
    /// A server has become known, or the network has changed: the NAT is to be looked at.
    look: Notify,
    /// Nodes that are being met again, or were lately.
    again: Mutex<HashSet<NodeId>>,
}

type Exchanges = HashMap<[u8; 16], Ear>;

impl Rendezvous {
    /// Registers at every server and stays so; from now on `peers` finds nodes through them. Needs a tokio runtime.
    pub fn start(peers: Arc<Peers>, options: Options, gate: Arc<dyn Gate>) -> Self {
        let Options { servers, stun, port_mapping, search_ports, relays, direct_only, config, relay, host } = options;
        let surroundings = Surroundings::start(&peers.net, port_mapping, search_ports, &host);
        let inner = Arc::new(Inner {
            invitations: Mutex::new(Invitations::new(&config, Instant::now())),
            knock: Notify::new(),
            turns: Turns::new(),
            pace: Mutex::new(Pace::new(config.repeat_after)),
            stations: servers.into_iter().map(|server| Arc::new(Station::new(server))).collect(),
            config,
            surroundings,
            relays: Relays::start(peers.net.clone(), relay.clone(), relays),
            relay_config: relay,
            named: Mutex::default(),
            direct_only,
            gate,
            peers,
            exchanges: Mutex::default(),
            reports: Mutex::default(),
            events: broadcast::Sender::new(EVENT_QUEUE),
            progress: Notify::new(),
            sessions: Notify::new(),
            look: Notify::new(),
            again: Mutex::default(),
        });
        let weak: std::sync::Weak<dyn Finder> = Arc::downgrade(&(inner.clone() as Arc<dyn Finder>));
        inner.peers.find_through(weak);
        let mut tasks: Vec<_> =
            inner.stations.iter().map(|station| tokio::spawn(station.clone().run(inner.clone()))).collect();
        tasks.push(tokio::spawn(inner.clone().look_around(stun)));
        tasks.push(tokio::spawn(inner.clone().watch_network()));
        tasks.push(tokio::spawn(inner.clone().keep_asking()));
        tasks.push(tokio::spawn(inner.clone().watch_paths()));
        tasks.push(tokio::spawn(inner.clone().watch_relays()));
        tasks.push(tokio::spawn(inner.clone().leave_relays()));
        tasks.push(tokio::spawn(inner.clone().answer_invitations()));
        Self { inner, tasks }
    }

    pub fn subscribe(&self) -> broadcast::Receiver<RendezvousEvent> {
        self.inner.events.subscribe()
    }

    pub fn status(&self) -> Vec<StationStatus> {
        self.inner.stations.iter().map(|station| station.status()).collect()
    }

    /// What the NAT does; `None`: not known yet.
    pub fn profile(&self) -> Option<Learned> {
        self.inner.surroundings.profile()
    }

    /// Where others see this node, and since when; of each family that there is.
    pub fn own_addresses(&self) -> Vec<OwnAddress> {
        self.inner.surroundings.own()
    }

    pub fn candidates(&self) -> Vec<Candidate> {
        let mut candidates = self.inner.surroundings.candidates();
        candidates.extend(self.inner.relays.candidates());
        candidates
    }

    pub fn relays(&self) -> Vec<RelayStatus> {
        self.inner.relays.status()
    }

    /// How this node and another met last.
    pub fn report(&self, node: &NodeId) -> Option<Report> {
        self.inner.reports().find(node)
    }

    /// The node has another key: it registers anew, under its new name too.
    pub fn renew(&self) {
        self.inner.stations.iter().for_each(|station| station.renew.notify_one());
    }

    /// Gives back what the gateway opened.
    pub async fn close(&self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.inner.stations.iter().for_each(|station| station.end());
        tokio::join!(self.inner.surroundings.close(), self.inner.relays.close(RELEASE));
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Finder for Inner {
    fn find(self: Arc<Self>, node: NodeId, deadline: Instant) -> crate::peer::Finding {
        Box::pin(async move { self.meet(node, deadline).await })
    }
}

impl Inner {
    fn publish(&self, event: RendezvousEvent) {
        // nobody has to listen
        let _ = self.events.send(event);
    }

    fn exchanges(&self) -> MutexGuard<'_, Exchanges> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reports(&self) -> MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has begun: what it says about us and about servers.
    fn welcomed(self: &Arc<Self>, welcome: &Welcome, from: SocketAddr, observed: Option<SocketAddr>) {
        if let Some(observed) = observed {
            self.surroundings.observe(observed, from);
        }
        let inner = self.clone();
        let named: Vec<_> = welcome.stun.iter().take(MAX_STUN_NAMES).cloned().collect();
        tokio::spawn(async move {
            let at = |port: u16| SocketAddr::new(unmapped(from).ip(), port);
            let mut news = inner.surroundings.add_server(from);
            for name in named {
                match name.strip_prefix(':').and_then(|port| port.parse().ok()) {
                    Some(port) => news |= inner.surroundings.add_server(at(port)),
                    None => news |= inner.add_named_server(&name, Some(from)).await,
                }
            }
            if news {
                inner.look.notify_one();
                if !inner.surroundings.elsewhere().is_empty() {
                    inner.surroundings.ask.notify_one();
                }
            }
        });
    }

    /// `by`: the rendezvous that names it. One on the internet has no business with addresses of our own network.
    async fn add_named_server(&self, name: &str, by: Option<SocketAddr>) -> bool {
        let inside = by.is_none_or(|by| is_local(unmapped(by).ip()));
        let may_ask = |server: &SocketAddr| inside || !is_local(unmapped(*server).ip());
        match resolve(name).await {
            // every one of them is added
            Ok(found) => {
                let news = |server: &SocketAddr| may_ask(server) && self.surroundings.add_server(*server);
                found.iter().filter(|server| news(server)).count() > 0
            }
            Err(error) => {
                tracing::info!(%error, "a STUN server is not found");
                false
            }
        }
    }

    /// A message from a rendezvous. With a signal comes where it sees the sender, if this node may know that.
    fn handle(self: &Arc<Self>, station: &Station, message: FromRendezvous, seen_at: Option<IpAddr>) {
        let (exchange, heard) = match message {
            FromRendezvous::Welcome(_) | FromRendezvous::Going(_) => return,
            FromRendezvous::Relays(relays) => return self.offered(station, relays),
            FromRendezvous::Signal(signal) => {
                let Ok(by) = <[u8; 32]>::try_from(signal.node) else { return };
                (signal.exchange, Heard::Body(Words { by, body: signal.body, seen_at }))
            }
            FromRendezvous::Undelivered(refused) => {
                let cause = Cause::try_from(refused.cause).unwrap_or(Cause::Unspecified);
                (refused.exchange, Heard::Undelivered(cause, refused.detail))
            }
        };
        let Ok(id) = <[u8; 16]>::try_from(exchange) else { return };
        let known = |known: &Arc<Station>| std::ptr::eq(known.as_ref(), station);
        let Some(place) = self.stations.iter().position(known) else { return };
        if let Some(ear) = self.exchanges().get_mut(&id) {
            ear.hear(place, heard);
            return;
        }
        if let Heard::Body(Words { by, body, .. }) = heard {
            self.invited(place, id, by, body);
        }
    }

    /// Asks the servers what the NAT does: when there is a new one, when the network has changed, and now and then.
    async fn look_around(self: Arc<Self>, stun: Vec<String>) {
        for name in &stun {
            self.add_named_server(name, None).await;
        }
        if !stun.is_empty() {
            self.look.notify_one();
        }
        loop {
            tokio::select! {
                () = self.look.notified() => {}
                () = sleep(self.config.discover_every) => {}
            }
            let mut generation = self.surroundings.generation();
            tokio::select! {
                () = self.surroundings.discover() => {}
                // the answers that are waited for would be those of another network
                Ok(()) = generation.changed() => self.look.notify_one(),
            }
        }
    }

    /// A path that falls silent is opened anew; what others see of us may have changed.
    async fn watch_paths(self: Arc<Self>) {
        let mut events = self.peers.net.subscribe();
        loop {
            match events.recv().await {
                Ok(NetEvent::PathSilent { node, .. }) => match self.stations.iter().find(|one| one.server.node == node)
                {
                    Some(station) => station.fell_silent(),
                    None => self.meet_again(node),
                },
                Ok(NetEvent::Observed { address, by }) => self.observed(address, by),
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

/// Giving allocations back must not hold up the end.
const RELEASE: Duration = Duration::from_millis(500);
/// Servers that one rendezvous may name.
const MAX_STUN_NAMES: usize = 8;
const EVENT_QUEUE: usize = 256;
/// Silent peers that are met again at once: a network that is gone makes all of them silent.
const MAX_AGAIN: usize = 64;
