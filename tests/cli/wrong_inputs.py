"""A folder of what people name by mistake: right files, wrong ones, and some of other things."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from offline.plan.recipe import PlanRecipe
from offline.results.sensitivity import LayerSensitivity, Sensitivity
from tests.criteria.scores import scores_of
from tests.families.models import make_family
from tests.families.mtp import add_mtp
from tests.sample_files import write_task
from tests.sample_maps import build_compact, mixed_map, uniform_map
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.provenance import Provenance

KEPT = [(0, 2, 5, 7)] * 4
_RECIPES = {
    "nodata.yaml": "task: a\noutput_type: generate_until\n",
    "twice.yaml": "base: {model: base}\nmethod: {keep: 4, keep: 5}\n",
    "misplaced.yaml": "base: {model: base}\nmethod: {name: eep, keep: 4, task: sciq}\n",
    "foreign.yaml": "base: {model: base}\nmethod: {name: frequency, keep: 4}\nlottery: {}\n",
    "list.yaml": "- base\n",
    "broken.yaml": "base: {model: [\n",
    "nan.yaml": "base: {model: base}\nmethod: {keep: .nan}\n",
    "twice-task.yaml": "task: a\noutput_type: generate_until\ntask: b\n",
    "accelerate.yaml": "distributed_type: FSDP\n",
    "lambda.yaml": "distributed_type: [\n",
}  # fmt: skip


def write_inputs(folder: Path) -> None:
    """Write models, maps, scores, recipes, tasks and texts."""
    base = make_tiny_mixtral(folder / "base", layers=4, shards=3)
    other = make_tiny_mixtral(folder / "other", layers=4, seed=1)
    uniform_map(base, KEPT).save(folder / "map")
    uniform_map(other, KEPT).save(folder / "other-map")
    mixed_map(base).save(folder / "mixed")
    build_compact(base, folder / "compact")
    _quantised(base, folder / "quantised")
    shutil.copytree(other, folder / "truncated")
    with (folder / "truncated" / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    make_family("deepseek_v3", folder / "grouped")
    shutil.copytree(folder / "grouped", folder / "mtp")
    add_mtp("deepseek_v3", folder / "mtp")
    fingerprint = Checkpoint.open(base).fingerprint()
    scores_of((0, 1, 2, 3), base=fingerprint, gradients=False, experts=8).save(folder / "scores")
    scores_of((0, 1, 2, 3), gradients=False, experts=8).save(folder / "other-scores")
    (folder / "sensitivity").mkdir()
    _sensitivity(fingerprint).save(folder / "sensitivity")
    write_task(folder)
    for name, text in _RECIPES.items():
        (folder / name).write_text(text)
    _texts(folder)


def _quantised(base: Path, folder: Path) -> None:
    shutil.copytree(base, folder)
    for file in folder.glob("*.safetensors"):
        tensors = load_file(file)
        coded = {n: t.to(torch.float8_e4m3fn) if "experts" in n else t for n, t in tensors.items()}
        save_file(coded, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))


def _sensitivity(base: BaseFingerprint) -> Sensitivity:
    layers = (
        LayerSensitivity(layer=layer, num_experts=8, losses={2: 1.0 / (1 + layer)})
        for layer in range(4)
    )
    return Sensitivity(
        base=base,
        choice=PlanRecipe(ratio=0.0).choice,
        loss=3.0,
        tokens=100,
        layers=tuple(layers),
        provenance=Provenance.now("sensitivity"),
    )


def _texts(folder: Path) -> None:
    (folder / "short.txt").write_text("the cat sees a dog .\n")
    (folder / "empty.txt").write_text("")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 8)
    (folder / "binary.yaml").write_bytes(bytes(range(256)) * 8)
    (folder / "folder.txt").mkdir()
    (folder / "folder.yaml").mkdir()
    (folder / "folder").mkdir()
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("mine")
    (folder / "file").write_text("a file")
