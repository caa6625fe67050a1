//! What a packet from the peer does to a connection.

use super::super::congestion::{AckSample, LossSample};
use super::super::packet::{Header, Kind, Packet, Sack};
use super::super::recovery::{Acked, Losses};
use super::super::recv::{Arrival, ReceiveQueue};
use super::super::send::FinState;
use super::super::seq::{self, Seq};
use super::super::tags::Claim;
use super::{Connection, End, Heard, State, LINGER};
use crate::time::Time;

impl Connection {
    /// Takes one packet that the endpoint found to be for this connection. Ask [`Connection::take_doubt`] afterwards.
    pub fn handle_packet(&mut self, now: Time, packet: &Packet<'_>) -> Heard {
        self.stats.packets_in += 1;
        let stage = self.doubts.tags.stage();
        let early = packet.early.is_some() && packet.early == self.early;
        let claim = self.doubts.tags.judge(packet, early);
        if claim == Claim::Foreign && !matches!(self.state, State::Closed(_)) {
            self.handle_foreign(now, packet);
            return Heard::Foreign;
        }
        if self.doubts.tags.stage() != stage {
            self.note_tags();
        }
        let confirmed = match (self.state, packet.header.kind) {
            (State::Closed(_), _) => false,
            (State::SynSent, _) => self.handle_first_answer(now, packet, claim),
            (_, Kind::Reset) => {
                self.handle_reset(now, &packet.header, claim);
                false
            }
            // a late copy, or an agreed number: then the dialler may wait for any sign
            (_, Kind::Syn) => {
                self.ack.now |= self.rx.total() == 0;
                false
            }
            (State::Established, Kind::State) if self.begins_anew(packet) => self.handle_syn_ack(now, packet),
            (State::Established | State::TimeWait { .. }, _) => self.handle_established(now, packet),
        };
        if confirmed {
            Heard::Confirmed
        } else {
            Heard::Taken
        }
    }

    fn handle_first_answer(&mut self, now: Time, packet: &Packet<'_>, claim: Claim) -> bool {
        let header = &packet.header;
        let to_syn = header.ack == seq::wire(self.syn.seq);
        let confirms = self.confirms_early_data(header);
        let proven = claim == Claim::Genuine || self.syn.agreed.is_none();
        match header.kind {
            Kind::Reset => {
                if (to_syn || confirms) && !proven {
                    self.hold(now, packet);
                } else if to_syn || confirms {
                    self.close(End::Refused);
                }
                false
            }
            // with an agreed number the peer may know the connection by now, and mean something else
            Kind::State if to_syn && (packet.capability.is_some() || self.syn.agreed.is_none()) => {
                if proven || header.seq == seq::wire(self.rx.next()) {
                    return self.handle_syn_ack(now, packet);
                }
                self.hold(now, packet);
                false
            }
            _ if confirms || (to_syn && self.is_of_agreed(packet)) => {
                self.establish(now, header);
                self.handle_established(now, packet)
            }
            // libutp and libtorrent wait for STATE, and so do we: DATA before it is sent again
            kind => {
                self.stats.refused += u64::from(kind == Kind::State);
                false
            }
        }
    }

    pub(super) fn handle_syn_ack(&mut self, now: Time, packet: &Packet<'_>) -> bool {
        if self.syn.agreed.is_some() && packet.header.seq != seq::wire(self.rx.next()) {
            // it does not know the key (it has restarted, say), and could make nothing of what came with the SYN
            self.recovery.send_all_again(&mut self.tx);
        }
        // the SYN-ACK consumes no number: the first DATA has the same one (UTP.md 2.3)
        let config = &self.config;
        self.rx = ReceiveQueue::new(
            seq::first(packet.header.seq),
            config.initial_window.min(config.receive_buffer),
            config.receive_buffer,
        );
        if self.detached.is_some() {
            self.rx.discard();
        }
        self.peer = packet.capability;
        self.syn.answered = packet.header.timestamp;
        if self.syn.sent == 1 {
            self.rtt.sample(now, now.since(self.syn.started));
        }
        self.establish(now, &packet.header);
        true
    }

    /// Something that was sent before any answer is acknowledged: the peer knew the number on which that relied.
    fn confirms_early_data(&self, header: &Header) -> bool {
        let ack = seq::unwrap(header.ack, self.tx.next());
        self.syn.agreed.is_some() && ack >= self.tx.una() && ack < self.tx.next()
    }

    /// Only who knows the connection sends this, and only who knows the agreed number does: nothing else of ours named one.
    fn is_of_agreed(&self, packet: &Packet<'_>) -> bool {
        let header = &packet.header;
        let known = match header.kind {
            Kind::Data | Kind::Fin => true,
            Kind::State => packet.sack != Sack::None || header.seq == seq::wire(self.rx.next()),
            Kind::Reset | Kind::Syn => false,
        };
        self.syn.agreed.is_some() && known
    }

    fn establish(&mut self, now: Time, header: &Header) {
        if header.window > 0 {
            self.peer_window = u64::from(header.window);
        }
        self.note_heard(now, header);
        self.last_progress = now;
        self.state = State::Established;
        // the acceptor makes its connection only when it sees that we are real
        self.ack.now = true;
        self.wakes.connected = true;
        self.wakes.writable = true;
    }

    /// Is it a SYN-ACK again, of a newer connection? Some programs make one of each copy of our SYN, and hear us only on the
    /// last. It must be clear that nothing is lost with the older one: neither side has anything of the other yet, and it is
    /// no ack of the older one that has overtaken data.
    fn begins_anew(&self, packet: &Packet<'_>) -> bool {
        let header = &packet.header;
        let distance = header.seq.wrapping_sub(seq::wire(self.rx.next()));
        self.syn.sent > 1
            && self.peer.is_none()
            && packet.capability.is_none()
            && header.ack == seq::wire(self.syn.seq)
            && self.tx.una() == self.syn.seq + 1
            && self.rx.is_untouched()
            && distance > FIRST_FLIGHT
            && header.timestamp.wrapping_sub(self.syn.answered) as i32 > 0
    }

    /// Without a tag a RESET counts only when its ack_nr is that of the newest DATA or STATE of ours, which a blind forger does not
    /// know; if it is of something else sent recently (UTP.md 2.5), the peer is asked for one that fits.
    fn handle_reset(&mut self, now: Time, header: &Header, claim: Claim) {
        let ack = seq::unwrap(header.ack, self.tx.next());
        if claim != Claim::Genuine && ack.wrapping_add(1) != self.tx.next() && ack != self.tx.next() {
            self.stats.refused += 1;
            if ack + 4 >= self.tx.una() && ack < self.tx.next() {
                self.challenge(now);
            }
            return;
        }
        self.end_by_reset();
    }

    pub(super) fn end_by_reset(&mut self) {
        if self.state == State::SynSent {
            return self.close(End::Refused);
        }
        // some programs answer our FIN with RESET instead of an ack
        let all_sent = matches!(self.tx.fin(), FinState::Sent | FinState::Confirmed) && !self.tx.has_unsent();
        let done = all_sent && self.rx.is_complete();
        self.close(if done { End::Finished } else { End::Reset });
    }

    fn handle_established(&mut self, now: Time, packet: &Packet<'_>) -> bool {
        let header = &packet.header;
        if packet.early.is_some() {
            if packet.early != self.early {
                self.stats.refused += 1;
                return false;
            }
            // what it acknowledges was agreed, not received
            self.note_heard(now, header);
            self.handle_contents(now, packet);
            return false;
        }
        let end = seq::unwrap(header.ack, self.tx.una().wrapping_sub(1)) + 1;
        // It acknowledges what was never sent, or, for a latecomer, too little (RFC 5961 section 5.2). A forger who does not
        // see the packets guesses both numbers, and not only one in two.
        if end > self.tx.next() || end + LATE_ACKS.max(self.tx.most_outstanding()) < self.tx.una() {
            self.stats.refused += 1;
            return false;
        }
        if self.peer.is_some() && packet.capability.is_some() {
            // a SYN-ACK behind what it should have come before
            self.peer = packet.capability;
        }
        self.note_heard(now, header);
        let progress = self.handle_ack(now, packet, end);
        self.handle_contents(now, packet);
        progress
    }

    fn handle_contents(&mut self, now: Time, packet: &Packet<'_>) {
        match packet.header.kind {
            Kind::Data => self.handle_data(now, &packet.header, packet.payload),
            Kind::Fin => self.handle_fin(&packet.header),
            Kind::State | Kind::Reset | Kind::Syn => {}
        }
        self.check_finished(now);
    }

    fn note_heard(&mut self, now: Time, header: &Header) {
        self.last_received = now;
        if header.timestamp != 0 {
            let difference = (now.as_micros() as u32).wrapping_sub(header.timestamp);
            // 0 and 0x7fffffff mean "no sample" to deployed programs (UTP.md 2.1)
            self.difference = if matches!(difference, 0 | NO_DIFFERENCE) { difference + 1 } else { difference };
        }
    }

    fn handle_ack(&mut self, now: Time, packet: &Packet<'_>, end: Seq) -> bool {
        let header = &packet.header;
        let una = self.tx.una();
        let prior_in_flight = self.tx.in_flight();
        let near = self.tx.una();
        let ranges = packet.sacked().map(|(first, after)| (seq::unwrap(first, near), seq::unwrap(after, near)));
        let acked = self.recovery.handle_ack(now, &mut self.tx, &self.rtt, end, ranges);
        let advanced = self.tx.una() > una;
        if end >= una {
            self.note_window(now, u64::from(header.window));
        }
        let mut losses = Losses::default();
        // keynet peers report every hole; and repeated SYN-ACKs, which look like duplicates, come before the first delivery
        let counts = self.peer.is_none() && self.recovery.delivered() > 0;
        let duplicate = counts && end == una && header.kind == Kind::State && self.tx.outstanding() > 0;
        if duplicate && matches!(packet.sack, Sack::None) {
            self.recovery.handle_duplicate_ack(&mut self.tx, &mut losses);
            self.report_losses(now, &losses);
        }
        if acked.packets + acked.strays == 0 {
            return advanced;
        }
        self.last_progress = now;
        self.full_timeouts = 0;
        if self.detached.is_some() && self.tx.fin() == FinState::Confirmed {
            self.detached = Some(now + LINGER);
        }
        if let Some(rtt) = acked.rtt {
            self.rtt.sample(now, rtt);
        }
        if acked.probe > 0 {
            self.mtu.handle_probe_acked(now, acked.probe);
            self.controller.on_mtu(self.max_payload());
        }
        if acked.undo {
            self.stats.false_alarms += 1;
            self.controller.on_spurious_loss(now);
        }
        let losses = self.recovery.detect(now, &mut self.tx, &self.rtt);
        self.report_losses(now, &losses);
        if acked.packets > 0 {
            self.report_ack(now, header, &acked, prior_in_flight);
        }
        self.note_room();
        true
    }

    fn report_ack(&mut self, now: Time, header: &Header, acked: &Acked, prior_in_flight: u64) {
        // the peer measures it on whatever came last, perhaps over another path
        let settled = !self.recovery.is_settling(now);
        let delay = header.timestamp_difference;
        self.controller.on_ack(&AckSample {
            now,
            acked: acked.bytes,
            prior_in_flight,
            in_flight: self.tx.in_flight(),
            rtt: acked.rtt,
            rtt_sum: acked.rtt_sum,
            rtt_count: acked.rtt_count,
            min_rtt: self.rtt.min(),
            srtt: self.rtt.srtt(),
            delay_micros: (settled && !matches!(delay, 0 | NO_DIFFERENCE)).then_some(delay),
            delivery_rate: acked.rate,
            app_limited: acked.app_limited,
            delivered: self.recovery.delivered(),
            prior_delivered: acked.prior_delivered,
            // what waits now grows the window too: no packet of the first flight knew yet that it would be the limit
            window_limited: acked.window_limited || self.window_limited,
        });
    }

    /// Tells the controller and the MTU search what was lost.
    pub(super) fn report_losses(&mut self, now: Time, losses: &Losses) {
        if losses.probe > 0 {
            self.mtu.handle_probe_lost(now, losses.probe);
        }
        if losses.bytes == 0 {
            return;
        }
        self.controller.on_loss(&LossSample {
            now,
            lost: losses.bytes,
            in_flight: self.tx.in_flight(),
            newest_lost_sent: losses.newest_sent,
            new_episode: losses.new_episode,
            delivered: self.recovery.delivered(),
        });
    }

    fn note_window(&mut self, now: Time, window: u64) {
        if window == 0 {
            self.last_full = now;
        }
        self.peer_window = window;
        if window >= u64::from(self.max_payload()) {
            self.persist = None;
        }
    }

    /// The writer's share of memory follows the window: enough to keep it full for two round trips.
    fn note_room(&mut self) {
        let wanted = usize::try_from(self.flight_limit().saturating_mul(3)).unwrap_or(usize::MAX);
        let limit = wanted.clamp(self.tx.limit(), self.config.send_buffer);
        self.tx.set_limit(limit);
        if self.share.allowance > 0 && self.tx.free() >= limit / 4 {
            self.wakes.writable = true;
        }
    }

    fn handle_data(&mut self, now: Time, header: &Header, payload: &[u8]) {
        if self.detached.is_some() && self.tx.fin() == FinState::Confirmed {
            // nobody will read it: say so, as TCP does (RFC 1122 section 4.2.2.13), once ours has arrived
            self.abort();
            return;
        }
        let seq = seq::unwrap(header.seq, self.rx.next());
        match self.rx.insert(seq, payload) {
            Arrival::InOrder { gap_closed } => {
                self.wakes.readable = true;
                self.ack.pending += 1;
                if gap_closed || self.ack.pending >= 2 || self.ack.quick > 0 || self.rx.is_complete() {
                    self.ack.quick = self.ack.quick.saturating_sub(1);
                    self.ack.now = true;
                } else if self.ack.at.is_none() {
                    self.ack.at = Some(now + self.ack_delay());
                }
            }
            Arrival::Early | Arrival::Duplicate => self.ack.now = true,
            Arrival::Refused => {
                self.stats.refused += 1;
                self.ack.now = true;
            }
        }
    }

    fn handle_fin(&mut self, header: &Header) {
        let seq = seq::unwrap(header.seq, self.rx.next());
        self.ack.now = true;
        match self.rx.insert_fin(seq) {
            Arrival::InOrder { .. } => self.wakes.readable = true,
            Arrival::Refused => self.stats.refused += 1,
            Arrival::Early | Arrival::Duplicate => {}
        }
    }

    /// An eighth of the round trip is little error in the sender's measurement.
    fn ack_delay(&self) -> std::time::Duration {
        if self.rtt.has_sample() {
            (self.rtt.srtt() / 8).min(self.config.max_ack_delay)
        } else {
            std::time::Duration::ZERO
        }
    }
}

/// Acks may be this late, or as much as was ever in flight: packets that overtook each other.
const LATE_ACKS: Seq = 64;
/// A peer sends no more packets than this before it hears of us: the largest initial window of others is 2 (UTP.md 2.7).
const FIRST_FLIGHT: u16 = 32;
/// An old uTorrent said this when it had no measurement.
const NO_DIFFERENCE: u32 = 0x7fff_ffff;
