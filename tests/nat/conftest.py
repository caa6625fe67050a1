"""What the tests of NAT traversal share: they need the laboratory, and say so where it cannot be."""

from __future__ import annotations

import pytest
from lab import end_on_sigterm, why_not


@pytest.fixture(scope="session", autouse=True)
def laboratory() -> None:
    if why := why_not(links=True):
        pytest.skip(why)
    # laboratories are made by threads too, which cannot do this
    end_on_sigterm()
