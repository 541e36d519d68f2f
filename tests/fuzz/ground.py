"""Files as they should be, one of each kind, for all that is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from offline.fitness.candidate import Assessment
from offline.fitness.log import CandidateKey, EvaluationLog
from offline.tasks.results import ItemResult, TaskResult
from tests.calibration.score_samples import make_scores
from tests.fuzz.hub import write_answers
from tests.fuzz.quantised import write_quantised
from tests.report.samples import run_result
from tests.sample_maps import map_of, uniform_map
from tests.vllm_moe_prune.bare import write_bare
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.tuning import Tuning

LAYERS, EXPERTS = 2, 4
KEPT = [(0, 2), (1, 3)]
_RECIPE = {
    "base": {"model": "absent"},
    "method": {"name": "eep", "keep": 4, "seed": 1},
    "data": {"task": "sciq", "search_items": 32},
    "search": {"population": 8},
}
_TASK = {
    "task": "colours",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
    "output_type": "multiple_choice",
    "training_split": "train",
    "test_split": "test",
    "doc_to_text": "Q: {{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{gold}}",
    "metric_list": [{"metric": "acc"}],
}
_WORKLOAD = {
    "prompts": ["which cat ?", {"prompt": "which dog ?", "max_tokens": 4}],
    "output_tokens": {"median": 16, "sigma": 0.5},
    "users": 2,
}
_SIDES = [{"name": "base", "model": "a"}, {"name": "pruned", "model": "b", "serve_args": ["--x"]}]
_CHAT = {"messages": [{"role": "user", "content": "a ?"}, {"role": "assistant", "content": "b"}]}
_DELTA = {"choices": [{"index": 0, "delta": {"content": "word"}, "finish_reason": None}]}
_USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def make_ground(folder: Path) -> Path:
    """Write everything into a folder and return it."""
    write_bare(folder / "base", layers=LAYERS, experts=EXPERTS, shards=2)
    write_bare(folder / "single", layers=LAYERS, experts=EXPERTS)
    config = json.loads((folder / "base" / "config.json").read_text())
    more = {"hidden_size": 4, "num_hidden_layers": LAYERS, "tie_word_embeddings": True}
    (folder / "base" / "config.json").write_text(json.dumps(config | more))
    (folder / "base" / "README.md").write_text("---\nlicense: mit\ntags: [a]\n---\ntext\n")
    uniform_map(folder / "base", KEPT, top_k=1).save(folder / "map")
    merged_map(folder / "base").save(folder / "merged")
    (folder / "scores").mkdir()
    scores = make_scores()
    shape = replace(scores.shape, num_groups=1, topk_group=1)
    replace(scores, shape=shape).save(folder / "scores")
    (folder / "out").mkdir()
    run_result(2, 4).save(folder / "out")
    uniform_map(folder / "base", KEPT, top_k=1).save(folder / "out")
    checks = {"ok": True, "model": "m", "served_as": "auto", "startup_seconds": 1.0}
    item = {"name": "parity", "ok": True, "value": 0.0, "limit": 1.0, "detail": "d"}
    (folder / "out" / "check.json").write_text(json.dumps({**checks, "checks": [item]}))
    write_log(folder / "evaluations.jsonl")
    (folder / "recipe.yaml").write_text(json.dumps(_RECIPE))
    (folder / "task.yaml").write_text(json.dumps(_TASK))
    (folder / "workload.yaml").write_text(json.dumps(_WORKLOAD))
    (folder / "sides.yaml").write_text(json.dumps(_SIDES))
    (folder / "chats.jsonl").write_text((json.dumps(_CHAT) + "\n") * 3)
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "max_tokens": 3}\n')
    events = [f"data: {json.dumps(one)}\n\n" for one in (_DELTA, _DELTA, _USAGE)]
    (folder / "answer.sse").write_text("".join(events) + "data: [DONE]\n\n")
    tuning = Tuning(trainable="lora", parameters=3, steps=2, tokens=9, learning_rate=0.1)
    told = {"tuning": tuning.model_dump(mode="json"), "losses": [1.0, 0.5], "seconds": 1.0}
    told |= {"peak_bytes": 9, "trained_bytes": 8}
    (folder / "finetune.json").write_text(json.dumps(told))
    (folder / "cells.json").write_text("[]")
    reply = {"model": "m", "choices": [{"text": "a", "finish_reason": "stop", "index": 0}]}
    reply |= {"usage": {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}}
    (folder / "reply.json").write_text(json.dumps(reply))
    said = [{"message": {"content": "a"}, "finish_reason": "stop", "index": 0}]
    (folder / "chat.json").write_text(json.dumps(reply | {"choices": said}))
    write_quantised(folder)
    write_answers(folder)
    return folder


def merged_map(base: Path) -> RoutingMap:
    """Return a map that merges experts and maps routers: one with matrices."""
    rng = np.random.default_rng(0)
    layers = [
        LayerMap(
            layer=layer,
            num_experts=EXPERTS,
            num_kept=2,
            top_k=1,
            experts=Selection(matrix=f"em{layer}"),
            router="mapped",
            router_rows=Selection(matrix=f"rm{layer}"),
        )
        for layer in range(LAYERS)
    ]
    matrices = {
        f"{kind}{n}": rng.random((2, EXPERTS)) for n in range(LAYERS) for kind in ("em", "rm")
    }
    return map_of(base, layers, **matrices)


def write_log(file: Path) -> None:
    """Write a log of one candidate and of the base."""
    items = tuple(ItemResult(str(n), float(n % 2), 0.5, n) for n in range(3))
    result = TaskResult("sciq", "search", items, tokens=9, seconds=0.1)
    log = EvaluationLog(file)
    one = Assessment("sha256:a", 0.5, True, {"sciq": result}, 0.1, "prune", 0, 0)
    layer = LayerMap(layer=0, num_experts=4, num_kept=2, top_k=1, experts=Selection(kept=(0, 1)))
    fields = {"model_type": "mixtral", "base": {"config": "", "index": "", "routers": ""}}
    made = RoutingMap.build(**fields, layers=(layer,), provenance={"method": "by hand"})
    log.add_candidate(CandidateKey("sha256:a", "o", ""), one, made, {"sciq": ("evaluate", 3)})
    log.add_results(None, "evaluate", 3, {"sciq": result})
