//! The classifier and the packets of uTP.

use keynet::classify::{self, classify};
use keynet::stun;
use keynet::utp::packet::{
    Capability, Header, Kind, Malformed, Packet, Sack, HEADER_LEN, MAX_RANGES, MIN_PADDING, TAG_LEN,
};

use super::input::Input;

/// Whatever the classifier says, the parsers behind it agree that it can be nothing else.
pub fn classified(data: &[u8]) {
    let foreign = |error| matches!(error, Malformed::Short | Malformed::Version | Malformed::Type);
    let utp = Packet::parse(data);
    match classify(data) {
        classify::Kind::Stun => {
            let wrong_kind = [Err(stun::Malformed::NotStun), Err(stun::Malformed::Length)];
            assert!(!wrong_kind.contains(&stun::decode(data)), "not STUN after all");
        }
        classify::Kind::Utp => assert!(!utp.is_err_and(foreign), "not uTP after all"),
        classify::Kind::Unknown => {
            assert!(utp.is_err_and(foreign), "uTP after all");
            assert!(stun::decode(data).is_err(), "STUN after all");
        }
    }
}

/// Any bytes are read or refused; what was read or made up survives being written and read again.
pub fn packets(data: &[u8]) {
    if let Ok(packet) = Packet::parse(data) {
        check_parsed(data, &packet);
    }
    let mut input = Input::new(data);
    let header = Header {
        kind: input.pick(&[Kind::Data, Kind::Fin, Kind::State, Kind::Reset, Kind::Syn]),
        connection_id: input.u16(),
        timestamp: input.u32(),
        timestamp_difference: input.u32(),
        window: input.u32(),
        seq: input.u16(),
        ack: input.u16(),
    };
    check_written(header, &mut input);
}

fn check_parsed(data: &[u8], packet: &Packet<'_>) {
    assert!(data.ends_with(packet.payload) && packet.payload.len() + HEADER_LEN <= data.len());
    assert_eq!(packet.header.kind == Kind::Data, !packet.payload.is_empty());
    assert_eq!(packet.header.encode(data[1])[..], data[..HEADER_LEN], "the header changed");
    // 255 bytes hold 63 ranges, or 1,020 of single bits
    assert!(packet.sacked().count() <= 1_020, "a selective ack without end");
    let mut again = Vec::new();
    match packet.sack {
        Sack::None if packet.capability.is_some() => {
            let capability = packet.capability.unwrap_or(Capability::new(None));
            packet.header.write_with_capability(capability, &mut again);
        }
        Sack::None => packet.header.write(&mut again),
        // padded to four bytes: 252 + 4 would not fit
        Sack::Bits(bits) if bits.len() > 252 => return,
        Sack::Bits(bits) => packet.header.write_with_bits(bits, &mut again),
        Sack::Ranges(_) => {
            let ranges: Vec<_> = packet.sacked().take(MAX_RANGES).collect();
            packet.header.write_with_ranges(&ranges, &mut again);
        }
    }
    again.extend_from_slice(packet.payload);
    let read = Packet::parse(&again).expect("what was written can be read");
    assert_eq!((read.header, read.payload), (packet.header, packet.payload));
    assert!(read.sacked().eq(packet.sacked().take(1_020.min(ranges_kept(packet)))), "the selective ack changed");
}

fn ranges_kept(packet: &Packet<'_>) -> usize {
    if matches!(packet.sack, Sack::Ranges(_)) {
        MAX_RANGES
    } else {
        usize::MAX
    }
}

fn check_written(header: Header, input: &mut Input<'_>) {
    let mut out = Vec::new();
    let how = input.u8();
    let ranges: Vec<(u16, u16)> = (0..input.u8() % 64).map(|_| (input.u16(), input.u16())).collect();
    let padding = MIN_PADDING + usize::from(input.u16() % 1_440);
    let tag = (how >= 128).then_some([how; 8]);
    let head = header.tagged(tag);
    match how % 5 {
        0 => head.write(&mut out),
        1 => head.write_with_capability(Capability::new(Some(100_000)), &mut out),
        2 => head.write_with_bits(input.short().chunks(240).next().unwrap_or(&[1]), &mut out),
        3 => head.write_with_ranges(&ranges, &mut out),
        _ => {
            head.write_padded(padding, &mut out);
            let tagged = if tag.is_some() { TAG_LEN } else { 0 };
            assert_eq!(out.len(), HEADER_LEN + tagged + padding, "padding is as long as asked");
        }
    }
    let whole = [&out[..], b"payload"].concat();
    let packet = Packet::parse(&whole).expect("what is written can be read");
    let payload: &[u8] = if header.kind == Kind::Data { b"payload" } else { b"" };
    assert_eq!((packet.header, packet.payload, packet.tag), (header, payload, tag));
    if how % 5 == 3 {
        assert!(packet.sacked().eq(ranges.iter().copied().take(MAX_RANGES)));
    }
    for cut in HEADER_LEN..out.len() {
        assert_eq!(Packet::parse(&out[..cut]), Err(Malformed::Extension), "cut at {cut}");
    }
}
