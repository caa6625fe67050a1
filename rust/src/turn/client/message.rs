//! TURN messages as the client writes and reads them (RFC 8656 sections 5 and 18, RFC 8489 sections 5 and 14).
//!
//! Header, attributes and HMAC come from `stun-types`. The walk over attributes is here, as in `stun.rs` and for its reason: the
//! crate logs a warning for each broken datagram.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stun_types::attribute::{AttributeType, MessageIntegrity, RawAttribute};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageClass, MessageHeader, MessageType,
    MessageWrite, MessageWriteExt, MessageWriteVec, Method,
};
use subtle::ConstantTimeEq;

use crate::error::printable;

/// What is asked, with what makes it different from another of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Relayed addresses of these families.
    Allocate(Families),
    /// For another so many seconds; with 0 it ends.
    Refresh(u32),
    /// It also installs the permission for the peer's IP address (RFC 8656 section 12).
    ChannelBind(u16, SocketAddr),
}

/// The families that are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Families {
    Both,
    V4,
    V6,
}

/// Long-term credentials as a server knows them (RFC 8489 section 9.2).
#[derive(Clone)]
pub(super) struct Auth {
    username: String,
    realm: Vec<u8>,
    nonce: Vec<u8>,
    key: IntegrityKey,
}

impl Auth {
    /// `None` when the server's realm is no text.
    pub(super) fn new(username: &str, password: &str, realm: &[u8], nonce: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(realm).ok()?.to_owned();
        let key = LongTermKeyCredentials::new(username.to_owned(), password.to_owned(), text)
            .make_key(IntegrityAlgorithm::Sha1);
        Some(Self { username: username.to_owned(), realm: realm.to_vec(), nonce: nonce.to_vec(), key })
    }

    /// Also when none is named.
    pub(super) fn has_realm(&self, realm: Option<&[u8]>) -> bool {
        realm.is_none_or(|realm| self.realm == realm)
    }

    pub(super) fn has_nonce(&self, nonce: &[u8]) -> bool {
        self.nonce == nonce
    }

    pub(super) fn renew(&mut self, nonce: &[u8]) {
        self.nonce = nonce.to_vec();
    }
}

/// Writes a request. `None`: it cannot be signed.
pub(super) fn encode(question: Question, transaction: [u8; 12], auth: Option<&Auth>) -> Option<Vec<u8>> {
    let kind = MessageType::from_class_method(MessageClass::Request, question.method());
    let mut message = Message::builder(kind, id(transaction), MessageWriteVec::with_capacity(USUAL_SIZE));
    let mut add = |kind: u16, value: &[u8]| {
        message.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(kind), value));
    };
    match question {
        Question::Allocate(families) => {
            // the number of UDP and three reserved bytes (RFC 8656 section 18.8)
            add(REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            match families {
                // both may be ignored
                Families::Both => {
                    add(ADDITIONAL_ADDRESS_FAMILY, &[FAMILY_V6, 0, 0, 0]);
                    add(DRAFT_ADDITIONAL_ADDRESS_FAMILY, &[FAMILY_V6, 0, 0, 0]);
                }
                Families::V6 => add(REQUESTED_ADDRESS_FAMILY, &[FAMILY_V6, 0, 0, 0]),
                Families::V4 => {}
            }
        }
        Question::Refresh(seconds) => add(LIFETIME, &seconds.to_be_bytes()),
        Question::ChannelBind(number, peer) => {
            let number = number.to_be_bytes();
            add(CHANNEL_NUMBER, &[number[0], number[1], 0, 0]);
            add(XOR_PEER_ADDRESS, &xor(peer, transaction));
        }
    }
    if auth.is_none() {
        // a server that answers strangers with no more than they sent needs 52 bytes for nonce and realm
        add(SOFTWARE, NAME.as_bytes());
    }
    if let Some(auth) = auth {
        add(USERNAME, auth.username.as_bytes());
        add(REALM, &auth.realm);
        add(NONCE, &auth.nonce);
        message.add_message_integrity_with_key(&auth.key, IntegrityAlgorithm::Sha1).ok()?;
    }
    Some(message.finish())
}

fn transaction_of(message: &[u8]) -> Option<[u8; 12]> {
    message.get(8..20)?.try_into().ok()
}

impl Question {
    fn method(self) -> Method {
        Method::new(match self {
            Self::Allocate(_) => 0x003,
            Self::Refresh(_) => 0x004,
            Self::ChannelBind(..) => 0x009,
        })
    }
}

/// What a message says, as far as a client wants to know.
#[derive(Debug, Default)]
pub(super) struct Reply<'a> {
    pub success: bool,
    pub transaction: [u8; 12],
    /// The code and the text of an error response.
    pub error: Option<(u16, String)>,
    pub relayed: Vec<SocketAddr>,
    pub mapped: Option<SocketAddr>,
    pub lifetime: Option<u32>,
    pub realm: Option<&'a [u8]>,
    pub nonce: Option<&'a [u8]>,
    /// The server to ask in its place, and the name in its certificate.
    pub alternate: Option<SocketAddr>,
    pub alternate_domain: Option<&'a [u8]>,
    /// Where MESSAGE-INTEGRITY begins.
    integrity: Option<usize>,
}

/// A STUN message from a server.
#[derive(Debug)]
pub(super) enum Incoming<'a> {
    Reply(Reply<'a>),
    /// A Data indication: the peer, and what it sent.
    Data(SocketAddr, &'a [u8]),
}

/// Reads a message. `None`: broken, or nothing that a client is sent.
pub(super) fn decode(message: &[u8]) -> Option<Incoming<'_>> {
    let header = MessageHeader::from_bytes(message.get(..MessageHeader::LENGTH)?).ok()?;
    let transaction = transaction_of(message)?;
    if usize::from(header.data_length()) + MessageHeader::LENGTH != message.len() {
        return None;
    }
    let class = header.get_type().class();
    if class == MessageClass::Indication && header.get_type().method() == Method::new(DATA_METHOD) {
        return decode_data(message, transaction);
    }
    if !class.is_response() {
        return None;
    }
    let mut reply = Reply { success: class == MessageClass::Success, transaction, ..Reply::default() };
    for attribute in Attributes(message, MessageHeader::LENGTH) {
        let (offset, kind, value) = attribute?;
        if reply.integrity.is_some() {
            break; // what stands behind it is not covered
        }
        match kind {
            MESSAGE_INTEGRITY => reply.integrity = Some(offset),
            ERROR_CODE => reply.error = Some(error_code(value)?),
            XOR_RELAYED_ADDRESS if reply.relayed.len() < MAX_RELAYED => {
                reply.relayed.push(unxor(value, transaction)?);
            }
            XOR_MAPPED_ADDRESS => reply.mapped = Some(unxor(value, transaction)?),
            LIFETIME => reply.lifetime = Some(u32::from_be_bytes(value.try_into().ok()?)),
            REALM | NONCE if value.len() > MAX_QUOTED => return None,
            REALM => reply.realm = Some(value),
            NONCE => reply.nonce = Some(value),
            ALTERNATE_SERVER => reply.alternate = address(value, [0; 16]),
            ALTERNATE_DOMAIN => reply.alternate_domain = Some(value),
            _ => {}
        }
    }
    Some(Incoming::Reply(reply))
}

impl Reply<'_> {
    pub(super) fn is_signed(&self) -> bool {
        self.integrity.is_some()
    }

    /// Whether MESSAGE-INTEGRITY is there and right (RFC 8489 section 14.5).
    pub(super) fn is_signed_by(&self, auth: &Auth, message: &[u8]) -> bool {
        let Some(offset) = self.integrity else { return false };
        let claimed = message.get(offset + ATTRIBUTE_HEADER..offset + ATTRIBUTE_HEADER + SHA1_BYTES);
        let covered = message.get(..offset).and_then(|covered| covered.split_at_checked(4));
        let (Some(claimed), Some((start, rest))) = (claimed, covered) else { return false };
        // as if the message ended behind the attribute
        let end = offset + ATTRIBUTE_HEADER + SHA1_BYTES - MessageHeader::LENGTH;
        let length = u16::try_from(end).unwrap_or(u16::MAX).to_be_bytes();
        let start = [start[0], start[1], length[0], length[1]];
        MessageIntegrity::compute(&[&start, rest], &auth.key).is_ok_and(|right| right.ct_eq(claimed).into())
    }
}

fn decode_data(message: &[u8], transaction: [u8; 12]) -> Option<Incoming<'_>> {
    let (mut peer, mut data) = (None, None);
    for attribute in Attributes(message, MessageHeader::LENGTH) {
        match attribute? {
            (_, XOR_PEER_ADDRESS, value) => peer = unxor(value, transaction),
            (_, DATA, value) => data = Some(value),
            _ => {}
        }
    }
    Some(Incoming::Data(peer?, data?))
}

/// The attributes of a message from an offset on: where each begins, its type, its value. `None` in place of a broken one, which
/// is the last.
struct Attributes<'a>(&'a [u8], usize);

impl<'a> Iterator for Attributes<'a> {
    type Item = Option<(usize, u16, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self(message, offset) = *self;
        let rest = message.get(offset..).filter(|rest| !rest.is_empty())?;
        let attribute = (|| {
            let kind = u16::from_be_bytes(rest.get(..2)?.try_into().ok()?);
            let length = usize::from(u16::from_be_bytes(rest.get(2..4)?.try_into().ok()?));
            let value = rest.get(ATTRIBUTE_HEADER..ATTRIBUTE_HEADER + length)?;
            Some((offset, kind, value))
        })();
        self.1 = attribute.map_or(message.len(), |(_, _, value)| {
            (offset + ATTRIBUTE_HEADER + value.len().next_multiple_of(4)).min(message.len())
        });
        Some(attribute)
    }
}

/// RFC 8489 section 14.8. The text goes into errors that people read: bounded, and without control characters.
fn error_code(value: &[u8]) -> Option<(u16, String)> {
    let &[_, _, class, number, ref text @ ..] = value else { return None };
    let text: String = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
    let text = printable(text, MAX_TEXT);
    Some((u16::from(class & 7) * 100 + u16::from(number.min(99)), text.trim().to_owned()))
}

/// RFC 8489 section 14.2.
fn xor(address: SocketAddr, transaction: [u8; 12]) -> Vec<u8> {
    let mask = mask(transaction);
    let port = address.port() ^ u16::from_be_bytes([mask[0], mask[1]]);
    let family = if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 };
    let mut value = vec![0, family];
    value.extend_from_slice(&port.to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => value.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask)),
        IpAddr::V6(ip) => value.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask)),
    }
    value
}

fn unxor(value: &[u8], transaction: [u8; 12]) -> Option<SocketAddr> {
    address(value, mask(transaction))
}

fn address(value: &[u8], mask: [u8; 16]) -> Option<SocketAddr> {
    let &[_, family, high, low, ref ip @ ..] = value else { return None };
    let port = u16::from_be_bytes([high, low]) ^ u16::from_be_bytes([mask[0], mask[1]]);
    let mut bytes = [0; 16];
    let plain = bytes.get_mut(..ip.len())?;
    plain.iter_mut().zip(ip).zip(mask).for_each(|((plain, byte), mask)| *plain = byte ^ mask);
    let ip: IpAddr = match (family, ip.len()) {
        (FAMILY_V4, 4) => Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into(),
        (FAMILY_V6, 16) => Ipv6Addr::from(bytes).into(),
        _ => return None,
    };
    Some((ip, port).into())
}

/// The magic cookie and the transaction.
fn mask(transaction: [u8; 12]) -> [u8; 16] {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&COOKIE);
    mask[4..].copy_from_slice(&transaction);
    mask
}

fn id(transaction: [u8; 12]) -> stun_types::message::TransactionId {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&transaction);
    u128::from_be_bytes(wide).into()
}

/// RFC 8489 section 5.
const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// RFC 8489 section 14: type and length.
const ATTRIBUTE_HEADER: usize = 4;
const SHA1_BYTES: usize = 20;
const FAMILY_V4: u8 = 1;
const FAMILY_V6: u8 = 2;
/// RFC 8656 section 17.
const DATA_METHOD: u16 = 0x007;
// RFC 8489 section 18.3, RFC 8656 section 18
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const CHANNEL_NUMBER: u16 = 0x000c;
const LIFETIME: u16 = 0x000d;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const DATA: u16 = 0x0013;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_ADDRESS_FAMILY: u16 = 0x0017;
const REQUESTED_TRANSPORT: u16 = 0x0019;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8000;
const ALTERNATE_DOMAIN: u16 = 0x8003;
const SOFTWARE: u16 = 0x8022;
const ALTERNATE_SERVER: u16 = 0x8023;
const NAME: &str = concat!("keynet/", env!("CARGO_PKG_VERSION"), " (RFC 8656)");
/// The number that it had before RFC 8656, and that coturn 4.6 knows.
const DRAFT_ADDITIONAL_ADDRESS_FAMILY: u16 = 0x8032;
/// One of each family is all that can be asked for.
const MAX_RELAYED: usize = 2;
/// RFC 8489 section 14.8: a reason phrase has fewer than 128 characters.
const MAX_TEXT: usize = 128;
/// RFC 8489 sections 14.9 and 14.10: what a realm or a nonce may take. Every request repeats both.
const MAX_QUOTED: usize = 763;
/// A Refresh: header 20, LIFETIME 8, a name, realm and nonce of some 30 bytes each, MESSAGE-INTEGRITY 24.
const USUAL_SIZE: usize = 192;

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSACTION: [u8; 12] = [7; 12];

    /// What a server would send: built with the same pieces.
    pub(super) fn response(class: MessageClass, attributes: &[(u16, Vec<u8>)], auth: Option<&Auth>) -> Vec<u8> {
        let kind = MessageType::from_class_method(class, Method::new(0x003));
        let mut message = Message::builder(kind, id(TRANSACTION), MessageWriteVec::new());
        for (kind, value) in attributes {
            message.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(*kind), value));
        }
        if let Some(auth) = auth {
            message.add_message_integrity_with_key(&auth.key, IntegrityAlgorithm::Sha1).unwrap();
        }
        message.finish()
    }

    fn reply(message: &[u8]) -> Reply<'_> {
        match decode(message) {
            Some(Incoming::Reply(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn addresses_of_both_families_survive() {
        for address in ["192.0.2.7:65535", "[2001:db8::7]:1"] {
            let address: SocketAddr = address.parse().unwrap();
            assert_eq!(unxor(&xor(address, TRANSACTION), TRANSACTION), Some(address));
        }
        assert_eq!(unxor(&[0, 1, 0, 0, 1, 2, 3], TRANSACTION), None);
        assert_eq!(unxor(&[0, 2, 0, 0, 1, 2, 3, 4], TRANSACTION), None);
        assert_eq!(unxor(&[0; 40], TRANSACTION), None);
    }

    #[test]
    fn the_first_question_leaves_room_for_the_answer_to_a_stranger() {
        for families in [Families::Both, Families::V4, Families::V6] {
            let first = encode(Question::Allocate(families), [7; 12], None).unwrap();
            // header, ERROR-CODE without a text, NONCE and REALM of our own server (docs/relay.md)
            assert!(first.len() >= 52 && first.len().is_multiple_of(4), "{} bytes", first.len());
        }
    }

    #[test]
    fn a_success_is_read_and_its_signature_checked() {
        let auth = Auth::new("user", "password", b"realm", b"nonce").unwrap();
        let relayed: Vec<SocketAddr> = vec!["192.0.2.1:5000".parse().unwrap(), "[2001:db8::1]:5001".parse().unwrap()];
        let mut attributes: Vec<_> =
            relayed.iter().map(|address| (XOR_RELAYED_ADDRESS, xor(*address, TRANSACTION))).collect();
        attributes.push((LIFETIME, 600_u32.to_be_bytes().to_vec()));
        let mut message = response(MessageClass::Success, &attributes, Some(&auth));
        let read = reply(&message);
        assert!(read.success && read.is_signed_by(&auth, &message));
        assert_eq!((read.relayed, read.lifetime), (relayed, Some(600)));
        let other = Auth::new("user", "another", b"realm", b"nonce").unwrap();
        assert!(!reply(&message).is_signed_by(&other, &message));
        message[27] ^= 1; // of a port
        assert!(!reply(&message).is_signed_by(&auth, &message));
    }

    #[test]
    fn another_server_is_named_without_a_mask() {
        let alternate = (ALTERNATE_SERVER, vec![0, 1, 0x0d, 0x96, 192, 0, 2, 7]);
        let attributes = [(ERROR_CODE, vec![0, 0, 3, 0]), alternate, (ALTERNATE_DOMAIN, b"b.example".to_vec())];
        let message = response(MessageClass::Error, &attributes, None);
        let read = reply(&message);
        assert_eq!(read.alternate, Some("192.0.2.7:3478".parse().unwrap()));
        assert_eq!(read.alternate_domain, Some(&b"b.example"[..]));
        let broken = [(ERROR_CODE, vec![0, 0, 3, 0]), (ALTERNATE_SERVER, vec![0, 1, 2])];
        assert_eq!(reply(&response(MessageClass::Error, &broken, None)).alternate, None);
    }

    #[test]
    fn an_error_has_a_code_and_a_clean_text() {
        let mut value = vec![0, 0, 4, 86];
        value.extend_from_slice(b"Allocation\r\nQuota Reached");
        let message = response(MessageClass::Error, &[(ERROR_CODE, value)], None);
        let read = reply(&message);
        assert_eq!(read.error, Some((486, "AllocationQuota Reached".to_owned())));
        assert!(!read.success && !read.is_signed());
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_arrives_panics(mut message in proptest::collection::vec(proptest::num::u8::ANY, 0..200), honest: bool) {
            if honest && message.len() >= 20 {
                let length = u16::try_from(message.len() - 20).unwrap().to_be_bytes();
                (message[0], message[1], message[2], message[3]) = (message[0] & 1, 0x03 | (message[1] & 0x17), length[0], length[1]);
                message[4..8].copy_from_slice(&COOKIE);
            }
            if let Some(Incoming::Reply(reply)) = decode(&message) {
                let auth = Auth::new("user", "password", b"realm", b"nonce").unwrap();
                proptest::prop_assert!(!reply.is_signed_by(&auth, &message));
            }
        }
    }
}
