//! One deadline for each owner, in order.

use super::{MeetingId, PunchId};
use crate::addr::{RemoteId, Route};
use crate::time::Time;
use std::collections::BTreeSet;

/// Whose deadline it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Remote(RemoteId),
    Probe(Route),
    Punch(PunchId),
    Meeting(MeetingId),
}

/// A sorted set and not a heap: each owner has at most one entry, so nothing stale piles up. The owner keeps the time
/// under which it is filed (`filed`), and on the data path a deadline that moves further away is left alone: it is
/// corrected when it fires.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Time, Owner)>,
    /// How often the queue was changed: what costs more than constant time.
    #[cfg(test)]
    pub(super) changes: usize,
}

impl Timers {
    pub(super) fn next(&self) -> Option<Time> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// The next owner whose deadline has passed; it has no entry any more.
    pub(super) fn pop_due(&mut self, now: Time) -> Option<Owner> {
        if self.next()? > now {
            return None;
        }
        self.queue.pop_first().map(|(_, owner)| owner)
    }

    /// Files `owner` under `at`, wherever it was filed before.
    pub(super) fn set(&mut self, filed: &mut Option<Time>, owner: Owner, at: Option<Time>) {
        if *filed == at {
            return;
        }
        #[cfg(test)]
        {
            self.changes += 1;
        }
        if let Some(old) = filed.take() {
            self.queue.remove(&(old, owner));
        }
        if let Some(at) = at {
            self.queue.insert((at, owner));
        }
        *filed = at;
    }

    /// The same, unless the owner is filed for an earlier time anyway. Cheap when nothing has to be done.
    pub(super) fn advance(&mut self, filed: &mut Option<Time>, owner: Owner, at: Option<Time>) {
        if at.is_some_and(|at| filed.is_none_or(|filed| at < filed)) {
            self.set(filed, owner, at);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}
