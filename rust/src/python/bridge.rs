//! One future, two ways to wait for it: as an awaitable of an event loop, or blocking.

use std::future::{ready, Future};
use std::pin::Pin;
use std::sync::mpsc::{sync_channel, RecvTimeoutError};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::IntoPyObjectExt;
use pyo3_async_runtimes::generic::{self, ContextExt};
use pyo3_async_runtimes::TaskLocals;
use tokio::task::JoinHandle;

use super::errors::{self, OrRaise};
use super::runtime::{engine, Engine};
use crate::error::{Error, Reason, Result, Stage};

/// Runs `future` in the core. With an event loop (`keynet._runtime.Loop`) it returns an awaitable at once, and cancelling
/// that drops the future; without one it blocks, lets other threads run, and drops the future at Ctrl-C.
pub(super) fn run<'py, T, F>(
    py: Python<'py>,
    event_loop: Option<Bound<'py, PyAny>>,
    future: F,
) -> PyResult<Bound<'py, PyAny>>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    let engine = engine().or_raise(py)?;
    let work = supervise(AbortOnDrop(engine.handle().spawn(future)));
    match event_loop {
        Some(event_loop) => {
            let locals = TaskLocals::new(event_loop);
            generic::future_into_py_with_locals::<Core, _, _>(py, locals, async { Ok(Outcome(work.await)) })
        }
        None => Outcome(block(py, engine, work)?).into_bound_py_any(py),
    }
}

/// Waits for `work` without the interpreter; looks for signals now and then.
fn block<T: Send + 'static>(
    py: Python<'_>,
    engine: &Engine,
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> PyResult<Result<T>> {
    let (sender, mut receiver) = sync_channel(1);
    let _task = AbortOnDrop(engine.handle().spawn(async move {
        let _ = sender.send(work.await);
    }));
    loop {
        let answer;
        (answer, receiver) = py.detach(move || (receiver.recv_timeout(SIGNALS_EVERY), receiver));
        match answer {
            Ok(result) => return Ok(result),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => return Ok(Err(exiting())),
        }
    }
}

/// How long a blocking call may take to notice Ctrl-C.
const SIGNALS_EVERY: Duration = Duration::from_millis(100);

/// The result of a task; a panic in it becomes an error that can be caught like any other.
async fn supervise<T>(mut task: AbortOnDrop<Result<T>>) -> Result<T> {
    match (&mut task.0).await {
        Ok(result) => result,
        Err(broken) if broken.is_panic() => {
            Err(Error::new(Reason::Internal, Stage::Setup, format!("a task of the core panicked: {broken}")))
        }
        Err(_) => Err(exiting()),
    }
}

fn exiting() -> Error {
    Error::new(Reason::ProxyClosed, Stage::Setup, "the interpreter is exiting")
}

struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A result that becomes a Python object, or an exception, only where the interpreter is attached.
struct Outcome<T>(Result<T>);

impl<'py, T: IntoPyObject<'py>> IntoPyObject<'py> for Outcome<T> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        match self.0 {
            Ok(value) => value.into_bound_py_any(py),
            Err(error) => Err(errors::to_py(py, &error)),
        }
    }
}

/// The engine as pyo3-async-runtimes sees it. Its own tokio runtime has no way to be shut down, and attaches without asking
/// whether the interpreter still lives.
struct Core;

struct Broken(tokio::task::JoinError);

type Spawned = Pin<Box<dyn Future<Output = Result<(), Broken>> + Send>>;

impl generic::JoinError for Broken {
    fn is_panic(&self) -> bool {
        self.0.is_panic()
    }

    fn into_panic(self) -> Box<dyn std::any::Any + Send + 'static> {
        self.0.into_panic()
    }
}

impl generic::Runtime for Core {
    type JoinError = Broken;
    type JoinHandle = Spawned;

    fn spawn<F>(future: F) -> Spawned
    where
        F: Future<Output = ()> + Send + 'static,
    {
        match engine() {
            Ok(engine) => {
                let task = engine.handle().spawn(future);
                Box::pin(async { task.await.map_err(Broken) })
            }
            Err(_) => Box::pin(ready(Ok(()))),
        }
    }

    /// pyo3-async-runtimes calls this for one purpose: to bring a result to the interpreter.
    fn spawn_blocking<F>(run: F) -> Spawned
    where
        F: FnOnce() + Send + 'static,
    {
        if let Ok(engine) = engine() {
            engine.deliver(run);
        }
        Box::pin(ready(Ok(())))
    }
}

impl ContextExt for Core {
    fn scope<F, R>(_: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        // the locals are for futures that call Python, and ours do not
        Box::pin(future)
    }

    fn get_task_locals() -> Option<TaskLocals> {
        None
    }
}
