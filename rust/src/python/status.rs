//! How a node stands, and why a path is what it is, as dicts.

use std::time::SystemTime;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use tokio::time::Instant;

use super::convert::timestamp;
use super::errors;
use crate::addr::Via;
use crate::path::{is_local, Candidate, Outlook, PathView, Traffic};
use crate::peer::LastDial;
use crate::proxy::{Explanation, PacketSize, PeerStatus, Proxy};
use crate::relay::RelayStatus;
use crate::rendezvous::{Learned, OwnAddress, Report, Role, StationStatus};

pub(super) fn of_node<'py>(py: Python<'py>, proxy: &Proxy) -> PyResult<Bound<'py, PyDict>> {
    let status = proxy.status();
    let dict = PyDict::new(py);
    dict.set_item("when", timestamp(SystemTime::now()))?;
    dict.set_item("node_id", proxy.node_id().to_string())?;
    dict.set_item("proxy_address", proxy.proxy_address().to_string())?;
    dict.set_item("forward_address", proxy.forward_address().to_string())?;
    dict.set_item("addresses", candidates(py, &status.candidates)?)?;
    dict.set_item("own_addresses", list(py, status.own_addresses, own_address)?)?;
    dict.set_item("nat", status.profile.map(|profile| nat(py, &profile)).transpose()?)?;
    dict.set_item("rendezvous", list(py, status.rendezvous, station)?)?;
    dict.set_item("relays", list(py, status.relays, relay)?)?;
    dict.set_item("peers", list(py, status.peers, peer)?)?;
    Ok(dict)
}

pub(super) fn explanation<'py>(py: Python<'py>, explanation: Explanation) -> PyResult<Bound<'py, PyDict>> {
    let Explanation { node, known_addresses, paths, meeting, packet_size, heard, last_dial, last_error } = explanation;
    let dict = PyDict::new(py);
    dict.set_item("node_id", node.to_string())?;
    dict.set_item("known_addresses", known_addresses)?;
    dict.set_item("connected", paths.iter().any(|path| path.proven))?;
    dict.set_item("paths", list(py, paths, path)?)?;
    dict.set_item("meeting", meeting.map(|meeting| report(py, meeting)).transpose()?)?;
    let size = |size: PacketSize| {
        let dict = PyDict::new(py);
        dict.set_item("carried", size.carried)?;
        dict.set_item("unproven", size.unproven)?;
        dict.set_item("lost", size.lost)?;
        PyResult::Ok(dict)
    };
    dict.set_item("packet_size", packet_size.map(size).transpose()?)?;
    dict.set_item("heard", heard.map(wall))?;
    dict.set_item("last_dial", last_dial.map(|dial| of_dial(py, &dial)).transpose()?)?;
    dict.set_item("last_error", last_error.map(|error| errors::object(py, &error)).transpose()?)?;
    Ok(dict)
}

fn list<'py, T>(
    py: Python<'py>,
    items: Vec<T>,
    convert: impl Fn(Python<'py>, T) -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyList>> {
    let dicts = items.into_iter().map(|item| convert(py, item)).collect::<PyResult<Vec<_>>>()?;
    PyList::new(py, dicts)
}

fn candidates<'py>(py: Python<'py>, candidates: &[Candidate]) -> PyResult<Bound<'py, PyList>> {
    list(py, candidates.to_vec(), |py, candidate| {
        let dict = PyDict::new(py);
        dict.set_item("kind", candidate.kind.name())?;
        dict.set_item("address", candidate.address.to_string())?;
        Ok(dict)
    })
}

/// What the clock on the wall showed, or will show, then. Moments are kept in monotonic time, so that somebody who sets the clock
/// changes the age of nothing.
fn wall(at: Instant) -> f64 {
    let (now, clock) = (Instant::now(), SystemTime::now());
    timestamp(match at.checked_duration_since(now) {
        Some(ahead) => clock + ahead,
        None => clock - now.duration_since(at),
    })
}

fn of_dial<'py>(py: Python<'py>, dial: &LastDial) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("when", wall(dial.at))?;
    dict.set_item("error", dial.error.as_ref().map(|error| errors::object(py, error)).transpose()?)?;
    Ok(dict)
}

fn own_address(py: Python<'_>, own: OwnAddress) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("family", if own.ipv4 { "IPv4" } else { "IPv6" })?;
    dict.set_item("known", own.known)?;
    dict.set_item("since", wall(own.since))?;
    dict.set_item("addresses", own.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    dict.set_item("confirmed", own.confirmed.map(wall))?;
    dict.set_item("asked", own.asked.map(|round| wall(round.began)))?;
    dict.set_item("servers", own.asked.map_or(0, |round| round.servers))?;
    dict.set_item("answers", own.asked.map_or(0, |round| round.answers))?;
    Ok(dict)
}

fn nat<'py>(py: Python<'py>, learned: &Learned) -> PyResult<Bound<'py, PyDict>> {
    let Learned { profile, at, elsewhere } = learned;
    let dict = PyDict::new(py);
    dict.set_item("summary", profile.to_string())?;
    dict.set_item("mapping", profile.mapping.name())?;
    dict.set_item("filtering", profile.filtering.name())?;
    dict.set_item("ports", profile.ports.to_string())?;
    dict.set_item("udp_blocked", profile.udp_blocked)?;
    dict.set_item("translated", profile.translated)?;
    dict.set_item("learned", wall(*at))?;
    dict.set_item("elsewhere", *elsewhere)?;
    dict.set_item("external", profile.external.map(|ip| ip.to_string()))?;
    Ok(dict)
}

fn station(py: Python<'_>, status: StationStatus) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("node_id", status.node.to_string())?;
    dict.set_item("address", status.address)?;
    dict.set_item("connected", status.connected)?;
    dict.set_item("since", status.since.map(wall))?;
    dict.set_item("lost", status.lost.map(wall))?;
    dict.set_item("next_try", status.next_try.map(wall))?;
    dict.set_item("observed", status.observed.map(|address| address.to_string()))?;
    dict.set_item("rtt", status.rtt.map(|rtt| rtt.as_secs_f64()))?;
    dict.set_item("clock_ahead", status.clock_ahead)?;
    dict.set_item("error", status.error.map(|error| errors::object(py, &error)).transpose()?)?;
    Ok(dict)
}

fn relay(py: Python<'_>, status: RelayStatus) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("relay", status.relay)?;
    dict.set_item("socket", status.via.map(|Via(socket)| socket))?;
    dict.set_item("transport", status.transport.map(|transport| transport.name()))?;
    dict.set_item("proxy", status.proxy)?;
    dict.set_item("addresses", status.addresses.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    dict.set_item("rtt", status.rtt.map(|rtt| rtt.as_secs_f64()))?;
    dict.set_item("introduction", status.introduction)?;
    dict.set_item("bytes_in", status.stats.bytes_in)?;
    dict.set_item("bytes_out", status.stats.bytes_out)?;
    dict.set_item("dropped", status.stats.dropped)?;
    dict.set_item("peers", status.stats.peers)?;
    dict.set_item("since", status.since.map(wall))?;
    dict.set_item("failed", status.failed.map(wall))?;
    dict.set_item("next_try", status.next_try.map(wall))?;
    dict.set_item("error", status.error.map(|error| errors::object(py, &error)).transpose()?)?;
    Ok(dict)
}

fn peer(py: Python<'_>, status: PeerStatus) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("node_id", status.node.to_string())?;
    dict.set_item("paths", list(py, status.paths, path)?)?;
    dict.set_item("connections", status.connections)?;
    dict.set_item("bytes_in", status.bytes_in)?;
    dict.set_item("bytes_out", status.bytes_out)?;
    let Traffic { direct_in, direct_out, relayed_in, relayed_out } = status.traffic;
    dict.set_item("direct_in", direct_in)?;
    dict.set_item("direct_out", direct_out)?;
    dict.set_item("relayed_in", relayed_in)?;
    dict.set_item("relayed_out", relayed_out)?;
    Ok(dict)
}

fn path(py: Python<'_>, view: PathView) -> PyResult<Bound<'_, PyDict>> {
    let Via(socket) = view.via;
    let dict = PyDict::new(py);
    dict.set_item("address", view.address.to_string())?;
    dict.set_item("in_use", view.in_use)?;
    dict.set_item("chosen", view.used_for.and_then(|age| Instant::now().checked_sub(age)).map(wall))?;
    dict.set_item("proven", view.proven)?;
    dict.set_item("rtt", view.rtt.map(|rtt| rtt.as_secs_f64()))?;
    dict.set_item("heard", view.silent_for.as_secs_f64())?;
    dict.set_item("local", is_local(view.address.ip()))?;
    dict.set_item("socket", socket)?;
    dict.set_item("relayed", view.relayed)?;
    Ok(dict)
}

fn report(py: Python<'_>, report: Report) -> PyResult<Bound<'_, PyDict>> {
    let role = match report.role {
        Role::Dialler => "dialler",
        Role::Invited => "invited",
    };
    let outcome = match (report.met, report.took) {
        (true, _) => "met",
        (false, Some(_)) => "failed",
        (false, None) => "running",
    };
    let outlook = report.outlook.map(|outlook| match outlook {
        Outlook::Direct => "direct",
        Outlook::Prediction => "prediction",
        Outlook::Search => "search",
        Outlook::BothSymmetric => "both_symmetric",
    });
    let dict = PyDict::new(py);
    dict.set_item("when", timestamp(report.when))?;
    dict.set_item("role", role)?;
    dict.set_item("took", report.took.map(|took| took.as_secs_f64()))?;
    dict.set_item("outcome", outcome)?;
    dict.set_item("relayed", report.relayed)?;
    dict.set_item("direct_only", report.direct_only)?;
    dict.set_item("outlook", outlook)?;
    dict.set_item("own_nat", report.own_profile.map(|profile| profile.to_string()))?;
    dict.set_item("peer_nat", report.peer_profile.map(|profile| profile.to_string()))?;
    dict.set_item("own_candidates", candidates(py, &report.own_candidates)?)?;
    dict.set_item("peer_candidates", candidates(py, &report.peer_candidates)?)?;
    dict.set_item("tried", report.tried.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let answered = list(py, report.pings.answered, |py, (address, rtt)| {
        let dict = PyDict::new(py);
        dict.set_item("address", address.to_string())?;
        dict.set_item("rtt", rtt.as_secs_f64())?;
        Ok(dict)
    })?;
    dict.set_item("answered", answered)?;
    dict.set_item("heard", report.pings.heard.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    dict.set_item("pings", report.pings.pings)?;
    dict.set_item("error", report.error.map(|error| errors::object(py, &error)).transpose()?)?;
    Ok(dict)
}
