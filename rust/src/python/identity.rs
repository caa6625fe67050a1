//! `_keynet.Identity`.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;

use super::convert;
use super::errors::OrRaise;
use crate::error::Result;
use crate::tls;

/// A key and its certificates. Plain data: it may be used in a forked child too.
#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct Identity(pub(super) tls::Identity);

#[pymethods]
impl Identity {
    #[staticmethod]
    fn generate(py: Python<'_>, now: Option<f64>) -> PyResult<Self> {
        tls::Identity::generate(moment(now).or_raise(py)?).or_raise(py).map(Self)
    }

    #[staticmethod]
    fn load(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| tls::Identity::load(&path)).or_raise(py).map(Self)
    }

    #[staticmethod]
    fn load_or_create(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        py.detach(|| tls::Identity::load_or_create(&path, SystemTime::now())).or_raise(py).map(Self)
    }

    #[staticmethod]
    fn from_pem(py: Python<'_>, text: &str) -> PyResult<Self> {
        tls::Identity::from_pem(text).or_raise(py).map(Self)
    }

    fn to_pem(&self) -> String {
        self.0.to_pem().to_string()
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.0.save(&path)).or_raise(py)
    }

    fn rotate(&self, py: Python<'_>, now: Option<f64>) -> PyResult<Self> {
        self.0.rotate(moment(now).or_raise(py)?).or_raise(py).map(Self)
    }

    fn renew(&self, py: Python<'_>, now: Option<f64>) -> PyResult<Self> {
        self.0.renew(moment(now).or_raise(py)?).or_raise(py).map(Self)
    }

    fn node_id(&self) -> String {
        self.0.node_id().to_string()
    }

    fn node_ids(&self) -> Vec<String> {
        self.0.node_ids().iter().map(ToString::to_string).collect()
    }

    /// A secret that follows from the key.
    fn derive(&self, py: Python<'_>, purpose: &str, period: u64) -> PyResult<String> {
        self.0.derive(purpose, period).or_raise(py).map(|secret| secret.to_string())
    }

    /// Seconds since 1970.
    fn not_after(&self) -> f64 {
        convert::timestamp(self.0.not_after())
    }
}

fn moment(seconds: Option<f64>) -> Result<SystemTime> {
    let Some(seconds) = seconds else { return Ok(SystemTime::now()) };
    Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|since| UNIX_EPOCH.checked_add(since))
        .ok_or_else(|| convert::invalid(format!("now= is out of range: {seconds} s after 1970")))
}
