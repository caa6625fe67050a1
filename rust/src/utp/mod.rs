//! uTP (BEP 29), sans-IO.

pub mod congestion;
