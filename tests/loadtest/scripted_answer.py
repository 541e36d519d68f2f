"""How the scripted server answers one request: framing, tokens, faults and the end."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.loadtest.modes import Mode


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
        if self._writer.is_closing():
            raise ConnectionError("the client is gone")
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


class Answer:
    """One request's answer.

    :param delays: seconds to the first token and between two
    :param until: waits for a time of ``time.perf_counter``
    """

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        mode: Mode,
        truth: Truth,
        delays: tuple[float, float],
        until: Callable[[float], Awaitable[None]],
    ) -> None:
        self._writer = writer
        self._mode = mode
        self._truth = truth
        self._first, self._gap = delays
        self._until = until

    async def run(self) -> bool:
        """Answer; whether the connection serves again."""
        writer, mode, truth = self._writer, self._mode, self._truth
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
        body = truth.body
        asked = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        number = asked if mode.tokens is None else mode.tokens
        base = truth.received + self._first
        for index in range(0, number, mode.per_chunk):
            count = min(mode.per_chunk, number - index)
            last = index + count >= number
            # Several tokens in a chunk come when the last of them is made.
            await self._until(base + (index + count - 1) * self._gap)
            if mode.fault_at is not None and index == mode.fault_at:
                if mode.fault == "stall":
                    base += mode.stall
                    await self._until(base + index * self._gap)
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
            await self._until(truth.received + self._first)
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
