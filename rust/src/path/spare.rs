//! Which remote goes first when room is needed.

use std::collections::BTreeSet;

use crate::addr::RemoteId;
use crate::time::Time;

/// Remotes that may be evicted, by the time they were last heard. Being heard does not touch the queue (that would cost on the
/// data path): the times in it are lower bounds, corrected when somebody has to go.
#[derive(Debug, Default)]
pub(super) struct Spares {
    queue: BTreeSet<(Time, RemoteId)>,
}

impl Spares {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// `filed` is kept by the remote.
    pub(super) fn insert(&mut self, filed: &mut Option<Time>, heard: Time, remote: RemoteId) {
        self.remove(filed, remote);
        self.queue.insert((heard, remote));
        *filed = Some(heard);
    }

    pub(super) fn remove(&mut self, filed: &mut Option<Time>, remote: RemoteId) {
        if let Some(heard) = filed.take() {
            self.queue.remove(&(heard, remote));
        }
    }

    /// The longest unheard, if its time is up to date; otherwise the caller files it anew and asks again. Each such round
    /// was paid for by a packet that came in since.
    pub(super) fn first(&self) -> Option<(Time, RemoteId)> {
        self.queue.first().copied()
    }
}
