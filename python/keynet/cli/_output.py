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
from .._text import printable
from ..errors import KeynetError
from . import _words

_MAX_LINE = 8_192
"""Characters of a log line; the core's have 4,096 at most."""


class Output:
    """Results go to standard output, complaints and progress of the human form to standard error."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.common: dict[str, Any] = {}
        """What every object of this run says, failures too."""

    def result(self, fields: Mapping[str, Any], text: str | None = None) -> None:
        """One result: the object, or a table of its fields unless `text` says it better."""
        if self.json:
            _write(json.dumps({**fields, **self.common}, default=plain))
            return
        if text is None:
            width = max(map(len, fields))
            text = "\n".join(f"{name.replace('_', ' '):{width}}  {_human(value)}" for name, value in fields.items())
        _write(_words.wrapped(_words.steady(text), _words.width(sys.stdout)))

    def note(self, text: str) -> None:
        """Something a person may like to know."""
        if not self.json:
            print(_words.wrapped(_words.steady(text), _words.width(sys.stderr)), file=sys.stderr, flush=True)

    def error(self, error: KeynetError) -> None:
        """A failure, before the command exits."""
        if self.json:
            said = {**error_fields(error), "detail": _words.detail(error), "advice": _words.advice(error)}
            _write(json.dumps({"error": said, **self.common}))
            return
        name = _words.painted(f"keynet: {error.reason.value.replace('_', ' ')}", "red", sys.stderr)
        lines = [f"{name}: {_words.detail(error) or 'see below'}", f"  stage   {error.stage}"]
        if error.node_id is not None:
            lines.append(f"  node    {error.node_id}")
        if error.address is not None:
            lines.append(f"  address {error.address}")
        lines.append(f"  try     {_words.advice(error)}")
        columns = _words.width(sys.stderr)
        told = "\n".join(_words.wrapped(_words.steady(line), columns, indent=8) for line in lines)
        print(told, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """Shows `text` while something slow runs, if a person watches."""
        columns = _words.width(sys.stderr)
        shown = not self.json and columns is not None
        if shown:
            # one line, or the way back to its beginning would be longer
            print(f"{_words.steady(text)[: (columns or 0) - 6]} ...", end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            if shown:
                print("\r" + " " * ((columns or 1) - 1) + "\r", end="", file=sys.stderr, flush=True)


class Unwritable(Exception):
    """Standard output takes nothing more: a full disk, as a rule."""

    def __init__(self, why: OSError) -> None:
        super().__init__(why)
        self.why = why


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Unwritable(error) from None


class Lines(logging.Formatter):
    """Log records for people: a record is one line, but for a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - named by logging
        """The line; whatever wrote it, it steers no terminal."""
        return printable(super().formatMessage(record), _MAX_LINE)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - named by logging
        """The traceback, which quotes what was said, too."""
        return _words.steady(super().formatException(ei))


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
