//! Questions to servers where they see the node's own socket, by an interface that the system would not take towards them: peers may be
//! reached by it. What is asked otherwise is asked with a punch.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::{Core, Inner, Net};
use crate::addr::unmapped;

/// Those that wait for an answer.
#[derive(Default)]
pub struct Questions {
    open: Vec<Open>,
    due: VecDeque<Question>,
}

struct Open {
    question: Question,
    answer: oneshot::Sender<SocketAddr>,
}

/// A Binding request on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub to: SocketAddr,
    /// The number of the interface that it leaves by.
    pub interface: u32,
    pub transaction: [u8; 12],
}

impl Questions {
    /// What is to be sent next.
    pub fn poll_transmit(&mut self) -> Option<Question> {
        self.due.pop_front()
    }

    /// True: this is the answer to one of them.
    pub fn handle_pong(&mut self, from: SocketAddr, transaction: &[u8; 12], observed: SocketAddr) -> bool {
        let is_asked = |open: &Open| open.question.transaction == *transaction && open.question.to == unmapped(from);
        let Some(place) = self.open.iter().position(is_asked) else { return false };
        // whoever has asked may have gone
        let _ = self.open.swap_remove(place).answer.send(unmapped(observed));
        true
    }

    fn ask(&mut self, question: Question) -> Option<oneshot::Receiver<SocketAddr>> {
        if self.open.len() >= MAX_OPEN {
            return None;
        }
        let (answer, heard) = oneshot::channel();
        self.open.push(Open { question, answer });
        self.due.push_back(question);
        Some(heard)
    }

    fn again(&mut self, transaction: &[u8; 12]) {
        let open = self.open.iter().find(|open| open.question.transaction == *transaction);
        self.due.extend(open.map(|open| open.question));
    }

    fn forget(&mut self, transaction: &[u8; 12]) {
        self.open.retain(|open| open.question.transaction != *transaction);
        self.due.retain(|question| question.transaction != *transaction);
    }
}

impl Net {
    /// Where a server sees what the own socket sends by this interface; `None`: no answer comes, or no such question can be asked here.
    pub async fn ask_through(&self, server: SocketAddr, interface: u32, within: Duration) -> Option<SocketAddr> {
        let mut transaction = [0; 12];
        getrandom::fill(&mut transaction).ok()?;
        let question = Question { to: unmapped(server), interface, transaction };
        let mut heard = self.inner.core().questions.ask(question)?;
        let _asked = Asked { inner: &self.inner, transaction };
        self.inner.doorbell.ring_plain();
        let answered = async {
            for pause in REPEATED {
                if let Ok(answer) = timeout(pause, &mut heard).await {
                    return answer.ok();
                }
                self.inner.core().questions.again(&transaction);
                self.inner.doorbell.ring_plain();
            }
            heard.await.ok()
        };
        tokio::select! {
            answer = answered => answer,
            () = sleep(within) => None,
        }
    }
}

/// Takes a question back that nobody waits for any more.
struct Asked<'a> {
    inner: &'a Inner,
    transaction: [u8; 12],
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut core: std::sync::MutexGuard<'_, Core> = self.inner.core();
        core.questions.forget(&self.transaction);
    }
}

/// Two servers through each of four interfaces, and a round that is not over yet.
const MAX_OPEN: usize = 16;
/// A lost packet, and a gateway whose hardware address has to be found first.
const REPEATED: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(200), Duration::from_millis(400)];

#[cfg(test)]
mod tests {
    use super::*;

    fn question(n: u8) -> Question {
        Question { to: SocketAddr::from(([203, 0, 113, n], 3_478)), interface: 2, transaction: [n; 12] }
    }

    #[test]
    fn only_who_was_asked_answers_and_once() {
        let mut questions = Questions::default();
        let mut heard = questions.ask(question(1)).unwrap();
        assert_eq!(questions.poll_transmit(), Some(question(1)));
        let seen = SocketAddr::from(([198, 51, 100, 7], 5_000));
        assert!(!questions.handle_pong(question(2).to, &[1; 12], seen), "another server");
        assert!(!questions.handle_pong(question(1).to, &[2; 12], seen), "another question");
        questions.again(&[1; 12]);
        assert_eq!(questions.poll_transmit(), Some(question(1)));
        assert!(questions.handle_pong(question(1).to, &[1; 12], seen));
        assert_eq!(heard.try_recv(), Ok(seen));
        assert!(!questions.handle_pong(question(1).to, &[1; 12], seen));
        questions.again(&[1; 12]);
        assert_eq!(questions.poll_transmit(), None);
    }

    #[test]
    fn there_is_a_bound_and_what_is_taken_back_makes_room() {
        let mut questions = Questions::default();
        let held: Vec<_> = (0..100).filter_map(|n| questions.ask(question(n))).collect();
        assert_eq!(held.len(), MAX_OPEN);
        questions.forget(&[0; 12]);
        assert!(questions.ask(question(200)).is_some() && questions.ask(question(201)).is_none());
    }
}
