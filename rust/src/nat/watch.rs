//! Notices that the network of this machine has changed.
//!
//! The system rings a [`Bell`] when something about interfaces and routes changes; then, and every few seconds in any case, they are
//! read. A change of network is one of the [`Ways`] that lead out: bridges of containers, a second address that nothing is sent
//! from, a link without a cable change nothing. Having slept is a change as well: nobody knows what happened meanwhile.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, Instant};

use super::away::{always, Away};
use super::bell::Bell;
use super::interfaces::Interfaces;
use super::ways::{Scout, Ways};
use crate::config::HostConfig;

/// The network of this machine, as it is from one change to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// How many changes there were since the start that may have to do with how others reach this machine. What else is here also
    /// changes without that.
    pub generation: u64,
    pub interfaces: Interfaces,
    pub ways: Ways,
}

/// Whose addresses matter: the way to these is looked at, beside that to anywhere.
pub type Targets = Arc<dyn Fn() -> Vec<IpAddr> + Send + Sync>;

/// Reads the interfaces when the system says so, and now and then. Dropping it ends that.
pub struct Watch {
    network: watch::Receiver<Network>,
    generation: watch::Receiver<u64>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts inside a tokio runtime.
    pub fn start(config: &HostConfig, targets: Targets) -> Self {
        let mut reader = Reader { scout: Scout::default(), targets };
        let first = reader.read(None);
        let (network, heard) = watch::channel(first.clone());
        let (generation, changed) = watch::channel(first.generation);
        let debounce = Debounce::new(first, config.settle);
        let task = tokio::spawn(watch(config.clone(), reader, debounce, network, generation));
        Self { network: heard, generation: changed, task }
    }

    /// The network, as it changes.
    pub fn network(&self) -> watch::Receiver<Network> {
        self.network.clone()
    }

    /// The number of the network, and its next changes: it changes when the way out does.
    pub fn generation(&self) -> watch::Receiver<u64> {
        let mut generation = self.generation.clone();
        // a copy would tell of those before it again
        generation.mark_unchanged();
        generation
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(
    config: HostConfig,
    mut reader: Reader,
    mut debounce: Debounce,
    network: watch::Sender<Network>,
    generation: watch::Sender<u64>,
) {
    let mut bell = Bell::hang().inspect_err(|error| tracing::debug!(%error, "interfaces are read by the clock")).ok();
    let mut away = Away::new(std::time::Instant::now(), always());
    while !network.is_closed() {
        let every = match (&bell, debounce.is_settling()) {
            (_, true) => config.settle,
            (Some(_), false) => config.watch_every,
            (None, false) => config.watch_every_blindly,
        };
        let rang = tokio::select! {
            () = sleep(every) => Ok(false),
            rang = ring(bell.as_ref()) => rang.map(|()| true),
        };
        match rang {
            // an interface gets its addresses and routes one after the other, and one reading is enough for them
            Ok(true) => sleep(AFTER_RING).await,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(%error, "interfaces are read by the clock from now on");
                bell = None;
            }
        }
        let was_away = away.was(std::time::Instant::now(), always(), every);
        let seen = reader.read(Some(&network.borrow().interfaces));
        if let Some(now) = debounce.observe(seen, Instant::now(), was_away) {
            let number = now.generation;
            network.send_replace(now);
            generation.send_if_modified(|old| std::mem::replace(old, number) != number);
        }
    }
}

async fn ring(bell: Option<&Bell>) -> std::io::Result<()> {
    match bell {
        Some(bell) => bell.rung().await,
        None => std::future::pending().await,
    }
}

struct Reader {
    scout: Scout,
    targets: Targets,
}

impl Reader {
    /// `before`: what cannot be read now has not changed.
    fn read(&mut self, before: Option<&Interfaces>) -> Network {
        let interfaces = Interfaces::read().ok().or_else(|| before.cloned()).unwrap_or_default();
        let gateways: Vec<Ipv4Addr> = Interfaces::gateways_in_use();
        let ways = self.scout.look(&(self.targets)(), gateways);
        Network { generation: 0, interfaces, ways }
    }
}

/// Tells of a change once it has stayed for a moment.
struct Debounce {
    told: Network,
    settle: Duration,
    /// What was read last, and since when it is so, if that is to be told.
    pending: Option<(Network, Instant)>,
    /// The way out was another meanwhile.
    moved: bool,
}

impl Debounce {
    fn new(told: Network, settle: Duration) -> Self {
        Self { told, settle, pending: None, moved: false }
    }

    fn is_settling(&self) -> bool {
        self.pending.is_some()
    }

    /// `away`: the time since the last reading was spent elsewhere, as far as anybody knows.
    fn observe(&mut self, seen: Network, now: Instant, away: bool) -> Option<Network> {
        self.told.ways.follow(&seen.ways);
        self.moved |= away || seen.ways.differ(&self.told.ways);
        let is_told = is_same(&seen, &self.told);
        if is_told && !self.moved {
            self.pending = None;
            return None;
        }
        let since = match &self.pending {
            Some((pending, since)) if is_same(pending, &seen) => *since,
            _ => now,
        };
        if now.saturating_duration_since(since) < self.settle {
            self.pending = Some((seen, since));
            return None;
        }
        // a way that went and came back may lead elsewhere now: a cable that was plugged into another network
        let generation = self.told.generation + u64::from(std::mem::take(&mut self.moved));
        self.pending = None;
        self.told = Network { generation, ..seen };
        Some(self.told.clone())
    }
}

fn is_same(one: &Network, other: &Network) -> bool {
    one.interfaces == other.interfaces && !one.ways.differ(&other.ways)
}

/// What takes a program that sets up an interface a few calls, and nobody notices.
const AFTER_RING: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLE: Duration = Duration::from_secs(1);

    /// Sent from this address of the machine.
    fn network(source: u8) -> Network {
        let to = IpAddr::from([203, 0, 113, 1]);
        Network { ways: Ways::new([(to, Some(IpAddr::from([192, 168, source, 2])))], Vec::new()), ..Network::default() }
    }

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn a_change_is_told_once_it_stays() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), SETTLE);
        assert_eq!(debounce.observe(network(1), at(start, 0), false), None);
        assert_eq!(debounce.observe(network(2), at(start, 100), false), None);
        assert_eq!(debounce.observe(network(3), at(start, 900), false), None, "still changing");
        assert_eq!(debounce.observe(network(3), at(start, 1_500), false), None);
        assert!(debounce.is_settling());
        let told = debounce.observe(network(3), at(start, 1_900), false).unwrap();
        assert_eq!(told, Network { generation: 1, ..network(3) });
        assert_eq!(debounce.observe(network(3), at(start, 9_000), false), None, "once");
    }

    #[test]
    fn a_way_that_went_and_came_back_may_lead_elsewhere() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), SETTLE);
        assert_eq!(debounce.observe(network(2), start, false), None);
        assert_eq!(debounce.observe(network(1), at(start, 500), false), None);
        let told = debounce.observe(network(1), at(start, 1_600), false).unwrap();
        assert_eq!(told, Network { generation: 1, ..network(1) });
        assert!(!debounce.is_settling());
        assert_eq!(debounce.observe(network(1), at(start, 9_000), false), None);
    }

    #[test]
    fn what_does_not_lead_out_is_told_but_is_no_change_of_network() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), SETTLE);
        let interfaces = Interfaces::read().unwrap();
        let more = || Network { interfaces: interfaces.clone(), ..network(1) };
        assert_eq!(debounce.observe(more(), start, false), None);
        let told = debounce.observe(more(), at(start, 1_000), false).unwrap();
        assert_eq!(told, Network { generation: 0, ..more() });
    }

    #[test]
    fn whom_we_know_changes_nothing() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), SETTLE);
        let peer = (IpAddr::from([198, 51, 100, 1]), Some(IpAddr::from([10, 0, 0, 1])));
        let to = (IpAddr::from([203, 0, 113, 1]), Some(IpAddr::from([192, 168, 1, 2])));
        let more = Network { ways: Ways::new([peer, to], Vec::new()), ..Network::default() };
        assert_eq!(debounce.observe(more.clone(), start, false), None);
        assert!(!debounce.is_settling());
        let elsewhere = Network { ways: Ways::new([(peer.0, None), to], Vec::new()), ..Network::default() };
        assert_eq!(debounce.observe(elsewhere.clone(), start, false), None);
        assert_eq!(
            debounce.observe(elsewhere, at(start, 1_000), false).unwrap().generation,
            1,
            "but the way to it does"
        );
    }

    #[test]
    fn having_slept_is_a_change_of_network() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), SETTLE);
        assert_eq!(debounce.observe(network(1), start, true), None);
        assert!(debounce.is_settling());
        assert_eq!(debounce.observe(network(1), at(start, 1_000), false).unwrap().generation, 1);
    }

    #[tokio::test]
    async fn the_first_reading_is_there_at_once() {
        let watch = Watch::start(&HostConfig::default(), Arc::new(Vec::new));
        let network = watch.network().borrow().clone();
        assert_eq!(network.generation, 0);
        assert!(!network.interfaces.all().is_empty());
    }
}
