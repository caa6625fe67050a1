//! The splice: both directions between a local socket and a link, in one task.
//!
//! Each direction reads until its source has nothing more or its buffer is full, writes that, and flushes when the source has
//! run dry. A direction that waits with an empty buffer gives it back, so an idle splice holds none.

use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::{pin, Pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep, Instant};

use super::local::LocalStream;

/// How a splice ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Both directions ended in order.
    Finished,
    /// The local socket broke.
    Local(io::Error),
    /// The local program had ended its direction in order, and then closed without reading what still came: HTTP/2 clients
    /// do so.
    LocalClosed,
    /// The link broke, or ended without saying so.
    Link(io::Error),
    /// The same of a link whose direction had ended in order.
    LinkClosed(io::Error),
}

/// Bytes moved, readable while they move.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// From the local socket to the link.
    pub out: AtomicU64,
    /// From the link to the local socket.
    pub into: AtomicU64,
    /// The local socket has ended in both directions, or is about to: its port may be another's from now on, for the system
    /// gives up the port of whoever ends last at once.
    pub ended: AtomicBool,
}

/// Moves bytes until both directions have ended or one side breaks. What was read from a side before it broke still goes to the
/// other, as long as that takes it. The sockets are left as they are: what a broken one means for the other is the caller's
/// decision.
///
/// `early`: bytes that the local side has sent already. `size`: of the buffer of each direction. `failure`: whether the link
/// is broken, without reading it.
pub(super) async fn splice<L: AsyncRead + AsyncWrite + Unpin>(
    local: &LocalStream,
    link: &mut L,
    early: Vec<u8>,
    counters: &Counters,
    size: usize,
    failure: impl Fn(&L) -> Option<io::Error>,
) -> Outcome {
    let mut both = Both::new(early, size);
    let mut broken = pin!(local.broken());
    let mut look = pin!(sleep(LOOK_EVERY));
    poll_fn(|cx| {
        if both.gone.is_none() {
            if let Poll::Ready(error) = broken.as_mut().poll(cx) {
                both.gone = Some(error);
            }
        }
        if let Some(outcome) = both.poll(cx, local, link, counters) {
            return Poll::Ready(outcome);
        }
        // While the local program does not read, nobody reads the link either, and would not hear that it broke.
        while (both.download.is_stuck() || both.is_ending()) && look.as_mut().poll(cx).is_ready() {
            if both.lost.is_none() {
                both.lost = failure(link);
            }
            if let Some(outcome) = both.give_up(counters) {
                return Poll::Ready(outcome);
            }
            look.as_mut().reset(Instant::now() + LOOK_EVERY);
        }
        Poll::Pending
    })
    .await
}

/// Both directions, and what is known of their ends.
struct Both {
    upload: Flow,
    download: Flow,
    /// The two have ended in order.
    up: bool,
    down: bool,
    /// Nothing can be written to the local side any more.
    gone: Option<io::Error>,
    /// Nothing can be written to the link any more.
    lost: Option<io::Error>,
    /// Bytes that had been moved at the last look, while one side is broken.
    moved: Option<u64>,
}

impl Both {
    fn new(early: Vec<u8>, size: usize) -> Self {
        let (upload, download) = (Flow::new(early, size), Flow::new(Vec::new(), size));
        Self { upload, download, up: false, down: false, gone: None, lost: None, moved: None }
    }

    fn poll<L: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        local: &LocalStream,
        link: &mut L,
        counters: &Counters,
    ) -> Option<Outcome> {
        let (mut here, mut there) = (Here { local, aborted: self.is_aborted(), ended: None }, There(link));
        if self.lost.is_none() {
            match self.upload.poll(cx, &mut here, &mut there, &counters.out) {
                Poll::Ready(Ok(())) => self.up = true,
                Poll::Ready(Err(Broken::Source(error))) => {
                    counters.ended.store(true, Ordering::SeqCst);
                    return Some(Outcome::Local(self.gone.take().unwrap_or(error)));
                }
                Poll::Ready(Err(Broken::Sink(error))) => self.lost = Some(error),
                Poll::Pending => {}
            }
        }
        here.ended = self.up.then_some(&counters.ended);
        if self.gone.is_none() {
            match self.download.poll(cx, &mut there, &mut here, &counters.into) {
                Poll::Ready(Ok(())) => self.down = true,
                Poll::Ready(Err(Broken::Source(error))) => {
                    // what the peer says of the end (an alert) is more than that it came
                    let told = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
                    return Some(Outcome::Link(if told { error } else { self.lost.take().unwrap_or(error) }));
                }
                Poll::Ready(Err(Broken::Sink(error))) => {
                    self.gone = Some(error);
                    // what it has said before it went is read in the next round
                    cx.waker().wake_by_ref();
                }
                Poll::Pending => {}
            }
        } else if !self.down {
            // Nobody takes it: the service must not wait for room, or it would not read what the program has said.
            self.down = self.download.discard(cx, &mut there);
        }
        if self.gone.is_some() || self.upload.cut.is_some() {
            // what it said before is still under way, and its port is free
            counters.ended.store(true, Ordering::SeqCst);
        }
        match (self.up, self.down, &self.gone, &self.lost) {
            (_, _, Some(_), Some(_)) => self.lost.take().map(Outcome::Link),
            (_, true, _, Some(_)) => self.lost.take().map(Outcome::LinkClosed),
            (true, _, Some(_), _) => Some(Outcome::LocalClosed),
            (true, true, ..) => Some(Outcome::Finished),
            _ => None,
        }
    }

    /// The local side has been reset, and did not merely go after its end: then an end that it seems to have said was none. A
    /// socket whose other side had ended before has another error (EPIPE) than one that was cut off.
    fn is_aborted(&self) -> bool {
        self.gone.as_ref().is_some_and(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }

    /// One side is broken, and what it said before is on its way to the other.
    fn is_ending(&self) -> bool {
        self.is_aborted() || self.lost.is_some() || self.upload.cut.is_some() || self.download.cut.is_some()
    }

    /// The outcome, when one side is broken and the other has taken nothing since the last look.
    fn give_up(&mut self, counters: &Counters) -> Option<Outcome> {
        if !self.is_ending() {
            return None;
        }
        let moved = counters.out.load(Ordering::Relaxed) + counters.into.load(Ordering::Relaxed);
        if self.moved.replace(moved) != Some(moved) {
            return None;
        }
        let link = self.lost.take().or(self.download.cut.take()).map(Outcome::Link);
        link.or_else(|| self.gone.take().or(self.upload.cut.take()).map(Outcome::Local))
    }
}

/// One end of a splice.
trait Side {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends this direction; the other goes on.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

struct Here<'a> {
    local: &'a LocalStream,
    /// It was reset, as somebody has heard already: the end that is read then is none.
    aborted: bool,
    /// What to set before its last direction ends.
    ended: Option<&'a AtomicBool>,
}

impl Side for Here<'_> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match ready!(self.local.poll_read(cx, buffer)) {
            Ok(0) if self.aborted => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            result => Poll::Ready(result),
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.local.poll_write(cx, data)
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_end(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(ended) = self.ended {
            ended.store(true, Ordering::SeqCst);
        }
        Poll::Ready(self.local.shutdown_write())
    }
}

struct There<'a, L>(&'a mut L);

impl<L: AsyncRead + AsyncWrite + Unpin> Side for There<'_, L> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut *self.0).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(cx, data)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(cx)
    }
}

#[derive(Debug)]
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Moving,
    /// The source has ended; what is in the buffer still has to go.
    Draining,
    /// The sink is being told.
    Ending,
    Ended,
}

/// One direction.
struct Flow {
    phase: Phase,
    buffer: Buffer,
    unflushed: bool,
    /// The source broke; what it said before is on its way.
    cut: Option<io::Error>,
}

impl Flow {
    fn new(early: Vec<u8>, size: usize) -> Self {
        Self { phase: Phase::Moving, buffer: Buffer::new(early, size), unflushed: false, cut: None }
    }

    /// Whether something waits for the sink.
    fn is_stuck(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut impl Side,
        sink: &mut impl Side,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Broken>> {
        if self.phase == Phase::Ended {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..ROUNDS {
            let dry = self.fill(cx, source);
            let stuck = self.drain(cx, sink, moved).map_err(Broken::Sink)?;
            if self.cut.is_some() && self.buffer.is_empty() {
                ready!(sink.poll_flush(cx)).map_err(Broken::Sink)?;
                return Poll::Ready(Err(Broken::Source(self.cut.take().unwrap_or_else(unknown))));
            }
            if self.phase == Phase::Draining && self.buffer.is_empty() {
                self.phase = Phase::Ending;
            }
            if self.phase == Phase::Ending {
                self.buffer.give_back();
                ready!(sink.poll_end(cx)).map_err(Broken::Sink)?;
                self.phase = Phase::Ended;
                return Poll::Ready(Ok(()));
            }
            if dry && self.buffer.is_empty() {
                self.buffer.give_back();
                if self.unflushed {
                    ready!(sink.poll_flush(cx)).map_err(Broken::Sink)?;
                    self.unflushed = false;
                }
                return Poll::Pending;
            }
            if stuck {
                return Poll::Pending;
            }
        }
        // Both sides are always ready: let other tasks of this thread run.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads until the source has nothing more (then true) or the buffer is full.
    fn fill(&mut self, cx: &mut Context<'_>, source: &mut impl Side) -> bool {
        while self.phase == Phase::Moving && self.cut.is_none() {
            let space = self.buffer.space();
            if space.is_empty() {
                return false;
            }
            match source.poll_read(cx, space) {
                Poll::Pending => return true,
                Poll::Ready(Ok(0)) => self.phase = Phase::Draining,
                Poll::Ready(Ok(n)) => self.buffer.filled(n),
                Poll::Ready(Err(error)) => self.cut = Some(error),
            }
        }
        true
    }

    /// Reads and forgets, where nobody takes what the source says. True: it has ended, or is broken.
    fn discard(&mut self, cx: &mut Context<'_>, source: &mut impl Side) -> bool {
        for _ in 0..ROUNDS {
            self.buffer.clear();
            match source.poll_read(cx, self.buffer.space()) {
                Poll::Pending => {
                    self.buffer.give_back();
                    return false;
                }
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => {
                    self.buffer.give_back();
                    return true;
                }
            }
        }
        cx.waker().wake_by_ref();
        false
    }

    /// Writes until the buffer is empty or the sink takes no more (then true).
    fn drain(&mut self, cx: &mut Context<'_>, sink: &mut impl Side, moved: &AtomicU64) -> io::Result<bool> {
        while !self.buffer.is_empty() {
            match sink.poll_write(cx, self.buffer.data()) {
                Poll::Pending => return Ok(true),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    self.buffer.taken(n);
                    self.unflushed = true;
                    moved.fetch_add(n as u64, Ordering::Relaxed);
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        Ok(false)
    }
}

/// Of a side that had an error, and whose error is gone.
fn unknown() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

/// The bytes between a read and a write. Filled to its end, then emptied from its start: nothing is ever moved inside.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    size: usize,
}

impl Buffer {
    fn new(early: Vec<u8>, size: usize) -> Self {
        Self { start: 0, end: early.len(), bytes: early, size: size.max(1) }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    fn data(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    fn taken(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
        }
    }

    fn space(&mut self) -> &mut [u8] {
        if self.bytes.len() != self.size && self.is_empty() {
            self.bytes = SPARE.with_borrow_mut(|spare| spare.take(self.size));
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(self.bytes.len());
    }

    fn give_back(&mut self) {
        if self.is_empty() && !self.bytes.is_empty() {
            let bytes = std::mem::take(&mut self.bytes);
            SPARE.with_borrow_mut(|spare| spare.put(bytes, self.size));
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        // The thread's spares may be gone already when the runtime ends.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().put(bytes, self.size));
    }
}

/// Buffers that nobody on this thread uses at the moment. What was in them is overwritten before it is read.
struct Spare(Vec<Vec<u8>>);

impl Spare {
    fn take(&mut self, size: usize) -> Vec<u8> {
        match self.0.pop() {
            Some(bytes) if bytes.len() == size => bytes,
            _ => vec![0; size],
        }
    }

    fn put(&mut self, bytes: Vec<u8>, size: usize) {
        if bytes.len() == size && self.0.len() < MAX_SPARE {
            self.0.push(bytes);
        }
    }
}

thread_local! {
    static SPARE: RefCell<Spare> = const { RefCell::new(Spare(Vec::new())) };
}

/// A dead peer is to be noticed within 10 s (design, decision 9), most of which are the path's.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Buffers filled and emptied before other tasks get their turn: 2 MiB at the default size, under a millisecond.
const ROUNDS: usize = 16;
/// Both directions of a splice that is being polled, and some that ended at the same time.
const MAX_SPARE: usize = 8;

#[cfg(test)]
#[path = "splice_tests.rs"]
mod tests;
