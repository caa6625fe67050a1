//! The first dial to a node, shared by all who want it: nothing is punched twice (design, decision 5).

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout_at;

use super::dial::Dial;
use super::link::Link;
use super::Peers;
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};

/// Who wants the same: the node, and the address that the request itself named.
pub(super) type Key = (NodeId, Option<String>);

/// A first dial under way. It runs in a task of its own, which ends when the last of those who wait for it has gone.
pub(super) struct Contact {
    key: Key,
    peers: Weak<Peers>,
    outcome: watch::Receiver<Option<Result<(), Error>>>,
    link: Slot,
    task: AbortHandle,
}

type Slot = Arc<Mutex<Option<Link>>>;

impl Contact {
    /// Waits for the dial that is under way to this node, or starts it. `Some` for the one who gets the link itself; the
    /// others find the path proven and dial over it.
    pub async fn join(peers: &Arc<Peers>, dial: &Dial) -> Result<Option<Link>> {
        let contact = Self::find_or_start(peers, dial);
        let outcome = contact.wait(dial).await;
        outcome.map(|()| contact.link.lock().unwrap_or_else(PoisonError::into_inner).take())
    }

    fn find_or_start(peers: &Arc<Peers>, dial: &Dial) -> Arc<Self> {
        let key = (dial.node, dial.address.clone());
        let mut contacts = peers.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contact) = contacts.get(&key).and_then(Weak::upgrade) {
            return contact;
        }
        let (sender, outcome) = watch::channel(None);
        let link = Slot::default();
        let task = {
            let (peers, slot, key, dial) = (peers.clone(), link.clone(), key.clone(), dial.clone());
            tokio::spawn(async move {
                let result = peers.race(&dial).await;
                // Who comes from here on starts anew, or finds the path proven.
                peers.forget_contact(&key, None);
                let result = result.map(|link| {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(link);
                });
                let _ = sender.send(Some(result));
            })
        };
        let task = task.abort_handle();
        let contact = Arc::new(Self { key: key.clone(), peers: Arc::downgrade(peers), outcome, link, task });
        contacts.insert(key, Arc::downgrade(&contact));
        contact
    }

    async fn wait(&self, dial: &Dial) -> Result<()> {
        let mut outcome = self.outcome.clone();
        // The dial minds the deadline itself and knows better what went wrong: it gets a moment to say so.
        let done = timeout_at(dial.deadline + GRACE, outcome.wait_for(Option::is_some)).await;
        match done {
            Ok(Ok(result)) => result.clone().unwrap_or(Ok(())),
            Ok(Err(_)) => Err(Error::new(Reason::Internal, Stage::Punch, "the dial ended without a result")),
            Err(_) => {
                Err(Error::new(Reason::PunchTimeout, Stage::Punch, "no address has answered yet").with_node(dial.node))
            }
        }
    }
}

impl Drop for Contact {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(peers) = self.peers.upgrade() {
            peers.forget_contact(&self.key, Some(self));
        }
    }
}

impl Peers {
    /// Takes a contact out of the table; with `only`, not one that has taken its place.
    fn forget_contact(&self, key: &Key, only: Option<&Contact>) {
        let mut contacts = self.contacts.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |weak: &Weak<Contact>| only.is_none_or(|contact| std::ptr::eq(weak.as_ptr(), contact));
        if contacts.get(key).is_some_and(same) {
            contacts.remove(key);
        }
    }
}

const GRACE: Duration = Duration::from_millis(200);
