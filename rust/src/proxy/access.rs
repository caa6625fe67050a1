//! Who may use the services: the access list now, and what its changes mean for those who are connected.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::asking::{Answered, Asking};
use super::registry::{Connection, Role};
use super::settings::{AccessRequest, Allow};
use super::Shared;
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::UtpStream;
use crate::peer::Peers;

/// The access list of a proxy.
pub(super) struct Access {
    allow: RwLock<Option<Allow>>,
    /// How often it was replaced.
    list: AtomicU64,
    asking: Asking,
}

/// What a check has found.
#[derive(Debug)]
pub(super) struct Admitted {
    /// The names that let the node in, or all that may have: what its streams count for.
    pub names: Vec<NodeId>,
    /// The list has these names in it: they are not made for the occasion.
    pub listed: bool,
    /// The list that was asked.
    pub list: u64,
}

impl Access {
    pub fn new(allow: Option<Allow>) -> Self {
        Self { allow: RwLock::new(allow), list: AtomicU64::new(0), asking: Asking::default() }
    }

    pub fn now(&self) -> Option<Allow> {
        self.allow.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the new list.
    fn replace(&self, allow: Allow) -> u64 {
        let mut held = self.allow.write().unwrap_or_else(PoisonError::into_inner);
        *held = Some(allow);
        self.list.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether another list counts than the one of this number.
    pub fn has_changed(&self, list: u64) -> bool {
        self.list.load(Ordering::SeqCst) != list
    }

    /// Before anything else is told: a stranger does not learn which services there are. `patience` is for a function: until
    /// it is this node's turn, and until it answers.
    pub async fn check(&self, request: &AccessRequest, patience: Duration) -> Result<Admitted> {
        let denied = |text: &str| Err(Error::new(Reason::AccessDenied, Stage::Open, text));
        // before the list is looked at: what is asked below may be an older one then, never a newer one
        let list = self.list.load(Ordering::SeqCst);
        let allow = self.now();
        let listed = matches!(allow, Some(Allow::Nodes(_)));
        let names = match allow {
            None => Vec::new(),
            // a new key is as good as an old one here: there is nothing better to count by
            Some(Allow::Anyone) => vec![request.node],
            Some(Allow::Nodes(nodes)) => request.all.iter().copied().filter(|node| nodes.contains(node)).collect(),
            Some(Allow::Ask(ask)) => match self.asking.ask(&*ask, request.clone(), patience).await {
                Answered::Allowed => request.all.clone(),
                Answered::Denied => Vec::new(),
                Answered::Late => return denied("the access list did not answer in time"),
                Answered::Crowded => {
                    let text = "too many questions of this node wait for the access list";
                    return Err(Error::new(Reason::PeerBusy, Stage::Open, text));
                }
            },
        };
        match names.is_empty() {
            true => denied("not on the access list"),
            false => Ok(Admitted { names, listed, list }),
        }
    }

    /// Whether whoever connects has a key with us and has been let in before, or would be: its place for a handshake is one
    /// of those that strangers cannot have.
    pub fn is_known(&self, peers: &Peers, stream: &UtpStream) -> bool {
        let Some(node) = stream.known_node() else { return false };
        match &*self.allow.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Allow::Anyone) => true,
            Some(Allow::Nodes(nodes)) => nodes.contains(&node) || peers.is_welcome(&node),
            Some(Allow::Ask(_)) => peers.is_welcome(&node),
            None => peers.is_welcome(&node),
        }
    }
}

impl Shared {
    /// Puts another list in place. With `cut`, whoever is not on it loses the streams that stand; a function is asked about each.
    pub(super) fn replace_allow(self: &Arc<Self>, allow: Allow, cut: bool) {
        let asks = matches!(allow, Allow::Ask(_));
        let list = self.access.replace(allow);
        self.peers.forget_welcomes();
        if !cut {
            return;
        }
        match asks {
            false => self.streams_here().iter().filter(|connection| !self.still_listed(connection)).for_each(revoke),
            true => {
                let _runtime = self.runtime.enter();
                self.lifecycle.spawn_connection(ask_again(self.clone(), list));
            }
        }
    }

    /// Ends every live connection with a node, by any of its names; how many there were.
    pub(super) fn disconnect(&self, node: &NodeId) -> usize {
        let mut all = self.registry.connections();
        all.retain(|connection| connection.fixed.nodes.contains(node));
        for connection in &all {
            match connection.fixed.role {
                Role::Reverse => revoke(connection),
                Role::Forward => connection.cut(Reason::Cancelled),
            }
        }
        all.len()
    }

    fn streams_here(&self) -> Vec<Arc<Connection>> {
        let mut all = self.registry.connections();
        all.retain(|connection| connection.fixed.role == Role::Reverse);
        all
    }

    fn still_listed(&self, connection: &Connection) -> bool {
        match self.access.now() {
            Some(Allow::Nodes(nodes)) => connection.fixed.nodes.iter().any(|node| nodes.contains(node)),
            Some(Allow::Anyone | Allow::Ask(_)) => true,
            None => false,
        }
    }
}

fn revoke(connection: &Arc<Connection>) {
    let (node, service) = (connection.fixed.node, connection.fixed.service_port);
    tracing::info!(%node, service, "access revoked: the connection is ended");
    connection.cut(Reason::AccessRevoked);
}

/// Asks the new function about each connection that stands, one after the other, until there is a newer list.
async fn ask_again(shared: Arc<Shared>, list: u64) {
    for connection in shared.streams_here() {
        let info = &connection.fixed;
        let request = AccessRequest {
            node: info.node,
            all: info.nodes.clone(),
            service_port: info.service_port,
            remote_address: info.remote_address,
        };
        loop {
            if shared.access.has_changed(list) || connection.info().closed.is_some() {
                break;
            }
            match shared.access.check(&request, shared.limits.open_timeout).await {
                // a crowd of strangers must not end what stands
                Err(error) if error.reason == Reason::PeerBusy => tokio::time::sleep(CROWD_PAUSE).await,
                Err(_) if !shared.access.has_changed(list) => {
                    revoke(&connection);
                    break;
                }
                _ => break,
            }
        }
    }
}

const CROWD_PAUSE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn request(names: &[u8]) -> AccessRequest {
        let all: Vec<_> = names.iter().map(|n| NodeId::from_public_key([*n; 32])).collect();
        AccessRequest { node: all[0], all, service_port: 1, remote_address: "192.0.2.1:1".parse().unwrap() }
    }

    async fn names(access: &Access, of: &[u8]) -> Result<Vec<NodeId>> {
        access.check(&request(of), Duration::from_secs(60)).await.map(|admitted| admitted.names)
    }

    #[tokio::test]
    async fn without_an_access_list_nobody_is_let_in() {
        let error = names(&Access::new(None), &[1, 2]).await.unwrap_err();
        assert_eq!(error.reason, Reason::AccessDenied);
    }

    #[tokio::test]
    async fn what_counts_is_the_name_that_let_a_node_in() {
        let node = |n| NodeId::from_public_key([n; 32]);
        let listed = Access::new(Some(Allow::Nodes(HashSet::from([node(2), node(9)]))));
        assert_eq!(names(&listed, &[7, 2, 3]).await.unwrap(), [node(2)]);
        assert_eq!(names(&listed, &[7, 3]).await.unwrap_err().reason, Reason::AccessDenied);
        assert_eq!(names(&Access::new(Some(Allow::Anyone)), &[7, 2]).await.unwrap(), [node(7)]);
        let asked = Access::new(Some(Allow::Ask(Arc::new(|_| Box::pin(async { true })))));
        assert_eq!(names(&asked, &[7, 2]).await.unwrap(), [node(7), node(2)]);
    }
}
