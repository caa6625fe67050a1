//! One libFuzzer binary for all targets; the environment variable `KEYNET_FUZZ` says which one it runs.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/support/mod.rs"]
mod support;
#[path = "../../tests/fuzz/targets/mod.rs"]
mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let wanted = std::env::var("KEYNET_FUZZ").unwrap_or_default();
    match targets::TARGETS.iter().find(|(name, _)| *name == wanted) {
        Some((_, target)) => *target,
        None => panic!("KEYNET_FUZZ={wanted:?} is no target of tests/fuzz/targets/mod.rs"),
    }
});

fuzz_target!(|data: &[u8]| TARGET(data));
