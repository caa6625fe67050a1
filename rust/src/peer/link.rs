//! A link: the stream to a node that has proven who it is.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::time::{timeout_at, Instant};
use tokio_rustls::TlsStream;

use crate::addr::unmapped;
use crate::error::{Error, Reason, Result, Stage};
use crate::net::UtpStream;
use crate::open::{Answer, Collector, Open, Terms};
use crate::tls::{access_denied, map_tls_error, PeerIdentity};

/// uTP, TLS over it, and the node at the other end.
pub struct Link {
    pub stream: TlsStream<UtpStream>,
    pub peer: PeerIdentity,
    /// Where the peer's datagrams came from when the link was made.
    pub address: SocketAddr,
    /// How long uTP and then TLS took to connect.
    pub(super) took: (Duration, Duration),
    /// The name by which the peer pings us under this link's keys.
    session: [u8; 16],
}

impl Link {
    pub(super) fn new(
        stream: TlsStream<UtpStream>,
        (peer, session): (PeerIdentity, [u8; 16]),
        took: (Duration, Duration),
    ) -> Self {
        let address = unmapped(stream.get_ref().0.remote_address());
        Self { stream, peer, address, took, session }
    }

    /// How long uTP and then TLS took to connect.
    pub fn took(&self) -> (Duration, Duration) {
        self.took
    }

    pub fn utp(&self) -> &UtpStream {
        self.stream.get_ref().0
    }

    /// Round-trip time as uTP measures it.
    pub fn rtt(&self) -> Duration {
        self.utp().stats().rtt
    }

    /// Dialler: asks for a service. Errors: what the peer refused with, `OpenTimeout`, or how the link broke.
    pub async fn open(&mut self, open: &Open, deadline: Instant) -> Result<()> {
        let asked = async {
            let tags = self.utp().takes_tags();
            self.send(&Open { terms: self.terms(), tags, ..open.clone() }.encode()).await?;
            match self.receive().await? {
                Some(body) => Answer::decode(&body)?.into_result(),
                None => Err(Error::new(Reason::PeerClosed, Stage::Open, "the peer ended the stream without an answer")),
            }
        };
        let result = match timeout_at(deadline, asked).await {
            Ok(result) => result.map(|terms| self.note_terms(&terms)),
            Err(_) => Err(Error::new(Reason::OpenTimeout, Stage::Open, "the peer did not answer Open")),
        };
        result.map_err(|error| error.with_node(self.peer.leaf).with_address(self.address))
    }

    /// What this side says of itself.
    fn terms(&self) -> Terms {
        Terms { incarnation: Some(self.utp().incarnation()), patience: Some(self.utp().patience()) }
    }

    /// Takes in what the other side says of itself. A stream outlives what the more patient side puts up with, unless the other
    /// does not want to be waited for.
    pub(super) fn note_terms(&self, theirs: &Terms) {
        if let Some(incarnation) = theirs.incarnation {
            self.utp().note_life(self.peer.leaf, &self.session, incarnation);
        }
        self.note_patience(theirs);
    }

    /// Acceptor: this is how long a silence of the peer the stream outlives, in place of what holds for the node.
    pub fn wait_for(&self, patience: Duration, theirs: &Terms) {
        self.utp().set_patience(patience);
        self.note_patience(theirs);
    }

    fn note_patience(&self, theirs: &Terms) {
        let own = self.utp().patience();
        match theirs.patience {
            Some(asked) if asked.is_zero() => self.utp().set_patience(asked),
            Some(asked) if !own.is_zero() => self.utp().set_patience(own.max(asked.min(MAX_ASKED_PATIENCE))),
            _ => {}
        }
    }

    /// Acceptor: the answer that lets the peer in.
    pub fn acceptance(&self) -> Answer {
        Answer::Accepted(self.terms())
    }

    /// Acceptor: sends the answer. Errors: how the link broke.
    pub async fn answer(&mut self, answer: &Answer) -> Result<()> {
        self.send(&answer.encode()).await
    }

    /// Reads one message and not a byte more; `None` when the peer ended the stream in order before it began.
    pub(super) async fn receive(&mut self) -> Result<Option<Vec<u8>>> {
        let mut collector = Collector::default();
        let mut buffer = [0; 256];
        loop {
            let wanted = collector.wanted()?.min(buffer.len());
            if wanted == 0 {
                return Ok(Some(collector.body().to_vec()));
            }
            let space = buffer.get_mut(..wanted).unwrap_or_default();
            let result = self.stream.read(space).await;
            match result.map_err(|error| explain(&error, self.utp(), Stage::Open))? {
                0 if collector.is_empty() => return Ok(None),
                0 => {
                    return Err(Error::new(Reason::ProtocolViolation, Stage::Open, "the peer ended inside a message"));
                }
                n => collector.handle_bytes(space.get(..n).unwrap_or_default()),
            }
        }
    }

    async fn send(&mut self, message: &[u8]) -> Result<()> {
        let result = match self.stream.write_all(message).await {
            Ok(()) => self.stream.flush().await,
            Err(error) => Err(error),
        };
        let Err(error) = result else { return Ok(()) };
        // A peer that turned us away closes at once; why it did stands in what it sent before.
        let mut byte = [0];
        let error = match self.stream.read(&mut byte).await {
            Err(told) => told,
            Ok(_) => error,
        };
        Err(explain(&error, self.utp(), Stage::Open))
    }

    /// Breaks the link: the peer sees a reset.
    pub fn reset(&self) {
        self.utp().reset();
    }

    /// Breaks the link because the peer may no longer have it, and tells it so: with an alert behind all that was sent. A peer
    /// that does not read within `within` sees a reset.
    pub async fn dismiss(self, within: Duration) {
        let (mut utp, mut connection) = match self.stream {
            TlsStream::Server(stream) => {
                let (utp, connection) = stream.into_inner();
                (utp, rustls::Connection::Server(connection))
            }
            TlsStream::Client(stream) => {
                let (utp, connection) = stream.into_inner();
                (utp, rustls::Connection::Client(connection))
            }
        };
        let told = async {
            let mut last = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut last)?;
            }
            let secrets = connection.dangerous_extract_secrets().map_err(io::Error::other)?;
            last.extend(access_denied(&secrets).ok_or(io::ErrorKind::Unsupported)?);
            utp.write_all(&last).await?;
            utp.shutdown().await?;
            // what the peer still sends is not read: the alert must be out before the reset takes it back
            while utp.owes() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            io::Result::Ok(())
        };
        // how it ended does not matter any more
        let _ = tokio::time::timeout(within, told).await;
        utp.reset();
    }

    /// Waits until the peer has confirmed what was written, as long as it confirms anything, and no longer than `within`.
    pub async fn delivered(&mut self, within: Duration) {
        let give_up = Instant::now() + within;
        let (mut confirmed, mut idle) = (self.utp().stats().bytes_out, Instant::now());
        // a peer that reads nothing lets nothing be flushed either
        let patience = NO_PROGRESS.min(within);
        while matches!(tokio::time::timeout(patience, self.stream.flush()).await, Ok(Ok(()))) && self.utp().owes() {
            tokio::time::sleep(LOOK_EVERY).await;
            let (now, so_far) = (Instant::now(), self.utp().stats().bytes_out);
            if so_far != confirmed {
                (confirmed, idle) = (so_far, now);
            }
            if now >= give_up || now.duration_since(idle) >= NO_PROGRESS {
                return;
            }
        }
    }

    /// Ends the link in order: says goodbye, then waits until the peer has everything and has ended too, so that nothing that
    /// was sent is lost. Errors: broken meanwhile, or not done in time.
    pub async fn finish(&mut self, within: Duration) -> io::Result<()> {
        let goodbye = async {
            self.stream.shutdown().await?;
            wait_for_end(self.stream.get_mut().0).await
        };
        match tokio::time::timeout(within, goodbye).await {
            Ok(result) => result,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer.leaf).field("address", &self.address).finish_non_exhaustive()
    }
}

/// Ends a stream on which TLS did not come about: our alert has to reach the peer before the connection goes.
pub(super) async fn finish_raw(stream: &mut UtpStream, within: Duration) {
    let goodbye = async {
        stream.shutdown().await?;
        wait_for_end(stream).await?;
        stream.ended().await;
        Ok::<(), io::Error>(())
    };
    // Who is too late, or acknowledges nothing, must not keep a connection after the place for its handshake is free.
    if !matches!(tokio::time::timeout(within, goodbye).await, Ok(Ok(()))) {
        stream.reset();
    }
}

/// Reads to the end of the raw stream. After close_notify nothing that matters comes (RFC 8446 section 6.1), so only so much
/// is looked at.
async fn wait_for_end(stream: &mut UtpStream) -> io::Result<()> {
    let mut left = MAX_IGNORED;
    // On the heap: this runs inside the task of every tunnel.
    let mut buffer = vec![0; 2048];
    while left > 0 {
        let n = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut buffer);
            Pin::new(&mut *stream).poll_read(cx, &mut buffer).map_ok(|()| buffer.filled().len())
        })
        .await?;
        if n == 0 {
            return Ok(());
        }
        left = left.saturating_sub(n);
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the peer goes on after the end of the stream"))
}

/// What an error of the stream means: our own errors and those of TLS are inside the `io::Error`.
pub(super) fn explain(error: &io::Error, stream: &UtpStream, stage: Stage) -> Error {
    let inner = error.get_ref();
    if let Some(ours) = inner.and_then(|inner| inner.downcast_ref::<Error>()) {
        return ours.clone();
    }
    if let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        return map_tls_error(tls);
    }
    if let Some(reason) = stream.failure() {
        return Error::new(reason, stage, error.to_string());
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof if stage == Stage::Tls => {
            Error::new(Reason::TlsFailed, stage, "the peer ended the stream during the handshake")
        }
        io::ErrorKind::TimedOut => Error::new(Reason::PeerLost, stage, error.to_string()),
        _ => Error::new(Reason::PeerReset, stage, error.to_string()),
    }
}

/// How often a link that is about to be reset is looked at, and how long its peer may confirm nothing meanwhile: a few round trips,
/// or the repetition of what was lost.
const LOOK_EVERY: Duration = Duration::from_millis(5);
const NO_PROGRESS: Duration = Duration::from_secs(2);
/// The patience that a peer can ask for: what it costs is memory that a silent stream holds.
const MAX_ASKED_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes read and ignored after the end.
const MAX_IGNORED: usize = 64 << 10;
