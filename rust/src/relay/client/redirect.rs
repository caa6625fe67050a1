//! A server may name another to be asked in its place (RFC 8489 section 10): it is full, or about to be shut down.

use std::net::SocketAddr;

use super::lease::{Answer, Lease};
use super::{connect, Allocation, Options, RelaySpec};
use crate::error::{Error, Reason, Result, Stage};
use crate::turn::client::Alternate;

/// Asks at this address for an allocation, and where that sends us. `address`: of the relay, or of the proxy before it.
pub(super) async fn obtain(spec: &RelaySpec, address: SocketAddr, options: &Options) -> Result<Allocation> {
    let mut target = Target { spec: spec.clone(), address, authority: spec.uri.authority() };
    let mut asked = vec![address];
    loop {
        let Target { spec, address, authority } = &target;
        let link = connect::connect(spec, *address, authority, options).await?;
        let alternate = match Lease::obtain(link, &spec.username, &spec.password).await? {
            Answer::Granted(lease, granted) => return Ok(Allocation::new(spec, *address, *lease, granted)),
            Answer::Elsewhere(alternate) => alternate,
        };
        judge(spec, &asked, &alternate).map_err(|why| {
            let what = format!("it names {} in its place, {why}", alternate.server);
            Error::new(Reason::RelayRefused, Stage::Relay, what)
        })?;
        tracing::info!(relay = %spec.uri, alternate = %alternate.server, "the relay names another in its place");
        asked.push(alternate.server);
        target.follow(alternate);
    }
}

struct Target {
    spec: RelaySpec,
    /// What is connected to.
    address: SocketAddr,
    /// What a proxy is asked for.
    authority: String,
}

impl Target {
    /// By the same transport, with the same credentials.
    fn follow(&mut self, alternate: Alternate) {
        // the certificate is to hold this name; without one, that which it was
        if let Some(domain) = alternate.domain {
            self.spec.uri.host = domain;
        }
        self.authority = alternate.server.to_string();
        if self.spec.proxy.is_none() {
            self.address = alternate.server;
        }
    }
}

/// Whether to go there, and if not, why.
fn judge(spec: &RelaySpec, asked: &[SocketAddr], alternate: &Alternate) -> Result<(), &'static str> {
    if asked.contains(&alternate.server) {
        Err("which was asked already")
    } else if asked.len() > MAX_REDIRECTIONS {
        Err("and others have sent us there: that is one too many")
    } else if !connect::may_reach(spec, alternate.server) {
        Err("an address that cannot be sent to, or not on behalf of a rendezvous")
    } else {
        Ok(())
    }
}

/// A server that knows a better one is one step; its region's balancer before it another.
const MAX_REDIRECTIONS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn to(server: &str) -> Alternate {
        Alternate { server: server.parse().unwrap(), domain: None }
    }

    fn spec() -> RelaySpec {
        RelaySpec::new("turns:a.example".parse().unwrap())
    }

    #[test]
    fn nobody_is_sent_in_a_circle_or_on_and_on() {
        let first: SocketAddr = "198.51.100.1:3478".parse().unwrap();
        assert!(judge(&spec(), &[first], &to("198.51.100.2:3478")).is_ok());
        assert!(judge(&spec(), &[first], &to("198.51.100.1:3478")).unwrap_err().contains("already"));
        let asked: Vec<SocketAddr> = (0..4).map(|port| (first.ip(), port + 1).into()).collect();
        assert!(judge(&spec(), &asked[..3], &to("198.51.100.2:3478")).is_ok());
        assert!(judge(&spec(), &asked, &to("198.51.100.2:3478")).unwrap_err().contains("too many"));
    }

    #[test]
    fn what_a_rendezvous_names_leads_to_no_network_of_ours() {
        let asked = ["8.8.8.8:3478".parse().unwrap()];
        let public_only = RelaySpec { public_only: true, ..spec() };
        for inside in ["127.0.0.1:3478", "10.0.0.1:3478", "[::ffff:192.168.0.1]:3478", "[fd00::1]:3478", "0.0.0.0:1"] {
            assert!(judge(&public_only, &asked, &to(inside)).is_err(), "{inside}");
        }
        assert!(judge(&public_only, &asked, &to("9.9.9.9:3478")).is_ok());
        assert!(judge(&spec(), &asked, &to("10.0.0.1:3478")).is_ok(), "what the user names may");
        assert!(judge(&spec(), &asked, &to("10.0.0.1:0")).is_err());
    }

    #[test]
    fn the_certificate_is_to_hold_the_name_that_is_told_or_the_old_one() {
        let address = "8.8.8.8:5349".parse().unwrap();
        let mut target = Target { spec: spec(), address, authority: "a.example:5349".to_owned() };
        target.follow(to("9.9.9.9:443"));
        assert_eq!((target.address, target.authority.as_str()), ("9.9.9.9:443".parse().unwrap(), "9.9.9.9:443"));
        assert_eq!(target.spec.uri.host, "a.example");
        target.follow(Alternate { domain: Some("b.example".to_owned()), ..to("9.9.9.9:443") });
        assert_eq!(target.spec.uri.host, "b.example");
    }
}
