//! Pings and pongs that come in.

use std::time::Duration;

use super::address::{canonical, canonical_route, sendable};
use super::limit::Limit;
use super::meeting::{Answer, MeetingId};
use super::outstanding::{Asked, Keys, Purpose};
use super::session::Heard;
use super::table::PathTable;
use super::{PingIn, PongIn, PongOut};
use crate::addr::{RemoteId, Route};
use crate::config::PathConfig;
use crate::time::Time;

impl PathTable {
    /// A ping came; returns how to answer it, if at all. `verified` says whether the datagram carries a right tag
    /// under a key; it is asked at most once, and not at all for unkeyed pings.
    pub fn handle_ping(
        &mut self,
        now: Time,
        from: impl Into<Route>,
        ping: &PingIn,
        verified: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Option<PongOut> {
        let from = canonical_route(from);
        self.counters.pings_in += 1;
        if !sendable(from.to) {
            self.counters.unsendable += 1;
            return None;
        }
        // who says which life it is hears the same of us
        let incarnation = ping.incarnation.map(|_| self.incarnation);
        let key = match ping.session {
            Some(name) => Some(self.keyed_ping(now, from, ping, &name, verified)?),
            None => {
                self.unkeyed_ping(now, from)?;
                None
            }
        };
        self.counters.pongs_out += 1;
        Some(PongOut {
            via: from.via,
            to: from.to,
            transaction: ping.transaction,
            observed: from.to,
            key,
            incarnation: incarnation.filter(|_| key.is_some()),
            room: ping.size,
        })
    }

    /// A pong came. It counts when its transaction is outstanding and it comes from the address that was asked, with
    /// a right tag if the ping had one (`verified`, asked at most once). In a meeting one from another port of the peer says where
    /// the peer may be reached as well.
    pub fn handle_pong(
        &mut self,
        now: Time,
        from: impl Into<Route>,
        pong: &PongIn,
        verified: impl FnOnce(&[u8; 32]) -> bool,
    ) {
        let from = canonical_route(from);
        if let Some((id, key)) = self.asked_beside(now, from, &pong.transaction) {
            match pong.keyed && verified(&key) {
                // it proves nothing of where it came from: that is asked
                true => self.meeting_pinged(now, id, from),
                false => self.counters.forged += 1,
            }
            return;
        }
        let genuine = match self.outstanding.peek(now, &pong.transaction) {
            Some(Asked { to, .. }) if *to != from => false,
            Some(Asked { purpose: Purpose::Path { keys: Some(keys), .. } | Purpose::Meeting { keys, .. }, .. }) => {
                pong.keyed && verified(&keys.key)
            }
            Some(_) => !pong.keyed,
            None => false,
        };
        // a forged pong leaves the transaction alone, so that the real one still counts
        let asked = if genuine { self.outstanding.remove(&pong.transaction) } else { None };
        let Some(Asked { sent, purpose, .. }) = asked else {
            self.counters.forged += 1;
            return;
        };
        self.counters.pongs_in += 1;
        if !from.via.is_relay() {
            self.observe(pong.observed, from.to);
        }
        let rtt = now.since(sent);
        match purpose {
            Purpose::Path { remote, keys } => {
                let name = keys.as_ref().map(|keys| keys.local_name);
                self.path_answered(now, remote, from, keys, rtt);
                if let (Some(name), Some(incarnation)) = (name, pong.incarnation) {
                    self.handle_incarnation(now, remote, &name, incarnation);
                }
            }
            Purpose::Meeting { id, .. } => {
                self.meeting_incarnation(now, id, pong.incarnation);
                self.meeting_answered(now, id, Answer { from, rtt, observed: canonical(pong.observed) });
            }
            Purpose::Probe => self.probe_answered(now, from, rtt, canonical(pong.observed)),
        }
    }

    /// The meeting, and its key, whose ping this answers from another port of the peer than was asked (a peer-reflexive candidate,
    /// RFC 8445 section 7.2.5.3.1).
    fn asked_beside(&mut self, now: Time, from: Route, transaction: &[u8; 12]) -> Option<(MeetingId, [u8; 32])> {
        let asked = self.outstanding.peek(now, transaction).filter(|asked| asked.to != from)?;
        let (to, Purpose::Meeting { id, keys }) = (asked.to, &asked.purpose) else { return None };
        let (id, key) = (*id, keys.key);
        self.meetings.all.get(&id).is_some_and(|meeting| meeting.is_beside(to, from)).then_some((id, key))
    }

    /// A proven path answered, or a new one is proven by this.
    pub(super) fn path_answered(&mut self, now: Time, id: RemoteId, from: Route, keys: Option<Keys>, rtt: Duration) {
        let Some(remote) = self.remotes.get_mut(&id).filter(|remote| !remote.lost) else { return };
        if keys.is_none() && remote.is_keyed() {
            return; // asked before there were keys; now only keyed pongs count
        }
        let known = remote.index_of(from).is_some();
        if !known && (keys.is_none() || !self.add_path(now, id, from)) {
            return;
        }
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        let Some(index) = remote.index_of(from) else { return };
        if let Some(keys) = keys {
            remote.sessions.ponged(now, &keys.local_name, remote.unanswered);
            remote.clear_doubt(&keys.local_name);
        }
        remote.unanswered = 0;
        remote.heard = now;
        remote.seen = now;
        let elsewhere = index != remote.in_use;
        let silent = remote.is_silent(now, &self.config);
        // a known path is also asked to keep it warm: its answer says nothing about the one in use
        let moves = elsewhere && (remote.is_stalled(now, &self.config) || (silent && !known));
        let contested = elsewhere && !moves && remote.asked.is_none() && (silent || !known);
        if let Some(path) = remote.paths.get_mut(index) {
            path.answers = true;
            path.heard = now;
            path.answered = path.answered.max(Some(now - rtt));
            path.measured(rtt);
        }
        if index == remote.in_use && Self::alive(remote, now) {
            self.back(id);
        }
        self.prove(id, Some(from));
        let better = self.remotes.get(&id).is_some_and(|remote| elsewhere && remote.is_better(now, index));
        if moves || better {
            self.move_to(now, id, index);
        } else if contested {
            // both may work: the path in use has until the next ping to show that it still does
            self.keep_alive(now, id);
        }
        self.look_again(id);
    }

    /// The key for the answer, if the ping is genuine and new.
    fn keyed_ping(
        &mut self,
        now: Time,
        from: Route,
        ping: &PingIn,
        name: &[u8; 16],
        verified: impl FnOnce(&[u8; 32]) -> bool,
    ) -> Option<[u8; 32]> {
        if let Some((meeting, keys)) = self.meetings.key(name) {
            if !verified(&keys.key) {
                self.counters.forged += 1;
                return None;
            }
            self.meeting_incarnation(now, meeting, ping.incarnation);
            self.meeting_pinged(now, meeting, from);
            return Some(keys.key);
        }
        let id = self.names.get(name).copied();
        let keys = id.and_then(|id| self.remotes.get(&id)).and_then(|remote| remote.sessions.key(name));
        let genuine = keys.filter(|keys| verified(&keys.key));
        let (Some(id), Some(keys)) = (id, genuine) else {
            self.counters.forged += 1;
            return None;
        };
        let remote = self.remotes.get_mut(&id)?;
        match remote.sessions.pinged(now, name, ping.transaction) {
            Heard::New => {}
            // somebody was faster with a copy from elsewhere: the answer to the peer itself must not depend on that
            Heard::Again if remote.path().is_some_and(|path| path.route == from && path.proven) => {
                return Some(keys.key)
            }
            Heard::Again | Heard::Old => {
                self.counters.forged += 1;
                return None;
            }
        }
        remote.seen = now;
        let ask_back = match remote.index_of(from) {
            // it would go on using what is about to be given up
            Some(index) if index != remote.in_use && remote.paths[index].left => return None,
            None => {
                remote.suitor = Some(from);
                true
            }
            Some(index) if index != remote.in_use => remote.is_silent(now, &self.config),
            Some(_) => remote.path().is_some_and(|path| !path.proven),
        };
        let key = keys.key;
        if remote.is_kept(now, from, &keys, &self.config) {
            remote.kept = Some(now);
            self.look_again(id);
        } else if remote.is_out_of_step(now, from, &self.config) {
            self.keep_alive(now, id);
            self.look_again(id);
        } else if ask_back {
            // under the session that the peer itself uses: it surely knows that one
            self.ask_back(now, id, from, Some(keys));
        }
        if let Some(incarnation) = ping.incarnation {
            self.handle_incarnation(now, id, name, incarnation);
        }
        Some(key)
    }

    /// Whether an unkeyed ping may be answered. Anyone can send one, under any address, so nothing is remembered for
    /// it.
    fn unkeyed_ping(&mut self, now: Time, from: Route) -> Option<()> {
        let remote = self.slots.get(&from).and_then(|slot| self.remotes.get(&slot.first));
        let path = remote.and_then(|remote| remote.paths.iter().find(|path| path.route == from));
        let proven = path.is_some_and(|path| path.proven);
        let punching = self.punches.is_probed(&from);
        let ask_back = remote.filter(|remote| remote.holds > 0 && !remote.is_keyed() && !proven && !punching);
        let ask_back = ask_back.map(|remote| remote.id);
        if !proven && !punching && !self.stranger_pongs.take(now) {
            self.counters.rate_limited += 1;
            return None;
        }
        if punching {
            self.probe_heard(now, from);
        }
        if let Some(id) = ask_back {
            self.ask_back(now, id, from, None);
        }
        Some(())
    }

    /// Pings an address that has not proven itself, within the limit of its remote.
    fn ask_back(&mut self, now: Time, id: RemoteId, to: Route, keys: Option<Keys>) {
        let Some(remote) = self.remotes.get_mut(&id) else { return };
        if take_back(&mut remote.asked_back, &self.config, now, to) && remote.unproven_pings.take(now) {
            self.ping(to, Purpose::Path { remote: id, keys });
        } else {
            self.counters.rate_limited += 1;
        }
    }
}

/// Whether one more ping may go to this address: none is in another's way.
fn take_back(asked: &mut Vec<(Route, Limit)>, config: &PathConfig, now: Time, to: Route) -> bool {
    let at = asked.iter().position(|(route, _)| *route == to);
    let (_, mut limit) =
        at.map_or_else(|| (to, Limit::new(config.max_unproven_pings_per_second, 1)), |at| asked.remove(at));
    let may = limit.take(now);
    if asked.len() >= MAX_ASKED_BACK {
        asked.remove(0);
    }
    asked.push((to, limit));
    may
}

/// Addresses of a remote whose last ping back is remembered: as many as a peer has paths, twice.
const MAX_ASKED_BACK: usize = 16;
