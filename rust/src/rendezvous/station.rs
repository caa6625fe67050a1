//! One rendezvous node and the session with it: connect, register, stay, and connect again.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, Notify};
use tokio::time::{interval_at, sleep, timeout, timeout_at, Instant, MissedTickBehavior};
use tonic::{Code, Status, Streaming};

use super::moves::answer_within;
use super::pause::Pause;
use super::unanswered;
use super::wire::{
    self, FromNode, FromRendezvous, Going, Hello, NodeMessage, Refresh, RendezvousMessage, Signal, Welcome,
};
use super::{Inner, RendezvousEvent};
use crate::addr::{unmapped, NodeId};
use crate::error::{printable, Error, Reason, Result, Stage, MAX_OUTSIDE};
use crate::open::{Open, Priority};
use crate::path::is_local;
use crate::peer::{Dial, Link};

/// Where a rendezvous node is: `<node id>@host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub node: NodeId,
    pub address: String,
}

/// How it stands with one rendezvous node.
#[derive(Clone, Debug)]
pub struct StationStatus {
    pub node: NodeId,
    pub address: String,
    pub connected: bool,
    /// When this node registered.
    pub since: Option<Instant>,
    /// When the last session ended, if none has begun since.
    pub lost: Option<Instant>,
    /// When it is tried next, if it is not being tried now.
    pub next_try: Option<Instant>,
    /// Our own address as it sees us.
    pub observed: Option<SocketAddr>,
    pub rtt: Option<Duration>,
    /// Seconds by which its clock was ahead of this machine's when the session began, if it said so.
    pub clock_ahead: Option<f64>,
    /// Why the last attempt failed, or the last session ended.
    pub error: Option<Error>,
}

/// A rendezvous node.
pub struct Station {
    pub server: Server,
    state: Mutex<State>,
    /// The network has changed: what failed may work now.
    pub again: Notify,
    /// The node has another key.
    pub renew: Notify,
    /// The session has to show that it works.
    check: Notify,
}

#[derive(Default)]
struct State {
    session: Option<Session>,
    /// When the session before ended.
    lost: Option<Instant>,
    next_try: Option<Instant>,
    error: Option<Error>,
    /// An attempt has ended, well or not.
    tried: bool,
    /// The rendezvous has said that it goes, and how far its nodes are to be spread when they come again.
    going: Option<Duration>,
    /// The relays that it names first in a session: it may have been away before.
    relays_named: bool,
    /// That nothing answers has been said since the last session.
    is_silence_said: bool,
}

struct Session {
    since: Instant,
    messages: mpsc::Sender<NodeMessage>,
    /// Where it is.
    from: SocketAddr,
    observed: Option<SocketAddr>,
    rtt: Duration,
    clock_ahead: Option<f64>,
}

impl Station {
    pub fn new(server: Server) -> Self {
        Self { server, state: Mutex::default(), again: Notify::new(), renew: Notify::new(), check: Notify::new() }
    }

    pub fn is_connected(&self) -> bool {
        self.lock().session.is_some()
    }

    /// An attempt to connect has ended without success, and none has succeeded since.
    pub fn has_failed(&self) -> bool {
        let state = self.lock();
        state.tried && state.session.is_none()
    }

    pub fn status(&self) -> StationStatus {
        let state = self.lock();
        StationStatus {
            node: self.server.node,
            address: self.server.address.clone(),
            connected: state.session.is_some(),
            since: state.session.as_ref().map(|session| session.since),
            lost: state.lost.filter(|_| state.session.is_none()),
            next_try: state.next_try,
            observed: state.session.as_ref().and_then(|session| session.observed),
            rtt: state.session.as_ref().map(|session| session.rtt),
            clock_ahead: state.session.as_ref().and_then(|session| session.clock_ahead),
            error: state.error.clone(),
        }
    }

    /// Lets go of the session: whoever could still send would keep its connection open.
    pub fn end(&self) {
        self.lock().session = None;
    }

    /// What failed may work now, and what works may not.
    pub fn network_changed(&self) {
        self.again.notify_one();
        self.check.notify_one();
    }

    /// Nothing comes from the rendezvous any more.
    pub fn fell_silent(&self) {
        self.check.notify_one();
    }

    /// Whether it is in a network of ours, and not on the internet.
    pub fn is_inside(&self) -> bool {
        self.lock().session.as_ref().is_some_and(|session| is_local(unmapped(session.from).ip()))
    }

    /// Hands a signal to the rendezvous. False: there is no session, or it takes nothing for the moment.
    pub fn send(&self, signal: &Signal) -> bool {
        self.tell(FromNode::Signal(signal.clone()))
    }

    /// The same for any message.
    pub fn tell(&self, message: FromNode) -> bool {
        let message = NodeMessage { kind: Some(message) };
        self.lock().session.as_ref().is_some_and(|session| session.messages.try_send(message).is_ok())
    }

    /// Stays registered until the end of the program; each session's end is an event.
    pub async fn run(self: Arc<Self>, inner: Arc<Inner>) {
        let mut pause = Pause::new(&inner.config);
        let mut next = None;
        loop {
            let started = Instant::now();
            let result = match self.attempt(&inner, next.take()).await {
                Ok(Ended::Replaced(by)) => {
                    next = Some(by);
                    continue;
                }
                result => result,
            };
            let was_connected = self.lock().session.take().is_some();
            let error = match result {
                Ok(Ended::Renewed) => continue,
                Ok(_) => unreachable("the rendezvous ended the session"),
                Err(error) => error,
            };
            let error = error.with_node(self.server.node);
            let reason = error.reason;
            {
                let mut state = self.lock();
                state.error = Some(error.clone());
                state.tried = true;
                if was_connected {
                    state.lost = Some(Instant::now());
                }
            }
            tracing::info!(%error, address = %self.server.address, "no rendezvous");
            inner.publish(RendezvousEvent::Lost {
                node: self.server.node,
                address: self.server.address.clone(),
                error,
                was_connected,
            });
            inner.progress.notify_waiters();
            if self.is_identity_in_use() {
                tracing::warn!(address = %self.server.address, "another program has this node's identity: not trying again");
                // only one of the two can be found, and the newer wins once; with another key this is another node
                self.renew.notified().await;
                continue;
            }
            if was_connected && started.elapsed() > inner.config.reconnect_most {
                pause.reset();
            }
            let wait = match self.lock().going.take() {
                Some(spread) => pause.after_going(spread, random()),
                None => pause.after(reason, random()),
            };
            self.lock().next_try = Some(Instant::now() + wait);
            tokio::select! {
                () = sleep(wait) => {}
                () = self.again.notified() => {}
            }
            self.lock().next_try = None;
        }
    }

    /// The last session ended because another program registered with the same identity.
    pub fn is_identity_in_use(&self) -> bool {
        self.lock().error.as_ref().is_some_and(|error| error.reason == Reason::IdentityInUse)
    }

    /// A session. While the way to it is sought for longer than usual, what stands in the way is said, once an outage.
    async fn attempt(&self, inner: &Arc<Inner>, next: Option<Box<Established>>) -> Result<Ended> {
        let session = self.session(inner, next);
        tokio::pin!(session);
        if !self.lock().is_silence_said {
            let unanswered = async {
                sleep(SILENCE).await;
                match self.is_connected() {
                    true => None,
                    false => Some(unanswered::why(&self.server.address).await),
                }
            };
            tokio::select! {
                ended = &mut session => return ended,
                error = unanswered => if let Some(error) = error.filter(|_| !self.is_connected()) {
                    self.say(inner, error.with_node(self.server.node));
                },
            }
        }
        session.await
    }

    fn say(&self, inner: &Inner, error: Error) {
        {
            let mut state = self.lock();
            state.is_silence_said = true;
            state.error = Some(error.clone());
        }
        tracing::warn!(%error, address = %self.server.address, "no rendezvous yet");
        let (node, address) = (self.server.node, self.server.address.clone());
        inner.publish(RendezvousEvent::Lost { node, address, error, was_connected: false });
    }

    /// One session: the one that is to take the place of that before, if there is one.
    async fn session(&self, inner: &Arc<Inner>, next: Option<Box<Established>>) -> Result<Ended> {
        let established = match next {
            Some(next) => *next,
            None => self.connect(inner, Haste::None).await?,
        };
        let Established { streams, welcome, from, rtt, clock_ahead, relayed, left_relay } = established;
        let (node, observed) = (self.server.node, welcome.observed.parse().ok().filter(|_| !relayed));
        {
            let mut state = self.lock();
            // one that takes the place of another: this node was registered all the time
            let since = state.session.as_ref().map_or_else(Instant::now, |before| before.since);
            let messages = streams.messages.clone();
            state.session = Some(Session { since, messages, from, observed, rtt, clock_ahead });
            state.error = None;
            state.tried = true;
            (state.going, state.relays_named) = (None, false);
            state.is_silence_said = false;
        }
        let seen = printable(welcome.observed.clone(), MAX_OUTSIDE);
        tracing::info!(%node, address = %from, relayed, observed = seen, "rendezvous connected");
        inner.welcomed(&welcome, from, observed);
        if left_relay {
            // what was found out while no UDP got through no longer holds
            let host = split_address(&self.server.address).map(|(host, _)| host);
            inner.relays.udp_is_back(host);
            inner.look.notify_one();
        }
        inner.publish(RendezvousEvent::Connected { node, address: from, observed });
        inner.progress.notify_waiters();
        inner.sessions.notify_waiters();
        self.serve(inner, streams, &welcome, relayed).await
    }

    /// Registers over a link.
    async fn establish(&self, inner: &Inner, mut link: Link, deadline: Instant) -> Result<Established> {
        let open = Open { service_port: SERVICE_PORT, node: Some(self.server.node), ..Open::default() };
        // it is dialled again at once; what an old session waits for is of no use to anybody
        link.utp().set_patience(Duration::ZERO);
        link.open(&open, deadline).await?;
        let (from, rtt) = (link.address, link.rtt());
        // what it sees then is an address of the relay
        let relayed = link.utp().route().via.is_relay();
        let (messages, queue) = mpsc::channel(QUEUE);
        let hello = NodeMessage { kind: Some(FromNode::Hello(Hello { agent: AGENT.to_owned() })) };
        let _ = messages.try_send(hello);
        let registered = async {
            let mut incoming = wire::register(link.stream, queue).await?;
            let welcome = match incoming.message().await? {
                Some(RendezvousMessage { kind: Some(FromRendezvous::Welcome(welcome)), .. }) => welcome,
                _ => return Err(Status::internal("no welcome")),
            };
            Ok((incoming, welcome))
        };
        match timeout(inner.config.connect_timeout, registered).await {
            Ok(Ok((incoming, welcome))) => {
                let streams = Streams { incoming, messages };
                let clock_ahead = clock_ahead(&welcome);
                Ok(Established { streams, welcome, from, rtt, clock_ahead, relayed, left_relay: false })
            }
            Ok(Err(status)) => Err(map_status(&status)),
            Err(_) => Err(unreachable("the rendezvous did not welcome this node in time")),
        }
    }

    fn dial(&self, within: Duration) -> Dial {
        let (node, address) = (self.server.node, Some(self.server.address.clone()));
        Dial { node, address, priority: Priority::Interactive, deadline: Instant::now() + within }
    }

    async fn connect(&self, inner: &Arc<Inner>, haste: Haste) -> Result<Established> {
        let dial = self.dial(inner.config.connect_timeout);
        let link = self.reach(inner, &dial, haste).await?;
        self.establish(inner, link, dial.deadline).await
    }

    /// Dials it; through relays as well, when nothing has come of it for a moment.
    async fn reach(&self, inner: &Arc<Inner>, dial: &Dial, haste: Haste) -> Result<Link> {
        let direct = inner.peers.dial_directly(dial);
        let relayed = async {
            sleep(inner.relay_config.head_start).await;
            if haste == Haste::None && inner.peers.net.stats().datagrams_in > 0 {
                sleep(inner.relay_config.head_start_heard).await;
            }
            if let Some((host, _)) = split_address(&self.server.address) {
                if !inner.relays.has_current() && !inner.relays.introduces(host) {
                    inner.relays.introduce(host, self.server.node);
                }
            }
            inner.relays.reachable().await;
            inner.peers.dial_over(dial, &inner.relays.to_rendezvous()).await
        };
        tokio::pin!(direct, relayed);
        tokio::select! {
            link = &mut relayed => match link {
                Ok(link) => Ok(link),
                Err(error) => direct.await.map_err(|_| error),
            },
            link = &mut direct => match link {
                Ok(link) => Ok(link),
                // the relay has the time that is left
                Err(error) => match timeout_at(dial.deadline, relayed).await {
                    Ok(Ok(link)) => Ok(link),
                    _ => Err(error),
                },
            },
        }
    }

    /// Registers without a relay at a rendezvous that is reached over one: tries it now and then, until it works.
    async fn leave_relay(&self, inner: &Inner) -> Box<Established> {
        let mut network = inner.surroundings.generation();
        network.mark_unchanged();
        let mut pause = inner.relay_config.upgrade_after;
        loop {
            if let Ok(Ok(())) = timeout(pause, network.changed()).await {
                pause = inner.relay_config.upgrade_after;
            }
            let dial = self.dial(inner.config.connect_timeout);
            let registered = async {
                let link = inner.peers.dial_unrelayed(&dial).await?;
                self.establish(inner, link, dial.deadline).await
            };
            match registered.await {
                Ok(established) => return Box::new(Established { left_relay: true, ..established }),
                Err(error) => tracing::debug!(%error, "the rendezvous still needs a relay"),
            }
            pause = (pause * 2).min(inner.relay_config.upgrade_most);
        }
    }

    /// Registers beside a session that does not answer any more, when the network has changed or its path has fallen silent: others
    /// are not to be looked for through it, nor is this node. What comes back meanwhile is as good as it was.
    async fn replace_silent(&self, inner: &Arc<Inner>) -> Box<Established> {
        loop {
            self.check.notified().await;
            let since = inner.peers.net.ask_anyway(&self.server.node);
            let rtt = self.lock().session.as_ref().map(|session| session.rtt);
            sleep(answer_within(rtt)).await;
            let is_back = || inner.peers.net.is_heard_since(&self.server.node, since);
            let mut pause = inner.config.reconnect_after;
            while !is_back() {
                tracing::debug!(address = %self.server.address, "the rendezvous does not answer: registering anew");
                let back = async {
                    while !is_back() {
                        sleep(LOOK_EVERY).await;
                    }
                };
                tokio::select! {
                    next = self.connect(inner, Haste::NoUdp) => match next {
                        Ok(next) => return Box::new(next),
                        Err(error) => tracing::debug!(%error, "the rendezvous is not reached anew"),
                    },
                    () = back => break,
                }
                let _ = timeout(pause, self.check.notified()).await;
                pause = (pause * 2).min(inner.config.reconnect_most);
            }
        }
    }

    async fn serve(&self, inner: &Arc<Inner>, mut streams: Streams, welcome: &Welcome, relayed: bool) -> Result<Ended> {
        let every = Duration::from_secs(welcome.refresh_seconds.clamp(1, MAX_REFRESH).into());
        let mut refresh = interval_at(Instant::now() + every, every);
        refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let leaving = async {
            match relayed {
                true => self.leave_relay(inner).await,
                false => std::future::pending().await,
            }
        };
        let replacing = async {
            tokio::select! {
                next = leaving => next,
                next = self.replace_silent(inner) => next,
            }
        };
        tokio::pin!(replacing);
        let mut gone = false;
        loop {
            tokio::select! {
                message = streams.incoming.message() => match message {
                    Ok(Some(message)) => gone |= self.handle(inner, message),
                    Ok(None) => return Ok(Ended::ByServer),
                    // another registration of this node counts now: most likely the one that is on its way
                    Err(status) if status.code() == Code::Aborted => {
                        return match timeout(OWN_NEXT, &mut replacing).await {
                            Ok(next) => Ok(Ended::Replaced(next)),
                            Err(_) => Err(map_status(&status)),
                        };
                    }
                    Err(status) => return Err(map_status(&status)),
                },
                () = self.renew.notified() => return Ok(Ended::Renewed),
                // another has what this one had: the rendezvous need not wait for us
                () = inner.is_elsewhere(self), if gone => return Err(unreachable(GOING)),
                next = &mut replacing => {
                    // what was said before the other session counted; where nothing comes any more, nothing is waited for
                    let patience = if next.left_relay { LAST_WORDS } else { Duration::ZERO };
                    while let Ok(Ok(Some(message))) = timeout(patience, streams.incoming.message()).await {
                        let _ = self.handle(inner, message);
                    }
                    return Ok(Ended::Replaced(next));
                }
                _ = refresh.tick() => {
                    let message = NodeMessage { kind: Some(FromNode::Refresh(Refresh {})) };
                    if streams.messages.send(message).await.is_err() {
                        return Ok(Ended::ByServer);
                    }
                }
            }
        }
    }

    /// Whether the rendezvous goes.
    fn handle(&self, inner: &Arc<Inner>, message: RendezvousMessage) -> bool {
        match message.kind {
            Some(FromRendezvous::Going(Going { spread })) => {
                self.lock().going = Some(Duration::from_millis(spread.into()));
                tracing::info!(node = %self.server.node, "the rendezvous is going away");
                inner.going(self);
                if !inner.has_another(self) {
                    // where should we go: it need not wait
                    self.tell(FromNode::Refresh(Refresh {}));
                }
                true
            }
            Some(kind) => {
                let observed = message.observed.parse().ok().map(|address| unmapped(address).ip());
                inner.handle(self, kind, observed);
                false
            }
            None => false,
        }
    }

    /// Whether the rendezvous has said that it goes.
    pub fn is_going(&self) -> bool {
        self.lock().going.is_some()
    }

    /// Whether it has named no relays yet in this session; once.
    pub fn names_relays_anew(&self) -> bool {
        !std::mem::replace(&mut self.lock().relays_named, true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a session ended in order.
enum Ended {
    ByServer,
    Renewed,
    /// There is another session: one without a relay, or one that works.
    Replaced(Box<Established>),
}

/// A session that has begun.
struct Established {
    streams: Streams,
    welcome: Welcome,
    /// Where the rendezvous is.
    from: SocketAddr,
    rtt: Duration,
    clock_ahead: Option<f64>,
    relayed: bool,
    /// That before was reached over a relay, and this one is not.
    left_relay: bool,
}

/// What is known of the way to the rendezvous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Haste {
    None,
    /// Its UDP has just not been answered: no more time is given to that.
    NoUdp,
}

/// The two directions of a session; it ends when they are dropped.
struct Streams {
    incoming: Streaming<RendezvousMessage>,
    messages: mpsc::Sender<NodeMessage>,
}

/// Seconds by which the clock of the rendezvous is ahead of this machine's.
fn clock_ahead(welcome: &Welcome) -> Option<f64> {
    let own = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    (welcome.unix_milliseconds > 0).then(|| welcome.unix_milliseconds as f64 / 1e3 - own)
}

/// The host without brackets, and the port.
pub(super) fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some((host, port.parse().ok()?))
}

fn map_status(status: &Status) -> Error {
    let text = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Code::Aborted => Error::new(
            Reason::IdentityInUse,
            Stage::Rendezvous,
            "another program runs with this node's identity and has registered after this one",
        ),
        Code::ResourceExhausted => Error::new(Reason::RendezvousBusy, Stage::Rendezvous, text),
        _ => unreachable(text),
    }
}

pub(super) fn unreachable(text: impl Into<String>) -> Error {
    Error::new(Reason::RendezvousUnreachable, Stage::Rendezvous, text)
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // without randomness all wait for the shortest time, which is long enough
    let _ = getrandom::fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

const GOING: &str = "the rendezvous is going away, as it has said";
/// rendezvous.proto.
const SERVICE_PORT: u16 = 7_348;
const AGENT: &str = concat!("keynet/", env!("CARGO_PKG_VERSION"));
/// Messages on their way out: each is one step of an exchange. A node that dials a hundred others at once has two for each.
const QUEUE: usize = 256;
/// After a session that another has replaced it takes no longer until that one has begun here, if it is ours.
const OWN_NEXT: Duration = Duration::from_secs(5);
/// A rendezvous that has not welcomed a node by then is far away, or not there.
const SILENCE: Duration = Duration::from_millis(1_500);
/// The end of a session that another has replaced comes a round trip after that one's beginning.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Whether a session that was given up has come back meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A refresh once a day is as good as none.
const MAX_REFRESH: u32 = 86_400;
