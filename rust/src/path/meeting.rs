//! Meetings: two nodes that have agreed through a rendezvous to open a path, and share a key for it already (PUNCH.md 3.2;
//! docs/protocol.md section 7). All pings are keyed, so a meeting can answer whoever comes from an address that nobody listed
//! (a peer-reflexive candidate, RFC 8445 section 5.1.1.2): it is the peer, or the key is known to somebody else.
//!
//! What is tried when is the [`Plan`]; the first address that answers makes the path, and the listed ones go on being tried for
//! a moment, because a better one may answer later. An answer over a relay waits for a direct one until `head_start` is over; when
//! it makes the path, everything else goes on behind it, until a direct one is there or the meeting's time is up.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::{canonical, canonical_route, sendable};
use super::outlook::{is_for_everybody, MAX_PEER_RELAYS};
use super::outstanding::{Keys, Purpose};
use super::search::{Progress, Search, Turns};
use super::table::PathTable;
use super::timers::Owner;
use super::unproven::Word;
use super::PathEvent;
use crate::addr::{Incarnation, NodeId, PingKeys, RemoteId, Route, Via};
use crate::config::punch_moment;
use crate::time::Time;

/// A meeting of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MeetingId(u64);

/// What is to be tried.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pinged by the punching schedule from the node's own socket, the best first.
    pub candidates: Vec<SocketAddr>,
    /// Addresses that the peer's NAT is likely to use next, in the order in which it would. They are pinged before everything
    /// else: where both NATs count, what else is sent would use up the ports that the peer expects.
    pub guesses: Vec<SocketAddr>,
    pub search: Option<Search>,
    /// Where the rendezvous nodes see the peer: only there, or where the peer itself came from, ports are searched.
    pub seen_at: Vec<IpAddr>,
    /// Addresses of relays that this node uses itself.
    pub own_relays: Vec<IpAddr>,
    /// The first ping to each candidate dies after so many hops: it opens our NAT and leaves no trace in the peer's.
    pub opening_ttl: Option<u8>,
    /// Some of many sockets ask with so many hops.
    pub search_ttl: Option<u8>,
    /// Ways over relays: from relays of ours to addresses of the peer, and from our own socket to relays of the peer's.
    pub relayed: Vec<Route>,
    /// From relays of ours to relays of the peer's: tried when nothing else has helped for a while.
    pub last: Vec<Route>,
    /// Addresses that relays keep for the peer.
    pub peer_relays: Vec<SocketAddr>,
    /// How long direct ways come first.
    pub head_start: Duration,
    /// What the last step of the exchange took there and back: no answer is to be expected much sooner, and where everybody has much to do
    /// what is sent again before that makes it worse.
    pub round_trip: Duration,
    /// What comes over relays all the same makes no path.
    pub direct_only: bool,
}

/// How a meeting went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeetingReport {
    /// Addresses that answered, in that order, with the round trip.
    pub answered: Vec<(SocketAddr, Duration)>,
    /// Addresses from which the peer's pings came.
    pub heard: Vec<SocketAddr>,
    pub pings: u32,
}

#[derive(Default)]
pub(super) struct Meetings {
    pub(super) all: HashMap<MeetingId, Meeting>,
    pub(super) turns: Turns,
    /// Of those that have not met yet.
    names: HashMap<[u8; 16], MeetingId>,
    last_id: u64,
}

pub(super) struct Meeting {
    node: NodeId,
    keys: PingKeys,
    pub(super) started: Time,
    ends: Time,
    /// Until then nothing but guesses is sent.
    candidates_from: Time,
    candidates: Vec<Route>,
    rounds: usize,
    /// Nothing is sent a second time before that.
    quiet: Duration,
    guesses: Vec<Route>,
    guess_rounds: usize,
    pub(super) search: Option<Search>,
    pub(super) progress: Progress,
    seen_at: Vec<IpAddr>,
    own_relays: Vec<IpAddr>,
    opening_ttl: Option<u8>,
    pub(super) search_ttl: Option<u8>,
    relayed: Vec<Route>,
    relayed_rounds: usize,
    last: Vec<Route>,
    peer_relays: Vec<SocketAddr>,
    head_start: Duration,
    direct_only: bool,
    /// Answers over relays, while direct ways have their head start.
    held: Vec<Answer>,
    met: Option<RemoteId>,
    /// Which life of its node the peer is, as it has said.
    incarnation: Option<Incarnation>,
    /// A direct way was found.
    pub(super) settled: bool,
    /// A way over a relay has answered.
    is_relay_heard: bool,
    /// When each address was last pinged because a ping came from there.
    asked_back: HashMap<Route, Time>,
    report: MeetingReport,
    timer: Option<Time>,
}

/// A genuine pong to a ping of a meeting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) from: Route,
    pub(super) rtt: Duration,
    /// Where our ping was seen to come from.
    pub(super) observed: SocketAddr,
}

impl Meetings {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn key(&self, name: &[u8; 16]) -> Option<(MeetingId, Keys)> {
        let id = *self.names.get(name)?;
        Some((id, self.all.get(&id)?.keys()))
    }

    fn uses(&self, via: Via) -> bool {
        self.all.values().any(|meeting| match &meeting.search {
            Some(Search::Sockets { vias, .. }) => vias.contains(&via),
            _ => false,
        })
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        self.all.values().filter(|meeting| meeting.timer.is_some()).count()
    }
}

impl Meeting {
    fn keys(&self) -> Keys {
        let PingKeys { key, local_name, remote_name } = self.keys;
        Keys { local_name, remote_name, key, introduced: false }
    }

    /// When the next round of pings to the candidates is due.
    fn next_round(&self) -> Time {
        let moment = match (self.opening_ttl, self.rounds) {
            (Some(_), 0) => Duration::ZERO,
            (Some(_), n) => OPENING_GAP + punch_moment(n - 1),
            (None, n) => punch_moment(n),
        };
        self.candidates_from + moment
    }

    fn next_guess(&self) -> Option<Time> {
        let waiting = !self.settled && !self.guesses.is_empty();
        waiting.then(|| GUESS_MOMENTS.get(self.guess_rounds).map(|moment| self.started + *moment)).flatten()
    }

    /// When the next pings over relays are due: until something has made the path, and for a moment more, so that both sides come
    /// to know the same ways. Behind a direct path one way that answers is enough, and there is no hurry.
    fn next_relayed(&self) -> Option<Time> {
        let any = !self.relayed.is_empty() || !self.last.is_empty();
        let (most, step) = match (self.met, self.settled) {
            (None, _) => (usize::MAX, 1),
            (Some(_), false) => (RELAYED_ROUNDS, 1),
            (Some(_), true) if self.is_relay_heard => (0, 1),
            (Some(_), true) => (RELAYED_ROUNDS_BEHIND, RELAYED_STEP_BEHIND),
        };
        let waiting = self.relayed_rounds < most && any;
        waiting.then(|| self.relayed_from() + punch_moment(self.relayed_rounds.saturating_mul(step)))
    }

    /// Answers over relays wait for the end of the head start: what is sent over relays leaves in time for that, and not sooner, so that
    /// nodes with a direct path cost their relays next to nothing.
    fn relayed_from(&self) -> Time {
        self.started + self.head_start.saturating_sub(RELAYED_BEFORE)
    }

    /// When the quickest answer over a relay is taken.
    fn held_until(&self) -> Option<Time> {
        (!self.held.is_empty()).then_some(self.started + self.head_start)
    }

    fn is_relayed(&self, route: Route) -> bool {
        route.via.is_relay() || self.peer_relays.contains(&route.to)
    }

    /// Opens the search, if the rendezvous sees the peer where it is searched.
    fn opened(mut self) -> Self {
        self.progress.is_open = self.search.as_ref().is_some_and(|search| self.seen_at.contains(&search.ip()));
        self
    }

    /// A genuine pong to what was sent to `asked` came from another port there: the peer may be reached at that one.
    pub(super) fn is_beside(&self, asked: Route, from: Route) -> bool {
        let is_at = |ip: IpAddr| ip == asked.to.ip() || self.seen_at.contains(&ip);
        from.via == asked.via && !self.is_relayed(asked) && !self.is_relayed(from) && is_at(from.to.ip())
    }

    /// How much is known of an address that the peer has named.
    fn word(&self, ip: IpAddr) -> Word {
        match self.seen_at.contains(&ip) || self.own_relays.contains(&ip) {
            true => Word::Vouched,
            false => Word::Named,
        }
    }

    /// What is to be sent now, but for the search; some with few hops to live.
    fn due(&mut self, now: Time) -> Vec<(Route, Option<u8>)> {
        let mut out: Vec<(Route, Option<u8>)> = Vec::new();
        if self.next_guess().is_some_and(|at| at <= now) {
            while self.next_guess().is_some_and(|at| at <= now) {
                self.guess_rounds += 1;
            }
            out.extend(self.guesses.iter().map(|route| (*route, None)));
        }
        if self.next_round() <= now {
            let round = self.rounds;
            let ttl = self.opening_ttl.filter(|_| round == 0);
            while self.next_round() <= now {
                // moments that were slept through are not made up for
                self.rounds += 1;
            }
            while self.rounds > usize::from(self.opening_ttl.is_some())
                && self.next_round() < self.candidates_from + self.quiet
            {
                self.rounds += 1;
            }
            // what is in a private network answers at the first try, if that is ours as well
            let is_due = |route: &&Route| round.is_multiple_of(2) || is_for_everybody(route.to.ip());
            out.extend(self.candidates.iter().filter(is_due).map(|route| (*route, ttl)));
        }
        if self.next_relayed().is_some_and(|at| at <= now) {
            while self.next_relayed().is_some_and(|at| at <= now) {
                self.relayed_rounds += 1;
            }
            let is_last = self.met.is_none() && now.since(self.started) >= LAST_AFTER;
            let last = self.last.iter().filter(|_| is_last);
            let relayed = self.relayed.iter().chain(last).filter(|route| sendable(route.to));
            out.extend(relayed.map(|route| (*route, None)));
        }
        out
    }

    /// The peer sends from there: ways to it over the relays of ours that this meeting uses, as far as they are new.
    fn permit(&mut self, to: SocketAddr) -> Vec<Route> {
        let of_family = |route: &&Route| route.via.is_relay() && route.to.is_ipv4() == to.is_ipv4();
        let mut vias: Vec<Via> =
            self.relayed.iter().chain(&self.last).filter(of_family).map(|route| route.via).collect();
        vias.sort_unstable();
        vias.dedup();
        let routes = vias.into_iter().map(|via| Route { via, to });
        let new: Vec<_> = routes.filter(|route| !self.relayed.contains(route)).collect();
        let room = (2 * MAX_RELAYED).saturating_sub(self.relayed.len());
        self.relayed.extend(new.iter().take(room));
        new.into_iter().take(room).collect()
    }

    /// A direct way was found. A better one may answer later, and is in no hurry.
    fn settle(&mut self, now: Time) {
        self.settled = true;
        self.rounds = self.rounds.max(ROUNDS_BEFORE_SETTLED);
        self.ends = self.ends.min(now + SETTLE);
    }

    fn deadline(&self) -> Time {
        let rounds = Some(self.next_round());
        let moments = [rounds, self.next_guess(), self.next_search(), self.next_relayed(), self.held_until()];
        moments.into_iter().flatten().fold(self.ends, Time::min)
    }
}

impl PathTable {
    /// Starts a meeting: tries what the plan says until the peer has answered ([`PathEvent::Met`]) or `timeout` has passed; in
    /// either case [`PathEvent::MeetingEnded`] is the last word. `None`: there are as many as there may be, or the name of the
    /// session is taken.
    pub fn start_meeting(
        &mut self,
        now: Time,
        node: NodeId,
        keys: PingKeys,
        plan: Plan,
        timeout: Duration,
    ) -> Option<MeetingId> {
        let taken = self.names.contains_key(&keys.local_name) || self.meetings.names.contains_key(&keys.local_name);
        if taken || self.meetings.all.len() >= MAX_MEETINGS {
            return None;
        }
        self.meetings.last_id += 1;
        let id = MeetingId(self.meetings.last_id);
        let candidates = routes(&plan.candidates, MAX_CANDIDATES);
        let guesses = routes(&plan.guesses, MAX_GUESSES);
        let meeting = Meeting {
            node,
            started: now,
            ends: now + timeout,
            candidates_from: if guesses.is_empty() { now } else { now + AFTER_GUESSES },
            candidates,
            rounds: 0,
            quiet: (plan.round_trip / 4).min(MOST_QUIET),
            guesses,
            guess_rounds: 0,
            progress: Progress::default(),
            search: plan.search,
            seen_at: plan.seen_at.iter().map(|ip| canonical(SocketAddr::new(*ip, 1)).ip()).take(MAX_SEEN_AT).collect(),
            own_relays: plan
                .own_relays
                .iter()
                .map(|ip| canonical(SocketAddr::new(*ip, 1)).ip())
                .take(MAX_SEEN_AT)
                .collect(),
            opening_ttl: plan.opening_ttl,
            search_ttl: plan.search_ttl,
            relayed: plan.relayed.iter().map(|route| canonical_route(*route)).take(MAX_RELAYED).collect(),
            relayed_rounds: 0,
            last: plan.last.iter().map(|route| canonical_route(*route)).take(MAX_RELAYED).collect(),
            peer_relays: plan.peer_relays.iter().map(|address| canonical(*address)).take(MAX_PEER_RELAYS).collect(),
            head_start: match plan.head_start {
                Duration::ZERO => Duration::ZERO,
                usual => usual.max(plan.round_trip.min(MOST_HEAD_START)),
            },
            direct_only: plan.direct_only,
            held: Vec::new(),
            met: None,
            incarnation: None,
            settled: false,
            is_relay_heard: false,
            asked_back: HashMap::new(),
            report: MeetingReport::default(),
            timer: None,
            keys,
        };
        let meeting = meeting.opened();
        self.meetings.names.insert(meeting.keys.local_name, id);
        self.meetings.all.insert(id, meeting);
        self.search_turn(now, id);
        self.meeting_due(now, id);
        Some(id)
    }

    /// Ends a meeting before its time; its event still comes.
    pub fn stop_meeting(&mut self, now: Time, id: MeetingId) {
        let Some(mut meeting) = self.meetings.all.remove(&id) else { return };
        self.timers.set(&mut meeting.timer, Owner::Meeting(id), None);
        if self.meetings.names.get(&meeting.keys.local_name) == Some(&id) {
            self.meetings.names.remove(&meeting.keys.local_name);
        }
        if let Some(Search::Sockets { vias, .. }) = &meeting.search {
            for via in vias {
                self.release_via(*via);
            }
        }
        self.search_turn(now, id);
        let Meeting { node, met, report, .. } = meeting;
        self.events.push_back(PathEvent::MeetingEnded { id, node, met: met.is_some(), report });
    }

    /// Whether something goes through this socket, or is searched with it.
    pub fn uses(&self, via: Via) -> bool {
        self.meetings.uses(via) || self.slots.keys().any(|route| route.via == via)
    }

    /// Tells when a socket that was opened for a search is of no use any more.
    pub(super) fn release_via(&mut self, via: Via) {
        if via != Via::MAIN && !via.is_relay() && !self.uses(via) {
            self.events.push_back(PathEvent::Unused { via });
        }
    }

    pub(super) fn meeting_due(&mut self, now: Time, id: MeetingId) {
        let Some(meeting) = self.meetings.all.get_mut(&id) else { return };
        if meeting.ends <= now {
            self.stop_meeting(now, id);
            return;
        }
        if meeting.held_until().is_some_and(|at| at <= now) {
            if let Some(quickest) = meeting.held.iter().copied().min_by_key(|held| held.rtt) {
                self.meet(now, id, quickest);
            }
            // where there was no room for a path, the next answer tries again
            if let Some(meeting) = self.meetings.all.get_mut(&id) {
                meeting.held.clear();
            }
        }
        let is_relay_heard = self.is_relay_heard(id);
        let Some(meeting) = self.meetings.all.get_mut(&id) else { return };
        meeting.is_relay_heard |= is_relay_heard;
        let mut out = meeting.due(now);
        let word = |route: Route| meeting.word(route.to.ip());
        let before = out.len();
        out.retain(|(route, _)| self.unproven.take(now, route.to.ip(), word(*route)));
        self.counters.rate_limited += (before - out.len()) as u64;
        // searches have a limit of their own: one goes on at a time
        out.extend(meeting.search_due(now).into_iter().filter(|(route, _)| sendable(route.to)));
        let sent = u32::try_from(out.len()).unwrap_or(u32::MAX);
        meeting.report.pings = meeting.report.pings.saturating_add(sent);
        let (keys, met) = (meeting.keys(), meeting.met.filter(|_| meeting.settled));
        for (route, ttl) in out {
            let keys = keys.clone();
            let purpose = match met {
                Some(remote) => Purpose::Path { remote, keys: Some(keys) },
                None => Purpose::Meeting { id, keys },
            };
            self.ping_within(route, purpose, ttl);
        }
        self.search_turn(now, id);
        self.rearm_meeting(id);
    }

    /// Whether one of the ways over relays is a path of the peer by now.
    fn is_relay_heard(&self, id: MeetingId) -> bool {
        let Some(meeting) = self.meetings.all.get(&id) else { return false };
        meeting.met.is_some() && meeting.relayed.iter().any(|route| self.remote_of(*route) == meeting.met)
    }

    /// A genuine ping of the peer came under the meeting's session, before the two have met: the way in is open from there, so
    /// the way out is tried at once.
    pub(super) fn meeting_pinged(&mut self, now: Time, id: MeetingId, from: Route) {
        let Some(meeting) = self.meetings.all.get_mut(&id) else { return };
        if meeting.direct_only && meeting.is_relayed(from) {
            return;
        }
        let known = meeting.asked_back.get(&from).copied();
        if known.is_some_and(|last| now.since(last) < ASK_BACK_SPACING)
            || (known.is_none() && meeting.asked_back.len() >= MAX_ASKED_BACK)
        {
            self.counters.rate_limited += 1;
            return;
        }
        meeting.asked_back.insert(from, now);
        if !meeting.report.heard.contains(&from.to) {
            meeting.report.heard.push(from.to);
        }
        let opens = meeting.search.as_ref().is_some_and(|search| search.ip() == from.to.ip());
        meeting.progress.is_open |= opens;
        self.unproven.heard(from.to.ip());
        // a ping back that is lost must not be the last
        if meeting.is_relayed(from) {
            if !meeting.relayed.contains(&from) && meeting.relayed.len() < 2 * MAX_RELAYED {
                meeting.relayed.push(from);
            }
        } else if from.via == Via::MAIN
            && !meeting.candidates.contains(&from)
            && meeting.candidates.len() < 2 * MAX_CANDIDATES
        {
            meeting.candidates.push(from);
        }
        let mut back = vec![from];
        if from.via == Via::MAIN && !meeting.is_relayed(from) {
            // what a relay of ours lets in are addresses that were sent to through it: one that the peer sends from belongs to these,
            // whether the peer knew of it or not
            let permitted = meeting.permit(from.to);
            back.extend(permitted.into_iter().filter(|_| meeting.relayed_from() <= now));
        }
        let (keys, word) = (meeting.keys(), meeting.word(from.to.ip()));
        for route in back {
            if self.unproven.take(now, route.to.ip(), word) {
                self.ping(route, Purpose::Meeting { id, keys: keys.clone() });
            } else {
                self.counters.rate_limited += 1;
            }
        }
        if opens {
            self.search_turn(now, id);
        }
    }

    /// The peer has said which life of its node it is.
    pub(super) fn meeting_incarnation(&mut self, now: Time, id: MeetingId, incarnation: Option<Incarnation>) {
        let (Some(meeting), Some(incarnation)) = (self.meetings.all.get_mut(&id), incarnation) else { return };
        meeting.incarnation.get_or_insert(incarnation);
        if let Some((remote, name)) = meeting.met.map(|remote| (remote, meeting.keys.local_name)) {
            self.handle_incarnation(now, remote, &name, incarnation);
        }
    }

    /// A genuine pong came to a ping of the meeting.
    pub(super) fn meeting_answered(&mut self, now: Time, id: MeetingId, answer: Answer) {
        let Some(meeting) = self.meetings.all.get_mut(&id) else { return };
        let Answer { from, rtt, .. } = answer;
        self.unproven.answered(now, from.to.ip());
        if meeting.direct_only && meeting.is_relayed(from) {
            return;
        }
        if meeting.report.answered.len() < 2 * MAX_CANDIDATES {
            meeting.report.answered.push((from.to, rtt));
        }
        let relayed = meeting.is_relayed(from);
        if let Some(remote) = meeting.met {
            let session = meeting.keys();
            if !relayed && !meeting.settled {
                meeting.settle(now);
            }
            self.path_answered(now, remote, from, Some(session), rtt);
            self.search_turn(now, id);
            self.rearm_meeting(id);
        } else if relayed && now < meeting.started + meeting.head_start {
            if meeting.held.len() < 2 * MAX_RELAYED && !meeting.held.iter().any(|held| held.from == from) {
                meeting.held.push(answer);
            }
            self.rearm_meeting(id);
        } else {
            self.meet(now, id, answer);
        }
    }

    /// Makes the path.
    fn meet(&mut self, now: Time, id: MeetingId, answer: Answer) {
        let Some(meeting) = self.meetings.all.get(&id) else { return };
        let Answer { from, rtt, observed } = answer;
        let (node, keys, peer_relays) = (meeting.node, meeting.keys.clone(), meeting.peer_relays.clone());
        let (session, again, relayed) = (meeting.keys(), meeting.keys(), meeting.is_relayed(from));
        let Some(remote) = self.remote_to_meet(now, &node, from) else { return };
        self.meetings.names.remove(&keys.local_name);
        if let Some(remote) = self.remotes.get_mut(&remote) {
            remote.add_relays(&peer_relays);
        }
        let name = keys.local_name;
        self.bind_node(now, remote, node, keys);
        self.path_answered(now, remote, from, Some(session), rtt);
        if let Some(incarnation) = self.meetings.all.get(&id).and_then(|meeting| meeting.incarnation) {
            self.handle_incarnation(now, remote, &name, incarnation);
        }
        let Some(meeting) = self.meetings.all.get_mut(&id) else { return };
        meeting.met = Some(remote);
        let held = std::mem::take(&mut meeting.held);
        if !relayed {
            meeting.settle(now);
        }
        let pings = meeting.report.pings;
        self.search_turn(now, id);
        self.rearm_meeting(id);
        let (via, address) = (from.via, from.to);
        for other in held.into_iter().filter(|held| held.from != from) {
            self.path_answered(now, remote, other.from, Some(again.clone()), other.rtt);
        }
        self.events.push_back(PathEvent::Met { id, remote, via, address, relayed, rtt, observed, pings });
    }

    /// The remote that the path is for: the node's own if it has one, else the one at the address, else a new one.
    fn remote_to_meet(&mut self, now: Time, node: &NodeId, from: Route) -> Option<RemoteId> {
        let known = self.nodes.get(node).into_iter().flatten().filter_map(|id| self.remotes.get(id));
        let known = known.filter(|remote| !remote.lost).max_by_key(|remote| (remote.holds > 0, remote.heard));
        if let Some(remote) = known {
            return Some(remote.id);
        }
        let at_address = self.remote_of(from).and_then(|id| self.remotes.get(&id));
        if at_address.is_some_and(|remote| !remote.is_stranger()) {
            return self.new_remote(now, from).ok(); // another node's, from here on with a second one beside it
        }
        self.remote_for(now, from).ok()
    }

    pub(super) fn rearm_meeting(&mut self, id: MeetingId) {
        if let Some(meeting) = self.meetings.all.get_mut(&id) {
            let deadline = Some(meeting.deadline());
            self.timers.set(&mut meeting.timer, Owner::Meeting(id), deadline);
        }
    }
}

fn routes(addresses: &[SocketAddr], most: usize) -> Vec<Route> {
    let mut routes: Vec<Route> = Vec::new();
    for address in addresses.iter().map(|address| canonical(*address)).filter(|address| sendable(*address)) {
        let route = canonical_route(address);
        if routes.len() < most && !routes.contains(&route) {
            routes.push(route);
        }
    }
    routes
}

/// An address of each family from each of a few rendezvous nodes, or of each of a few relays.
const MAX_SEEN_AT: usize = 16;
/// PUNCH.md: at most so many ranked candidates a peer.
const MAX_CANDIDATES: usize = 16;
/// Two relays of ours to some addresses of the peer each, and the peer's two.
const MAX_RELAYED: usize = 16;
/// Rounds of pings over relays that are made in any case: a second's; behind a direct path, until one is answered, at 0, 133 and 1067 ms.
const RELAYED_ROUNDS: usize = 6;
const RELAYED_ROUNDS_BEHIND: usize = 3;
const RELAYED_STEP_BEHIND: usize = 3;
/// So long before the end of the head start relays are asked: a round trip over one that is not far away.
const RELAYED_BEFORE: Duration = Duration::from_millis(150);
/// After a direct answer the other candidates are tried at 533 and 1067 ms, or when it comes later, once or twice more.
const ROUNDS_BEFORE_SETTLED: usize = 5;
/// What goes over one relay has shown itself by then, on all but the longest paths.
const LAST_AFTER: Duration = Duration::from_millis(500);
/// PUNCH.md: about 20 ports are predicted; both NATs counting, more only use ports up.
const MAX_GUESSES: usize = 24;
/// Where the rendezvous is slow, so are others: a direct answer has this much time before one over a relay counts, and a first ping before
/// the next.
const MOST_HEAD_START: Duration = Duration::from_secs(1);
const MOST_QUIET: Duration = Duration::from_millis(300);
/// The pings with few hops need no more than to pass our own NAT.
const OPENING_GAP: Duration = Duration::from_millis(20);
/// Guesses are repeated: the peer may be later than we are, and packets get lost.
const GUESS_MOMENTS: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1_500),
    Duration::from_millis(3_000),
];
/// The guesses have left our NAT by then, in their order.
const AFTER_GUESSES: Duration = Duration::from_millis(50);
/// Between two pings back to one address: the first step of the punching schedule.
const ASK_BACK_SPACING: Duration = Duration::from_millis(33);
/// Addresses that the peer's pings came from: its candidates and one for each socket of a search.
const MAX_ASKED_BACK: usize = 512;
/// How long the other candidates go on being tried once one has answered: two more rounds, and their round trips.
const SETTLE: Duration = Duration::from_millis(1_500);
/// At once; each is the work of two nodes' users.
const MAX_MEETINGS: usize = 1_024;
