//! Search for the largest datagram that a path carries: RFC 8899 (DPLPMTUD), with UDP payload sizes throughout.
//!
//! A probe is a data packet padded to the size in question. If it dies, its data is sent again without the padding, so a
//! failed probe costs one loss that says nothing about congestion.

use std::time::Duration;

use crate::config::UtpConfig;
use crate::time::Time;

/// The state of the search for one path. One probe is outstanding at most.
#[derive(Clone, Debug)]
pub struct MtuSearch {
    /// What every path is assumed to carry (BASE_PLPMTU).
    base: u16,
    /// The largest size worth trying (MAX_PLPMTU).
    max: u16,
    /// The largest size proven (PLPMTU).
    current: u16,
    /// The smallest size known to fail, or one above `max`.
    too_large: u16,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To send a probe of `size` with the next data, after `lost` lost ones of that size.
    Probing { size: u16, lost: u8 },
    /// It is on its way.
    Waiting { size: u16, lost: u8 },
    /// Nothing to try before then.
    Resting { until: Time },
    /// The largest size is proven: nothing more to search.
    Done,
}

impl MtuSearch {
    /// A search from `min_datagram` to the smaller of `max_datagram` and `ipv6_cap` (`u16::MAX` over IPv4, 1452 over IPv6).
    pub fn new(config: &UtpConfig, ipv6_cap: u16) -> Self {
        let base = config.min_datagram;
        let max = config.max_datagram.min(ipv6_cap).max(base);
        let mut search = Self { base, max, current: base, too_large: max.saturating_add(1), state: State::Done };
        search.start();
        search
    }

    /// UDP payload that is known to arrive.
    pub fn current(&self) -> u16 {
        self.current
    }

    /// The smallest size that is known to be lost, until it is tried again.
    pub fn lost_size(&self) -> Option<u16> {
        (self.too_large <= self.max).then_some(self.too_large)
    }

    /// Nothing larger than the base size has arrived, and so nothing shows that this arrives whole.
    pub fn is_unproven(&self) -> bool {
        self.current == self.base && self.base < self.max
    }

    /// The size of a probe to send with data that is ready now. It is outstanding from here on, until
    /// [`MtuSearch::handle_probe_acked`] or [`MtuSearch::handle_probe_lost`].
    pub fn poll_probe(&mut self, now: Time) -> Option<u16> {
        if let State::Resting { until } = self.state {
            if now >= until {
                self.start();
            }
        }
        let State::Probing { size, lost } = self.state else { return None };
        self.state = State::Waiting { size, lost };
        Some(size)
    }

    /// The probe that [`MtuSearch::poll_probe`] asked for could not be sent after all (no data of the right size), or what
    /// becomes of it will not be told here.
    pub fn handle_probe_unsent(&mut self) {
        if let State::Waiting { size, lost } = self.state {
            self.state = State::Probing { size, lost };
        }
    }

    /// The path carries no more than this, as its owner knows.
    pub fn limit(&mut self, max_datagram: u16) {
        let max = self.max.min(max_datagram).max(self.base);
        if max < self.max {
            self.max = max;
            self.current = self.current.min(max);
            self.start();
        }
    }

    pub fn handle_probe_acked(&mut self, now: Time, size: u16) {
        // Only the outstanding probe counts: an older one was declared lost, and its data sent again without padding, so
        // that an ack of that sequence number proves nothing.
        if !matches!(self.state, State::Waiting { size: wanted, .. } if wanted == size) {
            return;
        }
        self.current = self.current.max(size);
        self.advance(now);
    }

    /// The path refused it, or the packet was lost for another reason: only `MAX_PROBES` losses in a row tell.
    pub fn handle_probe_lost(&mut self, now: Time, size: u16) {
        let State::Waiting { size: wanted, lost } = self.state else { return };
        if wanted != size {
            return;
        }
        let lost = lost + 1;
        if lost < MAX_PROBES {
            self.state = State::Probing { size, lost };
            return;
        }
        self.too_large = size;
        self.advance(now);
    }

    /// Full packets no longer arrive (only they are lost, several times in a row): back to the base size (RFC 8899 section 4.3).
    /// The search starts anew after a minute. At the base size it does nothing: there the path itself is broken.
    pub fn handle_black_hole(&mut self, now: Time) {
        if self.current == self.base {
            return;
        }
        self.too_large = self.too_large.min(self.current);
        self.current = self.base;
        self.state = State::Resting { until: now + AFTER_BLACK_HOLE };
    }

    /// When a rest ends. Probes ride on data, so nothing has to happen then unless there is data to send.
    pub fn poll_timeout(&self) -> Option<Time> {
        match self.state {
            State::Resting { until } => Some(until),
            _ => None,
        }
    }

    fn start(&mut self) {
        self.too_large = self.max.saturating_add(1);
        // The largest first: most paths are Ethernet all the way, and one probe then ends the search.
        self.state = if self.current < self.max { State::Probing { size: self.max, lost: 0 } } else { State::Done };
    }

    fn advance(&mut self, now: Time) {
        let gap = self.too_large.saturating_sub(self.current);
        self.state = if gap > STEP {
            State::Probing { size: self.current + gap / 2, lost: 0 }
        } else if self.current < self.max {
            State::Resting { until: now + RAISE }
        } else {
            State::Done
        };
    }
}

/// RFC 8899 section 5.1.2.
const MAX_PROBES: u8 = 3;

/// PMTU_RAISE_TIMER, RFC 8899 section 5.1.1.
const RAISE: Duration = Duration::from_secs(600);

/// A path that swallows large packets may be one of several that take turns; a minute is the idle end of most of them.
const AFTER_BLACK_HOLE: Duration = Duration::from_secs(60);

/// The search ends when it knows the limit to this many bytes: less than 1 % of a packet.
const STEP: u16 = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(min: u16, max: u16) -> UtpConfig {
        UtpConfig { min_datagram: min, max_datagram: max, ..UtpConfig::default() }
    }

    /// Runs the search on a path that carries `limit`; gives the number of probes.
    fn run(search: &mut MtuSearch, now: Time, limit: u16) -> u32 {
        let mut probes = 0;
        while let Some(size) = search.poll_probe(now) {
            probes += 1;
            assert_eq!(search.poll_probe(now), None, "one probe at a time");
            if size <= limit {
                search.handle_probe_acked(now, size);
            } else {
                search.handle_probe_lost(now, size);
            }
        }
        probes
    }

    #[test]
    fn ethernet_takes_one_probe() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        assert_eq!(search.current(), 1232);
        assert_eq!(run(&mut search, Time::ZERO, 1500), 1);
        assert_eq!((search.current(), search.lost_size()), (1472, None));
        assert_eq!(search.poll_timeout(), None);
    }

    #[test]
    fn over_ipv6_the_cap_holds() {
        let mut search = MtuSearch::new(&config(1232, 1472), 1452);
        run(&mut search, Time::ZERO, 9000);
        assert_eq!(search.current(), 1452);
    }

    #[test]
    fn a_tunnel_is_found_within_twelve_bytes_and_searched_again_later() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        let probes = run(&mut search, Time::ZERO, 1392);
        assert!((1380..=1392).contains(&search.current()), "{}", search.current());
        assert!(probes <= 18, "{probes}");
        let again = search.poll_timeout().unwrap();
        assert_eq!(search.poll_probe(again - Duration::from_millis(1)), None);
        assert_eq!(run(&mut search, again, 1472), 1);
        assert_eq!(search.current(), 1472);
    }

    #[test]
    fn one_lost_probe_tells_nothing() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        for _ in 0..2 {
            let size = search.poll_probe(Time::ZERO).unwrap();
            search.handle_probe_lost(Time::ZERO, size);
        }
        assert_eq!(search.poll_probe(Time::ZERO), Some(1472));
        search.handle_probe_acked(Time::ZERO, 1472);
        assert_eq!(search.current(), 1472);
    }

    #[test]
    fn a_black_hole_leads_back_to_the_base_and_to_a_new_search() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        run(&mut search, Time::ZERO, 1472);
        search.handle_black_hole(Time::from_millis(5));
        assert_eq!(search.current(), 1232);
        assert_eq!(search.poll_probe(Time::from_millis(6)), None);
        run(&mut search, Time::from_millis(60_005), 1400);
        assert!((1388..=1400).contains(&search.current()));
    }

    #[test]
    fn late_news_of_an_old_probe_is_ignored() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        let size = search.poll_probe(Time::ZERO).unwrap();
        search.handle_probe_lost(Time::ZERO, size);
        search.handle_probe_acked(Time::ZERO, size);
        assert_eq!(search.current(), 1232);
    }

    #[test]
    fn a_limit_that_comes_later_holds() {
        let mut search = MtuSearch::new(&config(1232, 1472), u16::MAX);
        run(&mut search, Time::ZERO, 1400);
        search.limit(1472);
        assert!(search.current() > 1380, "no news");
        search.limit(1300);
        assert_eq!(search.current(), 1300);
        let mut waiting = MtuSearch::new(&config(1232, 1472), u16::MAX);
        assert_eq!(waiting.poll_probe(Time::ZERO), Some(1472));
        waiting.limit(1452);
        waiting.handle_probe_acked(Time::ZERO, 1472);
        assert_eq!(waiting.current(), 1232, "of a size that is not wanted any more");
        run(&mut waiting, Time::ZERO, 1472);
        assert_eq!(waiting.current(), 1452);
        waiting.limit(900);
        assert_eq!((waiting.current(), waiting.poll_probe(Time::ZERO)), (1232, None), "never below the base");
    }

    #[test]
    fn nothing_to_search() {
        let mut search = MtuSearch::new(&config(1232, 1000), u16::MAX);
        assert_eq!(search.poll_probe(Time::ZERO), None);
        search.handle_black_hole(Time::ZERO);
        assert_eq!((search.current(), search.poll_timeout()), (1232, None));
    }

    proptest! {
        #[test]
        fn ends_close_below_the_limit(min in 500u16..2000, span in 0u16..8000, limit in 500u16..10_000) {
            let mut search = MtuSearch::new(&config(min, min + span), u16::MAX);
            let probes = run(&mut search, Time::ZERO, limit);
            let best = limit.clamp(min, min + span);
            prop_assert!(search.current() <= best && search.current() + STEP >= best);
            prop_assert!(probes <= 42);
        }
    }
}
