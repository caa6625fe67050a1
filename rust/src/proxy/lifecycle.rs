//! From start to close: the phases of a proxy, and the tasks that have to end before it is closed.

use std::future::Future;

use tokio::sync::watch;

/// How far a proxy is on its way to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Running,
    /// Nothing new is taken; what runs goes on.
    Draining,
    /// Everything ends now.
    Aborting,
    Closed,
}

/// The phase, and who has to hear of it.
#[derive(Debug)]
pub(super) struct Lifecycle {
    phase: watch::Sender<Phase>,
    /// Tasks that serve one connection.
    connections: Tasks,
    /// Tasks that run as long as the proxy: listeners and the like.
    loops: Tasks,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: watch::Sender::new(Phase::Running), connections: Tasks::default(), loops: Tasks::default() }
    }
}

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Goes on to a later phase; false when it is reached already.
    pub fn advance(&self, to: Phase) -> bool {
        self.phase.send_if_modified(|phase| {
            let later = *phase < to;
            if later {
                *phase = to;
            }
            later
        })
    }

    /// Waits for a phase or a later one.
    pub async fn reached(&self, wanted: Phase) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= wanted).await;
    }

    /// Runs a task that serves one connection. When the proxy aborts, the future is dropped where it stands: sockets reset
    /// themselves then.
    pub fn spawn_connection(&self, future: impl Future<Output = ()> + Send + 'static) {
        let (token, mut phase) = (self.connections.enter(), self.phase.subscribe());
        tokio::spawn(async move {
            let _token = token;
            tokio::select! {
                biased;
                _ = phase.wait_for(|phase| *phase >= Phase::Aborting) => {}
                () = future => {}
            }
        });
    }

    /// Runs a task that minds the phases itself.
    pub fn spawn_loop(&self, future: impl Future<Output = ()> + Send + 'static) {
        let token = self.loops.enter();
        tokio::spawn(async move {
            let _token = token;
            future.await;
        });
    }

    pub fn connections(&self) -> usize {
        *self.connections.count.borrow()
    }

    pub async fn connections_ended(&self) {
        self.connections.ended().await;
    }

    pub async fn loops_ended(&self) {
        self.loops.ended().await;
    }
}

/// Counts tasks.
#[derive(Debug)]
struct Tasks {
    count: watch::Sender<usize>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { count: watch::Sender::new(0) }
    }
}

impl Tasks {
    fn enter(&self) -> Token {
        self.count.send_modify(|count| *count += 1);
        Token { count: self.count.clone() }
    }

    async fn ended(&self) {
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}

struct Token {
    count: watch::Sender<usize>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count = count.saturating_sub(1));
    }
}
