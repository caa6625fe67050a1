//! What is known of other nodes: addresses that the program named, current names, last errors.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

use super::LastDial;
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::check_address;

/// Bounded in every direction.
#[derive(Debug)]
pub(super) struct Table {
    peers: HashMap<NodeId, Vec<String>>,
    errors: Recent<Error>,
    /// How the last dial of each ended.
    dials: Recent<LastDial>,
    /// The last sign of life of those who were lost.
    heard: Recent<Instant>,
    /// Nodes that were dialled with success.
    dialled: Recent<()>,
    /// Old name -> the key that the node uses now, learned from its chain.
    leaves: Recent<NodeId>,
    /// Who was let in, by the key it uses.
    welcomes: Recent<()>,
    max_peers: usize,
    max_addresses: usize,
}

impl Table {
    pub fn new(max_peers: usize, max_addresses: usize) -> Self {
        Self {
            peers: HashMap::new(),
            errors: Recent::new(MAX_RECENT),
            dials: Recent::new(MAX_RECENT),
            heard: Recent::new(MAX_RECENT),
            dialled: Recent::new(MAX_RECENT),
            leaves: Recent::new(MAX_RECENT),
            welcomes: Recent::new(MAX_RECENT),
            max_peers,
            max_addresses,
        }
    }

    /// Adds a peer, or replaces its addresses.
    pub fn add(&mut self, node: NodeId, mut addresses: Vec<String>) -> Result<()> {
        let invalid = |text: String| Error::new(Reason::InvalidArgument, Stage::Setup, text).with_node(node);
        for address in &addresses {
            check_address(address).map_err(invalid)?;
        }
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        if addresses.len() > self.max_addresses {
            let text = format!("{} addresses, at most {} are kept for a peer", addresses.len(), self.max_addresses);
            return Err(invalid(text));
        }
        if self.peers.len() >= self.max_peers && !self.peers.contains_key(&node) {
            return Err(invalid(format!("{} peers are known, the most there may be", self.peers.len())));
        }
        self.peers.insert(node, addresses);
        Ok(())
    }

    pub fn remove(&mut self, node: &NodeId) {
        self.peers.remove(node);
        self.errors.remove(node);
        self.dials.remove(node);
        self.heard.remove(node);
        self.leaves.remove(node);
        self.dialled.remove(node);
    }

    pub fn peers(&self) -> Vec<(NodeId, Vec<String>)> {
        let mut all: Vec<_> = self.peers.iter().map(|(node, addresses)| (*node, addresses.clone())).collect();
        all.sort_unstable();
        all
    }

    /// The addresses that the program named for a node; none when it named none.
    pub fn addresses(&self, node: &NodeId) -> Vec<String> {
        self.peers.get(node).cloned().unwrap_or_default()
    }

    /// Whether the program named this node.
    pub fn is_named(&self, node: &NodeId) -> bool {
        self.peers.contains_key(node)
    }

    /// The node that was wanted has proven itself under this key.
    pub fn note_dialled(&mut self, wanted: NodeId, leaf: NodeId) {
        self.dialled.insert(wanted, ());
        self.dialled.insert(leaf, ());
    }

    pub fn has_dialled(&self, node: &NodeId) -> bool {
        self.dialled.entries.contains_key(node)
    }

    pub fn note(&mut self, node: NodeId, error: Option<Error>) {
        match error {
            Some(error) => self.errors.insert(node, error),
            None => self.errors.remove(&node),
        }
    }

    /// A dial of the node has ended.
    pub fn note_dial(&mut self, node: NodeId, dial: LastDial) {
        self.note(node, dial.error.clone());
        self.dials.insert(node, dial);
    }

    pub fn last_dial(&self, node: &NodeId) -> Option<LastDial> {
        self.dials.entries.get(node).cloned()
    }

    /// The node was lost; that was its last sign of life.
    pub fn note_heard(&mut self, node: NodeId, at: Instant) {
        self.heard.insert(node, at);
    }

    pub fn heard(&self, node: &NodeId) -> Option<Instant> {
        self.heard.entries.get(node).copied()
    }

    pub fn last_error(&self, node: &NodeId) -> Option<Error> {
        self.errors.entries.get(node).cloned()
    }

    /// Remembers which key now stands for `names`. They are to be names that this node has a use for, not all that a peer shows:
    /// a chain of sixteen costs a stranger nothing, and would push out what is needed.
    pub fn learn_leaf(&mut self, leaf: NodeId, names: &[NodeId]) {
        for node in names.iter().filter(|node| **node != leaf) {
            self.leaves.insert(*node, leaf);
        }
    }

    /// The same for what a peer has proven: `all` its names, `wanted` the one by which it was looked for.
    pub fn learn_of(&mut self, leaf: NodeId, all: &[NodeId], wanted: Option<&NodeId>) {
        let mut names: Vec<_> =
            all.iter().copied().filter(|name| self.is_named(name) || self.has_dialled(name)).collect();
        names.extend(wanted);
        self.learn_leaf(leaf, &names);
    }

    /// Remembers that the node was let in.
    pub fn welcome(&mut self, leaf: NodeId) {
        self.welcomes.insert(leaf, ());
    }

    pub fn is_welcome(&self, leaf: &NodeId) -> bool {
        self.welcomes.entries.contains_key(leaf)
    }

    pub fn forget_welcomes(&mut self) {
        self.welcomes = Recent::new(MAX_RECENT);
    }

    /// The key that a node uses now, as far as is known.
    pub fn leaf(&self, node: &NodeId) -> NodeId {
        self.leaves.entries.get(node).copied().unwrap_or(*node)
    }
}

/// A map that forgets what was inserted longest ago.
#[derive(Debug)]
struct Recent<T> {
    entries: HashMap<NodeId, T>,
    order: VecDeque<NodeId>,
    max: usize,
}

impl<T> Recent<T> {
    fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), order: VecDeque::new(), max }
    }

    fn insert(&mut self, node: NodeId, value: T) {
        if self.entries.insert(node, value).is_some() {
            return;
        }
        self.order.push_back(node);
        while self.order.len() > self.max {
            if let Some(oldest) = self.order.pop_front() {
                self.entries.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, node: &NodeId) {
        if self.entries.remove(node).is_some() {
            self.order.retain(|other| other != node);
        }
    }
}

/// Last errors, old names and dialled nodes kept.
const MAX_RECENT: usize = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8) -> NodeId {
        NodeId::from_public_key([n; 32])
    }

    #[test]
    fn addresses_are_checked_and_limited() {
        let mut table = Table::new(1, 2);
        let add =
            |table: &mut Table, n, texts: &[&str]| table.add(node(n), texts.iter().map(|t| t.to_string()).collect());
        assert!(add(&mut table, 1, &["nonsense"]).is_err());
        assert!(add(&mut table, 1, &["a:1", "b:1", "c:1"]).is_err());
        assert!(add(&mut table, 1, &["a:1", "a:1", "[::1]:5"]).is_ok());
        assert_eq!(table.addresses(&node(1)), ["a:1", "[::1]:5"]);
        assert_eq!(add(&mut table, 2, &[]).unwrap_err().reason, Reason::InvalidArgument);
        assert!(add(&mut table, 1, &["b:1"]).is_ok(), "a known one can always be replaced");
        table.remove(&node(1));
        assert!(table.peers().is_empty() && table.addresses(&node(1)).is_empty());
    }

    #[test]
    fn errors_are_kept_until_a_success_and_never_too_many() {
        let mut table = Table::new(1, 1);
        let error = Error::new(Reason::PunchTimeout, Stage::Punch, "");
        table.note(node(1), Some(error.clone()));
        assert_eq!(table.last_error(&node(1)), Some(error.clone()));
        table.note(node(1), None);
        assert_eq!(table.last_error(&node(1)), None);
        let dial = |error: Option<&Error>| LastDial { at: Instant::now(), error: error.cloned() };
        table.note_dial(node(1), dial(Some(&error)));
        assert_eq!(table.last_error(&node(1)), Some(error.clone()));
        table.note_dial(node(1), dial(None));
        assert_eq!((table.last_error(&node(1)), table.last_dial(&node(1)).unwrap().error), (None, None));
        table.errors.max = 2;
        (1..=3).for_each(|n| table.note(node(n), Some(error.clone())));
        assert_eq!(table.last_error(&node(1)), None);
        assert_eq!((table.errors.entries.len(), table.errors.order.len()), (2, 2));
    }

    /// A chain of sixteen names costs a stranger nothing. What is learned is what was dialled, or is named by the program.
    #[test]
    fn names_that_a_stranger_shows_push_out_nothing() {
        let mut table = Table::new(10, 1);
        table.add(node(1), vec![]).unwrap();
        table.learn_leaf(node(2), &[node(1)]);
        let fresh = |n: u32| NodeId::from_public_key([n.to_be_bytes(); 8].concat().try_into().unwrap());
        for n in 0..10_000 {
            let all: Vec<_> = (0..16).map(|m| fresh(n * 16 + m + 1)).collect();
            table.learn_of(all[0], &all, None);
        }
        assert_eq!(table.leaf(&node(1)), node(2));
        assert_eq!(table.leaves.entries.len(), 1);
        // a name that the program has told, and one that was looked for
        table.learn_of(node(4), &[node(4), node(3), node(1)], Some(&node(3)));
        assert_eq!((table.leaf(&node(1)), table.leaf(&node(3))), (node(4), node(4)));
    }

    #[test]
    fn welcomes_are_bounded_and_can_be_forgotten() {
        let mut table = Table::new(1, 1);
        table.welcome(node(1));
        assert!(table.is_welcome(&node(1)) && !table.is_welcome(&node(2)));
        table.welcomes.max = 2;
        (2..=3).for_each(|n| table.welcome(node(n)));
        assert!(!table.is_welcome(&node(1)) && table.is_welcome(&node(3)));
        table.forget_welcomes();
        assert!(!table.is_welcome(&node(3)));
    }

    #[test]
    fn only_who_was_named_or_dialled_is_known() {
        let mut table = Table::new(1, 1);
        table.learn_leaf(node(2), &[node(2), node(1)]);
        assert!(!table.is_named(&node(2)) && !table.has_dialled(&node(2)), "it has proven its key, and no more");
        table.note_dialled(node(1), node(2));
        assert!(table.has_dialled(&node(1)) && table.has_dialled(&node(2)) && !table.is_named(&node(1)));
        table.remove(&node(1));
        assert!(!table.has_dialled(&node(1)));
        table.dialled.max = 2;
        (3..9).for_each(|n| table.note_dialled(node(n), node(n)));
        assert_eq!((table.dialled.entries.len(), table.dialled.order.len()), (2, 2));
    }

    #[test]
    fn an_old_name_leads_to_the_key_in_use() {
        let mut table = Table::new(1, 1);
        table.learn_leaf(node(2), &[node(2), node(1)]);
        assert_eq!((table.leaf(&node(1)), table.leaf(&node(2))), (node(2), node(2)));
        table.learn_leaf(node(3), &[node(3), node(2), node(1)]);
        assert_eq!((table.leaf(&node(1)), table.leaf(&node(2))), (node(3), node(3)));
    }
}
