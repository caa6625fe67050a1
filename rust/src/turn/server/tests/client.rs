//! A client in virtual time, sockets that are only numbers, and answers taken apart.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::super::{
    AllocationId, Client, Family, Framing, Link, Moment, Network, NoSocket, Outcome, Server, Setup, Sockets, Users,
};
use crate::config::RelayServerConfig;
use crate::time::Time;
use crate::turn::credentials::{long_term_key, Key};
use crate::turn::message::{self as stun, Integrity, Message, Writer};
use stun_types::message::MessageClass;

/// Sockets as a map.
#[derive(Default)]
pub struct Fake {
    pub open: BTreeMap<(u64, u8), SocketAddr>,
    pub next: u16,
    /// What the relay has no more of, or none at all.
    pub full: bool,
    pub no_v6: bool,
}

impl Sockets for Fake {
    fn open(&mut self, allocation: AllocationId, family: Family, even: bool) -> Result<SocketAddr, NoSocket> {
        if self.no_v6 && family == Family::V6 {
            return Err(NoSocket::Family);
        }
        if self.full {
            return Err(NoSocket::Full);
        }
        self.next += 1 + u16::from(even && self.next.is_multiple_of(2));
        let ip: IpAddr = if family == Family::V4 { RELAY_V4 } else { RELAY_V6 }.parse().unwrap();
        let address = SocketAddr::new(ip, 50_000 + self.next);
        assert!(self.open.insert((allocation.0, family as u8), address).is_none(), "opened twice");
        Ok(address)
    }

    fn close(&mut self, allocation: AllocationId, family: Family) {
        assert!(self.open.remove(&(allocation.0, family as u8)).is_some(), "closed what was not open");
    }
}

pub const RELAY_V4: &str = "198.51.100.1";
pub const RELAY_V6: &str = "2600::1";

/// A server with one user of each sort, at a time of its own.
pub struct World {
    pub server: Server,
    pub sockets: Fake,
    pub now: Time,
    pub unix: u64,
    transactions: u64,
}

/// A client with an address and credentials.
#[derive(Clone)]
pub struct Guest {
    pub client: Client,
    pub name: String,
    pub password: String,
    pub nonce: Vec<u8>,
    pub integrity: Integrity,
}

/// An answer, taken apart.
#[derive(Debug, Clone)]
pub struct Answer {
    pub bytes: Vec<u8>,
    /// 0: none.
    pub code: u16,
    pub attributes: Vec<(u16, Vec<u8>)>,
}

impl World {
    pub fn new() -> Self {
        Self::with(RelayServerConfig::default(), |_| {})
    }

    pub fn with(config: RelayServerConfig, change: impl FnOnce(&mut Setup)) -> Self {
        let users = Users {
            listed: [("alice".to_owned(), "secret-a".to_owned()), ("bob".to_owned(), "secret-b".to_owned())].into(),
            secrets: vec!["shared".to_owned()],
            introduction_peers: vec!["10.9.9.9:7348".parse().unwrap()],
        };
        let own = vec![RELAY_V4.parse().unwrap(), RELAY_V6.parse().unwrap()];
        let mut setup = Setup { users, allowed_peers: vec![], own };
        change(&mut setup);
        let now = Time::from_millis(1_000_000);
        let server = Server::new(config, setup, &[3; 32], now);
        Self { server, sockets: Fake::default(), now, unix: 1_700_000_000, transactions: 0 }
    }

    pub fn moment(&self) -> Moment {
        Moment { now: self.now, unix: self.unix }
    }

    pub fn pass(&mut self, time: Duration) {
        self.now += time;
        self.unix += time.as_secs();
        self.server.handle_timeout(self.now, &mut self.sockets);
    }

    pub fn transaction(&mut self) -> [u8; 12] {
        self.transactions += 1;
        let mut bytes = [9; 12];
        bytes[4..].copy_from_slice(&self.transactions.to_be_bytes());
        bytes
    }

    /// The answer to raw bytes.
    pub fn raw(&mut self, client: &Client, bytes: &[u8]) -> Option<Answer> {
        match self.server.handle(self.moment(), client, bytes, &mut self.sockets) {
            Outcome::Nothing => None,
            Outcome::Answer(answer) => Some(Answer::read(answer)),
            Outcome::Relay { .. } => panic!("a request was relayed"),
        }
    }

    /// A signed request, and its answer, whose signature is checked.
    pub fn ask(&mut self, guest: &Guest, method: u16, attributes: &[(u16, Vec<u8>)]) -> Answer {
        let transaction = self.transaction();
        self.ask_as(guest, method, transaction, attributes)
    }

    pub fn ask_as(&mut self, guest: &Guest, method: u16, transaction: [u8; 12], more: &[(u16, Vec<u8>)]) -> Answer {
        let request = guest.request(method, transaction, more);
        let answer = self.raw(&guest.client, &request).expect("no answer");
        if !matches!(answer.code, 401 | 438) {
            let message = Message::read(&answer.bytes).unwrap();
            assert_eq!(message.integrity(), Some(guest.integrity));
            assert!(message.is_signed_with(&guest.key()), "the answer is not signed");
            assert_eq!(message.transaction, transaction);
            assert_eq!(message.method, method);
        }
        answer
    }

    /// A guest that has been given a nonce.
    pub fn guest(&mut self, address: &str, name: &str, password: &str) -> Guest {
        let client = Client { address: address.parse().unwrap(), local: None, link: Link::Datagrams(0) };
        self.guest_by(client, name, password)
    }

    pub fn guest_by(&mut self, client: Client, name: &str, password: &str) -> Guest {
        let mut guest = Guest {
            client,
            name: name.to_owned(),
            password: password.to_owned(),
            nonce: vec![],
            integrity: Integrity::Sha1,
        };
        guest.nonce = self.challenge(&client);
        guest
    }

    pub fn challenge(&mut self, client: &Client) -> Vec<u8> {
        // as large as its answer, so that it is answered at once
        let padding = vec![0; 24];
        let transaction = self.transaction();
        let mut request = Writer::new(MessageClass::Request, stun::ALLOCATE, transaction);
        request.put(stun::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        request.put(0x8026, &padding);
        let answer = self.raw(client, &request.finish()).expect("no challenge");
        assert_eq!(answer.code, 401);
        answer.value(stun::NONCE).unwrap().to_vec()
    }

    /// A guest with an allocation.
    pub fn allocated(&mut self, address: &str) -> Guest {
        let guest = self.guest(address, "alice", "secret-a");
        let answer = self.ask(&guest, stun::ALLOCATE, &[udp()]);
        assert_eq!(answer.code, 0);
        guest
    }

    pub fn permit(&mut self, guest: &Guest, peer: &str) -> u16 {
        self.ask(guest, stun::CREATE_PERMISSION, &[self::peer(peer, self.next_transaction())]).code
    }

    pub fn bind(&mut self, guest: &Guest, channel: u16, peer: &str) -> u16 {
        let number = vec![(channel >> 8) as u8, channel as u8, 0, 0];
        let peer = self::peer(peer, self.next_transaction());
        self.ask(guest, stun::CHANNEL_BIND, &[(stun::CHANNEL_NUMBER, number), peer]).code
    }

    pub fn ask_refresh(&mut self, guest: &Guest) -> u16 {
        self.ask(guest, stun::REFRESH, &[]).code
    }

    /// The transaction that [`Self::ask`] will have.
    pub fn next_transaction(&self) -> [u8; 12] {
        let mut bytes = [9; 12];
        bytes[4..].copy_from_slice(&(self.transactions + 1).to_be_bytes());
        bytes
    }

    pub fn outward(&mut self, guest: &Guest, channel: u16, bytes: usize) -> Option<SocketAddr> {
        self.server.forward_to_peer(self.now, &guest.client, channel, bytes, 1).map(|(_, peer)| peer)
    }

    pub fn inward(&mut self, allocation: u64, peer: &str, bytes: usize) -> Option<(Client, Framing)> {
        self.server.forward_to_client(self.now, AllocationId(allocation), peer.parse().unwrap(), bytes, 1)
    }

    /// A Send indication; where it goes.
    pub fn send(&mut self, guest: &Guest, peer: &str, data: &[u8]) -> Option<SocketAddr> {
        let transaction = self.transaction();
        let mut message = Writer::new(MessageClass::Indication, stun::SEND, transaction);
        message.put_address(stun::XOR_PEER_ADDRESS, peer.parse().unwrap());
        message.put(stun::DATA_ATTRIBUTE, data);
        let bytes = message.finish();
        match self.server.handle(self.moment(), &guest.client, &bytes, &mut self.sockets) {
            Outcome::Nothing => None,
            Outcome::Relay { peer, data: sent, .. } => {
                assert_eq!(sent, data);
                Some(peer)
            }
            Outcome::Answer(_) => panic!("an indication was answered"),
        }
    }
}

impl Guest {
    pub fn key(&self) -> Key {
        long_term_key(self.name.as_bytes(), "keynet", &self.password)
    }

    pub fn request(&self, method: u16, transaction: [u8; 12], attributes: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut request = Writer::new(MessageClass::Request, method, transaction);
        for (kind, value) in attributes {
            request.put(*kind, value);
        }
        request.put(stun::USERNAME, self.name.as_bytes());
        request.put(stun::REALM, b"keynet");
        request.put(stun::NONCE, &self.nonce);
        request.sign(&self.key(), self.integrity);
        request.finish()
    }
}

impl Answer {
    fn read(bytes: Vec<u8>) -> Self {
        let message = Message::read(&bytes).expect("a broken answer");
        let (class, mut attributes, mut rest) = (message.class, vec![], &bytes[20..]);
        while let Some((&[a, b, c, d], tail)) = rest.split_first_chunk() {
            let length = usize::from(u16::from_be_bytes([c, d]));
            attributes.push((u16::from_be_bytes([a, b]), tail[..length].to_vec()));
            rest = &tail[length.next_multiple_of(4)..];
        }
        let mut answer = Self { code: 0, attributes, bytes };
        if let Some(&[_, _, hundreds, rest]) = answer.value(stun::ERROR_CODE) {
            answer.code = u16::from(hundreds) * 100 + u16::from(rest);
        }
        assert_eq!(answer.code == 0, class == MessageClass::Success);
        answer
    }

    pub fn value(&self, kind: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(other, _)| *other == kind).map(|(_, value)| &value[..])
    }

    pub fn count(&self, kind: u16) -> usize {
        self.attributes.iter().filter(|(other, _)| *other == kind).count()
    }

    pub fn lifetime(&self) -> u32 {
        u32::from_be_bytes(self.value(stun::LIFETIME).expect("no LIFETIME").try_into().unwrap())
    }
}

/// XOR-PEER-ADDRESS.
pub fn peer(address: &str, transaction: [u8; 12]) -> (u16, Vec<u8>) {
    let mut writer = Writer::new(MessageClass::Request, stun::SEND, transaction);
    writer.put_address(stun::XOR_PEER_ADDRESS, address.parse().unwrap());
    (stun::XOR_PEER_ADDRESS, writer.finish()[24..].to_vec())
}

pub fn udp() -> (u16, Vec<u8>) {
    (stun::REQUESTED_TRANSPORT, vec![17, 0, 0, 0])
}

pub fn lifetime(seconds: u32) -> (u16, Vec<u8>) {
    (stun::LIFETIME, seconds.to_be_bytes().to_vec())
}

pub fn networks(texts: &[&str]) -> Vec<Network> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}
