//! HTTP/1.x CONNECT as the forward proxy speaks it (RFC 9110 section 9.3.6, RFC 9112, RFC 9209; docs/protocol.md section 6).
//!
//! Everything here is hostile input: [`HeadBuffer`] collects a head of bounded size, [`Request::parse`] judges it
//! (credentials before anything else), [`answer`] tells the client what became of it. [`Reply`] is the other side: what a proxy
//! says that we have asked. [`browser`] knows requests that a page in a browser has sent.

mod answer;
pub mod browser;
mod head;
mod reply;
mod target;

pub use answer::{answer, ESTABLISHED};
pub use head::{Credentials, HeadBuffer, Request};
pub use reply::Reply;
pub use target::{check_address, excerpt, Target};
