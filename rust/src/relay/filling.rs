//! Which relays are asked, and whose answers are taken. All that may be wanted are asked side by side, so that one that does not
//! answer holds up none of the others, nor one that is named meanwhile. Whoever becomes known is asked once, to see whether it is
//! nearer than those in use.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep_until, Instant};

use super::client::{choose, reach, Allocation, CarryState, Options};
use super::in_use::{InUse, Standing};
use super::keeper::{Inner, RelayEvent, State};
use super::known::{Key, Known};
use crate::addr::Via;
use crate::error::{Error, Reason, Result, Stage};

type Answer = (Known, Allocation);

/// The attempts under way, and what has come of others. Dropping it ends them, and gives back what was not taken.
#[derive(Default)]
struct Filling {
    running: JoinSet<Result<Allocation>>,
    asked: HashMap<Id, Known>,
    answered: Vec<Answer>,
    /// When the nearest of those that have answered are taken.
    choice: Option<Instant>,
    /// As in [`State`].
    network: u64,
    /// When it may be asked again how far relays are away that are not needed.
    look: Option<Instant>,
}

impl Filling {
    /// It is asked just now, or has answered.
    fn has(&self, key: Key<'_>) -> bool {
        self.asked.values().chain(self.answered.iter().map(|(known, _)| known)).any(|known| known.key() == key)
    }

    /// Nobody else is waited for.
    fn is_decided(&self, now: Instant) -> bool {
        !self.answered.is_empty() && (self.running.is_empty() || self.choice.is_some_and(|at| at <= now))
    }

    fn ask(&mut self, known: Known, options: Options) {
        let ways = known.ways.clone();
        let task = self.running.spawn(async move { reach(ways, &options).await });
        self.asked.insert(task.id(), known);
    }

    /// An attempt has ended; with the relay, if there is nothing to take.
    fn handle(&mut self, done: std::result::Result<(Id, Result<Allocation>), JoinError>) -> Option<(Known, Error)> {
        let (id, result) = match done {
            Ok((id, result)) => (id, result),
            Err(broken) => {
                let error = Error::new(Reason::Internal, Stage::Relay, broken.to_string());
                (broken.id(), Err(error))
            }
        };
        let known = self.asked.remove(&id)?;
        match result {
            Ok(allocation) => {
                self.choice.get_or_insert(Instant::now() + WINDOW);
                self.answered.push((known, allocation));
                None
            }
            Err(error) => Some((known, error)),
        }
    }

    /// The best of those that have answered.
    fn take_best(&mut self) -> Option<Answer> {
        let offers: Vec<_> = self.answered.iter().map(|(known, allocation)| (allocation.rtt, known.weight())).collect();
        choose(&offers).map(|best| self.answered.swap_remove(best))
    }
}

/// What a relay is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Use,
    /// Whether it is nearer than those in use.
    Look,
}

impl State {
    /// The way to a rendezvous is used while there is no other.
    fn wish(&self, known: &Known, at_once: usize) -> Option<Wish> {
        let have = self.in_use.have();
        let wanted = if known.introduction { have == 0 } else { have < at_once };
        match wanted {
            _ if self.in_use.uses(known.key()) || !self.may_take(known) => None,
            true => Some(Wish::Use),
            false => (!known.introduction && !known.asked).then_some(Wish::Look),
        }
    }

    /// Those that are to be drained are for want of others.
    fn may_take(&self, known: &Known) -> bool {
        known.weight() > 0 || self.in_use.have() == 0
    }
}

impl Inner {
    pub(super) async fn run(self: Arc<Self>) {
        let mut filling = Filling::default();
        let mut is_lack_said = false;
        loop {
            self.drop_lost();
            self.begin(&mut filling);
            if filling.is_decided(Instant::now()) {
                self.fill(&mut filling);
            }
            let retry = self.ask(&mut filling);
            self.tell();
            is_lack_said &= self.lock().in_use.have() == 0;
            let settles = self.lock().in_use.settles_at();
            let next = filling.choice.into_iter().chain(retry).chain(settles).min();
            tokio::select! {
                () = self.news.notified() => {}
                Some(done) = filling.running.join_next_with_id() => {
                    if let Some((known, error)) = filling.handle(done) {
                        let has_one = self.lock().in_use.have() > 0;
                        if known.is_the_users() && !has_one && !is_lack_said {
                            tracing::warn!(relay = known.name, %error, "no relay is reached; it is tried again");
                            is_lack_said = true;
                        } else {
                            tracing::info!(relay = known.name, %error, "no relay");
                        }
                        self.note(known.key(), Err(error));
                    }
                }
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    /// What time and the network have brought since the last time.
    fn begin(&self, filling: &mut Filling) {
        let mut state = self.lock();
        if state.in_use.settle(Instant::now(), self.config.at_once) {
            let _ = self.events.send(RelayEvent::Changed);
        }
        let mut hopeless = false;
        for known in &mut state.known {
            let asked = filling.asked.values().any(|asked| asked.key() == known.key());
            hopeless |= std::mem::take(&mut known.anew) && asked;
        }
        if filling.network != state.network || hopeless {
            *filling = Filling { network: state.network, ..Filling::default() };
        }
    }

    /// Asks whoever may be wanted and is not asked yet. Returns when the next may be asked.
    fn ask(&self, filling: &mut Filling) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        state.known.retain(|known| !known.is_expired(now));
        let may_look = filling.look.is_none_or(|at| at <= now);
        let (mut due, mut later, mut looks) = (Vec::new(), Vec::new(), false);
        for (place, known) in state.known.iter().enumerate().filter(|(_, known)| !filling.has(known.key())) {
            match state.wish(known, self.config.at_once) {
                None => {}
                Some(_) if !known.is_due(now) => later.extend(known.retry_at()),
                Some(Wish::Look) if !may_look => later.extend(filling.look),
                Some(wish) => {
                    looks |= wish == Wish::Look;
                    due.push((known.failures(), place));
                }
            }
        }
        if looks {
            filling.look = Some(now + LOOK_EVERY);
        }
        // those that have failed least are asked first, where there are more than are asked at once
        due.sort_unstable();
        for (_, place) in due.into_iter().take(MAX_RELAYS.saturating_sub(filling.running.len())) {
            state.known[place].asked = true;
            let options = Options { deadline: self.config.deadline, ..Options::default() };
            filling.ask(state.known[place].clone(), options);
        }
        later.into_iter().min()
    }

    /// Takes the nearest into use, until there are as many as there should be, and others where they are nearer than what is in use.
    /// What is left is given back.
    fn fill(self: &Arc<Self>, filling: &mut Filling) {
        filling.choice = None;
        let answered = std::mem::take(&mut filling.answered);
        let (introductions, others): (Vec<_>, Vec<_>) = answered.into_iter().partition(|(known, _)| known.introduction);
        filling.answered = others;
        while let Some((known, allocation)) = filling.take_best() {
            let state = self.lock();
            let may_take = state.may_take(&known);
            let room = state.in_use.have() < self.config.at_once;
            let instead_of = state.in_use.farther_than(allocation.rtt, allocation.transport);
            drop(state);
            match (room, instead_of) {
                _ if !may_take => {}
                (true, _) => self.take(&known, allocation, None),
                (false, Some(via)) => self.take(&known, allocation, Some(via)),
                (false, None) => {}
            }
        }
        if self.lock().in_use.have() == 0 {
            introductions.into_iter().for_each(|(known, allocation)| self.take(&known, allocation, None));
        }
    }

    fn take(self: &Arc<Self>, known: &Known, allocation: Allocation, instead_of: Option<Via>) {
        let wire = match self.net.open_wire() {
            Ok(wire) => wire,
            Err(error) => return self.note(known.key(), Err(error)),
        };
        self.note(known.key(), Ok(()));
        let (via, addresses, transport, rtt) =
            (wire.via, allocation.relayed.clone(), allocation.transport, allocation.rtt);
        tracing::info!(relay = known.name, %transport, ?addresses, ?rtt, "relay in use");
        let proxy = allocation.proxy.clone();
        let carrier = allocation.carry(wire);
        let (mut watched, inner) = (carrier.state(), Arc::downgrade(self));
        tokio::spawn(async move {
            let _ = watched.wait_for(|state| *state != CarryState::Carrying).await;
            if let Some(inner) = inner.upgrade() {
                inner.news.notify_one();
            }
        });
        let event = RelayEvent::Connected { relay: known.name.clone(), addresses: addresses.clone() };
        let (relay, introduction) = (known.name.clone(), known.introduction);
        let standing = Standing::Current;
        let (mut state, now) = (self.lock(), Instant::now());
        let since = now;
        state.in_use.add(InUse {
            relay,
            introduction,
            via,
            addresses,
            transport,
            proxy,
            rtt,
            since,
            carrier,
            standing,
        });
        if let Some(via) = instead_of {
            state.in_use.give_up(via, now);
        }
        state.in_use.replace(now, self.config.at_once);
        drop(state);
        let _ = self.events.send(event);
        self.tell();
    }

    /// Takes those out that have ended.
    fn drop_lost(&self) {
        let mut lost = Vec::new();
        self.lock().in_use.retain(|one| {
            let ended = match &*one.carrier.state().borrow() {
                CarryState::Carrying => return true,
                CarryState::Lost(error) => Some(error.clone()),
                CarryState::Closed => None,
            };
            lost.push((one.relay.clone(), one.introduction, one.is_current(), ended));
            false
        });
        for (relay, introduction, was_current, error) in lost {
            let Some(error) = error else { continue };
            tracing::info!(relay, was_current, %error, "relay lost");
            if !was_current {
                // another is in use there, or asked for
                let _ = self.events.send(RelayEvent::Changed);
                continue;
            }
            self.note(Key { host: &relay, introduction }, Err(error.clone()));
            let _ = self.events.send(RelayEvent::Lost { relay, error });
        }
    }
}

/// Whoever names new relays all the time does not make his clients ask all the time: of a rendezvous that is 8 in 10 s.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long relays that are farther away may still answer: those that come later lie behind the first by as much.
const WINDOW: Duration = Duration::from_millis(100);
/// A node needs one; some more are there in case.
const MAX_RELAYS: usize = 16;
