//! Who may use the services: the access list now, and what its changes mean for those who are connected.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::JoinSet;

use super::asking::{ask_now, Answered, Asking};
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
    /// The last list that was to end what it does not allow.
    cutting: AtomicU64,
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
        Self {
            allow: RwLock::new(allow),
            list: AtomicU64::new(0),
            cutting: AtomicU64::new(0),
            asking: Asking::default(),
        }
    }

    pub fn now(&self) -> Option<Allow> {
        self.allow.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the new list.
    fn replace(&self, allow: Allow, cut: bool) -> u64 {
        let mut held = self.allow.write().unwrap_or_else(PoisonError::into_inner);
        *held = Some(allow);
        let list = self.list.fetch_add(1, Ordering::SeqCst) + 1;
        if cut {
            self.cutting.store(list, Ordering::SeqCst);
        }
        list
    }

    /// Whether a later list than this one goes through what stands.
    fn is_superseded(&self, list: u64) -> bool {
        self.cutting.load(Ordering::SeqCst) != list
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

    /// Whether a connection that stands may go on, by the list that counts when the answer comes.
    async fn may_stay(&self, request: &AccessRequest, patience: Duration) -> bool {
        let mut late = 0;
        loop {
            let list = self.list.load(Ordering::SeqCst);
            let answered = match self.now() {
                None => Answered::Denied,
                Some(Allow::Anyone) => Answered::Allowed,
                Some(Allow::Nodes(nodes)) if request.all.iter().any(|node| nodes.contains(node)) => Answered::Allowed,
                Some(Allow::Nodes(_)) => Answered::Denied,
                Some(Allow::Ask(ask)) => ask_now(&*ask, request.clone(), patience).await,
            };
            match answered {
                Answered::Allowed => return true,
                _ if self.has_changed(list) => {}
                Answered::Denied => return false,
                // strangers may keep the function busy: that alone does not end what stands
                Answered::Late | Answered::Crowded => late += 1,
            }
            if late == LATE_ANSWERS {
                return false;
            }
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
        let list = self.access.replace(allow, cut);
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

/// Asks the new function about what stands, one question for all connections that it would be the same question about, a few
/// at a time. Ends when a newer list goes through them instead.
async fn ask_again(shared: Arc<Shared>, list: u64) {
    let mut questions: HashMap<_, Vec<_>> = HashMap::new();
    for connection in shared.streams_here() {
        let info = &connection.fixed;
        let about = (info.nodes.clone(), info.service_port, info.remote_address);
        questions.entry(about).or_default().push(connection);
    }
    let mut asked = JoinSet::new();
    for connections in questions.into_values() {
        if asked.len() == MAX_ASKED_AGAIN {
            asked.join_next().await;
        }
        if shared.access.is_superseded(list) {
            break;
        }
        asked.spawn(ask_about(shared.clone(), connections, list));
    }
    asked.join_all().await;
}

/// Asks one question; the connections that it is about end when the answer is no.
async fn ask_about(shared: Arc<Shared>, connections: Vec<Arc<Connection>>, list: u64) {
    let Some(info) = connections.first().map(|connection| &connection.fixed) else { return };
    let request = AccessRequest {
        node: info.node,
        all: info.nodes.clone(),
        service_port: info.service_port,
        remote_address: info.remote_address,
    };
    let stays = shared.access.may_stay(&request, shared.limits.open_timeout).await;
    if !stays && !shared.access.is_superseded(list) {
        connections.iter().for_each(revoke);
    }
}

/// Questions under way at once about what stands.
const MAX_ASKED_AGAIN: usize = 16;
/// A function that does not answer in time so often has said no.
const LATE_ANSWERS: u32 = 3;

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
