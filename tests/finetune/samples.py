"""A tiny model and examples to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from offline.finetune.examples import NO_LOSS, Examples
from offline.finetune.finetune import Finetuned, finetune
from offline.finetune.settings import FinetuneSettings
from offline.finetune.where import Where
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.provenance import DataIdentity

IDENTITY = (DataIdentity(name="sample", count=1, sha256="sha256:0"),)
SETTINGS = FinetuneSettings(learning_rate=1e-2, batch=4, warmup=0.2)


def tiny(folder: Path, **options: Any) -> Path:
    return make_tiny_mixtral(folder, hidden=32, intermediate=16, heads=1, kv_heads=1, **options)


def text(count: int = 12, length: int = 16, vocab: int = 128, seed: int = 0) -> Examples:
    """Sequences of few words, so that there is something to learn."""
    ids = np.random.default_rng(seed).integers(5, 15, (count, length), dtype=np.int32)
    return Examples(ids, ids.copy(), IDENTITY)


def ragged(count: int = 11, length: int = 16, seed: int = 0) -> Examples:
    """Answers of different lengths behind prompts, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 100, (count, length), dtype=np.int32)
    labels = ids.copy()
    for row in range(count):
        begin, end = sorted(rng.choice(np.arange(1, length + 1), 2, replace=False))
        labels[row, :begin] = labels[row, end:] = NO_LOSS
        ids[row, end:] = 2
    return Examples(ids, labels, IDENTITY)


def listed_of(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a teacher lists: the likeliest tokens [T, K] and their log-probabilities."""
    log_probs, tokens = logits.log_softmax(-1).topk(count)
    return tokens, log_probs


def tune(
    model: Path,
    out: Path,
    examples: Examples | None = None,
    where: Where | None = None,
    settings: FinetuneSettings = SETTINGS,
    **changes: Any,
) -> Finetuned:
    names = ("dtype", "force", "reporter", "teacher")
    other = {name: changes.pop(name) for name in names if name in changes}
    seed = changes.pop("seed", 3)
    return finetune(
        model,
        examples or text(),
        settings.model_copy(update=changes),
        out,
        seed=seed,
        where=where or Where(),
        **other,
    )


def bytes_of(folder: Path) -> dict[str, bytes]:
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.raw(name) for name in checkpoint.tensors}


def weights_of(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Tensors in float32."""
    checkpoint = Checkpoint.open(folder)
    return {name: checkpoint.tensor(name).float().numpy() for name in checkpoint.tensors}


def assert_alike(one: Path, two: Path) -> None:
    """Check that two trainings ended with the same weights, but for the order of sums."""
    weights = weights_of(one)
    for name, weight in weights_of(two).items():
        np.testing.assert_allclose(weight, weights[name], atol=2e-4, err_msg=name)
