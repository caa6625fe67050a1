//! Pings and pongs.

use std::net::SocketAddr;

use keynet::stun::{decode, encode_ping, encode_pong, verify, Message, Ping};

use super::input::Input;

const KEY: [u8; 32] = [7; 32];

/// Any bytes are read or refused and nobody's key confirms them; what is written can be read and confirmed, and no bit of it may
/// change.
pub fn messages(data: &[u8]) {
    let read = decode(data);
    let genuine = verify(data, &KEY);
    assert!(!genuine || read.is_ok(), "confirmed and cannot be read");
    assert_eq!(decode(data), read);
    let mut input = Input::new(data);
    let (transaction, name) = (input.array(), input.array());
    let keyed = input.u8() & 1 == 1;
    let mut ping = Vec::new();
    encode_ping(&mut ping, transaction, keyed.then_some((&name, &KEY)));
    assert_eq!(
        decode(&ping),
        Ok(Message::Ping(Ping { transaction, session: keyed.then_some(name), incarnation: None }))
    );
    assert_eq!(verify(&ping, &KEY), keyed);

    let observed = address(&mut input);
    let room = usize::from(input.u8());
    let mut pong = Vec::new();
    if encode_pong(&mut pong, transaction, observed, keyed.then_some(&KEY), room) {
        assert!(pong.len() <= room);
        let Ok(Message::Pong(read)) = decode(&pong) else { panic!("a pong is not one") };
        assert_eq!((read.transaction, read.observed, read.keyed), (transaction, observed, keyed));
        assert_eq!(verify(&pong, &KEY), keyed);
    } else {
        assert!(pong.is_empty());
        assert!(encode_pong(&mut pong, transaction, observed, keyed.then_some(&KEY), ping.len()), "a ping is answered");
    }
    tampered(if input.u8() & 1 == 0 { ping } else { pong }, &mut input);
}

fn tampered(mut message: Vec<u8>, input: &mut Input<'_>) {
    let before = message.clone();
    let at = usize::from(input.u16()) % message.len();
    message[at] ^= input.u8();
    let tail = input.short();
    message.extend_from_slice(tail);
    let _ = decode(&message);
    // the length in the header stands for what is covered; FINGERPRINT may follow, and nothing else
    if message != before && tail.is_empty() {
        assert!(!verify(&message, &KEY), "byte {at} can be changed");
    }
}

fn address(input: &mut Input<'_>) -> SocketAddr {
    match input.u8() & 1 {
        0 => SocketAddr::from((input.array::<4>(), input.u16())),
        _ => SocketAddr::from((input.array::<16>(), input.u16())),
    }
}
