"""Models made on the spot: random weights, in which a map makes a clear difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.dummy_model import write_tokenizer
from offline.calibration.corpus import Domain
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection
from vllm_moe_prune.provenance import DataIdentity, Provenance
from vllm_moe_prune.routing_map import RoutingMap

VOCAB = 512
# Heads of 64, sizes in multiples of 128: every kernel of vLLM's for GPUs takes them.
_TINY: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
    },
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2},
    "llama": {"num_hidden_layers": 1},
}
# Of a model that a CPU in a test is given: no kernel of vLLM's takes it.
MINUTE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
# Of Qwen3-30B-A3B, but for the number of layers and the vocabulary.
QWEN3_30B: dict[str, Any] = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}


def write_model(
    folder: Path,
    family: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    **sizes: Any,
) -> Path:
    """Write a random model of a family, made on ``device``, and return ``folder``."""
    config = transformers.AutoConfig.for_model(family, **{**_TINY, **_EXPERTS[family], **sizes})
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = transformers.AutoModelForCausalLM.from_config(config)
    finally:
        torch.set_default_dtype(usual)
    _spread(model, torch.Generator(device).manual_seed(0))
    model.save_pretrained(folder)
    write_tokenizer(folder, config.vocab_size)
    return folder


@torch.no_grad()
def _spread(model: Any, generator: torch.Generator) -> None:
    """Draw matrices anew: routers that choose clearly, experts that no part drowns."""
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        gate = name.endswith(("gate.weight", "router.weight"))
        factor = 2.0 if gate else 1.5 if "experts" in name or "embed" in name else 1.0
        inner = weight.shape[-2] if _is_transposed(model, name) else weight.shape[-1]
        weight.normal_(0, factor / inner**0.5, generator=generator)


def _is_transposed(model: Any, name: str) -> bool:
    return "experts" in name and getattr(model.config, "model_type", "") == "gpt_oss"


def text(vocab: int, sequences: int, length: int, seed: int = 0) -> Domain:
    """Return sequences of random tokens, none of them a special one."""
    token_ids = np.random.default_rng(seed).integers(3, vocab, (sequences, length))
    return Domain("random", token_ids, DataIdentity(name="random", count=sequences, sha256=""))


def prompts(count: int = 6) -> list[list[int]]:
    """Return token ids of prompts of several lengths."""
    rng = np.random.default_rng(5)
    return [[1, *rng.integers(3, VOCAB, 8 + 5 * number).tolist()] for number in range(count)]


def kept_map(
    base: Path,
    kept: list[int],
    *,
    top_k: int | None = None,
    mapped: bool = False,
    continuous: bool = False,
    seed: int = 7,
) -> RoutingMap:
    """Return a map that keeps ``kept[i]`` random experts of the i-th layer with experts.

    :param mapped: whether routers keep all their rows, and a W_RM chooses among their scores
    :param continuous: whether that W_RM is more than a choice of rows
    """
    rng = np.random.default_rng(seed)
    checkpoint = Checkpoint.open(base)
    active = top_k or checkpoint.layout.top_k(checkpoint.config)
    layers, matrices = [], {}
    for (number, experts), count in zip(checkpoint.expert_counts().items(), kept, strict=True):
        ids, rows = _ids(rng, experts, count), None
        if continuous:
            rows = Selection(matrix=f"layers.{number}.w_rm")
            noise = rng.random((count, experts)) / experts
            matrices[f"layers.{number}.w_rm"] = (np.eye(experts)[list(ids)] + noise).astype("f4")
        layers.append(
            LayerMap(
                layer=number,
                num_experts=experts,
                num_kept=count,
                top_k=min(active, count),
                experts=Selection(kept=ids),
                router="mapped" if mapped else "sliced",
                router_rows=rows,
            )
        )
    return _map(checkpoint, layers, matrices)


def mixed_map(base: Path, counts: tuple[int, int, int, int], seed: int = 0) -> RoutingMap:
    """Return a map with everything that there is, of a base of 4 layers with 8 experts.

    Layer 0 has a sliced router, layer 1 a mapped one with a continuous W_RM, layer 2 merged
    experts, layer 3 one active expert.
    """
    rng = np.random.default_rng(seed)
    first, second, third, last = counts
    kept = [_ids(rng, 8, count) for count in counts]
    w_rm = 0.2 * rng.random((second, 8)) + np.eye(8)[list(kept[1])]
    w_em = rng.normal(0, 0.2, (third, 8)) + np.eye(8)[list(kept[2])]
    rows = 0.2 * rng.random((third, 8)) + np.eye(8)[list(kept[2])]
    layers = [
        _layer(0, first, Selection(kept=kept[0])),
        _layer(
            1,
            second,
            Selection(kept=kept[1]),
            router="mapped",
            router_rows=Selection(matrix="layers.1.w_rm"),
        ),
        _layer(
            2,
            third,
            Selection(matrix="layers.2.w_em"),
            router="mapped",
            router_rows=Selection(matrix="layers.2.w_rm"),
        ),
        _layer(3, last, Selection(kept=kept[3]), top_k=1),
    ]
    matrices = {"layers.1.w_rm": w_rm, "layers.2.w_em": w_em, "layers.2.w_rm": rows}
    return _map(
        Checkpoint.open(base), layers, {n: m.astype(np.float32) for n, m in matrices.items()}
    )


def _layer(layer: int, kept: int, experts: Selection, *, top_k: int = 2, **more: Any) -> LayerMap:
    return LayerMap(layer=layer, num_experts=8, num_kept=kept, top_k=top_k, experts=experts, **more)


def _ids(rng: np.random.Generator, experts: int, count: int) -> tuple[int, ...]:
    return tuple(int(i) for i in rng.choice(experts, count, replace=False))


def _map(
    checkpoint: Checkpoint, layers: list[LayerMap], matrices: dict[str, Any] | None = None
) -> RoutingMap:
    return RoutingMap.build(
        model_type=checkpoint.layout.model_type,
        base=checkpoint.fingerprint(),
        layers=tuple(layers),
        matrices=matrices or {},
        provenance=Provenance(method="random"),
    )
