"""Somebody else's server, with a receiver of each kind: ``python -m webhooks.receiver [PORT]``.

``POST /repair`` brings the owner's mailbox back.
"""

from __future__ import annotations

import sys
from collections import Counter
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from typing_extensions import override

# How often each of them refuses a webhook before it takes it.
REFUSES = {"flaky": 2, "busy": 4}


class Receiver(BaseHTTPRequestHandler):
    """Each receiver answers as it does, by how often a webhook has come."""

    times: ClassVar[Counter[str]] = Counter()
    broken: ClassVar[set[str]] = {"owner"}

    def do_POST(self) -> None:
        """Take a webhook."""
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        name, key = self.path.strip("/"), self.headers["Idempotency-Key"]
        if name == "repair":
            self.broken.clear()
        status = self.answer(name, str(key))
        self.send_response(status)
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, name: str, key: str) -> HTTPStatus:
        """Say what becomes of it."""
        self.times[key] += 1
        if name == "gone":
            return HTTPStatus.GONE
        if name in self.broken or (name == "flaky" and self.times[key] <= REFUSES[name]):
            return HTTPStatus.SERVICE_UNAVAILABLE
        if name == "busy" and self.times[key] <= REFUSES[name]:
            return HTTPStatus.TOO_MANY_REQUESTS
        return HTTPStatus.OK

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def main() -> None:
    """Serve on loopback."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8001
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
