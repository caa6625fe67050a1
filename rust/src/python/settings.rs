//! The options of `keynet.Proxy` as the configuration of the core.

use std::collections::{BTreeMap, HashMap, HashSet};

use pyo3::exceptions::PyUnicodeError;
use pyo3::prelude::*;

use super::access::{ask_python, AccessRequests};
use super::convert::{count, invalid, node_id, seconds, socket_address};
use super::errors::{to_py, OrRaise};
use crate::config::ControllerKind;
use crate::error::{Error, Result};
use crate::http_connect::{check_address, excerpt};
use crate::proxy::{Allow, ProxyConfig, Service};
use crate::relay::client::RelaySpec;
use crate::relay::RelayUri;
use crate::rendezvous::{DirectOnly, Server};

/// As `python/keynet/_proxy.py` puts them together.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(super) struct Settings {
    services: BTreeMap<i64, String>,
    allow: Option<AllowSetting>,
    allow_timeout: f64,
    listen: String,
    forward: String,
    credentials: Option<(String, String)>,
    controller: Option<String>,
    limits: HashMap<String, f64>,
    rendezvous: Vec<String>,
    stun: Vec<String>,
    lan: bool,
    port_mapping: bool,
    search_ports: bool,
    relays: Vec<String>,
    direct_only: DirectOnlySetting,
}

/// `"anyone"`, `"ask"`, or node ids.
#[derive(FromPyObject)]
pub(super) enum AllowSetting {
    Word(String),
    Nodes(Vec<String>),
}

/// All nodes or none, or node ids.
#[derive(FromPyObject)]
enum DirectOnlySetting {
    All(bool),
    Nodes(Vec<String>),
}

impl Settings {
    pub(super) fn read(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<Self> {
        settings.extract().map_err(|error: PyErr| {
            // pyo3 names the field, the cause what is wrong with it
            let text = error.value(py).to_string();
            let field = text.strip_prefix("failed to extract field Settings.").unwrap_or(&text);
            let cause = match error.cause(py) {
                Some(cause) if cause.is_instance_of::<PyUnicodeError>(py) => ": the text is not UTF-8".to_owned(),
                Some(cause) => format!(": {}", cause.value(py)),
                None => String::new(),
            };
            to_py(py, &invalid(format!("{field}{cause}")))
        })
    }

    pub(super) fn config(self) -> Result<(ProxyConfig, Option<AccessRequests>)> {
        let services = self
            .services
            .iter()
            .map(|(port, text)| Ok((service_port(*port)?, service(text)?)))
            .collect::<Result<_>>()?;
        let (allow, requests) = match self.allow {
            Some(setting) => {
                let (allow, requests) = setting.allow(self.allow_timeout)?;
                (Some(allow), requests)
            }
            None => (None, None),
        };
        let mut config = ProxyConfig {
            listen: socket_address("listen", &self.listen)?,
            forward: socket_address("forward", &self.forward)?,
            credentials: self.credentials,
            services,
            allow,
            lan: self.lan,
            ..ProxyConfig::default()
        };
        config.rendezvous.servers = self.rendezvous.iter().map(|text| server(text)).collect::<Result<_>>()?;
        for text in &self.stun {
            check_address(text).map_err(|why| invalid(format!("stun: {why}")))?;
        }
        config.rendezvous.stun = self.stun;
        config.rendezvous.port_mapping = self.port_mapping;
        config.rendezvous.search_ports = self.search_ports;
        config.rendezvous.relays = self.relays.iter().map(|text| relay(text)).collect::<Result<_>>()?;
        config.rendezvous.direct_only = match &self.direct_only {
            DirectOnlySetting::All(true) => DirectOnly::Everybody,
            DirectOnlySetting::All(false) => DirectOnly::Nobody,
            DirectOnlySetting::Nodes(nodes) => {
                DirectOnly::Nodes(nodes.iter().map(|node| node_id(node)).collect::<Result<_>>()?)
            }
        };
        if let Some(name) = &self.controller {
            config.net.utp.controller = controller(name)?;
        }
        for (name, value) in &self.limits {
            set_limit(&mut config, name, *value)?;
        }
        Ok((config, requests))
    }
}

impl AllowSetting {
    pub(super) fn allow(self, timeout: f64) -> Result<(Allow, Option<AccessRequests>)> {
        match self {
            Self::Word(word) if word == "ask" => {
                let (allow, requests) = ask_python(seconds("allow_timeout", timeout)?);
                Ok((allow, Some(requests)))
            }
            Self::Word(_) => Ok((Allow::Anyone, None)),
            Self::Nodes(nodes) => {
                Ok((Allow::Nodes(nodes.iter().map(|node| node_id(node)).collect::<Result<HashSet<_>>>()?), None))
            }
        }
    }
}

/// `<node id>@host:port`.
fn server(text: &str) -> Result<Server> {
    let shape = "write <node id>@host:port, as `keynet rendezvous` prints it";
    let (node, address) =
        text.split_once('@').ok_or_else(|| invalid(format!("rendezvous: '{}' has no '@'; {shape}", excerpt(text))))?;
    let node =
        node.parse().map_err(|error| invalid(format!("rendezvous: what stands before '@': {error}; {shape}")))?;
    check_address(address).map_err(|why| invalid(format!("rendezvous {node}: {why}; {shape}")))?;
    Ok(Server { node, address: address.to_owned() })
}

/// A TURN URI with its credentials.
fn relay(text: &str) -> Result<RelaySpec> {
    let uri: RelayUri = text.parse().map_err(|error: Error| invalid(format!("relays: {}", error.detail)))?;
    if uri.user().is_none() || uri.password().is_none() {
        let who = uri.authority();
        return Err(invalid(format!("relays: {who} has no credentials; write turn:USER:PASSWORD@HOST[:PORT]")));
    }
    Ok(RelaySpec::new(uri))
}

pub(super) fn service(text: &str) -> Result<Service> {
    let named =
        |error: Error| invalid(format!("service '{}': {}; write host:port or unix:/path", excerpt(text), error.detail));
    text.parse().map_err(named)
}

/// A port number; Python's own conversion would say nothing about what it is for.
pub(super) fn service_port(port: i64) -> Result<u16> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(invalid(format!("service port {port} is not between 1 and 65535"))),
    }
}

fn controller(name: &str) -> Result<ControllerKind> {
    match name {
        "cubic" => Ok(ControllerKind::Cubic),
        "ledbat" => Ok(ControllerKind::Ledbat),
        "bbr" => Ok(ControllerKind::Bbr),
        _ => Err(invalid(format!("controller: '{}' is none of bbr, cubic, ledbat", excerpt(name)))),
    }
}

macro_rules! limits {
    ($($name:literal => $($field:ident).+, $read:ident;)*) => {
        const LIMITS: &[&str] = &[$($name,)*];

        fn set_limit(config: &mut ProxyConfig, name: &str, value: f64) -> Result<()> {
            match name {
                $($name => config.$($field).+ = $read(name, value)?,)*
                _ => return Err(invalid(format!("limits: there is no '{}'; there are {}", excerpt(name), LIMITS.join(", ")))),
            }
            Ok(())
        }
    };
}

// the keys of keynet.Limits; a test holds the two lists equal
limits! {
    "max_clients" => limits.max_clients, count;
    "max_streams" => limits.max_streams, count;
    "max_streams_per_node" => limits.max_streams_per_node, count;
    "max_dials_per_node" => limits.max_dials_per_node, count;
    "max_handshakes" => limits.max_handshakes, count;
    "max_handshakes_per_source" => limits.max_handshakes_per_source, count;
    "max_handshakes_per_network" => limits.max_handshakes_per_network, count;
    "max_peers" => limits.max_peers, count;
    "max_addresses" => limits.max_addresses, count;
    "max_connections" => net.endpoint.max_connections, count;
    "max_half_open" => net.endpoint.max_half_open, count;
    "max_remotes" => net.path.max_remotes, count;
    "max_head_bytes" => limits.max_head, count;
    "head_timeout" => limits.head_timeout, seconds;
    "dial_timeout" => limits.dial_timeout, seconds;
    "service_timeout" => limits.service_timeout, seconds;
    "open_timeout" => limits.open_timeout, seconds;
    "handshake_timeout" => tls.handshake_timeout, seconds;
    "hello_timeout" => tls.hello_timeout, seconds;
    "linger" => limits.linger, seconds;
    "other_addresses_after" => limits.other_addresses_after, seconds;
    "drain_timeout" => limits.drain_timeout, seconds;
    "tombstone" => limits.tombstone, seconds;
    "max_tombstones" => limits.max_tombstones, count;
    "splice_buffer_bytes" => limits.splice_buffer, count;
    "send_buffer_bytes" => net.utp.send_buffer, count;
    "receive_buffer_bytes" => net.utp.receive_buffer, count;
    "event_queue" => limits.event_queue, count;
    "patience" => net.utp.patience, seconds;
    "lost_after" => net.path.lost_after, seconds;
    "ping_active" => net.path.ping_active, seconds;
    "ping_idle" => net.path.ping_idle, seconds;
    "max_chain" => tls.max_chain, count;
    "relay_bytes_per_second" => net.relay.bytes_per_second, count;
    "relay_bytes_per_second_per_peer" => net.relay.bytes_per_second_per_peer, count;
}

/// The names that `limits=` takes.
#[pyfunction]
pub(super) fn limit_names() -> &'static [&'static str] {
    LIMITS
}

/// Raises `InvalidArgument` for options that the core would refuse.
#[pyfunction]
pub(super) fn check_settings(py: Python<'_>, settings: &Bound<'_, PyAny>) -> PyResult<()> {
    let settings = Settings::read(py, settings)?;
    if !settings.services.is_empty() && settings.allow.is_none() {
        let detail = "services= needs allow=: who may use them? Node ids, a function, or keynet.ANYONE";
        return Err(to_py(py, &invalid(detail)));
    }
    settings.config().map(drop).or_raise(py)
}
