"""An S3 bucket as a place of anchors: one object for each, locked where that is wanted."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from ..core.anchor import Anchor, end_of, is_since, overtaken
from ..core.errors import ConfigurationError, NotANote, SinkUnavailable
from ..core.note import LogHead

S3: Final = "s3://"
_DAYS: Final = re.compile(r"[1-9][0-9]{0,4}")
# Versions in one answer, where one would do.
_FEW: Final = 10


@dataclass
class Bucket:
    """A bucket of an S3-compatible store, one object for each anchor, locked for ``retention`` where that is set.

    The objects are numbered: of two processes that add to the same anchor, the store refuses one. What counts
    is the oldest version of each, the one that was locked: a lock keeps nobody from putting another version,
    or a delete marker, over it.
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
        return f"{S3}{self.bucket}/{self.prefix}"

    def last(self) -> Anchor | None:
        """Return the anchor of the highest number.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        for number in range(self._newest(), 0, -1):
            if (found := self._written(number)) is not None:
                return found
        return None

    def add(self, anchor: Anchor, head: LogHead) -> None:
        """Write an object, if it follows the last one; the store refuses it if there is one of that number.

        Raises:
            SinkUnavailable: the store does not answer, or refuses it, or another process wrote there in the meantime.

        """
        locked: dict[str, Any] = {}
        if self.retention is not None:
            locked = {"ObjectLockMode": "COMPLIANCE", "ObjectLockRetainUntilDate": head.at + self.retention}
        if end_of(self.last()) != anchor.first:
            raise overtaken(self.name)
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
        for name, versions in self._objects():
            if written := [version for version in versions if version is not None]:
                yield self._read(name, written[-1])

    def about(self, workflow_id: str) -> Iterator[Anchor]:
        """Go through all of them: which ones have entries of a workflow cannot be asked of a store.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        return (
            anchor for anchor in self.anchors() if any(entry.workflow_id == workflow_id for entry in anchor.entries)
        )

    def since(self, moment: datetime) -> Anchor | None:
        """Return the first of that moment or later, found by halves: they come in the order of their times.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        numbers = range(1, self._newest() + 1)

        def is_past(number: int) -> bool:
            found = self._written(number)
            return found is not None and is_since(found, moment)

        first = bisect_left(numbers, x=True, key=is_past)
        return self._written(numbers[first]) if first < len(numbers) else None

    def covered(self) -> Iterator[str]:
        """Say over which anchors there are delete markers or other versions: who only adds leaves none.

        Raises:
            SinkUnavailable: the store does not answer.

        """
        for name, versions in self._objects():
            markers = versions.count(None)
            kept = len(versions) - markers
            if markers or kept != 1:
                yield f"{name}: {kept} versions and {markers} delete markers"

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
        after = {"KeyMarker": self._key(number)} if number else {}
        # Some stores go on with the other versions of that key.
        return any(name > self._key(number) for name, _ in self._stored(self._ours, MaxKeys=_FEW, **after))

    def _written(self, number: int) -> Anchor | None:
        """Return an anchor as it was written first; None if no version of it is left."""
        name = self._key(number)
        versions = [version for key, version in self._stored(name) if key == name and version is not None]
        return self._read(name, versions[-1]) if versions else None

    def _objects(self) -> Iterator[tuple[str, list[str | None]]]:
        """Go through all of them, each with its versions, the oldest last; a delete marker is None."""
        for name, found in groupby(self._stored(self._ours), itemgetter(0)):
            yield name, [version for _, version in found]

    def _stored(self, prefix: str, **options: Any) -> Iterator[tuple[str, str | None]]:
        """Go through the versions of what begins like that, by their keys, and the newest of each first."""
        while True:
            page = self._versions(prefix, **options)
            found = [(one["Key"], one["VersionId"]) for one in page.get("Versions", ())]
            found += [(one["Key"], None) for one in page.get("DeleteMarkers", ())]
            yield from sorted(found, key=itemgetter(0))  # which leaves those of one key in their order
            if not page.get("IsTruncated"):
                return
            # Some stores name a version only where the page ended between two of a key.
            options.pop("VersionIdMarker", None)
            options |= {name: page[f"Next{name}"] for name in ("KeyMarker", "VersionIdMarker") if f"Next{name}" in page}

    def _versions(self, prefix: str, **options: Any) -> Any:
        return self._ask(lambda client: client.list_object_versions(Bucket=self.bucket, Prefix=prefix, **options))

    def _read(self, name: str, version: str) -> Anchor:
        asked = {"Bucket": self.bucket, "Key": name, "VersionId": version}
        body: bytes = self._ask(lambda client: client.get_object(**asked)["Body"].read())
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
