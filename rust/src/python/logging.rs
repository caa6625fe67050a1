//! `tracing` to Python's `logging`: a bounded queue and one thread, so that a slow handler never holds up a packet.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::Once;
use std::time::Duration;

use pyo3::intern;
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::Registry;

use super::runtime;
use crate::error::printable;

/// Records that wait for the thread; what comes on top is dropped and counted.
const QUEUE: usize = 1_024;
/// Bytes of a record: an error with its longest detail (2,048), and the fields beside it.
const MAX_RECORD: usize = 4_096;
/// How soon a changed level of the logger is noticed.
const LEVEL_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Record {
    level: u8,
    target: &'static str,
    message: String,
}

// the lowest Python level that is wanted: 10 debug, 20 info, 30 warning, 40 error
static LEVEL: AtomicU8 = AtomicU8::new(30);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Has `tracing` come here and reads the wanted level.
pub(super) fn start(py: Python<'_>) -> PyResult<()> {
    static SUBSCRIBER: Once = Once::new();
    SUBSCRIBER.call_once(|| {
        // fails only if someone set another one in this library, and there is nobody else
        let _ = tracing::subscriber::set_global_default(Registry::default().with(ToPython));
    });
    read_level(py)
}

/// The thread of one process, and the queue to it. `None` ends it when it has delivered what came before.
pub(super) fn spawn_thread() -> std::io::Result<SyncSender<Option<Record>>> {
    let (records, queue) = sync_channel(QUEUE);
    std::thread::Builder::new().name("keynet-log".into()).spawn(move || deliver_all(&queue))?;
    Ok(records)
}

fn deliver_all(queue: &Receiver<Option<Record>>) {
    loop {
        let record = match queue.recv_timeout(LEVEL_EVERY) {
            Ok(Some(record)) => Some(record),
            Err(RecvTimeoutError::Timeout) => None,
            Ok(None) | Err(RecvTimeoutError::Disconnected) => return,
        };
        let delivered = Python::try_attach(|py| match record {
            Some(record) => deliver(py, &record),
            None => read_level(py),
        });
        match delivered {
            None => return, // the interpreter is gone
            Some(Ok(())) => {}
            Some(Err(error)) => drop(Python::try_attach(|py| error.write_unraisable(py, None))),
        }
    }
}

fn deliver(py: Python<'_>, record: &Record) -> PyResult<()> {
    let logger = logger(py, record.target)?;
    let dropped = DROPPED.swap(0, Ordering::Relaxed);
    if dropped > 0 {
        logger.call_method1(intern!(py, "warning"), ("%d log records were dropped: logging is too slow", dropped))?;
    }
    logger.call_method1(intern!(py, "log"), (record.level, "%s", &record.message))?;
    Ok(())
}

/// `keynet::proxy::forward` logs as `keynet.proxy.forward`, other crates below `keynet` as well.
fn logger<'py>(py: Python<'py>, target: &str) -> PyResult<Bound<'py, PyAny>> {
    let mut name = target.replace("::", ".");
    if name != "keynet" && !name.starts_with("keynet.") {
        name = format!("keynet.{name}");
    }
    py.import(intern!(py, "logging"))?.call_method1(intern!(py, "getLogger"), (name,))
}

fn read_level(py: Python<'_>) -> PyResult<()> {
    let level: u32 = logger(py, "keynet")?.call_method0(intern!(py, "getEffectiveLevel"))?.extract()?;
    let level = u8::try_from(level).unwrap_or(u8::MAX);
    if LEVEL.swap(level, Ordering::Relaxed) != level {
        tracing::callsite::rebuild_interest_cache();
    }
    Ok(())
}

fn python_level(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 40,
        Level::WARN => 30,
        Level::INFO => 20,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

struct ToPython;

impl<S: Subscriber> Layer<S> for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        python_level(metadata.level()) >= LEVEL.load(Ordering::Relaxed)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match LEVEL.load(Ordering::Relaxed) {
            0..=5 => LevelFilter::TRACE,
            6..=10 => LevelFilter::DEBUG,
            11..=20 => LevelFilter::INFO,
            21..=30 => LevelFilter::WARN,
            31..=40 => LevelFilter::ERROR,
            _ => LevelFilter::OFF,
        })
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let metadata = event.metadata();
        let record = Record {
            level: python_level(metadata.level()),
            target: metadata.target(),
            // whatever a field holds, and whoever wrote it: a record is one line, and steers no terminal
            message: printable(text.message + &text.fields, MAX_RECORD),
        };
        let Some(engine) = runtime::existing() else { return };
        let full = matches!(engine.logs().try_send(Some(record)), Err(TrySendError::Full(_)));
        if full {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The message, and the other fields as ` name=value`.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // writing to a String cannot fail
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}
