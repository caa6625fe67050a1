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
    pub both_gbits: f64,
    /// Of the bytes of each connection (Jain's index); 1 is fair.
    pub jain: f64,
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
        "compare [--quick] [--rounds=7] [--seconds=1.5] [--threads=1] [--workload=bulk|both-ways|ping-pong] [--json=FILE]\n        \
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
                "round {round}: {:<50} {:>6.2} Gbit/s {:>6.3} CPU s/GB {:>6.2} Gbit/s both ways, Jain {:.3}, {:>7.1} us",
                options.systems[at].what,
                sample.gbits,
                sample.cpu_per_gb,
                sample.both_gbits,
                sample.jain,
                sample.p50_us
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
    for &workload in options.workloads.iter().filter(|workload| system.has(**workload)) {
        let mut server = End::start(&["serve", system.name, workload.name(), &options.threads]);
        let place = server.line();
        let place: Vec<&str> = place.split_whitespace().collect();
        let mut client = End::start(&["dial", system.name, workload.name(), &options.threads, place[0], place[1]]);
        client.line();
        // connected; then out of slow start, and each often enough at its turn for its share to show
        let (settle, window) = match system.connections {
            1 => (Duration::from_millis(400), options.window),
            _ => (Duration::from_secs(1), options.window * 3),
        };
        sleep(settle);
        let before = [server.mark(), client.mark()];
        let started = Instant::now();
        sleep(window);
        let after = [server.mark(), client.mark()];
        sample.take(workload, &before, &after, started.elapsed().as_secs_f64());
    }
    sample
}

impl Sample {
    /// What server and client said at the start and at the end.
    fn take(&mut self, workload: Workload, before: &[Value; 2], after: &[Value; 2], seconds: f64) {
        let [_, client] = after;
        let grown = |at: usize, key: &str| Some(after[at][key].as_f64()? - before[at][key].as_f64()?);
        let bytes = |at: usize| -> Vec<f64> {
            let list = |value: &Value| value["bytes"].as_array().cloned().unwrap_or_default();
            let pairs = list(&after[at]).into_iter().zip(list(&before[at]));
            pairs.map(|(after, before)| after.as_f64().unwrap() - before.as_f64().unwrap()).collect()
        };
        match workload {
            Workload::Bulk => {
                let each = bytes(0);
                let gigabytes = each.iter().sum::<f64>() / 1e9;
                let cpu = grown(0, "cpu").unwrap() + grown(1, "cpu").unwrap();
                self.gbits = gigabytes * 8.0 / seconds;
                self.cpu_per_gb = cpu / gigabytes;
                self.resent_per_gb = grown(1, "resent").map(|count| count / gigabytes);
                self.jain = each.iter().sum::<f64>().powi(2)
                    / (each.len() as f64 * each.iter().map(|bytes| bytes * bytes).sum::<f64>());
            }
            Workload::BothWays => {
                let all: f64 = bytes(0).iter().chain(&bytes(1)).sum();
                self.both_gbits = all / 1e9 * 8.0 / seconds;
            }
            Workload::PingPong => {
                self.p50_us = client["p50"].as_f64().unwrap_or(f64::NAN) / 1e3;
                self.p99_us = client["p99"].as_f64().unwrap_or(f64::NAN) / 1e3;
            }
        }
    }
}

/// One of the two processes.
pub struct End {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl End {
    pub fn start(arguments: &[&str]) -> Self {
        let own = std::env::current_exe().unwrap();
        let mut process =
            Command::new(own).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (ask, answers) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Self { process, ask, answers }
    }

    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "a process ended early");
        line
    }

    pub fn mark(&mut self) -> Value {
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
