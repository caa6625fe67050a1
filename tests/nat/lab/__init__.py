"""NATs of every kind of RFC 4787, in network namespaces: see `Lab`, and `why_not` for what the machine must have."""

from .kinds import KINDS, Box, Seen, boxes, seen
from .lab import Lab, end_on_sigterm, stop_all
from .nodes import Host, Nat, Node
from .state import standing, sweep
from .system import LabError, in_namespace, started_at, why_not

__all__ = [
    "KINDS",
    "Box",
    "Host",
    "Lab",
    "LabError",
    "Nat",
    "Node",
    "Seen",
    "boxes",
    "end_on_sigterm",
    "in_namespace",
    "seen",
    "standing",
    "started_at",
    "stop_all",
    "sweep",
    "why_not",
]
