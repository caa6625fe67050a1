//! Ways for datagrams that are no socket of this machine: a relay carries them. The driver treats one as a socket with a
//! number of its own; whoever carries the datagrams holds the other end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::{Inner, Net};
use crate::addr::{Datagrams, Via};
use crate::error::{Error, Reason, Result, Stage};

/// The carrier's end. Dropping it closes the way: paths over it are given up at once.
#[derive(Debug)]
pub struct Wire {
    pub via: Via,
    /// What is to be carried. The queue is bounded; what finds it full is lost, as with a socket.
    pub outgoing: mpsc::Receiver<Datagrams>,
    /// What has arrived. Use `try_send`: a driver that is behind loses datagrams, as a full socket does.
    pub incoming: mpsc::Sender<(Via, Datagrams)>,
    _end: Option<End>,
}

/// Tells the driver.
#[derive(Debug)]
struct End {
    via: Via,
    inner: Arc<Inner>,
}

/// The driver's ends.
#[derive(Debug)]
pub(super) struct Wires {
    state: Mutex<State>,
    incoming: mpsc::Sender<(Via, Datagrams)>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<(Via, mpsc::Sender<Datagrams>)>,
    closed: Vec<Via>,
    last: u16,
}

impl Net {
    /// A way that the caller carries. Errors: `TooManyConnections`, `ProxyClosed`.
    pub fn open_wire(&self) -> Result<Wire> {
        self.inner.check_open()?;
        let wires = &self.inner.wires;
        let mut state = wires.lock();
        if state.open.len() >= MAX_WIRES {
            let text = "too many relays are in use at once";
            return Err(Error::new(Reason::TooManyConnections, Stage::Setup, text));
        }
        let (sender, outgoing) = mpsc::channel(WIRE_QUEUE);
        // a number comes again after 32,768 relays: nothing is left then of the one that had it
        let via = Via(Via::FIRST_RELAY + state.last);
        state.last = (state.last + 1) % (u16::MAX - Via::FIRST_RELAY);
        state.open.push((via, sender));
        drop(state);
        let end = End { via, inner: self.inner.clone() };
        Ok(Wire { via, outgoing, incoming: wires.incoming.clone(), _end: Some(end) })
    }
}

impl Wire {
    /// One that no driver listens to, with the driver's ends of it: for those who test a carrier.
    pub fn unattached(via: Via) -> (Self, mpsc::Sender<Datagrams>, mpsc::Receiver<(Via, Datagrams)>) {
        let (sender, outgoing) = mpsc::channel(WIRE_QUEUE);
        let (incoming, arrived) = mpsc::channel(WIRE_QUEUE);
        (Self { via, outgoing, incoming, _end: None }, sender, arrived)
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let mut state = self.inner.wires.lock();
        state.open.retain(|(via, _)| *via != self.via);
        state.closed.push(self.via);
        drop(state);
        self.inner.doorbell.ring_plain();
    }
}

impl Wires {
    /// With the queue of what arrives over all of them.
    pub(super) fn new() -> (Self, mpsc::Receiver<(Via, Datagrams)>) {
        let (incoming, queue) = mpsc::channel(WIRE_QUEUE);
        (Self { state: Mutex::default(), incoming }, queue)
    }

    /// False: the way is closed, or its carrier is behind.
    pub(super) fn send(&self, via: Via, datagrams: Datagrams) -> bool {
        let state = self.lock();
        let open = state.open.iter().find(|(other, _)| *other == via);
        open.is_some_and(|(_, sender)| sender.try_send(datagrams).is_ok())
    }

    /// Those that were closed since the last time.
    pub(super) fn take_closed(&self) -> Vec<Via> {
        std::mem::take(&mut self.lock().closed)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Batches waiting in each direction: 32 datagrams each, 10 MB at most.
const WIRE_QUEUE: usize = 256;
/// Datagrams that one batch carries.
pub(super) const WIRE_SEGMENTS: usize = 32;
/// Two relays in use, and those that take their place.
const MAX_WIRES: usize = 16;
