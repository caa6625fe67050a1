//! Which interface of this machine a datagram leaves by. The system's routes decide that; here one may be preferred for a question, and
//! it can be asked by which one something would leave.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The number of the interface that has this address.
pub fn interface_with(ip: IpAddr) -> Option<u32> {
    if_addrs::get_if_addrs().ok()?.into_iter().find(|one| one.ip() == ip).and_then(|one| one.index)
}

/// Whether what is sent to `to` with the source address `from` leaves by the interface that has this address, as far as the system
/// says. Without rules about sources it leaves by the route to `to`, and a NAT there translates it to an address that nobody asked.
pub fn leaves_by_its_own(to: SocketAddr, from: IpAddr) -> bool {
    let (Some(own), Some(by)) = (known_interface_with(from), route::interface_towards(to.ip(), from)) else {
        return true;
    };
    own == by
}

/// The same as [`interface_with`], read anew every few seconds: strangers choose how often it is asked.
fn known_interface_with(ip: IpAddr) -> Option<u32> {
    static KNOWN: Mutex<Vec<(IpAddr, Option<u32>, Instant)>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(_, _, read)| read.elapsed() < KNOWN_FOR);
    if let Some((_, number, _)) = known.iter().find(|(known, ..)| *known == ip) {
        return *number;
    }
    let number = interface_with(ip);
    if known.len() < MAX_KNOWN {
        known.push((ip, number, Instant::now()));
    }
    number
}

/// Questions of this socket leave by this interface, if a route leads out by it; `None`: as the system's routes say. IPv4 alone:
/// there NATs are.
pub fn prefer(socket: &impl Descriptor, interface: Option<u32>) -> io::Result<()> {
    option::set(socket, interface.unwrap_or(0))
}

#[cfg(unix)]
pub use std::os::fd::AsRawFd as Descriptor;
#[cfg(windows)]
pub use std::os::windows::io::AsRawSocket as Descriptor;

#[cfg(target_os = "linux")]
mod option {
    use super::io;
    use std::os::fd::AsRawFd;

    /// IP_UNICAST_IF (ip(7)). There is no safe wrapper.
    pub fn set(socket: &impl AsRawFd, interface: u32) -> io::Result<()> {
        // in the order of the network
        let value = interface.to_be();
        // SAFETY: the descriptor is open for as long as the socket is borrowed, and the kernel reads four bytes, of which it gets the
        // place and the size.
        #[allow(unsafe_code)]
        let done = unsafe {
            let (value, size) = (std::ptr::from_ref(&value).cast(), size_of::<u32>() as libc::socklen_t);
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, IP_UNICAST_IF, value, size)
        };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// linux/in.h.
    const IP_UNICAST_IF: libc::c_int = 50;
}

#[cfg(not(target_os = "linux"))]
mod option {
    use super::{io, Descriptor};

    /// Not known how: questions leave as the system's routes say.
    pub fn set(_: &impl Descriptor, interface: u32) -> io::Result<()> {
        if interface == 0 {
            return Ok(());
        }
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(target_os = "linux")]
mod route {
    use super::IpAddr;
    use std::io::Read;
    use std::time::Duration;

    use socket2::{Domain, Protocol, Socket, Type};

    /// By which interface a datagram between these two leaves: RTM_GETROUTE (rtnetlink(7)), which needs no rights.
    pub fn interface_towards(to: IpAddr, from: IpAddr) -> Option<u32> {
        let (domain, netlink) = (Domain::from(libc::AF_NETLINK), Protocol::from(libc::NETLINK_ROUTE));
        let mut socket = Socket::new(domain, Type::RAW, Some(netlink)).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).ok()?;
        socket.send(&question(to, from)?).ok()?;
        let mut answer = [0; ANSWER];
        let length = socket.read(&mut answer).ok()?;
        interface_in(answer.get(..length)?)
    }

    fn question(to: IpAddr, from: IpAddr) -> Option<Vec<u8>> {
        let (family, bits, mut attributes) = match (to, from) {
            (IpAddr::V4(to), IpAddr::V4(from)) => {
                (libc::AF_INET, 32, [attribute(RTA_DST, &to.octets()), attribute(RTA_SRC, &from.octets())].concat())
            }
            (IpAddr::V6(to), IpAddr::V6(from)) => {
                (libc::AF_INET6, 128, [attribute(RTA_DST, &to.octets()), attribute(RTA_SRC, &from.octets())].concat())
            }
            _ => return None,
        };
        let mut message = Vec::with_capacity(HEADERS + attributes.len());
        message.extend_from_slice(&u32::try_from(HEADERS + attributes.len()).ok()?.to_ne_bytes());
        message.extend_from_slice(&libc::RTM_GETROUTE.to_ne_bytes());
        message.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // number and sender; then `rtmsg`: family, bits of the destination and of the source, and nothing else
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[u8::try_from(family).ok()?, bits, bits, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        message.append(&mut attributes);
        Some(message)
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        // both addresses are multiples of four bytes
        let length = (4 + value.len()) as u16;
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
    }

    fn interface_in(answer: &[u8]) -> Option<u32> {
        let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
        let length = u32::from_ne_bytes(*answer.first_chunk()?) as usize;
        let mut rest = answer.get(HEADERS..length).filter(|_| kind == libc::RTM_NEWROUTE)?;
        while let Some([a, b, c, d]) = rest.first_chunk() {
            let (length, kind) = (usize::from(u16::from_ne_bytes([*a, *b])), u16::from_ne_bytes([*c, *d]));
            let value = rest.get(4..length)?;
            if kind == RTA_OIF {
                return Some(u32::from_ne_bytes(*value.first_chunk()?));
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        None
    }

    /// `nlmsghdr` and `rtmsg`.
    const HEADERS: usize = 16 + 12;
    const RTA_DST: u16 = 1;
    const RTA_SRC: u16 = 2;
    const RTA_OIF: u16 = 4;
    /// A route has some ten attributes of a few bytes.
    const ANSWER: usize = 1_024;
    /// The kernel answers within the call that asks.
    const PATIENCE: Duration = Duration::from_millis(20);

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn odd_answers_say_nothing() {
            let route = |attributes: &[u8]| {
                let length = (HEADERS + attributes.len()) as u32;
                let head = [&length.to_ne_bytes()[..], &libc::RTM_NEWROUTE.to_ne_bytes(), &[0; 22]].concat();
                [head, attributes.to_vec()].concat()
            };
            let good = route(&[attribute(1, &[0; 4]), attribute(RTA_OIF, &7_u32.to_ne_bytes())].concat());
            assert_eq!(interface_in(&good), Some(7));
            for end in 0..good.len() {
                assert_eq!(interface_in(&good[..end]), None, "cut at {end}");
            }
            for odd in [vec![], route(&[]), route(&[0; 4]), route(&[3, 0, 4, 0]), route(&attribute(RTA_OIF, &[1, 2]))] {
                assert_eq!(interface_in(&odd), None, "{odd:?}");
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod route {
    use super::IpAddr;

    /// Not known how.
    pub fn interface_towards(_: IpAddr, _: IpAddr) -> Option<u32> {
        None
    }
}

/// As often as the interfaces are read in any case (`HostConfig::watch_every`).
const KNOWN_FOR: Duration = Duration::from_secs(5);
/// Addresses of one machine; more are looked up each time.
const MAX_KNOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_leaves_by_itself() {
        let near: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let number = interface_with(near.ip()).unwrap();
        assert!(leaves_by_its_own(near, near.ip()));
        #[cfg(target_os = "linux")]
        assert_eq!(route::interface_towards(near.ip(), near.ip()), Some(number));
        assert_eq!(interface_with("192.0.2.1".parse().unwrap()), None);
        assert!(number > 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_interface_is_preferred_and_let_go_of() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        prefer(&socket, interface_with("127.0.0.1".parse().unwrap())).unwrap();
        prefer(&socket, None).unwrap();
        let both = std::net::UdpSocket::bind("[::]:0");
        both.map(|socket| prefer(&socket, Some(1)).unwrap()).unwrap_or_default();
    }
}
