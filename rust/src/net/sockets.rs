//! The sockets of a node: its own, and those that were opened to search for a way through a NAT, of which one may have found it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::task::Poll;

use super::socket::Socket;
use super::Inner;
use crate::addr::Via;
use crate::config::SocketConfig;
use crate::error::{Error, Reason, Result, Stage};

/// The driver's sockets.
pub struct Sockets {
    main: Arc<Socket>,
    others: Others,
}

/// A snapshot of those beside the main one: the driver waits for them while it changes the list.
#[derive(Clone, Default)]
pub struct Others(Arc<Vec<(Via, Arc<Socket>)>>);

/// Sockets on their way to the driver, and the numbers that are taken.
#[derive(Debug, Default)]
pub struct NewSockets {
    waiting: Vec<(Via, Socket)>,
    open: usize,
    last: u16,
}

impl Sockets {
    pub fn new(main: Socket) -> Self {
        Self { main: Arc::new(main), others: Others::default() }
    }

    pub fn main(&self) -> Arc<Socket> {
        self.main.clone()
    }

    pub fn others(&self) -> Others {
        self.others.clone()
    }

    pub fn find(&self, via: Via) -> Option<Arc<Socket>> {
        if via == Via::MAIN {
            return Some(self.main.clone());
        }
        self.others.0.iter().find(|(other, _)| *other == via).map(|(_, socket)| socket.clone())
    }

    /// Takes over what has been opened since.
    pub fn take_new(&mut self, inner: &Inner) {
        let mut new = inner.new_sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if new.waiting.is_empty() {
            return;
        }
        let mut all = (*self.others.0).clone();
        all.extend(new.waiting.drain(..).map(|(via, socket)| (via, Arc::new(socket))));
        self.others = Others(Arc::new(all));
    }

    pub fn close(&mut self, via: Via, inner: &Inner) {
        let mut all = (*self.others.0).clone();
        let before = all.len();
        all.retain(|(other, _)| *other != via);
        let closed = before - all.len();
        self.others = Others(Arc::new(all));
        inner.new_sockets.lock().unwrap_or_else(PoisonError::into_inner).closed(closed);
    }
}

impl Others {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One that has something to receive. A search has hundreds for some seconds, otherwise there are one or two.
    pub async fn readable(&self) -> Via {
        poll_fn(|cx| {
            let ready = self.0.iter().find(|(_, socket)| socket.poll_readable(cx).is_ready());
            ready.map_or(Poll::Pending, |(via, _)| Poll::Ready(*via))
        })
        .await
    }
}

impl NewSockets {
    /// Opens so many sockets at the address of the node's own, each on a port of its own. Errors: `Unreachable`, when the
    /// system gives no more, or so many are open that a search has to wait.
    pub fn open(&mut self, count: usize, beside: SocketAddr, config: &SocketConfig) -> Result<Vec<Via>> {
        let count = count.min(MAX_OTHERS.saturating_sub(self.open));
        let mut opened = Vec::with_capacity(count);
        for _ in 0..count {
            let address = SocketAddr::new(beside.ip(), 0);
            let Ok(socket) = Socket::bind(address, config) else { break };
            // numbers are used again after 32,767 sockets: those of searches are closed by then
            self.last = if self.last + 1 < Via::FIRST_RELAY { self.last + 1 } else { 1 };
            opened.push(Via(self.last));
            self.waiting.push((Via(self.last), socket));
        }
        self.open += opened.len();
        if opened.is_empty() {
            let text = "no sockets are left to search for a way through the NAT";
            return Err(Error::new(Reason::TooManyConnections, Stage::Punch, text));
        }
        Ok(opened)
    }

    fn closed(&mut self, count: usize) {
        self.open = self.open.saturating_sub(count);
    }
}

/// Two searches of 256 sockets (PUNCH.md: one at a time), or many paths that were found by one each.
const MAX_OTHERS: usize = 512;
