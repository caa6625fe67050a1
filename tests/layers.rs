//! Holds the crate together: the direction of imports, what the core may not touch, and the size of files and functions.
//!
//! Every file under `rust/src` is read as tokens, so that comments, strings and macros cannot hide a path or invent one.
//! The rules are data at the end of this file; `layers/planted.rs` plants a violation of each and sees it found.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::fs;
use std::path::Path;

use proc_macro2::TokenStream;

use walk::{Name, Walk};

#[path = "layers/planted.rs"]
mod planted;
#[path = "layers/walk.rs"]
mod walk;

#[test]
fn the_crate_keeps_its_layers() {
    // read when it runs: the same binary can be pointed at another checkout
    let checkout = env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    let root = Path::new(&checkout).join("rust/src");
    let sources = read_sources(&root);
    assert!(sources.iter().any(|source| source.path == "lib.rs"), "no lib.rs under {}", root.display());
    let findings = check(&sources);
    let report: String = findings.iter().map(|finding| format!("  rust/src/{finding}\n")).collect();
    assert!(findings.is_empty(), "{} breach(es) of the rules in tests/layers.rs:\n{report}", findings.len());
}

/// One file, its path relative to `rust/src`.
struct Source {
    path: String,
    text: String,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

fn read_sources(root: &Path) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                sources.push(Source { path: relative, text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    sources
}

fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut walks = Vec::new();
    for source in sources {
        match source.text.parse::<TokenStream>() {
            Ok(tokens) => walks.push((source, Walk::of(&source.path, tokens))),
            Err(error) => findings.push(finding(&source.path, error.span().start().line, "cannot be read as Rust")),
        }
    }
    let test_modules: HashSet<Vec<String>> = walks.iter().flat_map(|(_, walk)| walk.test_modules.clone()).collect();
    let test_files: HashSet<String> = walks.iter().flat_map(|(_, walk)| walk.test_files.clone()).collect();
    for (source, walk) in &walks {
        let module = module_of(&source.path);
        let test_file = walk.whole_file_is_test
            || test_files.contains(&source.path)
            || (1..=module.len()).any(|n| test_modules.contains(&module[..n]));
        findings.extend(walk.findings.iter().map(|(line, what)| finding(&source.path, *line, what.clone())));
        check_module(source, &module, walk, &mut findings);
        for name in &walk.names {
            let in_test = test_file || name.in_test;
            check_import(source, name, in_test, &mut findings);
            check_bans(source, name, in_test, &mut findings);
        }
        if !test_file {
            check_sizes(source, walk, &mut findings);
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

/// A top-level module, declared or only lying there as a file, must stand in the table.
fn check_module(source: &Source, module: &[String], walk: &Walk, findings: &mut Vec<Finding>) {
    if let Some(top) = module.first() {
        if layer_of(top).is_none() {
            findings.push(finding(&source.path, 1, format!("module `{top}` has no layer: add it to LAYERS")));
        }
    }
    for (line, declared) in &walk.declared {
        if let [top] = declared.as_slice() {
            if layer_of(top).is_none() {
                findings.push(finding(&source.path, *line, format!("module `{top}` has no layer: add it to LAYERS")));
            }
        }
    }
}

/// From the own folder and from lower layers only; in layer 0, from what stands before it in the table.
fn check_import(source: &Source, name: &Name, in_test: bool, findings: &mut Vec<Finding>) {
    let mut complain = |what: String| findings.push(finding(&source.path, name.line, what));
    let Some(target) = name.absolute() else { return };
    let Some(from) = name.module.first() else { return };
    let Some(top) = target.first() else {
        if name.in_use {
            complain("imports the crate root: name the module, so that its layer shows".into());
        }
        return;
    };
    let Some((to_layer, to_place)) = layer_of(top) else {
        complain(format!("`crate::{top}` is no module of the table: import a thing from where it is defined"));
        return;
    };
    let Some((layer, place)) = layer_of(from) else { return };
    // a test may hold two modules of one layer against each other: nothing that ships depends on it
    let beside = in_test && to_layer == layer;
    let lower = to_layer < layer || (layer == 0 && to_place < place) || beside;
    if from != top && !lower {
        let path = target.join("::");
        complain(format!("`{from}` (layer {layer}) may not use `crate::{path}` (`{top}` is layer {to_layer})"));
    }
}

fn check_bans(source: &Source, name: &Name, in_test: bool, findings: &mut Vec<Finding>) {
    let Some((layer, _)) = name.module.first().and_then(|top| layer_of(top)) else { return };
    let top = &name.module[0];
    for ban in BANS {
        let excepted = ban.except.iter().any(|place| *place == top || *place == source.path);
        let applies = layer <= ban.up_to && !excepted && !(in_test && ban.tests_may);
        if applies && ban.matches(&name.path) {
            let path = name.path.join("::");
            findings.push(finding(&source.path, name.line, format!("`{path}` in layer {layer}: {}", ban.why)));
        }
    }
}

fn check_sizes(source: &Source, walk: &Walk, findings: &mut Vec<Finding>) {
    let total = source.text.lines().count();
    let tests: usize = walk.test_spans.iter().map(|(from, to)| to - from + 1).sum();
    let lines = total.saturating_sub(tests);
    if lines > MAX_FILE_LINES {
        findings.push(finding(&source.path, 1, format!("{lines} lines without tests, at most {MAX_FILE_LINES}")));
    }
    for (name, from, to) in &walk.functions {
        let lines = to - from + 1;
        if lines > MAX_FUNCTION_LINES {
            let what = format!("fn {name} has {lines} lines, at most {MAX_FUNCTION_LINES}");
            findings.push(finding(&source.path, *from, what));
        }
    }
}

fn finding(path: &str, line: usize, what: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, what: what.into() }
}

/// `utp/congestion/mod.rs` -> `[utp, congestion]`; `lib.rs` -> `[]`.
fn module_of(path: &str) -> Vec<String> {
    let mut parts: Vec<String> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    parts
}

/// Layer and place in the table of a top-level module.
fn layer_of(module: &str) -> Option<(u8, usize)> {
    let place = LAYERS.iter().position(|(name, _)| *name == module)?;
    Some((LAYERS[place].1, place))
}

/// The top-level modules. In layer 0 the order matters: each may use those before it.
const LAYERS: &[(&str, u8)] = &[
    ("addr", 0),
    ("time", 0),
    ("bucket", 0),
    ("error", 0),
    ("config", 0),
    ("http_fields", 0),
    ("utp", 1),
    ("path", 1),
    ("stun", 1),
    ("classify", 1),
    ("http_connect", 1),
    ("http_forward", 1),
    ("socks5", 1),
    ("open", 1),
    ("tls", 1),
    ("turn", 1),
    ("net", 2),
    ("peer", 3),
    ("nat", 3),
    ("relay", 3),
    ("rendezvous", 4),
    ("proxy", 5),
    ("python", 6),
];

/// Something that layers up to `up_to` may not name.
struct Ban {
    /// Consecutive segments of a path.
    path: &'static [&'static str],
    /// The path must begin with them (the name of a crate), instead of holding them anywhere.
    at_root: bool,
    up_to: u8,
    /// Top-level modules, or single files, that may.
    except: &'static [&'static str],
    tests_may: bool,
    why: &'static str,
}

impl Ban {
    const fn new(path: &'static [&'static str], why: &'static str) -> Self {
        Self { path, at_root: false, up_to: 1, except: &[], tests_may: true, why }
    }

    const fn krate(path: &'static [&'static str], up_to: u8, why: &'static str) -> Self {
        Self { path, at_root: true, up_to, except: &[], tests_may: false, why }
    }

    const fn except(mut self, places: &'static [&'static str]) -> Self {
        self.except = places;
        self
    }

    /// Holds for the whole crate.
    const fn everywhere(mut self) -> Self {
        self.up_to = 6;
        self
    }

    fn matches(&self, path: &[String]) -> bool {
        let holds = |window: &[String]| window.iter().map(String::as_str).eq(self.path.iter().copied());
        let mut windows = path.windows(self.path.len());
        if self.at_root {
            windows.next().is_some_and(holds)
        } else {
            windows.any(holds)
        }
    }
}

const RUNTIME: &str = "the runtime starts at layer 2";
const SOCKETS: &str = "sockets belong to layer 2 and above";
const CLOCK: &str = "the time is an argument";
const RANDOM: &str = "randomness is an argument";
const FILES: &str = "files are an argument, as bytes";
const PRINT: &str = "the terminal belongs to the program: return values, events and tracing say it";

const BANS: &[Ban] = &[
    Ban::krate(&["tokio"], 1, RUNTIME),
    Ban::krate(&["tokio_rustls"], 1, RUNTIME),
    Ban::krate(&["tracing"], 1, "the core tells by its return values and events"),
    Ban::krate(&["quinn_udp"], 1, SOCKETS),
    Ban::krate(&["socket2"], 1, SOCKETS),
    Ban::krate(&["pyo3"], 5, "Python is layer 6"),
    Ban::krate(&["pyo3_async_runtimes"], 5, "Python is layer 6"),
    Ban::new(&["UdpSocket"], SOCKETS),
    Ban::new(&["TcpStream"], SOCKETS),
    Ban::new(&["TcpListener"], SOCKETS),
    Ban::new(&["ToSocketAddrs"], "names are resolved at layer 3"),
    Ban::new(&["Instant"], CLOCK),
    Ban::new(&["SystemTime", "now"], CLOCK),
    Ban::new(&[".elapsed()"], CLOCK),
    Ban::krate(&["getrandom"], 1, RANDOM),
    // seeded generators are welcome; what seeds itself is not
    Ban::new(&["rand", "rng"], RANDOM),
    Ban::new(&["rand", "make_rng"], RANDOM),
    Ban::new(&["rand", "thread_rng"], RANDOM),
    Ban::new(&["rand", "random"], RANDOM),
    Ban::new(&["ThreadRng"], RANDOM),
    Ban::new(&["OsRng"], RANDOM),
    Ban::new(&["SysRng"], RANDOM),
    Ban::new(&["from_os_rng"], RANDOM),
    Ban::new(&["from_entropy"], RANDOM),
    Ban::new(&["SystemRandom"], RANDOM).except(&["tls"]),
    Ban::new(&["aws_lc_rs", "rand"], RANDOM).except(&["tls"]),
    Ban::new(&["std", "thread"], "threads are the runtime's"),
    Ban::new(&["process", "Command"], "the core starts no process"),
    Ban::new(&["process", "exit"], "the core returns errors"),
    Ban::new(&["process", "abort"], "the core returns errors"),
    Ban::new(&["std", "env"], "options are arguments"),
    // identity files are read and written where their rules are (mode, atomicity)
    Ban::new(&["std", "fs"], FILES).except(&["tls/file.rs"]),
    Ban::new(&["os", "unix", "fs"], FILES).except(&["tls/file.rs"]),
    Ban::new(&["NodeId", "from_public_key"], "keys that are nobody's must be refused: NodeId::of_key").everywhere(),
    Ban::new(&["println!"], PRINT).everywhere(),
    Ban::new(&["print!"], PRINT).everywhere(),
    Ban::new(&["eprintln!"], PRINT).everywhere(),
    Ban::new(&["eprint!"], PRINT).everywhere(),
    Ban::new(&["dbg!"], PRINT).everywhere(),
    Ban::new(&["stdout"], PRINT).everywhere(),
    Ban::new(&["stderr"], PRINT).everywhere(),
    Ban::new(&["std", "println"], PRINT).everywhere(),
    Ban::new(&["std", "eprintln"], PRINT).everywhere(),
];

const UNSAFE: &str = "unsafe outside the places of UNSAFE_IN";

/// Where `unsafe` may stand, and why.
const UNSAFE_IN: &[(&str, &str)] = &[
    ("python/runtime.rs", "what a parent process made must not be dropped in its forked child"),
    ("tls/file.rs", "std does not tell which user a process acts for"),
    ("net/refused.rs", "the error queue of a socket has no safe wrapper that keeps what was refused"),
    ("net/uplink.rs", "which interface a datagram leaves by has no safe wrapper"),
    ("net/socket.rs", "the bit that forbids fragments has no safe wrapper"),
    ("nat/bell.rs", "a netlink socket has no safe wrapper, neither of its address nor of waiting for it"),
];

/// Lines of a file without its tests. The style asks for 600; this is where it stops being a matter of taste.
const MAX_FILE_LINES: usize = 650;

/// Lines of a function, from `fn` to its closing brace. The style asks for 60.
const MAX_FUNCTION_LINES: usize = 70;
