//! Which remote goes first when room is needed.

use std::collections::BTreeSet;

use crate::addr::RemoteId;
use crate::time::Time;

/// Who gives way first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Not authenticated.
    Stranger,
    /// A node that nobody needs at the moment.
    Peer,
}

/// Where a remote stands in [`Spares`]; the remote keeps it.
pub(super) type Filed = (Class, Time, RemoteId);

/// Remotes that may be evicted, by class and by the time they were last heard. Being heard does not touch the queue
/// (that would cost on the data path): the times in it are lower bounds, corrected when somebody has to go.
#[derive(Debug, Default)]
pub(super) struct Spares {
    queue: BTreeSet<Filed>,
    strangers: usize,
}

impl Spares {
    pub(super) fn strangers(&self) -> usize {
        self.strangers
    }

    pub(super) fn insert(&mut self, filed: &mut Option<Filed>, place: Filed) {
        self.remove(filed);
        self.queue.insert(place);
        self.strangers += usize::from(place.0 == Class::Stranger);
        *filed = Some(place);
    }

    pub(super) fn remove(&mut self, filed: &mut Option<Filed>) {
        if let Some(place) = filed.take().filter(|place| self.queue.remove(place)) {
            self.strangers -= usize::from(place.0 == Class::Stranger);
        }
    }

    /// The longest unheard stranger, or peer when there is no stranger, if its time is up to date; otherwise the
    /// caller files it anew and asks again. Each such round was paid for by a packet that came in since.
    pub(super) fn first(&self) -> Option<Filed> {
        self.queue.first().copied()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}
