//! The services behind this node: connected from an address that is in the registry before the service can see it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpSocket, UnixSocket};
use tokio::time::timeout;

use super::local::LocalStream;
use super::registry::{ConnectionInfo, Entry, Registry};
use super::settings::Backend;
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::source_towards;
use crate::net::stagger::first_to_succeed;
use crate::peer::resolve;

/// Connects to a service. `info` describes the connection but for the addresses on this side, which are filled in here.
///
/// Errors: `ServiceRefused`, `ServiceTimeout`, `PeerBusy` (no local address is free). The text goes to the peer, so it does
/// not say where the service is.
pub(super) async fn connect(
    backend: &Backend,
    info: ConnectionInfo,
    registry: &Registry,
    own: &NodeId,
    within: Duration,
) -> Result<(LocalStream, Entry)> {
    let info = ConnectionInfo { server_address: Some(backend.to_string()), ..info };
    let connecting = async {
        match backend {
            Backend::Tcp(address) => connect_tcp(address, info, registry).await,
            Backend::Unix(path) => {
                let (socket, name) = bind_unix(own)?;
                let entry = registry.enter(ConnectionInfo { reverse_address: name, ..info });
                let stream = socket.connect(path).await.map_err(|error| refused(&error))?;
                Ok((LocalStream::unix(stream), entry))
            }
        }
    };
    match timeout(within, connecting).await {
        Ok(result) => result,
        Err(_) => {
            let text = format!("the service did not accept the connection within {:.1} s", within.as_secs_f32());
            Err(Error::new(Reason::ServiceTimeout, Stage::Service, text))
        }
    }
    .inspect_err(|error| tracing::debug!(%backend, %error, "no connection to a service"))
}

async fn connect_tcp(address: &str, info: ConnectionInfo, registry: &Registry) -> Result<(LocalStream, Entry)> {
    let unresolved = || Error::new(Reason::ServiceRefused, Stage::Service, "the service's name does not resolve");
    let servers = resolve(address).await.map_err(|_| unresolved())?;
    let attempts = servers.into_iter().map(|server| connect_one(server, &info, registry));
    first_to_succeed(attempts).await.map_err(|errors| errors.into_iter().last().unwrap_or_else(unresolved))
}

async fn connect_one(server: SocketAddr, info: &ConnectionInfo, registry: &Registry) -> Result<(LocalStream, Entry)> {
    let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|error| busy(&error))?;
    // Without SO_REUSEADDR: nobody else may have this address while it stands for a node. A port chosen by connect() would
    // end the limit of some 470 new tunnels a second to one TCP service (28,000 ports, each a minute in TIME_WAIT), but the
    // system gives such a port to connections to other services at the same time, also to those of other programs: what was
    // asked about one would be answered about another. UNIX sockets have no such limit.
    let source = source_towards(server).map_err(|error| refused(&error))?;
    socket.bind(source).map_err(|error| busy(&error))?;
    let local = socket.local_addr().map_err(|error| busy(&error))?;
    // Holds the port until the entry is marked closed when this fails or is given up: dropped after `entry`.
    let held = socket.as_fd().try_clone_to_owned().map_err(|error| busy(&error))?;
    let entry = registry.enter(ConnectionInfo {
        reverse_address: Some(local.to_string()),
        server_address: Some(server.to_string()),
        ..info.clone()
    });
    let stream = socket.connect(server).await.map_err(|error| refused(&error))?;
    drop(held);
    Ok((LocalStream::tcp(stream), entry))
}

/// A socket with a name of its own, where the system knows names without files: gRPC shows it as
/// `unix-abstract:keynet/<node>/<n>`.
fn bind_unix(own: &NodeId) -> Result<(UnixSocket, Option<String>)> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let fresh = || UnixSocket::new_stream().map_err(|error| busy(&error));
    if !cfg!(target_os = "linux") {
        return Ok((fresh()?, None));
    }
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..MAX_NAMES {
        let n = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("keynet/{}/{}.{n}", own.short(), std::process::id());
        let socket = fresh()?;
        match socket.bind(format!("\0{name}")) {
            Ok(()) => return Ok((socket, Some(format!("unix-abstract:{name}")))),
            Err(error) => last = error,
        }
    }
    Err(busy(&last))
}

fn refused(error: &io::Error) -> Error {
    let reason = match error.kind() {
        io::ErrorKind::TimedOut => Reason::ServiceTimeout,
        _ => Reason::ServiceRefused,
    };
    Error::new(reason, Stage::Service, format!("connecting to the service: {}", error.kind()))
}

fn busy(error: &io::Error) -> Error {
    Error::new(Reason::PeerBusy, Stage::Service, format!("no local address for the connection: {}", error.kind()))
}

/// Names tried when others are taken.
const MAX_NAMES: usize = 16;
