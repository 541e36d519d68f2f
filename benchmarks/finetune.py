"""Peak memory and speed of a finetune for each trainable setting.

    python -m benchmarks.finetune --model build/testbed

Each setting trains on the same random tokens in a process of its own; its memory is what the
process has more at its peak than before the model was loaded, beside what the estimate said. The
last line of stdout is one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from offline.finetune.examples import Examples
from offline.finetune.finetune import finetune
from offline.finetune.memory import memory_need
from offline.finetune.parts import parts_of
from offline.finetune.schedule import micro_batch
from offline.finetune.settings import FinetuneSettings
from offline.finetune.where import Where
from offline.runs.device import pick_device
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.tuning import Trainable

_SAY = Console(stderr=True, highlight=False, markup=False)
_MIB = 1024**2


@click.command(context_settings={"show_default": True})
@click.option("--model", type=click.Path(path_type=Path, exists=True), required=True)
@click.option("--steps", default=4)
@click.option("--batch", default=8)
@click.option("--micro-batch", default=4)
@click.option("--length", default=512)
@click.option("--device", default="auto")
@click.option("--checkpointing/--no-checkpointing", default=False)
@click.option("--mixed-precision/--no-mixed-precision", default=False)
def main(
    model: Path,
    steps: int,
    batch: int,
    micro_batch: int,
    length: int,
    device: str,
    checkpointing: bool,
    mixed_precision: bool,
) -> None:
    """Measure, print a table, and one line of JSON."""
    common = FinetuneSettings(
        batch=batch,
        micro_batch=micro_batch,
        checkpointing=checkpointing,
        mixed_precision=mixed_precision,
    )
    found: dict[str, dict[str, Any]] = {}
    for trainable in get_args(Trainable):
        settings = common.model_copy(update={"trainable": trainable})
        _SAY.print(f"training {trainable} ...")
        found[trainable] = _measure(model, settings, steps, length, pick_device(device))
    Console(stderr=True).print(_table(found))
    report = {
        "name": "finetune_memory_router_over_all",
        "value": round(found["router"]["peak_mib"] / found["all"]["peak_mib"], 3),
        "unit": "ratio of memory that training adds at its peak",
        "detail": {
            "settings": found,
            "tokens_per_step": batch * length,
            "micro_batch": micro_batch,
            "steps": steps,
            "checkpointing": checkpointing,
            "mixed_precision": mixed_precision,
            "device": pick_device(device),
            "model": model.name,
        },
    }
    click.echo(json.dumps(report))


def _measure(
    model: Path, settings: FinetuneSettings, steps: int, length: int, device: str
) -> dict[str, Any]:
    """Train in a process of its own; returns what `run` says of it."""
    code = "import sys; from benchmarks.finetune import run; print(run(*sys.argv[1:]))"
    given = [settings.model_dump_json(), str(steps), str(length), device]
    command = [sys.executable, "-c", code, str(model), *given]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def run(model: str, settings_json: str, steps: str, length: str, device: str) -> str:
    """Train a model on random tokens in this process; returns JSON."""
    # What libraries take is not the training's.
    import peft  # noqa: F401
    import transformers.models.mixtral.modeling_mixtral  # noqa: F401

    import offline.finetune.trainer  # noqa: F401

    settings = FinetuneSettings.model_validate_json(settings_json)
    checkpoint = Checkpoint.open(Path(model))
    vocab, count = int(checkpoint.config["vocab_size"]), int(steps) * settings.batch
    ids = np.random.default_rng(0).integers(0, vocab, (count, int(length)), dtype=np.int32)
    before = psutil.Process().memory_info().rss if device == "cpu" else 0
    with tempfile.TemporaryDirectory(prefix="vmprune-") as folder:
        done = finetune(
            Path(model),
            Examples(ids, ids, ()),
            settings,
            Path(folder) / "out",
            seed=0,
            where=Where(device=device),
        )
    need = memory_need(
        checkpoint, settings, length=int(length), micro=micro_batch(settings, processes=1)
    )
    fields = {
        "parameters": done.tuning.parameters,
        "peak_mib": round((done.peak_bytes - before) / _MIB, 1),
        "estimate_mib": round(need.total / _MIB, 1),
        "tokens_per_second": round(done.tuning.tokens / done.seconds),
        "parts": {part.name: part.trained for part in parts_of(checkpoint, settings)},
    }
    return json.dumps(fields)


def _table(found: dict[str, dict[str, Any]]) -> Table:
    table = Table("trained", "parameters", "peak MiB", "estimated MiB", "tokens/s")
    for trainable, row in found.items():
        names = ("parameters", "peak_mib", "estimate_mib", "tokens_per_second")
        table.add_row(trainable, *(f"{row[name]:,}" for name in names))
    return table


if __name__ == "__main__":
    main()
