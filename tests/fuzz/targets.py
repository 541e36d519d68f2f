"""What is damaged, how, and what then reads it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.families.released.reader import read
from tests.fuzz import hub
from tests.fuzz import mutations as m
from tests.fuzz.judge import Outcome, command, function
from tests.fuzz.quantised import SETTINGS, read_quantised
from vllm_moe_prune.routing_map import MAP_FILE

Act = Callable[[Path], Outcome]


@dataclass(frozen=True, slots=True)
class Target:
    """One file of the ground, what damages it, and what reads it; ``check`` looks at results."""

    file: str
    damage: m.Mutator
    act: Act
    check: Callable[[Path], str] = lambda folder: ""


def _command(*words: str) -> Act:
    """Return what runs a command in a folder; a word in capitals is a file of it."""
    return lambda folder: command(*(str(folder / w[1:]) if w[:1] == "@" else w for w in words))


_BUILD = _command("build", "--model", "@base", "--map", "@map", "--out", "@made")
_MERGE = _command("build", "--model", "@base", "--map", "@merged", "--out", "@made")
_PLAN = _command(
    "plan", "--scores", "@scores", "--criterion", "min-ean", "--keep", "2", "--out", "@made"
)
_ANALYZE = _command("analyze", "--scores", "@scores", "--out", "@made")


def _built(base: str = "base") -> Callable[[Path], str]:
    """Return what compares a build with its base, by a reader of its own: experts that are kept."""

    def check(folder: Path) -> str:
        before, after = read(folder / base), read(folder / "made")
        told = json.loads((folder / "made" / MAP_FILE).read_text())
        config = json.loads((folder / base / "config.json").read_text())
        if config.get("model_type") != "mixtral":
            return ""
        wanted: dict[str, Any] = {n: t for n, t in before.items() if ".block_sparse_moe." not in n}
        for layer in told["layers"]:
            stem = f"model.layers.{layer['layer']}.block_sparse_moe."
            kept = layer["experts"].get("kept")
            if kept is None or layer["router"] != "sliced" or layer.get("router_rows"):
                return ""
            dtype, shape, content = before[f"{stem}gate.weight"]
            row = len(content) // shape[0]
            rows = b"".join(content[i * row : (i + 1) * row] for i in kept)
            wanted[f"{stem}gate.weight"] = (dtype, (len(kept), *shape[1:]), rows)
            for name in (name for name in before if name.startswith(f"{stem}experts.")):
                old, _, rest = name.removeprefix(f"{stem}experts.").partition(".")
                if int(old) in kept:
                    wanted[f"{stem}experts.{kept.index(int(old))}.{rest}"] = before[name]
        return "" if after == wanted else "wrong weights"

    return check


def _log(folder: Path) -> Outcome:
    from offline.fitness.log import EvaluationLog

    return function(lambda: EvaluationLog(folder / "evaluations.jsonl"))


def _task(folder: Path) -> Outcome:
    from offline.tasks.catalog import get_tasks

    return function(lambda: get_tasks(str(folder / "task.yaml")))


def _rows(folder: Path) -> Outcome:
    from offline.texts.source import check_source

    return function(lambda: list(check_source(str(folder / "chats.jsonl")).rows()))


def _workload(name: str) -> Act:
    def act(folder: Path) -> Outcome:
        from loadtest.workload_file import read_workload

        return function(lambda: read_workload(folder / name))

    return act


def _sides(folder: Path) -> Outcome:
    from loadtest.configurations import read_configurations

    return function(lambda: read_configurations(folder / "sides.yaml"))


def _stream(folder: Path) -> Outcome:
    from loadtest.sse import DONE, EventParser, parse_delta
    from vllm_moe_prune.errors import PruneError

    def parse() -> None:
        parser = EventParser()
        for event in (*parser.feed((folder / "answer.sse").read_bytes()), *parser.end()):
            if event.data != DONE:
                try:
                    parse_delta(event)
                except ValueError as error:  # as the client takes it
                    raise PruneError(str(error)) from None

    return function(parse)


def _reply(name: str, take: Callable[[Any], object]) -> Act:
    def act(folder: Path) -> Outcome:
        from offline.engines.replies import ReplyError
        from vllm_moe_prune.errors import PruneError
        from vllm_moe_prune.reading import read_json

        def taken() -> None:
            try:
                take(read_json(folder / name))
            except ReplyError as error:
                raise PruneError(str(error)) from None

        return function(taken)

    return act


def _completion(reply: Any) -> object:
    from offline.engines.replies import completion

    return completion(reply, [1, 2], 4)


def _message(reply: Any) -> object:
    from offline.engines.replies import message

    return message(reply, 4)


def _header(folder: Path) -> Outcome:
    """What the hub answers where it is asked for the header of a file."""
    from vllm_moe_prune import headers

    content = (folder / "single" / "model.safetensors").read_bytes()

    class Remote:
        path = "model.safetensors"

        def read(self, begin: int, end: int) -> tuple[bytes, int]:
            return content[begin:end], len(content)

    return function(lambda: headers._remote.__wrapped__(Remote()))


def _finetuned(folder: Path) -> Outcome:
    from offline.finetune.finetune import Finetuned

    return function(lambda: Finetuned.load(folder))


_SETTINGS = m.json_within("quantization_config")


def _beside(file: str) -> Target:
    """Return the target of a file that a quantiser writes beside config.json."""
    name = file.partition("/")[0]
    return Target(file, m.json_file, read_quantised(name), _built(name))


TARGETS: Mapping[str, Target] = {
    "config.json, inspect": Target("base/config.json", m.json_file, _command("inspect", "@base")),
    "config.json, build": Target("base/config.json", m.json_file, _BUILD),
    "the index": Target("base/model.safetensors.index.json", m.json_file, _BUILD, _built()),
    "a shard": Target(
        "base/model-00001-of-00002.safetensors", m.safetensors_file, _BUILD, _built()
    ),
    "a single file": Target(
        "single/model.safetensors", m.safetensors_file, _command("inspect", "@single")
    ),
    "a card": Target("base/README.md", m.raw_bytes, _BUILD),
    "a map, build": Target("map/routing_map.json", m.json_file, _BUILD, _built()),
    "a map, inspect": Target("map/routing_map.json", m.json_file, _command("inspect", "@map")),
    "a map, export": Target(
        "map/routing_map.json", m.json_file, _command("export", "@map", "--out", "@made.json")
    ),
    "matrices": Target("merged/routing_map.safetensors", m.safetensors_file, _MERGE),
    "a shard, merged": Target("base/model-00002-of-00002.safetensors", m.safetensors_file, _MERGE),
    "scores.json, plan": Target("scores/scores.json", m.json_file, _PLAN),
    "scores.json, analyze": Target("scores/scores.json", m.json_file, _ANALYZE),
    "scores.safetensors": Target("scores/scores.safetensors", m.safetensors_file, _PLAN),
    "a result": Target("out/vmprune_result.json", m.json_file, _command("report", "@out")),
    "check.json": Target("out/check.json", m.json_file, _command("report", "@out")),
    "a recipe": Target(
        "recipe.yaml",
        m.yaml_file,
        _command("compress", "--recipe", "@recipe.yaml", "--out", "@made"),
    ),
    "a task": Target("task.yaml", m.yaml_file, _task),
    "rows of chats": Target("chats.jsonl", m.json_lines, _rows),
    "a log of evaluations": Target("evaluations.jsonl", m.json_lines, _log),
    "finetune.json": Target("finetune.json", m.json_file, _finetuned),
    "a workload": Target("workload.yaml", m.yaml_file, _workload("workload.yaml")),
    "prompts": Target("prompts.jsonl", m.json_lines, _workload("prompts.jsonl")),
    "configurations": Target("sides.yaml", m.yaml_file, _sides),
    "a stream of events": Target("answer.sse", m.event_stream, _stream),
    "a completion": Target("reply.json", m.json_file, _reply("reply.json", _completion)),
    "a chat's answer": Target("chat.json", m.json_file, _reply("chat.json", _message)),
    "a header on the hub": Target("single/model.safetensors", m.safetensors_file, _header),
    **{
        f"{name}, settings": Target(
            f"{name}/config.json", _SETTINGS, read_quantised(name), _built(name)
        )
        for name in SETTINGS
    },
    **{
        f"{name}, weights and scales": Target(
            f"{name}/model.safetensors", m.safetensors_file, read_quantised(name), _built(name)
        )
        for name in (*SETTINGS, "nvfp4")
    },
    "hf_quant_config.json": _beside("nvfp4/hf_quant_config.json"),
    "quantize_config.json": _beside("gptq/quantize_config.json"),
    "the hub's facts": Target("facts.json", m.json_file, hub.facts),
    "a file of the hub": Target("single/config.json", m.json_file, hub.config),
    "a part of a file of the hub": Target(
        "single/model.safetensors", m.safetensors_file, hub.header
    ),
    "the hub's headers": Target("moved.json", m.json_file, hub.told("moved.json", hub.MOVED)),
    "headers of a part": Target("part.json", m.json_file, hub.told("part.json", hub.PART)),
    "a refusal of the hub": Target("refusal.json", m.json_file, hub.told("refusal.json")),
}
