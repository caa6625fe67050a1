//! One uTP connection. BEP 29; RFC 9293 sections 3.4-3.6 (what TCP does where BEP 29 is silent), RFC 8985, RFC 1122 4.2.2.17.
//! `inbound` is what packets do, `outbound` what leaves, `timers` when, `paths` over which; this file is the face and the states.

mod doubt;
mod inbound;
mod outbound;
mod paths;
mod silence;
mod timers;

pub use doubt::Doubt;
pub use paths::PathKey;

use std::sync::Arc;
use std::time::Duration;

use self::doubt::Doubts;
use self::paths::Paths;
use self::silence::Silence;
use super::congestion::{self, Controller};
use super::half_open::Agreement;
use super::mtu::MtuSearch;
use super::pacing::Pacer;
use super::packet::{Capability, Early, Header, EARLY_LEN, HEADER_LEN, TAG_LEN};
use super::recovery::Recovery;
use super::recv::ReceiveQueue;
use super::rtt::Rtt;
use super::send::{FinState, SendQueue};
use super::seq::{self, Seq};
use super::tags::TagKeys;
use super::turns::Load;
use crate::addr::RemoteId;
use crate::config::UtpConfig;
use crate::time::Time;

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both directions ended in order.
    Finished,
    /// RESET instead of a SYN-ACK.
    Refused,
    /// No SYN-ACK in time.
    ConnectTimeout,
    /// Data outstanding and nothing confirmed for `unanswered_timeout`, or the peer silent for `patience`.
    Unanswered,
    /// Nothing received for `idle_timeout`.
    Idle,
    /// The peer sent RESET.
    Reset,
    /// We sent RESET.
    Aborted,
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Our SYN is out.
    SynSent,
    /// Bytes may flow, at least in one direction.
    Established,
    /// Both directions have ended; late copies are still answered until then.
    TimeWait {
        until: Time,
    },
    Closed(End),
}

/// What [`Connection::read`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    Bytes(usize),
    /// Nothing yet.
    Pending,
    /// The peer ended its direction and everything was read.
    Eof,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is not the peer's, as far as can be told: no sign of life.
    Foreign,
    Taken,
    /// It confirmed something of ours, which proves that the peer receives what we send to it.
    Confirmed,
}

/// A batch of datagrams of equal size (the last may be shorter), back to back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub len: usize,
    /// Size of each datagram but the last; `None` for a single one.
    pub segment_size: Option<usize>,
    /// Larger than what the path is known to carry: only fragments can get through.
    pub may_fragment: bool,
    /// Larger than what every path carries whole, and nothing shows yet that this one does: over IPv4 routers may cut it.
    pub unproven: bool,
}

/// What became possible since it was last asked: for waking the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    pub connected: bool,
    pub readable: bool,
    pub writable: bool,
    pub ended: bool,
}

/// Figures of one connection. Times are zero before the first measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct UtpStats {
    pub rtt: Duration,
    pub min_rtt: Duration,
    pub window: u64,
    pub in_flight: u64,
    pub pacing_rate: Option<u64>,
    /// Payload bytes the peer confirmed, and in-order bytes received.
    pub bytes_out: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub packets_in: u64,
    pub resent: u64,
    pub timeouts: u64,
    pub false_alarms: u64,
    /// Packets that made no sense here: acks of what was not sent, data beyond the window.
    pub refused: u64,
    /// UDP payload that the path is known to carry.
    pub datagram: u16,
    /// Nothing larger than the smallest that full packets have has arrived.
    pub datagram_unproven: bool,
    /// The smallest that is known to be lost.
    pub datagram_lost: Option<u16>,
    pub capable: bool,
    /// Its packets carry tags.
    pub tagged: bool,
    /// Bytes of memory held in buffers.
    pub memory: usize,
}

/// One uTP connection; see the module's drive contract.
#[derive(Debug)]
pub struct Connection {
    config: Arc<UtpConfig>,
    remote: RemoteId,
    receive_id: u16,
    send_id: u16,
    state: State,
    syn: Syn,
    /// What the peer said of itself, once both sides have shown keynet's capability.
    peer: Option<Capability>,
    tx: SendQueue,
    rx: ReceiveQueue,
    recovery: Recovery,
    rtt: Rtt,
    controller: Box<dyn Controller>,
    pacer: Pacer,
    mtu: MtuSearch,
    paths: Paths,
    ack: AckState,
    /// Free bytes at the peer, as it last said.
    peer_window: u64,
    /// `timestamp_difference_microseconds` to send.
    difference: u32,
    /// A window too small for a packet is probed then, with doubling pauses.
    persist: Option<Persist>,
    /// Pacing lets the next packet go then.
    pace_at: Option<Time>,
    /// A tail-loss probe is owed.
    probe_due: bool,
    reset_due: Option<Reset>,
    /// The window held new data back when last asked.
    window_limited: bool,
    share: Share,
    last_received: Time,
    last_sent: Time,
    company: Company,
    /// When the oldest unconfirmed packet last made progress.
    last_progress: Time,
    /// When the peer last said that it has no room at all.
    last_full: Time,
    silence: Silence,
    doubts: Doubts,
    /// What data had in front that came before the peer had an answer of ours.
    early: Option<Early>,
    /// Timeouts in a row of full packets only, for black-hole detection.
    full_timeouts: u32,
    /// The application has let go of it: how long to wait for the peer's end, once ours has arrived.
    detached: Option<Time>,
    wakes: Wakes,
    stats: UtpStats,
}

/// Our SYN and its repetitions.
#[derive(Debug)]
struct Syn {
    seq: Seq,
    started: Time,
    sent: usize,
    next: Time,
    /// Whoever it goes to has not answered a ping: perhaps no keynet node, for which copies of a SYN are one SYN.
    patient: bool,
    /// The number of the SYN-ACK is known beforehand: data need not wait for it, with this in front.
    agreed: Option<Early>,
    capability: Capability,
    /// The timestamp of the SYN-ACK that counts.
    answered: u32,
    /// An answer that shows nothing of what was agreed: until when a better one is waited for.
    held: Option<(Time, Header, Option<Capability>)>,
    /// The round trip to the peer, as far as it is known.
    expected: Duration,
}

/// What is left to this connection of a path that others use as well.
#[derive(Clone, Copy, Debug)]
struct Share {
    /// New bytes that may leave.
    allowance: u64,
    /// Connections that send in bulk now, this one included.
    sharing: u64,
}

/// What the path knows of the peer.
#[derive(Clone, Copy, Debug)]
struct Company {
    /// Its last sign of life, on whichever connection.
    heard: Time,
    /// Connections that lead there.
    connections: usize,
}

#[derive(Debug)]
struct AckState {
    /// Packets taken since the last ack left.
    pending: u32,
    at: Option<Time>,
    now: bool,
    /// The first acks are never held back: they open the sender's window.
    quick: u32,
    /// Stream offset up to which the peer was allowed to send when last told.
    edge: u64,
}

#[derive(Clone, Copy, Debug)]
struct Persist {
    at: Option<Time>,
    /// The time has come: the next packet may be one byte beyond the window.
    due: bool,
    tries: u32,
}

#[derive(Clone, Copy, Debug)]
struct Reset {
    ack: u16,
}

/// The parts of a new connection that differ by role; made by the endpoint.
pub(super) struct Start {
    pub remote: RemoteId,
    pub receive_id: u16,
    pub send_id: u16,
    pub first_seq: u16,
    pub ipv6_cap: u16,
    pub capability: Capability,
}

impl Connection {
    /// The side that sends SYN. `agreed`: on the number of the SYN-ACK, if both know it beforehand.
    pub(super) fn dial(now: Time, start: &Start, agreed: Option<Agreement>, config: Arc<UtpConfig>) -> Self {
        let syn_seq = seq::first(start.first_seq);
        let expected = seq::first(agreed.map_or(0, |agreed| agreed.our_seq));
        let mut connection = Self::new(now, start, syn_seq + 1, expected, State::SynSent, config);
        connection.syn.seq = syn_seq;
        connection.syn.agreed = agreed.map(|agreed| agreed.early);
        if let Some(agreed) = agreed {
            connection.agree_tags(TagKeys::new(&agreed.secret, true), false);
        }
        connection.peer = agreed.map(|_| Capability::new(None));
        connection
    }

    /// The side that answered SYN with a SYN-ACK (sequence number `start.first_seq`, which consumed none) and has now seen
    /// a packet that confirms it. `received` is the number of the peer's SYN.
    pub(super) fn accept(
        now: Time,
        start: &Start,
        received: u16,
        peer: Option<Capability>,
        config: Arc<UtpConfig>,
    ) -> Self {
        let next = seq::first(start.first_seq);
        let mut connection = Self::new(now, start, next, seq::first(received) + 1, State::Established, config);
        connection.peer = peer;
        connection.wakes.connected = true;
        let window = connection.config.untrusted_window.min(connection.rx.capacity());
        connection.rx = ReceiveQueue::new(connection.rx.next(), window, window);
        connection.ack.edge = window as u64;
        connection
    }

    fn new(now: Time, start: &Start, next: Seq, expected: Seq, state: State, config: Arc<UtpConfig>) -> Self {
        let mtu = MtuSearch::new(&config, start.ipv6_cap);
        let payload = mtu.current() - HEADER_LEN as u16;
        Self {
            remote: start.remote,
            receive_id: start.receive_id,
            send_id: start.send_id,
            state,
            syn: Syn {
                seq: 0,
                started: now,
                sent: 0,
                next: now,
                patient: false,
                agreed: None,
                capability: start.capability,
                answered: 0,
                held: None,
                expected: Duration::ZERO,
            },
            peer: None,
            tx: SendQueue::new(next, config.send_buffer.min(FIRST_SEND_BUFFER)),
            rx: ReceiveQueue::new(expected, config.initial_window.min(config.receive_buffer), config.receive_buffer),
            recovery: Recovery::new(now, next),
            rtt: Rtt::new(&config),
            controller: congestion::new(config.controller, &config, payload),
            pacer: Pacer::new(),
            mtu,
            paths: Paths::new(now),
            ack: AckState { pending: 0, at: None, now: false, quick: QUICK_ACKS, edge: config.initial_window as u64 },
            peer_window: DEFAULT_PEER_WINDOW,
            difference: 0,
            persist: None,
            pace_at: None,
            probe_due: false,
            reset_due: None,
            window_limited: false,
            share: Share { allowance: u64::MAX, sharing: 1 },
            last_received: now,
            last_sent: now,
            company: Company { heard: now, connections: 1 },
            last_progress: now,
            last_full: now,
            silence: Silence { since: None, ended: now, patience: config.patience },
            doubts: Doubts::default(),
            early: None,
            full_timeouts: 0,
            detached: None,
            wakes: Wakes::default(),
            stats: UtpStats::default(),
            config,
        }
    }

    pub fn remote(&self) -> RemoteId {
        self.remote
    }

    /// The connection id on packets to us.
    pub fn receive_id(&self) -> u16 {
        self.receive_id
    }

    /// The connection id on packets from us.
    pub fn send_id(&self) -> u16 {
        self.send_id
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Why it is over, if it is.
    pub fn end(&self) -> Option<End> {
        match self.state {
            State::Closed(end) => Some(end),
            State::TimeWait { .. } => Some(End::Finished),
            State::SynSent | State::Established => None,
        }
    }

    pub fn is_connected(&self) -> bool {
        !matches!(self.state, State::SynSent | State::Closed(_))
    }

    /// What is written leaves: it is connected, or as good as that, because it need not wait for the peer's first answer.
    pub fn may_send_data(&self) -> bool {
        self.is_connected() || self.is_eager()
    }

    /// Data leaves before the peer's first answer.
    fn is_eager(&self) -> bool {
        self.state == State::SynSent && self.syn.agreed.is_some()
    }

    /// Nothing is left to do: the endpoint can forget it. (What was received can still be read.)
    pub fn is_drained(&self) -> bool {
        matches!(self.state, State::Closed(_)) && self.reset_due.is_none()
    }

    /// Takes as much of `data` as there is room for: 0 means wait for [`Wakes::writable`].
    pub fn write(&mut self, data: &[u8]) -> Result<usize, End> {
        match self.state {
            State::Closed(end) => return Err(end),
            State::TimeWait { .. } => return Err(End::Finished),
            State::SynSent | State::Established => {}
        }
        if self.tx.fin() != FinState::Open {
            return Err(End::Finished);
        }
        Ok(self.tx.write(&data[..data.len().min(self.writable())]))
    }

    /// Fills `out` with received bytes. What arrived before a connection broke is delivered before the error.
    pub fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, End> {
        if self.rx.readable() > 0 {
            let count = self.rx.read(out);
            self.offer_window();
            return Ok(ReadOutcome::Bytes(count));
        }
        if self.rx.is_complete() {
            return Ok(ReadOutcome::Eof);
        }
        match self.state {
            State::Closed(end) => Err(end),
            _ => Ok(ReadOutcome::Pending),
        }
    }

    /// Bytes that can be read now.
    pub fn readable(&self) -> usize {
        self.rx.readable()
    }

    /// Bytes that can be written now.
    pub fn writable(&self) -> usize {
        if self.tx.fin() != FinState::Open {
            return 0;
        }
        match self.share.allowance {
            // until its turn comes a batch is enough; the rest is then still in the cache of whoever writes it
            0 => self.tx.free().min(WAITING_BUFFER.saturating_sub(self.tx.unsent())),
            _ => self.tx.free(),
        }
    }

    /// Everything written has left at least once: the next write has to be announced to whoever sends.
    pub fn is_quiet(&self) -> bool {
        !self.tx.has_unsent()
    }

    /// Ends our direction after what was written.
    pub fn finish(&mut self) {
        self.tx.finish();
    }

    /// Ends both directions now, with RESET.
    pub fn abort(&mut self) {
        if !matches!(self.state, State::Closed(_)) {
            self.reset_due = Some(Reset { ack: seq::wire(self.rx.next().wrapping_sub(1)) });
            self.close(End::Aborted);
        }
    }

    /// The application let go of it. What was written before [`Connection::finish`] is still delivered; anything less
    /// complete is an abort.
    pub fn detach(&mut self, now: Time) {
        match self.state {
            State::SynSent | State::Established if self.may_send_data() && self.tx.fin() != FinState::Open => {
                self.rx.discard();
                self.detached = Some(now + LINGER);
            }
            State::TimeWait { .. } => self.rx.discard(),
            State::Closed(_) => self.rx.discard(),
            State::SynSent | State::Established => self.abort(),
        }
    }

    /// The path is dead or the remote is gone: ends without a word on the wire.
    pub fn give_up(&mut self, end: End) {
        if !matches!(self.state, State::Closed(_)) {
            self.close(end);
        }
    }

    /// The application knows who the peer is, and will read: from now on it is offered what every peer is. A stream that the
    /// peer opened has a small window before ([`UtpConfig::untrusted_window`]).
    pub fn trust(&mut self) {
        let before = self.rx.window();
        self.rx.widen(self.config.initial_window, self.config.receive_buffer);
        self.ack.now |= self.rx.window() > before && self.is_connected();
    }

    /// What the path knows: when the peer last gave a sign of life, on whichever connection, and how many connections lead
    /// there. They share the keep-alives, and none is taken for dead while the peer lives. To be told before
    /// [`Connection::handle_timeout`]; a connection that is told nothing thinks that it is the only one.
    pub fn note_company(&mut self, heard: Time, connections: usize) {
        self.company = Company { heard: self.company.heard.max(heard), connections };
    }

    /// What there is to send, for [`super::Turns`].
    pub fn load(&self) -> Load {
        let unsent = self.state == State::Established && self.tx.has_unsent();
        let full = self.tx.unsent().min(usize::from(self.max_payload()));
        Load {
            unsent,
            in_flight: self.tx.in_flight(),
            window: self.flight_limit(),
            stuck: unsent && (!self.peer_has_room(full) || self.recovery.backoff > 0),
        }
    }

    /// New bytes that may leave until the next call, and how many connections share the path now. Without a call: any number,
    /// and nobody else.
    pub fn set_share(&mut self, allowance: u64, sharing: usize) {
        self.wakes.writable |= self.share.allowance == 0 && allowance > 0;
        self.share = Share { allowance, sharing: (sharing as u64).max(1) };
    }

    /// What is left of the allowance.
    pub fn allowance(&self) -> u64 {
        self.share.allowance
    }

    /// What became possible since the last call.
    pub fn take_wakes(&mut self) -> Wakes {
        std::mem::take(&mut self.wakes)
    }

    /// UDP payload that the path is known to carry.
    pub fn datagram(&self) -> u16 {
        self.mtu.current()
    }

    pub fn stats(&self) -> UtpStats {
        let measured = |value: Duration| if self.rtt.has_sample() { value } else { Duration::ZERO };
        UtpStats {
            rtt: measured(self.rtt.srtt()),
            min_rtt: measured(self.rtt.min()),
            window: self.controller.window(),
            in_flight: self.tx.in_flight(),
            pacing_rate: self.controller.pacing_rate(),
            bytes_out: self.recovery.confirmed(),
            bytes_in: self.rx.total(),
            datagram: self.mtu.current(),
            datagram_unproven: self.mtu.is_unproven(),
            datagram_lost: self.mtu.lost_size(),
            capable: self.peer.is_some(),
            tagged: self.is_tagged(),
            memory: self.tx.memory() + self.rx.memory(),
            ..self.stats
        }
    }

    fn max_payload(&self) -> u16 {
        self.mtu.current() - self.header_len() as u16
    }

    /// Bytes in front of the payload of DATA.
    fn header_len(&self) -> usize {
        match self.is_eager() {
            true => HEADER_LEN + EARLY_LEN,
            false if self.is_tagged() => HEADER_LEN + TAG_LEN,
            false => HEADER_LEN,
        }
    }

    /// Packets that may be outstanding: others drop what is further ahead (UTP.md 2.4).
    fn max_outstanding(&self) -> usize {
        if self.peer.is_some() {
            MAX_OUTSTANDING
        } else {
            self.config.plain_in_flight as usize
        }
    }

    /// Bytes that may be in flight: what congestion control allows, and no more than the peer's socket holds while its program
    /// is not on the CPU. On a short path everything in flight may wait there; on a longer one it is spread over the path.
    fn flight_limit(&self) -> u64 {
        let window = self.controller.window();
        let Some(burst) = self.peer.and_then(Capability::burst) else { return window };
        let rtt = self.rtt.min();
        // asked for each packet: no division of 128 bits
        let spread = rtt.as_secs() * (1_000 / AWAY_MS) + u64::from(rtt.subsec_millis()) / AWAY_MS;
        window.min(burst.saturating_mul(spread.max(1)) / self.share.sharing)
    }

    fn close(&mut self, end: End) {
        self.state = State::Closed(end);
        self.tx.clear();
        self.wakes = Wakes { connected: false, readable: true, writable: true, ended: true };
    }

    /// After reading: tells the peer when a window that held it back has opened (RFC 9293 section 3.8.6.2.2).
    fn offer_window(&mut self) {
        let edge = self.rx.total() + u64::from(self.rx.window());
        let known = self.ack.edge.saturating_sub(self.rx.total());
        let capacity = self.rx.capacity() as u64;
        let step = (capacity / 8).max(2 * u64::from(self.max_payload())).min(capacity / 2);
        if known < capacity / 4 && edge.saturating_sub(self.ack.edge) >= step && self.is_connected() {
            self.ack.now = true;
        }
    }

    /// True when [`Connection::poll_transmit`] would have an ack to send although nothing arrived: the driver asks after
    /// the application has read.
    pub fn wants_transmit(&self) -> bool {
        self.ack.now || self.reset_due.is_some()
    }

    /// Both directions may have come to their end.
    fn check_finished(&mut self, now: Time) {
        if self.state == State::Established && self.tx.fin() == FinState::Confirmed && self.rx.is_complete() {
            let wait = (self.rtt.rto() * 3).clamp(MIN_TIME_WAIT, MAX_TIME_WAIT);
            self.state = State::TimeWait { until: now + wait };
            self.wakes.ended = true;
            self.wakes.readable = true;
        }
    }
}

/// What the application may write ahead before the window has grown: one GSO batch several times over.
const FIRST_SEND_BUFFER: usize = 256 << 10;
/// What it may write ahead while others send.
const WAITING_BUFFER: usize = 64 << 10;
/// Until the peer has said how much it takes: libutp assumes 255 x 1435 too; some SYN-ACKs say 0 (UTP.md 2.3).
const DEFAULT_PEER_WINDOW: u64 = 255 * 1_435;
/// First packets that are acknowledged at once (UTP.md 4.3).
const QUICK_ACKS: u32 = 10;
/// How long a program that is not on the CPU may leave its socket alone, ms: half a slice of Linux' scheduler (4 ms at 250 Hz).
const AWAY_MS: u64 = 2;
/// Half of the 16-bit space, less one.
const MAX_OUTSTANDING: usize = 32_767;
/// How long a connection without an application waits for the peer's end, once ours has arrived.
const LINGER: Duration = Duration::from_secs(10);
/// Three round trips of timeouts catch a repeated FIN; short, because thousands of short streams wait here.
const MIN_TIME_WAIT: Duration = Duration::from_millis(500);
const MAX_TIME_WAIT: Duration = Duration::from_secs(3);
