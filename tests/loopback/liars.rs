//! Nodes that prove their key and then break the protocol: garbage instead of `Open`, garbage instead of its answer, silence.

use std::time::Duration;

use keynet::config::{TlsConfig, UtpConfig};
use keynet::error::Reason;
use keynet::net::{Incoming, Net, NetConfig, UtpStream};
use keynet::tls::{Identity, TlsContext};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{client, server, TlsAcceptor, TlsConnector};

use crate::support::*;

/// A socket and a key that follow no rule.
struct Liar {
    identity: Identity,
    tls: TlsContext,
    net: Net,
    incoming: Incoming,
}

impl Liar {
    fn start(family: Family) -> Self {
        let identity = identity();
        let tls = TlsContext::new(&identity, &TlsConfig::default()).unwrap();
        let (net, incoming) = Net::bind(family.any(), NetConfig::default()).unwrap();
        Self { identity, tls, net, incoming }
    }

    async fn dial(&self, far: &keynet::proxy::Proxy) -> client::TlsStream<UtpStream> {
        let stream = self.net.connect(far.proxy_address(), UtpConfig::default()).await.unwrap();
        let name = TlsContext::server_name(&far.node_id());
        TlsConnector::from(self.tls.client_config()).connect(name, stream).await.unwrap()
    }

    async fn accept(&mut self) -> server::TlsStream<UtpStream> {
        let stream = self.incoming.accept().await.unwrap();
        TlsAcceptor::from(self.tls.server_config()).accept(stream).await.unwrap()
    }
}

#[test]
fn garbage_instead_of_open_is_a_protocol_violation() {
    both(|family| async move {
        let service = echo(family).await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let liar = Liar::start(family);
        let mut events = far.subscribe();
        for garbage in [&[0xff; 64][..], &[0, 0], &[0, 1, 9], &[0, 3, 2, 1, 1]] {
            let mut stream = liar.dial(&far).await;
            stream.write_all(garbage).await.unwrap();
            // it is told, and the node waits for a while that it has heard
            let _ = stream.read_to_end(&mut Vec::new()).await;
            drop(stream);
            assert_eq!(refusal(&mut events).await, Reason::ProtocolViolation, "{garbage:?}");
        }
        until("nothing is left", || far.stats().tasks == 0).await;
        liar.net.close().await;
    });
}

#[test]
fn an_open_for_another_node_is_refused() {
    both(|family| async move {
        let service = echo(family).await;
        let old = identity();
        let now = std::time::SystemTime::now();
        let far = node(family).identity(old.rotate(now).unwrap()).service(SERVICE, service.address).start().await;
        let liar = Liar::start(family);
        let mut events = far.subscribe();
        let other = identity().node_id();
        for (wanted, answer) in [(other, Some(62)), (old.node_id(), None), (far.node_id(), None)] {
            let mut stream = liar.dial(&far).await;
            let open = keynet::open::Open { service_port: SERVICE, node: Some(wanted), ..Default::default() };
            stream.write_all(&open.encode()).await.unwrap();
            let mut head = [0; 3];
            stream.read_exact(&mut head).await.unwrap();
            match answer {
                Some(reason) => {
                    assert_eq!((head[2], stream.read_u16().await.unwrap()), (3, reason), "Refused: identity_mismatch");
                    assert_eq!(refusal(&mut events).await, Reason::IdentityMismatch);
                }
                None => assert_eq!(head[2], 2, "Accepted"),
            }
        }
        liar.net.close().await;
    });
}

/// A server looks up its caller by the port. While that port may become another program's, the entry is closed.
#[test]
fn a_local_port_is_held_until_its_connection_is_marked_closed() {
    both(|family| async move {
        let (ended, mut has_ended) = tokio::sync::watch::channel(false);
        let service = service(family, move |mut stream| {
            let ended = ended.clone();
            async move {
                // ends first, so that no TIME_WAIT keeps the port of the other side
                stream.shutdown().await?;
                stream.read_to_end(&mut Vec::new()).await?;
                ended.send_replace(true);
                Ok(())
            }
        })
        .await;
        let far = node(family).service(SERVICE, service.address).start().await;
        let liar = Liar::start(family);
        let mut stream = liar.dial(&far).await;
        stream.write_all(&keynet::open::Open { service_port: SERVICE, ..Default::default() }.encode()).await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        let address = far.connections()[0].reverse_address.clone().unwrap();
        // says goodbye in TLS, and never ends its uTP stream
        stream.get_mut().1.send_close_notify();
        stream.flush().await.unwrap();
        has_ended.wait_for(|ended| *ended).await.unwrap();
        for _ in 0..20 {
            let socket = socket2::Socket::new(socket2::Domain::for_address(family.any()), socket2::Type::STREAM, None);
            let taken = socket.unwrap().bind(&address.parse::<std::net::SocketAddr>().unwrap().into()).is_ok();
            let open = far.connection_by_reverse(&address).unwrap().closed.is_none();
            assert!(!(taken && open), "the port is free, and a lookup says that it is the node's");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(stream);
        until("it is closed", || far.connections().is_empty()).await;
        liar.net.close().await;
    });
}

#[test]
fn who_never_sends_open_is_let_go() {
    both(|family| async move {
        let service = echo(family).await;
        let short = |limits: &mut keynet::config::ProxyLimits| limits.open_timeout = Duration::from_millis(300);
        let far = node(family).service(SERVICE, service.address).limits(short).start().await;
        let liar = Liar::start(family);
        let mut events = far.subscribe();
        let mut stream = liar.dial(&far).await;
        assert_eq!(refusal(&mut events).await, Reason::OpenTimeout);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        until("nothing is left", || far.stats().tasks == 0).await;
        liar.net.close().await;
    });
}

#[test]
fn garbage_or_silence_instead_of_an_answer_fails_the_connect() {
    both(|family| async move {
        let short = |limits: &mut keynet::config::ProxyLimits| limits.dial_timeout = Duration::from_secs(2);
        let near = node(family).limits(short).start().await;
        let mut liar = Liar::start(family);
        let wanted = liar.identity.node_id();
        near.add_peer(wanted, vec![liar.net.local_address().to_string()]).unwrap();
        let (answer, ()) = tokio::join!(refused(&near, &wanted, Reason::ProtocolViolation), async {
            let mut stream = liar.accept().await;
            stream.write_all(&[0xff; 64]).await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        assert_eq!(answer.status, 502);
        let (answer, ()) = tokio::join!(refused(&near, &wanted, Reason::OpenTimeout), async {
            let _ = liar.accept().await.read_to_end(&mut Vec::new()).await;
        });
        assert_eq!(answer.status, 504);
        assert!(near.connections().is_empty());
        liar.net.close().await;
    });
}
