//! The relays of a node: which are used, and what is done when one goes, refuses, or does not answer.

use std::time::Duration;

use keynet::addr::Via;
use keynet::config::{RelayConfig, RelayServerConfig};
use keynet::net::{Incoming, Net, NetConfig};
use keynet::relay::client::{allocate, RelaySpec};
use keynet::relay::{RelayStatus, Relays};
use tokio::net::TcpListener;

use crate::coturn::{spec, v4, Coturn};
use crate::support::{allocated, options, run, within, Peer};
use crate::turn::{at, far, host, Turn};

/// Longer than any test runs.
const FOR_EVER: Duration = Duration::from_secs(3_600);

struct Kept {
    relays: Relays,
    _net: (Net, Incoming),
}

impl Kept {
    fn start(at_once: usize, specs: Vec<RelaySpec>) -> Self {
        let net = Net::bind((v4(), 0).into(), NetConfig::default()).unwrap();
        let config = RelayConfig { at_once, deadline: FOR_EVER, ..RelayConfig::default() };
        Self { relays: Relays::start(net.0.clone(), config, specs), _net: net }
    }

    fn of(&self, n: u8) -> RelayStatus {
        let name = host(n).to_string();
        self.relays.status().into_iter().find(|one| one.relay == name).unwrap_or_else(|| panic!("{name} is unknown"))
    }

    /// The ways that meetings use.
    fn vias(&self) -> Vec<Via> {
        self.relays.own().iter().map(|one| one.via).collect()
    }

    /// Waits until the relays in use are exactly these.
    async fn uses(&self, hosts: &[u8]) {
        let mut wanted: Vec<_> = hosts.iter().map(|n| host(*n).to_string()).collect();
        wanted.sort();
        self.until(|kept| {
            let mut used = kept.relays.hosts();
            used.sort();
            used == wanted
        })
        .await;
    }

    async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let condition = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        within(&format!("a change of {:?}", self.relays.status()), condition).await;
    }
}

#[test]
fn a_relay_that_does_not_answer_holds_up_none_that_is_named_later() {
    run(async {
        let (one, two) = (Turn::start(11), Turn::start(12));
        let kept = Kept::start(2, vec![one.spec("udp")]);
        kept.uses(&[11]).await;
        let dead = TcpListener::bind((host(13), 0)).await.unwrap();
        let uri = format!("turns:a:b@{}", dead.local_addr().unwrap());
        kept.relays.offer("dead", vec![spec(&uri)], FOR_EVER, false);
        let _asked = within("it is asked", dead.accept()).await.unwrap();
        kept.relays.offer("two", vec![two.spec("udp")], FOR_EVER, false);
        kept.uses(&[11, 12]).await;
        assert!(kept.of(13).error.is_none(), "it is waited for still");
    });
}

#[test]
fn of_several_relays_one_that_answers_is_taken_and_the_others_are_given_back() {
    run(async {
        let quota = ["user-quota=1"];
        let Some(one) = Coturn::start(host(43), &quota) else { return };
        let Some(two) = Coturn::start(host(44), &quota) else { return };
        let dead = Peer::bind(host(45)).await;
        let relays = vec![spec(&format!("turn:a:b@{}", dead.address())), one.spec("udp"), two.spec("udp")];
        let kept = Kept::start(1, relays);
        kept.until(|kept| !kept.relays.hosts().is_empty()).await;
        let loser = if kept.relays.hosts() == [one.ip.to_string()] { &two } else { &one };
        within("the loser's allocation", async { while allocate(loser.spec("tcp"), &options()).await.is_err() {} })
            .await;
    });
}

#[test]
fn a_relay_that_is_full_is_passed_over() {
    let for_one = RelayServerConfig { max_allocations_per_user: 1, ..RelayServerConfig::default() };
    let for_all = RelayServerConfig { max_allocations: 1, ..RelayServerConfig::default() };
    for (config, code) in [(for_one, "486"), (for_all, "508")] {
        run(async {
            let (full, free) = (Turn::with(14, config), Turn::start(15));
            let _occupied = allocated(full.spec("udp")).await;
            let kept = Kept::start(2, vec![full.spec("udp"), free.spec("udp")]);
            kept.uses(&[15]).await;
            kept.until(|kept| kept.of(14).error.is_some()).await;
            let error = kept.of(14).error.unwrap();
            assert!(error.to_string().contains(code), "{error}");
        });
    }
}

#[test]
fn a_relay_that_dies_is_replaced_by_another() {
    run(async {
        // over TCP its end is known at once
        let (one, two) = (Turn::start(16), Turn::start(17));
        let kept = Kept::start(1, vec![one.spec("tcp")]);
        kept.uses(&[16]).await;
        kept.relays.offer("two", vec![two.spec("udp")], FOR_EVER, false);
        one.server.close().await;
        kept.uses(&[17]).await;
        kept.until(|kept| kept.of(16).error.is_some()).await;
    });
}

#[test]
fn a_relay_that_says_that_it_ends_gives_way_while_it_carries() {
    run(async {
        let (one, two) = (Turn::start(51), Turn::start(52));
        let kept = Kept::start(1, vec![one.spec("udp")]);
        kept.uses(&[51]).await;
        let old = kept.vias();
        kept.relays.offer("two", vec![two.spec("udp")], FOR_EVER, false);
        kept.relays.going(&host(51).to_string());
        kept.uses(&[52]).await;
        kept.until(|kept| kept.relays.leaving() == old).await;
        assert_eq!(one.allocations(), 1, "what goes over it has not been given back");
    });
}

#[test]
fn a_relay_that_was_started_anew_is_noticed_when_its_rendezvous_is_back() {
    run(async {
        let one = Turn::start(53);
        let kept = Kept::start(1, vec![]);
        kept.relays.offer("by", vec![one.spec("udp")], FOR_EVER, true);
        kept.uses(&[53]).await;
        let before = kept.of(53).addresses;
        one.server.close().await;
        let again = Turn::again(one.address);
        kept.relays.offer("by", vec![again.spec("udp")], FOR_EVER, true);
        // it knows of no allocation, and says so: nothing else is sent that could show it
        kept.until(|kept| !kept.of(53).addresses.is_empty() && kept.of(53).addresses != before).await;
    });
}

#[test]
fn a_relay_of_weight_0_is_for_want_of_others() {
    run(async {
        let (one, drained) = (Turn::start(41), Turn::start(42));
        let kept = Kept::start(2, vec![one.spec("tcp"), RelaySpec { weight: 0, ..drained.spec("udp") }]);
        kept.uses(&[41]).await;
        // both have answered by then
        tokio::time::sleep(Duration::from_millis(300)).await;
        kept.uses(&[41]).await;
        one.server.close().await;
        kept.uses(&[42]).await;
    });
}

#[test]
fn after_a_change_of_network_what_was_in_use_stays_until_there_is_another() {
    run(async {
        let relay = Turn::start(18);
        let kept = Kept::start(1, vec![relay.spec("udp")]);
        kept.uses(&[18]).await;
        let before = kept.vias();
        let status = || kept.of(18).via;
        kept.relays.network_changed();
        assert!(!kept.vias().is_empty() && status().is_some(), "what was in use may carry still");
        kept.until(|kept| kept.vias() != before).await;
        assert_eq!((kept.vias().len(), kept.relays.leaving()), (1, before.clone()), "new meetings use the new one");
        assert!(status() != Some(before[0]) && kept.of(18).error.is_none());
        assert_eq!(relay.allocations(), 2, "the old one carries until those who use it have moved");
        kept.until(|kept| kept.relays.leaving().is_empty() && relay.allocations() == 1).await;
        kept.uses(&[18]).await;
    });
}

#[test]
fn changes_of_network_in_a_row_leave_nothing_behind() {
    run(async {
        let (one, two) = (Turn::start(19), Turn::start(20));
        let kept = Kept::start(2, vec![one.spec("udp"), two.spec("udp")]);
        for _ in 0..20 {
            kept.relays.network_changed();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        kept.until(|kept| kept.relays.leaving().is_empty() && (one.allocations(), two.allocations()) == (1, 1)).await;
        kept.uses(&[19, 20]).await;
    });
}

#[test]
fn a_relay_that_gives_no_second_allocation_stays_in_use_through_a_change_of_network() {
    run(async {
        let relay = Turn::with(21, RelayServerConfig { max_allocations_per_user: 1, ..RelayServerConfig::default() });
        let kept = Kept::start(1, vec![relay.spec("udp")]);
        kept.uses(&[21]).await;
        let before = kept.vias();
        kept.relays.network_changed();
        kept.until(|kept| kept.of(21).error.is_some()).await;
        assert_eq!(kept.vias(), before);
    });
}

#[test]
fn a_relay_that_is_named_later_and_nearer_takes_the_place_of_a_far_one() {
    run(async {
        let (one, near) = (Turn::start(22), Turn::start(24));
        let (address, _way) = far(23, one.address, Duration::from_millis(80)).await;
        let kept = Kept::start(1, vec![at(address, "udp")]);
        kept.uses(&[23]).await;
        let before = kept.vias();
        kept.relays.offer("near", vec![near.spec("udp")], FOR_EVER, false);
        kept.uses(&[24]).await;
        assert_eq!(kept.relays.leaving(), before, "it carries until those who use it have moved");
        kept.until(|_| one.allocations() == 0).await;
    });
}

#[test]
fn a_relay_that_is_named_later_and_not_nearer_is_asked_and_given_back() {
    run(async {
        let (one, two) = (Turn::start(25), Turn::start(26));
        let (near, _way) = far(27, one.address, Duration::from_millis(40)).await;
        let (farther, _way) = far(28, two.address, Duration::from_millis(100)).await;
        let kept = Kept::start(1, vec![at(near, "udp")]);
        kept.uses(&[27]).await;
        let before = kept.vias();
        kept.relays.offer("farther", vec![at(farther, "udp")], FOR_EVER, false);
        kept.until(|_| two.server.stats().turn.allocated > 0 && two.allocations() == 0).await;
        assert_eq!(kept.vias(), before);
    });
}
