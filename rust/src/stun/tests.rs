use super::*;
use proptest::prelude::*;

const KEY: [u8; 32] = [0x8f; 32];
const NAME: [u8; 16] = *b"\x00\xff0123456789abcd";
const TRANSACTION: [u8; 12] = *b"transaction1";

fn v4() -> SocketAddr {
    "192.0.2.1:32853".parse().unwrap()
}

fn v6() -> SocketAddr {
    "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()
}

fn ping(keyed: bool) -> Vec<u8> {
    let mut out = vec![];
    encode_ping(&mut out, TRANSACTION, keyed.then_some((&NAME, &KEY)));
    out
}

fn pong(observed: SocketAddr, keyed: bool) -> Vec<u8> {
    let mut out = vec![];
    assert!(encode_pong(&mut out, TRANSACTION, observed, keyed.then_some(&KEY), ping(keyed).len()));
    out
}

/// Appends an attribute and mends the length in the header.
fn with_attribute(mut message: Vec<u8>, kind: u16, value: &[u8]) -> Vec<u8> {
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&(value.len() as u16).to_be_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(4), 0);
    with_length(message)
}

fn with_length(mut message: Vec<u8>) -> Vec<u8> {
    let length = (message.len() - 20) as u16;
    message[2..4].copy_from_slice(&length.to_be_bytes());
    message
}

fn with_fingerprint(message: Vec<u8>) -> Vec<u8> {
    let mut message = with_attribute(message, 0x8028, &[0; 4]);
    let end = message.len() - 8;
    let crc = Fingerprint::compute(&[&message[..end]]);
    for (byte, (crc, mask)) in message[end + 4..].iter_mut().zip(crc.iter().zip(0x5354_554e_u32.to_be_bytes())) {
        *byte = crc ^ mask;
    }
    message
}

/// RFC 5769 section 2.1: a request of ICE, with PRIORITY, which an ordinary server does not understand.
const RFC5769_REQUEST: &str = "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74\
    002400046e0001ff80290008932ff9b151263b36000600096576746a3a68367659202020\
    000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf";
/// RFC 5769 section 2.2.
const RFC5769_V4: &str = "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000080001a147e112a643000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96";
/// RFC 5769 section 2.3.
const RFC5769_V6: &str = "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220\
    002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed41\
    80280004c8fb0b4c";
/// RFC 8489 appendix B.1, as mended by erratum 6268.
const RFC8489_SHA256: &str = "000100902112a44278ad3433c6ad72c029da412e001e00204a3cf38fef6992bda952c6780417da0f\
    24819415569e60b205c46e41407f1704001500296f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c39\
    46535476793634734100000000140 00b6578616d706c652e6f726700001d000400020000001c0020b5c7bf005b6c52a21c51c5e8\
    92f819241362 96cb927c43149309278cc6518e65";

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    HEXLOWER.decode(digits.as_bytes()).unwrap()
}

#[test]
fn vectors_of_rfc_5769() {
    assert_eq!(decode(&hex(RFC5769_REQUEST)), Ok(Message::Other));
    let transaction = *b"\xb7\xe7\xa7\x01\xbc\x34\xd6\x86\xfa\x87\xdf\xae";
    for (vector, observed) in [(RFC5769_V4, v4()), (RFC5769_V6, v6())] {
        let message = hex(vector);
        assert_eq!(
            decode(&message),
            Ok(Message::Pong(Pong { transaction, observed, keyed: false, incarnation: None }))
        );
        assert!(!verify(&message, &KEY), "MESSAGE-INTEGRITY with SHA-1 is not enough");
        // the type and length of FINGERPRINT itself are not covered
        let end = message.len() - 8;
        for at in (8..end).chain(end + 4..end + 8) {
            let mut broken = message.clone();
            broken[at] ^= 1;
            assert!(decode(&broken).is_err(), "byte {at} is covered by the fingerprint");
        }
    }
}

#[test]
fn vector_of_rfc_8489() {
    let message = hex(RFC8489_SHA256);
    // section 9.2.2: SHA-256(username ":" realm ":" password), both after their string preparation
    let password = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}:example.org:TheMatrIX";
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, password.as_bytes());
    let key: [u8; 32] = digest.as_ref().try_into().unwrap();
    assert!(verify(&message, &key));
    assert!(!verify(&message, &KEY));
    assert_eq!(decode(&message), Ok(Message::Other), "long-term credentials are not for us");
}

#[test]
fn round_trips() {
    assert_eq!(
        decode(&ping(false)),
        Ok(Message::Ping(Ping { transaction: TRANSACTION, session: None, incarnation: None }))
    );
    assert_eq!(
        decode(&ping(true)),
        Ok(Message::Ping(Ping { transaction: TRANSACTION, session: Some(NAME), incarnation: None }))
    );
    for observed in [v4(), v6()] {
        for keyed in [false, true] {
            let message = pong(observed, keyed);
            assert_eq!(
                decode(&message),
                Ok(Message::Pong(Pong { transaction: TRANSACTION, observed, keyed, incarnation: None }))
            );
            assert_eq!(verify(&message, &KEY), keyed);
        }
    }
    for keyed in [false, true] {
        assert_eq!(verify(&ping(keyed), &KEY), keyed);
    }
}

#[test]
fn encoding_appends() {
    let mut out = b"before".to_vec();
    encode_ping(&mut out, TRANSACTION, None);
    assert_eq!(out, [b"before", &ping(false)[..]].concat());
    assert!(encode_pong(&mut out, TRANSACTION, v4(), None, 44));
    assert_eq!(out, [b"before", &ping(false)[..], &pong(v4(), false)].concat());
}

#[test]
fn a_pong_is_never_larger_than_its_ping() {
    for keyed in [false, true] {
        assert!(pong(v6(), keyed).len() <= ping(keyed).len());
    }
    let mut out = vec![];
    assert!(!encode_pong(&mut out, TRANSACTION, v4(), None, 20), "a bare header");
    assert!(!encode_pong(&mut out, TRANSACTION, v6(), None, 43));
    assert!(!encode_pong(&mut out, TRANSACTION, v6(), Some(&KEY), 79));
    assert!(out.is_empty());
    assert!(encode_pong(&mut out, TRANSACTION, v4(), None, 32), "the smallest request that can be answered");
}

#[test]
fn any_flipped_bit_spoils_the_tag() {
    for message in [ping(true), pong(v4(), true), pong(v6(), true)] {
        assert!(verify(&message, &KEY));
        for at in 0..message.len() * 8 {
            let mut forged = message.clone();
            forged[at / 8] ^= 1 << (at % 8);
            assert!(!verify(&forged, &KEY), "bit {at}");
        }
    }
}

#[test]
fn the_tag_must_have_all_its_bytes() {
    // RFC 8489 section 14.6 would allow 16
    let full = ping(true);
    let tag = full[full.len() - 32..].to_vec();
    let bare = &full[..full.len() - 36];
    for length in [0, 4, 16, 28] {
        assert!(!verify(&with_attribute(bare.to_vec(), 0x001c, &tag[..length]), &KEY), "{length} bytes");
    }
    // and a truncated tag that is right for its own length
    let short = with_attribute(bare.to_vec(), 0x001c, &[0; 16]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &KEY);
    let right = hmac::sign(&key, &short[..short.len() - 20]);
    assert!(!verify(&with_attribute(bare.to_vec(), 0x001c, &right.as_ref()[..16]), &KEY));
}

#[test]
fn only_a_fingerprint_may_follow_the_tag() {
    for message in [ping(true), pong(v4(), true)] {
        let meaning = decode(&message);
        assert!(verify(&with_fingerprint(message.clone()), &KEY));
        assert_eq!(decode(&with_fingerprint(message.clone())), meaning);
        let mut wrong = with_fingerprint(message.clone());
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(decode(&wrong), Err(Malformed::Fingerprint));
        assert!(!verify(&wrong, &KEY));
        for (kind, value) in [(0x8022, &b"name"[..]), (0x0020, &[0, 1, 0, 0, 0, 0, 0, 0]), (0x001c, &[0; 32])] {
            let extended = with_attribute(message.clone(), kind, value);
            assert!(!verify(&extended, &KEY), "attribute {kind:#06x} behind the tag");
            assert_eq!(decode(&extended), meaning, "what is not covered is not read");
            let behind_both = with_attribute(with_fingerprint(message.clone()), kind, value);
            assert!(!verify(&behind_both, &KEY), "attribute {kind:#06x} behind the fingerprint");
        }
        let untagged = with_fingerprint(ping(false));
        let tag = message[message.len() - 32..].to_vec();
        assert!(!verify(&with_attribute(untagged, 0x001c, &tag), &KEY), "the tag behind the fingerprint");
    }
}

#[test]
fn what_is_neither_ping_nor_pong() {
    let request = |kind: u16, value: &[u8]| decode(&with_attribute(ping(false), kind, value));
    let upper = HEXLOWER.encode(&NAME).to_uppercase();
    assert_eq!(request(0x0006, b"evtj:h6vY"), Ok(Message::Other), "a user name of others");
    assert_eq!(request(0x0006, upper.as_bytes()), Ok(Message::Other));
    assert_eq!(request(0x0006, &HEXLOWER.encode(&NAME).as_bytes()[..30]), Ok(Message::Other));
    assert_eq!(request(0x001c, &[0; 32]), Ok(Message::Other), "a tag without a name");
    assert_eq!(request(0x0003, &[0; 4]), Ok(Message::Other), "CHANGE-REQUEST: must not be answered as if it were done");
    let optional = Ping { transaction: TRANSACTION, session: None, incarnation: None };
    assert_eq!(request(0x8022, b"someone"), Ok(Message::Ping(optional)));
    for (first, second) in [(0x00, 0x11), (0x01, 0x11), (0x00, 0x03), (0x01, 0x03), (0x3e, 0xef)] {
        let mut other = pong(v4(), false);
        other[..2].copy_from_slice(&[first, second]);
        assert_eq!(decode(&other), Ok(Message::Other), "{first:#04x}{second:02x}");
    }
    let empty = with_length(pong(v4(), false)[..20].to_vec());
    assert_eq!(decode(&empty), Ok(Message::Other), "a response without an address");
    assert_eq!(decode(&with_attribute(pong(v4(), false), 0x7fff, &[])), Ok(Message::Other));
}

#[test]
fn an_unkeyed_ping_that_names_a_session_does_not_verify() {
    let name = HEXLOWER.encode(&NAME);
    let message = with_attribute(ping(false), 0x0006, name.as_bytes());
    assert_eq!(
        decode(&message),
        Ok(Message::Ping(Ping { transaction: TRANSACTION, session: Some(NAME), incarnation: None }))
    );
    assert!(!verify(&message, &KEY));
}

#[test]
fn broken_attributes() {
    for value in [&[][..], &[0, 1, 0], &[0, 1, 0, 0], &[0, 1, 0, 0, 1, 2, 3], &[0, 3, 0, 0, 1, 2, 3, 4], &[0; 20]] {
        let message = with_attribute(pong(v4(), false)[..20].to_vec(), 0x0020, value);
        assert_eq!(decode(&message), Err(Malformed::Attribute(0x0020)), "{value:?}");
    }
    let mut beyond = with_attribute(ping(false), 0x8022, &[0; 4]);
    let end = beyond.len();
    for length in [5u16, 8, 0xfffc, 0xffff] {
        beyond[end - 6..end - 4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(decode(&beyond), Err(Malformed::Attribute(0x8022)), "length {length}");
    }
}

#[test]
fn byte_by_byte() {
    for message in [ping(false), ping(true), pong(v4(), false), pong(v6(), true), hex(RFC5769_V4), hex(RFC8489_SHA256)]
    {
        for length in 0..message.len() {
            assert!(decode(&message[..length]).is_err(), "{length} of {} bytes", message.len());
            assert!(!verify(&message[..length], &KEY));
            if length >= 20 && length % 4 == 0 {
                // the same with a length that fits: whatever it is, it is total and not verified
                let shorter = with_length(message[..length].to_vec());
                let _ = decode(&shorter);
                assert!(!verify(&shorter, &KEY));
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_decode_or_explain(datagram in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(why) = decode(&datagram) {
            prop_assert!(!why.to_string().is_empty());
        }
        prop_assert!(!verify(&datagram, &KEY));
    }

    #[test]
    fn any_attributes_decode_or_explain(
        first in 0u8..2, attributes in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        known in prop::collection::vec(0usize..8, 6),
    ) {
        let mut message = vec![first, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        message.extend_from_slice(&TRANSACTION);
        for ((kind, value), known) in attributes.iter().zip(known) {
            let kind = [0x0006, 0x0008, 0x001c, 0x0020, 0x8026, 0x8028, *kind, *kind][known];
            message = with_attribute(message, kind, value);
        }
        let decoded = decode(&message);
        prop_assert!(!verify(&message, &KEY));
        if let Ok(Message::Ping(ping)) = decoded {
            prop_assert_eq!((first, ping.transaction), (0, TRANSACTION));
        }
    }

    #[test]
    fn keys_are_any_32_bytes(key: [u8; 32], other: [u8; 32], name: [u8; 16], transaction: [u8; 12]) {
        let mut message = vec![];
        encode_ping(&mut message, transaction, Some((&name, &key)));
        prop_assert_eq!(decode(&message), Ok(Message::Ping(Ping { transaction, session: Some(name), incarnation: None })));
        prop_assert!(verify(&message, &key));
        prop_assert!(key == other || !verify(&message, &other));
    }
}

#[test]
fn who_does_not_know_incarnations_answers_a_ping_that_has_one() {
    let mut message = vec![];
    encode_introduction(&mut message, TRANSACTION, (&NAME, &KEY), &[5; 16]);
    assert_eq!(message.len(), LARGEST);
    assert!(verify(&message, &KEY));
    let expected = Ping { transaction: TRANSACTION, session: Some(NAME), incarnation: Some([5; 16]) };
    assert_eq!(decode(&message), Ok(Message::Ping(expected)));
    // RFC 8489 section 14: from 0x8000 on an attribute may be skipped, and one of any other number is in its place
    let at = message.windows(2).position(|pair| pair == INCARNATION.value().to_be_bytes()).unwrap();
    message[at..at + 2].copy_from_slice(&0xbfff_u16.to_be_bytes());
    assert_eq!(decode(&message), Ok(Message::Ping(Ping { incarnation: None, ..expected })));
    // and nobody can change it
    assert!(!verify(&message, &KEY));
}

#[test]
fn a_pong_says_which_life_it_is_of_and_is_no_larger_than_its_ping() {
    for observed in [v4(), v6()] {
        let mut answer = vec![];
        assert!(encode_answer(&mut answer, TRANSACTION, observed, Some(&KEY), Some(&[5; 16]), LARGEST));
        let expected = Pong { transaction: TRANSACTION, observed, keyed: true, incarnation: Some([5; 16]) };
        assert_eq!(decode(&answer), Ok(Message::Pong(expected)));
        assert!(verify(&answer, &KEY));
    }
    let unkeyed = with_attribute(pong(v4(), false), INCARNATION.value(), &[5; 16]);
    assert!(matches!(decode(&unkeyed), Ok(Message::Pong(Pong { incarnation: None, .. }))), "anybody could say so");
}

#[test]
fn a_goodbye_is_an_indication_with_a_key() {
    let mut message = vec![];
    encode_goodbye(&mut message, TRANSACTION, (&NAME, &KEY));
    assert_eq!(message[..2], [0x00, 0x11], "RFC 8489 section 5: an indication");
    assert!(verify(&message, &KEY) && !verify(&message, &[1; 32]));
    let expected = Goodbye { transaction: TRANSACTION, session: NAME };
    assert_eq!(decode(&message), Ok(Message::Goodbye(expected)));
    let end = message.len() - 36;
    let unkeyed = with_length(message[..end].to_vec());
    assert_eq!(decode(&unkeyed), Ok(Message::Other));
}
