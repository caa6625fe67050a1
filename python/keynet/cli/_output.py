"""Where the command writes: lines for people, or JSON objects for programs."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from .._plain import error_fields, plain
from ..errors import KeynetError
from . import _words


class Output:
    """Results go to standard output, complaints and progress of the human form to standard error."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.common: dict[str, Any] = {}
        """What every object of this run says, failures too."""

    def result(self, fields: Mapping[str, Any], text: str | None = None) -> None:
        """One result: the object, or a table of its fields unless `text` says it better."""
        if self.json:
            print(json.dumps({**fields, **self.common}, default=plain), flush=True)
            return
        if text is None:
            width = max(map(len, fields))
            text = "\n".join(f"{name.replace('_', ' '):{width}}  {_human(value)}" for name, value in fields.items())
        print(_words.wrapped(text, _words.width(sys.stdout)), flush=True)

    def note(self, text: str) -> None:
        """Something a person may like to know."""
        if not self.json:
            print(_words.wrapped(text, _words.width(sys.stderr)), file=sys.stderr, flush=True)

    def error(self, error: KeynetError) -> None:
        """A failure, before the command exits."""
        if self.json:
            said = {**error_fields(error), "detail": _words.detail(error), "advice": _words.advice(error)}
            print(json.dumps({"error": said, **self.common}), flush=True)
            return
        name = _words.painted(f"keynet: {error.reason.value.replace('_', ' ')}", "red", sys.stderr)
        lines = [f"{name}: {_words.detail(error) or 'see below'}", f"  stage   {error.stage}"]
        if error.node_id is not None:
            lines.append(f"  node    {error.node_id}")
        if error.address is not None:
            lines.append(f"  address {error.address}")
        lines.append(f"  try     {_words.advice(error)}")
        columns = _words.width(sys.stderr)
        print("\n".join(_words.wrapped(line, columns, indent=8) for line in lines), file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Shows `text` while something slow runs, if a person watches."""
        columns = _words.width(sys.stderr)
        shown = not self.json and columns is not None
        if shown:
            # one line, or the way back to its beginning would be longer
            print(f"{text[: (columns or 0) - 6]} ...", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if shown:
                print("\r" + " " * ((columns or 1) - 1) + "\r", end="", file=sys.stderr, flush=True)


class JsonLines(logging.Formatter):
    """Log records as objects, for --json."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        said: dict[str, Any] = {
            "time": moment,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps({"log": said}, default=plain)


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
