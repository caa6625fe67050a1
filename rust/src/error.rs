//! Every way keynet can fail, by name. One closed set is used in errors, events, the wire's `Refused`, HTTP statuses with
//! `Proxy-Status` (RFC 9209), Python exceptions and metrics labels; the wording of messages is not API, the names are.

use std::fmt;
use std::net::SocketAddr;

use crate::addr::NodeId;

/// Who has to act when a [`Reason`] occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The program that called keynet: wrong arguments, or a call on something closed.
    Caller,
    /// The client of the forward proxy: its CONNECT request is wrong.
    Client,
    /// The other node, or what claims to be it.
    Peer,
    /// The network between the nodes.
    Network,
    /// The service behind the other node.
    Service,
    /// keynet itself.
    Keynet,
}

/// Where on the road of a CONNECT something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Reading options, keys, or binding sockets.
    Setup,
    /// Reading and judging the CONNECT request.
    Request,
    /// Finding the node through a rendezvous: who it is, whether it is there, and where.
    Rendezvous,
    /// Reaching a relay, and what it lets this node do.
    Relay,
    /// Opening NATs: no address of the peer has answered a ping or a SYN yet.
    Punch,
    /// The uTP connection.
    Utp,
    /// The TLS handshake and the identity check.
    Tls,
    /// `Open` and its answer.
    Open,
    /// The connection to the service.
    Service,
    /// Bytes are flowing.
    Stream,
}

impl Stage {
    /// Every stage, in the order of the road.
    pub const ALL: &'static [Self] = &[
        Self::Setup,
        Self::Request,
        Self::Rendezvous,
        Self::Relay,
        Self::Punch,
        Self::Utp,
        Self::Tls,
        Self::Open,
        Self::Service,
        Self::Stream,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::Request => "request",
            Self::Rendezvous => "rendezvous",
            Self::Relay => "relay",
            Self::Punch => "punch",
            Self::Utp => "utp",
            Self::Tls => "tls",
            Self::Open => "open",
            Self::Service => "service",
            Self::Stream => "stream",
        }
    }
}

/// Everything one knows about a [`Reason`] without knowing the case: one row of the table below.
struct Facts {
    name: &'static str,
    culprit: Culprit,
    status: u16,
    proxy_status: &'static str,
    advice: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $wire:literal, $name:literal, $culprit:ident, $status:literal, $proxy_status:literal, $advice:literal;)*) => {
        /// Why something failed or ended. The number is its code in `Refused` (docs/protocol.md) and never changes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum Reason { $($(#[$doc])* $variant = $wire,)* }

        impl Reason {
            /// Every reason, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            const fn facts(self) -> Facts {
                match self {
                    $(Self::$variant => Facts {
                        name: $name, culprit: Culprit::$culprit, status: $status, proxy_status: $proxy_status, advice: $advice,
                    },)*
                }
            }
        }
    };
}

// code, name, culprit, HTTP status, RFC 9209 proxy error type, what to try
reasons! {
    /// An option or an argument is out of range or makes no sense.
    InvalidArgument = 1, "invalid_argument", Caller, 500, "proxy_configuration_error", "correct the argument the message names";
    /// The proxy was closed, or never started.
    ProxyClosed = 2, "proxy_closed", Caller, 503, "proxy_internal_error", "start the proxy, or keep it open longer";
    /// The identity file cannot be read or does not hold a key and its certificates.
    IdentityInvalid = 3, "identity_invalid", Caller, 500, "proxy_configuration_error", "check the file, or make a new identity with `keynet id FILE`";
    /// Others can read the identity file.
    IdentityExposed = 4, "identity_exposed", Caller, 500, "proxy_configuration_error", "chmod 600 the file; make a new identity if others may have copied it";
    /// A socket could not be bound.
    BindFailed = 5, "bind_failed", Caller, 500, "proxy_configuration_error", "use a free port of an address of this machine";
    /// The process forked; the child has none of the parent's threads.
    Forked = 6, "forked", Caller, 500, "proxy_internal_error", "start the proxy after the fork, in the child";
    /// The work was cancelled by the one who asked for it.
    Cancelled = 7, "cancelled", Caller, 503, "proxy_internal_error", "nothing: the caller went away";
    /// Another program runs with the same identity.
    IdentityInUse = 8, "identity_in_use", Caller, 500, "proxy_configuration_error", "stop the other program, or give this one an identity of its own (`keynet id FILE`, then `--identity FILE`)";

    /// The request is no HTTP/1 request, or one that could be read in two ways.
    BadRequest = 20, "bad_request", Client, 400, "http_protocol_error", "send HTTP/1.1: CONNECT, or a request for http://<node id>.keynet:<service port>/";
    /// The target does not name a node and a service.
    BadTarget = 21, "bad_target", Client, 400, "http_protocol_error", "use <node id>.keynet:<service port> as the target";
    /// The method is not passed on.
    MethodNotAllowed = 22, "method_not_allowed", Client, 405, "http_protocol_error", "use another method: what is not passed on as it is goes through with CONNECT (curl `-p`)";
    /// Proxy credentials are missing or wrong.
    CredentialsRequired = 23, "credentials_required", Client, 407, "http_request_denied", "send the proxy's user and password in Proxy-Authorization: Basic";
    /// The request head is larger than the cap.
    HeadTooLarge = 24, "head_too_large", Client, 431, "http_request_denied", "send fewer or smaller header fields";
    /// The request head did not arrive in time.
    HeadTimeout = 25, "head_timeout", Client, 408, "http_request_denied", "send the request at once after connecting";
    /// The forward proxy holds as many connections as it may.
    TooManyConnections = 26, "too_many_connections", Client, 503, "connection_limit_reached", "close connections, or raise max_connections";

    /// No address of the node is known.
    UnknownNode = 40, "unknown_node", Caller, 404, "destination_not_found", "give the proxy a rendezvous node (rendezvous=), or tell it an address: proxy.add_peer(node_id, [\"host:port\"])";
    /// None of the node's addresses answered.
    PunchTimeout = 41, "punch_timeout", Network, 504, "connection_timeout", "check that the node runs, that UDP passes, and that it expects this node if it is behind a NAT";
    /// Something answered, but the uTP connection did not come about in time.
    ConnectTimeout = 42, "connect_timeout", Network, 504, "connection_timeout", "try again; if it persists, packets are lost on the way";
    /// The address answered with a uTP RESET.
    ConnectRefused = 43, "connect_refused", Peer, 502, "connection_refused", "check that a keynet node listens at this address and is not at its limits";
    /// The datagrams could not be sent at all.
    Unreachable = 44, "unreachable", Network, 502, "destination_ip_unroutable", "check the address or name, and this machine's routes and firewall";

    /// No rendezvous node can be reached.
    RendezvousUnreachable = 45, "rendezvous_unreachable", Network, 502, "destination_unavailable", "check that the rendezvous nodes run and that UDP passes to them: `keynet doctor`";
    /// The node is registered at none of the rendezvous nodes.
    PeerOffline = 46, "peer_offline", Peer, 503, "destination_unavailable", "check that the node runs and uses the same rendezvous node";
    /// Nothing comes back by UDP, from nobody.
    UdpBlocked = 47, "udp_blocked", Network, 502, "destination_ip_unroutable", "allow outgoing UDP in this network's firewall, or use another network";
    /// Both NATs give each destination another port, in an order that cannot be predicted: no punching gets through.
    BothSymmetric = 48, "both_symmetric", Network, 502, "destination_ip_unroutable", "forward a UDP port on one of the two NATs, or use IPv6";
    /// The rendezvous takes no more from this node for now.
    RendezvousBusy = 49, "rendezvous_busy", Peer, 503, "connection_limit_reached", "try again in some seconds";

    /// No relay can be reached.
    RelayUnreachable = 50, "relay_unreachable", Network, 502, "destination_unavailable", "check the relay's address, that it runs, and its certificate; where UDP is blocked, give it with ?transport=tcp or turns: as well";
    /// The relay, or the HTTP proxy before it, does not let this node do that.
    RelayRefused = 51, "relay_refused", Peer, 502, "connection_limit_reached", "check the relay's credentials, and ask its operator about quotas and rules";
    /// A relay that was in use is gone.
    RelayLost = 52, "relay_lost", Network, 502, "connection_terminated", "nothing: another way is looked for; if it persists, check that the relay runs";

    /// TLS failed for a reason that is not about identity.
    TlsFailed = 60, "tls_failed", Peer, 502, "tls_protocol_error", "check that both ends run compatible versions of keynet";
    /// The TLS handshake did not finish in time.
    TlsTimeout = 61, "tls_timeout", Network, 504, "connection_timeout", "try again; if it persists, packets are lost on the way";
    /// Another node answered at the address.
    IdentityMismatch = 62, "identity_mismatch", Peer, 502, "tls_certificate_error", "check the node id, and whether the address now belongs to another node";
    /// The peer showed no certificate.
    CertificateMissing = 63, "certificate_missing", Peer, 502, "tls_certificate_error", "the peer must run keynet: both sides authenticate";
    /// The peer's certificate cannot be read, or breaks a rule of docs/protocol.md.
    CertificateInvalid = 64, "certificate_invalid", Peer, 502, "tls_certificate_error", "the peer must make its identity with keynet";
    /// The leaf certificate is outside its dates.
    CertificateExpired = 65, "certificate_expired", Peer, 502, "tls_certificate_error", "renew the peer's identity (`keynet id --renew`), and check both clocks";
    /// A signature that should lead from the leaf to an older key does not hold.
    ChainBroken = 66, "chain_broken", Peer, 502, "tls_certificate_error", "the peer must rotate its key with keynet, so that the old key signs the new one";
    /// More certificates than the cap.
    ChainTooLong = 67, "chain_too_long", Peer, 502, "tls_certificate_error", "the peer has rotated too often: drop the oldest certificates from its identity";
    /// The certificate's subject names another node than its key is.
    NameMismatch = 68, "name_mismatch", Peer, 502, "tls_certificate_error", "the peer must make its identity with keynet";
    /// The peer judged our certificate and turned us away.
    RejectedByPeer = 69, "rejected_by_peer", Peer, 502, "tls_certificate_error", "check this node's identity: its dates and its chain";

    /// Not on the peer's access list.
    AccessDenied = 80, "access_denied", Peer, 403, "http_request_denied", "ask the peer to put this node's id on its allow list";
    /// The peer offers no such service.
    ServiceNotFound = 81, "service_not_found", Peer, 404, "destination_not_found", "ask for a port that the peer's services= names";
    /// The service behind the peer refused the connection.
    ServiceRefused = 82, "service_refused", Service, 502, "connection_refused", "start the server behind the peer, or correct its address there";
    /// The service behind the peer did not answer in time.
    ServiceTimeout = 83, "service_timeout", Service, 504, "connection_timeout", "check the server behind the peer";
    /// The peer holds as many connections as it may.
    PeerBusy = 84, "peer_busy", Peer, 503, "connection_limit_reached", "try again later, or raise the peer's limits";
    /// The peer's answer breaks the protocol.
    ProtocolViolation = 85, "protocol_violation", Peer, 502, "destination_unavailable", "check that both ends run compatible versions of keynet";
    /// No answer to `Open` in time.
    OpenTimeout = 86, "open_timeout", Peer, 504, "connection_timeout", "try again; check the server behind the peer";

    /// Nothing was heard from the peer for too long.
    PeerLost = 100, "peer_lost", Network, 502, "connection_terminated", "the peer is gone or the network is down: connect again";
    /// The peer reset the connection.
    PeerReset = 101, "peer_reset", Peer, 502, "connection_terminated", "connect again; the peer's log says why it closed";
    /// The peer said that it is shutting down.
    PeerClosed = 102, "peer_closed", Peer, 502, "connection_terminated", "connect again when the peer is back";
    /// Both directions ended in order.
    Finished = 103, "finished", Caller, 200, "connection_terminated", "nothing: this is how a connection ends well";
    /// The local client broke its connection.
    ClientReset = 104, "client_reset", Client, 502, "connection_terminated", "look at the client: it closed before the stream had ended";
    /// The service broke its connection.
    ServiceReset = 105, "service_reset", Service, 502, "connection_terminated", "look at the server: it closed before the stream had ended";
    /// The peer's process has started anew, and knows nothing of the connection.
    PeerRestarted = 106, "peer_restarted", Peer, 502, "connection_terminated", "connect again: the peer is back";
    /// The node has lost its access while it was connected.
    AccessRevoked = 107, "access_revoked", Peer, 403, "http_request_denied", "ask the peer why this node's id is no longer on its allow list; where it was this node that ended it, nothing";
    /// The peer has ended: it said so, or its machine says that nobody is there.
    PeerGone = 108, "peer_gone", Peer, 502, "connection_terminated", "connect again when the peer is back";

    /// The service does not speak HTTP/1, or breaks its rules.
    ServiceProtocolError = 117, "service_protocol_error", Service, 502, "http_protocol_error", "check that an HTTP/1 server listens on this service port; what is no HTTP/1 goes through with CONNECT, SOCKS5 or a static forward";

    /// A broken promise of keynet's own code.
    Internal = 120, "internal", Keynet, 500, "proxy_internal_error", "report this with the log";
}

impl Reason {
    /// The stable name, as in events, metrics and `--json`.
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    pub const fn culprit(self) -> Culprit {
        self.facts().culprit
    }

    /// The HTTP status that the forward proxy answers with.
    pub const fn http_status(self) -> u16 {
        self.facts().status
    }

    /// The error type for the `Proxy-Status` field (RFC 9209 section 2.3).
    pub const fn proxy_status(self) -> &'static str {
        self.facts().proxy_status
    }

    /// What a person can do about it.
    pub const fn advice(self) -> &'static str {
        self.facts().advice
    }

    /// The code in `Refused`.
    pub const fn code(self) -> u16 {
        self as u16
    }

    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A failure with everything one needs to act on it: what, at which stage, with which peer and address, what to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub reason: Reason,
    pub stage: Stage,
    pub node: Option<NodeId>,
    pub address: Option<SocketAddr>,
    /// What exactly, in words; empty when the reason says it all.
    pub detail: String,
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// `detail` may quote what came from outside: keys are taken out, the rest is made printable, and cut.
    pub fn new(reason: Reason, stage: Stage, detail: impl Into<String>) -> Self {
        Self { reason, stage, node: None, address: None, detail: printable(without_keys(detail.into()), MAX_DETAIL) }
    }

    /// Names the peer, unless it is named already.
    pub fn with_node(mut self, node: NodeId) -> Self {
        self.node.get_or_insert(node);
        self
    }

    /// Names the address, unless it is named already.
    pub fn with_address(mut self, address: SocketAddr) -> Self {
        self.address.get_or_insert(address);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason.name().replace('_', " "))?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        write!(f, " [stage {}", self.stage.name())?;
        if let Some(node) = &self.node {
            write!(f, ", node {node}")?;
        }
        if let Some(address) = &self.address {
            write!(f, ", address {address}")?;
        }
        write!(f, "]; {}", self.reason.advice())
    }
}

impl std::error::Error for Error {}

/// A text that others have a say in, as it may be shown: in a terminal, a log, an event, an answer. What does not print is
/// escaped (control characters, so no new line and no sequence for a terminal begins in it; characters that turn the direction
/// of writing, or have no width), and it ends after `most` bytes. What prints already stays as it is.
pub fn printable(text: String, most: usize) -> String {
    if text.len() <= most && text.chars().all(is_plain) {
        return text;
    }
    let mut shown = String::with_capacity(text.len().min(most));
    for c in text.chars() {
        let before = shown.len();
        match is_plain(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_debug()),
        }
        if shown.len() > most {
            shown.truncate(before);
            shown.push('…');
            break;
        }
    }
    shown
}

/// Printable by the rule of `char::escape_debug`, which would also escape quotes.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') || (c > '~' && c.escape_debug().len() == 1)
}

/// The text without what looks like the body of a private key or a certificate: a PEM block, or a long run of base64. Whoever
/// gives a key where the name of a file is wanted does not find it in the message.
pub fn without_keys(text: String) -> String {
    let mut hidden: Vec<(usize, usize)> = Vec::new();
    let mut runs = text.as_bytes().iter().enumerate().filter(|(_, byte)| !is_base64(**byte)).map(|(at, _)| at);
    let mut from = 0;
    let mut goes_on = false;
    loop {
        let to = runs.next().unwrap_or(text.len());
        // between the bytes of one character there is no run
        let run = text.get(from..to).unwrap_or_default();
        // the last line of a body is short
        if looks_like_a_key(run) || (goes_on && run.len() > 1 && is_mixed(run)) {
            hidden.push((from, to));
            goes_on = true;
        } else if from < to {
            // "\n" in letters, as from a shell or YAML, is a break of lines as well
            goes_on &= run == "n" || run == "r";
        }
        if to == text.len() {
            break;
        }
        goes_on &= text.as_bytes()[to].is_ascii_whitespace() || text.as_bytes()[to] == b'\\';
        from = to + 1;
    }
    if let (Some(first), Some(last)) = (text.find(DASHES), text.rfind(DASHES)) {
        // what stands directly before and behind them belongs to a body that was cut
        let body = |c: char| c.is_ascii() && is_base64(c as u8);
        let before = without_breaks(&text[..first], |text| text.strip_suffix("\\n").or(text.strip_suffix("\\r")));
        let start = before.trim_end().trim_end_matches(body).len();
        let end = text.len() - text[last..].trim_start_matches('-').len();
        let behind = without_breaks(&text[end..], |text| text.strip_prefix("\\n").or(text.strip_prefix("\\r")));
        let behind = behind.trim_start();
        let word = &behind[..behind.len() - behind.trim_start_matches(body).len()];
        let is_word = word.bytes().all(|byte| byte.is_ascii_lowercase());
        hidden.push((start, if is_word { end } else { text.len() - behind.len() + word.len() }));
    }
    let (Some(start), Some(end)) = (hidden.iter().map(|part| part.0).min(), hidden.iter().map(|part| part.1).max())
    else {
        return text;
    };
    format!("{}(a key or certificate, not shown){}", &text[..start], &text[end..])
}

/// A break of lines as a shell or YAML may leave it: in letters.
fn without_breaks(mut text: &str, strip: impl Fn(&str) -> Option<&str>) -> &str {
    while let Some(rest) = strip(text) {
        text = rest;
    }
    text
}

/// Without the padding, which stands between names and values as well.
fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')
}

/// Names of files and nodes are of one case, or short, or have other characters in between.
fn looks_like_a_key(run: &str) -> bool {
    run.len() >= KEY_RUN && run.split('/').any(|part| part.len() >= KEY_PART && is_mixed(part))
}

fn is_mixed(run: &str) -> bool {
    let has = |class: fn(&u8) -> bool| run.as_bytes().iter().any(class);
    has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && (run.len() < KEY_PART || has(u8::is_ascii_digit))
}

/// Before and behind the label of a PEM block (RFC 7468), which has five.
const DASHES: &str = "----";
/// Characters of 256 bits in base64 are 43.
const KEY_RUN: usize = 40;
/// A body of 64 random characters has a slash in it more often than not, and nearly always so many without one.
const KEY_PART: usize = 16;

/// Bytes of a text from outside that are shown: some lines of a terminal.
pub const MAX_OUTSIDE: usize = 256;
/// Bytes of an error's detail: 32 addresses that were tried fit, and what a peer says of its refusal (512).
const MAX_DETAIL: usize = 2_048;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_reason_is_unmapped_or_mapped_twice() {
        let mut names = HashSet::new();
        let mut codes = HashSet::new();
        for &reason in Reason::ALL {
            assert!(names.insert(reason.name()) && codes.insert(reason.code()), "{reason:?} is listed twice");
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert_eq!(Reason::from_name(reason.name()), Some(reason));
            assert!(!reason.advice().is_empty() && !reason.proxy_status().is_empty());
            assert!(matches!(reason.http_status(), 200 | 400..=599));
        }
        assert_eq!(Reason::from_code(0), None);
    }

    #[test]
    fn what_others_say_neither_breaks_lines_nor_steers_terminals() {
        let said = "a\r\nb\x1b[2J\u{9b}2J\u{7}\u{202e}gpj\u{2066}\u{200b}\u{2028}\u{feff}\u{e0041}\0 \"é\" 世";
        let error = Error::new(Reason::PeerBusy, Stage::Open, said);
        assert!(error.detail.chars().all(is_plain), "{}", error.detail);
        assert!(error.detail.starts_with(r"a\r\nb\u{1b}[2J\u{9b}2J\u{7}\u{202e}gpj"), "{}", error.detail);
        assert!(error.detail.ends_with("\"é\" 世"), "what prints stays: {}", error.detail);
        assert_eq!(printable(error.detail.clone(), MAX_DETAIL), error.detail, "twice is once");
    }

    #[test]
    fn a_key_in_place_of_a_name_is_not_shown() {
        let body = "MC4CAQAwBQYDK2VwBCIEIHSS3X/jeEsZIJahAEK5lYdMLB7MFbDcRnOutFvZHg0W";
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n");
        let rsa = format!("{body}\n{body}\nHSS3X/jeEsZ==");
        let pieces: Vec<&str> = (0..body.len() - 7).map(|at| &body[at..at + 8]).collect();
        let mut given = vec![body.to_owned(), rsa.clone(), rsa.replace('\n', "\\n"), rsa.replace('\n', " ")];
        for text in [&pem, &pem.replace('\n', "\\n"), &pem.replace('\n', " "), &pem.replace("-----", "----")] {
            given.extend((0..text.len()).flat_map(|at| [text[at..].to_owned(), text[..at].to_owned()]));
        }
        for text in given {
            let shown =
                Error::new(Reason::IdentityInvalid, Stage::Setup, format!("{text} cannot be read: No such file"));
            assert!(shown.detail.ends_with(" cannot be read: No such file"), "{}", shown.detail);
            // a part without any mark of its kind is a name like others
            if text.contains("----") || text.len() >= KEY_RUN {
                assert!(!pieces.iter().any(|piece| shown.detail.contains(piece)), "{text:?}: {}", shown.detail);
            }
        }
    }

    #[test]
    fn keys_are_looked_for_in_texts_of_every_kind() {
        let body = "MC4CAQAwBQYDK2VwBCIEIHSS3X/jeEsZIJahAEK5lYdMLB7MFbDcRnOutFvZHg0W";
        for odd in ["é", "\u{9b}", "世", "\u{202e}", "😀", "-", "----", "\\", "\n", " ", "=", "", "MC4"] {
            for text in
                [odd.to_owned(), format!("{odd}{odd}"), format!("a{odd}----{odd}b"), format!("----{odd}----{odd}é")]
            {
                let _ = without_keys(text.clone());
                for mixed in
                    [format!("{text}{body}"), format!("{body}{text}"), format!("{text}{body}{text}{body}{text}")]
                {
                    assert!(!without_keys(mixed.clone()).contains(&body[8..]), "{mixed}");
                }
            }
        }
    }

    #[test]
    fn names_are_shown() {
        let node = NodeId::from_public_key([7; 32]).to_string();
        for name in [
            "/home/Alice/Documents/Projects/2026/Keynet/Identities/node.pem",
            "/nix/store/0c5b5nfq8fxq6yd3k4vvnvjgd9p0bplm-python3-3.11.7/lib",
            "/var/lib/kubelet/pods/5b0f6a2e-3e1c-4a53-9d7e-1f0c2b3a4d5e/volumes/secret",
            "Users/Alice/Documents/Projects/Work/Network/Identities",
            &node,
            &format!("{node}=HOST:PORT or {node}@Rendezvous1.example.org:7348"),
        ] {
            assert_eq!(without_keys(name.to_owned()), name);
        }
    }

    #[test]
    fn what_others_say_is_cut() {
        for text in ["x".repeat(100_000), "\x1b".repeat(100_000), "世".repeat(100_000)] {
            let shown = printable(text, MAX_OUTSIDE);
            assert!(shown.len() <= MAX_OUTSIDE + "…".len() && shown.ends_with('…'), "{}", shown.len());
        }
        assert_eq!(printable("short".to_owned(), MAX_OUTSIDE), "short");
    }

    #[test]
    fn an_error_says_what_where_with_whom_and_what_to_try() {
        let node = NodeId::from_public_key([7; 32]);
        let error = Error::new(Reason::PunchTimeout, Stage::Punch, "no answer in 15 s")
            .with_node(node)
            .with_address("192.0.2.1:4433".parse().unwrap());
        let text = error.to_string();
        for part in
            ["punch timeout", "no answer in 15 s", "stage punch", &node.to_string(), "192.0.2.1:4433", "UDP passes"]
        {
            assert!(text.contains(part), "{part:?} is missing in {text:?}");
        }
    }
}
