//! What a change of network brings: where this node is now is asked at once, sessions and paths have to show that they still work,
//! and those that do not are made anew.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout, Instant};

use super::observed::Round;
use super::{Inner, RendezvousEvent, MAX_AGAIN};
use crate::addr::{unmapped, NodeId};
use crate::time::Time;

impl Inner {
    /// Follows the changes of network.
    pub(super) async fn watch_network(self: Arc<Self>) {
        let mut generation = self.surroundings.generation();
        while generation.changed().await.is_ok() {
            let addresses: Vec<_> = self.surroundings.candidates().iter().map(|one| one.address).collect();
            let online = self.surroundings.is_online();
            tracing::info!(?addresses, online, "the network has changed");
            self.surroundings.network_changed();
            if online {
                self.look.notify_one();
                self.relays.network_changed();
                self.check_paths();
                self.stations.iter().for_each(|station| station.network_changed());
            }
            self.publish(RendezvousEvent::NetworkChanged { addresses });
        }
    }

    /// Every path in use is asked whether it works; peers that do not answer are met anew, without waiting until they count as silent.
    fn check_paths(self: &Arc<Self>) {
        let (asked, since) = self.peers.net.network_changed();
        for (node, rtt) in asked.into_iter().filter(|(node, _)| !self.is_station(node)).take(MAX_AGAIN) {
            let inner = self.clone();
            tokio::spawn(async move {
                sleep(answer_within(rtt)).await;
                if !inner.peers.net.is_heard_since(&node, since) {
                    inner.meet_again_since(node, since);
                }
            });
        }
    }

    pub(super) fn is_station(&self, node: &NodeId) -> bool {
        self.stations.iter().any(|station| station.server.node == *node)
    }

    /// A path has fallen silent: the node is met again, and again as long as it stays so.
    pub(super) fn meet_again(self: &Arc<Self>, node: NodeId) {
        self.meet_while_silent(node, move |inner| !inner.peers.net.has_silent_path(&node));
    }

    /// The same for one that has not answered since a change of network, though packets may come from it.
    fn meet_again_since(self: &Arc<Self>, node: NodeId, since: Time) {
        self.meet_while_silent(node, move |inner| inner.peers.net.is_heard_since(&node, since));
    }

    fn meet_while_silent(self: &Arc<Self>, node: NodeId, is_back: impl Fn(&Self) -> bool + Send + 'static) {
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        if again.len() >= MAX_AGAIN || !again.insert(node) {
            return;
        }
        drop(again);
        let inner = self.clone();
        tokio::spawn(async move {
            loop {
                // nobody answers for a node that has ended
                if inner.peers.net.is_closing() {
                    return;
                }
                let next = Instant::now() + inner.config.again_after;
                inner.meet_silent(node).await;
                sleep_until(next).await;
                // a meeting may fail, and the path may fall silent again while one is under way: that is reported once
                let mut again = inner.again.lock().unwrap_or_else(PoisonError::into_inner);
                if is_back(&inner) && !inner.peers.net.has_silent_path(&node) {
                    again.remove(&node);
                    return;
                }
            }
        });
    }

    pub(super) async fn meet_silent(self: &Arc<Self>, node: NodeId) {
        // our NAT may have forgotten them as well: then their pongs tell our new address before the invitation has it
        self.stations.iter().for_each(|station| self.peers.net.ask(&station.server.node));
        let deadline = Instant::now() + self.config.direct_timeout;
        if let Err(error) = self.meet(node, deadline).await {
            tracing::info!(%error, "a silent path was not opened anew");
        }
    }

    /// Asks servers where they see this node: when that is wanted, and now and then.
    pub(super) async fn keep_asking(self: Arc<Self>) {
        let mut pause = self.config.ask_every;
        loop {
            let wanted = timeout(pause, self.surroundings.ask.notified()).await.is_ok();
            let answered = self.ask_outside().await;
            pause = match (answered, wanted) {
                // nothing else keeps that mapping
                (true, _) if self.surroundings.is_elsewhere() => KEEP_ELSEWHERE,
                (true, _) => self.config.ask_every,
                // somebody waits for it, or the network has just changed
                (false, true) => ASK_AGAIN,
                (false, false) => (pause * 2).min(self.config.ask_every),
            };
        }
    }

    /// One round of questions, from the node's own socket. True: somebody has answered.
    async fn ask_outside(self: &Arc<Self>) -> bool {
        let mut asking = JoinSet::new();
        let nobody = Round { began: Instant::now(), servers: 0, answers: 0 };
        let (mut ipv4, mut ipv6) = (nobody, nobody);
        for server in self.surroundings.observers() {
            let round = if server.is_ipv4() { &mut ipv4 } else { &mut ipv6 };
            round.servers += 1;
            let net = self.peers.net.clone();
            asking.spawn(async move { net.punch(vec![server], ASK_TIMEOUT).await });
        }
        let elsewhere = self.ask_elsewhere();
        let deadline = Instant::now() + ASK_TIMEOUT;
        while let Ok(Some(answer)) = tokio::time::timeout_at(deadline, asking.join_next()).await {
            let Ok(Ok(info)) = answer else { continue };
            if let Some(observed) = info.observed {
                let round = if unmapped(info.address).is_ipv4() { &mut ipv4 } else { &mut ipv6 };
                round.answers += 1;
                self.surroundings.observe(observed, info.address);
            }
        }
        let _ = elsewhere.join_all().await;
        self.surroundings.asked(ipv4, ipv6);
        ipv4.answers + ipv6.answers > 0
    }

    /// The same by interfaces that the system takes towards peers and not towards the servers.
    fn ask_elsewhere(self: &Arc<Self>) -> JoinSet<()> {
        let mut asking = JoinSet::new();
        for (exit, interface, server) in self.surroundings.elsewhere() {
            let inner = self.clone();
            asking.spawn(async move {
                if let Some(seen) = inner.peers.net.ask_through(server, interface, ASK_TIMEOUT).await {
                    tracing::debug!(%exit, %seen, by = %server, "own address by another way out");
                    inner.surroundings.observe_elsewhere(exit, seen);
                }
            });
        }
        asking
    }

    /// A server that sees us says where.
    pub(super) fn observed(&self, address: SocketAddr, by: SocketAddr) {
        let by = unmapped(by);
        if self.surroundings.is_server(by) {
            self.surroundings.observe(address, by);
        }
    }
}

/// How long an answer to a ping may take: two round trips, for the first packet in a new network waits for the gateway's hardware
/// address; as long as a long path's where none is known.
pub(super) fn answer_within(rtt: Option<Duration>) -> Duration {
    rtt.map_or(UNKNOWN_RTT, |rtt| rtt * 2 + MARGIN)
}

const UNKNOWN_RTT: Duration = Duration::from_millis(300);
const MARGIN: Duration = Duration::from_millis(30);
/// Pings at 0, 33, 100, 233 ... 1067 ms: a server that has not answered then is down, or not reached.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);
/// NATs are known that forget a mapping after 30 s.
const KEEP_ELSEWHERE: Duration = Duration::from_secs(20);
/// A network that is just coming up loses what is sent first.
const ASK_AGAIN: Duration = Duration::from_millis(500);
