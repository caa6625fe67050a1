//! The sockets of a node: its own, and those that were opened to search for a way through a NAT, of which one may have found it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::task::Poll;

use super::socket::Socket;
use super::Inner;
use crate::addr::Via;
use crate::config::SocketConfig;

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
    /// All that are open, the driver's too, the oldest first.
    open: Vec<Via>,
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
        let mut new = inner.new_sockets();
        if new.waiting.is_empty() {
            return;
        }
        let mut all = (*self.others.0).clone();
        all.extend(new.waiting.drain(..).map(|(via, socket)| (via, Arc::new(socket))));
        self.others = Others(Arc::new(all));
    }

    pub fn close(&mut self, via: Via, inner: &Inner) {
        let mut all = (*self.others.0).clone();
        all.retain(|(other, _)| *other != via);
        self.others = Others(Arc::new(all));
        inner.new_sockets().closed(via);
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
    /// Opens sockets at the address of the node's own, each on a port of its own, until there are so many; fewer where the system gives no
    /// more, or there are as many as there may be.
    pub fn open_up_to(&mut self, count: usize, beside: SocketAddr, config: &SocketConfig) {
        while self.open.len() < count.min(MAX_OTHERS) {
            let address = SocketAddr::new(beside.ip(), 0);
            let socket = match Socket::bind(address, config) {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::info!(%error, open = self.open.len(), "a search makes do with fewer sockets");
                    return;
                }
            };
            // numbers are used again after 32,767 sockets; one that is still open is passed over
            loop {
                self.last = if self.last + 1 < Via::FIRST_RELAY { self.last + 1 } else { 1 };
                if !self.open.contains(&Via(self.last)) {
                    break;
                }
            }
            self.open.push(Via(self.last));
            self.waiting.push((Via(self.last), socket));
        }
    }

    /// Up to so many of those that are open, the newest first: a symmetric NAT gives each destination another port, so one socket serves as
    /// many searches as there are.
    pub fn share(&self, count: usize) -> Vec<Via> {
        self.open.iter().rev().take(count).copied().collect()
    }

    fn closed(&mut self, via: Via) {
        self.open.retain(|other| *other != via);
        self.waiting.retain(|(other, _)| *other != via);
    }
}

impl Inner {
    pub(super) fn new_sockets(&self) -> MutexGuard<'_, NewSockets> {
        self.new_sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets of a search (256), and as many that have found a path: those serve further searches too.
const MAX_OTHERS: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_share_their_sockets_and_never_fail_for_want_of_them() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _inside = runtime.enter();
        let beside: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut sockets = NewSockets::default();
        let config = SocketConfig::default();
        for _ in 0..10 {
            sockets.open_up_to(64, beside, &config);
            assert_eq!(sockets.share(64).len(), 64);
        }
        assert_eq!(sockets.open.len(), 64, "ten searches have what one has");
        sockets.closed(Via(1));
        sockets.open_up_to(64, beside, &config);
        assert_eq!(sockets.open.len(), 64);
        assert_eq!(sockets.share(1_000).len(), 64, "a search makes do with what there is");
        // none can be bound at an address of somebody else
        let mut none = NewSockets::default();
        none.open_up_to(64, "192.0.2.1:0".parse().unwrap(), &config);
        assert_eq!(none.share(64), []);
    }
}
