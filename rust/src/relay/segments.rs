//! How large the segments of TCP to a relay may be.
//!
//! A tunnel that carries 1280 bytes, and a firewall that lets no "packet too big" back: TCP sends 1500 bytes again and again, and the TLS
//! handshake with its kilobytes never ends. Nobody between does anything about it (no MSS clamp) as soon as such a network is left alone
//! with port 443. Segments that fit everywhere cost a fifth more of them, and TCP to a relay is the last way out, not the quickest.

#[cfg(unix)]
use socket2::SockRef;

/// To be called before the connection is there: on one that listens it holds for all that come of it, and either end's word holds
/// for both directions. A system that refuses leaves things as they are.
#[cfg(unix)]
pub(super) fn limit<S: std::os::fd::AsFd>(socket: &S) {
    if let Err(error) = SockRef::from(socket).set_tcp_mss(MOST) {
        tracing::debug!(%error, "segments to relays are as large as the route says");
    }
}

/// The system has no such option.
#[cfg(not(unix))]
pub(super) fn limit<S>(_: &S) {}

/// The least MTU of IPv6 (RFC 8200 section 5), which tunnels come down to, without the headers of IPv6 (40) and TCP (20).
#[cfg(unix)]
pub(super) const MOST: u32 = 1_220;

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    /// The segment of each end of a connection over loopback, whose MTU is 64 KiB.
    fn segments(listener_limits: bool, client_limits: bool) -> (u32, u32) {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if listener_limits {
            limit(&listener);
        }
        listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(1).unwrap();
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if client_limits {
            limit(&client);
        }
        client.connect(&listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        (client.tcp_mss().unwrap(), accepted.tcp_mss().unwrap())
    }

    #[test]
    fn either_end_keeps_the_segments_of_both_small() {
        let (client, accepted) = segments(false, false);
        assert!(client > MOST && accepted > MOST, "{client}, {accepted}: loopback shows nothing");
        for (listener_limits, client_limits) in [(true, false), (false, true), (true, true)] {
            let (client, accepted) = segments(listener_limits, client_limits);
            assert!(client <= MOST && accepted <= MOST, "{client}, {accepted}");
        }
    }
}
