//! The client of a relay: an address on a TURN server, and a task that carries datagrams through it.
//!
//! | file | what |
//! |---|---|
//! | `redirect` | to the server that one names in its place |
//! | `http`, `tls`, `connect`, `link` | the connection to the relay: UDP, TCP, TLS, through an HTTP proxy |
//! | `lease` | session and connection together; never let go without giving the allocation back |
//! | `race` | which relay, and which way to it |
//! | `carry` | the task between a wire of the core and the relay |
//!
//! The state machine of an allocation is `turn::client`.

mod carry;
mod connect;
mod http;
mod lease;
mod link;
mod race;
mod redirect;
mod tls;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::config::SocketConfig;
use crate::error::Result;
use crate::net::Wire;
use crate::relay::{RelayUri, Transport};
use crate::turn::client::Granted;
use lease::Lease;

pub use carry::{Carrier, CarryState, CarryStats};
pub use http::HttpProxy;
pub use race::{choose, is_clearly_nearer, reach};

/// A relay, one way to it, and who we are there.
#[derive(Clone)]
pub struct RelaySpec {
    pub uri: RelayUri,
    pub username: String,
    pub password: Zeroizing<String>,
    /// Of the relay: how often it is taken among those that are about as near (RFC 2782); 0: where there is no other.
    pub weight: u32,
    /// A stranger named it: addresses of our own networks are none of its business.
    pub public_only: bool,
    /// For TCP and TLS only.
    pub proxy: Option<HttpProxy>,
}

impl RelaySpec {
    /// With the credentials of the URI; none there are empty ones.
    pub fn new(uri: RelayUri) -> Self {
        let username = uri.user().unwrap_or_default().to_owned();
        let password = Zeroizing::new(uri.password().unwrap_or_default().to_owned());
        Self { uri, username, password, weight: USUAL_WEIGHT, public_only: false, proxy: None }
    }
}

impl fmt::Debug for RelaySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uri, username, proxy, .. } = self;
        f.debug_struct("RelaySpec").field("uri", uri).field("username", username).field("proxy", proxy).finish()
    }
}

/// How an allocation is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Everything, from names to the allocation, has to happen in this time.
    pub deadline: Duration,
    pub socket: SocketConfig,
}

impl Default for Options {
    /// 10 s: UDP gives up after 3.75 s, and TLS over TCP, one lost packet included, then still has its time.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(10), socket: SocketConfig::default() }
    }
}

/// Addresses on a relay. Dropped, they are given back in the background.
#[derive(Debug)]
pub struct Allocation {
    /// At most one of each family.
    pub relayed: Vec<SocketAddr>,
    /// Our address as the relay sees it.
    pub mapped: Option<SocketAddr>,
    /// Of the last request that was not repeated; 250 ms if there was none.
    pub rtt: Duration,
    /// What we are connected to: the relay, or the HTTP proxy before it.
    pub server: SocketAddr,
    pub transport: Transport,
    /// `host:port` of the HTTP proxy that it goes through.
    pub proxy: Option<String>,
    lease: Lease,
}

impl Allocation {
    fn new(spec: &RelaySpec, server: SocketAddr, lease: Lease, granted: Granted) -> Self {
        let (relayed, mapped, rtt) = (granted.relayed, granted.mapped, granted.rtt);
        let proxy = spec.proxy.as_ref().map(HttpProxy::place);
        Self { relayed, mapped, rtt, server, transport: spec.uri.transport, proxy, lease }
    }

    /// Starts the task that carries what the wire brings, until the wire closes, the relay is gone, or the carrier is dropped.
    pub fn carry(self, wire: Wire) -> Carrier {
        Carrier::start(self.lease, wire)
    }

    /// Gives the addresses back, and waits until that is done: two seconds at most.
    pub async fn release(self) {
        self.lease.release().await;
    }
}

/// Of a relay of which nobody says a weight: a rendezvous can take some off, in steps of a hundredth.
pub const USUAL_WEIGHT: u32 = 100;

/// Allocates at one relay, by one way; a name with several addresses is tried at each, a quarter of a second apart.
///
/// Errors: `RelayUnreachable`, `RelayRefused`; those of TLS; `InvalidArgument`.
pub async fn allocate(spec: RelaySpec, options: &Options) -> Result<Allocation> {
    reach(vec![spec], options).await
}
