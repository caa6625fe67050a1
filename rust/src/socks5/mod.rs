//! SOCKS5 as the forward proxy speaks it (RFC 1928, RFC 1929; docs/protocol.md section 6): user and password, names, CONNECT.
//!
//! A client is told apart from one of HTTP by its first byte, which is no letter. [`Handshake`] takes bytes and says what to answer; the
//! answer to the request itself is [`established`] or [`refusal`], when it is known what has become of the dial.

use crate::error::{Error, Reason, Result, Stage};

/// The first byte of a client that speaks SOCKS5, and of one that speaks SOCKS4.
pub const VERSION: u8 = 5;
pub const OLD_VERSION: u8 = 4;

/// A handshake on its way. Bytes are taken one message at a time: what stands behind a request belongs to the tunnel.
#[derive(Debug, Default)]
pub struct Handshake {
    state: State,
    bytes: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Greeting,
    Credentials,
    Request,
}

/// What a message of the client means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is not complete yet.
    More,
    /// Say this, and go on.
    Say(&'static [u8]),
    /// `user:password`, to be judged: then [`Handshake::admit`] or [`Handshake::refuse`].
    Judge(Vec<u8>),
    /// `host:port`; the bytes behind it belong to the tunnel.
    Connect(String, Vec<u8>),
}

/// Why a client is refused, and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub error: Error,
    pub said: Vec<u8>,
}

impl Handshake {
    /// Takes bytes of the client; call it again with none until it says [`Step::More`].
    ///
    /// Errors: [`Reason::BadRequest`], [`Reason::CredentialsRequired`], [`Reason::BadTarget`], [`Reason::MethodNotAllowed`].
    pub fn handle_bytes(&mut self, data: &[u8]) -> Result<Step, Box<Refusal>> {
        self.bytes.extend_from_slice(data);
        match self.state {
            State::Greeting => self.greeting(),
            State::Credentials => self.credentials(),
            State::Request => self.request(),
        }
    }

    /// The credentials are good: what to say.
    pub fn admit(&mut self) -> &'static [u8] {
        self.state = State::Request;
        &[1, 0]
    }

    /// They are not.
    pub fn refuse() -> Box<Refusal> {
        let error = Error::new(Reason::CredentialsRequired, Stage::Request, "wrong user or password (SOCKS5)");
        Box::new(Refusal { error, said: vec![1, 1] })
    }

    fn greeting(&mut self) -> Result<Step, Box<Refusal>> {
        match self.bytes.first() {
            None | Some(&VERSION) => {}
            Some(&OLD_VERSION) => {
                let text = "SOCKS4 is not spoken here, for it knows no password: use SOCKS5 (socks5h://)";
                return Err(refused(Reason::BadRequest, text, vec![0, 0x5b, 0, 0, 0, 0, 0, 0]));
            }
            Some(_) => return Err(refused(Reason::BadRequest, "the client does not speak SOCKS5", Vec::new())),
        }
        let [_, count, methods @ ..] = &self.bytes[..] else { return Ok(Step::More) };
        let count = usize::from(*count);
        let Some(methods) = methods.get(..count) else { return Ok(Step::More) };
        if !methods.contains(&PASSWORD) {
            let text = "the client offers no user and password (RFC 1929): socks5h://USER:PASSWORD@HOST:PORT";
            return Err(refused(Reason::CredentialsRequired, text, vec![VERSION, NO_METHOD]));
        }
        self.bytes.drain(..2 + count);
        self.state = State::Credentials;
        Ok(Step::Say(&[VERSION, PASSWORD]))
    }

    fn credentials(&mut self) -> Result<Step, Box<Refusal>> {
        if self.bytes.first().is_some_and(|version| *version != 1) {
            return Err(refused(Reason::BadRequest, "no user and password where they belong (RFC 1929)", vec![1, 1]));
        }
        let Some((user, rest)) = self.bytes.get(1..).and_then(counted) else { return Ok(Step::More) };
        let Some((password, rest)) = counted(rest) else { return Ok(Step::More) };
        let both = [user, b":", password].concat();
        let rest = rest.to_vec();
        self.bytes = rest;
        Ok(Step::Judge(both))
    }

    fn request(&mut self) -> Result<Step, Box<Refusal>> {
        if self.bytes.first().is_some_and(|version| *version != VERSION) {
            return Err(refused(Reason::BadRequest, "the request is none of SOCKS5", reply(GENERAL)));
        }
        let [_, command, _, kind, rest @ ..] = &self.bytes[..] else { return Ok(Step::More) };
        match *command {
            CONNECT => {}
            UDP => {
                let text = "UDP (UDP ASSOCIATE) does not go through; TCP does";
                return Err(refused(Reason::MethodNotAllowed, text, reply(NO_COMMAND)));
            }
            _ => {
                let text = "of SOCKS5 only CONNECT is understood, not BIND";
                return Err(refused(Reason::MethodNotAllowed, text, reply(NO_COMMAND)));
            }
        }
        let host = match *kind {
            NAME => match counted(rest) {
                None => return Ok(Step::More),
                Some((name, rest)) => rest.get(..2).map(|_| (name, rest)),
            },
            // they need not be complete to be refused
            IPV4 | IPV6 => {
                let text =
                    "the client asks for an IP address, where the name of a node belongs: let the proxy resolve names \
                            (socks5h://, not socks5://)";
                return Err(refused(Reason::BadTarget, text, reply(NO_ADDRESS)));
            }
            _ => return Err(refused(Reason::BadRequest, "the kind of address is unknown", reply(NO_ADDRESS))),
        };
        let Some((name, [high, low, behind @ ..])) = host else { return Ok(Step::More) };
        let port = u16::from_be_bytes([*high, *low]);
        match std::str::from_utf8(name)
            .ok()
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':'))
        {
            Some(name) => Ok(Step::Connect(format!("{name}:{port}"), behind.to_vec())),
            None => Err(refused(Reason::BadTarget, "the name holds characters that no name has", reply(GENERAL))),
        }
    }
}

/// A length, and so many bytes; and what follows.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (count, rest) = bytes.split_first()?;
    rest.split_at_checked(usize::from(*count))
}

/// The tunnel stands.
pub fn established() -> Vec<u8> {
    reply(0)
}

/// What a client is told of a failure: SOCKS5 has no words for it, so the reason stands in the log and in the events.
pub fn refusal(error: &Error) -> Vec<u8> {
    reply(match error.reason {
        Reason::AccessDenied | Reason::AccessRevoked => NOT_ALLOWED,
        Reason::ConnectRefused | Reason::ServiceRefused | Reason::ServiceNotFound => CONNECTION_REFUSED,
        Reason::UnknownNode | Reason::PeerOffline | Reason::PeerGone | Reason::PeerLost | Reason::BadTarget => NO_HOST,
        Reason::Unreachable | Reason::UdpBlocked | Reason::BothSymmetric | Reason::RendezvousUnreachable => NO_NETWORK,
        Reason::PunchTimeout
        | Reason::ConnectTimeout
        | Reason::TlsTimeout
        | Reason::OpenTimeout
        | Reason::ServiceTimeout => EXPIRED,
        _ => GENERAL,
    })
}

/// The address that the proxy speaks from is nobody's business, and clients do not look at it.
fn reply(code: u8) -> Vec<u8> {
    vec![VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]
}

fn refused(reason: Reason, text: &str, said: Vec<u8>) -> Box<Refusal> {
    Box::new(Refusal { error: Error::new(reason, Stage::Request, text), said })
}

const PASSWORD: u8 = 2;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const UDP: u8 = 3;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
// RFC 1928 section 6
const GENERAL: u8 = 1;
const NOT_ALLOWED: u8 = 2;
const NO_NETWORK: u8 = 3;
const NO_HOST: u8 = 4;
const CONNECTION_REFUSED: u8 = 5;
/// "TTL expired": what clients show as a time-out.
const EXPIRED: u8 = 6;
const NO_COMMAND: u8 = 7;
const NO_ADDRESS: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// A target and what stands behind the request, if it is complete.
    type End = Result<Option<(String, Vec<u8>)>, Reason>;

    /// What is said to a client that sends these bytes in pieces of `step`, and how it ends.
    fn run(sent: &[u8], step: usize) -> (Vec<u8>, End) {
        let (mut handshake, mut said) = (Handshake::default(), Vec::new());
        let mut pieces = sent.chunks(step);
        while let Some(piece) = pieces.next() {
            let mut data = piece;
            loop {
                match handshake.handle_bytes(data) {
                    Ok(Step::More) => break,
                    Ok(Step::Say(text)) => said.extend_from_slice(text),
                    Ok(Step::Judge(both)) if both == b"user:pass" => said.extend_from_slice(handshake.admit()),
                    Ok(Step::Judge(_)) => {
                        let refusal = Handshake::refuse();
                        said.extend(refusal.said);
                        return (said, Err(refusal.error.reason));
                    }
                    Ok(Step::Connect(target, mut behind)) => {
                        pieces.for_each(|piece| behind.extend_from_slice(piece));
                        return (said, Ok(Some((target, behind))));
                    }
                    Err(refusal) => {
                        said.extend(&refusal.said);
                        return (said, Err(refusal.error.reason));
                    }
                }
                data = &[];
            }
        }
        (said, Ok(None))
    }

    const LOGIN: &[u8] = b"\x05\x02\x00\x02\x01\x04user\x04pass";

    #[test]
    fn names_come_through_in_whatever_pieces() {
        let sent = [LOGIN, b"\x05\x01\x00\x03\x08a.keynet\x1f\x40early"].concat();
        for step in 1..=sent.len() {
            let (said, end) = run(&sent, step);
            assert_eq!(said, [5, 2, 1, 0]);
            assert_eq!(end, Ok(Some(("a.keynet:8000".to_owned(), b"early".to_vec()))), "{step}");
        }
        for short in 0..sent.len() - 5 {
            assert_eq!(run(&sent[..short], 3).1, Ok(None), "{short}");
        }
    }

    #[test]
    fn everything_else_is_refused_with_its_code() {
        let behind = |request: &[u8]| [LOGIN, request].concat();
        let cases: [(Vec<u8>, Reason, &[u8]); 11] = [
            (b"\x04\x01\x00\x50\x00\x00\x00\x01a\0".to_vec(), Reason::BadRequest, &[0, 0x5b]),
            (b"\x05\x01\x00".to_vec(), Reason::CredentialsRequired, &[5, 0xff]),
            (b"\x05\x00".to_vec(), Reason::CredentialsRequired, &[5, 0xff]),
            (b"\x05\x01\x02\x01\x04user\x04nope".to_vec(), Reason::CredentialsRequired, &[5, 2, 1, 1]),
            (b"\x05\x01\x02\x05\x01\x00".to_vec(), Reason::BadRequest, &[5, 2, 1, 1]),
            (behind(b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50"), Reason::BadTarget, &[5, 2, 1, 0, 5, 8]),
            (behind(b"\x05\x01\x00\x04"), Reason::BadTarget, &[5, 2, 1, 0, 5, 8]),
            (behind(b"\x05\x02\x00\x03\x01a\0\x50"), Reason::MethodNotAllowed, &[5, 2, 1, 0, 5, 7]),
            (behind(b"\x05\x03\x00\x01\0\0\0\0\0\0"), Reason::MethodNotAllowed, &[5, 2, 1, 0, 5, 7]),
            (behind(b"\x05\x01\x00\x09"), Reason::BadRequest, &[5, 2, 1, 0, 5, 8]),
            (behind(b"\x05\x01\x00\x03\x03a:b\0\x50"), Reason::BadTarget, &[5, 2, 1, 0, 5, 1]),
        ];
        for (sent, reason, said) in cases {
            for step in [1, sent.len()] {
                let (found, end) = run(&sent, step);
                assert_eq!(end, Err(reason), "{}", sent.escape_ascii());
                assert!(found.starts_with(said), "{found:?}");
            }
        }
    }

    #[test]
    fn every_reason_has_a_code_that_is_no_success() {
        assert_eq!(established()[..2], [5, 0]);
        for &reason in Reason::ALL {
            let said = refusal(&Error::new(reason, Stage::Open, ""));
            assert!(said.len() == 10 && said[0] == 5 && (1..=8).contains(&said[1]), "{reason}");
        }
    }
}
