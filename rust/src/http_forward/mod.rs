//! HTTP/1 requests that name a whole URL (RFC 9112 section 3.2.2), passed on to the service that the URL names, and the answers on their way
//! back (docs/protocol.md section 6).
//!
//! Nothing is passed on as it came: [`Request::parse`] and [`Response::parse`] read a head strictly and write a new one, [`Body`] reads
//! what follows and frames it anew. What two readers could take for two different messages is refused (RFC 9112 section 11), so the
//! service never sees a message that this node has read otherwise.

mod body;
mod chunked;
mod collect;
mod fields;
mod request;
mod response;

pub use body::{Body, Fault, Framing};
pub use collect::AnswerHead;
pub use request::{is_whole_url, Request};
pub use response::{Asked, Response};
