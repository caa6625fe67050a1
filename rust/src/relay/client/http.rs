//! The way out through an HTTP proxy: which one the environment names, and CONNECT as its client (RFC 9110 section 9.3.6).

use std::fmt;
use std::net::IpAddr;

use base64::prelude::{Engine, BASE64_STANDARD};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::Reply;
use crate::relay::uri::decode;

/// An HTTP proxy that lets TCP connections out.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpProxy {
    pub host: String,
    pub port: u16,
    /// The value of `Proxy-Authorization`.
    pub authorization: Option<Zeroizing<String>>,
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl HttpProxy {
    /// The proxy for connections to `host`, as `https_proxy`, `HTTPS_PROXY`, `no_proxy` and `NO_PROXY` say; the lower-case name
    /// is asked first, as curl does.
    pub fn for_host(host: &str) -> Result<Option<Self>> {
        Self::of(host, |name| std::env::var(name).ok())
    }

    fn of(host: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let either = |lower: &str| variable(lower).or_else(|| variable(&lower.to_ascii_uppercase()));
        let Some(proxy) = either("https_proxy").filter(|proxy| !proxy.is_empty()) else { return Ok(None) };
        match either("no_proxy").is_some_and(|list| exempts(&list, host)) {
            true => Ok(None),
            false => Self::parse(&proxy).map(Some),
        }
    }

    /// Reads `[http://][user[:password]@]host[:port]`.
    pub fn parse(text: &str) -> Result<Self> {
        let rest = match text.split_once("://") {
            // as curl takes it, but not a bare word, which is more likely a slip of the pen
            None if text.contains(':') => text,
            None => return Err(bad("write the proxy as http://host:port, or host:port")),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(bad("a proxy is spoken to by http:// here, not by another scheme")),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        let (userinfo, server) = rest.rsplit_once('@').map_or((None, rest), |(user, server)| (Some(user), server));
        let (host, port) = match server.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, behind)) => (host, behind.strip_prefix(':')),
            None => server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port))),
        };
        if host.is_empty() || host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(bad("no host in the proxy's URL"));
        }
        let port = port.map_or(Ok(DEFAULT_PORT), str::parse).map_err(|_| bad("no port in the proxy's URL"))?;
        let authorization = userinfo.map(basic).transpose()?;
        Ok(Self { host: host.to_owned(), port, authorization })
    }

    /// `host:port`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Asks for a connection to `authority`, and waits until it stands. Not a byte behind the answer is taken.
    pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        authority: &str,
    ) -> Result<()> {
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(authorization) = &self.authorization {
            request += &format!("Proxy-Authorization: {}\r\n", authorization.as_str());
        }
        request += "\r\n";
        let broken = |error: std::io::Error| self.failed(Reason::RelayUnreachable, &error.to_string());
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut head = Vec::with_capacity(256);
        // a byte at a time: what follows the head belongs to the tunnel
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() >= MAX_HEAD {
                return Err(self.failed(Reason::RelayUnreachable, "the answer's head is too large"));
            }
            let byte = stream.read_u8().await;
            head.push(byte.map_err(|_| self.failed(Reason::RelayUnreachable, "it closed the connection"))?);
        }
        self.judge(&head)
    }

    fn judge(&self, head: &[u8]) -> Result<()> {
        match Reply::parse(head) {
            Reply::Established => Ok(()),
            Reply::Refused { status: 407, .. } => {
                let what = match self.authorization {
                    None => "407, it wants a user and a password: https_proxy=http://user:password@host:port",
                    Some(_) => "407, it does not take this user and password (only Basic is known here)",
                };
                Err(self.failed(Reason::RelayRefused, what))
            }
            Reply::Refused { status, phrase } => {
                Err(self.failed(Reason::RelayUnreachable, format!("{status} {phrase}").trim()))
            }
            Reply::NotHttp => Err(self.failed(Reason::RelayUnreachable, "the answer is not HTTP")),
        }
    }

    fn failed(&self, reason: Reason, what: &str) -> Error {
        Error::new(reason, Stage::Relay, format!("the HTTP proxy {}: {what}", self.place()))
    }
}

/// RFC 7617.
fn basic(userinfo: &str) -> Result<Zeroizing<String>> {
    let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
    let pair = Zeroizing::new(format!("{}:{}", decode(user)?, decode(password)?));
    Ok(Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes()))))
}

/// Whether `no_proxy` names the host: itself, a domain it lies in, or `*`.
fn exempts(list: &str, host: &str) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    list.split([',', ' ']).map(|entry| entry.trim().to_ascii_lowercase()).any(|entry| {
        let entry = entry.trim_start_matches("*.").trim_matches('.');
        let under = || host.strip_suffix(entry).is_some_and(|before| before.ends_with('.'));
        match (entry, host.parse::<IpAddr>(), entry.trim_matches(['[', ']']).parse::<IpAddr>()) {
            ("", ..) => false,
            ("*", ..) => true,
            (_, Ok(host), Ok(entry)) => host == entry,
            (_, Ok(_), Err(_)) => false,
            (entry, ..) => host == entry || under(),
        }
    })
}

fn bad(what: impl Into<String>) -> Error {
    Error::new(Reason::InvalidArgument, Stage::Setup, what)
}

/// What curl takes.
const DEFAULT_PORT: u16 = 1080;
/// As much as keynet's own proxy takes.
const MAX_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_environment_names_a_proxy() {
        let proxy = |host: &str, variables: &[(&str, &str)]| {
            let variables: HashMap<_, _> = variables.iter().copied().collect();
            HttpProxy::of(host, |name| variables.get(name).map(|value| (*value).to_owned())).unwrap()
        };
        assert_eq!(proxy("relay", &[]), None);
        assert_eq!(proxy("relay", &[("https_proxy", "")]), None);
        let found = proxy("relay", &[("https_proxy", "http://one:8080"), ("HTTPS_PROXY", "http://two:1")]).unwrap();
        assert_eq!((found.host.as_str(), found.port, found.authorization), ("one", 8080, None));
        let found = proxy("relay", &[("HTTPS_PROXY", "http://u%40:p@[2001:db8::1]:3128/")]).unwrap();
        assert_eq!((found.host.as_str(), found.port), ("2001:db8::1", 3128));
        assert_eq!(found.authorization.as_deref().map(String::as_str), Some("Basic dUA6cA=="));
        assert!(!format!("{found:?}").contains("dUA6cA"));
        for (list, host, exempt) in [
            ("*", "relay.example.org", true),
            ("example.org", "relay.example.org", true),
            (".example.org", "relay.example.org", true),
            ("other, relay.example.org.", "RELAY.example.org", true),
            ("ample.org", "relay.example.org", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("2.1", "192.0.2.1", false),
            ("[::1]", "::1", true),
            (",", "relay", false),
        ] {
            let found = proxy(host, &[("https_proxy", "proxy:1080"), ("no_proxy", list)]);
            assert_eq!(found.is_none(), exempt, "no_proxy={list} for {host}");
        }
    }

    #[test]
    fn what_is_no_proxy() {
        for text in ["nonsense", "socks5://proxy:1080", "http://", "http://proxy:port", "http://a%zz@proxy"] {
            assert_eq!(HttpProxy::parse(text).unwrap_err().reason, Reason::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn answers_are_judged() {
        let proxy = HttpProxy::parse("http://proxy").unwrap();
        assert!(proxy.judge(b"HTTP/1.1 200 OK\r\n\r\n").is_ok());
        assert!(proxy.judge(b"HTTP/1.0 200 \r\nVia: x\r\n\r\n").is_ok());
        let error = proxy.judge(b"HTTP/1.1 407 Auth\r\n\r\n").unwrap_err();
        assert!(error.reason == Reason::RelayRefused && error.detail.contains("user:password"), "{error}");
        let error = proxy.judge(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap_err();
        assert!(error.detail.contains("403 Forbidden"), "{error}");
        assert!(proxy.judge(b"SSH-2.0-x\r\n\r\n").is_err());
    }
}
