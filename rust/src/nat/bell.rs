//! The system says at once that something about interfaces, addresses or routes has changed. What has changed is read elsewhere:
//! this is no more than a bell.
//!
//! On Linux it is a netlink socket (rtnetlink(7)), which needs no rights. Elsewhere, and where a sandbox refuses such sockets, there
//! is none, and the interfaces are read more often instead.

#[cfg(target_os = "linux")]
pub use linux::Bell;
#[cfg(not(target_os = "linux"))]
pub use nowhere::Bell;

#[cfg(target_os = "linux")]
mod linux {
    use std::io::{self, Read};

    use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};
    use tokio::io::unix::AsyncFd;
    use tokio::io::Interest;

    pub struct Bell {
        socket: AsyncFd<Socket>,
    }

    impl Bell {
        /// Inside a tokio runtime. Errors: netlink sockets are refused.
        pub fn hang() -> io::Result<Self> {
            let route = Protocol::from(libc::NETLINK_ROUTE);
            let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(route))?;
            socket.set_nonblocking(true)?;
            socket.bind(&groups(GROUPS))?;
            // SAFETY: the socket is the only owner of its descriptor, and closes it when it is dropped, after the registration.
            #[allow(unsafe_code)]
            let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
            Ok(Self { socket })
        }

        /// Waits until something has changed. Errors: it will not ring any more.
        pub async fn rung(&self) -> io::Result<()> {
            loop {
                let mut ready = self.socket.readable().await?;
                let mut rang = false;
                for _ in 0..MAX_MESSAGES {
                    let mut message = [0; MESSAGE];
                    match ready.try_io(|socket| socket.get_ref().read(&mut message)) {
                        Ok(Ok(_)) => rang = true,
                        // more came than the socket holds: something has changed for sure
                        Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => rang = true,
                        Ok(Err(error)) => return Err(error),
                        Err(_would_block) => break,
                    }
                }
                if rang {
                    return Ok(());
                }
            }
        }
    }

    /// The address of a socket that hears these multicast groups. There is no safe wrapper.
    fn groups(groups: u32) -> SockAddr {
        let mut storage = SockAddrStorage::zeroed();
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: a storage has room for every kind of address, zeros are a valid `sockaddr_nl`, and `length` is that of what is
        // written.
        #[allow(unsafe_code)]
        unsafe {
            let address = storage.view_as::<libc::sockaddr_nl>();
            address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
            address.nl_groups = groups;
            SockAddr::new(storage, length)
        }
    }

    /// RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE and
    /// RTNLGRP_IPV6_RULE (rtnetlink.h): links, addresses, routes, and which table of routes is asked (VPNs change that).
    const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
    /// What is longer is cut, and nobody reads it.
    const MESSAGE: usize = 512;
    /// Read at most before the interfaces are looked at.
    const MAX_MESSAGES: usize = 1_024;

    #[cfg(test)]
    mod tests {
        use std::time::Duration;

        use super::*;

        #[tokio::test]
        async fn it_hangs_without_rights_and_does_not_ring_by_itself() {
            let bell = Bell::hang().unwrap();
            // other programs of this machine may ring it; it must not end
            match tokio::time::timeout(Duration::from_millis(50), bell.rung()).await {
                Ok(rang) => rang.unwrap(),
                Err(_silence) => {}
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod nowhere {
    use std::io;

    pub struct Bell;

    impl Bell {
        pub fn hang() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub async fn rung(&self) -> io::Result<()> {
            std::future::pending().await
        }
    }
}
