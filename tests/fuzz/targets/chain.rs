//! Chains of certificates that strangers made: with sound signatures of their own keys over whatever they like, around the one
//! certificate of a victim that everybody has seen.

use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use keynet::addr::NodeId;
use keynet::config::TlsConfig;
use keynet::tls::forge;

use super::input::Input;

/// Any bytes are judged, by rustls' verifier as by the rules themselves, the same every time; and no chain makes its bearer the
/// victim unless its leaf is the victim, whose key nobody else has.
pub fn certificates(data: &[u8]) {
    let mut input = Input::new(data);
    let config = TlsConfig { max_chain: 4, ..TlsConfig::default() };
    let now = UNIX_EPOCH
        + Duration::from_secs(input.pick(&[MADE + 100, MADE, 0, MADE + 1_000_000_000, u64::from(u32::MAX) << 4]));
    let wanted = keys()[usize::from(input.u8() % KEYS)].node;
    let count = input.u8() % 6;
    let chain: Vec<Vec<u8>> = (0..count).map(|_| certificate(&mut input)).collect();

    let judged = forge::judged(&chain, None, &config, now);
    assert_eq!(forge::verified(&chain, None, &config, now), judged.clone().map(drop), "the acceptor's verifier");
    let wanted_judged = forge::judged(&chain, Some(&wanted), &config, now);
    assert_eq!(forge::verified(&chain, Some(&wanted), &config, now), wanted_judged.clone().map(drop), "the dialler's");
    assert!(wanted_judged.is_err() || judged.is_ok(), "good for the one who asks for more");

    let Ok(peer) = judged else { return };
    let victim = keys()[VICTIM].node;
    assert!(!peer.is(&victim) || peer.leaf == victim, "a stranger became the victim");
    assert_eq!(peer.all.first(), Some(&peer.leaf));
    assert!(peer.all.len() <= config.max_chain && peer.all.len() <= chain.len());
    assert!((1..peer.all.len()).all(|n| !peer.all[..n].contains(&peer.all[n])), "a node twice");
    assert_eq!(wanted_judged.is_ok(), peer.is(&wanted));
}

fn certificate(input: &mut Input<'_>) -> Vec<u8> {
    let how = input.u8();
    let stranger = &keys()[1 + usize::from(how >> 4) % (keys().len() - 1)];
    match how % 8 {
        0 => victims_own(),
        1 => input.long().to_vec(),
        2 => signed(input.long(), &stranger.pair),
        // most of them are sound, or nearly
        _ => {
            let names = input.u8();
            let name = |bits: u8| keys()[usize::from(bits % KEYS)].node.to_string();
            let key = &keys()[usize::from(names % KEYS)];
            let subject = if names & 0x40 > 0 { name(input.u8()) } else { key.node.to_string() };
            let issuer = if names & 0x80 > 0 { name(input.u8()) } else { stranger.node.to_string() };
            let days = if names & 0x20 > 0 { input.u8() } else { 0 };
            let mut tbs = to_be_signed(&subject, key.node.public_key(), &issuer, days, names & 0x10 > 0);
            for _ in 0..input.u8() % 8 {
                let at = usize::from(input.u16()) % tbs.len();
                tbs[at] = input.u8();
            }
            signed(&tbs, &stranger.pair)
        }
    }
}

struct Key {
    pair: Ed25519KeyPair,
    node: NodeId,
}

/// The victim's, and those of the strangers.
fn keys() -> &'static [Key] {
    static ALL: OnceLock<Vec<Key>> = OnceLock::new();
    ALL.get_or_init(|| {
        let key = |seed| {
            let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed");
            let node = NodeId::from_public_key(pair.public_key().as_ref().try_into().expect("32 bytes"));
            Key { pair, node }
        };
        (0..KEYS).map(key).collect()
    })
}

/// The only thing that the victim ever signed.
fn victims_own() -> Vec<u8> {
    let victim = &keys()[VICTIM];
    let name = victim.node.to_string();
    signed(&to_be_signed(&name, victim.node.public_key(), &name, 0, false), &victim.pair)
}

fn signed(tbs: &[u8], key: &Ed25519KeyPair) -> Vec<u8> {
    let signature = [&[0], key.sign(tbs).as_ref()].concat();
    der(0x30, &[tbs, &algorithm(), &der(0x03, &[&signature])])
}

/// RFC 5280 section 4.1, as keynet's own certificates have it.
fn to_be_signed(subject: &str, key: &[u8; 32], issuer: &str, days: u8, critical: bool) -> Vec<u8> {
    let name = |text: &str| {
        let common_name = [&[0x06, 3, 0x55, 4, 3][..], &der(0x0c, &[text.as_bytes()])];
        der(0x30, &[&der(0x31, &[&der(0x30, &common_name)])])
    };
    // from 2026-09-21 on, for as many years as there are days (so that one byte reaches every relation to now)
    let from = der(0x17, &[b"260921141320Z"]);
    let until = der(0x17, &[format!("{:02}0921141320Z", 36_u8.wrapping_add(days) % 50).as_bytes()]);
    let public = der(0x30, &[&algorithm(), &der(0x03, &[&[0], key])]);
    let version = der(0xa0, &[&der(0x02, &[&[2]])]);
    let mut parts = vec![version, der(0x02, &[&[1]]), algorithm(), name(issuer), der(0x30, &[&from, &until])];
    parts.extend([name(subject), public]);
    if critical {
        // key usage: digitalSignature, critical
        let usage = [0x06, 3, 0x55, 0x1d, 0x0f, 0x01, 1, 0xff, 0x04, 4, 0x03, 2, 7, 0x80];
        parts.push(der(0xa3, &[&der(0x30, &[&der(0x30, &[&usage])])]));
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    der(0x30, &parts)
}

/// Ed25519, RFC 8410 section 3.
fn algorithm() -> Vec<u8> {
    der(0x30, &[&[0x06, 3, 0x2b, 0x65, 0x70]])
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = match body.len() {
        short @ 0..=127 => vec![short as u8],
        long => vec![0x82, (long >> 8) as u8, long as u8],
    };
    // DER wants the shortest form
    let length = if let [0x82, 0, low] = length[..] { vec![0x81, low] } else { length };
    [&[tag][..], &length, &body].concat()
}

const KEYS: u8 = 4;
const VICTIM: usize = 0;
/// The first second of the certificates, 2026-09-21 14:13:20 UTC, in seconds since 1970.
const MADE: u64 = 1_790_000_000;
