"""Node ids and identities."""

from __future__ import annotations

import datetime
import json
import pathlib
import pickle
import stat
import threading

import pytest

import keynet


def test_a_node_id_is_its_text(alice: keynet.Identity) -> None:
    node = alice.node_id
    assert keynet.NodeId(node.upper()) == node == str(node)
    assert keynet.NodeId.from_public_key(node.public_key) == node
    assert len(node.public_key) == 32
    assert {node: 1}[keynet.NodeId(str(node))] == 1
    assert json.loads(json.dumps({"node": node}))["node"] == node
    assert pickle.loads(pickle.dumps(node)) == node
    assert isinstance(pickle.loads(pickle.dumps(node)), keynet.NodeId)
    assert repr(node) == f"NodeId('{node}')"
    assert node.short == node[:8]


@pytest.mark.parametrize("text", ["", "v", "x" * 53, "v" + "w" * 52, "v" + "0" * 51, "v" + "é" * 52, "v" + "v" * 52])
def test_anything_else_is_refused_with_a_reason(text: str) -> None:
    with pytest.raises(ValueError, match="a node id"):
        keynet.NodeId(text)


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(keynet.InvalidArgument, match="32 bytes"):
        keynet.NodeId.from_public_key(b"short")


def test_files_are_private_and_stay_the_same(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    made = keynet.Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert keynet.Identity.load(path) == keynet.Identity.load_or_create(str(path)) == made
    assert keynet.Identity.from_pem(made.to_pem()) == made
    assert "PRIVATE" not in repr(made)


def test_threads_that_race_end_with_the_same_identity(tmp_path: pathlib.Path) -> None:
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(keynet.Identity.load_or_create(tmp_path / "node.pem").node_id))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_an_exposed_file_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "node.pem"
    keynet.Identity.generate().save(path)
    path.chmod(0o640)
    with pytest.raises(keynet.IdentityExposed, match=r"chmod|600") as caught:
        keynet.Identity.load(path)
    assert str(path) in str(caught.value)


CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize("content", [b"", b"nonsense", CERTIFICATE, b"\xff" * 99])
def test_a_bad_file_is_refused(tmp_path: pathlib.Path, content: bytes) -> None:
    path = tmp_path / "node.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(keynet.IdentityError) as caught:
        keynet.Identity.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(keynet.IdentityError):
        keynet.Identity.load(tmp_path / "none.pem")


def test_rotation_keeps_the_old_names() -> None:
    old = keynet.Identity.generate()
    new = old.rotate()
    assert new.node_id != old.node_id
    assert new.node_ids == (new.node_id, old.node_id)


def test_renewal_keeps_the_key() -> None:
    old = keynet.Identity.generate(now=datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc))
    new = old.renew()
    assert new.node_id == old.node_id
    assert new.not_after > old.not_after


def test_a_naive_date_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        keynet.Identity.generate(now=datetime.datetime(2020, 1, 1))


def test_there_is_no_empty_identity() -> None:
    with pytest.raises(TypeError, match="generate"):
        keynet.Identity()
