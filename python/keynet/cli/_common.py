"""Flags that several commands share, and what they mean."""

from __future__ import annotations

import argparse
import errno
import os
import pathlib
import select
import stat
import time
from collections.abc import Mapping
from typing import Any

from .. import _keynet
from .._access import ANYONE, Allow
from .._identity import Identity
from .._node import NodeId
from .._places import home_folder, make_private
from .._reasons import Reason, Stage
from .._text import whole
from ..errors import IdentityError, InvalidArgument

_MAX_SECRET = 4096
"""Bytes of a file with a secret."""
_PIPE_MAY_TAKE = 10.0
"""Seconds: a password manager may have to decrypt something."""


def invalid(detail: str) -> InvalidArgument:
    """The error for a wrong value in a flag or the configuration file."""
    return InvalidArgument(reason=Reason.INVALID_ARGUMENT, stage=Stage.SETUP, detail=detail)


def default_identity() -> pathlib.Path | None:
    """Where this user's identity is kept unless a file is named; None: the user has no home."""
    config = os.environ.get("XDG_CONFIG_HOME", "")
    if not config.startswith("/"):
        home = home_folder()
        if home is None:
            return None
        config = os.path.join(home, ".config")
    return pathlib.Path(config) / "keynet" / "identity.pem"


def shown_default() -> str:
    """The default as help shows it, for argparse, which formats it."""
    return str(default_identity() or "none, for there is no home directory").replace("%", "%%")


def add_identity(parser: argparse.ArgumentParser, *, throw_away: bool = False) -> None:
    """`throw_away`: the command makes itself a name unless a file is given."""
    default = "a new name, for this run" if throw_away else shown_default()
    parser.add_argument(
        "--identity",
        metavar="FILE",
        type=pathlib.Path,
        help=f"key and certificates of this node; made if missing (default: {default})",
    )


def load_identity(path: pathlib.Path | None) -> Identity:
    """The identity of a node that is to run; made if there is none."""
    found = make_room(path)
    try:
        return Identity.load_or_create(found)
    except IdentityError as error:
        if path is None and error.reason is Reason.IDENTITY_INVALID:
            detail = f"{error.detail}; name another file with --identity"
            raise IdentityError(reason=error.reason, stage=error.stage, detail=detail) from None
        raise


def make_room(path: pathlib.Path | None) -> pathlib.Path:
    """The file to use. Makes the folder of the default identity; other files go where there is one."""
    default = default_identity()
    if path is not None and path != default:
        return path
    if default is None:
        why = "no HOME that begins with /, no line in passwd"
        detail = f"there is no home directory to keep an identity in ({why}): name a file"
        raise _no_identity(f"{detail} with --identity (`keynet id`: FILE)")
    try:
        make_private(default.parent)
    except OSError as error:
        detail = f"{default.parent} cannot be made: {error.strerror}; name a file with --identity (`keynet id`: FILE)"
        raise _no_identity(detail) from None
    return default


def _no_identity(detail: str) -> IdentityError:
    return IdentityError(reason=Reason.IDENTITY_INVALID, stage=Stage.SETUP, detail=detail)


def secret_file(flag: str, path: pathlib.Path) -> str:
    """The text of a file that holds a secret: one that every user of this machine can read is refused."""
    try:
        raw, mode = read_file(path, _MAX_SECRET + 1)
        text = raw.decode("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise invalid(f"{flag}: {path} cannot be read: {why}") from None
    if mode & 0o007:
        raise invalid(f"{flag}: {path} has mode {mode:04o}, so every user can read it; run: chmod o= {path}")
    if not text:
        raise invalid(f"{flag}: {path} is empty")
    if len(raw) > _MAX_SECRET:
        raise invalid(f"{flag}: {path} is larger than {_MAX_SECRET} bytes")
    if any(ord(character) < ord(" ") and character not in "\r\n\t" for character in text):
        raise invalid(f"{flag}: {path} is no text: there are control characters in it")
    return text


def read_file(path: pathlib.Path, most: int) -> tuple[bytes, int]:
    """The first bytes of a file, or of a pipe (`<(pass show relay)`), and its mode. Raises OSError.

    A pipe at the other end of which nobody is, or nobody says anything, is waited for no longer than some seconds.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        mode, raw, until = stat.S_IMODE(os.fstat(descriptor).st_mode), b"", time.monotonic() + _PIPE_MAY_TAKE
        while len(raw) < most:
            piece = file.read(most - len(raw))
            if piece is None:
                left = until - time.monotonic()
                if left <= 0 or not select.select([file], [], [], left)[0]:
                    raise TimeoutError(errno.ETIMEDOUT, f"nothing more came out of it in {_PIPE_MAY_TAKE:g} s")
            elif piece:
                raw += piece
            else:
                break
    return raw, mode


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
    _check_http_proxy()
    rendezvous = [*table.get("rendezvous", []), *options.rendezvous]
    if not rendezvous:
        from_environment = os.environ.get("KEYNET_RENDEZVOUS", "")
        rendezvous = [text.strip() for text in from_environment.split(",") if text.strip()]
    relays, direct_only = _relays(options, table), options.direct_only or table.get("direct_only", False)
    if options.relay and direct_only is True:
        raise invalid("--relay and --direct-only contradict each other: name relays, or use none")
    return {
        "rendezvous": rendezvous,
        "stun": [*table.get("stun", []), *options.stun],
        "lan": options.lan or table.get("lan", False),
        "port_mapping": options.port_mapping and table.get("port_mapping", True),
        "relays": relays,
        "direct_only": direct_only,
    }


def _check_http_proxy() -> None:
    """Refuses a proxy in the environment that is none; another's scheme (socks5://) may be meant for other programs."""
    name = "https_proxy" if "https_proxy" in os.environ else "HTTPS_PROXY"
    text = os.environ.get(name, "")
    scheme, mark, _ = text.partition("://")
    if text and not (mark and scheme.lower() != "http" and scheme.isalnum()):
        try:
            _keynet.check_http_proxy(text)
        except InvalidArgument as error:
            raise invalid(f"{name} in the environment: {error.detail}; or unset it") from None


def allowed(names: list[str], own: NodeId | None = None) -> Allow | None:
    """What --allow says; None: nothing."""
    if "anyone" in names:
        if len(set(names)) > 1:
            raise invalid("--allow anyone lets everybody in: the node ids beside it mean nothing")
        return ANYONE
    nodes = [NodeId(name) for name in names]
    if own is not None and own in nodes:
        raise invalid(f"--allow {own}: that is this node itself; name the nodes that are to reach it")
    return nodes or None


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
    value = whole(text)
    if value is not None and 0 < value < 65536:
        return value
    raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not a port between 1 and 65535")


def positive(text: str) -> float:
    """A time in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0 < value < 1e6:
        return value
    raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not a time in seconds above 0")


def duration(text: str) -> float:
    """A time in seconds, also 0; the core knows its bounds."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not a time in seconds") from None


def count(text: str) -> int:
    """A whole number above 0."""
    value = whole(text)
    if value is not None and 0 < value < 2**53:
        return value
    raise argparse.ArgumentTypeError(f"'{_keynet.excerpt(text)}' is not a whole number above 0")


def split(text: str, what: str, *, secret: bool = False) -> tuple[str, str]:
    """LEFT=RIGHT. `secret`: the text is not to be shown."""
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise invalid(f"not of the form {what}" if secret else f"'{_keynet.excerpt(text)}' is not of the form {what}")
    return left, right


def pairs(texts: list[str], what: str, *, secret: bool = False) -> dict[str, str]:
    """Several LEFT=RIGHT, each LEFT once."""
    found: dict[str, str] = {}
    for left, right in (split(text, what, secret=secret) for text in texts):
        if left in found:
            raise invalid(f"{left} is there twice, as {what}")
        found[left] = right
    return found
