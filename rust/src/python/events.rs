//! `_keynet.EventStream`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use pyo3::types::PyDict;
use tokio::sync::Mutex as AsyncMutex;

use super::bridge;
use super::convert::{self, Connection};
use super::errors::{self, OrRaise};
use super::runtime::{lock, Owned};
use crate::error::{Error, Reason, Stage};
use crate::proxy::{Event, Events};

/// Waiting and taking are two steps, so that a cancelled wait never loses an event.
#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct EventStream(Owned<Arc<Stream>>);

struct Stream {
    source: AsyncMutex<Option<Events>>,
    /// What was waited for and not taken yet: at most one for each waiting reader.
    arrived: Mutex<VecDeque<Event>>,
}

impl EventStream {
    pub(super) fn new(events: Events) -> Self {
        Self(Owned::new(Arc::new(Stream { source: AsyncMutex::new(Some(events)), arrived: Mutex::default() })))
    }
}

#[pymethods]
impl EventStream {
    /// Waits until `take` has something; False at the end of the stream. Fails after `timeout` seconds, if given.
    #[pyo3(signature = (event_loop, timeout=None))]
    fn wait<'py>(
        &self,
        py: Python<'py>,
        event_loop: Option<Bound<'py, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let stream = self.0.get().or_raise(py)?.clone();
        let timeout = timeout.map(|timeout| convert::seconds("timeout", timeout)).transpose().or_raise(py)?;
        bridge::run(py, event_loop, async move {
            let Some(timeout) = timeout else { return Ok(stream.wait().await) };
            // the Python side turns it into a TimeoutError
            tokio::time::timeout(timeout, stream.wait())
                .await
                .map_err(|_| Error::new(Reason::Cancelled, Stage::Stream, "no event in time"))
        })
    }

    /// The event that `wait` found: its kind and its fields.
    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<(&'static str, Bound<'py, PyDict>)>> {
        let event = lock(&self.0.get().or_raise(py)?.arrived).pop_front();
        event.map(|event| fields(py, event)).transpose()
    }
}

impl Stream {
    async fn wait(&self) -> bool {
        if !lock(&self.arrived).is_empty() {
            return true;
        }
        let mut source = self.source.lock().await;
        if !lock(&self.arrived).is_empty() {
            return true;
        }
        let Some(events) = source.as_mut() else { return false };
        match events.next().await {
            Some(event) => {
                lock(&self.arrived).push_back(event);
                true
            }
            None => {
                *source = None;
                false
            }
        }
    }
}

fn fields(py: Python<'_>, event: Event) -> PyResult<(&'static str, Bound<'_, PyDict>)> {
    let dict = PyDict::new(py);
    let kind = match event {
        Event::PeerConnected { node, address, relayed } => {
            dict.set_item("relayed", relayed)?;
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("address", address.to_string())?;
            "peer_connected"
        }
        Event::PeerLost { node, address, reason } => {
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("address", address.to_string())?;
            dict.set_item("reason", reason.name())?;
            "peer_lost"
        }
        Event::PathChanged { node, from, to, relayed } => {
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("before", from.to_string())?;
            dict.set_item("after", to.to_string())?;
            dict.set_item("relayed", relayed)?;
            "path_changed"
        }
        Event::ConnectionOpened(info) => {
            dict.set_item("connection", Connection(info))?;
            "connection_opened"
        }
        Event::ConnectionClosed(info) => {
            dict.set_item("connection", Connection(info))?;
            "connection_closed"
        }
        Event::ConnectionRefused { role, node, address, service_port, error } => {
            dict.set_item("role", convert::role_name(role))?;
            dict.set_item("node_id", node.map(|node| node.to_string()))?;
            dict.set_item("address", address.map(|address| address.to_string()))?;
            dict.set_item("service_port", service_port)?;
            dict.set_item("error", errors::object(py, &error)?)?;
            "connection_refused"
        }
        Event::EventsDropped { count } => {
            dict.set_item("count", count)?;
            "events_dropped"
        }
        Event::Closed => "closed",
        other => finding(&dict, other)?,
    };
    Ok((kind, dict))
}

/// What has to do with finding nodes and the ways to them.
fn finding(dict: &Bound<'_, PyDict>, event: Event) -> PyResult<&'static str> {
    let py = dict.py();
    Ok(match event {
        Event::RendezvousConnected { node, address, observed } => {
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("address", address.to_string())?;
            dict.set_item("observed", observed.map(|address| address.to_string()))?;
            "rendezvous_connected"
        }
        Event::RendezvousLost { node, address, error } => {
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("address", address)?;
            dict.set_item("error", errors::object(py, &error)?)?;
            "rendezvous_lost"
        }
        Event::NetworkChanged { addresses } => {
            dict.set_item("addresses", addresses.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            "network_changed"
        }
        Event::MeetingFailed { node, error } => {
            dict.set_item("node_id", node.to_string())?;
            dict.set_item("error", errors::object(py, &error)?)?;
            "meeting_failed"
        }
        Event::RelayConnected { relay, addresses } => {
            dict.set_item("relay", relay)?;
            dict.set_item("addresses", addresses.iter().map(ToString::to_string).collect::<Vec<_>>())?;
            "relay_connected"
        }
        Event::RelayLost { relay, error } => {
            dict.set_item("relay", relay)?;
            dict.set_item("error", errors::object(py, &error)?)?;
            "relay_lost"
        }
        _ => "unknown",
    })
}
