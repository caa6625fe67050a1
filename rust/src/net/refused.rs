//! What hosts say of datagrams that nobody there wants (ICMP "port unreachable", RFC 792, RFC 4443 section 3.1). Linux hands them
//! out in the error queue of a socket, each with the start of the datagram that it is about.

use std::net::{IpAddr, SocketAddr};

use tokio::net::UdpSocket;

/// A host refused a datagram of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who says so.
    pub by: IpAddr,
    /// Where the datagram was sent to.
    pub to: SocketAddr,
    /// The transaction of the STUN message that it was.
    pub transaction: [u8; 12],
}

/// The next one; `None` when the queue is empty. Whatever else is in the queue is thrown away, up to a cap.
pub fn next(socket: &UdpSocket) -> Option<Refusal> {
    for _ in 0..MOST_AT_ONCE {
        let mut quoted = [0; QUOTED];
        let report = queue::read(socket, &mut quoted)?;
        let (Some(by), Some(to)) = (report.by, report.to) else { continue };
        match quoted.get(..report.quoted).and_then(transaction_of) {
            Some(transaction) if report.refused => return Some(Refusal { by, to, transaction }),
            _ => {}
        }
    }
    None
}

/// The transaction of a Binding message of which this is the start (RFC 8489 section 5).
fn transaction_of(quoted: &[u8]) -> Option<[u8; 12]> {
    let is_stun = quoted.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42]);
    quoted.get(8..20).filter(|_| is_stun)?.try_into().ok()
}

/// One entry of the queue.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct Report {
    by: Option<IpAddr>,
    to: Option<SocketAddr>,
    /// It says "port unreachable".
    refused: bool,
    /// Bytes of the datagram that came with it.
    quoted: usize,
}

#[cfg(target_os = "linux")]
mod queue {
    use super::{IpAddr, Report, SocketAddr, UdpSocket};
    use crate::addr::unmapped;
    use std::mem::{size_of, zeroed};
    use std::os::fd::AsRawFd;

    /// `cmsghdr`: length, level, type.
    const HEADER: usize = size_of::<usize>() + 8;

    /// Bytes aligned as the kernel's structures are.
    #[repr(align(8))]
    struct Aligned<const N: usize>([u8; N]);

    pub fn read(socket: &UdpSocket, quoted: &mut [u8]) -> Option<Report> {
        let (mut name, mut control) = (Aligned([0; 128]), Aligned([0; 256]));
        let mut slice = libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
        // SAFETY: zero is a value of `msghdr`, a structure of C without references.
        #[allow(unsafe_code)]
        let mut header = unsafe { zeroed::<libc::msghdr>() };
        header.msg_name = name.0.as_mut_ptr().cast();
        header.msg_namelen = name.0.len() as libc::socklen_t;
        header.msg_iov = &raw mut slice;
        header.msg_iovlen = 1;
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len() as _;
        // SAFETY: the descriptor is open while the socket is borrowed, and `header` points to buffers that outlive the call, with
        // their true lengths.
        #[allow(unsafe_code)]
        let length =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
        let quoted = usize::try_from(length).ok()?;
        let control = control.0.get(..header.msg_controllen as usize).unwrap_or_default();
        let (refused, by) = messages(control).find_map(error_of).unwrap_or((false, None));
        Some(Report { by, to: address(&name.0), refused, quoted })
    }

    /// The control messages, each with its header (cmsg(3)); a timestamp may stand in front of the error.
    fn messages(mut control: &[u8]) -> impl Iterator<Item = &[u8]> {
        std::iter::from_fn(move || {
            let length = usize::from_ne_bytes(*control.first_chunk()?);
            let (message, _) = control.split_at_checked(length).filter(|_| length >= HEADER)?;
            control = control.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
            Some(message)
        })
    }

    /// Whether a control message says "port unreachable", and who says it: `cmsghdr`, `sock_extended_err`, an address (ip(7),
    /// IP_RECVERR).
    fn error_of(control: &[u8]) -> Option<(bool, Option<IpAddr>)> {
        let word = |at: usize| Some(i32::from_ne_bytes(*control.get(at..)?.first_chunk()?));
        let data = HEADER;
        let kind = (word(size_of::<usize>())?, word(size_of::<usize>() + 4)?);
        if !matches!(kind, (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)) {
            return None;
        }
        let origin = *control.get(data + 4)?;
        let from_outside = matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
        let refused = from_outside && word(data)? == libc::ECONNREFUSED;
        let by = control.get(data + size_of::<libc::sock_extended_err>()..).and_then(address);
        Some((refused, by.map(|address| address.ip())))
    }

    /// `sockaddr_in` or `sockaddr_in6`.
    fn address(bytes: &[u8]) -> Option<SocketAddr> {
        let family = i32::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        let ip = match family {
            libc::AF_INET => IpAddr::from(*bytes.get(4..)?.first_chunk::<4>()?),
            libc::AF_INET6 => IpAddr::from(*bytes.get(8..)?.first_chunk::<16>()?),
            _ => return None,
        };
        Some(unmapped(SocketAddr::new(ip, port)))
    }
}

#[cfg(not(target_os = "linux"))]
mod queue {
    use super::{Report, UdpSocket};

    /// Not known how: a peer that has ended without a goodbye is given up when patience is over.
    pub fn read(_: &UdpSocket, _: &mut [u8]) -> Option<Report> {
        None
    }
}

/// The start of a keyed ping that holds its transaction.
const QUOTED: usize = 64;
/// Entries looked at in one turn.
const MOST_AT_ONCE: usize = 64;
