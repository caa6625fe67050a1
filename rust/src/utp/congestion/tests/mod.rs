//! What holds for every controller, and how they behave on a synthetic bottleneck.

mod fluid;

use proptest::prelude::*;

use super::*;
use fluid::{Bottleneck, Flow};

const KINDS: [ControllerKind; 3] = [ControllerKind::Cubic, ControllerKind::Ledbat, ControllerKind::Bbr];
const MSS: u16 = 1212;

fn make(kind: ControllerKind) -> Box<dyn Controller> {
    new(kind, &UtpConfig::default(), MSS)
}

/// One call of a controller with numbers from anywhere.
#[derive(Clone, Debug)]
enum Call {
    Sent(u64),
    Ack { after: u64, acked: u64, rtt: Option<u64>, delay: Option<u32>, rate: Option<u64>, limited: bool },
    Loss { lost: u64, new_episode: bool },
    Timeout,
    Spurious,
    Idle(u64),
    Mtu(u16),
}

fn any_call() -> impl Strategy<Value = Call> {
    let amount = prop_oneof![0u64..100_000, Just(0), Just(u64::MAX / 4), any::<u64>().prop_map(|n| n >> 8)];
    let nanos = prop_oneof![Just(0u64), 0u64..1_000_000_000, any::<u64>().prop_map(|n| n >> 4)];
    let ack = (
        nanos.clone(),
        amount.clone(),
        proptest::option::of(nanos.clone()),
        proptest::option::of(any::<u32>()),
        proptest::option::of(any::<u64>()),
        any::<bool>(),
    );
    prop_oneof![
        1 => amount.clone().prop_map(Call::Sent),
        4 => ack.prop_map(|(after, acked, rtt, delay, rate, limited)| Call::Ack { after, acked, rtt, delay, rate, limited }),
        2 => (amount, any::<bool>()).prop_map(|(lost, new_episode)| Call::Loss { lost, new_episode }),
        1 => Just(Call::Timeout),
        1 => Just(Call::Spurious),
        1 => nanos.prop_map(Call::Idle),
        1 => (1u16..9000).prop_map(Call::Mtu),
    ]
}

struct Script {
    now: Time,
    delivered: u64,
    in_flight: u64,
    mss: u64,
}

impl Script {
    fn run(&mut self, controller: &mut dyn Controller, call: &Call) {
        match *call {
            Call::Sent(bytes) => {
                self.in_flight = self.in_flight.saturating_add(bytes);
                controller.on_sent(self.now, bytes, self.in_flight);
            }
            Call::Ack { after, acked, rtt, delay, rate, limited } => {
                self.now += Duration::from_nanos(after);
                let prior = self.delivered;
                self.delivered = self.delivered.saturating_add(acked);
                let prior_in_flight = self.in_flight;
                self.in_flight = self.in_flight.saturating_sub(acked);
                controller.on_ack(&AckSample {
                    now: self.now,
                    acked,
                    prior_in_flight,
                    in_flight: self.in_flight,
                    rtt: rtt.map(Duration::from_nanos),
                    rtt_sum: Duration::from_nanos(rtt.unwrap_or(0)),
                    rtt_count: u32::from(rtt.is_some()),
                    min_rtt: Duration::from_nanos(rtt.unwrap_or(1)),
                    srtt: Duration::from_nanos(rtt.unwrap_or(0)),
                    delay_micros: delay,
                    delivery_rate: rate,
                    app_limited: !limited,
                    delivered: self.delivered,
                    prior_delivered: prior,
                    window_limited: limited,
                });
            }
            Call::Loss { lost, new_episode } => {
                self.in_flight = self.in_flight.saturating_sub(lost);
                controller.on_loss(&LossSample {
                    now: self.now,
                    lost,
                    in_flight: self.in_flight,
                    newest_lost_sent: self.now,
                    new_episode,
                    delivered: self.delivered,
                });
            }
            Call::Timeout => controller.on_timeout(self.now, self.in_flight),
            Call::Spurious => controller.on_spurious_loss(self.now),
            Call::Idle(nanos) => {
                self.now += Duration::from_nanos(nanos);
                controller.on_restart_after_idle(self.now, Duration::from_nanos(nanos));
            }
            Call::Mtu(size) => {
                self.mss = size.into();
                controller.on_mtu(size);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// No panic, at least two packets, at most the cap, and a loss or a timeout raises nothing.
    #[test]
    fn bounds_hold_for_any_calls(kind in 0usize..3, calls in proptest::collection::vec(any_call(), 1..200)) {
        let mut controller = make(KINDS[kind]);
        let mut script = Script { now: Time::from_millis(1), delivered: 0, in_flight: 0, mss: MSS.into() };
        for call in &calls {
            let before = controller.window();
            script.run(controller.as_mut(), call);
            let after = controller.window();
            prop_assert!(after >= 2 * script.mss, "{call:?}: {after}");
            prop_assert!(after <= MAX_WINDOW as u64, "{call:?}: {after}");
            prop_assert!(controller.pacing_rate().is_none_or(|rate| rate > 0 && rate <= MAX_RATE as u64));
            if matches!(call, Call::Loss { .. } | Call::Timeout) {
                prop_assert!(after <= before, "{call:?}: {before} -> {after}");
            }
        }
    }

    /// No ack grows the window by more than it acknowledged, beyond what recovery and probing hold back.
    #[test]
    fn growth_is_bounded_by_what_was_acknowledged(kind in 0usize..3, acks in proptest::collection::vec((1u64..50, 1u64..20), 1..300)) {
        let mut controller = make(KINDS[kind]);
        let mut script = Script { now: Time::from_millis(1), delivered: 0, in_flight: 0, mss: MSS.into() };
        for (millis, packets) in acks {
            let before = controller.window();
            let acked = packets * u64::from(MSS);
            let call = Call::Ack {
                after: millis * 1_000_000, acked, rtt: Some(millis * 1_000_000), delay: Some(1000), rate: Some(acked * 1000 / millis), limited: true,
            };
            script.run(controller.as_mut(), &call);
            prop_assert!(controller.window() <= before + acked + u64::from(MSS));
        }
    }
}

/// A long transfer alone on a link of 100 Mbit/s and 50 ms with one BDP of queue: everybody fills it.
#[test]
fn every_controller_fills_an_empty_link() {
    for (kind, least) in [(ControllerKind::Cubic, 0.93), (ControllerKind::Bbr, 0.93), (ControllerKind::Ledbat, 0.6)] {
        let mut link = Bottleneck::new(12_500_000.0, 0.050, 625_000.0);
        let mut flows = [Flow::new(make(kind))];
        link.run(&mut flows, 30.0);
        let share = flows[0].goodput(30.0) / 12_500_000.0;
        assert!(share > least, "{kind:?} reached {share:.3} of the link");
    }
}

#[test]
fn bbr_finds_bandwidth_and_keeps_the_queue_short() {
    let mut link = Bottleneck::new(12_500_000.0, 0.050, 1_250_000.0);
    let mut flows = [Flow::new(make(ControllerKind::Bbr))];
    link.run(&mut flows, 20.0);
    let rate = flows[0].controller.pacing_rate().unwrap() as f64;
    assert!((0.85..1.3).contains(&(rate / 12_500_000.0)), "{rate}");
    assert!(flows[0].mean_rtt() < 0.075, "mean RTT {}", flows[0].mean_rtt());
}

#[test]
fn bbr_does_not_mind_random_loss() {
    for loss in [0.001, 0.01, 0.03] {
        let mut link = Bottleneck::new(12_500_000.0, 0.050, 625_000.0).losing(loss);
        let mut flows = [Flow::new(make(ControllerKind::Bbr))];
        link.run(&mut flows, 30.0);
        let share = flows[0].goodput(30.0) / 12_500_000.0 / (1.0 - loss);
        assert!(share > 0.90, "{share:.3} at {loss}");
    }
}

#[test]
fn cubic_shares_with_cubic() {
    let mut link = Bottleneck::new(12_500_000.0, 0.020, 250_000.0);
    let mut flows = [Flow::new(make(ControllerKind::Cubic)), Flow::new(make(ControllerKind::Cubic)).starting(3.0)];
    link.run(&mut flows, 60.0);
    let ratio = flows[0].goodput(60.0) / flows[1].goodput(57.0);
    assert!((0.5..2.0).contains(&ratio), "{ratio:.2}");
}

/// The bar of the design: between half and twice an equal share beside Cubic, with one BDP of queue.
#[test]
fn bbr_is_fair_to_cubic() {
    let mut link = Bottleneck::new(12_500_000.0, 0.040, 500_000.0);
    let mut flows = [Flow::new(make(ControllerKind::Cubic)), Flow::new(make(ControllerKind::Bbr))];
    link.run(&mut flows, 60.0);
    let equal = 12_500_000.0 / 2.0;
    for flow in &flows {
        let share = flow.goodput(60.0) / equal;
        assert!((0.5..2.0).contains(&share), "{:?} has {share:.2} of an equal share", flow.controller.kind());
    }
}

/// The bar of the design: a background transfer takes at most a tenth beside one foreground transfer.
#[test]
fn ledbat_yields() {
    for (rtt, bdps) in [(0.020, 1.0), (0.050, 1.0), (0.100, 0.5), (0.020, 0.25), (0.050, 4.0)] {
        let mut link = Bottleneck::new(12_500_000.0, rtt, 12_500_000.0 * rtt * bdps);
        let mut flows = [Flow::new(make(ControllerKind::Cubic)).starting(5.0), Flow::new(make(ControllerKind::Ledbat))];
        link.run(&mut flows, 10.0);
        let before = flows[1].delivered;
        link.run(&mut flows, 60.0);
        let share = (flows[1].delivered - before) as f64 / 50.0 / 12_500_000.0;
        assert!(share < 0.10, "LEDBAT takes {share:.3} at {rtt} s, {bdps} BDP");
    }
}
