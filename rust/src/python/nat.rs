//! `_keynet.StunServer`, `_keynet.PortMapping` and `_keynet.discover`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge;
use super::convert::{self, invalid};
use super::errors::OrRaise;
use super::runtime::Owned;
use crate::config::{DiscoveryConfig, HostConfig, StunConfig};
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::excerpt;
use crate::nat::{self, Interfaces, StunStats};
use crate::path::{NatProfile, Ports};
use crate::peer;

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct StunServer(Owned<Arc<nat::StunServer>>);

#[pymethods]
impl StunServer {
    #[staticmethod]
    fn bind<'py>(
        py: Python<'py>,
        addresses: Vec<String>,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let addresses = addresses.iter().map(|text| convert::socket_address("addresses", text));
        let addresses = addresses.collect::<Result<Vec<_>>>().or_raise(py)?;
        bridge::run(py, event_loop, async move {
            let server = nat::StunServer::bind(&addresses, &StunConfig::default())?;
            Ok(Self(Owned::new(Arc::new(server))))
        })
    }

    fn addresses(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        Ok(self.0.get().or_raise(py)?.addresses().iter().map(ToString::to_string).collect())
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let StunStats { queries, answers, refused, rate_limited, malformed, send_errors } =
            self.0.get().or_raise(py)?.stats();
        let dict = PyDict::new(py);
        macro_rules! put {
            ($($name:ident),*) => {$(dict.set_item(stringify!($name), $name)?;)*};
        }
        put!(queries, answers, refused, rate_limited, malformed, send_errors);
        Ok(dict)
    }

    fn close<'py>(&self, py: Python<'py>, event_loop: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let server = self.0.get().or_raise(py)?.clone();
        bridge::run(py, event_loop, async move {
            server.close().await;
            Ok(())
        })
    }
}

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct PortMapping(Owned<Arc<nat::PortMapping>>);

#[pymethods]
impl PortMapping {
    #[staticmethod]
    fn start<'py>(py: Python<'py>, port: u16, event_loop: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        bridge::run(py, event_loop, async move {
            let mapping = nat::PortMapping::start(port, vec![], &HostConfig::default());
            Ok(Self(Owned::new(Arc::new(mapping))))
        })
    }

    /// The external address as soon as there is one; `None`: not in this time.
    fn wait<'py>(
        &self,
        py: Python<'py>,
        timeout: f64,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let timeout = convert::seconds("timeout", timeout).or_raise(py)?;
        let mut external = self.0.get().or_raise(py)?.external();
        bridge::run(py, event_loop, async move {
            let found = tokio::time::timeout(timeout, external.wait_for(Option::is_some)).await;
            Ok(found.ok().and_then(|found| found.ok().and_then(|address| *address)).map(|address| address.to_string()))
        })
    }

    fn close<'py>(&self, py: Python<'py>, event_loop: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let mapping = self.0.get().or_raise(py)?.clone();
        bridge::run(py, event_loop, async move {
            mapping.close().await;
            Ok(())
        })
    }
}

/// What is known of this machine's network: its own addresses, and, if servers are named, what its NATs do.
#[pyfunction]
pub(super) fn discover<'py>(
    py: Python<'py>,
    servers: Vec<String>,
    timeout: f64,
    event_loop: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let timeout = convert::seconds("timeout", timeout).or_raise(py)?;
    bridge::run(py, event_loop, async move {
        let started = tokio::time::Instant::now();
        let servers = tokio::time::timeout(timeout, resolve(servers));
        let servers = servers.await.map_err(|_| unresolved("the names of the servers were not resolved in time"))??;
        let left = timeout.saturating_sub(started.elapsed());
        let profile = nat::discover(&servers, left, &DiscoveryConfig::default()).await;
        // some sandboxes have no netlink (systemd's RestrictAddressFamilies=, Android): all else can be found out there
        let (interfaces, unread) = match Interfaces::read() {
            Ok(interfaces) => (interfaces, None),
            Err(error) => (Interfaces::default(), Some(error.to_string())),
        };
        Ok(Discovered { profile, interfaces, unread, servers, took: started.elapsed() })
    })
}

/// Every address of every name.
async fn resolve(servers: Vec<String>) -> Result<Vec<SocketAddr>> {
    let mut addresses = vec![];
    for server in servers {
        let well_formed =
            server.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0));
        if !well_formed {
            return Err(invalid(format!("stun: '{}' is not host:port", excerpt(&server))));
        }
        addresses.extend(peer::resolve(&server).await.map_err(|error| unresolved(&error.detail))?);
    }
    Ok(addresses)
}

fn unresolved(detail: &str) -> Error {
    Error::new(Reason::Unreachable, Stage::Setup, detail)
}

struct Discovered {
    profile: NatProfile,
    interfaces: Interfaces,
    /// Why the interfaces could not be read.
    unread: Option<String>,
    servers: Vec<SocketAddr>,
    took: Duration,
}

impl<'py> IntoPyObject<'py> for Discovered {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let NatProfile { mapping, filtering, ports, udp_blocked, translated, external, same_by_port } = self.profile;
        let dict = PyDict::new(py);
        dict.set_item("summary", self.profile.to_string())?;
        dict.set_item("mapping", mapping.name())?;
        dict.set_item("filtering", filtering.name())?;
        dict.set_item("ports", ports.name())?;
        dict.set_item("ports_detail", if ports == Ports::Unknown { None } else { Some(ports.to_string()) })?;
        dict.set_item("udp_blocked", udp_blocked)?;
        dict.set_item("translated", translated)?;
        dict.set_item("same_by_port", same_by_port)?;
        dict.set_item("external", external.map(|ip| ip.to_string()))?;
        dict.set_item("nested", external.map(nat::is_nested))?;
        dict.set_item("servers", self.servers.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        dict.set_item("gateways", self.interfaces.gateways().iter().map(ToString::to_string).collect::<Vec<_>>())?;
        dict.set_item("addresses_error", self.unread)?;
        dict.set_item("took", self.took.as_secs_f64())?;
        let mut addresses = vec![];
        for address in self.interfaces.all() {
            let row = PyDict::new(py);
            row.set_item("interface", &address.interface)?;
            row.set_item("address", address.ip.to_string())?;
            row.set_item("prefix", address.prefix)?;
            row.set_item("kind", address.kind.name())?;
            addresses.push(row);
        }
        dict.set_item("addresses", addresses)?;
        Ok(dict)
    }
}
