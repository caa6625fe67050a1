use super::*;

fn parse(text: &str) -> Result<Request> {
    Request::parse(text.as_bytes())
}

/// A request of this method, URL and further fields, and what the service gets of it.
fn passed(line: &str, fields: &str) -> (Request, String) {
    let request = parse(&format!("{line} HTTP/1.1\r\nHost: other.example\r\n{fields}\r\n")).unwrap();
    let head = String::from_utf8(request.head.clone()).unwrap();
    (request, head)
}

fn refused(text: &str) -> (Reason, String) {
    let error = parse(text).expect_err(text);
    (error.reason, error.detail)
}

#[test]
fn the_service_gets_its_own_form_of_the_request() {
    let (request, head) = passed(
        "GET http://Lab.keynet:8000/a/b?c=d",
        "Accept: */*\r\nProxy-Authorization: Basic eHg=\r\nProxy-Connection: keep-alive\r\nproxy-anything: 1\r\nX: y\r\n",
    );
    assert_eq!(
        head,
        "GET /a/b?c=d HTTP/1.1\r\nHost: lab.keynet:8000\r\nAccept: */*\r\nX: y\r\nVia: 1.1 keynet\r\n\r\n"
    );
    assert_eq!(request.authority, "lab.keynet:8000");
    assert_eq!(request.credentials, [b"Basic eHg=".to_vec()]);
    assert!(request.keep && request.repeatable && !request.background && request.body.is_none());
    assert_eq!(request.asked, Asked::default());
}

#[test]
fn urls_in_all_their_forms() {
    for (url, authority, path) in [
        ("http://a.keynet", "a.keynet:80", "/"),
        ("HTTP://A.keynet/", "a.keynet:80", "/"),
        ("http://a.keynet:/x", "a.keynet:80", "/x"),
        ("http://a.keynet:80?q", "a.keynet:80", "/?q"),
        ("http://a.keynet:8000//x/../y?u=http://b/@#".trim_end_matches('#'), "a.keynet:8000", "//x/../y?u=http://b/@"),
        ("ws://a.keynet:1/chat", "a.keynet:1", "/chat"),
        ("http://[::1]/x", "[::1]:80", "/x"),
        ("http://[::1]:8/x", "[::1]:8", "/x"),
    ] {
        let (request, head) = passed(&format!("GET {url}"), "");
        assert_eq!(request.authority, authority, "{url}");
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\nHost: ")), "{head}");
    }
    assert!(passed("GET http://a.keynet/", "").1.contains("\r\nHost: a.keynet\r\n"));
    assert!(passed("OPTIONS http://a.keynet", "").1.starts_with("OPTIONS * HTTP/1.1\r\n"));
    assert!(passed("OPTIONS http://a.keynet/", "").1.starts_with("OPTIONS / HTTP/1.1\r\n"));
}

#[test]
fn fields_of_this_hop_stay_behind() {
    let (_, head) = passed(
        "GET http://a.keynet:1/",
        "Connection: X-Secret, keep-alive, Content-Length\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nCONNECTION: x-other\r\n\
         X-Other: 2\r\nContent-Length: 3\r\nUpgrade: h2c\r\nX-Stays: 3\r\n",
    );
    assert_eq!(
        head, "GET / HTTP/1.1\r\nHost: a.keynet:1\r\nX-Stays: 3\r\nVia: 1.1 keynet\r\nContent-Length: 3\r\n\r\n",
        "and what frames the body cannot be named away"
    );
    let (request, head) = passed("GET http://a.keynet:1/", "Connection: close, TE\r\nTE: trailers, deflate;q=1\r\n");
    assert!(!request.keep && head.ends_with("Connection: TE\r\nTE: trailers\r\n\r\n"), "{head}");
    assert!(!passed("GET http://a.keynet:1/", "Proxy-Connection: Close\r\n").0.keep);
    let (_, head) = passed("GET http://a.keynet:1/", "Via: 1.1 other\r\n");
    assert!(head.contains("Via: 1.1 other\r\nVia: 1.1 keynet\r\n"), "{head}");
}

#[test]
fn upgrades_go_along_and_are_not_repeated() {
    let (request, head) = passed(
        "GET http://a.keynet:1/",
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
    );
    assert!(request.asked.upgrade && !request.repeatable);
    assert!(
        head.ends_with("Sec-WebSocket-Key: x\r\nVia: 1.1 keynet\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
        "{head}"
    );
    let (request, head) = passed("GET http://a.keynet:1/", "Upgrade: websocket\r\n");
    assert!(!request.asked.upgrade && !head.contains("Upgrade"), "{head}");
}

#[test]
fn priority_and_patience_are_for_this_node() {
    let (request, head) = passed("GET http://a.keynet:1/", "Keynet-Patience: 300\r\n");
    assert_eq!(request.patience, Some(Duration::from_secs(300)));
    assert!(!head.contains("Patience"), "{head}");
    refused("GET http://a.keynet:1/ HTTP/1.1\r\nHost: a\r\nKeynet-Patience: -1\r\n\r\n");
    let (request, head) = passed("PUT http://a.keynet:1/", "Keynet-Priority: Background\r\nContent-Length: 5\r\n");
    assert!(request.background && !head.contains("Priority") && !request.repeatable, "{head}");
    assert_eq!(request.body, Some(Framing::Length(5)));
    assert_eq!(
        refused("GET http://a.keynet:1/ HTTP/1.1\r\nHost: a\r\nKeynet-Priority: x\r\n\r\n").0,
        Reason::BadRequest
    );
}

#[test]
fn http_1_0_has_one_request_a_connection_and_no_chunks() {
    let request =
        parse("GET http://a.keynet:1/ HTTP/1.0\r\nConnection: keep-alive\r\nExpect: 100-continue\r\n\r\n").unwrap();
    assert!(!request.keep && request.asked.old);
    assert_eq!(request.head, b"GET / HTTP/1.1\r\nHost: a.keynet:1\r\nVia: 1.0 keynet\r\n\r\n");
    assert!(passed("POST http://a.keynet:1/", "Content-Length: 1\r\nExpect: 100-continue\r\n")
        .1
        .contains("Expect: 100-continue"));
    refused("POST http://a.keynet:1/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n");
}

#[test]
fn options_go_as_far_as_they_may() {
    let (request, head) = passed("OPTIONS http://a.keynet:1/", "Max-Forwards: 3\r\n");
    assert!(!request.ends_here && head.contains("Max-Forwards: 2\r\n"), "{head}");
    assert!(passed("OPTIONS http://a.keynet:1/", "Max-Forwards: 0\r\n").0.ends_here);
    assert!(passed("GET http://a.keynet:1/", "Max-Forwards: 0\r\n").1.contains("Max-Forwards: 0\r\n"));
}

#[test]
fn what_can_be_read_in_two_ways_is_refused() {
    let url = "http://a.keynet:1/";
    for text in [
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nA: b\r\n c\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\r\nA: b\rContent-Length: 1\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\nHost: a\nContent-Length: 1\r\n\r\n"),
        format!("POST {url} HTTP/1.1\nHost: a\n\n"),
        format!("GET {url} HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\n\r\n"),
        format!("GET  {url} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url}  HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url} x HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url}#x HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url}\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url}\t HTTP/1.1\r\nHost: a\r\n\r\n"),
        format!("GET {url} HTTP/1.2\r\nHost: a\r\n\r\n"),
        format!("GET {url} HTTP/2.0\r\nHost: a\r\n\r\n"),
        format!("GET {url}\r\nHost: a\r\n\r\n"),
        format!("G(T {url} HTTP/1.1\r\nHost: a\r\n\r\n"),
        "GET http://user:secret@a.keynet:1/ HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
    ] {
        let (reason, detail) = refused(&text);
        assert_eq!(reason, Reason::BadRequest, "{text}");
        assert!(!detail.contains("secret"), "{detail}");
    }
    let many = format!("GET {url} HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(200));
    assert_eq!(refused(&many).0, Reason::HeadTooLarge);
}

#[test]
fn who_asks_for_something_else_hears_how_it_is_done() {
    let (reason, detail) = refused("GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
    assert!(reason == Reason::BadRequest && detail.contains("http_proxy") && detail.contains(".keynet:"), "{detail}");
    let (reason, detail) = refused("GET https://a.keynet:1/ HTTP/1.1\r\nHost: a\r\n\r\n");
    assert!(reason == Reason::BadTarget && detail.contains("CONNECT"), "{detail}");
    assert_eq!(refused("GET ftp://a.keynet:1/ HTTP/1.1\r\nHost: a\r\n\r\n").0, Reason::BadTarget);
    assert_eq!(refused("TRACE http://a.keynet:1/ HTTP/1.1\r\nHost: a\r\n\r\n").0, Reason::MethodNotAllowed);
    for (target, is) in
        [("http://a", true), ("ftp://a", true), ("/http://a", false), ("*", false), ("a:1", false), ("", false)]
    {
        assert_eq!(is_whole_url(target.as_bytes()), is, "{target}");
    }
}

#[test]
fn pages_of_other_sites_do_not_get_through_a_browser_that_has_this_proxy() {
    let with =
        |field: &str| parse(&format!("POST http://a.keynet:8000/ HTTP/1.1\r\nHost: a.keynet:8000\r\n{field}\r\n\r\n"));
    for field in [
        "Origin: http://attacker.example",
        "Origin: null",
        "Origin: http://b.keynet:8000",
        "Origin: http://a.keynet.attacker.example:8000",
        "origin: https://xa.keynet",
        "Sec-Fetch-Site: cross-site",
    ] {
        assert_eq!(with(field).expect_err(field).reason, Reason::BadRequest);
    }
    for field in
        ["Origin: http://A.keynet:3000", "Origin: http://a.keynet", "Sec-Fetch-Site: same-origin", "Referer: http://b/"]
    {
        assert!(with(field).is_ok(), "{field}");
    }
}
