//! Which relays are asked, and whose answers are taken. All that may be wanted are asked side by side, so that one that does not
//! answer holds up none of the others, nor one that is named meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{sleep_until, Instant};

use super::client::{choose, reach, Allocation, CarryState, Options, MAX_RELAYS, WINDOW};
use super::in_use::{InUse, Standing};
use super::keeper::{Inner, RelayEvent, State};
use super::known::{Key, Known};
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

    /// The nearest of those that have answered, as many as are wanted, the nearest first; with those that lead to rendezvous nodes.
    fn choose(&mut self, wanted: usize) -> (Vec<Answer>, Vec<Answer>) {
        self.choice = None;
        let (introductions, mut answered): (Vec<_>, Vec<_>) =
            self.answered.drain(..).partition(|(known, _)| known.introduction);
        let mut chosen = Vec::new();
        while chosen.len() < wanted {
            let offers: Vec<_> = answered.iter().map(|(known, allocation)| (allocation.rtt, known.weight())).collect();
            let Some(best) = choose(&offers) else { break };
            chosen.push(answered.swap_remove(best));
        }
        (chosen, introductions)
    }
}

impl State {
    /// Whether it would be taken into use. The way to a rendezvous is, while there is no other.
    fn wants(&self, known: &Known, at_once: usize) -> bool {
        let have = self.in_use.have();
        !self.in_use.uses(known.key()) && if known.introduction { have == 0 } else { have < at_once }
    }
}

impl Inner {
    pub(super) async fn run(self: Arc<Self>) {
        let mut filling = Filling::default();
        loop {
            self.drop_lost();
            self.begin(&mut filling);
            if filling.is_decided(Instant::now()) {
                self.fill(&mut filling);
            }
            let retry = self.ask(&mut filling);
            self.tell();
            let settles = self.lock().in_use.settles_at();
            let next = filling.choice.into_iter().chain(retry).chain(settles).min();
            tokio::select! {
                () = self.news.notified() => {}
                Some(done) = filling.running.join_next_with_id() => {
                    if let Some((known, error)) = filling.handle(done) {
                        tracing::info!(relay = known.name, %error, "no relay");
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
        state.in_use.settle(Instant::now(), self.config.at_once);
        if filling.network != state.network {
            *filling = Filling { network: state.network, ..Filling::default() };
        }
    }

    /// Asks whoever may be wanted and is not asked yet. Returns when the next may be asked.
    fn ask(&self, filling: &mut Filling) -> Option<Instant> {
        let now = Instant::now();
        let mut state = self.lock();
        state.known.retain(|known| !known.is_expired(now));
        let wanted =
            state.known.iter().filter(|known| state.wants(known, self.config.at_once) && !filling.has(known.key()));
        let (mut due, later): (Vec<&Known>, Vec<&Known>) = wanted.partition(|known| known.is_due(now));
        // those that have failed least are asked first, where there are more than are asked at once
        due.sort_by_key(|known| known.failures());
        for known in due.into_iter().take(MAX_RELAYS.saturating_sub(filling.running.len())) {
            filling.ask(known.clone(), Options { deadline: self.config.deadline, ..Options::default() });
        }
        later.into_iter().filter_map(Known::retry_at).min()
    }

    /// Takes the nearest into use, until there are as many as there should be; the others are given back.
    fn fill(self: &Arc<Self>, filling: &mut Filling) {
        let wanted = self.config.at_once.saturating_sub(self.lock().in_use.have());
        let (chosen, introductions) = filling.choose(wanted);
        for (known, allocation) in chosen {
            self.take(&known, allocation);
        }
        if self.lock().in_use.have() == 0 {
            introductions.into_iter().for_each(|(known, allocation)| self.take(&known, allocation));
        }
    }

    fn take(self: &Arc<Self>, known: &Known, allocation: Allocation) {
        let wire = match self.net.open_wire() {
            Ok(wire) => wire,
            Err(error) => return self.note(known.key(), Err(error)),
        };
        self.note(known.key(), Ok(()));
        let (via, addresses, transport, rtt) =
            (wire.via, allocation.relayed.clone(), allocation.transport, allocation.rtt);
        tracing::info!(relay = known.name, %transport, ?addresses, ?rtt, "relay in use");
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
        let mut state = self.lock();
        state.in_use.add(InUse { relay, introduction, via, addresses, transport, rtt, carrier, standing });
        state.in_use.replace(Instant::now(), self.config.at_once);
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
                continue; // another is in use there, or asked for
            }
            self.note(Key { host: &relay, introduction }, Err(error.clone()));
            let _ = self.events.send(RelayEvent::Lost { relay, error });
        }
    }
}
