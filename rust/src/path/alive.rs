//! Signs of life, silence, and moving from one path to another (DESIGN.md, decision 9).

use std::net::SocketAddr;
use std::time::Duration;

use super::address::canonical_route;
use super::outstanding::Purpose;
use super::remote::Remote;
use super::table::PathTable;
use super::timers::Owner;
use super::{PathEvent, Why};
use crate::addr::{NodeId, RemoteId, Route, Via};
use crate::time::Time;

impl PathTable {
    /// A valid packet of a known connection came: a sign of life. `proven`: it acknowledged something that we sent,
    /// so what we send arrives. Constant time.
    ///
    /// Where the source address is at hand, [`handle_utp_from`](Self::handle_utp_from) is better: without it a remote
    /// with several paths learns only that it lives, not which path works, and has to ping to find out.
    pub fn handle_utp(&mut self, now: Time, remote: RemoteId, proven: bool) {
        self.utp(now, remote, None, proven);
    }

    /// The same, with the address that it came from.
    pub fn handle_utp_from(&mut self, now: Time, from: impl Into<Route>, remote: RemoteId, proven: bool) {
        self.utp(now, remote, Some(canonical_route(from)), proven);
    }

    /// Data was sent to the remote: it is active. Constant time.
    pub fn handle_sent(&mut self, now: Time, remote: RemoteId) {
        let Some(entry) = self.remotes.get_mut(&remote).filter(|entry| !entry.lost) else { return };
        entry.active_until = now + self.config.active_for;
        entry.waiting.get_or_insert(now);
        let deadline = entry.deadline(&self.config);
        self.timers.advance(&mut entry.timer, Owner::Remote(remote), deadline);
    }

    /// Does what is due. Call it at [`poll_timeout`](Self::poll_timeout), or any time.
    pub fn handle_timeout(&mut self, now: Time) {
        while let Some(owner) = self.timers.pop_due(now) {
            match owner {
                Owner::Remote(id) => self.remote_due(now, id),
                Owner::Probe(address) => self.probe_due(now, address),
                Owner::Punch(id) => self.punch_due(id),
                Owner::Meeting(id) => self.meeting_due(now, id),
            }
        }
    }

    /// The path in use gave a sign of life. True: it had been silent for so long that this was reported.
    #[must_use]
    pub(super) fn alive(remote: &mut Remote, now: Time) -> bool {
        remote.asked = None;
        remote.waiting = None;
        remote.refused = None;
        if let Some(path) = remote.paths.get_mut(remote.in_use) {
            path.heard = now;
        }
        std::mem::take(&mut remote.silent)
    }

    /// Sends what is for the remote to another of its paths from now on.
    pub(super) fn move_to(&mut self, now: Time, id: RemoteId, index: usize) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let (Some(from), Some(to)) = (remote.route(), remote.paths.get(index).map(|path| path.route)) else {
            return;
        };
        if from == to {
            return;
        }
        let alive = !remote.is_silent(now, &self.config);
        remote.in_use = index;
        remote.chosen = now;
        remote.asked = None;
        remote.pinged = None;
        remote.waiting = None;
        remote.refused = None;
        remote.kept = None;
        remote.silent = false;
        remote.suitor = None;
        self.counters.moved += 1;
        let relayed = remote.uses_relay();
        self.events.push_back(PathEvent::Moved { remote: id, node: remote.node(), from, to, relayed, alive });
        self.found(id);
    }

    /// The path in use answers again after a silence.
    pub(super) fn back(&mut self, id: RemoteId) {
        self.events.push_back(PathEvent::Back { remote: id });
        self.found(id);
    }

    /// There is a path again: whoever was told that there is none hears of it.
    fn found(&mut self, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let (Some(node), Some(route)) = (remote.node(), remote.route()) else { return };
        if std::mem::take(&mut remote.missing) {
            self.events.push_back(PathEvent::Found { remote: id, node, address: route.to });
        }
    }

    /// This process did nothing for a while (it was stopped, say): that nobody answered meanwhile says nothing, for the answers may
    /// wait to be read.
    pub fn handle_pause(&mut self, now: Time) {
        let asked: Vec<_> =
            self.remotes.values().filter(|remote| remote.asked.is_some()).map(|remote| remote.id).collect();
        for id in asked {
            if let Some(remote) = self.remotes.get_mut(&id) {
                remote.asked = Some(now);
            }
            self.look_again(id);
        }
    }

    /// Pings the path in use of every remote of a node, when nothing was heard there lately.
    pub fn ask_node(&mut self, now: Time, node: &NodeId) {
        let ids: Vec<_> = self.nodes.get(node).into_iter().flatten().copied().collect();
        for id in ids {
            let quiet = self.remotes.get(&id).is_some_and(|remote| !remote.lost && remote.is_silent(now, &self.config));
            if quiet {
                self.keep_alive(now, id);
                self.look_again(id);
            }
        }
    }

    /// Pings the paths in use to a node, whatever was heard there: to see whether what we send still arrives.
    pub fn ask_node_anyway(&mut self, now: Time, node: &NodeId) {
        let remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        let ids: Vec<_> = remotes.filter(|remote| !remote.lost && remote.holds > 0).map(|remote| remote.id).collect();
        for id in ids {
            self.keep_alive(now, id);
            self.look_again(id);
        }
    }

    /// This machine sends from another address, or is in another network. Every path in use is pinged at once, that of a relay too:
    /// a peer that our packets still reach follows, and one that they do not reach is noticed. Returns whom, with what is
    /// known of the round trip; those beyond the cap are noticed by their silence.
    pub fn handle_network_change(&mut self, now: Time) -> Vec<(NodeId, Option<Duration>)> {
        let in_use = |remote: &&Remote| !remote.lost && remote.holds > 0 && remote.is_keyed();
        let ids: Vec<_> =
            self.remotes.values().filter(in_use).map(|remote| remote.id).take(MAX_ASKED_AT_ONCE).collect();
        let mut asked = Vec::with_capacity(ids.len());
        for id in ids {
            self.keep_alive(now, id);
            self.look_again(id);
            let Some(remote) = self.remotes.get(&id) else { continue };
            asked.extend(remote.node().map(|node| (node, remote.path().and_then(|path| path.rtt))));
        }
        asked
    }

    /// Whether the path in use of every remote of this node that is needed has answered a ping that was sent since then. What comes from
    /// a peer says nothing: it may come to an address that we send nothing from any more.
    pub fn is_heard_since(&self, node: &NodeId, since: Time) -> bool {
        let remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        let mut needed = remotes.filter(|remote| !remote.lost && remote.holds > 0);
        needed.all(|remote| remote.path().is_some_and(|path| path.answered.is_some_and(|sent| sent >= since)))
    }

    /// Where the packets go that leave by our own socket: some of the addresses in use.
    pub fn destinations(&self, most: usize) -> Vec<SocketAddr> {
        let in_use = self.remotes.values().filter(|remote| !remote.lost && remote.holds > 0);
        let direct = in_use.filter_map(Remote::route).filter(|route| !route.via.is_relay());
        direct.map(|route| route.to).take(most).collect()
    }

    /// Relays of ours are about to be given up. What goes over them takes another path that was heard lately, while they still
    /// carry; the peer follows, because its pings on what was left get no answer any more.
    pub fn handle_leaving(&mut self, now: Time, vias: &[Via]) {
        let leaves = |route: Route| vias.contains(&route.via);
        let using = |remote: &&Remote| !remote.lost && remote.route().is_some_and(leaves);
        let ids: Vec<_> = self.remotes.values().filter(using).map(|remote| remote.id).collect();
        for id in ids {
            let Some(remote) = self.remotes.get_mut(&id) else { continue };
            let lately = self.config.ping_idle;
            let stays = remote.best_of(now, |path| !leaves(path.route) && now.since(path.heard) <= lately);
            let Some(index) = stays else { continue };
            remote.paths.iter_mut().filter(|path| leaves(path.route)).for_each(|path| path.left = true);
            self.move_to(now, id, index);
            self.look_again(id);
        }
    }

    /// A relay of ours is gone, and with it the paths through it. What used one takes another path, or counts as silent until a
    /// new one is found.
    pub fn handle_closed(&mut self, now: Time, via: Via) {
        let through = |remote: &&Remote| remote.paths.iter().any(|path| path.route.via == via);
        let ids: Vec<_> = self.remotes.values().filter(through).map(|remote| remote.id).collect();
        for id in ids {
            let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { continue };
            if remote.route().is_some_and(|route| route.via == via) {
                if let Some(index) = remote.best_of(now, |path| path.route.via != via) {
                    self.move_to(now, id, index);
                } else if let Some(node) = remote.node().filter(|_| remote.holds > 0 && !remote.silent) {
                    remote.silent = true;
                    self.events.push_back(PathEvent::Silent { remote: id, node });
                }
            }
            let Some(remote) = self.remotes.get(&id) else { continue };
            if remote.holds == 0 && remote.route().is_some_and(|route| route.via == via) {
                // the next call finds it anew, instead of dialling into nothing
                self.forget(id);
                continue;
            }
            let gone: Vec<_> =
                (0..remote.paths.len()).rev().filter(|index| remote.paths[*index].route.via == via).collect();
            for index in gone {
                self.drop_path(id, index);
            }
            self.look_again(id);
        }
    }

    /// Whether the path in use of a remote of this node was reported silent ([`PathEvent::Silent`]), and still is.
    pub fn has_silent_path(&self, node: &NodeId) -> bool {
        let mut remotes = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        remotes.any(|remote| remote.silent && !remote.lost)
    }

    /// Data of full size gets nowhere on the path in use, though pings do: what is for the remote takes another path, when that
    /// answers now. Those that are known are asked; the caller comes again.
    pub fn handle_stuck(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        let answered = |path: &super::remote::Path| path.probed.is_some_and(|asked| path.heard >= asked);
        let better = last_heard_alternate(remote, now, self.config.ping_idle);
        let Some(better) = better.filter(|index| remote.paths.get(*index).is_some_and(answered)) else {
            self.ask_others(now, id);
            return;
        };
        if let Some(path) = remote.paths.get_mut(remote.in_use) {
            path.shunned = Some(now);
        }
        self.move_to(now, id, better);
        self.look_again(id);
    }

    /// Somebody sends packets in the name of the remote that it did not sign. True: it has keys, and so it is asked, once a second at
    /// most and not while a question is under way; see [`answered`](Self::answered).
    pub fn handle_doubt(&mut self, now: Time, id: RemoteId) -> bool {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost && remote.is_keyed()) else {
            return false;
        };
        if remote.asked.is_some() || !remote.doubted.take(now) {
            self.counters.rate_limited += 1;
            return true;
        }
        self.keep_alive(now, id);
        self.look_again(id);
        true
    }

    /// When the last ping was sent to a remote that it has answered.
    pub fn answered(&self, id: RemoteId) -> Option<Time> {
        self.remotes.get(&id)?.paths.iter().filter_map(|path| path.answered).max()
    }

    /// Pings the path in use; the other ones too, when it has not answered the last time.
    pub(super) fn keep_alive(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let Some(route) = remote.route() else { return };
        let keys = remote.sessions.pick(remote.unanswered);
        let again = remote.asked.is_some();
        remote.asked.get_or_insert(now);
        remote.pinged = Some(now);
        remote.unanswered = remote.unanswered.saturating_add(1);
        if let Some((_, tries)) = remote.confirm.as_mut().filter(|_| !remote.sessions.confirmed()) {
            *tries = tries.saturating_add(1);
        }
        let others = remote.paths.iter().map(|path| path.route).chain(remote.suitor);
        let others: Vec<_> = others.filter(|other| again && *other != route).collect();
        for to in std::iter::once(route).chain(others) {
            self.ping(to, Purpose::Path { remote: id, keys: keys.clone() });
        }
    }

    fn utp(&mut self, now: Time, id: RemoteId, from: Option<Route>, proven: bool) {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        let index = match from {
            Some(from) => match remote.index_of(from) {
                Some(index) => Some(index),
                None => return, // not a path of this remote: proves nothing
            },
            None => (remote.paths.len() == 1).then_some(remote.in_use),
        };
        remote.heard = now;
        remote.seen = now;
        remote.active_until = now + self.config.active_for;
        let (mut elsewhere, mut back) = (None, false);
        match index {
            Some(index) if index == remote.in_use => back = Self::alive(remote, now),
            Some(index) => {
                let stalled = remote.is_stalled(now, &self.config);
                if let Some(path) = remote.paths.get_mut(index) {
                    path.heard = now;
                    elsewhere = (stalled && path.proven).then_some(index);
                }
            }
            None => {}
        }
        let unproven = remote.path().is_some_and(|path| !path.proven);
        if back {
            self.back(id);
        }
        if let Some(index) = elsewhere {
            // the path in use does not answer, and the peer sends from this one
            self.move_to(now, id, index);
        }
        if proven && unproven {
            self.prove(id, None);
        }
        if let Some(remote) = self.remotes.get_mut(&id) {
            let deadline = remote.deadline(&self.config);
            self.timers.advance(&mut remote.timer, Owner::Remote(id), deadline);
        }
    }

    /// Pings every path beside the one in use, no more often than `ping_retry`.
    fn ask_others(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let (keys, in_use, spacing) = (remote.sessions.pick(0), remote.in_use, self.config.ping_retry);
        let others = remote.paths.iter_mut().enumerate().filter(|(index, _)| *index != in_use).map(|(_, path)| path);
        let mut due = Vec::new();
        for path in others.filter(|path| path.probed.is_none_or(|last| now.since(last) >= spacing)) {
            path.probed = Some(now);
            due.push(path.route);
        }
        for route in due {
            self.ping(route, Purpose::Path { remote: id, keys: keys.clone() });
        }
    }

    /// Pings the best path beside the one in use, when it is due.
    fn keep_warm(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let Some((_, index)) = remote.warm_due(&self.config).filter(|(at, _)| *at <= now) else { return };
        let keys = remote.sessions.pick(0);
        let Some(path) = remote.paths.get_mut(index) else { return };
        path.warmed = Some(now);
        let route = path.route;
        self.ping(route, Purpose::Path { remote: id, keys });
    }

    fn remote_due(&mut self, now: Time, id: RemoteId) {
        self.drop_stale_paths(now, id);
        self.doubts_due(now, id);
        // that may have been the end of it
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        remote.timer = None;
        let is_due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if is_due(remote.lost_at(&self.config)) {
            if !remote.is_waited_for() {
                self.lose(now, id, Why::Silent);
                return;
            }
            self.miss(now, id);
        }
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        if is_due(remote.forget_at(&self.config)) {
            self.forget(id);
            return;
        }
        if remote.is_stalled(now, &self.config) {
            let since_used = remote.path().map_or(Duration::ZERO, |path| now.since(path.heard));
            if let Some(better) = last_heard_alternate(remote, now, since_used) {
                self.move_to(now, id, better);
            } else if let Some(node) = remote.node().filter(|_| remote.holds > 0 && !remote.silent) {
                remote.silent = true;
                self.events.push_back(PathEvent::Silent { remote: id, node });
            }
        }
        self.keep_warm(now, id);
        if self.remotes.get(&id).is_some_and(|remote| is_due(remote.ping_due(&self.config))) {
            self.keep_alive(now, id);
        }
        self.look_again(id);
    }

    /// Old addresses of a peer may belong to somebody else after a while.
    fn drop_stale_paths(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get(&id) else { return };
        let stale = |path: &super::remote::Path| now.since(path.heard) > self.config.active_for;
        let stale: Vec<_> = (0..remote.paths.len())
            .rev()
            .filter(|index| *index != remote.in_use && stale(&remote.paths[*index]))
            .collect();
        for index in stale {
            self.drop_path(id, index);
        }
    }

    /// Says that the remote does not answer, and goes on asking: what waits for it gives it up, or it comes back.
    fn miss(&mut self, now: Time, id: RemoteId) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let (Some(node), Some(route)) = (remote.node(), remote.route()) else { return };
        if !remote.silent {
            self.events.push_back(PathEvent::Silent { remote: id, node });
        }
        (remote.silent, remote.missing) = (true, true);
        let (since, silent_for) = (remote.unanswered_since().unwrap_or(now), now.since(remote.heard));
        self.counters.lost += 1;
        self.events.push_back(PathEvent::Missing { remote: id, node, address: route.to, since, silent_for });
    }

    pub(super) fn lose(&mut self, now: Time, id: RemoteId, why: Why) {
        self.unlink(id);
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        remote.lost = true;
        let (node, silent_for) = (remote.node(), now.since(remote.heard));
        if let Some(Route { to: address, .. }) = remote.route() {
            self.counters.lost += 1;
            self.events.push_back(PathEvent::Lost { remote: id, node, address, silent_for, why });
        }
        if remote.holds == 0 {
            self.remotes.remove(&id);
        }
    }
}

/// Another path that was heard last, and not longer ago than `within`.
fn last_heard_alternate(remote: &Remote, now: Time, within: Duration) -> Option<usize> {
    let others = remote.paths.iter().enumerate().filter(|(index, path)| *index != remote.in_use && path.proven);
    let (index, path) = others.max_by_key(|(_, path)| path.heard)?;
    (now.since(path.heard) <= within).then_some(index)
}

/// Pings that leave at one moment: as many as a socket's buffer holds without loss.
const MAX_ASKED_AT_ONCE: usize = 1_024;
