//! The sockets of relayed addresses, and the connections of clients on TCP.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::ports::{Lent, Ports};
use super::Shared;
use crate::turn::server::{AllocationId, Family, NoSocket, Sockets};

pub struct Table {
    shared: Weak<Shared>,
    addresses: Addresses,
    ports: [Ports; 2],
    relayed: HashMap<(AllocationId, Family), Relayed>,
    links: HashMap<u64, mpsc::Sender<Vec<u8>>>,
    closed: bool,
}

struct Relayed {
    port: Arc<Lent>,
    task: JoinHandle<()>,
}

/// Where relayed addresses are bound, and what peers call them; one of each family at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    pub bound: [Option<IpAddr>; 2],
    pub external: [Option<IpAddr>; 2],
}

impl Addresses {
    /// What peers call an address of ours.
    pub fn outward(&self, address: SocketAddr) -> SocketAddr {
        self.exchange(address, &self.bound, &self.external)
    }

    /// The address behind a name of ours: datagrams to it need not leave this machine, and behind most NATs would not come back.
    pub fn inward(&self, address: SocketAddr) -> SocketAddr {
        self.exchange(address, &self.external, &self.bound)
    }

    fn exchange(&self, address: SocketAddr, from: &[Option<IpAddr>; 2], to: &[Option<IpAddr>; 2]) -> SocketAddr {
        let family = Family::of(address.ip()) as usize;
        match (from[family], to[family]) {
            (Some(from), Some(to)) if from == address.ip() && self.external[family].is_some() => {
                SocketAddr::new(to, address.port())
            }
            _ => address,
        }
    }
}

impl Table {
    pub fn new(shared: Weak<Shared>, addresses: Addresses, ports: &RangeInclusive<u16>) -> Self {
        let ports = [Ports::new(ports), Ports::new(ports)];
        Self { shared, addresses, ports, relayed: HashMap::new(), links: HashMap::new(), closed: false }
    }

    pub fn port(&self, allocation: AllocationId, family: Family) -> Option<Arc<Lent>> {
        self.relayed.get(&(allocation, family)).map(|relayed| relayed.port.clone())
    }

    pub fn link(&self, number: u64) -> Option<&mpsc::Sender<Vec<u8>>> {
        self.links.get(&number)
    }

    pub fn add_link(&mut self, number: u64, queue: mpsc::Sender<Vec<u8>>) {
        self.links.insert(number, queue);
    }

    pub fn remove_link(&mut self, number: u64) {
        self.links.remove(&number);
    }

    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// Closes everything, for good; what comes back ends soon.
    pub fn clear(&mut self) -> Vec<JoinHandle<()>> {
        self.closed = true;
        self.links.clear();
        let end = |relayed: Relayed| {
            relayed.task.abort();
            relayed.task
        };
        self.relayed.drain().map(|(_, relayed)| end(relayed)).collect()
    }
}

impl Sockets for Table {
    fn open(&mut self, allocation: AllocationId, family: Family, even: bool) -> Result<SocketAddr, NoSocket> {
        let ip = self.addresses.bound[family as usize].ok_or(NoSocket::Family)?;
        let shared = self.shared.upgrade().filter(|_| !self.closed).ok_or(NoSocket::Full)?;
        let port = Arc::new(self.ports[family as usize].bind(ip, even).ok_or(NoSocket::Full)?);
        let address = self.addresses.outward(port.local());
        let task = tokio::spawn(super::relayed::serve(shared, allocation, port.clone()));
        self.relayed.insert((allocation, family), Relayed { port, task });
        Ok(address)
    }

    fn close(&mut self, allocation: AllocationId, family: Family) {
        if let Some(relayed) = self.relayed.remove(&(allocation, family)) {
            relayed.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_a_relay_behind_a_nat() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let addresses = Addresses {
            bound: [Some("10.0.0.5".parse().unwrap()), Some("2001:db8::5".parse().unwrap())],
            external: [Some("198.51.100.5".parse().unwrap()), None],
        };
        assert_eq!(addresses.outward(at("10.0.0.5:7")), at("198.51.100.5:7"));
        assert_eq!(addresses.inward(at("198.51.100.5:7")), at("10.0.0.5:7"));
        for other in ["10.0.0.6:7", "[2001:db8::5]:7"] {
            assert_eq!(addresses.outward(at(other)), at(other));
            assert_eq!(addresses.inward(at(other)), at(other));
        }
    }
}
