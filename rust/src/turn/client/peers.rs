//! With whom an allocation talks: the permission and the channel that a peer needs (RFC 8656 sections 9 and 12).
//!
//! One request is enough for both: a channel that is bound, or bound again, also installs the permission for the peer's IP
//! address. It is repeated before the permission ends, for as long as datagrams go or come.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::frame::CHANNELS;
use crate::addr::Datagrams;
use crate::time::Time;

/// The peers of an allocation.
#[derive(Debug)]
pub(super) struct Peers {
    table: HashMap<SocketAddr, Peer>,
    channels: HashMap<u16, SocketAddr>,
    next: u16,
    /// Batches that wait, all together.
    waiting: usize,
}

#[derive(Debug)]
struct Peer {
    channel: u16,
    /// The last datagram, either way.
    used: Time,
    /// When the server last confirmed the channel.
    bound: Option<Time>,
    /// A request is under way.
    asking: bool,
    /// The server does not want it: it is not asked again before then.
    refused: Option<Time>,
    waiting: VecDeque<Datagrams>,
}

/// What is to be done with datagrams for a peer.
#[derive(Debug)]
pub(super) enum Verdict {
    /// They can leave, through this channel.
    Send(u16, Datagrams),
    /// They wait; this channel has to be bound.
    Bind(u16),
    /// They wait for what is under way. So many others had to go.
    Wait(usize),
    /// The table is full, or the server does not want this peer.
    Drop,
}

impl Peers {
    pub(super) fn new() -> Self {
        Self { table: HashMap::new(), channels: HashMap::new(), next: *CHANNELS.start(), waiting: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Channels that carry datagrams now.
    pub(super) fn bound(&self, now: Time) -> usize {
        self.table.values().filter(|peer| peer.is_bound(now)).count()
    }

    pub(super) fn handle_outgoing(&mut self, now: Time, datagrams: Datagrams) -> Verdict {
        let full = self.waiting >= MAX_WAITING;
        let Some(peer) = self.find_or_add(now, datagrams.peer) else { return Verdict::Drop };
        peer.used = now;
        if peer.is_bound(now) {
            return Verdict::Send(peer.channel, datagrams);
        }
        if full || peer.refused.is_some_and(|until| now < until) {
            return Verdict::Drop;
        }
        peer.waiting.push_back(datagrams);
        let excess = peer.waiting.len().saturating_sub(MAX_WAITING_EACH);
        peer.waiting.drain(..excess);
        let verdict = match std::mem::replace(&mut peer.asking, true) {
            false => Verdict::Bind(peer.channel),
            true => Verdict::Wait(excess),
        };
        self.waiting += 1 - excess;
        verdict
    }

    /// Batches that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether the server was asked to let this address send to us. A permission is for all ports of an address (RFC 8656 section
    /// 9): behind a symmetric NAT a peer comes from another one than it was asked for with.
    pub(super) fn permits(&self, ip: IpAddr) -> bool {
        self.table.keys().any(|peer| peer.ip() == ip)
    }

    /// Whose channel it is.
    pub(super) fn handle_incoming(&mut self, now: Time, channel: u16) -> Option<SocketAddr> {
        let address = *self.channels.get(&channel)?;
        self.table.get_mut(&address)?.used = now;
        Some(address)
    }

    /// The server has bound a channel: what has waited may leave through it.
    pub(super) fn handle_bound(&mut self, now: Time, address: SocketAddr) -> Option<(u16, VecDeque<Datagrams>)> {
        let peer = self.table.get_mut(&address)?;
        (peer.asking, peer.bound, peer.refused) = (false, Some(now), None);
        self.waiting -= peer.waiting.len();
        Some((peer.channel, std::mem::take(&mut peer.waiting)))
    }

    /// It did not, and is not asked again before `until`. How many batches are lost with it.
    pub(super) fn handle_failed(&mut self, address: SocketAddr, until: Option<Time>) -> usize {
        let Some(peer) = self.table.get_mut(&address) else { return 0 };
        (peer.asking, peer.refused) = (false, until);
        if until.is_some() {
            peer.bound = None;
        }
        self.waiting -= peer.waiting.len();
        std::mem::take(&mut peer.waiting).len()
    }

    /// Forgets who is long gone, and says whose channels are to be bound again now: at most `room`.
    pub(super) fn sweep(&mut self, now: Time, room: usize) -> Vec<(u16, SocketAddr)> {
        let channels = &mut self.channels;
        self.table.retain(|_, peer| {
            let keep = peer.asking || now.since(peer.last()) < FORGOTTEN_AFTER;
            if !keep {
                channels.remove(&peer.channel);
            }
            keep
        });
        let due = self.table.iter_mut().filter(|(_, peer)| {
            let wanted = now.since(peer.used) < IDLE_AFTER;
            let old = peer.bound.is_some_and(|at| now.since(at) >= BIND_AGAIN_AFTER);
            wanted && old && !peer.asking
        });
        due.take(room)
            .map(|(address, peer)| {
                peer.asking = true;
                (peer.channel, *address)
            })
            .collect()
    }

    fn find_or_add(&mut self, now: Time, address: SocketAddr) -> Option<&mut Peer> {
        if !self.table.contains_key(&address) {
            if self.table.len() >= MAX_PEERS {
                return None;
            }
            let channel = self.free_channel();
            self.channels.insert(channel, address);
            let (bound, refused, waiting) = (None, None, VecDeque::new());
            self.table.insert(address, Peer { channel, used: now, bound, asking: false, refused, waiting });
        }
        self.table.get_mut(&address)
    }

    /// In a circle, so that a number rests for as long as possible. There are four times as many as peers.
    fn free_channel(&mut self) -> u16 {
        loop {
            let channel = self.next;
            self.next = if channel == *CHANNELS.end() { *CHANNELS.start() } else { channel + 1 };
            if !self.channels.contains_key(&channel) {
                return channel;
            }
        }
    }
}

impl Peer {
    fn is_bound(&self, now: Time) -> bool {
        self.bound.is_some_and(|at| now.since(at) < PERMISSION)
    }

    fn last(&self) -> Time {
        self.bound.map_or(self.used, |bound| bound.max(self.used))
    }
}

/// Each costs one request every four minutes and some hundred bytes. A node speaks with fewer; a peer that roams is another one
/// with each address, and is remembered for 15 minutes.
pub(super) const MAX_PEERS: usize = 1024;
/// Batches that wait for the answer to the first request: a round trip's worth of the first pings, SYNs and TLS.
const MAX_WAITING_EACH: usize = 16;
/// Of all peers: 8 MiB, if each were full.
pub(super) const MAX_WAITING: usize = 128;
/// RFC 8656 section 9: the lifetime of a permission, which ends before the channel does (10 min).
const PERMISSION: Duration = Duration::from_secs(300);
/// With the sweep every 15 s and a lost request or two the permission never ends in between.
const BIND_AGAIN_AFTER: Duration = Duration::from_secs(240);
/// No datagram went or came: the permission may end. As long as one lasts.
const IDLE_AFTER: Duration = PERMISSION;
/// RFC 8656 section 12: a channel lives for 10 minutes, and for 5 more neither its number nor its peer may be bound otherwise.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;

    const START: Time = Time::from_millis(1 << 30);

    fn to(port: u16) -> Datagrams {
        Datagrams { peer: ([192, 0, 2, 1], port).into(), contents: vec![port as u8; 10], stride: 10 }
    }

    #[test]
    fn the_first_datagrams_wait_and_the_oldest_make_room() {
        let (mut peers, now) = (Peers::new(), START);
        assert!(matches!(peers.handle_outgoing(now, to(1)), Verdict::Bind(0x4000)));
        for _ in 1..MAX_WAITING_EACH {
            assert!(matches!(peers.handle_outgoing(now, to(1)), Verdict::Wait(0)));
        }
        assert!(matches!(peers.handle_outgoing(now, to(1)), Verdict::Wait(1)));
        let (channel, waiting) = peers.handle_bound(now, to(1).peer).unwrap();
        assert_eq!((channel, waiting.len()), (0x4000, MAX_WAITING_EACH));
        assert!(matches!(peers.handle_outgoing(now, to(1)), Verdict::Send(0x4000, _)));
        assert_eq!(peers.handle_incoming(now, 0x4000), Some(to(1).peer));
        assert_eq!(peers.handle_incoming(now, 0x4001), None);
    }

    #[test]
    fn a_refused_peer_is_left_alone_for_a_while() {
        let (mut peers, now) = (Peers::new(), START);
        peers.handle_outgoing(now, to(1));
        let until = now + Duration::from_secs(30);
        assert_eq!(peers.handle_failed(to(1).peer, Some(until)), 1);
        assert!(matches!(peers.handle_outgoing(now, to(1)), Verdict::Drop));
        assert!(matches!(peers.handle_outgoing(until, to(1)), Verdict::Bind(0x4000)));
    }

    #[test]
    fn channels_are_bound_again_while_they_are_used_and_let_go_when_not() {
        let (mut peers, start) = (Peers::new(), START);
        for port in [1, 2] {
            peers.handle_outgoing(start, to(port));
            peers.handle_bound(start, to(port).peer);
        }
        let later = start + BIND_AGAIN_AFTER;
        assert!(peers.sweep(later - Duration::from_secs(1), 9).is_empty());
        peers.handle_outgoing(later, to(1));
        assert_eq!(peers.sweep(later, 1).len(), 1, "no more than there is room for");
        assert_eq!(peers.sweep(later, 9).len(), 1);
        assert!(peers.sweep(later, 9).is_empty(), "both are being asked for");
        peers.handle_bound(later, to(1).peer);
        peers.handle_failed(to(2).peer, None);
        let much_later = start + IDLE_AFTER + Duration::from_secs(300);
        assert!(peers.sweep(much_later, 9).is_empty(), "nobody has used them");
        assert!(matches!(peers.handle_outgoing(much_later, to(2)), Verdict::Bind(0x4001)), "the same number again");
        peers.handle_failed(to(2).peer, None);
        peers.sweep(much_later + FORGOTTEN_AFTER, 9);
        assert_eq!((peers.len(), peers.bound(much_later)), (0, 0));
    }

    #[test]
    fn a_full_table_takes_nobody_else_and_numbers_are_not_used_twice() {
        let (mut peers, now) = (Peers::new(), START);
        let mut seen = std::collections::HashSet::new();
        for port in 0..MAX_PEERS as u16 {
            match peers.handle_outgoing(now, to(port)) {
                Verdict::Bind(channel) => assert!(seen.insert(channel)),
                other => panic!("{other:?}"),
            }
            peers.handle_failed(to(port).peer, None); // or those that wait would be too many
        }
        assert!(matches!(peers.handle_outgoing(now, to(u16::MAX)), Verdict::Drop));
    }
}
