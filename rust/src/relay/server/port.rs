//! A UDP socket that receives and sends in batches (GRO and GSO), and buffers to receive into.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::addr::{mapped, unmapped};

pub struct Port {
    io: UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
}

impl Port {
    /// Binds inside a tokio runtime. `only_v6`: an IPv6 socket leaves IPv4 to others.
    pub fn bind(address: SocketAddr, only_v6: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(only_v6)?;
        }
        socket.set_nonblocking(true)?;
        // what the system refuses beyond its limits is no error: it gives what it has
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        let io = UdpSocket::from_std(socket.into())?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let local = io.local_addr()?;
        Ok(Self { io, state, local })
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    pub async fn readable(&self) -> io::Result<()> {
        self.io.readable().await
    }

    /// Receives what is there: how many of the buffers were filled, or `WouldBlock`.
    pub fn receive(&self, buffers: &mut Buffers) -> io::Result<usize> {
        let mut rest = &mut buffers.bytes[..];
        let mut slices: [IoSliceMut<'_>; AT_ONCE] = std::array::from_fn(|_| {
            let (one, others) = std::mem::take(&mut rest).split_at_mut(BUFFER);
            rest = others;
            IoSliceMut::new(one)
        });
        let metas = &mut buffers.metas;
        self.io.try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.io), &mut slices, metas))
    }

    /// Sends datagrams of `stride` bytes back to back, the last perhaps shorter, from `source` where the socket has several
    /// addresses. The number of those that could not be sent.
    pub fn send(&self, to: SocketAddr, source: Option<IpAddr>, contents: &[u8], stride: usize) -> usize {
        let destination = if self.local.is_ipv6() { mapped(to) } else { unmapped(to) };
        let stride = stride.max(1);
        if contents.len() <= stride {
            return usize::from(self.send_one(destination, source, contents, None).is_err());
        }
        let mut lost = 0;
        let most = self.state.max_gso_segments().clamp(1, (MAX_PAYLOAD / stride).max(1));
        for batch in contents.chunks(stride * most) {
            let segment = (batch.len() > stride).then_some(stride);
            let Err(error) = self.send_one(destination, source, batch, segment) else { continue };
            let refused = segment.is_some() && error.kind() != io::ErrorKind::WouldBlock;
            lost += match refused && self.state.max_gso_segments() == 1 {
                // the interface turned out not to do GSO: the state remembers, this batch goes out one by one
                true => {
                    let failed = |one: &&[u8]| self.send_one(destination, source, one, None).is_err();
                    batch.chunks(stride).filter(failed).count()
                }
                false => batch.len().div_ceil(stride),
            };
        }
        lost
    }

    fn send_one(
        &self,
        destination: SocketAddr,
        source: Option<IpAddr>,
        contents: &[u8],
        segment_size: Option<usize>,
    ) -> io::Result<()> {
        let transmit = Transmit { destination, ecn: None, contents, segment_size, src_ip: source };
        self.io.try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.io), &transmit))
    }
}

/// What one call receives into.
pub struct Buffers {
    bytes: Vec<u8>,
    metas: [RecvMeta; AT_ONCE],
}

impl Buffers {
    fn new() -> Self {
        Self { bytes: vec![0; AT_ONCE * BUFFER], metas: [RecvMeta::default(); AT_ONCE] }
    }

    /// From whom the `n`-th of what was received came, and where it lies in [`Self::bytes`].
    pub fn get(&self, n: usize) -> Option<(RecvMeta, Range<usize>)> {
        let meta = *self.metas.get(n)?;
        let start = n * BUFFER;
        Some((meta, start..start + meta.len.min(BUFFER)))
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// How many, from the `n`-th of `count`, are datagrams of one sender and one size, the last perhaps smaller; no more of them
    /// than one call sends.
    pub fn alike(&self, n: usize, count: usize) -> usize {
        let metas = self.metas.get(n..count).unwrap_or_default();
        let Some(first) = metas.first() else { return 0 };
        let (mut alike, mut bytes) = (0, 0);
        for meta in metas {
            bytes += meta.len;
            let same = meta.addr == first.addr && meta.dst_ip == first.dst_ip;
            let fits = meta.stride == first.stride || (meta.len == meta.stride && meta.len < first.stride);
            if !(same && fits) || meta.len == 0 || bytes > MAX_PAYLOAD {
                break;
            }
            alike += 1;
            // with the first that is not whole it ends
            if meta.len % first.stride.max(1) != 0 {
                break;
            }
        }
        // an empty one is alone
        alike.max(1)
    }
}

/// Buffers for sockets that have something to receive, so that a thousand silent ones hold none.
#[derive(Default)]
pub struct Pool(Mutex<Vec<Buffers>>);

impl Pool {
    pub fn take(&self) -> Buffers {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_else(Buffers::new)
    }

    pub fn put(&self, buffers: Buffers) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < POOLED {
            all.push(buffers);
        }
    }
}

/// What the kernel puts together from one sender (GRO): up to 64 KiB.
const BUFFER: usize = 1 << 16;
/// Buffers filled by one call: where GRO finds nothing to put together, sixteen datagrams cost one call.
const AT_ONCE: usize = 16;
/// Buffers kept for the next: one for each thread of a large machine; 1 MiB each, of which only what was used is memory.
const POOLED: usize = 16;
/// The largest UDP payload over IPv4 (65,535 - 20 - 8).
pub const MAX_PAYLOAD: usize = 65_507;
/// As `SocketConfig::buffer`, for the same reason.
const SOCKET_BUFFER: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    /// How the datagrams, each of (port of the sender, bytes, stride), fall into groups.
    fn groups(received: &[(u16, usize, usize)]) -> Vec<usize> {
        let mut buffers = Buffers { bytes: vec![], metas: [RecvMeta::default(); AT_ONCE] };
        for (meta, (port, len, stride)) in buffers.metas.iter_mut().zip(received) {
            *meta = RecvMeta::default();
            meta.addr = SocketAddr::from(([192, 0, 2, 1], *port));
            (meta.len, meta.stride) = (*len, *stride);
        }
        let (mut n, mut found) = (0, vec![]);
        while n < received.len() {
            found.push(buffers.alike(n, received.len()));
            n += found[found.len() - 1];
        }
        found
    }

    #[test]
    fn datagrams_of_one_sender_and_size_go_together() {
        assert_eq!(groups(&[(1, 1_200, 1_200); 3]), [3]);
        assert_eq!(groups(&[(1, 1_200, 1_200), (2, 1_200, 1_200), (2, 1_200, 1_200)]), [1, 2]);
        assert_eq!(groups(&[(1, 1_200, 1_200), (1, 1_300, 1_300)]), [1, 1], "none may be larger than the first");
        assert_eq!(groups(&[(1, 1_200, 1_200), (1, 700, 700), (1, 1_200, 1_200)]), [2, 1], "the last may be smaller");
        assert_eq!(groups(&[(1, 2_400, 1_200), (1, 2_000, 1_200), (1, 1_200, 1_200)]), [2, 1]);
        assert_eq!(groups(&[(1, 2_400, 1_200), (1, 1_000, 500)]), [1, 1], "two smaller ones are not one");
        assert_eq!(groups(&[(1, 900, 900), (1, 0, 0), (1, 0, 0)]), [1, 1, 1], "an empty one is alone");
        assert_eq!(groups(&[(1, 60_000, 1_200), (1, 6_000, 1_200)]), [1, 1], "more than one call sends");
    }
}
