//! The forward proxy: local clients on their way to services of other nodes, by CONNECT, by SOCKS5 or over a static forward. Those that name
//! whole URLs go on in `http`.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout, timeout_at, Instant};

use super::http;
use super::lifecycle::Phase;
use super::local::{Listener, LocalStream};
use super::registry::{ConnectionInfo, Entry, Role};
use super::tunnel::carry;
use super::Shared;
use crate::addr::{unmapped, NodeId};
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::{answer, HeadBuffer, Request, Target, ESTABLISHED};
use crate::open::{Open, Priority};
use crate::peer::{Dial, Link};
use crate::socks5::{self, Handshake, Step};

/// What the clients of a listener want.
#[derive(Clone, Debug)]
pub(super) enum Serves {
    /// They say so: with CONNECT, with SOCKS5, or in each URL.
    Connect,
    /// Always the same; with a guard that holds back what pages in a browser send, where they get at the listener.
    Static { node: NodeId, service_port: u16, guard: Option<Arc<[String]>> },
}

/// Takes clients until the proxy, or this listener alone, closes.
pub(super) async fn serve(shared: Arc<Shared>, listener: Listener, serves: Serves, closed: impl Future<Output = ()>) {
    let mut closed = std::pin::pin!(closed);
    let _waiting = Waiting::new(&shared);
    loop {
        let next = async {
            let permit = shared.accepted.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = shared.lifecycle.reached(Phase::Draining) => return,
            () = &mut closed => return,
            next = next => next,
        };
        let (client, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: the client waits in the backlog until some are free.
                tracing::warn!(%error, "cannot accept a client");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (shared, serves) = (shared.clone(), serves.clone());
        let client = match &serves {
            Serves::Static { guard: Some(names), .. } => client.guarded(names),
            Serves::Static { guard: None, .. } | Serves::Connect => client,
        };
        shared.clone().lifecycle.spawn_connection(async move {
            let _permit = permit;
            handle_client(shared, client, from.map(unmapped), serves).await;
        });
    }
}

/// The permit with which a listener waits for its next client: each brings its own, so that idle ones take nobody's place.
struct Waiting {
    shared: Arc<Shared>,
}

impl Waiting {
    fn new(shared: &Arc<Shared>) -> Self {
        shared.accepted.add_permits(1);
        Self { shared: shared.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.accepted.forget_permits(1);
    }
}

async fn handle_client(shared: Arc<Shared>, client: LocalStream, from: Option<SocketAddr>, serves: Serves) {
    let (mut early, mut service_port, mut speech) = (Vec::new(), None, Speech::Http);
    let place = shared.clients.clone().try_acquire_owned();
    // On the heap, so that a tunnel that stands does not carry the space of its making.
    let prepared = match &place {
        Ok(_) => Box::pin(prepare(&shared, &client, from, &serves, &mut early, &mut service_port, &mut speech)).await,
        Err(_) => {
            let text = format!("{} clients are connected, no more are taken", shared.limits.max_clients);
            Err(Error::new(Reason::TooManyConnections, Stage::Request, text))
        }
    };
    match prepared {
        Ok(Prepared::Requests(head)) => Box::pin(http::serve(&shared, client, from, head, early)).await,
        Ok(Prepared::Tunnel(tunnel)) => {
            let (link, mut entry) = *tunnel;
            if matches!(serves, Serves::Connect) {
                match client.write_all(&speech.established()).await {
                    Ok(()) => {}
                    // It said something, ended, and went: what it said is for the service.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe && !early.is_empty() => {}
                    Err(_) => {
                        link.reset();
                        entry.finish(Reason::ClientReset);
                        return;
                    }
                }
            }
            entry.open();
            let nodes = entry.connection.fixed.nodes.clone();
            if carry(client, link, early, entry, Role::Forward, &shared.limits).await == Reason::AccessRevoked {
                revoked(&shared, &nodes);
            }
        }
        Err(error) if error.reason == Reason::Cancelled => {
            if let Some(why) = client.refused() {
                // what its page was told is on its way
                let error = Error::new(Reason::BadRequest, Stage::Request, format!("{why}, in a browser"));
                shared.refused(Role::Forward, error.node, from, service_port, error);
                client.finish();
            }
            // Otherwise it has gone: nobody is left to be told, and nobody turned it away.
        }
        Err(error) => {
            shared.refused(Role::Forward, error.node, from, service_port, error.clone());
            match serves {
                Serves::Connect => {
                    let _ = timeout(ANSWER_TIME, say(client, &speech.refusal(&error))).await;
                }
                // its client only sees a closed connection: this is where the reason can be read
                Serves::Static { node, service_port, .. } => {
                    tracing::warn!(%node, service_port, %error, "a static forward does not reach its service");
                }
            }
        }
    }
}

/// The peer has taken this node's access away: whoever asks why a call failed is told, by whichever name it knows the peer.
pub(super) fn revoked(shared: &Shared, nodes: &[NodeId]) {
    let text = "the peer has taken this node off its access list";
    for node in nodes {
        let error = Error::new(Reason::AccessRevoked, Stage::Stream, text).with_node(*node);
        shared.peers.note(*node, error);
    }
}

/// What a client gets.
enum Prepared {
    /// A link on which its service is open; on the heap, for it is moved before it stays.
    Tunnel(Box<(Link, Entry)>),
    /// An answer to each of its requests; the head of the first.
    Requests(Vec<u8>),
}

/// What a client of the forward proxy asks for.
enum Asked {
    Connect(Request),
    Requests(Vec<u8>),
}

/// From a client to a link on which its service is open, or to its first request; `service_port` is set once it is known. Errors: what the client is answered; `Cancelled` when it has gone.
async fn prepare(
    shared: &Arc<Shared>,
    client: &LocalStream,
    from: Option<SocketAddr>,
    serves: &Serves,
    early: &mut Vec<u8>,
    service_port: &mut Option<u16>,
    speech: &mut Speech,
) -> Result<Prepared> {
    let work = async {
        let wanted = match serves {
            Serves::Static { node, service_port, .. } => {
                let (node, service_port) = (*node, *service_port);
                Wanted { node, service_port, address: None, priority: Priority::Interactive, patience: None }
            }
            Serves::Connect => {
                let Request { target, background, patience } = match read_request(shared, client, early, speech).await?
                {
                    Asked::Connect(request) => request,
                    Asked::Requests(head) => return Ok(Prepared::Requests(head)),
                };
                let priority = if background { Priority::Background } else { Priority::Interactive };
                let (node, service_port) = (target.node, target.service_port);
                Wanted { node, service_port, address: target.address, priority, patience }
            }
        };
        *service_port = Some(wanted.service_port);
        tokio::select! {
            result = connect(shared, &wanted, from) => result.map(|tunnel| Prepared::Tunnel(Box::new(tunnel))),
            () = gone(client, early, serves) => {
                Err(Error::new(Reason::Cancelled, Stage::Request, "the client went away").with_node(wanted.node))
            }
        }
    };
    tokio::select! {
        result = work => result,
        () = shared.lifecycle.reached(Phase::Draining) => {
            Err(Error::new(Reason::ProxyClosed, Stage::Request, "the proxy is closing"))
        }
    }
}

/// In which language a client is answered.
enum Speech {
    Http,
    /// What it is told of its refusal, if that is not the code of the reason.
    Socks(Option<Vec<u8>>),
}

impl Speech {
    fn established(&self) -> Vec<u8> {
        match self {
            Self::Http => ESTABLISHED.to_vec(),
            Self::Socks(_) => socks5::established(),
        }
    }

    fn refusal(&self, error: &Error) -> Vec<u8> {
        match self {
            Self::Http => answer(error),
            Self::Socks(Some(said)) => said.clone(),
            Self::Socks(None) => socks5::refusal(error),
        }
    }
}

/// Collects the first request and judges it, as far as that is done before anything is dialled; what came along behind it goes to `early`.
async fn read_request(
    shared: &Shared,
    client: &LocalStream,
    early: &mut Vec<u8>,
    speech: &mut Speech,
) -> Result<Asked> {
    let mut head = HeadBuffer::new(shared.limits.max_head);
    let deadline = Instant::now() + shared.limits.head_timeout;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        let read = read_some(shared, client, deadline, &mut buffer).await?;
        if head.is_empty() && matches!(read.first(), Some(&(socks5::VERSION | socks5::OLD_VERSION))) {
            *speech = Speech::Socks(None);
            let target = read_socks(shared, client, (deadline, read), early, speech).await?;
            return Ok(Asked::Connect(Request { target, background: false, patience: None }));
        }
        if let Some(length) = head.handle_bytes(read)? {
            let (head, rest) = head.split(length);
            early.extend_from_slice(rest);
            if !head.starts_with(b"CONNECT ") {
                return Ok(Asked::Requests(head.to_vec()));
            }
            return Request::parse(head, &shared.check).map(Asked::Connect);
        }
    }
}

/// Speaks SOCKS5 with a client until it has said what it wants.
async fn read_socks(
    shared: &Shared,
    client: &LocalStream,
    (deadline, first): (Instant, &[u8]),
    early: &mut Vec<u8>,
    speech: &mut Speech,
) -> Result<Target> {
    let mut handshake = Handshake::default();
    let (mut buffer, mut step) = (vec![0; READ_SIZE], handshake.handle_bytes(first));
    loop {
        let said = match step {
            Ok(Step::Connect(target, behind)) => {
                early.extend(behind);
                return target.parse();
            }
            Ok(Step::More) => {
                let read = read_some(shared, client, deadline, &mut buffer).await?;
                step = handshake.handle_bytes(read);
                continue;
            }
            Ok(Step::Say(text)) => Ok(text),
            Ok(Step::Judge(given)) if shared.check.is(&given) => Ok(handshake.admit()),
            Ok(Step::Judge(_)) => Err(Handshake::refuse()),
            Err(refusal) => Err(refusal),
        };
        let said = said.map_err(|refusal| {
            *speech = Speech::Socks(Some(refusal.said));
            refusal.error
        })?;
        client.write_all(said).await.map_err(|_| went_away())?;
        step = handshake.handle_bytes(&[]);
    }
}

/// Errors: the client has gone, or takes too long.
async fn read_some<'b>(
    shared: &Shared,
    client: &LocalStream,
    deadline: Instant,
    buffer: &'b mut [u8],
) -> Result<&'b [u8]> {
    match timeout_at(deadline, client.read(buffer)).await {
        Ok(Ok(n)) if n > 0 => Ok(buffer.get(..n).unwrap_or_default()),
        Ok(_) => Err(went_away()),
        Err(_) => Err(head_late(shared)),
    }
}

/// A client has not sent its head in time.
pub(super) fn head_late(shared: &Shared) -> Error {
    let seconds = shared.limits.head_timeout.as_secs_f32();
    let text = format!("the request head did not arrive within {seconds:.1} s");
    Error::new(Reason::HeadTimeout, Stage::Request, text)
}

fn went_away() -> Error {
    Error::new(Reason::Cancelled, Stage::Request, "the client went away")
}

/// What a client wants.
pub(super) struct Wanted {
    pub node: NodeId,
    pub service_port: u16,
    pub address: Option<String>,
    pub priority: Priority,
    /// How long a silence of the peer it outlives, in place of what holds for the node.
    pub patience: Option<Duration>,
}

/// Dials the node and opens the service; enters the connection, and remembers for the node how it went.
pub(super) async fn connect(shared: &Arc<Shared>, wanted: &Wanted, from: Option<SocketAddr>) -> Result<(Link, Entry)> {
    let result = dial_and_open(shared, wanted).await.map_err(|error| error.with_node(wanted.node));
    let result = result.inspect_err(|error| tracing::info!(%error, service = wanted.service_port, "dial failed"));
    shared.peers.note_dial(wanted.node, result.as_ref().err().cloned());
    let (link, stages) = result?;
    let entry = shared.registry.enter(ConnectionInfo {
        client_address: from.map(|from| from.to_string()),
        priority: wanted.priority,
        stages,
        ..ConnectionInfo::of(Role::Forward, &link, wanted.service_port, shared.peers.net.local_address())
    });
    entry.connection.steered_by(link.utp().helm());
    Ok((link, entry))
}

/// With how long each stage took.
async fn dial_and_open(shared: &Arc<Shared>, wanted: &Wanted) -> Result<(Link, Vec<(&'static str, Duration)>)> {
    let begin = Instant::now();
    let Wanted { node, service_port, ref address, priority, patience } = *wanted;
    let deadline = Instant::now() + shared.limits.dial_timeout;
    let mut link = shared.peers.dial(&Dial { node, address: address.clone(), priority, deadline }).await?;
    shared.met(&link);
    let dialled = begin.elapsed();
    if let Some(patience) = patience {
        link.utp().set_patience(patience);
    }
    link.open(&Open { service_port, node: Some(node), priority, ..Open::default() }, deadline).await?;
    let (utp, tls) = link.took();
    // a link that another dial has made took its time before this one began
    let find = dialled.saturating_sub(utp + tls);
    let open = begin.elapsed().saturating_sub(dialled);
    Ok((link, vec![("find", find), ("utp", utp.min(dialled)), ("tls", tls.min(dialled)), ("open", open)]))
}

/// Waits until the client has gone. What it sends meanwhile belongs to the tunnel; beyond so much of it the client waits.
async fn gone(client: &LocalStream, early: &mut Vec<u8>, serves: &Serves) {
    let mut buffer = vec![0; READ_SIZE];
    while early.len() < MAX_EARLY {
        match client.read(&mut buffer).await {
            // It has said all it has to say, and waits for what the service says. Who asked with CONNECT, said nothing behind it
            // and ends has given up: most wait for the answer before they say anything.
            Ok(0) if matches!(serves, Serves::Static { .. }) || !early.is_empty() => break,
            Ok(0) | Err(_) => return,
            Ok(n) => early.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    client.broken().await;
}

/// Writes the answer and ends in order. Closing a socket with unread bytes would reset it, and the client would lose the
/// answer (RFC 9112 section 9.6).
pub(super) async fn say(client: LocalStream, text: &[u8]) -> std::io::Result<()> {
    client.write_all(text).await?;
    client.shutdown_write()?;
    client.discard(MAX_EARLY).await?;
    client.finish();
    Ok(())
}

/// Clients beyond `max_clients` that are told so; beyond these they wait in the listener's backlog.
pub(super) const REFUSAL_PLACES: usize = 64;
/// Bytes taken from a client before it has its answer.
const MAX_EARLY: usize = 64 << 10;
const READ_SIZE: usize = 4 << 10;
/// How long a client may take to read its refusal.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(2);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// 10,000 idle tunnels are a goal: what a tunnel's task weighs counts.
    #[test]
    fn the_task_of_a_tunnel_is_small() {
        let size = size_of_future(handle_client);
        assert!(size < 6 << 10, "{size} bytes");
    }
}
