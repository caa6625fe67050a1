//! What idle connections cost: memory of each side, CPU and datagrams. Each has exchanged some kilobytes before.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use keynet::config::{ProxyLimits, TlsConfig, UtpConfig};
use keynet::net::{Net, NetConfig};
use keynet::proxy::{Allow, Backend, Proxy, ProxyConfig};
use keynet::tls::{Identity, TlsContext};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::end::{announce, runtime, say, with_tls, Both, Counters};
use crate::heap;
use crate::run::End;

/// Bytes there and back on each connection before it idles.
const EXCHANGED: usize = 10_000;
const SERVICE: u16 = 1;
const SYSTEMS: [(&str, &str); 4] = [
    ("utp", "uTP"),
    ("tls", "TLS 1.3 over uTP"),
    ("rustls", "rustls alone (no transport)"),
    ("tunnel", "a tunnel in a proxy (TLS over uTP, TCP, task, registry)"),
];

pub struct Options {
    connections: usize,
    settle: Duration,
    window: Duration,
    only: Vec<&'static str>,
}

impl Options {
    pub fn parse(words: &[&str]) -> Self {
        let mut options = Self {
            connections: 10_000,
            settle: Duration::from_secs(5),
            window: Duration::from_secs(40),
            only: SYSTEMS.iter().map(|(name, _)| *name).collect(),
        };
        let seconds = |text: &str| Duration::from_secs_f64(text.parse().unwrap());
        for word in words {
            match word.split_once('=') {
                Some(("--connections", count)) => options.connections = count.parse().unwrap(),
                Some(("--settle", text)) => options.settle = seconds(text),
                Some(("--seconds", text)) => options.window = seconds(text),
                Some(("--only", names)) => options.only.retain(|name| names.split(',').any(|wanted| wanted == *name)),
                _ => {
                    eprintln!(
                        "compare idle [--connections=10000] [--settle=5] [--seconds=40] [--only=utp,tls,rustls,tunnel]"
                    );
                    std::process::exit(2);
                }
            }
        }
        options
    }
}

pub fn all(options: &Options) {
    println!(
        "| idle, each | heap, dialler | heap, acceptor | resident, dialler | resident, acceptor \
         | CPU of both, % | datagrams a second |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, what) in SYSTEMS.iter().filter(|(name, _)| options.only.contains(name)) {
        measure(name, what, options);
    }
}

fn measure(name: &str, what: &str, options: &Options) {
    let count = match name {
        // two sockets in each of three processes, of which one has all ends
        "tunnel" => options.connections.min(4_000),
        _ => options.connections,
    };
    let ends = match name {
        "tunnel" => Tunnels::open(count),
        _ => {
            let mut acceptor = End::start(&["idle-end", "accept", name, &count.to_string()]);
            let place = acceptor.line();
            let mut words = vec!["idle-end", "dial", name];
            let text = count.to_string();
            words.push(&text);
            words.extend(place.split_whitespace());
            let mut dialler = End::start(&words);
            acceptor.line();
            dialler.line();
            Tunnels { ends: [dialler, acceptor], _sockets: Vec::new() }
        }
    };
    let mut ends = ends;
    sleep(options.settle);
    let before = ends.ends.each_mut().map(End::mark);
    sleep(options.window);
    let after = ends.ends.each_mut().map(End::mark);
    let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(0.0);
    let heap = |at: usize| (number(&after[at], "heap") - number(&after[at], "heap_of_one")) / (count - 1) as f64;
    let resident = |at: usize| number(&after[at], "resident") / count as f64;
    let grown = |key: &str| -> f64 { (0..2).map(|at| number(&after[at], key) - number(&before[at], key)).sum() };
    let seconds = options.window.as_secs_f64();
    println!(
        "| {count} x {what} | {:.0} | {:.0} | {:.0} | {:.0} | {:.3} | {:.1} |",
        heap(0),
        heap(1),
        resident(0),
        resident(1),
        100.0 * grown("cpu") / seconds,
        grown("datagrams") / seconds,
    );
}

/// `compare idle-end accept|dial SYSTEM COUNT [ADDRESS NODE]`
pub fn end(words: &[&str]) {
    let [role, system, count, place @ ..] = words else { panic!("too few words") };
    let count: usize = count.parse().unwrap();
    heap::count();
    runtime("1").block_on(async {
        let counters = Counters::listen();
        let identity = Identity::generate(SystemTime::now()).unwrap();
        match (*system, *role) {
            ("tunnel", "accept") => far(identity, &counters, place[0]).await,
            ("tunnel", _) => near(identity, &counters, place).await,
            ("rustls", role) => bare(&identity, &counters, count, role == "dial").await,
            (_, "accept") => accept(&identity, &counters, count, *system == "tls").await,
            (_, _) => dial(&identity, &counters, count, *system == "tls", place).await,
        }
    });
}

async fn accept(identity: &Identity, counters: &Arc<Counters>, count: usize, wants_tls: bool) {
    let tls = TlsContext::new(identity, &TlsConfig::default()).unwrap();
    let (net, mut incoming) = Net::bind("127.0.0.1:0".parse().unwrap(), NetConfig::default()).unwrap();
    watch(counters, &net);
    announce(net.local_address(), &identity.node_id());
    let mut held = Vec::with_capacity(count);
    let mut buffer = vec![0; EXCHANGED];
    while held.len() < count {
        let mut stream = with_tls(wants_tls, incoming.accept().await.unwrap(), &tls, None).await;
        stream.read_exact(&mut buffer).await.unwrap();
        stream.write_all(&buffer).await.unwrap();
        stream.flush().await.unwrap();
        hold(counters, &mut held, stream);
    }
    rest(held).await;
}

async fn dial(identity: &Identity, counters: &Arc<Counters>, count: usize, wants_tls: bool, place: &[&str]) {
    let tls = TlsContext::new(identity, &TlsConfig::default()).unwrap();
    let (net, _incoming) = Net::bind("127.0.0.1:0".parse().unwrap(), NetConfig::default()).unwrap();
    watch(counters, &net);
    let (address, node) = (place[0].parse().unwrap(), place[1].parse().unwrap());
    let mut held = Vec::with_capacity(count);
    let mut buffer = vec![0; EXCHANGED];
    while held.len() < count {
        let stream = net.connect(address, UtpConfig::default()).await.unwrap();
        let mut stream = with_tls(wants_tls, stream, &tls, Some(&node)).await;
        stream.write_all(&buffer).await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut buffer).await.unwrap();
        hold(counters, &mut held, stream);
    }
    rest(held).await;
}

/// Both halves over a pipe, and only one of them is kept, without the pipe.
async fn bare(identity: &Identity, counters: &Arc<Counters>, count: usize, client: bool) {
    let tls = TlsContext::new(identity, &TlsConfig::default()).unwrap();
    let other = Identity::generate(SystemTime::now()).unwrap();
    let other_tls = TlsContext::new(&other, &TlsConfig::default()).unwrap();
    if !client {
        announce(SocketAddr::from(([127, 0, 0, 1], 0)), &identity.node_id());
    }
    let (server_tls, client_tls, server) =
        if client { (&other_tls, &tls, other.node_id()) } else { (&tls, &other_tls, identity.node_id()) };
    let connector = tokio_rustls::TlsConnector::from(client_tls.client_config());
    let acceptor = tokio_rustls::TlsAcceptor::from(server_tls.server_config());
    let mut held = Vec::with_capacity(count);
    let mut buffer = vec![0; EXCHANGED];
    while held.len() < count {
        let (a, b) = tokio::io::duplex(64 << 10);
        let (dialled, accepted) =
            tokio::join!(connector.connect(TlsContext::server_name(&server), a), acceptor.accept(b));
        let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
        dialled.write_all(&buffer).await.unwrap();
        accepted.read_exact(&mut buffer).await.unwrap();
        accepted.write_all(&buffer).await.unwrap();
        dialled.read_exact(&mut buffer).await.unwrap();
        let kept = if client {
            tokio_rustls::rustls::Connection::from(dialled.into_inner().1)
        } else {
            tokio_rustls::rustls::Connection::from(accepted.into_inner().1)
        };
        if held.is_empty() {
            counters.heap_of_one.store(heap::live() as u64, Ordering::Relaxed);
        }
        held.push(Box::new(kept));
    }
    say("ready");
    std::future::pending::<()>().await;
    drop(held);
}

async fn far(identity: Identity, counters: &Arc<Counters>, service: &str) {
    let config = ProxyConfig {
        services: BTreeMap::from([(SERVICE, Backend::Tcp(service.to_owned()).into())]),
        allow: Some(Allow::Anyone),
        ..proxy_config()
    };
    let proxy = Proxy::start(identity, config).await.unwrap();
    watch_proxy(counters, &proxy);
    announce(proxy.proxy_address(), &proxy.node_id());
    std::future::pending::<()>().await;
}

async fn near(identity: Identity, counters: &Arc<Counters>, place: &[&str]) {
    let proxy = Proxy::start(identity, proxy_config()).await.unwrap();
    proxy.add_peer(place[1].parse().unwrap(), vec![place[0].to_owned()]).unwrap();
    watch_proxy(counters, &proxy);
    announce(proxy.forward_address(), &proxy.node_id());
    std::future::pending::<()>().await;
}

fn proxy_config() -> ProxyConfig {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let credentials = Some(("user".to_owned(), "word".to_owned()));
    let limits =
        ProxyLimits { max_clients: 20_000, max_streams: 20_000, max_streams_per_node: 20_000, ..Default::default() };
    ProxyConfig { listen: any, forward: any, credentials, limits, ..ProxyConfig::default() }
}

fn watch(counters: &Arc<Counters>, net: &Net) {
    let net = net.clone();
    *counters.datagrams.lock().unwrap() = Some(Box::new(move || net.stats().datagrams_out));
}

fn watch_proxy(counters: &Arc<Counters>, proxy: &Proxy) {
    let proxy = proxy.clone();
    *counters.datagrams.lock().unwrap() = Some(Box::new(move || proxy.stats().net.datagrams_out));
}

fn hold(counters: &Counters, held: &mut Vec<Box<dyn Both>>, stream: Box<dyn Both>) {
    held.push(stream);
    if held.len() == 1 {
        counters.heap_of_one.store(heap::live() as u64, Ordering::Relaxed);
    }
}

async fn rest(held: Vec<Box<dyn Both>>) {
    say("ready");
    std::future::pending::<()>().await;
    drop(held);
}

/// Two nodes, and here the programs at both ends of every tunnel.
struct Tunnels {
    ends: [End; 2],
    _sockets: Vec<(TcpStream, TcpStream)>,
}

impl Tunnels {
    fn open(count: usize) -> Self {
        let service = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = service.local_addr().unwrap().to_string();
        let mut acceptor = End::start(&["idle-end", "accept", "tunnel", "0", &at]);
        let place = acceptor.line();
        let place: Vec<&str> = place.split_whitespace().collect();
        let mut dialler = End::start(&["idle-end", "dial", "tunnel", "0", place[0], place[1]]);
        let forward = dialler.line();
        let forward = forward.split_whitespace().next().unwrap();
        let mut sockets = Vec::new();
        let mut buffer = vec![0; EXCHANGED];
        for _ in 0..count {
            let mut client = TcpStream::connect(forward).unwrap();
            let target = format!("{}.keynet:{SERVICE}", place[1]);
            // user:word
            let head = format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Authorization: Basic dXNlcjp3b3Jk\r\n\r\n"
            );
            client.write_all(head.as_bytes()).unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                answer.push(byte[0]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
            let (mut served, _) = service.accept().unwrap();
            client.write_all(&buffer).unwrap();
            served.read_exact(&mut buffer).unwrap();
            served.write_all(&buffer).unwrap();
            client.read_exact(&mut buffer).unwrap();
            sockets.push((client, served));
        }
        Self { ends: [dialler, acceptor], _sockets: sockets }
    }
}
