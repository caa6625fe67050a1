//! What relays add to finding nodes: addresses that relays keep, relays that a rendezvous names, and direct paths in place of
//! relayed ones as soon as there are any.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{interval, sleep, Instant, MissedTickBehavior};
use zeroize::Zeroizing;

use super::station::{split_address, Station};
use super::upgrades::Upgrades;
use super::wire::{FromNode, Relays as Offered, Uses};
use super::{Inner, RendezvousEvent, MAX_AGAIN};
use crate::addr::{NodeId, Via};
use crate::path::{Mapping, Whereabouts, MAX_CANDIDATES};
use crate::relay::client::{RelaySpec, USUAL_WEIGHT};
use crate::relay::{RelayEvent, RelayUri};

/// With which nodes no relay is used.
#[derive(Clone, Debug, Default)]
pub enum DirectOnly {
    /// With none: relays are used where nothing else helps.
    #[default]
    Nobody,
    Everybody,
    Nodes(HashSet<NodeId>),
}

impl DirectOnly {
    /// `names`: every name that the node is known by.
    pub(super) fn applies(&self, names: &[NodeId]) -> bool {
        match self {
            Self::Nobody => false,
            Self::Everybody => true,
            Self::Nodes(nodes) => names.iter().any(|name| nodes.contains(name)),
        }
    }
}

/// The relays that a rendezvous has named, and what it was told of them.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// The host, and what the rendezvous calls the relay there: its first URI.
    names: Vec<(String, String)>,
    /// It wants to know which are in use: it has said what they weigh.
    counts: bool,
    told: Option<Vec<String>>,
}

impl Named {
    /// What to tell it, where that is not what it has heard: by these hosts relays are in use.
    fn news(&self, hosts: &[String]) -> Option<Vec<String>> {
        let used = self.names.iter().filter(|(host, _)| hosts.contains(host));
        let used: Vec<String> = used.map(|(_, name)| name.clone()).collect();
        (self.counts && self.told.as_ref() != Some(&used)).then_some(used)
    }
}

impl Inner {
    /// What a peer is told of where this node is.
    pub(super) async fn whereabouts(&self, names: &[NodeId]) -> Whereabouts {
        let mut own = self.surroundings.whereabouts(self.config.discovery_patience).await;
        own.direct_only = self.direct_only.applies(names);
        if own.direct_only {
            return own;
        }
        if own.profile.mapping != Mapping::EndpointIndependent {
            let begin = Instant::now();
            self.relays.ready(self.relay_config.patience).await;
            own.took += begin.elapsed();
        }
        let relayed = self.relays.candidates();
        own.candidates.truncate(MAX_CANDIDATES.saturating_sub(relayed.len()));
        own.candidates.extend(relayed);
        own
    }

    /// A rendezvous has named relays.
    pub(super) fn offered(&self, station: &Station, offered: Offered) {
        let Some((host, _)) = split_address(&station.server.address) else { return };
        let inside = station.is_inside();
        let by = station.server.node.to_string();
        let seconds = offered.relays.iter().map(|relay| relay.seconds).min().unwrap_or(0);
        let counts = offered.relays.iter().any(|relay| relay.weight.is_some());
        let (mut specs, mut named) = (Vec::new(), Named { counts, ..Named::default() });
        for relay in offered.relays.iter().take(MAX_RELAYS) {
            // RFC 2782 gives a weight 16 bits
            let weight = relay.weight.unwrap_or(USUAL_WEIGHT).min(u16::MAX.into());
            for text in relay.uris.iter().take(MAX_URIS) {
                let mut uri = match beside(text, host).parse::<RelayUri>() {
                    Ok(uri) => uri,
                    Err(error) => {
                        tracing::info!(%error, "a rendezvous names a relay that cannot be read");
                        continue;
                    }
                };
                // which files are read here is no business of others
                uri.ca = None;
                if let Some(first) =
                    relay.uris.first().filter(|_| named.names.iter().all(|(host, _)| *host != uri.host))
                {
                    named.names.push((uri.host.clone(), first.clone()));
                }
                specs.push(RelaySpec {
                    username: relay.username.clone(),
                    password: Zeroizing::new(relay.password.clone()),
                    weight,
                    // a rendezvous on the internet has no business with addresses of our own network
                    public_only: !inside,
                    ..RelaySpec::new(uri)
                });
            }
        }
        self.named.lock().unwrap_or_else(PoisonError::into_inner).insert(station.server.node, named);
        let anew = station.names_relays_anew();
        self.relays.offer(&by, specs, Duration::from_secs(seconds.into()), anew);
        self.tell_uses(station);
    }

    /// Says which of the relays that the rendezvous has named are in use, so that it can spread its nodes.
    fn tell_uses(&self, station: &Station) {
        let hosts = self.relays.hosts();
        let mut all = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(named) = all.get_mut(&station.server.node) else { return };
        let Some(relays) = named.news(&hosts) else { return };
        if station.tell(FromNode::Uses(Uses { relays: relays.clone() })) {
            named.told = Some(relays);
        }
    }

    /// A rendezvous is about to end, and the relay beside it: what there is elsewhere is looked for while both still work.
    pub(super) fn going(&self, station: &Station) {
        if let Some((host, _)) = split_address(&station.server.address) {
            self.relays.going(host);
        }
        let others = self.stations.iter().filter(|other| !std::ptr::eq(other.as_ref(), station));
        others.filter(|other| !other.is_connected()).for_each(|other| other.again.notify_one());
    }

    /// Waits until another rendezvous does what this one did, and nothing is under way by way of it.
    pub(super) async fn is_elsewhere(&self, station: &Station) {
        while !(self.has_another(station) && self.exchanges().is_empty()) {
            sleep(LOOK_AGAIN).await;
        }
    }

    pub(super) fn has_another(&self, station: &Station) -> bool {
        let other = |one: &Arc<Station>| !std::ptr::eq(one.as_ref(), station) && one.is_connected() && !one.is_going();
        self.stations.iter().any(other)
    }

    pub(super) async fn watch_relays(self: Arc<Self>) {
        let mut events = self.relays.subscribe();
        let mut moved = HashSet::new();
        loop {
            match events.recv().await {
                Ok(RelayEvent::Connected { relay, addresses }) => {
                    self.publish(RendezvousEvent::RelayConnected { relay, addresses });
                    self.meet_over_new_relay();
                    self.leave_old_relays(&mut moved);
                }
                Ok(RelayEvent::Changed) => self.leave_old_relays(&mut moved),
                Ok(RelayEvent::Lost { relay, error }) => self.publish(RendezvousEvent::RelayLost { relay, error }),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
            self.stations.iter().for_each(|station| self.tell_uses(station));
        }
    }

    /// There is a new relay: peers that have fallen silent may be reached over it, also while they are being looked for without.
    fn meet_over_new_relay(self: &Arc<Self>) {
        let nodes = self.peers.net.nodes();
        for node in nodes.into_iter().filter(|node| self.peers.net.has_silent_path(node)).take(MAX_AGAIN) {
            let inner = self.clone();
            tokio::spawn(async move { inner.meet_silent(node).await });
        }
    }

    /// Meets those again whose traffic goes over a relay that another has taken the place of, and moves it while both carry. `moved`:
    /// who is met already, because of which.
    fn leave_old_relays(self: &Arc<Self>, moved: &mut HashSet<(NodeId, Via)>) {
        let leaving = self.relays.leaving();
        moved.retain(|(_, via)| leaving.contains(via));
        let (net, mut begun) = (&self.peers.net, 0);
        for node in net.relayed_nodes() {
            let via = net.paths(&node).into_iter().find(|path| path.in_use && leaving.contains(&path.via));
            let Some(via) = via.map(|path| path.via) else { continue };
            // a rendezvous is dialled by its station, when the way to it ends
            if self.stations.iter().any(|one| one.server.node == node) || begun >= MAX_AGAIN {
                continue;
            }
            if !moved.insert((node, via)) {
                continue;
            }
            let round = begun / UPGRADES_A_ROUND;
            begun += 1;
            let (inner, leaving) = (self.clone(), leaving.clone());
            tokio::spawn(async move {
                sleep(LOOK_EVERY * round as u32).await;
                let deadline = Instant::now() + inner.config.direct_timeout;
                match inner.meet(node, deadline).await {
                    Ok(()) => inner.peers.net.leave(&leaving),
                    Err(error) => tracing::info!(%error, "a peer has to find its own way to another relay"),
                }
            });
        }
    }

    /// Offers a direct path, now and then, to peers that are reached over a relay.
    pub(super) async fn leave_relays(self: Arc<Self>) {
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut upgrades = Upgrades::new(&self.relay_config);
        let (mut network, mut own_address) = (self.surroundings.generation(), self.surroundings.moves());
        network.mark_unchanged();
        own_address.mark_unchanged();
        loop {
            tick.tick().await;
            if network.has_changed().unwrap_or(false) {
                network.mark_unchanged();
                upgrades.network_changed();
            }
            if own_address.has_changed().unwrap_or(false) {
                own_address.mark_unchanged();
                upgrades.moved(Instant::now());
            }
            let mut relayed = self.peers.net.relayed_nodes();
            relayed.sort_unstable();
            relayed.dedup();
            relayed.retain(|node| !(self.direct_only.applies(&[*node]) || self.is_station(node)));
            for node in upgrades.due(Instant::now(), &relayed, UPGRADES_A_ROUND) {
                let inner = self.clone();
                tokio::spawn(async move {
                    match inner.upgrade(node).await {
                        Ok(()) => tracing::info!(node = %node.short(), "a direct path in place of a relay"),
                        Err(error) => tracing::debug!(%error, "still no direct path"),
                    }
                });
            }
        }
    }
}

/// `turn::PORT` is a relay at the host of the rendezvous itself, under the name by which this node knows it.
fn beside(uri: &str, host: &str) -> String {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    match uri.split_once(':') {
        Some((scheme, rest)) if rest.starts_with(':') => format!("{scheme}:{host}{rest}"),
        _ => uri.to_owned(),
    }
}

/// Relays of one rendezvous, and ways to each.
const MAX_RELAYS: usize = 8;
const MAX_URIS: usize = 4;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A rendezvous that goes waits for half a second.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Each is an exchange of at least two signals, of which a rendezvous takes 20 a second.
const UPGRADES_A_ROUND: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendezvous_is_told_by_its_own_names_what_is_in_use_and_once() {
        let name = |host: &str, uri: &str| (host.to_owned(), uri.to_owned());
        let names = vec![name("a.example", "turn::3478"), name("b.example", "turn:b.example")];
        let mut named = Named { names, counts: true, told: None };
        let hosts = ["b.example".to_owned(), "of-the-user.example".to_owned()];
        assert_eq!(named.news(&hosts), Some(vec!["turn:b.example".to_owned()]));
        named.told = named.news(&hosts);
        assert_eq!(named.news(&hosts), None);
        assert_eq!(named.news(&["a.example".to_owned()]), Some(vec!["turn::3478".to_owned()]));
        named.counts = false;
        assert_eq!(named.news(&[]), None, "one that knows no weights knows no such message");
    }

    #[test]
    fn a_relay_beside_the_rendezvous_has_its_name() {
        assert_eq!(beside("turn::3478?transport=udp", "a.example"), "turn:a.example:3478?transport=udp");
        assert_eq!(beside("turns::443", "2001:db8::1"), "turns:[2001:db8::1]:443");
        assert_eq!(beside("turn:b.example", "a.example"), "turn:b.example");
    }
}
