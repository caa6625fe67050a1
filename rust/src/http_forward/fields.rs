//! Header fields: read strictly, and those of one hop taken out (RFC 9110 section 7.6.1).

use super::body::Framing;
use crate::http_fields::is_token;

/// One field; the value without the white space around it.
pub(super) type Field<'a> = (&'a [u8], &'a [u8]);

/// The fields of a head or of trailers, which end with an empty line.
///
/// Errors: what is wrong with them.
pub(super) fn parse(mut bytes: &[u8]) -> Result<Vec<Field<'_>>, String> {
    let mut fields = Vec::new();
    loop {
        let (line, rest) = take_line(bytes)?;
        if line.is_empty() {
            return match rest {
                [] => Ok(fields),
                _ => Err("something follows the empty line".to_owned()),
            };
        }
        if fields.len() == MAX_FIELDS {
            return Err(format!("there are more than {MAX_FIELDS} header fields"));
        }
        fields.push(field(line)?);
        bytes = rest;
    }
}

/// The line without its end, and what follows. A line ends with CR LF and holds neither otherwise: where one reader sees a new line and
/// another does not, they see different fields.
pub(super) fn take_line(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')).ok_or("a line does not end")?;
    match (&bytes[..end], &bytes[end..]) {
        (line, [b'\r', b'\n', rest @ ..]) => Ok((line, rest)),
        (_, [b'\r', ..]) => Err("a CR without LF stands in the head".to_owned()),
        _ => Err("a line of the head ends with LF alone, not with CR LF".to_owned()),
    }
}

fn field(line: &[u8]) -> Result<Field<'_>, String> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err("a header field goes on in a second line".to_owned());
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a header field has no colon")?;
    let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err("the name of a header field is not a token".to_owned());
    }
    // RFC 9110 section 5.5
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        return Err(format!("{} holds a control character", String::from_utf8_lossy(name)));
    }
    Ok((name, value))
}

/// The values of a field, as they came.
pub(super) fn values<'a>(fields: &'a [Field<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
    fields.iter().filter(move |(is, _)| is.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| *value)
}

/// The members of a list, over all fields of this name.
pub(super) fn members<'a>(fields: &'a [Field<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
    values(fields, name).flat_map(|value| value.split(|byte| *byte == b',')).map(trim).filter(|one| !one.is_empty())
}

pub(super) fn has_member(fields: &[Field<'_>], name: &str, member: &str) -> bool {
    members(fields, name).any(|one| one.eq_ignore_ascii_case(member.as_bytes()))
}

/// How the body is framed as far as fields say so (RFC 9112 section 6.3); `None`: they say nothing. Of two that contradict each other
/// none is taken.
pub(super) fn framing(fields: &[Field<'_>]) -> Result<Option<Framing>, String> {
    let (mut lengths, mut codings) = (values(fields, "content-length"), values(fields, "transfer-encoding"));
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, _, None, _) => Ok(None),
        (Some(_), _, Some(_), _) => Err("there are both Content-Length and Transfer-Encoding".to_owned()),
        (_, Some(_), ..) => Err("there are two Content-Length fields".to_owned()),
        (_, _, _, Some(_)) => Err("there are two Transfer-Encoding fields".to_owned()),
        (Some(length), ..) => length_of(length).map(Framing::Length).map(Some),
        (_, _, Some(coding), _) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Some(Framing::Chunked)),
        _ => Err("no other Transfer-Encoding than chunked is understood".to_owned()),
    }
}

fn length_of(value: &[u8]) -> Result<u64, String> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    number.filter(|_| digits).ok_or_else(|| "the Content-Length is not one number".to_owned())
}

/// Which fields stay behind: those of this hop, those that a Connection field names, and those that are written anew.
pub(super) struct Left<'a> {
    nominated: Vec<&'a [u8]>,
}

impl<'a> Left<'a> {
    pub(super) fn of(fields: &'a [Field<'a>]) -> Self {
        Self { nominated: members(fields, "connection").collect() }
    }

    pub(super) fn is_left(&self, name: &[u8]) -> bool {
        HOP.iter().any(|hop| name.eq_ignore_ascii_case(hop.as_bytes()))
            || self.nominated.iter().any(|nominated| name.eq_ignore_ascii_case(nominated))
    }
}

/// What may not come in trailers (RFC 9110 section 6.5.1): it would be too late, or it says how the message is read.
pub(super) fn may_trail(name: &[u8]) -> bool {
    let not = HOP.iter().chain(NOT_TRAILING).any(|one| name.eq_ignore_ascii_case(one.as_bytes()));
    !not && !begins_with(name, "proxy-")
}

pub(super) fn begins_with(name: &[u8], prefix: &str) -> bool {
    name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
}

pub(super) fn push(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// White space around a value is spaces and tabs alone.
pub(super) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Of one hop (RFC 9110 section 7.6.1), or written anew because this node frames the message itself.
const HOP: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

const NOT_TRAILING: &[&str] = &[
    "authorization",
    "cache-control",
    "content-encoding",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "max-forwards",
    "range",
    "set-cookie",
    "trailer",
    "via",
    "www-authenticate",
];

/// Browsers and their extensions send some forty, servers fewer.
const MAX_FIELDS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_strictly() {
        assert_eq!(
            parse(b"A:b\r\nC:  d e\t\r\nE:\r\n\r\n").unwrap(),
            [(&b"A"[..], &b"b"[..]), (b"C", b"d e"), (b"E", b"")]
        );
        assert_eq!(parse("N: caf\u{e9}\r\n\r\n".as_bytes()).unwrap().len(), 1, "values may hold more than ASCII");
        let bad: &[&[u8]] = &[
            b"A: b\n\r\n",
            b"A: b\r\n\n",
            b"A: b\rC: d\r\n\r\n",
            b"A: b\r\n c\r\n\r\n",
            b" A: b\r\n\r\n",
            b"A : b\r\n\r\n",
            b": b\r\n\r\n",
            b"A\r\n\r\n",
            b"A(: b\r\n\r\n",
            b"A: b\0\r\n\r\n",
            b"A: b\x7f\r\n\r\n",
            b"A: b\r\n",
            b"A: b\r\n\r\nC: d\r\n\r\n",
        ];
        for bytes in bad {
            assert!(parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        let many = |count: usize| [b"A: b\r\n".repeat(count), b"\r\n".to_vec()].concat();
        assert!(parse(&many(MAX_FIELDS)).is_ok() && parse(&many(MAX_FIELDS + 1)).is_err());
    }

    #[test]
    fn one_framing_or_none() {
        let framing_of = |text: &str| framing(&parse(format!("{text}\r\n").as_bytes()).unwrap());
        assert_eq!(framing_of("A: b\r\n"), Ok(None));
        assert_eq!(framing_of("Content-Length: 0\r\n"), Ok(Some(Framing::Length(0))));
        assert_eq!(framing_of("content-length: 18446744073709551615\r\n"), Ok(Some(Framing::Length(u64::MAX))));
        assert_eq!(framing_of("Transfer-Encoding: Chunked\r\n"), Ok(Some(Framing::Chunked)));
        for bad in [
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 1 2\r\n",
            "Content-Length: 0x1\r\n",
            "Content-Length:\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, identity\r\n",
            "Transfer-Encoding: xchunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            assert!(framing_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_are_read_over_all_their_fields() {
        let fields = parse(b"Connection: a , B,,\r\nconnection: close\r\n\r\n").unwrap();
        assert_eq!(members(&fields, "connection").collect::<Vec<_>>(), [&b"a"[..], b"B", b"close"]);
        assert!(has_member(&fields, "Connection", "b") && !has_member(&fields, "connection", "c"));
        let left = Left::of(&fields);
        assert!(left.is_left(b"b") && left.is_left(b"TE") && !left.is_left(b"Host"));
    }
}
