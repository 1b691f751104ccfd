"""Sites with a server of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pgbackrest_site import ArchivingSite, archiving_site, begin
from site_of_its_own import Site, site


@pytest.fixture
def place() -> Iterator[Site]:
    """A site for one test: it may do to it what it likes."""
    with site() as made:
        yield made


@pytest.fixture
def archiving() -> Iterator[ArchivingSite]:
    """A site for one test, whose server hands its WAL to pgBackRest."""
    with archiving_site() as made:
        begin(made)
        yield made
