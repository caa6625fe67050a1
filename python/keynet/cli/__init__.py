"""The command `keynet`."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from .. import _early, errors
from .._keynet import __version__
from .._reasons import Reason, Stage
from . import _completion, _demo, _doctor, _forward, _help, _id, _ping, _relay, _rendezvous, _status, _up
from ._common import invalid
from ._exit import ExitCode
from ._output import JsonLines, Lines, Output, Unwritable
from ._parser import Parser, UsageError

__all__ = ["ExitCode", "main"]


_EPILOG = """\
exit codes:
  0    done; `up`, `forward`, `rendezvous` and `relay`: ended by Ctrl-C,
       SIGTERM or SIGHUP in good order
  1    failed in another way than those below
  2    wrong usage, or a wrong value in a flag, a variable of the environment
       or the configuration file
  3    the identity file is missing, unreadable, wrong, readable by others, or
       in use by another program
  4    the node was not reached: unknown, offline, unreachable, no answer,
       connection refused or lost; `doctor`: none of the rendezvous nodes was
  5    what answered is not the node: another key, or a certificate that does
       not hold
  6    the node answered and said no: access denied, no such service, service
       down, busy
  7    a local address cannot be bound
  8    `doctor`: this network lets no UDP through, and no relay was reached
  9    `doctor`: it cannot tell whether peers will be reached
  70   a fault of keynet itself
  130  interrupted

With --json every line on standard output is one JSON object; a failure is
{"error": {"reason": ..., "stage": ..., "node_id": ..., "address": ...,
"message": ..., "advice": ...}}. Reasons and stages are those of the
documentation. Log lines (-v) are objects on standard error.

environment: KEYNET_RENDEZVOUS, KEYNET_RELAYS, KEYNET_CREDENTIALS and, of the
servers, KEYNET_NATS, KEYNET_TURN_SECRET, KEYNET_RELAY_USERS,
KEYNET_RELAY_SECRET; NO_COLOR switches colours off.
"""


class _Ended(BaseException):
    """SIGTERM or SIGHUP came; what is open is closed in order on the way out."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a name of a file that is not UTF-8 is no reason to fail
            stream.reconfigure(errors="backslashreplace")
    out = Output(json="--json" in given)
    try:
        with _signals():
            code = _run(given, out)
            # here it can still be told that something is not written
            sys.stdout.flush()
            return code
    except SystemExit as ended:  # --help, --version
        return _flushed(int(ended.code or 0))
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except _Ended as ended:
        return 128 + ended.number
    except Unwritable as error:
        return _unwritten(error.why)
    except OSError as error:
        return _unwritten(error)
    finally:
        if _early.is_command():
            # nothing is left to be closed, and the interpreter's end is no place for a traceback
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, signal.SIG_DFL)


def _open_what_is_closed() -> None:
    """A program may be started without standard output or errors (`2>&-`): what is written there then is nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def _is_writable() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _flushed(code: int) -> int:
    try:
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    return code


def _unwritten(error: OSError) -> int:
    """The output cannot be written; keeps Python from failing once more when it flushes at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    # whoever has read enough (`| head`) wants to know nothing
    if not isinstance(error, BrokenPipeError):
        with contextlib.suppress(OSError):
            print(f"keynet: standard output cannot be written: {error.strerror or error}", file=sys.stderr)
    return ExitCode.FAILED


def _run(given: list[str], out: Output) -> int:
    try:
        options = parser().parse_args(given)
        _log(options)
        run: Callable[[argparse.Namespace, Output], int] = options.run
        return run(options, out)
    except UsageError as error:
        if not out.json:
            print(error.usage, file=sys.stderr)
        out.error(error)
        return ExitCode.USAGE
    except errors.KeynetError as error:
        out.error(error)
        return _code(error)
    except UnicodeError as error:
        logging.getLogger("keynet.cli").debug("not UTF-8", exc_info=error)
        out.error(invalid("a flag, a variable of the environment or a file holds text that is not UTF-8"))
        return ExitCode.USAGE
    except (BrokenPipeError, Unwritable):
        raise
    except Exception as error:
        if isinstance(error, OSError) and not _is_writable():
            raise
        # with -v the log has the traceback
        logging.getLogger("keynet.cli").info("this should not happen", exc_info=error)
        detail = f"{type(error).__name__} in `keynet {given[0] if given[:1] else ''}`; with -v the log says where"
        out.error(errors.InternalError(reason=Reason.INTERNAL, stage=Stage.SETUP, detail=detail))
        return ExitCode.INTERNAL


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Whatever ends the command ends it in order, so that peers are told; `up` and the servers have their own way."""

    def end(number: int, _: FrameType | None) -> None:
        raise _Ended(number)

    before = {}
    with contextlib.suppress(ValueError):  # not in the main thread: somebody else's program
        for number in (signal.SIGTERM, signal.SIGHUP):
            # nohup means it
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, end)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL and _early.is_command():
            signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log(options: argparse.Namespace) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if options.json else Lines())
    # a node tells its troubles as events, a server has its log
    quiet = logging.WARNING if options.run.__module__ in (_rendezvous.__name__, _relay.__name__) else logging.ERROR
    level = (quiet, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(level=level, handlers=[handler])


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


def parser() -> Parser:
    """All of the command line."""
    parser = Parser(
        prog="keynet",
        description="gRPC between two machines behind NATs, knowing only the other's public key.",
        epilog=_EPILOG,
    )
    parser.add_argument("-V", "--version", action="version", version=f"keynet {__version__}")
    common = Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON object a line, for programs")
    common.add_argument("-v", "--verbose", action="count", default=0, help="log more to standard error (-vv: debug)")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for module in (_id, _up, _status, _ping, _doctor, _forward, _rendezvous, _relay, _demo, _completion):
        module.add(commands, common)
    _help.add(commands, common, parser)
    return parser
