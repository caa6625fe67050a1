//! The TCP and UNIX sockets on this machine: streams that are read and written through a shared reference, and listeners.

use std::future::{poll_fn, Future};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{ready, Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixSocket, UnixStream};
use tokio::time::{sleep, timeout, Sleep};

use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::browser::{self, Guard, Verdict};

/// A connection to a program on this machine (or to a service near it). Dropping it resets it, so that the program never
/// takes a failure for an end; [`Self::finish`] ends it in order.
#[derive(Debug)]
pub(super) struct LocalStream {
    socket: Socket,
    finished: bool,
    guarded: Option<Box<Mutex<Guarded>>>,
}

/// The first bytes of a client are looked at before anybody has them.
#[derive(Debug)]
enum Guarded {
    /// With the time until which a client that has said a few letters only is waited for.
    Judging(Guard, Option<Pin<Box<Sleep>>>),
    /// What was held back and has not been read yet.
    Passed(Vec<u8>),
    Refused(String),
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl LocalStream {
    /// A TCP stream that sends small messages at once.
    pub fn tcp(stream: TcpStream) -> Self {
        // Fails only on a socket that is already broken, which the first read shows.
        let _ = stream.set_nodelay(true);
        Self { socket: Socket::Tcp(stream), finished: false, guarded: None }
    }

    /// A UNIX stream. It knows no reset: when it is dropped, its program sees ECONNRESET only if it had sent what nobody read,
    /// and the end of the stream otherwise.
    pub fn unix(stream: UnixStream) -> Self {
        Self { socket: Socket::Unix(stream), finished: false, guarded: None }
    }

    /// Holds back what pages in a browser send; `names` are hosts by which they may ask.
    pub fn guarded(mut self, names: &[String]) -> Self {
        self.guarded = Some(Box::new(Mutex::new(Guarded::Judging(Guard::new(names), None))));
        self
    }

    /// Why the client was refused.
    pub fn refused(&self) -> Option<String> {
        match &*lock(self.guarded.as_ref()?) {
            Guarded::Refused(why) => Some(why.clone()),
            Guarded::Judging(..) | Guarded::Passed(_) => None,
        }
    }

    pub fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        match &self.guarded {
            Some(guarded) => self.poll_guarded(&mut lock(guarded), cx, buffer),
            None => self.poll_socket(cx, buffer),
        }
    }

    fn poll_guarded(&self, guarded: &mut Guarded, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match guarded {
                Guarded::Judging(guard, until) => {
                    let Poll::Ready(count) = self.poll_socket(cx, buffer)? else {
                        if guard.holds_a_few_letters() {
                            let until = until.get_or_insert_with(|| Box::pin(sleep(FEW_LETTERS)));
                            ready!(until.as_mut().poll(cx));
                            *guarded = Guarded::Passed(guard.give_up());
                            continue;
                        }
                        return Poll::Pending;
                    };
                    match guard.handle_bytes(buffer.get(..count).unwrap_or_default()) {
                        Verdict::More => {}
                        Verdict::Pass(held) if held.is_empty() => return Poll::Ready(Ok(0)),
                        Verdict::Pass(held) => *guarded = Guarded::Passed(held),
                        Verdict::Refuse(why) => {
                            tracing::warn!(why, "a page in a browser was refused");
                            // nothing else is on its way to this client, as a rule: it has room
                            let _ = self.try_write(&browser::refusal(&why));
                            let _ = self.shutdown_write();
                            *guarded = Guarded::Refused(why);
                        }
                    }
                }
                Guarded::Passed(held) if held.is_empty() => return self.poll_socket(cx, buffer),
                Guarded::Passed(held) => {
                    let count = held.len().min(buffer.len());
                    buffer.iter_mut().zip(held.drain(..count)).for_each(|(to, from)| *to = from);
                    return Poll::Ready(Ok(count));
                }
                Guarded::Refused(why) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, why.clone())));
                }
            }
        }
    }

    fn poll_socket(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let result = match &self.socket {
                Socket::Tcp(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read(buffer)
                }
                Socket::Unix(stream) => {
                    ready!(stream.poll_read_ready(cx))?;
                    stream.try_read(buffer)
                }
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        match &self.socket {
            Socket::Tcp(stream) => stream.try_write(data),
            Socket::Unix(stream) => stream.try_write(data),
        }
    }

    pub fn poll_write(&self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let result = match &self.socket {
                Socket::Tcp(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_write(data)
                }
                Socket::Unix(stream) => {
                    ready!(stream.poll_write_ready(cx))?;
                    stream.try_write(data)
                }
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, buffer)).await
    }

    pub async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match poll_fn(|cx| self.poll_write(cx, data)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => data = data.get(n..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Sends FIN; reading goes on.
    pub fn shutdown_write(&self) -> io::Result<()> {
        let how = std::net::Shutdown::Write;
        match &self.socket {
            Socket::Tcp(stream) => SockRef::from(stream).shutdown(how),
            Socket::Unix(stream) => SockRef::from(stream).shutdown(how),
        }
    }

    /// Closes it without a reset: what was written is still delivered.
    pub fn finish(mut self) {
        self.finished = true;
    }

    /// Closes it in order while the program still writes. Reads and drops what the program says until it ends or breaks, or
    /// `patience` has passed: a socket that is closed with bytes unread resets the connection, and the program would lose
    /// what it has not read yet (RFC 9112 section 9.6).
    pub async fn finish_unread(self, patience: Duration) {
        // an end that was said already is not said again
        let _ = self.shutdown_write();
        let _ = timeout(patience, self.discard(usize::MAX)).await;
        self.finish();
    }

    /// Reads and drops what the program says until it ends, or has said `most` bytes.
    pub async fn discard(&self, most: usize) -> io::Result<()> {
        // on the heap: this runs inside the task of every tunnel
        let (mut left, mut piece) = (most, vec![0; DISCARD_SIZE]);
        while left > 0 {
            match self.read(&mut piece).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        Ok(())
    }

    /// Waits until the connection is broken, also while nobody reads or writes because of back-pressure.
    pub async fn broken(&self) -> io::Error {
        loop {
            let (ready, error) = match &self.socket {
                Socket::Tcp(stream) => (stream.ready(Interest::ERROR).await, stream.take_error()),
                Socket::Unix(stream) => (stream.ready(Interest::ERROR).await, stream.take_error()),
            };
            match (ready, error) {
                (Err(error), _) | (_, Err(error)) | (_, Ok(Some(error))) => return error,
                // The error was taken by a read or a write, which reports it; readiness stays, so do not spin.
                (Ok(_), Ok(None)) => std::future::pending::<()>().await,
            }
        }
    }
}

const DISCARD_SIZE: usize = 4 << 10;
/// How long a client's first letters are held back when they may become an HTTP method and no more comes.
const FEW_LETTERS: Duration = Duration::from_secs(1);

fn lock(guarded: &Mutex<Guarded>) -> MutexGuard<'_, Guarded> {
    guarded.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for LocalStream {
    fn drop(&mut self) {
        // a reset would take what a page was told away from it
        if let (Socket::Tcp(stream), false, None) = (&self.socket, self.finished, self.refused()) {
            let _ = stream.set_zero_linger();
        }
    }
}

/// Where local programs without CONNECT support connect to: a static forward listens here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalListener {
    Tcp(SocketAddr),
    /// The socket is made with mode 0600.
    Unix(PathBuf),
}

/// A listener of this machine.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, file: SocketFile },
}

impl Listener {
    /// Errors: [`Reason::BindFailed`].
    pub async fn bind(local: &LocalListener) -> Result<Self> {
        match local {
            LocalListener::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                listener
                    .map(Self::Tcp)
                    .map_err(|error| bind_failed(&address.to_string(), &error).with_address(*address))
            }
            LocalListener::Unix(path) => {
                bind_unix(path).await.map_err(|error| bind_failed(&path.display().to_string(), &error))
            }
        }
    }

    /// `ip:port`, or `unix:` and the path.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(_) => self.socket_address().map_or_else(String::new, |address| address.to_string()),
            Self::Unix { file, .. } => format!("unix:{}", file.path.display()),
        }
    }

    pub fn socket_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix { .. } => None,
        }
    }

    /// The next connection, and the address it comes from if it has one.
    pub async fn accept(&self) -> io::Result<(LocalStream, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, from)| (LocalStream::tcp(stream), Some(from))),
            Self::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| (LocalStream::unix(stream), None)),
        }
    }
}

/// Removes the socket's file when the listener goes, unless another program has put its own there meanwhile.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The socket is made under another name and moved into place when its mode is right, so that at no moment others can
/// connect to it, and a stale one is replaced without a gap.
async fn bind_unix(path: &Path) -> io::Result<Listener> {
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
        }
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another program listens there")),
        }
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(name);
    let _ = std::fs::remove_file(&temporary);
    let result = make_unix(path, &temporary);
    if result.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    result
}

fn make_unix(path: &Path, temporary: &Path) -> io::Result<Listener> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(temporary)?;
    std::fs::set_permissions(temporary, std::fs::Permissions::from_mode(0o600))?;
    let listener = socket.listen(BACKLOG)?;
    let identity = file_identity(temporary)?;
    std::fs::rename(temporary, path)?;
    Ok(Listener::Unix { listener, file: SocketFile { path: path.to_owned(), identity } })
}

fn bind_failed(what: &str, error: &io::Error) -> Error {
    Error::new(Reason::BindFailed, Stage::Setup, format!("cannot listen on {what}: {error}"))
}

/// What tokio's TcpListener::bind uses.
const BACKLOG: u32 = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("keynet-{}-{name}", std::process::id()))
    }

    #[tokio::test]
    async fn a_unix_socket_is_private_replaces_a_stale_one_and_goes_with_its_listener() {
        let path = scratch("stale.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale socket is left behind");

        let listener = Listener::bind(&LocalListener::Unix(path.clone())).await.unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let in_use = Listener::bind(&LocalListener::Unix(path.clone())).await.unwrap_err();
        assert_eq!(in_use.reason, Reason::BindFailed);
        let (client, _) = tokio::join!(UnixStream::connect(&path), listener.accept());
        client.unwrap();

        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let path = scratch("file.txt");
        std::fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&LocalListener::Unix(path.clone())).await.unwrap_err();
        assert_eq!(error.reason, Reason::BindFailed);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        std::fs::remove_file(&path).unwrap();
    }
}
