//! A peer that does what the test says: packets written by hand against a real endpoint.
