//! Questions to STUN servers and their answers (RFC 5780).

use std::net::SocketAddr;

use keynet::stun::discovery::{
    decode_query, decode_reply, encode_answer, encode_query, encode_refusal, Answer, Change, Query, Reply, QUERY_BYTES,
};

use super::input::Input;

/// Any bytes are read or refused, by server and client; what is written is read the same, and an answer is not larger than its
/// question, unless that is a bare header.
pub fn questions(data: &[u8]) {
    assert_eq!((decode_query(data), decode_reply(data)), (decode_query(data), decode_reply(data)));
    let is_query = matches!(decode_query(data), Ok(Some(_)));
    assert!(!(is_query && matches!(decode_reply(data), Ok(Some(_)))), "a question and an answer at once");

    let mut input = Input::new(data);
    let (transaction, flags) = (input.array(), input.u8());
    let change = Change { ip: flags & 1 > 0, port: flags & 2 > 0 };
    let mut query = Vec::new();
    encode_query(&mut query, transaction, change);
    assert_eq!(query.len(), QUERY_BYTES);
    assert_eq!(decode_query(&query), Ok(Some(Query { transaction, change, unknown: None })));

    let observed = address(&mut input);
    let origin = (flags & 4 > 0).then(|| address(&mut input));
    let other = (flags & 8 > 0).then(|| address(&mut input));
    let told = Answer { observed, origin, other };
    let (room, mut reply) = (usize::from(input.u8()), Vec::new());
    encode_answer(&mut reply, transaction, &told, room);
    assert!(reply.len() <= room.max(44), "{} bytes for {room}", reply.len());
    let Ok(Some(Reply { transaction: read, answer: Some(answer) })) = decode_reply(&reply) else {
        panic!("an answer is not one")
    };
    assert_eq!((read, answer.observed), (transaction, observed));
    assert!(
        answer.origin.is_none_or(|read| Some(read) == origin) && answer.other.is_none_or(|read| Some(read) == other)
    );
    assert!(room < QUERY_BYTES || answer == told, "a question of ours leaves room for everything");

    let mut refusal = Vec::new();
    encode_refusal(&mut refusal, transaction, input.u16());
    assert_eq!(decode_reply(&refusal), Ok(Some(Reply { transaction, answer: None })));

    // as hostile servers and clients send them
    for mut message in [query, reply, refusal] {
        for _ in 0..input.u8() % 4 {
            let at = usize::from(input.u16()) % message.len();
            message[at] ^= input.u8();
        }
        message.extend_from_slice(input.short());
        let _ = (decode_query(&message), decode_reply(&message));
    }
}

fn address(input: &mut Input<'_>) -> SocketAddr {
    match input.u8() & 1 {
        0 => SocketAddr::from((input.array::<4>(), input.u16())),
        _ => SocketAddr::from((input.array::<16>(), input.u16())),
    }
}
