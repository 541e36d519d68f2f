"""Bytes per second of building a pruned checkpoint, against `cp` of as many bytes.

    python -m benchmarks.rewrite

A synthetic Mixtral of random bytes is built at half its experts (all work, with fsync), and
shards of the same volume are copied with `cp` and synced, alternating. A second model of another
size and expert count shows that the peak memory of a build does not grow with the model. The last
line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

GIB = 1024**3
_LAYERS_PER_SHARD = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a synthetic Mixtral in 16 bits per weight; half of its experts are kept."""

    layers: int
    experts: int
    hidden: int = 1024
    intermediate: int = 3584
    vocab: int = 32000


LARGE = Shape(layers=12, experts=8)  # 2.1 GiB
SMALL = Shape(layers=2, experts=16)  # 0.7 GiB


@click.command(context_settings={"show_default": True})
@click.option("--rounds", default=3, type=click.IntRange(min=1))
@click.option("--folder", type=click.Path(path_type=Path), help="where to work; a temporary folder")
def main(rounds: int, folder: Path | None) -> None:
    """Print the ratio of bytes per second, build to cp, and the peak memory of two builds."""
    with tempfile.TemporaryDirectory(prefix="bench-rewrite-", dir=folder) as name:
        work = Path(name)
        for size, shape in (("large", LARGE), ("small", SMALL)):
            _child("make", json.dumps(asdict(shape)), work / size)
        measured = [_round(work, number) for number in range(rounds)]
        small = _build(work, "small")
    ratios = [build["bytes_per_second"] / cp for build, cp in measured]
    builds = [build for build, _ in measured]
    report = {
        "name": "build_bytes_per_second_over_cp",
        "value": round(statistics.median(ratios), 3),
        "unit": "ratio",
        "detail": {
            "ratio_per_round": [round(ratio, 3) for ratio in ratios],
            "build_gib_per_second": [round(b["bytes_per_second"] / GIB, 3) for b in builds],
            "cp_gib_per_second": [round(cp / GIB, 3) for _, cp in measured],
            "peak_rss_gib": {
                "large": round(max(b["peak_rss"] for b in builds) / GIB, 3),
                "small": round(small["peak_rss"] / GIB, 3),
            },
            "base_bytes": {"large": builds[0]["base_bytes"], "small": small["base_bytes"]},
            "built_bytes": {"large": builds[0]["bytes"], "small": small["bytes"]},
            "shapes": {"large": asdict(LARGE), "small": asdict(SMALL)},
        },
    }
    print(json.dumps(report))


def _round(work: Path, number: int) -> tuple[dict[str, Any], float]:
    """Measure both sides once, the other one first in every second round."""
    if number % 2:
        speed = _copy(work)
        return _build(work, "large"), speed
    build = _build(work, "large")
    return build, _copy(work)


def _build(work: Path, size: str) -> dict[str, Any]:
    """Build in a process of its own, whose peak memory is that of the build alone."""
    out = work / "built"
    found: dict[str, Any] = json.loads(_child("build", work / size, out))
    _remove(out)
    print(f"build {size}: {found['bytes_per_second'] / GIB:.2f} GiB/s, ", end="", file=sys.stderr)
    print(f"peak {found['peak_rss'] / GIB:.2f} GiB", file=sys.stderr)
    return found


def _copy(work: Path) -> float:
    """Copy half of the base's shards, sync them, and return the bytes per second."""
    shards = sorted((work / "large").glob("*.safetensors"))
    shards = shards[: len(shards) // 2]
    out = work / "copied"
    out.mkdir()
    begin = time.perf_counter()
    subprocess.run(["cp", *shards, out], check=True)
    subprocess.run(["sync", *(out / shard.name for shard in shards)], check=True)
    seconds = time.perf_counter() - begin
    speed = sum(shard.stat().st_size for shard in shards) / seconds
    _remove(out)
    print(f"cp: {speed / GIB:.2f} GiB/s", file=sys.stderr)
    return speed


def _remove(folder: Path) -> None:
    """Remove a folder and wait until the disk has nothing left to do for it."""
    subprocess.run(["rm", "-r", folder], check=True)
    subprocess.run(["sync"], check=True)


def _child(verb: str, *arguments: object) -> str:
    command = [sys.executable, "-m", "benchmarks.rewrite", verb, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def build_once(base: Path, out: Path) -> None:
    """Build with every second expert kept and print bytes, seconds and peak memory as JSON."""
    from offline.build.build import build
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.layer_map import LayerMap, Selection
    from vllm_moe_prune.provenance import Provenance
    from vllm_moe_prune.routing_map import RoutingMap

    begin = time.perf_counter()
    checkpoint = Checkpoint.open(base)
    layers = tuple(
        LayerMap(
            layer=layer,
            num_experts=count,
            num_kept=count // 2,
            top_k=2,
            experts=Selection(kept=tuple(range(0, count, 2))),
        )
        for layer, count in checkpoint.expert_counts().items()
    )
    routing_map = RoutingMap.build(
        model_type="mixtral",
        base=checkpoint.fingerprint(),
        layers=layers,
        provenance=Provenance.now("benchmark"),
    )
    plan = build(checkpoint, routing_map, out)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    facts = {
        "bytes": plan.num_bytes,
        "base_bytes": plan.base_bytes,
        "bytes_per_second": plan.num_bytes / seconds,
        "peak_rss": peak,
    }
    print(json.dumps(facts))


def make_model(folder: Path, shape: Shape) -> None:
    """Write a checkpoint of random bytes, two layers in a shard."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    config = {"model_type": "mixtral", "num_local_experts": shape.experts, "num_experts_per_tok": 2}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    weight_map = {}
    shards = list(_shards(shape))
    for number, shapes in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {
            name: np.frombuffer(rng.bytes(2 * rows * columns), np.float16).reshape(rows, columns)
            for name, (rows, columns) in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shapes, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    subprocess.run(["sync"], check=True)


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, int]]]:
    from vllm_moe_prune.layouts import LAYOUTS

    layout = LAYOUTS["mixtral"]
    hidden, intermediate = shape.hidden, shape.intermediate
    tensors = {"model.embed_tokens.weight": (shape.vocab, hidden)}
    for layer in range(shape.layers):
        tensors[layout.router_name(layer)] = (shape.experts, hidden)
        for projection in "qkvo":
            name = f"model.layers.{layer}.self_attn.{projection}_proj.weight"
            tensors[name] = (hidden, hidden)
        for expert in range(shape.experts):
            for projection in layout.projections:
                down = projection == "w2"
                size = (hidden, intermediate) if down else (intermediate, hidden)
                tensors[layout.expert_name(layer, expert, projection)] = size
        if (layer + 1) % _LAYERS_PER_SHARD == 0 or layer + 1 == shape.layers:
            yield tensors
            tensors = {}


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", fields, target]:
            make_model(Path(target), Shape(**json.loads(fields)))
        case ["build", source, target]:
            build_once(Path(source), Path(target))
        case _:
            main()
