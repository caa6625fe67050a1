//! The head of an answer, collected within a cap.

use crate::error::{Error, Reason, Result, Stage};

/// Collects one head, whatever pieces it comes in, and keeps what came along behind it. What cannot become an answer is noticed at once:
/// a service that is none of HTTP says something and waits.
#[derive(Debug)]
pub struct AnswerHead {
    bytes: Vec<u8>,
    scanned: usize,
    max: usize,
}

impl AnswerHead {
    /// `max`: the most bytes that a head may have, its final empty line included.
    pub fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), scanned: 0, max }
    }

    /// True until the service has said something.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes bytes of the service. Returns the length of the head once it is complete; then call [`Self::split`].
    ///
    /// Errors: [`Reason::ServiceProtocolError`].
    pub fn handle_bytes(&mut self, data: &[u8]) -> Result<Option<usize>> {
        self.bytes.extend_from_slice(data);
        let begin = self.bytes.len().min(BEGIN.len());
        if self.bytes[..begin] != BEGIN[..begin] {
            let shown = self.bytes.iter().take(MAX_EXCERPT).copied().flat_map(std::ascii::escape_default);
            let shown: String = shown.map(char::from).collect();
            return Err(bad(format!("the service does not answer in HTTP/1, but with \"{shown}\"")));
        }
        while self.scanned < self.bytes.len().min(self.max) {
            let end = self.scanned;
            self.scanned += 1;
            if self.bytes[end] == b'\n' {
                let head = &self.bytes[..end];
                if !head.ends_with(b"\r") {
                    return Err(bad("a line of the head of the answer ends with LF alone, not with CR LF"));
                }
                if head.ends_with(b"\r\n\r") {
                    return Ok(Some(self.scanned));
                }
            }
        }
        if self.bytes.len() > self.max {
            return Err(bad(format!("the head of the answer has more than {} bytes", self.max)));
        }
        Ok(None)
    }

    /// The head and the bytes that came along behind it.
    pub fn split(&self, head_length: usize) -> (&[u8], &[u8]) {
        self.bytes.split_at(head_length.min(self.bytes.len()))
    }
}

fn bad(text: impl Into<String>) -> Error {
    Error::new(Reason::ServiceProtocolError, Stage::Service, text)
}

const BEGIN: &[u8] = b"HTTP/1.";
/// Enough to see what it is.
const MAX_EXCERPT: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(sent: &[u8], step: usize) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let mut head = AnswerHead::new(64);
        for piece in sent.chunks(step) {
            if let Some(length) = head.handle_bytes(piece)? {
                let (head, rest) = head.split(length);
                return Ok(Some((head.to_vec(), rest.to_vec())));
            }
        }
        Ok(None)
    }

    #[test]
    fn heads_come_in_whatever_pieces() {
        let sent = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody";
        let (head, rest) = collect(sent, 100).unwrap().unwrap();
        assert_eq!((&head[..], &rest[..]), (&sent[..25], &b"body"[..]));
        for step in 1..25 {
            assert_eq!(collect(sent, step).unwrap().unwrap().0, &sent[..25]);
        }
        assert!(collect(&sent[..24], 1).unwrap().is_none());
    }

    #[test]
    fn what_is_no_answer_is_noticed_at_once() {
        for sent in [&b"SSH-2.0-x\r\n"[..], b"\0\0\x12\x04", b"HTTP/2", b"\r\n", b"HTTP/1.1 200 OK\n"] {
            for step in [1, 100] {
                assert_eq!(collect(sent, step).unwrap_err().reason, Reason::ServiceProtocolError);
            }
        }
        assert!(collect(&[b"HTTP/1.1 200 OK\r\nA: ", &[b'x'; 64][..]].concat(), 7).is_err());
    }
}
