//! TURN (RFC 8656): relayed addresses for those that cannot be reached otherwise. The state machines of both
//! sides, and what they share.
//!
//! | file | what |
//! |---|---|
//! | `credentials` | long-term keys, and names that carry the date on which they end |
//! | `channel` | ChannelData: four bytes before a datagram |
//! | `message` | requests and answers, read and written |
//! | `client` | one allocation and its peers, as who asks for it sees them |
//! | `server` | allocations, permissions, channels; who may have them and what they may cost |

pub mod channel;
pub mod client;
pub mod credentials;
#[doc(hidden)]
pub mod message;
pub mod server;
