"""What is known on disk about laboratories that stand, so that those of a killed owner can be swept up."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from .system import remove, started_at

DIRECTORY = Path("/run/keynet-nat")
PREFIX = "kn-"


def save(tag: str, namespaces: dict[str, str]) -> None:
    """Writes down a laboratory of this process, before it makes its namespaces (name of the node -> namespace)."""
    DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    fields = {"tag": tag, "owner": os.getpid(), "since": started_at(os.getpid()), "namespaces": namespaces}
    temporary = DIRECTORY / f".{tag}"
    temporary.write_text(json.dumps(fields))
    temporary.rename(DIRECTORY / f"{tag}.json")


def drop(tag: str) -> None:
    """The laboratory has gone."""
    (DIRECTORY / f"{tag}.json").unlink(missing_ok=True)


def standing() -> list[dict[str, Any]]:
    """Every laboratory written down, with `alive`: whether its owner is."""
    found = []
    for path in sorted(DIRECTORY.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            fields = json.loads(path.read_text())
            fields["alive"] = started_at(fields["owner"]) == fields["since"]
            found.append(fields)
    return found


def sweep() -> list[str]:
    """Takes away what owners that were killed have left; gives the tags."""
    stale = [fields for fields in standing() if not fields["alive"]]
    for fields in stale:
        remove(name for name in fields["namespaces"].values() if name.startswith(PREFIX))
        drop(fields["tag"])
    return [fields["tag"] for fields in stale]
