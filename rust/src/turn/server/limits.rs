//! What strangers and customers may cost: rates, and answers that never outweigh the questions.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use crate::addr::network_of;
use crate::bucket::Bucket;
use crate::time::Time;

/// Answers to those that have proven nothing, not even their address: limited in number, for all and for each network; and
/// over UDP a network gets no more bytes than it has sent, so that there is nothing to gain from a forged source address. Those
/// that have proven theirs have limits of their own, which nobody can use up who forges one.
/// A small question therefore earns its answer by being repeated, which STUN does by itself (RFC 8489 section 6.2.1).
///
/// A fixed table: a network belongs to the row that a keyed hash gives it, and nobody can choose whose row he shares.
pub struct Strangers {
    /// For addresses that may be forged, and for others.
    all: [Bucket; 2],
    rows: Vec<Row>,
    hasher: RandomState,
}

#[derive(Clone, Copy)]
struct Row {
    answers: [Bucket; 2],
    /// Bytes received that have not been answered yet.
    credit: u32,
}

impl Strangers {
    pub fn new(per_second: u32, per_second_per_network: u32, rows: usize, now: Time) -> Self {
        let half = |rate: u32| Bucket::new(rate.max(1).into(), u64::from(rate / 2).max(1), now);
        let row = Row { answers: [half(per_second_per_network); 2], credit: 0 };
        Self { all: [half(per_second); 2], rows: vec![row; rows.max(1)], hasher: RandomState::new() }
    }

    /// A question from a source that may be forged.
    pub fn earn(&mut self, source: SocketAddr, question: usize) {
        let row = self.row(source);
        row.credit = row.credit.saturating_add(u32::try_from(question).unwrap_or(u32::MAX)).min(MOST_CREDIT);
    }

    /// Whether an answer of so many bytes may leave; to a proven address only the rates count.
    pub fn spend(&mut self, source: SocketAddr, answer: usize, proven: bool, now: Time) -> bool {
        let answer = u32::try_from(answer).unwrap_or(u32::MAX);
        let kind = usize::from(proven);
        let row = self.row(source);
        if !proven && row.credit < answer {
            return false;
        }
        // a source above its own limit takes nothing from the others
        if !row.answers[kind].take(1, now) {
            return false;
        }
        if !proven {
            row.credit -= answer;
        }
        self.all[kind].take(1, now)
    }

    fn row(&mut self, source: SocketAddr) -> &mut Row {
        let place = self.hasher.hash_one(network_of(source.ip())) as usize % self.rows.len();
        &mut self.rows[place]
    }
}

/// Credit is saved for a few answers: a network that has been silent shall not be sent a burst that it did not just ask for.
const MOST_CREDIT: u32 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_is_never_sent_more_than_it_sent() {
        let mut strangers = Strangers::new(1_000_000, 1_000_000, 64, Time::ZERO);
        let (mut received, mut sent) = (0, 0);
        for n in 0..1_000u64 {
            let now = Time::from_millis(n);
            strangers.earn(at("192.0.2.1:5"), 28);
            received += 28;
            if strangers.spend(at("192.0.2.1:5"), 52, false, now) {
                sent += 52;
            }
        }
        assert!(sent <= received && sent > received - 600, "{sent} of {received}");
    }

    #[test]
    fn a_question_as_large_as_its_answer_is_answered_at_once() {
        let mut strangers = Strangers::new(10, 10, 64, Time::ZERO);
        strangers.earn(at("[2001:db8::1]:5"), 52);
        assert!(strangers.spend(at("[2001:db8::1]:5"), 52, false, Time::ZERO));
        assert!(!strangers.spend(at("[2001:db8::1]:5"), 1, false, Time::ZERO));
    }

    #[test]
    fn a_flood_of_forged_addresses_leaves_those_that_have_proven_theirs_their_answers() {
        let mut strangers = Strangers::new(1_000, 20, 4_096, Time::ZERO);
        for network in 0..2_000u32 {
            let forged = SocketAddr::from(((0x0a00_0000 + network * 256).to_be_bytes(), 5));
            strangers.earn(forged, 100);
            strangers.spend(forged, 52, false, Time::ZERO);
        }
        strangers.earn(at("192.0.2.1:5"), 100);
        assert!(!strangers.spend(at("192.0.2.1:5"), 52, false, Time::ZERO), "the flood has used up what there was");
        assert!(strangers.spend(at("192.0.2.1:5"), 52, true, Time::ZERO));
    }

    #[test]
    fn a_flood_from_one_network_leaves_the_others_theirs() {
        let mut strangers = Strangers::new(1_000, 20, 4_096, Time::ZERO);
        let from = |host: u32| at(&format!("192.0.2.{host}:1"));
        let granted = (0..100).filter(|host| strangers.spend(from(*host), 52, true, Time::ZERO)).count();
        assert_eq!(granted, 10, "half a second's");
        let others = (0..8).filter(|n| strangers.spend(at(&format!("198.51.{n}.1:1")), 52, true, Time::ZERO)).count();
        assert!(others >= 7, "another row, unless the hash puts both in one");
    }
}
