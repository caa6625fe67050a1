"""The configuration file of `keynet up`."""

from __future__ import annotations

import codecs
import pathlib
import re
import sys
from typing import Any

from .._keynet import excerpt
from ._common import invalid, read_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_FILE = 1 << 20
"""Bytes; 10,000 node ids take 600 kB."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "identity": str,
    "listen": str,
    "forward": str,
    "controller": str,
    "allow": list,
    "services": dict,
    "peers": dict,
    "limits": dict,
    "rendezvous": list,
    "stun": list,
    "lan": bool,
    "port_mapping": bool,
    "search_ports": bool,
    "relays": list,
    "direct_only": (bool, list),
    "metrics": str,
    "metrics_hosts": list,
    "patience": (int, float),
}

_WORD = re.compile(r"[A-Za-z_-]{1,24}")
"""What may be a key of ours with a slip in it; anything else may be a secret in the wrong place."""
_MAX_NAMED = 8

_DOTTED = re.compile(r"""(?<![\w-])(?:(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){128}""")
"""A key of more parts than any of ours; a name of a host has 127 at most."""


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The table, with values of the right types. Raises `InvalidArgument`."""
    text, mode = _text(path)
    if _DOTTED.search(text):
        # the parser takes a time for such a key that grows with the square of its length
        raise invalid(f"{path}: values are nested too deeply")
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise invalid(f"{path}: {error}") from None
    except RecursionError:
        raise invalid(f"{path}: values are nested too deeply") from None
    unknown = set(table) - set(_KINDS)
    if unknown:
        named = sorted(name if _WORD.fullmatch(name) else "one that is no word" for name in unknown)[:_MAX_NAMED]
        raise invalid(f"{path}: unknown keys: {', '.join(named)}; there are {', '.join(sorted(_KINDS))}")
    for name, value in table.items():
        wanted = _KINDS[name]
        kinds = wanted if isinstance(wanted, tuple) else (wanted,)
        # in Python true and false are numbers
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise invalid(f"{path}: {name} is of the wrong type; `keynet up --help` shows an example")
    for node, addresses in table.get("peers", {}).items():
        if not isinstance(addresses, list) or not all(isinstance(address, str) for address in addresses):
            raise invalid(f'{path}: peers: the addresses of {excerpt(node)} are not a list of texts: ["host:port"]')
    for key in ("allow", "rendezvous", "stun", "relays", "metrics_hosts", "direct_only"):
        entries = table.get(key, [])
        for name in entries if isinstance(entries, list) else []:
            if not isinstance(name, str):
                raise invalid(f"{path}: {key}: an entry is not a text; it stands in quotes")
    for port, backend in table.get("services", {}).items():
        if not isinstance(backend, str):
            raise invalid(f'{path}: services: the backend of {excerpt(port)} is not a text: "127.0.0.1:50051"')
    for name, value in table.get("limits", {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid(f"{path}: limits: '{excerpt(name)}' is not a number")
    _check_mode(path, mode, table)
    return table


def _check_mode(path: pathlib.Path, mode: int, table: dict[str, Any]) -> None:
    """The rule of all files with secrets: one with passwords of relays in it is not for every user to read."""
    relays = table.get("relays", [])
    if mode & 0o007 and any("@" in relay for relay in relays):
        raise invalid(
            f"{path} has mode {mode:04o}, so every user can read the passwords of relays in it; run: chmod o= {path}"
        )


def _text(path: pathlib.Path) -> tuple[str, int]:
    """The file as TOML wants it, and its mode: UTF-8; a byte order mark, which some editors put first, is skipped."""
    try:
        raw, mode = read_file(path, _MAX_FILE + 1)
    except OSError as error:
        raise invalid(f"{path}: {error.strerror or error}") from None
    if len(raw) > _MAX_FILE:
        raise invalid(f"{path}: larger than {_MAX_FILE} bytes")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:4]:
        raise invalid(f"{path}: this is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig"), mode
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise invalid(f"{path}: line {line} is not UTF-8 (Latin-1?); save the file as UTF-8") from None
