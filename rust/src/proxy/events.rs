//! What a proxy tells its subscribers.

use std::net::SocketAddr;

use tokio::sync::broadcast;

use super::registry::{ConnectionInfo, Role};
use crate::addr::NodeId;
use crate::error::{Error, Reason};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A path to a node is proven, where there was none before.
    PeerConnected { node: NodeId, address: SocketAddr, relayed: bool },
    /// The last path to a node is gone.
    PeerLost { node: NodeId, address: SocketAddr, reason: Reason },
    /// Traffic with a node takes another path.
    PathChanged { node: NodeId, from: SocketAddr, to: SocketAddr, relayed: bool },
    /// A tunnel stands.
    ConnectionOpened(ConnectionInfo),
    /// A tunnel has ended; the reason is in it.
    ConnectionClosed(ConnectionInfo),
    /// A tunnel did not come about: a local client's (then `address` is the client's) or a peer's (then it is the peer's).
    ConnectionRefused {
        /// Whose it was: a local client's (`Forward`) or a peer's (`Reverse`).
        role: Role,
        node: Option<NodeId>,
        address: Option<SocketAddr>,
        service_port: Option<u16>,
        error: Error,
    },
    /// This node is registered at a rendezvous node, which sees it at `observed`.
    RendezvousConnected { node: NodeId, address: SocketAddr, observed: Option<SocketAddr> },
    /// A rendezvous node is not reached, or not any more; it is tried again.
    RendezvousLost { node: NodeId, address: String, error: Error },
    /// This machine has other addresses now.
    NetworkChanged { addresses: Vec<SocketAddr> },
    /// No path to a node came about through a rendezvous.
    MeetingFailed { node: NodeId, error: Error },
    /// A relay keeps these addresses for this node.
    RelayConnected { relay: String, addresses: Vec<SocketAddr> },
    /// A relay is gone, or lets this node do nothing more; another is used.
    RelayLost { relay: String, error: Error },
    /// The subscriber was too slow: so many events before the next one are lost.
    EventsDropped { count: u64 },
    /// The proxy has closed; nothing comes after this.
    Closed,
}

/// Hands events to every subscriber without ever waiting for one.
#[derive(Clone, Debug)]
pub(super) struct Publisher {
    sender: broadcast::Sender<Event>,
}

impl Publisher {
    /// `queue`: events that a subscriber may lag behind.
    pub fn new(queue: usize) -> Self {
        Self { sender: broadcast::Sender::new(queue.max(1)) }
    }

    pub fn publish(&self, event: Event) {
        // Fails when nobody listens, which is fine.
        let _ = self.sender.send(event);
    }

    pub fn subscribe(&self) -> Events {
        Events { receiver: self.sender.subscribe(), closed: false }
    }
}

/// A subscription, from the moment it was made.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
    closed: bool,
}

impl Events {
    /// The next event; `None` after [`Event::Closed`]. Can be cancelled without losing one.
    pub async fn next(&mut self) -> Option<Event> {
        if self.closed {
            return None;
        }
        match self.receiver.recv().await {
            Ok(event) => {
                self.closed = matches!(event, Event::Closed);
                Some(event)
            }
            Err(broadcast::error::RecvError::Lagged(count)) => Some(Event::EventsDropped { count }),
            Err(broadcast::error::RecvError::Closed) => {
                self.closed = true;
                None
            }
        }
    }

    /// A subscription to a proxy that is closed already: only [`Event::Closed`] comes.
    pub(super) fn ended() -> Self {
        let publisher = Publisher::new(1);
        let events = publisher.subscribe();
        publisher.publish(Event::Closed);
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_learns_what_it_missed() {
        let publisher = Publisher::new(2);
        let mut events = publisher.subscribe();
        let (node, address) = (NodeId::from_public_key([1; 32]), "127.0.0.1:1".parse().unwrap());
        for _ in 0..5 {
            publisher.publish(Event::PeerConnected { node, address, relayed: false });
        }
        publisher.publish(Event::Closed);
        assert!(matches!(events.next().await, Some(Event::EventsDropped { count: 4 })));
        assert!(matches!(events.next().await, Some(Event::PeerConnected { .. })));
        assert!(matches!(events.next().await, Some(Event::Closed)));
        assert!(events.next().await.is_none());
    }
}
