"""A completions server that knows the answers, notes what it was asked and may leave things out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

Change = Callable[[dict[str, Any]], Any]


@dataclass
class Answers:
    """What the server says: log-probability of a token is minus its id, greedy if even.

    ``change`` alters a whole reply, the last thing that happens to it; what is bytes is sent as
    they are.
    """

    names: Callable[[int], str] = "token_id:{}".format
    length: int | None = 512
    root: str = "/nowhere"
    status: int = 200
    change: Change = lambda reply: reply
    says: list[dict[str, Any]] = field(default_factory=list)  # messages of chats, in turn
    asked: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def models(self) -> dict[str, Any]:
        card = {"max_model_len": self.length, "root": self.root}
        return {"data": [{"id": "first", **card}, {"id": "second", **card}]}

    def status_of(self, body: dict[str, Any]) -> int:
        return self.status

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        if self.status != 200:
            return {"error": {"message": "too long\nby far", "code": 400}}
        if path.endswith("/chat/completions"):
            message = self.says[int(body["messages"][-1]["content"])]
            choice, read = {"message": message}, 11
        elif body.get("echo"):
            choice, read = {"logprobs": self._logprobs(body["prompt"])}, len(body["prompt"])
        else:
            choice, read = {"text": f" {len(body['prompt'])} words"}, len(body["prompt"])
        generated = 1 if body.get("echo") else 3
        usage = {"prompt_tokens": read, "completion_tokens": generated}
        choices = [{"index": 0, "finish_reason": "length", **choice}]
        return self.change({"choices": choices, "usage": usage})

    def _logprobs(self, ids: list[int]) -> dict[str, Any]:
        return {
            "tokens": [*map(self.names, ids), "whatever"],
            "token_logprobs": [None, *(-float(token) for token in ids[1:]), -1.0],
            "top_logprobs": [
                None,
                *({"a": -float(t), "b": -float(t) + t % 2} for t in ids[1:]),
                {"a": -1.0},
            ],
        }


class _Handler(BaseHTTPRequestHandler):
    answers: Answers

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._say(200, self.answers.models())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answers.asked.append(body)
        self.answers.paths.append(self.path)
        self.answers.keys.add(self.headers.get("Authorization"))
        status = self.answers.status_of(body)
        self._say(status, self.answers.reply(self.path, body))

    def _say(self, status: int, reply: Any) -> None:
        body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if body[:1] == b"<" else "application/json")
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # clients come in dozens at once


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """Serve the answers; yield the address."""
    handler = type("Handler", (_Handler,), {"answers": answers})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    """Make lm-eval's requests of their arguments, one item each."""
    return [SimpleNamespace(args=args, doc_id=number) for number, args in enumerate(arguments)]
