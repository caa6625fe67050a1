//! Relays of our own, each on a loopback address of its own, and what may stand before one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use keynet::config::RelayServerConfig;
use keynet::relay::client::RelaySpec;
use keynet::relay::server::{RelayOptions, RelayServer};
use keynet::turn::server::Users;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::coturn::{spec, PASSWORD, USER};

/// `n`: the last byte of its address. What goes to one host is one relay for a node.
pub struct Turn {
    pub server: RelayServer,
    pub address: SocketAddr,
}

impl Turn {
    pub fn start(n: u8) -> Self {
        Self::with(n, RelayServerConfig::default())
    }

    pub fn with(n: u8, config: RelayServerConfig) -> Self {
        Self::bind((host(n), 0).into(), config)
    }

    /// Another one in the place of one that has ended.
    pub fn again(address: SocketAddr) -> Self {
        Self::bind(address, RelayServerConfig::default())
    }

    fn bind(listen: SocketAddr, config: RelayServerConfig) -> Self {
        let users = Users { listed: [(USER.to_owned(), PASSWORD.to_owned())].into(), ..Users::default() };
        let options = RelayOptions {
            listen: vec![listen],
            tls: None,
            users,
            allowed_peers: vec!["127.0.0.0/8".parse().unwrap()],
            relay_addresses: vec![listen.ip()],
            external_addresses: Vec::new(),
        };
        let server = RelayServer::bind(options, config).unwrap();
        let address = server.bound().udp[0];
        Self { server, address }
    }

    pub fn spec(&self, transport: &str) -> RelaySpec {
        at(self.address, transport)
    }

    pub fn allocations(&self) -> u64 {
        self.server.stats().turn.allocations
    }
}

pub fn host(n: u8) -> IpAddr {
    [127, 0, 0, n].into()
}

/// A relay at this address, with the credentials of the only user.
pub fn at(address: SocketAddr, transport: &str) -> RelaySpec {
    spec(&format!("turn:{USER}:{PASSWORD}@{address}?transport={transport}"))
}

/// A long way to a relay: datagrams each way take `delay`. One client.
pub async fn far(n: u8, relay: SocketAddr, delay: Duration) -> (SocketAddr, JoinSet<()>) {
    let near = Arc::new(UdpSocket::bind((host(n), 0)).await.unwrap());
    let behind = Arc::new(UdpSocket::bind((host(n), 0)).await.unwrap());
    let address = near.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut client = None;
        let (mut out, mut back) = ([0; 2048], [0; 2048]);
        let mut under_way = JoinSet::new();
        loop {
            let (socket, to, datagram) = tokio::select! {
                Ok((length, from)) = near.recv_from(&mut out) => {
                    client = Some(from);
                    (behind.clone(), relay, out[..length].to_vec())
                }
                Ok((length, _)) = behind.recv_from(&mut back) => match client {
                    Some(client) => (near.clone(), client, back[..length].to_vec()),
                    None => continue,
                }
            };
            under_way.spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = socket.send_to(&datagram, to).await;
            });
            while under_way.try_join_next().is_some() {}
        }
    });
    (address, tasks)
}
