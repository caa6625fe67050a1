//! Packets that may be a forger's: what they do (nothing, but for making somebody ask the peer), and what becomes of a peer that
//! says it does not know the connection. RFC 5961 for peers without tags.

use std::time::Duration;

use super::super::packet::{Early, Kind, Packet};
use super::super::tags::{TagKeys, Tags};
use super::{Connection, End, State};
use crate::time::Time;

/// What the owner of a connection is to find out, by pinging the peer with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// Somebody sends packets in the peer's name, or the peer has lost its keys.
    Foreign,
    /// Who receives our packets says that there is no such connection, and does not sign that. A peer that has no key any more
    /// answers no ping either: then the connection ends.
    Forgotten,
}

/// Tags, and what is in doubt.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    pub(super) tags: Tags,
    due: Option<Doubt>,
    /// Since when [`Doubt::Forgotten`] waits for a ping.
    forgotten: Option<Time>,
    /// When the peer was last asked by a STATE.
    challenged: Option<Time>,
}

impl Connection {
    /// Keys that only the two ends know: ours are used once the peer's were, or from [`Connection::start_tags`] on. What has no tag
    /// is not the peer's any more once one has come that is right.
    pub fn set_tag_keys(&mut self, keys: TagKeys) {
        if self.config.tags {
            self.doubts.tags.set(keys);
        }
    }

    /// Keys that follow from one of the two nodes: for what comes before those of TLS. `known`: the peer has shown that it has them.
    pub(in super::super) fn agree_tags(&mut self, keys: TagKeys, known: bool) {
        if self.config.tags {
            self.doubts.tags.set_first(keys, known);
        }
    }

    /// The round trip to a peer that is dialled, as pings have measured it.
    pub fn expect_answer_in(&mut self, rtt: Duration) {
        self.syn.expected = rtt;
    }

    /// There are keys: the peer may use them.
    pub fn takes_tags(&self) -> bool {
        self.doubts.tags.are_known()
    }

    /// The peer has the keys and takes tags: an ack shows it that we have them too.
    pub fn start_tags(&mut self) {
        self.doubts.tags.start();
        self.note_tags();
    }

    /// What leaves has other tags than before.
    pub(super) fn note_tags(&mut self) {
        self.controller.on_mtu(self.max_payload());
        self.ack.now |= self.is_tagged() && self.is_connected();
    }

    /// Its packets carry tags.
    pub fn is_tagged(&self) -> bool {
        self.doubts.tags.are_sent()
    }

    /// What is in doubt since the last call.
    pub fn take_doubt(&mut self) -> Option<Doubt> {
        self.doubts.due.take()
    }

    /// A RESET of a peer that does not know the connection, signed with a key that the two nodes share. False: it is not that.
    pub fn handle_signed_reset(&mut self, packet: &Packet<'_>, shared: &[u8; 32]) -> bool {
        let live = !matches!(self.state, State::Closed(_));
        let signed = live && packet.header.kind == Kind::Reset && self.doubts.tags.is_signed_answer(packet, shared);
        if signed {
            self.stats.packets_in += 1;
            self.end_by_reset();
        }
        signed
    }

    /// The peer has answered a ping with a key that was sent at `asked`. To be told before [`Connection::handle_timeout`].
    pub fn note_answer(&mut self, asked: Time) {
        if self.doubts.forgotten.is_some_and(|since| asked >= since) {
            self.doubts.forgotten = None;
        }
    }

    /// The connection began with data before any answer: other packets that claim the same have to show the same.
    pub(in super::super) fn expect_early(&mut self, early: Option<Early>) {
        self.early = early;
    }

    /// A packet that is not the peer's changes nothing.
    pub(super) fn handle_foreign(&mut self, now: Time, packet: &Packet<'_>) {
        self.stats.refused += 1;
        let forgotten = packet.header.kind == Kind::Reset && self.doubts.tags.is_answer(packet);
        if forgotten {
            self.doubts.forgotten.get_or_insert(now);
            self.doubts.due = Some(Doubt::Forgotten);
        } else {
            self.doubts.due.get_or_insert(Doubt::Foreign);
        }
    }

    /// An answer to a SYN that was agreed upon which shows nothing of that: somebody has guessed two numbers, or the peer has lost its
    /// keys. A better one takes its place within a few round trips.
    pub(super) fn hold(&mut self, now: Time, packet: &Packet<'_>) {
        self.doubts.due.get_or_insert(Doubt::Foreign);
        let wait = (self.syn.expected * HELD_ROUND_TRIPS).clamp(HELD_LEAST, ASKED_FOR);
        self.syn.held.get_or_insert((now + wait, packet.header, packet.capability));
    }

    pub(super) fn held_until(&self) -> Option<Time> {
        self.syn.held.map(|(until, ..)| until)
    }

    /// Nothing better has come.
    pub(super) fn take_held(&mut self, now: Time) {
        let Some((_, header, capability)) = self.syn.held.filter(|(until, ..)| now >= *until) else { return };
        self.syn.held = None;
        match header.kind {
            Kind::Reset => self.close(End::Refused),
            _ => drop(self.handle_syn_ack(now, &Packet { capability, ..Packet::bare(header) })),
        }
    }

    /// When a peer that answers no ping has forgotten the connection for good.
    pub(super) fn forgotten_at(&self) -> Option<Time> {
        self.doubts.forgotten.map(|since| since + ASKED_FOR)
    }

    pub(super) fn check_forgotten(&mut self, now: Time) {
        if self.forgotten_at().is_some_and(|at| now >= at) {
            self.close(End::Reset);
        }
    }

    /// Asks the peer by an ack what a RESET with a number that only nearly fits means: if it has really forgotten the connection, it
    /// answers that with a RESET that fits (RFC 5961 section 3.2). Each connection for itself: a limit for all of them together
    /// would tell a forger how many others have used up (CVE-2016-5696).
    pub(super) fn challenge(&mut self, now: Time) {
        if self.doubts.challenged.is_none_or(|at| now.since(at) >= CHALLENGE_EVERY) {
            self.doubts.challenged = Some(now);
            self.ack.now = true;
        }
    }
}

/// As long as an answer takes that is not even late (docs/protocol.md section 2).
const ASKED_FOR: Duration = Duration::from_secs(1);
/// When an answer is late (docs/protocol.md section 2).
const HELD_ROUND_TRIPS: u32 = 4;
const HELD_LEAST: Duration = Duration::from_millis(250);
/// Linux sends as many (`tcp_invalid_ratelimit`).
const CHALLENGE_EVERY: Duration = Duration::from_millis(500);
