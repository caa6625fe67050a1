use proptest::prelude::*;

use super::*;
use crate::addr::NodeId;

const MAX: usize = 16 << 10;

fn credentials() -> Credentials {
    Credentials::new("user", "p:ss").unwrap()
}

/// `user:p:ss`
const AUTH: &str = "Proxy-Authorization: Basic dXNlcjpwOnNz\r\n";

fn node() -> NodeId {
    NodeId::from_public_key([9; 32])
}

/// Feeds the request whole and byte by byte; both must end the same way.
fn judge(request: &[u8]) -> Result<(Request, Vec<u8>)> {
    let whole = feed(request, request.len().max(1));
    let bytes = feed(request, 1);
    match (&whole, &bytes) {
        (Ok(a), Ok(b)) => assert_eq!(a, b),
        (Err(a), Err(b)) => assert_eq!(a.reason, b.reason),
        _ => panic!("whole: {whole:?}, byte by byte: {bytes:?}"),
    }
    whole
}

fn feed(request: &[u8], step: usize) -> Result<(Request, Vec<u8>)> {
    let mut buffer = HeadBuffer::new(MAX);
    let mut pieces = request.chunks(step);
    while let Some(piece) = pieces.next() {
        if let Some(length) = buffer.handle_bytes(piece)? {
            let (head, rest) = buffer.split(length);
            let mut rest = rest.to_vec();
            pieces.for_each(|piece| rest.extend_from_slice(piece));
            return Ok((Request::parse(head, &credentials())?, rest));
        }
    }
    Err(Error::new(Reason::HeadTimeout, Stage::Request, "the request ended"))
}

fn reason(request: impl AsRef<[u8]>) -> Reason {
    judge(request.as_ref()).expect_err("must be refused").reason
}

#[test]
fn credentials_are_the_whole_of_them() {
    use data_encoding::BASE64;
    let request = |text: &[u8]| {
        let field = format!("Proxy-Authorization: Basic {}\r\n", BASE64.encode(text));
        format!("CONNECT {}.keynet:1 HTTP/1.1\r\n{field}\r\n", node())
    };
    let right = b"user:p:ss";
    assert!(judge(request(right).as_bytes()).is_ok());
    for length in 0..right.len() {
        assert_eq!(reason(request(&right[..length])), Reason::CredentialsRequired, "the first {length} bytes");
        assert_eq!(
            reason(request(&right[length + 1..])),
            Reason::CredentialsRequired,
            "without the first {}",
            length + 1
        );
    }
    for longer in [&b"user:p:ss "[..], b"user:p:sss", b"user:p:ss\0", b"xuser:p:ss", b"user:p:ssuser:p:ss"] {
        assert_eq!(reason(request(longer)), Reason::CredentialsRequired, "{longer:?}");
    }
}

#[test]
fn what_real_clients_send() {
    let id = node();
    let target = Target { node: id, service_port: 50051, address: None };
    let good = Request { target, background: false, patience: None };
    let host = format!("{id}.keynet:50051");
    // grpc-core 1.85; grpc-go 1.6x; curl 8; requests (Python 3.11: HTTP/1.0, no Host); bare line feeds by hand
    let requests = [
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: grpc-httpcli/0.0\r\n{AUTH}\r\n"),
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: grpc-go/1.66.0\r\n{AUTH}\r\n"),
        format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n{AUTH}User-Agent: curl/8.5.0\r\nProxy-Connection: Keep-Alive\r\n\r\n"),
        format!("CONNECT {host} HTTP/1.0\r\n{AUTH}\r\n"),
        format!("\r\nCONNECT {host} HTTP/1.1\r\nproxy-authorization:basic dXNlcjpwOnNz\r\n\r\n"),
        format!("CONNECT {host} HTTP/1.1\nProxy-Authorization: Basic dXNlcjpwOnNz\n\n"),
    ];
    for request in requests {
        assert_eq!(judge(request.as_bytes()), Ok((good.clone(), Vec::new())), "{request}");
        let with_rest = [request.as_bytes(), b"\x00early\r\n\r\n"].concat();
        assert_eq!(judge(&with_rest), Ok((good.clone(), b"\x00early\r\n\r\n".to_vec())));
    }
}

#[test]
fn priority_can_be_asked_for() {
    let request =
        |value: &str| format!("CONNECT {}.keynet:1 HTTP/1.1\r\n{AUTH}Keynet-Priority: {value}\r\n\r\n", node());
    assert!(judge(request("Background").as_bytes()).unwrap().0.background);
    assert!(!judge(request("interactive").as_bytes()).unwrap().0.background);
    assert_eq!(reason(request("urgent")), Reason::BadRequest);
}

#[test]
fn patience_can_be_asked_for() {
    let request =
        |value: &str| format!("CONNECT {}.keynet:1 HTTP/1.1\r\n{AUTH}Keynet-Patience: {value}\r\n\r\n", node());
    let asked = |value: &str| judge(request(value).as_bytes()).unwrap().0.patience;
    assert_eq!((asked("300"), asked(" 0 ")), (Some(Duration::from_secs(300)), Some(Duration::ZERO)));
    for bad in ["", "-1", "1.5", "65536", "long", "300 s"] {
        assert_eq!(reason(request(bad)), Reason::BadRequest, "{bad}");
    }
}

#[test]
fn credentials_come_first() {
    let line = "GET http://example.com/ HTTP/1.1\r\n";
    let wrong = [
        "".to_owned(),
        "Authorization: Basic dXNlcjpwOnNz\r\n".to_owned(),
        "Proxy-Authorization: Basic\r\n".to_owned(),
        "Proxy-Authorization: Basic !!!!\r\n".to_owned(),
        "Proxy-Authorization: Bearer dXNlcjpwOnNz\r\n".to_owned(),
        "Proxy-Authorization: Basic dXNlcjpwOnN0\r\n".to_owned(),
        "Proxy-Authorization: Basic dXNlcjpwOnNzcw==\r\n".to_owned(),
        format!("{AUTH}{AUTH}"),
    ];
    for fields in wrong {
        assert_eq!(reason(format!("{line}{fields}\r\n")), Reason::CredentialsRequired, "{fields}");
        assert_eq!(reason(format!("CONNECT a b\u{e9} HTTP/9\r\n{fields}\r\n")), Reason::CredentialsRequired);
    }
    assert_eq!(reason(format!("{line}{AUTH}\r\n")), Reason::MethodNotAllowed);
    assert_eq!(reason(format!("connect x:1 HTTP/1.1\r\n{AUTH}\r\n")), Reason::MethodNotAllowed);
}

#[test]
fn targets_that_clients_pass_through_unchecked_are_refused() {
    for target in ["", " ", "a b:1", "\u{e9}.keynet:1", "*", "http://a/", "a\u{7f}b:1", "example.com:443"] {
        let request = format!("CONNECT {target} HTTP/1.1\r\n{AUTH}\r\n");
        assert_eq!(reason(request), Reason::BadTarget, "{target:?}");
    }
    let mut request = b"CONNECT \xff\xfe HTTP/1.1\r\n".to_vec();
    request.extend_from_slice(format!("{AUTH}\r\n").as_bytes());
    assert_eq!(reason(request), Reason::BadTarget);
    assert_eq!(reason(format!("CONNECT {} HTTP/1.1\r\n{AUTH}\r\n", "a".repeat(10_000))), Reason::BadTarget);
}

#[test]
fn what_is_not_http_is_refused_as_soon_as_it_shows() {
    assert_eq!(reason(b"\x16\x03\x01\x02\x00"), Reason::BadRequest);
    assert_eq!(reason(b"\x00"), Reason::BadRequest);
    assert_eq!(reason(b"\r\n\r\n\r\n\r\n\r\n"), Reason::BadRequest);
    assert_eq!(reason(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), Reason::CredentialsRequired);
    assert_eq!(reason("CONNECT\r\n\r\n"), Reason::BadRequest);
    assert_eq!(reason("CONNECT x\r\n\r\n"), Reason::BadRequest);
    assert_eq!(reason(format!("CON\"NECT x HTTP/1.1\r\n{AUTH}\r\n")), Reason::BadRequest);
    assert_eq!(reason(format!("CONNECT {}.keynet:1 HTTP/2.0\r\n{AUTH}\r\n", node())), Reason::BadRequest);
    assert_eq!(reason(format!("CONNECT {}.keynet:1 HTTP/1.1\r\n{AUTH}a b: c\r\n\r\n", node())), Reason::BadRequest);
    assert_eq!(reason(format!("CONNECT x HTTP/1.1\r\nA: \0\r\n{AUTH}\r\n")), Reason::BadRequest);
}

#[test]
fn floods_end_at_the_caps() {
    let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
    assert_eq!(reason(format!("CONNECT x HTTP/1.1\r\n{many}\r\n")), Reason::HeadTooLarge);
    let endless = "A: b\r\n".repeat(MAX);
    assert_eq!(reason(format!("CONNECT x HTTP/1.1\r\n{endless}")), Reason::HeadTooLarge);
    assert_eq!(reason("C".repeat(MAX + 1)), Reason::HeadTooLarge);
    assert_eq!(reason(format!("CONNECT x HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(MAX))), Reason::HeadTooLarge);
}

#[test]
fn credentials_outside_ascii_are_taken_in_utf_8_and_in_latin_1() {
    let credentials = Credentials::new("k\u{e4}the", "gr\u{fc}n").unwrap();
    let admitted = |joined: &[u8]| credentials.admits(format!("Basic {}", BASE64.encode(joined)).as_bytes());
    assert!(admitted("k\u{e4}the:gr\u{fc}n".as_bytes()));
    assert!(admitted(b"k\xe4the:gr\xfcn"));
    for wrong in [&b"k\xe4the:gr\xc3\xbcn"[..], b"kathe:grun", b"k?the:gr?n", b""] {
        assert!(!admitted(wrong), "{}", wrong.escape_ascii());
    }
    let beyond = Credentials::new("keynet", "\u{2603}").unwrap();
    assert!(beyond.admits(format!("Basic {}", BASE64.encode("keynet:\u{2603}")).as_bytes()));
    assert!(!beyond.admits(format!("Basic {}", BASE64.encode("keynet:\u{3}")).as_bytes()));
}

#[test]
fn credentials_that_cannot_work_are_refused_when_they_are_set() {
    assert!(Credentials::new("a:b", "c").is_err());
    assert!(Credentials::new("a", "c\n").is_err());
    assert!(Credentials::new("", "").is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_judged_alike_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = judge(&bytes);
        let _ = judge(&[b"CONNECT ", &bytes[..]].concat());
    }
}
