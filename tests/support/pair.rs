//! Two hosts with an endpoint each, a path between them, and programs that write and read. Programs are woken only by
//! [`keynet::utp::Wakes`], as in the runtime, so that a forgotten wake shows as a transfer that stops.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::Duration;

use keynet::addr::{Origin, RemoteId};
use keynet::config::{EndpointConfig, UtpConfig};
use keynet::time::Time;
use keynet::utp::packet::Kind;
use keynet::utp::{Connection, End, Endpoint, Handle, PathKey, ReadOutcome, Routed, TagKeys, UtpStats};

use super::link::{Link, LinkConfig};
use super::rng::{fill, Rng};

pub const A: usize = 0;
pub const B: usize = 1;

/// A program at one end of a connection.
#[derive(Clone, Debug)]
pub struct App {
    /// Which test stream it writes, and which it expects to read.
    pub writes: u64,
    pub expects: u64,
    /// Bytes to write, and whether the direction ends after them.
    pub to_write: u64,
    pub finish: bool,
    /// Nothing is read while this is set.
    pub paused: bool,
    /// Bytes per read call.
    pub gulp: usize,
    /// What is read is not looked at (for measurements).
    pub trusting: bool,
    pub written: u64,
    pub read: u64,
    pub eof: bool,
    pub finished: bool,
    /// What the last failed call said.
    pub failed: Option<End>,
    pub first_read: Option<Time>,
    pub last_read: Option<Time>,
    /// Kept by what the connection's wakes said.
    pub can_read: bool,
    pub can_write: bool,
}

impl Default for App {
    fn default() -> Self {
        Self {
            writes: 0,
            expects: 0,
            to_write: 0,
            finish: true,
            paused: false,
            gulp: 64 << 10,
            trusting: false,
            written: 0,
            read: 0,
            eof: false,
            finished: false,
            failed: None,
            first_read: None,
            last_read: None,
            can_read: true,
            can_write: true,
        }
    }
}

impl App {
    /// Writes `bytes` and ends its direction.
    pub fn sending(bytes: u64) -> Self {
        Self { to_write: bytes, ..Self::default() }
    }

    pub fn is_done(&self) -> bool {
        self.failed.is_some() || (self.eof && self.finished)
    }

    fn run(&mut self, now: Time, connection: &mut Connection, buffer: &mut [u8]) {
        let wakes = connection.take_wakes();
        self.can_read |= wakes.readable | wakes.ended;
        self.can_write |= wakes.writable | wakes.connected | wakes.ended;
        self.write(connection, buffer);
        self.read(now, connection, buffer);
    }

    fn write(&mut self, connection: &mut Connection, buffer: &mut [u8]) {
        while self.can_write && self.written < self.to_write && self.failed.is_none() {
            // only as much as will be taken is made up; a full connection is still asked, and must say so
            let wanted = buffer.len().min((self.to_write - self.written) as usize).min(connection.writable().max(1));
            fill(self.writes, self.written, &mut buffer[..wanted]);
            match connection.write(&buffer[..wanted]) {
                Ok(0) => self.can_write = false,
                Ok(count) => self.written += count as u64,
                Err(end) => self.failed = Some(end),
            }
        }
        if self.finish && !self.finished && self.written >= self.to_write && self.failed.is_none() {
            connection.finish();
            self.finished = true;
        }
    }

    fn read(&mut self, now: Time, connection: &mut Connection, buffer: &mut [u8]) {
        while self.can_read && !self.paused && !self.eof {
            let gulp = self.gulp.min(buffer.len() / 2);
            let (got, expected) = buffer.split_at_mut(gulp);
            match connection.read(got) {
                Ok(ReadOutcome::Bytes(count)) => {
                    if !self.trusting {
                        fill(self.expects, self.read, &mut expected[..count]);
                        assert!(got[..count] == expected[..count], "wrong bytes within {} + {count}", self.read);
                    }
                    self.read += count as u64;
                    self.first_read.get_or_insert(now);
                    self.last_read = Some(now);
                }
                Ok(ReadOutcome::Pending) => self.can_read = false,
                Ok(ReadOutcome::Eof) => self.eof = true,
                Err(end) => {
                    self.failed.get_or_insert(end);
                    self.can_read = false;
                }
            }
        }
    }
}

/// A host's clock beside the true one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset: Duration,
    /// Parts per million that it runs fast, or slow.
    pub fast: i64,
}

impl Clock {
    /// Nanoseconds of its own for 1,000,000 of true ones.
    fn pace(&self) -> u128 {
        u128::from(1_000_000u64.saturating_add_signed(self.fast))
    }

    fn local(&self, now: Time) -> Time {
        let nanos = u128::from(now.as_nanos()) * self.pace() / 1_000_000;
        Time::ZERO + self.offset + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The first true moment at which this clock shows `local`.
    fn global(&self, local: Time) -> Time {
        let since = local.since(Time::ZERO + self.offset).as_nanos();
        Time::from_nanos(u64::try_from((since * 1_000_000).div_ceil(self.pace())).unwrap_or(u64::MAX))
    }
}

pub struct Host {
    pub endpoint: Endpoint,
    pub connections: BTreeMap<Handle, Box<Connection>>,
    pub apps: HashMap<Handle, App>,
    /// How connections that were drained ended.
    pub ends: HashMap<Handle, (End, UtpStats)>,
    pub clock: Clock,
    /// The program of an accepted connection.
    pub template: App,
    /// In the order of acceptance or dialling.
    pub handles: Vec<Handle>,
    /// What both hosts are taken to know: connections start without waiting.
    pub shared_key: Option<[u8; 32]>,
    remote: RemoteId,
}

pub struct Pair {
    pub now: Time,
    pub hosts: [Host; 2],
    /// From A to B, and back: path 0.
    pub links: [Link; 2],
    /// Paths 1 and up.
    pub detours: Vec<[Link; 2]>,
    /// The path that each host sends over.
    pub over: [usize; 2],
    pub datagrams: u64,
    pub max_segments: usize,
    /// Acceptors trust whoever connects, at once.
    pub trust: bool,
    /// As many connections lead to the peer as far as the connections know, and it gives signs of life all the time.
    pub company: Option<usize>,
    arrivals: BinaryHeap<Reverse<(Time, u64)>>,
    /// Where they go, by the order of sending.
    bodies: BTreeMap<u64, (usize, Vec<u8>)>,
    next_body: u64,
    buffer: Vec<u8>,
    steps_at_once: u32,
}

impl Pair {
    pub fn new(seed: u64, utp: &UtpConfig, there: LinkConfig, back: LinkConfig) -> Self {
        let mut rng = Rng::new(seed);
        let mut host = |remote| Host {
            endpoint: Endpoint::new(EndpointConfig::default(), utp.clone(), rng.bytes32()),
            connections: BTreeMap::new(),
            apps: HashMap::new(),
            ends: HashMap::new(),
            clock: Clock { offset: Duration::from_nanos(rng.below(1 << 44)), fast: 0 },
            template: App::default(),
            shared_key: None,
            handles: Vec::new(),
            remote: RemoteId(remote),
        };
        let hosts = [host(2), host(1)];
        let links = [Link::new(there, rng.next()), Link::new(back, rng.next())];
        Self {
            now: Time::from_millis(1),
            hosts,
            links,
            detours: Vec::new(),
            over: [0, 0],
            datagrams: 0,
            max_segments: 44,
            trust: true,
            company: None,
            arrivals: BinaryHeap::new(),
            bodies: BTreeMap::new(),
            next_body: 0,
            buffer: vec![0; 256 << 10],
            steps_at_once: 0,
        }
    }

    /// The same link in both directions.
    pub fn symmetric(seed: u64, utp: &UtpConfig, link: LinkConfig) -> Self {
        Self::new(seed, utp, link.clone(), link)
    }

    /// A connection from `from` to the other host.
    pub fn connect(&mut self, from: usize, utp: &UtpConfig, app: App) -> Handle {
        let host = &mut self.hosts[from];
        let now = host.clock.local(self.now);
        let (handle, mut connection) = host
            .endpoint
            .connect(now, host.remote, utp, u16::MAX, host.shared_key.as_ref())
            .expect("room for a connection");
        connection.handle_path(now, PathKey(self.over[from] as u64), u16::MAX, true);
        host.connections.insert(handle, Box::new(connection));
        host.apps.insert(handle, app);
        host.handles.push(handle);
        self.pump(from);
        handle
    }

    /// What TLS does for the `n`-th connection of both hosts, of which `dialler` has started it: they have keys for tags, and the
    /// acceptor knows that the dialler has them.
    pub fn tag(&mut self, dialler: usize, n: usize) {
        let secret: [u8; 32] = std::array::from_fn(|byte| (byte + n) as u8);
        for host in [dialler, 1 - dialler] {
            let handle = self.hosts[host].handles[n];
            let connection = self.hosts[host].connections.get_mut(&handle).expect("a connection");
            connection.set_tag_keys(TagKeys::new(&secret, host == dialler));
            if host != dialler {
                connection.start_tags();
            }
        }
        self.pump(1 - dialler);
    }

    /// Connections that a host has or had.
    pub fn app_count(&self, host: usize) -> usize {
        self.hosts[host].handles.len()
    }

    /// The `n`-th connection of a host, while it lasts.
    pub fn connection(&mut self, host: usize, n: usize) -> Option<&mut Connection> {
        let handle = *self.hosts[host].handles.get(n)?;
        self.hosts[host].connections.get_mut(&handle).map(Box::as_mut)
    }

    /// One more way between the hosts, the same in both directions: its number.
    pub fn add_path(&mut self, seed: u64, link: LinkConfig) -> usize {
        self.detours.push([Link::new(link.clone(), seed), Link::new(link, seed ^ 1)]);
        self.detours.len()
    }

    /// What carries the datagrams of a host over this path.
    pub fn link(&mut self, path: usize, from: usize) -> &mut Link {
        match path.checked_sub(1) {
            None => &mut self.links[from],
            Some(n) => &mut self.detours[n][from],
        }
    }

    /// A host sends over another path from now on.
    pub fn move_to(&mut self, host: usize, path: usize, old_alive: bool) {
        let now = self.local_now(host);
        self.over[host] = path;
        for connection in self.hosts[host].connections.values_mut() {
            connection.handle_path(now, PathKey(path as u64), u16::MAX, old_alive);
        }
        self.pump(host);
    }

    /// The path of a host had been silent and answers.
    pub fn path_back(&mut self, host: usize) {
        let now = self.local_now(host);
        self.hosts[host].connections.values_mut().for_each(|connection| connection.handle_path_back(now));
        self.pump(host);
    }

    pub fn local_now(&self, host: usize) -> Time {
        self.hosts[host].clock.local(self.now)
    }

    pub fn app(&mut self, host: usize, n: usize) -> &mut App {
        let handle = self.hosts[host].handles[n];
        self.hosts[host].apps.get_mut(&handle).expect("apps stay")
    }

    /// Runs the programs of a host and sends what its connections have to send.
    pub fn pump(&mut self, host: usize) {
        let now = self.local_now(host);
        let handles: Vec<Handle> = self.hosts[host].connections.keys().copied().collect();
        for handle in handles {
            self.pump_one(host, handle, now);
        }
    }

    fn pump_one(&mut self, host: usize, handle: Handle, now: Time) {
        let Host { connections, apps, .. } = &mut self.hosts[host];
        let Some(connection) = connections.get_mut(&handle) else { return };
        if let Some(app) = apps.get_mut(&handle) {
            app.run(self.now, connection, &mut self.buffer);
        }
        let mut out = Vec::new();
        let mut batches = 0;
        loop {
            out.clear();
            let Some(connection) = self.hosts[host].connections.get_mut(&handle) else { break };
            let Some(transmit) = connection.poll_transmit(now, self.max_segments, &mut out) else { break };
            assert!(transmit.len == out.len() && !out.is_empty(), "{transmit:?} does not describe {} bytes", out.len());
            batches += 1;
            assert!(batches < 100_000, "poll_transmit never ends");
            for datagram in out.chunks(transmit.segment_size.unwrap_or(out.len())) {
                self.transmit(host, datagram, transmit.may_fragment);
            }
        }
        self.reap(host, handle);
    }

    /// Forgets a drained connection once its program has seen the end.
    fn reap(&mut self, host: usize, handle: Handle) {
        let Host { endpoint, connections, apps, ends, .. } = &mut self.hosts[host];
        let Some(connection) = connections.get_mut(&handle) else { return };
        if !connection.is_drained() {
            return;
        }
        if let Some(app) = apps.get_mut(&handle) {
            app.run(self.now, connection, &mut self.buffer);
            if app.paused && connection.readable() > 0 {
                return;
            }
        }
        let end = connection.end().expect("drained connections have ended");
        let stats = connection.stats();
        assert_eq!(stats.in_flight, 0, "in flight after the end");
        ends.insert(handle, (end, stats));
        connections.remove(&handle);
        endpoint.forget(handle);
    }

    pub fn transmit(&mut self, from: usize, datagram: &[u8], may_fragment: bool) {
        let to = 1 - from;
        self.datagrams += 1;
        let Self { links, detours, over, arrivals, bodies, next_body, now, .. } = self;
        let link = match over[from].checked_sub(1) {
            None => &mut links[from],
            Some(n) => &mut detours[n][from],
        };
        link.send(*now, datagram, may_fragment, |at, body| {
            bodies.insert(*next_body, (to, body));
            arrivals.push(Reverse((at, *next_body)));
            *next_body += 1;
        });
    }

    /// How many datagrams are under way.
    pub fn under_way(&self) -> usize {
        self.bodies.len()
    }

    /// Takes the `n`-th datagram under way off the path, by the order of sending: which host it is for, and its bytes.
    pub fn intercept(&mut self, n: usize) -> Option<(usize, Vec<u8>)> {
        let body = *self.bodies.keys().nth(n)?;
        self.bodies.remove(&body)
    }

    /// A datagram arrives now, wherever it comes from.
    pub fn arrive(&mut self, host: usize, datagram: &[u8]) {
        let now = self.local_now(host);
        let (trust, path) = (self.trust, PathKey(self.over[host] as u64));
        let Host { endpoint, connections, apps, handles, template, remote, shared_key, .. } = &mut self.hosts[host];
        let handle = match endpoint.handle(now, *remote, datagram, Origin::default(), shared_key.as_ref()) {
            Routed::Known(handle, packet) => {
                if let Some(connection) = connections.get_mut(&handle) {
                    if let Some(key) = shared_key.as_ref().filter(|_| packet.header.kind == Kind::Reset) {
                        connection.handle_signed_reset(&packet, key);
                    }
                    connection.handle_packet(now, &packet);
                }
                Some(handle)
            }
            Routed::New(handle, mut connection, packet) => {
                connection.handle_path(now, path, u16::MAX, true);
                connection.handle_packet(now, &packet);
                if trust {
                    connection.trust();
                }
                connections.insert(handle, connection);
                apps.insert(handle, template.clone());
                handles.push(handle);
                Some(handle)
            }
            Routed::Answered | Routed::Dropped(_) => None,
        };
        let mut reply = Vec::new();
        while self.hosts[host].endpoint.poll_reply(&mut reply).is_some() {
            self.transmit(host, &reply, false);
            reply.clear();
        }
        if let Some(handle) = handle {
            self.pump_one(host, handle, now);
        }
    }

    /// When something happens next.
    pub fn next(&self) -> Option<Time> {
        let arrival = self.arrivals.peek().map(|Reverse((at, _))| *at);
        let timers = self.hosts.iter().flat_map(|host| {
            let connections = host.connections.values().filter_map(|connection| connection.poll_timeout());
            connections.chain(host.endpoint.poll_timeout()).map(|at| host.clock.global(at))
        });
        timers.chain(arrival).min().map(|at| at.max(self.now))
    }

    /// Goes to the next moment and does what is due then. False when nothing will ever happen again.
    pub fn step(&mut self) -> bool {
        let Some(at) = self.next() else { return false };
        self.steps_at_once = if at > self.now { 0 } else { self.steps_at_once + 1 };
        assert!(
            self.steps_at_once < 10_000,
            "busy loop: a timer that is due again at once; {:?}",
            self.hosts[0].connections
        );
        self.now = at;
        while let Some(Reverse((due, body))) = self.arrivals.peek().copied() {
            if due > at {
                break;
            }
            self.arrivals.pop();
            // unless it was delivered out of turn
            if let Some((host, datagram)) = self.bodies.remove(&body) {
                self.arrive(host, &datagram);
            }
        }
        for host in [A, B] {
            let now = self.local_now(host);
            self.hosts[host].endpoint.handle_timeout(now);
            let due: Vec<Handle> = self.hosts[host]
                .connections
                .iter()
                .filter(|(_, connection)| connection.poll_timeout().is_some_and(|at| at <= now))
                .map(|(handle, _)| *handle)
                .collect();
            for handle in due {
                if let Some(connection) = self.hosts[host].connections.get_mut(&handle) {
                    if let Some(connections) = self.company {
                        connection.note_company(now, connections);
                    }
                    connection.handle_timeout(now);
                }
                self.pump_one(host, handle, now);
            }
        }
        true
    }

    /// Runs until the condition holds. Panics when the time is up or nothing happens any more.
    pub fn run_until(&mut self, limit: Duration, mut condition: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !condition(self) {
            let before = self.now;
            assert!(self.step(), "nothing will happen any more at {before:?}:\n{}", self.describe());
            assert!(self.now <= end, "not done after {limit:?} of virtual time:\n{}", self.describe());
        }
    }

    /// Runs for this long.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until every connection is drained and forgotten.
    pub fn run_out(&mut self, limit: Duration) {
        self.run_until(limit, |pair| pair.hosts.iter().all(|host| host.connections.is_empty()));
        for host in &self.hosts {
            assert_eq!(host.endpoint.connections(), 0);
        }
    }

    /// Lets everything come to its end, half-open connections too. After damage the programs give up first: an ack or a
    /// selective ack that damage made up loses data for good, and a peer whose buffer is full of what follows may say so for
    /// ever, as in TCP.
    pub fn wind_up(&mut self, damaged: bool) {
        if damaged {
            self.run_for(Duration::from_secs(200));
            for host in [A, B] {
                self.hosts[host].connections.values_mut().for_each(|connection| connection.abort());
                self.pump(host);
            }
        }
        self.run_out(Duration::from_secs(1_000));
        self.run_for(Duration::from_secs(60));
        for host in [A, B] {
            assert_eq!(self.hosts[host].endpoint.half_open(), 0);
        }
    }

    pub fn end(&self, host: usize, n: usize) -> Option<End> {
        self.hosts[host].ends.get(&self.hosts[host].handles[n]).map(|(end, _)| *end)
    }

    pub fn stats(&self, host: usize, n: usize) -> UtpStats {
        let handle = self.hosts[host].handles[n];
        match self.hosts[host].connections.get(&handle) {
            Some(connection) => connection.stats(),
            None => self.hosts[host].ends[&handle].1,
        }
    }

    /// For messages of failed tests.
    pub fn describe(&self) -> String {
        let mut text = format!("at {:.6} s", self.now.since(Time::ZERO).as_secs_f64());
        for (name, host) in ["A", "B"].iter().zip(&self.hosts) {
            for (handle, connection) in &host.connections {
                let app = &host.apps[handle];
                let timer = connection.poll_timeout().map(|at| host.clock.global(at).since(self.now));
                if std::env::var_os("KEYNET_DEBUG").is_some() {
                    text += &format!("\nDEBUG {connection:?}");
                }
                text += &format!(
                    "\n{name} {:?} next timer in {timer:?}\n  {app:?}\n  {:?}",
                    connection.state(),
                    connection.stats()
                );
            }
            text += &format!("\n{name} ends: {:?}", host.ends.values().map(|(end, _)| end).collect::<Vec<_>>());
        }
        text
    }
}
