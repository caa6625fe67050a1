//! A TURN client without sockets and clocks: one allocation, and the peers it talks with.
//!
//! | file | what |
//! |---|---|
//! | `message`, `frame` | what is on the wire: requests and answers, channel data |
//! | `peers`, `session` | one allocation as a state machine |
//!
//! It is ours: `turn-client-proto` tells no error codes, refreshes permissions for ever, and has no question of its own by which
//! a dead relay is noticed.

mod frame;
mod message;
mod peers;
mod session;

pub use frame::{take_frames, Batches, NotTurn, Transmit};
pub use session::{Alternate, Event, Granted, Held, Session};
