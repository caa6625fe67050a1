//! Dialling: every address that is known of a node, at once, until one of them proves to be it.

use std::collections::HashSet;
use std::net::{SocketAddr, SocketAddrV6};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use rustls::HandshakeKind;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout_at, Instant};
use tokio_rustls::{TlsConnector, TlsStream};

use super::contact::Contact;
use super::link::{explain, Link};
use super::Peers;
use crate::addr::{split_zone, unmapped, NodeId, Route};
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::excerpt;
use crate::net::stagger::families_in_turn;
use crate::net::{interface_number, Helm, UtpStream};
use crate::open::Priority;
use crate::path::OwnRelay;
use crate::tls::{finish, ping_keys, PeerIdentity, TlsContext, PING_KEYS_LABEL, TAG_KEYS_LABEL};
use crate::utp::TagKeys;

/// Whom to dial, and until when.
#[derive(Clone, Debug)]
pub struct Dial {
    pub node: NodeId,
    /// An address that the request itself named, beside those that are known.
    pub address: Option<String>,
    /// Yield to everything else (LEDBAT).
    pub priority: Priority,
    pub deadline: Instant,
}

/// How a node answered, without asking it for a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PingReport {
    pub address: SocketAddr,
    /// Round-trip time as uTP measures it.
    pub rtt: Duration,
    /// How long it took until uTP was connected, counted from the start: rendezvous and punching included.
    pub utp: Duration,
    /// How long the TLS handshake took.
    pub tls: Duration,
    pub tls_version: String,
    pub tls_suite: String,
    pub tls_group: String,
    /// The handshake resumed an earlier session.
    pub resumed: bool,
    /// The key that the node uses now.
    pub leaf: NodeId,
}

impl Peers {
    /// Connects to a node. Dropping the future gives up what it alone waited for.
    ///
    /// Errors: `UnknownNode`, or the most telling failure among the addresses.
    pub async fn dial(self: &Arc<Self>, dial: &Dial) -> Result<Link> {
        let link = self.dial_in_turn(dial).await?;
        self.table().note_dialled(dial.node, link.peer.leaf);
        Ok(link)
    }

    async fn dial_in_turn(self: &Arc<Self>, dial: &Dial) -> Result<Link> {
        if self.live_routes(&dial.node).is_empty() {
            if let Some(link) = Contact::join(self, dial).await? {
                return Ok(link);
            }
        }
        let turn = timeout_at(dial.deadline, self.turn(dial.node)).await;
        let _turn = turn.map_err(|_| {
            Error::new(Reason::ConnectTimeout, Stage::Utp, "too many connections to this node are being made at once")
                .with_node(dial.node)
        })?;
        self.race(dial).await
    }

    /// Connects, looks, and ends the link in order. Errors: as [`Self::dial`]; also what the peer thinks of our identity.
    pub async fn ping(self: &Arc<Self>, node: NodeId, timeout: Duration) -> Result<PingReport> {
        let dial = Dial { node, address: None, priority: Priority::Interactive, deadline: Instant::now() + timeout };
        let begin = Instant::now();
        let mut link = self.race(&dial).await?;
        self.table().note_dialled(node, link.peer.leaf);
        let mut report = report(&link);
        // the way to it counts: the rendezvous, and punching
        report.utp = begin.elapsed().saturating_sub(report.tls);
        // The peer judges our certificate after we think that the handshake is over: wait for its own end, or its alert.
        use tokio::io::AsyncWriteExt;
        let ended = async {
            link.stream.shutdown().await.map_err(|error| explain(&error, link.utp(), Stage::Tls))?;
            link.receive().await
        };
        match timeout_at(dial.deadline, ended).await {
            Ok(Err(error)) if error.stage == Stage::Tls => Err(error.with_node(node).with_address(link.address)),
            _ => {
                let _ = link.finish(Duration::ZERO).await;
                Ok(report)
            }
        }
    }

    /// Dials every address of the node at once; those over which it has proven itself before have a head start. The first
    /// link that proves to be the node wins, the others are dropped.
    pub(super) async fn race(self: &Arc<Self>, dial: &Dial) -> Result<Link> {
        self.run(Race::new(self, dial, true)).await
    }

    /// The same without looking for the node: to its known addresses and the one that the dial names.
    pub async fn dial_directly(self: &Arc<Self>, dial: &Dial) -> Result<Link> {
        self.run(Race::new(self, dial, false)).await
    }

    /// Dials the address that the dial names through relays of ours: the node is its own address there, and where UDP is blocked
    /// there is no other way.
    pub async fn dial_over(self: &Arc<Self>, dial: &Dial, relays: &[OwnRelay]) -> Result<Link> {
        let mut race = Race::empty(self, dial, Instant::now());
        let addresses = named_addresses(dial).await?;
        for relay in relays {
            let reached = addresses.iter().copied().filter(|to| relay.reaches(to.ip()));
            race.add_all(reached.map(|to| Route { via: relay.via, to }), Instant::now());
        }
        self.run(race).await
    }

    /// Dials the address that the dial names, and no relay, whatever path there is.
    pub async fn dial_unrelayed(self: &Arc<Self>, dial: &Dial) -> Result<Link> {
        let mut race = Race::empty(self, dial, Instant::now());
        race.add_all(named_addresses(dial).await?.into_iter().map(Route::from), Instant::now());
        self.run(race).await
    }

    async fn run(self: &Arc<Self>, mut race: Race) -> Result<Link> {
        if race.attempts.is_empty() {
            let text = "no address of this node is known";
            return Err(Error::new(Reason::UnknownNode, Stage::Punch, text).with_node(race.dial.node));
        }
        loop {
            match timeout_at(race.dial.deadline, race.attempts.join_next()).await {
                Ok(Some(Ok(Step::Linked(link)))) => return Ok(*link),
                Ok(Some(Ok(Step::Resolved(addresses)))) => {
                    race.add_all(addresses.into_iter().map(Route::from), race.others_at)
                }
                Ok(Some(Ok(Step::Found))) => race.add_all(self.live_routes(&race.dial.node), Instant::now()),
                Ok(Some(Ok(Step::Failed(error)))) => race.note(error),
                Ok(Some(Err(_))) => race.note(Error::new(Reason::Internal, Stage::Utp, "a dial broke off")),
                Ok(None) => return Err(race.verdict(false)),
                Err(_) => return Err(race.verdict(true)),
            }
        }
    }

    /// The addresses that are known of a node, names resolved. Errors: `UnknownNode`, `Unreachable` (names that do not
    /// resolve).
    pub(super) async fn resolve_all(&self, node: NodeId, timeout: Duration) -> Result<Vec<SocketAddr>> {
        let mut addresses: Vec<_> = self.live_routes(&node).into_iter().map(|route| route.to).collect();
        addresses.extend(self.neighbour_addresses(&node));
        let named = self.table().addresses(&node);
        let mut failed = None;
        for name in &named {
            match tokio::time::timeout(timeout, resolve(name)).await {
                Ok(Ok(found)) => addresses.extend(found),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => {
                    failed = Some(Error::new(Reason::Unreachable, Stage::Punch, format!("{name} does not resolve")))
                }
            }
        }
        let mut seen = HashSet::new();
        addresses.retain(|address| seen.insert(*address));
        if addresses.is_empty() {
            let unknown = || Error::new(Reason::UnknownNode, Stage::Punch, "no address of this node is known");
            return Err(failed.unwrap_or_else(unknown).with_node(node));
        }
        Ok(addresses)
    }

    /// Attempts, and once more a little later where the peer ends it before it has said anything: it may have no place for another
    /// handshake at the moment, and has told nobody anything yet.
    async fn attempts(&self, dial: &Dial, route: Route, in_tls: &OnceLock<Helm>) -> Result<Link> {
        let mut pauses = RESET_PAUSES.into_iter();
        loop {
            let error = match self.attempt(dial, route, in_tls).await {
                Err(error) if error.reason == Reason::PeerReset && error.stage == Stage::Tls => error,
                result => return result,
            };
            let Some(pause) = pauses.next() else { return Err(error) };
            let again = Instant::now() + up_to_twice(pause);
            if again + SAY > dial.deadline {
                return Err(error);
            }
            tracing::debug!(node = %dial.node.short(), address = %route.to, "reset during the handshake, trying again");
            sleep_until(again).await;
        }
    }

    /// One connection attempt: uTP, then TLS, then whether it is the node.
    async fn attempt(&self, dial: &Dial, route: Route, in_tls: &OnceLock<Helm>) -> Result<Link> {
        let context = self.current().tls;
        let start = Instant::now();
        let leaf = self.table().leaf(&dial.node);
        let stream = self.net.connect_along(route, Some(&leaf), self.utp_config(dial.priority)).await?;
        let connected = Instant::now();
        let helm = stream.helm();
        let _ = in_tls.set(helm.clone());
        let deadline = dial.deadline.min(connected + self.tls.handshake_timeout);
        let handshake = handshake(&context, dial.node, stream);
        let stream = timeout_at(deadline, handshake)
            .await
            .map_err(|_| Error::new(Reason::TlsTimeout, Stage::Tls, why_late(&helm)))??;
        let took = (connected - start, connected.elapsed());
        let stream = TlsStream::Client(stream);
        let peer = self.judge(&stream, Some(&dial.node))?;
        Ok(Link::new(stream, peer, took))
    }

    /// Judges who is at the other end, in either role, and tells the path table; also the name of the new ping session.
    pub(super) fn judge(
        &self,
        stream: &TlsStream<UtpStream>,
        wanted: Option<&NodeId>,
    ) -> Result<(PeerIdentity, [u8; 16])> {
        let (utp, connection) = stream.get_ref();
        let peer = finish(connection, wanted, &self.tls, self.judging_time())?;
        let (mut exported, mut secret) = ([0; 64], [0; 32]);
        export(stream, PING_KEYS_LABEL, &mut exported)?;
        export(stream, TAG_KEYS_LABEL, &mut secret)?;
        // before Open: the acceptor may use them from there on
        utp.set_tag_keys(TagKeys::new(&secret, wanted.is_some()));
        let keys = ping_keys(&exported, wanted.is_some());
        let session = keys.local_name;
        self.net.bind_node(utp.remote(), peer.leaf, keys);
        self.learn(&peer, wanted);
        Ok((peer, session))
    }

    /// Waits for this dial's turn among those to the same node.
    async fn turn(&self, node: NodeId) -> Option<OwnedSemaphorePermit> {
        let turns = {
            let mut all = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            if all.len() >= MAX_IDLE_TURNS {
                all.retain(|_, turns| Arc::strong_count(turns) > 1);
            }
            all.entry(node).or_insert_with(|| Arc::new(Semaphore::new(self.limits.max_dials_per_node))).clone()
        };
        turns.acquire_owned().await.ok()
    }
}

/// The attempts of one dial. Dropping it ends them.
struct Race {
    peers: Arc<Peers>,
    dial: Dial,
    attempts: JoinSet<Step>,
    tried: HashSet<Route>,
    /// When addresses that have not proven themselves start.
    others_at: Instant,
    /// The most telling failure so far.
    worst: Option<Error>,
    /// The first attempt that has come so far.
    in_tls: Arc<OnceLock<Helm>>,
}

enum Step {
    Linked(Box<Link>),
    Resolved(Vec<SocketAddr>),
    /// There is a path to the node now.
    Found,
    Failed(Error),
}

impl Race {
    fn new(peers: &Arc<Peers>, dial: &Dial, find: bool) -> Self {
        let now = Instant::now();
        let live = peers.live_routes(&dial.node);
        let named = peers.table().addresses(&dial.node);
        let delay = if live.is_empty() { Duration::ZERO } else { peers.limits.other_addresses_after };
        let mut race = Self::empty(peers, dial, now + delay);
        let live_is_empty = live.is_empty();
        let (first, rest) = live.split_at(live.len().min(1));
        race.add_all(first.iter().copied(), now);
        race.add_all(rest.iter().copied(), race.others_at);
        race.add_all(peers.neighbour_addresses(&dial.node).into_iter().map(Route::from), race.others_at);
        for name in dial.address.iter().chain(&named) {
            match name.parse::<SocketAddr>() {
                Ok(address) => race.add_all([address.into()], race.others_at),
                Err(_) => race.add_name(name.clone()),
            }
        }
        if let Some(finder) = peers.finder().filter(|_| find) {
            // a path that is there deserves the time that TLS takes on a long one
            let start = if live_is_empty { race.others_at } else { now + FIND_AFTER };
            // it knows what it waited for, and gets a moment to say so
            let (node, deadline) = (dial.node, dial.deadline.checked_sub(SAY).unwrap_or(dial.deadline));
            race.attempts.spawn(async move {
                sleep_until(start).await;
                finder.find(node, deadline).await.map_or_else(Step::Failed, |()| Step::Found)
            });
        }
        race
    }

    fn empty(peers: &Arc<Peers>, dial: &Dial, others_at: Instant) -> Self {
        Self {
            peers: peers.clone(),
            dial: dial.clone(),
            attempts: JoinSet::new(),
            tried: HashSet::new(),
            others_at,
            worst: None,
            in_tls: Arc::default(),
        }
    }

    fn add_all(&mut self, routes: impl IntoIterator<Item = Route>, start: Instant) {
        for route in routes {
            let route = Route { to: unmapped(route.to), ..route };
            if self.tried.len() >= MAX_TRIED || !self.tried.insert(route) {
                continue;
            }
            let (peers, dial, in_tls) = (self.peers.clone(), self.dial.clone(), self.in_tls.clone());
            self.attempts.spawn(async move {
                sleep_until(start).await;
                match peers.attempts(&dial, route, &in_tls).await {
                    Ok(link) => Step::Linked(Box::new(link)),
                    Err(error) => Step::Failed(error.with_address(route.to)),
                }
            });
        }
    }

    fn add_name(&mut self, name: String) {
        self.attempts.spawn(async move {
            match resolve(&name).await {
                Ok(addresses) => Step::Resolved(addresses),
                Err(error) => Step::Failed(error),
            }
        });
    }

    fn note(&mut self, error: Error) {
        tracing::debug!(node = %self.dial.node.short(), %error, "an address failed");
        if self.worst.as_ref().is_none_or(|worst| telling(error.reason) > telling(worst.reason)) {
            self.worst = Some(error);
        }
    }

    /// What to say when no attempt is left, or no time.
    fn verdict(self, timed_out: bool) -> Error {
        let mut addresses: Vec<_> = self.tried.iter().map(|route| route.to.to_string()).collect();
        addresses.sort_unstable();
        let addresses = addresses.join(", ");
        let late = match self.in_tls.get() {
            Some(helm) => Error::new(Reason::TlsTimeout, Stage::Tls, format!("{}; tried {addresses}", why_late(helm))),
            None if addresses.is_empty() => {
                Error::new(Reason::PunchTimeout, Stage::Punch, "no address of the node was found in time")
            }
            None => Error::new(Reason::PunchTimeout, Stage::Punch, format!("no answer in time from {addresses}")),
        };
        let mut all: Vec<_> = self.worst.into_iter().collect();
        if timed_out || all.is_empty() {
            all.push(late);
        }
        let worst = all.into_iter().max_by_key(|error| telling(error.reason));
        worst.unwrap_or_else(|| Error::new(Reason::Internal, Stage::Punch, "")).with_node(self.dial.node)
    }
}

/// So that those who were turned away together do not come again together.
fn up_to_twice(pause: Duration) -> Duration {
    let mut bytes = [0; 4];
    // without randomness they do, and some of them a third time
    let _ = getrandom::fill(&mut bytes);
    pause + pause.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

/// How much a failure at one address says about why a node cannot be reached: the further on the road, the more.
fn telling(reason: Reason) -> u8 {
    match reason {
        Reason::IdentityMismatch => 12,
        Reason::RejectedByPeer => 11,
        Reason::CertificateExpired | Reason::ChainBroken | Reason::ChainTooLong | Reason::NameMismatch => 10,
        Reason::CertificateInvalid | Reason::CertificateMissing => 9,
        Reason::TlsFailed => 8,
        Reason::TlsTimeout => 7,
        Reason::PeerReset | Reason::PeerClosed | Reason::PeerLost => 6,
        Reason::ConnectRefused => 5,
        Reason::ConnectTimeout => 4,
        Reason::BothSymmetric | Reason::AccessDenied => 4,
        Reason::UdpBlocked | Reason::PeerOffline | Reason::RendezvousBusy | Reason::PeerBusy => 3,
        Reason::RendezvousUnreachable | Reason::PunchTimeout => 2,
        Reason::Unreachable => 1,
        _ => 0,
    }
}

async fn handshake(
    context: &TlsContext,
    node: NodeId,
    stream: UtpStream,
) -> Result<tokio_rustls::client::TlsStream<UtpStream>> {
    let connector = TlsConnector::from(context.client_config());
    let connecting = connector.connect(TlsContext::server_name(&node), stream).into_fallible();
    connecting.await.map_err(|(error, stream)| explain(&error, &stream, Stage::Tls))
}

/// Why a handshake was not done in time: uTP connects with small packets, and TLS begins with full ones.
fn why_late(helm: &Helm) -> &'static str {
    if helm.is_unheard() {
        "no handshake in time: small packets get there and full ones do not, as where a path carries less than 1260 bytes at \
         a time (its MTU) and drops what is cut into fragments"
    } else {
        "no handshake in time"
    }
}

fn export(stream: &TlsStream<UtpStream>, label: &[u8], exported: &mut [u8]) -> Result<()> {
    let done = match stream {
        TlsStream::Client(stream) => stream.get_ref().1.export_keying_material(exported, label, Some(&[])),
        TlsStream::Server(stream) => stream.get_ref().1.export_keying_material(exported, label, Some(&[])),
    };
    done.map(|_| ()).map_err(|error| Error::new(Reason::Internal, Stage::Tls, format!("no keys from TLS: {error}")))
}

fn report(link: &Link) -> PingReport {
    let connection = link.stream.get_ref().1;
    let text = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
    PingReport {
        address: link.address,
        rtt: link.rtt(),
        utp: link.took.0,
        tls: link.took.1,
        tls_version: text(connection.protocol_version().map(|version| format!("{version:?}"))),
        tls_suite: text(connection.negotiated_cipher_suite().map(|suite| format!("{:?}", suite.suite()))),
        tls_group: text(connection.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()))),
        resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed),
        leaf: link.peer.leaf,
    }
}

/// The address that a dial names.
async fn named_addresses(dial: &Dial) -> Result<Vec<SocketAddr>> {
    let Some(name) = &dial.address else { return Ok(Vec::new()) };
    let found = timeout_at(dial.deadline, resolve(name)).await.unwrap_or_else(|_| Ok(Vec::new()))?;
    Ok(found.into_iter().map(unmapped).collect())
}

/// The addresses of `host:port`, the families in turn; the host may be an IPv6 address with the name of an interface. Errors:
/// `Unreachable`, with the name.
pub async fn resolve(name: &str) -> Result<Vec<SocketAddr>> {
    let failed = |text: String| Error::new(Reason::Unreachable, Stage::Punch, format!("cannot resolve {name}: {text}"));
    if let Some(scoped) = scoped(name) {
        return scoped.map(|address| vec![address]).map_err(failed);
    }
    let found = match tokio::net::lookup_host(name).await {
        Ok(found) => families_in_turn(found, MAX_RESOLVED),
        Err(error) => return Err(failed(error.to_string())),
    };
    if found.is_empty() {
        return Err(failed("it has no addresses".to_owned()));
    }
    Ok(found)
}

/// `[fe80::1%eth0]:4433`; `None`: there is no interface in it. Errors: what is wrong with it.
pub fn scoped(name: &str) -> Option<std::result::Result<SocketAddr, String>> {
    let (host, port) = name.strip_prefix('[')?.rsplit_once("]:")?;
    let (ip, zone) = split_zone(host);
    let (ip, zone, port) = (ip.parse().ok()?, zone?, port.parse().ok()?);
    let number = zone.parse().ok().or_else(|| interface_number(zone));
    let found = number.map(|number| SocketAddrV6::new(ip, port, 0, number).into());
    Some(found.ok_or_else(|| format!("this machine has no interface '{}'", excerpt(zone))))
}

/// A node to which a path stands is looked for anew after so long: three round trips of a long path, and a lost packet.
const FIND_AFTER: Duration = Duration::from_secs(2);
/// Whoever looks for the node ends so long before the dial.
const SAY: Duration = Duration::from_millis(100);
/// Before the next attempts at an address that was reset during the handshake, and up to twice as long: places of strangers come free within
/// two round trips of an honest one.
const RESET_PAUSES: [Duration; 3] = [Duration::from_millis(250), Duration::from_millis(500), Duration::from_secs(1)];
/// Addresses tried in one dial, and taken from one name.
const MAX_TRIED: usize = 32;
const MAX_RESOLVED: usize = 8;
/// Nodes whose turns are kept before those that nobody waits for are thrown out.
const MAX_IDLE_TURNS: usize = 256;
