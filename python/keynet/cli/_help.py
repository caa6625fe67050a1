"""`keynet help`: the help of a command, or the manual page of all of them."""

from __future__ import annotations

import argparse
from typing import Any

from . import _man
from ._common import invalid
from ._output import Output


def add(commands: Any, common: argparse.ArgumentParser, parser: argparse.ArgumentParser) -> None:
    """`parser`: what helps without a command."""
    own = commands.add_parser(
        "help",
        parents=[common],
        help="the help of a command",
        description="Shows the help of a command, or of keynet itself; with --man all of it as a manual page: "
        "keynet help --man | man -l -",
    )
    own.add_argument("command", metavar="COMMAND", nargs="?", help="the command; all of them unless given")
    own.add_argument("--man", action="store_true", help="write the manual page keynet(1)")

    def run(options: argparse.Namespace, out: Output) -> int:
        known: dict[str, argparse.ArgumentParser] = commands.choices
        if options.man:
            text = _man.page(parser, known)
        elif options.command is None:
            text = parser.format_help()
        elif options.command in known:
            text = known[options.command].format_help()
        else:
            raise invalid(f"there is no such command; there are {', '.join(known)}")
        if out.json:
            out.result({"help": text})
        else:
            print(text, end="")
        return 0

    own.set_defaults(run=run)
