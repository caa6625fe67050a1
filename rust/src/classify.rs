//! What a datagram is, judged by its bytes alone (docs/protocol.md section 1).
//!
//! Order matters: uTP DATA begins 0x01 as a STUN success response does, so STUN is asked first, and it must show the
//! magic cookie *and* the exact length. What a future relay adds (TURN ChannelData, first byte 0x40) is decided by
//! its source address before this function is asked.

/// What a datagram is to be read as. Being of a kind does not make it well-formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Stun,
    Utp,
    /// Neither: to be counted and dropped.
    Unknown,
}

/// Total and pure: every byte string has a kind.
pub fn classify(datagram: &[u8]) -> Kind {
    let [first, _, length_high, length_low, cookie0, cookie1, cookie2, cookie3, ..] = *datagram else {
        return Kind::Unknown;
    };
    if datagram.len() < MIN_DATAGRAM {
        return Kind::Unknown;
    }
    let length = usize::from(u16::from_be_bytes([length_high, length_low]));
    if first < 0x40
        && [cookie0, cookie1, cookie2, cookie3] == STUN_MAGIC_COOKIE
        && length == datagram.len() - MIN_DATAGRAM
        && length.is_multiple_of(4)
    {
        return Kind::Stun;
    }
    let (kind, version) = (first >> 4, first & 0x0f);
    if version == UTP_VERSION && kind <= UTP_LAST_TYPE {
        return Kind::Utp;
    }
    Kind::Unknown
}

/// A STUN header (RFC 8489 section 5) and a uTP header (BEP 29) both have 20 bytes.
const MIN_DATAGRAM: usize = 20;
/// RFC 8489 section 5.
const STUN_MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
/// BEP 29: the only version there is, and ST_SYN, the last of the five types.
const UTP_VERSION: u8 = 1;
const UTP_LAST_TYPE: u8 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stun(first: u8, attributes: usize) -> Vec<u8> {
        let mut datagram = vec![0; MIN_DATAGRAM + attributes];
        datagram[0] = first;
        datagram[2..4].copy_from_slice(&(attributes as u16).to_be_bytes());
        datagram[4..8].copy_from_slice(&STUN_MAGIC_COOKIE);
        datagram
    }

    fn utp(first: u8, payload: usize) -> Vec<u8> {
        let mut datagram = vec![0xee; MIN_DATAGRAM + payload];
        datagram[0] = first;
        datagram[1] = 0; // no extension
        datagram
    }

    fn with(mut datagram: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
        datagram[at..at + bytes.len()].copy_from_slice(bytes);
        datagram
    }

    #[test]
    fn table() {
        let long_name = |length: usize| stun(0x00, length);
        let cases: Vec<(&str, Vec<u8>, Kind)> = vec![
            ("empty", vec![], Kind::Unknown),
            ("Binding request", stun(0x00, 0), Kind::Stun),
            ("Binding request with attributes", stun(0x00, 24), Kind::Stun),
            ("Binding success response", stun(0x01, 12), Kind::Stun),
            ("Binding indication", with(stun(0x00, 0), 1, &[0x11]), Kind::Stun),
            ("largest first byte of STUN", stun(0x3f, 0), Kind::Stun),
            ("first byte of a TURN channel, with cookie", stun(0x40, 0), Kind::Unknown),
            ("cookie wrong in the last byte", with(stun(0x00, 0), 7, &[0x43]), Kind::Unknown),
            ("length of STUN too small", with(long_name(8), 2, &[0, 4]), Kind::Unknown),
            ("length of STUN too large", with(long_name(8), 2, &[0, 12]), Kind::Unknown),
            ("length of STUN not a multiple of four", stun(0x00, 6), Kind::Unknown),
            ("STUN with one byte too many", [stun(0x00, 8), vec![0]].concat(), Kind::Unknown),
            ("uTP DATA without payload", utp(0x01, 0), Kind::Utp),
            ("uTP DATA", utp(0x01, 1400), Kind::Utp),
            ("uTP FIN", utp(0x11, 0), Kind::Utp),
            ("uTP STATE", utp(0x21, 0), Kind::Utp),
            ("uTP RESET", utp(0x31, 0), Kind::Utp),
            ("uTP SYN", utp(0x41, 0), Kind::Utp),
            ("uTP type 5", utp(0x51, 0), Kind::Unknown),
            ("uTP version 0", utp(0x20, 0), Kind::Unknown),
            ("uTP version 2", utp(0x22, 0), Kind::Unknown),
            ("uTP DATA whose timestamp equals the cookie", with(utp(0x01, 100), 4, &STUN_MAGIC_COOKIE), Kind::Utp),
            (
                "the same, and the connection id is what a STUN length would be, but odd",
                with(with(utp(0x01, 101), 4, &STUN_MAGIC_COOKIE), 2, &[0, 101]),
                Kind::Utp,
            ),
            (
                "the same, and no byte tells them apart: taken for STUN, and the parser throws it out",
                with(with(utp(0x01, 100), 4, &STUN_MAGIC_COOKIE), 2, &[0, 100]),
                Kind::Stun,
            ),
            ("uTP SYN whose timestamp equals the cookie", with(utp(0x41, 0), 4, &STUN_MAGIC_COOKIE), Kind::Utp),
            ("a DTLS or QUIC-like first byte", utp(0xc1, 100), Kind::Unknown),
        ];
        for (name, datagram, kind) in cases {
            assert_eq!(classify(&datagram), kind, "{name}");
        }
    }

    #[test]
    fn every_length_up_to_40() {
        for length in 0..=40 {
            let kind = |full: &[u8]| classify(&full[..length]);
            let short = length < MIN_DATAGRAM;
            assert_eq!(kind(&utp(0x21, 40)), if short { Kind::Unknown } else { Kind::Utp }, "{length} bytes of uTP");
            let whole = length == MIN_DATAGRAM + 8;
            assert_eq!(kind(&stun(0x00, 8 + 12)[..]), if length == 40 { Kind::Stun } else { Kind::Unknown });
            let padded = [stun(0x00, 8), vec![0; 12]].concat();
            assert_eq!(kind(&padded), if whole { Kind::Stun } else { Kind::Unknown }, "{length} bytes of STUN");
        }
    }

    #[test]
    fn every_first_byte() {
        for first in 0..=255u8 {
            assert_eq!(classify(&stun(first, 8)) == Kind::Stun, first < 0x40, "{first:#04x} with a cookie");
            let is_utp = matches!(first, 0x01 | 0x11 | 0x21 | 0x31 | 0x41);
            let expected = if is_utp { Kind::Utp } else { Kind::Unknown };
            assert_eq!(classify(&utp(first, 8)), expected, "{first:#04x} without a cookie");
        }
    }

    proptest! {
        #[test]
        fn total(datagram in prop::collection::vec(any::<u8>(), 0..100)) {
            let kind = classify(&datagram);
            prop_assert!(kind == Kind::Unknown || datagram.len() >= MIN_DATAGRAM);
        }
    }
}
