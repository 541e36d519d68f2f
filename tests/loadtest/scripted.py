"""An OpenAI-compatible server whose every token is known: `modes` says in which ways it answers.

The name of the model that is asked for is the mode. It writes HTTP byte by byte, because framing is
part of what is tested, and remembers for each request when it came and when each token was sent:
``GET /truth``. ``python -m tests.loadtest.scripted`` serves until it is ended; its first line is
the port. Times are those of ``time.perf_counter``, which all processes of a Linux machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from tests.loadtest.modes import MODES
from tests.loadtest.scripted_answer import Answer, Truth


@dataclass
class Script:
    """Delays in seconds and what is asked of clients.

    ``stall``: from so many seconds after the start, for so many, no token is sent. ``only``: one
    mode for whatever model is asked for. ``first_modes``: those of the first requests.
    ``jitter``: of each request's delays, the standard deviation of the logarithm of a factor.
    """

    first: float = 0.02
    gap: float = 0.004
    key: str | None = None
    stall: tuple[float, float] | None = None
    only: str | None = None
    first_modes: tuple[str, ...] = ()
    models: tuple[str, ...] = tuple(MODES)
    vllm: bool = False
    jitter: float = 0.0


class _Reader(asyncio.StreamReader):
    """Knows when its last bytes came: before whatever else this server has to do."""

    arrived = 0.0

    def feed_data(self, data: bytes) -> None:
        self.arrived = time.perf_counter()
        super().feed_data(data)


class ScriptedServer:
    """Serves in a thread of its own between `start` and `stop`."""

    def __init__(self, script: Script | None = None, certificate: str | None = None) -> None:
        self.script = script or Script()
        self.truths: list[Truth] = []
        self.connections = 0
        self.port = 0
        self._certificate = certificate
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.began = time.perf_counter()
        self._rng = random.Random()

    @property
    def url(self) -> str:
        scheme = "https" if self._certificate else "http"
        return f"{scheme}://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What was asked, in order of arrival."""
        return [{**truth.body, "path": truth.path} for truth in self.truths]

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._listen())
        self._ready.set()
        self._loop.run_forever()
        self._server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self) -> None:
        context = None
        if self._certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self._certificate)
        loop = self._loop
        self._server = await loop.create_server(
            lambda: asyncio.StreamReaderProtocol(_Reader(loop=loop), self._connected, loop=loop),
            *("127.0.0.1", 0),
            ssl=context,
            backlog=1024,
        )
        self.port = self._server.sockets[0].getsockname()[1]
        self.began = time.perf_counter()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while await self._one(reader, writer, number):
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # a client that goes away in the middle is part of the tests, and so is a hang
        finally:
            with suppress(OSError, RuntimeError):
                writer.close()

    async def _one(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:]) if k}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        assert isinstance(reader, _Reader)
        received = reader.arrived
        method, path, _ = head[0].split(" ")
        authorization = headers.get("authorization")
        if self.script.key and authorization != f"Bearer {self.script.key}":
            return self._plain(writer, 401, {"error": {"message": "who are you?"}})
        if method == "GET":
            return self._get(writer, path)
        fields = json.loads(body)
        name = self._mode_of(str(fields["model"]))
        truth = Truth(name, connection, received, fields, path, authorization)
        self.truths.append(truth)
        factor = self._rng.lognormvariate(0, self.script.jitter)
        delays = (factor * self.script.first, factor * self.script.gap)
        return await Answer(writer, MODES[name], truth, delays, self._until).run()

    def _mode_of(self, model: str) -> str:
        number = len(self.truths)
        if number < len(self.script.first_modes):
            return self.script.first_modes[number]
        return self.script.only or model

    def _get(self, writer: asyncio.StreamWriter, path: str) -> bool:
        if path.endswith("/v1/models"):
            owner = "vllm" if self.script.vllm else "scripted"
            cards = [{"id": m, "owned_by": owner, "root": "/nowhere"} for m in self.script.models]
            return self._plain(writer, 200, {"data": cards})
        if path == "/version":
            return self._plain(writer, 200, {"version": "9.9"})
        if path == "/metrics" and self.script.vllm:
            return self._send(writer, 200, self._metrics().encode(), "text/plain")
        if path == "/truth":
            return self._plain(writer, 200, [asdict(truth) for truth in self.truths])
        return self._plain(writer, 404, {"error": "not found"})

    def _metrics(self) -> str:
        """As vLLM says it: asked requests, twice as many tokens looked for as found."""
        asked = float(len(self.truths))
        labels = '{engine="0",model_name="a \\"b\\""}'
        values = {
            "num_requests_running": min(asked, 1.0),
            "num_requests_waiting": 0.0,
            "kv_cache_usage_perc": 0.25,
            "num_preemptions_total": asked,
            "prefix_cache_queries_total": 20 * asked,
            "prefix_cache_hits_total": 10 * asked,
            "request_success_total": asked,
        }
        lines = (f"vllm:{name}{labels} {value}" for name, value in values.items())
        return "\n".join(["# HELP python_gc x", "python_gc 1.0", *lines, ""])

    def _plain(self, writer: asyncio.StreamWriter, status: int, answer: object) -> bool:
        return self._send(writer, status, json.dumps(answer).encode(), "application/json")

    def _send(self, writer: asyncio.StreamWriter, status: int, body: bytes, kind: str) -> bool:
        head = f"HTTP/1.1 {status} Word\r\nContent-Type: {kind}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return True

    async def _until(self, due: float) -> None:
        """Wait for a time, and for the end of a stall that it falls into."""
        if self.script.stall:
            begin = self.began + self.script.stall[0]
            if begin <= due < begin + self.script.stall[1]:
                due = begin + self.script.stall[1]
        left = due - time.perf_counter()
        if left > 0:
            await asyncio.sleep(left)


@contextmanager
def scripted(
    script: Script | None = None, certificate: str | None = None
) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script, certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def main() -> None:
    """Serve in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=float, default=0.2)
    parser.add_argument("--gap", type=float, default=0.02)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--only")
    options = parser.parse_args()
    script = Script(first=options.first, gap=options.gap, jitter=options.jitter, only=options.only)
    server = ScriptedServer(script)
    server.start()
    print(server.port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
