//! TURN (RFC 8656): relayed addresses for those that cannot be reached otherwise. The server's state machine, and what both
//! sides share.
//!
//! | file | what |
//! |---|---|
//! | `credentials` | long-term keys, and names that carry the date on which they end |
//! | `channel` | ChannelData: four bytes before a datagram |
//! | `message` | requests and answers, read and written |
//! | `server` | allocations, permissions, channels; who may have them and what they may cost |

pub mod channel;
pub mod credentials;
#[doc(hidden)]
pub mod message;
pub mod server;
