//! An allocation at work: one task moves datagrams between a wire of the core and the relay, until either ends.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{oneshot, watch, Notify};
use tokio::task::JoinHandle;

use super::lease::{sleep_or_wait, Lease, Open};
use crate::addr::Datagrams;
use crate::error::{Error, Reason, Stage};
use crate::net::Wire;
use crate::turn::client::{Batches, Event};

/// How an allocation is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarryState {
    Carrying,
    /// The relay is gone, or does not want us any more.
    Lost(Error),
    /// It was given back.
    Closed,
}

/// What an allocation has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarryStats {
    pub datagrams_in: u64,
    pub bytes_in: u64,
    pub datagrams_out: u64,
    pub bytes_out: u64,
    /// Datagrams that a full queue, a full table or a rule of the relay let fall, either way.
    pub dropped: u64,
    /// Peers that are remembered.
    pub peers: u64,
    /// Peers with a channel and a permission just now.
    pub channels: u64,
}

/// A task that carries. Dropping it gives the allocation back, in the background.
#[derive(Debug)]
pub struct Carrier {
    state: watch::Receiver<CarryState>,
    counters: Arc<Counters>,
    /// The relay is to be asked whether it is there.
    doubt: Arc<Notify>,
    /// Dropped: the task is to end.
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Carrier {
    pub(super) fn start(lease: Lease, wire: Wire) -> Self {
        let (tell, state) = watch::channel(CarryState::Carrying);
        let (stop, stopped) = oneshot::channel();
        let (counters, doubt) = (Arc::new(Counters::default()), Arc::new(Notify::new()));
        let work = Work { wire, counters: counters.clone(), doubt: doubt.clone(), batches: Batches::default() };
        let task = tokio::spawn(async move {
            let mut lease = lease;
            let ended = work.run(&mut lease, stopped).await;
            if ended == CarryState::Closed {
                lease.release().await;
            }
            tell.send_replace(ended);
        });
        Self { state, counters, doubt, stop: Some(stop), task }
    }

    /// The state, now and when it changes.
    pub fn state(&self) -> watch::Receiver<CarryState> {
        self.state.clone()
    }

    pub fn stats(&self) -> CarryStats {
        self.counters.read()
    }

    /// Has the relay asked whether the allocation still stands, now and not when it is due.
    pub fn probe(&self) {
        self.doubt.notify_one();
    }

    /// Gives the allocation back and waits until that is done: two seconds at most.
    pub async fn close(mut self) {
        drop(self.stop.take());
        let _ = (&mut self.task).await;
    }
}

#[derive(Debug, Default)]
struct Counters {
    datagrams_in: AtomicU64,
    bytes_in: AtomicU64,
    datagrams_out: AtomicU64,
    bytes_out: AtomicU64,
    dropped: AtomicU64,
    peers: AtomicU64,
    channels: AtomicU64,
}

impl Counters {
    fn read(&self) -> CarryStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CarryStats {
            datagrams_in: read(&self.datagrams_in),
            bytes_in: read(&self.bytes_in),
            datagrams_out: read(&self.datagrams_out),
            bytes_out: read(&self.bytes_out),
            dropped: read(&self.dropped),
            peers: read(&self.peers),
            channels: read(&self.channels),
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn count(datagrams: &Datagrams) -> u64 {
    datagrams.contents.len().div_ceil(datagrams.stride.max(1)) as u64
}

struct Work {
    wire: Wire,
    counters: Arc<Counters>,
    doubt: Arc<Notify>,
    batches: Batches,
}

impl Work {
    async fn run(mut self, lease: &mut Lease, mut stopped: oneshot::Receiver<()>) -> CarryState {
        let Some(open) = lease.open() else { return CarryState::Closed };
        loop {
            add(&self.counters.dropped, open.flush() + std::mem::take(&mut open.session.dropped));
            while let Some(event) = open.session.poll_event() {
                match event {
                    Event::Failed(error) => return CarryState::Lost(error),
                    Event::Deleted => return CarryState::Closed,
                    Event::Allocated(_) | Event::Redirected(_) => {}
                }
            }
            if std::mem::take(&mut open.session.peers_changed) {
                self.count_peers(open);
            }
            let timeout = open.session.poll_timeout();
            tokio::select! {
                ready = open.link.ready() => {
                    let received = ready.and_then(|()| self.receive(open));
                    match received {
                        Ok(true) => {}
                        Ok(false) => return CarryState::Closed,
                        Err(error) => return CarryState::Lost(lost(&error)),
                    }
                }
                datagrams = self.wire.outgoing.recv(), if open.link.is_writable() => match datagrams {
                    Some(datagrams) => self.send(open, datagrams),
                    None => return CarryState::Closed,
                },
                () = sleep_or_wait(&open.clock, timeout) => open.session.handle_timeout(open.clock.now()),
                () = self.doubt.notified() => open.session.probe(open.clock.now()),
                _ = &mut stopped => return CarryState::Closed,
            }
        }
    }

    fn send(&mut self, open: &mut Open, first: Datagrams) {
        let now = open.clock.now();
        let (mut next, mut rounds) = (Some(first), 0);
        while let Some(datagrams) = next {
            add(&self.counters.datagrams_out, count(&datagrams));
            add(&self.counters.bytes_out, datagrams.contents.len() as u64);
            open.session.handle_outgoing(now, datagrams);
            add(&self.counters.dropped, open.flush());
            rounds += 1;
            let more = rounds < SEND_ROUNDS && open.link.is_writable();
            next = if more { self.wire.outgoing.try_recv().ok() } else { None };
        }
    }

    /// Hands on what the relay has brought; false: nobody wants it any more.
    fn receive(&mut self, open: &mut Open) -> std::io::Result<bool> {
        let now = open.clock.now();
        let (session, batches) = (&mut open.session, &mut self.batches);
        let received = open.link.receive(|packet| {
            let from_peer: Option<(SocketAddr, &[u8])> = session.handle_packet(now, packet);
            if let Some((peer, datagram)) = from_peer {
                batches.push(peer, datagram);
            }
        });
        for datagrams in self.batches.drain() {
            let (number, bytes) = (count(&datagrams), datagrams.contents.len() as u64);
            match self.wire.incoming.try_reserve() {
                Ok(place) => {
                    add(&self.counters.datagrams_in, number);
                    add(&self.counters.bytes_in, bytes);
                    place.send((self.wire.via, datagrams));
                }
                Err(TrySendError::Full(_)) => add(&self.counters.dropped, number),
                Err(TrySendError::Closed(_)) => return Ok(false),
            }
        }
        received.map(|()| true)
    }

    fn count_peers(&self, open: &Open) {
        let (peers, channels) = open.session.peers(open.clock.now());
        self.counters.peers.store(peers as u64, Ordering::Relaxed);
        self.counters.channels.store(channels as u64, Ordering::Relaxed);
    }
}

fn lost(error: &std::io::Error) -> Error {
    let what = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "the relay closed the connection".to_owned(),
        _ => format!("the connection to the relay broke: {error}"),
    };
    Error::new(Reason::RelayLost, Stage::Relay, what)
}

/// Batches that leave before what has arrived gets its turn.
const SEND_ROUNDS: usize = 16;
