//! What the path table has to say, and who is told.

use std::sync::Arc;

use super::conn::Conn;
use super::core::{path_key, Core};
use super::driver::Driver;
use super::{Inner, Met, NetEvent, PathInfo};
use crate::error::{Error, Reason, Stage};
use crate::path::{PathEvent, Why};
use crate::time::Time;

impl Inner {
    /// Breaks connections without a word on the wire, for their peer is not there any more. Those that have ended in order stay so.
    pub(super) fn end(&self, conns: Vec<Arc<Conn>>, reason: Reason) {
        for conn in conns {
            let mut state = conn.lock();
            if state.utp.end().is_some() {
                continue;
            }
            state.fail(reason);
            let wakes = state.utp.take_wakes();
            state.wake(wakes);
            self.doorbell.ring(&conn, &mut state);
        }
    }
}

fn reason_of(why: Why) -> Reason {
    match why {
        Why::Silent => Reason::PeerLost,
        Why::Restarted => Reason::PeerRestarted,
        Why::Gone => Reason::PeerGone,
    }
}

impl Driver<'_> {
    pub(super) fn handle_path_event(&mut self, now: Time, core: &mut Core, event: PathEvent) {
        let inner = self.inner;
        match event {
            PathEvent::Punched { id, remote, address, rtt, observed } => {
                self.each(core.of_remote(remote), |conn| conn.lock().utp.handle_punched(now));
                if let Some(done) = inner.punches().remove(&id) {
                    let _ = done.send(Ok(PathInfo { address, rtt, observed: Some(observed) }));
                }
            }
            PathEvent::PunchFailed { id, tried } => {
                if let Some(done) = inner.punches().remove(&id) {
                    let tried: Vec<_> = tried.iter().map(ToString::to_string).collect();
                    let text = format!("no answer from {}", tried.join(", "));
                    let _ = done.send(Err(Error::new(Reason::PunchTimeout, Stage::Punch, text)));
                }
            }
            PathEvent::Met { id, address, via, relayed, rtt, observed, pings, .. } => {
                tracing::debug!(%address, ?rtt, socket = via.0, "met");
                if let Some(state) = inner.meetings().get(&id) {
                    state.send_modify(|state| state.met = Some(Met { address, via, relayed, rtt, observed, pings }));
                }
            }
            PathEvent::MeetingEnded { id, report, .. } => {
                if let Some(state) = inner.meetings().remove(&id) {
                    state.send_modify(|state| state.ended = Some(report));
                }
            }
            // a search that has begun since may have taken it over
            PathEvent::Unused { via } if core.paths.uses(via) => {}
            PathEvent::Unused { via } => self.sockets.close(via, inner),
            PathEvent::Observed { address, by } => {
                tracing::debug!(%address, "own address as seen from outside");
                let _ = inner.events.send(NetEvent::Observed { address, by });
            }
            other => self.handle_remote_event(now, core, other),
        }
    }

    /// Events that concern the connections of one remote.
    fn handle_remote_event(&mut self, now: Time, core: &mut Core, event: PathEvent) {
        let inner = self.inner;
        match event {
            PathEvent::Up { remote, address } => {
                let node = core.paths.node_of(remote);
                let _ = inner.events.send(NetEvent::PathUp { remote, node, address });
            }
            PathEvent::Lost { remote, node, address, silent_for, why } => {
                tracing::debug!(node = node.map(tracing::field::display), %address, ?silent_for, ?why, "path lost");
                let reason = reason_of(why);
                inner.end(core.of_remote(remote), reason);
                let _ = inner.events.send(NetEvent::PathLost { remote, node, address, silent_for, reason });
            }
            PathEvent::LifeEnded { remote, node, address, incarnation, why } => {
                tracing::info!(%node, %address, ?why, "a peer has ended");
                let reason = reason_of(why);
                inner.end(core.of_life(&(node, incarnation)), reason);
                let _ = inner.events.send(NetEvent::LifeEnded { remote, node, address, reason });
            }
            PathEvent::Missing { remote, node, address, since, silent_for } => {
                tracing::debug!(%node, %address, ?silent_for, "peer does not answer; its streams wait");
                self.each(core.of_remote(remote), |conn| conn.lock().utp.handle_silence(since));
                let (node, reason) = (Some(node), Reason::PeerLost);
                let _ = inner.events.send(NetEvent::PathLost { remote, node, address, silent_for, reason });
            }
            PathEvent::Found { remote, node, address } => {
                tracing::debug!(%node, %address, "peer answers again");
                let _ = inner.events.send(NetEvent::PathFound { remote, node, address });
            }
            PathEvent::Moved { remote, node, from, to, relayed, alive } => {
                tracing::info!(?from, ?to, relayed, alive, "path moved");
                let cap = core.max_datagram(remote, to);
                self.each(core.of_remote(remote), |conn| {
                    conn.lock().utp.handle_path(now, path_key(to), cap, alive);
                });
                let _ = inner.events.send(NetEvent::PathMoved { remote, node, from, to, relayed });
            }
            PathEvent::Silent { remote, node } => {
                tracing::debug!(%node, "path silent");
                let _ = inner.events.send(NetEvent::PathSilent { remote, node });
            }
            PathEvent::Back { remote } => self.each(core.of_remote(remote), |conn| {
                conn.lock().utp.handle_path_back(now);
            }),
            _ => {}
        }
    }

    /// Does something to connections and has them looked at.
    fn each(&mut self, conns: Vec<Arc<Conn>>, act: impl Fn(&Conn)) {
        for conn in conns {
            act(&conn);
            self.inner.doorbell.ring(&conn, &mut conn.lock());
        }
    }
}
