"""What a mapped router takes: `MappedRouter` against PyTorch's operations one by one.

    python -m benchmarks.routing [--device cuda]

One layer, with 64 of 128 experts and top-8 unless told otherwise, by kind of map and number of
tokens. On a GPU the calls of a round are recorded as one graph and replayed, as vLLM does; on a CPU
they are just called, and both sides are PyTorch's operations. Sides take turns. Prints a Markdown
table; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import click
import torch

from benchmarks.medians import median_of
from vllm_moe_prune.mapped_router import MappedRouter
from vllm_moe_prune.routing import route

_KINDS = ("one-hot", "positive", "negative")
Call = Callable[[], Any]


@click.command(context_settings={"show_default": True})
@click.option("--device", default="cpu")
@click.option("--experts", default=128)
@click.option("--kept", default=64)
@click.option("--top-k", default=8)
@click.option("--tokens", default="1,16,256", help="of a step")
@click.option("--renormalise/--no-renormalise", default=True)
@click.option("--calls", default=48, help="of a round: as many as a model has layers")
@click.option("--rounds", default=20)
def main(
    device: str, tokens: str, renormalise: bool, calls: int, rounds: int, **sizes: int
) -> None:
    """Time both sides and print."""
    rows: dict[str, Any] = {}
    for kind in _KINDS:
        for count in map(int, tokens.split(",")):
            sides = _sides(kind, count, device, renormalise, **sizes)
            replayed = [_replayed(call, calls, device) for call in sides]
            took = [[_seconds(call, device) for call in replayed] for _ in range(rounds + 1)][1:]
            each = [median_of([row[side] / calls * 1e6 for row in took]) for side in (0, 1)]
            ratio = median_of([one / other for other, one in took])
            rows[f"{kind}, {count}"] = {
                "before_us": round(each[0]["median"], 1),
                "now_us": round(each[1]["median"], 1),
                "ratio": ratio,
            }
    click.echo("| map, tokens | one by one, us | now, us | ratio |\n|---|---|---|---|")
    for name, row in rows.items():
        ratio = row["ratio"]["median"]
        click.echo(f"| {name} | {row['before_us']} | {row['now_us']} | {ratio} |")
    ratios = [row["ratio"]["median"] for row in rows.values()]
    report = {
        "name": "mapped_router_now_over_one_by_one",
        "value": round(math.exp(sum(map(math.log, ratios)) / len(ratios)), 3),
        "unit": f"ratio of times, geometric mean, {device}",
        "detail": {**sizes, "renormalise": renormalise, "device": _name(device), "rows": rows},
    }
    click.echo("\n" + json.dumps(report))


def _sides(
    kind: str,
    tokens: int,
    device: str,
    renormalise: bool,
    *,
    experts: int,
    kept: int,
    top_k: int,
) -> tuple[Call, Call]:
    """Return a layer's routing as it was, and as it is."""
    generator = torch.Generator().manual_seed(0)
    w_rm = torch.eye(experts)[torch.randperm(experts, generator=generator)[:kept]]
    if kind != "one-hot":
        noise = torch.rand(kept, experts, generator=generator) / experts
        w_rm += noise if kind == "positive" else noise - 0.5 / experts
    logits = torch.randn(tokens, experts, generator=generator).to(device, torch.bfloat16)
    router = MappedRouter(w_rm.numpy(), "softmax").to(device)
    given = w_rm.to(device)

    def before() -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = route(logits, given, top_k, score="softmax", renormalise=renormalise)
        return weights, ids.to(torch.int32)

    return before, lambda: router(logits, logits, top_k, renormalise)


def _replayed(call: Call, calls: int, device: str) -> Call:
    """Return so many calls as one; on a GPU recorded."""
    call()  # what is compiled is compiled now

    def several() -> None:
        for _ in range(calls):
            call()

    if not device.startswith("cuda"):
        return several
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        several()
    return graph.replay


def _seconds(call: Call, device: str) -> float:
    begin = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


if __name__ == "__main__":
    main()
