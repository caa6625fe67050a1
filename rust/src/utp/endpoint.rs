//! Finds the connection a datagram belongs to, answers SYNs, and turns strangers away. A stranger's SYN costs one row of a
//! fixed table at most: the connection is made when a packet shows that our SYN-ACK arrived.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::connection::{Connection, Start};
use super::half_open::{agree, Greeted, HalfOpen, Spent};
use super::packet::{Capability, Early, Header, Kind, Packet, HEADER_LEN, OFFER_LEN, TAG_LEN};
use super::tags::{reset_for, signed_reset, TagKeys};
use crate::addr::{Origin, RemoteId};
use crate::config::{EndpointConfig, UtpConfig};
use crate::time::Time;

/// Names a connection within its endpoint. Slots are used again, generations are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Handle {
    slot: u32,
    generation: u32,
}

impl Handle {
    /// Index for tables beside the endpoint's.
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// What a datagram turned out to be.
#[derive(Debug)]
pub enum Routed<'a> {
    /// For this connection: call [`Connection::handle_packet`].
    Known(Handle, Packet<'a>),
    /// A peer confirmed our SYN-ACK: keep the connection and give it the packet.
    New(Handle, Box<Connection>, Packet<'a>),
    /// [`Endpoint::poll_reply`] may have something to send.
    Answered,
    /// Nothing came of it.
    Dropped(Dropped),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    Malformed,
    /// For no connection of this remote.
    Unknown,
    /// All connections are taken.
    Full,
}

/// Why [`Endpoint::connect`] refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// `max_connections` are open.
    Full,
    /// Every connection id towards this remote is taken.
    NoId,
}

/// Demultiplexer and doorkeeper; owns no connections.
#[derive(Debug)]
pub struct Endpoint {
    config: EndpointConfig,
    utp: Arc<UtpConfig>,
    rng: StdRng,
    routes: HashMap<(RemoteId, u16), Handle>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    half_open: HalfOpen,
    spent: Spent,
    reply: Option<Vec<u8>>,
    resets: Allowance,
    /// Connections made on a cookie's word.
    by_cookie: Allowance,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    route: Option<(RemoteId, u16)>,
    /// The id we send with: RESETs may carry it.
    send_id: u16,
}

/// How many more of something there may be this second.
#[derive(Debug, Default)]
struct Allowance {
    since: Time,
    used: u32,
}

impl Endpoint {
    /// `seed` must be unpredictable: connection ids and first sequence numbers are what a blind forger has to guess.
    pub fn new(config: EndpointConfig, utp: UtpConfig, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        Self {
            config,
            utp: Arc::new(utp),
            half_open: HalfOpen::new(rng.random()),
            spent: Spent::default(),
            rng,
            routes: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            reply: None,
            resets: Allowance::default(),
            by_cookie: Allowance::default(),
        }
    }

    pub fn connections(&self) -> usize {
        self.routes.len()
    }

    /// SYNs remembered and not confirmed.
    pub fn half_open(&self) -> usize {
        self.half_open.len()
    }

    /// Starts a connection; its first [`Connection::poll_transmit`] gives the SYN. `ipv6_cap` bounds the datagram
    /// (1452 over IPv6, `u16::MAX` otherwise). With a `key` that the remote knows too, data follows the SYN at once.
    pub fn connect(
        &mut self,
        now: Time,
        remote: RemoteId,
        config: &UtpConfig,
        ipv6_cap: u16,
        key: Option<&[u8; 32]>,
    ) -> Result<(Handle, Connection), ConnectError> {
        if self.routes.len() >= self.config.max_connections {
            return Err(ConnectError::Full);
        }
        let id = self.free_id(remote).ok_or(ConnectError::NoId)?;
        let (send_id, first_seq) = (id.wrapping_add(1), self.rng.random());
        let start = Start { remote, receive_id: id, send_id, first_seq, ipv6_cap, capability: self.capability() };
        let handle = self.insert(remote, id, start.send_id);
        let agreed = key.map(|key| agree(key, id, first_seq));
        Ok((handle, Connection::dial(now, &start, agreed, Arc::new(config.clone()))))
    }

    /// Takes one datagram that was classified as uTP. `remote` is reached at `origin`, and knows `key`, if any.
    pub fn handle<'a>(
        &mut self,
        now: Time,
        remote: RemoteId,
        datagram: &'a [u8],
        origin: Origin,
        key: Option<&[u8; 32]>,
    ) -> Routed<'a> {
        let Ok(packet) = Packet::parse(datagram) else { return Routed::Dropped(Dropped::Malformed) };
        let id = packet.header.connection_id;
        match packet.header.kind {
            Kind::Syn => match self.routes.get(&(remote, id.wrapping_add(1))) {
                // a late copy of a SYN whose connection stands, or a clash: the dialler has or will get another id
                Some(&handle) => Routed::Known(handle, packet),
                None => self.handle_syn(now, origin, &packet, datagram.len(), key),
            },
            Kind::Reset => match self.find_for_reset(remote, id) {
                Some(handle) => Routed::Known(handle, packet),
                None => Routed::Dropped(Dropped::Unknown),
            },
            _ => match self.routes.get(&(remote, id)) {
                Some(&handle) => Routed::Known(handle, packet),
                None => self.handle_unknown(now, remote, packet, origin, key),
            },
        }
    }

    /// Takes one datagram from an address that nobody is known to be reached at, if it is a SYN: a remote is worth making only
    /// for whoever confirms the answer. `None`: make one, and [`Endpoint::handle`] knows more.
    pub fn handle_stranger(&mut self, now: Time, datagram: &[u8], origin: Origin) -> Option<Routed<'static>> {
        match Packet::parse(datagram) {
            Ok(packet) if packet.header.kind == Kind::Syn => {
                Some(self.handle_syn(now, origin, &packet, datagram.len(), None))
            }
            Ok(_) => None,
            Err(_) => Some(Routed::Dropped(Dropped::Malformed)),
        }
    }

    /// Reads a datagram that came from the same remote right after `before`, whose connection was found. `None` when it goes
    /// elsewhere or needs more than its connection: [`Endpoint::handle`] knows.
    pub fn follow<'a>(before: &Packet<'_>, datagram: &'a [u8]) -> Option<Packet<'a>> {
        // a RESET may carry the id of another direction
        let plain = |packet: &Packet<'_>| !matches!(packet.header.kind, Kind::Syn | Kind::Reset);
        let packet = Packet::parse(datagram).ok()?;
        let same = packet.header.connection_id == before.header.connection_id;
        (same && plain(before) && plain(&packet)).then_some(packet)
    }

    /// There is a connection of `remote` with this id on packets to us.
    pub fn knows(&self, remote: RemoteId, receive_id: u16) -> bool {
        self.routes.contains_key(&(remote, receive_id))
    }

    /// The datagram that answers the last one handled, if any: its length. It is never longer than that one.
    pub fn poll_reply(&mut self, out: &mut Vec<u8>) -> Option<usize> {
        let reply = self.reply.take()?;
        out.extend_from_slice(&reply);
        Some(reply.len())
    }

    /// The connection is drained.
    pub fn forget(&mut self, handle: Handle) {
        let Some(slot) = self.slots.get_mut(handle.slot()).filter(|slot| slot.generation == handle.generation) else {
            return;
        };
        if let Some(route) = slot.route.take() {
            self.routes.remove(&route);
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(handle.slot);
        }
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        Some(self.half_open.oldest()? + self.config.half_open_timeout)
    }

    /// Forgets SYNs that nobody confirmed.
    pub fn handle_timeout(&mut self, now: Time) {
        while self.poll_timeout().is_some_and(|at| now >= at) {
            self.half_open.drop_oldest();
        }
    }

    fn handle_syn(
        &mut self,
        now: Time,
        origin: Origin,
        packet: &Packet<'_>,
        size: usize,
        key: Option<&[u8; 32]>,
    ) -> Routed<'static> {
        let id = packet.header.connection_id;
        if self.routes.len() >= self.config.max_connections {
            self.write_reset(now, packet, key);
            return Routed::Dropped(Dropped::Full);
        }
        // an answer longer than the question would make others pay for a forged address
        let capability = packet.capability.filter(|_| size >= HEADER_LEN + OFFER_LEN);
        let syn_seq = packet.header.seq;
        let agreed = key.filter(|_| !self.spent.holds((origin, id), syn_seq)).map(|key| agree(key, id, syn_seq));
        let our_seq = agreed.map_or_else(|| self.rng.random(), |agreed| agreed.our_seq);
        // a copy of one that was answered: which key the peer pings with may have changed since
        let known = self.half_open.secret_of(&(origin, id), syn_seq);
        let mut secrets = known.into_iter().chain(agreed.map(|agreed| agreed.secret));
        let secret = secrets.find(|secret| self.shows(packet, secret) && size >= HEADER_LEN + OFFER_LEN + TAG_LEN);
        let fresh = Greeted { syn_seq, our_seq, capability, secret };
        let Some(greeted) = self.half_open.greet(now, &self.config, (origin, id), fresh, agreed.is_some()) else {
            return Routed::Dropped(Dropped::Unknown);
        };
        if greeted.capability.is_some() && capability.is_none() {
            // not a copy of the SYN that was answered, and too short for its answer
            return Routed::Dropped(Dropped::Unknown);
        }
        let header = Header {
            kind: Kind::State,
            connection_id: id,
            timestamp: (now.as_micros() as u32).max(1),
            timestamp_difference: match packet.header.timestamp {
                0 => 0,
                timestamp => (now.as_micros() as u32).wrapping_sub(timestamp),
            },
            window: u32::try_from(self.utp.untrusted_window.min(self.utp.initial_window)).unwrap_or(u32::MAX),
            seq: greeted.our_seq,
            ack: packet.header.seq,
        };
        let mut reply = Vec::with_capacity(64);
        if greeted.capability.is_some() {
            let tag = greeted.secret.map(|secret| TagKeys::new(&secret, false).sign(&header));
            header.tagged(tag).write_with_capability(self.capability(), &mut reply);
        } else {
            header.write(&mut reply);
        }
        self.reply = Some(reply);
        Routed::Answered
    }

    /// No connection has this id: it confirms a SYN-ACK of ours, or it is astray.
    fn handle_unknown<'a>(
        &mut self,
        now: Time,
        remote: RemoteId,
        packet: Packet<'a>,
        origin: Origin,
        key: Option<&[u8; 32]>,
    ) -> Routed<'a> {
        let receive_id = packet.header.connection_id;
        let syn_id = receive_id.wrapping_sub(1);
        let row = (origin, syn_id);
        let known = match &packet.early {
            Some(early) => self.recognise_early(early, row, key),
            None => self.half_open.take(&row, &packet).or_else(|| self.recognise(now, &row, &packet, key)),
        };
        let Some(greeted) = known else {
            // no RESET for a dialler whose cookie is in a packet that was lost or comes later, nor for one that knew a number
            // which we have forgotten: it gets another with the SYN-ACK
            if !self.half_open.has_given_cookies(now) && packet.early.is_none() {
                self.write_reset(now, &packet, key);
            }
            return Routed::Dropped(Dropped::Unknown);
        };
        if self.routes.len() >= self.config.max_connections {
            self.write_reset(now, &packet, key);
            return Routed::Dropped(Dropped::Full);
        }
        if key.is_some() {
            self.spent.note(now, row, greeted.syn_seq);
        }
        let start = Start {
            remote,
            receive_id,
            send_id: syn_id,
            first_seq: greeted.our_seq,
            ipv6_cap: origin.max_datagram(),
            capability: self.capability(),
        };
        let handle = self.insert(remote, receive_id, syn_id);
        let mut connection = Connection::accept(now, &start, greeted.syn_seq, greeted.capability, self.utp.clone());
        connection.expect_early(packet.early);
        if let Some(secret) = greeted.secret {
            connection.agree_tags(TagKeys::new(&secret, false), true);
        }
        Routed::New(handle, Box::new(connection), packet)
    }

    /// Data that did not wait for the SYN-ACK. The SYN before it may have been lost, or come later.
    fn recognise_early(&mut self, early: &Early, row: (Origin, u16), key: Option<&[u8; 32]>) -> Option<Greeted> {
        let Early { syn_seq, .. } = *early;
        let agreed = agree(key?, row.1, syn_seq);
        if agreed.early != *early || self.spent.holds(row, syn_seq) {
            return None;
        }
        // nothing says that a dialler whose SYN was lost takes tags
        let secret = self.half_open.secret_of(&row, syn_seq);
        self.half_open.remove(&row);
        Some(Greeted { syn_seq, our_seq: agreed.our_seq, capability: Some(Capability::new(None)), secret })
    }

    /// Whether a dialler knows what was agreed, and takes tags.
    fn shows(&self, packet: &Packet<'_>, secret: &[u8; 32]) -> bool {
        let fits = |tag| TagKeys::new(secret, false).verify(&packet.header, tag);
        self.utp.tags && packet.tag.is_some_and(fits)
    }

    /// Somebody who sends forged packets without end guesses a cookie now and then: so many a second, and not more.
    fn recognise(
        &mut self,
        now: Time,
        row: &(Origin, u16),
        packet: &Packet<'_>,
        key: Option<&[u8; 32]>,
    ) -> Option<Greeted> {
        let cookie = self.half_open.recognise(now, row, packet);
        let greeted = cookie.or_else(|| self.recognise_agreed(now, row, packet, key))?;
        self.by_cookie.take(now, self.config.cookies_per_second).then_some(greeted)
    }

    /// The first packet of a dialler whose SYN found the table full, and was answered with the number that both know.
    fn recognise_agreed(
        &self,
        now: Time,
        row: &(Origin, u16),
        packet: &Packet<'_>,
        key: Option<&[u8; 32]>,
    ) -> Option<Greeted> {
        let key = key.filter(|_| self.half_open.has_given_cookies(now))?;
        let syn_seq = packet.header.seq.wrapping_sub(1);
        let our_seq = agree(key, row.1, syn_seq).our_seq;
        let is_right = packet.header.ack == our_seq.wrapping_sub(1) && !self.spent.holds(*row, syn_seq);
        is_right.then(|| Greeted { syn_seq, our_seq, capability: Some(Capability::new(None)), secret: None })
    }

    /// What we say of ourselves.
    fn capability(&self) -> Capability {
        Capability::new(self.config.receive_burst)
    }

    /// RESETs carry either id of the connection, as seen from either side (UTP.md 2.2).
    fn find_for_reset(&self, remote: RemoteId, id: u16) -> Option<Handle> {
        [id, id.wrapping_add(1), id.wrapping_sub(1)].into_iter().find_map(|receive_id| {
            let handle = *self.routes.get(&(remote, receive_id))?;
            let slot = self.slots.get(handle.slot())?;
            (receive_id == id || slot.send_id == id).then_some(handle)
        })
    }

    /// Says that there is no such connection, at most so often; never in answer to RESET. A packet with a tag is answered with a
    /// tag, by which its sender knows that it was received; signed, if there is a key for that.
    fn write_reset(&mut self, now: Time, packet: &Packet<'_>, key: Option<&[u8; 32]>) {
        if packet.header.kind == Kind::Reset || !self.resets.take(now, self.config.resets_per_second) {
            return;
        }
        let mut reply = Vec::with_capacity(30);
        if let Some(answered) = packet.tag {
            let header = Header { timestamp: (now.as_micros() as u32).max(1), ..reset_for(&packet.header) };
            let tag = key.map_or(answered, |key| signed_reset(key, &header, answered));
            header.tagged(Some(tag)).write(&mut reply);
            self.reply = Some(reply);
            return;
        }
        let header = Header {
            kind: Kind::Reset,
            // libutp repeats the id of the offending packet
            connection_id: packet.header.connection_id,
            timestamp: (now.as_micros() as u32).max(1),
            timestamp_difference: 0,
            window: 0,
            seq: self.rng.random(),
            ack: packet.header.seq,
        };
        header.write(&mut reply);
        self.reply = Some(reply);
    }

    fn free_id(&mut self, remote: RemoteId) -> Option<u16> {
        let first: u16 = self.rng.random();
        // neither id of the pair is one of another connection's, in either direction: a RESET may carry any of them
        let is_free = |id| self.find_for_reset(remote, id).is_none();
        let mut all = (0..32_768).map(|step: u16| first.wrapping_add(step.wrapping_mul(2)));
        all.find(|id| is_free(*id) && is_free(id.wrapping_add(1)))
    }

    fn insert(&mut self, remote: RemoteId, receive_id: u16, send_id: u16) -> Handle {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        entry.route = Some((remote, receive_id));
        entry.send_id = send_id;
        let handle = Handle { slot, generation: entry.generation };
        self.routes.insert((remote, receive_id), handle);
        handle
    }
}

impl Allowance {
    fn take(&mut self, now: Time, per_second: u32) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, used: 0 };
        }
        self.used += 1;
        self.used <= per_second
    }
}
