"""The processes: the Celery app, its workers' heartbeat, and what beat runs."""
