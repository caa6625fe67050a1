//! What strangers and customers may cost: rates, and answers that never outweigh the questions.

use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::addr::unmapped;
use crate::time::Time;

/// A token bucket: so many a second, and what a burst may take at once.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    filled: Time,
}

impl Bucket {
    /// `per_second` of 0 lets everything through.
    pub fn new(per_second: u64, burst: u64, now: Time) -> Self {
        Self { per_second, burst, tokens: burst, filled: now }
    }

    /// Whether there are so many, without taking them.
    pub fn has(&mut self, amount: u64, now: Time) -> bool {
        let gained = now.since(self.filled).as_nanos() * u128::from(self.per_second) / NANOS;
        // what is less than one token stays in the time
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(u64::try_from(gained).unwrap_or(u64::MAX)).min(self.burst);
            self.filled = match self.tokens == self.burst {
                true => now,
                false => self.filled + Duration::from_nanos((gained * NANOS / u128::from(self.per_second)) as u64),
            };
        }
        self.per_second == 0 || self.tokens >= amount
    }

    pub fn take(&mut self, amount: u64, now: Time) -> bool {
        let has = self.has(amount, now);
        if has && self.per_second != 0 {
            self.tokens -= amount;
        }
        has
    }
}

/// Answers to those that have proven nothing, not even their address: limited in number, for all and for each network; and
/// over UDP a network gets no more bytes than it has sent, so that there is nothing to gain from a forged source address.
/// A small question therefore earns its answer by being repeated, which STUN does by itself (RFC 8489 section 6.2.1).
///
/// A fixed table: a network belongs to the row that a keyed hash gives it, and nobody can choose whose row he shares.
pub struct Strangers {
    all: Bucket,
    rows: Vec<Row>,
    hasher: RandomState,
}

#[derive(Clone, Copy)]
struct Row {
    answers: Bucket,
    /// Bytes received that have not been answered yet.
    credit: u32,
}

impl Strangers {
    pub fn new(per_second: u32, per_second_per_network: u32, rows: usize, now: Time) -> Self {
        let half = |rate: u32| Bucket::new(rate.max(1).into(), u64::from(rate / 2).max(1), now);
        let row = Row { answers: half(per_second_per_network), credit: 0 };
        Self { all: half(per_second), rows: vec![row; rows.max(1)], hasher: RandomState::new() }
    }

    /// A question from a source that may be forged.
    pub fn earn(&mut self, source: SocketAddr, question: usize) {
        let row = self.row(source);
        row.credit = row.credit.saturating_add(u32::try_from(question).unwrap_or(u32::MAX)).min(MOST_CREDIT);
    }

    /// Whether an answer of so many bytes may leave; to a proven address only the rates count.
    pub fn spend(&mut self, source: SocketAddr, answer: usize, proven: bool, now: Time) -> bool {
        let answer = u32::try_from(answer).unwrap_or(u32::MAX);
        let row = self.row(source);
        if !proven && row.credit < answer {
            return false;
        }
        // a source above its own limit takes nothing from the others
        if !row.answers.take(1, now) {
            return false;
        }
        if !proven {
            row.credit -= answer;
        }
        self.all.take(1, now)
    }

    fn row(&mut self, source: SocketAddr) -> &mut Row {
        let place = self.hasher.hash_one(network_of(source.ip())) as usize % self.rows.len();
        &mut self.rows[place]
    }
}

/// What one customer has: an IPv4 /24 (many share one, none has a larger one for nothing), an IPv6 /56 (RFC 6177).
pub fn network_of(ip: IpAddr) -> [u8; 8] {
    let mut bytes = [0; 8];
    match unmapped(SocketAddr::new(ip, 0)).ip() {
        IpAddr::V4(v4) => bytes[..3].copy_from_slice(&v4.octets()[..3]),
        IpAddr::V6(v6) => {
            bytes[..7].copy_from_slice(&v6.octets()[..7]);
            bytes[7] = 1;
        }
    }
    bytes
}

const NANOS: u128 = 1_000_000_000;
/// Credit is saved for a few answers: a network that has been silent shall not be sent a burst that it did not just ask for.
const MOST_CREDIT: u32 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_bucket_gives_its_rate_and_no_more() {
        let mut bucket = Bucket::new(1_000, 100, Time::ZERO);
        let mut taken = 0;
        for micros in (0..1_000_000u64).step_by(137) {
            taken += u64::from(bucket.take(1, Time::from_nanos(micros * 1_000)));
        }
        assert!((1_095..=1_100).contains(&taken), "{taken}");
    }

    #[test]
    fn a_bucket_of_large_amounts_keeps_its_rate() {
        let mut bucket = Bucket::new(1_000_000, 64_000, Time::ZERO);
        let sent: u64 = (0..10_000).map(|ms| 60_000 * u64::from(bucket.take(60_000, Time::from_millis(ms)))).sum();
        assert!((9_940_000..=10_060_000).contains(&sent), "{sent}");
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
    fn a_flood_from_one_network_leaves_the_others_theirs() {
        let mut strangers = Strangers::new(1_000, 20, 4_096, Time::ZERO);
        let from = |host: u32| at(&format!("192.0.2.{host}:1"));
        let granted = (0..100).filter(|host| strangers.spend(from(*host), 52, true, Time::ZERO)).count();
        assert_eq!(granted, 10, "half a second's");
        let others = (0..8).filter(|n| strangers.spend(at(&format!("198.51.{n}.1:1")), 52, true, Time::ZERO)).count();
        assert!(others >= 7, "another row, unless the hash puts both in one");
    }
}
