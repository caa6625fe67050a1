//! HTTP/1.x CONNECT as the forward proxy speaks it (RFC 9110 section 9.3.6, RFC 9112, RFC 9209; docs/protocol.md section 6).
//!
//! Everything here is hostile input: [`HeadBuffer`] collects a head of bounded size, [`Request::parse`] judges it
//! (credentials before anything else), [`answer`] tells the client what became of it.

mod answer;
mod head;
mod target;

pub use answer::{answer, ESTABLISHED};
pub use head::{Credentials, HeadBuffer, Request};
pub use target::{check_address, Target};
