"""What beat starts when a backup is due: take one, verify it, and say in the log what came of it.

One that was taken, and is not verified yet, is verified instead: whatever keeps backups from counting must not
fill the repository with them.
"""

from __future__ import annotations

import sys

from ...config import logging as our_logging
from ...config.logging import get_logger
from ...config.settings import settings
from ...core.errors import AegisError
from .take import take, unproven, verify

log = get_logger(__name__)


def main() -> int:
    """Do it, once."""
    our_logging.configure(settings())
    try:
        base = unproven(settings()) or take(settings())
        _, proof = verify(settings(), base.id)
    except AegisError as error:
        log.critical("no backup", reason=str(error))
        return 1
    log.info("backup verified", backup=base.id, transitions=proof.transitions, seconds=proof.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
