//! A uTP connection as the driver and the application share it: the state machine under a lock, and who waits for what.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::sync::Notify;

use crate::addr::{Incarnation, NodeId, RemoteId};
use crate::error::Reason;
use crate::time::Time;
use crate::utp::{Connection, End, Handle, Turn, Wakes};

/// One connection; the driver and its [`super::UtpStream`] hold it.
#[derive(Debug)]
pub struct Conn {
    pub handle: Handle,
    pub remote: RemoteId,
    state: Mutex<ConnState>,
}

#[derive(Debug)]
pub struct ConnState {
    pub utp: Connection,
    pub reader: Option<Waker>,
    pub writer: Option<Waker>,
    /// In the driver's list of connections to look at.
    pub queued: bool,
    pub turn: Turn,
    /// The earliest entry of this connection in the driver's timers.
    pub timer: Option<Time>,
    /// Why it broke, when the reason is not the state machine's.
    pub failure: Option<Reason>,
    /// Whom it leads to, and which life of that node.
    pub life: Option<(NodeId, Incarnation)>,
}

impl Conn {
    pub fn new(handle: Handle, utp: Connection) -> Self {
        let remote = utp.remote();
        let state = ConnState {
            utp,
            reader: None,
            writer: None,
            queued: false,
            turn: Turn::RESTED,
            timer: None,
            failure: None,
            life: None,
        };
        Self { handle, remote, state: Mutex::new(state) }
    }

    /// No code panics while it holds this lock; if one ever does, the others go on with what is there.
    pub fn lock(&self) -> MutexGuard<'_, ConnState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnState {
    /// Wakes whoever waits for what has become possible.
    pub fn wake(&mut self, wakes: Wakes) {
        if wakes.readable || wakes.ended || wakes.connected {
            if let Some(waker) = self.reader.take() {
                waker.wake();
            }
        }
        if wakes.writable || wakes.ended || wakes.connected {
            if let Some(waker) = self.writer.take() {
                waker.wake();
            }
        }
    }

    /// Breaks the connection for a reason of the path's or ours, without a word on the wire.
    pub fn fail(&mut self, reason: Reason) {
        self.failure.get_or_insert(reason);
        self.utp.give_up(End::Unanswered);
    }

    /// Why it is over, in the words of everybody else; `None` while it lives or when it ended well.
    pub fn reason(&self) -> Option<Reason> {
        let end = self.utp.end()?;
        if let Some(reason) = self.failure {
            return Some(reason);
        }
        match end {
            End::Finished => None,
            End::Refused => Some(Reason::ConnectRefused),
            End::ConnectTimeout => Some(Reason::ConnectTimeout),
            End::Unanswered | End::Idle => Some(Reason::PeerLost),
            End::Reset => Some(Reason::PeerReset),
            End::Aborted => Some(Reason::Cancelled),
        }
    }
}

/// How the application tells the driver that a connection has something to do.
#[derive(Debug, Default)]
pub struct Doorbell {
    queue: Mutex<Vec<Arc<Conn>>>,
    bell: Notify,
}

impl Doorbell {
    /// Asks for a look at `conn`; the caller holds its lock.
    pub fn ring(&self, conn: &Arc<Conn>, state: &mut ConnState) {
        if !std::mem::replace(&mut state.queued, true) {
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(conn.clone());
            self.bell.notify_one();
        }
    }

    /// Asks for a look at everything else: paths, closing.
    pub fn ring_plain(&self) {
        self.bell.notify_one();
    }

    pub async fn rung(&self) {
        self.bell.notified().await;
    }

    pub fn take(&self, into: &mut Vec<Arc<Conn>>) {
        into.append(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
