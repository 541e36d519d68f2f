"""The live engine of a search on a device: masks, merges, back to the base; eager and recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.gpu.models import VOCAB, kept_map, mixed_map, write_model
from benchmarks.gpu.steps import Bench
from benchmarks.gpu.timing import seconds_of
from offline.engines.base import Engine
from offline.engines.live.engine import VllmEngine
from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from vllm_moe_prune.routing_map import RoutingMap

_MOST = 0.2  # of the way to the base's margins
_ITEMS = 24
_TASK = """\
task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
"""


def live_engine(bench: Bench) -> None:
    """Step B2: one engine under several maps, against transformers on the CPU in float32."""
    base = write_model(bench.folder / "base", "mixtral")
    task = _task(bench.folder)
    maps: dict[str, RoutingMap | None] = {
        "base": None,
        "masked": kept_map(base, [5, 3, 6, 4]),
        "one expert": kept_map(base, [8, 8, 8, 8], top_k=1),
        "merged": mixed_map(base, (6, 4, 4, 4)),
    }
    reference = TransformersEngine(base, dtype="float32")
    expected = {name: _margins(reference, task, one) for name, one in maps.items()}
    for eager in (True, False):
        dtype = "bfloat16" if bench.on_gpu else "float32"
        with VllmEngine(
            base,
            dtype=dtype,
            enforce_eager=eager,
            max_model_len=128,
            kv_cache_bytes=2**27,
            gpu_memory=0.1 if bench.on_gpu else None,
        ) as engine:
            _follow(bench, "eager" if eager else "recorded", engine, task, maps, expected)
    if not bench.on_gpu:
        bench.leave_out("CUDA graphs")


def _follow(
    bench: Bench,
    how: str,
    engine: VllmEngine,
    task: Task,
    maps: dict[str, RoutingMap | None],
    expected: dict[str, np.ndarray],
) -> None:
    """Take an engine through the maps and back to the base, which must be there bit by bit."""
    stored, before = engine._lm.ask("moe_fingerprint"), _margins(engine, task, None)
    numbers = {}
    for name, one in maps.items():
        own = float(np.abs(_margins(engine, task, one) - expected[name]).mean())
        far = float(np.abs(expected["merged" if one is None else "base"] - expected[name]).mean())
        numbers[name] = {"from_transformers": round(own, 6), "from_other_map": round(far, 6)}
        bench.check(own < _MOST * far, f"{how}, {name}: margins are {own:.3g} off")
    changed = engine._lm.ask("moe_fingerprint") != stored
    bench.check(changed, f"{how}: merging did not change the stored experts")
    numbers["seconds_to_restore"] = round(seconds_of(lambda: engine.apply(None), "cpu"), 3)
    bench.check(
        engine._lm.ask("moe_fingerprint") == stored, f"{how}: the stored experts are not the base's"
    )
    after = _margins(engine, task, None)
    bench.check(np.array_equal(before, after), f"{how}: the base does not answer as before")
    bench.note(**{how: numbers})


def _margins(engine: Engine, task: Task, routing_map: RoutingMap | None) -> np.ndarray:
    """Return the margin of log-likelihoods of each item under a map."""
    engine.apply(routing_map)
    items = engine.evaluate(task, "test").items
    return np.array([item.margin for item in items], np.float64)


def _task(folder: Path) -> Task:
    """Write questions of random words with two random answers."""
    rng = np.random.default_rng(3)

    def words(count: int) -> str:
        return " ".join(f"w{number}" for number in rng.integers(3, VOCAB, count))

    rows = [
        {"prompt": words(12), "choices": [words(2), words(3)], "right": number % 2}
        for number in range(_ITEMS)
    ]
    data = folder / "words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "words.yaml"
    file.write_text(_TASK.format(file=data))
    return get_task(str(file))
