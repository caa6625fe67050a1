//! Notices that the network of this machine has changed.
//!
//! The interfaces are read every few seconds. The systems' own notifications (netlink, routing sockets, SystemConfiguration,
//! IP Helper) would be a second sooner; the crates that have them on all systems bring more build than everything else here
//! together, and a path that broke is noticed by its missing pongs anyway.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, Instant};

use super::interfaces::Interfaces;
use crate::config::HostConfig;

/// The network of this machine, as it is from one change to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// How many changes there were since the start.
    pub generation: u64,
    pub interfaces: Interfaces,
    /// Another network may give the same address: then its gateway differs, with luck.
    pub gateways: Vec<Ipv4Addr>,
}

/// Reads the interfaces now and then. Dropping it ends that.
pub struct Watch {
    network: watch::Receiver<Network>,
    task: JoinHandle<()>,
}

impl Watch {
    /// Starts inside a tokio runtime.
    pub fn start(config: &HostConfig) -> Self {
        let first = read().unwrap_or_default();
        let (sender, network) = watch::channel(first.clone());
        let (every, settle) = (config.watch_every, config.settle);
        let task = tokio::spawn(async move {
            let mut debounce = Debounce::new(first, settle);
            while !sender.is_closed() {
                sleep(if debounce.is_settling() { settle.min(every) } else { every }).await;
                // what cannot be read now has not changed
                let changed = read().and_then(|now| debounce.observe(now, Instant::now()));
                if let Some(network) = changed {
                    sender.send_replace(network);
                }
            }
        });
        Self { network, task }
    }

    /// The network, as it changes.
    pub fn network(&self) -> watch::Receiver<Network> {
        self.network.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn read() -> Option<Network> {
    let interfaces = Interfaces::read().ok()?;
    let gateways = interfaces.gateways();
    Some(Network { generation: 0, interfaces, gateways })
}

/// Tells of a change once it has stayed for a while.
struct Debounce {
    told: Network,
    settle: Duration,
    /// What was read last, and since when it is so, if that is not what was told.
    pending: Option<(Network, Instant)>,
}

impl Debounce {
    fn new(told: Network, settle: Duration) -> Self {
        Self { told, settle, pending: None }
    }

    fn is_settling(&self) -> bool {
        self.pending.is_some()
    }

    fn observe(&mut self, seen: Network, now: Instant) -> Option<Network> {
        let seen = Network { generation: self.told.generation, ..seen };
        if seen == self.told {
            // it went and came back: sockets have lived through that
            self.pending = None;
            return None;
        }
        match &self.pending {
            Some((pending, since)) if *pending == seen => {
                (now.saturating_duration_since(*since) >= self.settle).then_some(())?;
                self.pending = None;
                self.told = Network { generation: self.told.generation + 1, ..seen };
                Some(self.told.clone())
            }
            _ => {
                self.pending = Some((seen, now));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(gateway: u8) -> Network {
        Network { gateways: vec![Ipv4Addr::new(192, 168, gateway, 1)], ..Default::default() }
    }

    #[test]
    fn a_change_is_told_once_it_stays() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut debounce = Debounce::new(network(1), Duration::from_secs(1));
        assert_eq!(debounce.observe(network(1), at(0)), None);
        assert_eq!(debounce.observe(network(2), at(100)), None);
        assert_eq!(debounce.observe(network(3), at(900)), None, "still changing");
        assert_eq!(debounce.observe(network(3), at(1_500)), None);
        assert!(debounce.is_settling());
        let told = debounce.observe(network(3), at(1_900)).unwrap();
        assert_eq!(told, Network { generation: 1, ..network(3) });
        assert_eq!(debounce.observe(network(3), at(9_000)), None, "once");
    }

    #[test]
    fn what_comes_back_was_no_change() {
        let start = Instant::now();
        let mut debounce = Debounce::new(network(1), Duration::from_secs(1));
        assert_eq!(debounce.observe(network(2), start), None);
        assert_eq!(debounce.observe(network(1), start + Duration::from_secs(5)), None);
        assert!(!debounce.is_settling());
        assert_eq!(debounce.observe(network(2), start + Duration::from_secs(6)), None);
    }

    #[tokio::test]
    async fn the_first_reading_is_there_at_once() {
        let watch = Watch::start(&HostConfig::default());
        let network = watch.network().borrow().clone();
        assert_eq!(network.generation, 0);
        assert!(!network.interfaces.all().is_empty());
    }
}
