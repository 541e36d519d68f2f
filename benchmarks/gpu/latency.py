"""What a decode step costs with sliced and with mapped routers, on layers of a real size."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.gpu.answers import gpu_share
from benchmarks.gpu.models import QWEN3_30B, kept_map, write_model
from benchmarks.gpu.steps import Bench
from vllm_moe_prune.checkpoint import Checkpoint

_LAYERS = 4
_PROMPT = 32  # tokens


def decode_latency(bench: Bench) -> None:
    """Step B3: milliseconds of a step of the base and of E' of E experts kept, three ways."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all engines in this process, in turn
    sizes: dict[str, Any] = {"num_hidden_layers": 2}
    if not bench.tiny:
        sizes = {**QWEN3_30B, "num_hidden_layers": _LAYERS}
    base = write_model(bench.folder / "base", "qwen3_moe", device=bench.device, **sizes)
    if bench.on_gpu:
        torch.cuda.empty_cache()
    batches, tokens, rounds = ((1, 4), 8, 1) if bench.tiny else ((1, 64), 65, 5)
    engines = {
        name: _engine(bench, base, extra, max(batches))
        for name, extra in _ways(bench.folder, base).items()
    }
    found: dict[str, dict[str, float]] = {name: {} for name in engines}
    for batch in batches:
        times: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(rounds + 1):  # the first round is not counted
            for name, llm in engines.items():
                took = _milliseconds(llm, batch, tokens)
                if number:
                    times[name].append(took)
        for name, took_each in times.items():
            found[name][f"batch_{batch}_ms"] = round(median(took_each), 4)
    bench.note(decode_step=found, layers=sizes["num_hidden_layers"])
    one = f"batch_{batches[0]}_ms"
    bench.note(mapped_over_sliced_at_batch_1=round(found["mapped"][one] / found["sliced"][one], 3))
    bench.check(min(min(one.values()) for one in found.values()) > 0, "a step took no time")
    if not bench.on_gpu:
        bench.leave_out("CUDA graphs")


def _ways(folder: Path, base: Path) -> Mapping[str, dict[str, Any]]:
    """Return name -> arguments of `vllm.LLM`: the base, and maps that keep 90 of 128 experts."""
    counts = Checkpoint.open(base).expert_counts().values()
    kept = [round(count * 90 / 128) for count in counts]
    ways: dict[str, dict[str, Any]] = {"base": {}}
    for name, how in {
        "sliced": {},
        "mapped": {"mapped": True},
        "continuous": {"mapped": True, "continuous": True},
    }.items():
        routing_map = kept_map(base, kept, **how)
        routing_map.save(folder / name)
        extra = {"routing_map": str(folder / name)}
        ways[name] = {"load_format": "pruned_moe", "model_loader_extra_config": extra}
    return ways


def _engine(bench: Bench, base: Path, extra: Mapping[str, Any], most: int) -> Any:
    from vllm import LLM

    return LLM(
        str(base),
        dtype="bfloat16",
        max_model_len=256,
        max_num_seqs=most,
        kv_cache_memory_bytes=2**30 if bench.on_gpu else 2**27,
        enforce_eager=not bench.on_gpu,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **gpu_share(bench),
        **extra,
    )


def _milliseconds(llm: Any, batch: int, tokens: int) -> float:
    """Return the time of one decode step: of an answer of ``tokens`` less that of one token."""
    long, short = (_seconds(llm, batch, count) for count in (tokens, 1))
    return (long - short) / (tokens - 1) * 1e3


def _seconds(llm: Any, batch: int, tokens: int) -> float:
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    inputs: Sequence[Any] = [
        TokensPrompt(prompt_token_ids=[3 + (131 * user + 17 * i) % 500 for i in range(_PROMPT)])
        for user in range(batch)
    ]
    begin = time.perf_counter()
    llm.generate(inputs, sampling, use_tqdm=False)
    return time.perf_counter() - begin
