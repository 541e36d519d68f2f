"""`Probe`: what a model is asked to see how its answers end; read from a file of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from offline.results.check import Kind
from vllm_moe_prune.errors import PruneError, one_line
from vllm_moe_prune.reading import read_text


class Probe(BaseModel):
    """One prompt, or the messages of a chat and the tools that are offered in it.

    ``prose`` is a text that is continued; all other kinds are chats, and a ``prompt`` is the only
    message of one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = "chats"
    prompt: str = ""
    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("a probe has a `prompt` or `messages`")
        if self.kind == "prose" and self.messages:
            raise ValueError("prose is a `prompt` that is continued; it has no `messages`")
        if bool(self.tools) != (self.kind == "tools"):
            raise ValueError("probes of the kind `tools` have `tools`, and no others")
        for tool in self.tools:
            if not isinstance(tool.get("function"), dict) or "name" not in tool["function"]:
                raise ValueError("a tool is {'type': 'function', 'function': {'name': ...}}")
        return self

    @property
    def digest(self) -> str:
        """Return what names it: the same of the same content, wherever it stands."""
        text = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def body(self) -> tuple[str, dict[str, Any]]:
        """Return the path below /v1 and the fields of the request that ask it."""
        if self.kind == "prose":
            return "completions", {"prompt": self.prompt}
        body: dict[str, Any] = {
            "messages": list(self.messages) or [{"role": "user", "content": self.prompt}]
        }
        if self.tools:
            body |= {"tools": list(self.tools), "tool_choice": "auto"}
        if self.kind == "thinking":
            body["chat_template_kwargs"] = {"enable_thinking": True, "thinking": True}
        return "chat/completions", body


def read_probes(file: Path, limit: int | None) -> tuple[Probe, ...]:
    """Read a JSONL file with a probe a line, or a text file with a message a line.

    :param limit: of probes, from the first; None takes all. What stands there twice counts once
    :raises PruneError: naming the line that is none, or if there are fewer than ``limit``
    """
    lines = read_text(file).splitlines()
    found = {probe.digest: probe for probe in _probes(file, lines)}
    if not found:
        raise PruneError(f"{file} holds no probes", hint="a JSON object or a text on each line")
    if limit is not None and len(found) < limit:
        raise PruneError(f"{file} holds {len(found)} different probes, not {limit}")
    return tuple(found.values())[:limit]


def _probes(file: Path, lines: list[str]) -> Iterator[Probe]:
    is_json = file.suffix in {".jsonl", ".json", ".ndjson"}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield Probe.model_validate_json(line) if is_json else Probe(prompt=line)
        except ValidationError as error:
            raise PruneError(f"{file}, line {number}: {one_line(error)}") from None
