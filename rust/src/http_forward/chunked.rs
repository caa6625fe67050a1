//! The chunked coding (RFC 9112 section 7.1), read strictly and written plainly: extensions stay behind, trailers go along.

use std::io::Write;

use super::fields;

/// Reads one body; after its trailers nothing more is taken.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// Bytes of extensions so far, over all chunks.
    extensions: usize,
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Hexadecimal digits, so many so far.
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    /// The LF of the line with the size.
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    /// The CR LF behind the data.
    DataCr,
    DataLf,
    Trailers,
    Done,
}

impl Default for State {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl Decoder {
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// What came behind the last chunk, with the empty line at its end.
    pub(super) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// Takes from `input` until it has some data, or is done, or wants more. Returns how much was taken, and the data, which is part of
    /// that. Errors: what is wrong.
    pub(super) fn take<'i>(&mut self, input: &'i [u8]) -> Result<(usize, &'i [u8]), String> {
        let mut at = 0;
        while let Some(byte) = input.get(at).copied() {
            self.state = match self.state {
                State::Data { left } => {
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                    let left = left - count as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    return Ok((at + count, &input[at..at + count]));
                }
                State::Trailers => {
                    at += 1;
                    self.take_trailer(byte)?;
                    if self.is_done() {
                        break;
                    }
                    continue;
                }
                State::Done => break,
                state => self.step(state, byte)?,
            };
            at += 1;
        }
        Ok((at, &[]))
    }

    fn step(&mut self, state: State, byte: u8) -> Result<State, String> {
        Ok(match (state, byte) {
            (State::Size { size, digits }, _) if byte.is_ascii_hexdigit() => {
                if digits == MAX_DIGITS {
                    return Err("the size of a chunk is too large".to_owned());
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                State::Size { size: (size << 4) | u64::from(digit), digits: digits + 1 }
            }
            (State::Size { digits: 0, .. }, _) => return Err("a chunk has no size".to_owned()),
            (State::Size { size, .. } | State::Extension { size }, b'\r') => State::SizeEnd { size },
            (State::Size { size, .. }, b';' | b' ' | b'\t') => State::Extension { size },
            (State::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(format!("the extensions of chunks have more than {MAX_EXTENSIONS} bytes"));
                }
                State::Extension { size }
            }
            (State::SizeEnd { size: 0 }, b'\n') => State::Trailers,
            (State::SizeEnd { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::default(),
            (State::DataCr | State::DataLf, _) => return Err("a chunk is longer than its size".to_owned()),
            _ => return Err("the line with the size of a chunk cannot be read".to_owned()),
        })
    }

    fn take_trailer(&mut self, byte: u8) -> Result<(), String> {
        if self.trailers.len() == MAX_TRAILERS {
            return Err(format!("the trailers have more than {MAX_TRAILERS} bytes"));
        }
        self.trailers.push(byte);
        if self.trailers == b"\r\n" || self.trailers.ends_with(b"\r\n\r\n") {
            fields::parse(&self.trailers)?;
            self.state = State::Done;
        }
        Ok(())
    }
}

/// Writes some data as one chunk.
pub(super) fn push_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        // writing to a Vec does not fail
        let _ = write!(out, "{:x}\r\n", data.len());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the end of a body, with those of its trailers that may be there.
pub(super) fn push_end(out: &mut Vec<u8>, trailers: &[u8]) {
    out.extend_from_slice(b"0\r\n");
    // they have been read before
    for (name, value) in fields::parse(trailers).unwrap_or_default() {
        if fields::may_trail(name) {
            fields::push(out, name, value);
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Of 64 bits.
const MAX_DIGITS: u8 = 16;
/// Over all chunks of a body: those who send extensions at all sign chunks of 64 KiB with some 90 bytes each, so this is a body of some
/// 700 MB; nobody may make work with one byte a chunk.
const MAX_EXTENSIONS: usize = 1 << 20;
const MAX_TRAILERS: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Data, trailers, and how much was taken.
    fn decode(input: &[u8], step: usize) -> Result<(Vec<u8>, Vec<u8>, usize, bool), String> {
        let (mut decoder, mut data, mut at) = (Decoder::default(), Vec::new(), 0);
        for piece in input.chunks(step) {
            let mut rest = piece;
            while !rest.is_empty() && !decoder.is_done() {
                let (taken, some) = decoder.take(rest)?;
                data.extend_from_slice(some);
                at += taken;
                rest = &rest[taken..];
            }
        }
        Ok((data, decoder.trailers().to_vec(), at, decoder.is_done()))
    }

    #[test]
    fn bodies_are_read_in_whatever_pieces_they_come() {
        let cases: &[(&[u8], &[u8], &[u8])] = &[
            (b"0\r\n\r\n", b"", b"\r\n"),
            (b"3\r\nabc\r\n0\r\n\r\n", b"abc", b"\r\n"),
            (b"3;name=value\r\nabc\r\n00A ; q=\"x;y\"\r\n0123456789\r\n0\r\n\r\n", b"abc0123456789", b"\r\n"),
            (b"1\r\na\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"a", b"A: b\r\nC: d\r\n\r\n"),
        ];
        for (input, data, trailers) in cases {
            for step in [1, 2, 3, 7, usize::MAX] {
                let followed = [input, &b"GET"[..]].concat();
                let found = decode(&followed, step.min(followed.len())).unwrap();
                assert_eq!(found, (data.to_vec(), trailers.to_vec(), input.len(), true), "{}", input.escape_ascii());
            }
        }
        assert!(!decode(b"3\r\nab", 1).unwrap().3);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let long = [b"1;".to_vec(), vec![b'x'; MAX_EXTENSIONS + 1], b"\r\na\r\n0\r\n\r\n".to_vec()].concat();
        let trailing = [b"0\r\n".to_vec(), b"A: b\r\n".repeat(2_000), b"\r\n".to_vec()].concat();
        let bad: &[&[u8]] = &[
            b"\r\n",
            b";a\r\n",
            b"g\r\n",
            b"-1\r\n",
            b"0x1\r\na\r\n",
            b" 1\r\na\r\n",
            b"1\na\r\n",
            b"1\r\nab\r\n",
            b"2\r\na\r\n0\r\n\r\n",
            b"1\r\na\n0\r\n\r\n",
            b"1\r\na\rx",
            b"1;a\nb\r\na\r\n",
            b"1;a\rb\r\na\r\n",
            b"1;\0\r\na\r\n",
            b"10000000000000000\r\n",
            b"00000000000000001\r\na\r\n",
            b"0\r\nA b\r\n\r\n",
            b"0\r\nA: b\n\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            &long,
            &trailing,
        ];
        for input in bad {
            for step in [1, input.len()] {
                assert!(decode(input, step).is_err(), "{}", input[..input.len().min(40)].escape_ascii());
            }
        }
    }

    #[test]
    fn what_is_written_can_be_read_and_holds_no_field_of_a_head() {
        let mut out = Vec::new();
        push_chunk(&mut out, b"");
        push_chunk(&mut out, b"0123456789abcdef");
        push_end(&mut out, b"Sum: 1\r\nContent-Length: 5\r\nProxy-Thing: 1\r\nhost: b\r\n\r\n");
        let (data, trailers, _, done) = decode(&out, 3).unwrap();
        assert_eq!((&data[..], &trailers[..], done), (&b"0123456789abcdef"[..], &b"Sum: 1\r\n\r\n"[..], true));
    }
}
