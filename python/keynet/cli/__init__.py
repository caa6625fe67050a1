"""The command `keynet`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence

from .. import errors
from .._keynet import __version__
from . import _demo, _doctor, _forward, _id, _ping, _relay, _rendezvous, _status, _up
from ._exit import ExitCode
from ._output import Output

__all__ = ["ExitCode", "main"]


_EPILOG = """\
exit codes:
  0    done; `up`, `forward`, `rendezvous` and `relay`: ended by Ctrl-C or SIGTERM in good order
  1    failed in another way than those below
  2    wrong usage, or a wrong value in a flag or the configuration file
  3    the identity file is missing, unreadable, wrong, or readable by others
  4    the node was not reached: unknown, offline, unreachable, no answer, connection refused or lost; `doctor`: none of
       the rendezvous nodes was
  5    what answered is not the node: another key, or a certificate that does not hold
  6    the node answered and said no: access denied, no such service, service down, busy
  7    a local address cannot be bound
  8    `doctor`: this network lets no UDP through, and no relay was reached
  9    `doctor`: it cannot tell whether peers will be reached
  70   a fault of keynet itself
  130  interrupted

With --json every line on standard output is one JSON object; a failure is {"error": {"reason": ..., "stage": ...,
"node_id": ..., "address": ..., "message": ..., "advice": ...}}. Reasons and stages are those of the documentation.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    out = Output(json=options.json)
    logging.basicConfig(
        level=(logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    run: Callable[[argparse.Namespace, Output], int] = options.run
    try:
        return run(options, out)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except errors.KeynetError as error:
        out.error(error)
        return _code(error)
    except BrokenPipeError:
        # whoever read the output has gone; keep Python from failing once more when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED


def _code(error: errors.KeynetError) -> int:
    table: list[tuple[type[errors.KeynetError], int]] = [
        (errors.InvalidArgument, ExitCode.USAGE),
        (errors.IdentityError, ExitCode.IDENTITY),
        (errors.BindError, ExitCode.BIND),
        (errors.InternalError, ExitCode.INTERNAL),
        (errors.TlsError, ExitCode.WRONG_PEER),
        (errors.AccessDenied, ExitCode.DENIED),
        (errors.ServiceError, ExitCode.DENIED),
        (errors.PeerBusy, ExitCode.DENIED),
        (errors.DialError, ExitCode.UNREACHED),
        (errors.ConnectionLost, ExitCode.UNREACHED),
    ]
    return next((code for kind, code in table if isinstance(error, kind)), ExitCode.FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keynet",
        description="gRPC between two machines behind NATs, knowing only the other's public key.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"keynet {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    common.add_argument("-v", "--verbose", action="count", default=0, help="log more to standard error (-vv: debug)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (_id, _up, _status, _ping, _doctor, _forward, _rendezvous, _relay, _demo):
        module.add(commands, common)
    return parser
