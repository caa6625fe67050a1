//! A network in virtual time and two endpoints on it. Everything follows from one seed.
#![allow(dead_code)]

pub mod link;
pub mod pair;
pub mod peer;
pub mod rng;

/// Prints the seed when the test that holds it panics.
pub struct Seed(pub u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {:#x}", self.0);
        }
    }
}
