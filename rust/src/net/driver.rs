//! The task that owns the socket: receive a batch, let the state machines work, send what they have, sleep until something
//! is due. All connections live in it; no task per stream, no channel per packet (UTP.md 4.2).

mod sending;

use std::cmp::Reverse;
use std::io::{self, IoSliceMut};
use std::iter::Peekable;
use std::net::IpAddr;
use std::slice::Chunks;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use quinn_udp::RecvMeta;
use tokio::sync::mpsc;

use super::conn::{Conn, ConnState};
use super::core::Core;
use super::locals::usual_source;
use super::socket::Socket;
use super::sockets::Sockets;
use super::uplink::leaves_by_its_own;
use super::wire::WIRE_SEGMENTS;
use super::{Inner, UtpStream};
use crate::addr::{unmapped, Datagrams, Origin, RemoteId, Route, Via};
use crate::classify::{classify, Kind};
use crate::error::Reason;
use crate::path::{sendable, PingIn, PongIn, SharedKeys};
use crate::stun;
use crate::time::Time;
use crate::utp::packet::{self, Packet};
use crate::utp::{Doubt, End, Endpoint, Heard, Routed, Transmit};

/// Runs until [`super::Net::close`]. The socket is its own, so that it closes then, whoever still holds a handle.
pub async fn run(
    inner: Arc<Inner>,
    sockets: Sockets,
    mut carried: mpsc::Receiver<(Via, Datagrams)>,
    accepted: mpsc::Sender<UtpStream>,
) {
    let _end = LastWord(inner.clone());
    let mut driver = Driver {
        inner: &inner,
        sockets,
        accepted,
        touched: Vec::new(),
        out: Vec::with_capacity(64 << 10),
        blocked: None,
        receive_buffer: vec![0; RECEIVE_BUFFERS * BUFFER_SIZE].into(),
    };
    let sleep = tokio::time::sleep(Duration::ZERO);
    tokio::pin!(sleep);
    let mut deadline = None;
    while !inner.closing.load(Ordering::Acquire) {
        let next = inner.core().poll_timeout();
        if next != deadline {
            deadline = next;
            if let Some(at) = next {
                sleep.as_mut().reset(inner.clock.instant(at).into());
            }
        }
        let (main, others) = (driver.sockets.main(), driver.sockets.others());
        let blocked = driver.blocked.as_ref().and_then(|blocked| driver.sockets.find(blocked.route.via));
        let blocked = blocked.unwrap_or_else(|| main.clone());
        tokio::select! {
            biased;
            () = blocked.writable(), if driver.blocked.is_some() => driver.send_blocked(),
            // bells that never cease must not keep it from receiving; without news this is no system call
            () = inner.doorbell.rung() => driver.receive(Via::MAIN),
            () = main.readable() => driver.receive(Via::MAIN),
            via = others.readable(), if !others.is_empty() => driver.receive(via),
            Some((via, datagrams)) = carried.recv() => driver.receive_carried(via, datagrams, &mut carried),
            () = &mut sleep, if deadline.is_some() => deadline = None,
        }
        if next.is_some_and(|due| inner.clock.now().since(due) > PAUSE) {
            inner.core().handle_pause(inner.clock.now());
        }
        // sockets that are never empty must not keep relays from their turn
        if let Ok((via, datagrams)) = carried.try_recv() {
            driver.receive_carried(via, datagrams, &mut carried);
        }
        driver.work();
    }
    driver.finish();
    // the port is free for others before anyone hears of the end
    drop(driver);
}

/// However the driver ends, also by a panic or with its runtime: nobody waits for it for ever.
struct LastWord(Arc<Inner>);

impl Drop for LastWord {
    fn drop(&mut self) {
        let inner = &self.0;
        inner.closing.store(true, Ordering::Release);
        let left: Vec<_> = inner.core().all().cloned().collect();
        for conn in left {
            let mut state = conn.lock();
            state.fail(Reason::ProxyClosed);
            let wakes = state.utp.take_wakes();
            state.wake(wakes);
        }
        inner.punches().clear();
        inner.meetings().clear();
        inner.closed.send_replace(true);
    }
}

pub(super) struct Driver<'a> {
    pub(super) inner: &'a Arc<Inner>,
    pub(super) sockets: Sockets,
    accepted: mpsc::Sender<UtpStream>,
    /// Connections to look at in this turn.
    touched: Vec<Arc<Conn>>,
    out: Vec<u8>,
    /// A batch that the socket would not take.
    blocked: Option<Blocked>,
    receive_buffer: Box<[u8]>,
}

/// What became of a datagram, as far as somebody acts on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Other,
    /// Larger than the interface takes.
    TooLarge,
}

struct Blocked {
    route: Route,
    source: Option<IpAddr>,
    contents: Vec<u8>,
    segment_size: Option<usize>,
    may_cut: bool,
}

/// Which way datagrams came: from where, and to which of our addresses, where the socket has several.
#[derive(Clone, Copy)]
struct Arrival {
    from: Route,
    at: Option<IpAddr>,
}

/// Whom a run of datagrams with one connection id comes from, and what they proved.
struct Sender {
    id: [u8; 2],
    remote: RemoteId,
    /// The remote has such a connection.
    known: bool,
    heard: bool,
    proven: bool,
    bytes: usize,
}

impl Sender {
    /// The remote at this address that has such a connection; else the first there, or a new one.
    fn find(now: Time, core: &mut Core, from: Route, id: [u8; 2]) -> Option<Self> {
        let number = u16::from_be_bytes(id);
        let known = core.paths.remotes_at(from).find(|remote| core.endpoint.knows(*remote, number));
        let remote = known.or_else(|| core.paths.remote_for(now, from).ok())?;
        Some(Self { id, remote, known: known.is_some(), heard: false, proven: false, bytes: 0 })
    }

    /// What a connection made of a datagram.
    fn take(&mut self, heard: Heard, size: usize) {
        self.heard |= heard != Heard::Foreign;
        self.proven |= heard == Heard::Confirmed;
        self.bytes += if heard == Heard::Foreign { 0 } else { size };
    }

    fn note(&self, now: Time, core: &mut Core, Arrival { from, at }: Arrival) {
        if self.heard {
            if let Some(at) = at {
                core.locals.handle_arrival(now, from, at, true, usual_source, leaves_by_its_own);
            }
            core.paths.handle_utp_from(now, from, self.remote, self.proven);
            core.paths.count(self.remote, Some(from), self.bytes, 0);
        }
    }
}

impl Driver<'_> {
    /// Takes what the socket has, up to a budget, so that sending gets its turn.
    fn receive(&mut self, via: Via) {
        let Some(socket) = self.sockets.find(via) else { return };
        let mut buffer = std::mem::take(&mut self.receive_buffer);
        for _ in 0..RECEIVE_ROUNDS {
            let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
            let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] = {
                let mut chunks = buffer.chunks_mut(BUFFER_SIZE);
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()))
            };
            let Ok(count) = socket.receive(&mut slices, &mut metas) else { break };
            let now = self.inner.clock.now();
            let mut core = self.inner.core();
            for (meta, chunk) in metas.iter().zip(buffer.chunks(BUFFER_SIZE)).take(count) {
                let batch = &chunk[..meta.len.min(chunk.len())];
                core.stats.bytes_in += batch.len() as u64;
                let arrival = Arrival { from: Route { via, to: unmapped(meta.addr) }, at: socket.arrived_at(meta) };
                self.handle_batch(now, &mut core, arrival, batch, meta.stride.max(1));
            }
            if count < RECEIVE_BUFFERS {
                break;
            }
        }
        self.receive_buffer = buffer;
    }

    /// Takes what relays have brought, up to a budget.
    fn receive_carried(&mut self, via: Via, first: Datagrams, queue: &mut mpsc::Receiver<(Via, Datagrams)>) {
        let now = self.inner.clock.now();
        let inner = self.inner;
        let mut core = inner.core();
        let mut next = Some((via, first));
        for _ in 0..RECEIVE_BUFFERS * RECEIVE_ROUNDS {
            let Some((via, Datagrams { peer, contents, stride })) = next else { break };
            core.stats.bytes_in += contents.len() as u64;
            let arrival = Arrival { from: Route { via, to: unmapped(peer) }, at: None };
            self.handle_batch(now, &mut core, arrival, &contents, stride.max(1));
            next = queue.try_recv().ok();
        }
    }

    /// Datagrams of `stride` bytes from one address. They mostly belong to one connection: what the tables say of its
    /// remote is looked up once.
    fn handle_batch(&mut self, now: Time, core: &mut Core, arrival: Arrival, batch: &[u8], stride: usize) {
        let mut sender: Option<Sender> = None;
        let mut datagrams = batch.chunks(stride).peekable();
        while let Some(datagram) = datagrams.next() {
            core.stats.datagrams_in += 1;
            match classify(datagram) {
                Kind::Stun => self.handle_stun(now, core, arrival, datagram),
                Kind::Unknown => core.stats.dropped_unknown += 1,
                Kind::Utp => {
                    let id = [datagram[2], datagram[3]];
                    if sender.as_ref().is_none_or(|sender| sender.id != id) {
                        sender.take().inspect(|before| before.note(now, core, arrival));
                        if self.handle_stranger(now, core, arrival, datagram) {
                            continue;
                        }
                        sender = Sender::find(now, core, arrival.from, id);
                    }
                    match &mut sender {
                        Some(sender) => self.handle_utp(now, core, arrival, sender, datagram, &mut datagrams),
                        None => core.stats.dropped_full += 1,
                    }
                }
            }
        }
        sender.inspect(|sender| sender.note(now, core, arrival));
    }

    /// A SYN from an address that nobody is known at costs no entry of the path table. False: it was not that.
    fn handle_stranger(&mut self, now: Time, core: &mut Core, arrival: Arrival, datagram: &[u8]) -> bool {
        let from = arrival.from;
        if core.paths.remote_of(from).is_some() || !sendable(from.to) {
            return false;
        }
        match core.endpoint.handle_stranger(now, datagram, Origin::of(from.to)) {
            None => return false,
            Some(Routed::Dropped(why)) => core.stats.count(why),
            Some(_) => {}
        }
        self.send_reply(core, arrival);
        true
    }

    fn handle_stun(&mut self, now: Time, core: &mut Core, Arrival { from, at }: Arrival, datagram: &[u8]) {
        let verified = |key: &[u8; 32]| stun::verify(datagram, key);
        match stun::decode(datagram) {
            Ok(stun::Message::Ping(ping)) => {
                let stun::Ping { transaction, session, incarnation } = ping;
                let ping = PingIn { transaction, session, incarnation, size: datagram.len() };
                let Some(pong) = core.paths.handle_ping(now, from, &ping, verified) else { return };
                // anybody can send a ping without a key in the peer's name: it moves nothing
                if let Some(at) = at.filter(|_| pong.key.is_some() || !core.locals.knows(from)) {
                    core.locals.handle_arrival(now, from, at, false, usual_source, leaves_by_its_own);
                }
                self.out.clear();
                let (key, life) = (pong.key.as_ref(), pong.incarnation.as_ref());
                if stun::encode_answer(&mut self.out, pong.transaction, pong.observed, key, life, pong.room) {
                    // a pong counts only from the address that was asked
                    let to = Route { via: pong.via, to: pong.to };
                    let source = at.and_then(|at| core.locals.answer_from(to, at, leaves_by_its_own));
                    self.send_from(core, to, source, None, false);
                }
            }
            Ok(stun::Message::Pong(pong)) => {
                let stun::Pong { transaction, observed, keyed, incarnation } = pong;
                if from.via == Via::MAIN && core.questions.handle_pong(from.to, &transaction, observed) {
                    return;
                }
                let pong = PongIn { transaction, observed, keyed, incarnation };
                core.paths.handle_pong(now, from, &pong, verified);
            }
            Ok(stun::Message::Goodbye(goodbye)) => {
                core.paths.handle_goodbye(now, &goodbye.session, goodbye.transaction, verified);
            }
            Ok(stun::Message::Other) => core.stats.dropped_unknown += 1,
            Err(_) => core.stats.dropped_malformed += 1,
        }
    }

    /// One datagram, and with it those of `rest` that go on with the same connection: its lock is taken once for all of them,
    /// and nothing is looked up again.
    fn handle_utp<'a>(
        &mut self,
        now: Time,
        core: &mut Core,
        arrival: Arrival,
        sender: &mut Sender,
        datagram: &'a [u8],
        rest: &mut Peekable<Chunks<'a, u8>>,
    ) {
        // it matters to what begins a connection only
        let keys = if sender.known { SharedKeys::default() } else { core.paths.shared_keys(sender.remote) };
        let key = keys.peers.or(keys.own);
        match core.endpoint.handle(now, sender.remote, datagram, Origin::of(arrival.from.to), key.as_ref()) {
            Routed::Known(handle, packet) => {
                let Some(conn) = core.find(handle).cloned() else { return };
                let mut state = conn.lock();
                if packet.header.kind == packet::Kind::Reset && packet.tag.is_some() {
                    let SharedKeys { own, peers } = core.paths.shared_keys(conn.remote);
                    [own, peers].iter().flatten().any(|key| state.utp.handle_signed_reset(&packet, key));
                }
                sender.take(state.utp.handle_packet(now, &packet), datagram.len());
                while let Some(next) = rest.peek().and_then(|datagram| follow(&packet, datagram)) {
                    let size = rest.next().map_or(0, <[u8]>::len);
                    core.stats.datagrams_in += 1;
                    sender.take(state.utp.handle_packet(now, &next), size);
                }
                if let Some(doubt) = state.utp.take_doubt() {
                    let asked = core.paths.handle_doubt(now, conn.remote);
                    if doubt == Doubt::Forgotten && !asked {
                        // there never was a key that it could have signed with
                        state.utp.give_up(End::Reset);
                    }
                }
                self.touch(&conn, &mut state);
            }
            Routed::New(handle, utp, packet) => {
                let conn = core.insert(now, handle, *utp);
                let mut state = conn.lock();
                state.utp.handle_packet(now, &packet);
                self.touch(&conn, &mut state);
                drop(state);
                // it repeated the number of our SYN-ACK: what we send arrives there
                (sender.heard, sender.proven) = (true, true);
                let stream = UtpStream::new(conn, self.inner.clone());
                if self.accepted.try_send(stream).is_err() {
                    core.stats.dropped_full += 1;
                }
            }
            Routed::Answered => self.send_reply(core, arrival),
            Routed::Dropped(why) => {
                core.stats.count(why);
                // a peer whose address has just changed is still unknown here: a RESET would end what is about to move
                if core.paths.may_reset(now, sender.remote) {
                    self.send_reply(core, arrival);
                } else {
                    core.endpoint.poll_reply(&mut Vec::new());
                }
            }
        }
    }

    fn send_reply(&mut self, core: &mut Core, to: Arrival) {
        self.out.clear();
        if core.endpoint.poll_reply(&mut self.out).is_some() {
            self.send_from(core, to.from, to.at, None, false);
        }
    }

    pub(super) fn touch(&mut self, conn: &Arc<Conn>, state: &mut ConnState) {
        if !std::mem::replace(&mut state.queued, true) {
            self.touched.push(conn.clone());
        }
    }

    /// Everything that is due now: timers, connections that received or were written to, paths.
    fn work(&mut self) {
        let inner = self.inner;
        let now = inner.clock.now();
        self.sockets.take_new(inner);
        let mut core = inner.core();
        for via in inner.wires.take_closed() {
            core.paths.handle_closed(now, via);
        }
        core.sweep_timers();
        self.fire_timers(now, &mut core);
        inner.doorbell.take(&mut self.touched);
        let mut touched = std::mem::take(&mut self.touched);
        for conn in touched.drain(..) {
            if self.blocked.is_some() {
                // stays queued: its turn comes when the socket takes more
                self.touched.push(conn);
            } else {
                self.pump(now, &mut core, &conn);
            }
        }
        if self.touched.is_empty() {
            self.touched = touched;
        }
        self.work_paths(now, &mut core);
    }

    fn fire_timers(&mut self, now: Time, core: &mut Core) {
        core.endpoint.handle_timeout(now);
        while let Some(&Reverse((at, handle))) = core.timers.peek() {
            if at > now {
                break;
            }
            core.timers.pop();
            let Some(conn) = core.find(handle).cloned() else { continue };
            let mut state = conn.lock();
            if state.timer == Some(at) {
                state.timer = None;
                self.touch(&conn, &mut state);
            }
        }
    }

    /// Lets one connection send what it may, wakes its application, and notes when to come back.
    fn pump(&mut self, now: Time, core: &mut Core, conn: &Arc<Conn>) {
        let mut state = conn.lock();
        state.queued = false;
        if state.utp.poll_timeout().is_some_and(|at| at <= now) {
            if let Some((heard, connections)) = core.paths.company_of(conn.remote) {
                state.utp.note_company(heard, connections);
            }
            if let Some(asked) = core.paths.answered(conn.remote) {
                state.utp.note_answer(asked);
            }
            state.utp.handle_timeout(now);
            if state.utp.is_stuck(now) {
                core.paths.handle_stuck(now, conn.remote);
            }
        }
        let to = core.route_of(conn.remote);
        let policed = core.police.is_limited() && core.paths.is_relayed(conn.remote);
        let max_segments = match to.via.is_relay() {
            // a limit is kept by single packets
            _ if policed => 1,
            true => WIRE_SEGMENTS,
            false => self.sockets.find(to.via).map_or(1, |socket| socket.max_segments()),
        };
        let mut sent = 0;
        for round in 0.. {
            self.out.clear();
            core.take_turn(conn, &mut state);
            let allowed = state.utp.allowance();
            let Some(transmit) = state.utp.poll_transmit(now, max_segments, &mut self.out) else { break };
            let spent = allowed - state.utp.allowance();
            state.turn.spend(spent);
            if policed && !core.police.may_pass(now, conn.remote, self.out.len()) {
                core.stats.dropped_relay_limit += 1;
            } else {
                sent += self.out.len();
                self.send_packets(now, core, &mut state, to, &transmit);
            }
            if self.blocked.is_some() || round >= SEND_ROUNDS {
                // the others get their turn first
                self.touch(conn, &mut state);
                self.inner.doorbell.ring_plain();
                break;
            }
        }
        let wakes = state.utp.take_wakes();
        state.wake(wakes);
        if sent > 0 {
            core.paths.handle_sent(now, conn.remote);
            core.paths.count(conn.remote, None, 0, sent);
        }
        if state.utp.is_drained() {
            drop(state);
            core.forget(now, conn.handle);
        } else {
            if let Some(at) = state.utp.poll_timeout() {
                if state.timer.is_none_or(|registered| at < registered) {
                    state.timer = Some(at);
                    core.timers.push(Reverse((at, conn.handle)));
                }
            }
            drop(state);
        }
        while let Some(next) = core.next_turn(conn.remote) {
            self.touch(&next, &mut next.lock());
            self.inner.doorbell.ring_plain();
        }
    }

    /// Sends what a connection has put into `self.out`.
    fn send_packets(&mut self, now: Time, core: &mut Core, state: &mut ConnState, to: Route, transmit: &Transmit) {
        if transmit.may_fragment && !to.via.is_relay() {
            self.send_in_pieces(core, to, transmit.segment_size);
            return;
        }
        // IPv6 carries the base size everywhere (RFC 8200 section 5)
        let may_cut = transmit.unproven && to.to.is_ipv4();
        // a probe may be too large: its loss tells enough
        let probe = self.out.len() > usize::from(state.utp.datagram()) && transmit.segment_size.is_none();
        let source = core.locals.source(to);
        if self.send_from(core, to, source, transmit.segment_size, may_cut) == Sent::TooLarge && !probe {
            state.utp.handle_too_large(now);
        }
    }

    fn work_paths(&mut self, now: Time, core: &mut Core) {
        if core.paths.poll_timeout().is_some_and(|at| at <= now) {
            core.paths.handle_timeout(now);
        }
        while self.blocked.is_none() {
            let Some(ping) = core.paths.poll_transmit(now) else { break };
            self.out.clear();
            let keys = ping.keys.as_ref().map(|(session, key)| (session, key));
            match (keys, &ping.incarnation) {
                (Some(keys), Some(life)) => stun::encode_introduction(&mut self.out, ping.transaction, keys, life),
                _ => stun::encode_ping(&mut self.out, ping.transaction, keys),
            }
            let route = Route { via: ping.via, to: ping.to };
            match ping.ttl {
                // a relay's hops are not ours
                _ if route.via.is_relay() => drop(self.send(core, route, None)),
                None => drop(self.send(core, route, None)),
                // what does not leave now has missed its moment
                Some(hops) => {
                    let source = core.locals.source(route);
                    let sent = |socket: Arc<Socket>| socket.send_within(route.to, source, &self.out, hops);
                    drop(self.sockets.find(route.via).map(sent));
                }
            }
        }
        self.send_questions(core);
        while let Some(event) = core.paths.poll_event() {
            self.handle_path_event(now, core, event);
        }
    }

    /// Says goodbye to every peer: one whose streams are quiet would not hear of the end otherwise. Twice, for nobody answers.
    fn say_goodbye(&mut self, core: &mut Core) {
        for _ in 0..GOODBYES {
            for farewell in core.paths.farewells() {
                self.out.clear();
                let (name, key) = &farewell.keys;
                stun::encode_goodbye(&mut self.out, farewell.transaction, (name, key));
                self.send(core, Route { via: farewell.via, to: farewell.to }, None);
                // a full socket takes no more of them
                if self.blocked.take().is_some() {
                    return;
                }
            }
        }
    }

    /// Resets every connection, tells whoever waits, and lets go of the socket.
    fn finish(&mut self) {
        let inner = self.inner;
        let now = inner.clock.now();
        let mut core = inner.core();
        let all: Vec<_> = core.all().cloned().collect();
        self.blocked = None;
        for conn in all {
            let mut state = conn.lock();
            state.failure.get_or_insert(Reason::ProxyClosed);
            state.utp.abort();
            drop(state);
            self.pump(now, &mut core, &conn);
            core.forget(now, conn.handle);
        }
        self.blocked = None;
        self.say_goodbye(&mut core);
        inner.punches().clear();
        inner.meetings().clear();
    }
}

/// `datagram` as the next packet of the connection that `before` was for.
fn follow<'a>(before: &Packet<'_>, datagram: &'a [u8]) -> Option<Packet<'a>> {
    (classify(datagram) == Kind::Utp).then(|| Endpoint::follow(before, datagram)).flatten()
}

/// A timer that is served so much too late was not late for want of the CPU: the process was stopped.
const PAUSE: Duration = Duration::from_secs(1);
/// POSIX: the datagram is larger than may be sent.
const MESSAGE_SIZE: i32 = libc::EMSGSIZE;
/// What one lost packet must not lose.
const GOODBYES: usize = 2;
/// Received at most in one system call; each buffer takes a whole GRO batch.
const RECEIVE_BUFFERS: usize = 8;
const BUFFER_SIZE: usize = 64 << 10;
/// System calls before sending gets its turn.
const RECEIVE_ROUNDS: usize = 2;
/// Batches of one connection before the next one gets its turn.
const SEND_ROUNDS: usize = 8;
