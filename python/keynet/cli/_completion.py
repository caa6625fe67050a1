"""`keynet completion`: what a shell needs to complete commands and flags, made from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ._output import Output

_EPILOG = """\
for one session, or in the start file of the shell:

  bash   source <(keynet completion bash)
  zsh    source <(keynet completion zsh)
  fish   keynet completion fish | source
"""


def add(commands: Any, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "completion",
        parents=[common],
        help="make your shell complete commands and flags",
        description="Writes a script that lets a shell complete the commands and flags of keynet.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="bash, zsh or fish")

    def run(options: argparse.Namespace, out: Output) -> int:
        text = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell](commands.choices)
        if out.json:
            out.result({"completion": text})
        else:
            print(text, end="")
        return 0

    parser.set_defaults(run=run)


Commands = Mapping[str, argparse.ArgumentParser]


def _flags(parser: argparse.ArgumentParser) -> list[str]:
    return [flag for action in parser._actions for flag in action.option_strings]


def bash(commands: Commands) -> str:
    """For `complete -F`."""
    cases = "\n".join(
        f'        {name}) words="{" ".join([*_flags(parser), *_choices(parser, commands)])}" ;;'
        for name, parser in commands.items()
    )
    return f"""\
# bash completion for keynet
_keynet() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{" ".join(commands)} --help --version" -- "$current"))
        return
    fi
    case "${{COMP_WORDS[1]}}" in
{cases}
        *) words="" ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -o filenames -F _keynet keynet
"""


def zsh(commands: Commands) -> str:
    """For `compdef`."""
    cases = "\n".join(
        f"        {name}) compadd -- {' '.join([*_flags(parser), *_choices(parser, commands)])}; _files ;;"
        for name, parser in commands.items()
    )
    return f"""\
#compdef keynet
_keynet() {{
    if (( CURRENT == 2 )); then
        compadd -- {" ".join(commands)} --help --version
        return
    fi
    case "$words[2]" in
{cases}
    esac
}}
compdef _keynet keynet
"""


def fish(commands: Commands) -> str:
    """For `complete -c`."""
    lines = ["# fish completion for keynet"]
    for name, parser in commands.items():
        lines.append(f"complete -c keynet -n __fish_use_subcommand -f -a {name}")
        for action in parser._actions:
            names = [f"-l {one[2:]}" if one.startswith("--") else f"-s {one[1:]}" for one in action.option_strings]
            if names:
                value = "" if action.nargs == 0 else " -r"
                lines.append(f"complete -c keynet -n '__fish_seen_subcommand_from {name}' {' '.join(names)}{value}")
        if choices := _choices(parser, commands):
            lines.append(f"complete -c keynet -n '__fish_seen_subcommand_from {name}' -f -a '{' '.join(choices)}'")
    return "\n".join(lines) + "\n"


def _choices(parser: argparse.ArgumentParser, commands: Commands) -> list[str]:
    """Words that an argument may be."""
    if parser is commands.get("help"):
        return list(commands)
    return [str(word) for action in parser._actions for word in action.choices or () if not action.option_strings]
