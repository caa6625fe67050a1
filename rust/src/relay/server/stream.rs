//! Clients over TCP and TLS: messages follow one another, ChannelData padded to four bytes (RFC 8656 section 12.5).

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::frames::Frame;
use super::setup::{Door, Serves};
use super::{Core, Shared};
use crate::addr::network_of;
use crate::addr::unmapped;
use crate::turn::channel::{self, frame_length, read_header};
use crate::turn::server::{Client, Link};

/// Ends by being dropped, and its connections with it.
pub async fn accept(shared: Arc<Shared>, door: Door) {
    let Door { listener, serves } = door;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, address)) = accepted else {
            // no descriptor is left, most likely: others end meanwhile
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Some(seat) = Seat::take(&shared, unmapped(address)) else {
            shared.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let serves = serves.clone();
        connections.spawn(async move {
            let _ = stream.set_nodelay(true);
            connect(&seat, stream, serves).await;
        });
    }
}

async fn connect(seat: &Seat, stream: TcpStream, serves: Serves) {
    let (local, shared) = (stream.local_addr().ok().map(|local| unmapped(local).ip()), &seat.shared);
    let patience = shared.config.connection_timeout;
    let tls = match serves {
        Serves::Plain => None,
        Serves::Tls(config) => Some(config),
        Serves::Both(config) => match timeout(patience, begins_tls(&stream)).await {
            Ok(Ok(true)) => Some(config),
            Ok(Ok(false)) => None,
            Ok(Err(_)) | Err(_) => return,
        },
    };
    let Some(tls) = tls else { return serve(seat, stream, local).await };
    if !shared.handshakes.take(seat.address.ip(), shared.now()) {
        shared.counters.refused_connections.fetch_add(1, Ordering::Relaxed);
        return;
    }
    if let Ok(Ok(stream)) = timeout(patience, TlsAcceptor::from(tls).accept(stream)).await {
        serve(seat, stream, local).await;
    }
}

/// A record of TLS that holds a handshake begins with 22 (RFC 8446 section 5.1); what TURN says begins with 0 to 3 (STUN) or 64 to 79
/// (ChannelData).
async fn begins_tls(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0];
    let count = stream.peek(&mut first).await?;
    Ok(count == 1 && first == [22])
}

async fn serve<S>(seat: &Seat, stream: S, local: Option<std::net::IpAddr>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let shared = &seat.shared;
    let number = shared.next_link.fetch_add(1, Ordering::Relaxed);
    let client = Client { address: seat.address, local, link: Link::Stream(number) };
    let (queue, mut waiting) = mpsc::channel(shared.config.write_queue.max(1));
    shared.core().table.add_link(number, queue.clone());
    let _link = LinkGuard { shared, client, number };
    let (reader, mut writer) = tokio::io::split(stream);
    let write = async {
        while let Some(batch) = waiting.recv().await {
            let batch: Vec<u8> = batch;
            if writer.write_all(&batch).await.is_err() || (waiting.is_empty() && writer.flush().await.is_err()) {
                break;
            }
        }
    };
    let unused = async {
        loop {
            tokio::time::sleep(shared.config.connection_timeout).await;
            if !shared.core().server.serves(&client) {
                break;
            }
        }
    };
    tokio::select! {
        () = read(shared, client, reader, queue) => {}
        () = write => {}
        () = unused => {}
    }
}

/// Ends with the stream, or with what is neither STUN nor ChannelData.
async fn read<R: AsyncRead + Unpin>(shared: &Shared, client: Client, mut reader: R, queue: mpsc::Sender<Vec<u8>>) {
    let (mut buffer, mut filled) = (vec![0; USUAL], 0);
    loop {
        let Some(room) = buffer.get_mut(filled..) else { return };
        match reader.read(room).await {
            Ok(0) | Err(_) => return,
            Ok(count) => filled += count,
        }
        let Some(bytes) = buffer.get_mut(..filled) else { return };
        let Some(Taken { end, answers, wanted }) = take(shared, &client, bytes) else { return };
        for answer in answers {
            // the reader waits: what asks for answers and does not read them gets no more
            if queue.send(answer).await.is_err() {
                return;
            }
        }
        buffer.copy_within(end..filled, 0);
        filled -= end;
        if wanted > buffer.len() {
            buffer.resize(wanted, 0);
        }
    }
}

struct Taken {
    /// Where what is not complete begins.
    end: usize,
    answers: Vec<Vec<u8>>,
    /// Bytes that it will have.
    wanted: usize,
}

/// What is complete. `None`: the stream is not to be understood from here on.
fn take(shared: &Shared, client: &Client, bytes: &mut [u8]) -> Option<Taken> {
    let mut taken = Taken { end: 0, answers: vec![], wanted: 0 };
    let mut frames = vec![];
    while let Some(rest) = bytes.get(taken.end..) {
        let Some(size) = frame_length(rest).ok()? else { break };
        let Some(message) = rest.get(..size) else {
            taken.wanted = size;
            break;
        };
        let start = taken.end;
        taken.end += size;
        if let Some((channel, length)) = read_header(message) {
            frames.push(Frame { channel, start: start + channel::HEADER, length });
            continue;
        }
        // in order; what was moved together lies before this
        shared.forward(client, bytes, &frames);
        frames.clear();
        taken.answers.extend(shared.handle(client, bytes.get(start..taken.end)?));
    }
    shared.forward(client, bytes, &frames);
    Some(taken)
}

/// A connection that counts against the limits.
struct Seat {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl Seat {
    fn take(shared: &Arc<Shared>, address: SocketAddr) -> Option<Self> {
        let mut seats = shared.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = seats.take(address, shared.config.max_connections, shared.config.max_connections_per_network);
        taken.then(|| Self { shared: shared.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shared.seats.lock().unwrap_or_else(PoisonError::into_inner).give_back(self.address);
    }
}

/// Connections, in all and of each source network.
#[derive(Default)]
pub struct Seats {
    all: usize,
    networks: std::collections::HashMap<[u8; 8], usize>,
}

impl Seats {
    fn take(&mut self, address: SocketAddr, most: usize, most_of_one: usize) -> bool {
        let of_one = self.networks.entry(network_of(address.ip())).or_default();
        if self.all >= most || *of_one >= most_of_one {
            if *of_one == 0 {
                self.networks.remove(&network_of(address.ip()));
            }
            return false;
        }
        *of_one += 1;
        self.all += 1;
        true
    }

    fn give_back(&mut self, address: SocketAddr) {
        let network = network_of(address.ip());
        if let Some(of_one) = self.networks.get_mut(&network) {
            *of_one -= 1;
            self.all -= 1;
            if *of_one == 0 {
                self.networks.remove(&network);
            }
        }
    }
}

/// With the connection its allocation ends.
struct LinkGuard<'a> {
    shared: &'a Shared,
    client: Client,
    number: u64,
}

impl Drop for LinkGuard<'_> {
    fn drop(&mut self) {
        let mut core = self.shared.core();
        let Core { server, table } = &mut *core;
        server.handle_gone(&self.client, table);
        table.remove_link(self.number);
    }
}

/// A few dozen datagrams at once; what is larger makes the buffer grow, to 64 KiB and a header at most.
const USUAL: usize = 32 << 10;
/// Longer than a system call, shorter than a person notices.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
