//! `_keynet.RelayServer`.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::bridge;
use super::convert::{count, invalid, seconds, socket_address};
use super::errors::{to_py, OrRaise};
use super::identity::Identity;
use super::runtime::Owned;
use crate::config::RelayServerConfig;
use crate::error::Result;
use crate::http_connect::excerpt;
use crate::relay::server::{self as relay, tls, RelayOptions, RelayTls};
use crate::turn::server::{Stats, Users};

/// As `python/keynet/relay.py` puts them together.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Settings {
    listen: Vec<String>,
    tls: Vec<String>,
    certificate: Option<(Vec<u8>, Vec<u8>)>,
    realm: Option<String>,
    users: HashMap<String, String>,
    secrets: Vec<String>,
    introduction_peers: Vec<String>,
    allowed_peers: Vec<String>,
    relay_addresses: Vec<String>,
    external_addresses: Vec<String>,
    ports: Option<(u16, u16)>,
    limits: HashMap<String, f64>,
}

impl Settings {
    fn read(self, identity: Option<&crate::tls::Identity>) -> Result<(RelayOptions, RelayServerConfig)> {
        let mut config = RelayServerConfig::default();
        if let Some(realm) = self.realm {
            config.realm = realm;
        }
        if let Some((first, last)) = self.ports {
            config.ports = first..=last;
        }
        for (name, value) in &self.limits {
            set_limit(&mut config, name, *value)?;
        }
        let tls = match (self.tls.is_empty(), &self.certificate, identity) {
            (true, ..) => None,
            (false, Some((certificates, key)), _) => Some(tls::from_pem(certificates, key)?),
            (false, None, Some(identity)) => Some(tls::from_identity(identity)?),
            (false, None, None) => return Err(invalid("tls: name a certificate, or give an identity")),
        };
        let tls = match tls {
            Some(config) => Some(RelayTls { listen: addresses("tls", &self.tls)?, config }),
            None => None,
        };
        let users = Users {
            listed: self.users,
            secrets: bounded(self.secrets)?,
            introduction_peers: addresses("introduction_peers", &self.introduction_peers)?,
        };
        let network = |text: &String| {
            text.parse().map_err(|error| invalid(format!("allowed_peers: '{}' is {error}", excerpt(text))))
        };
        let options = RelayOptions {
            listen: addresses("listen", &self.listen)?,
            tls,
            users,
            allowed_peers: self.allowed_peers.iter().map(network).collect::<Result<_>>()?,
            relay_addresses: ips("relay_addresses", &self.relay_addresses)?,
            external_addresses: ips("external_addresses", &self.external_addresses)?,
        };
        Ok((options, config))
    }
}

fn addresses(name: &str, texts: &[String]) -> Result<Vec<SocketAddr>> {
    texts.iter().map(|text| socket_address(name, text)).collect()
}

/// A wrong password costs a try of each.
fn bounded(secrets: Vec<String>) -> Result<Vec<String>> {
    match secrets.len() > MAX_SECRETS || secrets.iter().any(String::is_empty) {
        true => Err(invalid(format!("secret: {MAX_SECRETS} at most, the one in use first, and none of them empty"))),
        false => Ok(secrets),
    }
}

/// One in use, and those that are on their way out.
const MAX_SECRETS: usize = 4;

fn ips(name: &str, texts: &[String]) -> Result<Vec<IpAddr>> {
    let one =
        |text: &String| text.parse().map_err(|_| invalid(format!("{name}: '{}' is not an IP address", excerpt(text))));
    texts.iter().map(one).collect()
}

macro_rules! limits {
    ($($name:literal => $field:ident, $read:ident;)*) => {
        const LIMITS: &[&str] = &[$($name,)*];

        fn set_limit(config: &mut RelayServerConfig, name: &str, value: f64) -> Result<()> {
            match name {
                $($name => config.$field = $read(name, value)?,)*
                _ => return Err(invalid(format!("limits: there is no '{}'; there are {}", excerpt(name), LIMITS.join(", ")))),
            }
            Ok(())
        }
    };
}

// the keys of keynet.relay.RelayLimits; a test holds the two lists equal
limits! {
    "max_allocations" => max_allocations, count;
    "max_allocations_per_user" => max_allocations_per_user, count;
    "max_allocations_per_network" => max_allocations_per_network, count;
    "max_introductions" => max_introductions, count;
    "max_permissions" => max_permissions, count;
    "max_channels" => max_channels, count;
    "default_lifetime" => default_lifetime, seconds;
    "max_lifetime" => max_lifetime, seconds;
    "nonce_lifetime" => nonce_lifetime, seconds;
    "bytes_per_second" => bytes_per_second, count;
    "bytes_per_second_per_allocation" => bytes_per_second_per_allocation, count;
    "bytes_per_second_per_introduction" => bytes_per_second_per_introduction, count;
    "answers_per_second" => answers_per_second, count;
    "answers_per_second_per_network" => answers_per_second_per_network, count;
    "max_connections" => max_connections, count;
    "max_connections_per_network" => max_connections_per_network, count;
    "handshakes_per_second_per_network" => handshakes_per_second_per_network, count;
    "connection_timeout" => connection_timeout, seconds;
    "write_queue" => write_queue, count;
}

/// The names that `limits=` of a relay takes.
#[pyfunction]
pub(super) fn relay_limit_names() -> &'static [&'static str] {
    LIMITS
}

#[pyclass(frozen, module = "keynet._keynet")]
pub(super) struct RelayServer(Owned<Arc<relay::RelayServer>>);

#[pymethods]
impl RelayServer {
    #[staticmethod]
    fn bind<'py>(
        py: Python<'py>,
        settings: &Bound<'py, PyAny>,
        identity: Option<&Identity>,
        event_loop: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let settings: Settings = settings.extract().map_err(|error: PyErr| {
            // pyo3 names the field, the cause what is wrong with it
            let cause = error.cause(py).map(|cause| format!(": {}", cause.value(py))).unwrap_or_default();
            to_py(py, &invalid(format!("{}{cause}", error.value(py))))
        })?;
        let (options, config) = settings.read(identity.map(|identity| &identity.0)).or_raise(py)?;
        bridge::run(py, event_loop, async move {
            Ok(Self(Owned::new(Arc::new(relay::RelayServer::bind(options, config)?))))
        })
    }

    /// Where clients are served over UDP (and TCP, on the same ports) and TLS; and the IP addresses of allocations.
    fn bound(&self, py: Python<'_>) -> PyResult<(Vec<String>, Vec<String>, Vec<String>)> {
        let server = self.0.get().or_raise(py)?;
        let bound = server.bound();
        let text = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect();
        Ok((text(&bound.udp), text(&bound.tls), bound.relayed.iter().map(ToString::to_string).collect()))
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let relay::RelayStats { turn, connections, refused_connections, send_errors, dropped_behind } =
            self.0.get().or_raise(py)?.stats();
        let dict = PyDict::new(py);
        macro_rules! put {
            ($($name:ident),*) => {$(dict.set_item(stringify!($name), $name)?;)*};
        }
        let Stats { allocations, allocated, bytes_to_peers, bytes_to_clients, .. } = turn;
        put!(allocations, connections, allocated, bytes_to_peers, bytes_to_clients);
        let Stats { datagrams_to_peers, datagrams_to_clients, auth_failures, forbidden, over_quota, .. } = turn;
        put!(datagrams_to_peers, datagrams_to_clients, auth_failures, forbidden, over_quota);
        let Stats { unanswered, malformed, dropped_unpermitted, dropped_rate, .. } = turn;
        put!(unanswered, malformed, dropped_unpermitted, dropped_rate);
        put!(refused_connections, send_errors, dropped_behind);
        Ok(dict)
    }

    fn set_users(
        &self,
        py: Python<'_>,
        users: HashMap<String, String>,
        secrets: Vec<String>,
        introduction_peers: Vec<String>,
    ) -> PyResult<()> {
        let introduction_peers = addresses("introduction_peers", &introduction_peers).or_raise(py)?;
        let secrets = bounded(secrets).or_raise(py)?;
        self.0.get().or_raise(py)?.set_users(Users { listed: users, secrets, introduction_peers });
        Ok(())
    }

    fn set_secrets(&self, py: Python<'_>, secrets: Vec<String>) -> PyResult<()> {
        let secrets = bounded(secrets).or_raise(py)?;
        self.0.get().or_raise(py)?.set_secrets(secrets);
        Ok(())
    }

    fn close<'py>(&self, py: Python<'py>, event_loop: Option<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
        let server = self.0.get().or_raise(py)?.clone();
        bridge::run(py, event_loop, async move {
            server.close().await;
            Ok(())
        })
    }
}
