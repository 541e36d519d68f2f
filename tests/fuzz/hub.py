"""A hub that answers nonsense: the real client of the hub asks a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.fuzz.judge import Outcome, command
from tests.hub.server import Answer, Hub

NAME = "Org/Fuzz"
# Which requests get what lies in which file of the ground; all others are answered as they should.
_FACTS = r"^/api/models/Org/Fuzz/revision/main"
_CONFIG = r"^/api/resolve-cache/models/Org/Fuzz/.*config\.json"
_PART = r"^/(cdn/.*|Org/Fuzz/resolve/.*)model\.safetensors"
_JSON = (("Content-Type", "application/json"),)


def here() -> Hub:
    """Return the hub that HF_ENDPOINT names in this process."""
    from tests import conftest

    return conftest._HUB


def write_answers(folder: Path) -> None:
    """Write the answers that are damaged, as they should be."""
    hub = here()
    hub.clear(folder / "published")
    commit = hub.publish(NAME, folder / "single")
    repository = hub.repositories["model", NAME]
    (folder / "facts.json").write_text(json.dumps(repository.info(commit)))
    weights = repository.trees[commit]["model.safetensors"]
    place = f"/api/resolve-cache/models/{NAME}/{commit}/config.json"
    headers = {"X-Repo-Commit": commit, "ETag": '"0123456789"', "Location": place}
    moved = {"status": 307, "headers": headers | {"Content-Length": "0"}, "body": ""}
    (folder / "moved.json").write_text(json.dumps(moved))
    part = f"bytes 0-{weights.size - 1}/{weights.size}"
    headers = {"Content-Range": part, "Content-Length": str(weights.size), "ETag": '"0123"'}
    (folder / "part.json").write_text(json.dumps({"status": 206, "headers": headers}))
    refused = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "there is none"}
    refusal = {"status": 404, "headers": refused, "body": '{"error": "there is none"}'}
    (folder / "refusal.json").write_text(json.dumps(refusal))


def facts(folder: Path) -> Outcome:
    """The list of a repository's files, with its commit and its card."""
    return _asked(folder, _FACTS, Answer(200, _JSON, (folder / "facts.json").read_bytes()))


def config(folder: Path) -> Outcome:
    """A file that is downloaded."""
    named = (("X-Repo-Commit", _commit()), ("ETag", '"0123456789"'))
    content = (folder / "single" / "config.json").read_bytes()
    length = (("Content-Length", str(len(content))),)
    return _asked(folder, _CONFIG, Answer(200, _JSON + named + length, content))


def _commit() -> str:
    return next(iter(here().repositories["model", NAME].trees))


def header(folder: Path) -> Outcome:
    """The beginning of a file of weights, asked for as a part."""
    content = (folder / "single" / "model.safetensors").read_bytes()
    told = (("Content-Range", f"bytes 0-{max(len(content) - 1, 0)}/{len(content)}"),)
    return _asked(folder, _PART, Answer(206, told, content))


def told(name: str, pattern: str = _FACTS) -> Callable[[Path], Outcome]:
    """Return what asks where status and headers of an answer are those of a file."""

    def act(folder: Path) -> Outcome:
        try:
            fields = json.loads((folder / name).read_bytes())
            headers = tuple((k, str(v)) for k, v in fields["headers"].items())
            status = int(fields["status"]) % 1000
            body = str(fields.get("body", "")).encode()
            if name == "part.json":
                body = (folder / "single" / "model.safetensors").read_bytes()
            answer = Answer(max(status, 200), headers, body)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            answer = Answer(200, (), (folder / name).read_bytes())
        return _asked(folder, pattern, answer)

    return act


MOVED, PART = r"^/Org/Fuzz/resolve/.*config\.json", _PART


def _asked(folder: Path, pattern: str, answer: Answer) -> Outcome:
    """Ask for a model of whose answers one is this; its cache is empty before."""
    from huggingface_hub import constants

    from vllm_moe_prune import headers

    hub: Any = here()
    headers._remote.cache_clear()
    hub.instead[pattern] = answer
    cache = str(folder / "made")
    try:
        with (
            mock.patch.object(constants, "HF_HUB_CACHE", cache),
            mock.patch("time.sleep"),  # between two tries
        ):
            return command("inspect", f"{NAME}@main")
    finally:
        hub.instead.clear()
