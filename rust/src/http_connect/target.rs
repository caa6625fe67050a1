//! The CONNECT target: which node, which service, and where to look for it.

use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::addr::{is_link_local, split_zone, NodeId};
use crate::error::{Error, Reason, Result, Stage};

/// What a CONNECT asks for (docs/protocol.md section 6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub node: NodeId,
    /// 0: the only service that the node has.
    pub service_port: u16,
    /// `host:port` of the node's UDP socket, when the target names it.
    pub address: Option<String>,
}

impl FromStr for Target {
    type Err = Error;

    /// Takes `<node id>.keynet:<service port>` and `<host>:<port>/?nodeId=<node id>[&service=<service port>]`.
    ///
    /// Errors: [`Reason::BadTarget`] with what is wrong.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(bad("the target is empty"));
        }
        if text.len() > MAX_TARGET {
            return Err(bad(format!("the target has {} bytes, more than {MAX_TARGET}", text.len())));
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("the target holds spaces, control or non-ASCII characters"));
        }
        match text.split_once('/') {
            None => named(text),
            Some((authority, rest)) => addressed(authority, rest),
        }
    }
}

fn named(authority: &str) -> Result<Target> {
    let (host, port) = authority.rsplit_once(':').ok_or_else(|| bad("the target has no port"))?;
    let host = host.to_ascii_lowercase();
    // with the dot at its end a name is absolute, and otherwise the same (RFC 1034 section 3.1)
    let label = host.strip_suffix('.').unwrap_or(&host).strip_suffix(SUFFIX).ok_or_else(|| bad(no_node(&host)))?;
    let node = label.parse().map_err(|error| bad(format!("{error}")))?;
    Ok(Target { node, service_port: parse_port(port)?, address: None })
}

fn no_node(host: &str) -> String {
    let host = excerpt(host);
    format!("'{host}' does not end in {SUFFIX}, and this proxy leads to nodes alone: name other hosts in no_proxy (no_proxy={host})")
}

fn addressed(authority: &str, rest: &str) -> Result<Target> {
    check_address(authority).map_err(bad)?;
    // Some clients decode the target before they send it, some do not (FACTS.md): both arrive.
    let decoded;
    let query = match rest.strip_prefix('?') {
        Some(query) => query,
        None => {
            decoded = percent_decode(rest)?;
            decoded.strip_prefix('?').ok_or_else(|| bad("behind the address only ?nodeId=... may stand"))?
        }
    };
    let (mut node, mut service) = (None, None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').ok_or_else(|| bad(format!("'{}' has no '='", excerpt(pair))))?;
        let value = percent_decode(value)?;
        let twice = match name {
            "nodeId" => node.replace(value).is_some(),
            "service" => service.replace(value).is_some(),
            _ => return Err(bad(format!("'{}' is neither nodeId nor service", excerpt(name)))),
        };
        if twice {
            return Err(bad(format!("{name} is named twice")));
        }
    }
    let node = node.ok_or_else(|| bad("the target names no nodeId"))?;
    Ok(Target {
        node: node.parse().map_err(|error| bad(format!("{error}")))?,
        service_port: service.map_or(Ok(0), |text| parse_port(&text))?,
        address: Some(authority.to_owned()),
    })
}

/// Whether `text` is `host:port` or `[v6]:port` with a port other than 0; the error says what is wrong with it.
pub fn check_address(text: &str) -> Result<(), String> {
    // the last colon of [::1] is none before a port
    let parts = text.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    let (host, port) = parts.ok_or_else(|| format!("'{}' has no port", excerpt(text)))?;
    let good = match host.strip_prefix('[') {
        Some(v6) => match v6.strip_suffix(']').map(|v6| (v6, split_zone(v6))) {
            Some((text, (v6, zone))) => {
                let v6: Option<Ipv6Addr> = v6.parse().ok();
                v6.map(|v6| check_zone(text, v6, zone)).transpose()?.is_some()
            }
            None => false,
        },
        None => is_host_name(host),
    };
    if !good {
        return Err(format!("'{}' is neither a host name nor an IP address ([...] around IPv6)", excerpt(host)));
    }
    match parse_port(port) {
        Ok(0) => Err("port 0 cannot be dialled".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.detail),
    }
}

/// An address of one link needs the link, and no other has one (RFC 4007 section 6). `text` is how it was written.
fn check_zone(text: &str, v6: Ipv6Addr, zone: Option<&str>) -> Result<(), String> {
    let text = excerpt(text);
    match (is_link_local(v6), zone) {
        (true, None) => Err(format!(
            "'{text}' is an address of one link and does not say of which: add the interface, as in [{v6}%eth0]"
        )),
        (true, Some(zone)) if zone.is_empty() || zone.len() > MAX_ZONE => {
            Err(format!("'{text}' names no interface behind its %"))
        }
        (false, Some(_)) => Err(format!("'{text}' names an interface, which only link-local addresses (fe80::) need")),
        _ => Ok(()),
    }
}

/// RFC 1123 section 2.1, with the underscores that the world uses; also what an IPv4 address looks like.
fn is_host_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

/// Digits only: `str::parse` would take `+80`.
fn parse_port(text: &str) -> Result<u16> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits => Ok(port),
        // it may be the password of what was meant to be a user and a password
        _ if !text.bytes().all(|byte| byte.is_ascii_digit()) => Err(bad("what stands behind the colon is not a port")),
        _ => Err(bad(format!("'{}' is not a port", excerpt(text)))),
    }
}

fn percent_decode(text: &str) -> Result<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                match (digit(bytes.next()), digit(bytes.next())) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(bad("a percent sign is not followed by two hexadecimal digits")),
                }
            }
            byte => byte,
        });
    }
    match String::from_utf8(decoded) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text),
        _ => Err(bad("percent-encoding hides spaces, control or non-ASCII characters")),
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Reason::BadTarget, Stage::Request, text)
}

/// Enough of a text from outside to recognise it in a message, and no secret that it may hold by mistake: what stands before an
/// `@` is taken for a user and a password, what stands behind a second colon, or behind the first one and is no number, for a
/// password, and a text with other characters than addresses and names have for anything at all.
pub fn excerpt(text: &str) -> String {
    let (hidden, rest) = text.rsplit_once('@').map_or(("", text), |(_, behind)| ("...@", behind));
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/[] ".contains(c);
    if rest.contains("---") || !rest.chars().all(plain) {
        return format!("a text of {} characters", text.chars().count());
    }
    let is_v6 = rest.starts_with('[') || rest.parse::<std::net::Ipv6Addr>().is_ok();
    let shown = match rest.split_once(':') {
        Some((before, behind)) if !is_v6 => {
            let is_fine = behind.starts_with('/') && !behind.starts_with("//") && before == "unix";
            let is_port = behind.len() <= 5 && behind.bytes().all(|byte| byte.is_ascii_digit());
            if is_fine || is_port {
                rest.to_owned()
            } else {
                format!("{before}:...")
            }
        }
        _ => rest.to_owned(),
    };
    match shown.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{hidden}{}...", &shown[..end]),
        None => format!("{hidden}{shown}"),
    }
}

/// Characters of a text that a message shows: a node id has 53.
const EXCERPT: usize = 64;

const SUFFIX: &str = ".keynet";
/// Names of interfaces have 15 characters on Linux; elsewhere they are longer.
const MAX_ZONE: usize = 64;
/// A host name has at most 253 characters (RFC 1035 section 2.3.4), everything else that belongs there less than 200.
const MAX_TARGET: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node() -> NodeId {
        NodeId::from_public_key([9; 32])
    }

    fn parse(text: &str) -> Result<Target> {
        text.parse()
    }

    #[test]
    fn a_name_and_a_port() {
        let expected = Target { node: node(), service_port: 50051, address: None };
        assert_eq!(parse(&format!("{}.keynet:50051", node())), Ok(expected.clone()));
        assert_eq!(parse(&format!("{}.KEYNET:50051", node().to_string().to_uppercase())), Ok(expected.clone()));
        assert_eq!(parse(&format!("{}.keynet.:50051", node())), Ok(expected));
    }

    #[test]
    fn an_address_and_a_node() {
        let good = ["192.0.2.1:4433", "[2001:db8::1]:4433", "host-1.example.com:1", "host.example.com.:1"];
        for address in good.into_iter().chain(["[fe80::1%eth0]:4433", "[fe80::1%25eth0]:4433", "[fe80::1%3]:4433"]) {
            let expected = Target { node: node(), service_port: 0, address: Some(address.to_owned()) };
            let text = format!("{address}/?nodeId={}", node());
            assert_eq!(parse(&text), Ok(expected.clone()));
            let encoded = format!("{address}/%3FnodeId%3D{}", node());
            assert_eq!(parse(&encoded), Ok(expected.clone()));
            let expected = Target { service_port: 80, ..expected };
            assert_eq!(parse(&format!("{text}&service=%38%30")), Ok(expected));
        }
    }

    #[test]
    fn everything_else_is_a_bad_target_with_a_reason() {
        let id = node();
        let short = &id.to_string()[..52];
        let texts = [
            String::new(),
            "/".to_owned(),
            ":".to_owned(),
            "example.com:443".to_owned(),
            format!("{id}.keynet"),
            format!("{id}.keynet:"),
            format!("{id}.keynet:+80"),
            format!("{id}.keynet:65536"),
            format!("{id}.keynet:000080"),
            format!("{id}.keynet:80:80"),
            format!("{id}.keynet..:80"),
            format!("{id}..keynet:80"),
            format!("192.0.2.1..:80/?nodeId={id}"),
            format!(".:80/?nodeId={id}"),
            format!("[fe80::1]:80/?nodeId={id}"),
            format!("[fe80::1%]:80/?nodeId={id}"),
            format!("[2001:db8::1%eth0]:80/?nodeId={id}"),
            format!("{id}:80"),
            format!("x.{id}.keynet:80"),
            format!("{short}.keynet:80"),
            format!("{id}.keynet:80 "),
            format!("{id}.kéynet:80"),
            format!("{id}.keynet:80/path"),
            format!("192.0.2.1/?nodeId={id}"),
            format!("192.0.2.1:0/?nodeId={id}"),
            format!("2001:db8::1:80/?nodeId={id}"),
            format!("[192.0.2.1]:80/?nodeId={id}"),
            format!("[2001:db8::1:80/?nodeId={id}"),
            format!("u@h:80/?nodeId={id}"),
            format!("-h:80/?nodeId={id}"),
            "192.0.2.1:80/?nodeId=".to_owned(),
            "192.0.2.1:80/?service=1".to_owned(),
            format!("192.0.2.1:80/?nodeId={id}&nodeId={id}"),
            format!("192.0.2.1:80/?nodeId={id}&other=1"),
            format!("192.0.2.1:80/?nodeId={id}&service"),
            format!("192.0.2.1:80/?nodeId={id}&service=%3"),
            format!("192.0.2.1:80/?nodeId={id}&service=%00"),
            "a".repeat(100_000),
        ];
        for text in texts {
            let error = parse(&text).expect_err(&text);
            assert_eq!(error.reason, Reason::BadTarget, "{text}");
            assert!(!error.detail.is_empty() && error.detail.len() < 400, "{}", error.detail);
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_explains(text in "\\PC{0,200}") {
            if let Err(error) = parse(&text) {
                prop_assert_eq!(error.reason, Reason::BadTarget);
            }
        }
    }
}
