//! How many of this node's own dials may be looking for their peers at once.
//!
//! Each has an exchange by way of the rendezvous and the pings of a meeting. Where everything is quick, many at once are soonest done;
//! where the rendezvous, the peers or this machine have too much to do, each of many takes longer than all of few one after the other,
//! and what nobody answers in time is said again on top. So the number follows from how long they take, as a congestion window does
//! (additive increase, multiplicative decrease), compared with the quickest (TCP Vegas): a far rendezvous is not a busy one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The places, in the order in which they are asked for.
#[derive(Debug)]
pub(super) struct Turns {
    places: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    window: Window,
    /// Places that there are now, taken or not.
    places: usize,
}

/// One place; dropping it gives it back.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub fn new() -> Self {
        let window = Window::new();
        let places = window.places();
        Self { places: Arc::new(Semaphore::new(places)), state: Mutex::new(State { window, places }) }
    }

    /// Waits for a place. `None`: there are none any more.
    pub async fn take(&self) -> Option<Turn<'_>> {
        let permit = self.places.clone().acquire_owned().await.ok()?;
        Some(Turn { turns: self, permit: Some(permit) })
    }

    /// A path came about so long after its turn began, where nothing had to be guessed or searched. Those that never do say nothing:
    /// their peers are not there, or out of reach.
    pub fn took(&self, time: Duration) {
        self.lock().window.took(Instant::now(), time);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(permit) = self.permit.take() else { return };
        let mut state = self.turns.lock();
        let wanted = state.window.places();
        if state.places > wanted {
            permit.forget();
            state.places -= 1;
        } else if state.places < wanted {
            self.turns.places.add_permits(wanted - state.places);
            state.places = wanted;
        }
    }
}

/// How many at once. Nothing here waits, and the time is an argument.
#[derive(Debug)]
struct Window {
    size: f64,
    quickest: Option<(Duration, Instant)>,
    cut: Option<Instant>,
}

impl Window {
    fn new() -> Self {
        Self { size: FIRST, quickest: None, cut: None }
    }

    fn places(&self) -> usize {
        self.size as usize
    }

    fn took(&mut self, now: Instant, took: Duration) {
        let known = self.quickest.filter(|(_, at)| now.saturating_duration_since(*at) < REMEMBERED);
        if known.is_none_or(|(quickest, _)| took <= quickest) {
            self.quickest = Some((took, now));
        }
        let usual = known.map_or(took, |(quickest, _)| quickest.min(took));
        if took <= QUICK.max(usual * 2) {
            self.size = (self.size + 1.0).min(MOST);
        } else if self.cut.is_none_or(|at| now.saturating_duration_since(at) >= took / 2) {
            // those that began with it are as late, and are not counted again
            self.size = (self.size * 0.7).max(LEAST);
            self.cut = Some(now);
        }
    }
}

/// A node that dials a few others dials all of them at once.
const FIRST: f64 = 6.0;
const LEAST: f64 = 3.0;
const MOST: f64 = 32.0;
/// Three round trips of a long path by way of a third node: that is not slow, however quick others were.
const QUICK: Duration = Duration::from_millis(750);
/// A path to the rendezvous does not stay the same for ever.
const REMEMBERED: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn after(window: &mut Window, start: Instant, tooks: impl IntoIterator<Item = u32>) -> usize {
        let mut now = start;
        for took in tooks {
            now += MILLI * 100;
            window.took(now, MILLI * took);
        }
        window.places()
    }

    #[test]
    fn where_all_is_quick_there_are_more_and_more() {
        let mut window = Window::new();
        assert_eq!(window.places(), FIRST as usize);
        assert_eq!(after(&mut window, Instant::now(), [90; 100]), MOST as usize);
    }

    #[test]
    fn where_they_hold_each_other_up_there_are_fewer_and_never_none() {
        let mut window = Window::new();
        let start = Instant::now();
        after(&mut window, start, [200; 10]);
        assert_eq!(after(&mut window, start + MILLI * 1_000, [2_500; 100]), LEAST as usize);
        assert!(
            after(&mut window, start + MILLI * 12_000, [200; 20]) > 2 * LEAST as usize,
            "and more again afterwards"
        );
    }

    #[test]
    fn a_far_rendezvous_is_not_a_busy_one() {
        let mut window = Window::new();
        assert_eq!(after(&mut window, Instant::now(), [2_000; 100]), MOST as usize);
    }

    #[test]
    fn those_that_began_together_and_are_late_together_count_once() {
        let mut window = Window::new();
        let start = Instant::now();
        after(&mut window, start, [200; 2]);
        let late = start + MILLI * 3_000;
        (0..8).for_each(|_| window.took(late, MILLI * 2_800));
        assert_eq!(window.places(), 5, "two quick ones more, and three tenths less, once");
    }

    #[tokio::test]
    async fn places_follow_the_window_and_those_who_wait_have_their_turn_in_order() {
        let turns = Turns::new();
        let mut held = Vec::new();
        for _ in 0..FIRST as usize {
            held.push(turns.take().await);
        }
        assert_eq!(turns.places.available_permits(), 0);
        for turn in held.drain(..) {
            turns.took(MILLI * 90);
            drop(turn);
        }
        assert_eq!(turns.places.available_permits(), turns.lock().window.places());
        assert!(turns.lock().window.places() > FIRST as usize, "all were quick");
    }
}
