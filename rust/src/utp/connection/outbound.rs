//! What leaves a connection: SYN, RESET, batches of data (again or new), MTU probes, acks - in this order of urgency.

use super::super::congestion::{self, Handover};
use super::super::packet::{Header, Kind, MIN_PADDING};
use super::super::send::{FinState, Segment};
use super::super::seq::{self, Seq};
use super::{Connection, Persist, State, Transmit};
use crate::config::{patient_moment, punch_moment, ControllerKind, PUNCH_SCHEDULE};
use crate::time::Time;

/// The packet that would leave next.
#[derive(Clone, Copy)]
enum Next {
    Again(Seq, Segment),
    New { len: usize },
}

impl Connection {
    /// Writes the next batch into `out`, which is empty: up to `max_segments` datagrams of one size, the last may be shorter.
    /// Call until it returns `None`.
    pub fn poll_transmit(&mut self, now: Time, max_segments: usize, out: &mut Vec<u8>) -> Option<Transmit> {
        debug_assert!(out.is_empty());
        let max_segments = max_segments.max(1);
        let transmit = match self.state {
            State::SynSent => self.write_syn(now, out).or_else(|| {
                let early = self.is_eager() && self.syn.sent > 0;
                early.then(|| self.write_batch(now, max_segments, out)).flatten()
            }),
            State::Closed(_) => self.write_reset(now, out),
            State::Established | State::TimeWait { .. } => self
                .write_probe(now, out)
                .or_else(|| self.write_batch(now, max_segments, out))
                .or_else(|| self.write_ack(now, out)),
        }?;
        self.last_sent = now;
        Some(transmit)
    }

    /// Nobody has answered a ping where our SYN goes: it is repeated once a second, until
    /// [`Connection::handle_punched`]. Call it before the first [`Connection::poll_transmit`].
    pub fn be_patient(&mut self) {
        self.syn.patient = true;
    }

    /// The remote answers pings. A SYN-ACK that is not here soon was lost, or the SYN came before there was a way.
    pub fn handle_punched(&mut self, now: Time) {
        if self.state == State::SynSent && std::mem::take(&mut self.syn.patient) && self.syn.sent > 0 {
            self.syn.next = self.syn.next.min(now + PUNCH_SCHEDULE[1]);
        }
    }

    /// Puts another controller in charge of what is sent from now on; it starts from what the one before knew of the path.
    pub fn set_controller(&mut self, kind: ControllerKind) {
        if self.controller.kind() == kind {
            return;
        }
        let mut next = congestion::new(kind, &self.config, self.max_payload());
        if self.rtt.has_sample() {
            let (bytes, full) = self.controller.hand_over();
            next.take_over(&Handover {
                now: self.last_sent.max(self.last_received),
                bytes,
                full,
                srtt: self.rtt.srtt(),
                min_rtt: self.rtt.min(),
                delivered: self.recovery.delivered(),
            });
        }
        self.controller = next;
    }

    /// Who is in charge of what is sent.
    pub fn controller(&self) -> ControllerKind {
        self.controller.kind()
    }

    fn write_syn(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Transmit> {
        if now < self.syn.next {
            return None;
        }
        self.syn.sent += 1;
        self.syn.next = self.next_syn(now);
        let header = Header {
            // the only packet that carries the id on which its sender listens
            connection_id: self.receive_id,
            seq: seq::wire(self.syn.seq),
            ack: 0,
            ..self.header(now, Kind::Syn)
        };
        let tag = self.doubts.tags.sign_first(&header);
        header.tagged(tag).write_with_capability(self.syn.capability, out);
        self.single(out, 1)
    }

    /// Moments that were slept through are not made up for.
    fn next_syn(&self, now: Time) -> Time {
        let moment = if self.syn.patient { patient_moment } else { punch_moment };
        let mut n = self.syn.sent;
        while self.syn.started + moment(n) <= now {
            n += 1;
        }
        self.syn.started + moment(n)
    }

    fn write_reset(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Transmit> {
        let reset = self.reset_due.take()?;
        let header = Header { window: 0, ack: reset.ack, ..self.header(now, Kind::Reset) };
        header.tagged(self.doubts.tags.sign_first(&header)).write(out);
        self.single(out, 1)
    }

    fn write_ack(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Transmit> {
        if !self.ack.now {
            return None;
        }
        let header = self.header(now, Kind::State);
        let head = header.tagged(self.doubts.tags.sign(&header));
        if !self.rx.has_holes() {
            head.write(out);
        } else if self.peer.is_some() {
            head.write_with_ranges(&self.rx.ranges(), out);
        } else {
            head.write_with_bits(&self.rx.bits(MAX_SACK_BYTES), out);
        }
        self.note_acked();
        self.single(out, 1)
    }

    /// A packet larger than the proven size: data of the proven size, and padding that means nothing. Only in the middle of a
    /// bulk transfer, where a loss is noticed at once by what follows it.
    fn write_probe(&mut self, now: Time, out: &mut Vec<u8>) -> Option<Transmit> {
        let payload = usize::from(self.max_payload());
        let bulk = self.tx.unsent() >= 4 * payload && self.recovery.delivered() >= 8 * payload as u64;
        if !bulk
            || self.share.allowance == 0
            || self.recovery.in_episode()
            || !self.may_send(payload)
            || self.pacer_budget(now) == 0
            // a probe could take the room of a packet that was cut for a larger path, again and again
            || self.recovery.next_lost(&self.tx).is_some()
        {
            return None;
        }
        let size = usize::from(self.mtu.poll_probe(now)?);
        let front = self.header_len();
        let len = payload.min(size.saturating_sub(front + MIN_PADDING));
        let template = Segment { probe: size as u16, ..self.template(now) };
        let Some((seq, segment)) = self.tx.push(len, template) else {
            self.mtu.handle_probe_unsent();
            return None;
        };
        self.share.allowance = self.share.allowance.saturating_sub(len as u64);
        let header = Header { seq: seq::wire(seq), ..self.header(now, Kind::Data) };
        header.tagged(self.doubts.tags.sign(&header)).write_padded(size - front - len, out);
        self.tx.copy_payload(&segment, out);
        self.note_sent(now, len as u64);
        self.single(out, 1)
    }

    fn write_batch(&mut self, now: Time, max_segments: usize, out: &mut Vec<u8>) -> Option<Transmit> {
        let mut budget = self.pacer_budget(now);
        let (mut segment_size, mut count, mut fragment) = (0, 0, false);
        while count < max_segments {
            let Some(next) = self.next_packet(now) else { break };
            let size = self.header_len() + next.len();
            let fits = count == 0 || (size <= segment_size && out.len() + size <= MAX_BATCH);
            if !fits {
                break;
            }
            if budget == 0 && !self.probe_due {
                self.pace(now);
                break;
            }
            self.write_packet(now, next, out)?;
            budget = budget.saturating_sub(next.len() as u64);
            fragment |= size > usize::from(self.mtu.current());
            count += 1;
            if count == 1 {
                segment_size = size;
            } else if size < segment_size {
                break;
            }
        }
        if count == 0 {
            return None;
        }
        if !self.rx.has_holes() {
            self.note_acked();
        }
        let segment_size = (count > 1).then_some(segment_size);
        self.stats.packets_out += count as u64;
        let unproven = self.mtu.is_unproven() && segment_size.unwrap_or(out.len()) > SURE_DATAGRAM;
        Some(Transmit { len: out.len(), segment_size, may_fragment: fragment, unproven })
    }

    /// What should leave next, if the windows let anything leave.
    fn next_packet(&mut self, now: Time) -> Option<Next> {
        if let Some(seq) = self.recovery.next_lost(&self.tx) {
            let segment = *self.tx.segment(seq)?;
            let len = u64::from(segment.len);
            let room = self.tx.in_flight() + len <= self.flight_limit() || self.tx.in_flight() == 0 || self.probe_due;
            return room.then_some(Next::Again(seq, segment));
        }
        if self.tx.has_unsent() && self.share.allowance > 0 {
            let full = self.tx.unsent().min(usize::from(self.max_payload()));
            if self.may_send(full)
                || (self.probe_due && self.peer_has_room(full) && self.tx.outstanding() < self.max_outstanding())
            {
                return Some(Next::New { len: full });
            }
            if let Some(len) = self.squeezed_len(now, full) {
                return Some(Next::New { len });
            }
            self.window_limited |= self.tx.in_flight() + full as u64 > self.controller.window();
        } else if !self.tx.has_unsent()
            && self.state == State::Established
            && self.tx.in_flight() < self.controller.window()
        {
            self.window_limited = false;
            self.recovery.note_app_limited(&self.tx);
        }
        if self.probe_due {
            let last = self.recovery.start_probe(&self.tx);
            self.probe_due = last.is_some();
            return last.and_then(|seq| Some(Next::Again(seq, *self.tx.segment(seq)?)));
        }
        None
    }

    /// A window smaller than a packet: nothing is in flight to open it, so a part goes, at once if there is any room, as a
    /// probe of one byte at the persist timer otherwise (RFC 9293 section 3.8.6.1).
    fn squeezed_len(&mut self, now: Time, full: usize) -> Option<usize> {
        if self.tx.flying() > 0 || self.peer_has_room(full) || self.tx.outstanding() >= self.max_outstanding() {
            return None;
        }
        let room = usize::try_from(self.peer_window.saturating_sub(self.tx.unreceived())).unwrap_or(full);
        if room > 0 {
            return Some(room.min(full));
        }
        match self.persist {
            Some(persist) if persist.due => return Some(full.min(1)),
            Some(persist) if persist.at.is_none() => self.arm_persist(now, persist.tries),
            Some(_) => {}
            None => self.arm_persist(now, 0),
        }
        None
    }

    pub(super) fn peer_has_room(&self, len: usize) -> bool {
        self.tx.unreceived() + len as u64 <= self.peer_window
    }

    fn may_send(&self, len: usize) -> bool {
        let window = self.tx.in_flight() + len as u64 <= self.flight_limit() || self.tx.in_flight() == 0;
        window && self.peer_has_room(len) && self.tx.outstanding() < self.max_outstanding()
    }

    fn write_packet(&mut self, now: Time, next: Next, out: &mut Vec<u8>) -> Option<()> {
        self.note_idle(now);
        let template = self.template(now);
        let (seq, segment) = match next {
            Next::Again(seq, _) => {
                self.stats.resent += 1;
                let segment = self.tx.resend(seq, template)?;
                self.recovery.note_resent(now, seq);
                (seq, segment)
            }
            Next::New { len } => {
                self.share.allowance = self.share.allowance.saturating_sub(len as u64);
                self.tx.push(len, template)?
            }
        };
        if self.tx.outstanding() == 1 && segment.transmissions == 1 {
            // the clock of "nothing confirmed" starts with the first packet that waits for it
            self.last_progress = now;
        }
        let kind = if segment.fin { Kind::Fin } else { Kind::Data };
        let header = Header { seq: seq::wire(seq), ..self.header(now, kind) };
        match &self.syn.agreed {
            Some(early) if self.is_eager() => header.write_early(early, out),
            _ => header.tagged(self.doubts.tags.sign(&header)).write(out),
        }
        self.tx.copy_payload(&segment, out);
        if self.probe_due {
            self.probe_due = false;
            self.recovery.start_probe(&self.tx);
        }
        if let Some(persist) = &mut self.persist {
            persist.due = false;
        }
        self.note_sent(now, u64::from(segment.len));
        Some(())
    }

    /// Sending starts again after everything was confirmed: the path may have changed meanwhile.
    fn note_idle(&mut self, now: Time) {
        let idle = now.since(self.last_progress);
        if self.tx.outstanding() == 0 && idle > self.rtt.rto() && self.rtt.has_sample() {
            self.controller.on_restart_after_idle(now, idle);
        }
    }

    fn template(&mut self, now: Time) -> Segment {
        self.recovery.template(now, &self.tx, self.window_limited)
    }

    fn note_sent(&mut self, now: Time, bytes: u64) {
        self.pacer.sent(bytes);
        self.controller.on_sent(now, bytes, self.tx.in_flight());
    }

    fn pacer_budget(&mut self, now: Time) -> u64 {
        self.pace_at = None;
        self.pacer.budget(now, self.controller.pacing_rate())
    }

    /// Pacing holds packets back: wakes up when a millisecond's worth may leave, which is also the tick of the runtime.
    fn pace(&mut self, now: Time) {
        let Some(rate) = self.controller.pacing_rate() else { return };
        let wanted = (rate / 1_000).max(u64::from(self.max_payload()));
        self.pace_at = Some(self.pacer.next(now, rate, wanted));
    }

    pub(super) fn arm_persist(&mut self, now: Time, tries: u32) {
        let wait = self.rtt.rto().saturating_mul(1 << tries.min(8)).min(MAX_PERSIST);
        self.persist = Some(Persist { at: Some(now + wait), due: false, tries });
    }

    /// Acks that ride on data or leave alone count the same.
    fn note_acked(&mut self) {
        self.ack.now = false;
        self.ack.at = None;
        self.ack.pending = 0;
    }

    fn header(&mut self, now: Time, kind: Kind) -> Header {
        let window = self.rx.window();
        self.ack.edge = self.ack.edge.max(self.rx.total() + u64::from(window));
        Header {
            kind,
            connection_id: self.send_id,
            // 0 is read as "none"
            timestamp: (now.as_micros() as u32).max(1),
            timestamp_difference: self.difference,
            window,
            seq: seq::wire(self.tx.next()),
            ack: seq::wire(self.rx.next().wrapping_sub(1)),
        }
    }

    fn single(&mut self, out: &[u8], packets: u64) -> Option<Transmit> {
        self.stats.packets_out += packets;
        Some(Transmit { len: out.len(), segment_size: None, may_fragment: false, unproven: false })
    }

    /// FIN has left or everything was confirmed: nothing of ours will ever follow.
    pub fn is_send_finished(&self) -> bool {
        matches!(self.tx.fin(), FinState::Sent | FinState::Confirmed)
    }
}

impl Next {
    fn len(&self) -> usize {
        match self {
            Self::Again(_, segment) => segment.len as usize,
            Self::New { len } => *len,
        }
    }
}

/// One send with GSO takes 64 KiB less headers (UDP.md: 44 x 1472).
const MAX_BATCH: usize = 64_768;
/// What every IPv4 host takes, 576 bytes (RFC 791 section 3.1), less 20 and 8 of headers.
const SURE_DATAGRAM: usize = 548;
/// 992 packets: more than any plain peer lets be in flight, and a multiple of 4.
const MAX_SACK_BYTES: usize = 124;
/// A closed window is asked about at least this often.
const MAX_PERSIST: std::time::Duration = std::time::Duration::from_secs(5);
