"""The places outside of the database where anchors are written: a file that only grows, an S3 bucket."""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.anchor import Anchor, Sink, end_of, is_since, overtaken
from ..core.canonical import canonical
from ..core.errors import NotANote, SinkUnavailable
from ..core.note import LogHead
from .bucket import S3, Bucket

log = get_logger(__name__)

_CHUNK: Final = 64 * 1024


def sinks(settings: Settings) -> list[Sink]:
    """Return the places that the settings name.

    Raises:
        ConfigurationError: one of them cannot be one.

    """
    return [open_sink(place) for place in settings.anchor_places]


def open_sink(place: str) -> Sink:
    """Return the place of that name.

    Raises:
        ConfigurationError: it cannot be one.

    """
    return Bucket.at(place) if place.startswith(S3) else AnchorFile(Path(place).expanduser().absolute())


@dataclass(frozen=True)
class AnchorFile:
    """A file to which lines are added; it may be made append-only (``chattr +a``)."""

    path: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def last(self) -> Anchor | None:
        """Return the last whole line; one that a crash cut off is passed over.

        Raises:
            SinkUnavailable: it cannot be read.

        """
        for line in self._backwards():
            try:
                return Anchor.parse(line)
            except NotANote:
                log.warning("a line of anchors cannot be read", file=self.name, bytes=len(line))
        return None

    def add(self, anchor: Anchor, head: LogHead) -> None:  # noqa: ARG002 - other places need it
        """Add a line, if it follows the last one; once this returns, it is on the disk.

        Raises:
            SinkUnavailable: it cannot be written, or another process wrote there in the meantime.

        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as file:
                # The database's lock is gone with its connection, and whoever had it may not know yet.
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if end_of(self.last()) != anchor.first:
                    raise overtaken(self.name)
                new = not file.tell()
                file.write(b"" if self._ends_whole() else b"\n")
                file.write(anchor.line())
                file.flush()
                os.fsync(file.fileno())
            if new:
                self._keep_name()
        except OSError as error:
            raise SinkUnavailable(self.name, error.strerror or str(error)) from error

    def anchors(self) -> Iterator[Anchor]:
        """Go through the lines; one that cannot be read is passed over, and missed by those after it.

        Raises:
            SinkUnavailable: it cannot be read.

        """
        return self._those_with(b"")

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        """Go through the lines with entries of a workflow: only these are taken apart, of a file of any length.

        Raises:
            SinkUnavailable: it cannot be read.

        """
        return self._those_with(b"[" + canonical(workflow_id) + b",")

    def since(self, moment: datetime) -> Anchor | None:
        """Return the first line of that moment or later, found by halves: they come in the order of their times.

        Raises:
            SinkUnavailable: it cannot be read.

        """
        try:
            with self.path.open("rb") as file:

                def after(offset: int) -> Anchor | None:
                    """Return the first line that begins there or after it, and can be read."""
                    file.seek(max(offset - 1, 0))
                    if offset:
                        file.readline()
                    return next(_readable(file), None)

                def is_past(offset: int) -> bool:
                    found = after(offset)
                    return found is None or is_since(found, moment)

                return after(bisect_left(range(file.seek(0, os.SEEK_END)), x=True, key=is_past))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SinkUnavailable(self.name, error.strerror or str(error)) from error

    def covered(self) -> Iterator[str]:
        """Say nothing: a file has no versions, and a line that was changed is found by its signature."""
        return iter(())

    def _those_with(self, part: bytes) -> Iterator[Anchor]:
        try:
            with self.path.open("rb") as file:
                yield from _readable(line for line in file if part in line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SinkUnavailable(self.name, error.strerror or str(error)) from error

    def _ends_whole(self) -> bool:
        size = self.path.stat().st_size
        if not size:
            return True
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read(1) == b"\n"

    def _keep_name(self) -> None:
        # A new file's name is on the disk only once its folder is.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _backwards(self) -> Iterator[bytes]:
        """Go through the lines from the last to the first, without reading more of it than that takes."""
        try:
            with self.path.open("rb") as file:
                place, rest = file.seek(0, os.SEEK_END), b""
                while place:
                    step = min(_CHUNK, place)
                    place -= step
                    file.seek(place)
                    first, *lines = (file.read(step) + rest).split(b"\n")
                    yield from (line for line in reversed(lines) if line)
                    rest = first
                if rest:
                    yield rest
        except FileNotFoundError:
            return
        except OSError as error:
            raise SinkUnavailable(self.name, error.strerror or str(error)) from error


def _readable(lines: Iterable[bytes]) -> Iterator[Anchor]:
    for line in lines:
        try:
            yield Anchor.parse(line)
        except NotANote:
            continue
