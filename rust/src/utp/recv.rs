//! The receiving half: what arrived in order waits in a ring for the reader, what arrived early waits by its number.
//! The reorder bytes count against the advertised window, so that memory never exceeds what was offered.

use std::collections::{BTreeMap, VecDeque};

use super::packet::MAX_RANGES;
use super::ring::Ring;
use super::seq::{wire, Seq};

/// What became of an arriving DATA or FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// It was the next one; `gap_closed` when it let earlier arrivals follow, or ended a hole.
    InOrder { gap_closed: bool },
    /// It came early and is kept.
    Early,
    /// It was here before.
    Duplicate,
    /// Beyond the window, or past the end that FIN announced: dropped.
    Refused,
}

/// In-order bytes, early packets, the end of the stream and the window.
#[derive(Debug)]
pub struct ReceiveQueue {
    ring: Ring,
    /// The next sequence number in order; `ack_nr` is the one before.
    next: Seq,
    early: BTreeMap<Seq, Box<[u8]>>,
    early_bytes: usize,
    /// The same numbers as runs, first -> end: acks report runs, and there may be thousands of packets in one.
    runs: BTreeMap<Seq, Seq>,
    /// Sequence numbers of the last early arrivals, newest first: what a range ack reports first.
    news: VecDeque<Seq>,
    /// Where FIN stands.
    fin: Option<Seq>,
    /// Bytes that may be held, in order and early.
    capacity: usize,
    max_capacity: usize,
    /// Taken by the reader since the capacity last grew.
    read_since_growth: usize,
    /// Nobody will read: what comes is acknowledged and dropped.
    discard: bool,
    total: u64,
}

impl ReceiveQueue {
    pub fn new(next: Seq, capacity: usize, max_capacity: usize) -> Self {
        Self {
            ring: Ring::default(),
            next,
            early: BTreeMap::new(),
            early_bytes: 0,
            runs: BTreeMap::new(),
            news: VecDeque::new(),
            fin: None,
            capacity,
            max_capacity: max_capacity.max(capacity),
            read_since_growth: 0,
            discard: false,
            total: 0,
        }
    }

    /// The next sequence number expected.
    pub fn next(&self) -> Seq {
        self.next
    }

    /// Bytes ready for the reader.
    pub fn readable(&self) -> usize {
        self.ring.len()
    }

    /// Bytes received in order so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Everything up to FIN has arrived (the reader may still have bytes to take).
    pub fn is_complete(&self) -> bool {
        self.fin.is_some_and(|fin| self.next > fin)
    }

    /// Nothing has come yet, not even out of order.
    pub fn is_untouched(&self) -> bool {
        self.total == 0 && self.early.is_empty() && self.fin.is_none()
    }

    pub fn has_holes(&self) -> bool {
        !self.early.is_empty()
    }

    /// Free bytes, for `wnd_size`.
    pub fn window(&self) -> u32 {
        let free = self.capacity.saturating_sub(self.ring.len() + self.early_bytes);
        u32::try_from(free).unwrap_or(u32::MAX)
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Offers at least `capacity` from now on, and lets it grow to `max_capacity`.
    pub fn widen(&mut self, capacity: usize, max_capacity: usize) {
        self.capacity = self.capacity.max(capacity.min(max_capacity));
        self.max_capacity = self.max_capacity.max(max_capacity);
    }

    /// Bytes of memory held.
    pub fn memory(&self) -> usize {
        self.ring.memory() + self.early_bytes
    }

    /// Takes one DATA payload.
    pub fn insert(&mut self, seq: Seq, payload: &[u8]) -> Arrival {
        if seq < self.next || self.early.contains_key(&seq) {
            return Arrival::Duplicate;
        }
        if self.fin.is_some_and(|fin| seq >= fin) || seq - self.next > MAX_AHEAD {
            return Arrival::Refused;
        }
        // One packet more than offered is taken: peers count headers and probes differently. The packet that is next is taken
        // even if early ones have used the window up (a stale ack can let too many come): only it can free them. What was
        // reported as received is never thrown away, so the most that is held is twice the capacity.
        let early = if seq > self.next { self.early_bytes } else { 0 };
        if self.ring.len() + early + payload.len() > self.capacity + SLACK {
            return Arrival::Refused;
        }
        if seq > self.next {
            // each costs more than its payload: tiny ones must not make memory grow beyond the window
            if self.early.len() >= (self.capacity / EARLY_COST).max(MIN_EARLY) {
                return Arrival::Refused;
            }
            self.early.insert(seq, payload.into());
            self.early_bytes += payload.len();
            self.note(seq);
            return Arrival::Early;
        }
        let had_holes = self.has_holes();
        self.append(payload);
        self.follow_up();
        Arrival::InOrder { gap_closed: had_holes }
    }

    /// Takes FIN, which has the number after the last DATA.
    pub fn insert_fin(&mut self, seq: Seq) -> Arrival {
        if seq < self.next || self.fin == Some(seq) {
            return Arrival::Duplicate;
        }
        let conflicting = self.fin.is_some() || self.early.last_key_value().is_some_and(|(last, _)| *last >= seq);
        if conflicting || seq - self.next > MAX_AHEAD {
            return Arrival::Refused;
        }
        self.fin = Some(seq);
        let in_order = seq == self.next;
        self.follow_up();
        if in_order {
            Arrival::InOrder { gap_closed: false }
        } else {
            Arrival::Early
        }
    }

    /// Hands bytes to the reader. A reader that keeps up makes the window grow: it doubles with each half of it taken while
    /// little is waiting, so that it stays ahead of a sender in slow start, which doubles each round trip. Memory is taken
    /// only for what waits, so a window that is larger than needed costs nothing.
    pub fn read(&mut self, out: &mut [u8]) -> usize {
        let count = self.ring.read(out);
        self.read_since_growth += count;
        if self.capacity < self.max_capacity
            && self.read_since_growth >= self.capacity / 2
            && self.ring.len() <= self.capacity / 4
        {
            self.capacity = (2 * self.capacity).min(self.max_capacity);
            self.read_since_growth = 0;
        }
        count
    }

    /// Nobody reads any more.
    pub fn discard(&mut self) {
        self.discard = true;
        self.ring.release_to(self.ring.tail());
        self.shrink();
    }

    /// Empty, with memory for more.
    pub fn has_spare(&self) -> bool {
        self.ring.is_empty() && self.early.is_empty() && self.ring.memory() + self.news.capacity() > 0
    }

    /// Gives memory back on idle connections.
    pub fn shrink(&mut self) {
        self.ring.shrink();
        self.news = VecDeque::new();
    }

    /// The ranges received early, newest news first, then from the lowest: what fits one ack.
    pub fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(Seq, Seq)> = Vec::new();
        let news = self.news.iter().filter_map(|&seq| self.run_around(seq));
        let lowest = self.runs.iter().map(|(first, end)| (*first, *end)).take(2 * MAX_RANGES);
        for run in news.chain(lowest) {
            if ranges.len() == MAX_RANGES {
                break;
            }
            if !ranges.contains(&run) {
                ranges.push(run);
            }
        }
        ranges.iter().map(|(first, end)| (wire(*first), wire(*end))).collect()
    }

    /// The selective ack of BEP 29: bit i is `next + 1 + i`. At most `max_bytes` long, empty without holes.
    pub fn bits(&self, max_bytes: usize) -> Vec<u8> {
        let mut bits = Vec::new();
        for (&seq, _) in self.early.iter() {
            let at = (seq - self.next - 1) as usize;
            if at / 8 >= max_bytes {
                break;
            }
            bits.resize(at / 8 + 1, 0);
            bits[at / 8] |= 1 << (at % 8);
        }
        bits
    }

    /// Remembers an early arrival for the acks: joins it to the runs beside it.
    fn note(&mut self, seq: Seq) {
        self.news.push_front(seq);
        self.news.truncate(MAX_RANGES);
        let end = self.runs.remove(&(seq + 1)).unwrap_or(seq + 1);
        match self.runs.range_mut(..seq).next_back() {
            Some((_, before)) if *before == seq => *before = end,
            _ => {
                self.runs.insert(seq, end);
            }
        }
    }

    fn run_around(&self, seq: Seq) -> Option<(Seq, Seq)> {
        let (&first, &end) = self.runs.range(..=seq).next_back()?;
        (seq < end).then_some((first, end))
    }

    fn append(&mut self, payload: &[u8]) {
        self.total += payload.len() as u64;
        self.next += 1;
        if !self.discard {
            let limit = self.ring.len() + payload.len();
            self.ring.write(payload, limit);
        }
    }

    /// Moves what now follows in order, FIN included.
    fn follow_up(&mut self) {
        self.runs.remove(&self.next);
        while let Some(payload) = self.early.remove(&self.next) {
            self.early_bytes -= payload.len();
            self.append(&payload);
        }
        if self.fin == Some(self.next) {
            self.next += 1;
        }
        if self.early.is_empty() {
            self.news.clear();
        }
    }
}

/// A packet larger than the window by this much is still taken: one full datagram.
const SLACK: usize = 1_500;
/// Bytes of window that an early packet uses at least: what its bookkeeping takes, and some.
const EARLY_COST: usize = 256;
const MIN_EARLY: usize = 64;
/// How far ahead of the next packet one may be: half of the 16-bit space.
const MAX_AHEAD: Seq = 32_767;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::utp::seq::first;
    use proptest::prelude::*;

    fn queue() -> ReceiveQueue {
        ReceiveQueue::new(first(65_530), 1 << 16, 1 << 20)
    }

    #[test]
    fn early_packets_wait_and_follow() {
        let mut queue = queue();
        let next = queue.next();
        assert_eq!(queue.insert(next + 2, b"c"), Arrival::Early);
        assert_eq!(queue.insert(next + 1, b"b"), Arrival::Early);
        assert_eq!(queue.insert(next + 1, b"b"), Arrival::Duplicate);
        assert_eq!(queue.bits(8), [0b11]);
        assert_eq!(queue.ranges(), [(wire(next + 1), wire(next + 3))]);
        assert_eq!(queue.window(), (1 << 16) - 2, "reorder bytes count");
        assert_eq!(queue.insert(next, b"a"), Arrival::InOrder { gap_closed: true });
        let mut out = [0; 9];
        assert_eq!((queue.read(&mut out), &out[..3]), (3, &b"abc"[..]));
        assert!(!queue.has_holes() && queue.bits(8).is_empty() && queue.ranges().is_empty());
    }

    #[test]
    fn early_packets_have_a_cap_however_small_they_are() {
        let mut queue = queue();
        let next = queue.next();
        let taken = (1..30_000).filter(|n| queue.insert(next + *n, b"x") == Arrival::Early).count();
        assert_eq!(taken, (1 << 16) / EARLY_COST);
        assert_eq!(queue.early.len(), taken);
        let mut small = ReceiveQueue::new(first(1), 100, 100);
        let next = small.next();
        let taken = (1..30_000).filter(|n| small.insert(next + *n, b"x") == Arrival::Early).count();
        assert_eq!(taken, MIN_EARLY);
    }

    #[test]
    fn fin_may_come_before_missing_data_and_nothing_counts_after_it() {
        let mut queue = queue();
        let next = queue.next();
        assert_eq!(queue.insert_fin(next + 1), Arrival::Early);
        assert_eq!(queue.insert(next + 1, b"late"), Arrival::Refused);
        assert_eq!(queue.insert_fin(next + 5), Arrival::Refused, "a second end is a lie");
        assert!(!queue.is_complete());
        assert_eq!(queue.insert(next, b"x"), Arrival::InOrder { gap_closed: false });
        assert!(queue.is_complete());
        assert_eq!(queue.next(), next + 2);
    }

    #[test]
    fn fin_below_data_already_here_is_refused() {
        let mut queue = queue();
        let next = queue.next();
        queue.insert(next + 3, b"x");
        assert_eq!(queue.insert_fin(next + 2), Arrival::Refused);
    }

    #[test]
    fn the_window_bounds_memory() {
        let mut queue = ReceiveQueue::new(first(0), 10_000, 10_000);
        let next = queue.next();
        let taken = (1..100).filter(|i| queue.insert(next + i, &[0; 1_000]) == Arrival::Early).count();
        assert!(taken * 1_000 <= 10_000 + SLACK);
        assert_eq!(queue.insert(next + MAX_AHEAD + 1, b"x"), Arrival::Refused);
    }

    #[test]
    fn a_reader_that_keeps_up_makes_the_window_grow_to_its_cap() {
        let mut queue = ReceiveQueue::new(first(0), 10_000, 35_000);
        let mut out = [0; 1_000];
        for _ in 0..1_000 {
            let next = queue.next();
            queue.insert(next, &[0; 1_000]);
            queue.read(&mut out);
        }
        assert_eq!(queue.window(), 35_000);
    }

    #[test]
    fn newest_news_come_first_in_ranges() {
        let mut queue = ReceiveQueue::new(first(0), 1 << 20, 1 << 20);
        let next = queue.next();
        for i in 0..100 {
            queue.insert(next + 1 + 2 * i, b"x");
        }
        let ranges = queue.ranges();
        assert_eq!(ranges.len(), MAX_RANGES);
        assert_eq!(ranges[0], (wire(next + 199), wire(next + 200)));
    }

    proptest! {
        #[test]
        fn any_order_reassembles(order in Just((0..80u64).collect::<Vec<_>>()).prop_shuffle(), again in 0..80u64) {
            let mut queue = queue();
            let base = queue.next();
            let mut out = Vec::new();
            for i in order.into_iter().chain([again]) {
                if i == 79 {
                    queue.insert_fin(base + i);
                } else {
                    queue.insert(base + i, &[i as u8; 10]);
                }
                let mut buf = [0; 1_000];
                let count = queue.read(&mut buf);
                out.extend_from_slice(&buf[..count]);
            }
            prop_assert!(queue.is_complete());
            prop_assert_eq!(out, (0..79u8).flat_map(|i| [i; 10]).collect::<Vec<_>>());
        }
    }
}
