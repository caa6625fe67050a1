//! Replays what the fuzzer has found: every file of `fuzz/corpus` goes once through its target. Finding more is `make fuzz`.

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../support/mod.rs"]
mod support;
mod targets;

/// Prints the file when the target panics.
struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0.display());
        }
    }
}

fn replay(name: &str) {
    let (_, target) = targets::TARGETS.iter().find(|(known, _)| *known == name).expect("a target of this name");
    target(&[]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "the corpus of {name} is empty");
    for file in files {
        let data = fs::read(&file).expect("a readable file");
        let _file = File(file);
        target(&data);
    }
}

macro_rules! replays {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        #[test]
        fn every_target_is_replayed() {
            let replayed = [$(stringify!($name)),*];
            assert!(targets::TARGETS.iter().map(|(name, _)| *name).eq(replayed));
        }
    };
}

replays!(classify codec endpoint pair stun path head http open chain introduction whereabouts discovery turn turn_client turn_pair);
