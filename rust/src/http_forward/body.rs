//! The body of a message: read as its head says, and framed anew for whoever gets it.

use super::chunked::{push_chunk, push_end, Decoder};

/// How the length of a body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// It ends when the connection does.
    UntilClose,
}

/// Why a body cannot be passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It breaks the rules: what is wrong.
    Malformed(String),
    /// Its sender ended in the middle of it.
    CutShort,
}

/// One body on its way.
#[derive(Debug)]
pub struct Body {
    reads: Reads,
    writes: Framing,
}

#[derive(Debug)]
enum Reads {
    /// So many bytes are still to come.
    Length(u64),
    Chunked(Box<Decoder>),
    UntilClose,
    Done,
}

impl Body {
    /// `reads`: as its sender frames it; `writes`: as its receiver is told that it is framed. The same length is written as is read.
    pub fn new(reads: Framing, writes: Framing) -> Self {
        let reads = match reads {
            Framing::Length(0) => Reads::Done,
            Framing::Length(length) => Reads::Length(length),
            Framing::Chunked => Reads::Chunked(Box::default()),
            Framing::UntilClose => Reads::UntilClose,
        };
        Self { reads, writes }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.reads, Reads::Done)
    }

    /// Takes what belongs to the body from `input` and writes it to `out`, at most a few bytes a chunk more than it takes. Returns how much
    /// was taken: all of it, or up to the end of the body. Errors: [`Fault::Malformed`].
    pub fn take(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Fault> {
        match &mut self.reads {
            Reads::Done => Ok(0),
            Reads::Length(left) => {
                let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= count as u64;
                if *left == 0 {
                    self.reads = Reads::Done;
                }
                push(out, self.writes, &input[..count]);
                Ok(count)
            }
            Reads::UntilClose => {
                push(out, self.writes, input);
                Ok(input.len())
            }
            Reads::Chunked(decoder) => {
                let mut at = 0;
                while at < input.len() && !decoder.is_done() {
                    let (taken, data) = decoder.take(&input[at..]).map_err(Fault::Malformed)?;
                    push(out, self.writes, data);
                    at += taken;
                }
                if decoder.is_done() {
                    if self.writes == Framing::Chunked {
                        push_end(out, decoder.trailers());
                    }
                    self.reads = Reads::Done;
                }
                Ok(at)
            }
        }
    }

    /// The sender has ended in order. Errors: [`Fault::CutShort`].
    pub fn handle_end(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        match self.reads {
            Reads::Done => Ok(()),
            Reads::UntilClose => {
                self.reads = Reads::Done;
                if self.writes == Framing::Chunked {
                    push_end(out, b"\r\n");
                }
                Ok(())
            }
            Reads::Length(_) | Reads::Chunked(_) => Err(Fault::CutShort),
        }
    }
}

fn push(out: &mut Vec<u8>, writes: Framing, data: &[u8]) {
    match writes {
        Framing::Chunked => push_chunk(out, data),
        Framing::Length(_) | Framing::UntilClose => out.extend_from_slice(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(reads: Framing, writes: Framing, input: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), Fault> {
        let (mut body, mut out, mut at) = (Body::new(reads, writes), Vec::new(), 0);
        for piece in input.chunks(step) {
            let taken = body.take(piece, &mut out)?;
            at += taken;
            if taken < piece.len() {
                assert!(body.is_done());
                break;
            }
        }
        if !body.is_done() {
            body.handle_end(&mut out)?;
        }
        Ok((out, at, body.is_done()))
    }

    #[test]
    fn a_length_is_kept_to() {
        for step in [1, 4, 100] {
            let (out, taken, _) = pass(Framing::Length(5), Framing::Length(5), b"helloGET", step).unwrap();
            assert_eq!((&out[..], taken), (&b"hello"[..], 5));
            assert_eq!(pass(Framing::Length(5), Framing::Length(5), b"hell", step), Err(Fault::CutShort));
        }
        assert!(Body::new(Framing::Length(0), Framing::Length(0)).is_done());
    }

    #[test]
    fn chunks_are_made_anew_or_taken_away() {
        let input = b"2;x\r\nhe\r\n3\r\nllo\r\n0\r\nT: 1\r\n\r\nGET";
        let (out, taken, _) = pass(Framing::Chunked, Framing::Chunked, input, 100).unwrap();
        assert_eq!((&out[..], taken), (&b"2\r\nhe\r\n3\r\nllo\r\n0\r\nT: 1\r\n\r\n"[..], input.len() - 3));
        assert_eq!(pass(Framing::Chunked, Framing::UntilClose, input, 1).unwrap().0, b"hello");
        assert_eq!(pass(Framing::Chunked, Framing::Chunked, b"2\r\nhe\r\n", 3), Err(Fault::CutShort));
        assert!(matches!(pass(Framing::Chunked, Framing::Chunked, b"zz", 3), Err(Fault::Malformed(_))));
    }

    #[test]
    fn what_ends_with_the_connection_gets_an_end_that_shows() {
        let (out, ..) = pass(Framing::UntilClose, Framing::Chunked, b"hello", 100).unwrap();
        assert_eq!(out, b"5\r\nhello\r\n0\r\n\r\n");
        assert_eq!(pass(Framing::UntilClose, Framing::UntilClose, b"hello", 2).unwrap().0, b"hello");
    }
}
