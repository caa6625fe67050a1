//! The table of medians and ratios, and all samples as JSON.

use serde_json::json;

use crate::run::{Options, Sample};

pub fn print(options: &Options, samples: &[Vec<Sample>]) {
    let medians: Vec<Sample> = samples.iter().map(|samples| medians(samples)).collect();
    let of = |name: &str| options.systems.iter().position(|system| system.name == name).map(|at| medians[at]);
    let (utp, tls) = (of("keynet"), of("keynet-tls"));
    println!(
        "| | Gbit/s | keynet uTP / it | keynet TLS / it | CPU s/GB | keynet uTP / it | keynet TLS / it | resent/GB \
         | both ways, Gbit/s | of one way | Jain | p50 us | p99 us |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for (system, row) in options.systems.iter().zip(&medians) {
        let ratio = |value: fn(&Sample) -> f64, one: Option<Sample>| match one {
            Some(one) => format!("{:.2}", value(&one) / value(row)),
            None => "-".into(),
        };
        let resent = row.resent_per_gb.map_or("-".into(), |count| format!("{count:.0}"));
        let shown = |value: f64, digits: usize| match value > 0.0 {
            true => format!("{value:.digits$}"),
            false => "-".into(),
        };
        println!(
            "| {} | {:.2} | {} | {} | {:.3} | {} | {} | {resent} | {} | {} | {} | {} | {} |",
            system.what,
            row.gbits,
            ratio(|sample| sample.gbits, utp),
            ratio(|sample| sample.gbits, tls),
            row.cpu_per_gb,
            ratio(|sample| sample.cpu_per_gb, utp),
            ratio(|sample| sample.cpu_per_gb, tls),
            shown(row.both_gbits, 2),
            shown(row.both_gbits / row.gbits, 2),
            if system.connections > 1 { shown(row.jain, 3) } else { "-".into() },
            shown(row.p50_us, 1),
            shown(row.p99_us, 1),
        );
    }
    if let Some(path) = &options.json {
        let systems: Vec<_> = options
            .systems
            .iter()
            .zip(samples)
            .map(|(system, samples)| {
                json!({ "system": system.name, "samples": samples.iter().map(as_json).collect::<Vec<_>>() })
            })
            .collect();
        let all = json!({
            "rounds": options.rounds,
            "seconds": options.window.as_secs_f64(),
            "threads": options.threads,
            "systems": systems,
        });
        if let Some(folder) = std::path::Path::new(path).parent() {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(path, format!("{all:#}\n")).unwrap();
        println!("\nall samples: {path}");
    }
}

fn as_json(sample: &Sample) -> serde_json::Value {
    json!({
        "gbits": sample.gbits,
        "cpu_seconds_per_gb": sample.cpu_per_gb,
        "resent_per_gb": sample.resent_per_gb,
        "both_gbits": sample.both_gbits,
        "jain": sample.jain,
        "p50_us": sample.p50_us,
        "p99_us": sample.p99_us,
    })
}

fn medians(samples: &[Sample]) -> Sample {
    let median = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let resent = median(|sample| sample.resent_per_gb.unwrap_or(f64::NAN));
    Sample {
        gbits: median(|sample| sample.gbits),
        cpu_per_gb: median(|sample| sample.cpu_per_gb),
        resent_per_gb: (!resent.is_nan()).then_some(resent),
        both_gbits: median(|sample| sample.both_gbits),
        jain: median(|sample| sample.jain),
        p50_us: median(|sample| sample.p50_us),
        p99_us: median(|sample| sample.p99_us),
    }
}
