//! The sending half: bytes of the application in a ring, and one descriptor for each packet sent and not yet confirmed.
//! Knows sequence numbers and bytes; when something is lost or may leave is decided in `recovery` and `connection`.

use std::collections::VecDeque;

use super::ring::Ring;
use super::seq::Seq;
use crate::time::Time;

/// A packet that was sent: DATA, or FIN with `len` 0.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Where its payload starts in the stream.
    pub offset: u64,
    /// When it last left.
    pub sent: Time,
    /// For rate samples (draft-ietf-ccwg-bbr section 4.1.1): the state of delivery when it last left.
    pub delivered: u64,
    pub delivered_at: Time,
    pub first_sent: Time,
    /// [`SendQueue::path`] when it last left.
    pub path: u32,
    pub len: u16,
    /// Size of the padded datagram when it was last sent as an MTU probe, else 0.
    pub probe: u16,
    pub fin: bool,
    pub sacked: bool,
    pub lost: bool,
    /// It was once reported as received: its bytes were counted then.
    pub counted: bool,
    pub app_limited: bool,
    pub window_limited: bool,
    /// An earlier copy left over another path: an ack that comes too soon may be of that one.
    pub moved: bool,
    /// How often it left; Karn's rule takes no RTT from more than one.
    pub transmissions: u8,
}

impl Segment {
    /// On its way as far as we know.
    pub fn is_in_flight(&self) -> bool {
        !self.sacked && !self.lost
    }
}

/// How far the end of our direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinState {
    /// The application may still write.
    Open,
    /// FIN follows the last byte.
    Queued,
    /// FIN is among the segments.
    Sent,
    /// The peer has everything.
    Confirmed,
}

/// Unsent bytes, unconfirmed packets, and their sums.
#[derive(Debug)]
pub struct SendQueue {
    ring: Ring,
    /// Packets `una..next`, oldest first.
    segments: VecDeque<Segment>,
    una: Seq,
    /// Offset of the first byte never sent.
    unsent: u64,
    fin: FinState,
    limit: usize,
    path: u32,
    in_flight: u64,
    /// Packets in flight over whichever path: FIN counts here, though it has no bytes.
    flying: usize,
    /// Those of them that left over an earlier path.
    strays: usize,
    sacked_bytes: u64,
    sacked_count: usize,
    most_outstanding: usize,
}

impl SendQueue {
    pub fn new(next: Seq, limit: usize) -> Self {
        Self {
            ring: Ring::default(),
            segments: VecDeque::new(),
            una: next,
            unsent: 0,
            fin: FinState::Open,
            limit,
            path: 0,
            in_flight: 0,
            flying: 0,
            strays: 0,
            sacked_bytes: 0,
            sacked_count: 0,
            most_outstanding: 0,
        }
    }

    /// The oldest unconfirmed sequence number.
    pub fn una(&self) -> Seq {
        self.una
    }

    /// The sequence number of the next new packet.
    pub fn next(&self) -> Seq {
        self.una + self.segments.len() as Seq
    }

    pub fn fin(&self) -> FinState {
        self.fin
    }

    /// The number of the stretch of time in which everything leaves over one path.
    pub fn path(&self) -> u32 {
        self.path
    }

    /// What leaves from now on goes over another path, on which nothing is in flight yet.
    pub fn leave_path(&mut self) {
        self.path = self.path.wrapping_add(1);
        self.in_flight = 0;
        self.strays = self.flying;
    }

    /// Bytes sent over the present path and neither confirmed nor lost.
    pub fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Packets sent over any path and neither confirmed nor lost.
    pub fn flying(&self) -> usize {
        self.flying
    }

    /// Those of them that left over an earlier path.
    pub fn strays(&self) -> usize {
        self.strays
    }

    /// Packets sent and not cumulatively confirmed.
    pub fn outstanding(&self) -> usize {
        self.segments.len()
    }

    /// The most that it ever was: how far behind a late ack may be.
    pub fn most_outstanding(&self) -> Seq {
        self.most_outstanding as Seq
    }

    /// Bytes the peer must find room for: sent, not confirmed, and not reported as received early.
    pub fn unreceived(&self) -> u64 {
        self.unsent - self.ring.head() - self.sacked_bytes
    }

    pub fn sacked_count(&self) -> usize {
        self.sacked_count
    }

    pub fn unsent(&self) -> usize {
        (self.ring.tail() - self.unsent) as usize
    }

    /// Something was never sent: bytes, or FIN.
    pub fn has_unsent(&self) -> bool {
        self.unsent() > 0 || self.fin == FinState::Queued
    }

    pub fn memory(&self) -> usize {
        self.ring.memory() + self.segments.capacity() * std::mem::size_of::<Segment>()
    }

    /// Bytes the application may have in here; more than that already held stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Room for the application.
    pub fn free(&self) -> usize {
        self.limit.saturating_sub(self.ring.len())
    }

    pub fn write(&mut self, data: &[u8]) -> usize {
        self.ring.write(data, self.limit)
    }

    /// FIN follows what was written.
    pub fn finish(&mut self) {
        if self.fin == FinState::Open {
            self.fin = FinState::Queued;
        }
    }

    pub fn segment(&self, seq: Seq) -> Option<&Segment> {
        self.segments.get(usize::try_from(seq.checked_sub(self.una)?).ok()?)
    }

    pub fn segments(&self) -> impl DoubleEndedIterator<Item = (Seq, &Segment)> + ExactSizeIterator {
        let una = self.una;
        self.segments.iter().enumerate().map(move |(i, segment)| (una + i as Seq, segment))
    }

    /// Appends the payload of a packet to `out`.
    pub fn copy_payload(&self, segment: &Segment, out: &mut Vec<u8>) {
        self.ring.copy_to(segment.offset, segment.len as usize, out);
    }

    /// Makes the next packet of at most `max_payload` unsent bytes, or FIN when all bytes are out. The caller fills in
    /// what it knows of the moment; the packet counts as in flight.
    pub fn push(&mut self, max_payload: usize, template: Segment) -> Option<(Seq, Segment)> {
        let len = self.unsent().min(max_payload);
        let fin = len == 0;
        if fin && self.fin != FinState::Queued {
            return None;
        }
        if fin {
            self.fin = FinState::Sent;
        }
        let segment = Segment {
            offset: self.unsent,
            len: len as u16,
            fin,
            transmissions: 1,
            path: self.path,
            moved: false,
            ..template
        };
        let seq = self.next();
        self.unsent += len as u64;
        self.in_flight += len as u64;
        self.flying += 1;
        self.segments.push_back(segment);
        self.most_outstanding = self.most_outstanding.max(self.segments.len());
        Some((seq, segment))
    }

    /// Notes that a packet leaves once more. What left elsewhere counts as sent for the first time here, unless
    /// `template.moved` says that the copy which is there may still be confirmed.
    pub fn resend(&mut self, seq: Seq, template: Segment) -> Option<Segment> {
        let at = usize::try_from(seq.checked_sub(self.una)?).ok()?;
        let segment = self.segments.get_mut(at)?;
        if !segment.is_in_flight() {
            self.in_flight += segment.len as u64;
            self.flying += 1;
        } else if segment.path != self.path {
            self.in_flight += segment.len as u64;
            self.strays -= 1;
        }
        let first_here = segment.path != self.path && !template.moved;
        let moved = segment.moved || segment.path != self.path;
        *segment = Segment {
            offset: segment.offset,
            len: segment.len,
            fin: segment.fin,
            counted: segment.counted,
            moved: moved && !first_here,
            transmissions: if first_here { 1 } else { segment.transmissions.saturating_add(1) },
            path: self.path,
            ..template
        };
        Some(*segment)
    }

    /// Takes off the oldest packet when it is below `end`, as confirmed. `None` when there is none.
    pub fn pop_confirmed(&mut self, end: Seq) -> Option<(Seq, Segment)> {
        if self.una >= end {
            return None;
        }
        let segment = self.segments.pop_front()?;
        let seq = self.una;
        self.una += 1;
        if segment.is_in_flight() {
            self.land(&segment);
        }
        if segment.sacked {
            self.sacked_bytes -= segment.len as u64;
            self.sacked_count -= 1;
        }
        if segment.fin {
            self.fin = FinState::Confirmed;
        }
        self.ring.release_to(segment.offset + segment.len as u64);
        Some((seq, segment))
    }

    /// Notes that a packet was received early. Returns it as it was when that is news.
    pub fn mark_sacked(&mut self, seq: Seq) -> Option<Segment> {
        let at = usize::try_from(seq.checked_sub(self.una)?).ok()?;
        let segment = self.segments.get_mut(at).filter(|segment| !segment.sacked)?;
        let before = *segment;
        segment.sacked = true;
        segment.counted = true;
        segment.lost = false;
        if before.is_in_flight() {
            self.land(&before);
        }
        self.sacked_bytes += before.len as u64;
        self.sacked_count += 1;
        Some(before)
    }

    /// The peer has thrown away what it had received early: all of it has to be sent again.
    pub fn forget_sacked(&mut self) {
        for segment in self.segments.iter_mut().filter(|segment| segment.sacked) {
            (segment.sacked, segment.lost) = (false, true);
        }
        (self.sacked_bytes, self.sacked_count) = (0, 0);
    }

    /// Presumes a packet lost. Returns it as it was when that is news.
    pub fn mark_lost(&mut self, seq: Seq) -> Option<Segment> {
        let at = usize::try_from(seq.checked_sub(self.una)?).ok()?;
        let segment = self.segments.get_mut(at).filter(|segment| segment.is_in_flight())?;
        let before = *segment;
        segment.lost = true;
        self.land(&before);
        Some(before)
    }

    /// The presumption was wrong; of another path nothing is presumed.
    pub fn unmark_lost(&mut self, seq: Seq) {
        let Some(at) = seq.checked_sub(self.una) else { return };
        let here = self.path;
        if let Some(segment) = self.segments.get_mut(at as usize).filter(|s| s.lost && s.path == here) {
            segment.lost = false;
            self.in_flight += segment.len as u64;
            self.flying += 1;
        }
    }

    /// It is not in flight any more.
    fn land(&mut self, segment: &Segment) {
        if segment.path == self.path {
            self.in_flight -= segment.len as u64;
        } else {
            self.strays -= 1;
        }
        self.flying -= 1;
    }

    /// Forgets everything: the connection is over.
    pub fn clear(&mut self) {
        self.ring.release_to(self.ring.tail());
        self.segments = VecDeque::new();
        self.unsent = self.ring.tail();
        (self.in_flight, self.flying, self.strays) = (0, 0, 0);
        (self.sacked_bytes, self.sacked_count) = (0, 0);
        self.shrink();
    }

    /// Empty, with memory for more.
    pub fn has_spare(&self) -> bool {
        self.ring.is_empty() && self.segments.is_empty() && self.ring.memory() + self.segments.capacity() > 0
    }

    /// Gives memory back on idle connections.
    pub fn shrink(&mut self) {
        self.ring.shrink();
        if self.segments.is_empty() {
            self.segments = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template() -> Segment {
        Segment {
            offset: 0,
            sent: Time::ZERO,
            delivered: 0,
            delivered_at: Time::ZERO,
            first_sent: Time::ZERO,
            path: 0,
            len: 0,
            probe: 0,
            fin: false,
            sacked: false,
            lost: false,
            counted: false,
            app_limited: false,
            window_limited: false,
            moved: false,
            transmissions: 0,
        }
    }

    proptest! {
        /// In flight is always the sum over the descriptors, whatever happens in whatever order.
        #[test]
        fn sums_agree_with_the_descriptors(steps in prop::collection::vec((0u8..10, 0u64..40), 1..200)) {
            let mut queue = SendQueue::new(1_000, 100_000);
            for (kind, number) in steps {
                let seq = queue.una() + number;
                match kind {
                    0 => { queue.write(&vec![1; number as usize * 100]); }
                    1 | 2 => { queue.push(700, template()); }
                    3 => { let end = seq.min(queue.next()); while queue.pop_confirmed(end).is_some() {} }
                    4 => { queue.mark_sacked(seq); }
                    5 => { queue.mark_lost(seq); }
                    6 => queue.forget_sacked(),
                    7 => queue.unmark_lost(seq),
                    8 => queue.leave_path(),
                    _ => { if queue.segment(seq).is_some_and(|s| s.lost) { queue.resend(seq, template()); } }
                }
                let here = |s: &Segment| s.is_in_flight() && s.path == queue.path();
                let in_flight: u64 = queue.segments().filter(|(_, s)| here(s)).map(|(_, s)| s.len as u64).sum();
                let sacked = queue.segments().filter(|(_, s)| s.sacked).count();
                let all: u64 = queue.segments().filter(|(_, s)| !s.sacked).map(|(_, s)| s.len as u64).sum();
                prop_assert_eq!(queue.in_flight(), in_flight);
                let strays = queue.segments().filter(|(_, s)| s.is_in_flight() && s.path != queue.path()).count();
                prop_assert_eq!(queue.strays(), strays);
                prop_assert_eq!(queue.flying(), queue.segments().filter(|(_, s)| s.is_in_flight()).count());
                prop_assert_eq!(queue.sacked_count(), sacked);
                prop_assert_eq!(queue.unreceived(), all);
            }
        }
    }

    #[test]
    fn fin_takes_the_number_after_the_last_byte() {
        let mut queue = SendQueue::new(5, 1_000);
        queue.write(b"hello");
        queue.finish();
        assert_eq!(queue.push(3, template()).map(|(seq, s)| (seq, s.len)), Some((5, 3)));
        assert_eq!(queue.push(3, template()).map(|(seq, s)| (seq, s.len)), Some((6, 2)));
        let (seq, fin) = queue.push(3, template()).unwrap();
        assert!(seq == 7 && fin.fin && queue.push(3, template()).is_none());
        while queue.pop_confirmed(8).is_some() {}
        assert_eq!(queue.fin(), FinState::Confirmed);
    }
}
