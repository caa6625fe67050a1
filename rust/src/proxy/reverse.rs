//! The reverse proxy: peers' streams to the services behind this node. Nothing is spent on a stranger: TLS, then the access
//! list, then limits, and only then is a service dialled.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::backend;
use super::events::Event;
use super::lifecycle::Phase;
use super::local::LocalStream;
use super::registry::{ConnectionInfo, Entry, Place, Role};
use super::settings::{AccessRequest, Allow, Backend};
use super::tunnel::carry;
use super::Shared;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::{Incoming, UtpStream};
use crate::open::{Answer, Open};
use crate::peer::{Admission, Link};

/// Takes what peers open until the socket closes.
pub(super) async fn serve(shared: Arc<Shared>, mut incoming: Incoming) {
    let places = Arc::new(Semaphore::new(shared.limits.max_handshakes));
    loop {
        // The place comes first: what cannot be served waits in the socket's bounded queue.
        let next = async {
            let place = places.clone().acquire_owned().await.ok()?;
            Some((incoming.accept().await?, place))
        };
        let (stream, place) = tokio::select! {
            biased;
            () = shared.lifecycle.reached(Phase::Aborting) => return,
            next = next => match next {
                Some(next) => next,
                None => return,
            },
        };
        let source = stream.remote_address();
        let Some(admission) = shared.peers.admit(source) else {
            stream.reset();
            let text = "too many handshakes from this address";
            let error = Error::new(Reason::PeerBusy, Stage::Tls, text).with_address(source);
            shared.refused(None, Some(source), None, error);
            continue;
        };
        shared.lifecycle.spawn_connection(handle_stream(shared.clone(), stream, (place, admission)));
    }
}

async fn handle_stream(shared: Arc<Shared>, stream: UtpStream, handshake: (OwnedSemaphorePermit, Admission)) {
    // On the heap, so that a tunnel that stands does not carry the space of its making.
    let Some(tunnel) = Box::pin(prepare(&shared, stream, handshake)).await else { return };
    let Tunnel { local, link, entry, place } = tunnel;
    carry(local, link, Vec::new(), entry, Role::Reverse, &shared.limits).await;
    drop(place);
}

struct Tunnel {
    local: LocalStream,
    link: Link,
    entry: Entry,
    place: Place,
}

/// From a uTP connection to a tunnel that stands; `None` when it does not come to that.
async fn prepare(
    shared: &Arc<Shared>,
    stream: UtpStream,
    handshake: (OwnedSemaphorePermit, Admission),
) -> Option<Tunnel> {
    let source = stream.remote_address();
    let (mut link, open) = match shared.peers.accept(stream).await {
        Ok(Some(asked)) => asked,
        Ok(None) => return None,
        Err(error) => {
            shared.refused(error.node, Some(source), None, error);
            return None;
        }
    };
    let mut handshake = Some(handshake);
    shared.met(&link);
    link.utp().set_controller(shared.peers.controller(open.priority));
    let connected = connect(shared, &link, &open, &mut handshake).await;
    if connected.is_ok() {
        // `Accepted` tells the window too
        link.utp().trust();
    }
    match connected {
        Ok((local, mut entry, place)) => match link.answer(&Answer::Accepted).await {
            Ok(()) => {
                entry.open();
                Some(Tunnel { local, link, entry, place })
            }
            Err(error) => {
                entry.finish(error.reason);
                None
            }
        },
        Err(error) => {
            let error = error.with_node(link.peer.leaf).with_address(link.address);
            // strangers, who cost nothing to be, are logged at debug only (`refused`)
            tracing::info!(%error, service = open.service_port, "peer refused");
            shared.refused(Some(link.peer.leaf), Some(link.address), Some(open.service_port), error.clone());
            shared.peers.refuse(link, &error).await;
            None
        }
    }
}

/// Errors: what the peer is told. The place of the handshake is kept until the access list has let the peer in, and by whom
/// it turns away until that has ended: a key costs nothing to make.
async fn connect(
    shared: &Arc<Shared>,
    link: &Link,
    open: &Open,
    handshake: &mut Option<(OwnedSemaphorePermit, Admission)>,
) -> Result<(LocalStream, Entry, Place)> {
    if shared.lifecycle.phase() != Phase::Running {
        return Err(Error::new(Reason::PeerClosed, Stage::Open, "this node is shutting down"));
    }
    let services = shared.services.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let service = find(&services, open.service_port);
    let service_port = service.map_or(open.service_port, |(port, _)| port);
    check_access(shared, link, service_port).await?;
    *handshake = None;
    let Some((service_port, backend)) = service else {
        let text = match open.service_port {
            0 => "there is not exactly one service here, so its port must be named".to_owned(),
            port => format!("no service {port} here"),
        };
        return Err(Error::new(Reason::ServiceNotFound, Stage::Open, text));
    };
    // A node that rotates its key keeps its places: the oldest name counts.
    let oldest = link.peer.all.last().copied().unwrap_or(link.peer.leaf);
    let limits = &shared.limits;
    let place = shared
        .registry
        .reserve(oldest, limits.max_streams, limits.max_streams_per_node)
        .map_err(|text| Error::new(Reason::PeerBusy, Stage::Open, text))?;
    let info = ConnectionInfo::of(Role::Reverse, link, service_port, shared.peers.net.local_address());
    let info = ConnectionInfo { priority: open.priority, ..info };
    let own = shared.peers.identity().node_id();
    let (local, entry) = backend::connect(backend, info, &shared.registry, &own, limits.service_timeout).await?;
    entry.connection.steered_by(link.utp().helm());
    Ok((local, entry, place))
}

fn find(services: &BTreeMap<u16, Backend>, port: u16) -> Option<(u16, &Backend)> {
    match port {
        0 if services.len() == 1 => services.first_key_value().map(|(port, backend)| (*port, backend)),
        port => services.get(&port).map(|backend| (port, backend)),
    }
}

/// Before anything else is told: a stranger does not learn which services there are.
async fn check_access(shared: &Shared, link: &Link, service_port: u16) -> Result<()> {
    let denied = |text: &str| Error::new(Reason::AccessDenied, Stage::Open, text);
    let allow = shared.allow.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let allowed = match allow {
        None => false,
        Some(Allow::Anyone) => true,
        Some(Allow::Nodes(nodes)) => link.peer.all.iter().any(|node| nodes.contains(node)),
        Some(Allow::Ask(ask)) => {
            let request = AccessRequest {
                node: link.peer.leaf,
                all: link.peer.all.clone(),
                service_port,
                remote_address: link.address,
            };
            match timeout(shared.limits.open_timeout, ask(request)).await {
                Ok(allowed) => allowed,
                Err(_) => return Err(denied("the access list did not answer in time")),
            }
        }
    };
    if allowed {
        Ok(())
    } else {
        Err(denied("not on the access list"))
    }
}

impl Shared {
    /// Tells the subscribers of a tunnel that did not come about.
    pub(super) fn refused(
        &self,
        node: Option<crate::addr::NodeId>,
        address: Option<std::net::SocketAddr>,
        service_port: Option<u16>,
        error: Error,
    ) {
        tracing::debug!(?address, %error, "refused");
        self.refusals.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.publisher.publish(Event::ConnectionRefused { node, address, service_port, error });
    }
}
