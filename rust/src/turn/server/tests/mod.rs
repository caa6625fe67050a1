//! The server in virtual time.

mod abuse;
mod client;
mod codes;
mod data;
mod random;
