"""The engine on transformers, in this process: any routing map of a loaded base, by hooks."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from offline.engines.base import TaskResult
from offline.engines.experts import find_layers
from offline.engines.scoring import PackedLM
from offline.tasks.catalog import Split, Task
from offline.tasks.harness import local_task, run
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import MoeLayout, layout_of
from vllm_moe_prune.routing_map import MAP_FILE, BaseFingerprint, RoutingMap

Dtype = Literal["auto", "bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """What greedy decoding gave after a prompt: token ids and the log-probability of each."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str


class TransformersEngine:
    """Loads a base checkpoint once and behaves as any routing map of it (see `Engine`).

    :param model: folder of a checkpoint that transformers can open
    :param device: a torch device
    :param dtype: of weights and activations; ``auto`` takes the checkpoint's
    :param tokens_per_batch: tokens of one forward pass while scoring; 4096 on a CPU, else 8192
    :raises PruneError: if the folder has no supported model, or one that needs vLLM
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "cpu",
        dtype: Dtype = "bfloat16",
        tokens_per_batch: int | None = None,
    ) -> None:
        config = read_config(model)
        self.layout: MoeLayout = layout_of(config)
        self.top_k = self.layout.top_k(config)
        self.folder = model
        _refuse_compact(model)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        self.model: Any = _load(model, dtype).to(device).eval()
        self._layers = find_layers(self.model, self.layout)
        self._scorer = PackedLM(
            self.model,
            self.tokenizer,
            tokens_per_batch=tokens_per_batch or (4096 if device == "cpu" else 8192),
            max_length=int(config.get("max_position_embeddings", 2048)),
        )

    @property
    def expert_counts(self) -> Mapping[int, int]:
        """Return decoder layer -> E of the base."""
        return {number: layer.num_experts for number, layer in self._layers.items()}

    @functools.cached_property
    def fingerprint(self) -> BaseFingerprint:
        """What a routing map for this base carries."""
        return Checkpoint.open(self.folder).fingerprint()

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as ``routing_map`` says; None makes it the base again, bit by bit.

        One-hot experts are masks on the router. Layers with continuous W_EM are combined in place
        from a copy of the layer's experts, which is kept until the next ``apply``.

        :raises PruneError: if the map was not made for a model with these experts
        """
        if routing_map is not None:
            own = BaseFingerprint(config="", index="", routers="")
            routing_map.check_base(own, self.expert_counts, allow_other=True)
        for layer in self._layers.values():
            layer.apply(routing_map)

    def evaluate(self, task: Task, split: Split, limit: int | None = None) -> TaskResult:
        """Score the first ``limit`` items of a split with the map now applied.

        :raises PruneError: if the task's data cannot be had or the limit is below one
        """
        return run(self._scorer, task, split, limit)

    def usage(
        self, task: Task, split: Split, limit: int | None = None
    ) -> dict[int, NDArray[np.int64]]:
        """Count the tokens routed to each expert on the items: each question once, all choices.

        With a map applied, the counts are of its routing, under the ids of the base's experts; in
        a layer with continuous W_EM they are of the new experts.

        :returns: decoder layer -> counts [E]; each sums to tokens x top-k of that layer
        """
        batches = self._scorer.batches(local_task(task, split, limit).texts)
        for layer in self._layers.values():
            layer.counts = np.zeros(layer.num_experts, np.int64)
        try:
            for batch in batches:
                for layer in self._layers.values():
                    layer.real = batch.real
                self._scorer.forward(batch)
            return {n: c.counts for n, c in self._layers.items() if c.counts is not None}
        finally:
            for layer in self._layers.values():
                layer.counts = layer.real = None

    def logits(self, input_ids: torch.Tensor | Sequence[Sequence[int]]) -> torch.Tensor:
        """Return the logits [B, L, V] in float32 of token ids [B, L]."""
        ids = torch.as_tensor(input_ids, device=self.model.device)
        with torch.inference_mode():
            logits: torch.Tensor = self.model(input_ids=ids, use_cache=False).logits
        return logits.float().cpu()

    def greedy(
        self, prompts: Sequence[str | Sequence[int]], max_new_tokens: int
    ) -> list[Continuation]:
        """Continue each prompt (text or token ids) with the likeliest tokens, one at a time.

        Stops at the end-of-text token, which is part of the result.
        """
        return [self._greedy(prompt, max_new_tokens) for prompt in prompts]

    def _greedy(self, prompt: str | Sequence[int], max_new_tokens: int) -> Continuation:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        given = torch.tensor([ids], device=self.model.device)
        with torch.inference_mode():
            output = self.model.generate(
                given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self._scorer.eot_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = output.sequences[0, len(ids) :]
        log_probs = torch.cat(output.logits).float().log_softmax(dim=-1)  # [new tokens, V]
        chosen = log_probs[torch.arange(len(new)), new].tolist()
        return Continuation(tuple(new.tolist()), tuple(chosen), self.tokenizer.decode(new))


def _load(folder: Path, dtype: Dtype) -> Any:
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]  # the caller owns the progress
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise PruneError(f"transformers cannot open {folder}: {error}") from error
    finally:
        if shown:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]


def _refuse_compact(folder: Path) -> None:
    """A compact checkpoint lacks experts that its config.json counts: never load it as if whole."""
    if (folder / MAP_FILE).is_file() and RoutingMap.load(folder).form == "compact":
        raise PruneError(
            f"{folder} is a compact checkpoint, which only vLLM can open",
            hint="give the base model and apply the routing map to it",
        )
