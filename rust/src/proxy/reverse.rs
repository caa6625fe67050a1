//! The reverse proxy: peers' streams to the services behind this node. Nothing is spent on a stranger: TLS, then the access
//! list, then limits, and only then is a service dialled.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::backend;
use super::events::Event;
use super::lifecycle::Phase;
use super::local::LocalStream;
use super::registry::{ConnectionInfo, Entry, Place as StreamPlace, Role};
use super::settings::{AccessRequest, Service};
use super::tunnel::carry;
use super::Shared;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::{Incoming, UtpStream};
use crate::open::Open;
use crate::peer::{Link, Place, Ticket};

/// Takes what peers open until the socket closes.
pub(super) async fn serve(shared: Arc<Shared>, mut incoming: Incoming) {
    loop {
        let stream = tokio::select! {
            biased;
            () = shared.lifecycle.reached(Phase::Aborting) => return,
            next = incoming.accept() => match next {
                Some(stream) => stream,
                None => return,
            },
        };
        let (source, known) = (stream.remote_address(), shared.access.is_known(&shared.peers, &stream));
        let places = &shared.peers.places;
        let entered = match places.enter(source, known) {
            Some(place) => Some(Entrance::Place(place)),
            None => places.queue(source, known).map(Entrance::Queue),
        };
        match entered {
            Some(entrance) => shared.lifecycle.spawn_connection(handle_stream(shared.clone(), stream, entrance)),
            None => no_place(&shared, &stream, source),
        }
    }
}

/// What whoever connects has at first.
enum Entrance {
    Place(Place),
    Queue(Ticket),
}

async fn handle_stream(shared: Arc<Shared>, stream: UtpStream, entrance: Entrance) {
    let source = stream.remote_address();
    let place = match entrance {
        Entrance::Place(place) => Some(place),
        Entrance::Queue(ticket) => ticket.place(shared.limits.open_timeout.min(QUEUE_TIME) / 2).await,
    };
    let Some(mut place) = place else {
        no_place(&shared, &stream, source);
        return;
    };
    let gives_way = place.gives_way();
    // On the heap, so that a tunnel that stands does not carry the space of its making.
    let prepared = tokio::select! {
        biased;
        () = gives_way => Err(()),
        prepared = Box::pin(prepare(&shared, stream, place)) => Ok(prepared),
    };
    let tunnel = match prepared {
        Ok(Some(tunnel)) => tunnel,
        Ok(None) => return,
        Err(()) => {
            let text = "it had to give way: there are too many handshakes, and most from there";
            let error = Error::new(Reason::PeerBusy, Stage::Tls, text).with_address(source);
            shared.stranger_refused(source, error);
            return;
        }
    };
    let Tunnel { local, link, entry, place } = tunnel;
    carry(local, link, Vec::new(), entry, Role::Reverse, &shared.limits).await;
    drop(place);
}

fn no_place(shared: &Shared, stream: &UtpStream, source: SocketAddr) {
    stream.reset();
    let error = Error::new(Reason::PeerBusy, Stage::Tls, "too many handshakes from this address").with_address(source);
    shared.stranger_refused(source, error);
}

struct Tunnel {
    local: LocalStream,
    link: Link,
    entry: Entry,
    place: StreamPlace,
}

/// From a uTP connection to a tunnel that stands; `None` when it does not come to that.
async fn prepare(shared: &Arc<Shared>, stream: UtpStream, handshake: Place) -> Option<Tunnel> {
    let source = stream.remote_address();
    let (mut link, open) = match shared.peers.accept(stream, &handshake).await {
        Ok(Some(asked)) => asked,
        Ok(None) => return None,
        Err(error) => {
            shared.stranger_refused(source, error);
            return None;
        }
    };
    let mut handshake = Some(handshake);
    link.utp().set_controller(shared.peers.controller(open.priority));
    let connected = connect(shared, &link, &open, &mut handshake).await;
    if connected.is_ok() {
        // `Accepted` tells the window too
        link.utp().trust();
    }
    match connected {
        Ok((local, mut entry, place)) => match link.answer(&link.acceptance()).await {
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
            if let Some(unsaid) = shared.quiet_log.may_say() {
                tracing::info!(%error, service = open.service_port, unsaid, "peer refused");
            }
            shared.refused(
                Role::Reverse,
                Some(link.peer.leaf),
                Some(link.address),
                Some(open.service_port),
                error.clone(),
            );
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
    handshake: &mut Option<Place>,
) -> Result<(LocalStream, Entry, StreamPlace)> {
    if shared.lifecycle.phase() != Phase::Running {
        return Err(Error::new(Reason::PeerClosed, Stage::Open, "this node is shutting down"));
    }
    let services = shared.services.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    let service = find(&services, open.service_port);
    let service_port = service.map_or(open.service_port, |(port, _)| port);
    let request =
        AccessRequest { node: link.peer.leaf, all: link.peer.all.clone(), service_port, remote_address: link.address };
    let limits = &shared.limits;
    let admitted = shared.access.check(&request, limits.open_timeout).await?;
    shared.met(link);
    shared.peers.let_in(&link.peer, if admitted.listed { &admitted.names } else { &[] });
    *handshake = None;
    let Some((service_port, service)) = service else {
        let text = match open.service_port {
            0 => "there is not exactly one service here, so its port must be named".to_owned(),
            port => format!("no service {port} here"),
        };
        return Err(Error::new(Reason::ServiceNotFound, Stage::Open, text));
    };
    if let Some(patience) = service.patience {
        link.wait_for(patience, &open.terms);
    }
    let place = shared
        .registry
        .reserve(&admitted.names, limits.max_streams, limits.max_streams_per_node)
        .map_err(|text| Error::new(Reason::PeerBusy, Stage::Open, text))?;
    let info = ConnectionInfo::of(Role::Reverse, link, service_port, shared.peers.net.local_address());
    let info = ConnectionInfo { priority: open.priority, ..info };
    let own = shared.peers.identity().node_id();
    let (local, entry) =
        backend::connect(&service.backend, info, &shared.registry, &own, limits.service_timeout).await?;
    entry.connection.steered_by(link.utp().helm());
    // the list may have changed meanwhile: whoever changed it has not seen this connection then
    if shared.access.has_changed(admitted.list) {
        shared.access.check(&request, limits.open_timeout).await?;
    }
    Ok((local, entry, place))
}

fn find(services: &BTreeMap<u16, Service>, port: u16) -> Option<(u16, &Service)> {
    match port {
        0 if services.len() == 1 => services.first_key_value().map(|(port, service)| (*port, service)),
        port => services.get(&port).map(|service| (port, service)),
    }
}

impl Shared {
    /// The same for somebody without a name. Such are cheap to be: they must not push what subscribers wait for out of their
    /// queues.
    fn stranger_refused(&self, source: SocketAddr, error: Error) {
        if error.node.is_some() || self.quiet_events.may_say().is_some() {
            self.refused(Role::Reverse, error.node, Some(source), None, error);
        } else {
            self.refusals.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Tells the subscribers of a tunnel that did not come about.
    pub(super) fn refused(
        &self,
        role: Role,
        node: Option<crate::addr::NodeId>,
        address: Option<SocketAddr>,
        service_port: Option<u16>,
        error: Error,
    ) {
        tracing::debug!(?address, %error, "refused");
        self.refusals.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.publisher.publish(Event::ConnectionRefused { role, node, address, service_port, error });
    }
}

/// Whoever finds no place for its handshake waits half of this for one: those before it need two round trips.
const QUEUE_TIME: Duration = Duration::from_secs(2);
