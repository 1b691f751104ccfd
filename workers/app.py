"""The Celery app of AEGIS's own workers: ``celery -A aegis.workers.app worker``."""

from __future__ import annotations

import sys
from pathlib import Path

from celery import Celery
from celery.signals import setup_logging

from ..config import logging as our_logging
from ..config.settings import settings
from ..core.errors import AegisError
from .factory import make_app
from .load import load_workflows


@setup_logging.connect
def _configure_logging(**_: object) -> None:
    our_logging.configure(settings())


def _main() -> Celery:
    # The one place that works at import: `celery -A` gives no other.
    try:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        load_workflows(settings().workflows)
        return make_app(settings())
    except AegisError as error:
        sys.exit(f"aegis: {error}")


app = _main()
