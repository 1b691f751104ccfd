"""The applications of docs/how-to/web-applications.md, as they stand there, called over HTTP beside a real worker."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deployment import Deployment

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "docs" / "how-to" / "web-applications.md")

FASTAPI = """
import asyncio, json, httpx
from fastapi import FastAPI
import fastapi_app, fastapi_orders, orders

async def called(app: FastAPI, *calls):
    said = []
    async with fastapi_app.lifespan(app):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app, False), base_url="http://shop") as client:
            for method, path, body in calls:
                answer = await client.request(method, path, json=body)
                said.append([answer.status_code, answer.json() if answer.status_code < 500 else None])
            engine = app.state.engine
            for row in await engine.list():
                if row.inbox or row.state != "greeted":
                    await engine.wait_for_end(row.id, timeout=30)
            said.append(sorted([row.id, row.type] for row in await engine.list()))
    return said

orders.Base.metadata.create_all(orders.database)
print(json.dumps([
    asyncio.run(called(
        fastapi_app.app,
        ("POST", "/greetings/g-1", {"name": "Ada"}),
        ("POST", "/greetings/g-1", {"name": "Ada"}),
        ("POST", "/greetings/g-1", {"name": "Bob"}),
        ("POST", "/greetings/g-1/thanks", {"word": "Thanks", "message_id": "mail-7"}),
        ("GET", "/greetings/nobody", None),
    )),
    asyncio.run(called(
        fastapi_orders.app,
        ("POST", "/orders/7?name=Ada", None),
        ("POST", "/orders/7?name=Ada", None),
    )),
]))
"""

FLASK = """
import json, orders, flask_app
client = flask_app.app.test_client()
orders.Base.metadata.create_all(orders.database)
said = [
    client.post("/greetings/f-1", json={"name": "Ada"}),
    client.post("/greetings/f-1", json={"name": "Bob"}),
    client.post("/greetings/f-1/thanks", json={"word": "Thanks", "message_id": "mail-7"}),
    client.get("/greetings/nobody"),
]
from engine import engine
placed = orders.place("Grace")
print(json.dumps([[answer.status_code, answer.json] for answer in said] + [
    engine().wait("f-1", timeout=30).text, engine().describe(f"order-{placed}").type]))
"""


@pytest.fixture
def run(deploy: Callable[..., Deployment], tmp_path: Path) -> Callable[[str], Any]:
    """Run a program beside the page's modules, a worker and beat; return what it printed."""
    deployment = deploy(AEGIS_WORKFLOWS="greeting", PYTHONPATH=str(tmp_path))
    address = str(deployment.settings.database).replace("postgresql+psycopg2://", "")
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            named = re.match(r"# (\w+\.py)\n", block)
            if named and named[1] != "tasks.py":  # the page's own address is nobody's here
                (tmp_path / named[1]).write_text(block.replace("shop@localhost/shop", address))
    deployment.worker()
    deployment.beat()

    def make(program: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **deployment.environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert not done.returncode, done.stderr
        return json.loads(done.stdout)

    return make


def test_fastapi_awaits_the_engine_and_hands_its_session_over(run: Callable[[str], Any]) -> None:
    app, orders = run(FASTAPI)
    first, again, other, thanks, nobody, rows = app
    assert first == again == [202, {"id": "g-1"}]
    assert other[0] == 400
    assert '/name: "Ada" then, "Bob" now' in other[1]["error"]
    assert thanks == [202, {"id": "g-1"}]
    assert nobody[0] == 400
    assert rows == [["g-1", "Greeting"]]
    # The number is taken: the second order is refused by the shop's own table, and starts nothing.
    placed, taken, rows = orders
    assert placed == [202, {"id": "order-7"}]
    assert taken[0] == 500
    assert rows == [["g-1", "Greeting"], ["order-7", "Greeting"]]


def test_flask_calls_the_engine_that_blocks(run: Callable[[str], Any]) -> None:
    started, other, thanks, nobody, text, order = run(FLASK)
    assert started == [202, {"id": "f-1"}]
    assert other[0] == 400
    assert thanks == [202, {"id": "f-1"}]
    assert nobody[0] == 400
    assert text == "Hello, Ada! - Thanks!"
    assert order == "Greeting"
