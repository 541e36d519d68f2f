"""A small model of a family, trained from scratch on the test-bed's text for some minutes.

Families whose top-k weights are not renormalised have no small released model. Seeded; the text is
read once, in an order that a step counts in.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.criteria import Texts
from benchmarks.testbed.model import TOKENIZER, configs
from benchmarks.testbed.network import Shape
from offline.runs.output import staged

EXPERTS, TOP_K = 16, 4
_SIZES: dict[str, Any] = {
    "vocab_size": 4096, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "norm_topk_prob": False,
    "router_aux_loss_coef": 0.01, "output_router_logits": True,
    "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {
        "moe_intermediate_size": 96, "shared_expert_intermediate_size": 192,
        "intermediate_size": 384,
    },
    "olmoe": {"intermediate_size": 96},
}  # fmt: skip
_LENGTH, _ROWS, _RATE, _WARMUP, _FALL = 256, 4, 2e-3, 50, 0.3


def make_small_moe(
    family: str, out: Path, train: Texts, steps: int, tell: Callable[[str], None]
) -> Path:
    """Train a model and write it as a checkpoint; what is there already is left as it is.

    :param train: domain -> documents
    :param steps: of 1,024 tokens
    :returns: ``out``
    """
    if out.exists():
        return out
    with staged(out) as folder:
        shutil.copyfile(TOKENIZER, folder / "tokenizer.json")
        tokenizer = configs(Shape())["tokenizer_config.json"]
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        model = _trained(family, _blocks(folder, train, steps * _ROWS), steps, tell)
        model.config.output_router_logits = False
        model.save_pretrained(folder)
    return out


def _blocks(folder: Path, train: Texts, count: int) -> torch.Tensor:
    """Return token ids [count, length] of all domains' documents, mixed.

    :raises ValueError: if there are fewer
    """
    from transformers import AutoTokenizer

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


def _trained(family: str, blocks: torch.Tensor, steps: int, tell: Callable[[str], None]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, **_SIZES, **FAMILIES[family])
    ).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=_RATE, betas=(0.9, 0.98), weight_decay=0.1, fused=True
    )
    for step, batch in enumerate(blocks.split(_ROWS)):
        left = (steps - step) / (_FALL * steps)
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min((step + 1) / _WARMUP, 1.0, left)
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            tell(f"{family}: step {step + 1} of {steps}, loss {loss.item():.3f}")
    return model.eval()
