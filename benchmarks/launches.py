"""How many kernels scoring would launch on a GPU, and how often it would wait for one.

Counted on a CPU, per layer and batch, with what the layer itself does: what one more batch adds to
a pass, over the layers. A wait is a number or a shape that the host needs, or a tensor that is
copied to or from it. Weight criteria and the embedding, which are not of a batch and a layer, are
left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.dummy_model import Shape
from benchmarks.random_model import write_random_model
from offline.calibration import expert_blocks, hidden, outliers
from offline.calibration.calibrate import calibrate
from offline.calibration.corpus import Domain
from offline.calibration.walk import Walk
from offline.calibration.weights import weight_statistics
from offline.engines.local.transformers import TransformersEngine
from offline.runs.device import batch_tokens
from vllm_moe_prune.provenance import DataIdentity

_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "bincount")
_LENGTH = 512  # tokens of a sequence
_NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_unsafe_view")  # beside views
_TRANSFERS = tuple((m, f) for m in (hidden, outliers) for f in ("write_tensor", "read_tensor"))


class Launches(TorchDispatchMode):
    """Counts what would be launched on a GPU, and what would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.name().startswith(_NO_KERNEL))
        self.waits += any(name in func.name() for name in _WAITS)
        if func.name().startswith(("aten::index.", "aten::index_put")):
            places = [i for i in args[1] if i is not None]
            self.waits += any(i.dtype == torch.bool for i in places)
        return func(*args, **(kwargs or {}))


def of_many_experts(folder: Path) -> dict[str, int]:
    """Return those of a batch as a GPU takes it: E = 128, k = 8, 8,192 tokens, D = 2048."""
    shape = Shape(64, 8, layers=1, heads=2, kv_heads=2, experts=128, top_k=8, vocab=128)
    return per_layer_and_batch(write_random_model(folder, shape), batch_tokens("cuda"), width=2048)


def per_layer_and_batch(model: Path, tokens: int, *, width: int | None = None) -> dict[str, int]:
    """Return the kernels and waits of one more batch of so many tokens, a multiple of 512.

    :param model: small: only its experts and top-k play a part
    :param width: hidden size of the model that it stands for, whose outputs a GPU takes in pieces
    """
    engine = TransformersEngine(model, dtype="float32", tokens_per_batch=tokens)
    vocab, own = engine.model.get_input_embeddings().weight.shape
    found = []
    with _pieces_of(own / (width or own)):
        for batches in (1, 2):
            shape = (batches * tokens // _LENGTH, _LENGTH)
            ids = np.random.default_rng(0).integers(0, vocab, shape)
            text = Domain("random", ids, DataIdentity(name="random", count=len(ids), sha256=""))
            with _uncounted(), Launches() as seen, _counted_transfers(seen):
                calibrate(engine, (text,))
            found.append((seen.count, seen.waits))
    layers = len(engine.layers)
    names = ("launches", "waits")
    return {name: (b - a) // layers for name, a, b in zip(names, *found, strict=True)}


@contextmanager
def _pieces_of(share: float) -> Iterator[None]:
    """Take as many pieces as a GPU would, if rows were longer by 1 / share."""
    with mock.patch.dict(
        expert_blocks._PIECE, {"cpu": int(expert_blocks._PIECE_ELSEWHERE * share)}
    ):
        yield


@contextmanager
def _uncounted() -> Iterator[None]:
    """Let what is not of a batch and a layer pass unseen."""

    def quiet(plain: Any) -> Any:
        def call(*given: Any) -> Any:
            with _disable_current_modes():
                return plain(*given)

        return call

    with (
        mock.patch.object(Walk, "enter", quiet(Walk.enter)),
        mock.patch(f"{calibrate.__module__}.weight_statistics", quiet(weight_statistics)),
    ):
        yield


@contextmanager
def _counted_transfers(seen: Launches) -> Iterator[None]:
    def counting(plain: Any) -> Any:
        def call(*given: Any) -> None:
            seen.waits += 1
            plain(*given)

        return call

    plain = [(module, name, getattr(module, name)) for module, name in _TRANSFERS]
    for module, name, function in plain:
        setattr(module, name, counting(function))
    try:
        yield
    finally:
        for module, name, function in plain:
            setattr(module, name, function)
