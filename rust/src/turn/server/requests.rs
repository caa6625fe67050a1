//! What clients ask for, and what they are answered: one function for each method of RFC 8656.

use std::net::SocketAddr;
use std::time::Duration;

use stun_types::message::MessageClass;

use super::allocation::{Allocation, Limits, Refusal};
use super::nonce::Verdict;
use super::users::{Account, Owner};
use super::{bucket, AllocationId, Client, Family, Moment, NoSocket, Outcome, Server, Sockets};
use crate::addr::network_of;
use crate::time::Time;
use crate::turn::channel;
use crate::turn::message::{self as stun, Integrity, Message, Writer};

/// An error code of RFC 8489 or RFC 8656.
type Code = u16;

/// A request whose sender is known.
struct Request<'a, 'b> {
    message: &'b Message<'a>,
    client: &'b Client,
    name: &'b [u8],
    account: &'b Account,
    now: Time,
}

impl Server {
    /// A STUN message of a client.
    pub fn handle<'a>(
        &mut self,
        moment: Moment,
        client: &Client,
        bytes: &'a [u8],
        sockets: &mut dyn Sockets,
    ) -> Outcome<'a> {
        let Ok(message) = Message::read(bytes) else {
            self.stats.malformed += 1;
            return Outcome::Nothing;
        };
        match (message.class, message.method) {
            (MessageClass::Request, stun::BINDING) => self.binding(moment.now, client, &message, bytes.len()),
            (MessageClass::Request, _) => self.request(moment, client, &message, bytes.len(), sockets),
            (MessageClass::Indication, stun::SEND) => self.send(moment.now, client, &message),
            // what else has no answer: other indications (a Binding one keeps a NAT open), responses
            _ => Outcome::Nothing,
        }
    }

    fn binding(&mut self, now: Time, client: &Client, message: &Message<'_>, size: usize) -> Outcome<'static> {
        let answer = match message.unknown.is_empty() {
            true => {
                let mut writer = Writer::new(MessageClass::Success, stun::BINDING, message.transaction);
                writer.put_address(stun::XOR_MAPPED_ADDRESS, client.address);
                writer
            }
            false => error(message, 420),
        };
        self.answer_stranger(now, client, size, false, answer)
    }

    fn request(
        &mut self,
        moment: Moment,
        client: &Client,
        message: &Message<'_>,
        size: usize,
        sockets: &mut dyn Sockets,
    ) -> Outcome<'static> {
        let (name, account) = match self.authenticate(moment, client, message) {
            Ok(found) => found,
            Err((code, proven)) => {
                let mut answer = error(message, code);
                if matches!(code, 401 | 438) {
                    answer.put(stun::REALM, self.config.realm.as_bytes());
                    answer.put(stun::NONCE, &self.nonces.make(client, moment.now));
                }
                return self.answer_stranger(moment.now, client, size, proven, answer);
            }
        };
        let request = Request { message, client, name, account: &account, now: moment.now };
        let answer = match message.unknown.is_empty() {
            true => self.serve(&request, sockets),
            false => Err(420),
        };
        let mut answer = answer.unwrap_or_else(|code| {
            match code {
                403 => self.stats.forbidden += 1,
                486 | 508 => self.stats.over_quota += 1,
                _ => {}
            }
            error(message, code)
        });
        answer.sign(&account.key, message.integrity().unwrap_or(Integrity::Sha1));
        Outcome::Answer(answer.finish())
    }

    /// Who sends a request (RFC 8489 section 9.2.4). The error comes with whether the client's address is proven.
    fn authenticate<'a>(
        &mut self,
        moment: Moment,
        client: &Client,
        message: &Message<'a>,
    ) -> Result<(&'a [u8], Account), (Code, bool)> {
        // who has an allocation had a nonce at this address
        let proven = client.link.is_stream() || self.serves(client);
        if message.integrity().is_none() {
            return Err((401, proven));
        }
        let (Some(name), Some(_), Some(nonce)) = (message.username, message.realm, message.nonce) else {
            return Err((400, proven));
        };
        if self.nonces.judge(nonce, client, moment.now) == Verdict::Stale {
            return Err((438, proven));
        }
        match self.account(moment, client, message, name) {
            Some(account) => Ok((name, account)),
            None => {
                self.stats.auth_failures += 1;
                Err((401, true))
            }
        }
    }

    /// A name that ends is good for what it was given, as long as that is refreshed (as with coturn); only more needs a new one, and a
    /// secret that is still known.
    fn account(&self, moment: Moment, client: &Client, message: &Message<'_>, name: &[u8]) -> Option<Account> {
        let allocation = self.clients.get(client).and_then(|id| self.allocations.get(id));
        let own = allocation.filter(|one| *one.name == *name);
        let lasts = |one: &Allocation| match message.method {
            stun::ALLOCATE => false,
            stun::REFRESH => matches!(one.owner, Owner::Limited(_)) && one.accounts == self.accounts,
            _ => true,
        };
        if let Some(known) = own.filter(|one| lasts(one)) {
            let account = Account { key: known.key, owner: known.owner.clone() };
            return message.is_signed_with(&known.key).then_some(account);
        }
        let lasting = message.method == stun::REFRESH && own.is_some_and(|one| matches!(one.owner, Owner::Limited(_)));
        let unix = if lasting { 0 } else { moment.unix };
        self.setup.users.find(name, &self.config.realm, unix, |key| message.is_signed_with(key))
    }

    fn serve(&mut self, request: &Request<'_, '_>, sockets: &mut dyn Sockets) -> Result<Writer, Code> {
        let existing = self.clients.get(request.client).copied();
        // what has expired and was not yet swept
        let expired = |id: &AllocationId| self.allocations.get(id).is_some_and(|one| one.expires <= request.now);
        if let Some(id) = existing.filter(expired) {
            self.remove(id, sockets);
        }
        let existing = self.clients.get(request.client).copied();
        if request.message.method == stun::ALLOCATE {
            return match existing {
                Some(id) => self.allocate_again(id, request),
                None => self.allocate(request, sockets),
            };
        }
        if !matches!(request.message.method, stun::REFRESH | stun::CREATE_PERMISSION | stun::CHANNEL_BIND) {
            return Err(400);
        }
        let id = existing.ok_or(437u16)?;
        if self.allocations.get(&id).is_none_or(|one| one.owner != request.account.owner) {
            return Err(441);
        }
        match request.message.method {
            stun::REFRESH => self.refresh(id, request, sockets),
            stun::CREATE_PERMISSION => self.create_permission(id, request),
            _ => self.channel_bind(id, request),
        }
    }

    /// RFC 8656 section 7.2.
    fn allocate(&mut self, request: &Request<'_, '_>, sockets: &mut dyn Sockets) -> Result<Writer, Code> {
        let message = request.message;
        match message.transport {
            None => return Err(400),
            Some(UDP) => {}
            Some(_) => return Err(442),
        }
        let wanted = families(message)?;
        if message.reserves_ports {
            return Err(508);
        }
        self.check_quota(request)?;
        let id = AllocationId(self.next);
        self.next += 1;
        let rate = match request.account.owner {
            Owner::Introduction => self.config.bytes_per_second_per_introduction,
            Owner::Listed(_) | Owner::Limited(_) => self.config.bytes_per_second_per_allocation,
        };
        let Account { key, owner } = request.account.clone();
        let mut allocation = Allocation::new(*request.client, owner, request.name, key, bucket(rate, request.now));
        let mut refused = None;
        for family in wanted.iter().flatten() {
            match sockets.open(id, *family, message.even_port) {
                Ok(address) => allocation.relayed[*family as usize] = Some(address),
                Err(reason) => refused = Some((*family, socket_error(reason))),
            }
        }
        if allocation.relayed.iter().all(Option::is_none) {
            return Err(refused.map_or(508, |(_, code)| code));
        }
        let lifetime = self.lifetime(message.lifetime).max(self.config.default_lifetime.min(self.config.max_lifetime));
        allocation.expires = request.now + lifetime;
        allocation.transaction = message.transaction;
        allocation.accounts = self.accounts;
        let mut answer = allocated(message, &allocation, lifetime);
        if let Some((family, code)) = refused {
            answer.put_address_error(number(family), code);
        }
        self.insert(id, allocation, request.now);
        Ok(answer)
    }

    /// The answer was lost, or the client does not know what it has.
    fn allocate_again(&mut self, id: AllocationId, request: &Request<'_, '_>) -> Result<Writer, Code> {
        let allocation = self.allocations.get(&id).ok_or(437u16)?;
        let same = allocation.transaction == request.message.transaction && allocation.owner == request.account.owner;
        match same {
            true => Ok(allocated(request.message, allocation, allocation.expires.since(request.now))),
            false => Err(437),
        }
    }

    fn check_quota(&self, request: &Request<'_, '_>) -> Result<(), Code> {
        let owner = &request.account.owner;
        if self.allocations.len() >= self.config.max_allocations {
            return Err(508);
        }
        let network = network_of(request.client.address.ip());
        let here = |introduced| self.of_network.get(&(network, introduced)).copied().unwrap_or(0);
        let (most, has_share) = match owner {
            // who has a network of his own leaves the others half of what everybody may have
            Owner::Introduction => {
                (self.config.max_introductions, here(true) < self.config.max_introductions.div_ceil(2))
            }
            Owner::Listed(_) | Owner::Limited(_) => (self.config.max_allocations_per_user, true),
        };
        let has_room = here(true) + here(false) < self.config.max_allocations_per_network;
        match has_share && has_room && self.shares.allocations(owner) < most {
            true => Ok(()),
            false => Err(486),
        }
    }

    /// RFC 8656 section 8.2.
    fn refresh(
        &mut self,
        id: AllocationId,
        request: &Request<'_, '_>,
        sockets: &mut dyn Sockets,
    ) -> Result<Writer, Code> {
        let only = request.message.family.map(family).transpose()?;
        let lifetime = self.lifetime(request.message.lifetime);
        let allocation = self.allocations.get_mut(&id).ok_or(437u16)?;
        if only.is_some_and(|family| !allocation.has(family)) {
            return Err(443);
        }
        let mut answer = Writer::new(MessageClass::Success, stun::REFRESH, request.message.transaction);
        answer.put(stun::LIFETIME, &seconds(lifetime));
        if !lifetime.is_zero() {
            allocation.expires = request.now + lifetime;
            // the next requests come with this name
            allocation.name = request.name.into();
            allocation.key = request.account.key;
            allocation.accounts = self.accounts;
            return Ok(answer);
        }
        match only.filter(|_| allocation.relayed.iter().all(Option::is_some)) {
            // RFC 8656 section 8.2: one of two
            Some(family) => {
                if let Some(address) = allocation.relayed[family as usize].take() {
                    self.relayed.remove(&address);
                    sockets.close(id, family);
                }
            }
            None => self.remove(id, sockets),
        }
        Ok(answer)
    }

    /// RFC 8656 section 10.2.
    fn create_permission(&mut self, id: AllocationId, request: &Request<'_, '_>) -> Result<Writer, Code> {
        let message = request.message;
        if message.peers.is_empty() {
            return Err(400);
        }
        if message.too_many_peers {
            return Err(508);
        }
        for peer in &message.peers {
            self.check_peer(id, *peer, None)?;
        }
        let most = self.config.max_permissions;
        let allocation = self.allocations.get_mut(&id).ok_or(437u16)?;
        allocation.permit(&message.peers, request.now, most).map_err(refusal)?;
        Ok(Writer::new(MessageClass::Success, stun::CREATE_PERMISSION, message.transaction))
    }

    /// RFC 8656 section 12.2.
    fn channel_bind(&mut self, id: AllocationId, request: &Request<'_, '_>) -> Result<Writer, Code> {
        let message = request.message;
        let (Some(channel), &[peer]) = (message.channel, &message.peers[..]) else { return Err(400) };
        if !channel::is_number(channel) {
            return Err(400);
        }
        self.check_peer(id, peer, Some(peer.port()))?;
        let limits = Limits { permissions: self.config.max_permissions, channels: self.config.max_channels };
        let allocation = self.allocations.get_mut(&id).ok_or(437u16)?;
        allocation.bind(channel, peer, request.now, limits).map_err(refusal)?;
        Ok(Writer::new(MessageClass::Success, stun::CHANNEL_BIND, message.transaction))
    }

    fn check_peer(&self, id: AllocationId, peer: SocketAddr, port: Option<u16>) -> Result<(), Code> {
        let allocation = self.allocations.get(&id).ok_or(437u16)?;
        if !allocation.has(Family::of(peer.ip())) {
            return Err(443);
        }
        match self.may_reach(&allocation.owner, peer.ip(), port) {
            true => Ok(()),
            false => Err(403),
        }
    }

    /// A Send indication (RFC 8656 section 11.2): what it lacks is not answered.
    fn send<'a>(&mut self, now: Time, client: &Client, message: &Message<'a>) -> Outcome<'a> {
        match self.send_to(now, client, message) {
            Some((allocation, peer, data)) => Outcome::Relay { allocation, peer, data },
            None => Outcome::Nothing,
        }
    }

    fn send_to<'a>(
        &mut self,
        now: Time,
        client: &Client,
        message: &Message<'a>,
    ) -> Option<(AllocationId, SocketAddr, &'a [u8])> {
        let (&[peer], Some(data), true) = (&message.peers[..], message.data, message.unknown.is_empty()) else {
            self.stats.malformed += 1;
            return None;
        };
        let id = self.clients.get(client).copied();
        let permitted = id.and_then(|id| self.allocations.get(&id)).is_some_and(|one| {
            let lives = one.expires > now && one.has(Family::of(peer.ip()));
            lives && one.is_permitted(peer.ip(), now) && self.may_reach(&one.owner, peer.ip(), Some(peer.port()))
        });
        let Some(id) = id.filter(|_| permitted) else {
            self.stats.dropped_unpermitted += 1;
            return None;
        };
        self.pay(id, now, data.len(), 1)?;
        self.stats.bytes_to_peers += data.len() as u64;
        self.stats.datagrams_to_peers += 1;
        Some((id, peer, data))
    }

    /// The last thing before an answer to somebody who has not authenticated.
    fn answer_stranger(
        &mut self,
        now: Time,
        client: &Client,
        question: usize,
        proven: bool,
        answer: Writer,
    ) -> Outcome<'static> {
        let answer = answer.finish();
        let proven = proven || client.link.is_stream();
        if !proven {
            self.strangers.earn(client.address, question);
        }
        if self.strangers.spend(client.address, answer.len(), proven, now) {
            return Outcome::Answer(answer);
        }
        self.stats.unanswered += 1;
        Outcome::Nothing
    }

    fn lifetime(&self, asked: Option<u32>) -> Duration {
        let asked = asked.map_or(self.config.default_lifetime, |seconds| Duration::from_secs(seconds.into()));
        asked.min(self.config.max_lifetime)
    }
}

fn error(message: &Message<'_>, code: Code) -> Writer {
    let mut writer = Writer::new(MessageClass::Error, message.method, message.transaction);
    writer.put_error(code);
    if code == 420 {
        let unknown: Vec<u8> = message.unknown.iter().flat_map(|kind| kind.to_be_bytes()).collect();
        writer.put(stun::UNKNOWN_ATTRIBUTES, &unknown);
    }
    writer
}

fn allocated(message: &Message<'_>, allocation: &Allocation, lifetime: Duration) -> Writer {
    let mut answer = Writer::new(MessageClass::Success, stun::ALLOCATE, message.transaction);
    for address in allocation.relayed.iter().flatten() {
        answer.put_address(stun::XOR_RELAYED_ADDRESS, *address);
    }
    answer.put(stun::LIFETIME, &seconds(lifetime));
    answer.put_address(stun::XOR_MAPPED_ADDRESS, allocation.client.address);
    answer
}

/// The families of the relayed addresses that are asked for (RFC 8656 section 7.2, items 8 to 10).
fn families(message: &Message<'_>) -> Result<[Option<Family>; 2], Code> {
    match (message.family, message.additional_family) {
        (Some(_), Some(_)) => Err(400),
        (None, Some(stun::IPV6)) => Ok([Some(Family::V4), Some(Family::V6)]),
        (None, Some(_)) => Err(400),
        (Some(one), None) => Ok([Some(family(one)?), None]),
        (None, None) => Ok([Some(Family::V4), None]),
    }
}

fn family(number: u8) -> Result<Family, Code> {
    match number {
        stun::IPV4 => Ok(Family::V4),
        stun::IPV6 => Ok(Family::V6),
        _ => Err(440),
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => stun::IPV4,
        Family::V6 => stun::IPV6,
    }
}

const fn socket_error(reason: NoSocket) -> Code {
    match reason {
        NoSocket::Family => 440,
        NoSocket::Full => 508,
    }
}

const fn refusal(refusal: Refusal) -> Code {
    match refusal {
        Refusal::Taken => 400,
        Refusal::Full => 508,
    }
}

fn seconds(lifetime: Duration) -> [u8; 4] {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).to_be_bytes()
}

pub(super) fn data_indication(peer: SocketAddr, data: &[u8], transaction: [u8; 12]) -> Option<Vec<u8>> {
    let peer_size = if peer.is_ipv4() { 12 } else { 24 };
    // the header counts what follows it in 16 bits; over IPv6 a datagram may have 65,527 bytes. A length that wrapped would make
    // messages of what the peer sent, in a stream
    if peer_size + 4 + data.len().next_multiple_of(4) > usize::from(u16::MAX) {
        return None;
    }
    let mut writer = Writer::new(MessageClass::Indication, stun::DATA, transaction);
    writer.put_address(stun::XOR_PEER_ADDRESS, peer);
    writer.put(stun::DATA_ATTRIBUTE, data);
    Some(writer.finish())
}

/// REQUESTED-TRANSPORT: the protocol number of UDP (RFC 8656 section 18.8).
const UDP: u8 = 17;
