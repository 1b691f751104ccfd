"""Places outside: a real S3 store in a process of its own, an authority that says what time it is; and neither."""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from log_workbench import add, entry, frontier, logged
from outside import CREDENTIALS, Authority, send, store, web
from private_servers import DEPLOYMENT
from rfc3161_client import VerifierBuilder, decode_timestamp_response
from rfc3161_client.errors import VerificationError

from aegis.config.settings import read
from aegis.core.anchor import Anchor, Replay, log_name
from aegis.core.errors import ConfigurationError, SinkUnavailable
from aegis.core.note import LogHead, SigningKey
from aegis.persistence.database import Database
from aegis.tasks import timestamp as timestamp_module
from aegis.tasks.anchor import Anchored, Notary, Policy, anchor
from aegis.tasks.bucket import Bucket
from aegis.tasks.sinks import AnchorFile, open_sink, sinks
from aegis.tasks.timestamp import stamp

NAME = log_name(DEPLOYMENT)
KEY = SigningKey(name=NAME, private=Ed25519PrivateKey.from_private_bytes(bytes(32)))
NOTARY = Notary(key=KEY, trusted=[])
POLICY = Policy(interval=timedelta(hours=1), every=10)
AT = datetime.now(UTC).replace(microsecond=0)


def anchor_of(first: int, count: int) -> tuple[Anchor, LogHead]:
    root = frontier([entry("w", number) for number in range(first + count)]).root
    head = LogHead(origin=NAME, size=first + count, root=root, at=AT)
    entries = tuple(entry("w", number) for number in range(first, first + count))
    return Anchor(first=first, note=KEY.sign(head.text()), entries=entries), head


# --- S3 -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A store for all of this file; each test has a bucket of its own."""
    with store() as (address, _):
        yield address


@pytest.fixture
def client(endpoint: str) -> Iterator[Any]:
    made = boto3.client("s3", endpoint_url=endpoint)
    yield made
    made.close()


_numbers = iter(range(1_000_000))


@pytest.fixture
def bucket(client: Any, endpoint: str) -> Iterator[Bucket]:
    """A place in a versioned bucket with object lock."""
    name = f"bucket-{next(_numbers)}"
    client.create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    place = open_sink(f"s3://{name}/kept/here?endpoint={endpoint}&retention_days=30")
    assert isinstance(place, Bucket)
    yield place
    place._client.close()


def keys(client: Any, bucket: Bucket) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket.bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def test_what_is_added_to_a_bucket_is_read_back_in_its_order(client: Any, bucket: Bucket) -> None:
    assert bucket.last() is None
    assert list(bucket.anchors()) == []
    made = [anchor_of(0, 0), anchor_of(0, 3), anchor_of(3, 0), anchor_of(3, 0), anchor_of(3, 2)]
    for one, head in made:
        bucket.add(one, head)
        assert bucket.last() == one
    assert list(bucket.anchors()) == [one for one, _ in made]
    assert keys(client, bucket) == [f"kept/here/anchor-{number:012}.json" for number in range(1, 6)]
    assert [one.first for one in bucket.about("w")] == [0, 3]
    assert list(bucket.about("another")) == []


def test_a_bucket_is_anchored_to_as_a_file_is(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    file = AnchorFile(tmp_path / "anchors.jsonl")
    for number in range(3):
        add(database, f"w-{number}", 10)
        assert anchor(database, [bucket, file], NOTARY, POLICY) == Anchored(logged=10, written=2)
    again = Replay([KEY.verifier], NAME)
    assert [one for _, one in again.entries(bucket.anchors())] == logged(database)
    assert again.problems == []


def test_an_anchor_is_locked_until_its_retention_is_over(client: Any, bucket: Bucket) -> None:
    bucket.add(*anchor_of(0, 3))
    (key,) = keys(client, bucket)
    found = client.head_object(Bucket=bucket.bucket, Key=key)
    assert found["ObjectLockMode"] == "COMPLIANCE"
    assert found["ObjectLockRetainUntilDate"] == AT + timedelta(days=30)


def test_a_locked_anchor_cannot_be_deleted(client: Any, bucket: Bucket) -> None:
    """What this shows is that we ask for the lock in a way that a store understands.

    moto refuses to delete a locked version, also with BypassGovernanceRetention, as S3 does. It
    does not refuse to shorten a lock, nor does it look at whose credentials ask: that COMPLIANCE
    holds against the account's own root is S3's promise, and is not shown here.
    """
    bucket.add(*anchor_of(0, 3))
    (key,) = keys(client, bucket)
    version = client.head_object(Bucket=bucket.bucket, Key=key)["VersionId"]
    for options in ({}, {"BypassGovernanceRetention": True}):
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=bucket.bucket, Key=key, VersionId=version, **options)
    # A marker may be put over it, as over any object; the version is still there for whoever looks for it.
    client.delete_object(Bucket=bucket.bucket, Key=key)
    kept = client.get_object(Bucket=bucket.bucket, Key=key, VersionId=version)["Body"].read()
    assert Anchor.parse(kept) == anchor_of(0, 3)[0]


def test_without_a_retention_nothing_is_locked(client: Any, bucket: Bucket, endpoint: str) -> None:
    plain = Bucket.at(f"s3://{bucket.bucket}?endpoint={endpoint}")
    plain.add(*anchor_of(0, 3))
    assert keys(client, bucket) == ["anchor-000000000001.json"]
    assert "ObjectLockMode" not in client.head_object(Bucket=bucket.bucket, Key="anchor-000000000001.json")
    plain._client.close()


def test_two_that_write_the_same_number_write_it_once(
    client: Any, bucket: Bucket, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found the same last anchor; the store lets one of them follow it."""
    bucket.add(*anchor_of(0, 3))
    other = Bucket.at(f"s3://{bucket.bucket}/kept/here?endpoint={endpoint}")
    last = bucket.last()
    other.add(*anchor_of(3, 2))
    monkeypatch.setattr(bucket, "last", lambda: last)
    with pytest.raises(SinkUnavailable, match="PreconditionFailed"):
        bucket.add(*anchor_of(3, 4))
    monkeypatch.undo()
    assert [one.end for one in other.anchors()] == [3, 5]
    other._client.close()


@pytest.mark.parametrize("first", [0, 2, 4])
def test_an_anchor_that_does_not_follow_the_last_one_is_not_written(client: Any, bucket: Bucket, first: int) -> None:
    bucket.add(*anchor_of(0, 3))
    with pytest.raises(SinkUnavailable, match="another process wrote there in the meantime"):
        bucket.add(*anchor_of(first, 2))
    assert len(keys(client, bucket)) == 1


@pytest.mark.parametrize("kind", ["bucket", "file"])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_the_first_since_a_moment_is_found(bucket: Bucket, tmp_path: Path, kind: str, count: int) -> None:
    """Also beside a line that a crash cut off."""
    place = bucket if kind == "bucket" else AnchorFile(tmp_path / "anchors.jsonl")
    ages = [timedelta(minutes=number) for number in range(count)]
    for number, age in enumerate(ages):
        made, head = anchor_of(number * 2, 2)
        head = replace(head, at=AT + age)
        place.add(replace(made, note=KEY.sign(head.text())), head)
        if isinstance(place, AnchorFile) and number == count // 2:
            with place.path.open("ab") as file:
                file.write(b'{"entries":[["w",')
    for number, age in enumerate(ages):
        for moment in (AT + age, AT + age - timedelta(seconds=1)):
            found = place.since(moment)
            assert found is not None
            assert found.first == number * 2
    assert place.since(AT + timedelta(minutes=count)) is None


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 100])
def test_the_newest_is_found_among_any_number(client: Any, bucket: Bucket, count: int) -> None:
    body = anchor_of(0, 0)[0].line()
    for number in range(1, count + 1):
        client.put_object(Bucket=bucket.bucket, Key=f"kept/here/anchor-{number:012}.json", Body=body)
        if number == count // 2:
            assert bucket._newest() == number
    assert bucket._newest() == count
    fresh = Bucket(bucket.bucket, bucket.prefix, bucket.endpoint, None)
    assert fresh._newest() == count
    fresh._client.close()


def test_more_than_one_page_of_anchors_is_read_and_the_newest_found_without(client: Any, bucket: Bucket) -> None:
    """A store lists a thousand at once."""
    for number in range(1, 1101):
        made, _ = anchor_of(number - 1, 1)
        client.put_object(Bucket=bucket.bucket, Key=f"kept/here/anchor-{number:012}.json", Body=made.line())
    asked: list[str] = []
    bucket._client.meta.events.register("before-call.s3", lambda model, **_: asked.append(model.name))
    last = bucket.last()
    assert last is not None
    assert last.first == 1099
    assert asked.count("GetObject") == 1
    assert len(asked) < 30
    asked.clear()
    bucket.add(*anchor_of(1100, 1))
    assert asked == ["ListObjectVersions", "ListObjectVersions", "GetObject", "PutObject"], (
        "what it has seen it does not look for again"
    )
    assert [one.first for one in bucket.anchors()] == list(range(1101))
    assert asked.count("ListObjectVersions") == 4


def test_other_things_below_the_same_prefix_are_left_alone(client: Any, bucket: Bucket) -> None:
    for name in (
        "kept/here/",
        "kept/here/README",
        "kept/here/anchors",
        "kept/here/zzz",
        "kept/hereafter/anchor-9.json",
    ):
        client.put_object(Bucket=bucket.bucket, Key=name, Body=b"something else")
    assert bucket.last() is None
    bucket.add(*anchor_of(0, 3))
    last = bucket.last()
    assert last is not None
    assert last.end == 3
    assert len(list(bucket.anchors())) == 1


@pytest.mark.parametrize("body", [b"rubbish", b'{"format":"aegis-anchor/v2"}'])
def test_an_object_that_is_no_anchor_is_not_passed_over(client: Any, bucket: Bucket, body: bytes) -> None:
    client.put_object(Bucket=bucket.bucket, Key="kept/here/anchor-000000000001.json", Body=body)
    for look in (bucket.last, lambda: list(bucket.anchors())):
        with pytest.raises(SinkUnavailable, match=r"anchor-000000000001\.json: it is not"):
            look()


# --- what is put over an anchor ---------------------------------------------------------------


def hide(client: Any, bucket: Bucket, number: int, how: str) -> str:
    """Do what a lock does not keep anybody from who may write to the bucket; return the anchor's name."""
    name = f"kept/here/anchor-{number:012}.json"
    if "marker" in how:
        client.delete_object(Bucket=bucket.bucket, Key=name)
    if "version" in how:
        older, _ = anchor_of(0, 1)
        client.put_object(Bucket=bucket.bucket, Key=name, Body=older.line())
    return name


COVERED = {
    "marker": "1 versions and 1 delete markers",
    "version": "2 versions and 0 delete markers",
    "marker, then version": "2 versions and 1 delete markers",
}


@pytest.mark.parametrize("how", COVERED)
@pytest.mark.parametrize("hidden", [[1], [3], [2, 3], [1, 2, 3]])
def test_what_is_put_over_an_anchor_hides_nothing_and_is_told(
    client: Any, bucket: Bucket, how: str, hidden: list[int]
) -> None:
    """The oldest version is the one that was locked."""
    made = [anchor_of(number * 2, 2) for number in range(3)]
    for one, head in made:
        bucket.add(one, head)
    assert list(bucket.covered()) == []
    names = [hide(client, bucket, number, how) for number in hidden]
    fresh = Bucket(bucket.bucket, bucket.prefix, bucket.endpoint, bucket.retention)
    for place in (bucket, fresh):
        assert place.last() == made[-1][0]
        assert list(place.anchors()) == [one for one, _ in made]
        assert place.since(AT) == made[0][0]
        assert list(place.covered()) == [f"{name}: {COVERED[how]}" for name in names]
    fresh.add(*anchor_of(6, 1))
    assert [one.first for one in bucket.anchors()] == [0, 2, 4, 6]
    fresh._client.close()


def test_an_anchor_of_which_no_version_is_left_is_told(client: Any, bucket: Bucket, endpoint: str) -> None:
    """Where nothing is locked, a version can be taken away for good; a marker may be left of it."""
    plain = Bucket.at(f"s3://{bucket.bucket}/kept/here?endpoint={endpoint}")
    for number in range(2):
        plain.add(*anchor_of(number * 2, 2))
    name = "kept/here/anchor-000000000002.json"
    version = client.head_object(Bucket=bucket.bucket, Key=name)["VersionId"]
    client.delete_object(Bucket=bucket.bucket, Key=name)
    client.delete_object(Bucket=bucket.bucket, Key=name, VersionId=version)
    last = plain.last()
    assert last is not None
    assert last.first == 0
    assert [one.first for one in plain.anchors()] == [0]
    assert list(plain.covered()) == [f"{name}: 0 versions and 1 delete markers"]
    plain._client.close()


def test_more_versions_than_a_store_lists_at_once_hide_nothing(client: Any, bucket: Bucket) -> None:
    for number in range(3):
        bucket.add(*anchor_of(number * 2, 2))
    name = hide(client, bucket, 2, "version")
    for _ in range(12):
        client.put_object(Bucket=bucket.bucket, Key=name, Body=b"rubbish")
    listed = bucket._versions
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bucket, "_versions", lambda prefix, **options: listed(prefix, **options | {"MaxKeys": 5}))
        fresh = Bucket(bucket.bucket, bucket.prefix, bucket.endpoint, None)
        patched.setattr(fresh, "_versions", bucket._versions)
        last = fresh.last()
        assert last is not None
        assert last.first == 4
        assert [one.first for one in fresh.anchors()] == [0, 2, 4]
        assert list(fresh.covered()) == [f"{name}: 14 versions and 0 delete markers"]


def test_a_bucket_that_keeps_no_versions_is_read_as_well(client: Any, endpoint: str) -> None:
    client.create_bucket(Bucket="unversioned")
    plain = Bucket.at(f"s3://unversioned?endpoint={endpoint}")
    for number in range(3):
        plain.add(*anchor_of(number * 2, 2))
    assert [one.first for one in plain.anchors()] == [0, 2, 4]
    assert plain.last() == anchor_of(4, 2)[0]
    assert list(plain.covered()) == []
    plain._client.close()


# --- a store that is away ---------------------------------------------------------------------


def assert_away(bucket: Bucket, reason: str, *, within: float = 45) -> None:
    """Everything that is asked of it says so, and none of it takes for ever."""
    began = time.monotonic()
    for look in (bucket.last, lambda: bucket.add(*anchor_of(0, 3)), lambda: list(bucket.anchors())):
        with pytest.raises(SinkUnavailable, match=reason) as away:
            look()
        assert len(str(away.value).splitlines()) == 1
        assert bucket.name in str(away.value)
    assert time.monotonic() - began < within


def test_a_store_that_is_gone_is_said_to_be(database: Database, tmp_path: Path) -> None:
    with store() as (address, process):
        admin = boto3.client("s3", endpoint_url=address)
        admin.create_bucket(Bucket="bucket")
        admin.close()
        bucket = Bucket.at(f"s3://bucket?endpoint={address}")
        bucket.add(*anchor_of(0, 3))
        process.kill()
        process.wait()
        assert_away(bucket, "Could not connect|Connection was closed")
        # It does not keep the others from theirs.
        file = AnchorFile(tmp_path / "anchors.jsonl")
        add(database, "w", 10)
        assert anchor(database, [bucket, file], NOTARY, POLICY) == Anchored(logged=10, written=1, behind=(bucket.name,))
        bucket._client.close()


def test_a_bucket_that_is_not_there_is_said_to_be(endpoint: str) -> None:
    bucket = Bucket.at(f"s3://no-such-bucket?endpoint={endpoint}")
    assert_away(bucket, "NoSuchBucket")
    bucket._client.close()


def test_a_store_that_breaks_off_while_it_is_read_is_said_to_be_away(bucket: Bucket) -> None:
    bucket.add(*anchor_of(0, 3))

    body = SimpleNamespace(read=_raise_incomplete)
    client = SimpleNamespace(
        list_object_versions=bucket._client.list_object_versions, get_object=lambda **_: {"Body": body}
    )
    cut_off = Bucket(bucket.bucket, bucket.prefix, bucket.endpoint, None)
    cut_off.__dict__["_client"] = client
    with pytest.raises(SinkUnavailable, match="0 read, but total bytes expected is 1"):
        cut_off.last()


def _raise_incomplete() -> bytes:
    from botocore.exceptions import IncompleteReadError  # noqa: PLC0415 - beside what it stands for

    raise IncompleteReadError(actual_bytes=0, expected_bytes=1)


# --- what names a place -------------------------------------------------------------------------


def test_a_place_in_a_bucket_is_read_from_its_address() -> None:
    found = Bucket.at("s3://bucket/a/b/?endpoint=https://s3.example:9000&retention_days=3650")
    assert (found.bucket, found.prefix, found.endpoint) == ("bucket", "a/b/", "https://s3.example:9000")
    assert found.retention == timedelta(days=3650)
    assert found.name == "s3://bucket/a/b/"
    plain = Bucket.at("s3://bucket")
    assert (plain.prefix, plain.endpoint, plain.retention, plain.name) == ("", None, None, "s3://bucket/")


@pytest.mark.parametrize(
    "place",
    [
        "s3://",
        "s3:///prefix",
        "s3://[",
        "s3://b?retention=30",
        "s3://b?retention_days=",
        "s3://b?retention_days=0",
        "s3://b?retention_days=-1",
        "s3://b?retention_days=1.5",
        "s3://b?retention_days=²",
        "s3://b?retention_days=999999999",
        "s3://b?endpoint=",
        "s3://b?endpoint=s3.example",
        "s3://b?endpoint=file:///etc",
        "s3://b?endpoint",
    ],
)
def test_an_address_that_names_no_place_in_a_bucket_is_refused(place: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_sink(place)
    assert refused.value.source == f"AEGIS_ANCHORS={place}"
    assert "retention_days=3650" in refused.value.remedy


def test_the_settings_name_the_places(tmp_path: Path) -> None:
    file, bucket = sinks(read({"AEGIS_ANCHORS": f"{tmp_path}/a.jsonl,s3://b/p"}))
    assert (file.name, bucket.name) == (f"{tmp_path}/a.jsonl", "s3://b/p/")
    assert [one.name for one in sinks(read({"AEGIS_HOME": "/srv/aegis"}))] == ["/srv/aegis/anchors/anchors.jsonl"]
    assert sinks(read({"AEGIS_ANCHORS": "none"})) == []


# --- trusted time -------------------------------------------------------------------------------

with_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to be an authority")
NOTE = anchor_of(0, 3)[0].note


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def verifies(authority: Authority, token: bytes, data: bytes) -> bool:
    """Whether the library that we ask with finds it, too."""
    verifier = VerifierBuilder().add_root_certificate(authority.root).tsa_certificate(authority.certificate).build()
    try:
        return verifier.verify_message(decode_timestamp_response(token), data)
    except VerificationError:
        return False


@with_openssl
def test_a_token_is_one_that_others_can_verify(authority: Authority) -> None:
    with web(lambda handler, query: send(handler, authority.reply(query))) as url:
        ask = stamp(url)
        assert ask is not None
        encoded = ask(NOTE)
    assert encoded is not None
    token = base64.b64decode(encoded, validate=True)
    for data, valid in ((NOTE, True), (NOTE + "x", False)):
        assert authority.verifies(token, data.encode()) is valid
        assert verifies(authority, token, data.encode()) is valid


@with_openssl
def test_a_token_is_written_with_the_anchor_that_it_is_of(
    database: Database, authority: Authority, tmp_path: Path
) -> None:
    file = AnchorFile(tmp_path / "anchors.jsonl")
    with web(lambda handler, query: send(handler, authority.reply(query))) as url:
        notary = Notary(key=KEY, trusted=[], stamp=stamp(url))
        assert anchor(database, [file], notary, POLICY).written == 1
    last = file.last()
    assert last is not None
    assert last.timestamp is not None
    assert authority.verifies(base64.b64decode(last.timestamp), last.note.encode())


def assert_unstamped(url: str, caplog: pytest.LogCaptureFixture, *, within: float = 15) -> None:
    """There is no token and a warning, and nothing is raised."""
    began = time.monotonic()
    ask = stamp(url)
    assert ask is not None
    caplog.clear()
    assert ask(NOTE) is None
    assert time.monotonic() - began < within
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no timestamp" in caplog.text


@with_openssl
def test_an_authority_that_rejects_leaves_the_anchor_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    strict = Authority(tmp_path, digests="sha384")
    with web(lambda handler, query: send(handler, strict.reply(query))) as url:
        assert_unstamped(url, caplog)
    assert "status 2" in caplog.text


@with_openssl
def test_a_token_over_something_else_is_none(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    """An authority, or whoever stands in between, that answers with an old one."""
    kept: list[bytes] = []

    def answer(handler: Any, query: bytes) -> None:
        kept.append(authority.reply(query))
        send(handler, kept[0])

    with web(answer) as url:
        ask = stamp(url)
        assert ask is not None
        assert ask(NOTE + "before") is not None
        assert_unstamped(url, caplog)
        assert "its token is over something else" in caplog.text
        kept.clear()
        assert ask(NOTE) is not None
        assert ask(NOTE) is None, "the same note, and yet not the answer to this query"


RUBBISH: dict[str, Callable[[Any, bytes], None]] = {
    "nothing": lambda handler, _: send(handler, b""),
    "a page": lambda handler, _: send(handler, b"<html>" * 1000),
    "an error": lambda handler, _: send(handler, b"", status=500),
    "not found": lambda handler, _: send(handler, b"gone", status=404),
    "the query": send,
    "more than there may be": lambda handler, _: send(handler, b"x" * 2_000_000),
    "less than it says": lambda handler, _: _say(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx"),
    "no http": lambda handler, _: _say(handler, b"SSH-2.0-OpenSSH\r\n"),
    "half a line": lambda handler, _: _say(handler, b"HTTP/1.1 2"),
    "bad headers": lambda handler, _: _say(handler, b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500 + b"\r\n"),
    "a long header": lambda handler, _: _say(handler, b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n"),
    "bad chunks": lambda handler, _: _say(handler, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    "elsewhere": lambda handler, _: _say(handler, b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"),
    "hung up": lambda handler, _: handler.connection.close(),
}


def _say(handler: Any, raw: bytes) -> None:
    handler.wfile.write(raw)
    handler.close_connection = True


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH)
def test_an_authority_that_answers_rubbish_leaves_the_anchor_without(
    answer: Callable[[Any, bytes], None], caplog: pytest.LogCaptureFixture
) -> None:
    with web(answer) as url:
        assert_unstamped(url, caplog)


def test_an_authority_that_is_away_leaves_the_anchor_without(
    database: Database, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with web(RUBBISH["nothing"]) as url:
        pass  # it was there a moment ago
    assert_unstamped(url, caplog)
    assert_unstamped("http://localhost.invalid/stamp", caplog)
    file = AnchorFile(tmp_path / "anchors.jsonl")
    assert anchor(database, [file], Notary(key=KEY, trusted=[], stamp=stamp(url)), POLICY) == Anchored(written=1)
    last = file.last()
    assert last is not None
    assert last.timestamp is None


@pytest.mark.parametrize("kind", ["silent", "dripping"])
def test_an_authority_that_takes_its_time_is_not_waited_for(
    kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timestamp_module, "_PATIENCE", 0.5)
    over = threading.Event()

    def answer(handler: Any, _: bytes) -> None:
        if kind == "dripping":
            _say(handler, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not over.wait(0.05):
            if kind == "dripping":
                handler.wfile.write(b"x")

    with web(answer) as url:
        try:
            assert_unstamped(url, caplog, within=5)
        finally:
            over.set()


@with_openssl
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_changed_byte_of_an_answer_does_worse_than_leave_the_anchor_without(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Where it is still taken, it does not verify, or says the same."""
    with monkeypatch.context() as patched:
        if not _answers:
            _answers.append(_answer(authority, patched))
        query, whole = _answers[0]
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
        cut = bytes(changed[: data.draw(st.integers(len(whole) - 3, len(whole)))])
        patched.setattr(timestamp_module, "_post", lambda *_: cut)
        patched.setattr("rfc3161_client.TimestampRequestBuilder.build", lambda _: query)
        ask = stamp("http://127.0.0.1/")
        assert ask is not None
        ask(NOTE)


_answers: list[tuple[Any, bytes]] = []


def _answer(authority: Authority, patched: pytest.MonkeyPatch) -> tuple[Any, bytes]:
    from rfc3161_client import TimestampRequestBuilder  # noqa: PLC0415 - before it is patched

    query = TimestampRequestBuilder().data(NOTE.encode()).build()
    return query, authority.reply(query.as_bytes())


def test_without_an_address_nobody_is_asked() -> None:
    assert stamp("") is None


def test_the_library_is_only_needed_where_it_is_used() -> None:
    """Neither it nor boto3 is loaded by whoever has no such place."""
    program = (
        "import sys; from aegis.tasks import anchor, sinks, timestamp; sinks.open_sink('s3://b/p');"
        " timestamp.stamp(''); assert not {'boto3', 'botocore', 'rfc3161_client'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("missing", ["boto3", "rfc3161_client"])
def test_what_is_not_installed_is_said_to_be(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {missing, "botocore"}]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigurationError, match="is not installed; pip install 'aegis-workflows"):
        Bucket.at("s3://b/p").last() if missing == "boto3" else stamp("https://tsa.example")
    if missing == "rfc3161_client":
        with pytest.raises(ConfigurationError, match=r"AEGIS_TIMESTAMP_ROOTS=.* is not installed; pip install"):
            timestamp_module.judge_by(Path(__file__))
