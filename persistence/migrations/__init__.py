"""The schema's history; ``aegis db upgrade`` brings a database to its newest version."""
