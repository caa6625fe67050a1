//! The head of a request: collected within a cap, then judged in the order of docs/protocol.md section 6.

use std::time::Duration;

use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use base64::engine::DecodePaddingMode;
use base64::{alphabet, Engine};
use subtle::{Choice, ConstantTimeEq};

use super::target::Target;
use crate::error::{Error, Reason, Result, Stage};
use crate::http_fields::{is_token, Wishes};

/// Collects a request head, whatever pieces it arrives in, and keeps what came along behind it.
#[derive(Debug)]
pub struct HeadBuffer {
    bytes: Vec<u8>,
    /// Start of the line that is not complete yet.
    line: usize,
    /// Bytes that have been looked through for line ends.
    scanned: usize,
    /// Bytes of empty lines before the request line.
    skipped: usize,
    max: usize,
}

impl HeadBuffer {
    /// `max`: the most bytes that a head may have, its final empty line included.
    pub fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), line: 0, scanned: 0, skipped: 0, max }
    }

    /// Takes bytes from the client. Returns the length of the head once it is complete; then call [`Self::split`].
    ///
    /// Errors: [`Reason::BadRequest`] as soon as the bytes cannot be HTTP, [`Reason::HeadTooLarge`] beyond the cap.
    pub fn handle_bytes(&mut self, data: &[u8]) -> Result<Option<usize>> {
        self.bytes.extend_from_slice(data);
        self.skip_empty_lines();
        if let Some(first) = self.bytes.first().filter(|byte| !is_token(**byte)) {
            return Err(bad_request(first_byte_text(*first)));
        }
        while self.scanned < self.bytes.len().min(self.max) {
            let end = self.scanned;
            self.scanned += 1;
            if self.bytes[end] == b'\n' {
                let line = &self.bytes[self.line..end];
                self.line = self.scanned;
                if line.is_empty() || line == b"\r" {
                    return Ok(Some(self.scanned));
                }
            }
        }
        if self.bytes.len() > self.max {
            return Err(Error::new(
                Reason::HeadTooLarge,
                Stage::Request,
                format!("the request head has more than {} bytes", self.max),
            ));
        }
        Ok(None)
    }

    /// True until the client has sent something.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The head and the bytes that came along behind it, which belong to the tunnel.
    pub fn split(&self, head_length: usize) -> (&[u8], &[u8]) {
        self.bytes.split_at(head_length.min(self.bytes.len()))
    }

    /// RFC 9112 section 2.2: empty lines before the request line are ignored.
    fn skip_empty_lines(&mut self) {
        if self.scanned == 0 {
            let empty = self.bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let skip = empty.min(MAX_EMPTY_BYTES - self.skipped);
            self.bytes.drain(..skip);
            self.skipped += skip;
        }
    }
}

/// User and password of the forward proxy.
#[derive(Clone)]
pub struct Credentials {
    /// As RFC 7617 section 2.1 has it, and as the challenge asks.
    utf8: Vec<u8>,
    /// As many clients send it all the same, because the older rule leaves the choice to them (RFC 7617 section 2); `None`: it cannot
    /// be written so.
    latin1: Option<Vec<u8>>,
}

impl Credentials {
    /// Errors: [`Reason::InvalidArgument`] when the user holds a colon (RFC 7617 section 2) or either a control character.
    pub fn new(user: &str, password: &str) -> Result<Self> {
        if user.contains(':') || user.chars().chain(password.chars()).any(char::is_control) {
            let text = "a user name must not hold ':', and neither it nor the password control characters";
            return Err(Error::new(Reason::InvalidArgument, Stage::Setup, text));
        }
        let joined = format!("{user}:{password}");
        let latin1 = joined.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect();
        Ok(Self { utf8: joined.into_bytes(), latin1 })
    }

    /// Judges what a request has in `Proxy-Authorization`. Errors: [`Reason::CredentialsRequired`].
    pub fn check<'f>(&self, mut given: impl Iterator<Item = &'f [u8]>) -> Result<()> {
        let required = |text: &str| Error::new(Reason::CredentialsRequired, Stage::Request, text);
        let first = given.next().ok_or_else(|| required("the request has no Proxy-Authorization"))?;
        // Two of them: which one counts would be a guess.
        if given.next().is_some() || !self.admits(first) {
            return Err(required("wrong user or password"));
        }
        Ok(())
    }

    /// Compares in a time that does not depend on where the texts differ (their length may show).
    fn admits(&self, field: &[u8]) -> bool {
        let Some((scheme, token)) = split_once(trim(field), b' ') else { return false };
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return false;
        }
        BASE64.decode(trim(token)).is_ok_and(|given| self.is(&given))
    }

    /// Whether these are `user:password`.
    pub fn is(&self, given: &[u8]) -> bool {
        let latin1 = self.latin1.as_ref().map_or(Choice::from(0), |text| given.ct_eq(text));
        bool::from(given.ct_eq(&self.utf8) | latin1)
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

/// A CONNECT request that has been judged good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub target: Target,
    /// `Keynet-Priority: background` was asked for.
    pub background: bool,
    /// `Keynet-Patience`: how long a silence of the peer the connection outlives.
    pub patience: Option<Duration>,
}

impl Request {
    /// Judges a complete head (as [`HeadBuffer::split`] gives it).
    ///
    /// Errors, in this order: [`Reason::BadRequest`] (not HTTP), [`Reason::HeadTooLarge`] (too many fields), [`Reason::BadRequest`]
    /// (sent by a page),
    /// [`Reason::CredentialsRequired`], [`Reason::MethodNotAllowed`], [`Reason::BadRequest`] (version, priority, patience),
    /// [`Reason::BadTarget`].
    pub fn parse(head: &[u8], credentials: &Credentials) -> Result<Self> {
        let (line, rest) = split_once(head, b'\n').ok_or_else(|| bad_request("the request line does not end"))?;
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let (method, target, version) = request_line(line)?;
        let mut storage = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let fields = parse_fields(rest, &mut storage)?;

        check_browser(fields)?;
        check_credentials(fields, credentials)?;
        check_method(method)?;
        if !matches!(version, b"HTTP/1.1" | b"HTTP/1.0") {
            return Err(bad_request("only HTTP/1.1 and HTTP/1.0 are spoken here"));
        }
        let Wishes { background, patience } =
            Wishes::of(fields.iter().map(|field| (field.name.as_bytes(), field.value)))?;
        let target = std::str::from_utf8(target)
            .map_err(|_| Error::new(Reason::BadTarget, Stage::Request, "the target is not ASCII"))?;
        Ok(Self { target: target.parse()?, background, patience })
    }
}

/// Method, target, version. Some clients pass spaces in the target through (FACTS.md): the method ends at the first space,
/// the version starts behind the last, and what is between is the target's business.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], &[u8])> {
    let incomplete = || bad_request("the request line is not METHOD TARGET VERSION");
    let (method, rest) = split_once(line, b' ').ok_or_else(incomplete)?;
    let last = rest.iter().rposition(|byte| *byte == b' ').ok_or_else(incomplete)?;
    let (target, version) = rest.split_at(last);
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(bad_request("the method is not a token"));
    }
    Ok((method, target, version.trim_ascii_start()))
}

fn parse_fields<'h, 'b>(
    rest: &'b [u8],
    storage: &'h mut [httparse::Header<'b>; MAX_FIELDS],
) -> Result<&'h [httparse::Header<'b>]> {
    match httparse::parse_headers(rest, storage) {
        Ok(httparse::Status::Complete((_, fields))) => Ok(fields),
        Ok(httparse::Status::Partial) => Err(bad_request("the head does not end")),
        Err(httparse::Error::TooManyHeaders) => Err(Error::new(
            Reason::HeadTooLarge,
            Stage::Request,
            format!("the request has more than {MAX_FIELDS} header fields"),
        )),
        Err(error) => Err(bad_request(format!("the header fields cannot be read: {error}"))),
    }
}

/// What a page has sent through a browser bears marks that no CONNECT has: a browser adds none to those of its own, and a page
/// cannot have it send any. It is not even asked for a password: the browser would ask its user.
fn check_browser(fields: &[httparse::Header<'_>]) -> Result<()> {
    let mark = |field: &&httparse::Header<'_>| {
        let name = field.name.to_ascii_lowercase();
        name == "origin" || name.starts_with("sec-fetch-")
    };
    match fields.iter().find(mark) {
        Some(field) => Err(bad_request(format!("a page in a browser has sent this ({}): it is refused", field.name))),
        None => Ok(()),
    }
}

fn check_credentials(fields: &[httparse::Header<'_>], credentials: &Credentials) -> Result<()> {
    credentials.check(named(fields, "proxy-authorization").map(|field| field.value))
}

fn check_method(method: &[u8]) -> Result<()> {
    if method == b"CONNECT" {
        return Ok(());
    }
    let method = String::from_utf8_lossy(method);
    let text = format!("this is no CONNECT, but {}", method.chars().take(20).collect::<String>());
    Err(Error::new(Reason::MethodNotAllowed, Stage::Request, text))
}

fn named<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a httparse::Header<'a>> + 'a {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
}

fn bad_request(text: impl Into<String>) -> Error {
    Error::new(Reason::BadRequest, Stage::Request, text)
}

fn first_byte_text(byte: u8) -> String {
    match byte {
        0x16 => "this looks like TLS: the way to the proxy is plain HTTP on this machine".to_owned(),
        _ => format!("a request does not start with byte {byte:#04x}"),
    }
}

/// RFC 9110 section 5.6.2.
fn trim(bytes: &[u8]) -> &[u8] {
    bytes.trim_ascii()
}

fn split_once(bytes: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = bytes.iter().position(|byte| *byte == at)?;
    Some((&bytes[..position], &bytes[position + 1..]))
}

/// More header fields than any client sends to a proxy (browsers: about 10).
const MAX_FIELDS: usize = 64;
/// No more empty lines before the request line than a client could send by mistake.
const MAX_EMPTY_BYTES: usize = 4;
/// Clients differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
#[path = "head_tests.rs"]
mod tests;
