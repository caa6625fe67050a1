//! How what is in the driver's buffer leaves: over the socket or a relay, now or when there is room.

use std::net::IpAddr;

use super::super::outside::Question;
use super::super::refused::Refusal;
use super::super::socket::may_be_gone;
use super::*;
use crate::addr::Datagrams;

impl Driver<'_> {
    /// Sends what is in `self.out`. A full socket keeps it for later; what the network refuses is lost, as datagrams are.
    pub(super) fn send(&mut self, core: &mut Core, route: Route, segment_size: Option<usize>) -> Sent {
        let source = core.locals.source(route);
        self.send_from(core, route, source, segment_size, false)
    }

    /// The same from this address of ours. `may_cut`: see [`Socket::send`].
    pub(super) fn send_from(
        &mut self,
        core: &mut Core,
        route: Route,
        source: Option<IpAddr>,
        segment_size: Option<usize>,
        may_cut: bool,
    ) -> Sent {
        if route.via.is_relay() {
            return self.carry(core, route, segment_size);
        }
        if self.blocked.is_some() {
            core.stats.send_errors += 1;
            return Sent::Other;
        }
        // a path whose socket has just been closed is about to be given up
        let Some(socket) = self.sockets.find(route.via) else { return Sent::Other };
        let sent = socket.send(route.to, source, &self.out, segment_size, may_cut);
        // the runtime does not wake anybody for these, but the next datagram hears of them, and a silent peer is pinged on
        // one at a time: anybody can have them sent here
        if let Some(Refusal { by, to, transaction }) = socket.refusal() {
            core.paths.handle_refusal(self.inner.clock.now(), by, to, &transaction);
        }
        match sent {
            Ok(()) => {
                core.stats.datagrams_out += segment_size.map_or(1, |size| self.out.len().div_ceil(size)) as u64;
                core.stats.bytes_out += self.out.len() as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.blocked = Some(Blocked { route, source, contents: self.out.clone(), segment_size, may_cut });
            }
            // perhaps the address is gone: the system has another
            Err(error) if may_be_gone(source, &error) => {
                source.inspect(|gone| core.locals.forget_address(*gone));
                return self.send_from(core, route, None, segment_size, may_cut);
            }
            Err(error) => {
                core.stats.send_errors += 1;
                tracing::debug!(to = ?route, %error, "datagram not sent");
                if error.raw_os_error() == Some(MESSAGE_SIZE) {
                    return Sent::TooLarge;
                }
            }
        }
        Sent::Other
    }

    /// Sends what is asked by another interface than the system would take. What does not leave now is asked again.
    pub(super) fn send_questions(&mut self, core: &mut Core) {
        while let Some(Question { to, interface, transaction }) = core.questions.poll_transmit() {
            self.out.clear();
            stun::encode_ping(&mut self.out, transaction, None);
            match self.sockets.main().send_through(to, interface, &self.out) {
                Ok(()) => core.stats.datagrams_out += 1,
                Err(error) => tracing::debug!(%to, interface, %error, "not asked"),
            }
        }
    }

    /// The same through a relay.
    pub(super) fn carry(&self, core: &mut Core, route: Route, segment_size: Option<usize>) -> Sent {
        let stride = segment_size.unwrap_or(self.out.len()).max(1);
        let datagrams = Datagrams { peer: route.to, contents: self.out.clone(), stride };
        if self.inner.wires.send(route.via, datagrams) {
            core.stats.datagrams_out += self.out.len().div_ceil(stride) as u64;
            core.stats.bytes_out += self.out.len() as u64;
        } else {
            core.stats.send_errors += 1;
        }
        Sent::Other
    }

    /// The same for datagrams that are too large for the path. They are few: what does not leave now is sent again.
    pub(super) fn send_in_pieces(&mut self, core: &mut Core, route: Route, segment_size: Option<usize>) {
        let Some(socket) = self.sockets.find(route.via) else { return };
        match socket.send_in_pieces(route.to, core.locals.source(route), &self.out, segment_size) {
            Ok(()) => core.stats.datagrams_out += 1,
            Err(error) => {
                core.stats.send_errors += 1;
                tracing::debug!(to = ?route, %error, "datagram not sent in pieces");
            }
        }
    }

    pub(super) fn send_blocked(&mut self) {
        let Some(Blocked { route, source, contents, segment_size, may_cut }) = self.blocked.take() else { return };
        self.out = contents;
        let inner = self.inner;
        self.send_from(&mut inner.core(), route, source, segment_size, may_cut);
    }
}
