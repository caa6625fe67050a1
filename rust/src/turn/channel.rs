//! ChannelData (RFC 8656 section 12.4): number, length, and the datagram; over TCP padded to a multiple of four.

/// Number and length.
pub const HEADER: usize = 4;

/// The numbers that may be bound: those of RFC 5766 section 11, of which clients older than RFC 8656 (coturn's among them)
/// choose any. Newer ones stay below 0x5000.
pub fn is_number(channel: u16) -> bool {
    (0x4000..=0x7ffe).contains(&channel)
}

pub fn header(channel: u16, length: u16) -> [u8; HEADER] {
    let (channel, length) = (channel.to_be_bytes(), length.to_be_bytes());
    [channel[0], channel[1], length[0], length[1]]
}

/// Number and length of what begins with a channel number.
pub fn read_header(bytes: &[u8]) -> Option<(u16, usize)> {
    let [a, b, c, d] = *bytes.first_chunk()?;
    let channel = u16::from_be_bytes([a, b]);
    is_number(channel).then_some((channel, usize::from(u16::from_be_bytes([c, d]))))
}

/// A datagram that carries ChannelData: number and length of the payload behind the header. What follows it is padding.
pub fn read_datagram(datagram: &[u8]) -> Option<(u16, usize)> {
    read_header(datagram).filter(|(_, length)| HEADER + length <= datagram.len())
}

/// How many bytes the next message of a TCP stream takes, padding included; `None`: not known yet.
/// `Err`: neither STUN nor ChannelData, so where the next message begins cannot be known.
pub fn frame_length(stream: &[u8]) -> Result<Option<usize>, NotAFrame> {
    let Some(&[a, b, c, d]) = stream.first_chunk() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([c, d]));
    match a {
        0x00..=0x3f if length.is_multiple_of(4) => Ok(Some(STUN_HEADER + length)),
        0x40..=0x7f if is_number(u16::from_be_bytes([a, b])) => Ok(Some(HEADER + length.next_multiple_of(4))),
        _ => Err(NotAFrame),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAFrame;

/// RFC 8489 section 5.
const STUN_HEADER: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut datagram = header(0x4001, 5).to_vec();
        datagram.extend_from_slice(b"hello");
        assert_eq!(read_datagram(&datagram), Some((0x4001, 5)));
        datagram.extend_from_slice(&[0; 3]);
        assert_eq!(read_datagram(&datagram), Some((0x4001, 5)), "padding is allowed over UDP too");
        assert_eq!(read_datagram(&datagram[..8]), None, "shorter than it says");
        assert_eq!(read_datagram(&[0x7f, 0xff, 0, 0]), None, "a reserved number");
        assert_eq!(read_datagram(&[0x40, 0, 0]), None);
    }

    #[test]
    fn frames_of_a_stream_are_padded() {
        assert_eq!(frame_length(&[0x40, 0, 0]), Ok(None));
        assert_eq!(frame_length(&[0x40, 0, 0, 5]), Ok(Some(12)));
        assert_eq!(frame_length(&[0x7f, 0xfe, 0, 8]), Ok(Some(12)));
        assert_eq!(frame_length(&[0, 1, 0, 8]), Ok(Some(28)));
        assert_eq!(frame_length(&[0, 1, 0, 7]), Err(NotAFrame));
        assert_eq!(frame_length(&[0x80, 0, 0, 8]), Err(NotAFrame));
        assert_eq!(frame_length(&[0x16, 3, 1, 2]), Err(NotAFrame), "TLS");
    }
}
