"""How fast histories are verified, beside the plain hashlib limit on the same bytes; and memory by their number.

    python benchmarks/verification.py                       # 10^4, 10^5 and 10^6 transitions
    python benchmarks/verification.py --sizes 10000,100000

The histories are real ones: workflows of 20 transitions of about 1 KB, tied and logged as the engine does,
copied into a private PostgreSQL. Verified are stored bytes: chains, checkpoints, payloads, the whole log
beside a file of anchors. The limit is hashlib alone over the bytes that have to be hashed, already in
memory. Machines are shared: take the ratio, not the rates.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import psycopg2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from aegis.core.chain import Link, Step, genesis, link, timestamp
from aegis.core.finding import Code
from aegis.core.note import SigningKey
from aegis.core.verify import Audit, Evidence, StoredCheckpoint, StoredTransition
from aegis.persistence.auditor import Auditor, Sources
from aegis.persistence.database import Database
from aegis.tasks.anchor import Notary, Policy, anchor
from aegis.tasks.sinks import AnchorFile
from servers import servers

LENGTH = 20
DEPLOYMENT = "aegis.example/bench"
STATE = {"title": "x" * 700, "count": 17, "tags": ["a", "b", "c"], "notes": {"ä": "€" * 20}}
DEFINITION = "sha256:" + "ab" * 32
ROUNDS = 3
MEBIBYTE = 2**20


def main() -> None:
    """Measure and print."""
    options = _options()
    limit = _limit()
    print(f"the limit: hashlib alone, {limit:,.0f} transitions/s ({1e6 / limit:.1f} us each)")
    print(f"rows in memory, chains alone: {_in_memory():,.0f} transitions/s of one core")
    print("transitions   seconds  transitions/s  CPU us each  of the limit  peak MiB")
    with servers() as given, tempfile.TemporaryDirectory() as folder:
        database = Database(given.database_url.replace("postgresql://", "postgresql+psycopg2://"))
        with database.transaction() as session:
            session.execute(text("UPDATE aegis_deployment SET name = :name"), {"name": DEPLOYMENT})
        key = SigningKey(name="bench", private=Ed25519PrivateKey.generate())
        sink = AnchorFile(Path(folder) / "anchors.jsonl")
        sources = Sources(sinks=[sink], trusted=[key.verifier])
        written = 0
        for size in options.sizes:
            _write(given.database_url, written // LENGTH, size // LENGTH)
            written = size
            anchor(database, [sink], Notary(key=key, trusted=[]), Policy(interval=timedelta(minutes=1), every=1000))
            rounds = [_verify(database, sources) for _ in range(ROUNDS)]
            seconds, cpu = (statistics.median(figure) for figure in zip(*rounds, strict=True))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBIBYTE
            rate, each = size / seconds, cpu / size * 1e6
            print(f"{size:>11,} {seconds:>9.2f} {rate:>14,.0f} {each:>12.1f} {1e6 / each / limit:>13.0%} {peak:>9.0f}")
        database.close()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = [10_000, 100_000, 1_000_000]
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")], default=sizes)
    return parser.parse_args()


def _verify(database: Database, sources: Sources) -> tuple[float, float]:
    gc.collect()
    began, cpu = time.perf_counter(), time.process_time()
    report = Auditor(database, sources).everything()
    spent = time.process_time() - cpu
    if not report.valid:
        raise SystemExit(f"not valid: {report.findings[:3] or report.problems}")
    return time.perf_counter() - began, spent


def _limit() -> float:
    """Return how many transitions a second hashlib can hash, with nothing else done to them."""
    links = list(_chain("limit"))
    parts = [
        (made.checkpoint_salt + made.checkpoint, made.body, made.hash, *filter(None, [made.payload])) for made in links
    ]
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 1:
        for part in parts:
            for piece in part:
                hashlib.sha256(piece).digest()
        count += len(parts)
    return count / (time.perf_counter() - began)


def _in_memory() -> float:
    """Return how many transitions a second are verified once their rows are there, with nothing read or compared."""
    evidence = Evidence(deployment=DEPLOYMENT)
    rows = [(_stored(made), _own_checkpoint(made)) for made in _chain("limit")]
    began, count = time.process_time(), 0
    while time.process_time() - began < 1:
        audit = Audit("limit", evidence)
        for transition, checkpoint in rows:
            audit.transition(transition, checkpoint, None)
        if audit.close(None, ())[0].code is not Code.MISSING_WORKFLOW:  # there is no row: that alone is wrong
            raise SystemExit("not valid")
        count += len(rows)
    return count / (time.process_time() - began)


def _stored(made: Link) -> StoredTransition:
    told = made.envelope
    states = (told.event, told.from_state, told.to_state, told.actor, told.attempt, timestamp(told.at))
    rest = (made.body, made.hash, None, None, made.payload, made.payload_salt)
    return StoredTransition(told.workflow_id, told.seq, *states, *rest)


def _own_checkpoint(made: Link) -> StoredCheckpoint:
    told = made.envelope
    return StoredCheckpoint(told.workflow_id, told.seq, 0, made.checkpoint, made.checkpoint_salt, told.checkpoint)


# --- histories -----------------------------------------------------------------------------


def _chain(workflow_id: str) -> Iterator[Link]:
    prev, at = genesis(DEPLOYMENT, workflow_id), datetime.now(UTC) - timedelta(minutes=5)
    for seq in range(LENGTH):
        step = Step(
            workflow_id=workflow_id,
            seq=seq,
            type="bench.Steps",
            definition=DEFINITION,
            event="created" if seq == 0 else "advance",
            from_state=None if seq == 0 else "open",
            to_state="open",
            actor="worker:bench",
            attempt=1,
            at=at + timedelta(milliseconds=seq),
            state=dict(STATE),
            payload={"data": {"yes": True}, "key": f"k{seq}", "sender": "user:ada"} if seq % 4 == 3 else None,
        )
        made = link(step, prev, salts=(b"s" * 32, b"p" * 32), max_bytes=2**18)
        prev = made.hash
        yield made


def _write(url: str, first: int, last: int) -> None:
    """Copy workflows in, as they would be after they were worked off."""
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        for start in range(first, last, 500):
            tables: dict[str, list[tuple[Any, ...]]] = {name: [] for name in COLUMNS}
            for number in range(start, min(start + 500, last)):
                _rows(tables, f"b-{number:09}")
            for name, rows in tables.items():
                lines = "".join("\t".join(map(_text, row)) + "\n" for row in rows)
                cursor.copy_expert(f"COPY {name} ({COLUMNS[name]}) FROM STDIN", BytesIO(lines.encode()))
    connection.close()
    with psycopg2.connect(url) as connection:
        connection.cursor().execute("ANALYZE")
    connection.close()


COLUMNS = {
    "aegis_workflow": (
        "id, type, version, definition, state, status, seq, head, accepts, moved_at, entered_at, checkpointed_at,"
        " created_at, updated_at"
    ),
    "aegis_transition": "workflow_id, seq, event, from_state, to_state, actor, attempt, at, envelope, hash",
    "aegis_checkpoint": "workflow_id, seq, number, kind, body, salt, commitment, at",
    "aegis_payload": "workflow_id, seq, body, salt",
}


def _rows(tables: dict[str, list[tuple[Any, ...]]], workflow_id: str) -> None:
    for made in _chain(workflow_id):
        told = made.envelope
        states = (told.from_state, told.to_state, told.actor, told.attempt, told.at)
        tables["aegis_transition"].append((workflow_id, told.seq, told.event, *states, made.body, made.hash))
        body = (made.checkpoint, made.checkpoint_salt, told.checkpoint, told.at)
        tables["aegis_checkpoint"].append((workflow_id, told.seq, 0, "transition", *body))
        if made.payload is not None:
            tables["aegis_payload"].append((workflow_id, told.seq, made.payload, made.payload_salt))
    at = (told.at,) * 5
    state = ("bench.Steps", 1, DEFINITION, "open", "completed", LENGTH - 1, made.hash, "[]")
    tables["aegis_workflow"].append((workflow_id, *state, *at))


def _text(value: object) -> str:
    if value is None:
        return r"\N"
    return r"\\x" + value.hex() if isinstance(value, bytes) else str(value)


if __name__ == "__main__":
    main()
