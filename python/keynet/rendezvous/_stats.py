"""The counters of a rendezvous."""

from __future__ import annotations

import collections

from .v1 import rendezvous_pb2 as pb

__all__ = ["Stats", "cause_name"]


def cause_name(cause: pb.Cause) -> str:
    """As the counters and the logs write it: "offline", "rate_limited"."""
    return _lower(pb.Cause.Name(cause))


class Stats:
    """Counters since the start, by name."""

    def __init__(self) -> None:
        causes = [_lower(name) for name in pb.Cause.DESCRIPTOR.values_by_name if name != "CAUSE_UNSPECIFIED"]
        self._counts: collections.Counter[str] = collections.Counter(
            {
                "registrations": 0,
                "registrations_refused": 0,
                "replaced": 0,
                "gave_way": 0,
                "expired": 0,
                "stuck": 0,
                "signals": 0,
                "signals_delivered": 0,
                "signals_to_group": 0,
                "signals_from_group": 0,
                **{f"refused_{cause}": 0 for cause in causes},
            }
        )

    def add(self, name: str) -> None:
        """Counts one."""
        self._counts[name] += 1

    def refused(self, cause: pb.Cause) -> None:
        """Counts a signal that was not delivered."""
        self._counts[f"refused_{cause_name(cause)}"] += 1

    def snapshot(self) -> dict[str, int]:
        """A copy."""
        return dict(self._counts)


def _lower(name: str) -> str:
    return name.removeprefix("CAUSE_").lower()
