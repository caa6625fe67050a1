//! `_keynet.Proxy` and `_keynet.Forward`. Methods that wait take an event loop, or None to block (see [`bridge`]).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::access::AccessRequests;
use super::bridge;
use super::convert::{self, node_id, Connection, Path, Ping};
use super::errors::{self, OrRaise};
use super::events::EventStream;
use super::identity::Identity;
use super::logging;
use super::runtime::{engine, existing, Owned};
use super::settings::{self, AllowSetting, Settings};
use super::status;
use crate::proxy::{self, Close, LocalListener};

/// A running proxy of the core. Dropping the last reference aborts it, also when the await that made it was cancelled.
pub(super) struct Running(proxy::Proxy);

impl Running {
    pub(super) async fn abort(&self) {
        self.0.close(Close::Abort).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(engine) = existing() {
            let proxy = self.0.clone();
            engine.handle().spawn(async move { proxy.close(Close::Abort).await });
        }
    }
}

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct Proxy {
    running: Owned<Arc<Running>>,
    requests: Option<AccessRequests>,
}

impl Proxy {
    fn core(&self, py: Python<'_>) -> PyResult<&proxy::Proxy> {
        Ok(&self.running.get().or_raise(py)?.0)
    }
}

#[pymethods]
impl Proxy {
    #[staticmethod]
    fn start<'py>(
        py: Python<'py>,
        identity: &Identity,
        settings: &Bound<'py, PyAny>,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (config, requests) = Settings::read(py, settings)?.config().or_raise(py)?;
        let identity = identity.0.clone();
        logging::start(py)?;
        bridge::run(py, event_loop, async move {
            let running = Arc::new(Running(proxy::Proxy::start(identity, config).await?));
            engine()?.register(&running);
            Ok(Self { running: Owned::new(running), requests })
        })
    }

    fn close<'py>(
        &self,
        py: Python<'py>,
        drain: bool,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let proxy = self.core(py)?.clone();
        if let Some(requests) = &self.requests {
            requests.close();
        }
        let how = if drain { Close::Drain } else { Close::Abort };
        bridge::run(py, event_loop, async move {
            // in a task of its own: who gives up waiting does not stop it
            let closing = tokio::spawn(async move { proxy.close(how).await });
            let _ = closing.await;
            Ok(())
        })
    }

    /// Where the questions of `allow=` arrive, if it is a function.
    fn access_requests(&self) -> Option<AccessRequests> {
        self.requests.as_ref().and_then(AccessRequests::share)
    }

    fn forward_address(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.core(py)?.forward_address().to_string())
    }

    fn proxy_address(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.core(py)?.proxy_address().to_string())
    }

    fn credentials(&self, py: Python<'_>) -> PyResult<(String, String)> {
        Ok(self.core(py)?.credentials())
    }

    fn add_peer(&self, py: Python<'_>, node: &str, addresses: Vec<String>) -> PyResult<()> {
        self.core(py)?.add_peer(node_id(node).or_raise(py)?, addresses).or_raise(py)
    }

    fn remove_peer(&self, py: Python<'_>, node: &str) -> PyResult<()> {
        self.core(py)?.remove_peer(&node_id(node).or_raise(py)?);
        Ok(())
    }

    fn peers(&self, py: Python<'_>) -> PyResult<Vec<(String, Vec<String>)>> {
        let peers = self.core(py)?.peers();
        Ok(peers.into_iter().map(|(node, addresses)| (node.to_string(), addresses)).collect())
    }

    fn rotate(&self, py: Python<'_>, identity: &Identity) -> PyResult<()> {
        self.core(py)?.rotate(identity.0.clone()).or_raise(py)
    }

    fn set_service(&self, py: Python<'_>, port: i64, backend: Option<&str>) -> PyResult<()> {
        let service = backend.map(settings::service).transpose().or_raise(py)?;
        self.core(py)?.set_service(settings::service_port(port).or_raise(py)?, service);
        Ok(())
    }

    fn set_allow(
        &self,
        py: Python<'_>,
        allow: AllowSetting,
        timeout: f64,
        cut: bool,
    ) -> PyResult<Option<AccessRequests>> {
        let (allow, requests) = allow.allow(timeout).or_raise(py)?;
        match cut {
            true => self.core(py)?.set_allow(allow),
            false => self.core(py)?.set_allow_for_new(allow),
        }
        Ok(requests)
    }

    fn disconnect(&self, py: Python<'_>, node: &str) -> PyResult<usize> {
        Ok(self.core(py)?.disconnect(&node_id(node).or_raise(py)?))
    }

    fn connections(&self, py: Python<'_>, node: Option<&str>) -> PyResult<Vec<Connection>> {
        let core = self.core(py)?;
        let found = match node {
            Some(node) => core.connections_of(&node_id(node).or_raise(py)?),
            None => core.connections(),
        };
        Ok(found.into_iter().map(Connection).collect())
    }

    fn set_priority(&self, py: Python<'_>, id: u64, priority: &str) -> PyResult<bool> {
        Ok(self.core(py)?.set_priority(id, convert::priority(priority).or_raise(py)?))
    }

    fn connection_by_client(&self, py: Python<'_>, address: &str) -> PyResult<Option<Connection>> {
        Ok(self.core(py)?.connection_by_client(address).map(Connection))
    }

    fn connection_by_reverse(&self, py: Python<'_>, address: &str) -> PyResult<Option<Connection>> {
        Ok(self.core(py)?.connection_by_reverse(address).map(Connection))
    }

    fn last_error<'py>(&self, py: Python<'py>, node: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        let error = self.core(py)?.last_error(&node_id(node).or_raise(py)?);
        error.map(|error| errors::object(py, &error)).transpose()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        convert::stats(py, &self.core(py)?.stats())
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        status::of_node(py, self.core(py)?)
    }

    fn explain<'py>(&self, py: Python<'py>, node: &str) -> PyResult<Bound<'py, PyDict>> {
        let node = node_id(node).or_raise(py)?;
        status::explanation(py, self.core(py)?.explain(&node))
    }

    fn subscribe(&self, py: Python<'_>) -> PyResult<EventStream> {
        Ok(EventStream::new(self.core(py)?.subscribe()))
    }

    fn ping<'py>(
        &self,
        py: Python<'py>,
        node: &str,
        timeout: f64,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (proxy, node) = (self.core(py)?.clone(), node_id(node).or_raise(py)?);
        let timeout = convert::seconds("timeout", timeout).or_raise(py)?;
        bridge::run(py, event_loop, async move { proxy.ping(node, timeout).await.map(Ping) })
    }

    fn expect<'py>(
        &self,
        py: Python<'py>,
        node: &str,
        timeout: f64,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (proxy, node) = (self.core(py)?.clone(), node_id(node).or_raise(py)?);
        let timeout = convert::seconds("timeout", timeout).or_raise(py)?;
        bridge::run(py, event_loop, async move { proxy.expect(node, timeout).await.map(Path) })
    }

    fn forward<'py>(
        &self,
        py: Python<'py>,
        node: &str,
        service_port: i64,
        local: &str,
        browser_hosts: Vec<String>,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (proxy, node) = (self.core(py)?.clone(), node_id(node).or_raise(py)?);
        let (service_port, local) = (settings::service_port(service_port).or_raise(py)?, listener(local).or_raise(py)?);
        bridge::run(py, event_loop, async move {
            let forward = proxy.forward(node, service_port, local, &browser_hosts).await?;
            Ok(Forward(Owned::new(Arc::new(forward))))
        })
    }
}

fn listener(text: &str) -> crate::error::Result<LocalListener> {
    match text.strip_prefix("unix:") {
        Some(path) => Ok(LocalListener::Unix(PathBuf::from(path))),
        None => convert::socket_address("local", text).map(|address: SocketAddr| LocalListener::Tcp(address)),
    }
}

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct Forward(Owned<Arc<proxy::Forward>>);

#[pymethods]
impl Forward {
    fn address(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.0.get().or_raise(py)?.address().to_owned())
    }

    fn close<'py>(&self, py: Python<'py>, event_loop: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let forward = self.0.get().or_raise(py)?.clone();
        bridge::run(py, event_loop, async move {
            forward.close().await;
            Ok(())
        })
    }
}
