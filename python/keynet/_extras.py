"""The name that the package is installed by, and what is said where a package beside it is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

DISTRIBUTION = "pykeynet"
"""The package is imported as `keynet` and installed as this: on PyPI `keynet` is somebody else's package."""


def install(extra: str, *, flags: str = "") -> str:
    """The command that installs the packages of an extra."""
    return f"pip install {flags}'{DISTRIBUTION}[{extra}]'"


@contextlib.contextmanager
def needed_by(what: str, extra: str) -> Iterator[None]:
    """The block imports packages of others for `what`: where that fails, the error says what to install.

    Raises `ImportError` (`ModuleNotFoundError` where a module is not there).
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "keynet":
            raise
        kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
        text = f"{what} needs packages that are not installed ({error}): {install(extra)}"
        raise kind(text, name=error.name, path=error.path) from error
    except Exception as error:
        # generated code refuses a grpcio (RuntimeError) or a protobuf (VersionError) older than what made it
        if type(error).__name__ not in ("RuntimeError", "VersionError"):
            raise
        how = install(extra, flags="--upgrade ")
        raise ImportError(f"{what} needs newer packages ({' '.join(str(error).split())}): {how}") from error
