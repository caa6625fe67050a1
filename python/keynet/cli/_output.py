"""Where the command writes: lines for people, or JSON objects for programs."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .._plain import error_fields, plain
from ..errors import KeynetError


class Output:
    """Results go to standard output, complaints and progress of the human form to standard error."""

    def __init__(self, *, json: bool) -> None:
        self.json = json

    def result(self, fields: Mapping[str, Any], text: str | None = None) -> None:
        """One result: the object, or a table of its fields unless `text` says it better."""
        if self.json:
            print(json.dumps(fields, default=plain), flush=True)
        elif text is not None:
            print(text, flush=True)
        else:
            width = max(map(len, fields))
            for name, value in fields.items():
                print(f"{name.replace('_', ' '):{width}}  {_human(value)}", flush=True)

    def note(self, text: str) -> None:
        """Something a person may like to know."""
        if not self.json:
            print(text, file=sys.stderr, flush=True)

    def error(self, error: KeynetError) -> None:
        """A failure, before the command exits."""
        if self.json:
            print(json.dumps({"error": error_fields(error)}), flush=True)
            return
        print(f"keynet: {error.reason.value.replace('_', ' ')}: {error.detail or 'see below'}", file=sys.stderr)
        print(f"  stage   {error.stage}", file=sys.stderr)
        if error.node_id is not None:
            print(f"  node    {error.node_id}", file=sys.stderr)
        if error.address is not None:
            print(f"  address {error.address}", file=sys.stderr)
        print(f"  try     {error.advice}", file=sys.stderr)

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Shows `text` while something slow runs, if a person watches."""
        shown = not self.json and sys.stderr.isatty()
        if shown:
            print(f"{text} ...", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if shown:
                print("\r\033[K", end="", file=sys.stderr, flush=True)


def _human(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return f"{value:%Y-%m-%d %H:%M} UTC"
    if isinstance(value, list | tuple):
        return ", ".join(map(_human, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} -> {_human(item)}" for key, item in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def milliseconds(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
