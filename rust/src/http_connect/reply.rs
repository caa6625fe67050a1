//! What another proxy has answered to a CONNECT of ours.

/// The answer, as far as its client wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// What follows belongs to the tunnel.
    Established,
    /// The phrase is for people: bounded, and without control characters.
    Refused {
        status: u16,
        phrase: String,
    },
    NotHttp,
}

impl Reply {
    /// Judges a head, its empty line included.
    pub fn parse(head: &[u8]) -> Self {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let complete = response.parse(head).is_ok_and(|status| status.is_complete());
        match response.code.filter(|_| complete) {
            Some(200..=299) => Self::Established,
            Some(status) => {
                let phrase = response.reason.unwrap_or_default().chars().filter(|c| !c.is_control());
                Self::Refused { status, phrase: phrase.take(MAX_PHRASE).collect() }
            }
            None => Self::NotHttp,
        }
    }
}

/// Proxies send a dozen.
const MAX_HEADERS: usize = 64;
/// A line of a terminal, and some.
const MAX_PHRASE: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(Reply::parse(b"HTTP/1.1 200 OK\r\n\r\n"), Reply::Established);
        assert_eq!(Reply::parse(b"HTTP/1.0 200 \r\nVia: x\r\n\r\n"), Reply::Established);
        let refused = |status, phrase: &str| Reply::Refused { status, phrase: phrase.to_owned() };
        assert_eq!(Reply::parse(b"HTTP/1.1 403 For\tbidden\r\n\r\n"), refused(403, "Forbidden"));
        assert_eq!(Reply::parse(b"HTTP/1.1 502\r\n\r\n"), refused(502, ""));
        let long = [b"HTTP/1.1 503 ", &[b'x'; 1_000][..], b"\r\n\r\n"].concat();
        assert_eq!(Reply::parse(&long), refused(503, &"x".repeat(MAX_PHRASE)));
        for strange in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/2 200\r\n\r\n", b"\r\n\r\n"] {
            assert_eq!(Reply::parse(strange), Reply::NotHttp, "{}", strange.escape_ascii());
        }
    }
}
