//! One remote: its paths, and when something has to happen about them. Reading only; what happens is in `alive.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::is_local;
use super::limit::Limit;
use super::lives::Doubt;
use super::outstanding::Keys;
use super::session::Sessions;
use super::spare::{Class, Filed};
use super::Traffic;
use crate::addr::{NodeId, RemoteId, Route};
use crate::config::PathConfig;
use crate::time::Time;

/// An address of a remote.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) route: Route,
    /// Something that we sent there was received: a pong came back, or an acknowledgement.
    pub(super) proven: bool,
    /// It has answered a ping. Others than keynet never do, and must not be given up for that.
    pub(super) answers: bool,
    /// The last sign of life that came from there; at first, when it was added.
    pub(super) heard: Time,
    /// When the last ping was sent that was answered: until then at least, what we send arrives.
    pub(super) answered: Option<Time>,
    /// Smoothed, from pings.
    pub(super) rtt: Option<Duration>,
    /// The last ping to keep it warm while another is in use.
    pub(super) warmed: Option<Time>,
    /// When it was last asked because data got nowhere on the path in use.
    pub(super) probed: Option<Time>,
    /// When it was left because data got nowhere on it.
    pub(super) shunned: Option<Time>,
    /// Our relay on it is about to be given up, and another path has taken its place.
    pub(super) left: bool,
}

/// A remote and the paths to it.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) id: RemoteId,
    pub(super) created: Time,
    /// Never empty. Those behind the first were proven by keyed pongs.
    pub(super) paths: Vec<Path>,
    /// Index of the one in use.
    pub(super) in_use: usize,
    /// Since when that has been in use.
    pub(super) chosen: Time,
    /// Addresses that relays keep for the peer.
    pub(super) relays: Vec<SocketAddr>,
    /// Who it is, the last one bound first: a node keeps its former names when its key changes.
    pub(super) nodes: Vec<NodeId>,
    pub(super) sessions: Sessions,
    pub(super) holds: u32,
    /// The last sign of life on any path.
    pub(super) heard: Time,
    /// The last time that anything came, a sign of life or not: orders the strangers.
    pub(super) seen: Time,
    /// Until then it counts as active: `active_for` after the last data, in either direction.
    pub(super) active_until: Time,
    /// The first data sent since the path in use was heard.
    pub(super) waiting: Option<Time>,
    /// The first ping on the path in use that is not answered by any sign of life.
    pub(super) asked: Option<Time>,
    /// The last ping on the path in use.
    pub(super) pinged: Option<Time>,
    /// The last ping of the peer that kept the path in use open for both.
    pub(super) kept: Option<Time>,
    /// Pings since the last pong.
    pub(super) unanswered: u32,
    /// When the first session came, and how often a pong to confirm it was asked for since.
    pub(super) confirm: Option<(Time, u32)>,
    pub(super) up: bool,
    /// Incarnations of its node of which a later one is known; at most one for each session.
    pub(super) doubts: Vec<Doubt>,
    /// When its host first said that nobody is there, and how often, since the path in use was heard.
    pub(super) refused: Option<(Time, u32)>,
    /// It has been reported silent, and was not heard since.
    pub(super) silent: bool,
    /// It has been reported missing, and was not heard since: its connections wait for it.
    pub(super) missing: bool,
    /// It has been reported lost: it is nothing but an address for what still holds it.
    pub(super) lost: bool,
    /// Where its last genuine ping came from that was no path of it: asked again as long as the path in use is silent.
    pub(super) suitor: Option<Route>,
    /// Pings to addresses of it that have not answered, in all and to each.
    pub(super) unproven_pings: Limit,
    pub(super) asked_back: Vec<(Route, Limit)>,
    /// Pings because somebody sends packets in its name.
    pub(super) doubted: Limit,
    /// Bytes of datagrams from and to it.
    pub(super) traffic: Traffic,
    /// Under what it is filed in the timers and among the spare remotes.
    pub(super) timer: Option<Time>,
    pub(super) spare: Option<Filed>,
}

impl Remote {
    pub(super) fn new(id: RemoteId, now: Time, route: Route, config: &PathConfig) -> Self {
        Self {
            id,
            created: now,
            paths: vec![Path::new(now, route)],
            in_use: 0,
            chosen: now,
            relays: Vec::new(),
            nodes: Vec::new(),
            sessions: Sessions::default(),
            holds: 0,
            heard: now,
            seen: now,
            active_until: Time::ZERO,
            waiting: None,
            asked: None,
            pinged: None,
            kept: None,
            unanswered: 0,
            confirm: None,
            up: false,
            doubts: Vec::new(),
            refused: None,
            silent: false,
            missing: false,
            lost: false,
            suitor: None,
            doubted: Limit::new(1, 1),
            unproven_pings: Limit::new(config.max_unproven_pings_per_second.saturating_mul(ADDRESSES), ADDRESSES),
            asked_back: Vec::new(),
            traffic: Traffic::default(),
            timer: None,
            spare: None,
        }
    }

    /// The path in use.
    pub(super) fn path(&self) -> Option<&Path> {
        self.paths.get(self.in_use)
    }

    pub(super) fn route(&self) -> Option<Route> {
        self.path().map(|path| path.route)
    }

    pub(super) fn index_of(&self, route: Route) -> Option<usize> {
        self.paths.iter().position(|path| path.route == route)
    }

    /// Of the proven paths for which this holds rather a direct one than one over a relay, and then the one heard last.
    pub(super) fn best_of(&self, now: Time, suits: impl Fn(&Path) -> bool) -> Option<usize> {
        let paths = self.paths.iter().enumerate().filter(|(_, path)| path.proven && suits(path));
        let best = paths.min_by_key(|(_, path)| (self.is_relayed(path.route), now.since(path.heard)));
        best.map(|(index, _)| index)
    }

    /// Whether a relay of either side carries what goes this way.
    pub(super) fn is_relayed(&self, route: Route) -> bool {
        route.via.is_relay() || self.relays.contains(&route.to)
    }

    /// The peer has said which of its addresses are those of relays. Those that it named before may be in use still.
    pub(super) fn add_relays(&mut self, relays: &[SocketAddr]) {
        let earlier = std::mem::take(&mut self.relays);
        self.relays = relays.to_vec();
        self.relays.extend(earlier.into_iter().filter(|one| !relays.contains(one)));
        self.relays.truncate(MAX_RELAYS);
    }

    /// The same of the path in use.
    pub(super) fn uses_relay(&self) -> bool {
        self.route().is_some_and(|route| self.is_relayed(route))
    }

    pub(super) fn node(&self) -> Option<NodeId> {
        self.nodes.first().copied()
    }

    /// Not authenticated.
    pub(super) fn is_stranger(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn class(&self) -> Class {
        if self.is_stranger() {
            Class::Stranger
        } else {
            Class::Peer
        }
    }

    /// Only keyed pongs count.
    pub(super) fn is_keyed(&self) -> bool {
        !self.sessions.is_empty()
    }

    /// Missing pongs mean something.
    fn should_answer(&self) -> bool {
        self.is_keyed() || self.path().is_some_and(|path| path.answers)
    }

    /// How long an answer may take.
    pub(super) fn retry(&self, config: &PathConfig) -> Duration {
        let rtt = self.path().and_then(|path| path.rtt);
        let least = config.ping_retry_least.min(config.ping_retry);
        rtt.map_or(config.ping_retry, |rtt| (rtt * ROUND_TRIPS).clamp(least, config.ping_retry))
    }

    /// Whether a ping on the path in use has been unanswered for longer than `ping_retry`.
    pub(super) fn is_stalled(&self, now: Time, config: &PathConfig) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) >= self.retry(config))
    }

    /// Whether a ping of the peer on the path in use (RFC 8445 section 7.3.1.4 calls what follows a triggered check) should be
    /// followed by one of ours: so both sides of an idle path ping at the same time, and one that gets a new address is heard
    /// from before the other gives it up.
    pub(super) fn is_out_of_step(&self, now: Time, from: Route, config: &PathConfig) -> bool {
        let in_use = self.path().filter(|path| path.route == from && path.proven);
        in_use.is_some_and(|path| now.since(path.heard) > config.ping_active) && self.asked.is_none()
    }

    /// Whether a ping of the peer under these keys keeps the path in use open for both: where nothing else goes, it is the part of the
    /// end with the larger session name to ping. Its ping and our pong are a packet each way, which is what NATs want. One that
    /// comes again soon says that the pong did not arrive.
    pub(super) fn is_kept(&self, now: Time, from: Route, keys: &Keys, config: &PathConfig) -> bool {
        let again = self.kept.is_some_and(|kept| now.since(kept) < config.ping_active / 2);
        let in_use = self.path().is_some_and(|path| path.route == from && path.proven);
        in_use && !again && self.asked.is_none() && keys.local_name < keys.remote_name
    }

    /// Whether nothing came on the path in use for longer than `ping_retry`.
    pub(super) fn is_silent(&self, now: Time, config: &PathConfig) -> bool {
        self.path().is_some_and(|path| now.since(path.heard) > self.retry(config))
    }

    /// Pings keep it alive. A stranger that nobody holds is not worth any, nor is an address that has proven nothing.
    fn is_kept_alive(&self, at: Time) -> bool {
        let wanted = self.holds > 0 || (!self.is_stranger() && at <= self.active_until);
        wanted && !self.lost && self.path().is_some_and(|path| path.proven)
    }

    /// When the next ping on the path in use is due.
    pub(super) fn ping_due(&self, config: &PathConfig) -> Option<Time> {
        let path = self.path()?;
        let retry = self.retry(config);
        let due = match (self.asked, self.pinged) {
            (Some(_), Some(pinged)) if self.should_answer() => {
                // quickly at first, and then no more often than ever
                pinged + (retry * (1 << self.unanswered.min(MOST_DOUBLINGS))).min(config.ping_retry)
            }
            (Some(_), Some(pinged)) => self.after_quiet(pinged, config),
            (_, pinged) => {
                let quiet = self.after_quiet(path.heard, config);
                let waiting = self.waiting.map(|sent| sent + retry);
                let confirm = self.confirm_due(config);
                let due = [waiting, confirm].into_iter().flatten().fold(quiet, Time::min);
                pinged.map_or(due, |pinged| due.max(pinged + retry))
            }
        };
        self.is_kept_alive(due).then_some(due)
    }

    /// When the silence that began at `since` has lasted long enough for a ping.
    fn after_quiet(&self, since: Time, config: &PathConfig) -> Time {
        let is_active = since + config.ping_active <= self.active_until;
        let interval = if is_active { config.ping_active } else { config.ping_idle };
        // a ping proves too little to go by it for ever: it may be an old one that somebody repeats
        let kept =
            self.kept.map(|kept| (kept + interval + interval / KEPT_LATE).min(since + interval * KEPT_INTERVALS));
        kept.map_or(since + interval, |kept| kept.max(since + interval))
    }

    /// A new session is tried even while data flows, so that it can be relied on when the address changes.
    fn confirm_due(&self, config: &PathConfig) -> Option<Time> {
        let (since, tries) = self.confirm.filter(|(_, tries)| *tries < CONFIRM_TRIES && !self.sessions.confirmed())?;
        Some(since + config.ping_retry * (tries + 1))
    }

    /// When the remote counts as gone, if nothing comes until then.
    pub(super) fn lost_at(&self, config: &PathConfig) -> Option<Time> {
        let asked = self.asked.filter(|_| self.should_answer() && !self.lost && !self.missing)?;
        let kept = self.kept.is_some_and(|kept| kept > self.heard);
        let waited = if kept { config.ping_active / KEPT_LATE } else { Duration::ZERO };
        Some(asked.max(self.heard) + config.lost_after.saturating_sub(waited))
    }

    /// Since when an answer is waited for. Before that the remote may have been quiet for want of anything to say.
    pub(super) fn unanswered_since(&self) -> Option<Time> {
        self.asked.map(|asked| asked.max(self.heard))
    }

    /// Connections with a node that has proven itself wait for its return, each for as long as it was told to.
    pub(super) fn is_waited_for(&self) -> bool {
        self.holds > 0 && self.is_keyed() && !self.is_stranger()
    }

    /// When a remote that nobody holds is forgotten: when pings have ended and nothing came for as long as they would
    /// have gone on.
    pub(super) fn forget_at(&self, config: &PathConfig) -> Option<Time> {
        (self.holds == 0).then(|| (self.seen + config.active_for).max(self.active_until))
    }

    /// When to look at it again.
    pub(super) fn deadline(&self, config: &PathConfig) -> Option<Time> {
        if self.lost {
            return None;
        }
        let warm = self.warm_due(config).map(|(at, _)| at);
        let doubt = self.doubt_due(config);
        [self.ping_due(config), self.lost_at(config), self.forget_at(config), warm, doubt].into_iter().flatten().min()
    }

    /// When the best path beside the one in use is to be pinged, so that NATs keep it open, and which that is.
    pub(super) fn warm_due(&self, config: &PathConfig) -> Option<(Time, usize)> {
        if self.paths.len() < 2 || !self.is_keyed() {
            return None;
        }
        let others =
            self.paths.iter().enumerate().filter(|(index, path)| *index != self.in_use && path.proven && !path.left);
        // rather one that does not go when the relay of the one in use does
        let used = self.path()?.route;
        let shares = |path: &Path| match path.route.via.is_relay() || used.via.is_relay() {
            true => path.route.via == used.via,
            false => self.is_relayed(path.route) && path.route.to.ip() == used.to.ip(),
        };
        let (index, path) = others.min_by_key(|(_, path)| (shares(path), self.is_relayed(path.route), path.score()))?;
        let at = path.warmed.map_or(path.heard, |warmed| warmed.max(path.heard)) + config.ping_idle;
        self.is_kept_alive(at).then_some((at, index))
    }

    /// Whether another path is worth moving to while the one in use works as well.
    pub(super) fn is_better(&self, now: Time, index: usize) -> bool {
        let (Some(new), Some(old)) = (self.paths.get(index), self.path()) else { return false };
        let shunned = new.shunned.is_some_and(|at| now.since(at) < SHUNNED_FOR);
        if shunned || new.left || !new.proven {
            return false;
        }
        match (self.is_relayed(old.route), self.is_relayed(new.route)) {
            (true, false) => return true,
            (false, true) => return false,
            _ => {}
        }
        let (Some(new_score), Some(old_score), Some(rtt)) = (new.score(), old.score(), old.rtt) else { return false };
        new_score + BETTER_BY.max(rtt / BETTER_BY_PART) < old_score
    }
}

impl Path {
    pub(super) fn new(now: Time, route: Route) -> Self {
        Self {
            route,
            proven: false,
            answers: false,
            heard: now,
            answered: None,
            rtt: None,
            warmed: None,
            probed: None,
            shunned: None,
            left: false,
        }
    }

    /// What the path costs, to compare it with others: its round trip, and what RFC 8421 and RFC 8305 prefer. `None`: it was not
    /// measured.
    fn score(&self) -> Option<Duration> {
        let preference = match self.route.to.ip() {
            ip if is_local(ip) => Duration::ZERO,
            IpAddr::V6(_) => NOT_LOCAL,
            IpAddr::V4(_) => NOT_LOCAL + NOT_IPV6,
        };
        self.rtt.map(|rtt| rtt + preference)
    }

    /// RFC 6298 section 2.3: seven parts of the old, one of the new.
    pub(super) fn measured(&mut self, rtt: Duration) {
        self.rtt = Some(match self.rtt {
            Some(old) => (old * 7 + rtt) / 8,
            None => rtt,
        });
    }
}

/// So many addresses may be pinged back at the full rate at the same time.
const ADDRESSES: u32 = 4;
/// What a peer keeps at two relays, and kept before at two others.
const MAX_RELAYS: usize = 8;
/// 16 times the shortest `ping_retry_least` are four seconds: above any `ping_retry`.
const MOST_DOUBLINGS: u32 = 4;
/// A ping that keeps a path open for both may be late by this part of an interval: round trips, and one that was lost.
const KEPT_LATE: u32 = 4;
/// The longest that one end goes by the pings of the other.
const KEPT_INTERVALS: u32 = 4;
/// Round trips after which an answer is late: RFC 6298's estimate allows a variance of as much as the round trip itself.
const ROUND_TRIPS: u32 = 4;
/// PUNCH.md, phase 4: a path must be better by so much, or everything would move whenever a queue fills.
const BETTER_BY: Duration = Duration::from_millis(5);
/// On long paths, by this part of their round trip.
const BETTER_BY_PART: u32 = 8;
/// RFC 8899 section 4.3 searches anew after ten minutes; a path that drops what is large is tried again after one, as MTU is.
const SHUNNED_FOR: Duration = Duration::from_secs(60);
/// A path that leaves the local network must be so much faster than one that stays in it.
const NOT_LOCAL: Duration = Duration::from_millis(5);
/// The same for IPv4 beside IPv6, which has no NATs that forget (PUNCH.md, phase 4).
const NOT_IPV6: Duration = Duration::from_millis(3);
/// As often is a new session tried while data flows; after that it waits for the next silence.
const CONFIRM_TRIES: u32 = 5;
