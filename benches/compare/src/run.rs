//! The parent: starts the two processes of each measurement, rotates through the systems, keeps the samples.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report;
use crate::system::{System, Workload, SYSTEMS};

pub struct Options {
    pub rounds: usize,
    pub window: Duration,
    pub threads: String,
    pub systems: Vec<System>,
    pub workloads: Vec<Workload>,
    pub json: Option<String>,
}

/// What one window of one system gave.
#[derive(Clone, Copy, Default)]
pub struct Sample {
    pub gbits: f64,
    pub cpu_per_gb: f64,
    pub resent_per_gb: Option<f64>,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Options {
    pub fn parse(words: &[&str]) -> Self {
        let mut options = Self {
            rounds: 7,
            window: Duration::from_millis(1_500),
            threads: "1".into(),
            systems: SYSTEMS.to_vec(),
            workloads: Workload::ALL.to_vec(),
            json: None,
        };
        for word in words {
            match word.split_once('=') {
                None if *word == "--quick" => (options.rounds, options.window) = (1, Duration::from_millis(200)),
                Some(("--rounds", rounds)) => options.rounds = rounds.parse().unwrap(),
                Some(("--seconds", seconds)) => options.window = Duration::from_secs_f64(seconds.parse().unwrap()),
                Some(("--threads", threads)) => options.threads = threads.into(),
                Some(("--only", names)) => options.systems = names.split(',').map(System::named).collect(),
                Some(("--workload", name)) => options.workloads = vec![Workload::named(name)],
                Some(("--json", path)) => options.json = Some(path.into()),
                _ => usage(),
            }
        }
        options
    }
}

fn usage() -> ! {
    let names: Vec<_> = SYSTEMS.iter().map(|system| system.name).collect();
    eprintln!(
        "compare [--quick] [--rounds=7] [--seconds=1.5] [--threads=1] [--workload=bulk|ping-pong] [--json=FILE]\n        \
         [--only={}]",
        names.join(",")
    );
    std::process::exit(2);
}

pub fn all(options: &Options) {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); options.systems.len()];
    let warm_up = usize::from(options.rounds > 1);
    for round in 0..options.rounds + warm_up {
        for at in 0..options.systems.len() {
            let at = (at + round) % options.systems.len();
            let sample = measure(options.systems[at], options);
            eprintln!(
                "round {round}: {:<42} {:>6.2} Gbit/s {:>6.3} CPU s/GB {:>7.1} us",
                options.systems[at].what, sample.gbits, sample.cpu_per_gb, sample.p50_us
            );
            if round >= warm_up {
                samples[at].push(sample);
            }
        }
    }
    report::print(options, &samples);
}

fn measure(system: System, options: &Options) -> Sample {
    let mut sample = Sample::default();
    for &workload in &options.workloads {
        let mut server = End::start(&["serve", system.name, workload.name(), &options.threads]);
        let place = server.line();
        let place: Vec<&str> = place.split_whitespace().collect();
        let mut client = End::start(&["dial", system.name, workload.name(), &options.threads, place[0], place[1]]);
        // connected, and out of slow start
        sleep(Duration::from_millis(400));
        let (server_before, client_before) = (server.mark(), client.mark());
        let started = Instant::now();
        sleep(options.window);
        let (server_after, client_after) = (server.mark(), client.mark());
        let seconds = started.elapsed().as_secs_f64();
        let grown = |after: &Value, before: &Value, key: &str| Some(after[key].as_f64()? - before[key].as_f64()?);
        match workload {
            Workload::Bulk => {
                let gigabytes = grown(&server_after, &server_before, "bytes").unwrap() / 1e9;
                let cpu = grown(&server_after, &server_before, "cpu").unwrap()
                    + grown(&client_after, &client_before, "cpu").unwrap();
                sample.gbits = gigabytes * 8.0 / seconds;
                sample.cpu_per_gb = cpu / gigabytes;
                sample.resent_per_gb = grown(&client_after, &client_before, "resent").map(|count| count / gigabytes);
            }
            Workload::PingPong => {
                sample.p50_us = client_after["p50"].as_f64().unwrap_or(f64::NAN) / 1e3;
                sample.p99_us = client_after["p99"].as_f64().unwrap_or(f64::NAN) / 1e3;
            }
        }
    }
    sample
}

/// One of the two processes.
struct End {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl End {
    fn start(arguments: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut process =
            Command::new(own).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (ask, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, ask, answers }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "a process ended early");
        line
    }

    fn mark(&mut self) -> Value {
        writeln!(self.ask, "mark").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
