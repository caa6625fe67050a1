//! What happened when two nodes were to meet, kept so that it can be explained.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::addr::NodeId;
use crate::error::Error;
use crate::path::{Candidate, MeetingReport, NatProfile, Outlook};

/// Which side of a meeting this node was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Dialler,
    Invited,
}

/// One meeting.
#[derive(Clone, Debug)]
pub struct Report {
    pub when: SystemTime,
    pub role: Role,
    /// Until the path was there, or it was given up; `None` while it goes on.
    pub took: Option<Duration>,
    pub met: bool,
    /// The path that they met on goes over a relay.
    pub relayed: bool,
    /// One side wants no relay.
    pub direct_only: bool,
    pub outlook: Option<Outlook>,
    pub own_profile: Option<NatProfile>,
    pub peer_profile: Option<NatProfile>,
    pub own_candidates: Vec<Candidate>,
    pub peer_candidates: Vec<Candidate>,
    pub tried: Vec<SocketAddr>,
    pub pings: MeetingReport,
    pub error: Option<Error>,
}

impl Report {
    pub fn new(role: Role, when: SystemTime) -> Self {
        Self {
            when,
            role,
            took: None,
            met: false,
            relayed: false,
            direct_only: false,
            outlook: None,
            own_profile: None,
            peer_profile: None,
            own_candidates: Vec::new(),
            peer_candidates: Vec::new(),
            tried: Vec::new(),
            pings: MeetingReport::default(),
            error: None,
        }
    }
}

/// The last report of each node; the oldest go.
#[derive(Debug, Default)]
pub(super) struct Reports {
    by_node: HashMap<NodeId, Report>,
    order: VecDeque<NodeId>,
}

impl Reports {
    pub fn insert(&mut self, node: NodeId, report: Report, most: usize) {
        if self.by_node.insert(node, report).is_none() {
            self.order.push_back(node);
        }
        while self.order.len() > most {
            if let Some(oldest) = self.order.pop_front() {
                self.by_node.remove(&oldest);
            }
        }
    }

    pub fn find(&self, node: &NodeId) -> Option<Report> {
        self.by_node.get(node).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut reports = Reports::default();
        let node = |n| NodeId::from_public_key([n; 32]);
        for n in 0..10 {
            reports.insert(node(n), Report::new(Role::Dialler, SystemTime::UNIX_EPOCH), 3);
            reports.insert(node(n), Report::new(Role::Invited, SystemTime::UNIX_EPOCH), 3);
        }
        assert_eq!((reports.by_node.len(), reports.order.len()), (3, 3));
        assert!(reports.find(&node(6)).is_none());
        assert_eq!(reports.find(&node(9)).map(|report| report.role), Some(Role::Invited));
    }
}
