"""The demo's workflow: one file, read, compressed, read back, compared, entered into a manifest."""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from sqlalchemy import BigInteger, MetaData, func
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..core.retry import Retry
from ..core.workflow import Context, Workflow, transition


class Base(DeclarativeBase):
    """The demo's own table is an application's table: it is not in AEGIS's schema."""

    metadata = MetaData()


class ManifestRow(Base):
    """One archived file of one run of the demo."""

    __tablename__ = "aegis_demo_manifest"

    run: Mapped[str] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    archived_size: Mapped[int] = mapped_column(BigInteger)
    entered_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Stage(StrEnum):
    """How far a file has come."""

    FOUND = "found"
    READ = "read"
    COMPRESSED = "compressed"
    COMPARED = "compared"
    ENTERED = "entered"


class ArchiveFile(Workflow, name="aegis.ArchiveFile"):
    """A file, from the directory to the archive and into the manifest."""

    state: Stage = Stage.FOUND
    run: str
    source: str
    archived: str
    sha256: str = ""
    size: int = 0
    archived_size: int = 0

    # Every kill counts as an attempt of whatever the worker had in hand; the demo kills a lot.
    @transition(Stage.FOUND, Stage.READ, retry=Retry(max_attempts=50, delay=0.1))
    def read(self, ctx: Context) -> None:  # noqa: ARG002 - a handler is given one
        """Take the original's fingerprint."""
        content = Path(self.source).read_bytes()
        self.sha256, self.size = hashlib.sha256(content).hexdigest(), len(content)

    @transition(Stage.READ, Stage.COMPRESSED, retry=Retry(max_attempts=50, delay=0.1))
    def compress(self, ctx: Context) -> None:
        """Write the archive: whole or not at all, however often it is tried."""
        archived = Path(self.archived)
        archived.parent.mkdir(parents=True, exist_ok=True)
        part = archived.with_name(f"{archived.name}.{os.getpid()}.{ctx.attempt}.part")
        part.write_bytes(gzip.compress(Path(self.source).read_bytes(), compresslevel=6, mtime=0))
        part.replace(archived)
        # Of attempts that were killed while they wrote.
        for left in archived.parent.glob(f"{glob.escape(archived.name)}.*.part"):
            left.unlink(missing_ok=True)
        self.archived_size = archived.stat().st_size

    @transition(Stage.COMPRESSED, Stage.COMPARED, retry=Retry(max_attempts=50, delay=0.1))
    def compare(self, ctx: Context) -> None:  # noqa: ARG002 - a handler is given one
        """Read the archive back."""
        found = hashlib.sha256(gzip.decompress(Path(self.archived).read_bytes())).hexdigest()
        if found != self.sha256:
            msg = f"{self.archived} holds {found}, the original was {self.sha256}"
            raise ValueError(msg)

    @transition(Stage.COMPARED, Stage.ENTERED, transactional=True, retry=Retry(max_attempts=50, delay=0.1))
    def enter(self, ctx: Context) -> None:
        """Enter it into the manifest, in the checkpoint's own transaction: exactly once."""
        ctx.session.execute(
            insert(ManifestRow).values(
                run=self.run,
                path=self.source,
                sha256=self.sha256,
                size=self.size,
                archived_size=self.archived_size,
            )
        )
