//! The exchange of two nodes by way of a rendezvous, and the meeting that it leads to (docs/protocol.md section 7). How an invitation
//! is answered is in `answering`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until, timeout_at, Instant};

use super::pace::Pace;
use super::report::{Report, Role};
use super::station::unreachable;
use super::wire::{Cause, Signal};
use super::{Inner, RendezvousEvent};
use crate::addr::NodeId;
use crate::error::{Error, Reason, Result, Stage};
use crate::path::{draft, Draft, Outlook, Whereabouts};
use crate::peer::now;
use crate::tls::introduction::{declined, Introduced, Invitation, Kind};

/// What comes back in an exchange.
#[derive(Debug)]
pub(super) enum Heard {
    Body(Words),
    Undelivered(Cause, String),
}

/// A signal of an exchange, as the rendezvous passes it on.
#[derive(Debug)]
pub(super) struct Words {
    /// From whom, and from which address of his, by the word of the rendezvous.
    pub by: [u8; 32],
    pub seen_at: Option<IpAddr>,
    pub body: Vec<u8>,
}

/// Where what comes in an exchange is waited for.
pub(super) struct Ear {
    /// With the place of the rendezvous that it came from.
    sender: mpsc::Sender<(usize, Heard)>,
    /// How much each rendezvous may still say.
    words: Vec<u8>,
}

impl Ear {
    /// A rendezvous that says more than anybody has to say is not listened to, so that it is in no other's way.
    pub fn hear(&mut self, place: usize, heard: Heard) {
        let Some(left) = self.words.get_mut(place).filter(|left| **left > 0) else { return };
        *left -= 1;
        // there is room for all that may be said
        let _ = self.sender.try_send((place, heard));
    }
}

/// A place in the table of exchanges; dropping it frees it.
pub(super) struct Exchange {
    inner: Arc<Inner>,
    id: [u8; 16],
    heard: mpsc::Receiver<(usize, Heard)>,
}

impl Exchange {
    pub fn open(inner: &Arc<Inner>, id: [u8; 16]) -> Result<Self> {
        let places = inner.stations.len().max(1);
        let (sender, heard) = mpsc::channel(places * usize::from(MAX_WORDS));
        let mut exchanges = inner.exchanges();
        if exchanges.len() >= MAX_EXCHANGES || exchanges.contains_key(&id) {
            return Err(Error::new(
                Reason::TooManyConnections,
                Stage::Rendezvous,
                "too many nodes are looked for at once",
            ));
        }
        exchanges.insert(id, Ear { sender, words: vec![MAX_WORDS; places] });
        drop(exchanges);
        Ok(Self { inner: inner.clone(), id, heard })
    }

    /// Sends one step of the exchange.
    pub fn say(&self, to: NodeId, body: Vec<u8>) -> Said {
        let signal = Signal { node: to.public_key().to_vec(), exchange: self.id.to_vec(), body };
        let now = Instant::now();
        let pause = self.inner.pace().repeat_after(now);
        Said { sent: self.inner.send_everywhere(&signal), first: now, at: now, pause, times: 1, signal }
    }

    /// What comes next; as long as nothing does, what was `said` is said again now and then: a session with a rendezvous may break
    /// with a signal under way.
    pub async fn hear(&mut self, said: &mut Said) -> Option<(usize, Heard)> {
        let inner = self.inner.clone();
        loop {
            tokio::select! {
                heard = timeout_at(said.at + said.pause, self.heard.recv()) => match heard {
                    Ok(heard) => return heard,
                    // what others were answered meanwhile has shown that it takes longer
                    Err(_) => {
                        let usual = inner.pace().repeat_after(Instant::now());
                        if usual > said.pause {
                            said.pause = jittered(usual).max(usual);
                        } else {
                            self.repeat(said);
                        }
                    }
                },
                // what the session before was given may be lost with it
                () = inner.sessions.notified() => {
                    said.sent = said.sent.max(inner.send_everywhere(&said.signal));
                    said.times += 1;
                }
            }
        }
    }

    fn repeat(&self, said: &mut Said) {
        said.sent = said.sent.max(self.inner.send_everywhere(&said.signal));
        said.at = Instant::now();
        said.times += 1;
        // who does not answer may have more to answer than he can; those who began together do not come again together
        said.pause = jittered(said.pause * 2);
    }

    /// Says Go again to a peer that repeats its Answer.
    async fn go_again(&mut self, mut go: Said) -> std::convert::Infallible {
        // every rendezvous brings its copy of the first Answer: these are no repetition
        let copies = self.inner.config.repeat_after / 2;
        while let Some((_, heard)) = self.heard.recv().await {
            let again = matches!(&heard, Heard::Body(words) if Kind::of(&words.body) == Some(Kind::Answer));
            if again && go.at.elapsed() >= copies {
                self.repeat(&mut go);
            }
        }
        std::future::pending().await
    }
}

/// A step of an exchange.
pub(super) struct Said {
    signal: Signal,
    first: Instant,
    /// The last time.
    at: Instant,
    /// Until the next.
    pause: Duration,
    times: u32,
    /// To so many rendezvous nodes.
    pub sent: usize,
}

/// The Answer that holds, and the Go for it.
struct Answered {
    introduced: Introduced,
    go: Vec<u8>,
    seen_at: Option<IpAddr>,
}

/// Why it came to no path this time.
struct Failure {
    error: Error,
    /// Nobody refused for good: it is worth trying again, after so long at least.
    again: Option<Duration>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let busy = matches!(error.reason, Reason::TooManyConnections | Reason::RendezvousBusy | Reason::PeerBusy);
        Self { error, again: busy.then_some(LEAST_PAUSE) }
    }
}

impl Said {
    /// It was answered, by the one whom it was said to.
    pub fn is_answered(&self, inner: &Inner) {
        let now = Instant::now();
        inner.pace().answered(now, now.saturating_duration_since(self.first));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.inner.exchanges().remove(&self.id);
    }
}

impl Inner {
    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a node and opens a path to it. Errors: what stood in the way.
    pub(super) async fn meet(self: &Arc<Self>, node: NodeId, deadline: Instant) -> Result<()> {
        if self.stations.is_empty() {
            // there is nobody to ask, and so no meeting to tell of
            return self.connected(deadline).await.map_err(|error| error.with_node(node));
        }
        let begin = Instant::now();
        let mut report = Report::new(Role::Dialler, now());
        if let Some(station) = self.stations.iter().find(|station| station.server.node == node) {
            // nobody introduces nodes to a rendezvous: it is where its address says, or it is not there
            let text = format!("this is a rendezvous, and it does not answer at {}", station.server.address);
            return Err(unreachable(text).with_node(node));
        }
        let result = self.meet_until(node, deadline, &mut report).await;
        report.took = Some(begin.elapsed());
        report.met = result.is_ok();
        report.error = result.as_ref().err().cloned().map(|error| error.with_node(node));
        self.reports().insert(node, report, self.config.max_reports);
        if let Err(error) = &result {
            self.publish(RendezvousEvent::MeetingFailed { node, error: error.clone().with_node(node) });
        }
        result.map_err(|error| error.with_node(node))
    }

    /// Tries until the deadline, as long as it is worth it: with fresh ports where ports are guessed, and later where somebody is busy.
    async fn meet_until(self: &Arc<Self>, node: NodeId, deadline: Instant, report: &mut Report) -> Result<()> {
        let (mut predictions, mut put_off) = (1, 0);
        loop {
            let met = self.meet_once(node, deadline, Ways::All, report).await;
            let Err(Failure { error, again }) = met else { return Ok(()) };
            let left = deadline.saturating_duration_since(Instant::now());
            if let Some(pause) = again {
                if left < LEAST_PAUSE * 2 {
                    return Err(error);
                }
                // doubled each time, but never past the half of what is left
                let doubled = (LEAST_PAUSE * 2_u32.saturating_pow(put_off)).min(MOST_PAUSE);
                let pause = jittered(pause.max(doubled)).min(left / 2);
                tracing::debug!(node = %node.short(), %error, ?pause, "busy, trying again");
                put_off += 1;
                sleep(pause).await;
                continue;
            }
            let predicted = report.outlook == Some(Outlook::Prediction);
            if !predicted || predictions >= self.config.prediction_rounds || left < self.config.prediction_timeout {
                return Err(error);
            }
            tracing::debug!(node = %node.short(), predictions, "predicted ports were wrong, asking anew");
            predictions += 1;
        }
    }

    /// Looks for a direct path to a node that is reached over a relay. What fails leaves everything as it is.
    pub(super) async fn upgrade(self: &Arc<Self>, node: NodeId) -> Result<()> {
        let begin = Instant::now();
        let mut report = Report::new(Role::Dialler, now());
        let deadline = begin + self.config.search_timeout;
        self.meet_once(node, deadline, Ways::Direct, &mut report).await.map_err(|failure| failure.error)?;
        (report.met, report.took) = (true, Some(begin.elapsed()));
        self.reports().insert(node, report, self.config.max_reports);
        Ok(())
    }

    /// One exchange and its meeting. Few begin at a time: each has the pings of its meeting, and a hundred at once would take the time from
    /// one another that each of them needs.
    async fn meet_once(
        self: &Arc<Self>,
        node: NodeId,
        deadline: Instant,
        ways: Ways,
        report: &mut Report,
    ) -> Result<(), Failure> {
        self.connected(deadline).await?;
        let late =
            || Error::new(Reason::TooManyConnections, Stage::Rendezvous, "too many nodes are looked for at once");
        let mut turn = Some(timeout_at(deadline, self.turns.take()).await.ok().flatten().ok_or_else(late)?);
        let begun = Instant::now();
        let result = {
            let meeting = self.introduce_and_meet(node, deadline, ways, report);
            tokio::pin!(meeting);
            loop {
                // what others are told meanwhile changes what is to be expected
                let until = begun + self.pace().turn(Instant::now());
                tokio::select! {
                    result = &mut meeting => break result,
                    // whoever does not answer takes nobody's turn for longer
                    () = sleep_until(until), if turn.is_some() => {
                        if begun + self.pace().turn(Instant::now()) <= until {
                            turn = None;
                        }
                    }
                }
            }
        };
        if result.is_ok() && report.outlook == Some(Outlook::Direct) {
            self.turns.took(begun.elapsed());
        }
        result
    }

    async fn introduce_and_meet(
        self: &Arc<Self>,
        node: NodeId,
        deadline: Instant,
        ways: Ways,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let mut own = self.whereabouts(&[node]).await;
        note_own(report, &own);
        let identity = self.peers.identity();
        let mut exchange = Exchange::open(self, random_id()?)?;
        let (invitation, invite) = Invitation::new(&identity, node, exchange.id)?;
        let mut invite = exchange.say(node, invite);
        if invite.sent == 0 {
            let error = unreachable("the rendezvous nodes take nothing for the moment");
            return Err(Failure { error, again: Some(LEAST_PAUSE) });
        }
        let Answered { introduced, go, seen_at } =
            self.answer(&mut exchange, invitation, &mut invite, &own, deadline).await?;
        let round_trip = invite.at.elapsed();
        invite.is_answered(self);
        let peer = self.read(&introduced)?;
        own.direct_only |= self.direct_only.applies(&introduced.peer.all);
        let go = exchange.say(introduced.peer.leaf, go);
        let mut draft = self.plan((&own, &peer), ways, seen_at, report);
        draft.plan.round_trip = round_trip.saturating_sub(peer.took);
        self.peers.learn(&introduced.peer, Some(&node));
        let meeting = async {
            // the peer begins when it has our Go: half a round trip from now (DCUtR), without what it took to find out where it is
            sleep(round_trip.saturating_sub(peer.took) / 2).await;
            self.carry_out(introduced, draft, deadline, report).await
        };
        tokio::select! {
            result = meeting => Ok(result?),
            never = exchange.go_again(go) => match never {},
        }
    }

    /// Waits for the first answer that holds. Errors: `PeerOffline` when every rendezvous says so, or nobody answers; `PeerBusy` and
    /// `RendezvousBusy`.
    async fn answer(
        &self,
        exchange: &mut Exchange,
        invitation: Invitation,
        invite: &mut Said,
        own: &Whereabouts,
        until: Instant,
    ) -> Result<Answered, Failure> {
        let config = self.peers.tls_config();
        // one word each: a rendezvous that lies does not speak for the others, and is not looked at again
        let mut refused: HashMap<usize, Failure> = HashMap::new();
        let mut late = None;
        while refused.len() < invite.sent {
            let Ok(Some((place, heard))) = timeout_at(until, exchange.hear(invite)).await else { break };
            if refused.contains_key(&place) {
                continue;
            }
            let failure = match heard {
                Heard::Body(Words { body, seen_at, .. }) if Kind::of(&body) == Some(Kind::Answer) => {
                    match invitation.check(&body, config, self.peers.judging_time()) {
                        Ok(()) => {
                            let (introduced, go) =
                                invitation.handle_answer(&body, &own.encode(), config, self.peers.judging_time())?;
                            return Ok(Answered { introduced, go, seen_at });
                        }
                        Err(error) => Failure { error, again: None },
                    }
                }
                Heard::Body(Words { body, .. }) => put_off_or_declined(&body),
                // the first may have been delivered: then an answer is on its way
                Heard::Undelivered(cause, detail) if invite.times > 1 => {
                    late = Some(explain(cause, detail).into());
                    continue;
                }
                Heard::Undelivered(cause, detail) => explain(cause, detail).into(),
            };
            refused.insert(place, failure);
        }
        let silence = || Error::new(Reason::PeerOffline, Stage::Rendezvous, "it did not answer the invitation").into();
        // what somebody said for sure says more than that others do not know it
        let mut refused: Vec<_> = refused.into_values().chain(late).collect();
        refused.sort_by_key(|failure| failure.error.reason == Reason::PeerOffline);
        Err(refused.into_iter().next().unwrap_or_else(silence))
    }

    pub(super) fn read(&self, introduced: &Introduced) -> Result<Whereabouts> {
        Whereabouts::decode(&introduced.said).ok_or_else(|| {
            let text = "what the peer says of where it is cannot be read";
            Error::new(Reason::ProtocolViolation, Stage::Rendezvous, text)
        })
    }

    /// What this side does, from both sides' words; the rendezvous sees the peer at `seen_at`.
    pub(super) fn plan(
        &self,
        (own, peer): (&Whereabouts, &Whereabouts),
        ways: Ways,
        seen_at: Option<IpAddr>,
        report: &mut Report,
    ) -> Draft {
        let near = self.surroundings.near();
        let mut draft = draft(own, peer, &near, random_start());
        let relays = self.relays.own();
        draft.plan.seen_at = seen_at.into_iter().collect();
        draft.plan.own_relays = relays.iter().flat_map(|relay| relay.addresses.iter().map(SocketAddr::ip)).collect();
        if ways == Ways::All {
            draft = draft.with_relays(own, peer, &relays, &near);
        }
        report.direct_only = own.direct_only || peer.direct_only;
        draft.plan.direct_only = report.direct_only || ways == Ways::Direct;
        report.outlook = Some(draft.outlook);
        report.peer_profile = Some(peer.profile);
        report.peer_candidates.clone_from(&peer.candidates);
        let relayed = draft.plan.relayed.iter().chain(&draft.plan.last).map(|route| &route.to);
        report.tried = draft.plan.candidates.iter().chain(&draft.plan.guesses).chain(relayed).copied().collect();
        draft
    }

    pub(super) async fn carry_out(
        &self,
        introduced: Introduced,
        draft: Draft,
        deadline: Instant,
        report: &mut Report,
    ) -> Result<()> {
        let Introduced { peer, keys, .. } = introduced;
        self.peers.learn(&peer, None);
        let (outlook, has_relays) = (draft.outlook, !(draft.plan.relayed.is_empty() && draft.plan.last.is_empty()));
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
            // the own address may have been another by now: the next time it is known
            self.surroundings.doubt();
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
                let relays = self.why_no_relay(report, has_relays);
                Err(Error::new(Reason::BothSymmetric, Stage::Punch, format!("{text}; {relays}")))
            }
            (Err(error), _) => {
                let relays = self.why_no_relay(report, has_relays);
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
        if self.stations.iter().any(|station| station.is_identity_in_use()) {
            let text = "another program runs with this node's identity and has taken its place at the rendezvous";
            return Error::new(Reason::IdentityInUse, Stage::Rendezvous, text);
        }
        let nothing_ever_came = self.peers.net.stats().datagrams_in == 0;
        let profile = self.surroundings.profile();
        let mut relays = self.relays.status().into_iter().filter_map(|relay| relay.error);
        if nothing_ever_came && profile.is_none_or(|learned| learned.profile.udp_blocked) {
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

    fn why_no_relay(&self, report: &Report, tried: bool) -> String {
        let unused = self.relays.status().into_iter().filter(|relay| relay.via.is_none());
        let failed: Vec<_> = unused
            .filter_map(|relay| Some(format!("relay {} is not in use: {}", relay.relay, relay.error?)))
            .take(4)
            .collect();
        about_relays(report.direct_only, tried, &failed)
    }

    /// Through all of them: the rendezvous that was the first to bring the invitation may drop what goes back.
    pub(super) fn send_everywhere(&self, signal: &Signal) -> usize {
        self.stations.iter().filter(|station| station.send(signal)).count()
    }
}

/// What relays had to do with a failure.
fn about_relays(direct_only: bool, tried: bool, failed: &[String]) -> String {
    match (direct_only, tried, failed) {
        (true, ..) => "a relay was not tried: one side wants direct paths only (direct_only)".to_owned(),
        (false, true, []) => "no answer came over the relays of the two either".to_owned(),
        (false, true, failed) => format!("no answer came over a relay either, and {}", failed.join("; ")),
        (false, false, []) => "neither side has a relay".to_owned(),
        (false, false, failed) => format!("no relay was tried: {}", failed.join("; ")),
    }
}

/// Which ways a meeting tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways {
    All,
    Direct,
}

pub(super) fn note_own(report: &mut Report, own: &Whereabouts) {
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

fn put_off_or_declined(body: &[u8]) -> Failure {
    let (reason, retry_after) = declined(body);
    let text = match reason {
        Reason::PeerBusy => "the node has too many invitations to answer for now",
        _ => "the node declined to meet",
    };
    let failure = Failure::from(Error::new(reason, Stage::Rendezvous, text));
    Failure { again: failure.again.map(|least| retry_after.map_or(least, |after| least.max(after))), ..failure }
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

/// Up to a quarter more or less, so that those who were refused together do not come again together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + f64::from(random_start()) / f64::from(u32::MAX) / 2.0)
}

/// Where a search begins: a number that nobody needs to be unable to guess.
fn random_start() -> u32 {
    let mut bytes = [0; 4];
    let _ = getrandom::fill(&mut bytes);
    u32::from_be_bytes(bytes)
}

/// Exchanges under way, in both roles.
const MAX_EXCHANGES: usize = 4_096;
/// Messages of one exchange that each rendezvous may bring: a step that is said again at growing intervals for as long as a dial takes,
/// and a refusal of each of ours, are a dozen.
const MAX_WORDS: u8 = 16;
/// Between two tries of a dial while somebody is busy: at first, and at most.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const MOST_PAUSE: Duration = Duration::from_secs(4);
/// Addresses in an error message.
const MAX_LISTED: usize = 8;

#[cfg(test)]
mod tests {
    use super::about_relays;

    #[test]
    fn a_failure_names_the_relays_that_were_not_reached() {
        let failed = ["relay a.example is not in use: relay unreachable".to_owned()];
        assert!(about_relays(false, true, &failed).contains("a.example is not in use: relay unreachable"));
        assert!(about_relays(false, false, &failed).contains("a.example is not in use: relay unreachable"));
        assert_eq!(about_relays(false, false, &[]), "neither side has a relay");
        assert!(about_relays(true, true, &failed).contains("direct_only"));
        assert!(!about_relays(false, true, &[]).contains("not in use"));
    }
}
