//! Two hosts and a link of 1 Gbit/s and 10 ms, driven as the runtime drives the core: batches of datagrams, wakes, and one
//! deadline a connection. As little besides as possible, for it is counted too.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{EndpointConfig, UtpConfig};
use keynet::time::Time;
use keynet::utp::packet::Packet;
use keynet::utp::{Connection, Endpoint, Handle, ReadOutcome, Routed};

/// Bytes of a request and of its answer.
pub const MESSAGE: usize = 64;

/// What the program at one end does.
pub enum Role {
    /// Writes so many bytes, ends, and waits for the other end.
    Source { left: u64 },
    /// Reads to the end, and ends.
    Sink,
    /// Sends so many messages, each when the answer to the one before is there.
    Asker { left: u32, begun: bool },
    /// Sends back what it reads.
    Echo,
}

pub struct Net {
    now: Time,
    hosts: [Host; 2],
    /// To the host of this index.
    wires: [Wire; 2],
    utp: UtpConfig,
    accepts: fn() -> Role,
    datagrams: u64,
    received: u64,
    /// Empty buffers for batches, so that the allocator is not what is measured.
    spare: Vec<Vec<u8>>,
    scratch: Vec<u8>,
}

struct Host {
    endpoint: Endpoint,
    /// By slot.
    ends: Vec<Option<End>>,
    deadlines: BTreeSet<(Time, usize)>,
}

/// A connection and its program.
struct End {
    handle: Handle,
    connection: Box<Connection>,
    role: Role,
    deadline: Option<Time>,
    finished: bool,
}

struct Wire {
    busy_until: Time,
    loss: u64,
    seed: u64,
    under_way: VecDeque<Batch>,
}

struct Batch {
    arrives: Time,
    bytes: Vec<u8>,
    segment: usize,
}

impl Net {
    /// Host 0 dials host 1, whose programs `accepts` makes. `loss` is the share of data packets that the link loses.
    pub fn new(utp: UtpConfig, loss: f64, accepts: fn() -> Role) -> Self {
        let host = |seed| Host {
            endpoint: Endpoint::new(EndpointConfig::default(), utp.clone(), [seed; 32]),
            ends: Vec::new(),
            deadlines: BTreeSet::new(),
        };
        let wire = |loss: f64| Wire {
            busy_until: Time::ZERO,
            loss: (loss * u64::MAX as f64) as u64,
            seed: 1,
            under_way: VecDeque::new(),
        };
        Self {
            now: Time::from_millis(1),
            hosts: [host(1), host(2)],
            wires: [wire(0.0), wire(loss)],
            utp,
            accepts,
            datagrams: 0,
            received: 0,
            spare: Vec::new(),
            scratch: vec![0; 128 << 10],
        }
    }

    pub fn now(&self) -> Duration {
        self.now.since(Time::ZERO)
    }

    pub fn datagrams(&self) -> u64 {
        self.datagrams
    }

    /// Bytes that programs have read.
    pub fn received(&self) -> u64 {
        self.received
    }

    pub fn connect(&mut self, role: Role) {
        let host = &mut self.hosts[0];
        let dialled = host.endpoint.connect(self.now, RemoteId(1), &self.utp, u16::MAX, None);
        let (handle, connection) = dialled.expect("room for the connections of a workload");
        host.add(handle, Box::new(connection), role);
        self.pump(0, handle.slot());
    }

    /// Until every connection has ended and is forgotten.
    pub fn run(&mut self) {
        while let Some(at) = self.next() {
            self.now = at;
            for to in [0, 1] {
                while self.wires[to].under_way.front().is_some_and(|batch| batch.arrives <= at) {
                    if let Some(batch) = self.wires[to].under_way.pop_front() {
                        self.arrive(to, &batch);
                        self.recycle(batch.bytes);
                    }
                }
            }
            for host in [0, 1] {
                self.hosts[host].endpoint.handle_timeout(at);
                while let Some(&(due, slot)) = self.hosts[host].deadlines.first() {
                    if due > at {
                        break;
                    }
                    if let Some(end) = self.hosts[host].ends[slot].as_mut() {
                        end.connection.handle_timeout(at);
                    }
                    self.pump(host, slot);
                }
            }
        }
        assert!(self.hosts.iter().all(|host| host.endpoint.connections() == 0), "every connection has ended");
    }

    fn next(&self) -> Option<Time> {
        let arrivals = self.wires.iter().filter_map(|wire| wire.under_way.front()).map(|batch| batch.arrives);
        let deadlines = self.hosts.iter().filter_map(|host| host.deadlines.first()).map(|(at, _)| *at);
        arrivals.chain(deadlines).min().map(|at| at.max(self.now))
    }

    fn arrive(&mut self, to: usize, batch: &Batch) {
        let mut before: Option<(usize, Packet<'_>)> = None;
        for datagram in batch.bytes.chunks(batch.segment) {
            let Self { now, hosts, accepts, .. } = self;
            let host = &mut hosts[to];
            let known = before.and_then(|(slot, packet)| Some((slot, Endpoint::follow(&packet, datagram)?)));
            let (slot, packet) = match known {
                Some(known) => known,
                None => match host.endpoint.handle(*now, RemoteId(1 - to as u64), datagram, Origin::default(), None) {
                    Routed::Known(handle, packet) => (handle.slot(), packet),
                    Routed::New(handle, mut connection, packet) => {
                        connection.trust();
                        host.add(handle, connection, accepts());
                        (handle.slot(), packet)
                    }
                    Routed::Answered | Routed::Dropped(_) => {
                        self.reply(to);
                        continue;
                    }
                },
            };
            if let Some(end) = self.hosts[to].ends[slot].as_mut() {
                end.connection.handle_packet(self.now, &packet);
            }
            before = Some((slot, packet));
        }
        if let Some((slot, _)) = before {
            self.pump(to, slot);
        }
    }

    fn reply(&mut self, from: usize) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        match self.hosts[from].endpoint.poll_reply(&mut bytes) {
            Some(_) => self.send(from, bytes, None),
            None => self.recycle(bytes),
        }
    }

    /// Runs the program, sends what there is to send, and sets the deadline anew.
    fn pump(&mut self, host: usize, slot: usize) {
        let Some(end) = self.hosts[host].ends[slot].as_mut() else { return };
        self.received += end.run(&mut self.scratch);
        loop {
            let mut bytes = self.spare.pop().unwrap_or_default();
            let Some(end) = self.hosts[host].ends[slot].as_mut() else { return };
            match end.connection.poll_transmit(self.now, SEGMENTS, &mut bytes) {
                Some(transmit) => self.send(host, bytes, transmit.segment_size),
                None => {
                    self.recycle(bytes);
                    break;
                }
            }
        }
        self.hosts[host].rearm(slot);
    }

    /// Puts a batch on the link: it arrives when its last bit has.
    fn send(&mut self, from: usize, mut bytes: Vec<u8>, segment: Option<usize>) {
        let segment = segment.unwrap_or(bytes.len());
        let wire = &mut self.wires[1 - from];
        self.datagrams += bytes.len().div_ceil(segment) as u64;
        wire.lose(&mut bytes, segment);
        let backlog = wire.busy_until.since(self.now);
        if bytes.is_empty() || backlog > QUEUE {
            self.recycle(bytes);
            return;
        }
        wire.busy_until = wire.busy_until.max(self.now) + Duration::from_nanos(bytes.len() as u64 * NANOS_A_BYTE);
        wire.under_way.push_back(Batch { arrives: wire.busy_until + DELAY, bytes, segment });
    }

    fn recycle(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.spare.push(bytes);
    }
}

impl Wire {
    /// Takes single datagrams out of a batch.
    fn lose(&mut self, bytes: &mut Vec<u8>, segment: usize) {
        if self.loss == 0 {
            return;
        }
        let mut at = 0;
        while at < bytes.len() {
            // Knuth's linear congruential generator: its high bits are good enough to choose by
            self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let end = (at + segment).min(bytes.len());
            if self.seed < self.loss {
                bytes.drain(at..end);
            } else {
                at = end;
            }
        }
    }
}

impl Host {
    fn add(&mut self, handle: Handle, connection: Box<Connection>, role: Role) {
        let slot = handle.slot();
        self.ends.resize_with(self.ends.len().max(slot + 1), || None);
        self.ends[slot] = Some(End { handle, connection, role, deadline: None, finished: false });
    }

    fn rearm(&mut self, slot: usize) {
        let Some(end) = self.ends[slot].as_mut() else { return };
        if let Some(deadline) = end.deadline.take() {
            self.deadlines.remove(&(deadline, slot));
        }
        if end.connection.is_drained() {
            self.endpoint.forget(end.handle);
            self.ends[slot] = None;
            return;
        }
        end.deadline = end.connection.poll_timeout();
        if let Some(deadline) = end.deadline {
            self.deadlines.insert((deadline, slot));
        }
    }
}

impl End {
    /// Returns how many bytes were read.
    fn run(&mut self, scratch: &mut [u8]) -> u64 {
        let wakes = self.connection.take_wakes();
        let mut read = 0;
        if wakes.readable || wakes.ended {
            while let Ok(outcome) = self.connection.read(scratch) {
                match outcome {
                    ReadOutcome::Bytes(count) => {
                        read += count as u64;
                        self.answer(&scratch[..count]);
                    }
                    ReadOutcome::Eof if !self.finished => self.finish(),
                    ReadOutcome::Eof | ReadOutcome::Pending => break,
                }
            }
        }
        if wakes.connected || wakes.writable {
            self.write(scratch);
        }
        read
    }

    fn answer(&mut self, message: &[u8]) {
        match &mut self.role {
            Role::Echo => {
                let _ = self.connection.write(message);
            }
            Role::Asker { left: 0, .. } => self.finish(),
            Role::Asker { left, .. } => {
                *left -= 1;
                let _ = self.connection.write(message);
            }
            Role::Source { .. } | Role::Sink => {}
        }
    }

    fn write(&mut self, scratch: &[u8]) {
        match &mut self.role {
            Role::Source { left } => {
                while *left > 0 {
                    let piece = scratch.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    match self.connection.write(&scratch[..piece]) {
                        Ok(0) | Err(_) => return,
                        Ok(count) => *left -= count as u64,
                    }
                }
                self.finish();
            }
            Role::Asker { left, begun } if !*begun => {
                *begun = true;
                *left -= 1;
                let _ = self.connection.write(&scratch[..MESSAGE]);
            }
            _ => {}
        }
    }

    fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.connection.finish();
        }
    }
}

/// A GSO batch.
const SEGMENTS: usize = 44;
/// 1 Gbit/s; 5 ms each way; a queue of one bandwidth-delay product.
const NANOS_A_BYTE: u64 = 8;
const DELAY: Duration = Duration::from_millis(5);
const QUEUE: Duration = Duration::from_millis(10);
