//! A relay that this node has heard of: the ways to it, who named it, and when it is tried again.

use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::{HttpProxy, RelaySpec};
use super::{RelayUri, Transport};
use crate::addr::NodeId;
use crate::config::RelayConfig;
use crate::error::{Error, Reason, Result};
use crate::turn::credentials::{INTRODUCTION_NAME, INTRODUCTION_PASSWORD};

#[derive(Clone, Debug)]
pub(super) struct Known {
    /// Its host: what goes to the same host is one relay.
    pub name: String,
    /// The preferred one first.
    pub ways: Vec<RelaySpec>,
    /// It carries to rendezvous nodes only.
    pub introduction: bool,
    /// Who named it, and until when the credentials are good; `None`: the user did.
    offered: Option<(String, Instant)>,
    /// How far away it is has been asked since it became known.
    pub asked: bool,
    /// It may have been away until now: what asks it still waits for an answer that was lost with it.
    pub anew: bool,
    pub error: Option<Error>,
    /// When that was.
    failed: Option<Instant>,
    retry: Option<Instant>,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub host: &'a str,
    pub introduction: bool,
}

impl Known {
    /// Relays by host, in the order in which they were named; of each the quickest way first.
    pub fn group(specs: Vec<RelaySpec>, offered: Option<(String, Instant)>) -> Vec<Self> {
        let mut relays: Vec<Self> = Vec::new();
        for spec in specs {
            let name = spec.uri.host.clone();
            match relays.iter_mut().find(|relay| relay.name == name) {
                Some(relay) => relay.ways.push(spec),
                None => relays.push(Self::new(name, vec![spec], offered.clone())),
            }
        }
        relays.iter_mut().for_each(Self::complete);
        relays
    }

    /// The relay beside a rendezvous node, with credentials that everybody knows. It shows the certificate of the node.
    pub fn introduction(host: &str, node: NodeId) -> Self {
        let way = |transport, port| {
            let mut uri = RelayUri::new(transport, host, port);
            uri.key = (transport == Transport::Tls).then_some(node);
            RelaySpec {
                username: INTRODUCTION_NAME.to_owned(),
                password: Zeroizing::new(INTRODUCTION_PASSWORD.to_owned()),
                ..RelaySpec::new(uri)
            }
        };
        // the ports of TURN and of HTTP/3, where the rendezvous' own port is not let out and these are
        let udp = [way(Transport::Udp, TURN), way(Transport::Udp, HTTPS)];
        let tcp = [way(Transport::Tcp, TURN), way(Transport::Tls, HTTPS), way(Transport::Tls, TURNS)];
        let ways = udp.into_iter().chain(tcp).collect();
        let until = Instant::now() + INTRODUCTION_FOR;
        let mut known = Self::new(host.to_owned(), ways, Some((INTRODUCTION_NAME.to_owned(), until)));
        known.introduction = true;
        known.complete();
        known
    }

    fn new(name: String, ways: Vec<RelaySpec>, offered: Option<(String, Instant)>) -> Self {
        Self {
            name,
            ways,
            introduction: false,
            offered,
            asked: false,
            anew: false,
            error: None,
            failed: None,
            retry: None,
            failures: 0,
        }
    }

    /// What serves UDP nearly always serves TCP at the same port; and where an HTTP proxy is named, it is the last way out.
    fn complete(&mut self) {
        let has = |ways: &[RelaySpec], transport| ways.iter().any(|way| way.uri.transport == transport);
        if !has(&self.ways, Transport::Tcp) {
            let udp: Vec<_> = self.ways.iter().filter(|way| way.uri.transport == Transport::Udp).cloned().collect();
            self.ways.extend(udp.into_iter().map(|mut way| {
                way.uri.transport = Transport::Tcp;
                way
            }));
        }
        self.ways.sort_by_key(|way| match way.uri.transport {
            Transport::Udp => 0,
            Transport::Tcp => 1,
            Transport::Tls => 2,
        });
        match HttpProxy::for_host(&self.name) {
            Ok(Some(proxy)) => {
                let by_tcp = self.ways.iter().rev().filter(|way| way.uri.transport != Transport::Udp);
                let through: Vec<_> =
                    by_tcp.map(|way| RelaySpec { proxy: Some(proxy.clone()), ..way.clone() }).collect();
                self.ways.extend(through);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "https_proxy cannot be used"),
        }
        self.ways.truncate(MAX_WAYS);
    }

    /// What makes it one and the same: the way to a rendezvous beside a relay is another than the relay.
    pub fn key(&self) -> Key<'_> {
        Key { host: &self.name, introduction: self.introduction }
    }

    /// As the ways to it say.
    pub fn weight(&self) -> u32 {
        self.ways.first().map_or(0, |way| way.weight)
    }

    pub fn is_offered_by(&self, who: &str) -> bool {
        self.offered.as_ref().is_some_and(|(by, _)| by == who)
    }

    /// The user named it, no rendezvous did.
    pub fn is_the_users(&self) -> bool {
        self.offered.is_none() && !self.introduction
    }

    pub fn is_expired(&self, now: Instant) -> bool {
        self.offered.as_ref().is_some_and(|(_, until)| *until <= now)
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.retry.is_none_or(|at| at <= now)
    }

    pub fn retry_at(&self) -> Option<Instant> {
        self.retry
    }

    pub fn failed_at(&self) -> Option<Instant> {
        self.failed
    }

    /// Whether it may come into use by then: it has not failed, or is tried again.
    pub fn is_hoped_for(&self, until: Instant) -> bool {
        self.error.is_none() || self.is_due(until)
    }

    /// Attempts without success, one after the other.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How an attempt, or a use, has ended.
    pub fn note(&mut self, result: Result<()>, config: &RelayConfig) {
        match result {
            Ok(()) => {
                (self.error, self.retry, self.failures) = (None, None, 0);
                self.failed = None;
            }
            Err(error) => {
                let pause = match error.reason {
                    // it worked until just now: most likely it was started anew
                    Reason::RelayLost if self.failures == 0 => config.retry_after / SOONER,
                    _ => config.retry_after.saturating_mul(1 << self.failures.min(MOST_DOUBLINGS)),
                };
                let most = match error.reason {
                    Reason::RelayUnreachable | Reason::RelayLost => config.retry_most_unreached,
                    _ => config.retry_most,
                };
                self.retry = Some(Instant::now() + pause.min(most));
                self.failures = self.failures.saturating_add(1);
                self.error = Some(error);
                self.failed = Some(Instant::now());
                // whoever comes back may be nearer than those in use
                self.asked = false;
            }
        }
    }

    /// What is known of the same relay under its last name and password holds for the next.
    pub fn keep_history_of(&mut self, old: &Self) {
        (self.error, self.retry, self.failures) = (old.error.clone(), old.retry, old.failures);
        (self.asked, self.failed) = (old.asked, old.failed);
    }

    /// Failures of another network say nothing, and distances there.
    pub fn forgive(&mut self) {
        (self.asked, self.retry, self.failures) = (false, None, 0);
    }
}

/// A rendezvous that is not reached asks for it again; one that is reached needs it no more.
const INTRODUCTION_FOR: Duration = Duration::from_secs(60);
/// The ports of RFC 8656 section 3.1, and what the strictest networks let out.
const TURN: u16 = 3_478;
const TURNS: u16 = 5_349;
const HTTPS: u16 = 443;
/// As many as `client::race` takes.
const MAX_WAYS: usize = 8;
const MOST_DOUBLINGS: u32 = 16;
const SOONER: u32 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn specs(uris: &[&str]) -> Vec<RelaySpec> {
        uris.iter().map(|uri| RelaySpec::new(uri.parse().unwrap())).collect()
    }

    fn ways(known: &Known) -> Vec<(Transport, u16)> {
        known.ways.iter().filter(|way| way.proxy.is_none()).map(|way| (way.uri.transport, way.uri.port)).collect()
    }

    #[test]
    fn ways_to_one_host_are_one_relay_the_quickest_first() {
        let known = Known::group(specs(&["turns:a.example:443", "turn:b.example", "turn:a.example:3479"]), None);
        assert_eq!(known.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["a.example", "b.example"]);
        assert_eq!(ways(&known[0]), [(Transport::Udp, 3479), (Transport::Tcp, 3479), (Transport::Tls, 443)]);
        assert_eq!(ways(&known[1]), [(Transport::Udp, 3478), (Transport::Tcp, 3478)]);
    }

    #[test]
    fn a_relay_that_fails_is_tried_less_and_less_often() {
        let config = RelayConfig::default();
        let mut known = Known::group(specs(&["turn:a.example"]), None).remove(0);
        let fail = || Err(Error::new(crate::error::Reason::RelayRefused, crate::error::Stage::Relay, ""));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            known.note(fail(), &config);
            assert!(known.failed_at().is_some());
            pauses.push(known.retry_at().unwrap().saturating_duration_since(Instant::now()));
        }
        assert!(pauses.windows(2).all(|two| two[0] <= two[1] + Duration::from_millis(100)), "{pauses:?}");
        assert!(pauses[39] <= config.retry_most && pauses[39] > config.retry_most_unreached);
        let unreached = Error::new(crate::error::Reason::RelayUnreachable, crate::error::Stage::Relay, "");
        known.note(Err(unreached), &config);
        assert!(known.is_due(Instant::now() + config.retry_most_unreached), "an outage may end at any moment");
        known.forgive();
        assert!(known.is_due(Instant::now()));
    }

    #[test]
    fn one_that_is_named_again_was_asked_already_and_one_in_another_network_was_not() {
        let mut old = Known::group(specs(&["turn:a.example"]), None).remove(0);
        old.asked = true;
        old.note(
            Err(Error::new(crate::error::Reason::RelayRefused, crate::error::Stage::Relay, "")),
            &RelayConfig::default(),
        );
        assert!(!old.asked, "when it comes back it may be nearer than those in use");
        old.asked = true;
        let mut new = Known::group(specs(&["turn:a.example"]), None).remove(0);
        new.keep_history_of(&old);
        assert!(new.asked && new.failures() == 1 && !new.is_due(Instant::now()));
        new.forgive();
        assert!(!new.asked && new.is_due(Instant::now()));
    }

    #[test]
    fn credentials_that_are_over_are_not_used() {
        let now = Instant::now();
        let known = Known::group(specs(&["turn:a.example"]), Some(("x".to_owned(), now))).remove(0);
        assert!(known.is_expired(now) && known.is_offered_by("x"));
    }
}
