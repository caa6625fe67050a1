//! What was delivered, what is lost, and when to stop waiting. Reading list: RFC 8985 (RACK-TLP) sections 6 and 7,
//! RFC 6298 section 5, RFC 5682 (F-RTO, its idea), draft-ietf-ccwg-bbr section 4.1 (delivery rate).

use std::collections::VecDeque;
use std::time::Duration;

use super::rtt::Rtt;
use super::send::{Segment, SendQueue};
use super::seq::Seq;
use crate::time::Time;

/// Loss detection and delivery accounting of one connection.
#[derive(Debug)]
pub struct Recovery {
    rack: Rack,
    /// Every first transmission below it has been judged: delivered, lost, or sent again since.
    judged: Seq,
    /// Packets sent again, in the order they left.
    resent: VecDeque<(Time, Seq)>,
    /// To be sent again.
    lost: VecDeque<Seq>,
    /// The packet before `una` was acknowledged again this often, with no selective ack (peers without SACK).
    duplicate_acks: u32,
    episode: Episode,
    /// When a packet counts as lost if nothing arrives meanwhile.
    reorder_at: Option<Time>,
    timer_start: Time,
    last_sent: Time,
    /// A tail-loss probe is out: the next silence is an RTO.
    probed: bool,
    /// RTOs in a row.
    pub backoff: u32,
    delivered: u64,
    /// What was confirmed after its path was left: no measure of the present one.
    elsewhere: u64,
    delivered_at: Time,
    first_sent: Time,
    app_limited_until: u64,
    /// Until then what left over earlier paths may still be on its way.
    settled_at: Time,
    /// No ack has come since then: it is not clear yet what arrived over earlier paths.
    unsettled: bool,
}

/// What reordering taught about one path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reordering {
    seen: bool,
    /// By how much packets came later than packets sent after them: the largest of the previous and of the present stretch.
    late: [Duration; 2],
    /// When the present stretch began.
    since: Time,
}

impl Reordering {
    fn note(&mut self, now: Time, late: Duration) {
        if now.since(self.since) >= LATE_STRETCH {
            self.late = [self.late[1], Duration::ZERO];
            self.since = now;
        }
        self.late[1] = self.late[1].max(late);
    }

    /// RFC 8985 section 6.2 step 4 starts with a quarter of the minimum RTT and widens it step by step when DSACK tells that losses were
    /// none. BEP 29 has no DSACK; here the lateness itself is measured. A quarter more, because the largest is yet to come. The RFC's
    /// bound, SRTT, is less than packets differ by where the round trip is mostly jitter: what they vary by is added.
    fn window(&self, rtt: &Rtt) -> Duration {
        let late = self.late[0].max(self.late[1]);
        (late + late / 4).max(rtt.min() / 4).min(rtt.srtt() + rtt.var() * 4)
    }
}

/// RFC 8985 section 5.2.
#[derive(Debug, Default)]
struct Rack {
    /// The most recently sent packet that was delivered, and its RTT.
    newest: (Time, Seq),
    rtt: Duration,
    /// The number after the highest one delivered.
    high: Seq,
    reordering: Reordering,
}

/// One stretch of recovery: from the first loss until everything then in flight is confirmed.
#[derive(Debug, Default)]
struct Episode {
    /// Ends when `una` reaches it; `None` outside.
    until: Option<Seq>,
    lost: u32,
    false_alarms: u32,
    by_timeout: bool,
}

/// What one packet from the peer taught.
#[derive(Debug, Default)]
pub struct Acked {
    /// Bytes newly confirmed, cumulatively or selectively, that left over the present path.
    pub bytes: u64,
    pub packets: u32,
    /// Packets newly confirmed that left over an earlier path.
    pub strays: u32,
    /// There are bytes among both.
    news: bool,
    /// RTT of the newest packet that was sent once.
    pub rtt: Option<Duration>,
    /// The RTTs of all of them, summed, and how many they are.
    pub rtt_sum: Duration,
    pub rtt_count: u32,
    /// Bytes per second.
    pub rate: Option<u64>,
    pub app_limited: bool,
    pub window_limited: bool,
    pub prior_delivered: u64,
    /// The largest MTU probe among them.
    pub probe: u16,
    /// All losses of the episode were false alarms.
    pub undo: bool,
    newest: Option<Segment>,
}

/// What was declared lost at one moment.
#[derive(Debug, Default)]
pub struct Losses {
    /// Bytes, without MTU probes and what left over an earlier path (their loss says nothing about congestion).
    pub bytes: u64,
    pub packets: u32,
    pub newest_sent: Time,
    pub new_episode: bool,
    /// Size of a lost MTU probe.
    pub probe: u16,
}

/// What a timer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The reordering window of some packet is over: see [`Recovery::detect`].
    Reorder,
    /// Send one more packet to provoke an ack (RFC 8985 section 7).
    Probe,
    /// RFC 6298 section 5: everything in flight is presumed lost.
    Timeout,
}

impl Recovery {
    pub fn new(now: Time, next: Seq) -> Self {
        Self {
            rack: Rack::default(),
            judged: next,
            resent: VecDeque::new(),
            lost: VecDeque::new(),
            duplicate_acks: 0,
            episode: Episode::default(),
            reorder_at: None,
            timer_start: now,
            last_sent: now,
            probed: false,
            backoff: 0,
            delivered: 0,
            elsewhere: 0,
            delivered_at: now,
            first_sent: now,
            app_limited_until: 0,
            settled_at: Time::ZERO,
            unsettled: false,
        }
    }

    /// Bytes confirmed so far, each over the path on which it left.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Bytes confirmed so far, however they got there.
    pub fn confirmed(&self) -> u64 {
        self.delivered + self.elsewhere
    }

    /// What left over an earlier path may still arrive, and what the peer says may be about that.
    pub fn is_settling(&self, now: Time) -> bool {
        now < self.settled_at
    }

    pub fn in_episode(&self) -> bool {
        self.episode.until.is_some()
    }

    /// The descriptor of a packet that leaves now.
    pub fn template(&mut self, now: Time, queue: &SendQueue, window_limited: bool) -> Segment {
        if queue.flying() == 0 {
            self.first_sent = now;
            self.delivered_at = now;
            self.timer_start = now;
        }
        self.last_sent = now;
        Segment {
            offset: 0,
            sent: now,
            delivered: self.delivered,
            delivered_at: self.delivered_at,
            first_sent: self.first_sent,
            path: queue.path(),
            len: 0,
            probe: 0,
            fin: false,
            sacked: false,
            lost: false,
            counted: false,
            app_limited: self.app_limited_until > self.delivered,
            window_limited,
            moved: self.unsettled,
            transmissions: 0,
        }
    }

    /// There is room in the window and nothing to send: rate samples until all this is delivered say little.
    pub fn note_app_limited(&mut self, queue: &SendQueue) {
        self.app_limited_until = (self.delivered + queue.in_flight()).max(1);
    }

    /// The next packet to send again, if any.
    pub fn next_lost(&mut self, queue: &SendQueue) -> Option<Seq> {
        while let Some(&seq) = self.lost.front() {
            if queue.segment(seq).is_some_and(|segment| segment.lost) {
                return Some(seq);
            }
            self.lost.pop_front();
        }
        None
    }

    /// `seq` has just left again.
    pub fn note_resent(&mut self, now: Time, seq: Seq) {
        if self.lost.front() == Some(&seq) {
            self.lost.pop_front();
        }
        self.resent.push_back((now, seq));
    }

    /// Takes in everything below `end` and the ranges received beyond it.
    pub fn handle_ack(
        &mut self,
        now: Time,
        queue: &mut SendQueue,
        rtt: &Rtt,
        end: Seq,
        ranges: impl Iterator<Item = (Seq, Seq)>,
    ) -> Acked {
        let mut acked = Acked::default();
        let una = queue.una();
        while let Some((seq, segment)) = queue.pop_confirmed(end) {
            if !segment.sacked {
                self.note_delivered(now, rtt, queue.path(), (seq, &segment), &mut acked);
            }
        }
        self.check_reneging(queue);
        // honest ranges are disjoint: together they name no more packets than are outstanding, and not the one that is missing
        let mut left = queue.outstanding() as u64;
        for (first, after) in ranges {
            let (first, after) = (first.max(queue.una() + 1), after.min(queue.next()));
            let named = after.saturating_sub(first).min(left);
            left -= named;
            for seq in first..first + named {
                if let Some(segment) = queue.mark_sacked(seq).filter(|segment| !segment.counted) {
                    self.note_delivered(now, rtt, queue.path(), (seq, &segment), &mut acked);
                }
            }
        }
        self.unsettled &= self.is_settling(now);
        if queue.una() > una || acked.news {
            self.restart_timer(now);
        }
        if queue.una() > una {
            self.duplicate_acks = 0;
        }
        self.sample_rate(&mut acked, rtt);
        acked.undo = self.end_or_undo_episode(queue);
        acked
    }

    /// The peer reported the oldest unconfirmed packet as received, and says now that it is missing: it has thrown away what it
    /// had (RFC 2018 section 8). That shows here for whatever it threw away, when the ack gets there, so the reports of an
    /// honest peer outlive a timeout. No congestion, and no bytes to count again.
    fn check_reneging(&mut self, queue: &mut SendQueue) {
        if queue.segment(queue.una()).is_some_and(|oldest| oldest.sacked) {
            queue.forget_sacked();
            self.collect_lost(queue);
        }
    }

    /// The peer repeated its ack without any selective one: the third time means a loss (RFC 5681 section 3.2).
    pub fn handle_duplicate_ack(&mut self, queue: &mut SendQueue, losses: &mut Losses) {
        self.duplicate_acks += 1;
        if self.duplicate_acks == 3 {
            self.lose(queue, queue.una(), losses);
            self.note_episode(queue, losses, false);
        }
    }

    /// Declares lost what RACK says is lost by now, and notes when to look again.
    pub fn detect(&mut self, now: Time, queue: &mut SendQueue, rtt: &Rtt) -> Losses {
        let mut losses = Losses::default();
        self.reorder_at = None;
        let patience = self.rack.rtt + self.reorder_window(queue, rtt);
        self.judged = self.judged.max(queue.una());
        while let Some(segment) = queue.segment(self.judged) {
            if segment.is_in_flight() && segment.transmissions == 1 && segment.path == queue.path() {
                if !self.is_overdue(now, patience, segment.sent, self.judged) {
                    break;
                }
                self.lose(queue, self.judged, &mut losses);
            }
            self.judged += 1;
        }
        while let Some(&(sent, seq)) = self.resent.front() {
            let here = queue.path();
            let current = queue.segment(seq).is_some_and(|s| s.is_in_flight() && s.sent == sent && s.path == here);
            if current {
                if !self.is_overdue(now, patience, sent, seq) {
                    break;
                }
                self.lose(queue, seq, &mut losses);
            }
            self.resent.pop_front();
        }
        self.detect_strays(now, queue, &mut losses);
        self.note_episode(queue, &mut losses, false);
        losses
    }

    /// The alarm that is due first, and when.
    pub fn deadline(&self, queue: &SendQueue, rtt: &Rtt) -> Option<(Time, Alarm)> {
        let reorder = self.reorder_at.map(|at| (at, Alarm::Reorder));
        if queue.flying() == 0 {
            return reorder;
        }
        let may_probe = !self.probed && self.backoff == 0 && queue.sacked_count() == 0 && self.lost.is_empty();
        let silence = self.timer_start.max(self.oldest_sent(queue)) + self.timeout(rtt);
        let rto = (silence.max(self.settled_at), Alarm::Timeout);
        let probe = may_probe.then(|| (self.last_sent + rtt.pto(), Alarm::Probe));
        [reorder, probe, Some(rto)].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// A tail-loss probe leaves: returns the packet to repeat (the last one), for when there is nothing new to send.
    pub fn start_probe(&mut self, queue: &SendQueue) -> Option<Seq> {
        self.probed = true;
        queue.segments().rev().find(|(_, segment)| segment.is_in_flight()).map(|(seq, _)| seq)
    }

    /// The retransmission timer went off: presume everything lost, double the timer.
    pub fn handle_timeout(&mut self, now: Time, queue: &mut SendQueue) -> Losses {
        let mut losses = Losses::default();
        self.lose_all(queue, &mut losses);
        self.backoff = (self.backoff + 1).min(10);
        self.timer_start = now;
        self.note_episode(queue, &mut losses, true);
        losses
    }

    /// What leaves from now on goes over another path. `lost`: what was in flight on the old one goes again over this one, and
    /// is no loss of it; otherwise that has `grace` to arrive, from when the last of it left. Takes what is known of reordering
    /// on the new path, and gives what was found out about it on the old one.
    pub fn handle_path(
        &mut self,
        now: Time,
        queue: &mut SendQueue,
        grace: Duration,
        lost: bool,
        reordering: Reordering,
    ) -> Reordering {
        queue.leave_path();
        if lost {
            self.lose_all(queue, &mut Losses::default());
        }
        self.settled_at = self.settled_at.max(self.last_sent + grace);
        self.unsettled = true;
        self.episode = Episode::default();
        self.reorder_at = None;
        self.restart_timer(now);
        (self.delivered_at, self.first_sent, self.app_limited_until) = (now, now, 0);
        // a packet that was sent before says nothing about the order of those that follow
        let rack = Rack { high: queue.una(), reordering, ..Rack::default() };
        std::mem::replace(&mut self.rack, rack).reordering
    }

    /// The path answers again after a silence: whatever was sent into it a round trip ago or earlier goes once more, without
    /// the wait that grew meanwhile. Before the first timeout that is the oldest packet only: others may have arrived. Returns
    /// whether something is to be sent.
    pub fn handle_path_back(&mut self, now: Time, queue: &mut SendQueue, rtt: &Rtt) -> bool {
        let timed_out = self.backoff > 0;
        let end = if timed_out { queue.next() } else { queue.una() + 1 };
        for seq in queue.una()..end {
            if queue.segment(seq).is_some_and(|segment| now.since(segment.sent) >= rtt.srtt()) {
                queue.mark_lost(seq);
            }
        }
        self.collect_lost(queue);
        if timed_out {
            self.restart_timer(now);
        }
        !self.lost.is_empty()
    }

    /// The peer threw everything away on purpose: it is sent again, and says nothing about the path.
    pub fn send_all_again(&mut self, queue: &mut SendQueue) {
        let mut losses = Losses::default();
        for seq in queue.una()..queue.next() {
            self.lose(queue, seq, &mut losses);
        }
    }

    /// Nothing is outstanding and nobody expects more: memory back.
    pub fn shrink(&mut self) {
        if self.lost.is_empty() && self.resent.is_empty() {
            self.lost = VecDeque::new();
            self.resent = VecDeque::new();
        }
    }

    /// What left over earlier paths and is still missing when it had time enough and later packets have arrived is lost.
    fn detect_strays(&mut self, now: Time, queue: &mut SendQueue, losses: &mut Losses) {
        if queue.strays() == 0 || self.rack.newest.0 == Time::ZERO {
            return;
        }
        if self.is_settling(now) {
            self.reorder_at = Some(self.reorder_at.map_or(self.settled_at, |before| before.min(self.settled_at)));
            return;
        }
        for seq in queue.una()..queue.next() {
            if queue.segment(seq).is_some_and(|segment| segment.path != queue.path()) {
                self.lose(queue, seq, losses);
            }
        }
    }

    fn lose_all(&mut self, queue: &mut SendQueue, losses: &mut Losses) {
        for seq in queue.una()..queue.next() {
            self.lose(queue, seq, losses);
        }
        self.resent.clear();
        self.collect_lost(queue);
        self.judged = queue.next();
        self.reorder_at = None;
    }

    fn collect_lost(&mut self, queue: &SendQueue) {
        self.lost.clear();
        self.lost.extend(queue.segments().filter(|(_, segment)| segment.lost).map(|(seq, _)| seq));
    }

    fn restart_timer(&mut self, now: Time) {
        self.timer_start = now;
        self.probed = false;
        self.backoff = 0;
    }

    fn timeout(&self, rtt: &Rtt) -> Duration {
        rtt.rto().saturating_mul(1 << self.backoff).min(rtt.rto().max(MAX_BACKED_OFF))
    }

    /// An RTO is counted from the oldest packet's last departure at the earliest.
    fn oldest_sent(&self, queue: &SendQueue) -> Time {
        queue.segments().next().filter(|(_, s)| s.is_in_flight()).map_or(Time::ZERO, |(_, s)| s.sent)
    }

    fn note_delivered(&mut self, now: Time, rtt: &Rtt, here: u32, sent: (Seq, &Segment), acked: &mut Acked) {
        let (seq, segment) = sent;
        if segment.counted {
            acked.packets += 1;
            return;
        }
        acked.news |= segment.len > 0;
        if segment.path != here {
            acked.strays += 1;
            self.elsewhere += u64::from(segment.len);
            return;
        }
        acked.packets += 1;
        self.delivered += u64::from(segment.len);
        self.delivered_at = now;
        acked.bytes += u64::from(segment.len);
        acked.probe = acked.probe.max(segment.probe);
        let elapsed = now.since(segment.sent);
        let resent = segment.transmissions > 1;
        // an ack sooner than a round trip can take is for an earlier copy
        let early = resent && rtt.has_sample() && elapsed < rtt.min() / 8 * 7;
        if (segment.lost && !resent) || (early && !segment.moved) {
            self.episode.false_alarms += 1;
        }
        self.note_order(now, rtt, (seq, segment), elapsed, early);
        if !resent {
            acked.rtt_sum += elapsed;
            acked.rtt_count += 1;
        }
        self.rack.high = self.rack.high.max(seq + 1);
        if !early && (!resent || elapsed >= rtt.min()) && (segment.sent, seq) > self.rack.newest {
            self.rack.newest = (segment.sent, seq);
            self.rack.rtt = elapsed;
        }
        if !resent && acked.newest.is_none_or(|newest| segment.sent >= newest.sent) {
            acked.newest = Some(*segment);
            acked.rtt = Some(elapsed);
        } else if acked.newest.is_none() {
            acked.newest = Some(*segment);
        }
    }

    /// Learns by how much packets are overtaken. A packet that was sent again, and whose first copy arrived soon after that, had used
    /// up the whole window before.
    fn note_order(&mut self, now: Time, rtt: &Rtt, sent: (Seq, &Segment), elapsed: Duration, early: bool) {
        let (seq, segment) = sent;
        let resent = segment.transmissions > 1;
        if !resent && seq < self.rack.high {
            self.rack.reordering.seen = true;
            self.rack.reordering.note(now, elapsed.saturating_sub(self.rack.rtt));
        } else if early && !segment.moved {
            let used_up = self.rack.reordering.window(rtt);
            self.rack.reordering.note(now, used_up + elapsed);
        }
    }

    /// draft-ietf-ccwg-bbr section 4.1.2.3: delivered bytes over the longer of sending and confirming.
    fn sample_rate(&mut self, acked: &mut Acked, rtt: &Rtt) {
        let Some(newest) = acked.newest else { return };
        acked.prior_delivered = newest.delivered;
        acked.app_limited = newest.app_limited;
        acked.window_limited = newest.window_limited;
        if newest.transmissions <= 1 {
            self.first_sent = self.first_sent.max(newest.sent);
        }
        let sending = newest.sent.since(newest.first_sent);
        let confirming = self.delivered_at.since(newest.delivered_at);
        let interval = sending.max(confirming);
        if interval.is_zero() || (rtt.has_sample() && interval < rtt.min()) {
            return;
        }
        let bytes = self.delivered - newest.delivered;
        let rate = u128::from(bytes) * 1_000_000_000 / interval.as_nanos();
        acked.rate = Some(u64::try_from(rate).unwrap_or(u64::MAX));
    }

    /// RFC 8985 section 6.2 step 4: no patience while nothing was ever reordered and a loss is evident.
    fn reorder_window(&self, queue: &SendQueue, rtt: &Rtt) -> Duration {
        if !self.rack.reordering.seen && (self.in_episode() || queue.sacked_count() >= 3) {
            return Duration::ZERO;
        }
        self.rack.reordering.window(rtt)
    }

    fn is_overdue(&mut self, now: Time, patience: Duration, sent: Time, seq: Seq) -> bool {
        if (sent, seq) >= self.rack.newest {
            return false;
        }
        let at = sent + patience;
        if at <= now {
            return true;
        }
        self.reorder_at = Some(self.reorder_at.map_or(at, |before| before.min(at)));
        false
    }

    fn lose(&mut self, queue: &mut SendQueue, seq: Seq, losses: &mut Losses) {
        let Some(segment) = queue.mark_lost(seq) else { return };
        self.lost.push_back(seq);
        if segment.path != queue.path() {
            return;
        }
        if segment.probe > 0 {
            losses.probe = segment.probe;
            return;
        }
        losses.bytes += u64::from(segment.len);
        losses.packets += 1;
        losses.newest_sent = losses.newest_sent.max(segment.sent);
    }

    fn note_episode(&mut self, queue: &SendQueue, losses: &mut Losses, by_timeout: bool) {
        if losses.packets == 0 {
            return;
        }
        if self.episode.until.is_none() || (by_timeout && !self.episode.by_timeout) {
            losses.new_episode = true;
            self.episode = Episode { until: Some(queue.next()), lost: 0, false_alarms: 0, by_timeout };
        }
        self.episode.lost += losses.packets;
    }

    /// Ends the episode when it is over. True when every loss in it was a false alarm: what was not yet sent again counts
    /// as in flight once more (RFC 5682 section 3).
    fn end_or_undo_episode(&mut self, queue: &mut SendQueue) -> bool {
        let Some(until) = self.episode.until else { return false };
        let timeout_was_false = self.episode.by_timeout && self.episode.false_alarms > 0;
        let all_false = self.episode.lost > 0 && self.episode.false_alarms >= self.episode.lost;
        if timeout_was_false || all_false {
            self.lost.retain(|&seq| {
                queue.unmark_lost(seq);
                queue.segment(seq).is_some_and(|segment| segment.lost)
            });
            self.judged = queue.una();
            self.episode = Episode::default();
            return true;
        }
        if queue.una() >= until {
            self.episode = Episode::default();
        }
        false
    }
}

/// How long a packet that came late widens the reordering window at least: as long as BBR remembers a minimum RTT.
const LATE_STRETCH: Duration = Duration::from_secs(10);
/// The longest that back-off stretches the timer: a path that comes back after an outage is noticed within this
/// (dead peers are found by keep-alive, not here).
const MAX_BACKED_OFF: Duration = Duration::from_secs(4);
