//! A request that names a whole URL, and what the service gets of it.

use std::time::Duration;

use super::body::Framing;
use super::fields::{self, begins_with, has_member, push, take_line, Field, Left};
use super::response::Asked;
use crate::error::{Error, Reason, Result, Stage};
use crate::http_fields::{is_token, Wishes, PATIENCE, PRIORITY};

/// A request that can be passed on, once its credentials and its target have been judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// `host:port` of the URL, in small letters; the port is 80 when the URL names none (RFC 9110 section 4.2.1).
    pub authority: String,
    /// The values of `Proxy-Authorization`.
    pub credentials: Vec<Vec<u8>>,
    /// `Keynet-Priority: background` was asked for.
    pub background: bool,
    /// `Keynet-Patience`: how long a silence of the peer the stream outlives.
    pub patience: Option<Duration>,
    /// The head that the service gets.
    pub head: Vec<u8>,
    /// The body that follows, both ways; `None`: there is none.
    pub body: Option<Framing>,
    /// What reading the answer depends on.
    pub asked: Asked,
    /// The client does not want its connection to end with this.
    pub keep: bool,
    /// Sending it twice does the same as sending it once (RFC 9110 section 9.2.2), and it has no body.
    pub repeatable: bool,
    /// It is to be answered here, for it may go no further (RFC 9110 section 7.6.2).
    pub ends_here: bool,
}

/// Whether a request line names a whole URL, of whatever scheme.
pub fn is_whole_url(target: &[u8]) -> bool {
    let scheme = target.iter().position(|byte| *byte == b':').map(|end| &target[..end]);
    let is_scheme = |scheme: &[u8]| {
        scheme.first().is_some_and(u8::is_ascii_alphabetic)
            && scheme.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
    };
    scheme.is_some_and(|scheme| is_scheme(scheme) && target[scheme.len()..].starts_with(b"://"))
}

impl Request {
    /// Judges a complete head, its empty line included.
    ///
    /// Errors: [`Reason::BadRequest`] (not HTTP, ambiguous, no whole URL, sent by a page of another site), [`Reason::HeadTooLarge`] (too many
    /// fields), [`Reason::MethodNotAllowed`], [`Reason::BadTarget`] (what a URL of this proxy cannot be).
    pub fn parse(head: &[u8]) -> Result<Self> {
        let (line, rest) = take_line(head).map_err(bad_request)?;
        let (method, target, old) = request_line(line)?;
        let fields = fields::parse(rest).map_err(|text| {
            let reason = if text.contains("more than") { Reason::HeadTooLarge } else { Reason::BadRequest };
            Error::new(reason, Stage::Request, text)
        })?;
        check_method(method)?;
        let url = Url::parse(target, method)?;
        check_host(&fields, old)?;
        check_page(&fields, &url.authority)?;
        let body = framing(&fields, old)?;
        let wants = |token: &str| has_member(&fields, "connection", token);
        let upgrade = !old && wants("upgrade") && fields::members(&fields, "upgrade").next().is_some();
        let closes = old || wants("close") || has_member(&fields, "proxy-connection", "close");
        let idempotent = matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"PUT" | b"DELETE");
        let forwards = max_forwards(&fields, method)?;
        let Wishes { background, patience } = Wishes::of(fields.iter().copied())?;
        Ok(Self {
            head: written(method, &url, &fields, body, (old, upgrade, forwards)),
            credentials: fields::values(&fields, "proxy-authorization").map(<[u8]>::to_vec).collect(),
            background,
            patience,
            asked: Asked { is_head: method == b"HEAD", old, upgrade },
            keep: !closes,
            repeatable: idempotent && body.is_none() && !upgrade,
            ends_here: forwards == Some(0),
            authority: url.authority,
            body,
        })
    }
}

/// Method, target, and whether it is HTTP/1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], &[u8], bool)> {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(bad_request("the request line is not METHOD URL VERSION with one space between them"));
    };
    if method.is_empty() || !method.iter().copied().all(is_token) {
        return Err(bad_request("the method is not a token"));
    }
    match version {
        b"HTTP/1.1" => Ok((method, target, false)),
        b"HTTP/1.0" => Ok((method, target, true)),
        _ => Err(bad_request("only HTTP/1.1 and HTTP/1.0 are spoken here")),
    }
}

/// TRACE would send back to a page what it must not see (RFC 9110 section 9.3.8).
fn check_method(method: &[u8]) -> Result<()> {
    match method {
        b"TRACE" | b"TRACK" => Err(Error::new(Reason::MethodNotAllowed, Stage::Request, "TRACE is not passed on")),
        _ => Ok(()),
    }
}

struct Url {
    authority: String,
    /// Path and query.
    path: String,
}

impl Url {
    fn parse(target: &[u8], method: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(target).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        let text = text.ok_or_else(|| bad_request("the URL holds control or non-ASCII characters"))?;
        if !is_whole_url(target) {
            return Err(bad_request(NO_URL));
        }
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        // a WebSocket begins as HTTP (RFC 6455 section 3), and some clients name it so
        if scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("wss") {
            let text = "for https:// a client asks with CONNECT, and makes TLS with the service itself; this one asks the proxy to do it";
            return Err(bad_target(text));
        }
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("ws") {
            return Err(bad_target("only http:// is passed on; everything else goes through with CONNECT or SOCKS5"));
        }
        if rest.contains('#') {
            return Err(bad_request("the URL has a fragment (#)"));
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err(bad_request("the URL holds a user or a password, which belong into Authorization"));
        }
        let path = match path {
            "" if method == b"OPTIONS" => "*".to_owned(),
            path if path.starts_with('/') => path.to_owned(),
            path => format!("/{path}"),
        };
        Ok(Self { authority: with_port(authority), path })
    }
}

fn with_port(authority: &str) -> String {
    let authority = authority.to_ascii_lowercase();
    match authority.rsplit_once(':') {
        Some((host, "")) => format!("{host}:80"),
        Some((_, port)) if !port.contains(']') => authority,
        _ => format!("{authority}:80"),
    }
}

/// RFC 9112 section 3.2: exactly one Host, of whatever content, for the URL takes its place.
fn check_host(fields: &[Field<'_>], old: bool) -> Result<()> {
    match fields::values(fields, "host").count() {
        1 => Ok(()),
        0 if old => Ok(()),
        0 => Err(bad_request("the request has no Host")),
        _ => Err(bad_request("the request has two Host fields")),
    }
}

/// A browser that has this proxy in its settings sends what pages of any site ask for, with the credentials that it was given: then only
/// what pages of the service itself ask for is passed on, and what its user asks for. Pages cannot forge these fields.
fn check_page(fields: &[Field<'_>], authority: &str) -> Result<()> {
    if fields::values(fields, "sec-fetch-site").any(|site| site.eq_ignore_ascii_case(b"cross-site")) {
        return Err(bad_request("a page of another site in a browser has sent this"));
    }
    let host_of = |place: &str| with_port(place).rsplit_once(':').map(|(host, _)| host.to_owned());
    for origin in fields::values(fields, "origin") {
        let origin = String::from_utf8_lossy(origin);
        let place = origin.split_once("://").map(|(_, place)| place);
        if place.and_then(host_of) != host_of(authority) {
            return Err(bad_request(format!(
                "a page of {origin} in a browser has sent this, and asks for {authority}"
            )));
        }
    }
    Ok(())
}

fn framing(fields: &[Field<'_>], old: bool) -> Result<Option<Framing>> {
    let framing = fields::framing(fields).map_err(bad_request)?;
    if old && framing == Some(Framing::Chunked) {
        // RFC 9112 section 6.1
        return Err(bad_request("Transfer-Encoding is no part of HTTP/1.0"));
    }
    Ok(framing)
}

fn max_forwards(fields: &[Field<'_>], method: &[u8]) -> Result<Option<u64>> {
    let Some(value) = fields::values(fields, MAX_FORWARDS).next().filter(|_| method == b"OPTIONS") else {
        return Ok(None);
    };
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| bad_request("Max-Forwards is no number"))
}

/// The head that the service gets.
fn written(
    method: &[u8],
    url: &Url,
    fields: &[Field<'_>],
    body: Option<Framing>,
    (old, upgrade, forwards): (bool, bool, Option<u64>),
) -> Vec<u8> {
    let mut head =
        Vec::with_capacity(fields.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>() + 256);
    head.extend_from_slice(method);
    head.push(b' ');
    head.extend_from_slice(url.path.as_bytes());
    head.extend_from_slice(b" HTTP/1.1\r\n");
    push(&mut head, b"Host", host_field(&url.authority).as_bytes());
    let left = Left::of(fields);
    for (name, value) in fields {
        let own = [PRIORITY, PATIENCE, "host"].iter().any(|own| name.eq_ignore_ascii_case(own.as_bytes()));
        // nobody of HTTP/1.0 waits for it (RFC 9110 section 10.1.1)
        let unheard = old && name.eq_ignore_ascii_case(b"expect");
        let counted = forwards.is_some() && name.eq_ignore_ascii_case(MAX_FORWARDS.as_bytes());
        if !own && !unheard && !counted && !begins_with(name, "proxy-") && !left.is_left(name) {
            push(&mut head, name, value);
        }
    }
    if let Some(forwards) = forwards {
        push(&mut head, b"Max-Forwards", forwards.saturating_sub(1).to_string().as_bytes());
    }
    push(&mut head, b"Via", if old { b"1.0 keynet" } else { b"1.1 keynet" });
    match body {
        Some(Framing::Length(length)) => push(&mut head, b"Content-Length", length.to_string().as_bytes()),
        Some(_) => push(&mut head, b"Transfer-Encoding", b"chunked"),
        None => {}
    }
    let trailers = !old && has_member(fields, "te", "trailers");
    match (upgrade, trailers) {
        (true, true) => push(&mut head, b"Connection", b"Upgrade, TE"),
        (true, false) => push(&mut head, b"Connection", b"Upgrade"),
        (false, true) => push(&mut head, b"Connection", b"TE"),
        (false, false) => {}
    }
    if upgrade {
        let protocols: Vec<_> = fields::members(fields, "upgrade").collect();
        push(&mut head, b"Upgrade", &protocols.join(&b", "[..]));
    }
    if trailers {
        push(&mut head, b"TE", b"trailers");
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// As clients write it: without the port that everybody assumes.
fn host_field(authority: &str) -> &str {
    authority.strip_suffix(":80").unwrap_or(authority)
}

fn bad_request(text: impl Into<String>) -> Error {
    Error::new(Reason::BadRequest, Stage::Request, text)
}

fn bad_target(text: impl Into<String>) -> Error {
    Error::new(Reason::BadTarget, Stage::Request, text)
}

const NO_URL: &str =
    "this port is the forward proxy of a keynet node and no web server: name it as the HTTP proxy of your program \
                      (http_proxy=http://USER:PASSWORD@HOST:PORT) and ask for http://<node id>.keynet:<service port>/";
const MAX_FORWARDS: &str = "max-forwards";

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
