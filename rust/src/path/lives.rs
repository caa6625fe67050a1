//! Which life of its node a peer is. A node that starts has another incarnation than before, and one that has proven itself with
//! a new one makes the earlier ones doubtful: they are asked once more, and end when they do not answer. They may answer, for
//! two processes can have one identity at the same time.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::canonical;
use super::outstanding::{counted, Asked, Purpose};
use super::remote::Remote;
use super::session::Heard;
use super::table::PathTable;
use super::{Farewell, PathEvent, Why};
use crate::addr::{Incarnation, NodeId, RemoteId, Route};
use crate::config::PathConfig;
use crate::time::Time;

/// An incarnation of which a later one is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doubt {
    incarnation: Incarnation,
    /// When it was asked last, and how often.
    asked: Time,
    tries: u32,
}

impl Remote {
    /// When something has to happen about a doubtful incarnation.
    pub(super) fn doubt_due(&self, config: &PathConfig) -> Option<Time> {
        self.doubts.iter().map(|doubt| doubt.asked + self.retry(config)).min()
    }

    /// A pong came under a session of this incarnation: it lives.
    pub(super) fn clear_doubt(&mut self, name: &[u8; 16]) {
        let lives = self.sessions.incarnation_of(name);
        self.doubts.retain(|doubt| Some(doubt.incarnation) != lives);
    }
}

impl PathTable {
    /// This life's.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The peer behind this session says, in a way that proves it, which life of its node it is.
    pub fn handle_incarnation(&mut self, now: Time, id: RemoteId, name: &[u8; 16], incarnation: Incarnation) {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        if !remote.sessions.set_incarnation(name, incarnation) {
            return;
        }
        let ids = remote.node().and_then(|node| self.nodes.get(&node)).cloned().unwrap_or_default();
        for id in ids {
            self.doubt_others(now, id, incarnation);
        }
    }

    /// Whether a session with this incarnation of the node is left.
    pub fn knows_incarnation(&self, node: &NodeId, incarnation: &Incarnation) -> bool {
        let mut remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        remotes.any(|remote| remote.sessions.incarnations().contains(incarnation))
    }

    /// A goodbye came. It counts under a session's key, and once.
    pub fn handle_goodbye(
        &mut self,
        now: Time,
        name: &[u8; 16],
        transaction: [u8; 12],
        verified: impl FnOnce(&[u8; 32]) -> bool,
    ) {
        let id = self.names.get(name).copied();
        let keys = id.and_then(|id| self.remotes.get(&id)).and_then(|remote| remote.sessions.key(name));
        let (Some(id), Some(_)) = (id, keys.filter(|keys| verified(&keys.key))) else {
            self.counters.forged += 1;
            return;
        };
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        if remote.sessions.pinged(now, name, transaction) != Heard::New {
            self.counters.forged += 1;
            return;
        }
        let ended = remote.sessions.incarnation_of(name);
        match (remote.node().and_then(|node| self.nodes.get(&node)).cloned(), ended) {
            (Some(ids), Some(_)) => ids.into_iter().for_each(|id| self.end_life(now, id, ended, Why::Gone)),
            _ => self.end_life(now, id, ended, Why::Gone),
        }
    }

    /// A host says that nobody is there for the ping with this transaction. It is believed when it is the peer's own host, when it
    /// says so of several pings on the path in use, for some seconds, and when nothing else is heard meanwhile. Whoever forges it
    /// must have seen the pings, and keep the peer from answering. The host of a relay knows only that it has no such allocation any
    /// more: it may have started anew, and the peer is somewhere else.
    pub fn handle_refusal(&mut self, now: Time, by: IpAddr, to: SocketAddr, transaction: &[u8; 12]) {
        let asked =
            self.outstanding.peek(now, transaction).filter(|asked| asked.to.to == canonical(to) && to.ip() == by);
        let Some(Asked { to: route, purpose: Purpose::Path { remote, keys: Some(_) }, .. }) = asked else { return };
        let (route, id) = (*route, *remote);
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost && remote.asked.is_some()) else {
            return;
        };
        if remote.path().is_none_or(|path| path.route != route || !path.proven) || remote.is_relayed(route) {
            return;
        }
        let (first, count) = remote.refused.get_or_insert((now, 0));
        *count += 1;
        if *count >= REFUSALS && now.since(*first) >= REFUSED_FOR {
            self.lose(now, id, Why::Gone);
        }
    }

    /// What to tell every peer when this node ends.
    pub fn farewells(&mut self) -> Vec<Farewell> {
        let live = self.remotes.values().filter(|remote| !remote.lost);
        let all: Vec<_> = live.filter_map(|remote| Some((remote.route()?, remote.sessions.pick(0)?))).collect();
        let farewell = |(route, keys): (Route, super::outstanding::Keys)| Farewell {
            via: route.via,
            to: route.to,
            transaction: counted(&keys.key, &keys.remote_name, self.outstanding.count()),
            keys: (keys.remote_name, keys.key),
        };
        all.into_iter().map(farewell).collect()
    }

    /// Does what is due about doubtful incarnations.
    pub(super) fn doubts_due(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let patience = remote.retry(&self.config);
        let due: Vec<_> = remote.doubts.iter().filter(|doubt| doubt.asked + patience <= now).copied().collect();
        for doubt in due {
            if doubt.tries < TRIES {
                self.ask_life(now, id, doubt.incarnation);
            } else {
                self.end_life(now, id, Some(doubt.incarnation), Why::Restarted);
            }
        }
    }

    fn doubt_others(&mut self, now: Time, id: RemoteId, incarnation: Incarnation) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let others: Vec<_> = remote.sessions.incarnations().into_iter().filter(|other| *other != incarnation).collect();
        for other in others {
            let Some(remote) = self.remotes.get_mut(&id) else { return };
            if !remote.doubts.iter().any(|doubt| doubt.incarnation == other) {
                remote.doubts.push(Doubt { incarnation: other, asked: now, tries: 0 });
                self.ask_life(now, id, other);
            }
        }
        self.look_again(id);
    }

    /// Pings all paths of the remote under a session of this incarnation.
    fn ask_life(&mut self, now: Time, id: RemoteId, incarnation: Incarnation) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let keys = remote.sessions.of_incarnation(&incarnation);
        let Some(doubt) = remote.doubts.iter_mut().find(|doubt| doubt.incarnation == incarnation) else { return };
        (doubt.asked, doubt.tries) = (now, doubt.tries + 1);
        let routes: Vec<_> = remote.paths.iter().map(|path| path.route).collect();
        for route in routes {
            self.ping(route, Purpose::Path { remote: id, keys: keys.clone() });
        }
    }

    /// What belongs to this incarnation on a remote is over.
    fn end_life(&mut self, now: Time, id: RemoteId, incarnation: Option<Incarnation>, why: Why) {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        remote.doubts.retain(|doubt| Some(doubt.incarnation) != incarnation);
        let names = remote.sessions.end(incarnation);
        if names.is_empty() {
            return;
        }
        let (node, route, left) = (remote.node(), remote.route(), !remote.sessions.is_empty());
        for name in names {
            self.names.remove(&name);
        }
        if let (Some(node), Some(route), Some(incarnation)) = (node, route, incarnation) {
            let address = route.to;
            self.events.push_back(PathEvent::LifeEnded { remote: id, node, address, incarnation, why });
        }
        if left {
            self.look_again(id);
        } else {
            self.lose(now, id, why);
        }
    }
}

/// Refusals after which a peer counts as gone, and how long they must go on: a little less than a peer that does not answer takes to
/// be missed. A NAT that was restarted refuses too, until the peer behind it pings or is met anew.
const REFUSALS: u32 = 4;
const REFUSED_FOR: Duration = Duration::from_secs(5);
/// Pings that an earlier incarnation leaves unanswered before it counts as over.
const TRIES: u32 = 2;
