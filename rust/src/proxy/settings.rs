//! What a proxy is told when it starts.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::future::Future;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::addr::NodeId;
use crate::config::{ProxyLimits, TlsConfig};
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::check_address;
use crate::net::NetConfig;
use crate::rendezvous::Options;

/// Everything that a proxy is told when it starts.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// Where the UDP socket is bound.
    pub listen: SocketAddr,
    /// Where the forward proxy takes CONNECT requests.
    pub forward: SocketAddr,
    /// User and password of the forward proxy; `None` makes random ones.
    pub credentials: Option<(String, String)>,
    /// The services behind this node, by the port that peers ask for.
    pub services: BTreeMap<u16, Service>,
    /// Who may use them. Must be given when there are services.
    pub allow: Option<Allow>,
    /// How other nodes are found by their key.
    pub rendezvous: Options,
    /// Find, and be found by, nodes of the local network (mDNS).
    pub lan: bool,
    pub limits: ProxyLimits,
    pub net: NetConfig,
    pub tls: TlsConfig,
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            forward: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            credentials: None,
            services: BTreeMap::new(),
            allow: None,
            rendezvous: Options::default(),
            lan: false,
            limits: ProxyLimits::default(),
            net: NetConfig::default(),
            tls: TlsConfig::default(),
        }
    }
}

impl ProxyConfig {
    /// Errors: [`Reason::InvalidArgument`].
    pub(super) fn check(&self) -> Result<()> {
        if !self.services.is_empty() && self.allow.is_none() {
            let text = "a proxy with services must be told who may use them: give allow, if only to allow anyone";
            return Err(invalid(text));
        }
        if self.services.contains_key(&0) {
            return Err(invalid("0 is no service port: it stands for the only service there is"));
        }
        let limits = &self.limits;
        let counts = [
            ("max_clients", limits.max_clients),
            ("max_head", limits.max_head),
            ("splice_buffer", limits.splice_buffer),
            ("event_queue", limits.event_queue),
            ("max_handshakes", limits.max_handshakes),
            ("max_handshakes_per_source", limits.max_handshakes_per_source),
            ("max_handshakes_per_network", limits.max_handshakes_per_network),
            ("max_dials_per_node", limits.max_dials_per_node),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(invalid(format!("limits.{name} must not be 0"))),
            None => Ok(()),
        }
    }
}

/// A service that peers can reach, and what is special about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub backend: Backend,
    /// How long its connections outlive a silence of the peer, in place of `UtpConfig::patience`.
    pub patience: Option<Duration>,
}

impl From<Backend> for Service {
    fn from(backend: Backend) -> Self {
        Self { backend, patience: None }
    }
}

impl FromStr for Service {
    type Err = Error;

    /// Takes what [`Backend`] takes, and `,patience=SECONDS` behind it. Errors: [`Reason::InvalidArgument`].
    fn from_str(text: &str) -> Result<Self> {
        let (backend, patience) = match text.rsplit_once(PATIENCE) {
            Some((backend, seconds)) => (backend, Some(patience(seconds).map_err(invalid)?)),
            None => (text, None),
        };
        Ok(Self { backend: backend.parse()?, patience })
    }
}

/// Seconds, as the wire has them (docs/protocol.md section 5). Errors: what is wrong with it.
pub fn patience(text: &str) -> std::result::Result<Duration, String> {
    let seconds =
        text.parse::<u16>().map_err(|_| "patience is a whole number of seconds from 0 to 65535".to_owned())?;
    Ok(Duration::from_secs(seconds.into()))
}

const PATIENCE: &str = ",patience=";

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Backend {
    /// `host:port`; a name is resolved for each connection.
    Tcp(String),
    /// The path of a UNIX socket.
    Unix(PathBuf),
}

impl FromStr for Backend {
    type Err = Error;

    /// Takes `host:port`, `[v6]:port` and `unix:/path`. Errors: [`Reason::InvalidArgument`].
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("unix:") {
            Some("") => Err(invalid("unix: needs a path")),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => check_address(text).map(|()| Self::Tcp(text.to_owned())).map_err(invalid),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A future on the heap.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who may use the services of this node.
#[derive(Clone)]
pub enum Allow {
    /// Every node that proves who it is.
    Anyone,
    /// Nodes of which any name, current or rotated away, is in the set.
    Nodes(HashSet<NodeId>),
    /// Asks for each stream, off the data path. A question that is not answered in time is a no.
    Ask(Arc<dyn Fn(AccessRequest) -> BoxFuture<'static, bool> + Send + Sync>),
}

impl fmt::Debug for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anyone => f.write_str("Anyone"),
            Self::Nodes(nodes) => f.debug_tuple("Nodes").field(nodes).finish(),
            Self::Ask(_) => f.write_str("Ask"),
        }
    }
}

/// Who wants what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRequest {
    /// The key that the node uses now.
    pub node: NodeId,
    /// Every name it has proven, newest first.
    pub all: Vec<NodeId>,
    /// The service it asks for; 0 when it asked for the only one and there are several or none.
    pub service_port: u16,
    pub remote_address: SocketAddr,
}

/// How a proxy closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Takes nothing new, lets what runs end, for `limits.drain_timeout` at most.
    Drain,
    /// Resets everything.
    Abort,
}

pub(super) fn invalid(text: impl Into<String>) -> Error {
    Error::new(Reason::InvalidArgument, Stage::Setup, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_ask_for_an_access_list() {
        let mut config = ProxyConfig::default();
        assert!(config.check().is_ok());
        config.services.insert(1, Backend::Tcp("127.0.0.1:1".to_owned()).into());
        assert_eq!(config.check().unwrap_err().reason, Reason::InvalidArgument);
        config.allow = Some(Allow::Anyone);
        assert!(config.check().is_ok());
        config.services.insert(0, Backend::Tcp("127.0.0.1:1".to_owned()).into());
        assert!(config.check().is_err());
    }

    #[test]
    fn services_are_read_from_text() {
        let read = |text: &str| text.parse::<Service>();
        assert_eq!(read("127.0.0.1:80").unwrap().patience, None);
        for (text, backend) in [("[::1]:80,patience=300", "[::1]:80"), ("unix:/a,b,patience=300", "unix:/a,b")] {
            let service = read(text).unwrap();
            assert_eq!(service.backend.to_string(), backend);
            assert_eq!(service.patience, Some(Duration::from_secs(300)));
        }
        for bad in ["127.0.0.1:80,patience=", "127.0.0.1:80,patience=-1", "127.0.0.1:80,x=1", ",patience=3"] {
            assert_eq!(read(bad).unwrap_err().reason, Reason::InvalidArgument, "{bad}");
        }
    }

    #[test]
    fn backends_are_read_from_text() {
        for good in ["127.0.0.1:80", "[::1]:80", "localhost:80", "unix:/run/x.sock"] {
            assert_eq!(good.parse::<Backend>().unwrap().to_string(), good);
        }
        for bad in ["", "80", "127.0.0.1", "::1:80", "localhost:0", "unix:", "http://x:80"] {
            assert_eq!(bad.parse::<Backend>().unwrap_err().reason, Reason::InvalidArgument, "{bad}");
        }
    }
}
