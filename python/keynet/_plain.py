"""Failures, times and dataclasses as JSON has them: the command's output and the status socket share it."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from typing import Any

from .errors import KeynetError

__all__ = ["error_fields", "plain"]


def error_fields(error: KeynetError) -> dict[str, Any]:
    """A failure as an object."""
    return {
        "reason": error.reason.value,
        "stage": error.stage.value,
        "node_id": error.node_id,
        "address": error.address,
        "detail": error.detail,
        "message": str(error),
        "advice": error.advice,
    }


def plain(value: Any) -> Any:
    """What `json` does not know by itself."""
    if isinstance(value, KeynetError):
        return error_fields(value)
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} is not for JSON")
