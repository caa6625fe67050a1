//! Values of the core as plain Python ones, and back. `python/keynet/_info.py` and `_events.py` make dataclasses of them.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::addr::{is_link_local, NodeId};
use crate::error::{Error, Reason, Result, Stage};
use crate::http_connect::excerpt;
use crate::net::{NetStats, PathInfo};
use crate::path::PathStats;
use crate::peer::scoped;
use crate::proxy::{ConnectionInfo, PingReport, Priority, ProxyStats, Role};

/// The error for an argument that makes no sense.
pub(super) fn invalid(detail: impl Into<String>) -> Error {
    Error::new(Reason::InvalidArgument, Stage::Setup, detail)
}

pub(super) fn node_id(text: &str) -> Result<NodeId> {
    text.parse().map_err(|e| invalid(format!("'{}' is not a node id: {e}", excerpt(text))))
}

pub(super) fn socket_address(name: &str, text: &str) -> Result<SocketAddr> {
    if let Some(scoped) = scoped(text) {
        return scoped.map_err(|error| invalid(format!("{name}: {error}")));
    }
    let form = "write \"127.0.0.1:4433\" or \"[::]:4433\", port 0 for any";
    match text.parse() {
        Ok(SocketAddr::V6(address)) if is_link_local(*address.ip()) && address.scope_id() == 0 => {
            let ip = address.ip();
            Err(invalid(format!(
                "{name}: {ip} is link-local: say by which interface, \"[{ip}%eth0]:{}\"",
                address.port()
            )))
        }
        Ok(address) => Ok(address),
        Err(_) => {
            let text = excerpt(text);
            Err(invalid(format!("{name}: '{text}' is not an IP address (not a name) and a port; {form}")))
        }
    }
}

/// A duration from seconds; at most a year, so that adding it to a moment cannot overflow.
pub(super) fn seconds(name: &str, seconds: f64) -> Result<Duration> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= Duration::from_secs(366 * 86_400) => Ok(duration),
        _ => Err(invalid(format!("{name}: {seconds} is not a time between 0 seconds and a year"))),
    }
}

/// A whole number of `limits=`.
pub(super) fn count<T: TryFrom<u64>>(name: &str, value: f64) -> Result<T> {
    let whole = value.fract() == 0.0 && (1.0..=4_503_599_627_370_496.0).contains(&value);
    let converted = if whole { T::try_from(value as u64).ok() } else { None };
    converted.ok_or_else(|| invalid(format!("limits: {name} = {value} is not a whole number above 0 that fits")))
}

/// Seconds since 1970.
pub(super) fn timestamp(moment: SystemTime) -> f64 {
    moment.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

pub(super) struct Connection(pub(super) ConnectionInfo);

impl<'py> IntoPyObject<'py> for Connection {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let info = self.0;
        let role = role_name(info.role);
        let dict = PyDict::new(py);
        dict.set_item("id", info.id)?;
        dict.set_item("role", role)?;
        dict.set_item("node_id", info.node.to_string())?;
        dict.set_item("node_ids", info.nodes.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        dict.set_item("service_port", info.service_port)?;
        dict.set_item("priority", priority_name(info.priority))?;
        dict.set_item("client_address", info.client_address)?;
        dict.set_item("reverse_address", info.reverse_address)?;
        dict.set_item("server_address", info.server_address)?;
        dict.set_item("proxy_address", info.proxy_address.to_string())?;
        dict.set_item("remote_address", info.remote_address.to_string())?;
        dict.set_item("opened", timestamp(info.opened))?;
        dict.set_item("closed", info.closed.map(timestamp))?;
        dict.set_item("reason", info.reason.map(Reason::name))?;
        dict.set_item("bytes_in", info.bytes_in)?;
        dict.set_item("bytes_out", info.bytes_out)?;
        dict.set_item("relayed", info.relayed)?;
        let stages = info.stages.iter().map(|(stage, took)| (*stage, took.as_secs_f64()));
        dict.set_item("stages", stages.collect::<Vec<_>>())?;
        dict.set_item("rtt", info.rtt.map(|rtt| rtt.as_secs_f64()))?;
        Ok(dict)
    }
}

pub(super) const fn role_name(role: Role) -> &'static str {
    match role {
        Role::Forward => "forward",
        Role::Reverse => "reverse",
    }
}

const PRIORITIES: [(Priority, &str); 2] =
    [(Priority::Interactive, "interactive"), (Priority::Background, "background")];

fn priority_name(priority: Priority) -> &'static str {
    PRIORITIES.into_iter().find(|(known, _)| *known == priority).map_or("", |(_, name)| name)
}

pub(super) fn priority(name: &str) -> Result<Priority> {
    let found = PRIORITIES.into_iter().find(|(_, known)| *known == name);
    let (priority, _) =
        found.ok_or_else(|| invalid(format!("priority: '{}' is none of interactive, background", excerpt(name))))?;
    Ok(priority)
}

pub(super) struct Path(pub(super) PathInfo);

impl<'py> IntoPyObject<'py> for Path {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("address", self.0.address.to_string())?;
        dict.set_item("rtt", self.0.rtt.as_secs_f64())?;
        dict.set_item("observed", self.0.observed.map(|address| address.to_string()))?;
        Ok(dict)
    }
}

pub(super) struct Ping(pub(super) PingReport);

impl<'py> IntoPyObject<'py> for Ping {
    type Target = PyDict;
    type Output = Bound<'py, PyDict>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let report = self.0;
        let dict = PyDict::new(py);
        dict.set_item("address", report.address.to_string())?;
        dict.set_item("node_id", report.leaf.to_string())?;
        dict.set_item("rtt", report.rtt.as_secs_f64())?;
        dict.set_item("utp", report.utp.as_secs_f64())?;
        dict.set_item("tls", report.tls.as_secs_f64())?;
        dict.set_item("tls_version", report.tls_version)?;
        dict.set_item("tls_suite", report.tls_suite)?;
        dict.set_item("tls_group", report.tls_group)?;
        dict.set_item("resumed", report.resumed)?;
        Ok(dict)
    }
}

/// Counters by name. The structs are taken apart whole: a counter that is added there and forgotten here does not compile.
pub(super) fn stats<'py>(py: Python<'py>, stats: &ProxyStats) -> PyResult<Bound<'py, PyDict>> {
    let ProxyStats { clients, connections, tasks, tombstones, opened, closed, refused, bytes_in, bytes_out, net } =
        stats;
    let NetStats {
        datagrams_in,
        datagrams_out,
        bytes_in: udp_bytes_in,
        bytes_out: udp_bytes_out,
        dropped_unknown,
        dropped_malformed,
        dropped_stray,
        dropped_full,
        send_errors,
        dropped_relay_limit,
        connections: utp_connections,
        half_open,
        paths,
    } = net;
    let dict = PyDict::new(py);
    macro_rules! put {
        ($($name:ident),*) => {$(dict.set_item(stringify!($name), *$name)?;)*};
    }
    put!(clients, connections, tasks, tombstones, opened, closed, refused, bytes_in, bytes_out);
    put!(datagrams_in, datagrams_out, udp_bytes_in, udp_bytes_out, send_errors, utp_connections, half_open);
    put!(dropped_unknown, dropped_malformed, dropped_stray, dropped_full, dropped_relay_limit);
    let PathStats {
        remotes,
        strangers,
        punches,
        meetings,
        outstanding: pings_outstanding,
        pings_in,
        pings_out,
        pongs_in,
        pongs_out,
        forged: pings_forged,
        rate_limited: pings_rate_limited,
        unsendable: pings_unsendable,
        lost: paths_lost,
        moved: paths_moved,
        relayed_in: relayed_bytes_in,
        relayed_out: relayed_bytes_out,
    } = paths;
    put!(remotes, strangers, punches, meetings, pings_in, pings_out, pongs_in, pongs_out, pings_outstanding);
    put!(
        pings_forged,
        pings_rate_limited,
        pings_unsendable,
        paths_lost,
        paths_moved,
        relayed_bytes_in,
        relayed_bytes_out
    );
    Ok(dict)
}
