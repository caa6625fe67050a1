//! The packets of BEP 29: a checked view of what arrived, and writers for what leaves. docs/protocol.md section 3.

use std::fmt;

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 20;

/// The five packet types, the high nibble of the first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Data = 0,
    Fin = 1,
    State = 2,
    Reset = 3,
    Syn = 4,
}

/// The fixed header, without the id of the first extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub connection_id: u16,
    /// Sender's clock in microseconds; 0 is read as "none" by deployed programs and never sent.
    pub timestamp: u32,
    /// Arrival minus timestamp of the last packet received, in microseconds; 0 = none.
    pub timestamp_difference: u32,
    /// Free bytes of the receive buffer.
    pub window: u32,
    pub seq: u16,
    pub ack: u16,
}

/// What the packet tells of data received beyond `ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sack<'a> {
    None,
    /// Extension 1: bit i (least significant first) is sequence number ack + 2 + i.
    Bits(&'a [u8]),
    /// Extension 0x4C: pairs of u16, first received and the one after the last.
    Ranges(&'a [u8]),
}

/// A packet whose every byte has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub header: Header,
    pub sack: Sack<'a>,
    /// What the sender said of itself in keynet's capability extension, if it has it.
    pub capability: Option<Capability>,
    /// It left before the sender had heard of us: what it acknowledges was agreed beforehand.
    pub early: Option<Early>,
    /// What shows whose it is.
    pub tag: Option<Tag>,
    pub payload: &'a [u8],
}

/// Eight bytes that only the two ends of a connection can compute; see [`super::TagKeys`].
pub type Tag = [u8; 8];

/// What a keynet node says of itself in SYN and SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// How much its UDP socket holds while nobody reads it, in units of [`BURST_UNIT`]; 0 = not said.
    burst: u8,
}

impl Capability {
    /// `burst`: bytes of payload that the socket's buffer is sure to hold.
    pub fn new(burst: Option<usize>) -> Self {
        Self { burst: burst.map_or(0, |bytes| u8::try_from(bytes / BURST_UNIT).unwrap_or(u8::MAX).max(1)) }
    }

    /// Bytes that the peer's socket holds; `None` = not said.
    pub fn burst(self) -> Option<u64> {
        (self.burst > 0).then(|| u64::from(self.burst) * BURST_UNIT as u64)
    }
}

/// On DATA that follows its SYN at once: which SYN that was, and the proof that its sender has a key which we share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Early {
    pub syn_seq: u16,
    pub tag: [u8; 8],
}

impl Early {
    fn read(body: &[u8]) -> Option<Self> {
        let (&[high, low], tag) = body.split_first_chunk()?;
        Some(Self { syn_seq: u16::from_be_bytes([high, low]), tag: tag.try_into().ok()? })
    }
}

/// Why a datagram is not a uTP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    Short,
    Version,
    Type,
    /// An extension runs past the end.
    Extension,
    /// DATA without payload, or another type with it.
    Payload,
}

impl<'a> Packet<'a> {
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (fixed, mut rest) = datagram.split_first_chunk::<HEADER_LEN>().ok_or(Malformed::Short)?;
        if fixed[0] & 0x0f != 1 {
            return Err(Malformed::Version);
        }
        let header = Header {
            kind: Kind::from_nibble(fixed[0] >> 4).ok_or(Malformed::Type)?,
            connection_id: u16::from_be_bytes([fixed[2], fixed[3]]),
            timestamp: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            timestamp_difference: u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]),
            window: u32::from_be_bytes([fixed[12], fixed[13], fixed[14], fixed[15]]),
            seq: u16::from_be_bytes([fixed[16], fixed[17]]),
            ack: u16::from_be_bytes([fixed[18], fixed[19]]),
        };
        let mut packet = Self::bare(header);
        let mut extension = fixed[1];
        while extension != 0 {
            let &[next, len, ref body @ ..] = rest else { return Err(Malformed::Extension) };
            let (body, after) = body.split_at_checked(len as usize).ok_or(Malformed::Extension)?;
            match extension {
                EXT_SACK if !body.is_empty() => packet.sack = Sack::Bits(body),
                EXT_RANGES => packet.sack = Sack::Ranges(body),
                EXT_EARLY => packet.early = Early::read(body),
                EXT_TAG => packet.tag = body.try_into().ok(),
                EXT_CAPABILITY if body.starts_with(&CAPABILITY) => {
                    packet.capability = Some(Capability { burst: body.get(CAPABILITY.len()).copied().unwrap_or(0) });
                }
                _ => {}
            }
            extension = next;
            rest = after;
        }
        // libtorrent may put a payload on FIN and RESET (its close reason): tolerated and ignored
        match header.kind {
            Kind::Data if rest.is_empty() => Err(Malformed::Payload),
            Kind::Data => Ok(Self { payload: rest, ..packet }),
            _ => Ok(packet),
        }
    }

    /// One without extensions and payload.
    pub fn bare(header: Header) -> Self {
        Self { header, sack: Sack::None, capability: None, early: None, tag: None, payload: &[] }
    }

    /// The ranges `[first, end)` of sequence numbers the packet reports beyond its ack, as wire numbers.
    pub fn sacked(&self) -> SackIter<'a> {
        SackIter { sack: self.sack, ack: self.header.ack, at: 0 }
    }
}

/// Iterator over reported ranges; see [`Packet::sacked`].
pub struct SackIter<'a> {
    sack: Sack<'a>,
    ack: u16,
    at: usize,
}

impl Iterator for SackIter<'_> {
    type Item = (u16, u16);

    fn next(&mut self) -> Option<(u16, u16)> {
        match self.sack {
            Sack::None => None,
            Sack::Ranges(body) => {
                let pair = body.get(self.at..self.at + 4)?;
                self.at += 4;
                Some((u16::from_be_bytes([pair[0], pair[1]]), u16::from_be_bytes([pair[2], pair[3]])))
            }
            Sack::Bits(body) => {
                let bit = |i: usize| body.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1);
                while self.at < body.len() * 8 && !bit(self.at) {
                    self.at += 1;
                }
                let first = self.at;
                while bit(self.at) {
                    self.at += 1;
                }
                let wire = |i: usize| self.ack.wrapping_add(2).wrapping_add(i as u16);
                (first < self.at).then(|| (wire(first), wire(self.at)))
            }
        }
    }
}

impl Kind {
    fn from_nibble(nibble: u8) -> Option<Self> {
        [Self::Data, Self::Fin, Self::State, Self::Reset, Self::Syn].get(nibble as usize).copied()
    }
}

impl Header {
    /// The 20 bytes, with `extension` as the id of the first extension.
    pub fn encode(&self, extension: u8) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = (self.kind as u8) << 4 | 1;
        bytes[1] = extension;
        bytes[2..4].copy_from_slice(&self.connection_id.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.timestamp.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.timestamp_difference.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.window.to_be_bytes());
        bytes[16..18].copy_from_slice(&self.seq.to_be_bytes());
        bytes[18..20].copy_from_slice(&self.ack.to_be_bytes());
        bytes
    }

    /// The packet without extensions, as STATE, FIN and RESET are mostly.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.tagged(None).write(out);
    }

    /// SYN or SYN-ACK: the capability hides behind the old extension 2, which every program skips (UTP.md 2.1).
    pub fn write_with_capability(&self, capability: Capability, out: &mut Vec<u8>) {
        self.tagged(None).write_with_capability(capability, out);
    }

    /// DATA that does not wait for the SYN-ACK: [`EARLY_LEN`] bytes longer.
    pub fn write_early(&self, early: &Early, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.encode(EXT_BITS));
        out.extend_from_slice(&[EXT_EARLY, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(&[0, 10]);
        out.extend_from_slice(&early.syn_seq.to_be_bytes());
        out.extend_from_slice(&early.tag);
    }

    /// STATE with a selective ack in bits.
    pub fn write_with_bits(&self, bits: &[u8], out: &mut Vec<u8>) {
        self.tagged(None).write_with_bits(bits, out);
    }

    /// STATE with a selective ack in ranges: only to a peer that showed the capability.
    pub fn write_with_ranges(&self, ranges: &[(u16, u16)], out: &mut Vec<u8>) {
        self.tagged(None).write_with_ranges(ranges, out);
    }

    /// The header followed by extensions that mean nothing and take `padding` bytes ([`MIN_PADDING`] at least).
    pub fn write_padded(&self, padding: usize, out: &mut Vec<u8>) {
        self.tagged(None).write_padded(padding, out);
    }

    /// With a tag in front of all other extensions: [`TAG_LEN`] bytes longer. Only to a peer that takes them: others drop what does
    /// not begin with an extension that they know.
    pub fn tagged(&self, tag: Option<Tag>) -> Tagged<'_> {
        Tagged { header: self, tag }
    }
}

/// A header to be written with its tag, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Tagged<'a> {
    header: &'a Header,
    tag: Option<Tag>,
}

impl Tagged<'_> {
    /// Without other extensions.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.write_before(0, out);
    }

    /// See [`Header::write_with_capability`]. Here the tag is the last extension.
    pub fn write_with_capability(&self, capability: Capability, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header.encode(EXT_BITS));
        out.extend_from_slice(&[EXT_CAPABILITY, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let [k, n, version] = CAPABILITY;
        let next = if self.tag.is_some() { EXT_TAG } else { 0 };
        out.extend_from_slice(&[next, 4, k, n, version, capability.burst]);
        if let Some(tag) = &self.tag {
            out.extend_from_slice(&[0, 8]);
            out.extend_from_slice(tag);
        }
    }

    /// STATE with a selective ack in bits; `bits` is padded to a multiple of 4 bytes, which some programs demand.
    pub fn write_with_bits(&self, bits: &[u8], out: &mut Vec<u8>) {
        let padded = bits.len().next_multiple_of(4);
        self.write_before(EXT_SACK, out);
        out.extend_from_slice(&[0, padded as u8]);
        out.extend_from_slice(bits);
        out.resize(out.len() + padded - bits.len(), 0);
    }

    /// See [`Header::write_with_ranges`].
    pub fn write_with_ranges(&self, ranges: &[(u16, u16)], out: &mut Vec<u8>) {
        let ranges = &ranges[..ranges.len().min(MAX_RANGES)];
        self.write_before(EXT_RANGES, out);
        out.extend_from_slice(&[0, (ranges.len() * 4) as u8]);
        for (first, end) in ranges {
            out.extend_from_slice(&first.to_be_bytes());
            out.extend_from_slice(&end.to_be_bytes());
        }
    }

    /// See [`Header::write_padded`]; the tag is not counted as padding.
    pub fn write_padded(&self, padding: usize, out: &mut Vec<u8>) {
        self.write_before(EXT_BITS, out);
        out.extend_from_slice(&[EXT_PADDING, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut left = padding.saturating_sub(10).max(2);
        while left > 0 {
            // a link takes 2 bytes and at most 255 of content; leave none or at least 2 for the next
            let link = if left > 257 { left.min(257).min(left - 2) } else { left };
            let next = if left > link { EXT_PADDING } else { 0 };
            out.extend_from_slice(&[next, (link - 2) as u8]);
            out.resize(out.len() + link - 2, 0);
            left -= link;
        }
    }

    /// Up to where the extension `next` begins.
    fn write_before(&self, next: u8, out: &mut Vec<u8>) {
        match &self.tag {
            None => out.extend_from_slice(&self.header.encode(next)),
            Some(tag) => {
                out.extend_from_slice(&self.header.encode(EXT_TAG));
                out.extend_from_slice(&[next, 8]);
                out.extend_from_slice(tag);
            }
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "shorter than a uTP header",
            Self::Version => "not uTP version 1",
            Self::Type => "unknown packet type",
            Self::Extension => "an extension runs past the end",
            Self::Payload => "DATA without payload",
        })
    }
}

const EXT_SACK: u8 = 1;
const EXT_BITS: u8 = 2;
const EXT_CAPABILITY: u8 = 0x4B;
const EXT_RANGES: u8 = 0x4C;
const EXT_EARLY: u8 = 0x4D;
const EXT_PADDING: u8 = 0x4E;
const EXT_TAG: u8 = 0x4F;
/// Magic and version. A later version must still understand version 1.
const CAPABILITY: [u8; 3] = [b'k', b'n', 1];
/// So that one byte reaches from the smallest of socket buffers to 4 MiB, beyond which nothing is gained.
const BURST_UNIT: usize = 16 << 10;
/// Bytes that the capability adds to SYN and SYN-ACK: an id-2 link and its own of 4 bytes.
pub const OFFER_LEN: usize = 2 + 8 + 2 + 4;
/// What one extension link holds: 60 x 4 = 240 of 255 bytes.
pub const MAX_RANGES: usize = 60;
/// One id-2 link and one with two and eight bytes.
pub const EARLY_LEN: usize = 22;
/// One link with eight bytes.
pub const TAG_LEN: usize = 10;
/// One id-2 link and one empty padding link.
pub const MIN_PADDING: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(kind: Kind) -> Header {
        Header {
            kind,
            connection_id: 0x1234,
            timestamp: 5,
            timestamp_difference: 6,
            window: 1 << 20,
            seq: 65_535,
            ack: 65_000,
        }
    }

    #[test]
    fn the_bytes_are_those_of_bep_29() {
        let mut out = Vec::new();
        Header { kind: Kind::Syn, seq: 1, ack: 0, ..header(Kind::Syn) }.write(&mut out);
        assert_eq!(out, [0x41, 0, 0x12, 0x34, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0x10, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_capability_follows_an_id_2_link() {
        let mut out = Vec::new();
        header(Kind::Syn).write_with_capability(Capability::new(Some(100_000)), &mut out);
        assert_eq!(out.len(), HEADER_LEN + OFFER_LEN);
        assert_eq!(out[1], 2, "libutp drops packets whose first extension id is 3 or more");
        assert_eq!(&out[20..22], [0x4B, 8]);
        let packet = Packet::parse(&out).unwrap();
        assert_eq!(packet.capability.and_then(Capability::burst), Some(6 * 16_384), "whole units, rounded down");
        assert_eq!(packet.header, header(Kind::Syn));
    }

    #[test]
    fn sack_bits_round_trip_and_any_length_is_taken() {
        for len in 1..=9 {
            let mut bits = vec![0u8; len];
            bits[0] = 0b1101;
            *bits.last_mut().unwrap() |= 0x80;
            let mut out = header(Kind::State).encode(1).to_vec();
            out.extend([0, len as u8]);
            out.extend(&bits);
            let packet = Packet::parse(&out).unwrap();
            let last = 65_002u16.wrapping_add(len as u16 * 8 - 1);
            let found: Vec<_> = packet.sacked().collect();
            assert_eq!(found[..2], [(65_002, 65_003), (65_004, 65_006)]);
            assert_eq!(found[2], (last, last.wrapping_add(1)));

            let mut padded = Vec::new();
            header(Kind::State).write_with_bits(&bits, &mut padded);
            assert_eq!((padded.len() - 22) % 4, 0);
            assert_eq!(Packet::parse(&padded).unwrap().sacked().collect::<Vec<_>>(), found);
        }
    }

    #[test]
    fn ranges_round_trip() {
        let ranges: Vec<_> = (0..70u16).map(|i| (i * 10, i * 10 + 3)).collect();
        let mut out = Vec::new();
        header(Kind::State).write_with_ranges(&ranges, &mut out);
        let packet = Packet::parse(&out).unwrap();
        assert_eq!(packet.sacked().collect::<Vec<_>>(), ranges[..MAX_RANGES]);
    }

    #[test]
    fn padding_takes_exactly_what_was_asked() {
        for padding in MIN_PADDING..1_600 {
            let mut out = Vec::new();
            header(Kind::Data).write_padded(padding, &mut out);
            assert_eq!(out.len(), HEADER_LEN + padding);
            out.push(7);
            let packet = Packet::parse(&out).unwrap();
            assert_eq!((packet.payload, packet.capability, packet.sack), (&[7u8][..], None, Sack::None));
        }
    }

    #[test]
    fn a_tag_goes_before_everything_else() {
        let (head, tag) = (header(Kind::State), [9, 8, 7, 6, 5, 4, 3, 2]);
        let (mut plain, mut bits, mut ranges, mut padded) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        head.tagged(Some(tag)).write(&mut plain);
        head.tagged(Some(tag)).write_with_bits(&[0b101], &mut bits);
        head.tagged(Some(tag)).write_with_ranges(&[(7, 9)], &mut ranges);
        head.tagged(Some(tag)).write_padded(300, &mut padded);
        assert_eq!((plain.len(), padded.len()), (HEADER_LEN + TAG_LEN, HEADER_LEN + TAG_LEN + 300));
        assert_eq!(plain[20..30], [0, 8, 9, 8, 7, 6, 5, 4, 3, 2]);
        for (written, sacked) in [(&plain, 0), (&bits, 2), (&ranges, 1), (&padded, 0)] {
            let packet = Packet::parse(written).unwrap();
            assert_eq!((packet.header, packet.tag, packet.sacked().count()), (head, Some(tag), sacked));
        }
        let short = [&head.encode(EXT_TAG)[..], &[0, 7, 1, 2, 3, 4, 5, 6, 7]].concat();
        assert_eq!(Packet::parse(&short).unwrap().tag, None, "a tag of another length is none");
    }

    #[test]
    fn every_truncation_is_refused() {
        let mut out = Vec::new();
        header(Kind::State).write_with_bits(&[1, 2, 3, 4], &mut out);
        for len in 0..out.len() {
            assert!(Packet::parse(&out[..len]).is_err(), "{len} bytes were taken");
        }
        let mut data = Vec::new();
        header(Kind::Data).write(&mut data);
        assert_eq!(Packet::parse(&data), Err(Malformed::Payload));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_explain(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(packet) = Packet::parse(&bytes) {
                let _ = packet.sacked().count();
                prop_assert_eq!(&packet.header.encode(bytes[1])[..], &bytes[..HEADER_LEN]);
            }
        }
    }
}
