"""The tree of exceptions and the closed sets behind it."""

from __future__ import annotations

import json
import pickle

import pytest

import keynet
from keynet import _keynet, errors
from keynet.errors import _CLASSES, _from_core


def test_reasons_are_those_of_the_core() -> None:
    assert [reason.value for reason in keynet.Reason] == [row[0] for row in _keynet.reasons()]
    assert [reason.name.lower() for reason in keynet.Reason] == [reason.value for reason in keynet.Reason]


def test_stages_are_those_of_the_core() -> None:
    assert [stage.value for stage in keynet.Stage] == _keynet.stages()


def test_culprits_are_those_of_the_core() -> None:
    assert {culprit.value for culprit in keynet.Culprit} == {row[2] for row in _keynet.reasons()}


@pytest.mark.parametrize("name", [row[0] for row in _keynet.reasons()])
def test_every_reason_has_its_exception(name: str) -> None:
    node = keynet.Identity.generate().node_id
    error = _from_core(name, "tls", node, "192.0.2.1:5", "in words", "the sentence")
    assert isinstance(error, _CLASSES[keynet.Reason(name)])
    assert (error.reason, error.stage, error.node_id) == (name, "tls", node)
    assert (error.address, error.detail, str(error)) == ("192.0.2.1:5", "in words", "the sentence")
    assert error.advice == error.reason.advice
    assert error.advice
    assert 200 <= error.reason.http_status < 600
    assert error.reason.proxy_status
    assert error.culprit in keynet.Culprit
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.reason, str(again), again.address) == (error.reason, str(error), error.address)


def test_every_class_is_raised_for_some_reason_or_groups_others() -> None:
    raised = set(_CLASSES.values())
    for name in errors.__all__:
        cls = getattr(errors, name)
        assert cls in raised or cls.__subclasses__(), name
        assert issubclass(cls, keynet.KeynetError)


@pytest.mark.parametrize(
    ("reason", "classes"),
    [
        ("punch_timeout", (keynet.DialTimeout, keynet.DialError, TimeoutError)),
        ("tls_timeout", (keynet.DialTimeout, TimeoutError)),
        ("identity_mismatch", (keynet.IdentityMismatch, keynet.TlsError, keynet.DialError)),
        ("certificate_expired", (keynet.CertificateExpired, keynet.CertificateError)),
        ("access_denied", (keynet.AccessDenied, PermissionError)),
        ("identity_exposed", (keynet.IdentityError, PermissionError, ValueError)),
        ("peer_lost", (keynet.ConnectionLost, ConnectionError)),
        ("peer_restarted", (keynet.PeerRestartedError, keynet.ConnectionLost)),
        ("peer_gone", (keynet.PeerGoneError, keynet.ConnectionLost)),
        ("unknown_node", (LookupError,)),
        ("rendezvous_unreachable", (keynet.RendezvousUnreachable, keynet.DialError)),
        ("peer_offline", (keynet.PeerOffline, keynet.DialError)),
        ("udp_blocked", (keynet.UdpBlocked, keynet.DialError)),
        ("both_symmetric", (keynet.BothSymmetric, keynet.DialError)),
        ("rendezvous_busy", (keynet.RendezvousBusy, keynet.DialError)),
        ("relay_unreachable", (keynet.RelayUnreachable, keynet.DialError)),
        ("relay_refused", (keynet.RelayRefused, keynet.DialError)),
        ("relay_lost", (keynet.RelayGone, keynet.DialError)),
        ("invalid_argument", (ValueError,)),
        ("bind_failed", (OSError,)),
        ("forked", (RuntimeError,)),
    ],
)
def test_exceptions_are_what_python_has_for_the_same(reason: str, classes: tuple[type, ...]) -> None:
    error = _from_core(reason, "setup", None, None, "")
    for cls in classes:
        assert isinstance(error, cls)


def test_the_sentence_is_the_one_of_the_core() -> None:
    with pytest.raises(keynet.InvalidArgument) as caught:
        keynet.NodeId("nonsense")
    error = caught.value
    assert str(error) == errors._sentence(error.reason, error.stage, error.node_id, error.address, error.detail)
    assert "a node id" in error.detail


def test_reasons_are_strings_everywhere() -> None:
    reason = keynet.Reason.PEER_LOST
    assert (str(reason), f"{reason:>10}", json.dumps(reason)) == ("peer_lost", " peer_lost", '"peer_lost"')
    assert reason == "peer_lost"
    assert keynet.Reason("peer_lost") is reason
