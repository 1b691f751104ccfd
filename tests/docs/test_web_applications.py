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


def test_flask_calls_the_engine_that_blocks(run: Callable[[str], Any]) -> None:
    started, other, thanks, nobody, text, order = run(FLASK)
    assert started == [202, {"id": "f-1"}]
    assert other[0] == 400
    assert thanks == [202, {"id": "f-1"}]
    assert nobody[0] == 400
    assert text == "Hello, Ada! - Thanks!"
    assert order == "Greeting"
