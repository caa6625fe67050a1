"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from .._identity import Identity
from .._node import NodeId
from .._reasons import Reason, Stage
from ..errors import IdentityError, InvalidArgument


def invalid(detail: str) -> InvalidArgument:
    """The error for a wrong value in a flag or the configuration file."""
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def default_identity() -> pathlib.Path:
    """Where this user's identity is kept unless a file is named."""
    base = os.environ.get("XDG_CONFIG_HOME") or pathlib.Path.home() / ".config"
    return pathlib.Path(base) / "keynet" / "identity.pem"


def add_identity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--identity",
        metavar="FILE",
        type=pathlib.Path,
        help=f"key and certificates of this node; made if missing (default: {default_identity()})",
    )


def load_identity(path: pathlib.Path | None) -> Identity:
    """The identity of a node that is to run; made if there is none."""
    path = path or default_identity()
    make_room(path)
    return Identity.load_or_create(path)


def make_room(path: pathlib.Path) -> None:
    """Makes the folder of the default identity; other files go where there is one."""
    if path != default_identity():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        detail = f"{path.parent} cannot be made: {error.strerror}; name a file with --identity (`keynet id`: FILE)"
        raise IdentityError(reason=Reason.IDENTITY_INVALID, stage=Stage.SETUP, detail=detail) from None


def add_finding(parser: argparse.ArgumentParser) -> None:
    """How a node finds others and is found."""
    parser.add_argument(
        "--rendezvous",
        metavar="NODE@HOST:PORT",
        action="append",
        default=[],
        help="a rendezvous, as `keynet rendezvous` prints it; repeatable (default: KEYNET_RENDEZVOUS in the "
        "environment, several with commas between them)",
    )
    parser.add_argument(
        "--stun", metavar="HOST:PORT", action="append", default=[], help="a further STUN server to ask; repeatable"
    )
    parser.add_argument("--lan", action="store_true", help="find nodes, and be found, in the local network (mDNS)")
    parser.add_argument(
        "--no-port-mapping",
        dest="port_mapping",
        action="store_false",
        help="do not ask the router for a port (PCP, NAT-PMP, UPnP)",
    )
    parser.add_argument(
        "--relay",
        action="append",
        default=[],
        metavar="URI",
        help="a TURN server for what cannot go directly: turn:USER:PASSWORD@HOST:PORT, turns: for TLS; repeatable. "
        "Other users of this machine see flags: KEYNET_RELAYS in the environment, several with commas, is not seen",
    )
    parser.add_argument("--direct-only", action="store_true", help="use no relay, of neither side")


def finding(options: argparse.Namespace, table: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The arguments of Proxy for the flags of `add_finding`; `table` is the configuration file."""
    table = table or {}
    rendezvous = [*table.get("rendezvous", []), *options.rendezvous]
    if not rendezvous:
        from_environment = os.environ.get("KEYNET_RENDEZVOUS", "")
        rendezvous = [text.strip() for text in from_environment.split(",") if text.strip()]
    return {
        "rendezvous": rendezvous,
        "stun": [*table.get("stun", []), *options.stun],
        "lan": options.lan or table.get("lan", False),
        "port_mapping": options.port_mapping and table.get("port_mapping", True),
        "relays": _relays(options, table),
        "direct_only": options.direct_only or table.get("direct_only", False),
    }


def _relays(options: argparse.Namespace, table: Mapping[str, Any]) -> list[str]:
    relays = [*table.get("relays", []), *options.relay]
    from_environment = os.environ.get("KEYNET_RELAYS", "")
    return relays or [text.strip() for text in from_environment.split(",") if text.strip()]


def node_id(text: str) -> NodeId:
    """For argparse: its errors are about the flag."""
    try:
        return NodeId(text)
    except InvalidArgument as error:
        raise argparse.ArgumentTypeError(error.detail) from None


def port(text: str) -> int:
    """A service port."""
    if text.isdecimal() and 0 < int(text) < 65536:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port between 1 and 65535")


def positive(text: str) -> float:
    """A time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value < 1e6:
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds above 0")


def split(text: str, what: str) -> tuple[str, str]:
    """LEFT=RIGHT."""
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise invalid(f"{text!r} is not of the form {what}")
    return left, right
