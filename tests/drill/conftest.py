"""What the tests of drills share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from private_servers import folder


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that other users may pass through: PostgreSQL is not run by root."""
    with folder("drills") as made:
        yield made
