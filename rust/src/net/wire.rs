//! Ways for datagrams that are no socket of this machine: a relay carries them. The driver treats one as a socket with a
//! number of its own; whoever carries the datagrams holds the other end.

use std::net::SocketAddr;

use tokio::sync::mpsc;

use crate::addr::Via;

/// Datagrams to or from one peer, each of `stride` bytes, the last perhaps shorter.
#[derive(Clone, Debug)]
pub struct Datagrams {
    pub peer: SocketAddr,
    pub contents: Vec<u8>,
    pub stride: usize,
}

/// The carrier's end. Dropping it closes the way: paths over it are given up at once.
#[derive(Debug)]
pub struct Wire {
    pub via: Via,
    /// What is to be carried. The queue is bounded; what finds it full is lost, as with a socket.
    pub outgoing: mpsc::Receiver<Datagrams>,
    /// What has arrived. Use `try_send`: a driver that is behind loses datagrams, as a full socket does.
    pub incoming: mpsc::Sender<(Via, Datagrams)>,
}

/// Batches waiting in each direction.
pub const WIRE_QUEUE: usize = 256;
