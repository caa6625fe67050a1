//! Punching (DESIGN.md, decision 8): pings by a schedule to several addresses, until one answers.
//!
//! Only the addresses that were asked for can win. An unkeyed ping from elsewhere is answered, which opens our NAT for
//! its sender, but it says nothing about who sent it: on one host, or behind one NAT, a stranger would win the attempt.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::address::{canonical_route, sendable};
use super::outstanding::Purpose;
use super::table::PathTable;
use super::timers::Owner;
use super::{PathEvent, PunchId};
use crate::addr::Route;
use crate::config::{punch_moment, PUNCH_SCHEDULE};
use crate::time::Time;

/// What is being punched.
#[derive(Debug, Default)]
pub(super) struct Punches {
    attempts: HashMap<PunchId, Attempt>,
    probes: HashMap<Route, Probe>,
    last_id: u64,
}

#[derive(Debug)]
struct Attempt {
    tried: Vec<Route>,
    timer: Option<Time>,
}

/// An address that is pinged by the schedule, for one or several attempts. Without any it stays for a while, so that
/// a caller who starts and stops attempts cannot make more pings than the schedule has.
#[derive(Debug)]
struct Probe {
    attempts: Vec<PunchId>,
    started: Time,
    /// Pings since then.
    sent: usize,
    last: Option<Time>,
    timer: Option<Time>,
}

impl Punches {
    pub(super) fn len(&self) -> usize {
        self.attempts.len()
    }

    pub(super) fn is_probed(&self, address: &Route) -> bool {
        self.probes.get(address).is_some_and(|probe| !probe.attempts.is_empty())
    }

    #[cfg(test)]
    pub(super) fn timers(&self) -> usize {
        let attempts = self.attempts.values().filter(|attempt| attempt.timer.is_some());
        attempts.count() + self.probes.values().filter(|probe| probe.timer.is_some()).count()
    }
}

impl Probe {
    /// When the next ping is due; without attempts, when the probe can be forgotten.
    fn deadline(&self) -> Time {
        let spaced = |last: Time| last + MIN_SPACING;
        if self.attempts.is_empty() {
            return self.last.map_or(self.started, |last| last + LINGER);
        }
        let scheduled = self.started + punch_moment(self.sent);
        self.last.map_or(scheduled, |last| scheduled.max(spaced(last)))
    }

    fn join(&mut self, now: Time, attempt: PunchId) {
        // a new attempt wants the quick pings of the start, unless they are under way
        if self.attempts.is_empty() || self.sent >= PUNCH_SCHEDULE.len() {
            self.started = now;
            self.sent = 0;
        }
        self.attempts.push(attempt);
    }
}

impl PathTable {
    /// Starts an attempt: pings to every address at the moments of [`punch_moment`], until one of them answers
    /// ([`PathEvent::Punched`]) or `timeout` has passed ([`PathEvent::PunchFailed`]). Addresses that nothing can be
    /// sent to, and those beyond the first 16, are left out. Attempts that share an address share the pings.
    pub fn start_punch(&mut self, now: Time, to: &[impl Into<Route> + Copy], timeout: Duration) -> PunchId {
        self.punches.last_id += 1;
        let id = PunchId(self.punches.last_id);
        let mut tried: Vec<Route> = Vec::new();
        for address in to.iter().map(|route| canonical_route(*route)).filter(|route| sendable(route.to)) {
            if tried.len() < MAX_CANDIDATES && !tried.contains(&address) {
                tried.push(address);
            }
        }
        if tried.is_empty() || self.punches.attempts.len() >= MAX_ATTEMPTS {
            self.events.push_back(PathEvent::PunchFailed { id, tried: addresses_of(&tried) });
            return id;
        }
        for address in &tried {
            let idle = || Probe { attempts: Vec::new(), started: now, sent: 0, last: None, timer: None };
            let probe = self.punches.probes.entry(*address).or_insert_with(idle);
            probe.join(now, id);
            let deadline = Some(probe.deadline());
            self.timers.set(&mut probe.timer, Owner::Probe(*address), deadline);
        }
        let mut attempt = Attempt { tried: tried.clone(), timer: None };
        self.timers.set(&mut attempt.timer, Owner::Punch(id), Some(now + timeout));
        self.punches.attempts.insert(id, attempt);
        for address in tried {
            self.probe_when_due(now, address);
        }
        id
    }

    /// Ends an attempt without an event.
    pub fn stop_punch(&mut self, id: PunchId) {
        let Some(mut attempt) = self.punches.attempts.remove(&id) else { return };
        self.timers.set(&mut attempt.timer, Owner::Punch(id), None);
        self.leave_probes(id, &attempt.tried);
    }

    pub(super) fn punch_due(&mut self, id: PunchId) {
        let Some(attempt) = self.punches.attempts.remove(&id) else { return };
        self.leave_probes(id, &attempt.tried);
        self.events.push_back(PathEvent::PunchFailed { id, tried: addresses_of(&attempt.tried) });
    }

    pub(super) fn probe_due(&mut self, now: Time, address: Route) {
        let Some(probe) = self.punches.probes.get_mut(&address) else { return };
        probe.timer = None;
        if probe.attempts.is_empty() && probe.deadline() <= now {
            self.punches.probes.remove(&address);
            return;
        }
        self.probe_when_due(now, address);
    }

    /// A ping came from an address that is being punched: the way in is open, so the way out is tried at once.
    pub(super) fn probe_heard(&mut self, now: Time, address: Route) {
        let Some(probe) = self.punches.probes.get_mut(&address) else { return };
        if probe.last.is_none_or(|last| now.since(last) >= MIN_SPACING) {
            self.send_probe(now, address);
        }
    }

    /// A pong came to a punching ping.
    pub(super) fn probe_answered(&mut self, now: Time, address: Route, rtt: Duration, observed: SocketAddr) {
        let Some(probe) = self.punches.probes.get_mut(&address) else { return };
        let winners = std::mem::take(&mut probe.attempts);
        if winners.is_empty() {
            return;
        }
        let Ok(remote) = self.remote_for(now, address) else {
            // no room now; the attempts go on, and there may be some when the next pong comes
            if let Some(probe) = self.punches.probes.get_mut(&address) {
                probe.attempts = winners;
            }
            return;
        };
        for id in winners {
            self.stop_punch(id);
            self.events.push_back(PathEvent::Punched { id, remote, address: address.to, rtt, observed });
        }
        self.rearm_probe(address);
        self.path_answered(now, remote, address, None, rtt);
    }

    fn probe_when_due(&mut self, now: Time, address: Route) {
        let due = self.punches.probes.get(&address).filter(|probe| !probe.attempts.is_empty()).map(Probe::deadline);
        if due.is_some_and(|due| due <= now) {
            self.send_probe(now, address);
        } else {
            self.rearm_probe(address);
        }
    }

    fn send_probe(&mut self, now: Time, address: Route) {
        let Some(probe) = self.punches.probes.get_mut(&address) else { return };
        probe.last = Some(now);
        // moments that were slept through are not made up for
        while probe.started + punch_moment(probe.sent) <= now {
            probe.sent += 1;
        }
        self.ping(address, Purpose::Probe);
        self.rearm_probe(address);
    }

    fn rearm_probe(&mut self, address: Route) {
        if let Some(probe) = self.punches.probes.get_mut(&address) {
            let deadline = Some(probe.deadline());
            self.timers.set(&mut probe.timer, Owner::Probe(address), deadline);
        }
    }

    fn leave_probes(&mut self, id: PunchId, addresses: &[Route]) {
        for address in addresses {
            if let Some(probe) = self.punches.probes.get_mut(address) {
                probe.attempts.retain(|other| *other != id);
            }
            self.rearm_probe(*address);
        }
    }
}

fn addresses_of(routes: &[Route]) -> Vec<SocketAddr> {
    routes.iter().map(|route| route.to).collect()
}

/// PUNCH.md: at most so many ranked candidates a peer.
const MAX_CANDIDATES: usize = 16;
/// As many as proxies take clients at once (`ProxyLimits::max_clients`), with room for those who wait for a peer.
const MAX_ATTEMPTS: usize = 8_192;
/// The shortest time between two pings to one address: the first step of the schedule.
const MIN_SPACING: Duration = PUNCH_SCHEDULE[1];
/// How long an address is remembered after its last attempt.
const LINGER: Duration = Duration::from_secs(1);
