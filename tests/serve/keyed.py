"""A server that guards /v1 with a key, as vLLM does, and answers completions without a stream."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a-key"
PRUNING = {"form": "map-only", "experts": 12, "experts_of": 32, "routing_map": "sha256:1"}
CARD = {"id": "m", "max_model_len": 512, "root": "/nowhere", "pruning": PRUNING}


@contextmanager
def keyed_server(*, tokens: int | None = 1, moved_to: str | None = None) -> Iterator[str]:
    """Serve until the block ends; its address.

    :param tokens: of an answer; None is an engine that died
    :param moved_to: where all requests are sent instead
    """

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if moved_to:
                self.send_response(302)
                self.send_header("Location", moved_to + self.path)
                self.end_headers()
                return
            answers: dict[str, Any] = {"/v1/models": {"data": [CARD]}, "/version": {"version": "9"}}
            self._say(answers[self.path])

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert asked["model"] == "m" and asked["max_tokens"] == 1
            self._say({"usage": {"completion_tokens": tokens}}, 500 if tokens is None else 200)

        def _say(self, answer: Any, status: int = 200) -> None:
            if self.path.startswith("/v1") and self.headers["Authorization"] != f"Bearer {KEY}":
                answer, status = {"error": "Unauthorized"}, 401
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
