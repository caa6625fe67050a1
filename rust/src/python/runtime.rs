//! The tokio runtime of the extension module, made at first use and ended by `shutdown`; and what a fork does to it.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, sync_channel, Sender, SyncSender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use pyo3::Python;
use tokio::runtime::{Builder, Handle, Runtime};

use super::logging::{self, Record};
use super::proxy::Running;
use crate::error::{Error, Reason, Result, Stage};

/// The threads of one process. A forked child has none of its parent's, so it makes an engine of its own when it asks for one.
pub(super) struct Engine {
    pid: u32,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
    /// Not bounded by itself: it holds at most one job for each await that is under way.
    results: Sender<Job>,
    logs: SyncSender<Option<Record>>,
    proxies: Mutex<Vec<Weak<Running>>>,
    stopped: AtomicBool,
    of_child: OnceLock<Box<Engine>>,
}

/// What the result thread does.
enum Job {
    Run(Box<dyn FnOnce() + Send>),
    Stop(SyncSender<()>),
}

// Reading a OnceLock takes no lock, so a fork in the middle of it leaves nothing locked for the child.
static FIRST: OnceLock<Engine> = OnceLock::new();

/// The engine of this process.
pub(super) fn engine() -> Result<&'static Engine> {
    let pid = std::process::id();
    let mut engine = FIRST.get_or_init(|| Engine::start(pid));
    while engine.pid != pid {
        engine = engine.of_child.get_or_init(|| Box::new(Engine::start(pid)));
    }
    if engine.stopped.load(Ordering::Acquire) {
        return Err(Error::new(Reason::ProxyClosed, Stage::Setup, "the interpreter is exiting"));
    }
    Ok(engine)
}

/// The engine of this process, if it has one already (also none while it is being made) that was not shut down.
pub(super) fn existing() -> Option<&'static Engine> {
    let pid = std::process::id();
    let mut engine = FIRST.get()?;
    while engine.pid != pid {
        engine = engine.of_child.get()?;
    }
    (!engine.stopped.load(Ordering::Acquire)).then_some(engine)
}

impl Engine {
    // the queue of results must not make tokio's workers wait, and holds at most one entry for each await
    #[allow(clippy::disallowed_methods)]
    #[allow(clippy::expect_used)] // without threads there is nothing to fall back to, and pyo3 turns the panic into an exception
    fn start(pid: u32) -> Self {
        // two workers at least: one busy with cryptography must not hold up the socket
        let workers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 8));
        let runtime = Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("keynet-core")
            .enable_all()
            .build()
            .expect("the threads of the runtime start");
        // a bound would make a worker of the runtime wait for the interpreter; there is one job at most for each call
        // that Python waits for
        #[allow(clippy::disallowed_methods)]
        let (results, jobs) = channel();
        std::thread::Builder::new()
            .name("keynet-results".into())
            .spawn(move || {
                while let Ok(job) = jobs.recv() {
                    match job {
                        // None: the interpreter is gone; whoever waited for the result is as well
                        Job::Run(run) => drop(Python::try_attach(|_| run())),
                        Job::Stop(done) => {
                            let _ = done.send(());
                            return;
                        }
                    }
                }
            })
            .expect("the result thread starts");
        Self {
            pid,
            handle: runtime.handle().clone(),
            runtime: Mutex::new(Some(runtime)),
            results,
            logs: logging::spawn_thread().expect("the log thread starts"),
            proxies: Mutex::default(),
            stopped: AtomicBool::new(false),
            of_child: OnceLock::new(),
        }
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs something on the result thread, attached to the interpreter.
    pub(super) fn deliver(&self, run: impl FnOnce() + Send + 'static) {
        // an error means that the thread has stopped, at exit
        let _ = self.results.send(Job::Run(Box::new(run)));
    }

    pub(super) fn logs(&self) -> &SyncSender<Option<Record>> {
        &self.logs
    }

    /// Has `shutdown` close it.
    pub(super) fn register(&self, proxy: &Arc<Running>) {
        let mut proxies = lock(&self.proxies);
        proxies.retain(|known| known.strong_count() > 0);
        proxies.push(Arc::downgrade(proxy));
    }

    fn shutdown(&self, timeout: Duration) {
        if self.stopped.swap(true, Ordering::AcqRel) {
            return;
        }
        let proxies: Vec<_> = lock(&self.proxies).drain(..).filter_map(|proxy| proxy.upgrade()).collect();
        if let Some(runtime) = lock(&self.runtime).take() {
            runtime.block_on(async {
                let all = async {
                    for proxy in proxies {
                        proxy.abort().await;
                    }
                };
                let _ = tokio::time::timeout(timeout, all).await;
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
        let (done, stopped) = sync_channel(1);
        if self.results.send(Job::Stop(done)).is_ok() {
            let _ = stopped.recv_timeout(Duration::from_secs(1));
        }
        let _ = self.logs.try_send(None);
    }
}

/// Ends the engine of this process, if there is one. Call it detached from the interpreter.
pub(super) fn shutdown(timeout: Duration) {
    if let Some(engine) = existing() {
        engine.shutdown(timeout);
    }
}

/// Something that lives on the threads of the process that made it. In a forked child it can be neither used nor dropped:
/// its locks may be held by threads that do not exist there.
pub(super) struct Owned<T> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(super) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: ManuallyDrop::new(value) }
    }

    pub(super) fn get(&self) -> Result<&T> {
        if self.pid == std::process::id() {
            return Ok(&self.value);
        }
        Err(Error::new(Reason::Forked, Stage::Setup, format!("made in process {}, used in its child", self.pid)))
    }
}

impl<T> Drop for Owned<T> {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        if self.pid == std::process::id() {
            // SAFETY: dropped once, here, and never used after
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// Locks whatever another thread's panic left; the data of this module is valid at every step.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
