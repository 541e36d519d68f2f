"""An OpenAI-compatible endpoint with known delays; the one fake that these tests use."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Fault = Literal["http", "broken", "empty", "event", "garbage"]


@dataclass
class Behaviour:
    """How the fake answers: seconds to the first chunk and between chunks, and how many.

    ``faults`` maps the number of a request (from 0) to what goes wrong with it; key -1 is for all.
    """

    first: float = 0.15
    gap: float = 0.03
    chunks: int = 8
    tokens_per_chunk: int = 1
    faults: dict[int, Fault] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorization: set[str | None] = field(default_factory=set)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        answers = {
            "/v1/models": {
                "data": [{"id": "fake-model", "max_model_len": 512, "root": "/nowhere"}]
            },
            "/version": {"version": "9.9"},
        }
        answer = answers.get(self.path)
        self._json(200 if answer else 404, answer or {"error": "not found"})

    def do_POST(self) -> None:
        behaviour = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(behaviour.bodies)
            behaviour.bodies.append({**body, "path": self.path})
            behaviour.authorization.add(self.headers.get("Authorization"))
        fault = behaviour.faults.get(number, behaviour.faults.get(-1))
        if fault == "http":
            self._json(503, {"error": {"message": "overloaded"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self._stream(behaviour, fault, chat="chat" in self.path)

    def _stream(self, behaviour: Behaviour, fault: Fault | None, chat: bool) -> None:
        if chat:  # vLLM's first chunk has the role and no text: it is not the first token
            self._event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        time.sleep(behaviour.first)
        for index in range(0 if fault == "empty" else behaviour.chunks):
            if index:
                time.sleep(behaviour.gap)
            if index == 2 and fault == "broken":
                return
            if index == 2 and fault == "event":
                self._event({"error": {"message": "engine died", "code": 500}})
                return
            if index == 2 and fault == "garbage":
                self.wfile.write(b"data: {not json\n\n")
            text = f"w{index} "
            self._event({"choices": [{"delta": {"content": text}} if chat else {"text": text}]})
        tokens = behaviour.chunks * behaviour.tokens_per_chunk
        self._event({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": tokens}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()

    def _json(self, status: int, answer: dict[str, Any]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, behaviour: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        pass  # a client that goes away in the middle is part of the tests


@contextmanager
def fake_openai(behaviour: Behaviour | None = None) -> Iterator[FakeServer]:
    server = FakeServer(behaviour or Behaviour())
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
