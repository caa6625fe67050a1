"""The parser of the command line: its complaints are errors like all others, hold no secrets, and fit 80 columns."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from .._reasons import Reason, Stage
from ..errors import InvalidArgument
from ._words import WIDTH, redacted

_FLAG = re.compile(r"--?[a-z][a-z-]{0,30}")
"""What may be a flag with a slip in it; anything else that begins with a dash may be a password."""


class UsageError(InvalidArgument):
    """A command line that makes no sense, with the usage of the command that was meant."""

    def __init__(self, usage: str, detail: str) -> None:
        super().__init__(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)
        self.usage = usage


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help for terminals of 80 columns, and narrower ones."""

    def __init__(self, prog: str, **options: Any) -> None:
        # argparse itself asks the terminal; wider lines are harder to read
        found = argparse.HelpFormatter(prog)._width
        options["width"] = min(found, WIDTH - 2)
        super().__init__(prog, **options)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # examples and tables stay as they are, paragraphs are filled
        if "\n" in text.strip():
            return super()._fill_text(text, width, indent)
        return argparse.HelpFormatter._fill_text(self, text, width, indent)


class Parser(argparse.ArgumentParser):
    """Raises `UsageError` in place of printing and leaving."""

    def __init__(self, **options: Any) -> None:
        options["formatter_class"] = Formatter
        # a part of a name that is enough today may be another flag's tomorrow
        options["allow_abbrev"] = False
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.format_usage().strip(), _without_values(message))

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        options, rest = self.parse_known_args(args, namespace)
        if rest:
            # by name alone: a value may be a password, given to a flag with a slip of the pen
            flags = [name for text in rest if _FLAG.fullmatch(name := text.partition("=")[0])]
            values = len(rest) - len(flags)
            parts = [*flags, *([f"{values} value{'s' if values > 1 else ''} that no flag takes"] if values else [])]
            self.error(f"not understood: {', '.join(parts)}")
        return options


def _without_values(message: str) -> str:
    """The complaint of argparse without texts that may hold a password."""
    message = re.sub(r"ignored explicit argument .*", "it takes no value", message)
    message = re.sub(
        r"(?s)invalid choice: (?!'[a-z-]{1,20}' \().* \(choose", "not one of those that there are (choose", message
    )
    message = re.sub(r"(ambiguous option: [^=\s]*)=\S*", r"\1", message)
    return redacted(message)
