//! Searches: finding one of many ports (the birthday search of PUNCH.md 3.1), and whose turn it is. One search goes on at a time, so
//! that what a node sends to addresses that have shown nothing stays the same however many look for it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::meeting::{Meeting, MeetingId};
use super::table::PathTable;
use crate::addr::{Route, Via};
use crate::time::Time;

/// What is searched, and by whom.
#[derive(Clone, Debug)]
pub enum Search {
    /// Our NAT gives each destination another port: many of our sockets ask one address.
    Sockets { vias: Vec<Via>, to: SocketAddr, begin: Duration },
    /// The peer's does: our own socket asks many ports of one address.
    Ports { ip: IpAddr, low: u16, high: u16, start: u32, begin: Duration },
}

/// How far the search of a meeting is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Ticks that are over.
    done: u32,
    /// How far it is behind, because it was not its turn, or nobody woke it in time.
    late: Duration,
    has_turn: bool,
    /// It may begin: the rendezvous sees the peer at the address that is searched, or a genuine ping came from there.
    pub(super) is_open: bool,
}

/// Whose search goes on, since when, and which are to follow.
#[derive(Debug, Default)]
pub(super) struct Turns {
    holder: Option<(MeetingId, Time)>,
    waiting: VecDeque<MeetingId>,
}

impl Search {
    /// The address that is searched.
    pub(super) fn ip(&self) -> IpAddr {
        match self {
            Self::Sockets { to, .. } => to.ip(),
            Self::Ports { ip, .. } => *ip,
        }
    }

    /// Ticks after which it is given up.
    fn most(&self) -> u32 {
        match self {
            Self::Ports { low, high, .. } => MOST_PORTS.min(u32::from(high.saturating_sub(*low)) + 1),
            Self::Sockets { .. } => u32::MAX,
        }
    }

    /// When the `n`-th tick is due, counted from the start of the meeting.
    fn moment(&self, n: u32) -> Duration {
        match self {
            Self::Ports { begin, .. } => *begin + SEARCH_TICK.saturating_mul(n),
            Self::Sockets { begin, vias, .. } => {
                let ticks = u32::try_from(vias.len().div_ceil(SOCKETS_A_TICK)).unwrap_or(u32::MAX).max(1);
                let (round, tick) = (n / ticks, n % ticks);
                *begin + SOCKETS_AGAIN.saturating_mul(round) + SEARCH_TICK.saturating_mul(tick)
            }
        }
    }

    /// What the `n`-th tick asks; whether with few hops, if that is wanted.
    fn tick(&self, n: u32) -> Vec<(Route, bool)> {
        match self {
            Self::Ports { ip, low, high, start, .. } => {
                let size = u32::from(high.saturating_sub(*low)) + 1;
                // each port once, in an order that nobody else's search has: a step without a factor in common with the size
                let step = step_through(size);
                let nth = (u64::from(*start) + u64::from(n) * u64::from(step)) % u64::from(size);
                let port = low.saturating_add(u16::try_from(nth).unwrap_or(0));
                vec![(SocketAddr::new(*ip, port).into(), false)]
            }
            Self::Sockets { vias, to, .. } => {
                let ticks = vias.len().div_ceil(SOCKETS_A_TICK).max(1);
                let tick = n as usize % ticks;
                vias.iter()
                    .enumerate()
                    .skip(tick * SOCKETS_A_TICK)
                    .take(SOCKETS_A_TICK)
                    .map(|(n, via)| (Route { via: *via, to: *to }, n % QUIET == QUIET - 1))
                    .collect()
            }
        }
    }
}

impl Meeting {
    /// When the next packets of the search are due.
    pub(super) fn next_search(&self) -> Option<Time> {
        let search = self.search.as_ref().filter(|_| self.wants_turn() && self.progress.has_turn)?;
        Some(self.started + search.moment(self.progress.done) + self.progress.late)
    }

    /// What the search asks now.
    pub(super) fn search_due(&mut self, now: Time) -> Vec<(Route, Option<u8>)> {
        let mut out = Vec::new();
        for _ in 0..MAX_TICKS_AT_ONCE {
            if self.next_search().is_none_or(|at| at > now) {
                break;
            }
            if let Some(search) = &self.search {
                let ttl = self.search_ttl;
                let asked = search.tick(self.progress.done).into_iter();
                out.extend(asked.map(|(route, quiet)| (route, ttl.filter(|_| quiet))));
            }
            self.progress.done += 1;
        }
        if let Some(late) = self.next_search().filter(|at| *at <= now) {
            self.progress.late += now.since(late) + SEARCH_TICK;
        }
        out
    }

    /// Whether there is something left to search.
    fn wants_turn(&self) -> bool {
        let left = self.search.as_ref().is_some_and(|search| self.progress.done < search.most());
        left && self.progress.is_open && !self.settled
    }

    fn takes_turn(&mut self, now: Time) {
        self.progress.has_turn = true;
        let Some(search) = &self.search else { return };
        // it goes on where it was, and does not make up for what it waited
        let due = self.started + search.moment(self.progress.done);
        self.progress.late = now.since(due);
    }
}

impl PathTable {
    /// Brings the order of the searches up to date, after something has happened to this meeting.
    pub(super) fn search_turn(&mut self, now: Time, id: MeetingId) {
        let wants = self.meetings.all.get(&id).is_some_and(Meeting::wants_turn);
        let turns = &mut self.meetings.turns;
        let holds = turns.holder.is_some_and(|(holder, _)| holder == id);
        let over = turns.holder.is_some_and(|(_, since)| now.since(since) >= TURN) && !turns.waiting.is_empty();
        match (holds, wants) {
            (true, true) if over => turns.waiting.push_back(id),
            (true, true) => return,
            (true, false) => {}
            (false, true) if !turns.waiting.contains(&id) => turns.waiting.push_back(id),
            (false, true) => {}
            (false, false) => turns.waiting.retain(|other| *other != id),
        }
        if holds {
            turns.holder = None;
            if let Some(meeting) = self.meetings.all.get_mut(&id) {
                meeting.progress.has_turn = false;
            }
        }
        self.next_turn(now);
    }

    fn next_turn(&mut self, now: Time) {
        while self.meetings.turns.holder.is_none() {
            let Some(next) = self.meetings.turns.waiting.pop_front() else { return };
            let Some(meeting) = self.meetings.all.get_mut(&next).filter(|meeting| meeting.wants_turn()) else {
                continue;
            };
            meeting.takes_turn(now);
            self.meetings.turns.holder = Some((next, now));
            self.rearm_meeting(next);
        }
    }
}

/// A number without a factor in common with `size`, near the golden section of it, so that neighbours are far apart in time.
fn step_through(size: u32) -> u32 {
    let mut step = (u64::from(size) * 618 / 1000).max(1) as u32;
    while gcd(step, size) != 1 {
        step += 1;
    }
    step
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 {
        a
    } else {
        gcd(b, a % b)
    }
}

/// 200 packets of 92 bytes a second: 150 kbit/s.
const SEARCH_TICK: Duration = Duration::from_millis(5);
/// With 256 sockets at the other end 2,048 of 64,512 ports find none once in 3,800 searches (PUNCH.md 3.1), in 10 s.
const MOST_PORTS: u32 = 2_048;
/// Sockets that ask in one tick: 256 in 80 ms.
const SOCKETS_A_TICK: usize = 16;
/// And again after this: the other side may be later, and mappings must live (30 s is the shortest life that NATs are known for).
const SOCKETS_AGAIN: Duration = Duration::from_secs(2);
/// One socket in so many asks with few hops, where that is wanted: by the arithmetic of birthdays 64 of 256 meet 2,048 ports with 87 %,
/// and the 192 others with 99.8 %.
/// These open both NATs where there are two on our side, and those leave no trace in the peer's.
const QUIET: usize = 4;
/// After a long sleep the search goes on and makes up for no more of it.
const MAX_TICKS_AT_ONCE: usize = 4;
/// Then another search goes on, if there is one: 256 sockets and 600 ports have met by then nine times out of ten. What either side has
/// opened in its NAT stays open until it is its turn again, so the two sides need not have their turns together.
const TURN: Duration = Duration::from_secs(3);
