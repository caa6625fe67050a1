//! The connection to a relay: a UDP socket with batches, or a stream with frames and a write queue that has an end.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;

use quinn_udp::RecvMeta;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::addr::unmapped;
use crate::net::socket::Socket;
use crate::turn::client::{take_frames, NotTurn, Transmit};

/// A connection to a relay.
#[derive(Debug)]
pub(super) enum Link {
    Datagrams(DatagramLink),
    Stream(StreamLink),
}

impl Link {
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Stream(_))
    }

    /// Whether more can be taken now; if not, [`ready`](Self::ready) returns when that has changed.
    pub(super) fn is_writable(&self) -> bool {
        match self {
            Self::Datagrams(link) => link.blocked.is_none(),
            Self::Stream(_) => true,
        }
    }

    /// Sends, or keeps what a full socket did not take; how many datagrams were dropped instead.
    pub(super) fn send(&mut self, transmit: Transmit) -> u64 {
        match self {
            Self::Datagrams(link) => link.send(transmit),
            Self::Stream(link) => link.send(&transmit),
        }
    }

    /// Waits until there is something to receive, or room to send. Fails when the connection is over.
    pub(super) async fn ready(&mut self) -> io::Result<()> {
        match self {
            Self::Datagrams(link) => {
                link.ready().await;
                Ok(())
            }
            Self::Stream(link) => link.ready().await,
        }
    }

    /// Hands over what has arrived, message by message.
    pub(super) fn receive(&mut self, each: impl FnMut(&[u8])) -> io::Result<()> {
        match self {
            Self::Datagrams(link) => {
                link.receive(each);
                Ok(())
            }
            Self::Stream(link) => link.receive(each),
        }
    }
}

/// A UDP socket of its own, so that channel numbers meet nothing else.
#[derive(Debug)]
pub(super) struct DatagramLink {
    socket: Socket,
    server: SocketAddr,
    /// What the socket has not taken yet.
    blocked: Option<Transmit>,
    buffer: Box<[u8]>,
}

impl DatagramLink {
    pub(super) fn new(socket: Socket, server: SocketAddr) -> Self {
        Self { socket, server, blocked: None, buffer: vec![0; RECEIVE_BUFFERS * BUFFER_SIZE].into() }
    }

    fn send(&mut self, transmit: Transmit) -> u64 {
        if self.blocked.is_some() {
            return transmit.datagrams; // a request is repeated
        }
        let segments = self.socket.max_segments().min(MAX_SEND / transmit.segment.max(1)).max(1);
        let limit = segments * transmit.segment.max(1);
        let mut sent = 0;
        while let Some(rest) = transmit.contents.get(sent..).filter(|rest| !rest.is_empty()) {
            let part = &rest[..limit.min(rest.len())];
            let segment = (part.len() > transmit.segment).then_some(transmit.segment);
            match self.socket.send(self.server, None, part, segment, false) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let contents = rest.to_vec();
                    let datagrams = if transmit.datagrams == 0 { 0 } else { pieces(rest.len(), transmit.segment) };
                    self.blocked = Some(Transmit { contents, datagrams, ..transmit });
                    return 0;
                }
                // no route, or too large: as if it were lost on the way. Whether the relay is gone, the session finds out
                Err(_) => return if transmit.datagrams == 0 { 0 } else { pieces(rest.len(), transmit.segment) },
            }
            sent += part.len();
        }
        0
    }

    async fn ready(&mut self) {
        if self.blocked.is_some() {
            tokio::select! {
                () = self.socket.readable() => {}
                () = self.socket.writable() => {
                    if let Some(blocked) = self.blocked.take() {
                        self.send(blocked);
                    }
                }
            }
        } else {
            self.socket.readable().await;
        }
    }

    fn receive(&mut self, mut each: impl FnMut(&[u8])) {
        for _ in 0..RECEIVE_ROUNDS {
            let mut metas = [RecvMeta::default(); RECEIVE_BUFFERS];
            let mut slices: [IoSliceMut<'_>; RECEIVE_BUFFERS] = {
                let mut chunks = self.buffer.chunks_mut(BUFFER_SIZE);
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()))
            };
            let Ok(count) = self.socket.receive(&mut slices, &mut metas) else { return };
            for (meta, chunk) in metas.iter().zip(self.buffer.chunks(BUFFER_SIZE)).take(count) {
                if unmapped(meta.addr) == self.server {
                    chunk[..meta.len.min(chunk.len())].chunks(meta.stride.max(1)).for_each(&mut each);
                }
            }
            if count < RECEIVE_BUFFERS {
                return;
            }
        }
    }
}

fn pieces(length: usize, size: usize) -> u64 {
    length.div_ceil(size.max(1)) as u64
}

/// What a stream to a relay can be: TCP, TLS, and either through a proxy.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) struct StreamLink {
    stream: Box<dyn Stream>,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// TLS holds bytes back until it is told to flush.
    flushed: bool,
}

impl fmt::Debug for StreamLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamLink").field("outgoing", &self.outgoing.len()).finish_non_exhaustive()
    }
}

impl StreamLink {
    pub(super) fn new(stream: Box<dyn Stream>) -> Self {
        Self { stream, incoming: Vec::new(), outgoing: Vec::new(), flushed: true }
    }

    /// A queue that is full drops datagrams, as a socket does; requests are few, and pass.
    fn send(&mut self, transmit: &Transmit) -> u64 {
        let room = MAX_OUTGOING.saturating_sub(self.outgoing.len());
        if transmit.datagrams > 0 && transmit.contents.len() > room {
            return transmit.datagrams;
        }
        if room + MAX_REQUEST_BYTES < transmit.contents.len() {
            return 0;
        }
        self.outgoing.extend_from_slice(&transmit.contents);
        0
    }

    async fn ready(&mut self) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(&mut self.stream);
        if self.incoming.capacity() - self.incoming.len() < READ_SIZE {
            self.incoming.reserve(READ_SIZE);
        }
        tokio::select! {
            read = reader.read_buf(&mut self.incoming) => match read? {
                0 => Err(io::ErrorKind::UnexpectedEof.into()),
                _ => Ok(()),
            },
            wrote = async {
                match self.outgoing.is_empty() {
                    true => writer.flush().await.map(|()| 0),
                    false => writer.write(&self.outgoing).await,
                }
            }, if !self.outgoing.is_empty() || !self.flushed => {
                let wrote = wrote?;
                self.flushed = wrote == 0;
                self.outgoing.drain(..wrote);
                Ok(())
            }
        }
    }

    fn receive(&mut self, each: impl FnMut(&[u8])) -> io::Result<()> {
        let strange = |NotTurn| io::Error::new(io::ErrorKind::InvalidData, "it does not speak TURN");
        take_frames(&mut self.incoming, each).map_err(strange)
    }
}

/// Datagrams that one call takes: with GRO each buffer holds up to 64 KiB of them.
const RECEIVE_BUFFERS: usize = 4;
/// The most that GRO puts together, and a send takes.
const BUFFER_SIZE: usize = 65_535;
/// The largest payload of UDP over IPv4 (RFC 768, RFC 791).
const MAX_SEND: usize = 65_507;
/// Then sending gets its turn.
const RECEIVE_ROUNDS: usize = 8;
/// Four batches of 64 KiB. At 10 Mbit/s they wait for 0.2 s: more would only be delay, since uTP fills whatever there is.
const MAX_OUTGOING: usize = 256 << 10;
/// 64 requests of 300 bytes beside them.
const MAX_REQUEST_BYTES: usize = 20 << 10;
/// A read takes as much as a batch; what is not a whole frame yet (64 KiB at most) waits before it.
const READ_SIZE: usize = 64 << 10;
