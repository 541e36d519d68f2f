"""The released EEP procedure, re-enacted: what the speed of our search is measured against.

transformers runs the model, weights are rewritten for every candidate, and lm-evaluation-harness's
own Hugging Face model scores and generates in padded batches of 32, as EEP's evaluation did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from lm_eval.models.huggingface import HFLM

from offline.tasks.catalog import Split, Task
from offline.tasks.harness import run
from offline.tasks.results import TaskResult
from vllm_moe_prune.checkpoint import read_config
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.routing import route
from vllm_moe_prune.routing_map import RoutingMap

_BATCH = 32
_FUSED = ("gate_up_proj", "down_proj")


class Released:
    """A Mixtral in transformers whose first E' experts are rewritten for each candidate."""

    def __init__(self, model: Path, device: str = "cpu", dtype: str = "auto") -> None:
        self.layout = layout_of(read_config(model))
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            model, dtype=dtype, local_files_only=True
        ).to(device)
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._lm = HFLM(
            pretrained=self.model, tokenizer=tokenizer, batch_size=_BATCH, max_length=1024
        )
        self._lm.tokens = 0  # what the harness resets
        self._blocks = {n: layer.mlp for n, layer in enumerate(self.model.model.layers)}
        self._copies = {
            number: {name: getattr(block.experts, name).detach().clone() for name in _FUSED}
            for number, block in self._blocks.items()
        }
        self._rules: dict[int, tuple[torch.Tensor, int]] = {}
        for number, block in self._blocks.items():
            block.gate.register_forward_hook(self._router(number))

    def _router(self, number: int) -> Any:
        def choose(_: Any, __: Any, output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            w_rm, top_k = self._rules[number]
            weights, ids = route(output[0], w_rm, top_k, score=self.layout.score, renormalise=True)
            return output[0], weights, ids

        return choose

    @torch.no_grad()
    def apply(self, routing_map: RoutingMap) -> None:
        """Write expert j = sum_i W_EM[j, i] * expert i into slot j of every layer."""
        for layer in routing_map.layers:
            experts, copies = self._blocks[layer.layer].experts, self._copies[layer.layer]
            w_em = torch.tensor(routing_map.expert_matrix(layer))
            for name in _FUSED:
                weight = getattr(experts, name)
                for j, row in enumerate(w_em):
                    used = row.nonzero().flatten()
                    total = sum(row[i] * copies[name][i].float() for i in used)
                    weight[j] = total.to(weight.dtype)
            self._rules[layer.layer] = (
                torch.tensor(routing_map.router_matrix(layer)).to(weight.device),
                layer.top_k,
            )

    def evaluate(self, task: Task, split: Split, limit: int) -> TaskResult:
        """Score the first items of a split with the candidate now in the weights."""
        return run(self._lm, task, split, limit)
