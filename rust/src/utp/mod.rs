//! uTP (BEP 29), sans-IO.

pub mod congestion;
pub mod mtu;
pub mod pacing;
pub mod rtt;
