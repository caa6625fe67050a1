//! Congestion control behind one trait. A controller sees acks and losses and says two things: how much may be in flight,
//! and how fast it may leave. It knows no packets, no sockets and no clock.

mod bbr;
mod bbr_model;
mod cubic;
mod hystart;
mod ledbat;

use std::time::Duration;

pub use bbr::Bbr;
pub use cubic::Cubic;
pub use ledbat::Ledbat;

use crate::config::{ControllerKind, UtpConfig};
use crate::time::Time;

/// What one acknowledgement told. Byte counts are payload bytes, as in BEP 29.
#[derive(Clone, Copy, Debug)]
pub struct AckSample {
    pub now: Time,
    /// Bytes that this ack newly confirmed, cumulatively or selectively.
    pub acked: u64,
    /// Bytes in flight before this ack.
    pub prior_in_flight: u64,
    /// Bytes in flight after it (losses it revealed already taken off).
    pub in_flight: u64,
    /// RTT of the newest packet that it confirmed; `None` when only re-sent packets were confirmed (Karn).
    pub rtt: Option<Duration>,
    /// The RTTs of all packets that it confirmed and that were sent once, summed, and how many they are: the newest of each ack
    /// alone would tell of the quickest only where packets overtake each other.
    pub rtt_sum: Duration,
    pub rtt_count: u32,
    /// The smallest RTT seen over the life of the path.
    pub min_rtt: Duration,
    /// Smoothed RTT (RFC 6298).
    pub srtt: Duration,
    /// One-way delay in microseconds as the peer measured it (`timestamp_difference_microseconds`): meaningful only
    /// relative to its own minimum, wraps at 2^32. `None` when the peer gave no sample.
    pub delay_micros: Option<u32>,
    /// Delivery rate sample in bytes per second (draft-ietf-ccwg-bbr section 4.1): bytes delivered between sending and
    /// confirming the newest confirmed packet, over the longer of the sending and the confirming interval.
    pub delivery_rate: Option<u64>,
    /// The rate sample was taken while the sender had nothing to send.
    pub app_limited: bool,
    /// Total bytes confirmed so far on this connection, this ack included.
    pub delivered: u64,
    /// `delivered` at the moment when the newest packet confirmed here was sent: a round trip has passed when it reaches
    /// the `delivered` of the previous round's end.
    pub prior_delivered: u64,
    /// The sender was held back by the window rather than by the application when this packet was sent.
    pub window_limited: bool,
}

/// A loss, reported once for all packets that one ack or one timer declared lost.
#[derive(Clone, Copy, Debug)]
pub struct LossSample {
    pub now: Time,
    /// Bytes declared lost now.
    pub lost: u64,
    /// Bytes in flight after taking them off.
    pub in_flight: u64,
    /// When the newest of the lost packets was sent.
    pub newest_lost_sent: Time,
    /// The first loss since everything that was in flight at the previous such loss is confirmed (a new recovery
    /// episode). Loss-based controllers react once an episode.
    pub new_episode: bool,
    /// `delivered` at this moment.
    pub delivered: u64,
}

/// What a controller that steps down knows of the path, for the one that follows.
#[derive(Clone, Copy, Debug)]
pub struct Handover {
    pub now: Time,
    /// Bytes in flight that use the path as far as it was used.
    pub bytes: u64,
    /// That is what the path holds. Otherwise it was still being looked for, or left to others.
    pub full: bool,
    pub srtt: Duration,
    pub min_rtt: Duration,
    pub delivered: u64,
}

/// A congestion controller.
pub trait Controller: Send + std::fmt::Debug {
    fn kind(&self) -> ControllerKind;

    /// `bytes` were sent (first time or again); `in_flight` includes them.
    fn on_sent(&mut self, now: Time, bytes: u64, in_flight: u64);

    /// Called once for each packet from the peer that confirmed something new, after losses were reported.
    fn on_ack(&mut self, ack: &AckSample);

    fn on_loss(&mut self, loss: &LossSample);

    /// The retransmission timer expired: everything in flight is presumed lost (RFC 5681 section 3.1).
    fn on_timeout(&mut self, now: Time, in_flight: u64);

    /// The last `on_loss` or `on_timeout` was a mistake (Eifel, F-RTO): undo what it did.
    fn on_spurious_loss(&mut self, now: Time);

    /// Nothing was in flight for a while and sending starts again.
    fn on_restart_after_idle(&mut self, now: Time, idle: Duration);

    /// The payload of a full packet changed (path MTU search).
    fn on_mtu(&mut self, max_payload: u16);

    /// [`Handover::bytes`] and [`Handover::full`].
    fn hand_over(&self) -> (u64, bool);

    /// Goes on where another controller of the same connection stopped; called once, before anything else.
    fn take_over(&mut self, path: &Handover);

    /// Bytes that may be in flight.
    fn window(&self) -> u64;

    /// Bytes per second at which packets may leave; `None` before there is an RTT sample (then only the window limits).
    fn pacing_rate(&self) -> Option<u64>;
}

/// Makes the controller of this kind for a new connection.
pub fn new(kind: ControllerKind, config: &UtpConfig, max_payload: u16) -> Box<dyn Controller> {
    match kind {
        ControllerKind::Cubic => Box::new(Cubic::new(max_payload)),
        ControllerKind::Ledbat => Box::new(Ledbat::new(config.ledbat_target, max_payload)),
        ControllerKind::Bbr => Box::new(Bbr::new(max_payload)),
    }
}

/// RFC 6928: ten packets, but no more than 14,600 bytes unless two packets are more.
fn initial_window(mss: f64) -> f64 {
    (10.0 * mss).min(14_600.0f64.max(2.0 * mss))
}

/// Every window is at least two packets (a lost ack of a single one would cost a delayed ack or a timer each time), and at
/// most [`MAX_WINDOW`].
fn clamp_window(window: f64, mss: f64) -> f64 {
    window.min(MAX_WINDOW).max(2.0 * mss)
}

/// Bytes per second that bring `bytes` out in one round trip.
fn pace(bytes: f64, rtt: Duration) -> u64 {
    let rate = bytes / rtt.as_secs_f64().max(1e-6);
    // `as` saturates, but an infinite rate would be no pacing.
    rate.clamp(1.0, MAX_RATE) as u64
}

/// Five times what 32,767 packets of 1,472 bytes hold, the most that the sequence numbers allow.
const MAX_WINDOW: f64 = (1u64 << 28) as f64;

/// 100 GB/s.
const MAX_RATE: f64 = 1e11;

#[cfg(test)]
mod tests;
