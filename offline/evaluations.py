"""A log of evaluations that survives a kill: nothing that is in it is evaluated again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from offline.engines.base import Engine, TaskResult
from offline.tasks.catalog import Split, Task
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import write_atomic
from vllm_moe_prune.routing_map import RoutingMap

_Key = tuple[str, str, str, int | None]


@dataclass(slots=True)
class Evaluations:
    """Evaluates maps on an engine and remembers the results in a JSONL file, one line each."""

    file: Path
    engine: Engine
    known: dict[_Key, TaskResult] = field(default_factory=dict)
    fresh: int = 0  # evaluations that this process really made

    def __post_init__(self) -> None:
        if not self.file.exists():
            return
        whole = self.file.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):  # the last line was being written when the run was killed
            with self.file.open("rb+") as stream:
                stream.truncate(end)
        for line in whole[:end].splitlines():
            entry = json.loads(line)
            self.known[_as_key(entry["key"])] = TaskResult.from_json(entry["result"])

    def __call__(
        self, routing_map: RoutingMap | None, task: Task, split: Split, limit: int | None
    ) -> TaskResult:
        """Return the result of a map (None: the base), from memory or by evaluating it now."""
        key = (routing_map.digest() if routing_map else "base", task.name, split, limit)
        if key not in self.known:
            self.engine.apply(routing_map)
            self.known[key] = self.engine.evaluate(task, split, limit)
            self.fresh += 1
            self._append(key, routing_map, self.known[key])
        return self.known[key]

    def _append(self, key: _Key, routing_map: RoutingMap | None, result: TaskResult) -> None:
        kept = {m.layer: m.experts.kept for m in routing_map.layers} if routing_map else None
        line = json.dumps({"key": key, "kept": kept, "result": result.to_json()})
        with self.file.open("a") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())


def _as_key(parts: list[Any]) -> _Key:
    digest, task, split, limit = parts
    return (digest, task, split, limit)


def run_folder(out: Path, identity: dict[str, Any], *, force: bool) -> Path:
    """Return ``OUT.run``, where a run keeps what lets it continue after a kill.

    :param identity: the settings and the base that results depend on
    :raises PruneError: if the folder holds another run and ``force`` is not given
    """
    folder = out.with_name(out.name + ".run")
    settings = folder / "settings.json"
    text = json.dumps(identity, indent=2, sort_keys=True) + "\n"
    if settings.exists() and settings.read_text() != text:
        if not force:
            raise PruneError(
                f"{folder} holds a run with other settings or another base",
                hint="choose another --out, or add --force to start anew",
            )
        for file in folder.iterdir():
            file.unlink()
    folder.mkdir(exist_ok=True)
    write_atomic(settings, text)
    return folder
