//! One allocation: relayed addresses, and the peers that may use them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::users::Owner;
use super::{Client, Family};
use crate::addr::network_of;
use crate::bucket::Bucket;
use crate::time::Time;
use crate::turn::credentials::Key;

pub struct Allocation {
    pub client: Client,
    pub owner: Owner,
    /// Name and key it was made or last refreshed with.
    pub name: Box<[u8]>,
    pub key: Key,
    /// Which accounts of the server these were of: other accounts judge the name anew.
    pub accounts: u64,
    /// Of the request that made it: one that comes again is answered again.
    pub transaction: [u8; 12],
    /// One of each family at most.
    pub relayed: [Option<SocketAddr>; 2],
    pub expires: Time,
    pub bucket: Bucket,
    /// Peers that may send, and until when.
    permissions: HashMap<IpAddr, Time>,
    channels: HashMap<u16, Channel>,
    numbers: HashMap<SocketAddr, u16>,
}

#[derive(Clone, Copy)]
struct Channel {
    peer: SocketAddr,
    expires: Time,
}

/// Why a permission or a channel is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The number has another peer, or the peer another number.
    Taken,
    Full,
}

impl Allocation {
    pub fn new(client: Client, owner: Owner, name: &[u8], key: Key, bucket: Bucket) -> Self {
        Self {
            client,
            owner,
            name: name.into(),
            key,
            accounts: 0,
            transaction: [0; 12],
            relayed: [None; 2],
            expires: Time::ZERO,
            bucket,
            permissions: HashMap::new(),
            channels: HashMap::new(),
            numbers: HashMap::new(),
        }
    }

    /// Where it counts: its source network, and whether the credentials are those of introductions.
    pub fn network(&self) -> ([u8; 8], bool) {
        (network_of(self.client.address.ip()), self.owner == Owner::Introduction)
    }

    pub fn has(&self, family: Family) -> bool {
        self.relayed[family as usize].is_some()
    }

    pub fn is_permitted(&self, peer: IpAddr, now: Time) -> bool {
        self.permissions.get(&peer).is_some_and(|expires| *expires > now)
    }

    /// Lets peers send, or goes on letting them; all or none.
    pub fn permit(&mut self, peers: &[SocketAddr], now: Time, most: usize) -> Result<(), Refusal> {
        let fresh = |peer: &SocketAddr| !self.permissions.contains_key(&peer.ip());
        if self.permissions.len() + peers.iter().filter(|peer| fresh(peer)).count() > most {
            self.permissions.retain(|_, expires| *expires > now);
        }
        let fresh = |peer: &SocketAddr| !self.permissions.contains_key(&peer.ip());
        if self.permissions.len() + peers.iter().filter(|peer| fresh(peer)).count() > most {
            return Err(Refusal::Full);
        }
        self.permissions.extend(peers.iter().map(|peer| (peer.ip(), now + PERMISSION)));
        Ok(())
    }

    /// Binds a channel, or goes on with it; permits its peer too (RFC 8656 section 12.2).
    pub fn bind(&mut self, number: u16, peer: SocketAddr, now: Time, limits: Limits) -> Result<(), Refusal> {
        self.forget(number, now);
        if let Some(old) = self.numbers.get(&peer).copied() {
            self.forget(old, now);
        }
        let other_peer = self.channels.get(&number).is_some_and(|channel| channel.peer != peer);
        if other_peer || self.numbers.get(&peer).is_some_and(|bound| *bound != number) {
            return Err(Refusal::Taken);
        }
        if !self.channels.contains_key(&number) && self.channels.len() >= limits.channels {
            self.sweep(now);
            if self.channels.len() >= limits.channels {
                return Err(Refusal::Full);
            }
        }
        self.permit(&[peer], now, limits.permissions)?;
        self.channels.insert(number, Channel { peer, expires: now + CHANNEL });
        self.numbers.insert(peer, number);
        Ok(())
    }

    /// Where a channel leads.
    pub fn peer_of(&self, number: u16, now: Time) -> Option<SocketAddr> {
        self.channels.get(&number).filter(|channel| channel.expires > now).map(|channel| channel.peer)
    }

    /// The channel that leads to a peer.
    pub fn channel_to(&self, peer: SocketAddr, now: Time) -> Option<u16> {
        self.numbers.get(&peer).copied().filter(|number| self.peer_of(*number, now).is_some())
    }

    /// Forgets what has expired.
    pub fn sweep(&mut self, now: Time) {
        self.permissions.retain(|_, expires| *expires > now);
        self.channels.retain(|_, channel| channel.expires > now);
        let channels = &self.channels;
        self.numbers.retain(|_, number| channels.contains_key(number));
    }

    fn forget(&mut self, number: u16, now: Time) {
        if let Some(channel) = self.channels.get(&number).filter(|channel| channel.expires <= now) {
            self.numbers.remove(&channel.peer);
            self.channels.remove(&number);
        }
    }
}

#[derive(Clone, Copy)]
pub struct Limits {
    pub permissions: usize,
    pub channels: usize,
}

/// RFC 8656 section 9.
pub const PERMISSION: Duration = Duration::from_secs(300);
/// RFC 8656 section 12.
pub const CHANNEL: Duration = Duration::from_secs(600);
