"""The places outside of the database where anchors are written: a file that only grows, an S3 bucket."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from ..config.logging import get_logger
from ..config.settings import Settings
from ..core.anchor import Anchor, Sink
from ..core.canonical import canonical
from ..core.errors import ConfigurationError, NotANote, SinkUnavailable
from ..core.note import LogHead

log = get_logger(__name__)

_S3: Final = "s3://"
_CHUNK: Final = 64 * 1024
_DAYS: Final = re.compile(r"[1-9][0-9]{0,4}")
_OVERTAKEN: Final = "another process wrote there in the meantime"


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
    return Bucket.at(place) if place.startswith(_S3) else AnchorFile(Path(place).expanduser().absolute())


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
                if _end(self.last()) != anchor.first:
                    raise SinkUnavailable(self.name, _OVERTAKEN)
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

    def _those_with(self, part: bytes) -> Iterator[Anchor]:
        try:
            with self.path.open("rb") as file:
                for line in file:
                    try:
                        if part in line:
                            yield Anchor.parse(line)
                    except NotANote:
                        continue
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


def _end(anchor: Anchor | None) -> int:
    return 0 if anchor is None else anchor.end


@dataclass
class Bucket:
    """A bucket of an S3-compatible store, one object for each anchor, locked for ``retention`` where that is set.

    The objects are numbered: of two processes that add to the same anchor, the store refuses one.
    """

    bucket: str
    prefix: str
    endpoint: str | None
    retention: timedelta | None
    _seen: int = field(default=0, init=False)
    """There are at least so many."""

    @classmethod
    def at(cls, place: str) -> Bucket:
        """Return the place that ``s3://bucket/prefix?endpoint=https://...&retention_days=N`` names.

        Raises:
            ConfigurationError: it names none.

        """
        remedy = "write s3://bucket/prefix?endpoint=https://host&retention_days=3650"
        refused = ConfigurationError(f"AEGIS_ANCHORS={place}", "it names no place in a bucket", remedy)
        try:
            parts = urlsplit(place)
        except ValueError:
            raise refused from None
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        days = options.pop("retention_days", None)
        endpoint = options.pop("endpoint", None)
        if not parts.netloc or options or (days is not None and not _DAYS.fullmatch(days)):
            raise refused
        if endpoint is not None and not endpoint.startswith(("https://", "http://")):
            raise refused
        prefix = parts.path.strip("/")
        retention = None if days is None else timedelta(days=int(days))
        return cls(parts.netloc, f"{prefix}/" if prefix else "", endpoint, retention)

    @property
    def name(self) -> str:
        """Its address."""
        return f"{_S3}{self.bucket}/{self.prefix}"

    def last(self) -> Anchor | None:
        """Return the anchor of the highest number.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        newest = self._newest()
        return self._read(self._key(newest)) if newest else None

    def add(self, anchor: Anchor, head: LogHead) -> None:
        """Write an object, if it follows the last one; the store refuses it if there is one of that number.

        Raises:
            SinkUnavailable: the store does not answer, or refuses it, or another process wrote there in the meantime.

        """
        locked: dict[str, Any] = {}
        if self.retention is not None:
            locked = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": head.at + self.retention}
        if _end(self.last()) != anchor.first:
            raise SinkUnavailable(self.name, _OVERTAKEN)
        self._ask(
            lambda client: client.put_object(
                Bucket=self.bucket,
                Key=self._key(self._seen + 1),
                Body=anchor.line(),
                IfNoneMatch="*",
                ChecksumAlgorithm="SHA256",
                **locked,
            )
        )

    def anchors(self) -> Iterator[Anchor]:
        """Go through all of them.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        for name in self._names():
            yield self._read(name)

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        """Go through all of them: which ones have entries of a workflow cannot be asked of a store.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        return (
            anchor for anchor in self.anchors() if any(entry.workflow_id == workflow_id for entry in anchor.entries)
        )

    def _key(self, number: int) -> str:
        return f"{self._ours}{number:012d}.json"

    @property
    def _ours(self) -> str:
        """What their names begin with: other things may be kept below the same prefix."""
        return f"{self.prefix}anchor-"

    def _newest(self) -> int:
        """Return how many there are; it takes twice as many requests as that number has bits, the first time."""
        step = 1
        while self._is_any_after(self._seen + step - 1):
            self._seen += step
            step *= 2
        while step > 1:
            step //= 2
            if self._is_any_after(self._seen + step - 1):
                self._seen += step
        return self._seen

    def _is_any_after(self, number: int) -> bool:
        return bool(self._page(StartAfter=self._key(number), MaxKeys=1).get("Contents"))

    def _names(self) -> Iterator[str]:
        more: dict[str, str] = {}
        while True:
            page = self._page(**more)
            yield from (found["Key"] for found in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, **options: Any) -> Any:
        return self._ask(lambda client: client.list_objects_v2(Bucket=self.bucket, Prefix=self._ours, **options))

    def _read(self, name: str) -> Anchor:
        body: bytes = self._ask(lambda client: client.get_object(Bucket=self.bucket, Key=name)["Body"].read())
        try:
            return Anchor.parse(body)
        except NotANote as error:
            raise SinkUnavailable(self.name, f"{name}: {error.problem}") from None

    def _ask(self, call: Callable[[Any], Any]) -> Any:
        client = self._client
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - an extra, and slow to load

        try:
            return call(client)
        except (BotoCoreError, ClientError, OSError) as error:
            raise SinkUnavailable(self.name, str(error)) from error

    @cached_property
    def _client(self) -> Any:
        try:
            import boto3  # noqa: PLC0415 - an extra, and slow to load
            from botocore.config import Config  # noqa: PLC0415
            from botocore.exceptions import BotoCoreError  # noqa: PLC0415
        except ImportError:
            remedy = "pip install 'aegis-workflows[s3]'"
            raise ConfigurationError(f"AEGIS_ANCHORS={self.name}", "boto3 is not installed", remedy) from None
        patience = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
        try:
            return boto3.client("s3", endpoint_url=self.endpoint, config=patience)
        except (BotoCoreError, ValueError) as error:
            raise SinkUnavailable(self.name, str(error)) from error
