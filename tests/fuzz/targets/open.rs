//! `Open` and its answer.

use keynet::error::{Reason, Result};
use keynet::open::{Answer, Collector, Open};

/// The same message whatever the pieces, never a byte of what follows it, and a decoded one says the same when it is sent on.
pub fn messages(data: &[u8]) {
    let whole = collect(data, usize::MAX);
    assert_eq!(collect(data, 1), whole, "byte by byte");
    assert_eq!(collect(data, 7), whole, "by sevens");
    let body = match &whole {
        Ok(Some(body)) => body,
        Ok(None) => return,
        Err(error) => return assert_eq!(error.reason, Reason::ProtocolViolation),
    };
    match Open::decode(body) {
        Ok(open) => assert_eq!(Open::decode(&unframed(&open.encode())), Ok(open)),
        Err(error) => assert_eq!(error.reason, Reason::ProtocolViolation),
    }
    match Answer::decode(body) {
        Ok(answer) => {
            if let Answer::Refused { text, .. } = &answer {
                assert!(!text.chars().any(char::is_control), "{text:?}");
            }
            let again = Answer::decode(&unframed(&answer.encode()));
            assert_eq!(again.map(reason), Ok(reason(answer.clone())));
            let _ = answer.into_result();
        }
        Err(error) => assert_eq!(error.reason, Reason::ProtocolViolation),
    }
}

/// The text is cut to what a message holds, so only the reason comes back whole.
fn reason(answer: Answer) -> Option<Reason> {
    match answer {
        Answer::Accepted(_) => None,
        Answer::Refused { reason, .. } => Some(reason),
    }
}

fn unframed(wire: &[u8]) -> Vec<u8> {
    collect(wire, usize::MAX).expect("what is sent can be collected").expect("and is complete")
}

fn collect(wire: &[u8], step: usize) -> Result<Option<Vec<u8>>> {
    let mut collector = Collector::default();
    let mut rest = wire;
    loop {
        let wanted = collector.wanted()?;
        if wanted == 0 {
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
