"""A small web app around the workflow, with nothing but the standard library's WSGI server.

aegis up                                  # in one terminal, with AEGIS_WORKFLOWS=proposal.workflow
python -m proposal.app                    # in another, from the folder examples/
curl -d '{"title": "Plant trees"}'        http://127.0.0.1:8000/proposals/p-1
curl -d '{"yes": true, "comment": "ok"}'  http://127.0.0.1:8000/proposals/p-1/decision
curl                                      http://127.0.0.1:8000/proposals/p-1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import make_server

from aegis import AegisError
from aegis.sync import DurableWorkflowEngine
from proposal.workflow import Decision, ProposalWorkflow

Answer = tuple[str, dict[str, Any]]


class Proposals:
    """The app: each request is one call of the engine."""

    def __init__(self, engine: DurableWorkflowEngine) -> None:
        self.engine = engine

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request (WSGI, PEP 3333)."""
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else b"{}"
        try:
            status, answer = self.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"], json.loads(body))
        except (AegisError, ValueError) as error:
            status, answer = "400 Bad Request", {"error": str(error)}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode() + b"\n"]

    def answer(self, method: str, path: str, body: Any) -> Answer:
        """Do what a request asks for."""
        match method, path.strip("/").split("/"):
            case "POST", ["proposals", name]:
                # The same id and title again is the same proposal: a client may repeat the request.
                self.engine.start(ProposalWorkflow.from_dict(body), id=name)
                return "202 Accepted", {"id": name}
            case "POST", ["proposals", name, "decision"]:
                self.engine.send(name, "decide", Decision.model_validate(body), key="decision")
                return "202 Accepted", {"id": name}
            case "GET", ["proposals", name]:
                return "200 OK", {"id": name, **self.engine.get(name).to_dict()}
        return "404 Not Found", {"error": f"there is no {path}"}


def main() -> None:
    """Serve on loopback; a port may be given."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    with make_server("127.0.0.1", port, Proposals(DurableWorkflowEngine(actor="app:proposals"))) as server:
        print(f"http://127.0.0.1:{server.server_port}/proposals/ID", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
