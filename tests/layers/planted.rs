//! Violations planted on purpose: a checker that cannot fail is worth nothing.

use super::*;

/// What is found when `text` is the file `path`, beside a `lib.rs`.
fn found(path: &str, text: &str) -> Vec<Finding> {
    check(&[source("lib.rs", "pub mod addr;"), source(path, text)])
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.into(), text: text.into() }
}

#[track_caller]
fn caught(path: &str, text: &str, line: usize, what: &str) {
    let findings = found(path, text);
    let hit = findings.iter().any(|f| f.path == path && f.line == line && f.what.contains(what));
    assert!(hit, "wanted {path}:{line} {what:?}, found {findings:?}");
}

#[track_caller]
fn clean(path: &str, text: &str) {
    assert_eq!(found(path, text), []);
}

#[test]
fn imports_upwards_and_sideways() {
    caught("utp/send.rs", "use crate::addr::NodeId;\nuse crate::net::Net;", 2, "`net` is layer 2");
    caught("path/mod.rs", "use crate::stun::Ping;", 1, "`stun` is layer 1");
    caught("peer/mod.rs", "use crate::proxy::Proxy;", 1, "`proxy` is layer 5");
    caught("addr.rs", "use crate::error::Error;", 1, "`error` is layer 0");
    clean("proxy/mod.rs", "use crate::{addr, tls::Identity, peer::{Link, dial::{self, Dial}}, proxy::splice};");
    clean("error.rs", "use crate::addr::NodeId;");
}

#[test]
fn every_way_to_write_an_import() {
    caught("path/mod.rs", "use crate::{\n    addr::NodeId,\n    time::Time, utp::{seq, send},\n};", 3, "crate::utp");
    caught("path/mod.rs", "use {std::fmt, crate::utp::Seq};", 1, "crate::utp::Seq");
    caught("path/mod.rs", "fn f() {\n  let x = crate::utp::Seq(3);\n}", 2, "crate::utp::Seq");
    caught("path/mod.rs", "fn f() { vec![g!(crate::utp::X)] }", 1, "crate::utp::X");
    caught("path/mod.rs", "macro_rules! m { () => { $crate::utp::X } }", 1, "crate::utp::X");
    caught("path/mod.rs", "pub(in crate::utp) fn f() {}", 1, "crate::utp");
    caught("path/mod.rs", "use super::utp::Seq;", 1, "crate::utp::Seq");
    caught("path/table.rs", "use super::super::utp::Seq;", 1, "crate::utp::Seq");
    caught("path/table.rs", "use self::super::super::utp::Seq;", 1, "crate::utp::Seq");
    caught("path/mod.rs", "mod inner { use super::super::utp::Seq; }", 1, "crate::utp::Seq");
    caught("path/mod.rs", "type T = Vec<crate::utp::Seq>;", 1, "crate::utp::Seq");
    caught("path/mod.rs", "#[derive(crate::utp::Magic)] struct S;", 1, "crate::utp::Magic");
    caught("path/mod.rs", "#[cfg(test)] mod tests { use crate::net::Net; }", 1, "crate::net::Net");
    clean("path/mod.rs", "#[cfg(test)] mod tests { use crate::utp::Seq; }");
}

#[test]
fn ways_around_the_table() {
    caught("path/mod.rs", "use crate as k;", 1, "the crate root");
    caught("path/mod.rs", "use crate::*;", 1, "`crate::*`");
    caught("path/mod.rs", "use super::*;", 1, "`crate::*`");
    caught("path/table.rs", "use super::super as k;", 1, "the crate root");
    caught("path/mod.rs", "use crate::Proxy;", 1, "`crate::Proxy` is no module");
    caught("path/mod.rs", "#[path = \"../utp/seq.rs\"]\nmod seq;", 1, "#[path]");
    caught("path/mod.rs", "#[cfg(test)]\n#[path = \"../utp/seq.rs\"]\nmod seq;", 2, "#[path]");
    caught("path/mod.rs", "include!(\"../utp/seq.rs\");", 1, "include!");
    caught("helpers.rs", "pub fn f() {}", 1, "`helpers` has no layer");
    caught("helpers/mod.rs", "pub fn f() {}", 1, "`helpers` has no layer");
    let findings = check(&[source("lib.rs", "pub mod addr;\nmod helpers;")]);
    assert_eq!(findings, [finding("lib.rs", 2, "module `helpers` has no layer: add it to LAYERS")]);
    caught("path/mod.rs", "fn f( {", 1, "cannot be read");
}

#[test]
fn what_only_looks_like_an_import() {
    clean(
        "path/mod.rs",
        "// use crate::utp::Seq;\n/* crate::net */ /// crate::net::Net\nfn f() { g(\"crate::utp\"); }",
    );
    clean("path/mod.rs", "/// See [`crate::utp::Seq`].\npub(crate) fn f() {}\npub(super) fn g() { self::f() }");
    clean("path/mod.rs", "mod utp { pub struct S; }\nuse self::utp::S;\nfn f(x: path::Table) {}");
    clean("path/mod.rs", "#[cfg(test)] mod tests { use super::*; use crate::path::X; }");
}

#[test]
fn what_the_core_may_not_touch() {
    caught("utp/send.rs", "use tokio::sync::mpsc;", 1, RUNTIME);
    caught("utp/send.rs", "#[cfg(test)] mod tests { #[tokio::test] async fn f() {} }", 1, RUNTIME);
    caught("utp/send.rs", "use std::net::{SocketAddr, UdpSocket};", 1, SOCKETS);
    caught("stun.rs", "fn f(s: std::net::TcpStream) {}", 1, SOCKETS);
    caught("utp/send.rs", "fn f() { let t = std::time::Instant::now(); }", 1, CLOCK);
    caught("utp/send.rs", "use std::time::Instant as Moment;", 1, CLOCK);
    caught("tls/mod.rs", "fn f() {\nSystemTime::now() }", 2, CLOCK);
    caught("tls/mod.rs", "fn f(t: SystemTime) { t.elapsed() }", 1, CLOCK);
    caught("utp/send.rs", "fn f() -> u8 { ::rand::random() }", 1, RANDOM);
    caught("path/mod.rs", "fn f() { getrandom::fill(&mut x) }", 1, RANDOM);
    caught("path/mod.rs", "use aws_lc_rs::{rand::SecureRandom};", 1, RANDOM);
    caught("path/mod.rs", "use std::{fmt, thread};", 1, "threads");
    caught("open.rs", "fn f() { std::process::exit(1) }", 1, "returns errors");
    caught("open.rs", "use std::fs::File;", 1, "files");
    caught("proxy/mod.rs", "use pyo3::prelude::*;", 1, "Python is layer 6");
    clean("tls/file.rs", "use std::process;\nfn f() -> u32 { process::id() }");
    clean("tls/file.rs", "use std::fs;\nuse std::time::{Duration, SystemTime};\nuse aws_lc_rs::rand::SystemRandom;");
    clean("tls/file.rs", "#[cfg(test)]\nmod tests { fn f() { std::thread::spawn(|| SystemTime::now()); } }");
    clean("utp/send.rs", "fn f(elapsed: Duration) { elapsed.max(x); x.elapsed; self.elapsed(now) }");
    clean("net/mod.rs", "use tokio::net::UdpSocket;\nuse std::time::Instant;\nuse std::fs;");
    caught("tls/chain.rs", "fn f() -> Vec<u8> {\n    std::fs::read(\"x\").unwrap_or_default()\n}", 2, FILES);
    caught("tls/chain.rs", "use std::{fmt, fs::File};", 1, FILES);
    caught("tls/mod.rs", "use std::os::unix::fs::symlink;", 1, FILES);
    caught("path/mod.rs", "fn f() { StdRng::from_os_rng() }", 1, RANDOM);
    clean("path/mod.rs", "use rand::{rngs::StdRng, SeedableRng};\nfn f() { StdRng::from_seed(seed) }");
}

#[test]
fn keys_become_nodes_by_one_way() {
    for file in ["open.rs", "tls/chain.rs", "rendezvous/wire.rs", "python/mod.rs"] {
        caught(file, "fn f() {\n    NodeId::from_public_key(key)\n}", 2, "NodeId::of_key");
        caught(file, "fn f() { key.map(crate::addr::NodeId::from_public_key) }", 1, "NodeId::of_key");
    }
    clean("tls/chain.rs", "#[cfg(test)]\nmod tests { fn f() { NodeId::from_public_key([1; 32]) } }");
}

#[test]
fn nobody_prints() {
    for file in ["utp/send.rs", "tls/chain.rs", "net/mod.rs", "proxy/mod.rs", "python/mod.rs"] {
        caught(file, "fn f() {\n    println!(\"x\");\n}", 2, PRINT);
        caught(file, "fn f() { std::eprintln!(\"x\") }", 1, PRINT);
        caught(file, "fn f() { g(dbg!(x)) }", 1, PRINT);
    }
    caught("utp/send.rs", "use std::println as say;", 1, PRINT);
    caught("utp/send.rs", "fn f() { writeln!(std::io::stdout(), \"x\") }", 1, PRINT);
    caught("utp/send.rs", "use std::io::{self, stderr};", 1, PRINT);
    clean("utp/send.rs", "#[cfg(test)]\nmod tests { fn f() { println!(\"x\") } }");
    clean("utp/send.rs", "fn f(page: Page) -> bool { page.print(); print != x && !print(x) }");
}

#[test]
fn unsafe_code() {
    caught("net/mod.rs", "fn f() {\n    unsafe { g() }\n}", 2, UNSAFE);
    caught("lib.rs", "unsafe impl Send for X {}", 1, UNSAFE);
    caught("net/mod.rs", "#[cfg(test)] mod tests { fn f() { unsafe {} } }", 1, UNSAFE);
}

#[test]
fn long_files_and_functions() {
    let long = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
    let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", long(300));
    clean("net/mod.rs", &long(MAX_FUNCTION_LINES));
    caught("net/mod.rs", &long(MAX_FUNCTION_LINES + 1), 1, "fn f has 71 lines");
    caught("net/mod.rs", &format!("impl X {{\n{}}}", long(71)), 2, "fn f has 71 lines");
    caught("net/mod.rs", &"// x\n".repeat(651), 1, "651 lines");
    clean("net/mod.rs", &format!("{}{tests}", "// x\n".repeat(650)));
    caught("net/mod.rs", &format!("{}{tests}", "// x\n".repeat(651)), 1, "651 lines");
    caught("net/mod.rs", &format!("#[cfg(not(test))]\n{}", long(71)), 2, "fn f has 71 lines");
    clean("net/mod.rs", &format!("#[cfg(all(test, feature = \"runtime\"))]\nmod tests {{\n{}}}", long(700)));
    clean("net/mod.rs", "trait T { fn f(); }\nfn g(h: fn(u8) -> u8) {}");
    let in_a_file = [source("net/mod.rs", "#[cfg(test)]\nmod tests;"), source("net/tests.rs", &long(700))];
    assert_eq!(check(&in_a_file), []);
    let by_path = "#[cfg(test)]\n#[path = \"head_tests.rs\"]\nmod tests;";
    assert_eq!(check(&[source("net/head.rs", by_path), source("net/head_tests.rs", &long(700))]), []);
    assert_eq!(check(&[source("net/mod.rs", "mod tests;"), source("net/tests.rs", &long(700))]).len(), 2);
}

#[test]
fn only_the_test_item_is_exempt() {
    caught("stun.rs", "#[cfg(test)]\nuse std::{fs, thread};\nuse std::fs;", 3, "files");
    caught("stun.rs", "#[cfg(test)]\nfn f() {}\nfn g() { std::fs::read(x) }", 3, "files");
    caught("stun.rs", "#[cfg(any(test, feature = \"x\"))]\nuse std::fs;", 2, "files");
}
