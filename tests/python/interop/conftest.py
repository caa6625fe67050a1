"""What the interop tests share: `benches` on the import path, and identities."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[3] / "benches"
sys.path.insert(0, str(BENCHES))


@pytest.fixture
def identity_file(tmp_path: Path):
    """Makes identity files; called with the path of another one, its rotated successor."""
    from pure_python import identity

    made = 0

    def make(rotated_from: Path | None = None) -> Path:
        nonlocal made
        made += 1
        path = tmp_path / f"node{made}.pem"
        identity.create(path, rotated_from)
        return path

    return make
