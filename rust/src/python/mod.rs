//! The extension module `keynet._keynet`: conversions for the Python package `keynet`, and nothing else. What users see,
//! with its documentation, is in `python/keynet`; this interface is private to it (`_keynet.pyi` describes it).
//!
//! Threads: tokio's workers never hold Python objects of ours and never wait for the interpreter. What they have to say
//! goes through a queue to one thread each for results ([`runtime`]), log records ([`logging`]) and access questions ([`access`]).

mod access;
mod bridge;
mod convert;
mod errors;
mod events;
mod identity;
mod logging;
mod nat;
mod proxy;
mod relay;
mod runtime;
mod settings;
mod status;

use pyo3::prelude::*;

use crate::addr::NodeId;
use crate::error::{Reason, Stage};
use crate::relay::client::HttpProxy;

/// The functions and types that `python/keynet` is built on.
#[pymodule(gil_used = true)]
mod _keynet {
    #[pymodule_export]
    use super::access::AccessRequests;
    #[pymodule_export]
    use super::events::EventStream;
    #[pymodule_export]
    use super::identity::Identity;
    #[pymodule_export]
    use super::nat::{discover, PortMapping, StunServer};
    #[pymodule_export]
    use super::proxy::{Forward, Proxy};
    #[pymodule_export]
    use super::relay::{relay_limit_names, RelayServer};
    #[pymodule_export]
    use super::settings::{check_settings, limit_names};
    #[pymodule_export]
    use super::{
        check_http_proxy, drain_timeout, excerpt, node_id_from_key, node_id_key, parse_node_id, reasons, shutdown,
        stages, without_keys,
    };

    /// Whether the core was built with optimisation; benchmarks refuse a debug one.
    #[pymodule_export]
    const BUILD: &str = if cfg!(debug_assertions) { "debug" } else { "release" };

    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}

/// Every reason: name, code, culprit, HTTP status, RFC 9209 error type, advice.
#[pyfunction]
fn reasons() -> Vec<(&'static str, u16, String, u16, &'static str, &'static str)> {
    let row = |reason: &Reason| {
        let culprit = format!("{:?}", reason.culprit()).to_ascii_lowercase();
        (reason.name(), reason.code(), culprit, reason.http_status(), reason.proxy_status(), reason.advice())
    };
    Reason::ALL.iter().map(row).collect()
}

/// Every stage, in order.
#[pyfunction]
fn stages() -> Vec<&'static str> {
    Stage::ALL.iter().map(|stage| stage.name()).collect()
}

/// The text in its one form, or `InvalidArgument`.
#[pyfunction]
fn parse_node_id(py: Python<'_>, text: &str) -> PyResult<String> {
    Ok(convert::node_id(text).map_err(|error| errors::to_py(py, &error))?.to_string())
}

#[pyfunction]
fn node_id_from_key(py: Python<'_>, key: &[u8]) -> PyResult<String> {
    let key: [u8; 32] =
        key.try_into().map_err(|_| errors::to_py(py, &convert::invalid("an Ed25519 public key has 32 bytes")))?;
    let node = NodeId::of_key(key).map_err(|bad| errors::to_py(py, &convert::invalid(bad.to_string())))?;
    Ok(node.to_string())
}

#[pyfunction]
fn node_id_key(py: Python<'_>, text: &str) -> PyResult<[u8; 32]> {
    Ok(*convert::node_id(text).map_err(|error| errors::to_py(py, &error))?.public_key())
}

/// What a message may show of a text from outside, which may hold a secret by mistake.
#[pyfunction]
fn excerpt(text: &str) -> String {
    crate::http_connect::excerpt(text)
}

/// A text without private keys and certificates.
#[pyfunction]
fn without_keys(text: &str) -> String {
    crate::error::without_keys(text.to_owned())
}

/// Seconds that open connections have at the end, unless the limits say otherwise.
#[pyfunction]
fn drain_timeout() -> f64 {
    crate::config::ProxyLimits::default().drain_timeout.as_secs_f64()
}

/// Refuses a value of `https_proxy` that relays could not be reached through. Raises `InvalidArgument`.
#[pyfunction]
fn check_http_proxy(py: Python<'_>, text: &str) -> PyResult<()> {
    HttpProxy::parse(text).map(drop).map_err(|error| errors::to_py(py, &error))
}

/// Aborts every proxy of this process and ends the threads, in at most `timeout` seconds. For `atexit`.
#[pyfunction]
fn shutdown(py: Python<'_>, timeout: f64) -> PyResult<()> {
    let timeout = convert::seconds("timeout", timeout).map_err(|error| errors::to_py(py, &error))?;
    py.detach(|| runtime::shutdown(timeout));
    Ok(())
}
