//! Local clients that name whole URLs: each request goes to the service that its URL names, over a stream that may have served others
//! before.

mod exchange;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{timeout, timeout_at, Instant};

use exchange::{exchange, Outcome};
pub(super) use pool::Pool;
use pool::{Key, Upstream};

use super::forward::{connect, head_late, revoked, say, Wanted, ANSWER_TIME};
use super::lifecycle::Phase;
use super::local::LocalStream;
use super::registry::Role;
use super::tunnel::carry;
use super::Shared;
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::{answer, HeadBuffer, Target};
use crate::http_forward::Request;
use crate::open::Priority;

/// Serves a client whose first request, of this head, is no CONNECT; `early` came along behind it.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    client: LocalStream,
    from: Option<SocketAddr>,
    head: Vec<u8>,
    early: Vec<u8>,
) {
    let mut session = Session { shared, client: &client, from, inbox: early };
    match session.run(head).await {
        End::Closed => client.finish_unread(LINGER_TIME).await,
        End::Gone => {}
        End::Refused { error, service_port, bare } => {
            shared.refused(Role::Forward, error.node, from, service_port, error.clone());
            let mut text = answer(&error);
            if bare {
                // the answer to HEAD has none, whatever its length says
                let end = text.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(text.len(), |at| at + 4);
                text.truncate(end);
            }
            let _ = timeout(ANSWER_TIME, say(client, &text)).await;
        }
        End::Switched(upstream) => {
            let early = std::mem::take(&mut session.inbox);
            let Upstream { link, entry, .. } = *upstream;
            let nodes = entry.connection.fixed.nodes.clone();
            if carry(client, link, early, entry, Role::Forward, &shared.limits).await == Reason::AccessRevoked {
                revoked(shared, &nodes);
            }
        }
    }
}

/// How the serving of a client ends.
enum End {
    /// In order.
    Closed,
    /// Broken off, so that nobody takes what it has for the whole.
    Gone,
    /// With an answer that says why.
    Refused { error: Error, service_port: Option<u16>, bare: bool },
    /// What follows is no HTTP any more.
    Switched(Box<Upstream>),
}

impl End {
    fn refused(error: Error) -> Self {
        Self::Refused { error, service_port: None, bare: false }
    }
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    client: &'a LocalStream,
    from: Option<SocketAddr>,
    /// What the client has sent and nobody has taken yet.
    inbox: Vec<u8>,
}

impl Session<'_> {
    async fn run(&mut self, mut head: Vec<u8>) -> End {
        loop {
            if let Err(end) = self.answer(&head).await {
                return end;
            }
            head = match self.next_head().await {
                Ok(Some(head)) => head,
                Ok(None) => return End::Closed,
                Err(error) => return End::refused(error),
            };
        }
    }

    /// One request and its answer. Errors: it was the last.
    async fn answer(&mut self, head: &[u8]) -> Result<(), End> {
        let (request, wanted) = judge(self.shared, head).map_err(End::refused)?;
        if request.ends_here {
            let text = b"HTTP/1.1 200 OK\r\nVia: 1.1 keynet\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            return Err(self.client.write_all(text).await.map_or(End::Gone, |()| End::Closed));
        }
        let refused = |error: Error| End::Refused {
            error: error.with_node(wanted.node),
            service_port: Some(wanted.service_port),
            bare: request.asked.is_head,
        };
        let key = Key::of(&wanted);
        let mut fresh = false;
        loop {
            let kept = match fresh {
                true => None,
                false => self.shared.pool.take(&key, self.from, request.repeatable, self.shared).await,
            };
            let reused = kept.is_some();
            let upstream = match kept {
                Some(upstream) => upstream,
                None => self.dial(&wanted).await?.map_err(refused)?,
            };
            let outcome = exchange(self.shared, self.client, upstream, &request, &mut self.inbox).await;
            return match outcome {
                Outcome::Done { client, upstream } => {
                    if let Some(upstream) = upstream {
                        Pool::keep(self.shared, key, upstream);
                    }
                    if client {
                        Ok(())
                    } else {
                        Err(End::Closed)
                    }
                }
                Outcome::Switched(upstream) => Err(End::Switched(Box::new(upstream))),
                // its service has ended it meanwhile
                Outcome::Failed(_) if reused && request.repeatable => {
                    fresh = true;
                    continue;
                }
                Outcome::Failed(error) => Err(refused(error)),
                Outcome::Gone => Err(End::Gone),
            };
        }
    }

    /// A new stream; the inner error is what the client is told.
    async fn dial(&self, wanted: &Wanted) -> Result<Result<Upstream>, End> {
        let dialled = tokio::select! {
            dialled = connect(self.shared, wanted, self.from) => dialled,
            _ = self.client.broken() => return Err(End::Gone),
            () = self.shared.lifecycle.reached(Phase::Draining) => {
                Err(Error::new(Reason::ProxyClosed, Stage::Request, "the proxy is closing"))
            }
        };
        Ok(dialled.map(|(link, mut entry)| {
            entry.open();
            Upstream { link, entry, served: 0 }
        }))
    }

    /// The head of the next request; `None`: there is none. Errors: what the client is told.
    async fn next_head(&mut self) -> Result<Option<Vec<u8>>> {
        let limits = &self.shared.limits;
        let mut head = HeadBuffer::new(limits.max_head);
        let mut buffer = std::mem::take(&mut self.inbox);
        let (mut deadline, mut begun) = (Instant::now() + limits.idle_client_timeout, false);
        loop {
            if let Some(length) = head.handle_bytes(&buffer)? {
                let (head, rest) = head.split(length);
                self.inbox.extend_from_slice(rest);
                return Ok(Some(head.to_vec()));
            }
            if !begun && !head.is_empty() {
                (deadline, begun) = (Instant::now() + limits.head_timeout, true);
            }
            buffer.resize(READ_SIZE, 0);
            let read = tokio::select! {
                read = timeout_at(deadline, self.client.read(&mut buffer)) => read,
                () = self.shared.lifecycle.reached(Phase::Draining) => return Ok(None),
            };
            match read {
                Ok(Ok(n)) if n > 0 => buffer.truncate(n),
                Err(_) if begun => return Err(head_late(self.shared)),
                Ok(_) | Err(_) => return Ok(None),
            }
        }
    }
}

/// What a head asks for. Errors: credentials are judged before the target, so that who lacks them learns nothing of it.
fn judge(shared: &Shared, head: &[u8]) -> Result<(Request, Wanted)> {
    let request = Request::parse(head)?;
    shared.check.check(request.credentials.iter().map(Vec::as_slice))?;
    let Target { node, service_port, address } = request.authority.parse()?;
    let priority = if request.background { Priority::Background } else { Priority::Interactive };
    let wanted = Wanted { node, service_port, address, priority, patience: request.patience };
    Ok((request, wanted))
}

impl Key {
    fn of(wanted: &Wanted) -> Self {
        let Wanted { node, service_port, address, priority, patience } = wanted;
        let (address, background) = (address.clone(), *priority == Priority::Background);
        Self { node: *node, service_port: *service_port, address, background, patience: *patience }
    }
}

const READ_SIZE: usize = 16 << 10;
/// How long a client may go on sending after it has its answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
