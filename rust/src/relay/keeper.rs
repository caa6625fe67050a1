//! The relays of a node: which are known, which are in use, and another when one goes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{broadcast, watch, Notify};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{timeout, Instant};

use super::client::{CarryStats, RelaySpec};
use super::in_use::{InUse, InUses};
use super::known::{Key, Known};
use super::Transport;
use crate::addr::{NodeId, Via};
use crate::config::RelayConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::Net;
use crate::path::{Candidate, CandidateKind, OwnRelay};

/// What happens to relays.
#[derive(Clone, Debug)]
pub enum RelayEvent {
    /// Another is in use, or one less, without a loss that anybody has to be told of.
    Changed,
    Connected {
        relay: String,
        addresses: Vec<SocketAddr>,
    },
    Lost {
        relay: String,
        error: Error,
    },
}

/// How it stands with one relay.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// Its host.
    pub relay: String,
    /// Of paths that go through it; `None`: it is not in use.
    pub via: Option<Via>,
    pub transport: Option<Transport>,
    /// `host:port` of the HTTP proxy that it is reached through.
    pub proxy: Option<String>,
    /// What it keeps for this node.
    pub addresses: Vec<SocketAddr>,
    pub rtt: Option<Duration>,
    pub stats: CarryStats,
    /// It carries to rendezvous nodes only.
    pub introduction: bool,
    /// Since when it is in use.
    pub since: Option<Instant>,
    /// Why it was not reached, or was lost.
    pub error: Option<Error>,
    /// When that was.
    pub failed: Option<Instant>,
    pub next_try: Option<Instant>,
}

/// Relays at work. Dropping it gives every allocation back.
pub struct Relays {
    inner: Arc<Inner>,
    task: JoinHandle<()>,
}

pub(super) struct Inner {
    pub net: Net,
    pub config: RelayConfig,
    state: Mutex<State>,
    /// Something is to be looked at: a relay has become known, or one in use has gone.
    pub news: Notify,
    /// How many relays have come into use so far, and whether there is anything to wait for.
    progress: watch::Sender<Progress>,
    pub events: broadcast::Sender<RelayEvent>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Progress {
    in_use: usize,
    /// Any of the two: it may lead to a rendezvous.
    any: usize,
    looking: bool,
}

#[derive(Default)]
pub(super) struct State {
    pub known: Vec<Known>,
    pub in_use: InUses,
    /// Goes up with each change of network: what was asked before counts no more.
    pub network: u64,
}

impl Relays {
    /// Uses the best of these, and of those that are offered later. Needs a tokio runtime.
    pub fn start(net: Net, config: RelayConfig, specs: Vec<RelaySpec>) -> Self {
        let state = State { known: Known::group(specs, None), ..State::default() };
        let looking = !state.known.is_empty();
        let inner = Arc::new(Inner {
            net,
            config,
            state: Mutex::new(state),
            news: Notify::new(),
            progress: watch::Sender::new(Progress { looking, ..Progress::default() }),
            events: broadcast::Sender::new(EVENT_QUEUE),
        });
        let task = tokio::spawn(inner.clone().run());
        Self { inner, task }
    }

    /// Somebody names relays, good for so long. What it named before and does not name any more is forgotten once it is not in use.
    ///
    /// `anew`: he was away himself, and his relays perhaps with him. Those that failed are tried again, and those in use are asked
    /// whether they still know us.
    pub fn offer(&self, by: &str, specs: Vec<RelaySpec>, good_for: Duration, anew: bool) {
        let until = Instant::now() + good_for;
        let mut offered = Known::group(specs, Some((by.to_owned(), until)));
        offered.truncate(MAX_OFFERED);
        let mut state = self.inner.lock();
        let all = std::mem::take(&mut state.known);
        let (before, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|known| known.is_offered_by(by));
        state.known = others;
        for mut new in offered {
            // whoever repeats himself does not make his clients try again sooner
            if let Some(old) = before.iter().find(|old| old.name == new.name) {
                new.keep_history_of(old);
                if anew {
                    new.forgive();
                    new.anew = true;
                }
            }
            if anew {
                state.in_use.iter().filter(|one| one.key() == new.key()).for_each(|one| one.carrier.probe());
            }
            let named = state.known.iter().any(|known| known.key() == new.key());
            if !named && state.known.len() < MAX_KNOWN {
                state.known.push(new);
            }
        }
        drop(state);
        self.inner.news.notify_one();
    }

    /// A way to a rendezvous node where no UDP gets through: the relay beside it, which carries to it and to nobody else.
    pub fn introduce(&self, host: &str, node: NodeId) {
        let mut state = self.inner.lock();
        let known = Known::introduction(host, node);
        if state.known.len() < MAX_KNOWN
            && !state.known.iter().any(|other| other.introduction && other.name == known.name)
        {
            state.known.push(known);
            drop(state);
            self.inner.news.notify_one();
        }
    }

    /// The rendezvous at `host` is reached without a relay again: the way to it is given back, and relays that are spoken to by other
    /// means than UDP are asked anew.
    pub fn udp_is_back(&self, host: Option<&str>) {
        host.into_iter().for_each(|host| self.dismiss(host));
        let otherwise = self.inner.lock().in_use.chosen().any(|one| one.transport != Transport::Udp);
        if otherwise {
            self.network_changed();
        }
    }

    /// The relay at this host is about to end. It is used until others are in its place, and not asked again for a moment.
    pub fn going(&self, host: &str) {
        let mut state = self.inner.lock();
        state.in_use.doubt(Instant::now(), |one| one.relay == host);
        let error = Error::new(Reason::RelayLost, Stage::Relay, "the relay says that it is about to end");
        for known in state.known.iter_mut().filter(|known| known.name == host) {
            known.note(Err(error.clone()), &self.inner.config);
        }
        drop(state);
        self.inner.tell();
        self.inner.news.notify_one();
    }

    fn dismiss(&self, host: &str) {
        let mut state = self.inner.lock();
        state.known.retain(|known| !known.introduction || known.name != host);
        state.in_use.retain(|one| !one.introduction || one.relay != host);
        drop(state);
        self.inner.tell();
    }

    /// Whether the way to a rendezvous at this host is in use, or was asked for.
    pub fn introduces(&self, host: &str) -> bool {
        let state = self.inner.lock();
        state.in_use.chosen().any(|one| one.introduction && one.relay == host)
            || state.known.iter().any(|known| known.introduction && known.name == host)
    }

    /// Those in use, for meetings.
    pub fn own(&self) -> Vec<OwnRelay> {
        self.inner.own(false)
    }

    /// One is in use of which nothing is doubted.
    pub fn has_current(&self) -> bool {
        self.inner.lock().in_use.have() > 0
    }

    /// The hosts of those in use.
    pub fn hosts(&self) -> Vec<String> {
        let state = self.inner.lock();
        state.in_use.chosen().filter(|one| !one.introduction).map(|one| one.relay.clone()).collect()
    }

    /// Ways that others have taken the place of. They carry for a while still.
    pub fn leaving(&self) -> Vec<Via> {
        self.inner.lock().in_use.iter().filter(|one| one.is_replaced()).map(|one| one.via).collect()
    }

    /// All of them in use, also those that lead to rendezvous nodes only.
    pub fn to_rendezvous(&self) -> Vec<OwnRelay> {
        self.inner.own(true)
    }

    /// What relays keep for this node, for peers.
    pub fn candidates(&self) -> Vec<Candidate> {
        let addresses = self.own().into_iter().flat_map(|relay| relay.addresses);
        addresses.map(|address| Candidate { kind: CandidateKind::Relayed, address }).collect()
    }

    /// Waits until a relay is in use, or there is none to wait for, or `patience` is over.
    pub async fn ready(&self, patience: Duration) {
        let mut progress = self.inner.progress.subscribe();
        let settled = progress.wait_for(|progress| progress.in_use > 0 || !progress.looking);
        let _ = timeout(patience, settled).await;
    }

    /// Waits until something leads to rendezvous nodes; for ever, if nothing does.
    pub async fn reachable(&self) {
        let mut progress = self.inner.progress.subscribe();
        let _ = progress.wait_for(|progress| progress.any > 0).await;
    }

    pub fn status(&self) -> Vec<RelayStatus> {
        self.inner.status()
    }

    pub fn subscribe(&self) -> broadcast::Receiver<RelayEvent> {
        self.inner.events.subscribe()
    }

    /// The machine is in another network: what failed may work now. What is in use is asked for anew, and used until that is there:
    /// the old network may be there as well.
    pub fn network_changed(&self) {
        let mut state = self.inner.lock();
        state.known.iter_mut().for_each(Known::forgive);
        state.in_use.doubt(Instant::now(), |_| true);
        state.network += 1;
        drop(state);
        self.inner.tell();
        self.inner.news.notify_one();
    }

    /// Gives everything back: as long as `patience` says.
    pub async fn close(&self, patience: Duration) {
        self.task.abort();
        let in_use = self.inner.lock().in_use.take();
        let mut closing = JoinSet::new();
        in_use.into_iter().for_each(|one| drop(closing.spawn(one.carrier.close())));
        let _ = timeout(patience, async { while closing.join_next().await.is_some() {} }).await;
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.task.abort();
        drop(self.inner.lock().in_use.take());
    }
}

impl Inner {
    /// How an attempt, or a use, has ended.
    pub fn note(&self, key: Key<'_>, result: Result<()>) {
        if let Some(known) = self.lock().known.iter_mut().find(|known| known.key() == key) {
            known.note(result, &self.config);
        }
    }

    pub fn tell(&self) {
        let state = self.lock();
        let (any, in_use) = (state.in_use.any(), state.in_use.have());
        let soon = Instant::now() + self.config.patience;
        let looking = state.known.iter().any(|known| !known.introduction && known.is_hoped_for(soon));
        drop(state);
        let progress = Progress { in_use, any, looking };
        self.progress.send_if_modified(|old| std::mem::replace(old, progress) != progress);
    }

    fn own(&self, introductions: bool) -> Vec<OwnRelay> {
        let state = self.lock();
        let chosen = state.in_use.chosen().filter(|one| introductions || !one.introduction);
        chosen.map(|one| OwnRelay { via: one.via, addresses: one.addresses.clone() }).collect()
    }

    fn status(&self) -> Vec<RelayStatus> {
        let state = self.lock();
        let used = |known: &Known| state.in_use.at(known.key());
        let of = |name: &str, introduction: bool, known: Option<&Known>, one: Option<&InUse>| RelayStatus {
            relay: name.to_owned(),
            via: one.map(|one| one.via),
            transport: one.map(|one| one.transport),
            proxy: one.and_then(|one| one.proxy.clone()),
            addresses: one.map(|one| one.addresses.clone()).unwrap_or_default(),
            rtt: one.map(|one| one.rtt),
            stats: one.map(|one| one.carrier.stats()).unwrap_or_default(),
            introduction,
            since: one.map(|one| one.since),
            error: known.and_then(|known| known.error.clone()),
            failed: known.and_then(Known::failed_at),
            next_try: known.and_then(Known::retry_at),
        };
        let known = state.known.iter().map(|known| of(&known.name, known.introduction, Some(known), used(known)));
        let mut all: Vec<_> = known.collect();
        for one in state.in_use.chosen() {
            if !state.known.iter().any(|known| known.key() == one.key()) {
                all.push(of(&one.relay, one.introduction, None, Some(one)));
            }
        }
        all
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever names relays names a handful; a node uses two.
const MAX_OFFERED: usize = 8;
const MAX_KNOWN: usize = 32;
const EVENT_QUEUE: usize = 64;
