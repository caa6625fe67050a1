//! Answering invitations: whose turn it is (`invitations`), whether the sender is let in, and the other half of the exchange.

use std::net::IpAddr;
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::time::{sleep_until, timeout, Instant};

use super::exchange::{note_own, Exchange, Heard, Said, Ways, Words};
use super::invitations::{Arrival, Invitations, Invite, Line, Next, Sender};
use super::report::{Report, Role};
use super::station::unreachable;
use super::wire::{self, Signal};
use super::Inner;
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::peer::now;
use crate::tls::introduction::{decline, may_invite, put_off, Introduced, Welcomed};
use crate::tls::PeerIdentity;

/// A place among the answers under way; dropping it frees it.
struct Place {
    inner: Arc<Inner>,
    sender: [u8; 32],
    line: Line,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.inner.invitations().ended(&self.sender, self.line);
        self.inner.knock.notify_one();
    }
}

impl Inner {
    pub(super) fn invitations(&self) -> MutexGuard<'_, Invitations> {
        self.invitations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody invites this node, by the word of the rendezvous at `place`. What cannot be an invitation costs a look at its lengths.
    pub(super) fn invited(&self, place: usize, id: [u8; 16], node: [u8; 32], body: Vec<u8>) {
        if body.len() > wire::LARGEST_BODY || !may_invite(&body, &node) {
            return;
        }
        let Ok(name) = NodeId::of_key(node) else { return };
        let line = match self.gate.is_friend(&name) {
            true => Line::Friends,
            false => Line::Others,
        };
        let (now, from) = (Instant::now(), Sender { place, node });
        let mut invitations = self.invitations();
        match invitations.arrived(Invite { id, body, from, since: now }, line) {
            Arrival::Waits => self.knock.notify_one(),
            Arrival::Copy => {}
            Arrival::TurnedAway(from, id) => {
                let refusal = invitations.may_refuse(now).then(|| put_off(invitations.retry_after()));
                drop(invitations);
                if let (Some(body), Some(station)) = (refusal, self.stations.get(from.place)) {
                    station.send(&Signal { node: from.node.to_vec(), exchange: id.to_vec(), body });
                }
            }
        }
    }

    /// Answers invitations, each in its turn.
    pub(super) async fn answer_invitations(self: Arc<Self>) {
        loop {
            let next = self.invitations().next(Instant::now());
            match next {
                Next::Answer(invite, line) => {
                    let place = Place { inner: self.clone(), sender: invite.from.node, line };
                    let inner = self.clone();
                    tokio::spawn(async move {
                        inner.answer_one(*invite, line).await;
                        drop(place);
                    });
                }
                Next::Wait(Some(at)) => sleep_until(at).await,
                Next::Wait(None) => self.knock.notified().await,
            }
        }
    }

    async fn answer_one(self: Arc<Self>, invite: Invite, line: Line) {
        let mut report = Report::new(Role::Invited, now());
        let begin = Instant::now();
        let result = self.accept(&invite, line, &mut report).await;
        report.took = Some(begin.elapsed());
        match result {
            Ok(node) => {
                report.met = true;
                self.reports().insert(node, report, self.config.max_reports);
            }
            Err(error) => {
                tracing::info!(%error, "invited in vain");
                // strangers have no place among what can be explained
                if let Some(node) = error.node.filter(|_| error.reason != Reason::AccessDenied) {
                    report.error = Some(error);
                    self.reports().insert(node, report, self.config.max_reports);
                }
            }
        }
    }

    async fn accept(self: &Arc<Self>, invite: &Invite, line: Line, report: &mut Report) -> Result<NodeId> {
        let identity = self.peers.identity();
        let Invite { id, body, from, .. } = invite;
        let peer = Welcomed::who(&identity, id, body, self.peers.tls_config(), self.peers.judging_time())?;
        let (node, names) = (peer.leaf, peer.all.clone());
        if node.public_key() != &from.node {
            let text = "the rendezvous says that the invitation is of somebody else";
            return Err(Error::new(Reason::ProtocolViolation, Stage::Rendezvous, text).with_node(node));
        }
        if !self.lets_in(&peer).await {
            if self.invitations().may_refuse(Instant::now()) {
                let body = decline(Reason::AccessDenied);
                self.send_everywhere(&Signal { node: node.public_key().to_vec(), exchange: id.to_vec(), body });
            }
            return Err(Error::new(Reason::AccessDenied, Stage::Rendezvous, "not on the access list").with_node(node));
        }
        let named = |error: Error| error.with_node(node);
        let mut exchange = Exchange::open(self, *id)?;
        let own = self.whereabouts(&names).await;
        note_own(report, &own);
        let (welcomed, answer) = Welcomed::new(&identity, *id, body, peer, &own.encode()).map_err(named)?;
        let answer = exchange.say(node, answer);
        if answer.sent == 0 {
            return Err(named(unreachable("the rendezvous nodes take nothing for the moment")));
        }
        let said = Instant::now();
        let (introduced, seen_at) = self.wait_for_go(&mut exchange, &welcomed, answer, line).await.map_err(named)?;
        let round_trip = said.elapsed();
        // what still comes in the exchange is of no use, and is not kept
        drop(exchange);
        let peer = self.read(&introduced).map_err(named)?;
        let mut draft = self.plan((&own, &peer), Ways::All, seen_at, report);
        draft.plan.round_trip = round_trip;
        let deadline = Instant::now() + self.config.search_timeout;
        self.carry_out(introduced, draft, deadline, report).await.map_err(named)?;
        Ok(node)
    }

    /// Before anything is told: whether this node may know where we are. Whoever was turned away a moment ago is again.
    async fn lets_in(&self, peer: &PeerIdentity) -> bool {
        if peer.all.iter().any(|name| self.gate.is_friend(name)) {
            return true;
        }
        if self.invitations().was_denied(&peer.leaf, Instant::now()) {
            return false;
        }
        let let_in = self.gate.admits(peer).await;
        if !let_in {
            self.invitations().deny(peer.leaf, Instant::now());
        }
        let_in
    }

    async fn wait_for_go(
        &self,
        exchange: &mut Exchange,
        welcomed: &Welcomed,
        mut answer: Said,
        line: Line,
    ) -> Result<(Introduced, Option<IpAddr>)> {
        let go = async {
            while let Some(heard) = exchange.hear(&mut answer).await {
                if let (_, Heard::Body(Words { by, body, seen_at })) = heard {
                    // one that is not right is somebody's joke: the right one may still come
                    if by != *welcomed.peer.leaf.public_key() {
                        continue;
                    }
                    if let Ok(introduced) = welcomed.handle_go(&body) {
                        answer.is_answered(self);
                        return Ok((introduced, seen_at));
                    }
                }
            }
            Err(Error::new(Reason::Cancelled, Stage::Rendezvous, "the exchange was closed"))
        };
        tokio::pin!(go);
        let begin = Instant::now();
        loop {
            let waited = begin.elapsed();
            let Some(more) = self.invitations().patience(line, waited) else {
                return Err(Error::new(Reason::PeerOffline, Stage::Rendezvous, "the dialler did not go on"));
            };
            if let Ok(introduced) = timeout(more, &mut go).await {
                return introduced;
            }
        }
    }
}
