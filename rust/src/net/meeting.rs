//! Meetings as the layers above start and watch them (see [`crate::path::Plan`]).

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;

use super::Net;
use crate::addr::{NodeId, PingKeys, Via};
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{Draft, MeetingId, MeetingReport};

/// The path that a meeting has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Met {
    pub address: SocketAddr,
    pub via: Via,
    /// A relay carries it.
    pub relayed: bool,
    pub rtt: Duration,
    /// Our own address as the peer saw it.
    pub observed: SocketAddr,
    /// Pings until then.
    pub pings: u32,
}

/// How far a meeting is.
#[derive(Clone, Debug, Default)]
pub struct MeetingState {
    pub met: Option<Met>,
    pub ended: Option<MeetingReport>,
}

/// A meeting under way. Dropping it ends it: nobody waits for it any more.
#[derive(Debug)]
pub struct Meeting {
    net: Net,
    id: MeetingId,
    state: watch::Receiver<MeetingState>,
    kept: bool,
}

impl Net {
    /// Tries what the draft says, with the sockets that it wants: those that other searches have opened serve this one as well, and where
    /// the system gives no more it makes do with fewer, or goes without a search. Errors: `TooManyConnections`, `ProxyClosed`.
    pub fn start_meeting(&self, node: NodeId, keys: PingKeys, draft: Draft, timeout: Duration) -> Result<Meeting> {
        let inner = &self.inner;
        inner.check_open()?;
        let wanted = draft.sockets.map_or(0, |(count, ..)| count);
        if wanted > 0 {
            inner.new_sockets().open_up_to(wanted, inner.local_address, &inner.socket_config);
        }
        let (sender, state) = watch::channel(MeetingState::default());
        let id = {
            let mut core = inner.core();
            // under the lock, so that none of them is closed before the meeting has it
            let vias = inner.new_sockets().share(wanted);
            let id = core.paths.start_meeting(inner.clock.now(), node, keys, draft.with_sockets(vias), timeout);
            let full = || Error::new(Reason::TooManyConnections, Stage::Punch, "too many meetings at once");
            let id = id.ok_or_else(full)?;
            // under the lock, so that no event can come before somebody listens
            inner.meetings().insert(id, sender);
            id
        };
        inner.doorbell.ring_plain();
        Ok(Meeting { net: self.clone(), id, state, kept: false })
    }
}

impl Meeting {
    /// Waits for the path. Errors: `PunchTimeout`, when the meeting ended without one.
    pub async fn met(&mut self) -> Result<Met> {
        let state = self.state.wait_for(|state| state.met.is_some() || state.ended.is_some()).await;
        match state.map(|state| state.met) {
            Ok(Some(met)) => Ok(met),
            Ok(None) => Err(Error::new(Reason::PunchTimeout, Stage::Punch, "no address of the peer answered")),
            Err(_) => Err(self.net.inner.closed_error()),
        }
    }

    /// Waits for the end, and what there is to tell then.
    pub async fn ended(&mut self) -> MeetingReport {
        let state = self.state.wait_for(|state| state.ended.is_some()).await;
        state.ok().and_then(|state| state.ended.clone()).unwrap_or_default()
    }

    /// Lets it go on by itself: until a moment after the two have met, or until its time is up.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if !self.kept {
            self.net.inner.core().paths.stop_meeting(self.net.inner.clock.now(), self.id);
            self.net.inner.doorbell.ring_plain();
        }
    }
}
