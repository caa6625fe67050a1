//! Streams to HTTP services that wait for the next request. A task minds each of them: it hears at once when the service ends it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::super::lifecycle::Phase;
use super::super::registry::Entry;
use super::super::Shared;
use crate::addr::NodeId;
use crate::error::Reason;
use crate::peer::Link;

/// A stream to a service.
#[derive(Debug)]
pub struct Upstream {
    pub link: Link,
    pub entry: Entry,
    /// Requests that it has served.
    pub served: u64,
}

impl Upstream {
    /// Ends it in order, in a task of its own.
    pub fn end(self, shared: &Arc<Shared>) {
        let linger = shared.limits.linger;
        shared.lifecycle.spawn_connection(async move {
            let Self { mut link, entry, .. } = self;
            let reason = match link.finish(linger).await {
                Ok(()) => Reason::Finished,
                Err(_) => Reason::PeerReset,
            };
            entry.finish(reason);
        });
    }

    /// Breaks it off, once the service has what was sent before.
    pub fn cut(self, shared: &Arc<Shared>, reason: Reason) {
        let linger = shared.limits.linger;
        shared.lifecycle.spawn_connection(async move {
            let Self { mut link, entry, .. } = self;
            link.delivered(linger).await;
            link.reset();
            entry.finish(reason);
        });
    }
}

/// Streams with the same are alike. All clients of a proxy have the same credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub node: NodeId,
    pub service_port: u16,
    pub address: Option<String>,
    pub background: bool,
    pub patience: Option<Duration>,
}

#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
}

#[derive(Debug)]
struct Idle {
    since: Instant,
    /// Its service has kept it once, and so does not end it with each answer.
    proven: bool,
    ask: oneshot::Sender<oneshot::Sender<Upstream>>,
}

impl Pool {
    /// A stream that has served its last request, the newest first; from now on it is that client's. `repeatable`: the request may be sent
    /// again if the service happens to end the stream meanwhile.
    pub async fn take(
        &self,
        key: &Key,
        from: Option<SocketAddr>,
        repeatable: bool,
        shared: &Shared,
    ) -> Option<Upstream> {
        loop {
            let (ask, settles) = {
                let mut idle = self.lock();
                let list = idle.get_mut(key)?;
                let sure = list.last().is_some_and(|last| last.since.elapsed() < shared.limits.sure_stream_time);
                if !repeatable && !sure {
                    return None;
                }
                let newest = list.pop();
                if list.is_empty() {
                    idle.remove(key);
                }
                let newest = newest?;
                let settles =
                    (!repeatable && !newest.proven).then(|| SETTLE_TIME.saturating_sub(newest.since.elapsed()));
                (newest.ask, settles)
            };
            if let Some(settles) = settles {
                sleep(settles).await;
            }
            let (give, given) = oneshot::channel();
            if ask.send(give).is_ok() {
                if let Ok(upstream) = given.await {
                    shared.registry.hand_over(&upstream.entry.connection, from);
                    return Some(upstream);
                }
            }
        }
    }

    /// Keeps a stream for the next request, or ends it where there are enough.
    pub fn keep(shared: &Arc<Shared>, key: Key, upstream: Upstream) {
        let (limits, pool) = (&shared.limits, &shared.pool);
        shared.registry.hand_over(&upstream.entry.connection, None);
        let (ask, asked) = oneshot::channel();
        let proven = upstream.served > 1;
        {
            let mut idle = pool.lock();
            let all: usize = idle.values().map(Vec::len).sum();
            let held = idle.get(&key).map_or(0, Vec::len);
            let draining = shared.lifecycle.phase() >= Phase::Draining;
            if draining || all >= limits.max_idle_streams || held >= limits.max_idle_streams_per_service {
                drop(idle);
                return upstream.end(shared);
            }
            idle.entry(key.clone()).or_default().push(Idle { since: Instant::now(), proven, ask });
        }
        let shared = shared.clone();
        shared.clone().lifecycle.spawn_connection(async move {
            wait(&shared, upstream, asked).await;
            shared.pool.forget(&key);
        });
    }

    /// Those whose tasks have ended.
    fn forget(&self, key: &Key) {
        let mut idle = self.lock();
        if let Some(list) = idle.get_mut(key) {
            list.retain(|one| !one.ask.is_closed());
            if list.is_empty() {
                idle.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Minds a stream until it is wanted, or not any more.
async fn wait(shared: &Arc<Shared>, mut upstream: Upstream, asked: oneshot::Receiver<oneshot::Sender<Upstream>>) {
    let connection = upstream.entry.connection.clone();
    let mut byte = [0];
    let wanted = tokio::select! {
        biased;
        reason = connection.was_cut() => {
            upstream.link.reset();
            return upstream.entry.finish(reason);
        }
        // the end, or what nobody has asked for: either way no answer of it is to be trusted
        _ = upstream.link.stream.read(&mut byte) => None,
        asked = asked => asked.ok(),
        () = sleep(shared.limits.idle_stream_timeout) => None,
        () = shared.lifecycle.reached(Phase::Draining) => None,
    };
    match wanted {
        None => upstream.end(shared),
        Some(give) => {
            if let Err(upstream) = give.send(upstream) {
                upstream.end(shared);
            }
        }
    }
}

/// Some servers end the connection behind their first answer and do not say so before: the end comes along with the answer. A request that
/// may not be sent twice waits so long for it, once a stream.
const SETTLE_TIME: Duration = Duration::from_millis(10);
