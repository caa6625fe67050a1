//! An answer of a service, and what the client gets of it.

use super::body::Framing;
use super::fields::{self, has_member, push, take_line, Field, Left};
use crate::error::{Error, Reason, Result, Stage};

/// What of a request decides how its answer is read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// No body follows, whatever the head says.
    pub is_head: bool,
    /// The client speaks HTTP/1.0: it knows no chunks and no interim answers.
    pub old: bool,
    /// Another protocol was asked for.
    pub upgrade: bool,
}

/// An answer that can be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// The head that the client gets.
    pub head: Vec<u8>,
    /// The body that follows, as it comes and as it is passed on; `None`: there is none.
    pub body: Option<(Framing, Framing)>,
    /// The service does not end its connection with this.
    pub keep: bool,
}

impl Response {
    /// Judges a complete head, its empty line included. `close`: the client's connection ends with this answer.
    ///
    /// Errors: [`Reason::ServiceProtocolError`].
    pub fn parse(head: &[u8], asked: &Asked, close: bool) -> Result<Self> {
        Self::read(head, asked, close).map_err(|text| Error::new(Reason::ServiceProtocolError, Stage::Service, text))
    }

    /// Another answer follows.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != SWITCHING
    }

    /// What follows is no HTTP any more.
    pub fn is_switching(&self) -> bool {
        self.status == SWITCHING
    }

    fn read(head: &[u8], asked: &Asked, close: bool) -> Result<Self, String> {
        let (line, rest) = take_line(head)?;
        let (status, phrase, old) = status_line(line)?;
        let fields = fields::parse(rest)?;
        if status == SWITCHING && !asked.upgrade {
            return Err("the service changes to another protocol without having been asked".to_owned());
        }
        let framing = fields::framing(&fields)?;
        let bare = status < 200 || status == 204;
        let body = match framing {
            _ if bare || status == 304 || asked.is_head => None,
            Some(Framing::Length(length)) => Some((Framing::Length(length), Framing::Length(length))),
            Some(Framing::Chunked) if old => return Err("Transfer-Encoding is no part of HTTP/1.0".to_owned()),
            reads => {
                let writes = if asked.old { Framing::UntilClose } else { Framing::Chunked };
                Some((reads.unwrap_or(Framing::UntilClose), writes))
            }
        };
        let ends = old
            || has_member(&fields, "connection", "close")
            || body.is_some_and(|(reads, _)| reads == Framing::UntilClose);
        // of an answer without a body the length is something that is said of another one (RFC 9110 section 8.6)
        let length = match framing {
            Some(Framing::Length(length)) if !bare => Some(length),
            _ => None,
        };
        let chunked = body.is_some_and(|(_, writes)| writes == Framing::Chunked);
        let written = Written { status, phrase, old, length, chunked, close };
        Ok(Self { status, head: written.head(&fields), body, keep: !ends && status != SWITCHING })
    }
}

/// Status, phrase, and whether it is HTTP/1.0.
fn status_line(line: &[u8]) -> Result<(u16, &[u8], bool), String> {
    let shown = || format!("the service does not answer in HTTP/1: {}", excerpt(line));
    let (old, rest) = match line {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', rest @ ..] => (false, rest),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', b' ', rest @ ..] => (true, rest),
        _ => return Err(shown()),
    };
    let (digits, phrase) = rest.split_at(rest.len().min(3));
    let status = match digits {
        [b'1'..=b'9', b'0'..=b'9', b'0'..=b'9'] => {
            digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'))
        }
        _ => return Err(shown()),
    };
    // many leave out the space before a phrase that they do not have either
    let phrase = match phrase {
        [] => phrase,
        [b' ', phrase @ ..] => phrase,
        _ => return Err(shown()),
    };
    if phrase.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err("the status line holds a control character".to_owned());
    }
    Ok((status, phrase, old))
}

fn excerpt(line: &[u8]) -> String {
    line.iter().take(MAX_EXCERPT).copied().flat_map(std::ascii::escape_default).map(char::from).collect()
}

/// What is written anew.
struct Written<'a> {
    status: u16,
    phrase: &'a [u8],
    old: bool,
    length: Option<u64>,
    chunked: bool,
    close: bool,
}

impl Written<'_> {
    fn head(&self, fields: &[Field<'_>]) -> Vec<u8> {
        let size: usize = fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
        let mut head = Vec::with_capacity(size + self.phrase.len() + 256);
        head.extend_from_slice(format!("HTTP/1.1 {} ", self.status).as_bytes());
        head.extend_from_slice(self.phrase);
        head.extend_from_slice(b"\r\n");
        let left = Left::of(fields);
        for (name, value) in fields.iter().filter(|(name, _)| !left.is_left(name)) {
            push(&mut head, name, value);
        }
        push(&mut head, b"Via", if self.old { b"1.0 keynet" } else { b"1.1 keynet" });
        if let Some(length) = self.length {
            push(&mut head, b"Content-Length", length.to_string().as_bytes());
        }
        if self.chunked {
            push(&mut head, b"Transfer-Encoding", b"chunked");
        }
        if self.status == SWITCHING {
            let protocols: Vec<_> = fields::members(fields, "upgrade").collect();
            push(&mut head, b"Connection", b"Upgrade");
            push(&mut head, b"Upgrade", &protocols.join(&b", "[..]));
        } else if self.close && self.status >= 200 {
            push(&mut head, b"Connection", b"close");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

const SWITCHING: u16 = 101;
/// Of a line that is no status line: enough to see what it is.
const MAX_EXCERPT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, asked: Asked, close: bool) -> (Response, String) {
        let response = Response::parse(text.as_bytes(), &asked, close).unwrap();
        let head = String::from_utf8(response.head.clone()).unwrap();
        (response, head)
    }

    const OLD: Asked = Asked { is_head: false, old: true, upgrade: false };
    const HEAD: Asked = Asked { is_head: true, old: false, upgrade: false };
    const UPGRADE: Asked = Asked { is_head: false, old: false, upgrade: true };

    #[test]
    fn the_client_gets_what_is_not_of_this_hop() {
        let text = "HTTP/1.1 200 Very good\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 5\r\n\
                    Set-Cookie: a\r\nset-cookie: b\r\nProxy-Authenticate: Basic\r\nProxy-Status: x\r\nUpgrade: h2c\r\n\r\n";
        let (response, head) = read(text, Asked::default(), false);
        assert_eq!(
            head,
            "HTTP/1.1 200 Very good\r\nSet-Cookie: a\r\nset-cookie: b\r\nProxy-Status: x\r\nVia: 1.1 keynet\r\nContent-Length: 5\r\n\r\n"
        );
        assert!(response.keep);
        assert_eq!(response.body, Some((Framing::Length(5), Framing::Length(5))));
        assert!(read(text, Asked::default(), true).1.ends_with("Connection: close\r\n\r\n"));
        assert!(
            !read("HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n", Asked::default(), false).0.keep
        );
    }

    #[test]
    fn bodies_are_framed_for_who_gets_them() {
        let body = |text: &str, asked| read(text, asked, false).0.body;
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(body(chunked, Asked::default()), Some((Framing::Chunked, Framing::Chunked)));
        assert_eq!(body(chunked, OLD), Some((Framing::Chunked, Framing::UntilClose)));
        assert!(!read(chunked, OLD, true).1.contains("chunked"));
        let (response, head) = read("HTTP/1.0 200 OK\r\n\r\n", Asked::default(), false);
        assert_eq!(response.body, Some((Framing::UntilClose, Framing::Chunked)));
        assert!(!response.keep && head.contains("Via: 1.0 keynet\r\nTransfer-Encoding: chunked\r\n"), "{head}");
        assert!(
            !read("HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n", Asked::default(), false)
                .0
                .keep
        );
    }

    #[test]
    fn answers_without_a_body() {
        for (text, asked, length) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", HEAD, true),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", HEAD, false),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", Asked::default(), true),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n", Asked::default(), false),
            ("HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\nLink: x\r\n\r\n", Asked::default(), false),
            ("HTTP/1.1 100\r\n\r\n", Asked::default(), false),
        ] {
            let (response, head) = read(text, asked, false);
            assert_eq!((response.body, response.keep), (None, true), "{text}");
            assert_eq!(head.contains("Content-Length: 7"), length, "{head}");
            assert!(!head.contains("chunked"));
            assert_eq!(response.is_interim(), response.status < 200);
        }
    }

    #[test]
    fn another_protocol_only_where_it_was_asked_for() {
        let text = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n";
        let (response, head) = read(text, UPGRADE, false);
        assert!(response.is_switching() && !response.keep && !response.is_interim());
        assert_eq!(
            head,
            "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\nVia: 1.1 keynet\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        assert!(Response::parse(text.as_bytes(), &Asked::default(), false).is_err());
    }

    #[test]
    fn what_is_no_good_answer_is_said_to_be_so() {
        for text in [
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.2 200 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n\r\n",
            "\0\0\x12\x04\0\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1  200 OK\r\n\r\n",
            "HTTP/1.1 200 O\0K\r\n\r\n",
            "HTTP/1.1 200 OK\n\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            let error = Response::parse(text.as_bytes(), &Asked::default(), false).expect_err(text);
            assert_eq!(error.reason, Reason::ServiceProtocolError);
            assert!(!error.detail.chars().any(char::is_control), "{error}");
        }
        assert_eq!(read("HTTP/1.1 200\r\n\r\n", Asked::default(), false).1.lines().next(), Some("HTTP/1.1 200 "));
    }
}
