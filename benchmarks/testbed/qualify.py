"""Is the model fit to tell methods apart? ``python -m benchmarks.testbed.qualify --model DIR``.

Held-out perplexity by domain: the whole model, with a random half of the experts masked in every
layer (several draws), and with the experts masked that one domain uses most. The model qualifies
when the median ratio over random halves is at least two, and when masking what a domain uses
hurts that domain most. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.testbed.taskfiles import GENERATED, TASKS
from benchmarks.testbed.text import DOMAINS
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Kept, Space
from offline.maps.moe_shape import MoeShape
from offline.methods.baselines import random_kept
from offline.tasks.catalog import get_task
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import Provenance

_LONGEST, _ROWS = 512, 16  # tokens of one document, documents of one forward pass
_DROPPED = 2  # experts of a layer masked for one domain
Losses = dict[str, float]  # domain -> mean loss per token


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--tokens", default=8192, help="held-out tokens of each domain")
@click.option("--draws", default=7, help="random halves")
@click.option("--items", default=1200, help="test items of each task")
def main(model: Path, tokens: int, draws: int, items: int) -> None:
    """Print perplexities and accuracies, then one JSON object."""
    torch.set_num_threads(1)
    engine = TransformersEngine(model, dtype="float32")
    documents = {name: _read(engine, model, name, tokens) for name in DOMAINS}
    usage = {name: _usage(engine, documents[name]) for name in DOMAINS}
    whole = _losses(engine, documents)
    half = _space(model, 0.5)
    rng = random.Random(0)
    halves = [random_kept(half, rng) for _ in range(draws)]
    masked = [_masked_losses(engine, half, kept, documents) for kept in halves]
    fewer = _space(model, 1, dropped=_DROPPED)
    specific = {
        name: _masked_losses(engine, fewer, least_used(fewer, usage[name]), documents)
        for name in DOMAINS
    }
    detail = {
        "perplexity": {name: round(math.exp(loss), 2) for name, loss in whole.items()},
        "random_half": [_ratios(one, whole) for one in masked],
        "most_used_masked": {name: _ratios(one, whole) for name, one in specific.items()},
        "usage": {name: _rounded_shares(counts) for name, counts in usage.items()},
        "tasks": _accuracies(engine, model, items, half, halves),
        "heldout_tokens": {name: sum(map(len, docs)) for name, docs in documents.items()},
    }
    value = statistics.median(one["all"] for one in detail["random_half"])
    _print_tables(detail)
    own = {name: detail["most_used_masked"][name] for name in DOMAINS}
    detail["hurts_itself_most"] = {n: max(DOMAINS, key=own[n].__getitem__) == n for n in DOMAINS}
    print(json.dumps({"name": "testbed", "value": value, "unit": "ratio", "detail": detail}))


def least_used(space: Space, usage: Mapping[int, Sequence[int]]) -> dict[int, Kept]:
    """Keep the experts that a domain uses least: the opposite of pruning for it."""
    return {
        layer: tuple(sorted(np.argsort(usage[layer], kind="stable")[: space.keep].tolist()))
        for layer in space.layers
    }


def _space(model: Path, share: float, dropped: int = 0) -> Space:
    checkpoint = Checkpoint.open(model)
    experts = max(checkpoint.expert_counts().values())
    return Space.of(MoeShape.of(checkpoint), int(experts * share) - dropped, None)


def _read(engine: TransformersEngine, model: Path, domain: str, tokens: int) -> list[list[int]]:
    """Token ids of the first held-out documents of a domain, each with the end mark."""
    documents: list[list[int]] = []
    for line in (model / "text" / f"{domain}.jsonl").read_text(encoding="utf-8").splitlines():
        ids = [*engine.tokenizer.encode(json.loads(line)["text"]), engine.tokenizer.eos_token_id]
        documents.append(ids[:_LONGEST])
        tokens -= len(documents[-1])
        if tokens < 0:
            break
    return documents


def _batches(documents: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """(ids [B, T] padded on the right, which are real): neighbours are of like length."""
    found = []
    ordered = sorted(documents, key=len)
    for start in range(0, len(ordered), _ROWS):
        rows = [torch.tensor(row) for row in ordered[start : start + _ROWS]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        found.append((ids, torch.arange(ids.shape[1]) < lengths[:, None]))
    return found


def _losses(engine: TransformersEngine, documents: Mapping[str, list[list[int]]]) -> Losses:
    """Mean loss of each domain, and of all domains under ``all`` (each counts the same)."""
    losses: Losses = {}
    for name, own in documents.items():
        total = count = 0.0
        for ids, real in _batches(own):
            scores = engine.logits(ids)[:, :-1].log_softmax(dim=-1)
            each = -scores.gather(2, ids[:, 1:, None])[..., 0][real[:, 1:]]
            total, count = total + each.sum().item(), count + len(each)
        losses[name] = total / count
    return losses | {"all": statistics.mean(losses.values())}


def _masked_losses(
    engine: TransformersEngine,
    space: Space,
    kept: Mapping[int, Kept],
    documents: Mapping[str, list[list[int]]],
) -> Losses:
    engine.apply(space.routing_map(kept, Provenance.now("qualify")))
    try:
        return _losses(engine, documents)
    finally:
        engine.apply(None)


def _usage(engine: TransformersEngine, documents: list[list[int]]) -> dict[int, list[int]]:
    """Tokens routed to each expert: decoder layer -> counts [E]."""
    counts = {layer: np.zeros(experts, int) for layer, experts in engine.expert_counts.items()}
    for ids, real in _batches(documents):
        with torch.inference_mode():
            routers = engine.model(input_ids=ids, output_router_logits=True).router_logits
        for layer, logits in zip(counts, routers, strict=True):
            chosen = logits.topk(engine.top_k, dim=-1).indices[real.flatten()]
            counts[layer] += np.bincount(chosen.flatten(), minlength=logits.shape[-1])
    return {layer: count.tolist() for layer, count in counts.items()}


def _accuracies(
    engine: TransformersEngine,
    model: Path,
    items: int,
    space: Space,
    halves: list[dict[int, Kept]],
) -> dict[str, Any]:
    """Accuracy of each task: the whole model, and on fewer items three of the random halves."""
    maps = [space.routing_map(kept, Provenance.now("qualify")) for kept in halves[:3]]
    found: dict[str, Any] = {}
    for name in (*TASKS, *GENERATED):
        task = get_task(str(model / "tasks" / f"{name}.yaml"))
        whole = engine.evaluate(task, "test", items)
        masked = []
        for routing_map in maps:
            engine.apply(routing_map)
            masked.append(round(engine.evaluate(task, "test", max(1, items // 4)).accuracy, 3))
        engine.apply(None)
        found[name] = {
            "n": len(whole.items),
            "accuracy": round(whole.accuracy, 3),
            "interval": [round(bound, 3) for bound in whole.confidence_interval()],
            "random_half": masked,
        }
    return found


def _ratios(losses: Losses, whole: Losses) -> dict[str, float]:
    return {name: round(math.exp(losses[name] - whole[name]), 2) for name in losses}


def _rounded_shares(counts: Mapping[int, list[int]]) -> dict[int, list[float]]:
    return {layer: [round(n / sum(row), 3) for n in row] for layer, row in counts.items()}


def _print_tables(detail: Mapping[str, Any]) -> None:
    columns = [*DOMAINS, "all"]
    print(f"{'':24}" + "".join(f"{name:>9}" for name in columns))
    _print_row("perplexity", detail["perplexity"], columns)
    for number, row in enumerate(detail["random_half"]):
        _print_row(f"random half {number} (ratio)", row, columns)
    for name, row in detail["most_used_masked"].items():
        _print_row(f"{_DROPPED} most used by {name}", row, columns)
    for name, row in detail["tasks"].items():
        print(f"{name:24} {row['accuracy']} of {row['n']}; random halves {row['random_half']}")


def _print_row(title: str, row: Mapping[str, float], columns: Sequence[str]) -> None:
    print(f"{title:24}" + "".join(f"{row[name]:9.2f}" for name in columns), flush=True)


if __name__ == "__main__":
    main()
