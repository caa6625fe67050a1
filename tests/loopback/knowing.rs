//! What a node knows of itself, and since when.

use std::time::Duration;

use keynet::config::StunConfig;
use keynet::nat::StunServer;
use keynet::proxy::{Close, Proxy};
use keynet::rendezvous::OwnAddress;

use crate::support::{both, node, until, Family};

/// A minute, where nothing else asks; here servers are asked so often.
const ASK_EVERY: Duration = Duration::from_millis(500);

fn own(node: &Proxy, family: Family) -> Option<OwnAddress> {
    node.status().own_addresses.into_iter().find(|own| own.ipv4 == (family == Family::V4))
}

#[test]
fn an_own_address_is_unknown_from_when_no_server_answers_until_one_does() {
    both(|family| async move {
        let server = StunServer::bind(&[family.any()], &StunConfig::default()).unwrap();
        let at = server.addresses()[0];
        let mut builder = node(family);
        builder.config.rendezvous.stun = vec![at.to_string()];
        builder.config.rendezvous.config.ask_every = ASK_EVERY;
        let node = builder.start().await;
        until("the address is known", || own(&node, family).is_some_and(|own| own.known)).await;
        let known = own(&node, family).unwrap();
        assert_eq!(known.addresses, [node.proxy_address()]);
        let again = || own(&node, family).is_some_and(|own| own.confirmed > known.confirmed);
        until("it is confirmed again and again", again).await;
        assert_eq!(own(&node, family).unwrap().since, known.since, "and known for as long");

        server.close().await;
        until("nobody answers", || own(&node, family).is_some_and(|own| !own.known)).await;
        let unknown = own(&node, family).unwrap();
        let asked = unknown.asked.unwrap();
        assert_eq!((asked.servers, asked.answers), (1, 0));
        assert!(unknown.since > known.since && unknown.confirmed < Some(unknown.since), "{unknown:?}");
        assert_eq!(unknown.addresses, [node.proxy_address()], "what it was, and is told to peers");
        let later = || own(&node, family).is_some_and(|own| own.asked.is_some_and(|round| round.began > asked.began));
        until("it is asked again", later).await;
        assert_eq!(own(&node, family).unwrap().since, unknown.since, "unknown for as long");

        drop(server); // its socket
        let server = StunServer::bind(&[at], &StunConfig::default()).unwrap();
        until("the address is known again", || own(&node, family).is_some_and(|own| own.known)).await;
        assert!(own(&node, family).unwrap().since > unknown.since);
        server.close().await;
        node.close(Close::Abort).await;
    });
}
