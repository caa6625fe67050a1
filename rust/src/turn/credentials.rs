//! Long-term credentials (RFC 8489 section 9.2), and the scheme that coturn calls `use-auth-secret`: a name that says when it
//! ends, and a password that whoever knows the secret can compute from it.

use aws_lc_rs::hmac;
use base64::prelude::{Engine, BASE64_STANDARD};
use md5::{Digest, Md5};

/// The key of MESSAGE-INTEGRITY: MD5 of name, realm and password (RFC 8489 section 18.5.1.1).
pub type Key = [u8; 16];

/// The name of the introduction credentials, which anybody may know: a relay takes them only for the way to its rendezvous
/// nodes.
pub const INTRODUCTION_NAME: &str = "keynet";
pub const INTRODUCTION_PASSWORD: &str = "keynet";

pub fn long_term_key(name: &[u8], realm: &str, password: &str) -> Key {
    let mut hash = Md5::new();
    for part in [name, b":", realm.as_bytes(), b":", password.as_bytes()] {
        hash.update(part);
    }
    hash.finalize().into()
}

/// The name that ends at `expires` (seconds since 1970) and whom it is for.
pub fn limited_name(expires: u64, whom: &str) -> String {
    format!("{expires}:{whom}")
}

/// The password of such a name: base64 of HMAC-SHA1.
pub fn limited_password(secret: &str, name: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    BASE64_STANDARD.encode(hmac::sign(&key, name))
}

/// When a name ends, and whom it is for: what stands before and behind the first colon. A name that is a mere number is for
/// nobody in particular.
pub fn read_limited_name(name: &str) -> Option<(u64, &str)> {
    let (expires, whom) = name.split_once(':').unwrap_or((name, ""));
    let digits = !expires.is_empty() && expires.bytes().all(|byte| byte.is_ascii_digit());
    Some((expires.parse().ok().filter(|_| digits)?, whom))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_that_of_the_rfc() {
        // RFC 8489 section 18.5.1.1 leaves the sum to the reader; this is RFC 5389 section 15.4: MD5("user:realm:pass")
        let expected = [0x84, 0x93, 0xfb, 0xc5, 0x3b, 0xa5, 0x82, 0xfb, 0x4c, 0x04, 0x4c, 0x45, 0x6b, 0xdc, 0x40, 0xeb];
        assert_eq!(long_term_key(b"user", "realm", "pass"), expected);
    }

    #[test]
    fn names_that_end_are_read_as_they_are_written() {
        assert_eq!(read_limited_name(&limited_name(1_700_000_000, "vnode")), Some((1_700_000_000, "vnode")));
        assert_eq!(read_limited_name("17:a:b"), Some((17, "a:b")));
        assert_eq!(read_limited_name("17"), Some((17, "")));
        for broken in ["", ":", "+17:a", "a:17", "99999999999999999999:a"] {
            assert_eq!(read_limited_name(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_limited_password_is_what_coturn_computes() {
        // printf '1700000000:node' | openssl dgst -sha1 -hmac secret -binary | base64
        assert_eq!(limited_password("secret", b"1700000000:node"), "m/KAWA6VUwUK5URZ1rBP/GQSz/I=");
    }
}
