//! Connections that send in bulk to one remote take turns. A thousand that share a path all the time would leave each a window
//! of two or three packets, where a batch is 44 and the sum of the smallest windows is more than most paths hold; a few at a
//! time share it as a few do. Who has little to send never waits.

use std::collections::VecDeque;

use super::endpoint::Handle;

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// So much may still leave without asking.
    Free { left: u64 },
    /// In the queue.
    Waiting,
    /// It is its turn.
    Holding { left: u64 },
    /// Its turn ends when no more than this is in flight.
    Ending { in_flight: u64 },
}

/// What a connection has to do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Something was never sent.
    pub unsent: bool,
    pub in_flight: u64,
    /// Bytes that congestion control lets be in flight.
    pub window: u64,
    /// It cannot send now, and not because of the path's rate: the peer has no room or does not answer.
    pub stuck: bool,
}

/// Whose turn it is, towards one remote.
#[derive(Debug)]
pub struct Turns {
    /// At most [`AT_ONCE`].
    holding: Vec<Handle>,
    /// Each connection once at most.
    waiting: VecDeque<Handle>,
    /// Bytes of a turn.
    quantum: u64,
}

impl Turn {
    /// Of a connection that has nothing in flight and nothing to send.
    pub const RESTED: Self = Self::Free { left: FREE };

    /// New bytes that may leave.
    pub fn allowance(self, load: &Load) -> u64 {
        match self {
            // probes of a closed window are new bytes too
            Self::Free { .. } if load.stuck => u64::MAX,
            Self::Free { left } | Self::Holding { left } => left,
            Self::Waiting | Self::Ending { .. } => 0,
        }
    }

    /// So many of them left.
    pub fn spend(&mut self, bytes: u64) {
        if let Self::Free { left } | Self::Holding { left } = self {
            *left = left.saturating_sub(bytes);
        }
    }
}

impl Default for Turns {
    fn default() -> Self {
        Self { holding: Vec::new(), waiting: VecDeque::new(), quantum: QUANTUM }
    }
}

impl Turns {
    /// The turn of a connection now that its load is this.
    pub fn step(&mut self, handle: Handle, turn: Turn, load: &Load) -> Turn {
        match turn {
            Turn::Free { .. } if !load.unsent && load.in_flight == 0 => Turn::RESTED,
            Turn::Free { left: 0 } if load.unsent && !load.stuck => self.ask(handle),
            // while something is in flight, the program may be about to write more
            Turn::Holding { .. } | Turn::Ending { .. } if load.stuck || (!load.unsent && load.in_flight == 0) => {
                self.release(handle);
                Turn::Free { left: 0 }
            }
            Turn::Holding { left: 0 } => {
                // several windows, so that the beginning and the end of a turn, when the path is not full, weigh little
                let wanted = (2 * load.window).clamp(QUANTUM, MAX_QUANTUM);
                self.quantum = (self.quantum * 7 + wanted) / 8;
                match self.waiting.is_empty() {
                    true => Turn::Holding { left: self.quantum },
                    false => Turn::Ending { in_flight: load.in_flight / 2 },
                }
            }
            Turn::Ending { in_flight } if load.in_flight <= in_flight => {
                self.release(handle);
                self.ask(handle)
            }
            other => other,
        }
    }

    /// The next connection whose turn has come, and its turn: to be told both.
    pub fn poll_next(&mut self) -> Option<(Handle, Turn)> {
        if self.holding.len() >= AT_ONCE {
            return None;
        }
        let handle = self.waiting.pop_front()?;
        self.holding.push(handle);
        Some((handle, Turn::Holding { left: self.quantum }))
    }

    /// The connection is gone.
    pub fn forget(&mut self, handle: Handle, turn: Turn) {
        self.release(handle);
        if turn == Turn::Waiting {
            self.waiting.retain(|other| *other != handle);
        }
    }

    /// How many share the path now.
    pub fn sharing(&self) -> usize {
        self.holding.len().max(1)
    }

    pub fn is_empty(&self) -> bool {
        self.holding.is_empty() && self.waiting.is_empty()
    }

    fn ask(&mut self, handle: Handle) -> Turn {
        if self.waiting.is_empty() && self.holding.len() < AT_ONCE {
            self.holding.push(handle);
            return Turn::Holding { left: self.quantum };
        }
        self.waiting.push_back(handle);
        Turn::Waiting
    }

    fn release(&mut self, handle: Handle) {
        self.holding.retain(|other| *other != handle);
    }
}

/// Connections that share a path at a time: as many as a browser opens or more, so that what is usual notices nothing, and few
/// enough that each has whole batches in flight in the 5 MB that a socket of 4 MiB holds (Linux doubles it).
const AT_ONCE: usize = 16;
/// What may leave without a turn after everything before it has arrived: one batch.
const FREE: u64 = 64 << 10;
/// Bytes of a turn: four batches, or two windows where those are larger.
const QUANTUM: u64 = 256 << 10;
const MAX_QUANTUM: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::RemoteId;
    use crate::config::{EndpointConfig, UtpConfig};
    use crate::time::Time;
    use crate::utp::Endpoint;
    use proptest::prelude::*;

    const BUSY: Load = Load { unsent: true, in_flight: 100_000, window: 100_000, stuck: false };
    const DONE: Load = Load { unsent: false, in_flight: 0, ..BUSY };

    fn handles(count: usize) -> Vec<Handle> {
        let mut endpoint = Endpoint::new(EndpointConfig::default(), UtpConfig::default(), [1; 32]);
        let utp = UtpConfig::default();
        (0..count).map(|_| endpoint.connect(Time::ZERO, RemoteId(1), &utp, u16::MAX, None).unwrap().0).collect()
    }

    /// What connections that never run out of bytes have sent after `rounds` batches of whoever may send.
    fn share(count: usize, rounds: usize) -> Vec<u64> {
        let handles = handles(count);
        let mut turns = Turns::default();
        let mut state = vec![Turn::RESTED; count];
        let mut sent = vec![0; count];
        for _ in 0..rounds {
            for at in 0..count {
                state[at] = turns.step(handles[at], state[at], &BUSY);
                let batch = state[at].allowance(&BUSY).min(64 << 10);
                state[at].spend(batch);
                sent[at] += batch;
                // what was in flight arrives before the next round
                state[at] = turns.step(handles[at], state[at], &Load { in_flight: 0, ..BUSY });
                assert!(turns.sharing() <= AT_ONCE);
            }
            while let Some((handle, turn)) = turns.poll_next() {
                state[handles.iter().position(|other| *other == handle).unwrap()] = turn;
            }
        }
        sent
    }

    #[test]
    fn few_connections_never_wait() {
        let sent = share(AT_ONCE, 100);
        assert!(sent.iter().all(|sent| *sent >= 98 * (64 << 10)), "{sent:?}");
    }

    #[test]
    fn a_thousand_get_the_same() {
        let sent = share(1_000, 4_000);
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!(*least > 2_000_000 && most - least <= QUANTUM + FREE, "{least} to {most}");
    }

    #[test]
    fn who_has_little_to_send_never_waits() {
        let handles = handles(100);
        let mut turns = Turns::default();
        let mut busy = vec![Turn::Free { left: 0 }; 99];
        for (turn, handle) in busy.iter_mut().zip(&handles) {
            *turn = turns.step(*handle, *turn, &BUSY);
        }
        assert_eq!(busy.iter().filter(|turn| **turn == Turn::Waiting).count(), 99 - AT_ONCE);
        let mut small = Turn::RESTED;
        for _ in 0..100 {
            small = turns.step(handles[99], small, &BUSY);
            assert!(small.allowance(&BUSY) >= 10_000, "{small:?}");
            small.spend(10_000);
            small = turns.step(handles[99], small, &DONE);
        }
    }

    #[test]
    fn who_cannot_send_gives_its_turn_up_and_may_probe() {
        let handles = handles(AT_ONCE + 1);
        let mut turns = Turns::default();
        let ask = |turns: &mut Turns, handle| turns.step(handle, Turn::Free { left: 0 }, &BUSY);
        let all: Vec<_> = handles.iter().map(|handle| ask(&mut turns, *handle)).collect();
        assert_eq!((all[AT_ONCE], turns.poll_next()), (Turn::Waiting, None));
        let stuck = Load { stuck: true, ..BUSY };
        let turn = turns.step(handles[0], all[0], &stuck);
        assert_eq!(turn.allowance(&stuck), u64::MAX);
        assert_eq!(turns.poll_next().map(|(handle, _)| handle), Some(handles[AT_ONCE]));
        assert_eq!(turns.step(handles[0], turn, &BUSY), Turn::Waiting, "it queues again when it can");
    }

    proptest! {
        /// Whatever happens: not too many at once, nobody in the queue twice, and as long as somebody waits, somebody sends.
        #[test]
        fn the_queue_holds(steps in prop::collection::vec((0usize..40, 0u8..5), 1..400)) {
            let handles = handles(40);
            let mut turns = Turns::default();
            let mut state = vec![Turn::RESTED; handles.len()];
            for (at, kind) in steps {
                let load = match kind {
                    0 => DONE,
                    1 => Load { stuck: true, ..BUSY },
                    2 => Load { in_flight: 0, ..BUSY },
                    _ => BUSY,
                };
                if kind == 4 {
                    turns.forget(handles[at], state[at]);
                    state[at] = Turn::RESTED;
                } else {
                    state[at] = turns.step(handles[at], state[at], &load);
                    let left = state[at].allowance(&load);
                    state[at].spend(left);
                }
                while let Some((handle, turn)) = turns.poll_next() {
                    state[handles.iter().position(|other| *other == handle).unwrap()] = turn;
                }
                let holds = |turn: &Turn| matches!(turn, Turn::Holding { .. } | Turn::Ending { .. });
                prop_assert_eq!(state.iter().filter(|turn| holds(turn)).count(), turns.holding.len());
                prop_assert_eq!(state.iter().filter(|turn| **turn == Turn::Waiting).count(), turns.waiting.len());
                prop_assert!(turns.holding.len() <= AT_ONCE);
                prop_assert!(turns.waiting.is_empty() || turns.holding.len() == AT_ONCE);
            }
        }
    }
}
