//! Places for handshakes: how many of those who have connected and not yet shown that they may, from one source, one network,
//! and in all; and who gives way when there are too many.
//!
//! A stranger's place costs him one packet, so strangers cannot have them all: some are kept for nodes that are known (they
//! have a key with us, and were let in before or are on the list), one source and one network have few, and when there is no
//! room the one who is least far, of the source that has the most, makes it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, Notify};
use tokio::time::timeout;

use crate::addr::unmapped;
use crate::config::ProxyLimits;

/// How far a handshake is, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// It has said nothing that is whole.
    Hello,
    Tls,
    /// Its key is proven.
    Open,
    /// The access list is asked.
    Access,
}

/// All places of a node.
pub struct Places {
    state: Mutex<State>,
    /// A place is free.
    freed: Notify,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    all: usize,
    /// What strangers leave to nodes that are known.
    reserved: usize,
    per_source: usize,
    per_network: usize,
    /// Of nodes that are known.
    known_per_source: usize,
}

#[derive(Default)]
struct State {
    last: u64,
    held: BTreeMap<u64, Held>,
    /// How many wait for a place, by their source.
    waiting: HashMap<IpAddr, usize>,
}

struct Held {
    source: IpAddr,
    network: IpAddr,
    known: bool,
    progress: Progress,
    since: Instant,
    give_way: oneshot::Sender<()>,
}

/// One place; dropping it frees the place.
pub struct Place {
    places: Arc<Places>,
    number: u64,
    give_way: Option<oneshot::Receiver<()>>,
}

/// Stands in the queue for a place; dropping it leaves.
pub struct Ticket {
    places: Arc<Places>,
    source: SocketAddr,
    known: bool,
}

impl Places {
    pub(super) fn new(limits: &ProxyLimits) -> Arc<Self> {
        let all = limits.max_handshakes;
        let limits = Limits {
            all,
            reserved: all / RESERVED,
            per_source: limits.max_handshakes_per_source,
            per_network: limits.max_handshakes_per_network.max(limits.max_handshakes_per_source),
            known_per_source: (all / KNOWN_SHARE).max(limits.max_handshakes_per_source),
        };
        Arc::new(Self { state: Mutex::default(), freed: Notify::new(), limits })
    }

    /// A place for whoever connected from `source`, at once; others may have to give way. `None`: there is none.
    pub fn enter(self: &Arc<Self>, source: SocketAddr, known: bool) -> Option<Place> {
        self.enter_at(source, known, Instant::now())
    }

    fn enter_at(self: &Arc<Self>, source: SocketAddr, known: bool, now: Instant) -> Option<Place> {
        let (number, give_way) = self.lock().enter(&self.limits, source, known, now)?;
        Some(Place { places: self.clone(), number, give_way: Some(give_way) })
    }

    /// Stands in the queue for one. `None`: too many from there, or in all, stand there already.
    pub fn queue(self: &Arc<Self>, source: SocketAddr, known: bool) -> Option<Ticket> {
        let mut state = self.lock();
        let key = customer(source);
        let (own, all) = (state.waiting.get(&key).copied().unwrap_or(0), state.waiting.values().sum::<usize>());
        if own >= WAITING_PER_PLACE * self.limits.per_source || all >= self.limits.all {
            return None;
        }
        *state.waiting.entry(key).or_insert(0) += 1;
        Some(Ticket { places: self.clone(), source, known })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn advance(&self, progress: Progress) {
        if let Some(held) = self.places.lock().held.get_mut(&self.number) {
            held.progress = progress;
        }
    }

    /// Waits until it has to give way to another; for ever, if that does not happen.
    pub fn gives_way(&mut self) -> impl std::future::Future<Output = ()> + Send + use<> {
        let give_way = self.give_way.take();
        async move {
            let told = match give_way {
                Some(give_way) => give_way.await.is_ok(),
                None => false,
            };
            if !told {
                std::future::pending().await
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // who had to give way frees nothing, and one place is for one of those who wait: each of them looks through all places
        let freed = self.places.lock().held.remove(&self.number).is_some();
        if freed {
            self.places.freed.notify_one();
        }
    }
}

impl Ticket {
    /// Waits for the place. `None`: none came free in time.
    pub async fn place(self, within: Duration) -> Option<Place> {
        let waiting = async {
            loop {
                let freed = self.places.freed.notified();
                tokio::pin!(freed);
                freed.as_mut().enable();
                if let Some(place) = self.places.enter(self.source, self.known) {
                    return place;
                }
                // some may have to give way only when they have been silent for a while
                let _ = timeout(SILENT / 4, freed).await;
            }
        };
        timeout(within, waiting).await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let key = customer(self.source);
        if let Some(waiting) = state.waiting.get_mut(&key) {
            *waiting = waiting.saturating_sub(1);
            if *waiting == 0 {
                state.waiting.remove(&key);
            }
        }
    }
}

impl State {
    fn enter(
        &mut self,
        limits: &Limits,
        source: SocketAddr,
        known: bool,
        now: Instant,
    ) -> Option<(u64, oneshot::Receiver<()>)> {
        let (source, network) = (customer(source), network(source));
        let count = |of: &dyn Fn(&Held) -> bool| self.held.values().filter(|held| of(held)).count();
        let own = count(&|held| held.known == known && held.source == source);
        let victim = match known {
            true if own >= limits.known_per_source => {
                Some(self.victim(now, own, |held| held.known && held.source == source)?)
            }
            true if self.held.len() < limits.all => None,
            true => Some(self.victim(now, 0, |held| !held.known).or_else(|| self.victim(now, own, |_| true))?),
            false if own >= limits.per_source => {
                Some(self.victim(now, own, |held| !held.known && held.source == source)?)
            }
            false if count(&|held| !held.known && held.network == network) >= limits.per_network => {
                Some(self.victim(now, own + 1, |held| !held.known && held.network == network)?)
            }
            false if count(&|held| !held.known) < limits.all - limits.reserved && self.held.len() < limits.all => None,
            false => Some(self.victim(now, own + 1, |held| !held.known)?),
        };
        if let Some(held) = victim.and_then(|number| self.held.remove(&number)) {
            let _ = held.give_way.send(());
        }
        self.last += 1;
        let (give_way, told) = oneshot::channel();
        let held = Held { source, network, known, progress: Progress::Hello, since: now, give_way };
        self.held.insert(self.last, held);
        Some((self.last, told))
    }

    /// Who of these gives way to somebody whose source has `own` places: the least advanced of the source that has the most,
    /// the oldest of several; where it has no more than that, only one that has been silent for a while.
    fn victim(&self, now: Instant, own: usize, among: impl Fn(&Held) -> bool) -> Option<u64> {
        let (mut sources, mut networks) = (HashMap::new(), HashMap::new());
        for held in self.held.values().filter(|held| among(held)) {
            *sources.entry(held.source).or_insert(0usize) += 1;
            *networks.entry(held.network).or_insert(0usize) += 1;
        }
        let candidates = self.held.iter().filter(|(_, held)| {
            let silent = held.progress == Progress::Hello && now.saturating_duration_since(held.since) >= SILENT;
            among(held) && (silent || sources[&held.source] > own)
        });
        let crowd = |held: &Held| (sources[&held.source], networks[&held.network]);
        let worst = candidates.max_by_key(|(number, held)| (crowd(held), Reverse(held.progress), Reverse(**number)));
        worst.map(|(number, _)| *number)
    }
}

/// One customer's addresses: an IPv4 address, or a /64 of IPv6 (RFC 6177).
fn customer(source: SocketAddr) -> IpAddr {
    prefix(source, 32, 64)
}

/// What one customer may have of them at most: an IPv4 /24, an IPv6 /48 (RFC 6177 section 2).
fn network(source: SocketAddr) -> IpAddr {
    prefix(source, 24, 48)
}

fn prefix(source: SocketAddr, v4_length: u32, v6_length: u32) -> IpAddr {
    match unmapped(source).ip() {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << (32 - v4_length)))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << (128 - v6_length)))),
    }
}

/// One in so many places is kept for nodes that are known.
const RESERVED: usize = 4;
/// Known nodes of one source have one in so many: an office behind one address.
const KNOWN_SHARE: usize = 2;
/// Those who wait for a place, for each that their source may have: with those who have one as many as the endpoint keeps half open for
/// one remote (`EndpointConfig::max_half_open_per_remote`), for a peer that dials for the first time may do so often at once.
const WAITING_PER_PLACE: usize = 7;
/// An honest dialler's ClientHello comes with the packet that makes the connection, or right behind it; a lost packet is repeated
/// within this.
const SILENT: Duration = Duration::from_secs(1);

#[cfg(test)]
#[path = "places_tests.rs"]
mod tests;
