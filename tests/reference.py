"""The oracle: a transformers model whose MoE blocks are replaced by naive loops over the map.

Nothing of the product's mathematics is used here, only its file format: scores over all E
experts, dropped experts' scores removed before top-k, W_RM after the softmax, W_EM on weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vllm_moe_prune.layer_map import LayerMap
from vllm_moe_prune.routing_map import RoutingMap


class NaiveMoe(torch.nn.Module):
    """One pruned MoE block, token by token and expert by expert."""

    def __init__(self, block: Any, layer: LayerMap, routing_map: RoutingMap) -> None:
        super().__init__()
        w_em = torch.tensor(routing_map.expert_matrix(layer))
        dtype = block.gate.weight.dtype
        gate_up, down = block.experts.gate_up_proj.float(), block.experts.down_proj.float()
        self.gate_up = torch.einsum("je,eid->jid", w_em, gate_up).to(dtype)
        self.down = torch.einsum("je,edi->jdi", w_em, down).to(dtype)
        self.gate = block.gate.weight
        self.w_rm = torch.tensor(routing_map.router_matrix(layer))
        self.sliced, self.top_k = layer.router == "sliced", layer.top_k

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        tokens = hidden.reshape(-1, hidden.shape[-1])
        out = torch.stack([self._token(token) for token in tokens])
        return out.reshape(hidden.shape)

    def _token(self, token: torch.Tensor) -> torch.Tensor:
        logits = (self.gate @ token).float()
        if self.sliced:  # dropped experts' logits at -inf, then softmax: their scores are removed
            dropped = self.w_rm.sum(dim=0) == 0
            logits = logits.masked_fill(dropped, float("-inf"))
        scores = self.w_rm @ torch.softmax(logits, dim=0)
        best = sorted(range(len(scores)), key=lambda j: -float(scores[j]))[: self.top_k]
        total = sum(float(scores[j]) for j in best)
        result = torch.zeros_like(token)
        for j in best:
            gate, up = (self.gate_up[j] @ token).chunk(2)
            expert = self.down[j] @ (torch.nn.functional.silu(gate) * up)
            result = result + (float(scores[j]) / total) * expert
        return result


def reference_model(base: Path, routing_map: RoutingMap | None, dtype: torch.dtype) -> Any:
    """Load the base with transformers and replace its MoE blocks as the map says."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    if routing_map is not None:
        for layer in routing_map.layers:
            decoder = model.model.layers[layer.layer]
            decoder.mlp = NaiveMoe(decoder.mlp, layer, routing_map)
    return model


@torch.no_grad()
def greedy(model: Any, prompt: list[int], steps: int) -> tuple[list[int], list[list[float]]]:
    """Return ``steps`` greedy tokens and, for each, the log-probabilities of the vocabulary."""
    ids, logprobs = list(prompt), []
    for _ in range(steps):
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        logprobs.append(torch.log_softmax(logits, dim=-1).tolist())
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :], logprobs
