//! `allow=` as a function: whose question is asked next. A function may be slow, and whoever has a key can make it work, so
//! each node has few questions under way, networks and nodes take turns, and who was just denied is denied without a question.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::settings::{AccessRequest, BoxFuture};
use crate::addr::{network_of, NodeId};

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answered {
    Allowed,
    Denied,
    /// Nobody answered in time.
    Late,
    /// It was not asked: too many questions wait, and this node or its network has the most of them.
    Crowded,
}

/// The questions of one proxy.
#[derive(Default)]
pub(super) struct Asking {
    state: Mutex<State>,
}

impl Asking {
    /// Asks `ask` when it is the node's turn. Waits `patience` at most for the turn, and as long again for the answer.
    pub async fn ask(
        &self,
        ask: &(dyn Fn(AccessRequest) -> BoxFuture<'static, bool> + Send + Sync),
        request: AccessRequest,
        patience: Duration,
    ) -> Answered {
        let (place, turn) = self.enter(request.node, network_of(request.remote_address.ip()));
        match timeout(patience, turn).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Answered::Crowded,
            Err(_) => return Answered::Late,
        }
        let answered = ask_now(ask, request, patience).await;
        drop(place);
        answered
    }

    fn enter(&self, node: NodeId, network: Network) -> (Place<'_>, oneshot::Receiver<()>) {
        let mut state = lock(&self.state);
        let (number, turn) = state.enter(node, network);
        state.serve();
        (Place { asking: self, number }, turn)
    }
}

/// Asks without a turn: about connections that stand. How many newcomers of the same node wait must not put off an answer that
/// may end them; the caller bounds how many it asks about at once.
pub(super) async fn ask_now(
    ask: &(dyn Fn(AccessRequest) -> BoxFuture<'static, bool> + Send + Sync),
    request: AccessRequest,
    patience: Duration,
) -> Answered {
    match timeout(patience, ask(request)).await {
        Ok(true) => Answered::Allowed,
        Ok(false) => Answered::Denied,
        Err(_) => Answered::Late,
    }
}

/// The place of a question that waits or is under way; dropping it frees the place and serves whoever is next.
struct Place<'a> {
    asking: &'a Asking,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.asking.state);
        state.leave(self.number);
        state.serve();
    }
}

type Network = [u8; 8];

#[derive(Default)]
struct State {
    last: u64,
    waiting: Vec<Waiting>,
    under_way: HashMap<u64, (NodeId, Network)>,
    nodes: Lanes<NodeId>,
    networks: Lanes<Network>,
}

struct Waiting {
    number: u64,
    node: NodeId,
    network: Network,
    /// Dropped when the question loses its place to another.
    turn: oneshot::Sender<()>,
}

impl State {
    /// When too many wait, the one that came last of the node with the most, in the network with the most, loses its place:
    /// that may be the newcomer.
    fn enter(&mut self, node: NodeId, network: Network) -> (u64, oneshot::Receiver<()>) {
        let (turn, waits) = oneshot::channel();
        self.last += 1;
        self.nodes.of(node).waiting += 1;
        self.networks.of(network).waiting += 1;
        self.waiting.push(Waiting { number: self.last, node, network, turn });
        if self.nodes.of(node).waiting > MAX_WAITING_PER_NODE || self.waiting.len() > MAX_WAITING {
            let crowd = |w: &Waiting| (self.networks.waiting(&w.network), self.nodes.waiting(&w.node), w.number);
            let own = self.nodes.waiting(&node) > MAX_WAITING_PER_NODE;
            let candidates = self.waiting.iter().filter(|w| !own || w.node == node);
            if let Some(loser) = candidates.max_by_key(|w| crowd(w)).map(|w| w.number) {
                self.leave(loser);
            }
        }
        (self.last, waits)
    }

    fn leave(&mut self, number: u64) {
        let (node, network) = match self.waiting.iter().position(|waiting| waiting.number == number) {
            Some(at) => {
                let Waiting { node, network, .. } = self.waiting.remove(at);
                self.nodes.of(node).waiting -= 1;
                self.networks.of(network).waiting -= 1;
                (node, network)
            }
            None => match self.under_way.remove(&number) {
                Some((node, network)) => {
                    self.nodes.of(node).under_way -= 1;
                    self.networks.of(network).under_way -= 1;
                    (node, network)
                }
                None => return,
            },
        };
        self.nodes.tidy(&node);
        self.networks.tidy(&network);
    }

    /// Gives turns while there are any: to the network, and in it the node, that was served longest ago.
    fn serve(&mut self) {
        while self.under_way.len() < MAX_UNDER_WAY {
            let free = self.waiting.iter().filter(|w| self.nodes.under_way(&w.node) < MAX_UNDER_WAY_PER_NODE);
            let turn = |w: &&Waiting| (self.networks.served(&w.network), self.nodes.served(&w.node), w.number);
            let Some(number) = free.min_by_key(turn).map(|waiting| waiting.number) else { return };
            let Some(at) = self.waiting.iter().position(|waiting| waiting.number == number) else { return };
            let Waiting { node, network, turn, .. } = self.waiting.remove(at);
            self.last += 1;
            for lane in [self.nodes.of(node), self.networks.of(network)] {
                lane.waiting -= 1;
                lane.under_way += 1;
                lane.served = self.last;
            }
            self.under_way.insert(number, (node, network));
            // whoever waits no more gives its place back itself
            let _ = turn.send(());
        }
    }
}

/// What each node, or each network, has in here; those that have nothing are forgotten.
struct Lanes<K>(HashMap<K, Lane>);

#[derive(Default)]
struct Lane {
    waiting: usize,
    under_way: usize,
    /// When it was last served, on the clock of [`State::last`].
    served: u64,
}

impl<K> Default for Lanes<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Hash + Eq> Lanes<K> {
    fn of(&mut self, key: K) -> &mut Lane {
        self.0.entry(key).or_default()
    }

    fn waiting(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, |lane| lane.waiting)
    }

    fn under_way(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, |lane| lane.under_way)
    }

    fn served(&self, key: &K) -> u64 {
        self.0.get(key).map_or(0, |lane| lane.served)
    }

    fn tidy(&mut self, key: &K) {
        if self.0.get(key).is_some_and(|lane| lane.waiting == 0 && lane.under_way == 0) {
            self.0.remove(key);
        }
    }
}

/// Node, service, and where it is: what a denial is remembered for.
type About = (NodeId, u16, IpAddr);

/// Who was denied a moment ago: the same question need not be asked again. For functions that cost more than this; a function
/// that failed has denied nobody.
#[derive(Debug, Default)]
pub struct Denials {
    about: HashSet<About>,
    order: VecDeque<(Instant, About)>,
}

impl Denials {
    /// Whether this question has just been answered with a no.
    pub fn hold(&mut self, request: &AccessRequest, now: Instant) -> bool {
        self.holds(&about(request), now)
    }

    /// Remembers a no, for a moment.
    pub fn remember(&mut self, request: &AccessRequest, now: Instant) {
        self.note(about(request), now);
    }

    fn holds(&mut self, about: &About, now: Instant) -> bool {
        while self.order.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= DENIED_FOR) {
            self.drop_oldest();
        }
        self.about.contains(about)
    }

    fn note(&mut self, about: About, now: Instant) {
        if self.about.insert(about) {
            self.order.push_back((now, about));
        }
        while self.order.len() > MAX_DENIED {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, about)) = self.order.pop_front() {
            self.about.remove(&about);
        }
    }
}

fn about(request: &AccessRequest) -> About {
    (request.node, request.service_port, request.remote_address.ip())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Questions under way at once. Python asks with four threads, so that of the others a few wait there already; for a function
/// that itself waits (async) this is how many it does at once.
const MAX_UNDER_WAY: usize = 16;
/// The same for one node: one that asks for a slow answer again and again leaves room for others.
const MAX_UNDER_WAY_PER_NODE: usize = 3;
/// Questions that wait for their turn, and those of one node.
const MAX_WAITING: usize = 256;
const MAX_WAITING_PER_NODE: usize = 64;
/// Long enough that somebody who tries again at once costs nothing, and short enough that nobody who was just put on the list
/// notices.
const DENIED_FOR: Duration = Duration::from_secs(1);
/// Denials remembered: 64 KiB.
const MAX_DENIED: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    fn network(n: u8) -> Network {
        [n; 8]
    }

    /// Enters a question; its number.
    fn enter(state: &mut State, from: u8, at: u8) -> (u64, oneshot::Receiver<()>) {
        let entered = state.enter(node(from), network(at));
        state.serve();
        entered
    }

    fn is_asked((_, turn): &mut (u64, oneshot::Receiver<()>)) -> bool {
        turn.try_recv().is_ok()
    }

    #[test]
    fn a_node_has_few_questions_under_way() {
        let mut state = State::default();
        let mut asked: Vec<_> = (0..5).map(|_| enter(&mut state, 1, 1)).collect();
        assert_eq!(state.under_way.len(), MAX_UNDER_WAY_PER_NODE);
        let mut other = enter(&mut state, 2, 1);
        assert!(is_asked(&mut other), "another node is not in its way");
        state.leave(asked[0].0);
        state.serve();
        assert!(is_asked(&mut asked[3]) && !is_asked(&mut asked[4]));
    }

    #[test]
    fn networks_and_nodes_take_turns() {
        let mut state = State::default();
        // sixteen keys of one network have everything under way, and fifty more wait
        let crowd: Vec<_> = (1..=66).map(|n| enter(&mut state, n, 1)).collect();
        assert_eq!(state.under_way.len(), MAX_UNDER_WAY);
        let mut friend = enter(&mut state, 200, 2);
        assert!(!is_asked(&mut friend));
        state.leave(crowd[0].0);
        state.serve();
        assert!(is_asked(&mut friend), "it was never served, and so is its network");
    }

    #[test]
    fn who_has_the_most_waiting_loses_a_place_and_nobody_else() {
        let mut state = State::default();
        let mut many: Vec<_> =
            (0..MAX_WAITING_PER_NODE + MAX_UNDER_WAY_PER_NODE).map(|_| enter(&mut state, 1, 1)).collect();
        let mut one_more = enter(&mut state, 1, 1);
        assert_eq!(one_more.1.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        for n in 0..=u8::MAX {
            drop(enter(&mut state, n.max(2), n.max(2)));
        }
        assert!(state.waiting.len() <= MAX_WAITING);
        let mut friend = enter(&mut state, 201, 250);
        assert_ne!(friend.1.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(many.iter_mut().any(|(_, turn)| turn.try_recv() == Err(oneshot::error::TryRecvError::Closed)));
    }

    #[test]
    fn nothing_is_kept_of_who_asks_no_more() {
        let mut state = State::default();
        let entered: Vec<_> = (0..200).map(|n| enter(&mut state, n, n)).collect();
        entered.iter().for_each(|(number, _)| {
            state.leave(*number);
            state.serve();
        });
        assert!(state.waiting.is_empty() && state.under_way.is_empty());
        assert!(state.nodes.0.is_empty() && state.networks.0.is_empty());
    }

    #[test]
    fn a_denial_is_remembered_for_a_moment_and_for_that_question() {
        let mut denied = Denials::default();
        let (now, ip) = (Instant::now(), IpAddr::from([127, 0, 0, 1]));
        denied.note((node(1), 7, ip), now);
        assert!(denied.holds(&(node(1), 7, ip), now));
        assert!(!denied.holds(&(node(1), 8, ip), now) && !denied.holds(&(node(2), 7, ip), now));
        assert!(!denied.holds(&(node(1), 7, ip), now + DENIED_FOR));
        (0..u16::MAX).for_each(|port| denied.note((node(1), port, ip), now));
        assert_eq!((denied.about.len(), denied.order.len()), (MAX_DENIED, MAX_DENIED));
    }
}
