"""The check of dependencies finds what it is there for, and the bill of materials is one."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import pwd
import re
from typing import Any

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "dependencies.py"
specification = importlib.util.spec_from_file_location("dependencies", SCRIPT)
assert specification is not None
assert specification.loader is not None
dependencies: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(dependencies)


@pytest.mark.parametrize(
    ("expression", "allowed"),
    [
        ("MIT", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0-only OR MIT", True),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", True),
        ("(MIT OR GPL-3.0-only) AND Unicode-3.0", True),
        ("MIT OR GPL-3.0-only AND SSPL-1.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("(MIT AND SSPL-1.0) OR AGPL-3.0-only", False),
        ("Apache-2.0 WITH Commons-Clause", False),
        ("MIT)", False),
        ("", False),
    ],
)
def test_licences(expression: str, allowed: bool) -> None:
    assert dependencies.allows(expression) is allowed


@pytest.mark.parametrize(
    ("requirement", "inside", "outside"),
    [
        (">= 1.2.3", ["1.2.3", "2.0.0"], ["1.2.2", "1.2.3-rc.1"]),
        (">= 1.2, < 2", ["1.2.0", "1.99.0"], ["2.0.0", "1.1.9"]),
        ("^0.3.1", ["0.3.1", "0.3.9"], ["0.4.0", "0.3.0"]),
        ("0.10.38", ["0.10.39"], ["0.11.0"]),
        ("^1.4", ["1.4.0", "1.9.0"], ["2.0.0", "1.3.0"]),
        ("~1.4.2", ["1.4.2", "1.4.9"], ["1.5.0", "1.4.1"]),
        ("= 0.5.1", ["0.5.1"], ["0.5.2"]),
        ("< 0.2.0", ["0.1.9"], ["0.2.0"]),
    ],
)
def test_requirements(requirement: str, inside: list[str], outside: list[str]) -> None:
    assert [text for text in inside if not dependencies.matches(requirement, text)] == []
    assert [text for text in outside if dependencies.matches(requirement, text)] == []


def package(name: str, version: str, licence: str | None = "MIT") -> dict[str, Any]:
    return {"name": name, "version": version, "license": licence}


def found(packages: list[dict[str, Any]], advisories: list[dict[str, Any]]) -> list[str]:
    known = [package(name, number) for name in dependencies.TWICE for number in ("1.0.0", "2.0.0")]
    return list(dependencies.findings({"packages": [*known, *packages]}, advisories))


def test_what_is_planted_is_found() -> None:
    flaw = {
        "id": "X-1",
        "package": "bad",
        "kind": "vulnerability",
        "title": "t",
        "patched": [">= 1.1"],
        "unaffected": [],
    }
    assert found([package("good", "1.0.0"), package("bad", "1.1.0")], [flaw]) == []
    (one,) = found([package("bad", "1.0.9")], [flaw])
    assert "bad 1.0.9: X-1" in one
    (one,) = found([package("closed", "1.0.0", "SSPL-1.0")], [])
    assert "SSPL-1.0" in one
    (one,) = found([package("none", "1.0.0", None)], [])
    assert "None" in one
    (one,) = found([package("two", "1.0.0"), package("two", "2.0.0")], [])
    assert "two: in versions" in one


def test_the_snapshot_is_whole() -> None:
    snapshot = json.loads(dependencies.ADVISORIES.read_text())
    assert len(snapshot["advisories"]) > 1_000
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", snapshot["made"])
    for advisory in snapshot["advisories"]:
        for requirement in [*advisory["patched"], *advisory["unaffected"]]:
            dependencies.matches(requirement, "1.0.0")


def test_an_advisory_is_read_as_it_is_written() -> None:
    text = (
        '```toml\n[advisory]\nid = "RUSTSEC-2020-0001"\npackage = "p"\ndate = "2020-01-01"\n'
        '[versions]\npatched = [">= 2"]\n```\n\n# A title\n\nWords.\n'
    )
    pytest.importorskip("tomllib")
    advisory = dependencies._advisory(text)
    assert (advisory["id"], advisory["kind"], advisory["title"]) == ("RUSTSEC-2020-0001", "vulnerability", "A title")
    assert advisory["patched"] == [">= 2"]
    assert dependencies._advisory("no front matter") is None


def test_the_bill_of_materials_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # cargo and what it has fetched lie in the home of the user, unless variables say where
    monkeypatch.setenv("HOME", pwd.getpwuid(os.getuid()).pw_dir)
    document = dependencies.sbom()
    assert document == dependencies.sbom(), "the same sources give the same document"
    names = {component["name"] for component in document["components"]}
    assert {"tokio", "rustls", "aws-lc-rs", "pyo3", "grpcio"} <= names
    assert not {"criterion", "proptest", "keynet"} & names, "what is not shipped is not in it"
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    assert error is None, error
