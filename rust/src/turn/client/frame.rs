//! Channel data: datagrams with a header of four bytes that names the peer (RFC 8656 sections 12.4 and 12.5).

use std::net::SocketAddr;

use crate::addr::Datagrams;

/// Bytes that leave together: one write to a stream, or equal datagrams of `segment` bytes, the last perhaps shorter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub contents: Vec<u8>,
    pub segment: usize,
    /// Datagrams for peers in it; none in a request.
    pub datagrams: u64,
}

impl Transmit {
    pub(super) fn request(message: Vec<u8>) -> Self {
        Self { segment: message.len(), contents: message, datagrams: 0 }
    }
}

/// Puts the header of a channel before each datagram. Over a stream frames are padded to a multiple of four.
pub(super) fn wrap(channel: u16, datagrams: &Datagrams, stream: bool) -> Transmit {
    let stride = datagrams.stride.clamp(1, MAX_PAYLOAD);
    let count = datagrams.contents.len().div_ceil(stride);
    let mut contents = Vec::with_capacity(datagrams.contents.len() + count * (HEADER + 3));
    for datagram in datagrams.contents.chunks(stride) {
        contents.extend_from_slice(&channel.to_be_bytes());
        contents.extend_from_slice(&u16::try_from(datagram.len()).unwrap_or(u16::MAX).to_be_bytes());
        contents.extend_from_slice(datagram);
        if stream {
            contents.resize(contents.len().next_multiple_of(4), 0);
        }
    }
    Transmit { contents, segment: stride + HEADER, datagrams: count as u64 }
}

/// The channel and the datagram of a frame, which may be followed by padding; `None`: not a frame, or cut short.
pub(super) fn unwrap(packet: &[u8]) -> Option<(u16, &[u8])> {
    let &[a, b, c, d, ref rest @ ..] = packet else { return None };
    let channel = u16::from_be_bytes([a, b]);
    let length = usize::from(u16::from_be_bytes([c, d]));
    CHANNELS.contains(&channel).then_some(())?;
    Some((channel, rest.get(..length)?))
}

/// How many bytes the next frame or message of a stream takes. `Ok(None)`: that is not known yet.
pub(super) fn next_length(stream: &[u8]) -> Result<Option<usize>, NotTurn> {
    let &[first, _, high, low, ..] = stream else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    match first >> 6 {
        0b00 => Ok(Some(STUN_HEADER + length)),
        0b01 => Ok(Some(HEADER + length.next_multiple_of(4))),
        _ => Err(NotTurn),
    }
}

/// Hands over the whole frames and messages that a stream begins with, and takes them out of it. What remains is less than one:
/// below 64 KiB.
pub fn take_frames(stream: &mut Vec<u8>, mut each: impl FnMut(&[u8])) -> Result<(), NotTurn> {
    let mut taken = 0;
    let end = loop {
        let rest = stream.get(taken..).unwrap_or_default();
        match next_length(rest) {
            Ok(Some(length)) if length <= rest.len() => {
                each(&rest[..length]);
                taken += length;
            }
            other => break other.map(|_| ()),
        }
    };
    stream.drain(..taken);
    end
}

/// The stream holds something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTurn;

/// Datagrams one after the other become batches: of one peer, of one size, the last perhaps shorter.
#[derive(Debug, Default)]
pub struct Batches {
    open: Option<Datagrams>,
    done: Vec<Datagrams>,
}

impl Batches {
    pub fn push(&mut self, peer: SocketAddr, datagram: &[u8]) {
        if datagram.is_empty() {
            return; // uTP and STUN have none such, and a batch cannot say it
        }
        if let Some(open) = &mut self.open {
            let whole = open.contents.len().is_multiple_of(open.stride);
            let room = open.contents.len() + datagram.len() <= MAX_PAYLOAD;
            if open.peer == peer && whole && room && datagram.len() <= open.stride {
                open.contents.extend_from_slice(datagram);
                return;
            }
        }
        self.done.extend(self.open.take());
        let mut contents = Vec::with_capacity(datagram.len());
        contents.extend_from_slice(datagram);
        self.open = Some(Datagrams { peer, contents, stride: datagram.len() });
    }

    /// What has come together.
    pub fn drain(&mut self) -> impl Iterator<Item = Datagrams> + '_ {
        self.done.extend(self.open.take());
        self.done.drain(..)
    }
}

/// RFC 8656 section 12: the numbers of channels.
pub(super) const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x4fff;
/// RFC 8656 section 12.4: number and length.
const HEADER: usize = 4;
/// RFC 8489 section 5.
const STUN_HEADER: usize = 20;
/// What the length of 16 bits can say. uTP stays far below: one datagram is 1448 bytes at most.
const MAX_PAYLOAD: usize = u16::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    #[test]
    fn a_stream_of_something_else_is_noticed() {
        assert_eq!(next_length(&[0x16, 3, 1]), Ok(None));
        assert_eq!(next_length(b"HTTP"), Ok(Some(4 + 0x5450)));
        assert_eq!(next_length(&[0x80, 0, 0, 0]), Err(NotTurn));
        assert_eq!(next_length(&[0xff; 20]), Err(NotTurn));
        assert_eq!(next_length(&[0x01, 0x03, 0, 8]), Ok(Some(28)));
        assert_eq!(next_length(&[0x40, 0, 0, 5]), Ok(Some(12)));
    }

    #[test]
    fn frames_that_are_none() {
        assert_eq!(unwrap(&[0x40, 0, 0]), None);
        assert_eq!(unwrap(&[0x40, 0, 0, 2, 9]), None);
        assert_eq!(unwrap(&[0x50, 0, 0, 0]), None);
        assert_eq!(unwrap(&[0x40, 1, 0, 1, 9, 0, 0, 0]), Some((0x4001, &[9][..])));
    }

    proptest! {
        #[test]
        fn what_is_wrapped_comes_out_again(stride in 1_usize..1500, length in 1_usize..20_000, stream: bool) {
            let contents: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let datagrams = Datagrams { peer: peer(1), contents: contents.clone(), stride };
            let sent = wrap(0x4abc, &datagrams, stream);
            prop_assert_eq!(sent.datagrams as usize, length.div_ceil(stride));
            let mut batches = Batches::default();
            let mut rest = &sent.contents[..];
            while !rest.is_empty() {
                let size = match stream {
                    true => next_length(rest).unwrap().unwrap(),
                    false => sent.segment.min(rest.len()),
                };
                let (frame, behind) = rest.split_at(size);
                let (channel, datagram) = unwrap(frame).unwrap();
                prop_assert_eq!(channel, 0x4abc);
                batches.push(peer(1), datagram);
                rest = behind;
            }
            let got: Vec<_> = batches.drain().collect();
            prop_assert_eq!(got.len(), 1);
            prop_assert_eq!(&got[0].contents, &contents);
            prop_assert_eq!(got[0].stride, stride.min(length));
        }

        #[test]
        fn batches_keep_order_sizes_and_peers(datagrams in vec((0_u16..3, 0_usize..4), 0..60)) {
            let mut batches = Batches::default();
            for (port, length) in &datagrams {
                batches.push(peer(*port), &vec![*length as u8; *length]);
            }
            let mut out = Vec::new();
            for batch in batches.drain() {
                out.extend(batch.contents.chunks(batch.stride).map(|one| (batch.peer.port(), one.len())));
            }
            let wanted: Vec<_> = datagrams.into_iter().filter(|(_, length)| *length > 0).collect();
            prop_assert_eq!(out, wanted);
        }
    }
}
