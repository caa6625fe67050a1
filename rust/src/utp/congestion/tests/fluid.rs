//! A bottleneck with a drop-tail queue and senders that always have data: enough of a network to judge controllers by.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::super::{AckSample, Controller, LossSample};
use super::MSS;
use crate::time::Time;

pub struct Bottleneck {
    rate: f64,
    rtt: f64,
    queue: f64,
    loss: f64,
    busy_until: f64,
    now: f64,
    random: u64,
    started: bool,
    /// (nanoseconds, kind, flow, packet): kind 0 = an ack arrives, 1 = the sender looks whether it may send.
    events: BinaryHeap<Reverse<(u64, u8, usize, u64)>>,
}

pub struct Flow {
    pub controller: Box<dyn Controller>,
    pub delivered: u64,
    start: f64,
    in_flight: u64,
    next_send: f64,
    /// Sent and not yet judged, in order of sending.
    sent: VecDeque<Sent>,
    next_id: u64,
    recovery_until: u64,
    srtt: f64,
    min_rtt: f64,
    rtt_sum: f64,
    rtt_count: f64,
    delivered_at: f64,
}

#[derive(Clone, Copy)]
struct Sent {
    id: u64,
    at: f64,
    delivered: u64,
    delivered_at: f64,
}

impl Bottleneck {
    /// Bytes per second, seconds, bytes.
    pub fn new(rate: f64, rtt: f64, queue: f64) -> Self {
        Self {
            rate,
            rtt,
            queue,
            loss: 0.0,
            busy_until: 0.0,
            now: 0.0,
            random: 0x1234_5678_9ABC_DEF1,
            started: false,
            events: BinaryHeap::new(),
        }
    }

    pub fn losing(mut self, loss: f64) -> Self {
        self.loss = loss;
        self
    }

    /// Runs until `until` seconds.
    pub fn run(&mut self, flows: &mut [Flow], until: f64) {
        if !self.started {
            self.started = true;
            for (n, flow) in flows.iter().enumerate() {
                self.events.push(Reverse((nanos(flow.start), 1, n, 0)));
            }
        }
        while let Some(&Reverse((at, kind, n, packet))) = self.events.peek() {
            let at_seconds = at as f64 / 1e9;
            if at_seconds > until {
                break;
            }
            self.events.pop();
            self.now = at_seconds;
            if kind == 0 {
                flows[n].ack(at_seconds, packet);
            }
            while flows[n].may_send(self.now) {
                let id = flows[n].send(self.now);
                if let Some(arrival) = self.carry() {
                    self.events.push(Reverse((nanos(arrival), 0, n, id)));
                }
            }
            if kind == 1 {
                flows[n].check_timer(self.now);
                let wake = flows[n].next_send.max(self.now + 0.001);
                self.events.push(Reverse((nanos(wake), 1, n, 0)));
            }
        }
        self.now = until;
    }

    /// When the ack of a packet that is sent now comes back; `None` when it is lost.
    fn carry(&mut self) -> Option<f64> {
        let backlog = (self.busy_until - self.now).max(0.0) * self.rate;
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let draw = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        if backlog + f64::from(MSS) > self.queue || draw < self.loss {
            return None;
        }
        self.busy_until = self.busy_until.max(self.now) + f64::from(MSS) / self.rate;
        Some(self.busy_until + self.rtt)
    }
}

impl Flow {
    pub fn new(controller: Box<dyn Controller>) -> Self {
        Self {
            controller,
            delivered: 0,
            start: 0.0,
            in_flight: 0,
            next_send: 0.0,
            sent: VecDeque::new(),
            next_id: 0,
            recovery_until: 0,
            srtt: 0.0,
            min_rtt: f64::INFINITY,
            rtt_sum: 0.0,
            rtt_count: 0.0,
            delivered_at: 0.0,
        }
    }

    pub fn starting(mut self, at: f64) -> Self {
        self.start = at;
        self
    }

    pub fn goodput(&self, seconds: f64) -> f64 {
        self.delivered as f64 / seconds
    }

    pub fn mean_rtt(&self) -> f64 {
        self.rtt_sum / self.rtt_count.max(1.0)
    }

    fn may_send(&self, now: f64) -> bool {
        now >= self.start
            && self.in_flight + u64::from(MSS) <= self.controller.window()
            && self.next_send <= now + BURST
    }

    fn send(&mut self, now: f64) -> u64 {
        if self.in_flight == 0 {
            self.delivered_at = now;
        }
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight += u64::from(MSS);
        self.sent.push_back(Sent { id, at: now, delivered: self.delivered, delivered_at: self.delivered_at });
        self.controller.on_sent(time(now), MSS.into(), self.in_flight);
        if let Some(rate) = self.controller.pacing_rate() {
            self.next_send = self.next_send.max(now - BURST) + f64::from(MSS) / rate as f64;
        }
        id
    }

    fn ack(&mut self, now: f64, id: u64) {
        let Some(position) = self.sent.iter().position(|sent| sent.id == id) else { return };
        let sent = self.sent.remove(position).unwrap();
        let prior_in_flight = self.in_flight;
        self.in_flight -= u64::from(MSS);
        self.delivered += u64::from(MSS);
        let rtt = now - sent.at;
        self.srtt = if self.srtt == 0.0 { rtt } else { self.srtt * 0.875 + rtt * 0.125 };
        self.min_rtt = self.min_rtt.min(rtt);
        self.rtt_sum += rtt;
        self.rtt_count += 1.0;
        // This network keeps the order: whatever was sent three packets earlier is lost.
        let lost = self.sent.iter().take_while(|other| other.id + 3 <= id).count();
        if lost > 0 {
            self.lose(now, lost);
        }
        let interval = now - sent.delivered_at;
        let rate = (interval > 0.0).then(|| ((self.delivered - sent.delivered) as f64 / interval) as u64);
        self.delivered_at = now;
        self.controller.on_ack(&AckSample {
            now: time(now),
            acked: MSS.into(),
            prior_in_flight,
            in_flight: self.in_flight,
            rtt: Some(Duration::from_secs_f64(rtt)),
            rtt_sum: Duration::from_secs_f64(rtt),
            rtt_count: 1,
            min_rtt: Duration::from_secs_f64(self.min_rtt),
            srtt: Duration::from_secs_f64(self.srtt),
            delay_micros: Some(((rtt * 1e6) as u32).wrapping_add(4_294_900_000)),
            delivery_rate: rate,
            app_limited: false,
            delivered: self.delivered,
            prior_delivered: sent.delivered,
            window_limited: true,
        });
    }

    /// Nothing came back for a second: the retransmission timer.
    fn check_timer(&mut self, now: f64) {
        if self.sent.back().is_some_and(|newest| now - newest.at > 1.0 + self.srtt) {
            self.sent.clear();
            self.in_flight = 0;
            self.controller.on_timeout(time(now), 0);
        }
    }

    fn lose(&mut self, now: f64, count: usize) {
        let newest = self.sent[count - 1];
        let lost = count as u64 * u64::from(MSS);
        self.in_flight -= lost;
        let new_episode = newest.id >= self.recovery_until;
        if new_episode {
            self.recovery_until = self.next_id;
        }
        self.sent.drain(..count);
        self.controller.on_loss(&LossSample {
            now: time(now),
            lost,
            in_flight: self.in_flight,
            newest_lost_sent: time(newest.at),
            new_episode,
            delivered: self.delivered,
        });
    }
}

fn time(seconds: f64) -> Time {
    Time::from_nanos(nanos(seconds))
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// How far ahead of its pace a packet may leave: the tick of the timers.
const BURST: f64 = 0.001;
