//! Wires and peers.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use keynet::addr::Via;
use keynet::net::{Datagrams, Wire};
use keynet::relay::client::{allocate, Allocation, Carrier, CarryState, Options, RelaySpec};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// For everything that has to happen but may take its time on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn options() -> Options {
    Options { deadline: LIMIT / 2, ..Options::default() }
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what}: nothing happens"))
}

pub async fn allocated(spec: RelaySpec) -> Allocation {
    allocate(spec, &options()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// The core's end of a wire, with the task that carries.
pub struct Node {
    pub carrier: Carrier,
    pub relayed: Vec<SocketAddr>,
    pub outgoing: mpsc::Sender<Datagrams>,
    pub incoming: mpsc::Receiver<(Via, Datagrams)>,
}

const VIA: Via = Via(7);

impl Node {
    pub fn new(allocation: Allocation) -> Self {
        let (wire, outgoing, incoming) = Wire::unattached(VIA);
        let relayed = allocation.relayed.clone();
        let carrier = allocation.carry(wire);
        Self { carrier, relayed, outgoing, incoming }
    }

    pub async fn at(spec: RelaySpec) -> Self {
        Self::new(allocated(spec).await)
    }

    pub async fn send(&self, peer: SocketAddr, contents: Vec<u8>, stride: usize) {
        self.outgoing.send(Datagrams { peer, contents, stride }).await.unwrap();
    }

    /// The next datagrams, one by one.
    pub async fn receive(&mut self) -> (SocketAddr, Vec<Vec<u8>>) {
        let (via, datagrams) = within("a datagram through the relay", self.incoming.recv()).await.unwrap();
        assert_eq!(via, VIA);
        (datagrams.peer, datagrams.contents.chunks(datagrams.stride).map(<[u8]>::to_vec).collect())
    }

    pub async fn ended(&self) -> CarryState {
        let mut state = self.carrier.state();
        within("the end", state.wait_for(|state| *state != CarryState::Carrying)).await.unwrap();
        let ended = state.borrow().clone();
        ended
    }
}

/// A peer that keynet knows nothing of: a plain socket.
pub struct Peer(pub UdpSocket);

impl Peer {
    pub async fn bind(ip: IpAddr) -> Self {
        Self(UdpSocket::bind((ip, 0)).await.unwrap())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub async fn receive(&self) -> (SocketAddr, Vec<u8>) {
        let mut buffer = [0; 2048];
        let (length, from) = within("a datagram at the peer", self.0.recv_from(&mut buffer)).await.unwrap();
        (from, buffer[..length].to_vec())
    }

    pub async fn send(&self, to: SocketAddr, datagram: &[u8]) {
        self.0.send_to(datagram, to).await.unwrap();
    }
}

/// Two threads, as a program would have.
pub fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async { timeout(5 * LIMIT, test).await.expect("the test hangs") });
    runtime.shutdown_timeout(Duration::from_secs(5));
}
