//! `Open` and its answer (docs/protocol.md section 5): what the two nodes say to each other before a stream belongs to the
//! two TCP connections.

use std::time::Duration;

use crate::addr::{Incarnation, NodeId};
use crate::error::{printable, Error, Reason, Result, Stage};

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Priority {
    /// Shares fairly with TCP.
    #[default]
    Interactive,
    /// Yields to everything else (LEDBAT).
    Background,
}

/// The dialler's first message: the service it wants.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Open {
    /// 0: the only service there is.
    pub service_port: u16,
    /// The node that the dialler believes it talks to; the acceptor checks that it is one of its own names.
    pub node: Option<NodeId>,
    pub priority: Priority,
    /// The dialler takes uTP packets with tags from here on (docs/protocol.md section 3).
    pub tags: bool,
    pub terms: Terms,
}

/// What each side says of itself, in [`Open`] and in its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Terms {
    /// Which life of its node the sender is.
    pub incarnation: Option<Incarnation>,
    /// How long a silence of the other side the sender lets the stream outlive; whole seconds on the wire.
    pub patience: Option<Duration>,
}

impl Terms {
    fn push(&self, body: &mut Vec<u8>, (incarnation, patience): (u8, u8)) {
        if let Some(value) = &self.incarnation {
            push_option(body, incarnation, value);
        }
        if let Some(value) = self.patience {
            push_option(body, patience, &u16::try_from(value.as_secs()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }

    fn take(&mut self, tags: (u8, u8), tag: u8, value: &[u8]) -> Result<()> {
        if tag == tags.0 {
            let value = value.try_into().map_err(|_| violation("an incarnation that has not 16 bytes"))?;
            self.incarnation = Some(value);
        } else if tag == tags.1 {
            let value = value.try_into().map_err(|_| violation("a patience that has not 2 bytes"))?;
            self.patience = Some(Duration::from_secs(u16::from_be_bytes(value).into()));
        }
        Ok(())
    }
}

/// The acceptor's answer to [`Open`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// From here on the stream belongs to the two TCP connections.
    Accepted(Terms),
    /// The stream ends.
    Refused { reason: Reason, text: String },
}

impl Open {
    /// The message as it goes over the wire, with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut body = vec![OPEN];
        body.extend_from_slice(&self.service_port.to_be_bytes());
        if let Some(node) = &self.node {
            push_option(&mut body, TAG_NODE, node.public_key());
        }
        if self.priority == Priority::Background {
            push_option(&mut body, TAG_PRIORITY, &[1]);
        }
        if self.tags {
            push_option(&mut body, TAG_TAGS, &[]);
        }
        self.terms.push(&mut body, OPEN_TERMS);
        framed(&body)
    }

    /// Reads a message that [`Collector`] has put together. Errors: [`Reason::ProtocolViolation`].
    pub fn decode(body: &[u8]) -> Result<Self> {
        let (kind, rest) = body.split_first().ok_or_else(|| violation("an empty message"))?;
        if *kind != OPEN {
            return Err(violation(format!("message {kind} where Open belongs")));
        }
        let (port, options) = take_u16(rest).ok_or_else(|| violation("Open ends before its port"))?;
        let mut open = Self { service_port: port, ..Self::default() };
        each_option(options, |tag, value| {
            match tag {
                TAG_NODE => {
                    let key = value.try_into().map_err(|_| violation("a node id that has not 32 bytes"))?;
                    open.node = Some(NodeId::of_key(key).map_err(|bad| violation(format!("a node id: {bad}")))?);
                }
                TAG_PRIORITY => {
                    open.priority = match value {
                        [0] => Priority::Interactive,
                        [1] => Priority::Background,
                        _ => return Err(violation("an unknown priority")),
                    }
                }
                TAG_TAGS if value.is_empty() => open.tags = true,
                TAG_TAGS => return Err(violation("an option 5 that is not empty")),
                _ => open.terms.take(OPEN_TERMS, tag, value)?,
            }
            Ok(())
        })?;
        Ok(open)
    }
}

impl Answer {
    /// A refusal for `error`: its reason, and its detail as far as the message holds it.
    pub fn refused(error: &Error) -> Self {
        Self::Refused { reason: error.reason, text: error.detail.clone() }
    }

    /// The message as it goes over the wire, with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Accepted(terms) => {
                let mut body = vec![ACCEPTED];
                terms.push(&mut body, ACCEPTED_TERMS);
                framed(&body)
            }
            Self::Refused { reason, text } => {
                let mut body = vec![REFUSED];
                body.extend_from_slice(&reason.code().to_be_bytes());
                body.extend_from_slice(capped(text).as_bytes());
                framed(&body)
            }
        }
    }

    /// Reads a message that [`Collector`] has put together. Errors: [`Reason::ProtocolViolation`].
    pub fn decode(body: &[u8]) -> Result<Self> {
        let (kind, rest) = body.split_first().ok_or_else(|| violation("an empty message"))?;
        match *kind {
            ACCEPTED => {
                let mut terms = Terms::default();
                each_option(rest, |tag, value| terms.take(ACCEPTED_TERMS, tag, value))?;
                Ok(Self::Accepted(terms))
            }
            REFUSED => {
                let (code, text) = take_u16(rest).ok_or_else(|| violation("Refused ends before its reason"))?;
                if text.len() > MAX_TEXT {
                    return Err(violation(format!("a refusal of {} bytes", text.len())));
                }
                Ok(read_refusal(code, text))
            }
            other => Err(violation(format!("message {other} where an answer belongs"))),
        }
    }

    /// What a refusal means to the dialler; what the acceptor says of itself when the stream was accepted.
    pub fn into_result(self) -> Result<Terms> {
        match self {
            Self::Accepted(terms) => Ok(terms),
            Self::Refused { reason, text } => {
                let stage = match reason {
                    Reason::ServiceRefused | Reason::ServiceTimeout => Stage::Service,
                    Reason::RejectedByPeer => Stage::Tls,
                    _ => Stage::Open,
                };
                let by = "the peer refused";
                Err(Error::new(reason, stage, if text.is_empty() { by.to_owned() } else { format!("{by}: {text}") }))
            }
        }
    }
}

/// A peer may only give the reasons that a peer can know: it must not make this proxy ask its client for a password (407).
fn read_refusal(code: u16, text: &[u8]) -> Answer {
    let text = printable(String::from_utf8_lossy(text).into_owned(), MAX_TEXT);
    match Reason::from_code(code).filter(|reason| REFUSALS.contains(reason)) {
        Some(reason) => Answer::Refused { reason, text },
        None => {
            Answer::Refused { reason: Reason::ProtocolViolation, text: format!("refused with code {code}: {text}") }
        }
    }
}

/// Puts one message together from whatever pieces arrive, without taking a byte of what follows it.
#[derive(Debug, Default)]
pub struct Collector {
    bytes: Vec<u8>,
}

impl Collector {
    /// How many bytes to read next, at most; 0 when the message is complete. Errors: [`Reason::ProtocolViolation`] for a
    /// length that no message has.
    pub fn wanted(&self) -> Result<usize> {
        let Some((length, body)) = take_u16(&self.bytes) else { return Ok(PREFIX - self.bytes.len()) };
        match usize::from(length) {
            0 => Err(violation("an empty message")),
            length if length > MAX_MESSAGE => Err(violation(format!("a message of {length} bytes"))),
            length => Ok(length.saturating_sub(body.len())),
        }
    }

    /// Takes what was read: no more than [`Self::wanted`].
    pub fn handle_bytes(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
    }

    /// True until the first byte.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The complete message without its length.
    pub fn body(&self) -> &[u8] {
        self.bytes.get(PREFIX..).unwrap_or_default()
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    debug_assert!(body.len() <= MAX_MESSAGE);
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], body].concat()
}

fn push_option(body: &mut Vec<u8>, tag: u8, value: &[u8]) {
    body.push(tag);
    body.extend_from_slice(&(value.len() as u16).to_be_bytes());
    body.extend_from_slice(value);
}

/// Calls `take` for each option; each tag may occur once.
fn each_option(mut bytes: &[u8], mut take: impl FnMut(u8, &[u8]) -> Result<()>) -> Result<()> {
    let mut seen = [false; 256];
    while let Some((tag, rest)) = bytes.split_first() {
        let (value, rest) = take_u16(rest)
            .and_then(|(length, rest)| rest.split_at_checked(usize::from(length)))
            .ok_or_else(|| violation("an option ends early"))?;
        if std::mem::replace(&mut seen[usize::from(*tag)], true) {
            return Err(violation(format!("option {tag} occurs twice")));
        }
        take(*tag, value)?;
        bytes = rest;
    }
    Ok(())
}

fn take_u16(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk::<2>()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// The longest start of `text` that fits, whole characters only.
fn capped(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

fn violation(text: impl Into<String>) -> Error {
    Error::new(Reason::ProtocolViolation, Stage::Open, format!("the peer sent {}", text.into()))
}

const OPEN: u8 = 1;
const ACCEPTED: u8 = 2;
const REFUSED: u8 = 3;
const TAG_NODE: u8 = 1;
const TAG_PRIORITY: u8 = 2;
const TAG_TAGS: u8 = 5;
/// The tags of incarnation and patience.
const OPEN_TERMS: (u8, u8) = (3, 4);
const ACCEPTED_TERMS: (u8, u8) = (1, 2);
const PREFIX: usize = 2;
const MAX_MESSAGE: usize = 1024;
const MAX_TEXT: usize = 512;
/// The reasons that `Refused` may carry.
const REFUSALS: &[Reason] = &[
    Reason::IdentityMismatch,
    Reason::RejectedByPeer,
    Reason::AccessDenied,
    Reason::ServiceNotFound,
    Reason::ServiceRefused,
    Reason::ServiceTimeout,
    Reason::PeerBusy,
    Reason::ProtocolViolation,
    Reason::OpenTimeout,
    Reason::PeerClosed,
    Reason::Internal,
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Collects a message from pieces of `step` bytes; what follows it must stay untouched.
    fn collect(wire: &[u8], step: usize) -> Result<Option<Vec<u8>>> {
        let mut collector = Collector::default();
        let mut rest = wire;
        loop {
            let wanted = collector.wanted()?;
            if wanted == 0 {
                assert_eq!(rest.len() + collector.bytes.len(), wire.len());
                return Ok(Some(collector.body().to_vec()));
            }
            let (piece, left) = rest.split_at(wanted.min(step).min(rest.len()));
            if piece.is_empty() {
                return Ok(None);
            }
            collector.handle_bytes(piece);
            rest = left;
        }
    }

    fn collected(wire: &[u8]) -> Vec<u8> {
        let whole = collect(wire, usize::MAX).unwrap().unwrap();
        assert_eq!(collect(wire, 1).unwrap().as_ref(), Some(&whole));
        let with_more = [wire, b"more"].concat();
        assert_eq!(collect(&with_more, 3).unwrap().as_ref(), Some(&whole));
        assert_eq!(collect(&wire[..wire.len() - 1], 1).unwrap(), None);
        whole
    }

    fn opens() -> Vec<Open> {
        let node = Some(NodeId::from_public_key([3; 32]));
        vec![
            Open::default(),
            Open { service_port: 50051, node, ..Open::default() },
            Open {
                service_port: 65535,
                node: None,
                priority: Priority::Background,
                tags: true,
                terms: Terms { incarnation: Some([7; 16]), patience: Some(Duration::from_secs(300)) },
            },
        ]
    }

    #[test]
    fn open_as_the_protocol_writes_it() {
        let open = Open { service_port: 0x1234, priority: Priority::Background, ..Open::default() };
        assert_eq!(open.encode(), [0, 7, 1, 0x12, 0x34, 2, 0, 1, 1]);
        assert_eq!(Answer::Accepted(Terms::default()).encode(), [0, 1, 2]);
        let refused = Answer::Refused { reason: Reason::AccessDenied, text: "no".to_owned() };
        assert_eq!(refused.encode(), [0, 5, 3, 0, 80, b'n', b'o']);
    }

    #[test]
    fn messages_come_back_as_they_were_sent() {
        for open in opens() {
            assert_eq!(Open::decode(&collected(&open.encode())), Ok(open));
        }
        for terms in [Terms::default(), Terms { incarnation: Some([7; 16]), patience: Some(Duration::from_secs(300)) }]
        {
            let accepted = Answer::Accepted(terms);
            assert_eq!(Answer::decode(&collected(&accepted.encode())), Ok(accepted));
        }
        for &reason in REFUSALS {
            let answer = Answer::Refused { reason, text: "wörds".to_owned() };
            assert_eq!(Answer::decode(&collected(&answer.encode())), Ok(answer.clone()));
            let error = answer.into_result().unwrap_err();
            assert_eq!(error.reason, reason);
            assert!(error.detail.contains("wörds"));
        }
    }

    #[test]
    fn unknown_options_are_skipped_and_known_ones_come_once() {
        let skipped = [1, 0, 80, 200, 0, 2, 9, 9, 2, 0, 1, 1];
        assert_eq!(Open::decode(&skipped).map(|open| open.priority), Ok(Priority::Background));
        assert!(Open::decode(&[1, 0, 80, 200, 0, 0, 200, 0, 0]).is_err());
        assert_eq!(Answer::decode(&[2, 7, 0, 1, 5]), Ok(Answer::Accepted(Terms::default())));
    }

    #[test]
    fn broken_messages_are_violations() {
        let broken: [&[u8]; 13] = [
            &[],
            &[2],
            &[1],
            &[1, 0],
            &[1, 0, 80, 1],
            &[1, 0, 80, 1, 0, 9, 1],
            &[1, 0, 80, 1, 0, 1, 1],
            &[1, 0, 80, 2, 0, 1, 2],
            &[1, 0, 80, 2, 0, 0],
            &[3, 0, 0],
            &[1, 0, 80, 3, 0, 2, 1, 1],
            &[1, 0, 80, 4, 0, 1, 1],
            &[255; 64],
        ];
        for body in broken {
            assert_eq!(Open::decode(body).unwrap_err().reason, Reason::ProtocolViolation, "{body:?}");
        }
        let weak = [&[1, 0, 80, 1, 0, 32][..], &[0; 32]].concat();
        assert_eq!(Open::decode(&weak).unwrap_err().reason, Reason::ProtocolViolation, "nobody's key");
        let long = [&[3, 0, 80][..], &[b'x'; MAX_TEXT + 1]].concat();
        for body in [&[][..], &[1], &[3], &[3, 0], &[2, 1], &long] {
            assert_eq!(Answer::decode(body).unwrap_err().reason, Reason::ProtocolViolation, "{body:?}");
        }
        for length in [0u16, 1025, u16::MAX] {
            assert_eq!(collect(&length.to_be_bytes(), 1).unwrap_err().reason, Reason::ProtocolViolation);
        }
    }

    #[test]
    fn a_peer_cannot_speak_for_the_proxy() {
        for reason in [Reason::CredentialsRequired, Reason::Finished, Reason::MethodNotAllowed] {
            let body = [&[3][..], &reason.code().to_be_bytes(), b"x\r\n"].concat();
            let Ok(Answer::Refused { reason: read, text }) = Answer::decode(&body) else { panic!("a refusal") };
            assert_eq!(read, Reason::ProtocolViolation);
            assert!(text.contains(&reason.code().to_string()) && !text.contains('\n'));
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = "ä".repeat(MAX_TEXT);
        let wire = Answer::Refused { reason: Reason::Internal, text }.encode();
        let Ok(Answer::Refused { text, .. }) = Answer::decode(&wire[2..]) else { panic!("a refusal") };
        assert_eq!(text, "ä".repeat(MAX_TEXT / 2));
        let text = format!("a{}", "ä".repeat(MAX_TEXT));
        let wire = Answer::Refused { reason: Reason::Internal, text }.encode();
        assert!(wire.len() < 2 + 3 + MAX_TEXT);
        assert!(Answer::decode(&wire[2..]).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let whole = collect(&bytes, usize::MAX);
            prop_assert_eq!(&whole, &collect(&bytes, 1));
            for error in [Open::decode(&bytes).err(), Answer::decode(&bytes).err()].into_iter().flatten() {
                prop_assert_eq!(error.reason, Reason::ProtocolViolation);
            }
        }
    }
}
