//! Nodes, clients and services for the tests. Nothing here waits by the clock: conditions are waited for, with generous limits.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64;
use keynet::addr::NodeId;
use keynet::config::ProxyLimits;
use keynet::error::Reason;
use keynet::proxy::{Allow, Backend, Event, Events, Proxy, ProxyConfig};
use keynet::tls::Identity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::leaks;
use crate::machine::has_ipv6;

/// For everything that has to happen but may take its time on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn ip(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::LOCALHOST.into(),
            Self::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// A free port of this machine.
    pub fn any(self) -> SocketAddr {
        (self.ip(), 0).into()
    }
}

/// Runs a test over both families, each in a runtime of its own, and within a limit. Whatever the test is about, when it is
/// over nothing of it is left: no task, no socket, and (seen at the second family, when the caches are full) no memory.
pub fn both<F: Future<Output = ()>>(test: impl Fn(Family) -> F) {
    let _alone = leaks::alone();
    run(Family::V4, &test);
    let before = leaks::memory();
    // without IPv6 the same family again
    let second = if has_ipv6("tests/loopback") { Family::V6 } else { Family::V4 };
    run(second, &test);
    let kept = leaks::memory() - before;
    assert!(kept < SPARE_MEMORY, "{kept} bytes are not given back");
}

/// What the heap may grow by in a test: threads that end while it is read, and the like.
const SPARE_MEMORY: isize = 64 << 10;

fn run<F: Future<Output = ()>>(family: Family, test: impl Fn(Family) -> F) {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sockets, within) = (leaks::sockets(), 5 * LIMIT);
        timeout(within, test(family)).await.unwrap_or_else(|_| panic!("{family:?}: hangs"));
        until("no task is left", || leaks::tasks() == 0).await;
        until("no socket is left", || leaks::sockets() <= sockets).await;
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
}

pub fn identity() -> Identity {
    Identity::generate(SystemTime::now()).unwrap()
}

/// A proxy to be, with what the tests change.
pub struct Builder {
    pub identity: Identity,
    pub config: ProxyConfig,
}

pub fn node(family: Family) -> Builder {
    let credentials = Some(("user".to_owned(), "secret".to_owned()));
    let config = ProxyConfig { listen: family.any(), forward: family.any(), credentials, ..ProxyConfig::default() };
    Builder { identity: identity(), config }
}

impl Builder {
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    pub fn service(mut self, port: u16, address: SocketAddr) -> Self {
        self.config.services.insert(port, Backend::Tcp(address.to_string()).into());
        self.config.allow.get_or_insert(Allow::Anyone);
        self
    }

    pub fn backend(mut self, port: u16, backend: Backend) -> Self {
        self.config.services = BTreeMap::from([(port, backend.into())]);
        self.config.allow.get_or_insert(Allow::Anyone);
        self
    }

    pub fn allow(mut self, allow: Allow) -> Self {
        self.config.allow = Some(allow);
        self
    }

    pub fn limits(mut self, change: impl FnOnce(&mut ProxyLimits)) -> Self {
        change(&mut self.config.limits);
        self
    }

    pub async fn start(self) -> Proxy {
        Proxy::start(self.identity, self.config).await.unwrap()
    }
}

/// Two nodes; the first knows the second's address, and the service is behind the second.
pub async fn pair(family: Family, service: SocketAddr) -> (Proxy, Proxy) {
    let far = node(family).service(SERVICE, service).start().await;
    let near = node(family).start().await;
    know(&near, &far);
    (near, far)
}

pub const SERVICE: u16 = 50051;

pub fn know(near: &Proxy, far: &Proxy) {
    near.add_peer(far.node_id(), vec![far.proxy_address().to_string()]).unwrap();
}

/// A service on this machine; it ends with the handle.
pub struct Service {
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Serves each connection with `serve`, which may fail: then the connection is dropped.
pub async fn service<F, Fut>(family: Family, serve: F) -> Service
where
    F: Fn(TcpStream) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::bind(family.any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    connections.spawn(serve(stream));
                }
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    });
    Service { address, task: task.abort_handle() }
}

/// Sends back what it gets, until the client ends.
pub async fn echo(family: Family) -> Service {
    service(family, |mut stream| async move {
        let (mut from, mut to) = stream.split();
        tokio::io::copy(&mut from, &mut to).await?;
        to.shutdown().await
    })
    .await
}

/// The address of a port of this machine on which nobody listens.
pub async fn nobody(family: Family) -> SocketAddr {
    TcpListener::bind(family.any()).await.unwrap().local_addr().unwrap()
}

/// What a forward proxy answered.
pub struct Answer {
    pub status: u16,
    pub phrase: String,
    pub proxy_status: String,
    pub head: String,
    /// What followed the head so far.
    pub rest: Vec<u8>,
    pub stream: TcpStream,
}

pub fn authorization(proxy: &Proxy) -> String {
    let (user, password) = proxy.credentials();
    format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(format!("{user}:{password}").as_bytes()))
}

pub fn connect_request(proxy: &Proxy, target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{}\r\n", authorization(proxy))
}

pub fn target(node: &NodeId, port: u16) -> String {
    format!("{node}.keynet:{port}")
}

/// Sends bytes to the forward proxy and reads the answer's head.
pub async fn ask(proxy: &Proxy, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(proxy.forward_address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // A refusal may come before everything is sent.
    let _ = stream.write_all(request).await;
    read_answer(stream).await
}

pub async fn read_answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        let read = timeout(LIMIT, stream.read_buf(&mut bytes)).await.expect("an answer in time").expect("an answer");
        assert!(read > 0, "the connection ended without an answer: {:?}", String::from_utf8_lossy(&bytes));
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let line = head.lines().next().unwrap();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    Answer {
        status: line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap(),
        phrase: line[12..].trim().to_owned(),
        proxy_status: field("Proxy-Status: "),
        rest: bytes[end..].to_vec(),
        head,
        stream,
    }
}

/// Asks for a tunnel that must come about.
pub async fn tunnel(near: &Proxy, far: &Proxy) -> TcpStream {
    let answer = ask(near, connect_request(near, &target(&far.node_id(), SERVICE)).as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.head);
    assert_eq!(answer.phrase, "Connection established");
    assert!(answer.rest.is_empty());
    answer.stream
}

/// Asks for a tunnel that must be refused, for this reason.
pub async fn refused(near: &Proxy, node: &NodeId, reason: Reason) -> Answer {
    let answer = ask(near, connect_request(near, &target(node, SERVICE)).as_bytes()).await;
    check_refusal(&answer, reason);
    assert_eq!(near.last_error(node).map(|error| error.reason), Some(reason));
    answer
}

pub fn check_refusal(answer: &Answer, reason: Reason) {
    assert_eq!(answer.status, reason.http_status(), "{}", answer.head);
    let expected = format!("keynet; error={}; details=\"{}: ", reason.proxy_status(), reason.name());
    assert!(answer.proxy_status.starts_with(&expected), "{} does not start with {expected}", answer.proxy_status);
    assert!(!answer.phrase.is_empty());
}

pub async fn read_exactly(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(LIMIT, stream.read_exact(&mut bytes)).await.expect("bytes in time").expect("bytes");
    bytes
}

pub async fn read_to_end(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut bytes)).await.expect("an end in time")?;
    Ok(bytes)
}

/// Reads until the connection breaks; it must not end in order.
pub async fn expect_reset(stream: &mut TcpStream) {
    let error = read_to_end(stream).await.expect_err("a reset, and no orderly end");
    assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
}

/// Waits until `condition` holds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}: not within {LIMIT:?}"));
}

/// Waits for an event of which `pick` makes something.
pub async fn event<T>(events: &mut Events, mut pick: impl FnMut(&Event) -> Option<T>) -> T {
    let waiting = async {
        loop {
            let event = events.next().await.expect("events until the one that is waited for");
            if let Some(picked) = pick(&event) {
                return picked;
            }
        }
    };
    timeout(LIMIT, waiting).await.expect("an event in time")
}

/// The reason of the next refusal that `proxy` reports.
pub async fn refusal(events: &mut Events) -> Reason {
    event(events, |event| match event {
        Event::ConnectionRefused { error, .. } => Some(error.reason),
        _ => None,
    })
    .await
}

/// The reason of the next end of a connection.
pub async fn end(events: &mut Events) -> Reason {
    event(events, |event| match event {
        Event::ConnectionClosed(info) => Some(info.reason.unwrap()),
        _ => None,
    })
    .await
}

/// Pseudo-random bytes (xorshift), the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
