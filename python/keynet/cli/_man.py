"""The manual page keynet(1), made from the parser: `keynet help --man`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping


def page(parser: argparse.ArgumentParser, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The page, for man(7)."""
    lines = [
        '.\\" made by `keynet help --man`',
        ".TH KEYNET 1",
        ".SH NAME",
        f"keynet \\- {_text((parser.description or '').rstrip('.'))}",
        ".SH SYNOPSIS",
        ".B keynet",
        ".I COMMAND",
        "[options]",
        ".SH COMMANDS",
    ]
    for name, command in commands.items():
        lines += [f".SS keynet {_text(name)}", _text(command.description or "")]
        lines += _arguments(command)
        if command.epilog:
            lines += [".PP", ".nf", *map(_text, command.epilog.rstrip().splitlines()), ".fi"]
    if parser.epilog:
        lines += [".SH NOTES", ".nf", *map(_text, parser.epilog.rstrip().splitlines()), ".fi"]
    return "\n".join(lines) + "\n"


def _arguments(command: argparse.ArgumentParser) -> Iterator[str]:
    for action in command._actions:
        if action.help == argparse.SUPPRESS:
            continue
        value = "" if action.nargs == 0 else _value(action)
        names = [f"\\fB{_text(name)}\\fR" for name in action.option_strings]
        head = ", ".join(names) + (f" {value}" if names and value else "" if names else value)
        yield from (".TP", head, _text((action.help or "").replace("%%", "%")))


def _value(action: argparse.Action) -> str:
    named = action.metavar or action.dest.upper()
    parts = named if isinstance(named, tuple) else (named,)
    return " ".join(f"\\fI{_text(part)}\\fR" for part in parts)


def _text(text: str) -> str:
    """For roff: a hyphen is a minus, and a line begins with no request."""
    text = " ".join(text.split()) if not text.startswith(" ") else text
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _print(whole: argparse.ArgumentParser) -> None:
    choices = next(action.choices for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    print(page(whole, choices), end="")


if __name__ == "__main__":
    from . import parser as build

    _print(build())
