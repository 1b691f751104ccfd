"""The portable copy: one database, as pg_dump writes it. No point in time can be gone back to with it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from ...config.settings import Settings, safe_url
from ...core.errors import BackupFailed
from ...persistence import cluster
from ...persistence.database import Database
from ...servers.postgres import programs_for
from .address import words


def dump(settings: Settings, file: Path) -> int:
    """Write the whole database to a file, which is there as a whole or not at all; return its size in bytes.

    Raises:
        BackupFailed: pg_dump failed, or the file cannot be written.
        DatabaseUnavailable: the database does not answer.
        ServerUnavailable: the programs are not installed.

    """
    database = Database(settings.backup_database, pool_size=1, pre_ping=False)
    try:
        with database.statement() as connection:
            major = cluster.facts(connection).major
    finally:
        database.close()
    program = programs_for(settings, major) / "pg_dump"
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        with fresh.open("xb") as output:
            done = subprocess.run(
                # By the environment: the arguments of a process are for everybody to see.
                [str(program), "--format=custom", "--no-owner"],
                stdout=output,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env={**os.environ, **_environment(settings)},
            )
            os.fsync(output.fileno())
        if done.returncode:
            reason = done.stderr.strip().partition("\n")[0]
            raise BackupFailed(safe_url(settings.backup_database), reason, "see what pg_dump says")
        fresh.replace(file)
    except OSError as error:
        remedy = "see that its folder is there, is ours, and has room"
        raise BackupFailed(str(file), f"it cannot be written ({error.strerror})", remedy) from None
    finally:
        fresh.unlink(missing_ok=True)
    return file.stat().st_size


_VARIABLES: Final = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}


def _environment(settings: Settings) -> dict[str, str]:
    given = words(settings.backup_database)
    return {variable: given[word] for word, variable in _VARIABLES.items() if word in given}
