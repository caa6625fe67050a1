"""How an object of this package shows itself in a debugger or a log: by its public name, and what tells it apart."""

from __future__ import annotations


def shown(thing: object, *facts: object) -> str:
    """ "<keynet.Forward 127.0.0.1:5000>". No fact may be a secret."""
    kind = type(thing)
    module = ".".join(part for part in kind.__module__.split(".") if not part.startswith("_"))
    return f"<{' '.join([f'{module}.{kind.__qualname__}', *map(str, facts)])}>"
