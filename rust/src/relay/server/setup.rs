//! From options to bound sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustls::ServerConfig;
use tokio::net::TcpListener;

use super::port::Port;
use super::table::{Addresses, Table};
use super::{Core, Counters, Shared};
use crate::addr::unmapped;
use crate::config::RelayServerConfig;
use crate::error::{Error, Reason, Result, Stage};
use crate::relay::segments;
use crate::time::Time;
use crate::turn::server::{Family, Network, Server, Setup, Users};

/// What a relay is to do.
pub struct RelayOptions {
    /// UDP and TCP.
    pub listen: Vec<SocketAddr>,
    pub tls: Option<RelayTls>,
    pub users: Users,
    /// Peers that are reached although they are not of the open internet.
    pub allowed_peers: Vec<Network>,
    /// Where relayed addresses are bound; without: where `listen` is, or where the default route leaves from.
    pub relay_addresses: Vec<IpAddr>,
    /// What peers call them, behind a NAT that gives this machine an address of its own (1:1).
    pub external_addresses: Vec<IpAddr>,
}

pub struct RelayTls {
    pub listen: Vec<SocketAddr>,
    pub config: Arc<ServerConfig>,
}

/// Where clients are served.
#[derive(Clone, Debug, Default)]
pub struct Bound {
    pub udp: Vec<SocketAddr>,
    pub tcp: Vec<SocketAddr>,
    pub tls: Vec<SocketAddr>,
    /// What peers call the addresses of allocations.
    pub relayed: Vec<IpAddr>,
}

/// A port for clients on TCP.
pub struct Door {
    pub listener: TcpListener,
    pub serves: Serves,
}

#[derive(Clone)]
pub enum Serves {
    Plain,
    Tls(Arc<ServerConfig>),
    /// The first byte says which of both it is.
    Both(Arc<ServerConfig>),
}

pub fn bind(options: RelayOptions, config: RelayServerConfig) -> Result<(Arc<Shared>, Vec<Door>, Bound)> {
    check(&options, &config)?;
    let mut bound = Bound::default();
    let mut udp = vec![];
    let mut doors = vec![];
    let tls_too =
        |address: &SocketAddr| options.tls.as_ref().filter(|tls| address.port() != 0 && tls.listen.contains(address));
    for address in &options.listen {
        // `[::]` takes IPv4 too, unless somebody else does
        let only_v6 = options.listen.iter().any(|other| other.is_ipv4() && other.port() == address.port());
        let (port, listener) = both(*address, only_v6)?;
        let serves = tls_too(address).map_or(Serves::Plain, |tls| Serves::Both(tls.config.clone()));
        let address = SocketAddr::new(address.ip(), port.local().port());
        bound.udp.push(port.local());
        bound.tcp.push(listener.local_addr().unwrap_or(address));
        if matches!(serves, Serves::Both(_)) {
            bound.tls.push(listener.local_addr().unwrap_or(address));
        }
        udp.push(port);
        doors.push(Door { listener, serves });
    }
    if let Some(tls) = &options.tls {
        let plain = &options.listen;
        for address in tls.listen.iter().filter(|address| address.port() == 0 || !plain.contains(address)) {
            let v4 = |other: &SocketAddr| other.is_ipv4() && other.port() == address.port();
            let only_v6 = tls.listen.iter().chain(plain).any(v4);
            let listener = listen(*address, only_v6).map_err(|error| failed("TLS", *address, &error))?;
            bound.tls.push(listener.local_addr().unwrap_or(*address));
            doors.push(Door { listener, serves: Serves::Tls(tls.config.clone()) });
        }
    }
    let addresses = addresses(&options)?;
    let outward = |family: Family| addresses.external[family as usize].or(addresses.bound[family as usize]);
    bound.relayed = [Family::V4, Family::V6].into_iter().filter_map(outward).collect();
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| {
        Error::new(Reason::Internal, Stage::Setup, format!("the system gives no randomness: {error}"))
    })?;
    let names = names(&options, &addresses);
    let setup = Setup {
        own: own(&names).unwrap_or_else(|_| names.clone()),
        users: options.users,
        allowed_peers: options.allowed_peers,
    };
    let server = Server::new(config.clone(), setup, &seed, Time::ZERO);
    let shared = Arc::new_cyclic(|shared| Shared {
        core: Mutex::new(Core { server, table: Table::new(shared.clone(), addresses, &config.ports) }),
        udp,
        addresses,
        pool: super::Pool::default(),
        wires: Mutex::default(),
        seats: Mutex::default(),
        next_link: std::sync::atomic::AtomicU64::new(0),
        start: Instant::now(),
        counters: Counters::default(),
        names,
        handshakes: super::handshakes::Handshakes::new(&config),
        config,
    });
    Ok((shared, doors, bound))
}

fn check(options: &RelayOptions, config: &RelayServerConfig) -> Result<()> {
    let wrong = |what: String| Err(Error::new(Reason::InvalidArgument, Stage::Setup, what));
    let count = options.listen.len();
    if count == 0 || count > MAX_LISTENERS {
        return wrong(format!("a relay listens on 1 to {MAX_LISTENERS} addresses, not {count}"));
    }
    let realm = config.realm.as_bytes();
    let plain = |byte: &u8| (0x20..0x7f).contains(byte) && !matches!(byte, b'"' | b'\\');
    // RFC 8489 section 14.9
    if realm.is_empty() || realm.len() > 127 || !realm.iter().all(plain) {
        return wrong("realm: 1 to 127 printable ASCII characters, without quotes and backslashes".to_owned());
    }
    if config.ports.is_empty() || *config.ports.start() == 0 {
        return wrong("ports: the first may not be 0, nor above the last".to_owned());
    }
    Ok(())
}

/// One port for UDP and TCP. Where the system chooses it, a port that is free for UDP may be taken for TCP: then another one.
fn both(address: SocketAddr, only_v6: bool) -> Result<(Port, TcpListener)> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let port = Port::bind(address, only_v6).map_err(|error| failed("UDP", address, &error))?;
        let chosen = SocketAddr::new(address.ip(), port.local().port());
        match listen(chosen, only_v6) {
            Ok(listener) => return Ok((port, listener)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && attempts.next().is_some() => {}
            Err(error) => return Err(failed("TCP", chosen, &error)),
        }
    }
}

fn failed(what: &str, address: SocketAddr, error: &io::Error) -> Error {
    Error::new(Reason::BindFailed, Stage::Setup, format!("relay, {what}: {error}")).with_address(address)
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // connections of the process before may still be in TIME-WAIT
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    segments::limit(&socket);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn addresses(options: &RelayOptions) -> Result<Addresses> {
    let mut found = Addresses::default();
    place(&mut found.bound, &options.relay_addresses, "relay_addresses")?;
    place(&mut found.external, &options.external_addresses, "external_addresses")?;
    for listen in &options.listen {
        let ip = unmapped(*listen).ip();
        let own = &mut found.bound[Family::of(ip) as usize];
        if !ip.is_unspecified() && own.is_none() && options.relay_addresses.is_empty() {
            *own = Some(ip);
        }
    }
    if options.relay_addresses.is_empty() {
        let wild = options.listen.iter().any(|listen| listen.ip().is_unspecified());
        let v6 = options.listen.iter().any(|listen| listen.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        for family in [Family::V4, Family::V6] {
            let own = &mut found.bound[family as usize];
            if own.is_none() && wild && (family == Family::V4 || v6) {
                *own = routed(family);
            }
        }
    }
    match found.bound.iter().flatten().next() {
        Some(_) => Ok(found),
        None => Err(Error::new(
            Reason::InvalidArgument,
            Stage::Setup,
            "this machine has no route to the internet: name the relay's own address (relay_addresses)",
        )),
    }
}

fn place(places: &mut [Option<IpAddr>; 2], given: &[IpAddr], name: &str) -> Result<()> {
    for ip in given {
        let place = &mut places[Family::of(*ip) as usize];
        if ip.is_unspecified() || place.replace(*ip).is_some() {
            let what = format!("{name}: one address of each family at most, and none that stands for all ({ip})");
            return Err(Error::new(Reason::InvalidArgument, Stage::Setup, what));
        }
    }
    Ok(())
}

/// The address from which the default route leaves. Connecting a UDP socket sends nothing; the addresses are for documentation
/// (RFC 5737, RFC 3849).
fn routed(family: Family) -> Option<IpAddr> {
    let (any, far): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((far, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}

/// What this machine is called by its operator.
fn names(options: &RelayOptions, addresses: &Addresses) -> Vec<IpAddr> {
    let listen = options.listen.iter().map(|listen| unmapped(*listen).ip());
    listen.chain(addresses.bound.into_iter().chain(addresses.external).flatten()).collect()
}

/// Every address of this machine as it is now, and its names.
///
/// Errors: the system does not say, for want of descriptors, say. What was known before is then better than nothing.
pub(super) fn own(names: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let mut own = names.to_vec();
    own.extend(if_addrs::get_if_addrs()?.iter().map(if_addrs::Interface::ip));
    own.sort_unstable();
    own.dedup();
    Ok(own)
}

/// A few interfaces, both families.
pub const MAX_LISTENERS: usize = 16;
/// Connections that wait to be accepted: what Linux takes by default at most (`net.core.somaxconn` since 5.4).
const BACKLOG: i32 = 4_096;
/// Ports tried where the system chooses: with half of its ports taken for TCP, one of so many is free in all but one case of 65,536.
const ATTEMPTS: u32 = 16;
