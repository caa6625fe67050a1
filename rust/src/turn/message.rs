//! STUN messages of TURN (RFC 8489, RFC 8656 section 18): one walk over what arrived, and a writer for what is answered.
//!
//! Header and attributes are built with `stun-types`; the walk is here because the crate logs a warning for each broken
//! datagram, which strangers could use to flood the log (`stun.rs` says the same of pings).

use std::net::{IpAddr, SocketAddr};

use aws_lc_rs::hmac;
use stun_types::attribute::{AttributeType, Fingerprint, RawAttribute};
use stun_types::message::{
    Message as StunMessage, MessageHeader, MessageType, MessageWrite, MessageWriteVec, Method, TransactionId,
};
use subtle::ConstantTimeEq;

use super::credentials::Key;

pub use stun_types::message::MessageClass;

pub const BINDING: u16 = 0x001;
pub const ALLOCATE: u16 = 0x003;
pub const REFRESH: u16 = 0x004;
pub const SEND: u16 = 0x006;
pub const DATA: u16 = 0x007;
pub const CREATE_PERMISSION: u16 = 0x008;
pub const CHANNEL_BIND: u16 = 0x009;

pub const USERNAME: u16 = 0x0006;
pub const MESSAGE_INTEGRITY: u16 = 0x0008;
pub const ERROR_CODE: u16 = 0x0009;
pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
pub const CHANNEL_NUMBER: u16 = 0x000c;
pub const LIFETIME: u16 = 0x000d;
pub const XOR_PEER_ADDRESS: u16 = 0x0012;
pub const DATA_ATTRIBUTE: u16 = 0x0013;
pub const REALM: u16 = 0x0014;
pub const NONCE: u16 = 0x0015;
pub const XOR_RELAYED_ADDRESS: u16 = 0x0016;
pub const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
pub const EVEN_PORT: u16 = 0x0018;
pub const REQUESTED_TRANSPORT: u16 = 0x0019;
pub const DONT_FRAGMENT: u16 = 0x001a;
pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
pub const PASSWORD_ALGORITHM: u16 = 0x001d;
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
pub const RESERVATION_TOKEN: u16 = 0x0022;
pub const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
pub const ADDRESS_ERROR_CODE: u16 = 0x8001;
pub const PASSWORD_ALGORITHMS: u16 = 0x8002;
pub const FINGERPRINT: u16 = 0x8028;

/// Which hash signs a message. The answer has the one that the request had (RFC 8489 section 9.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    Sha1,
    Sha256,
}

impl Integrity {
    const fn attribute(self) -> u16 {
        match self {
            Self::Sha1 => MESSAGE_INTEGRITY,
            Self::Sha256 => MESSAGE_INTEGRITY_SHA256,
        }
    }

    const fn length(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    fn algorithm(self) -> hmac::Algorithm {
        match self {
            Self::Sha1 => hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => hmac::HMAC_SHA256,
        }
    }
}

/// A message, as far as a TURN server cares. Of attributes that come twice the first counts (RFC 8489 section 14).
#[derive(Clone, Debug)]
pub struct Message<'a> {
    pub class: MessageClass,
    pub method: u16,
    pub transaction: [u8; 12],
    pub username: Option<&'a [u8]>,
    pub realm: Option<&'a [u8]>,
    pub nonce: Option<&'a [u8]>,
    pub lifetime: Option<u32>,
    pub transport: Option<u8>,
    pub family: Option<u8>,
    pub additional_family: Option<u8>,
    pub channel: Option<u16>,
    pub data: Option<&'a [u8]>,
    /// The first [`MAX_PEERS`].
    pub peers: Vec<SocketAddr>,
    pub too_many_peers: bool,
    /// Of an answer.
    pub relayed: Option<SocketAddr>,
    /// EVEN-PORT; with its bit, or with RESERVATION-TOKEN, `reserves_ports` too.
    pub even_port: bool,
    pub reserves_ports: bool,
    /// Attributes that have to be understood and are not, the first [`MAX_UNKNOWN`].
    pub unknown: Vec<u16>,
    integrity: Option<(Integrity, usize)>,
    datagram: &'a [u8],
}

/// Not a STUN message, or a broken one: nothing is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl<'a> Message<'a> {
    pub fn read(datagram: &'a [u8]) -> Result<Self, Malformed> {
        if datagram.len() < MessageHeader::LENGTH {
            return Err(Malformed);
        }
        let header = MessageHeader::from_bytes(datagram).map_err(|_| Malformed)?;
        let length = usize::from(header.data_length());
        if length + MessageHeader::LENGTH != datagram.len() || !length.is_multiple_of(4) {
            return Err(Malformed);
        }
        let mut message = Self {
            class: header.get_type().class(),
            method: header.get_type().method().value(),
            transaction: *datagram.get(8..20).and_then(<[u8]>::first_chunk).ok_or(Malformed)?,
            username: None,
            realm: None,
            nonce: None,
            lifetime: None,
            transport: None,
            family: None,
            additional_family: None,
            channel: None,
            data: None,
            peers: vec![],
            too_many_peers: false,
            relayed: None,
            even_port: false,
            reserves_ports: false,
            unknown: vec![],
            integrity: None,
            datagram,
        };
        message.walk()?;
        Ok(message)
    }

    fn walk(&mut self) -> Result<(), Malformed> {
        let mut offset = MessageHeader::LENGTH;
        while let Some(rest) = self.datagram.get(offset..).filter(|rest| !rest.is_empty()) {
            let [a, b, c, d] = *rest.first_chunk().ok_or(Malformed)?;
            let (kind, length) = (u16::from_be_bytes([a, b]), usize::from(u16::from_be_bytes([c, d])));
            let value = rest.get(4..4 + length).ok_or(Malformed)?;
            let size = 4 + length.next_multiple_of(4);
            if size > rest.len() {
                return Err(Malformed);
            }
            if kind == FINGERPRINT {
                // the last attribute, whatever else stands behind it
                return self.check_fingerprint(offset, value);
            }
            self.take(kind, value, offset)?;
            offset += size;
        }
        Ok(())
    }

    fn take(&mut self, kind: u16, value: &'a [u8], offset: usize) -> Result<(), Malformed> {
        let signed = match kind {
            MESSAGE_INTEGRITY => Some(Integrity::Sha1),
            MESSAGE_INTEGRITY_SHA256 => Some(Integrity::Sha256),
            _ => None,
        };
        if let Some(integrity) = signed {
            if value.len() != integrity.length() {
                return Err(Malformed);
            }
            // of both, the first covers what counts; the other stands behind it (RFC 8489 section 14.6)
            self.integrity = self.integrity.or(Some((integrity, offset)));
            return Ok(());
        }
        if self.integrity.is_some() {
            // RFC 8489 section 14.5: what follows is not covered, and ignored
            return Ok(());
        }
        match kind {
            USERNAME => first(&mut self.username, Some(value)),
            REALM => first(&mut self.realm, Some(value)),
            NONCE => first(&mut self.nonce, Some(value)),
            LIFETIME => first(&mut self.lifetime, Some(u32::from_be_bytes(exactly(value)?))),
            REQUESTED_TRANSPORT => first(&mut self.transport, Some(exactly::<4>(value)?[0])),
            REQUESTED_ADDRESS_FAMILY => first(&mut self.family, Some(exactly::<4>(value)?[0])),
            ADDITIONAL_ADDRESS_FAMILY => first(&mut self.additional_family, Some(exactly::<4>(value)?[0])),
            CHANNEL_NUMBER => {
                let [a, b, _, _] = exactly(value)?;
                first(&mut self.channel, Some(u16::from_be_bytes([a, b])));
            }
            DATA_ATTRIBUTE => first(&mut self.data, Some(value)),
            XOR_PEER_ADDRESS => {
                let peer = read_address(value, &self.transaction).ok_or(Malformed)?;
                match self.peers.len() < MAX_PEERS {
                    true => self.peers.push(peer),
                    false => self.too_many_peers = true,
                }
            }
            XOR_RELAYED_ADDRESS => {
                let relayed = read_address(value, &self.transaction).ok_or(Malformed)?;
                first(&mut self.relayed, Some(relayed));
            }
            EVEN_PORT => {
                self.even_port = true;
                self.reserves_ports |= value.first().ok_or(Malformed)? & RESERVE_NEXT != 0;
            }
            RESERVATION_TOKEN => self.reserves_ports = true,
            // every datagram leaves with the bit that forbids fragments
            DONT_FRAGMENT => {}
            // RFC 8489 section 9.2.4: what a client echoes of a choice that is not offered here says nothing
            PASSWORD_ALGORITHM | PASSWORD_ALGORITHMS => {}
            _ if kind >= OPTIONAL => {}
            // USERHASH among them: names are not hidden here, and none is offered
            _ if self.unknown.len() < MAX_UNKNOWN => self.unknown.push(kind),
            _ => {}
        }
        Ok(())
    }

    fn check_fingerprint(&self, offset: usize, value: &[u8]) -> Result<(), Malformed> {
        let claimed: [u8; 4] = exactly(value)?;
        let (start, rest) = self.datagram.get(..offset).and_then(|all| all.split_at_checked(4)).ok_or(Malformed)?;
        let start = with_length(start, offset + 8);
        let sum = Fingerprint::compute(&[&start, rest]);
        // RFC 8489 section 14.7: so that it differs from the sums of other protocols
        let masked = std::array::from_fn(|n| sum[n] ^ b"STUN"[n]);
        match masked == claimed {
            true => Ok(()),
            false => Err(Malformed),
        }
    }

    /// Which hash signs it, if any.
    pub fn integrity(&self) -> Option<Integrity> {
        self.integrity.map(|(integrity, _)| integrity)
    }

    /// Whether the signature is right under this key. Compared in constant time.
    pub fn is_signed_with(&self, key: &Key) -> bool {
        let Some((integrity, offset)) = self.integrity else { return false };
        let value = offset + 4..offset + 4 + integrity.length();
        let (Some(covered), Some(claimed)) = (self.datagram.get(..offset), self.datagram.get(value)) else {
            return false;
        };
        sign(covered, key, integrity).as_ref().ct_eq(claimed).into()
    }
}

fn first<T>(place: &mut Option<T>, value: Option<T>) {
    if place.is_none() {
        *place = value;
    }
}

fn exactly<const N: usize>(value: &[u8]) -> Result<[u8; N], Malformed> {
    value.try_into().map_err(|_| Malformed)
}

/// The HMAC over all that stands before it, with a length that ends behind it (RFC 8489 section 14.5).
fn sign(covered: &[u8], key: &Key, integrity: Integrity) -> hmac::Tag {
    let (start, rest) = covered.split_at_checked(4).unwrap_or((covered, &[]));
    let mut context = hmac::Context::with_key(&hmac::Key::new(integrity.algorithm(), key));
    context.update(&with_length(start, covered.len() + 4 + integrity.length()));
    context.update(rest);
    context.sign()
}

/// The first four bytes of a header, for a message that ends at `end`.
fn with_length(start: &[u8], end: usize) -> [u8; 4] {
    let length = u16::try_from(end.saturating_sub(MessageHeader::LENGTH)).unwrap_or(u16::MAX).to_be_bytes();
    [start.first().copied().unwrap_or(0), start.get(1).copied().unwrap_or(0), length[0], length[1]]
}

/// An address as XOR-MAPPED-ADDRESS has it (RFC 8489 section 14.2).
fn read_address(value: &[u8], transaction: &[u8; 12]) -> Option<SocketAddr> {
    let (&[_, family, high, low], rest) = value.split_first_chunk()?;
    let port = u16::from_be_bytes([high, low]) ^ COOKIE_HIGH;
    let ip = match (family, rest.len()) {
        (IPV4, 4) => IpAddr::from(masked::<4>(rest.try_into().ok()?, transaction)),
        (IPV6, 16) => IpAddr::from(masked::<16>(rest.try_into().ok()?, transaction)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn address_value(address: SocketAddr, transaction: &[u8; 12]) -> Vec<u8> {
    let [high, low] = (address.port() ^ COOKIE_HIGH).to_be_bytes();
    match address.ip() {
        IpAddr::V4(v4) => [&[0, IPV4, high, low][..], &masked(v4.octets(), transaction)].concat(),
        IpAddr::V6(v6) => [&[0, IPV6, high, low][..], &masked(v6.octets(), transaction)].concat(),
    }
}

/// Exclusive or with the cookie and the transaction.
fn masked<const N: usize>(mut bytes: [u8; N], transaction: &[u8; 12]) -> [u8; N] {
    for (byte, mask) in bytes.iter_mut().zip(COOKIE.iter().chain(transaction)) {
        *byte ^= mask;
    }
    bytes
}

/// A message being written.
pub struct Writer {
    message: MessageWriteVec,
    transaction: [u8; 12],
}

impl Writer {
    pub fn new(class: MessageClass, method: u16, transaction: [u8; 12]) -> Self {
        let mut wide = [0; 16];
        wide[4..].copy_from_slice(&transaction);
        let id: TransactionId = u128::from_be_bytes(wide).into();
        let kind = MessageType::from_class_method(class, Method::new(method));
        let message = StunMessage::builder(kind, id, MessageWriteVec::with_capacity(USUAL));
        Self { message, transaction }
    }

    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.message.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(kind), value));
    }

    pub fn put_address(&mut self, kind: u16, address: SocketAddr) {
        let value = address_value(address, &self.transaction);
        self.put(kind, &value);
    }

    /// Without a text: the number says it all, and an answer to a stranger has to be short.
    pub fn put_error(&mut self, code: u16) {
        let (class, number) = ((code / 100) as u8, (code % 100) as u8);
        self.put(ERROR_CODE, &[0, 0, class, number]);
    }

    /// ADDRESS-ERROR-CODE (RFC 8656 section 18.12).
    pub fn put_address_error(&mut self, family: u8, code: u16) {
        self.put(ADDRESS_ERROR_CODE, &[family, 0, (code / 100) as u8, (code % 100) as u8]);
    }

    pub fn sign(&mut self, key: &Key, integrity: Integrity) {
        let tag = sign(self.message.data(), key, integrity);
        self.put(integrity.attribute(), tag.as_ref());
    }

    pub fn finish(self) -> Vec<u8> {
        self.message.finish()
    }
}

/// RFC 8489 section 14.1.
pub const IPV4: u8 = 1;
pub const IPV6: u8 = 2;
/// EVEN-PORT: the port above it, too, for another allocation (RFC 8656 section 18.7).
const RESERVE_NEXT: u8 = 0x80;
/// RFC 8489 section 14: attributes from here on may be skipped by those who do not know them.
const OPTIONAL: u16 = 0x8000;
/// RFC 8489 section 5.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const COOKIE_HIGH: u16 = 0x2112;
/// More permissions than this in one request are refused; clients ask for one or a few.
pub const MAX_PEERS: usize = 32;
/// Unknown attributes that are named in error 420.
const MAX_UNKNOWN: usize = 8;
/// An answer with an address of each kind and a signature.
const USUAL: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_coturn_asks_first_is_read() {
        // turnutils_uclient of coturn 4.6.1, as it left its socket
        let hex =
            b"000300202112a44220b073a82a913ea85d1ac4af0019000411000000000d0004000003090017000401000000802800042f9e3de0";
        let mut bytes = data_encoding::HEXLOWER.decode(hex).unwrap();
        let message = Message::read(&bytes).unwrap();
        assert_eq!((message.method, message.transport, message.lifetime), (ALLOCATE, Some(17), Some(777)));
        assert_eq!(message.family, Some(IPV4));
        assert!(message.unknown.is_empty() && message.integrity().is_none());
        bytes[40] ^= 1;
        assert_eq!(Message::read(&bytes).unwrap_err(), Malformed, "the fingerprint does not fit");
    }

    #[test]
    fn addresses_are_read_as_they_are_written() {
        for text in ["192.0.2.1:32853", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"] {
            let (address, transaction) = (text.parse().unwrap(), [7; 12]);
            assert_eq!(read_address(&address_value(address, &transaction), &transaction), Some(address));
        }
        // RFC 5769 section 2.2: 192.0.2.1:32853
        let transaction = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];
        let value = [0x00, 0x01, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        assert_eq!(read_address(&value, &transaction), Some("192.0.2.1:32853".parse().unwrap()));
    }

    #[test]
    fn the_sample_request_of_rfc_5769_is_read_and_its_signature_is_right() {
        // section 2.4: long-term authentication
        let hex = b"000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b900000015001c66\
            2f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f72670000080014f67024656dd64a3e02\
            b8e0712e85c9a28ca89666";
        let hex: Vec<u8> = hex.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let bytes = data_encoding::HEXLOWER.decode(&hex).unwrap();
        let message = Message::read(&bytes).unwrap();
        let name = message.username.unwrap();
        let key = crate::turn::credentials::long_term_key(name, "example.org", "TheMatrIX");
        assert!(message.is_signed_with(&key));
        assert!(!message.is_signed_with(&[0; 16]));
    }
}
