//! To a relay's door: its name becomes addresses, and an address a connection by the transport that the URI names.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::{lookup_host, TcpSocket, TcpStream};

use super::link::{DatagramLink, Link, StreamLink};
use super::{tls, Options, RelaySpec};
use crate::addr::unmapped;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::socket::Socket;
use crate::net::stagger::families_in_turn;
use crate::path::{is_for_everybody, sendable};
use crate::relay::{segments, Transport};

/// The addresses of what is connected to, the relay or the proxy before it: families take turns, as the resolver orders them
/// (RFC 8305 section 4).
pub(super) async fn addresses(spec: &RelaySpec) -> Result<Vec<SocketAddr>> {
    let (host, port) = match &spec.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port),
        None => (spec.uri.host.as_str(), spec.uri.port),
    };
    let failed = |what: String| Error::new(Reason::RelayUnreachable, Stage::Relay, format!("{host}: {what}"));
    let found = lookup_host((host, port)).await.map_err(|error| failed(error.to_string()))?;
    if spec.public_only && spec.proxy.is_some() && !is_open_name(&spec.uri.host) {
        return Err(failed("a rendezvous has named an address that is not of the open internet".to_owned()));
    }
    // where a proxy is asked, that is ours
    let may_ask = |address: &SocketAddr| match spec.proxy {
        Some(_) => sendable(unmapped(*address)),
        None => may_reach(spec, *address),
    };
    let ordered = families_in_turn(found.filter(may_ask), MAX_ADDRESSES);
    match ordered.is_empty() {
        true => Err(failed("the name has no address".to_owned())),
        false => Ok(ordered),
    }
}

/// Whether a relay at this address may be asked.
pub(super) fn may_reach(spec: &RelaySpec, address: SocketAddr) -> bool {
    let address = unmapped(address);
    sendable(address) && (!spec.public_only || is_for_everybody(address.ip()))
}

/// What an HTTP proxy may be asked for on behalf of a stranger: names with a dot, which are not of one network alone as a rule.
fn is_open_name(host: &str) -> bool {
    host.parse().map_or(host.contains('.'), is_for_everybody)
}

/// Connects to one of these addresses; a proxy there is asked for `authority`.
pub(super) async fn connect(spec: &RelaySpec, address: SocketAddr, authority: &str, options: &Options) -> Result<Link> {
    let unreachable = |what: String| Error::new(Reason::RelayUnreachable, Stage::Relay, what).with_address(address);
    if spec.uri.transport == Transport::Udp {
        if spec.proxy.is_some() {
            let what = "an HTTP proxy carries no UDP: give the relay with ?transport=tcp or turns:";
            return Err(Error::new(Reason::InvalidArgument, Stage::Setup, what));
        }
        let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = Socket::bind(SocketAddr::new(any, 0), &options.socket)?;
        return Ok(Link::Datagrams(DatagramLink::new(socket, address)));
    }
    let mut stream = open(address).await.map_err(|error| unreachable(error.to_string()))?;
    // what is written is a whole batch: nothing is gained by waiting for more
    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
    if let Some(proxy) = &spec.proxy {
        proxy.connect(&mut stream, authority).await?;
    }
    Ok(Link::Stream(match spec.uri.transport {
        Transport::Tls => StreamLink::new(Box::new(tls::connect(&spec.uri, stream).await?)),
        Transport::Udp | Transport::Tcp => StreamLink::new(Box::new(stream)),
    }))
}

async fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    segments::limit(&socket);
    socket.connect(address).await
}

/// Of a name with more, the first are as good as any.
const MAX_ADDRESSES: usize = 6;
