//! Why a rendezvous does not answer, found out while its dial goes on: who watches need not wait for the end of that.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::station::{split_address, unreachable};
use crate::addr::unmapped;
use crate::error::Error;
use crate::peer::resolve;

/// What stands between this node and `address` ("host:port"), as far as it can be seen in a second and a half.
pub(super) async fn why(address: &str) -> Error {
    let (host, port) = split_address(address).unwrap_or((address, 0));
    let found = match timeout(NAMES, resolve(address)).await {
        Ok(Ok(found)) => found.into_iter().map(unmapped).take(MAX_ADDRESSES).collect::<Vec<_>>(),
        Ok(Err(error)) => {
            let said = error.detail.as_str();
            let why = said.strip_prefix(&format!("cannot resolve {address}: ")).unwrap_or(said);
            return unreachable(format!("the name {host} does not resolve: {why}"));
        }
        Err(_) => {
            return unreachable(format!("the name {host} does not resolve: no DNS server answers; it is tried again"));
        }
    };
    let mut silent = None;
    for address in found {
        match knock(address).await {
            Knock::Silence => silent = Some(address),
            Knock::Closed => {
                let what = "no program listens there (is the port right, and does the rendezvous run?)";
                return unreachable(format!("UDP port {port} of {host} is closed: {what}; it is tried again"));
            }
            Knock::Answered => {
                let what = "something answers there that is not this rendezvous, or it does not take this node";
                return unreachable(format!("{address}: {what}; it is tried again"));
            }
            Knock::Failed(what) => return unreachable(format!("nothing can be sent to {address}: {what}")),
        }
    }
    let place = silent.map_or_else(|| address.to_owned(), |address| address.to_string());
    let what = "it does not run, the address is wrong, or a firewall drops UDP";
    unreachable(format!("nothing comes back from {place} directly: {what}; it is tried again"))
}

enum Knock {
    Silence,
    /// An ICMP message: no such port.
    Closed,
    Answered,
    Failed(std::io::Error),
}

/// Sends a STUN Binding request (RFC 8489 section 5), from a socket of its own: only a connected one hears of closed ports.
async fn knock(address: SocketAddr) -> Knock {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let asked = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        socket.send(&REQUEST).await?;
        socket.recv(&mut [0; 64]).await
    };
    match timeout(ANSWER, asked).await {
        Err(_) => Knock::Silence,
        Ok(Ok(_)) => Knock::Answered,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Knock::Closed,
        Ok(Err(error)) => Knock::Failed(error),
    }
}

const REQUEST: [u8; 20] = [0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// A resolver that takes longer asks a server that does not answer.
const NAMES: Duration = Duration::from_secs(1);
/// A round trip around the world.
const ANSWER: Duration = Duration::from_millis(400);
/// Of one name.
const MAX_ADDRESSES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    async fn said(address: &str) -> String {
        let error = why(address).await;
        assert_eq!(error.reason, Reason::RendezvousUnreachable);
        error.detail
    }

    #[tokio::test]
    async fn a_closed_port_a_silent_one_and_a_name_that_is_none_have_their_own_texts() {
        let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let silent = taken.local_addr().unwrap();
        let text = said(&silent.to_string()).await;
        assert!(text.contains("nothing comes back from"), "{text}");
        drop(taken);
        let text = said(&silent.to_string()).await;
        assert!(text.contains(&format!("UDP port {} of 127.0.0.1 is closed", silent.port())), "{text}");
        let text = said("no-such-host.invalid:7348").await;
        assert!(text.contains("the name no-such-host.invalid does not resolve"), "{text}");
    }
}
