//! `allow=` as a function: questions go into a bounded queue, threads of the Python package take them out and answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use tokio::sync::oneshot;

use super::errors::OrRaise;
use super::runtime::{lock, Owned};
use crate::proxy::{AccessRequest, Allow, Denials, Quiet};

/// Questions that wait for a thread; what comes on top is denied. The proxy asks fewer at once (`proxy/asking.rs`).
const MAX_WAITING: usize = 256;

/// The questions of one access list.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    next: u64,
    waiting: VecDeque<(u64, AccessRequest)>,
    /// Those asked and not answered; bounded by `MAX_WAITING` too, because a question that timed out is taken away.
    unanswered: HashMap<u64, oneshot::Sender<Option<bool>>>,
}

impl Queue {
    fn ask(&self, request: AccessRequest) -> Option<(u64, oneshot::Receiver<Option<bool>>)> {
        let mut state = lock(&self.state);
        if state.closed || state.unanswered.len() >= MAX_WAITING {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.unanswered.insert(number, sender);
        state.waiting.push_back((number, request));
        self.arrived.notify_one();
        Some((number, receiver))
    }

    fn forget(&self, number: u64) {
        let mut state = lock(&self.state);
        state.unanswered.remove(&number);
        state.waiting.retain(|(waiting, _)| *waiting != number);
    }

    fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.waiting.clear();
        state.unanswered.clear();
        self.arrived.notify_all();
    }

    fn next(&self) -> Option<(u64, AccessRequest)> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return None;
            }
            if let Some(question) = state.waiting.pop_front() {
                return Some(question);
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Closes the queue when the access list that asks through it is dropped, so that the threads behind it end.
pub(super) struct Asker {
    queue: Arc<Queue>,
    denials: Mutex<Denials>,
    complaints: Quiet,
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Asker {
    async fn ask(&self, request: AccessRequest, timeout: Duration) -> bool {
        let node = request.node;
        if lock(&self.denials).hold(&request, Instant::now()) {
            return false;
        }
        let Some((number, answer)) = self.queue.ask(request.clone()) else {
            if let Some(unsaid) = self.complaints.may_say() {
                tracing::warn!(node = %node.short(), unsaid, "access denied: too many questions wait for allow=");
            }
            return false;
        };
        let forget = Forget(&self.queue, number);
        let verdict = tokio::time::timeout(timeout, answer).await;
        drop(forget);
        match verdict {
            Ok(Ok(Some(true))) => true,
            Ok(Ok(Some(false))) => {
                lock(&self.denials).remember(&request, Instant::now());
                false
            }
            // it failed: that is in the log, and the next question may fare better
            Ok(Ok(None) | Err(_)) => false,
            Err(_) => {
                if let Some(unsaid) = self.complaints.may_say() {
                    let within = timeout.as_secs_f64();
                    tracing::warn!(node = %node.short(), unsaid, "access denied: allow= did not answer within {within} s");
                }
                false
            }
        }
    }
}

/// Takes a question away when whoever waits for the answer is gone.
struct Forget<'a>(&'a Queue, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

/// An access list that asks Python, and where Python finds the questions.
pub(super) fn ask_python(timeout: Duration) -> (Allow, AccessRequests) {
    let queue = Arc::new(Queue::default());
    let asker = Asker { queue: queue.clone(), denials: Mutex::default(), complaints: Quiet::new(5, 6) };
    let asker = Arc::new(asker);
    let allow = Allow::Ask(Arc::new(move |request| {
        let asker = asker.clone();
        Box::pin(async move { asker.ask(request, timeout).await })
    }));
    (allow, AccessRequests(Owned::new(queue)))
}

type Question = (u64, String, Vec<String>, u16, String);

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct AccessRequests(Owned<Arc<Queue>>);

impl AccessRequests {
    pub(super) fn close(&self) {
        if let Ok(queue) = self.0.get() {
            queue.close();
        }
    }

    pub(super) fn share(&self) -> Option<Self> {
        Some(Self(Owned::new(self.0.get().ok()?.clone())))
    }
}

#[pymethods]
impl AccessRequests {
    /// Waits for the next question: its number, the node, all names of the node, the service port, the remote address. None at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Question>> {
        let queue = self.0.get().or_raise(py)?;
        let question = py.detach(|| queue.next());
        Ok(question.map(|(number, request)| {
            let all = request.all.iter().map(ToString::to_string).collect();
            (number, request.node.to_string(), all, request.service_port, request.remote_address.to_string())
        }))
    }

    /// Answers a question; None says that the function failed. Too late is no error.
    #[pyo3(signature = (number, allowed))]
    fn answer(&self, py: Python<'_>, number: u64, allowed: Option<bool>) -> PyResult<()> {
        if let Some(sender) = lock(&self.0.get().or_raise(py)?.state).unanswered.remove(&number) {
            let _ = sender.send(allowed);
        }
        Ok(())
    }
}
