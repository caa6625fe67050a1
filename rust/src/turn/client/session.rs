//! One allocation on a TURN server, as its client sees it (RFC 8656 sections 6 to 12; RFC 8489 sections 6.2 and 9.2). No socket
//! and no clock: messages, datagrams and the time go in, what is to be sent and what happened come out.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use zeroize::Zeroizing;

use super::frame::{self, Transmit};
use super::message::{self, Auth, Families, Incoming, Question, Reply};
use super::peers::{Peers, Verdict, MAX_PEERS, MAX_WAITING};
use crate::addr::{unmapped, Datagrams};
use crate::error::{Error, Reason, Stage};
use crate::time::Time;

/// What a session wants told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Allocated(Granted),
    /// The server wants another to be asked in its place; it is over.
    Redirected(Alternate),
    /// It is over, as was asked for.
    Deleted,
    /// It did not come about, or is over.
    Failed(Error),
}

/// What the server gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    pub relayed: Vec<SocketAddr>,
    pub mapped: Option<SocketAddr>,
    pub rtt: Duration,
}

/// RFC 8489 section 10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alternate {
    pub server: SocketAddr,
    /// The name in its certificate, where that is another.
    pub domain: Option<String>,
}

/// What a session keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Under way.
    pub requests: usize,
    pub peers: usize,
    /// Batches that wait for a channel.
    pub waiting: usize,
}

impl Held {
    /// The questions about the allocation itself have their place beside those about peers.
    pub const MOST: Self = Self { requests: MAX_REQUESTS + 1, peers: MAX_PEERS, waiting: MAX_WAITING };
}

pub struct Session {
    username: String,
    password: Zeroizing<String>,
    stream: bool,
    auth: Option<Auth>,
    state: State,
    /// To be deleted as soon as it is there.
    unwanted: bool,
    requests: Vec<Request>,
    peers: Peers,
    relayed: Vec<SocketAddr>,
    lifetime: Duration,
    refreshed: Time,
    /// Something came from the server.
    heard: Time,
    /// Something was sent after that.
    unanswered: Option<Time>,
    swept: Time,
    rtt: Option<Duration>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
    random: StdRng,
    /// Datagrams that found no way out.
    pub dropped: u64,
    /// [`peers`](Self::peers) may say something else than before.
    pub peers_changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Allocating,
    Allocated,
    Deleting,
    Over,
}

/// A question that waits for its answer.
#[derive(Debug)]
struct Request {
    question: Question,
    transaction: [u8; 12],
    message: Vec<u8>,
    began: Time,
    sent: Time,
    tries: u32,
    /// The server wanted credentials, or fresher ones, so often.
    renewed: u32,
}

impl Session {
    /// Begins to ask for relayed addresses of both families. Over a `stream` nothing is sent twice.
    pub fn new(now: Time, username: &str, password: &str, stream: bool, seed: [u8; 32]) -> Self {
        let mut session = Self {
            username: username.to_owned(),
            password: Zeroizing::new(password.to_owned()),
            stream,
            auth: None,
            state: State::Allocating,
            unwanted: false,
            requests: Vec::new(),
            peers: Peers::new(),
            relayed: Vec::new(),
            lifetime: DEFAULT_LIFETIME,
            refreshed: now,
            heard: now,
            unanswered: None,
            swept: now,
            rtt: None,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            random: StdRng::from_seed(seed),
            dropped: 0,
            peers_changed: false,
        };
        session.ask(now, Question::Allocate(Families::Both), 0);
        session
    }

    /// Gives the allocation back; also one that the server may be making just now.
    pub fn delete(&mut self, now: Time) {
        match self.state {
            State::Allocated => {
                self.state = State::Deleting;
                self.requests.clear();
                self.ask(now, Question::Refresh(0), 0);
            }
            State::Allocating if self.auth.is_some() => self.unwanted = true,
            State::Allocating => self.end(Event::Deleted),
            State::Deleting | State::Over => {}
        }
    }

    /// Asks whether the allocation still stands: its server may have been started anew.
    pub fn probe(&mut self, now: Time) {
        if self.state == State::Allocated && !self.is_refreshing() {
            self.ask(now, Question::Refresh(DEFAULT_LIFETIME.as_secs() as u32), 0);
        }
    }

    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// Datagrams for a peer.
    pub fn handle_outgoing(&mut self, now: Time, datagrams: Datagrams) {
        let count = count(&datagrams);
        let peer = datagrams.peer;
        let reachable = self.relayed.iter().any(|relayed| relayed.is_ipv4() == peer.is_ipv4());
        if self.state != State::Allocated || !reachable || datagrams.contents.is_empty() {
            self.dropped += count;
            return;
        }
        match self.peers.handle_outgoing(now, datagrams) {
            Verdict::Send(channel, datagrams) => self.send(now, channel, &datagrams),
            Verdict::Bind(channel) if self.requests.len() < MAX_REQUESTS => {
                self.ask(now, Question::ChannelBind(channel, peer), 0);
            }
            Verdict::Bind(_) => self.dropped += self.peers.handle_failed(peer, None) as u64,
            Verdict::Wait(lost) => self.dropped += lost as u64,
            Verdict::Drop => self.dropped += count,
        }
    }

    /// What came from the server: what a peer sent, or `None`. A peer is somebody whom we have asked a permission for.
    pub fn handle_packet<'a>(&mut self, now: Time, packet: &'a [u8]) -> Option<(SocketAddr, &'a [u8])> {
        let carries = self.state == State::Allocated;
        if let Some((channel, datagram)) = frame::unwrap(packet) {
            let peer = self.peers.handle_incoming(now, channel).filter(|_| carries)?;
            self.hear(now);
            return Some((peer, datagram));
        }
        match message::decode(packet)? {
            Incoming::Data(peer, datagram) => {
                self.peers.permits(peer.ip()).then_some(()).filter(|()| carries)?;
                self.hear(now);
                Some((peer, datagram))
            }
            Incoming::Reply(reply) => {
                self.handle_reply(now, &reply, packet);
                None
            }
        }
    }

    fn hear(&mut self, now: Time) {
        self.heard = now;
        self.unanswered = None;
    }

    fn handle_reply(&mut self, now: Time, reply: &Reply<'_>, packet: &[u8]) {
        let asked = self.requests.iter().position(|request| request.transaction == reply.transaction);
        let Some(at) = asked else { return };
        if !self.is_trusted(reply, packet) {
            return;
        }
        self.hear(now);
        self.peers_changed = true;
        let request = self.requests.swap_remove(at);
        if request.tries == 1 {
            self.rtt = Some(now.since(request.sent));
        }
        match &reply.error {
            _ if reply.success => self.handle_success(now, request.question, reply),
            Some((code, text)) => self.handle_error(now, &request, *code, text, reply),
            None => self.handle_error(now, &request, NO_CODE, "", reply),
        }
    }

    /// A success must be signed once the credentials are known. Errors need not be: some servers do not sign them, and whoever
    /// sees the transaction can withhold the answer as well.
    fn is_trusted(&self, reply: &Reply<'_>, packet: &[u8]) -> bool {
        match &self.auth {
            Some(auth) if reply.success || reply.is_signed() => {
                let about_credentials = matches!(reply.error, Some((UNAUTHORIZED | STALE_NONCE, _))) && !reply.success;
                about_credentials || reply.is_signed_by(auth, packet)
            }
            _ => true,
        }
    }

    fn handle_success(&mut self, now: Time, question: Question, reply: &Reply<'_>) {
        let lifetime = reply.lifetime.map_or(DEFAULT_LIFETIME, |seconds| Duration::from_secs(seconds.into()));
        match question {
            Question::Allocate(_) if reply.relayed.is_empty() => {
                let what = "the relay's answer names no relayed address";
                self.end(Event::Failed(Error::new(Reason::RelayRefused, Stage::Relay, what)));
            }
            Question::Allocate(_) => {
                self.state = State::Allocated;
                (self.refreshed, self.swept) = (now, now);
                (self.lifetime, self.relayed) = (lifetime.max(SHORTEST_LIFETIME), reply.relayed.clone());
                let rtt = self.rtt.unwrap_or(RTO);
                let granted = Granted { relayed: reply.relayed.clone(), mapped: reply.mapped, rtt };
                match self.unwanted {
                    true => self.delete(now),
                    false => self.events.push_back(Event::Allocated(granted)),
                }
            }
            Question::Refresh(0) => self.end(Event::Deleted),
            Question::Refresh(_) => (self.refreshed, self.lifetime) = (now, lifetime.max(SHORTEST_LIFETIME)),
            Question::ChannelBind(_, peer) => {
                let Some((channel, waiting)) = self.peers.handle_bound(now, peer) else { return };
                for datagrams in waiting {
                    self.send(now, channel, &datagrams);
                }
            }
        }
    }

    fn handle_error(&mut self, now: Time, request: &Request, code: u16, text: &str, reply: &Reply<'_>) {
        let question = request.question;
        let may_renew = matches!(code, UNAUTHORIZED | STALE_NONCE) && request.renewed < MAX_RENEWALS;
        if may_renew && self.renew(code, reply) {
            return self.ask(now, question, request.renewed + 1);
        }
        match question {
            Question::Refresh(0) => self.end(Event::Deleted),
            // a server that has one family only may refuse both together (RFC 8656 section 7.2), or not know the attribute
            Question::Allocate(Families::Both) if matches!(code, FAMILY_NOT_SUPPORTED | UNKNOWN_ATTRIBUTE) => {
                self.ask(now, Question::Allocate(Families::V4), 0);
            }
            Question::Allocate(Families::V4) if code == FAMILY_NOT_SUPPORTED => {
                self.ask(now, Question::Allocate(Families::V6), 0);
            }
            Question::Allocate(_) => self.end(match reply.alternate.filter(|_| code == TRY_ALTERNATE) {
                Some(server) => {
                    let domain = reply.alternate_domain.and_then(host_name);
                    Event::Redirected(Alternate { server: unmapped(server), domain })
                }
                None => Event::Failed(refused(code, text)),
            }),
            // the server was started anew, or let the allocation go
            Question::Refresh(_) | Question::ChannelBind(..) if code == ALLOCATION_MISMATCH => {
                let what = format!("the relay no longer knows the allocation ({})", said(code, text));
                self.end(Event::Failed(Error::new(Reason::RelayLost, Stage::Relay, what)));
            }
            Question::Refresh(_) => self.end(Event::Failed(refused(code, text))),
            Question::ChannelBind(_, peer) => {
                self.dropped += self.peers.handle_failed(peer, Some(now + REFUSED_FOR)) as u64;
            }
        }
    }

    /// Takes the server's realm and nonce. False: our credentials have been judged, and are wrong.
    fn renew(&mut self, code: u16, reply: &Reply<'_>) -> bool {
        let Some(nonce) = reply.nonce else { return false };
        match &mut self.auth {
            // a server that was started anew says 401 to a nonce of its predecessor
            Some(auth) if code == STALE_NONCE || (auth.has_realm(reply.realm) && !auth.has_nonce(nonce)) => {
                auth.renew(nonce);
                true
            }
            Some(auth) if auth.has_realm(reply.realm) => false,
            // credentials that are there are replaced, never dropped: without any an unsigned success would be believed
            _ => match reply.realm.and_then(|realm| Auth::new(&self.username, &self.password, realm, nonce)) {
                Some(auth) => {
                    self.auth = Some(auth);
                    true
                }
                None => false,
            },
        }
    }

    fn ask(&mut self, now: Time, question: Question, renewed: u32) {
        let mut transaction = [0; 12];
        self.random.fill_bytes(&mut transaction);
        let Some(message) = message::encode(question, transaction, self.auth.as_ref()) else {
            let what = "the relay's realm or the user name is too long for a request";
            return self.end(Event::Failed(Error::new(Reason::RelayRefused, Stage::Relay, what)));
        };
        self.transmits.push_back(Transmit::request(message.clone()));
        self.requests.push(Request { question, transaction, message, began: now, sent: now, tries: 1, renewed });
    }

    fn send(&mut self, now: Time, channel: u16, datagrams: &Datagrams) {
        self.unanswered.get_or_insert(now);
        self.transmits.push_back(frame::wrap(channel, datagrams, self.stream));
    }

    fn end(&mut self, event: Event) {
        if self.state != State::Over {
            self.state = State::Over;
            self.requests.clear();
            self.events.push_back(event);
        }
    }

    /// The next thing to send. All of it before time goes on.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        let requests = self.requests.iter().map(|request| request.due(self.stream)).min();
        let own = (self.state == State::Allocated).then(|| {
            let sweep = self.swept + SWEEP_EVERY;
            if self.is_refreshing() {
                sweep
            } else {
                sweep.min(self.refresh_due())
            }
        });
        requests.into_iter().chain(own).min()
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.repeat(now);
        if self.state != State::Allocated {
            return;
        }
        if now >= self.refresh_due() {
            self.probe(now);
        }
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.peers_changed = true;
            let room = MAX_REQUESTS.saturating_sub(self.requests.len());
            for (channel, peer) in self.peers.sweep(now, room) {
                self.ask(now, Question::ChannelBind(channel, peer), 0);
            }
        }
    }

    /// In time for the lifetime; and sooner when nothing is heard, more so when something was sent.
    fn refresh_due(&self) -> Time {
        let silent = self.heard.max(self.refreshed) + SILENT_AFTER;
        let due = (self.refreshed + self.lifetime / 2).min(silent);
        self.unanswered.map_or(due, |since| due.min(since + DOUBT_AFTER))
    }

    fn is_refreshing(&self) -> bool {
        self.requests.iter().any(|request| matches!(request.question, Question::Refresh(_)))
    }

    fn repeat(&mut self, now: Time) {
        let mut at = 0;
        while let Some(request) = self.requests.get_mut(at) {
            if now < request.due(self.stream) {
                at += 1;
            } else if !self.stream && request.tries < TRIES {
                (request.tries, request.sent) = (request.tries + 1, now);
                self.transmits.push_back(Transmit::request(request.message.clone()));
                at += 1;
            } else {
                let request = self.requests.swap_remove(at);
                self.handle_unanswered(now, &request);
                at = 0; // what happens there may have changed the list
            }
        }
    }

    fn handle_unanswered(&mut self, now: Time, request: &Request) {
        match request.question {
            Question::Allocate(_) => {
                let what = "the relay does not answer";
                self.end(Event::Failed(Error::new(Reason::RelayUnreachable, Stage::Relay, what)));
            }
            Question::Refresh(0) => self.end(Event::Deleted),
            // other things were heard: it is the answer that was lost, or a long queue
            Question::Refresh(_) if self.heard > request.began && now < self.refreshed + self.lifetime => {}
            Question::Refresh(_) => {
                let what = format!("nothing came from the relay for {:.1} s", now.since(self.heard).as_secs_f32());
                self.end(Event::Failed(Error::new(Reason::RelayLost, Stage::Relay, what)));
            }
            Question::ChannelBind(_, peer) => self.dropped += self.peers.handle_failed(peer, None) as u64,
        }
    }

    /// What is kept now; never more than [`Held::MOST`].
    pub fn held(&self) -> Held {
        Held { requests: self.requests.len(), peers: self.peers.len(), waiting: self.peers.waiting() }
    }

    /// Peers that are remembered, and channels that are bound.
    pub fn peers(&self, now: Time) -> (usize, usize) {
        (self.peers.len(), self.peers.bound(now))
    }
}

impl Request {
    /// When it is sent again, or given up.
    fn due(&self, stream: bool) -> Time {
        match (stream, self.tries) {
            (true, _) => self.began + PATIENCE,
            (false, tries) if tries < TRIES => self.sent + RTO * (1 << (tries - 1)),
            // counted from the last try: where the timer came late, that one waits for its answer too
            (false, _) => self.sent + LAST_TRY,
        }
    }
}

fn count(datagrams: &Datagrams) -> u64 {
    datagrams.contents.len().div_ceil(datagrams.stride.max(1)) as u64
}

/// The server's own words, and what can be done where that is not the same for all codes.
/// A name that may stand in a certificate (RFC 1035 section 2.3.4). What is none counts as if it were not there.
fn host_name(bytes: &[u8]) -> Option<String> {
    let may_be = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let name = std::str::from_utf8(bytes).ok()?;
    ((1..=253).contains(&bytes.len()) && bytes.iter().all(may_be)).then(|| name.to_owned())
}

fn refused(code: u16, text: &str) -> Error {
    let advice = match code {
        UNAUTHORIZED => ": the user or the password is wrong, or its time has passed (check the clocks)",
        TRY_ALTERNATE => ": it wants another server to be asked, and names none",
        403 => ": its rules forbid this",
        437 => ": the port was used a moment ago",
        441 => ": the allocation belongs to another user",
        442 => ": it relays no UDP",
        486 => ": this user has as many allocations as the relay allows",
        508 => ": it has no ports or memory left",
        _ => "",
    };
    let what = format!("the relay answered {}{advice}", said(code, text));
    Error::new(Reason::RelayRefused, Stage::Relay, what)
}

fn said(code: u16, text: &str) -> String {
    match (code, text) {
        (NO_CODE, _) => "an error without a code".to_owned(),
        (code, "") => code.to_string(),
        (code, text) => format!("{code} {text}"),
    }
}

/// RFC 8489 section 6.2.1 asks for 500 ms where nothing is known of the round trip. A relay that is 250 ms away is none that
/// anyone wants, and a request that is sent twice costs 150 bytes, while a lost one here holds up a call.
const RTO: Duration = Duration::from_millis(250);
/// At 0, 250, 750 and 1750 ms; as many as an alive relay with a tenth of its packets lost misses once in 10,000 times.
const TRIES: u32 = 4;
/// After the last try as long as it would take to the next one.
const LAST_TRY: Duration = Duration::from_millis(2000);
/// All tries together.
const PATIENCE: Duration = Duration::from_millis(3750);
/// RFC 8656 section 7.2.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
/// A server that grants less than this would be asked all the time.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(10);
/// Below the 30 s for which the strictest common NATs keep a UDP mapping.
const SILENT_AFTER: Duration = Duration::from_secs(15);
/// Data went out and nothing at all came back: with `PATIENCE` a dead relay is noticed within 5 s.
const DOUBT_AFTER: Duration = Duration::from_secs(1);
/// How late a channel may be bound again; a walk over the whole table.
const SWEEP_EVERY: Duration = Duration::from_secs(15);
/// How long a peer that the relay forbids is not asked for again.
const REFUSED_FOR: Duration = Duration::from_secs(30);
/// Requests under way at once: at 10 KiB of them a burst that every socket buffer holds.
const MAX_REQUESTS: usize = 64;
/// Credentials once, and two nonces that were stale on arrival.
const MAX_RENEWALS: u32 = 3;
const TRY_ALTERNATE: u16 = 300;
/// RFC 8489 section 6.3.4: an error response that names no code fails its transaction all the same.
const NO_CODE: u16 = 0;
const UNAUTHORIZED: u16 = 401;
const UNKNOWN_ATTRIBUTE: u16 = 420;
const ALLOCATION_MISMATCH: u16 = 437;
const STALE_NONCE: u16 = 438;
const FAMILY_NOT_SUPPORTED: u16 = 440;

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
