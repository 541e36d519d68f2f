"""What `vmprune score` does with either engine: text to tokens, what it takes, the scores."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.calibration.corpus import DEFAULT_LENGTH
from offline.cli.scored import warn
from offline.runs.device import DType

if TYPE_CHECKING:
    from offline.calibration.corpus import Domain
    from offline.calibration.memory import MemoryEstimate
    from offline.calibration.scores import Scores
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.provenance import Provenance

_ITEM_BYTES: dict[DType, int | None] = {"auto": None, "bfloat16": 2, "float32": 4}
_OWN = ("pack", "chat_template")  # told where they are given


def _texts(base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]) -> tuple[Domain, ...]:
    """Return the text of all parts as the model's tokens."""
    from transformers import AutoTokenizer

    from offline.calibration.corpus import load_domains

    return load_domains(
        parts,
        AutoTokenizer.from_pretrained(base.folder, local_files_only=True),
        length=settings["length"],
        pack=settings["pack"],
        chat_template=settings["chat_template"] or "auto",
        seed=settings["seed"],
    )


def _provenance(
    base: Checkpoint,
    domains: Sequence[Domain],
    settings: dict[str, Any],
    dtype: DType,
    more: Mapping[str, Any],
) -> Provenance:
    """Say how scores are made.

    :param more: settings of the engine, where it is not the default
    """
    from offline.calibration.corpus import text_settings
    from vllm_moe_prune.hub import origin
    from vllm_moe_prune.provenance import Provenance

    return Provenance.now(
        "score",
        settings={
            "calibration": settings["calibration"],
            "length": settings["length"] or DEFAULT_LENGTH,
            **{name: settings[name] for name in _OWN if settings[name] is not None},
            "gradients": settings["gradients"],
            "dtype": dtype,
            **more,
            **origin(base.folder),
            **text_settings(domains),
        },
        seed=settings["seed"],
        data=tuple(domain.identity for domain in domains),
    )


def score_in_vllm(
    base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]
) -> tuple[MemoryEstimate, tuple[Domain, ...], Scores]:
    """Score inside a running vLLM.

    :returns: the memory that was expected, the text as tokens, and the scores
    """
    import psutil

    from offline.calibration.live import STEP_TOKENS, engine_settings, score_live
    from offline.calibration.memory import estimate_live
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.runs.device import pick_dtype
    from serve.server import cpu_build

    domains = _texts(base, parts, settings)
    dtype = pick_dtype(settings["dtype"], "cpu" if cpu_build() else "cuda")
    ranks = settings["tensor_parallel"]
    arguments: dict[str, Any] = {"dtype": dtype, "tensor_parallel_size": ranks}
    if settings["gpu_memory"] is not None:
        arguments["gpu_memory_utilization"] = settings["gpu_memory"]
    engine = engine_settings(base, domains, step_tokens=STEP_TOKENS, **arguments)
    expected = estimate_live(
        base,
        parts,
        length=settings["length"] or DEFAULT_LENGTH,
        step_tokens=engine["max_num_batched_tokens"],
        cache=engine["kv_cache_memory_bytes"],
        item_bytes=_ITEM_BYTES[dtype],
        ranks=ranks,
        on_host=cpu_build(),
        program=psutil.Process().memory_info().rss,
    )
    warn(expected)
    made = _provenance(base, domains, settings, dtype, {"engine": "vllm", "tensor_parallel": ranks})
    complete(base.folder)
    with progress() as reporter:
        scores = score_live(base.folder, domains, reporter=reporter, provenance=made, **arguments)
    return expected, domains, scores


def score_in_transformers(
    base: Checkpoint, parts: Sequence[Any], settings: dict[str, Any]
) -> tuple[MemoryEstimate, tuple[Domain, ...], Scores]:
    """Score with transformers, in this process; as `score_in_vllm`."""
    import psutil

    from offline.calibration.memory import estimate
    from offline.cli.progress import progress
    from offline.data.models import complete
    from offline.engines.quantised.need import dequantised
    from offline.runs.device import batch_tokens, pick_device, pick_dtype

    domains = _texts(base, parts, settings)
    device = pick_device(settings["device"])
    dtype = pick_dtype(settings["dtype"], device)
    estimated = partial(
        estimate,
        base,
        parts,
        length=settings["length"] or DEFAULT_LENGTH,
        tokens_per_batch=batch_tokens(device),
        item_bytes=_ITEM_BYTES[dtype],
        gradients=settings["gradients"],
        program=psutil.Process().memory_info().rss if device == "cpu" else 0,
    )
    expected = estimated(offload=settings["offload"] is not None)
    if (found := dequantised(base.folder)) is not None:
        growth = found.size(dtype) / estimated(offload=False).memory["weights"]
        for sizes, name in ((expected.memory, "weights"), (expected.disk, "offloaded layers")):
            if name in sizes:
                sizes[name] = round(sizes[name] * growth)
    warn(expected)

    from offline.calibration.calibrate import calibrate
    from offline.engines.local.transformers import TransformersEngine

    provenance = _provenance(base, domains, settings, dtype, {})
    complete(base.folder)
    with _inside(settings["offload"]) as offload, progress() as reporter:
        engine = TransformersEngine(base.folder, device=device, dtype=dtype, offload=offload)
        scores = calibrate(
            engine,
            domains,
            gradients=settings["gradients"],
            scratch=settings["scratch"],
            reporter=reporter,
            provenance=provenance,
        )
    return expected, domains, scores


@contextmanager
def _inside(folder: Path | None) -> Iterator[Path | None]:
    """Give a folder inside one that the user named, and remove it afterwards."""
    if folder is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vmprune-", dir=folder) as inside:
        yield Path(inside)
