//! What is fuzzed: each target turns any bytes into a test of one part of the core and panics when a property does not hold. The
//! same bodies serve the coverage-guided fuzzer (`fuzz/`, `make fuzz`) and the replay of its corpus (`tests/fuzz/main.rs`).

mod chain;
mod codec;
mod discovery;
mod endpoint;
mod head;
mod http;
mod input;
mod introduction;
mod open;
mod pair;
mod path;
mod stun;
mod turn;
mod turn_client;
mod turn_pair;
mod whereabouts;

/// The body of a target: any input is legal.
pub type Target = fn(&[u8]);

/// Named as the folders of `fuzz/corpus`.
pub const TARGETS: &[(&str, Target)] = &[
    ("classify", codec::classified),
    ("codec", codec::packets),
    ("endpoint", endpoint::one_against_all),
    ("pair", pair::adversarial_path),
    ("stun", stun::messages),
    ("path", path::operations),
    ("head", head::requests),
    ("http", http::messages),
    ("open", open::messages),
    ("chain", chain::certificates),
    ("introduction", introduction::messages),
    ("whereabouts", whereabouts::any_two),
    ("discovery", discovery::questions),
    ("turn", turn::operations),
    ("turn_client", turn_client::operations),
    ("turn_pair", turn_pair::operations),
];
