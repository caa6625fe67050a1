//! One of the two processes: makes the connections, keeps them busy, and answers the parent's `mark` with its counters.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use keynet::addr::NodeId;
use keynet::config::TlsConfig;
use keynet::net::Net;
use keynet::tls::{Identity, TlsContext};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::heap;
use crate::shared::Shared;
use crate::system::{Kind, System, Workload};

/// Bytes read and written at a time.
const CHUNK: usize = 128 << 10;
const MESSAGE: usize = 64;
/// IPv4 packets of 1500 bytes.
const DATAGRAM: u16 = 1472;
const SOCKET_BUFFER: usize = 4 << 20;

pub trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

/// Tells how many packets or segments were sent again so far.
type Resent = Box<dyn Fn() -> Option<u64> + Send>;

/// The connections and what keeps them alive.
struct Connected {
    streams: Vec<Box<dyn Both>>,
    resent: Resent,
    _keep: Box<dyn std::any::Any + Send>,
}

#[derive(Default)]
pub struct Counters {
    /// Of each connection.
    bytes: OnceLock<Vec<AtomicU64>>,
    nanoseconds: Mutex<Vec<u64>>,
    resent: Mutex<Option<Resent>>,
    /// Datagrams sent so far.
    pub datagrams: Mutex<Option<Box<dyn Fn() -> u64 + Send>>>,
    /// Bytes of heap in use when the first connection stood.
    pub heap_of_one: AtomicU64,
}

pub fn serve(system: System, workload: Workload, threads: &str) {
    runtime(threads).block_on(async {
        let counters = Counters::listen();
        let identity = Identity::generate(SystemTime::now()).unwrap();
        let tls = TlsContext::new(&identity, &TlsConfig::default()).unwrap();
        let connected = accept(system, &tls, &identity.node_id()).await;
        run(system, workload, connected, &counters, true).await;
    });
}

pub fn dial(system: System, workload: Workload, threads: &str, address: &str, node: &str) {
    runtime(threads).block_on(async {
        let counters = Counters::listen();
        let identity = Identity::generate(SystemTime::now()).unwrap();
        let tls = TlsContext::new(&identity, &TlsConfig::default()).unwrap();
        let connected = connect(system, &tls, address.parse().unwrap(), &node.parse().unwrap()).await;
        say("ready");
        run(system, workload, connected, &counters, false).await;
    });
}

/// Keeps every connection busy, each in a task of its own.
async fn run(system: System, workload: Workload, connected: Connected, counters: &Arc<Counters>, server: bool) {
    *counters.resent.lock().unwrap() = Some(connected.resent);
    counters.bytes.get_or_init(|| connected.streams.iter().map(|_| AtomicU64::new(0)).collect());
    let source: Arc<[u8]> = (0..CHUNK).map(|i| (i * 31 + i / 251) as u8).collect();
    let mut tasks = JoinSet::new();
    for (at, mut stream) in connected.streams.into_iter().enumerate() {
        let (counters, source) = (counters.clone(), source.clone());
        tasks.spawn(async move {
            match (workload, server) {
                (Workload::Bulk, true) => count(&mut stream, &counters, at).await,
                (Workload::Bulk, false) => pour(&mut stream, &source).await,
                (Workload::BothWays, _) => {
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::join!(count(&mut read, &counters, at), pour(&mut write, &source));
                }
                (Workload::PingPong, true) => answer(system, &mut stream).await,
                (Workload::PingPong, false) => ask(system, &mut stream, &source[..MESSAGE], &counters).await,
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

async fn pour(stream: &mut (impl AsyncWrite + Unpin), source: &[u8]) {
    while stream.write_all(source).await.is_ok() {}
}

/// Reads and counts. All connections read into one buffer, as long as the bytes are not kept.
async fn count(stream: &mut (impl AsyncRead + Unpin), counters: &Counters, at: usize) {
    thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]));
    let mine = &counters.bytes.get().unwrap()[at];
    loop {
        let read = poll_fn(|cx| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                Pin::new(&mut *stream).poll_read(cx, &mut buffer).map_ok(|()| buffer.filled().len())
            })
        });
        match read.await {
            Ok(count) if count > 0 => mine.fetch_add(count as u64, Ordering::Relaxed),
            _ => return,
        };
        // as anyone does who also has something to do with the bytes
        tokio::task::consume_budget().await;
    }
}

async fn answer(system: System, stream: &mut Box<dyn Both>) {
    let mut buffer = [0; MESSAGE];
    while stream.read_exact(&mut buffer).await.is_ok() {
        send(system, stream, &buffer).await;
    }
}

async fn ask(system: System, stream: &mut Box<dyn Both>, message: &[u8], counters: &Counters) {
    let mut buffer = [0; MESSAGE];
    loop {
        let started = Instant::now();
        send(system, stream, message).await;
        if stream.read_exact(&mut buffer).await.is_err() {
            return;
        }
        let took = started.elapsed().as_nanos() as u64;
        counters.nanoseconds.lock().unwrap().push(took);
    }
}

async fn send(system: System, stream: &mut Box<dyn Both>, message: &[u8]) {
    let _ = stream.write_all(message).await;
    if system.flushes() {
        let _ = stream.flush().await;
    }
}

impl Counters {
    /// Answers the parent from a thread of its own.
    pub fn listen() -> Arc<Self> {
        let counters = Arc::new(Self::default());
        std::thread::spawn({
            let counters = counters.clone();
            move || {
                for line in std::io::stdin().lock().lines() {
                    let Ok(_) = line else { break };
                    println!("{}", counters.mark());
                }
                // the parent is gone
                std::process::exit(0);
            }
        });
        counters
    }

    fn mark(&self) -> serde_json::Value {
        let mut times = std::mem::take(&mut *self.nanoseconds.lock().unwrap());
        times.sort_unstable();
        let quantile = |part: f64| times.get(((times.len() as f64 - 1.0) * part) as usize).copied();
        let bytes: Vec<u64> =
            self.bytes.get().into_iter().flatten().map(|bytes| bytes.load(Ordering::Relaxed)).collect();
        json!({
            "bytes": bytes,
            "cpu": cpu_seconds(),
            "resent": self.resent.lock().unwrap().as_ref().and_then(|resent| resent()),
            "p50": quantile(0.5),
            "p99": quantile(0.99),
            "heap": heap::live(),
            "heap_of_one": self.heap_of_one.load(Ordering::Relaxed),
            "resident": heap::resident(),
            "datagrams": self.datagrams.lock().unwrap().as_ref().map(|datagrams| datagrams()),
        })
    }
}

/// "1" is a current-thread runtime, which suits a single connection best everywhere; more is tokio's default kind.
pub fn runtime(threads: &str) -> tokio::runtime::Runtime {
    match threads {
        "1" => tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        _ => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.parse().unwrap())
            .enable_all()
            .build()
            .unwrap(),
    }
}

pub fn announce(address: SocketAddr, node: &NodeId) {
    say(&format!("{address} {node}"));
}

pub fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

async fn accept(system: System, tls: &TlsContext, node: &NodeId) -> Connected {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    match system.kind {
        Kind::Keynet { .. } => {
            let (net, mut incoming) = Net::bind(local, system.kind.net_config().0).unwrap();
            announce(net.local_address(), node);
            let mut streams = Vec::new();
            for _ in 0..system.connections {
                let stream = incoming.accept().await.unwrap();
                stream.trust();
                streams.push(with_tls(system.tls, stream, tls, None).await);
            }
            Connected { streams, resent: Box::new(|| None), _keep: Box::new((net, incoming)) }
        }
        Kind::Librqbit => {
            let socket = librqbit(local).await;
            announce(socket.bind_addr(), node);
            let stream = socket.accept().await.unwrap();
            let (read, write) = stream.split();
            Connected {
                streams: vec![Box::new(tokio::io::join(read, write))],
                resent: Box::new(|| None),
                _keep: Box::new(socket),
            }
        }
        Kind::Quinn => {
            let mut config =
                quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls.server_config()).unwrap()));
            config.transport_config(quic_transport());
            let endpoint = quic_endpoint(local, Some(config));
            announce(endpoint.local_addr().unwrap(), node);
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (write, mut read) = connection.accept_bi().await.unwrap();
            read.read_exact(&mut [0]).await.unwrap();
            Connected {
                streams: vec![Box::new(tokio::io::join(read, write))],
                resent: Box::new(|| None),
                _keep: Box::new((endpoint, connection)),
            }
        }
        Kind::Tcp => {
            let socket = tcp_socket();
            socket.bind(&local.into()).unwrap();
            socket.listen(1).unwrap();
            let listener = TcpListener::from_std(socket.into()).unwrap();
            announce(listener.local_addr().unwrap(), node);
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let streams = vec![with_tls(system.tls, stream, tls, None).await];
            Connected { streams, resent: Box::new(|| None), _keep: Box::new(listener) }
        }
    }
}

async fn connect(system: System, tls: &TlsContext, address: SocketAddr, node: &NodeId) -> Connected {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    match system.kind {
        Kind::Keynet { .. } => {
            let (config, utp) = system.kind.net_config();
            let (net, incoming) = Net::bind(local, config).unwrap();
            let (mut streams, mut watched) = (Vec::new(), Vec::new());
            for _ in 0..system.connections {
                let stream = Shared::new(net.connect(address, utp.clone()).await.unwrap());
                watched.push(stream.clone());
                streams.push(with_tls(system.tls, stream, tls, Some(node)).await);
            }
            let resent = Box::new(move || Some(watched.iter().map(Shared::resent).sum()));
            Connected { streams, resent, _keep: Box::new((net, incoming)) }
        }
        Kind::Librqbit => {
            let socket = librqbit(local).await;
            let (read, write) = socket.connect(address).await.unwrap().split();
            Connected {
                streams: vec![Box::new(tokio::io::join(read, write))],
                resent: Box::new(|| None),
                _keep: Box::new(socket),
            }
        }
        Kind::Quinn => {
            let endpoint = quic_endpoint(local, None);
            let crypto = QuicClientConfig::try_from(tls.client_config()).unwrap();
            let mut config = quinn::ClientConfig::new(Arc::new(crypto));
            config.transport_config(quic_transport());
            let name = TlsContext::server_name(node).to_str().into_owned();
            let connection = endpoint.connect_with(config, address, &name).unwrap().await.unwrap();
            let (mut write, read) = connection.open_bi().await.unwrap();
            // a stream is seen by the peer with its first byte
            write.write_all(&[0]).await.unwrap();
            let watched = connection.clone();
            let resent = Box::new(move || Some(watched.stats().path.lost_packets));
            Connected {
                streams: vec![Box::new(tokio::io::join(read, write))],
                resent,
                _keep: Box::new((endpoint, connection)),
            }
        }
        Kind::Tcp => {
            let socket = tcp_socket();
            let stream = TcpSocket::from_std_stream(socket.into()).connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let fd = stream.as_raw_fd();
            let streams = vec![with_tls(system.tls, stream, tls, Some(node)).await];
            Connected { streams, resent: Box::new(move || tcp_resent(fd)), _keep: Box::new(()) }
        }
    }
}

/// Wraps the stream in TLS, if so wished: as client towards `node`, else as server.
pub async fn with_tls(
    wanted: bool,
    stream: impl Both + 'static,
    tls: &TlsContext,
    node: Option<&NodeId>,
) -> Box<dyn Both> {
    match (wanted, node) {
        (false, _) => Box::new(stream),
        (true, Some(node)) => {
            let connector = TlsConnector::from(tls.client_config());
            Box::new(connector.connect(TlsContext::server_name(node), stream).await.unwrap())
        }
        (true, None) => Box::new(TlsAcceptor::from(tls.server_config()).accept(stream).await.unwrap()),
    }
}

async fn librqbit(local: SocketAddr) -> Arc<librqbit_utp::UtpSocketUdp> {
    let options = librqbit_utp::SocketOpts {
        link_mtu: std::num::NonZeroUsize::new(usize::from(DATAGRAM) + 28),
        disable_nagle: true,
        ..Default::default()
    };
    librqbit_utp::UtpSocketUdp::new_udp_with_opts(local, options, Default::default()).await.unwrap()
}

/// Packets of one size, windows as large as keynet's.
fn quic_transport() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    config.initial_mtu(DATAGRAM).min_mtu(DATAGRAM).mtu_discovery_config(None);
    config.stream_receive_window((16u32 << 20).into()).receive_window((16u32 << 20).into()).send_window(16 << 20);
    Arc::new(config)
}

fn quic_endpoint(local: SocketAddr, server: Option<quinn::ServerConfig>) -> quinn::Endpoint {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&local.into()).unwrap();
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM).unwrap();
    quinn::Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime)).unwrap()
}

/// CUBIC, whatever the system prefers.
fn tcp_socket() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.set_tcp_congestion(b"cubic").unwrap();
    socket
}

fn tcp_resent(fd: RawFd) -> Option<u64> {
    // SAFETY: `tcp_info` is plain integers, and the kernel writes at most `len` bytes of it.
    unsafe {
        let mut info: libc::tcp_info = std::mem::zeroed();
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        let into = std::ptr::from_mut(&mut info).cast();
        (libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut len) == 0)
            .then_some(u64::from(info.tcpi_total_retrans))
    }
}

/// Of this process, user and system together.
fn cpu_seconds() -> f64 {
    // SAFETY: `rusage` is plain integers that the kernel fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000).as_secs_f64();
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
