//! Invitations that wait to be looked at: who is served next, and who is turned away when there are too many. Nothing here waits, and
//! the time is an argument.
//!
//! An invitation costs this node a chain to judge and, once its sender is let in, a signature, a key agreement and a meeting. So they
//! wait in two lines, nodes that this node knows or lists before all others, and in each line senders take turns: whoever sends a
//! thousand waits behind whoever sends one. The name of the sender is what the rendezvous says; who turns out to be somebody else is
//! dropped (`exchange.rs`), so nobody gains a turn by it but the rendezvous itself.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::addr::NodeId;
use crate::bucket::Bucket;
use crate::config::RendezvousConfig;
use crate::time::Time;

/// An invitation that nobody has looked at yet.
#[derive(Debug)]
pub(super) struct Invite {
    pub id: [u8; 16],
    pub body: Vec<u8>,
    pub from: Sender,
    pub since: Instant,
}

/// Who sent it: by the word of the rendezvous with this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    pub place: usize,
    pub node: [u8; 32],
}

/// Which line somebody waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Nodes that this node knows, or has on its access list.
    Friends,
    Others,
}

/// What becomes of an invitation that arrives.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Waits,
    /// It was seen before: another rendezvous brought a copy.
    Copy,
    /// The line is full, and this sender has the most in it: he is told to come again.
    TurnedAway(Sender, [u8; 16]),
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Answer(Box<Invite>, Line),
    /// Nothing before something arrives or ends, or before this moment.
    Wait(Option<Instant>),
}

/// Those that wait, those under way, and what is remembered of those that were answered.
#[derive(Debug)]
pub(super) struct Invitations {
    friends: Queue,
    others: Queue,
    /// How often friends were served since somebody else was.
    friends_in_a_row: u32,
    /// Answers under way, by sender, and in each line.
    under_way: HashMap<[u8; 32], usize>,
    busy: [usize; 2],
    most: usize,
    answer_timeout: Duration,
    answer_most: Duration,
    /// How many may be looked at.
    budget: Bucket,
    /// How many may be told to come again.
    refusals: Bucket,
    per_second: u32,
    started: Instant,
    /// By exchange, so that the copies of an invitation do nothing.
    seen: HashSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
    /// Nodes that the access list turned away lately.
    denied: VecDeque<(NodeId, Instant)>,
}

/// Senders take turns.
#[derive(Debug, Default)]
struct Queue {
    waiting: HashMap<Sender, VecDeque<Invite>>,
    turns: VecDeque<Sender>,
    count: usize,
}

impl Invitations {
    pub fn new(config: &RendezvousConfig, now: Instant) -> Self {
        let per_second = u64::from(config.invitations_per_second);
        Self {
            friends: Queue::default(),
            others: Queue::default(),
            friends_in_a_row: 0,
            under_way: HashMap::new(),
            busy: [0; 2],
            most: config.invitations_at_once,
            answer_timeout: config.answer_timeout,
            answer_most: config.answer_most,
            // a rate of 0 would be none: then one a second is the least
            budget: Bucket::new(per_second.max(1), per_second.max(1), Time::ZERO),
            refusals: Bucket::new(MAX_REFUSALS, MAX_REFUSALS, Time::ZERO),
            per_second: config.invitations_per_second.max(1),
            started: now,
            seen: HashSet::new(),
            order: VecDeque::new(),
            denied: VecDeque::new(),
        }
    }

    /// An invitation arrives.
    pub fn arrived(&mut self, invite: Invite, line: Line) -> Arrival {
        let id = invite.id;
        if !self.seen.insert(id) {
            return Arrival::Copy;
        }
        self.order.push_back(id);
        if self.order.len() > MAX_SEEN {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
        let queue = match line {
            Line::Friends => &mut self.friends,
            Line::Others => &mut self.others,
        };
        let away = queue.push(invite);
        match away {
            None => Arrival::Waits,
            Some(away) => {
                // it was not looked at: the same one may be said again
                self.forget(&away.id);
                Arrival::TurnedAway(away.from, away.id)
            }
        }
    }

    /// Whose turn it is. Whoever is given out has a place until [`Self::ended`].
    pub fn next(&mut self, now: Instant) -> Next {
        self.friends.drop_stale(now, &mut self.seen);
        self.others.drop_stale(now, &mut self.seen);
        let can = |queue: &Queue, line: Line| {
            self.busy[line as usize] < self.most && queue.turns.iter().any(|sender| self.has_place(sender))
        };
        let (friends, others) = (can(&self.friends, Line::Friends), can(&self.others, Line::Others));
        if !friends && !others {
            // what ends knocks; what grows old is dropped when somebody looks
            return Next::Wait(None);
        }
        let moment = self.moment(now);
        if !self.budget.take(1, moment) {
            let pause = Duration::from_secs(1) / self.per_second;
            return Next::Wait(Some(now + pause));
        }
        let line = match (friends, others) {
            (true, true) if self.friends_in_a_row < FRIENDS_IN_A_ROW => Line::Friends,
            (true, false) => Line::Friends,
            _ => Line::Others,
        };
        let under_way = &self.under_way;
        let allowed = |sender: &Sender| under_way.get(&sender.node).is_none_or(|count| *count < MAX_OF_ONE_SENDER);
        let taken = match line {
            Line::Friends => self.friends.pop(allowed),
            Line::Others => self.others.pop(allowed),
        };
        let Some(invite) = taken else { return Next::Wait(None) };
        self.friends_in_a_row = if line == Line::Friends { self.friends_in_a_row + 1 } else { 0 };
        self.busy[line as usize] += 1;
        *self.under_way.entry(invite.from.node).or_default() += 1;
        Next::Answer(Box::new(invite), line)
    }

    /// An answer is no longer under way.
    pub fn ended(&mut self, sender: &[u8; 32], line: Line) {
        self.busy[line as usize] = self.busy[line as usize].saturating_sub(1);
        if let Some(count) = self.under_way.get_mut(sender) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.under_way.remove(sender);
            }
        }
    }

    /// How much longer somebody who has waited so long for the dialler to go on may wait before it asks again. The dialler may have many
    /// to answer, or the rendezvous much to pass on, so that is as long as a dial lasts; where half of the places are taken, it is no
    /// longer than two slow round trips, and strangers who do not go on have each place for so long and no longer.
    pub fn patience(&self, line: Line, waited: Duration) -> Option<Duration> {
        if let Some(left) = self.answer_timeout.checked_sub(waited).filter(|left| !left.is_zero()) {
            return Some(left);
        }
        let left = self.answer_most.checked_sub(waited).filter(|left| !left.is_zero())?;
        (self.busy[line as usize] <= self.most / 2).then_some(left.min(LOOK_AGAIN))
    }

    /// Whether one more may be told that it is turned away: what nobody asked for twice is not answered without end.
    pub fn may_refuse(&mut self, now: Instant) -> bool {
        let moment = self.moment(now);
        self.refusals.take(1, moment)
    }

    /// When to come again: when those that wait now have been served.
    pub fn retry_after(&self) -> Duration {
        let waiting = u32::try_from(self.friends.count + self.others.count).unwrap_or(u32::MAX);
        (Duration::from_secs(1) * waiting / self.per_second).clamp(LEAST_RETRY, MOST_RETRY)
    }

    /// The access list has turned a node away.
    pub fn deny(&mut self, node: NodeId, now: Instant) {
        self.denied.retain(|(other, at)| *other != node && now.saturating_duration_since(*at) < DENIED_FOR);
        self.denied.push_back((node, now));
        if self.denied.len() > MAX_DENIED {
            self.denied.pop_front();
        }
    }

    /// Whether it has done so a moment ago: then it is not asked again.
    pub fn was_denied(&self, node: &NodeId, now: Instant) -> bool {
        self.denied.iter().any(|(other, at)| other == node && now.saturating_duration_since(*at) < DENIED_FOR)
    }

    fn has_place(&self, sender: &Sender) -> bool {
        self.under_way.get(&sender.node).is_none_or(|count| *count < MAX_OF_ONE_SENDER)
    }

    fn forget(&mut self, id: &[u8; 16]) {
        // its place in the order stays, and finds nothing when it comes to it
        self.seen.remove(id);
    }

    fn moment(&self, now: Instant) -> Time {
        let nanos = now.saturating_duration_since(self.started).as_nanos();
        Time::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Queue {
    /// Takes one in; gives back the one that has no room: the newest of whoever has the most waiting.
    fn push(&mut self, invite: Invite) -> Option<Invite> {
        let from = invite.from;
        let own = self.waiting.get(&from).map_or(0, VecDeque::len);
        let mut away = None;
        if own >= MAX_WAITING_OF_ONE {
            return Some(invite);
        }
        if self.count >= MAX_WAITING {
            let crowded = self.waiting.iter().max_by_key(|(_, waiting)| waiting.len());
            let crowded = crowded.filter(|(_, waiting)| waiting.len() > own + 1).map(|(sender, _)| *sender);
            match crowded {
                Some(sender) => away = self.take_newest(&sender),
                None => return Some(invite),
            }
        }
        if own == 0 {
            self.turns.push_back(from);
        }
        self.waiting.entry(from).or_default().push_back(invite);
        self.count += 1;
        away
    }

    /// The oldest of the next sender that is `allowed`.
    fn pop(&mut self, allowed: impl Fn(&Sender) -> bool) -> Option<Invite> {
        let turn = self.turns.iter().position(allowed)?;
        let sender = self.turns.remove(turn)?;
        let waiting = self.waiting.get_mut(&sender)?;
        let invite = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&sender);
        } else {
            self.turns.push_back(sender);
        }
        self.count -= usize::from(invite.is_some());
        invite
    }

    fn take_newest(&mut self, sender: &Sender) -> Option<Invite> {
        let waiting = self.waiting.get_mut(sender)?;
        let invite = waiting.pop_back();
        self.count -= usize::from(invite.is_some());
        if waiting.is_empty() {
            self.waiting.remove(sender);
            self.turns.retain(|turn| turn != sender);
        }
        invite
    }

    /// Whoever waited for so long has given up, or says it again.
    fn drop_stale(&mut self, now: Instant, seen: &mut HashSet<[u8; 16]>) {
        let is_stale = |invite: &Invite| now.saturating_duration_since(invite.since) > WAITS_FOR;
        // each sender's oldest is in front, and the senders are bounded
        let stale = |waiting: &VecDeque<Invite>| waiting.front().is_some_and(is_stale);
        if !self.waiting.values().any(stale) {
            return;
        }
        for waiting in self.waiting.values_mut() {
            while waiting.front().is_some_and(is_stale) {
                if let Some(gone) = waiting.pop_front() {
                    seen.remove(&gone.id);
                    self.count -= 1;
                }
            }
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        let waiting = &self.waiting;
        self.turns.retain(|turn| waiting.contains_key(turn));
    }
}

/// Invitations that wait in each line: a thousand callers at once find room, at some 400 bytes each.
const MAX_WAITING: usize = 1_024;
/// Of one sender: a program that dials the same node from several places at once says it once for all.
const MAX_WAITING_OF_ONE: usize = 8;
/// Answers under way to one sender: it may have given one up and begun another.
const MAX_OF_ONE_SENDER: usize = 4;
/// So many friends are served before somebody else is: what a rendezvous says of who they are is not proven yet.
const FRIENDS_IN_A_ROW: u32 = 3;
/// Within this time the dialler says it again, or has come to its end (15 s, half of which the meeting may need).
const WAITS_FOR: Duration = Duration::from_secs(8);
/// Exchanges that are remembered: those that wait, and as many again.
const MAX_SEEN: usize = 4 * MAX_WAITING;
/// Whoever waits for a dialler to go on looks so often whether others need the place.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Nodes that are told to come again, a second: each is a message of 5 bytes by way of the rendezvous.
const MAX_REFUSALS: u64 = 100;
/// When to come again: not so soon that it makes the crowd, and in time for another try within a dial of 15 s.
const LEAST_RETRY: Duration = Duration::from_millis(500);
const MOST_RETRY: Duration = Duration::from_secs(4);
/// For so long a node that the access list turned away is turned away without asking it again.
const DENIED_FOR: Duration = Duration::from_secs(3);
const MAX_DENIED: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        invitations: Invitations,
        now: Instant,
        made: u64,
    }

    impl Bench {
        fn new(per_second: u32, at_once: usize) -> Self {
            let now = Instant::now();
            let config = RendezvousConfig {
                invitations_per_second: per_second,
                invitations_at_once: at_once,
                ..RendezvousConfig::default()
            };
            Self { invitations: Invitations::new(&config, now), now, made: 0 }
        }

        fn arrives(&mut self, node: u64, line: Line) -> Arrival {
            self.made += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.made.to_be_bytes());
            let invite = Invite { id, body: vec![1], from: sender(node), since: self.now };
            self.invitations.arrived(invite, line)
        }

        /// Who is served within this time, when each answer ends at once.
        fn served(&mut self, within: Duration) -> Vec<[u8; 32]> {
            let (mut served, end) = (Vec::new(), self.now + within);
            loop {
                match self.invitations.next(self.now) {
                    Next::Answer(invite, line) => {
                        self.invitations.ended(&invite.from.node, line);
                        served.push(invite.from.node);
                    }
                    Next::Wait(Some(at)) if at < end => self.now = at,
                    Next::Wait(_) => break,
                }
            }
            self.now = end;
            served
        }
    }

    impl Bench {
        fn is_within_bounds(&self, at_once: usize, under_way: &[(Invite, Line)], seed: u64) {
            let own = &self.invitations;
            for queue in [&own.friends, &own.others] {
                assert_eq!(queue.count, queue.waiting.values().map(VecDeque::len).sum::<usize>(), "seed {seed}");
                assert!(queue.count <= MAX_WAITING, "seed {seed}");
                assert!(queue.waiting.values().all(|waiting| (1..=MAX_WAITING_OF_ONE).contains(&waiting.len())));
                assert_eq!(queue.turns.len(), queue.waiting.len(), "seed {seed}: everybody has one turn");
            }
            for line in [Line::Friends, Line::Others] {
                let busy = under_way.iter().filter(|(_, other)| *other == line).count();
                assert!(own.busy[line as usize] == busy && busy <= at_once, "seed {seed}");
            }
            assert!(own.under_way.values().all(|count| (1..=MAX_OF_ONE_SENDER).contains(count)), "seed {seed}");
            assert!(own.seen.len() <= MAX_SEEN && own.order.len() <= MAX_SEEN, "seed {seed}");
            assert!(own.denied.len() <= MAX_DENIED && own.retry_after() <= MOST_RETRY, "seed {seed}");
        }
    }

    fn sender(node: u64) -> Sender {
        let mut name = [0; 32];
        name[..8].copy_from_slice(&node.to_be_bytes());
        Sender { place: 0, node: name }
    }

    #[test]
    fn a_thousand_callers_wait_and_all_are_served() {
        let mut bench = Bench::new(400, 256);
        for node in 0..1_000 {
            assert_eq!(bench.arrives(node, Line::Others), Arrival::Waits);
        }
        assert_eq!(bench.served(Duration::from_secs(2)).len(), 1_000);
    }

    #[test]
    fn whoever_sends_much_waits_behind_whoever_sends_little() {
        let mut bench = Bench::new(400, 256);
        for _ in 0..MAX_WAITING_OF_ONE {
            for node in 0..20 {
                bench.arrives(node, Line::Others);
            }
        }
        assert_eq!(bench.arrives(77, Line::Others), Arrival::Waits);
        let served = bench.served(Duration::from_secs(1));
        let turn = served.iter().position(|node| *node == sender(77).node);
        assert!(turn.is_some_and(|turn| turn <= 20), "{turn:?}: one of each of the others at most");
    }

    #[test]
    fn a_flood_of_one_sender_takes_a_fixed_room_and_no_more() {
        let mut bench = Bench::new(1, 256);
        let mut away = 0;
        for _ in 0..5_000 {
            away += usize::from(matches!(bench.arrives(1, Line::Others), Arrival::TurnedAway(..)));
        }
        assert_eq!(away, 5_000 - MAX_WAITING_OF_ONE);
        assert_eq!(bench.arrives(2, Line::Others), Arrival::Waits);
    }

    #[test]
    fn in_a_full_line_the_most_crowded_sender_gives_way() {
        let mut bench = Bench::new(1, 256);
        let crowd = (MAX_WAITING / MAX_WAITING_OF_ONE) as u64;
        for _ in 0..MAX_WAITING_OF_ONE {
            (0..crowd).for_each(|node| assert_eq!(bench.arrives(node, Line::Others), Arrival::Waits));
        }
        let Arrival::TurnedAway(who, _) = bench.arrives(9_999, Line::Others) else { panic!("the line is full") };
        assert_ne!(who, sender(9_999), "the newcomer has the least");
        assert_eq!(bench.invitations.others.count, MAX_WAITING);
    }

    #[test]
    fn friends_come_first_and_others_still_come() {
        let mut bench = Bench::new(4, 256);
        for node in 0..400 {
            bench.arrives(node, Line::Others);
        }
        for friend in 1_000..1_010 {
            bench.arrives(friend, Line::Friends);
        }
        let served = bench.served(Duration::from_secs(2));
        let friends = served.iter().filter(|node| **node >= sender(1_000).node).count();
        assert!(friends * 4 >= served.len() * 3 - 4 && friends < served.len(), "{friends} of {}", served.len());
    }

    #[test]
    fn places_of_others_are_none_of_the_friends() {
        let mut bench = Bench::new(1_000, 8);
        for node in 0..100 {
            bench.arrives(node, Line::Others);
        }
        let mut under_way = 0;
        while let Next::Answer(..) = bench.invitations.next(bench.now) {
            under_way += 1;
        }
        assert_eq!(under_way, 8, "so many at once");
        bench.arrives(500, Line::Friends);
        assert!(matches!(bench.invitations.next(bench.now), Next::Answer(_, Line::Friends)));
    }

    #[test]
    fn one_sender_has_few_answers_under_way() {
        let mut bench = Bench::new(1_000, 256);
        for _ in 0..MAX_WAITING_OF_ONE {
            bench.arrives(1, Line::Others);
        }
        let mut under_way = 0;
        while let Next::Answer(..) = bench.invitations.next(bench.now) {
            under_way += 1;
        }
        assert_eq!(under_way, MAX_OF_ONE_SENDER);
    }

    #[test]
    fn what_was_turned_away_or_grew_old_may_be_said_again() {
        let mut bench = Bench::new(1, 256);
        let said = |bench: &mut Bench| {
            let invite = Invite { id: [7; 16], body: vec![1], from: sender(1), since: bench.now };
            bench.invitations.arrived(invite, Line::Others)
        };
        assert_eq!((said(&mut bench), said(&mut bench)), (Arrival::Waits, Arrival::Copy));
        bench.now += WAITS_FOR + Duration::from_secs(1);
        assert!(matches!(bench.invitations.next(bench.now), Next::Wait(None)));
        assert_eq!(said(&mut bench), Arrival::Waits);
        for _ in 0..MAX_WAITING_OF_ONE {
            bench.arrives(2, Line::Others);
        }
        let again = |bench: &mut Bench| {
            let invite = Invite { id: [8; 16], body: vec![1], from: sender(2), since: bench.now };
            bench.invitations.arrived(invite, Line::Others)
        };
        assert!(matches!(again(&mut bench), Arrival::TurnedAway(..)));
        bench.served(Duration::from_secs(20));
        assert_eq!(again(&mut bench), Arrival::Waits);
    }

    #[test]
    fn a_dialler_is_waited_for_as_long_as_a_dial_lasts_while_nobody_needs_the_place() {
        let mut bench = Bench::new(1_000, 8);
        let waits = |bench: &Bench| {
            let (mut waited, line) = (Duration::ZERO, Line::Others);
            while let Some(more) = bench.invitations.patience(line, waited) {
                assert!(!more.is_zero());
                waited += more;
            }
            waited
        };
        let config = RendezvousConfig::default();
        for node in 0..4 {
            bench.arrives(node, Line::Others);
            assert!(matches!(bench.invitations.next(bench.now), Next::Answer(..)));
        }
        assert_eq!(waits(&bench), config.answer_most);
        bench.arrives(4, Line::Others);
        assert!(matches!(bench.invitations.next(bench.now), Next::Answer(..)));
        assert_eq!(waits(&bench), config.answer_timeout, "strangers who do not go on have a place for no longer");
        bench.invitations.ended(&sender(0).node, Line::Others);
        assert_eq!(waits(&bench), config.answer_most);
    }

    #[test]
    fn a_denial_is_remembered_for_a_moment() {
        let mut bench = Bench::new(1, 1);
        let node = NodeId::from_public_key([9; 32]);
        bench.invitations.deny(node, bench.now);
        assert!(bench.invitations.was_denied(&node, bench.now + Duration::from_secs(1)));
        assert!(!bench.invitations.was_denied(&node, bench.now + DENIED_FOR));
        for n in 0..=255 {
            (0..5).for_each(|_| bench.invitations.deny(NodeId::from_public_key([n; 32]), bench.now));
        }
        assert!(bench.invitations.denied.len() <= MAX_DENIED);
    }

    /// A rendezvous that lies says anything in anybody's name: after every step each table is within its cap, what is looked at
    /// within its rate, and friends that wait are served.
    #[test]
    fn no_sequence_of_invitations_goes_beyond_a_bound() {
        use rand::{rngs::StdRng, RngExt, SeedableRng};
        for seed in 0..24 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (per_second, at_once) = (rng.random_range(1..400), rng.random_range(1..40));
            let mut bench = Bench::new(per_second, at_once);
            let (began, senders) = (bench.now, [1, 40, 4_000][seed as usize % 3]);
            let (mut under_way, mut looked_at, mut refused): (Vec<(Invite, Line)>, u64, u64) = (Vec::new(), 0, 0);
            for step in 0..6_000u64 {
                let line = if rng.random_range(0..3) == 0 { Line::Friends } else { Line::Others };
                match rng.random_range(0..10) {
                    0..5 => {
                        // some exchanges come again
                        bench.made =
                            if rng.random_range(0..8) == 0 { rng.random_range(0..=step) } else { 10_000 + step };
                        if let Arrival::TurnedAway(..) = bench.arrives(rng.random_range(0..senders), line) {
                            refused += u64::from(bench.invitations.may_refuse(bench.now));
                        }
                    }
                    5..8 => {
                        if let Next::Answer(invite, line) = bench.invitations.next(bench.now) {
                            looked_at += 1;
                            assert!(bench.now.saturating_duration_since(invite.since) <= WAITS_FOR, "seed {seed}");
                            under_way.push((*invite, line));
                        }
                    }
                    8 if !under_way.is_empty() => {
                        let (invite, line) = under_way.swap_remove(rng.random_range(0..under_way.len()));
                        bench.invitations.ended(&invite.from.node, line);
                    }
                    _ => {
                        let node = NodeId::from_public_key(sender(rng.random_range(0..3_000)).node);
                        bench.invitations.deny(node, bench.now);
                        let long = if step % 50 == 0 { rng.random_range(0..9_000) } else { 0 };
                        bench.now += Duration::from_millis(rng.random_range(0..3) + long);
                    }
                }
                bench.is_within_bounds(at_once, &under_way, seed);
                let seconds = bench.now.saturating_duration_since(began).as_secs_f64();
                assert!(looked_at as f64 <= f64::from(per_second) * (seconds + 1.0) + 1.0, "seed {seed}");
                assert!(refused as f64 <= MAX_REFUSALS as f64 * (seconds + 1.0) + 1.0, "seed {seed}");
            }
        }
    }
}
