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
import socket
import ssl
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.loadtest.modes import MODES, Mode


@dataclass
class Truth:
    """One request: when it had come, when each token went, and how many the server counts."""

    mode: str
    connection: int
    received: float
    body: dict[str, Any]
    path: str
    authorization: str | None
    sent: list[float] = field(default_factory=list)
    tokens: int = 0
    ended: float = 0.0


@dataclass
class Script:
    """Delays in seconds and what is asked of clients.

    ``stall``: from so many seconds after the start, for so many, no token is sent. ``only``: one
    mode for whatever model is asked for. ``first_modes``: those of the first requests.
    """

    first: float = 0.02
    gap: float = 0.004
    key: str | None = None
    stall: tuple[float, float] | None = None
    only: str | None = None
    first_modes: tuple[str, ...] = ()
    models: tuple[str, ...] = tuple(MODES)
    vllm: bool = False


class _Reply:
    """Writes one answer's head and events in the framing of its mode."""

    def __init__(self, writer: asyncio.StreamWriter, mode: Mode) -> None:
        self._writer = writer
        self._mode = mode
        self._held: list[bytes] = []
        self._gzip = zlib.compressobj(wbits=31) if mode.gzip else None

    def head(self) -> None:
        mode = self._mode
        version = "1.0" if mode.body == "http10" else "1.1"
        lines = [f"HTTP/{version} {mode.status} Word", f"Content-Type: {mode.content_type}"]
        if mode.body in {"close", "http10"}:
            lines.append("Connection: close")
        elif mode.body in {"chunked", "big"}:
            lines.append("Transfer-Encoding: chunked")
        if mode.gzip:
            lines.append("Content-Encoding: gzip")
        self._writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def event(self, data: dict[str, Any] | bytes) -> None:
        mode = self._mode
        text = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
        mark = b"data: " if mode.space else b"data:"
        await self.raw(mode.before + mark + text + mode.end * 2)

    async def raw(self, text: bytes) -> None:
        self._held.append(text)
        if len(self._held) >= self._mode.packet:
            await self.flush()

    async def flush(self) -> None:
        text, self._held = b"".join(self._held), []
        if not text:
            return
        if self._gzip:
            text = self._gzip.compress(text) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
        if self._mode.trickle:
            parts = [text[i : i + 1] for i in range(len(text))]
        elif self._mode.halves:
            parts = [text[: len(text) // 2], text[len(text) // 2 :]]
        else:
            parts = [text]
        for number, part in enumerate(parts):
            if number and not self._mode.trickle:
                await asyncio.sleep(0.001)
            self._body(part)
            if self._mode.trickle and number % 16 == 0:
                await asyncio.sleep(0)

    def _body(self, part: bytes) -> None:
        if self._mode.body == "chunked":
            self._writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        elif self._mode.body == "big":  # the length is told ahead, the bytes come as they are made
            self._big(part)
        else:
            self._writer.write(part)

    _left = 0

    def _big(self, part: bytes) -> None:
        while part:
            if not self._left:
                self._left = 1000
                self._writer.write(b"%x\r\n" % self._left)
            piece, part = part[: self._left], part[self._left :]
            self._writer.write(piece)
            self._left -= len(piece)
            if not self._left:
                self._writer.write(b"\r\n")

    async def end(self) -> bool:
        """End the body; whether the connection serves again."""
        await self.flush()
        if self._mode.body == "big" and self._left:
            self._big(b"\n" * self._left)
        if self._mode.body in {"chunked", "big"}:
            self._writer.write(b"0\r\n\r\n")
            return True
        return False


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
        self._server = await asyncio.start_server(
            self._connected, "127.0.0.1", 0, ssl=context, backlog=1024
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
        received = time.perf_counter()
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
        return await self._answer(writer, MODES[name], truth)

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
        if path == "/truth":
            return self._plain(writer, 200, [asdict(truth) for truth in self.truths])
        return self._plain(writer, 404, {"error": "not found"})

    def _plain(self, writer: asyncio.StreamWriter, status: int, answer: object) -> bool:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} Word\r\nContent-Type: application/json\r\n"
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

    async def _answer(self, writer: asyncio.StreamWriter, mode: Mode, truth: Truth) -> bool:
        if mode.status != 200 or mode.answer:
            head = f"HTTP/1.1 {mode.status} Word\r\nContent-Type: {mode.content_type}\r\n"
            head += "".join(f"{name}: {value}\r\n" for name, value in mode.headers)
            writer.write(f"{head}Content-Length: {len(mode.answer)}\r\n\r\n".encode() + mode.answer)
            return ("Connection", "close") not in mode.headers
        reply = _Reply(writer, mode)
        if mode.fault_at == 0 and mode.fault == "hang":
            await asyncio.sleep(3600)
        reply.head()
        chat = "chat" in truth.path
        if truth.mode == "byte order mark":
            await reply.raw(b"\xef\xbb\xbf")
        if chat and mode.role:
            counted = {"usage": _usage(0)} if mode.usage == "continuous" else {}
            await reply.event(
                {"choices": [_choice({"role": "assistant", "content": ""})], **counted}
            )
            await reply.flush()
        if not await self._tokens(reply, writer, mode, truth, chat):
            return False
        return await self._tail(reply, writer, mode, truth, chat)

    async def _tokens(
        self, reply: _Reply, writer: asyncio.StreamWriter, mode: Mode, truth: Truth, chat: bool
    ) -> bool:
        """Send the tokens; False if the mode ends the connection among them."""
        number = truth.body["max_tokens"] if mode.tokens is None else mode.tokens
        base = truth.received + self.script.first
        for index in range(0, number, mode.per_chunk):
            count = min(mode.per_chunk, number - index)
            last = index + count >= number
            # Several tokens in a chunk come when the last of them is made.
            await self._until(base + (index + count - 1) * self.script.gap)
            if mode.fault_at is not None and index == mode.fault_at:
                if mode.fault == "stall":
                    base += mode.stall
                    await self._until(base + index * self.script.gap)
                elif not await self._break(reply, writer, mode):
                    return False
            hidden = mode.invisible and index % abs(mode.invisible) == 1
            text = "" if hidden else "wörd " * count
            truth.tokens += count
            truth.sent += [time.perf_counter()] * count
            if hidden and mode.invisible < 0:
                continue
            event: dict[str, Any] = {"choices": [self._part(mode, chat, text, index)]}
            if last and mode.finish == "last":
                event["choices"][0]["finish_reason"] = mode.reason
            if mode.usage in {"continuous", "null"}:
                event["usage"] = _usage(truth.tokens) if mode.usage == "continuous" else None
            await reply.event(event)
        await reply.flush()
        return True

    def _part(self, mode: Mode, chat: bool, text: str, index: int) -> dict[str, Any]:
        if not chat:
            return {"index": 0, "text": text, "finish_reason": None}
        place: str = mode.place
        if index < mode.thinking:
            place = "reasoning_content"
        if place == "arguments":
            call: dict[str, Any] = {"index": 0, "function": {"arguments": text}}
            if index == 0 and mode.call_name:
                call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}
            return _choice({"tool_calls": [call]})
        return _choice({place: text})

    async def _break(self, reply: _Reply, writer: asyncio.StreamWriter, mode: Mode) -> bool:
        if mode.fault == "hang":
            await asyncio.sleep(3600)
        if mode.fault == "raw":
            await reply.raw(mode.raw)
            await reply.end()
        if mode.fault == "reset":
            await asyncio.sleep(0.01)  # what was sent before is to arrive
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
        return False

    async def _tail(
        self, reply: _Reply, writer: asyncio.StreamWriter, mode: Mode, truth: Truth, chat: bool
    ) -> bool:
        if not truth.tokens and mode.finish == "own":  # the one token that has no text
            await self._until(truth.received + self.script.first)
            truth.tokens = 1
            truth.sent.append(time.perf_counter())
            named = {"name": "f", "arguments": ""}
            if mode.call_name:
                calls = [{"index": 0, "id": "c", "function": named}]
                await reply.event({"choices": [_choice({"tool_calls": calls})]})
            if mode.function_call:
                await reply.event({"choices": [_choice({"function_call": named})]})
        counted = {"usage": _usage(truth.tokens)}
        if mode.finish == "own":
            choice = {**(_choice({}) if chat else {"index": 0, "text": ""})}
            choice["finish_reason"] = mode.reason
            extra = counted if mode.usage in {"choices", "continuous"} else {}
            await reply.event({"choices": [choice], **extra})
        if mode.usage == "late":
            await reply.flush()
            await asyncio.sleep(0.03)
        if mode.usage in {"last", "late", "continuous"}:
            await reply.event({"choices": [], **counted})
        truth.ended = time.perf_counter()
        if mode.done in {"yes", "hang"}:
            await reply.event(b"[DONE]")
        if mode.done == "unended":
            await reply.raw(b"data: [DONE]\n")
        if mode.done == "hang":
            await reply.flush()
            await asyncio.sleep(3600)
        return await reply.end()


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}


def _choice(delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": None}


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
    parser.add_argument("--only")
    options = parser.parse_args()
    script = Script(first=options.first, gap=options.gap, only=options.only)
    server = ScriptedServer(script)
    server.start()
    print(server.port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
