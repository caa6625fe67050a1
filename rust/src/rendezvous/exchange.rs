//! The exchange of two nodes by way of a rendezvous, in both roles, and the meeting that it leads to (docs/protocol.md section 7).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout, timeout_at, Instant};

use super::report::{Report, Role};
use super::station::unreachable;
use super::wire::{Cause, Signal};
use super::{Inner, RendezvousEvent};
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{draft, Draft, Outlook, Whereabouts};
use crate::peer::now;
use crate::tls::introduction::{decline, declined, Introduced, Invitation, Kind, Welcomed};

/// What comes back in an exchange.
#[derive(Debug)]
pub(super) enum Heard {
    Body(Vec<u8>),
    Undelivered(Cause, String),
}

/// A place in the table of exchanges; dropping it frees it.
struct Exchange {
    inner: Arc<Inner>,
    id: [u8; 16],
    /// With the place of the rendezvous that it came from.
    heard: mpsc::Receiver<(usize, Heard)>,
}

impl Exchange {
    fn open(inner: &Arc<Inner>, id: [u8; 16]) -> Result<Self> {
        let (sender, heard) = mpsc::channel(HEARD);
        let mut exchanges = inner.exchanges();
        if exchanges.len() >= MAX_EXCHANGES {
            return Err(Error::new(
                Reason::TooManyConnections,
                Stage::Rendezvous,
                "too many nodes are looked for at once",
            ));
        }
        exchanges.insert(id, sender);
        drop(exchanges);
        Ok(Self { inner: inner.clone(), id, heard })
    }

    /// Sends one step of the exchange.
    fn say(&self, to: NodeId, body: Vec<u8>) -> Said {
        let signal = Signal { node: to.public_key().to_vec(), exchange: self.id.to_vec(), body };
        let pause = self.inner.config.repeat_after;
        Said { sent: self.inner.send_everywhere(&signal), at: Instant::now(), pause, times: 1, signal }
    }

    /// What comes next; as long as nothing does, what was `said` is said again now and then: a session with a rendezvous may break
    /// with a signal under way.
    async fn hear(&mut self, said: &mut Said) -> Option<(usize, Heard)> {
        loop {
            let Ok(heard) = timeout_at(said.at + said.pause, self.heard.recv()).await else {
                self.repeat(said);
                continue;
            };
            return heard;
        }
    }

    fn repeat(&self, said: &mut Said) {
        said.sent = said.sent.max(self.inner.send_everywhere(&said.signal));
        said.at = Instant::now();
        said.times += 1;
        // who does not answer may have more to answer than he can
        said.pause *= 2;
    }

    /// Says Go again to a peer that repeats its Answer.
    async fn go_again(&mut self, mut go: Said) -> std::convert::Infallible {
        // every rendezvous brings its copy of the first Answer: these are no repetition
        let copies = self.inner.config.repeat_after / 2;
        while let Some((_, heard)) = self.heard.recv().await {
            if matches!(&heard, Heard::Body(body) if Kind::of(body) == Some(Kind::Answer)) && go.at.elapsed() >= copies
            {
                self.repeat(&mut go);
            }
        }
        std::future::pending().await
    }
}

/// A step of an exchange.
struct Said {
    signal: Signal,
    /// The last time.
    at: Instant,
    /// Until the next.
    pause: Duration,
    times: u32,
    /// To so many rendezvous nodes.
    sent: usize,
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.inner.exchanges().remove(&self.id);
    }
}

impl Inner {
    /// Finds a node and opens a path to it. Errors: what stood in the way.
    pub(super) async fn meet(self: &Arc<Self>, node: NodeId, deadline: Instant) -> Result<()> {
        let begin = Instant::now();
        let mut report = Report::new(Role::Dialler, now());
        let mut result = Ok(());
        for round in 0..self.config.prediction_rounds {
            result = self.meet_once(node, deadline, Ways::All, &mut report).await;
            let again = result.is_err() && report.outlook == Some(Outlook::Prediction);
            if !again || Instant::now() + self.config.prediction_timeout > deadline {
                break;
            }
            tracing::debug!(node = %node.short(), round, "predicted ports were wrong, asking anew");
        }
        report.took = Some(begin.elapsed());
        report.met = result.is_ok();
        report.error = result.as_ref().err().cloned().map(|error| error.with_node(node));
        self.reports().insert(node, report, self.config.max_reports);
        if let Err(error) = &result {
            self.publish(RendezvousEvent::MeetingFailed { node, error: error.clone().with_node(node) });
        }
        result.map_err(|error| error.with_node(node))
    }

    /// Looks for a direct path to a node that is reached over a relay. What fails leaves everything as it is.
    pub(super) async fn upgrade(self: &Arc<Self>, node: NodeId) -> Result<()> {
        let begin = Instant::now();
        let mut report = Report::new(Role::Dialler, now());
        let deadline = begin + self.config.search_timeout;
        self.meet_once(node, deadline, Ways::Direct, &mut report).await?;
        (report.met, report.took) = (true, Some(begin.elapsed()));
        self.reports().insert(node, report, self.config.max_reports);
        Ok(())
    }

    async fn meet_once(
        self: &Arc<Self>,
        node: NodeId,
        deadline: Instant,
        ways: Ways,
        report: &mut Report,
    ) -> Result<()> {
        self.connected(deadline).await?;
        let mut own = self.whereabouts(&[node]).await;
        note_own(report, &own);
        let identity = self.peers.identity();
        let mut exchange = Exchange::open(self, random_id()?)?;
        let (invitation, invite) = Invitation::new(&identity, node, exchange.id)?;
        let mut invite = exchange.say(node, invite);
        if invite.sent == 0 {
            return Err(unreachable("the rendezvous nodes take nothing for the moment"));
        }
        let until = deadline.min(invite.at + self.config.answer_timeout);
        let (introduced, go) = self.answer(&mut exchange, invitation, &mut invite, &own, until).await?;
        let round_trip = invite.at.elapsed();
        let peer = self.read(&introduced)?;
        own.direct_only |= self.direct_only.applies(&introduced.peer.all);
        let go = exchange.say(introduced.peer.leaf, go);
        let draft = self.plan(&own, &peer, ways, report);
        let meeting = async {
            // the peer begins when it has our Go: half a round trip from now (DCUtR), without what it took to find out where it is
            sleep(round_trip.saturating_sub(peer.took) / 2).await;
            self.carry_out(introduced, draft, deadline, report).await
        };
        tokio::select! {
            result = meeting => result,
            never = exchange.go_again(go) => match never {},
        }
    }

    /// Waits for the first answer that holds. Errors: `PeerOffline` when every rendezvous says so, or nobody answers.
    async fn answer(
        &self,
        exchange: &mut Exchange,
        invitation: Invitation,
        invite: &mut Said,
        own: &Whereabouts,
        until: Instant,
    ) -> Result<(Introduced, Vec<u8>)> {
        let config = self.peers.tls_config();
        // one word each: a rendezvous that lies does not speak for the others
        let mut refused: HashMap<usize, Error> = HashMap::new();
        let mut late = None;
        while refused.len() < invite.sent {
            let Ok(Some((place, heard))) = timeout_at(until, exchange.hear(invite)).await else { break };
            let error = match heard {
                Heard::Body(body) if Kind::of(&body) == Some(Kind::Answer) => {
                    match invitation.check(&body, config, now()) {
                        Ok(()) => return invitation.handle_answer(&body, &own.encode(), config, now()),
                        Err(error) => error,
                    }
                }
                Heard::Body(body) => Error::new(declined(&body), Stage::Rendezvous, "the node declined to meet"),
                // the first may have been delivered: then an answer is on its way
                Heard::Undelivered(cause, detail) if invite.times > 1 => {
                    late = Some(explain(cause, detail));
                    continue;
                }
                Heard::Undelivered(cause, detail) => explain(cause, detail),
            };
            refused.entry(place).or_insert(error);
        }
        let silence = || Error::new(Reason::PeerOffline, Stage::Rendezvous, "it did not answer the invitation");
        // what somebody said for sure says more than that others do not know it
        let mut refused: Vec<_> = refused.into_values().chain(late).collect();
        refused.sort_by_key(|error| error.reason == Reason::PeerOffline);
        Err(refused.into_iter().next().unwrap_or_else(silence))
    }

    /// Somebody invites this node.
    pub(super) async fn invited(self: Arc<Self>, id: [u8; 16], invite: Vec<u8>) {
        let mut report = Report::new(Role::Invited, now());
        let begin = Instant::now();
        let result = self.accept(id, &invite, &mut report).await;
        report.took = Some(begin.elapsed());
        match result {
            Ok(node) => {
                report.met = true;
                self.reports().insert(node, report, self.config.max_reports);
            }
            Err(error) => {
                tracing::info!(%error, "invited in vain");
                if let Some(node) = error.node {
                    report.error = Some(error);
                    self.reports().insert(node, report, self.config.max_reports);
                }
            }
        }
    }

    async fn accept(self: &Arc<Self>, id: [u8; 16], invite: &[u8], report: &mut Report) -> Result<NodeId> {
        let identity = self.peers.identity();
        let peer = Welcomed::who(&identity, &id, invite, self.peers.tls_config(), now())?;
        let (node, names) = (peer.leaf, peer.all.clone());
        if !(self.admits)(&peer) {
            let body = decline(Reason::AccessDenied);
            self.send_everywhere(&Signal { node: node.public_key().to_vec(), exchange: id.to_vec(), body });
            return Err(Error::new(Reason::AccessDenied, Stage::Rendezvous, "not on the access list").with_node(node));
        }
        let named = |error: Error| error.with_node(node);
        let mut exchange = Exchange::open(self, id)?;
        let own = self.whereabouts(&names).await;
        note_own(report, &own);
        let (welcomed, answer) = Welcomed::new(&identity, id, invite, peer, &own.encode()).map_err(named)?;
        let answer = exchange.say(node, answer);
        if answer.sent == 0 {
            return Err(named(unreachable("the rendezvous nodes take nothing for the moment")));
        }
        let introduced = self.wait_for_go(&mut exchange, &welcomed, answer).await.map_err(named)?;
        let peer = self.read(&introduced).map_err(named)?;
        let draft = self.plan(&own, &peer, Ways::All, report);
        let deadline = Instant::now() + self.config.search_timeout;
        self.carry_out(introduced, draft, deadline, report).await.map_err(named)?;
        Ok(node)
    }

    async fn wait_for_go(&self, exchange: &mut Exchange, welcomed: &Welcomed, mut answer: Said) -> Result<Introduced> {
        let go = async {
            while let Some(heard) = exchange.hear(&mut answer).await {
                if let (_, Heard::Body(body)) = heard {
                    // one that is not right is somebody's joke: the right one may still come
                    if let Ok(introduced) = welcomed.handle_go(&body) {
                        return Ok(introduced);
                    }
                }
            }
            Err(Error::new(Reason::Cancelled, Stage::Rendezvous, "the exchange was closed"))
        };
        let late = || Error::new(Reason::PeerOffline, Stage::Rendezvous, "the dialler did not go on");
        timeout(self.config.answer_timeout, go).await.unwrap_or_else(|_| Err(late()))
    }

    fn read(&self, introduced: &Introduced) -> Result<Whereabouts> {
        Whereabouts::decode(&introduced.said).ok_or_else(|| {
            let text = "what the peer says of where it is cannot be read";
            Error::new(Reason::ProtocolViolation, Stage::Rendezvous, text)
        })
    }

    fn plan(&self, own: &Whereabouts, peer: &Whereabouts, ways: Ways, report: &mut Report) -> Draft {
        let near = self.surroundings.near();
        let mut draft = draft(own, peer, &near, random_start());
        if ways == Ways::All {
            draft = draft.with_relays(own, peer, &self.relays.own(), &near);
        }
        report.direct_only = own.direct_only || peer.direct_only;
        draft.plan.direct_only = report.direct_only || ways == Ways::Direct;
        report.outlook = Some(draft.outlook);
        report.peer_profile = Some(peer.profile);
        report.peer_candidates.clone_from(&peer.candidates);
        let relayed = draft.plan.relayed.iter().map(|route| &route.to);
        report.tried = draft.plan.candidates.iter().chain(&draft.plan.guesses).chain(relayed).copied().collect();
        draft
    }

    async fn carry_out(
        &self,
        introduced: Introduced,
        draft: Draft,
        deadline: Instant,
        report: &mut Report,
    ) -> Result<()> {
        let Introduced { peer, keys, .. } = introduced;
        self.peers.learn(&peer);
        let (outlook, has_relays) = (draft.outlook, !draft.plan.relayed.is_empty());
        let most = match outlook {
            Outlook::Direct => self.config.direct_timeout,
            Outlook::Prediction => self.config.prediction_timeout,
            Outlook::Search => self.config.search_timeout,
            Outlook::BothSymmetric => self.config.hopeless_timeout,
        };
        let within = most.min(deadline.saturating_duration_since(Instant::now()));
        tracing::debug!(node = %peer.leaf.short(), ?outlook, plan = ?draft.plan, "meeting");
        let mut meeting = self.peers.net.start_meeting(peer.leaf, keys, draft, within)?;
        let met = meeting.met().await;
        if met.is_err() {
            report.pings = meeting.ended().await;
        }
        match (met, outlook) {
            (Ok(met), _) => {
                tracing::info!(node = %peer.leaf.short(), address = %met.address, rtt = ?met.rtt, ?outlook, "path opened");
                report.relayed = met.relayed;
                report.pings.answered = vec![(met.address, met.rtt)];
                report.pings.pings = met.pings;
                // it goes on for a moment, in search of a better path
                meeting.keep();
                Ok(())
            }
            (Err(error), Outlook::BothSymmetric) if error.reason == Reason::PunchTimeout => {
                let text = "both NATs give each destination another port, in an order that cannot be predicted";
                let relays = why_no_relay(report, has_relays);
                Err(Error::new(Reason::BothSymmetric, Stage::Punch, format!("{text}; {relays}")))
            }
            (Err(error), _) => {
                let relays = why_no_relay(report, has_relays);
                Err(Error { detail: format!("{}; tried {}; {relays}", error.detail, list(report)), ..error })
            }
        }
    }

    /// Waits until a rendezvous is connected. Errors: why none is.
    async fn connected(&self, deadline: Instant) -> Result<()> {
        let until = deadline.min(Instant::now() + self.config.patience);
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.stations.iter().any(|station| station.is_connected()) {
                return Ok(());
            }
            let hopeless = self.stations.iter().all(|station| station.has_failed());
            if hopeless || timeout_at(until, progress).await.is_err() {
                return Err(self.unreachable().await);
            }
        }
    }

    /// Why no rendezvous is connected.
    async fn unreachable(&self) -> Error {
        let nothing_ever_came = self.peers.net.stats().datagrams_in == 0;
        let profile = self.surroundings.profile();
        let mut relays = self.relays.status().into_iter().filter_map(|relay| relay.error);
        if nothing_ever_came && profile.is_none_or(|profile| profile.udp_blocked) {
            let relays = match relays.next() {
                Some(error) => format!("; no relay was reached: {error}"),
                None => "; no relay is known".to_owned(),
            };
            let places: Vec<_> = self.stations.iter().map(|station| station.server.address.as_str()).collect();
            let text = format!(
                "no rendezvous node ({}) and no STUN server has ever answered, and nothing else came by UDP, unless \
                 these addresses are wrong or nothing runs there",
                places.join(", ")
            );
            return Error::new(Reason::UdpBlocked, Stage::Rendezvous, format!("{text}{relays}"));
        }
        let errors = self.stations.iter().filter_map(|station| station.status().error);
        let text: Vec<_> = errors.chain(relays).map(|error| error.to_string()).collect();
        unreachable(if text.is_empty() { "none has answered yet".to_owned() } else { text.join(" | ") })
    }

    /// Through all of them: the rendezvous that was the first to bring the invitation may drop what goes back.
    fn send_everywhere(&self, signal: &Signal) -> usize {
        self.stations.iter().filter(|station| station.send(signal)).count()
    }
}

/// Which ways a meeting tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ways {
    All,
    Direct,
}

/// What relays had to do with a failure.
fn why_no_relay(report: &Report, has_relays: bool) -> &'static str {
    match (report.direct_only, has_relays) {
        (true, _) => "a relay was not tried: one side wants direct paths only (direct_only)",
        (false, true) => "relays did not help either",
        (false, false) => "neither side has a relay",
    }
}

fn note_own(report: &mut Report, own: &Whereabouts) {
    report.own_profile = Some(own.profile);
    report.own_candidates.clone_from(&own.candidates);
}

fn list(report: &Report) -> String {
    let tried: Vec<_> = report.tried.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    match (tried.is_empty(), report.tried.len().saturating_sub(MAX_LISTED)) {
        (true, _) => "nothing, for the peer has told no address that may be tried from here".to_owned(),
        (false, 0) => tried.join(", "),
        (false, more) => format!("{} and {more} more", tried.join(", ")),
    }
}

fn explain(cause: Cause, detail: String) -> Error {
    let reason = match cause {
        Cause::Offline => Reason::PeerOffline,
        Cause::RateLimited => Reason::RendezvousBusy,
        Cause::ReceiverBusy => Reason::PeerBusy,
        Cause::Invalid => Reason::ProtocolViolation,
        Cause::Unavailable | Cause::Unspecified => Reason::RendezvousUnreachable,
    };
    let text = if detail.is_empty() { "said by the rendezvous".to_owned() } else { detail };
    Error::new(reason, Stage::Rendezvous, text)
}

fn random_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(|error| Error::new(Reason::Internal, Stage::Rendezvous, format!("no randomness: {error}")))?;
    Ok(id)
}

/// Where a search begins: a number that nobody needs to be unable to guess.
fn random_start() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_be_bytes(bytes)
}

/// Exchanges under way, in both roles.
const MAX_EXCHANGES: usize = 4_096;
/// Messages of one exchange that wait to be looked at: an answer and a refusal from each rendezvous.
const HEARD: usize = 16;
/// Addresses in an error message.
const MAX_LISTED: usize = 8;
