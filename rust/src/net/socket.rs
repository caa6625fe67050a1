//! The UDP socket: dual stack, batches with GSO and GRO through `quinn-udp`, buffers as large as the system gives.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::task::{Context, Poll};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket as Socket2, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::addr::{mapped, unmapped};
use crate::config::SocketConfig;
use crate::error::{Error, Reason, Result, Stage};

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    dual_stack: bool,
    batching: bool,
    local: SocketAddr,
    receive_burst: Option<usize>,
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
        let local = io.local_addr()?;
        Ok(Self { io, state, dual_stack: listen.is_ipv6(), batching: config.batching, local, receive_burst })
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
            self.state.max_gso_segments().min(MAX_SEGMENTS)
        } else {
            1
        }
    }

    /// Ready when there may be something to receive.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.io.poll_recv_ready(cx).map(drop)
    }

    /// Sends one datagram that dies after `hops` routers.
    pub fn send_within(&self, to: SocketAddr, contents: &[u8], hops: u8) -> io::Result<()> {
        let socket = socket2::SockRef::from(&self.io);
        let usual = self.hops(to, &socket, None)?;
        self.hops(to, &socket, Some(hops.into()))?;
        let sent = self.send(to, contents, None);
        self.hops(to, &socket, Some(usual))?;
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
    pub fn send_in_pieces(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        fragments::allow(&self.io, to, true)?;
        let mut sent = Ok(());
        for one in contents.chunks(segment_size.unwrap_or(contents.len()).max(1)) {
            sent = self.send(to, one, None);
            if sent.is_err() {
                break;
            }
        }
        fragments::allow(&self.io, to, false)?;
        sent
    }

    pub async fn readable(&self) {
        let _ = self.io.readable().await;
    }

    pub async fn writable(&self) {
        let _ = self.io.writable().await;
    }

    /// Receives what is there: the number of filled buffers, or `WouldBlock`.
    pub fn receive(&self, buffers: &mut [io::IoSliceMut<'_>], metas: &mut [RecvMeta]) -> io::Result<usize> {
        self.io.try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.io), buffers, metas))
    }

    /// Sends one datagram, or equal ones of `segment_size` back to back. `WouldBlock` means: not sent, wait.
    pub fn send(&self, to: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let destination = if self.dual_stack { mapped(to) } else { unmapped(to) };
        let had_gso = self.state.max_gso_segments() > 1;
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        let sent = self.io.try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), &transmit));
        match (sent, segment_size) {
            // the interface turned out not to do GSO: the state remembers, this batch goes out one by one
            (Err(error), Some(size)) if error.kind() != io::ErrorKind::WouldBlock && had_gso => {
                if self.state.max_gso_segments() > 1 {
                    return Err(error);
                }
                contents.chunks(size).try_for_each(|one| self.send(to, one, None))
            }
            (sent, _) => sent,
        }
    }
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

/// 44 x 1472 is the most that one 64 KiB send takes; more of smaller ones helps nobody.
const MAX_SEGMENTS: usize = 44;
