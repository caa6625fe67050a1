//! Requests that name whole URLs, their answers, their bodies; and SOCKS5: in whatever pieces they come.

use keynet::http_forward::{is_whole_url, AnswerHead, Asked, Body, Framing, Request, Response};
use keynet::socks5::{Handshake, Step};

/// The first byte chooses what the rest is, and the pieces.
pub fn messages(data: &[u8]) {
    let Some((choice, sent)) = data.split_first() else { return };
    let step = 1 + usize::from(choice >> 3);
    match choice & 7 {
        0 | 1 => request(sent),
        2 => answer(sent, step),
        3 => socks(sent, step),
        4 => body(Framing::Length(sent.len() as u64 / 2), sent, step),
        5 => body(Framing::UntilClose, sent, step),
        _ => body(Framing::Chunked, sent, step),
    }
}

/// What the service gets is one head that reads the same again, and holds nothing that is of this hop.
fn request(sent: &[u8]) {
    let line = sent.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let Ok(request) = Request::parse(sent) else { return };
    assert!(is_whole_url(line));
    let head = std::str::from_utf8(&request.head).map(str::to_owned);
    let head = head.unwrap_or_else(|_| String::from_utf8_lossy(&request.head).into_owned());
    assert_eq!(head.matches("\r\n\r\n").count(), 1, "one head: {head:?}");
    assert!(head.ends_with("\r\n\r\n"));
    assert_eq!(head.matches('\n').count(), head.matches("\r\n").count());
    assert_eq!(head.matches('\r').count(), head.matches("\r\n").count());
    let lower = head.to_ascii_lowercase();
    let fields = |name: &str| lower.lines().skip(1).filter(|line| line.split(':').next() == Some(name)).count();
    assert_eq!(fields("host"), 1);
    assert_eq!(fields("proxy-authorization") + fields("proxy-connection") + fields("keep-alive"), 0);
    assert!(fields("content-length") + fields("transfer-encoding") <= 1, "{head:?}");
    let (first, rest) = head.split_once(' ').expect("a request line");
    let again = format!("{first} http://{}{}", request.authority, rest.strip_prefix('*').unwrap_or(rest));
    let again = Request::parse(again.as_bytes());
    // invalid UTF-8 in values was replaced for the comparison, and one more Via may be one field too many
    if let Ok(again) = again {
        assert_eq!((again.body, again.authority), (request.body, request.authority.clone()));
    }
}

fn answer(sent: &[u8], step: usize) {
    let collect = |step: usize| {
        let mut head = AnswerHead::new(4 << 10);
        for piece in sent.chunks(step) {
            match head.handle_bytes(piece) {
                Ok(Some(length)) => return Some(head.split(length).0.to_vec()),
                Ok(None) => {}
                Err(_) => return None,
            }
        }
        None
    };
    let whole = collect(sent.len().max(1));
    assert_eq!(collect(1), whole);
    assert_eq!(collect(step), whole);
    let Some(head) = whole else { return };
    for asked in [
        Asked::default(),
        Asked { is_head: true, old: false, upgrade: true },
        Asked { is_head: false, old: true, upgrade: false },
    ] {
        let Ok(response) = Response::parse(&head, &asked, false) else { continue };
        assert!(response.head.ends_with(b"\r\n\r\n") && response.head.starts_with(b"HTTP/1.1 "));
        assert_eq!(response.head.windows(4).filter(|four| four == b"\r\n\r\n").count(), 1);
        assert!(response.body.is_none() || !(asked.is_head || response.is_interim()));
        // with Via there may be one field too many
        if let Ok(written) = Response::parse(&response.head, &Asked { old: false, ..asked }, false) {
            assert_eq!(written.status, response.status);
        }
    }
}

/// Whatever the pieces, the same comes out and the same is left over.
fn body(framing: Framing, sent: &[u8], step: usize) {
    for writes in [framing, Framing::UntilClose, Framing::Chunked] {
        if matches!(framing, Framing::Length(_)) && writes != framing {
            continue;
        }
        let pass = |step: usize| {
            let (mut body, mut out, mut taken) = (Body::new(framing, writes), Vec::new(), 0);
            for piece in sent.chunks(step) {
                taken += body.take(piece, &mut out).ok()?;
                if body.is_done() {
                    break;
                }
            }
            let cut = !body.is_done() && body.handle_end(&mut out).is_err();
            Some((content(writes, &out, cut), taken, cut))
        };
        let whole = pass(sent.len().max(1));
        assert_eq!(pass(1), whole);
        assert_eq!(pass(step), whole);
    }
}

/// The chunks are as the pieces were; what is in them is not.
fn content(writes: Framing, out: &[u8], cut: bool) -> Vec<u8> {
    if writes != Framing::Chunked {
        return out.to_vec();
    }
    let (mut body, mut content) = (Body::new(Framing::Chunked, Framing::UntilClose), Vec::new());
    assert_eq!(body.take(out, &mut content), Ok(out.len()), "what was written can be read");
    assert_eq!(body.is_done(), !cut);
    content
}

fn socks(sent: &[u8], step: usize) {
    let run = |step: usize| {
        let (mut handshake, mut said, mut taken) = (Handshake::default(), Vec::new(), 0);
        for piece in sent.chunks(step) {
            taken += piece.len();
            let mut data = piece;
            loop {
                match handshake.handle_bytes(data) {
                    Ok(Step::More) => break,
                    Ok(Step::Say(text)) => said.extend_from_slice(text),
                    Ok(Step::Judge(given)) if given.len() % 2 == 0 => said.extend_from_slice(handshake.admit()),
                    Ok(Step::Judge(_)) => return Some((said, None)),
                    Ok(Step::Connect(target, behind)) => {
                        assert_eq!(behind, sent[taken - behind.len()..taken], "what came behind it is kept");
                        return Some((said, Some((target, taken - behind.len()))));
                    }
                    Err(_) => return Some((said, None)),
                }
                data = &[];
            }
        }
        None
    };
    let whole = run(sent.len().max(1));
    assert_eq!(run(1), whole);
    assert_eq!(run(step), whole);
}
