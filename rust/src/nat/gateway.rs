//! The messages that ask a gateway for a port: PCP MAP (RFC 6887 sections 7 and 11) and its forerunner NAT-PMP (RFC 6886
//! section 3), for UDP over IPv4. Two fixed layouts of 60 and 12 bytes: the crates that have them bring more build than that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

/// What is asked for. A lifetime of zero gives the port back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapRequest {
    /// Names the mapping; PCP only.
    pub nonce: [u8; 12],
    pub client: Ipv4Addr,
    pub internal: u16,
    /// What the mapping should look like, or looked like before.
    pub suggested: Option<SocketAddrV4>,
    pub lifetime: Duration,
}

/// What the gateway gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub external_port: u16,
    /// NAT-PMP tells it in a message of its own.
    pub external_ip: Option<Ipv4Addr>,
    pub lifetime: Duration,
}

/// What an answer to a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapAnswer {
    Mapped(Mapped),
    /// The gateway speaks NAT-PMP only (RFC 6887 appendix A).
    OldVersion,
    Refused(u16),
}

pub(super) fn encode_pcp(request: &MapRequest) -> Vec<u8> {
    let mut out = vec![PCP, MAP, 0, 0];
    out.extend_from_slice(&seconds(request.lifetime).to_be_bytes());
    out.extend_from_slice(&request.client.to_ipv6_mapped().octets());
    out.extend_from_slice(&request.nonce);
    out.extend_from_slice(&[UDP, 0, 0, 0]);
    out.extend_from_slice(&request.internal.to_be_bytes());
    let suggested = request.suggested.unwrap_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
    out.extend_from_slice(&suggested.port().to_be_bytes());
    out.extend_from_slice(&suggested.ip().to_ipv6_mapped().octets());
    out
}

/// `None`: no answer to this request.
pub(super) fn decode_pcp(bytes: &[u8], request: &MapRequest) -> Option<MapAnswer> {
    if let [0, _, high, low, ..] = *bytes {
        let result = u16::from_be_bytes([high, low]);
        return (result == UNSUPPORTED_VERSION).then_some(MapAnswer::OldVersion);
    }
    let [PCP, 0x81, _, result, ..] = *bytes else { return None };
    let map = bytes.get(PCP_HEADER..PCP_HEADER + 36)?;
    let (nonce, rest) = map.split_first_chunk::<12>()?;
    let ([UDP, _, _, _, high, low, port_high, port_low], rest) = rest.split_first_chunk()? else { return None };
    if *nonce != request.nonce || u16::from_be_bytes([*high, *low]) != request.internal {
        return None;
    }
    if result != 0 {
        return Some(MapAnswer::Refused(result.into()));
    }
    let external_ip = Ipv6Addr::from(*rest.first_chunk::<16>()?).to_ipv4_mapped()?;
    Some(MapAnswer::Mapped(Mapped {
        external_port: u16::from_be_bytes([*port_high, *port_low]),
        external_ip: Some(external_ip),
        lifetime: lifetime(bytes.get(4..8)?)?,
    }))
}

pub(super) fn encode_nat_pmp(request: &MapRequest) -> Vec<u8> {
    let mut out = vec![NAT_PMP, MAP_UDP, 0, 0];
    out.extend_from_slice(&request.internal.to_be_bytes());
    // RFC 6886 section 3.4: zero when it is given back
    let suggested = request.suggested.filter(|_| !request.lifetime.is_zero()).map_or(0, |suggested| suggested.port());
    out.extend_from_slice(&suggested.to_be_bytes());
    out.extend_from_slice(&seconds(request.lifetime).to_be_bytes());
    out
}

pub(super) fn decode_nat_pmp(bytes: &[u8], request: &MapRequest) -> Option<MapAnswer> {
    let [NAT_PMP, 0x81, high, low, ..] = *bytes else { return None };
    let result = u16::from_be_bytes([high, low]);
    if result != 0 {
        return Some(MapAnswer::Refused(result));
    }
    let ([high, low, port_high, port_low], rest) = bytes.get(8..)?.split_first_chunk()?;
    (u16::from_be_bytes([*high, *low]) == request.internal).then_some(())?;
    let external_port = u16::from_be_bytes([*port_high, *port_low]);
    Some(MapAnswer::Mapped(Mapped { external_port, external_ip: None, lifetime: lifetime(rest)? }))
}

pub(super) const NAT_PMP_ADDRESS_REQUEST: [u8; 2] = [NAT_PMP, 0];

pub(super) fn decode_nat_pmp_address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let [NAT_PMP, 0x80, 0, 0, _, _, _, _, a, b, c, d, ..] = *bytes else { return None };
    Some(Ipv4Addr::new(a, b, c, d))
}

fn lifetime(bytes: &[u8]) -> Option<Duration> {
    Some(Duration::from_secs(u32::from_be_bytes(*bytes.first_chunk()?).into()))
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)
}

/// Whether a gateway with this external address is behind another NAT: RFC 1918, RFC 6598. Peers behind that same NAT may
/// still reach it.
pub fn is_nested(external: IpAddr) -> bool {
    match external {
        IpAddr::V4(v4) => v4.is_private() || (v4.octets()[0] == 100 && v4.octets()[1] & 0xc0 == 64),
        IpAddr::V6(_) => false,
    }
}

/// The address of a gateway's PCP and NAT-PMP server (RFC 6887 section 19.1).
pub(super) fn server_of(gateway: Ipv4Addr) -> SocketAddr {
    (gateway, 5_351).into()
}

const PCP: u8 = 2;
const MAP: u8 = 1;
const UDP: u8 = 17;
const PCP_HEADER: usize = 24;
const NAT_PMP: u8 = 0;
const MAP_UDP: u8 = 1;
/// The same in both protocols.
const UNSUPPORTED_VERSION: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> MapRequest {
        MapRequest {
            nonce: *b"nonce-nonce-",
            client: Ipv4Addr::new(192, 168, 1, 7),
            internal: 4_433,
            suggested: Some("192.0.2.1:5000".parse().unwrap()),
            lifetime: Duration::from_secs(7_200),
        }
    }

    /// The layout of RFC 6887 figures 2, 3, 9 and 10, made by hand.
    fn pcp_response(result: u8) -> Vec<u8> {
        let mut out = vec![2, 0x81, 0, result, 0, 0, 0, 120, 0, 0, 0, 9];
        out.extend_from_slice(&[0; 12]);
        out.extend_from_slice(b"nonce-nonce-");
        out.extend_from_slice(&[17, 0, 0, 0, 0x11, 0x51, 0x13, 0x88]);
        out.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        out
    }

    #[test]
    fn pcp_by_the_figures() {
        let bytes = encode_pcp(&request());
        assert_eq!(bytes.len(), 60);
        assert_eq!(bytes[..8], [2, 1, 0, 0, 0, 0, 0x1c, 0x20]);
        assert_eq!(bytes[18..24], [0xff, 0xff, 192, 168, 1, 7]);
        assert_eq!(bytes[36..44], [17, 0, 0, 0, 0x11, 0x51, 0x13, 0x88]);
        let mapped = Mapped {
            external_port: 5_000,
            external_ip: Some(Ipv4Addr::new(192, 0, 2, 1)),
            lifetime: Duration::from_secs(120),
        };
        assert_eq!(decode_pcp(&pcp_response(0), &request()), Some(MapAnswer::Mapped(mapped)));
        assert_eq!(decode_pcp(&pcp_response(2), &request()), Some(MapAnswer::Refused(2)));
        assert_eq!(decode_pcp(&[0, 0x81, 0, 1, 0, 0, 0, 9], &request()), Some(MapAnswer::OldVersion));
        for other in [MapRequest { nonce: [0; 12], ..request() }, MapRequest { internal: 1, ..request() }] {
            assert_eq!(decode_pcp(&pcp_response(0), &other), None, "an answer to another request");
        }
    }

    #[test]
    fn nat_pmp_by_the_figures() {
        assert_eq!(encode_nat_pmp(&request()), [0, 1, 0, 0, 0x11, 0x51, 0x13, 0x88, 0, 0, 0x1c, 0x20]);
        let give_back = MapRequest { lifetime: Duration::ZERO, ..request() };
        assert_eq!(encode_nat_pmp(&give_back)[6..], [0; 6]);
        let response = [0, 0x81, 0, 0, 0, 0, 0, 9, 0x11, 0x51, 0x13, 0x88, 0, 0, 0, 120];
        let mapped = Mapped { external_port: 5_000, external_ip: None, lifetime: Duration::from_secs(120) };
        assert_eq!(decode_nat_pmp(&response, &request()), Some(MapAnswer::Mapped(mapped)));
        assert_eq!(decode_nat_pmp(&response, &MapRequest { internal: 1, ..request() }), None);
        assert_eq!(decode_nat_pmp(&[0, 0x81, 0, 3, 0, 0, 0, 9], &request()), Some(MapAnswer::Refused(3)));
        let address = [0, 0x80, 0, 0, 0, 0, 0, 9, 192, 0, 2, 1];
        assert_eq!(decode_nat_pmp_address(&address), Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(decode_nat_pmp_address(&address[..11]), None);
    }

    #[test]
    fn cut_answers_map_nothing() {
        for end in 0..60 {
            let answer = decode_pcp(&pcp_response(0)[..end], &request());
            assert!(!matches!(answer, Some(MapAnswer::Mapped(_))), "cut at {end}");
        }
    }

    #[test]
    fn nested_nats() {
        for (ip, nested) in [
            ("10.0.0.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.1", false),
            ("8.8.8.8", false),
        ] {
            assert_eq!(is_nested(ip.parse().unwrap()), nested, "{ip}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = (decode_pcp(&bytes, &request()), decode_nat_pmp(&bytes, &request()), decode_nat_pmp_address(&bytes));
        }
    }
}
