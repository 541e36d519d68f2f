"""The demo model: a dense base, upcycled into a Mixtral checkpoint with eight experts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.demo.card import CARD
from offline.runs.output import staged
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import let_others_read
from vllm_moe_prune.reading import read_object

if TYPE_CHECKING:  # torch is slow to import, and `vmprune --help` must not
    from torch import Tensor

    from offline.demo.deltas import Deltas
    from offline.demo.dense import Dense
    from offline.runs.progress import Reporter

_LAYERS_PER_SHARD = 8
_DATA = "vllm_moe_prune_demo"  # a distribution of its own: a serving host does without it


def deltas_path() -> Path:
    """Return the installed file of deltas, ``deltas.safetensors``.

    :raises PruneError: if the distribution that holds it is not installed
    """
    try:
        return Path(str(files(_DATA) / "deltas.safetensors"))
    except ModuleNotFoundError:
        raise PruneError(
            "the data of the demo model (20 MB) are not installed",
            hint="pip install 'vllm-moe-prune[demo]', or in a clone: make install",
        ) from None


def make_demo_model(
    out: Path,
    *,
    force: bool = False,
    reporter: Reporter | None = None,
    deltas_file: Path | None = None,
) -> Path:
    """Write the demo model's checkpoint to ``out`` and return ``out``.

    A Mixtral model in Hugging Face layout: bf16 shards with index, config, generation config,
    tokenizer with chat template, model card. Downloads the dense base (93 MB) the first time.
    ``out`` appears complete or not at all; an existing one is replaced only with ``force``.

    :param deltas_file: the experts; the installed ones if not given
    :raises PruneError: if ``out`` is there or the deltas are not
    """
    deltas_file = deltas_file or deltas_path()  # before torch, which is another extra
    from offline.demo.dense import LAYERS

    tell = reporter.step if reporter else _silent
    with staged(out, force=force) as partial:
        if reporter:
            reporter.stage("making the demo model", LAYERS + 2)
        _write_model(partial, deltas_file, tell)
    return out


def _silent(amount: int = 1, note: str = "") -> None:
    """Nobody listens."""


def _write_model(folder: Path, deltas_file: Path, tell: Callable[..., None]) -> None:
    import torch

    from offline.demo.deltas import load_deltas
    from offline.demo.dense import load_dense

    deltas = load_deltas(deltas_file)
    dense = load_dense(torch.float32)
    tell(note="dense base")
    _write_shards(folder, dense, deltas, tell)
    _write_configs(folder, deltas)
    _write_tokenizer(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    tell(note="tokenizer and configuration")


def layer_tensors(dense: Dense, deltas: Deltas, layer: int) -> dict[str, Tensor]:
    """All bf16 tensors of one decoder layer under the names of a Mixtral checkpoint."""
    import torch

    prefix = f"model.layers.{layer}."
    tensors = {
        name: weight
        for name, weight in dense.weights.items()
        if name.startswith(prefix) and ".mlp." not in name
    }
    moe = f"{prefix}block_sparse_moe."
    tensors[f"{moe}gate.weight"] = deltas.routers[layer]
    projections = [dense.layer(layer, f"mlp.{p}_proj") for p in ("gate", "up", "down")]
    for expert in range(deltas.experts):
        weights = deltas.expert_weights(expert, layer, *projections)
        for name, weight in weights.items():
            tensors[f"{moe}experts.{expert}.{name}.weight"] = weight
    return {name: weight.to(torch.bfloat16).contiguous() for name, weight in tensors.items()}


def _shards(dense: Dense, deltas: Deltas, tell: Callable[..., None]) -> Iterator[dict[str, Tensor]]:
    """Tensors of each shard, one shard in memory at a time; the outer tensors come first."""
    import torch

    layers = deltas.routers.shape[0]
    shard = {
        name: dense.weights[name].to(torch.bfloat16)
        for name in ("model.embed_tokens.weight", "model.norm.weight")
    }
    for layer in range(layers):
        shard |= layer_tensors(dense, deltas, layer)
        tell(note=f"layer {layer}")
        if (layer + 1) % _LAYERS_PER_SHARD == 0 or layer == layers - 1:
            yield shard
            shard = {}


def _write_shards(folder: Path, dense: Dense, deltas: Deltas, tell: Callable[..., None]) -> None:
    from safetensors.torch import save_file

    count = -(-deltas.routers.shape[0] // _LAYERS_PER_SHARD)
    index: dict[str, str] = {}
    size = 0
    for number, tensors in enumerate(_shards(dense, deltas, tell), start=1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / name, {"format": "pt"})
        let_others_read(folder / name)
        index |= dict.fromkeys(tensors, name)
        size += sum(t.numel() * t.element_size() for t in tensors.values())
    whole = {"metadata": {"total_size": size}, "weight_map": dict(sorted(index.items()))}
    _write_json(folder / "model.safetensors.index.json", whole)


def _write_configs(folder: Path, deltas: Deltas) -> None:
    from offline.demo import dense as n

    config: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "head_dim": n.HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": n.HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": n.FFN,
        "max_position_embeddings": 8192,
        "num_attention_heads": n.HEADS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": n.LAYERS,
        "num_key_value_heads": n.KV_HEADS,
        "num_local_experts": deltas.experts,
        "output_router_logits": False,
        "rms_norm_eps": n.EPS,
        "rope_theta": n.THETA,
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": 49152,
    }
    _write_json(folder / "config.json", config)
    # text between documents is separated by token 0, a chat turn ends with token 2
    generation = {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2}
    _write_json(folder / "generation_config.json", generation)


def _write_tokenizer(folder: Path) -> None:
    """The base's tokenizer and chat template, under a class that every transformers has."""
    from offline.demo.dense import load_tokenizer

    load_tokenizer().save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = read_object(path)
    for key in ("backend", "is_local", "local_files_only"):
        config.pop(key, None)
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    _write_json(path, config)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
