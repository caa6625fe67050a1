//! Holds the crate together: the direction of imports, what the core may not touch, and the size of files and functions.
//!
//! Every file under `rust/src` is read as tokens, so that comments, strings and macros cannot hide a path or invent one.
//! The rules are data at the end of this file; the tests below them plant a violation of each and see it found.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

#[test]
fn the_crate_keeps_its_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("rust/src");
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
    for (source, walk) in &walks {
        let module = module_of(&source.path);
        let test_file = walk.whole_file_is_test || (1..=module.len()).any(|n| test_modules.contains(&module[..n]));
        findings.extend(walk.findings.iter().map(|(line, what)| finding(&source.path, *line, what.clone())));
        check_module(source, &module, walk, &mut findings);
        for name in &walk.names {
            check_import(source, name, &mut findings);
            check_bans(source, name, test_file || name.in_test, &mut findings);
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
fn check_import(source: &Source, name: &Name, findings: &mut Vec<Finding>) {
    let mut complain = |what: String| findings.push(finding(&source.path, name.line, what));
    let Some(target) = name.from_root() else { return };
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
    let lower = to_layer < layer || (layer == 0 && to_place < place);
    if from != top && !lower {
        let path = target.join("::");
        complain(format!("`{from}` (layer {layer}) may not use `crate::{path}` (`{top}` is layer {to_layer})"));
    }
}

fn check_bans(source: &Source, name: &Name, in_test: bool, findings: &mut Vec<Finding>) {
    let Some((layer, _)) = name.module.first().and_then(|top| layer_of(top)) else { return };
    let top = &name.module[0];
    for ban in BANS {
        let applies = layer <= ban.up_to && !ban.except.contains(&top.as_str()) && !(in_test && ban.tests_may);
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

/// A path as it is written in the source, with what is needed to judge it.
struct Name {
    path: Vec<String>,
    line: usize,
    /// The module it stands in.
    module: Vec<String>,
    in_use: bool,
    in_test: bool,
}

impl Name {
    /// The path from the crate root, if it begins with `crate` or `super`.
    fn from_root(&self) -> Option<Vec<String>> {
        match self.path.first().map(String::as_str) {
            Some("crate") => Some(self.path[1..].to_vec()),
            Some("super") | Some("self") => {
                let mut module = self.module.clone();
                let mut rest = self.path.as_slice();
                while let Some((first, tail)) = rest.split_first() {
                    match first.as_str() {
                        "self" => {}
                        "super" => drop(module.pop()),
                        _ => break,
                    }
                    rest = tail;
                }
                module.extend(rest.iter().cloned());
                Some(module)
            }
            _ => None,
        }
    }
}

/// What one file holds, gathered in one pass over its tokens.
#[derive(Default)]
struct Walk {
    module: Vec<String>,
    names: Vec<Name>,
    /// Modules that this file declares.
    declared: Vec<(usize, Vec<String>)>,
    /// Those of them that are `#[cfg(test)]` and lie in a file of their own.
    test_modules: Vec<Vec<String>>,
    /// First and last line of each `#[cfg(test)]` or `#[test]` item.
    test_spans: Vec<(usize, usize)>,
    functions: Vec<(String, usize, usize)>,
    findings: Vec<(usize, String)>,
    whole_file_is_test: bool,
}

impl Walk {
    fn of(path: &str, tokens: TokenStream) -> Self {
        let mut walk = Self { module: module_of(path), ..Self::default() };
        walk.items(&tokens.into_iter().collect::<Vec<_>>(), false);
        let allowed = UNSAFE_IN.iter().any(|(place, _why)| path.starts_with(place));
        walk.findings.retain(|(_, what)| !(allowed && what == UNSAFE));
        walk
    }

    fn items(&mut self, tokens: &[TokenTree], in_test: bool) {
        let mut at = 0;
        while at < tokens.len() {
            at += self.item(&tokens[at..], in_test);
        }
    }

    /// Takes what stands at the front of `tokens`; returns how many it took.
    fn item(&mut self, tokens: &[TokenTree], in_test: bool) -> usize {
        if let Some((length, inner, attribute)) = attribute(tokens) {
            self.items(&attribute, in_test);
            if matches!(attribute.first(), Some(TokenTree::Ident(name)) if name == "path") {
                self.findings.push((line_of(&tokens[0]), "#[path] hides where a module lies".into()));
            }
            if !is_test(&attribute) || in_test {
                return length;
            }
            if inner {
                self.whole_file_is_test |= self.test_spans.is_empty() && self.functions.is_empty();
                return length;
            }
            let end = length + item_end(&tokens[length..]);
            self.test_item(&tokens[length..end]);
            self.test_spans.push((line_of(&tokens[0]), last_line_of(&tokens[end - 1])));
            return end;
        }
        match &tokens[0] {
            TokenTree::Ident(word) if word == "mod" => self.module(tokens, in_test),
            TokenTree::Ident(word) if word == "fn" => {
                if !in_test {
                    self.function(tokens);
                }
                1
            }
            TokenTree::Ident(word) if word == "use" => {
                let end = item_end(tokens);
                self.paths(&tokens[1..end], &[], true, in_test);
                end
            }
            TokenTree::Ident(word) if word == "unsafe" => {
                self.findings.push((line_of(&tokens[0]), UNSAFE.into()));
                1
            }
            TokenTree::Ident(word) if word == "include" && is_punct(tokens.get(1), '!') => {
                self.findings.push((line_of(&tokens[0]), "include! hides where code lies".into()));
                1
            }
            TokenTree::Ident(_) => self.path(tokens, &[], false, in_test),
            TokenTree::Group(group) => {
                self.items(&group.stream().into_iter().collect::<Vec<_>>(), in_test);
                1
            }
            _ => 1,
        }
    }

    fn test_item(&mut self, tokens: &[TokenTree]) {
        let name = tokens.windows(3).find_map(|three| match three {
            [TokenTree::Ident(word), TokenTree::Ident(name), end] if word == "mod" && is_punct(Some(end), ';') => {
                Some(name.to_string())
            }
            _ => None,
        });
        if let Some(name) = name {
            self.test_modules.push([self.module.as_slice(), &[name]].concat());
        }
        self.items(tokens, true);
    }

    fn module(&mut self, tokens: &[TokenTree], in_test: bool) -> usize {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else { return 1 };
        self.module.push(name.to_string());
        let taken = match tokens.get(2) {
            Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                self.items(&body.stream().into_iter().collect::<Vec<_>>(), in_test);
                3
            }
            _ => 2,
        };
        if taken == 2 && !in_test {
            self.declared.push((line_of(&tokens[0]), self.module.clone()));
        }
        self.module.pop();
        taken
    }

    /// Notes the length of a function; its tokens are walked afterwards as any others.
    fn function(&mut self, tokens: &[TokenTree]) {
        let Some(TokenTree::Ident(name)) = tokens.get(1) else { return };
        for token in &tokens[2..] {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ';' => return,
                TokenTree::Group(body) if body.delimiter() == Delimiter::Brace => {
                    self.functions.push((name.to_string(), line_of(&tokens[0]), last_line_of(token)));
                    return;
                }
                _ => {}
            }
        }
    }

    /// Takes the path at the front (an identifier) and everything that hangs on it by `::`.
    fn path(&mut self, tokens: &[TokenTree], prefix: &[String], in_use: bool, in_test: bool) -> usize {
        let mut path = prefix.to_vec();
        let mut at = 0;
        loop {
            match tokens.get(at) {
                Some(TokenTree::Ident(word)) => path.push(word.to_string()),
                Some(TokenTree::Punct(star)) if star.as_char() == '*' && at > 0 => path.push("*".into()),
                Some(TokenTree::Group(tree)) if tree.delimiter() == Delimiter::Brace && at > 0 => {
                    let inner: Vec<TokenTree> = tree.stream().into_iter().collect();
                    self.paths(&inner, &path, in_use, in_test);
                    return at + 1;
                }
                _ => break,
            }
            at += 1;
            let joined = matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':' && p.spacing() == Spacing::Joint);
            if !joined || !is_punct(tokens.get(at + 1), ':') {
                break;
            }
            at += 2;
        }
        self.name(path, line_of(&tokens[0]), in_use, in_test);
        at.max(1)
    }

    /// The branches of a use tree: `a::{b, c as d, e::{f, self}}`, all behind `prefix`.
    fn paths(&mut self, tokens: &[TokenTree], prefix: &[String], in_use: bool, in_test: bool) {
        for branch in tokens.split(|token| is_punct(Some(token), ',')) {
            let start = branch.iter().position(|token| !is_punct(Some(token), ':')).unwrap_or(0);
            match branch.get(start) {
                Some(TokenTree::Ident(_)) => drop(self.path(&branch[start..], prefix, in_use, in_test)),
                Some(TokenTree::Group(tree)) => {
                    self.paths(&tree.stream().into_iter().collect::<Vec<_>>(), prefix, in_use, in_test);
                }
                Some(star) => self.name([prefix, &["*".into()]].concat(), line_of(star), in_use, in_test),
                None => {}
            }
        }
    }

    fn name(&mut self, mut path: Vec<String>, line: usize, in_use: bool, in_test: bool) {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        self.names.push(Name { path, line, module: self.module.clone(), in_use, in_test });
    }
}

/// `#[...]` or `#![...]` at the front: how many tokens, whether it is an inner one, and what stands in it.
fn attribute(tokens: &[TokenTree]) -> Option<(usize, bool, Vec<TokenTree>)> {
    if !is_punct(tokens.first(), '#') {
        return None;
    }
    let inner = is_punct(tokens.get(1), '!');
    let at = if inner { 2 } else { 1 };
    match tokens.get(at) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((at + 1, inner, group.stream().into_iter().collect()))
        }
        _ => None,
    }
}

/// `cfg(test)`, `cfg(all(test, ...))`, `test` and `tokio::test`: the item behind it is built for tests alone.
fn is_test(attribute: &[TokenTree]) -> bool {
    let word = |token: &TokenTree, text: &str| matches!(token, TokenTree::Ident(word) if word == text);
    match attribute {
        [first, TokenTree::Group(condition)] if word(first, "cfg") => {
            let condition: Vec<TokenTree> = condition.stream().into_iter().collect();
            match condition.as_slice() {
                [only] => word(only, "test"),
                [all, TokenTree::Group(list)] if word(all, "all") => list
                    .stream()
                    .into_iter()
                    .collect::<Vec<_>>()
                    .split(|token| is_punct(Some(token), ','))
                    .any(|each| matches!(each, [only] if word(only, "test"))),
                _ => false,
            }
        }
        [only] => word(only, "test"),
        [root, _, _, last, ..] => word(root, "tokio") && word(last, "test"),
        _ => false,
    }
}

/// How many tokens the item at the front has: to its `;`, or to its body.
fn item_end(tokens: &[TokenTree]) -> usize {
    let is_use = tokens.iter().take(4).any(|token| matches!(token, TokenTree::Ident(word) if word == "use"));
    for (at, token) in tokens.iter().enumerate() {
        let body = matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace);
        if is_punct(Some(token), ';') || (body && !is_use) {
            return at + 1;
        }
    }
    tokens.len()
}

fn is_punct(token: Option<&TokenTree>, what: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == what)
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

fn last_line_of(token: &TokenTree) -> usize {
    token.span().end().line
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
    ("error", 0),
    ("config", 0),
    ("utp", 1),
    ("path", 1),
    ("stun", 1),
    ("classify", 1),
    ("http_connect", 1),
    ("open", 1),
    ("tls", 1),
    ("net", 2),
    ("peer", 3),
    ("proxy", 4),
    ("python", 5),
];

/// Something that layers up to `up_to` may not name.
struct Ban {
    /// Consecutive segments of a path.
    path: &'static [&'static str],
    /// The path must begin with them (the name of a crate), instead of holding them anywhere.
    at_root: bool,
    up_to: u8,
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

    const fn except(mut self, modules: &'static [&'static str]) -> Self {
        self.except = modules;
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

const BANS: &[Ban] = &[
    Ban::krate(&["tokio"], 1, RUNTIME),
    Ban::krate(&["tokio_rustls"], 1, RUNTIME),
    Ban::krate(&["tracing"], 1, "the core tells by its return values and events"),
    Ban::krate(&["quinn_udp"], 1, SOCKETS),
    Ban::krate(&["socket2"], 1, SOCKETS),
    Ban::krate(&["pyo3"], 4, "Python is layer 5"),
    Ban::krate(&["pyo3_async_runtimes"], 4, "Python is layer 5"),
    Ban::new(&["UdpSocket"], SOCKETS),
    Ban::new(&["TcpStream"], SOCKETS),
    Ban::new(&["TcpListener"], SOCKETS),
    Ban::new(&["ToSocketAddrs"], "names are resolved at layer 3"),
    Ban::new(&["Instant"], CLOCK),
    Ban::new(&["SystemTime", "now"], CLOCK),
    Ban::new(&["elapsed"], CLOCK),
    Ban::krate(&["rand"], 1, RANDOM),
    Ban::krate(&["getrandom"], 1, RANDOM),
    Ban::new(&["SystemRandom"], RANDOM).except(&["tls"]),
    Ban::new(&["aws_lc_rs", "rand"], RANDOM).except(&["tls"]),
    Ban::new(&["std", "thread"], "threads are the runtime's"),
    Ban::new(&["std", "process"], "the core starts and ends no process"),
    Ban::new(&["std", "env"], "options are arguments"),
    // identity files are read and written where their rules are (mode, atomicity)
    Ban::new(&["std", "fs"], "files are an argument, as bytes").except(&["tls"]),
];

const UNSAFE: &str = "unsafe outside the places of UNSAFE_IN";

/// Where `unsafe` may stand, and why.
const UNSAFE_IN: &[(&str, &str)] = &[];

/// Lines of a file without its tests. The style asks for 600; this is where it stops being a matter of taste.
const MAX_FILE_LINES: usize = 650;

/// Lines of a function, from `fn` to its closing brace. The style asks for 60.
const MAX_FUNCTION_LINES: usize = 70;

mod planted {
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
        caught("peer/mod.rs", "use crate::proxy::Proxy;", 1, "`proxy` is layer 4");
        caught("addr.rs", "use crate::error::Error;", 1, "`error` is layer 0");
        clean("proxy/mod.rs", "use crate::{addr, tls::Identity, peer::{Link, dial::{self, Dial}}, proxy::splice};");
        clean("error.rs", "use crate::addr::NodeId;");
    }

    #[test]
    fn every_way_to_write_an_import() {
        caught(
            "path/mod.rs",
            "use crate::{\n    addr::NodeId,\n    time::Time, utp::{seq, send},\n};",
            3,
            "crate::utp",
        );
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
        caught("path/mod.rs", "#[cfg(test)] mod tests { use crate::utp::Seq; }", 1, "crate::utp::Seq");
    }

    #[test]
    fn ways_around_the_table() {
        caught("path/mod.rs", "use crate as k;", 1, "the crate root");
        caught("path/mod.rs", "use crate::*;", 1, "`crate::*`");
        caught("path/mod.rs", "use super::*;", 1, "`crate::*`");
        caught("path/table.rs", "use super::super as k;", 1, "the crate root");
        caught("path/mod.rs", "use crate::Proxy;", 1, "`crate::Proxy` is no module");
        caught("path/mod.rs", "#[path = \"../utp/seq.rs\"]\nmod seq;", 1, "#[path]");
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
        caught("open.rs", "use std::fs::File;", 1, "files");
        caught("proxy/mod.rs", "use pyo3::prelude::*;", 1, "Python is layer 5");
        clean(
            "tls/file.rs",
            "use std::fs;\nuse std::time::{Duration, SystemTime};\nuse aws_lc_rs::rand::SystemRandom;",
        );
        clean("tls/file.rs", "#[cfg(test)]\nmod tests { fn f() { std::thread::spawn(|| SystemTime::now()); } }");
        clean("net/mod.rs", "use tokio::net::UdpSocket;\nuse std::time::Instant;\nuse std::fs;");
        clean("path/mod.rs", "use rand_chacha::ChaCha12Rng;");
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
        assert_eq!(check(&[source("net/mod.rs", "mod tests;"), source("net/tests.rs", &long(700))]).len(), 2);
    }

    #[test]
    fn only_the_test_item_is_exempt() {
        caught("stun.rs", "#[cfg(test)]\nuse std::{fs, thread};\nuse std::fs;", 3, "files");
        caught("stun.rs", "#[cfg(test)]\nfn f() {}\nfn g() { std::fs::read(x) }", 3, "files");
        caught("stun.rs", "#[cfg(any(test, feature = \"x\"))]\nuse std::fs;", 2, "files");
    }
}
