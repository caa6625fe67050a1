//! Fair shares of what a relay carries a second. While there is plenty, anybody may have all of it. When there is not, each user has
//! as much as every other, however many allocations he has made; who wants less than that is not held up.

use std::collections::HashMap;

use super::users::Owner;
use crate::bucket::Bucket;
use crate::time::Time;

pub struct Shares {
    per_second: u64,
    all: Bucket,
    /// Half of what `all` holds when it is full. Below that it is for those who are within their share.
    reserve: u64,
    /// As many as have allocations.
    users: HashMap<Owner, User>,
    /// Users that have carried something since the last [`Self::count`], and before it.
    active: [usize; 2],
    round: u64,
}

struct User {
    allocations: usize,
    /// What has been carried beyond the share, in bytes: it goes down by the share of each second.
    debt: u64,
    paid: Time,
    /// In which round it has carried something last.
    round: Option<u64>,
}

impl Shares {
    /// `per_second` of 0: no limit.
    pub fn new(per_second: u64, now: Time) -> Self {
        let all = super::bucket(per_second, now);
        let reserve = super::burst(per_second) / 2;
        Self { per_second, all, reserve, users: HashMap::new(), active: [0; 2], round: 0 }
    }

    pub fn allocations(&self, owner: &Owner) -> usize {
        self.users.get(owner).map_or(0, |user| user.allocations)
    }

    pub fn add(&mut self, owner: &Owner, now: Time) {
        let new = User { allocations: 0, debt: 0, paid: now, round: None };
        self.users.entry(owner.clone()).or_insert(new).allocations += 1;
    }

    pub fn remove(&mut self, owner: &Owner) {
        if let Some(user) = self.users.get_mut(owner) {
            user.allocations -= 1;
            // who owes something, and allocates anew, owes it still
            if user.allocations == 0 && user.debt == 0 {
                self.users.remove(owner);
            }
        }
    }

    /// To be called once a second: who has carried nothing in two of them leaves his share to the others.
    pub fn count(&mut self, now: Time) {
        let share = self.share();
        self.users.retain(|_, user| {
            user.pay_off(share, now);
            user.allocations > 0 || user.debt > 0
        });
        self.active = [0, self.active[0]];
        self.round += 1;
    }

    /// Whether these bytes may be carried for a user. Takes nothing.
    pub fn may(&mut self, owner: &Owner, bytes: u64, now: Time) -> bool {
        if !self.all.has(bytes, now) {
            return false;
        }
        let (share, plenty) = (self.share(), self.all.has(self.reserve + bytes, now));
        let Some(user) = self.users.get_mut(owner) else { return false };
        user.pay_off(share, now);
        plenty || user.debt + bytes <= self.reserve
    }

    /// They are carried.
    pub fn take(&mut self, owner: &Owner, bytes: u64, now: Time) {
        self.all.take(bytes, now);
        let (reserve, round) = (self.reserve, self.round);
        let Some(user) = self.users.get_mut(owner) else { return };
        // who had all of it while there was plenty waits no longer than for what a burst takes
        user.debt = (user.debt + bytes).min(2 * reserve);
        if user.round != Some(round) {
            user.round = Some(round);
            self.active[0] += 1;
        }
    }

    fn share(&self) -> u64 {
        self.per_second / (self.active.into_iter().max().unwrap_or(0).max(1) as u64)
    }
}

impl User {
    fn pay_off(&mut self, share: u64, now: Time) {
        let paid = now.since(self.paid).as_nanos() * u128::from(share) / 1_000_000_000;
        // what is less than a byte stays in the time
        if paid > 0 {
            self.debt = self.debt.saturating_sub(u64::try_from(paid).unwrap_or(u64::MAX));
            self.paid = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 4_000_000;
    const DATAGRAM: u64 = 1_000;

    fn user(name: &str) -> Owner {
        Owner::Limited(name.into())
    }

    /// What each carries in some seconds, of those that want so many datagrams each millisecond.
    fn carried(wants: &[(&str, u64)], seconds: u64) -> Vec<u64> {
        let mut shares = Shares::new(RATE, Time::ZERO);
        wants.iter().for_each(|(name, _)| shares.add(&user(name), Time::ZERO));
        let mut carried = vec![0; wants.len()];
        for millisecond in 0..seconds * 1_000 {
            let now = Time::from_millis(millisecond);
            if millisecond % 1_000 == 0 {
                shares.count(now);
            }
            for round in 0..wants.iter().map(|(_, wanted)| *wanted).max().unwrap_or(0) {
                for (place, (name, wanted)) in wants.iter().enumerate() {
                    if round < *wanted && shares.may(&user(name), DATAGRAM, now) {
                        shares.take(&user(name), DATAGRAM, now);
                        carried[place] += DATAGRAM;
                    }
                }
            }
        }
        carried
    }

    #[test]
    fn one_alone_may_have_everything() {
        let alone = carried(&[("a", 50)], 10)[0];
        assert!((39_000_000..=42_000_000).contains(&alone), "{alone}");
    }

    #[test]
    fn ten_times_the_traffic_gives_no_more_than_the_share() {
        let both = carried(&[("greedy", 100), ("other", 10)], 10);
        assert!(both.iter().all(|carried| *carried >= 18_000_000), "{both:?}");
    }

    #[test]
    fn who_wants_less_than_his_share_gets_all_of_it() {
        let all = carried(&[("greedy", 100), ("more", 100), ("modest", 1)], 10);
        assert!(all[2] >= 9_900_000, "{all:?}");
        assert!(all[0] >= 13_000_000 && all[1] >= 13_000_000, "{all:?}");
    }

    #[test]
    fn a_newcomer_is_not_held_up_by_who_had_everything() {
        let mut shares = Shares::new(RATE, Time::ZERO);
        shares.add(&user("greedy"), Time::ZERO);
        shares.add(&user("new"), Time::ZERO);
        let mut now = Time::ZERO;
        for millisecond in 0..5_000 {
            now = Time::from_millis(millisecond);
            while shares.may(&user("greedy"), DATAGRAM, now) {
                shares.take(&user("greedy"), DATAGRAM, now);
            }
        }
        assert!((0..100).all(|_| {
            let may = shares.may(&user("new"), DATAGRAM, now);
            shares.take(&user("new"), DATAGRAM, now);
            may
        }));
    }

    #[test]
    fn nobody_is_remembered_without_an_allocation() {
        let mut shares = Shares::new(RATE, Time::ZERO);
        for _ in 0..2 {
            shares.add(&user("a"), Time::ZERO);
        }
        assert_eq!(shares.allocations(&user("a")), 2);
        shares.remove(&user("a"));
        shares.remove(&user("a"));
        assert!(shares.users.is_empty());
        assert!(!shares.may(&user("a"), 1, Time::ZERO));
    }
}
