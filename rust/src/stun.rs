//! Pings and pongs: STUN Binding requests and success responses (RFC 8489; docs/protocol.md section 2).
//!
//! Attributes and header come from the crate `stun-types`. The walk over the attributes is here, for two reasons: the
//! crate logs a warning for each broken datagram, which strangers could use to flood the log, and it takes passwords
//! as text, while the keys of pings are 32 arbitrary bytes.

use std::fmt;
use std::net::SocketAddr;

use aws_lc_rs::hmac;
use data_encoding::HEXLOWER;
use stun_types::attribute::{
    pad_attribute_len, AttributeFromRaw, AttributeStaticType, AttributeType, Fingerprint, MessageIntegritySha256,
    RawAttribute, Username, XorMappedAddress,
};
use stun_types::message::{
    Message as StunMessage, MessageClass, MessageHeader, MessageType, MessageWrite, MessageWriteVec, TransactionId,
    BINDING,
};
use subtle::ConstantTimeEq;

use crate::addr::Incarnation;

/// A Binding request that may be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    pub transaction: [u8; 12],
    /// The session name in USERNAME: the ping claims to be keyed, and [`verify`] has to confirm it.
    pub session: Option<[u8; 16]>,
    /// Which life of its node the sender is, as it says.
    pub incarnation: Option<Incarnation>,
}

/// An indication that the sender ends: it says so under a session, once, and hears nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Goodbye {
    pub transaction: [u8; 12],
    /// The session; [`verify`] has to confirm it.
    pub session: [u8; 16],
}

/// A Binding success response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    pub transaction: [u8; 12],
    /// The address that our ping was seen to come from.
    pub observed: SocketAddr,
    /// It carries MESSAGE-INTEGRITY-SHA256; whether that is right, [`verify`] says.
    pub keyed: bool,
    /// Which life of its node the sender is, as it says.
    pub incarnation: Option<Incarnation>,
}

/// A well-formed STUN message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Ping(Ping),
    Pong(Pong),
    Goodbye(Goodbye),
    /// Nothing that keynet answers or waits for: error responses, indications, other methods, requests that demand what
    /// keynet does not do (a comprehension-required attribute it does not know, RFC 8489 section 6.3.1;
    /// MESSAGE-INTEGRITY-SHA256 without a session name in USERNAME), responses without an address.
    Other,
}

/// Why a datagram is not a STUN message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header, no magic cookie, or the first two bits are not zero.
    NotStun,
    /// The length in the header is not that of the datagram, or not a multiple of four.
    Length,
    /// An attribute reaches beyond the end, or its value has a wrong size.
    Attribute(u16),
    /// FINGERPRINT does not fit the rest (RFC 8489 section 14.7).
    Fingerprint,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotStun => f.write_str("not a STUN message"),
            Self::Length => f.write_str("the length in the STUN header is not that of the datagram"),
            Self::Attribute(kind) => write!(f, "STUN attribute {kind:#06x} is broken"),
            Self::Fingerprint => f.write_str("the STUN fingerprint is wrong"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Reads a STUN message. Needs no key: whether a keyed one is genuine, [`verify`] says.
pub fn decode(datagram: &[u8]) -> Result<Message, Malformed> {
    let parts = scan(datagram)?;
    if parts.kind.method() != BINDING || parts.demands_the_unknown {
        return Ok(Message::Other);
    }
    let Parts { transaction, incarnation, .. } = parts;
    Ok(match parts.kind.class() {
        MessageClass::Request => match (parts.username, parts.integrity) {
            (None, None) => Message::Ping(Ping { transaction, session: None, incarnation: None }),
            (Some(name), _) => match session_name(name) {
                Some(session) => Message::Ping(Ping { transaction, session: Some(session), incarnation }),
                None => Message::Other,
            },
            (None, Some(_)) => Message::Other,
        },
        MessageClass::Success => match parts.observed {
            Some(observed) => {
                let keyed = parts.integrity.is_some();
                Message::Pong(Pong { transaction, observed, keyed, incarnation: incarnation.filter(|_| keyed) })
            }
            None => Message::Other,
        },
        MessageClass::Indication => match (parts.username.and_then(session_name), parts.integrity) {
            (Some(session), Some(_)) if parts.goodbye => Message::Goodbye(Goodbye { transaction, session }),
            _ => Message::Other,
        },
        MessageClass::Error => Message::Other,
    })
}

/// Whether the message carries a right MESSAGE-INTEGRITY-SHA256 (RFC 8489 section 14.6) under this key: all 32 bytes,
/// compared in constant time, and nothing but FINGERPRINT behind it, so that everything [`decode`] reports is
/// covered.
pub fn verify(datagram: &[u8], key: &[u8; 32]) -> bool {
    let Ok(parts) = scan(datagram) else { return false };
    let Some(offset) = parts.integrity else { return false };
    if parts.uncovered {
        return false;
    }
    let value = offset + ATTRIBUTE_HEADER;
    let (Some(covered), Some(claimed)) = (datagram.get(..offset), datagram.get(value..value + TAG)) else {
        return false;
    };
    tag(covered, key).as_ref().ct_eq(claimed).into()
}

/// Appends a ping to `out`. Keyed: `keys` are the receiver's session name and the key.
///
/// Padded, so that the pong (which carries an address of 4 or 16 bytes, and a tag when keyed) is never larger.
pub fn encode_ping(out: &mut Vec<u8>, transaction: [u8; 12], keys: Option<(&[u8; 16], &[u8; 32])>) {
    let mut message = begin(MessageClass::Request, transaction);
    match keys {
        Some((name, key)) => {
            push_name(&mut message, name);
            sign(&mut message, key);
        }
        None => message.push_attribute_unchecked(&RawAttribute::new(PADDING, &[0; PADDING_BYTES])),
    }
    out.extend_from_slice(&message.finish());
}

/// Appends a keyed ping that says which life of its node the sender is, as the first ones of a session do.
pub fn encode_introduction(
    out: &mut Vec<u8>,
    transaction: [u8; 12],
    (name, key): (&[u8; 16], &[u8; 32]),
    incarnation: &Incarnation,
) {
    let mut message = begin(MessageClass::Request, transaction);
    push_name(&mut message, name);
    message.push_attribute_unchecked(&RawAttribute::new(INCARNATION, incarnation));
    sign(&mut message, key);
    out.extend_from_slice(&message.finish());
}

/// Appends a goodbye to `out`; `keys` as for a ping.
pub fn encode_goodbye(out: &mut Vec<u8>, transaction: [u8; 12], (name, key): (&[u8; 16], &[u8; 32])) {
    let mut message = begin(MessageClass::Indication, transaction);
    push_name(&mut message, name);
    message.push_attribute_unchecked(&RawAttribute::new(GOODBYE, &[]));
    sign(&mut message, key);
    out.extend_from_slice(&message.finish());
}

/// Appends a pong to `out`, unless it would be larger than `room`, the size of the ping: then nothing is written and
/// the answer is false.
pub fn encode_pong(
    out: &mut Vec<u8>,
    transaction: [u8; 12],
    observed: SocketAddr,
    key: Option<&[u8; 32]>,
    room: usize,
) -> bool {
    encode_answer(out, transaction, observed, key, None, room)
}

/// The same, with the incarnation of who answers: to a keyed ping that named the sender's.
pub fn encode_answer(
    out: &mut Vec<u8>,
    transaction: [u8; 12],
    observed: SocketAddr,
    key: Option<&[u8; 32]>,
    incarnation: Option<&Incarnation>,
    room: usize,
) -> bool {
    let mut message = begin(MessageClass::Success, transaction);
    message.push_attribute_unchecked(&XorMappedAddress::new(observed, transaction_id(transaction)));
    if let Some(key) = key {
        if let Some(incarnation) = incarnation {
            message.push_attribute_unchecked(&RawAttribute::new(INCARNATION, incarnation));
        }
        sign(&mut message, key);
    }
    if message.len() > room {
        return false;
    }
    out.extend_from_slice(&message.finish());
    true
}

/// What one walk over the attributes finds.
struct Parts<'a> {
    kind: MessageType,
    transaction: [u8; 12],
    username: Option<&'a [u8]>,
    observed: Option<SocketAddr>,
    incarnation: Option<Incarnation>,
    goodbye: bool,
    /// Where MESSAGE-INTEGRITY-SHA256 begins.
    integrity: Option<usize>,
    /// Something other than FINGERPRINT stands behind MESSAGE-INTEGRITY-SHA256, or that has not its full length.
    uncovered: bool,
    demands_the_unknown: bool,
}

fn scan(datagram: &[u8]) -> Result<Parts<'_>, Malformed> {
    if datagram.len() < MessageHeader::LENGTH {
        return Err(Malformed::NotStun);
    }
    let header = MessageHeader::from_bytes(datagram).map_err(|_| Malformed::NotStun)?;
    let length = usize::from(header.data_length());
    if length + MessageHeader::LENGTH != datagram.len() || !length.is_multiple_of(4) {
        return Err(Malformed::Length);
    }
    let mut parts = Parts {
        kind: header.get_type(),
        transaction: transaction_bytes(header.transaction_id()),
        username: None,
        observed: None,
        incarnation: None,
        goodbye: false,
        integrity: None,
        uncovered: false,
        demands_the_unknown: false,
    };
    let mut offset = MessageHeader::LENGTH;
    let mut ended = false;
    while let Some(rest) = datagram.get(offset..).filter(|rest| !rest.is_empty()) {
        let attribute = RawAttribute::from_bytes(rest).map_err(|_| Malformed::Attribute(leading_type(rest)))?;
        let size = ATTRIBUTE_HEADER + pad_attribute_len(attribute.value.len());
        if size > rest.len() {
            return Err(Malformed::Attribute(attribute.header.get_type().value()));
        }
        if ended {
            // RFC 8489 section 14.7: FINGERPRINT is the last one
            parts.uncovered = true;
        } else if attribute.header.get_type() == Fingerprint::TYPE {
            check_fingerprint(datagram, offset, &attribute)?;
            ended = true;
        } else {
            let value = rest.get(ATTRIBUTE_HEADER..ATTRIBUTE_HEADER + attribute.value.len()).unwrap_or_default();
            parts.take(&attribute, value, offset, header.transaction_id())?;
        }
        offset += size;
    }
    Ok(parts)
}

impl<'a> Parts<'a> {
    fn take(
        &mut self,
        attribute: &RawAttribute<'_>,
        value: &'a [u8],
        offset: usize,
        transaction: TransactionId,
    ) -> Result<(), Malformed> {
        let kind = attribute.header.get_type();
        if self.integrity.is_some() {
            // RFC 8489 section 14.6: what follows is ignored; here it also spoils the verification
            self.uncovered = true;
            return Ok(());
        }
        match kind {
            MessageIntegritySha256::TYPE => {
                self.integrity = Some(offset);
                // RFC 8489 allows truncation; keynet does not
                self.uncovered |= value.len() != TAG;
            }
            Username::TYPE => self.username = self.username.or(Some(value)),
            XorMappedAddress::TYPE => {
                let address =
                    XorMappedAddress::from_raw_ref(attribute).map_err(|_| Malformed::Attribute(kind.value()))?;
                self.observed = self.observed.or(Some(address.addr(transaction)));
            }
            INCARNATION => self.incarnation = self.incarnation.or(value.try_into().ok()),
            GOODBYE => self.goodbye = true,
            other => self.demands_the_unknown |= demands(self.kind.class(), other),
        }
        Ok(())
    }
}

/// Whether an attribute that is not understood forbids to go on: RFC 8489 sections 6.3.1 and 6.3.3. In responses the
/// attributes that other servers add for the credentials and tests keynet does not use say nothing about the address.
fn demands(class: MessageClass, attribute: AttributeType) -> bool {
    let optional = attribute.value() >= 0x8000;
    let harmless = class != MessageClass::Request && HARMLESS_IN_RESPONSES.contains(&attribute.value());
    !(optional || harmless)
}

fn check_fingerprint(datagram: &[u8], offset: usize, attribute: &RawAttribute<'_>) -> Result<(), Malformed> {
    let claimed = Fingerprint::from_raw_ref(attribute).map_err(|_| Malformed::Attribute(Fingerprint::TYPE.value()))?;
    // the CRC covers everything before it, with a length that ends behind FINGERPRINT: 8 bytes
    let Some((start, rest)) = datagram.get(..offset).and_then(|covered| covered.split_at_checked(4)) else {
        return Err(Malformed::Fingerprint);
    };
    let header = header_with_length(start, offset + 8);
    match Fingerprint::compute(&[&header, rest]) == *claimed.fingerprint() {
        true => Ok(()),
        false => Err(Malformed::Fingerprint),
    }
}

/// The HMAC over all that stands before the attribute, with a length that ends behind it (RFC 8489 section 14.6).
fn tag(covered: &[u8], key: &[u8; 32]) -> hmac::Tag {
    let (start, rest) = covered.split_at_checked(4).unwrap_or((covered, &[]));
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(&header_with_length(start, covered.len() + ATTRIBUTE_HEADER + TAG));
    context.update(rest);
    context.sign()
}

/// The first four bytes of a header, for a message that ends at `end`.
fn header_with_length(start: &[u8], end: usize) -> [u8; 4] {
    let length = u16::try_from(end.saturating_sub(MessageHeader::LENGTH)).unwrap_or(u16::MAX).to_be_bytes();
    [start.first().copied().unwrap_or(0), start.get(1).copied().unwrap_or(0), length[0], length[1]]
}

fn begin(class: MessageClass, transaction: [u8; 12]) -> MessageWriteVec {
    let kind = MessageType::from_class_method(class, BINDING);
    StunMessage::builder(kind, transaction_id(transaction), MessageWriteVec::with_capacity(LARGEST))
}

fn push_name(message: &mut MessageWriteVec, name: &[u8; 16]) {
    let name = HEXLOWER.encode(name);
    message.push_attribute_unchecked(&RawAttribute::new(Username::TYPE, name.as_bytes()));
}

fn sign(message: &mut MessageWriteVec, key: &[u8; 32]) {
    let tag = tag(message.data(), key);
    message.push_attribute_unchecked(&RawAttribute::new(MessageIntegritySha256::TYPE, tag.as_ref()));
}

/// 32 lower-case hex digits; anything else is not one of ours.
fn session_name(text: &[u8]) -> Option<[u8; 16]> {
    HEXLOWER.decode(text).ok()?.try_into().ok()
}

fn leading_type(attribute: &[u8]) -> u16 {
    match *attribute {
        [high, low, ..] => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

fn transaction_id(bytes: [u8; 12]) -> TransactionId {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&bytes);
    u128::from_be_bytes(wide).into()
}

fn transaction_bytes(id: TransactionId) -> [u8; 12] {
    let wide = u128::from(id).to_be_bytes();
    let mut bytes = [0; 12];
    bytes.copy_from_slice(&wide[4..]);
    bytes
}

/// RFC 8489 section 14: type and length.
const ATTRIBUTE_HEADER: usize = 4;
/// HMAC-SHA-256, not truncated.
const TAG: usize = 32;
/// As PADDING of RFC 5780 section 7.6 (0x0026), with the bit that lets others skip it.
const PADDING: AttributeType = AttributeType::new(0x8026);
/// Comprehension-optional, and assigned to nobody (RFC 8489 section 18.3): who does not know them skips them.
const INCARNATION: AttributeType = AttributeType::new(0xbe4b);
const GOODBYE: AttributeType = AttributeType::new(0xbe47);
/// The value of XOR-MAPPED-ADDRESS for IPv6: with this the unkeyed ping and its largest pong both have 44 bytes. The
/// keyed ping needs none: its USERNAME (36 bytes) is larger than the address of the pong (24).
const PADDING_BYTES: usize = 20;
/// A keyed ping: header 20, USERNAME 4 + 32, MESSAGE-INTEGRITY-SHA256 4 + 32, and 4 + 16 of the incarnation at first.
const LARGEST: usize = 112;
/// MAPPED-ADDRESS, the two addresses of RFC 3489, MESSAGE-INTEGRITY, REALM, NONCE, PASSWORD-ALGORITHM, USERHASH,
/// PADDING of RFC 5780.
const HARMLESS_IN_RESPONSES: [u16; 9] = [0x0001, 0x0004, 0x0005, 0x0008, 0x0014, 0x0015, 0x001d, 0x001e, 0x0026];

pub mod discovery;

#[cfg(test)]
mod tests;
