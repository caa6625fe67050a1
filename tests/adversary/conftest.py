"""What the tests of adversaries share: they need the laboratory, and say so where it cannot be."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from arena import Ground
from lab import end_on_sigterm, why_not


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """The namespaces, one set for all tests; the programs in them are each test's own."""
    if why := why_not():
        pytest.skip(why)
    end_on_sigterm()
    with Ground() as made:
        yield made
