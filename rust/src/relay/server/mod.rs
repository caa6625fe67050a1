//! A relay: the TURN server of `turn::server` on sockets.
//!
//! | file | what |
//! |---|---|
//! | `udp` | clients over UDP |
//! | `stream` | clients over TCP and TLS |
//! | `relayed` | peers |
//! | `frames` | ChannelData in bulk |
//! | `port`, `ports` | a UDP socket with GSO and GRO; buffers; which ports of relayed addresses are free |
//! | `table` | sockets of relayed addresses, connections of clients |
//!
//! Data moves in batches: what the kernel puts together from one sender is looked up once, gets or loses its headers in one
//! buffer, and leaves in one system call. The lock is held for the look-up only.

mod frames;
mod handshakes;
mod port;
mod ports;
mod relayed;
mod setup;
mod stream;
mod table;
pub mod tls;
mod udp;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::RelayServerConfig;
use crate::error::Result;
use crate::time::Time;
use crate::turn::server::{self as turn, Client, Family, Link, Moment, Outcome, Server};
use frames::Frame;
use port::{Pool, Port};
use table::{Addresses, Table};

pub use setup::{RelayOptions, RelayTls};

/// A running relay. Dropping it stops it too, but does not wait.
pub struct RelayServer {
    state: Mutex<State>,
    bound: setup::Bound,
    closing: watch::Sender<bool>,
}

enum State {
    Running(Arc<Shared>, JoinSet<()>),
    /// With what there was to count.
    Closed(RelayStats),
}

/// Counters since the start, and what there is now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStats {
    pub turn: turn::Stats,
    /// TCP and TLS, now.
    pub connections: u64,
    /// Connections that were closed at once because of a limit.
    pub refused_connections: u64,
    /// Datagrams that a socket did not take: full, or no route.
    pub send_errors: u64,
    /// Batches for clients on TCP that did not read fast enough.
    pub dropped_behind: u64,
}

pub(super) struct Shared {
    core: Mutex<Core>,
    udp: Vec<Port>,
    addresses: Addresses,
    config: RelayServerConfig,
    pool: Pool,
    seats: Mutex<stream::Seats>,
    next_link: AtomicU64,
    /// Buffers in which headers are put before what peers sent.
    wires: Mutex<Vec<Vec<u8>>>,
    start: Instant,
    counters: Counters,
    handshakes: handshakes::Handshakes,
    /// What this machine is called by its operator, beside its interfaces' addresses.
    names: Vec<IpAddr>,
}

pub(super) struct Core {
    server: Server,
    table: Table,
}

#[derive(Default)]
struct Counters {
    refused_connections: AtomicU64,
    send_errors: AtomicU64,
    dropped_behind: AtomicU64,
}

impl RelayServer {
    /// Binds inside a tokio runtime.
    pub fn bind(options: RelayOptions, config: RelayServerConfig) -> Result<Self> {
        let (shared, doors, bound) = setup::bind(options, config)?;
        let closing = watch::Sender::new(false);
        let mut tasks = JoinSet::new();
        let mut spawn = |task: std::pin::Pin<Box<dyn std::future::Future<Output = ()> + Send>>| {
            let mut closed = closing.subscribe();
            tasks.spawn(async move {
                tokio::select! {
                    () = task => {}
                    // an error means that the server was dropped
                    _ = closed.wait_for(|closed| *closed) => {}
                }
            });
        };
        for place in 0..shared.udp.len() {
            spawn(Box::pin(udp::serve(shared.clone(), place as u8)));
        }
        for door in doors {
            spawn(Box::pin(stream::accept(shared.clone(), door)));
        }
        spawn(Box::pin(sweep(shared.clone())));
        spawn(Box::pin(follow_addresses(shared.clone())));
        Ok(Self { state: Mutex::new(State::Running(shared, tasks)), bound, closing })
    }

    /// Where clients are served over UDP, TCP and TLS.
    pub fn bound(&self) -> &setup::Bound {
        &self.bound
    }

    pub fn stats(&self) -> RelayStats {
        match &*self.state() {
            State::Running(shared, _) => shared.stats(),
            State::Closed(stats) => *stats,
        }
    }

    /// New accounts, from now on.
    pub fn set_users(&self, users: turn::Users) {
        if let State::Running(shared, _) = &*self.state() {
            shared.core().server.set_users(users);
        }
    }

    /// Other secrets for names that end, from now on; allocations under those before go on.
    pub fn set_secrets(&self, secrets: Vec<String>) {
        if let State::Running(shared, _) = &*self.state() {
            shared.core().server.set_secrets(secrets);
        }
    }

    /// Ends all allocations and waits for the tasks. A second call returns at once.
    pub async fn close(&self) {
        self.closing.send_replace(true);
        let stats = self.stats();
        let state = std::mem::replace(&mut *self.state(), State::Closed(stats));
        let State::Running(shared, tasks) = state else { return };
        tasks.join_all().await;
        let relayed = shared.core().table.clear();
        for task in relayed {
            // an error is its being aborted
            let _ = task.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RelayServer {
    fn drop(&mut self) {
        // the tasks of relayed addresses hold what they would be ended by
        if let State::Running(shared, _) = &*self.state() {
            shared.core().table.clear();
        }
    }
}

impl Shared {
    fn stats(&self) -> RelayStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let core = self.core();
        RelayStats {
            turn: core.server.stats(),
            connections: core.table.links() as u64,
            refused_connections: read(&self.counters.refused_connections),
            send_errors: read(&self.counters.send_errors),
            dropped_behind: read(&self.counters.dropped_behind),
        }
    }

    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn moment(&self) -> Moment {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Moment { now: self.now(), unix }
    }

    /// A STUN message of a client; what is to be answered.
    pub(super) fn handle(&self, client: &Client, message: &[u8]) -> Option<Vec<u8>> {
        let moment = self.moment();
        let (port, peer, data) = {
            let mut core = self.core();
            let Core { server, table } = &mut *core;
            match server.handle(moment, client, message, table) {
                Outcome::Nothing => return None,
                Outcome::Answer(answer) => return Some(answer),
                Outcome::Relay { allocation, peer, data } => {
                    (table.port(allocation, Family::of(peer.ip()))?, peer, data)
                }
            }
        };
        self.count_lost(port.send(self.addresses.inward(peer), None, data, data.len()));
        None
    }

    /// ChannelData of a client, in `buffer`; the payloads are moved about in it.
    pub(super) fn forward(&self, client: &Client, buffer: &mut [u8], frames: &[Frame]) {
        let mut rest = frames;
        while let Some(first) = rest.first() {
            let (run, others) = rest.split_at(frames::run(rest));
            rest = others;
            let bytes = run.iter().map(|frame| frame.length).sum();
            let found = {
                let now = self.now();
                let mut core = self.core();
                let found = core.server.forward_to_peer(now, client, first.channel, bytes, run.len());
                found.and_then(|(id, peer)| Some((core.table.port(id, Family::of(peer.ip()))?, peer)))
            };
            let Some((port, peer)) = found else { continue };
            let range = frames::join(buffer, run);
            if let Some(contents) = buffer.get(range) {
                self.count_lost(port.send(self.addresses.inward(peer), None, contents, first.length));
            }
        }
    }

    /// To a client: datagrams of `stride` bytes, or what is put into its stream.
    pub(super) fn deliver(&self, client: &Client, contents: &[u8], stride: usize) {
        match client.link {
            Link::Datagrams(place) => {
                if let Some(port) = self.udp.get(usize::from(place)) {
                    self.count_lost(port.send(client.address, client.local, contents, stride));
                }
            }
            Link::Stream(number) => {
                let queue = self.core().table.link(number).cloned();
                if queue.is_some_and(|queue| queue.try_send(contents.to_vec()).is_err()) {
                    self.counters.dropped_behind.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn count_lost(&self, lost: usize) {
        if lost > 0 {
            self.counters.send_errors.fetch_add(lost as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn take_wire(&self) -> Vec<u8> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub(super) fn put_wire(&self, wire: Vec<u8>) {
        let mut all = self.wires.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < WIRES {
            all.push(wire);
        }
    }
}

/// Ends what has expired.
async fn sweep(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let now = shared.now();
        let mut core = shared.core();
        let Core { server, table } = &mut *core;
        server.handle_timeout(now, table);
    }
}

/// This machine's addresses change while it runs: what has become its own is no peer any more.
async fn follow_addresses(shared: Arc<Shared>) {
    let mut last = Vec::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let names = shared.names.clone();
        // reading them blocks for a moment
        let Ok(read) = tokio::task::spawn_blocking(move || setup::own(&names)).await else { return };
        if let Some(own) = read.ok().filter(|own| *own != last) {
            shared.core().server.set_own(own.clone());
            last = own;
        }
    }
}

/// How long an address that the machine has been given may pass for somebody else's. Reading them is a few system calls.
const LOOK: std::time::Duration = std::time::Duration::from_secs(2);
/// As often as the server looks for what has expired.
const SWEEP: std::time::Duration = std::time::Duration::from_secs(1);
/// Receive calls before other tasks have their turn: 16 buffers each.
const BATCHES: usize = 8;
/// As many as there are buffers to receive into (`port.rs`).
const WIRES: usize = 16;
