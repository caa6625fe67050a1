//! The UDP socket: dual stack, batches with GSO and GRO through `quinn-udp`, buffers as large as the system gives.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::task::{Context, Poll};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as Socket2, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::locals::is_choosable;
use super::refused::{self, Refusal};
use super::uplink::prefer;
use crate::addr::{mapped, unmapped};
use crate::config::SocketConfig;
use crate::error::{Error, Reason, Result, Stage};

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    io: UdpSocket,
    /// Replaced when it has drawn a wrong conclusion, see [`Self::send`].
    state: RwLock<UdpSocketState>,
    dual_stack: bool,
    batching: bool,
    local: SocketAddr,
    receive_burst: Option<usize>,
    /// For which families the kernel lets routers cut what is sent: IPv4, IPv6.
    in_pieces: [AtomicBool; 2],
    /// There is something in the error queue.
    reported: AtomicBool,
}

impl Socket {
    /// Binds inside a tokio runtime. `[::]` takes IPv4 as well; where the machine has no IPv6 it falls back to `0.0.0.0`.
    pub fn bind(listen: SocketAddr, config: &SocketConfig) -> Result<Self> {
        let bound = match Self::try_bind(listen, config) {
            Err(_) if listen.is_ipv6() && listen.ip().is_unspecified() => {
                Self::try_bind((Ipv4Addr::UNSPECIFIED, listen.port()).into(), config)
            }
            other => other,
        };
        bound
            .map_err(|error| Error::new(Reason::BindFailed, Stage::Setup, format!("UDP: {error}")).with_address(listen))
    }

    fn try_bind(listen: SocketAddr, config: &SocketConfig) -> io::Result<Self> {
        let socket = Socket2::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_nonblocking(true)?;
        if let Some(bytes) = config.buffer {
            // what the system refuses beyond its limits is no error: it gives what it has
            let _ = socket.set_recv_buffer_size(bytes);
            let _ = socket.set_send_buffer_size(bytes);
        }
        socket.bind(&listen.into())?;
        let receive_burst = socket.recv_buffer_size().ok().map(|bytes| bytes / 5 * 3);
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        // who cannot have them waits for a silent peer as long as for any other
        let _ = state.enable_transport_errors(UdpSockRef::from(&io));
        let local = io.local_addr()?;
        Ok(Self {
            io,
            state: RwLock::new(state),
            dual_stack: listen.is_ipv6(),
            batching: config.batching,
            local,
            receive_burst,
            in_pieces: Default::default(),
            reported: AtomicBool::new(false),
        })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.local
    }

    /// Bytes of payload that the receive buffer is sure to hold: a full datagram of 1472 bytes takes 2304 of it on Linux, which
    /// reports the whole.
    pub fn receive_burst(&self) -> Option<usize> {
        self.receive_burst
    }

    /// How many datagrams of `size` bytes one call sends at most.
    pub fn max_segments(&self) -> usize {
        if self.batching {
            self.segments().min(MAX_SEGMENTS)
        } else {
            1
        }
    }

    /// To which of this machine's addresses something came; `None` where the socket has only one, or an answer cannot come from
    /// there.
    pub fn arrived_at(&self, meta: &RecvMeta) -> Option<IpAddr> {
        let at = meta.dst_ip.filter(|_| self.local.ip().is_unspecified())?;
        Some(unmapped((at, 0).into()).ip()).filter(|at| is_choosable(*at))
    }

    /// Ready when there may be something to receive.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.poll_recv_ready(cx).map(drop)
    }

    /// Sends one datagram that dies after `hops` routers.
    pub fn send_within(&self, to: SocketAddr, source: Option<IpAddr>, contents: &[u8], hops: u8) -> io::Result<()> {
        let socket = socket2::SockRef::from(&self.io);
        let usual = self.hops(to, &socket, None)?;
        self.hops(to, &socket, Some(hops.into()))?;
        let sent = self.send(to, source, contents, None, false);
        self.hops(to, &socket, Some(usual))?;
        sent
    }

    /// Sends one datagram by this interface.
    pub fn send_through(&self, to: SocketAddr, interface: u32, contents: &[u8]) -> io::Result<()> {
        prefer(&self.io, Some(interface))?;
        let sent = self.send(to, None, contents, None, false);
        prefer(&self.io, None)?;
        sent
    }

    /// Reads, or sets, how many hops a datagram to `to` may take. A dual-stack socket has both numbers.
    fn hops(&self, to: SocketAddr, socket: &socket2::SockRef<'_>, hops: Option<u32>) -> io::Result<u32> {
        match (unmapped(to).is_ipv4(), hops) {
            (true, None) => socket.ttl_v4(),
            (true, Some(hops)) => socket.set_ttl_v4(hops).map(|()| hops),
            (false, None) => socket.unicast_hops_v6(),
            (false, Some(hops)) => socket.set_unicast_hops_v6(hops).map(|()| hops),
        }
    }

    /// Sends datagrams that routers may cut into pieces (RFC 791 section 3.2, RFC 8200 section 4.5): they were made for a path that
    /// carried larger ones, and what has a number in uTP cannot be made smaller.
    pub fn send_in_pieces(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        self.let_cut(to, true)?;
        for one in contents.chunks(segment_size.unwrap_or(contents.len()).max(1)) {
            self.transmit(to, source, one, None)?;
        }
        Ok(())
    }

    /// It stays so until something has to arrive whole: two system calls less for each datagram.
    fn let_cut(&self, to: SocketAddr, allowed: bool) -> io::Result<()> {
        let family = usize::from(unmapped(to).is_ipv6());
        if self.in_pieces[family].load(Ordering::Relaxed) != allowed {
            fragments::allow(&self.io, to, allowed)?;
            self.in_pieces[family].store(allowed, Ordering::Relaxed);
        }
        Ok(())
    }

    pub async fn readable(&self) {
        let _ = self.io.readable().await;
    }

    pub async fn writable(&self) {
        let _ = self.io.writable().await;
    }

    /// Receives what is there: the number of filled buffers, or `WouldBlock`.
    pub fn receive(&self, buffers: &mut [io::IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        let received = self.io.try_io(Interest::READABLE, || {
            let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
            state.recv(UdpSockRef::from(&self.io), buffers, metas)
        });
        self.note_report(&received);
        received
    }

    /// A host that refused a datagram of ours, if one did.
    pub fn refusal(&self) -> Option<Refusal> {
        if !self.reported.load(Ordering::Relaxed) {
            return None;
        }
        let next = refused::next(&self.io);
        self.reported.store(next.is_some(), Ordering::Relaxed);
        next
    }

    /// The kernel tells what befell an earlier datagram, to whomever, in place of doing what it was asked for, once. True: that
    /// may be so.
    fn note_report<T>(&self, done: &io::Result<T>) -> bool {
        let reports = done.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock);
        if reports {
            self.reported.store(true, Ordering::Relaxed);
        }
        reports
    }

    /// Sends one datagram, or equal ones of `segment_size` back to back; from `source`, where the socket has several addresses and the
    /// system is not to choose. `WouldBlock` means: not sent, wait. Where [`may_be_gone`], the caller tries again without `source`.
    /// `may_cut`: routers may cut them into pieces, for it is not known yet what the path carries.
    pub fn send(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        contents: &[u8],
        segment_size: Option<usize>,
        may_cut: bool,
    ) -> io::Result<()> {
        if segment_size.unwrap_or(contents.len()) > NEVER_CUT {
            self.let_cut(to, may_cut)?;
        }
        self.transmit(to, source, contents, segment_size)
    }

    fn transmit(
        &self,
        to: SocketAddr,
        source: Option<IpAddr>,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let destination = if self.dual_stack { mapped(to) } else { unmapped(to) };
        let had_gso = self.segments() > 1;
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: source };
        let send = || {
            self.io.try_io(Interest::WRITABLE, || {
                let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
                state.try_send(UdpSockRef::from(&self.io), &transmit)
            })
        };
        let mut sent = send();
        if self.note_report(&sent) {
            // it was told of another; this one has not left yet
            sent = send();
        }
        match (sent, segment_size) {
            (Err(error), _) if may_be_gone(source, &error) => {
                // Linux has the same error for an address that is not ours and for an interface without GSO, and the state believes
                // the latter for good
                if had_gso && self.segments() == 1 {
                    let fresh = UdpSocketState::new(UdpSockRef::from(&self.io))?;
                    *self.state.write().unwrap_or_else(PoisonError::into_inner) = fresh;
                    // making it has set the bit that forbids fragments again
                    self.in_pieces.iter().for_each(|family| family.store(false, Ordering::Relaxed));
                }
                Err(error)
            }
            // the interface turned out not to do GSO: the state remembers, this batch goes out one by one
            (Err(error), Some(size)) if error.kind() != io::ErrorKind::WouldBlock && had_gso => {
                if self.segments() > 1 {
                    return Err(error);
                }
                contents.chunks(size).try_for_each(|one| self.transmit(to, source, one, None))
            }
            (sent, _) => sent,
        }
    }

    fn segments(&self) -> usize {
        self.state.read().unwrap_or_else(PoisonError::into_inner).max_gso_segments()
    }
}

/// Whether sending may have failed because `source` is no address of this machine any more.
pub fn may_be_gone(source: Option<IpAddr>, error: &io::Error) -> bool {
    // Linux: EINVAL with IPv6, ENETUNREACH with IPv4
    let kinds = [io::ErrorKind::InvalidInput, io::ErrorKind::AddrNotAvailable, io::ErrorKind::NetworkUnreachable];
    source.is_some() && kinds.contains(&error.kind())
}

/// Whether the kernel sets the bit that forbids fragments. quinn-udp sets it for good, and there is no safe wrapper.
#[cfg(target_os = "linux")]
mod fragments {
    use super::{io, unmapped, SocketAddr, UdpSocket};
    use std::os::fd::AsRawFd;

    pub fn allow(socket: &UdpSocket, to: SocketAddr, allowed: bool) -> io::Result<()> {
        let (level, option, value) = match (unmapped(to).is_ipv4(), allowed) {
            (true, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (true, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE),
            // in IPv6 only the sender cuts, to what it has been told that the path carries
            (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_WANT),
            (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE),
        };
        let value: libc::c_int = value;
        // SAFETY: the descriptor is open for as long as the socket is borrowed, and the kernel reads one int, of which it gets
        // the place and the size.
        #[allow(unsafe_code)]
        let done = unsafe {
            let value = std::ptr::from_ref(&value).cast();
            libc::setsockopt(socket.as_raw_fd(), level, option, value, size_of::<libc::c_int>() as libc::socklen_t)
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod fragments {
    use super::{io, SocketAddr, UdpSocket};

    /// Not known how: what is too large is lost, as before.
    pub fn allow(_: &UdpSocket, _: SocketAddr, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// What every path carries whole: the 576 bytes that each IPv4 host takes (RFC 791 section 3.1), less 28 of headers.
const NEVER_CUT: usize = 548;
/// 44 x 1472 is the most that one 64 KiB send takes; more of smaller ones helps nobody.
const MAX_SEGMENTS: usize = 44;
