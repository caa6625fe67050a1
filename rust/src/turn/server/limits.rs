//! What strangers and customers may cost: rates, and answers that never outweigh the questions.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use crate::addr::network_of;
use crate::bucket::Bucket;
use crate::time::Time;

/// Answers to those that have proven nothing, not even their address: over UDP nobody gets more bytes than have come from there, so
/// that there is nothing to gain from a forged source address; and they are limited in number, for all and for each network.
/// A small question therefore earns its answer by being repeated, which STUN does by itself (RFC 8489 section 6.2.1).
///
/// Whoever forges addresses of a network uses up what that network may have. Its newcomers are answered all the same: out of a
/// budget that is there for networks in this state alone, and large enough that the flood does not use it up unless it is one for
/// the machine as well. Those that have proven their address have limits of their own, which nobody can use up who forges one.
///
/// Fixed tables: a source belongs to the row that a keyed hash gives it, and nobody can choose whose row he shares.
pub struct Strangers {
    /// For addresses that may be forged, and for others.
    all: [Bucket; 2],
    /// For those that may be forged, of networks that have used up what they may have.
    crowded: Bucket,
    networks: Vec<[Bucket; 2]>,
    /// Bytes received from sources (address and port) that have not been answered yet.
    credit: Vec<u16>,
    hasher: RandomState,
}

impl Strangers {
    pub fn new(per_second: u32, per_second_per_network: u32, rows: usize, now: Time) -> Self {
        let half = |rate: u32| Bucket::new(rate.max(1).into(), u64::from(rate / 2).max(1), now);
        Self {
            all: [half(per_second); 2],
            crowded: crowded(per_second, now),
            networks: vec![[half(per_second_per_network); 2]; rows.max(1)],
            credit: vec![0; rows.max(1) * SOURCES],
            hasher: RandomState::new(),
        }
    }

    /// A question from a source that may be forged.
    pub fn earn(&mut self, source: SocketAddr, question: usize) {
        let credit = self.credit(source);
        *credit = credit.saturating_add(u16::try_from(question).unwrap_or(u16::MAX)).min(MOST_CREDIT);
    }

    /// Whether an answer of so many bytes may leave; to a proven address only the rates count.
    pub fn spend(&mut self, source: SocketAddr, answer: usize, proven: bool, now: Time) -> bool {
        if proven {
            // a network above its own limit takes nothing from the others
            return self.network(source)[1].take(1, now) && self.all[1].take(1, now);
        }
        let answer = u16::try_from(answer).unwrap_or(u16::MAX);
        if *self.credit(source) < answer {
            return false;
        }
        let may = match self.network(source)[0].take(1, now) {
            true => self.all[0].take(1, now),
            false => self.crowded.take(1, now),
        };
        if may {
            *self.credit(source) -= answer;
        }
        may
    }

    fn network(&mut self, source: SocketAddr) -> &mut [Bucket; 2] {
        let place = self.hasher.hash_one(network_of(source.ip())) as usize % self.networks.len();
        &mut self.networks[place]
    }

    fn credit(&mut self, source: SocketAddr) -> &mut u16 {
        let place = self.hasher.hash_one(source) as usize % self.credit.len();
        &mut self.credit[place]
    }
}

fn crowded(per_second: u32, now: Time) -> Bucket {
    let rate = u64::from(per_second.max(1)) * CROWDED;
    Bucket::new(rate, (rate / 10).max(1), now)
}

/// Credit is saved for a few answers: a source that has been silent shall not be sent a burst that it did not just ask for.
const MOST_CREDIT: u16 = 512;
/// Sources for each network that is told apart.
const SOURCES: usize = 8;
/// What newcomers of crowded networks may be answered with, as a multiple of what all others may. An answer is a MAC and a system
/// call, some 10 microseconds: with the 5,000 a second of the default that is a fifth of a core under the worst flood, and
/// newcomers get through one of 20,000 datagrams a second.
const CROWDED: u64 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_source_is_never_sent_more_than_it_sent() {
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
            // more than each network may have, so that what is there for crowded ones is used up as well
            for port in 0..20 {
                let forged = SocketAddr::from(((0x0a00_0000 + network * 256).to_be_bytes(), port));
                strangers.earn(forged, 100);
                strangers.spend(forged, 52, false, Time::ZERO);
            }
        }
        strangers.earn(at("192.0.2.1:5"), 100);
        assert!(!strangers.spend(at("192.0.2.1:5"), 52, false, Time::ZERO), "the flood has used up what there was");
        assert!(strangers.spend(at("192.0.2.1:5"), 52, true, Time::ZERO));
    }

    #[test]
    fn forged_datagrams_from_a_network_do_not_keep_its_newcomers_out() {
        // two seconds of 15,000 datagrams a second in the name of one network, as large as answers and smaller
        for forged in [100, 28] {
            let mut strangers = Strangers::new(5_000, 100, 4_096, Time::ZERO);
            let (mut asked, mut answered) = (0, 0);
            for n in 0..30_000u64 {
                let now = Time::from_nanos(n * 1_000_000_000 / 15_000);
                let source = at(&format!("192.0.2.{}:{}", n % 250, 1_024 + n * 7 % 60_000));
                strangers.earn(source, forged);
                strangers.spend(source, 52, false, now);
                if n % 1_000 == 999 {
                    // asked twice, as STUN does: the first question is smaller than its answer
                    let newcomer = at(&format!("192.0.2.251:{}", 1_024 + n));
                    asked += 1;
                    answered += usize::from((0..2).any(|_| {
                        strangers.earn(newcomer, 28);
                        strangers.spend(newcomer, 52, false, now)
                    }));
                }
            }
            assert_eq!(answered, asked, "forged questions of {forged} bytes");
        }
    }

    #[test]
    fn a_flood_in_the_name_of_one_network_takes_nothing_from_newcomers_of_others() {
        let mut strangers = Strangers::new(1_000, 20, 4_096, Time::ZERO);
        for port in 0..60_000 {
            let forged = at(&format!("192.0.2.1:{}", port + 1));
            strangers.earn(forged, 100);
            strangers.spend(forged, 52, false, Time::ZERO);
        }
        let newcomers = (0..8).filter(|n| {
            let newcomer = at(&format!("198.51.{n}.1:5"));
            strangers.earn(newcomer, 100);
            strangers.spend(newcomer, 52, false, Time::ZERO)
        });
        assert!(newcomers.count() >= 7, "another row, unless the hash puts both in one");
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
