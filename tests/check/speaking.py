"""A served model whose every answer is known: what share of them goes wrong, and in which way."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.engines.served import Answers

Fault = Literal["loops", "thinks on", "wrong call", "wrong code", "unparsed thinking", "silence"]
_HEALTHY_CODE = "Here it is:\n```python\ndef f(x):\n    return x + 1\n```\nIt adds one."
_WRONG_CODE = "```python\ndef f(x)\n    return x + 1\n```"


@dataclass
class Speaker(Answers):
    """Answers chats and completions; what it says depends on the prompt and ``seed`` alone.

    ``faults`` are shares of answers. ``wrongs`` remembers which prompts went wrong in which way:
    the truth that a check has to find. ``refuses`` are fields of a request that end in status 400.
    """

    length: int | None = 8192
    seed: int = 0
    faults: dict[Fault, float] = field(default_factory=dict)
    tells_tokens: bool = True
    refuses: tuple[str, ...] = ()
    fails_after: int | None = None
    wrongs: dict[Fault, set[str]] = field(default_factory=dict)

    def status_of(self, body: dict[str, Any]) -> int:
        refused = any(name in body for name in self.refuses)
        failed = self.fails_after is not None and len(self.asked) > self.fails_after
        body["status"] = 400 if refused else 500 if failed else 200
        return int(body["status"])

    def reply(self, path: str, body: dict[str, Any]) -> Any:
        words = {400: "no such field", 500: "out of memory"}
        if body["status"] in words:
            return {"error": {"message": words[body["status"]]}}
        return self.said(body)

    def said(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one request."""
        prompt = json.dumps(body.get("messages") or body["prompt"])
        draw = random.Random(f"{self.seed} {prompt} {body.get('seed')}")
        kind = _kind(body)
        possible = {f: share for f, share in self.faults.items() if kind in _WHERE[f]}
        hit = draw.random()
        fault: Fault | None = None
        for name, share in possible.items():
            if hit < share:
                fault = name
                self.wrongs.setdefault(name, set()).add(prompt)
                break
            hit -= share
        limit = body["max_tokens"]
        ids = [draw.randrange(1000, 50_000) for _ in range(min(limit, draw.randint(80, 300)))]
        message: dict[str, Any] = {"content": " ".join(f"w{i}" for i in ids)}
        finish = "stop" if len(ids) < limit else "length"
        if kind == "thinking":
            message["content"] = f"<think> Let me see. </think> {message['content']}"
        elif kind == "code":
            message["content"] = _HEALTHY_CODE
        elif kind == "tools":
            message, finish = {"content": None, "tool_calls": [_call(body)]}, "tool_calls"
        if fault in ("loops", "thinks on", "unparsed thinking"):
            ids, finish = _cut(fault, draw, limit), "length"
        words = " ".join(f"w{i}" for i in ids)
        if fault == "loops":
            message = {"content": words}
        elif fault == "thinks on":
            message = {"content": f"<think> {words}"}
        elif fault == "unparsed thinking":  # a reasoning parser took it, as of gpt-oss
            message = {"content": None, "reasoning": words}
        elif fault == "wrong call":
            text = json.dumps(_call(body)["function"])
            message, finish = {"content": f"<tool_call>\n{text}\n</tool_cal"}, "stop"
        elif fault == "wrong code":
            message, finish = {"content": _WRONG_CODE}, "stop"
        elif fault == "silence":
            message, ids, finish = {"content": ""}, ids[:1], "stop"
        choice: dict[str, Any] = (
            {"text": message["content"]} if kind == "prose" else {"message": message}
        )
        choice |= {"index": 0, "finish_reason": finish}
        if self.tells_tokens and body.get("return_token_ids"):
            choice["token_ids"] = ids
        usage = {"prompt_tokens": 7, "completion_tokens": len(ids)}
        return {"choices": [choice], "usage": usage}


_WHERE: dict[Fault, set[str]] = {
    "loops": {"prose", "chats"},
    "thinks on": {"thinking"},
    "unparsed thinking": {"thinking"},
    "wrong call": {"tools"},
    "wrong code": {"code"},
    "silence": {"chats"},
}


def _kind(body: dict[str, Any]) -> str:
    if "prompt" in body:
        return "prose"
    if "tools" in body:
        return "tools"
    if "chat_template_kwargs" in body:
        return "thinking"
    return "code" if "Python" in body["messages"][-1]["content"] else "chats"


def _cut(fault: Fault, draw: random.Random, limit: int) -> list[int]:
    """Return an answer with no end: one that loops does so from token 65 on."""
    fresh = draw.sample(range(1000, 50_000), limit)
    if fault != "loops":
        return fresh
    period = fresh[64 : 64 + draw.randint(1, 64)]
    return (fresh[:64] + period * (limit // len(period) + 1))[:limit]


def _call(body: dict[str, Any]) -> dict[str, Any]:
    function = body["tools"][0]["function"]
    arguments = {name: "x" for name in function["parameters"]["required"]}
    return {"function": {"name": function["name"], "arguments": json.dumps(arguments)}}
