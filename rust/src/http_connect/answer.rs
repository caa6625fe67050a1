//! What the forward proxy answers.

use std::fmt::Write;

use crate::error::{Error, Reason};

/// The answer to a CONNECT that succeeded. The reason phrase is not decoration: grpc-core fails without one (FACTS.md).
pub const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// The answer to a request that failed. Each client shows its user another part of it, so the reason stands in the reason
/// phrase, in `Proxy-Status` (RFC 9209) and in the body.
pub fn answer(error: &Error) -> Vec<u8> {
    let reason = error.reason;
    let body = format!("{error}\n");
    let mut text = format!("HTTP/1.1 {} {}\r\n", status(reason), phrase(error));
    let details = quoted(&format!("{}: {}", reason.name(), or_advice(error)));
    let _ = write!(text, "Proxy-Status: keynet; error={}; details={details}\r\n", reason.proxy_status());
    match reason {
        Reason::CredentialsRequired => {
            text.push_str("Proxy-Authenticate: Basic realm=\"keynet\", charset=\"UTF-8\"\r\n")
        }
        Reason::MethodNotAllowed => text.push_str("Allow: CONNECT, GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n"),
        _ => {}
    }
    let _ = write!(
        text,
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    text.into_bytes()
}

/// A client must never take a failure for an open tunnel, whatever the table says.
fn status(reason: Reason) -> u16 {
    match reason.http_status() {
        status @ 400..=599 => status,
        _ => 502,
    }
}

fn phrase(error: &Error) -> String {
    let name = error.reason.name().replace('_', " ");
    printable(&format!("{name}: {}", or_advice(error)), MAX_PHRASE)
}

fn or_advice(error: &Error) -> &str {
    match (error.reason, error.detail.as_str()) {
        (_, "") => error.reason.advice(),
        (_, detail) => detail,
    }
}

/// A string of structured fields (RFC 8941 section 3.3.3).
fn quoted(text: &str) -> String {
    let text = printable(text, MAX_DETAILS);
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Visible ASCII and spaces: what peers and targets put into messages must not become header fields.
fn printable(text: &str, max: usize) -> String {
    text.chars().map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).take(max).collect()
}

/// grpc-core reads at most 4096 bytes of a header line.
const MAX_PHRASE: usize = 256;
const MAX_DETAILS: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Stage;

    fn parts(error: &Error) -> (u16, String, Vec<String>, String) {
        let text = String::from_utf8(answer(error)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n").map(str::to_owned);
        let line = lines.next().unwrap();
        let status = line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        (status, line, lines.collect(), body.to_owned())
    }

    #[test]
    fn every_reason_has_a_complete_answer() {
        for &reason in Reason::ALL {
            let (status, line, fields, body) = parts(&Error::new(reason, Stage::Open, "some \"text\"\r\nEvil: é\\"));
            assert!((400..=599).contains(&status), "{reason}");
            assert!(line.len() > "HTTP/1.1 500 ".len() && line.contains(&reason.name().replace('_', " ")), "{line}");
            let wanted =
                format!("Proxy-Status: keynet; error={}; details=\"{}: ", reason.proxy_status(), reason.name());
            assert!(fields.iter().any(|field| field.starts_with(&wanted)), "{fields:?}");
            assert!(fields.iter().any(|field| *field == format!("Content-Length: {}", body.len())));
            assert!(!fields.iter().any(|field| field.starts_with("Evil")));
            assert!(body.contains(reason.advice()));
        }
    }

    #[test]
    fn quotes_are_escaped_and_lines_are_capped() {
        let (_, line, fields, _) = parts(&Error::new(Reason::ServiceRefused, Stage::Service, "\"\\".repeat(5_000)));
        assert!(line.len() < 300);
        let field = fields.iter().find(|field| field.starts_with("Proxy-Status")).unwrap();
        assert!(field.len() < 4096 && field.contains("\\\"\\\\"));
    }

    #[test]
    fn answers_that_need_more_fields_have_them() {
        let fields = |reason| parts(&Error::new(reason, Stage::Request, "x")).2.join("\n");
        assert!(fields(Reason::CredentialsRequired).contains("Proxy-Authenticate: Basic realm="));
        assert!(fields(Reason::MethodNotAllowed).contains("Allow: CONNECT"));
        assert_eq!(parts(&Error::new(Reason::MethodNotAllowed, Stage::Request, "not TRACE")).0, 405);
    }
}
