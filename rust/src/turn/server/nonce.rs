//! Nonces that nobody has to remember: a moment, and a MAC over it and the client's address. Eight characters, because the
//! answer that carries one goes to strangers and is not to be larger than their question.

use std::net::IpAddr;
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::prelude::{Engine, BASE64_URL_SAFE_NO_PAD};

use super::{Client, Link};
use crate::time::Time;

pub struct Nonces {
    key: hmac::Key,
    /// How many slots a nonce stays good.
    slots: u64,
}

/// What a nonce is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The client got it from this server, at its address, and not long ago: its address is proven.
    Good,
    /// Too old, of another address or server, or invented: error 438.
    Stale,
}

impl Nonces {
    pub fn new(seed: &[u8; 32], lifetime: Duration) -> Self {
        let slots = (lifetime.as_secs() / SLOT).clamp(1, MOST_SLOTS);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, seed), slots }
    }

    pub fn make(&self, client: &Client, now: Time) -> [u8; TEXT] {
        self.text(client, slot(now))
    }

    pub fn judge(&self, nonce: &[u8], client: &Client, now: Time) -> Verdict {
        let decoded = BASE64_URL_SAFE_NO_PAD.decode(nonce).unwrap_or_default();
        let Some(low) = decoded.first() else { return Verdict::Stale };
        // the byte says which of the last 256 slots it was
        let current = slot(now);
        let age = u64::from((current as u8).wrapping_sub(*low));
        let made = current.checked_sub(age).filter(|_| age <= self.slots);
        match made {
            // not secret for its owner, and a guess is one in 2^40: no need for constant time, but it costs nothing
            Some(made) if subtle::ConstantTimeEq::ct_eq(&self.text(client, made)[..], nonce).into() => Verdict::Good,
            _ => Verdict::Stale,
        }
    }

    fn text(&self, client: &Client, slot: u64) -> [u8; TEXT] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(&slot.to_be_bytes());
        let (kind, number) = match client.link {
            Link::Datagrams(number) => (0, number.into()),
            Link::Stream(number) => (1, number),
        };
        context.update(&[kind]);
        context.update(&u64::to_be_bytes(number));
        context.update(&client.address.port().to_be_bytes());
        match client.address.ip() {
            IpAddr::V4(v4) => context.update(&v4.octets()),
            IpAddr::V6(v6) => context.update(&v6.octets()),
        }
        let mut raw = [slot as u8; 6];
        raw[1..].copy_from_slice(&context.sign().as_ref()[..5]);
        let mut text = [0; TEXT];
        // six bytes are eight characters
        let _ = BASE64_URL_SAFE_NO_PAD.encode_slice(raw, &mut text);
        text
    }
}

fn slot(now: Time) -> u64 {
    now.as_nanos() / (SLOT * 1_000_000_000)
}

/// Characters.
pub const TEXT: usize = 8;
/// Seconds.
const SLOT: u64 = 60;
/// A nonce says its slot modulo 256; beyond half of that an old one would pass for one of the future.
const MOST_SLOTS: u64 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str, link: u8) -> Client {
        Client { address: text.parse().unwrap(), local: None, link: Link::Datagrams(link) }
    }

    #[test]
    fn a_nonce_is_good_for_its_client_and_its_time() {
        let nonces = Nonces::new(&[7; 32], Duration::from_secs(600));
        let (one, start) = (client("192.0.2.1:5", 0), Time::from_millis(7_000_000));
        let nonce = nonces.make(&one, start);
        for seconds in [0, 1, 59, 300, 600] {
            assert_eq!(nonces.judge(&nonce, &one, start + Duration::from_secs(seconds)), Verdict::Good, "{seconds}");
        }
        for seconds in [661, 6_000, 256 * 60, 100 * 256 * 60] {
            assert_eq!(nonces.judge(&nonce, &one, start + Duration::from_secs(seconds)), Verdict::Stale, "{seconds}");
        }
        for other in [client("192.0.2.1:6", 0), client("192.0.2.2:5", 0), client("192.0.2.1:5", 1)] {
            assert_eq!(nonces.judge(&nonce, &other, start), Verdict::Stale);
        }
        let stranger = Nonces::new(&[8; 32], Duration::from_secs(600));
        assert_eq!(stranger.judge(&nonce, &one, start), Verdict::Stale);
    }

    #[test]
    fn what_is_no_nonce_is_stale() {
        let nonces = Nonces::new(&[7; 32], Duration::from_secs(600));
        for text in [&b""[..], b"a", b"AAAAAAAA", b"AAAAAAAAAAAAAAAAAAAAAAAA", &[0xff; 8]] {
            assert_eq!(nonces.judge(text, &client("[2001:db8::1]:5", 0), Time::ZERO), Verdict::Stale);
        }
    }
}
