//! ChannelData in bulk: which frames go to the same peer with the same size, so that they leave in one system call.

use super::port::MAX_PAYLOAD;
use crate::turn::channel::{header, HEADER};

/// Where the payload of one ChannelData message lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    pub channel: u16,
    pub start: usize,
    pub length: usize,
}

/// Frames from the front that may leave together: of one channel and one size, the last perhaps smaller; no more than one
/// call sends.
pub fn run(frames: &[Frame]) -> usize {
    let Some(first) = frames.first() else { return 0 };
    let (mut count, mut bytes) = (0, 0);
    for frame in frames {
        bytes += frame.length;
        let other = frame.channel != first.channel || frame.length > first.length;
        if other || frame.length == 0 || bytes > MAX_PAYLOAD {
            break;
        }
        count += 1;
        if frame.length < first.length {
            break;
        }
    }
    // an empty datagram leaves alone
    count.max(1)
}

/// Moves the payloads of a run together, and says where they lie then.
pub fn join(buffer: &mut [u8], run: &[Frame]) -> std::ops::Range<usize> {
    let Some(first) = run.first() else { return 0..0 };
    let mut end = first.start + first.length;
    for frame in run.iter().skip(1) {
        buffer.copy_within(frame.start..frame.start + frame.length, end);
        end += frame.length;
    }
    first.start..end
}

/// Puts a header before each of the datagrams of `stride` bytes. Over a stream each is padded.
pub fn wrap(out: &mut Vec<u8>, channel: u16, contents: &[u8], stride: usize, padded: bool) {
    let stride = stride.max(1);
    out.reserve(contents.len() + contents.len().div_ceil(stride) * (HEADER + PADDING));
    for datagram in contents.chunks(stride) {
        out.extend_from_slice(&header(channel, u16::try_from(datagram.len()).unwrap_or(u16::MAX)));
        out.extend_from_slice(datagram);
        if padded {
            out.resize(out.len().next_multiple_of(4), 0);
        }
    }
    if contents.is_empty() {
        out.extend_from_slice(&header(channel, 0));
    }
}

/// At most.
const PADDING: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(channel: u16, start: usize, length: usize) -> Frame {
        Frame { channel, start, length }
    }

    #[test]
    fn a_run_ends_with_its_peer_or_its_size() {
        let one = |length| frame(0x4000, 0, length);
        assert_eq!(run(&[]), 0);
        assert_eq!(run(&[one(5), one(5), one(5)]), 3);
        assert_eq!(run(&[one(5), one(5), one(3), one(5)]), 3, "the last may be shorter");
        assert_eq!(run(&[one(5), one(6)]), 1, "none may be longer");
        assert_eq!(run(&[one(5), frame(0x4001, 0, 5)]), 1);
        assert_eq!(run(&[one(5), one(0), one(0)]), 1, "an empty one cannot be a segment");
        assert_eq!(run(&[one(0), one(0)]), 1);
        assert_eq!(run(&[one(1_000); 100]), 65, "65,507 bytes at most");
    }

    #[test]
    fn what_is_wrapped_can_be_joined_again() {
        for (padded, step) in [(false, 4 + 5), (true, 4 + 8)] {
            let payload: Vec<u8> = (0..13).collect();
            let mut wire = vec![];
            wrap(&mut wire, 0x4001, &payload, 5, padded);
            let frames = [frame(0x4001, 4, 5), frame(0x4001, 4 + step, 5), frame(0x4001, 4 + 2 * step, 3)];
            assert_eq!(run(&frames), 3);
            let range = join(&mut wire, &frames);
            assert_eq!(wire[range], payload);
        }
        let mut wire = vec![];
        wrap(&mut wire, 0x4001, &[], 1, true);
        assert_eq!(wire, [0x40, 1, 0, 0]);
    }
}
