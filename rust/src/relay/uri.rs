//! Names of relays: `turn:` and `turns:` URIs (RFC 7065), with credentials and what proves the relay's identity.

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use zeroize::Zeroizing;

use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};

/// `turn:[user[:password]@]host[:port][?transport=udp|tcp]`, or `turns:` with `key=<node id>` or `ca=<file>` instead of a
/// transport. A `%` and two hexadecimal digits stand for a byte in user, password and file.
#[derive(Clone, PartialEq, Eq)]
pub struct RelayUri {
    pub transport: Transport,
    /// A name or an address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
    user: Option<String>,
    password: Option<Zeroizing<String>>,
    /// The relay's certificate must hold exactly this key; who signed it does not matter then.
    pub key: Option<NodeId>,
    /// PEM certificates to trust instead of the system's.
    pub ca: Option<PathBuf>,
}

/// How a relay is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Udp,
    Tcp,
    /// TLS over TCP.
    Tls,
}

impl Transport {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }

    /// RFC 8656 section 3.1.
    const fn default_port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 3478,
            Self::Tls => 5349,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl RelayUri {
    /// Without credentials; the certificate, if there is one, is judged by the system's roots.
    pub fn new(transport: Transport, host: &str, port: u16) -> Self {
        Self { transport, host: host.to_owned(), port, user: None, password: None, key: None, ca: None }
    }

    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub fn password(&self) -> Option<&str> {
        self.password.as_ref().map(|password| password.as_str())
    }

    /// Host and port as they stand in the URI, IPv6 in brackets.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    fn take_query(&mut self, query: &str, secure: bool) -> Result<()> {
        for part in query.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "transport" => self.transport = transport(value, secure)?,
                "key" if secure => self.key = Some(value.parse().map_err(|error| bad(format!("key: {error}")))?),
                "ca" if secure && !value.is_empty() => self.ca = Some(decode(value)?.into()),
                "key" | "ca" => return Err(bad(format!("{name}= needs a value, and the scheme turns:"))),
                _ => {
                    let hint = "write %3F for a '?' in a password";
                    return Err(bad(format!("unknown parameter; known are transport=, key=, ca= ({hint})")));
                }
            }
        }
        Ok(())
    }
}

impl FromStr for RelayUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad("a relay is turn:HOST or turns:HOST"))?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "turn" => false,
            "turns" => true,
            _ => return Err(bad("the scheme is turn: or turns:, not another")),
        };
        if rest.starts_with("//") {
            return Err(bad("no slashes behind the scheme (RFC 7065): turn:HOST"));
        }
        let (authority, query) = rest.split_once('?').map_or((rest, None), |(before, query)| (before, Some(query)));
        let (userinfo, server) = match authority.rsplit_once('@') {
            Some((userinfo, server)) => (Some(userinfo), server),
            None => (None, authority),
        };
        let (host, port) = host_and_port(server)?;
        let transport = if secure { Transport::Tls } else { Transport::Udp };
        let (mut user, mut password) = (None, None);
        if let Some(userinfo) = userinfo {
            let (name, secret) = userinfo.split_once(':').map_or((userinfo, None), |(name, rest)| (name, Some(rest)));
            user = Some(decode(name)?);
            password = secret.map(|secret| decode(secret).map(Zeroizing::new)).transpose()?;
        }
        let port = port.unwrap_or(transport.default_port());
        let mut uri = Self { transport, host, port, user, password, key: None, ca: None };
        if let Some(query) = query {
            uri.take_query(query, secure)?;
        }
        Ok(uri)
    }
}

/// Without the password.
impl fmt::Display for RelayUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.transport == Transport::Tls { "turns:" } else { "turn:" })?;
        if let Some(user) = &self.user {
            // a slash would be that of an authority, which the scheme has none of
            write!(f, "{}@", encode(user).replace('/', "%2F"))?;
        }
        f.write_str(&self.authority())?;
        let mut separator = '?';
        let mut parameter = |name, value: &str| {
            let separator = std::mem::replace(&mut separator, '&');
            write!(f, "{separator}{name}={value}")
        };
        if self.transport == Transport::Tcp {
            parameter("transport", "tcp")?;
        }
        if let Some(key) = &self.key {
            parameter("key", &key.to_string())?;
        }
        if let Some(ca) = &self.ca {
            parameter("ca", &encode(&ca.to_string_lossy()))?;
        }
        Ok(())
    }
}

impl fmt::Debug for RelayUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RelayUri({self})")
    }
}

fn transport(value: &str, secure: bool) -> Result<Transport> {
    match (value.to_ascii_lowercase().as_str(), secure) {
        ("udp", false) => Ok(Transport::Udp),
        ("tcp", false) => Ok(Transport::Tcp),
        ("tcp", true) => Ok(Transport::Tls),
        ("udp", true) => Err(bad("TURN over DTLS (turns: with transport=udp) is not supported")),
        _ => Err(bad("transport is udp or tcp, not another")),
    }
}

fn host_and_port(server: &str) -> Result<(String, Option<u16>)> {
    let (host, port) = match server.strip_prefix('[') {
        Some(rest) => {
            let (host, behind) = rest.split_once(']').ok_or_else(|| bad("a '[' without ']'"))?;
            host.parse::<Ipv6Addr>().map_err(|_| bad("what stands in brackets is no IPv6 address"))?;
            (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':').unwrap_or("")) })
        }
        None => {
            let (host, port) = server.split_once(':').map_or((server, None), |(host, port)| (host, Some(port)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err(bad("an IPv6 address stands in brackets"));
            }
            if !is_host(host) {
                return Err(bad("this is no host name or address"));
            }
            (host, port)
        }
    };
    let port = port.map(|port| match port.parse::<u16>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(bad("what stands behind the host is no port")),
    });
    Ok((host.to_owned(), port.transpose()?))
}

/// A DNS name (RFC 1035 section 2.3.4; an underscore occurs in local names) or an IPv4 address.
fn is_host(host: &str) -> bool {
    let looks_numeric = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    match looks_numeric {
        true => host.parse::<Ipv4Addr>().is_ok(),
        false => host.len() <= 253 && host.chars().all(legal) && !host.starts_with(['.', '-']),
    }
}

/// RFC 3986 section 2.1.
pub(super) fn decode(text: &str) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| behind.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(bad("a '%' without two hexadecimal digits (write %25 for '%' itself)"));
        };
        bytes.push((high * 16 + low) as u8);
        rest = behind.get(2..).unwrap_or_default();
    }
    String::from_utf8(bytes).map_err(|_| bad("percent-encoded bytes are not UTF-8"))
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => encoded.push(byte.into()),
            other => {
                let _ = write!(encoded, "%{other:02X}");
            }
        }
    }
    encoded
}

/// The text itself is not shown: there may be a password in it.
fn bad(what: impl fmt::Display) -> Error {
    Error::new(Reason::InvalidArgument, Stage::Setup, format!("relay: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> RelayUri {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_a_uri_says() {
        let uri = parse("turn:relay.example.org");
        assert_eq!((uri.transport, uri.host.as_str(), uri.port), (Transport::Udp, "relay.example.org", 3478));
        assert_eq!((uri.user(), uri.password()), (None, None));
        let uri = parse("TURN:[2001:db8::1]:99?transport=TCP");
        assert_eq!((uri.transport, uri.host.as_str(), uri.port), (Transport::Tcp, "2001:db8::1", 99));
        assert_eq!(uri.authority(), "[2001:db8::1]:99");
        let uri = parse("turns:1790000000%3Anode:p%40ss%3a@192.0.2.1?ca=/etc/my%20ca.pem");
        assert_eq!((uri.transport, uri.port), (Transport::Tls, 5349));
        assert_eq!((uri.user(), uri.password()), (Some("1790000000:node"), Some("p@ss:")));
        assert_eq!(uri.ca, Some(PathBuf::from("/etc/my ca.pem")));
        let key = NodeId::from_public_key([7; 32]);
        assert_eq!(parse(&format!("turns:relay:443?key={key}")).key, Some(key));
    }

    #[test]
    fn what_is_no_uri_is_told_why() {
        for (text, why) in [
            ("relay.example.org", "turn:HOST"),
            ("https://relay", "not another"),
            ("turn://relay", "no slashes"),
            ("turn:", "no host"),
            ("turn:2001:db8::1", "in brackets"),
            ("turn:[2001:db8::1", "without ']'"),
            ("turn:[relay]", "no IPv6 address"),
            ("turn:[::1]x", "no port"),
            ("turn:1.2.3", "no host"),
            ("turn:relay:0", "no port"),
            ("turn:relay:65536", "no port"),
            ("turn:re lay", "no host"),
            ("turn:u%2@relay", "%25"),
            ("turn:u%ff@relay", "UTF-8"),
            ("turn:relay?transport=sctp", "udp or tcp"),
            ("turns:relay?transport=udp", "DTLS"),
            ("turn:relay?key=x", "turns:"),
            ("turns:relay?key=x", "node id"),
            ("turns:relay?ca=", "value"),
            ("turn:relay?pin=1", "unknown parameter"),
        ] {
            let error = text.parse::<RelayUri>().unwrap_err();
            assert_eq!(error.reason, Reason::InvalidArgument);
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn slashes_of_a_user_are_not_those_of_an_authority() {
        let uri = parse("turn:%2F%2Fuser@relay");
        assert_eq!(uri.user(), Some("//user"));
        assert_eq!(parse(&uri.to_string()), uri);
    }

    #[test]
    fn nothing_shows_the_password() {
        let uri = parse("turn:user:secret@relay");
        assert_eq!(uri.to_string(), "turn:user@relay:3478");
        assert!(!format!("{uri:?}{uri:#?}").contains("secret"));
        for text in [
            "turn:user:secret@re lay",
            "turn:user:se?secret@relay",
            "turn:user:secret",
            "user:secret@relay",
            "secret:turn@relay",
            "turn:relay?secret=1",
            "turn:relay?transport=secret",
            "turns:relay?key=secret",
            "turn:[secret]",
            "turn:us%ersecret@relay",
        ] {
            let error = text.parse::<RelayUri>().unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_the_same(
            user in proptest::option::of(".{0,12}"), v6: bool, port in 1_u16.., transport in 0_usize..3, ca in "[^\0]{1,12}",
        ) {
            let transport = [Transport::Udp, Transport::Tcp, Transport::Tls][transport];
            let tls = transport == Transport::Tls;
            let uri = RelayUri {
                transport,
                host: if v6 { "2001:db8::1".to_owned() } else { "relay.example.org".to_owned() },
                port,
                user,
                password: None,
                key: tls.then(|| NodeId::from_public_key([1; 32])),
                ca: tls.then(|| ca.into()),
            };
            prop_assert_eq!(parse(&uri.to_string()), uri);
        }

        #[test]
        fn nothing_panics(text in "(turns?:)?.{0,40}") {
            let _ = text.parse::<RelayUri>();
        }
    }
}
