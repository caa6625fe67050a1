//! The CONNECT head, in whatever pieces it comes; and what a proxy answers to ours.

use keynet::error::Reason;
use keynet::http_connect::browser::{refusal, Guard, Verdict};
use keynet::http_connect::{answer, Credentials, HeadBuffer, Reply, Request, Target};

/// The first byte chooses cap and pieces; the rest is what the client sends. User and password are `user` and `pass`.
pub fn requests(data: &[u8]) {
    let Some((choice, sent)) = data.split_first() else { return };
    check_reply(sent);
    check_guard(sent, 1 + usize::from(choice >> 1));
    let max = if choice & 1 == 0 { 16 << 10 } else { 256 };
    let credentials = Credentials::new("user", "pass").expect("no colon in it");
    let whole = collect(sent, usize::MAX, max);
    assert_eq!(collect(sent, 1, max), whole, "byte by byte");
    assert_eq!(collect(sent, 2 + usize::from(choice >> 1), max), whole, "piece by piece");
    let error = match whole {
        Ok(None) => return,
        Ok(Some(head)) => match Request::parse(&head, &credentials) {
            Ok(request) => return check_request(&request),
            Err(error) => error,
        },
        Err(reason) => keynet::error::Error::new(reason, keynet::error::Stage::Request, "collecting"),
    };
    assert!(REFUSALS.contains(&error.reason), "{error:?}");
    check_answer(&answer(&error));
}

/// What a static forward says of these bytes is the same in whatever pieces they come, and what passes is what came.
fn check_guard(sent: &[u8], step: usize) {
    let judge = |step: usize| {
        let mut guard = Guard::new(&["own.example".to_owned()]);
        let mut taken = 0;
        for piece in sent.chunks(step) {
            taken += piece.len();
            match guard.handle_bytes(piece) {
                Verdict::More => {}
                Verdict::Pass(held) => {
                    assert_eq!(held, &sent[..taken], "nothing is lost or invented");
                    return None;
                }
                Verdict::Refuse(why) => return Some(why),
            }
        }
        assert_eq!(guard.handle_bytes(&[]), Verdict::Pass(sent.to_vec()), "who has said all is carried");
        None
    };
    // beyond its cap it is refused because of its size, and that may be noticed later in larger pieces
    if sent.len() >= 64 << 10 {
        return;
    }
    let whole = judge(sent.len().max(1));
    assert_eq!(judge(1), whole, "byte by byte");
    assert_eq!(judge(step), whole, "piece by piece");
    if let Some(why) = whole {
        assert!(!why.chars().any(char::is_control), "{why:?}");
        assert!(refusal(&why).starts_with(b"HTTP/1.1 403 "));
    }
}

const REFUSALS: &[Reason] = &[
    Reason::BadRequest,
    Reason::HeadTooLarge,
    Reason::CredentialsRequired,
    Reason::MethodNotAllowed,
    Reason::BadTarget,
];

/// The head, when it is complete; the reason, when it is hopeless.
fn collect(sent: &[u8], step: usize, max: usize) -> Result<Option<Vec<u8>>, Reason> {
    let mut buffer = HeadBuffer::new(max);
    let mut taken = 0;
    for piece in sent.chunks(step.min(sent.len().max(1))) {
        taken += piece.len();
        if let Some(length) = buffer.handle_bytes(piece).map_err(|error| error.reason)? {
            let (head, behind) = buffer.split(length);
            assert!(head.len() <= max && head.ends_with(b"\n"));
            assert_eq!(behind, &sent[taken - behind.len()..taken], "what came behind it is kept");
            return Ok(Some(head.to_vec()));
        }
    }
    Ok(None)
}

fn check_request(request: &Request) {
    let Target { node, service_port, address } = &request.target;
    let text = match address {
        Some(address) => format!("{address}/?nodeId={node}&service={service_port}"),
        None => format!("{node}.keynet:{service_port}"),
    };
    match text.parse::<Target>() {
        Ok(again) => assert_eq!(again, request.target),
        // "service" may be left out, and means 0 then, but 0 cannot be written
        Err(error) => assert_eq!(*service_port, 0, "{text}: {error}"),
    }
}

/// Nothing but a 2xx opens a tunnel, and what people are shown is short and does nothing to their terminal.
fn check_reply(head: &[u8]) {
    match Reply::parse(head) {
        Reply::Established => {
            let text = head.trim_ascii_start();
            assert!(text.starts_with(b"HTTP/1.") && text[8..].trim_ascii_start().starts_with(b"2"));
        }
        Reply::Refused { status, phrase } => {
            assert!(!(200..300).contains(&status) && phrase.chars().count() <= 128);
            assert!(!phrase.contains(char::is_control));
        }
        Reply::NotHttp => {}
    }
}

/// A refusal is one well-formed answer, and nothing that the client sent becomes a field of it.
fn check_answer(answer: &[u8]) {
    let text = std::str::from_utf8(answer).expect("answers are text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")).expect("a status line");
    assert!(status.starts_with(['4', '5']), "{status}");
    for line in lines {
        let (name, value) = line.split_once(": ").expect("a field");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-'), "{name}");
        assert!(value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{value}");
        if name == "Content-Length" {
            assert_eq!(value.parse(), Ok(body.len()));
        }
    }
}
