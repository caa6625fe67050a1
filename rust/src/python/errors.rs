//! The one way from an error of the core to an exception. The classes are defined in `python/keynet/errors.py`.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::{Error, Result};

static FROM_CORE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// The exception for an error.
pub(super) fn to_py(py: Python<'_>, error: &Error) -> PyErr {
    match object(py, error) {
        Ok(exception) => PyErr::from_value(exception),
        Err(broken) => broken,
    }
}

/// The exception for an error, not to be raised but to be handed over.
pub(super) fn object<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    FROM_CORE.import(py, "keynet.errors", "_from_core")?.call1((
        error.reason.name(),
        error.stage.name(),
        error.node.map(|node| node.to_string()),
        error.address.map(|address| address.to_string()),
        &error.detail,
        error.to_string(),
    ))
}

/// `?` for results of the core in functions that Python calls.
pub(super) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for Result<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| to_py(py, &error))
    }
}
