//! One direction of a network path.

use std::time::Duration;

use keynet::time::Time;

use super::rng::Rng;

/// What a direction does to datagrams. Probabilities are from 0 to 1.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Bytes per second; `None` is infinitely fast.
    pub rate: Option<u64>,
    pub delay: Duration,
    /// Added to the delay, evenly distributed; order is kept unless `jitter_reorders` or `reorder` says otherwise.
    pub jitter: Duration,
    /// A datagram that drew less jitter overtakes one that drew more, as on Wi-Fi and LTE with several queues.
    pub jitter_reorders: bool,
    /// The jitter is the sum of so many even draws, each of its share: 1 is even, 4 is close to a bell curve.
    pub jitter_draws: u32,
    /// Bytes that wait for the rate; more are dropped.
    pub queue: u64,
    pub loss: f64,
    /// Losses that come in bursts.
    pub bursts: Option<Bursts>,
    /// This share of datagrams is held back by up to `reorder_by`, and overtaken.
    pub reorder: f64,
    pub reorder_by: Duration,
    pub duplicate: f64,
    /// One bit flips. UDP's checksum catches that on a real path; the simulation passes it on.
    pub corrupt: f64,
    pub truncate: f64,
    /// Larger datagrams (UDP payload) vanish.
    pub mtu: usize,
    /// Nothing passes.
    pub down: bool,
    /// Bytes of headers that take their time on the link: IPv4 and UDP.
    pub overhead: u64,
}

/// Gilbert and Elliott's model with time instead of datagrams (or a path that is hardly used would stay bad for minutes): good
/// and bad stretches of up to twice these lengths take turns.
#[derive(Clone, Copy, Debug)]
pub struct Bursts {
    pub good: Duration,
    pub bad: Duration,
    pub loss: f64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            jitter_reorders: false,
            jitter_draws: 1,
            queue: u64::MAX,
            loss: 0.0,
            bursts: None,
            reorder: 0.0,
            reorder_by: Duration::from_millis(20),
            duplicate: 0.0,
            corrupt: 0.0,
            truncate: 0.0,
            mtu: 65_507,
            down: false,
            overhead: 28,
        }
    }
}

impl LinkConfig {
    /// A link of `mbit` megabits a second in each direction with this round trip and a queue of `bdps` times their product.
    pub fn path(mbit: u64, rtt: Duration, bdps: f64) -> Self {
        let rate = mbit * 125_000;
        let queue = (rate as f64 * rtt.as_secs_f64() * bdps) as u64;
        Self { rate: Some(rate), delay: rtt / 2, queue: queue.max(3_000), ..Self::default() }
    }

    pub fn losing(self, loss: f64) -> Self {
        Self { loss, ..self }
    }
}

#[derive(Debug)]
pub struct Link {
    pub config: LinkConfig,
    pub carried: u64,
    pub dropped: u64,
    rng: Rng,
    busy_until: Time,
    last_arrival: Time,
    in_burst: bool,
    burst_changes: Time,
}

impl Link {
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self {
            config,
            carried: 0,
            dropped: 0,
            rng: Rng::new(seed),
            busy_until: Time::ZERO,
            last_arrival: Time::ZERO,
            in_burst: false,
            burst_changes: Time::ZERO,
        }
    }

    /// Hands what arrives, and when, to `deliver`.
    /// A datagram that may be sent in fragments passes where it is too large.
    pub fn send(&mut self, now: Time, datagram: &[u8], may_fragment: bool, mut deliver: impl FnMut(Time, Vec<u8>)) {
        let Some(departure) = self.queue(now, datagram.len() as u64) else {
            self.dropped += 1;
            return;
        };
        if self.loses(now, if may_fragment { 0 } else { datagram.len() }) {
            self.dropped += 1;
            return;
        }
        self.carried += 1;
        let copies = 1 + u32::from(self.rng.chance(self.config.duplicate));
        for _ in 0..copies {
            let arrival = self.arrival(departure);
            deliver(arrival, self.damage(datagram));
        }
    }

    /// When the last bit has left; `None` when the queue is full.
    fn queue(&mut self, now: Time, len: u64) -> Option<Time> {
        let Some(rate) = self.config.rate else { return Some(now) };
        let size = len + self.config.overhead;
        let backlog = self.busy_until.since(now).as_nanos() * u128::from(rate) / 1_000_000_000;
        if backlog + u128::from(size) > u128::from(self.config.queue) {
            return None;
        }
        self.busy_until = self.busy_until.max(now) + Duration::from_nanos(size * 1_000_000_000 / rate);
        Some(self.busy_until)
    }

    fn loses(&mut self, now: Time, len: usize) -> bool {
        let burst = self.config.bursts.is_some_and(|bursts| {
            if now >= self.burst_changes {
                self.in_burst ^= true;
                let mean = if self.in_burst { bursts.bad } else { bursts.good };
                self.burst_changes = now + Duration::from_nanos(self.rng.below(2 * mean.as_nanos() as u64 + 1));
            }
            self.in_burst && self.rng.chance(bursts.loss)
        });
        self.config.down || len > self.config.mtu || burst || self.rng.chance(self.config.loss)
    }

    fn arrival(&mut self, departure: Time) -> Time {
        let share = self.config.jitter.as_nanos() as u64 / u64::from(self.config.jitter_draws);
        let jitter: u64 = (0..self.config.jitter_draws).map(|_| self.rng.below(share + 1)).sum();
        let arrival = departure + self.config.delay + Duration::from_nanos(jitter);
        if self.config.jitter_reorders {
            return arrival;
        }
        if self.rng.chance(self.config.reorder) {
            return arrival + Duration::from_nanos(self.rng.below(self.config.reorder_by.as_nanos() as u64 + 1));
        }
        self.last_arrival = self.last_arrival.max(arrival);
        self.last_arrival
    }

    fn damage(&mut self, datagram: &[u8]) -> Vec<u8> {
        let mut copy = datagram.to_vec();
        if self.rng.chance(self.config.corrupt) && !copy.is_empty() {
            let bit = self.rng.below(copy.len() as u64 * 8) as usize;
            copy[bit / 8] ^= 1 << (bit % 8);
        }
        if self.rng.chance(self.config.truncate) {
            copy.truncate(self.rng.below(copy.len() as u64 + 1) as usize);
        }
        copy
    }
}
