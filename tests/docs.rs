//! The documents that repeat what the code says, held against the code.
//!
//! `KEYNET_REGENERATE=1 cargo test --test docs` writes the generated ones anew.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use keynet::error::{Culprit, Reason};

#[test]
fn every_reason_is_in_errors_md() {
    let path = checkout().join("docs/errors.md");
    let wanted = errors_md();
    if std::env::var_os("KEYNET_REGENERATE").is_some() {
        fs::write(&path, &wanted).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap();
    for (at, (written, wanted)) in written.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(written, wanted, "docs/errors.md:{}: stale; {HOW}", at + 1);
    }
    assert_eq!(written.lines().count(), wanted.lines().count(), "docs/errors.md: stale; {HOW}");
}

#[test]
fn every_exit_code_is_in_operations_md() {
    if !checkout().join("python/keynet").exists() {
        return; // the crate alone, without the Python package
    }
    let source = fs::read_to_string(checkout().join("python/keynet/cli/_exit.py")).unwrap();
    let class = source.split_once("class ExitCode:").unwrap().1;
    let in_code: Vec<&str> = class.lines().filter_map(|line| line.split_once(" = ")).map(|(_, code)| code).collect();
    let document = fs::read_to_string(checkout().join("docs/operations.md")).unwrap();
    let section = document.split_once("## Exit codes").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |")).map(|(code, _)| code);
    let in_document: Vec<&str> = rows.filter(|code| code.parse::<u8>().is_ok()).collect();
    assert!(in_code.len() > 5, "ExitCode cannot be read: {in_code:?}");
    assert_eq!(in_document, in_code, "docs/operations.md lists other exit codes than python/keynet/cli/_exit.py");
}

#[test]
fn every_bug_of_others_has_its_tests() {
    let names = tests_named_in("CONTRIBUTING.md", "## Bugs of other");
    assert!(names.len() > 30, "found only {} names: is the reader of the table broken?", names.len());
}

#[test]
fn every_security_check_has_its_tests() {
    let names = tests_named_in("SECURITY.md", "## Checks, and the tests");
    assert!(names.len() > 60, "found only {} names: is the reader of the table broken?", names.len());
    let rows = fs::read_to_string(checkout().join("SECURITY.md")).unwrap();
    let without = rows.split_once("## Checks, and the tests").unwrap().1.lines().filter(|line| line.starts_with("| "));
    let without: Vec<_> = without.skip(1).filter(|row| !row.rsplit(" | ").next().unwrap().contains('`')).collect();
    assert!(without.is_empty(), "checks without a test: {without:?}");
}

#[test]
fn every_bound_on_strangers_and_liars_has_its_tests() {
    for (heading, rows) in [("### What liars can do", 7), ("## 10. What strangers can cost", 9)] {
        let names = tests_named_in("docs/protocol.md", heading);
        assert!(names.len() >= rows, "{heading}: found only {} names: is the reader of the table broken?", names.len());
        let text = fs::read_to_string(checkout().join("docs/protocol.md")).unwrap();
        let section = text.split_once(heading).unwrap().1.split("\n## ").next().unwrap();
        let table = section.lines().map(str::trim).filter(|line| line.starts_with("| ")).skip(1);
        let bare: Vec<_> = table.filter(|row| !row.rsplit(" | ").next().unwrap().contains('`')).collect();
        assert!(bare.is_empty(), "{heading}: bounds without a test: {bare:?}");
    }
}

/// The names in the last column of the table in this section of a document, each of which is a test.
fn tests_named_in(document: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(checkout().join(document)).unwrap();
    let section = text.split_once(heading).unwrap().1;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let lines = section.lines().map(str::trim);
    let tests = lines.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "));
    let names: Vec<String> =
        tests.flat_map(|(_, tests)| tests.split('`').skip(1).step_by(2)).map(str::to_owned).collect();
    let (mut sources, mut folders) = (String::new(), vec![checkout().join("tests"), checkout().join("rust/src")]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "py") {
                sources += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let is_there =
        |name: &String| sources.contains(&format!("fn {name}()")) || sources.contains(&format!("def {name}("));
    let missing: Vec<_> = names.iter().filter(|name| !is_there(name)).collect();
    assert!(missing.is_empty(), "{document} names tests that are not there: {missing:?}");
    names
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut links = 0;
    let mut dead = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for (line, target) in text.lines().enumerate().flat_map(|(at, line)| targets(line).map(move |to| (at + 1, to)))
        {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let to = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let anchor_holds = anchor.is_empty() || fs::read_to_string(&to).is_ok_and(|text| has_anchor(&text, anchor));
            if !to.exists() || !anchor_holds {
                dead.push(format!("{}:{line}: {target}", document.display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
    assert!(links > 10, "found only {links} links: is the reader of links broken?");
}

#[test]
fn the_reader_of_links_reads_them() {
    let found: Vec<&str> = targets("see [a](x.md), [`b`](y.md#z) and (no link); ![c](d.png)").collect();
    assert_eq!(found, ["x.md", "y.md#z", "d.png"]);
    assert!(has_anchor("# A\n## Exit codes: `keynet`\n", "exit-codes-keynet"));
    assert!(!has_anchor("Exit codes\n", "exit-codes"));
}

/// The whole of docs/errors.md.
fn errors_md() -> String {
    let mut text = String::from(HEAD);
    let mut rows = 0;
    for (culprit, title, words) in CULPRITS {
        write!(text, "\n## {title}\n\n{words}\n\n| code | reason | HTTP | `Proxy-Status` error | what to try |\n|---|---|---|---|---|\n")
            .unwrap();
        for reason in Reason::ALL.iter().filter(|reason| reason.culprit() == *culprit) {
            rows += 1;
            let advice = reason.advice().replace('<', "&lt;").replace('|', "\\|");
            let (code, status, kind) = (reason.code(), reason.http_status(), reason.proxy_status());
            writeln!(text, "| {code} | `{reason}` | {status} | `{kind}` | {advice} |").unwrap();
        }
    }
    assert_eq!(rows, Reason::ALL.len(), "a culprit is missing in CULPRITS");
    text
}

fn checkout() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Markdown file of the project itself.
fn documents() -> Vec<PathBuf> {
    let markdown = |folder: &Path| -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
    };
    [".", "docs", "benches"].iter().flat_map(|folder| markdown(&checkout().join(folder))).collect()
}

/// The targets of `[text](target)` in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

/// Whether a heading makes this anchor, by the rule of the common Markdown renderers.
fn has_anchor(text: &str, anchor: &str) -> bool {
    text.lines().filter(|line| line.starts_with('#')).any(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).eq(anchor.chars())
    })
}

const HOW: &str = "write it anew with KEYNET_REGENERATE=1 cargo test --test docs";

const CULPRITS: &[(Culprit, &str, &str)] = &[
    (Culprit::Caller, "The calling program", "Wrong arguments, a call on something closed, or an ordinary end."),
    (Culprit::Client, "The client of the forward proxy", "What came in over the local CONNECT port."),
    (Culprit::Network, "The network", "Between the two nodes."),
    (Culprit::Peer, "The other node", "Or what answers in its place."),
    (Culprit::Service, "The service", "Behind the other node."),
    (Culprit::Keynet, "keynet itself", "A bug."),
];

const HEAD: &str = "\
# Every way keynet can fail

Made from the table in `rust/src/error.rs`; `tests/docs.rs` holds the two together.

One closed set of reasons is used everywhere: in Python exceptions (`error.reason`), events,
`--json` output, the `Refused` message between nodes (`code`), and the answer to a CONNECT (HTTP
status, and `Proxy-Status` as in RFC 9209 with the reason's name in `details`). Names and codes
never change their meaning; the wording of messages may.

A gRPC client sees of a refused CONNECT only `UNAVAILABLE` and the HTTP status;
`keynet.grpc.explain(error, proxy)` gives back the reason
([python.md](python.md#when-a-call-fails)).
";
