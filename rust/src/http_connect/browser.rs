//! Requests that a page in a browser has sent, on a port of this machine that is for programs.
//!
//! A page on the internet can have the browser ask `http://127.0.0.1:PORT`; and with a name of its own that it lets point there (DNS
//! rebinding) it can read the answer as well. A static forward carries whatever comes, so it looks at the first bytes: what is no HTTP/1
//! passes untouched, and of HTTP/1 only that which a browser sends on behalf of another site is held back. HTTP/2 without TLS, as gRPC
//! speaks it, no browser does; and of what is inside TLS a name in a certificate is the guard.

use std::net::IpAddr;

/// Holds the first bytes of a client back until it is clear what they are.
#[derive(Debug)]
pub struct Guard {
    held: Vec<u8>,
    /// Hosts by which the service may be asked for, in small letters.
    names: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is not clear yet.
    More,
    /// What was held back, to be carried.
    Pass(Vec<u8>),
    /// Why not.
    Refuse(String),
}

impl Guard {
    /// `names`: hosts by which clients may ask, beside addresses and `localhost`.
    pub fn new(names: &[String]) -> Self {
        Self { held: Vec::new(), names: names.iter().map(|name| name.to_ascii_lowercase()).collect() }
    }

    /// The next bytes; none: the client has said all it has to say.
    pub fn handle_bytes(&mut self, data: &[u8]) -> Verdict {
        self.held.extend_from_slice(data);
        let judged = match head(&self.held[..self.held.len().min(MAX_HEAD)]) {
            Head::Unclear if !data.is_empty() && self.held.len() < MAX_HEAD => return Verdict::More,
            Head::Unclear if !data.is_empty() => Some("its head has more than 64 KiB".to_owned()),
            Head::Unclear | Head::Other => None,
            Head::Http(fields) => self.judge(fields),
        };
        match judged {
            None => Verdict::Pass(std::mem::take(&mut self.held)),
            Some(why) => Verdict::Refuse(why),
        }
    }

    /// Whether so little has come that it may be the first letters of a method. A browser sends its request in one piece: what stays so
    /// short comes from a program of another protocol, which may wait for an answer to it.
    pub fn holds_a_few_letters(&self) -> bool {
        !self.held.is_empty() && METHODS.iter().any(|method| method.starts_with(&self.held))
    }

    /// What was held back, unjudged.
    pub fn give_up(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Why these header fields are those of a page of another site.
    fn judge(&self, fields: &[u8]) -> Option<String> {
        let (mut host, mut origin, mut site, mut browser) = (None, None, String::new(), false);
        for line in fields.split(|byte| *byte == b'\n') {
            let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
            let (name, value) =
                (line[..colon].to_ascii_lowercase(), String::from_utf8_lossy(line[colon + 1..].trim_ascii()));
            match name.as_slice() {
                b"host" => host = Some(host_of(&value)),
                b"origin" => origin = Some(value.to_ascii_lowercase()),
                b"sec-fetch-site" => site = value.to_ascii_lowercase(),
                // a page cannot keep a browser from sending these; other programs hardly send them (Node's fetch sends `*`)
                b"accept-language" => browser |= value != "*",
                b"referer" => browser = true,
                b"user-agent" => browser |= value.starts_with("Mozilla/"),
                _ => {}
            }
        }
        if site == "cross-site" {
            return Some("a page of another site asks".to_owned());
        }
        let is_here = |host: &str| self.is_here(host);
        if let Some(origin) = &origin {
            let from = host_of(origin.split_once("://").map_or("", |(_, place)| place));
            // pages of other ports of this machine are this machine's own
            let same = host.as_ref() == Some(&from) || (is_here(&from) && host.as_deref().is_some_and(is_here));
            // a form of its own, of a page that does not tell where it comes from (`Origin: null`); no page can forge this field
            let own = same || site == "same-origin";
            if !own {
                return Some(format!("a page of {} asks", shown(origin)));
            }
        }
        let foreign = host.filter(|host| !is_here(host) && (browser || origin.is_some()));
        foreign.map(|host| format!("a page asks for {}, which is no name of this machine", shown(&host)))
    }

    /// An address in numbers cannot be made to point elsewhere: only names are judged.
    fn is_here(&self, host: &str) -> bool {
        // a page of any site gets to this machine by 0.0.0.0
        host.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified())
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.names.iter().any(|name| name == host)
    }
}

/// What the client is told. It is the answer to one request, and the end of the connection.
pub fn refusal(why: &str) -> Vec<u8> {
    let body = format!(
        "keynet: refused, because {why} in a browser. If that is meant, name the host when the forward is opened (browser_hosts, \
         --browser-host), or * for all.\n"
    );
    let head =
        "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\nContent-Length:";
    format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
}

enum Head<'a> {
    Unclear,
    /// No HTTP/1 request.
    Other,
    /// Its header fields.
    Http(&'a [u8]),
}

fn head(bytes: &[u8]) -> Head<'_> {
    if !METHODS.iter().any(|method| bytes.starts_with(method)) {
        let may_become = METHODS.iter().any(|method| method.starts_with(bytes));
        return if may_become { Head::Unclear } else { Head::Other };
    }
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return Head::Unclear };
    let (line, fields) = bytes.split_at(end + 1);
    // other text protocols have words like GET as well
    if !line.trim_ascii_end().ends_with(b" HTTP/1.1") && !line.trim_ascii_end().ends_with(b" HTTP/1.0") {
        return Head::Other;
    }
    let mut at = 0;
    for line in fields.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if line.trim_ascii().is_empty() && line.ends_with(b"\n") {
            return Head::Http(&fields[..at]);
        }
    }
    Head::Unclear
}

fn host_of(place: &str) -> String {
    let place = place.trim().to_ascii_lowercase();
    let host = match place.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => place.split(':').next(),
    };
    host.unwrap_or_default().trim_end_matches('.').to_owned()
}

/// What strangers write is not to reach a terminal as it is.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

/// What browsers send without having asked the server first (the Fetch standard's safelist and preflights), and with that.
const METHODS: &[&[u8]] = &[b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS "];
/// A head that is larger hides its fields behind a long path: no client of a service sends one.
const MAX_HEAD: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(request: &str, names: &[&str]) -> Verdict {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let whole = Guard::new(&names).handle_bytes(request.as_bytes());
        // in whatever pieces it comes
        let mut guard = Guard::new(&names);
        let mut verdicts = request.as_bytes().iter().map(|byte| guard.handle_bytes(&[*byte]));
        let first = verdicts.find(|verdict| *verdict != Verdict::More).unwrap_or(Verdict::More);
        match (&whole, &first) {
            (Verdict::Pass(all), Verdict::Pass(begin)) => assert!(all.starts_with(begin)),
            _ => assert_eq!(whole, first),
        }
        whole
    }

    fn passes(request: &str) -> bool {
        verdict(request, &[]) == Verdict::Pass(request.as_bytes().to_vec())
    }

    fn is_refused(request: &str) -> bool {
        matches!(verdict(request, &[]), Verdict::Refuse(_))
    }

    #[test]
    fn programs_pass() {
        for request in [
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: service.internal\r\nUser-Agent: python-requests/2.32\r\n\r\n",
            "POST /a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc",
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\nHost: service.internal\n\n",
        ] {
            assert!(passes(request), "{request}");
        }
    }

    #[test]
    fn what_is_no_http_passes_as_soon_as_that_is_clear() {
        for bytes in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01",
            "EHLO me\r\n",
            "get key\r\n",
            "GET key\r\n",
            "GEX",
            "P",
            "\0",
        ] {
            let mut guard = Guard::new(&[]);
            let found = guard.handle_bytes(bytes.as_bytes());
            let clear = bytes != "P";
            assert_eq!(found == Verdict::Pass(bytes.as_bytes().to_vec()), clear, "{bytes:?}: {found:?}");
        }
        let mut guard = Guard::new(&[]);
        assert_eq!(guard.handle_bytes(b"GET"), Verdict::More);
        assert_eq!(guard.handle_bytes(b""), Verdict::Pass(b"GET".to_vec()), "the client has said all it has to say");
    }

    #[test]
    fn only_the_first_letters_of_a_method_can_be_a_whole_message_of_another_protocol() {
        for (bytes, few) in
            [("P", true), ("GET", true), ("GET ", true), ("GET /", false), ("GET key", false), ("", false)]
        {
            let mut guard = Guard::new(&[]);
            if !bytes.is_empty() {
                assert_eq!(guard.handle_bytes(bytes.as_bytes()), Verdict::More);
            }
            assert_eq!(guard.holds_a_few_letters(), few, "{bytes:?}");
            assert_eq!(guard.give_up(), bytes.as_bytes());
        }
    }

    #[test]
    fn pages_of_other_sites_do_not() {
        for request in [
            "GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nSec-Fetch-Site: cross-site\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: https://attacker.example\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: null\r\n\r\n",
            "OPTIONS / HTTP/1.1\r\nHOST: localhost:8080\r\nORIGIN: https://localhost.attacker.example\r\n\r\n",
            // DNS rebinding: the page is of the same origin as what it asks for
            "GET / HTTP/1.1\r\nHost: attacker.example:8080\r\nUser-Agent: Mozilla/5.0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: attacker.example:8080\r\nUser-Agent: curl/8\r\nAccept-Language: en\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: attacker.example\r\nOrigin: http://attacker.example\r\n\r\n",
            "GET /chat HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nOrigin: http://attacker.example\r\n\r\n",
        ] {
            assert!(is_refused(request), "{request}");
        }
    }

    #[test]
    fn the_user_himself_and_pages_of_this_machine_pass() {
        for request in [
            "GET / HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: Mozilla/5.0\r\nSec-Fetch-Site: none\r\n\r\n",
            "GET /a HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nReferer: http://127.0.0.1:8080/\r\nSec-Fetch-Site: same-origin\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: localhost:8080\r\nOrigin: http://localhost:3000\r\nSec-Fetch-Site: same-site\r\n\r\n",
            "POST /a HTTP/1.1\r\nHost: [::1]:8080\r\nOrigin: http://[::1]:8080\r\nUser-Agent: Mozilla/5.0\r\n\r\n",
        ] {
            assert!(passes(request), "{request}");
        }
    }

    #[test]
    fn names_that_the_user_gives_are_names_of_this_machine() {
        let request = "GET / HTTP/1.1\r\nHost: Grafana.internal:80\r\nUser-Agent: Mozilla/5.0\r\n\r\n";
        assert!(matches!(verdict(request, &["grafana.Internal"]), Verdict::Pass(_)));
        assert!(matches!(verdict(request, &["other.internal"]), Verdict::Refuse(_)));
    }

    #[test]
    fn fields_cannot_be_hidden_behind_a_long_path() {
        let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_HEAD));
        assert!(is_refused(&request));
    }

    #[test]
    fn a_refusal_is_a_whole_answer_and_shows_no_control_characters() {
        let request = "GET / HTTP/1.1\r\nHost: a\x1b[31m\u{7}.example\r\nUser-Agent: Mozilla/5.0\r\n\r\n";
        let Verdict::Refuse(why) = verdict(request, &[]) else { panic!("refused") };
        assert!(!why.chars().any(char::is_control), "{why:?}");
        let text = String::from_utf8(refusal(&why)).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 ") && head.ends_with(&format!("Content-Length: {}", body.len())));
    }
}
