//! NAT behaviour discovery (RFC 5780): the questions that a STUN server is asked and what it says.
//!
//! [`decode`](super::decode) knows none of this: to the ping handler a request with CHANGE-REQUEST is one that demands what
//! it does not do.

use std::net::{IpAddr, SocketAddr};

use stun_types::attribute::{pad_attribute_len, AttributeType, RawAttribute, XorMappedAddress};
use stun_types::message::{MessageClass, MessageHeader, MessageWrite, MessageWriteVec, BINDING};

use super::{begin, scan, transaction_id, Malformed, ATTRIBUTE_HEADER, PADDING};

/// From where the answer shall come (RFC 5780 section 7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Change {
    pub ip: bool,
    pub port: bool,
}

/// A Binding request to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    pub transaction: [u8; 12],
    pub change: Change,
    /// The first attribute that has to be understood and is not.
    pub unknown: Option<u16>,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub transaction: [u8; 12],
    /// `None`: it refused (an error response).
    pub answer: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where the server saw the question come from.
    pub observed: SocketAddr,
    /// RESPONSE-ORIGIN: from where the server says that it answers.
    pub origin: Option<SocketAddr>,
    /// OTHER-ADDRESS: its other IP address and port.
    pub other: Option<SocketAddr>,
}

/// Reads a question; `None`: it is another STUN message.
pub fn decode_query(datagram: &[u8]) -> Result<Option<Query>, Malformed> {
    let parts = scan(datagram)?;
    if parts.kind.method() != BINDING || parts.kind.class() != MessageClass::Request {
        return Ok(None);
    }
    let mut query = Query { transaction: parts.transaction, change: Change::default(), unknown: None };
    for (kind, value) in attributes(datagram) {
        match (kind, value) {
            (CHANGE_REQUEST, [_, _, _, flags]) => {
                query.change = Change { ip: flags & CHANGE_IP != 0, port: flags & CHANGE_PORT != 0 };
            }
            (CHANGE_REQUEST, _) => return Err(Malformed::Attribute(kind)),
            _ if kind >= OPTIONAL || IGNORED.contains(&kind) => {}
            _ => query.unknown = query.unknown.or(Some(kind)),
        }
    }
    Ok(Some(query))
}

/// Reads a reply; `None`: it is another STUN message.
pub fn decode_reply(datagram: &[u8]) -> Result<Option<Reply>, Malformed> {
    let parts = scan(datagram)?;
    let transaction = parts.transaction;
    match (parts.kind.method() == BINDING, parts.kind.class(), parts.observed) {
        (true, MessageClass::Error, _) => Ok(Some(Reply { transaction, answer: None })),
        (true, MessageClass::Success, Some(observed)) if !parts.demands_the_unknown => {
            let mut answer = Answer { observed, origin: None, other: None };
            for (kind, value) in attributes(datagram) {
                match kind {
                    RESPONSE_ORIGIN => answer.origin = Some(address(value).ok_or(Malformed::Attribute(kind))?),
                    OTHER_ADDRESS => answer.other = Some(address(value).ok_or(Malformed::Attribute(kind))?),
                    _ => {}
                }
            }
            Ok(Some(Reply { transaction, answer: Some(answer) }))
        }
        _ => Ok(None),
    }
}

/// Appends a question, of a size that leaves room for the whole answer.
pub fn encode_query(out: &mut Vec<u8>, transaction: [u8; 12], change: Change) {
    let mut message = begin(MessageClass::Request, transaction);
    if change != Change::default() {
        let flags = if change.ip { CHANGE_IP } else { 0 } | if change.port { CHANGE_PORT } else { 0 };
        push(&mut message, CHANGE_REQUEST, &[0, 0, 0, flags]);
    }
    let padding = QUERY_BYTES.saturating_sub(message.len() + ATTRIBUTE_HEADER);
    push(&mut message, PADDING.value(), &[0; QUERY_BYTES][..padding]);
    out.extend_from_slice(&message.finish());
}

/// Appends an answer. RESPONSE-ORIGIN and OTHER-ADDRESS are left out where they would make it larger than `room`, the size of
/// the question; XOR-MAPPED-ADDRESS is not: a question may be a bare header of 20 bytes, and the answer is then 32 or 44.
pub fn encode_answer(out: &mut Vec<u8>, transaction: [u8; 12], answer: &Answer, room: usize) {
    let mut message = begin(MessageClass::Success, transaction);
    message.push_attribute_unchecked(&XorMappedAddress::new(answer.observed, transaction_id(transaction)));
    // what the client needs for its next question comes first
    for (kind, address) in [(OTHER_ADDRESS, answer.other), (RESPONSE_ORIGIN, answer.origin)] {
        let Some(address) = address else { continue };
        let value = plain(address);
        if message.len() + ATTRIBUTE_HEADER + value.len() <= room {
            push(&mut message, kind, &value);
        }
    }
    out.extend_from_slice(&message.finish());
}

/// Appends error 420 (Unknown Attribute), without a text: 36 bytes.
pub fn encode_refusal(out: &mut Vec<u8>, transaction: [u8; 12], unknown: u16) {
    let mut message = begin(MessageClass::Error, transaction);
    push(&mut message, ERROR_CODE, &[0, 0, 4, 20]);
    push(&mut message, UNKNOWN_ATTRIBUTES, &unknown.to_be_bytes());
    out.extend_from_slice(&message.finish());
}

/// Type and value of each attribute of a message that [`scan`] has found in order.
fn attributes(datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = datagram.get(MessageHeader::LENGTH..).unwrap_or_default();
    std::iter::from_fn(move || {
        let ([a, b, c, d], tail) = rest.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let value = tail.get(..length)?;
        rest = tail.get(pad_attribute_len(length)..).unwrap_or_default();
        Some((u16::from_be_bytes([*a, *b]), value))
    })
}

fn push(message: &mut MessageWriteVec, kind: u16, value: &[u8]) {
    message.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(kind), value));
}

/// The form of MAPPED-ADDRESS (RFC 8489 section 14.1).
fn plain(address: SocketAddr) -> Vec<u8> {
    let (family, ip) = match address.ip() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let [high, low] = address.port().to_be_bytes();
    [&[0, family, high, low], &ip[..]].concat()
}

fn address(value: &[u8]) -> Option<SocketAddr> {
    let ([_, family, high, low], ip) = value.split_first_chunk()?;
    let ip = match family {
        1 => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
        2 => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes([*high, *low])))
}

/// RFC 5780 section 7.
pub const CHANGE_REQUEST: u16 = 0x0003;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;
const CHANGE_IP: u8 = 4;
const CHANGE_PORT: u8 = 2;
/// RFC 8489 section 14.
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const OPTIONAL: u16 = 0x8000;
/// USERNAME, MESSAGE-INTEGRITY and MESSAGE-INTEGRITY-SHA256: a server without credentials ignores them.
const IGNORED: [u16; 3] = [0x0006, 0x0008, 0x001c];

/// The largest answer: a header of 20 bytes and three IPv6 addresses of 24.
pub const QUERY_BYTES: usize = 92;

#[cfg(test)]
mod tests {
    use super::super::{decode, Message};
    use super::*;
    use proptest::prelude::*;

    const TRANSACTION: [u8; 12] = *b"transaction1";
    const CHANGES: [Change; 4] = [
        Change { ip: false, port: false },
        Change { ip: false, port: true },
        Change { ip: true, port: false },
        Change { ip: true, port: true },
    ];

    fn query(change: Change) -> Vec<u8> {
        let mut out = vec![];
        encode_query(&mut out, TRANSACTION, change);
        out
    }

    fn full(text: &str) -> Answer {
        let observed: SocketAddr = text.parse().unwrap();
        let at = |port| Some(SocketAddr::new(observed.ip(), port));
        Answer { observed, origin: at(3478), other: at(3479) }
    }

    fn encoded(answer: &Answer, room: usize) -> Vec<u8> {
        let mut out = vec![];
        encode_answer(&mut out, TRANSACTION, answer, room);
        out
    }

    #[test]
    fn questions_round_trip() {
        for change in CHANGES {
            let bytes = query(change);
            assert_eq!(bytes.len(), QUERY_BYTES);
            assert_eq!(decode_query(&bytes), Ok(Some(Query { transaction: TRANSACTION, change, unknown: None })));
            assert_eq!(decode_reply(&bytes), Ok(None));
        }
    }

    #[test]
    fn a_node_answers_plain_questions_only() {
        assert!(matches!(decode(&query(CHANGES[0])), Ok(Message::Ping(_))));
        for change in &CHANGES[1..] {
            assert_eq!(decode(&query(*change)), Ok(Message::Other));
        }
    }

    #[test]
    fn answers_round_trip_and_fit_the_question() {
        for answer in [full("192.0.2.1:5"), full("[2001:db8::1]:5")] {
            let bytes = encoded(&answer, QUERY_BYTES);
            assert!(bytes.len() <= QUERY_BYTES);
            assert_eq!(decode_reply(&bytes), Ok(Some(Reply { transaction: TRANSACTION, answer: Some(answer) })));
            assert!(matches!(decode(&bytes), Ok(Message::Pong(pong)) if pong.observed == answer.observed));
            assert_eq!(decode_query(&bytes), Ok(None));
        }
    }

    #[test]
    fn a_short_question_gets_the_bare_address() {
        let answer = full("192.0.2.1:5");
        let bare = encoded(&answer, 20);
        assert_eq!(bare.len(), 32);
        let reply = decode_reply(&bare).unwrap().unwrap().answer.unwrap();
        assert_eq!(reply, Answer { observed: answer.observed, origin: None, other: None });
        let middle = decode_reply(&encoded(&answer, 44)).unwrap().unwrap().answer.unwrap();
        assert_eq!((middle.origin, middle.other), (None, answer.other));
    }

    #[test]
    fn refusals_round_trip() {
        let mut bytes = vec![];
        encode_refusal(&mut bytes, TRANSACTION, CHANGE_REQUEST);
        assert_eq!(bytes.len(), 36);
        assert_eq!(decode_reply(&bytes), Ok(Some(Reply { transaction: TRANSACTION, answer: None })));
        assert_eq!(decode(&bytes), Ok(Message::Other));
    }

    #[test]
    fn what_must_be_understood_is_named() {
        let mut message = begin(MessageClass::Request, TRANSACTION);
        push(&mut message, 0x0006, b"name");
        push(&mut message, 0x0027, &[0, 5, 0, 0]);
        push(&mut message, 0x0026, &[0; 4]);
        let query = decode_query(&message.finish()).unwrap().unwrap();
        assert_eq!(query.unknown, Some(0x0027), "RESPONSE-PORT");
        let mut message = begin(MessageClass::Request, TRANSACTION);
        push(&mut message, CHANGE_REQUEST, &[0; 3]);
        assert_eq!(decode_query(&message.finish()), Err(Malformed::Attribute(CHANGE_REQUEST)));
    }

    #[test]
    fn cut_messages_are_no_messages() {
        for whole in [query(CHANGES[3]), encoded(&full("[2001:db8::1]:5"), QUERY_BYTES)] {
            for end in 0..whole.len() {
                assert!(decode_query(&whole[..end]).is_err() && decode_reply(&whole[..end]).is_err(), "cut at {end}");
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_survived() {
        for whole in [query(CHANGES[3]), encoded(&full("192.0.2.1:5"), QUERY_BYTES)] {
            for bit in 0..whole.len() * 8 {
                let mut flipped = whole.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let _ = (decode_query(&flipped), decode_reply(&flipped));
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (decode_query(&bytes), decode_reply(&bytes));
        }
    }
}
