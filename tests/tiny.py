"""Tiny random models under the hub's tensor names, small enough to make in every test.

Import as ``from tests.tiny import make_tiny_mixtral``.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

_WORDS = (
    "the a of and to in is it on for with as by at from or an be this that he she they we you i "
    "cat dog bird fish tree sun moon star sea hill road house door king queen child water fire "
    "one two three four five six red green blue old new small big good sees finds takes gives "
    "runs sings sleeps reads question answer which what who where when why how not all some no"
)
_SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
KINDS = ("sliced", "mapped", "w_rm", "w_em")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|assistant|> ' if m['role'] == 'assistant' else '<|user|> ' }}{{ m['content'] }} "
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tiny_mixtral(
    folder: Path,
    *,
    layers: int = 2,
    experts: int = 8,
    top_k: int = 2,
    hidden: int = 64,
    intermediate: int = 96,
    heads: int = 2,  # heads of 32: the smallest that vLLM attends with on a CPU
    kv_heads: int = 2,
    vocab: int = 128,
    tie: bool = False,
    dtype: str = "float32",
    seed: int = 0,
    shards: int = 1,
) -> Path:
    """Write a random Mixtral checkpoint with a tokenizer into ``folder`` and return it.

    The same arguments give the same bytes. Routers have a spread that makes tokens choose
    experts clearly, and experts are large enough that pruning one changes the logits.

    :param shards: number of safetensors files (one with an index file where more than one)
    """
    options = {key: value for key, value in locals().items() if key != "folder"}
    shutil.copytree(_cached(**options), folder, dirs_exist_ok=True)
    return folder


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-models-")  # removed when Python exits


@functools.cache
def _cached(*, shards: int, **options: Any) -> Path:
    folder = Path(tempfile.mkdtemp(dir=_scratch().name))
    model = _random_model(**options)
    expected = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    size = expected * 2 if shards == 1 else max(expected // shards + largest // 8, 1)
    model.save_pretrained(folder, max_shard_size=size)
    files = list(folder.glob("*.safetensors"))
    assert shards == 1 or len(files) > 1, files
    word_tokenizer(options["vocab"]).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["num_local_experts"] == options["experts"]
    return folder


def _random_model(
    *,
    layers: int,
    experts: int,
    top_k: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    vocab: int,
    tie: bool,
    dtype: str,
    seed: int,
) -> Any:
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        num_hidden_layers=layers,
        num_local_experts=experts,
        num_experts_per_tok=top_k,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        sliding_window=None,
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = MixtralForCausalLM(config).eval()
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.dim() > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * _scale(name, weight))
    return model.to(getattr(torch, dtype))


def _scale(name: str, weight: Any) -> float:
    """Return the standard deviation of a weight, so that no part drowns another."""
    fan_in = float(weight.shape[-1])
    if name.endswith("gate.weight"):
        return 2.0 / fan_in**0.5  # normalised inputs give logits with a deviation of about 2
    if "experts" in name:
        return 1.5 / fan_in**0.5
    if "embed" in name or "lm_head" in name:
        return 1.5 / fan_in**0.5
    return 1.0 / fan_in**0.5


def make_tiny_llama(folder: Path) -> Path:
    """Write a random dense Llama with the vocabulary of `make_tiny_mixtral` and return it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=1,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def word_tokenizer(vocab: int) -> Any:
    """Return a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = list(dict.fromkeys((*_SPECIAL, *_WORDS.split(), *".,:?!")))[:vocab]
    words += [f"w{i}" for i in range(vocab - len(words))]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def random_map(base: Path, rng: Any, *, kinds: tuple[str, ...] = KINDS, keep: int = 1) -> Any:
    """Return a random `RoutingMap` for a checkpoint of ``make_tiny_mixtral``.

    Each layer gets its own E' >= ``keep``, top-k and kind; draws come from the numpy generator
    ``rng``. Kept experts are in any order.

    :param kinds: subset of ``KINDS`` to draw from: ``sliced`` and ``mapped`` are one-hot, ``w_rm``
        has a continuous router map over kept experts, ``w_em`` continuous experts and router map
    """
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.provenance import Provenance
    from vllm_moe_prune.routing_map import RoutingMap

    config = json.loads((base / "config.json").read_text())
    matrices: dict[str, Any] = {}
    layers = [
        _random_layer(layer, config["num_local_experts"], str(rng.choice(kinds)), rng, keep)
        for layer in range(config["num_hidden_layers"])
    ]
    for fields in layers:
        matrices.update(fields.pop("matrices"))
    return RoutingMap.build(
        model_type=config["model_type"],
        base=Checkpoint.open(base).fingerprint(),
        layers=layers,
        matrices=matrices,
        provenance=Provenance(method="random"),
    )


def _random_layer(layer: int, experts: int, kind: str, rng: Any, keep: int) -> dict[str, Any]:
    count = int(rng.integers(keep, experts + 1))
    kept = [int(i) for i in rng.choice(experts, count, replace=False)]  # in any order
    one_hot: dict[str, Any] = {"kept": kept}
    experts_entry, rows, matrices = one_hot, None, {}
    if kind in ("w_rm", "w_em"):
        rows = {"matrix": f"layers.{layer}.w_rm"}
        matrices[rows["matrix"]] = rng.random((count, experts)) + 2.0 * _one_hot(kept, experts)
    if kind == "w_em":
        experts_entry = {"matrix": f"layers.{layer}.w_em"}
        matrices[experts_entry["matrix"]] = rng.normal(0, 0.2, (count, experts)) + _one_hot(
            kept, experts
        )
    return {
        "layer": layer,
        "num_experts": experts,
        "num_kept": count,
        "top_k": int(rng.integers(1, min(count, 3) + 1)),
        "experts": experts_entry,
        "router": "sliced" if kind == "sliced" else "mapped",
        "router_rows": rows,
        "matrices": matrices,
    }


def _one_hot(kept: list[int], experts: int) -> Any:
    import numpy as np

    return np.eye(experts)[kept]
