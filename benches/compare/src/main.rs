//! keynet's transports beside others: two processes on loopback. `benches/README.md` says how to read it.
//!
//! `compare` alone is the parent: it starts itself as server and client of each system in turn and asks both for their
//! counters at the start and at the end of a window. `compare serve|dial ...` are those two. `compare idle` measures what connections cost that do nothing.

mod end;
mod heap;
mod idle;
mod report;
mod run;
mod shared;
mod system;

use system::{System, Workload};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", system, workload, threads] => end::serve(System::named(system), Workload::named(workload), threads),
        ["dial", system, workload, threads, address, node] => {
            end::dial(System::named(system), Workload::named(workload), threads, address, node);
        }
        ["idle-end", words @ ..] => idle::end(words),
        ["idle", options @ ..] => idle::all(&idle::Options::parse(options)),
        options => run::all(&run::Options::parse(options)),
    }
}
