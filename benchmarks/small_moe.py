"""A small model of a family, made of the test-bed's weights and trained for some minutes.

Families whose top-k weights are not renormalised have no small released model. The test-bed's
Mixtral has experts of which each knows something else; here they are put into another family's
network, and trained on the test-bed's text until they go with weights that do not sum to one.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.criteria import Texts
from benchmarks.testbed.model import TOKENIZER, WEIGHTS, configs
from benchmarks.testbed.network import Shape
from offline.runs.output import staged

SHAPE = Shape()
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "moe_intermediate_size": SHAPE.intermediate,
        "shared_expert_intermediate_size": SHAPE.intermediate,
        "decoder_sparse_step": 1,
    },
    "olmoe": {"architectures": ["OlmoeForCausalLM"]},
}
_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_LENGTH, _ROWS, _RATE, _WARMUP = 256, 4, 5e-4, 20


def make_small_moe(
    family: str, out: Path, train: Texts, steps: int, tell: Callable[[str], None]
) -> Path:
    """Make a model and write it as a checkpoint; what is there already is left as it is.

    :param train: domain -> documents
    :param steps: of 1,024 tokens
    :returns: ``out``
    """
    if out.exists():
        return out
    with staged(out) as folder:
        write_family(family, folder)
        blocks = _blocks(folder, train, steps * _ROWS)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        _train(model, blocks, lambda text: tell(f"{family}: {text}"))
        model.save_pretrained(folder)
    return out


def write_family(family: str, folder: Path) -> None:
    """Write the test-bed's weights as a checkpoint of a family."""
    own = configs(SHAPE)
    kept = {k: v for k, v in own["config.json"].items() if k != "num_local_experts"}
    config = kept | FAMILIES[family] | {"model_type": family, "num_experts": SHAPE.experts}
    config |= {"norm_topk_prob": False, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(own["tokenizer_config.json"]))
    shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
    before = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
    after = dict(_renamed(before))
    more = _of_qwen2 if family == "qwen2_moe" else _of_olmoe
    for layer in range(SHAPE.layers):
        after |= more(f"model.layers.{layer}.", before)
    save_file(after, folder / "model.safetensors", {"format": "pt"})


def _renamed(before: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in before.items():
        new = name.replace(".block_sparse_moe.", ".mlp.")
        for old, projection in _PROJECTIONS.items():
            new = new.replace(f".{old}.weight", f".{projection}.weight")
        yield new, tensor.contiguous()


def _of_qwen2(layer: str, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what a Qwen2-MoE layer has besides: biases, and a shared expert that adds nothing."""
    width, inner = SHAPE.hidden, SHAPE.intermediate
    generator = torch.Generator().manual_seed(0)
    shared = f"{layer}mlp.shared_expert"
    drawn = {name: (inner, width) for name in ("gate_proj", "up_proj")}
    return {
        **{f"{layer}self_attn.{name}_proj.bias": torch.zeros(width) for name in "qkv"},
        **{
            f"{shared}.{name}.weight": torch.randn(size, generator=generator) * 0.04
            for name, size in drawn.items()
        },
        f"{shared}.down_proj.weight": torch.zeros(width, inner),
        f"{shared}_gate.weight": torch.zeros(1, width),
    }


def _of_olmoe(layer: str, before: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return what an OLMoE layer has besides: norms of queries and keys, as large as those were."""
    norm = before[f"{layer}input_layernorm.weight"]
    found = {}
    for name in "qk":
        projection = before[f"{layer}self_attn.{name}_proj.weight"]
        size = (projection * norm).norm() / SHAPE.hidden**0.5
        found[f"{layer}self_attn.{name}_norm.weight"] = torch.full((SHAPE.hidden,), float(size))
    return found


def _blocks(folder: Path, train: Texts, count: int) -> torch.Tensor:
    """Return token ids [count, length] of all domains' documents, mixed by a seed.

    :raises ValueError: if there are fewer
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = [text for name in sorted(train) for text in train[name]]
    random.Random(0).shuffle(documents)
    ids: list[int] = []
    for text in documents:
        if len(ids) >= count * _LENGTH:
            break
        ids += [*tokenizer.encode(text), tokenizer.eos_token_id]
    if len(ids) < count * _LENGTH:
        raise ValueError(f"the text has {len(ids) // _LENGTH} blocks, {count} are needed")
    return torch.tensor(ids[: count * _LENGTH]).view(count, _LENGTH)


def _train(model: Any, blocks: torch.Tensor, tell: Callable[[str], None]) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, betas=(0.9, 0.98), fused=True)
    batches = blocks.split(_ROWS)
    for step, batch in enumerate(batches):
        left = 1 - step / len(batches)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min((step + 1) / _WARMUP, left)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step == 0 or (step + 1) % 25 == 0:
            tell(f"step {step + 1} of {len(batches)}, loss {loss.item():.3f}")
    model.eval()
