"""The engine on transformers, in this process: any routing map of a loaded base, by hooks."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from offline.engines.base import ExpertUse
from offline.engines.encoding import Encoder
from offline.engines.local.agreement import BaseDistributions, compare, remember
from offline.engines.local.experts import LayerControl, find_layers
from offline.engines.local.packing import Batch
from offline.engines.local.placement import placement
from offline.engines.local.pretrained import Dtype, from_pretrained
from offline.engines.local.reconstruction import (
    MAX_SUBSETS,
    Discrepancy,
    Subset,
    measure,
    subsets_of,
)
from offline.engines.local.scoring import PackedLM
from offline.runs.device import batch_tokens
from offline.tasks.catalog import Split, Task
from offline.tasks.harness import local_task, run, texts_of, without_examples
from offline.tasks.results import TaskResult
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap


@dataclass(frozen=True, slots=True)
class Continuation:
    """What greedy decoding gave after a prompt: token ids and the log-probability of each."""

    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    text: str


class TransformersEngine:
    """Loads a base checkpoint once and behaves as any routing map of it (see `Engine`).

    :param model: folder of a checkpoint that transformers can open
    :param device: a torch device; ``cuda`` is several GPUs where the model needs them
    :param dtype: of weights and activations; ``auto`` takes the checkpoint's
    :param tokens_per_batch: tokens of one forward pass while scoring; `batch_tokens` if not given
    :param share_contexts: whether the context that choices have in common is computed once
    :param offload: folder for the decoder layers of a model that is larger than memory; they are
        read from there (or from the checkpoint) layer by layer
    :raises PruneError: if the folder has no supported model, or one that needs vLLM
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str = "cpu",
        dtype: Dtype = "bfloat16",
        tokens_per_batch: int | None = None,
        share_contexts: bool = True,
        offload: Path | None = None,
    ) -> None:
        config = read_config(model)
        self.layout: MoeLayout = layout_of(config)
        self.top_k = self.layout.top_k(config)
        self.folder = model
        _refuse_compact(model)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        placed = placement(model, dtype, device, offload)
        self.model: Any = from_pretrained(model, dtype, **placed).eval()
        self._layers = find_layers(self.model, self.layout)
        self.tokens_per_batch = tokens_per_batch or batch_tokens(device)
        self.max_length = most_tokens(self.layout.text_config(config)) or 2048
        self._scorer = PackedLM(
            self.model,
            self.tokenizer,
            tokens_per_batch=self.tokens_per_batch,
            max_length=self.max_length,
            share_contexts=share_contexts,
        )
        self._applied: RoutingMap | None = None
        self._base = BaseDistributions()

    @property
    def expert_counts(self) -> Mapping[int, int]:
        """Return decoder layer -> E of the base."""
        return {number: layer.num_experts for number, layer in self._layers.items()}

    @property
    def layers(self) -> Mapping[int, LayerControl]:
        """Return decoder layer -> its router and experts."""
        return self._layers

    @property
    def applied(self) -> RoutingMap | None:
        """Return the map now applied."""
        return self._applied

    @property
    def reader(self) -> Encoder:
        """Return what reads texts with the map now applied."""
        return self._scorer

    @functools.cached_property
    def fingerprint(self) -> BaseFingerprint:
        """What a routing map for this base carries."""
        return Checkpoint.open(self.folder).fingerprint()

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as ``routing_map`` says; None makes it the base again, bit by bit.

        One-hot experts are masks on the router. Layers with continuous W_EM are combined in place
        from a copy of the layer's experts in host memory, which is kept until ``apply(None)``.

        :raises PruneError: if the map was not made for a model with these experts
        """
        if routing_map is not None:
            own = BaseFingerprint(config="", index="", routers="")
            routing_map.check_base(own, self.expert_counts, allow_other=True)
        for layer in self._layers.values():
            layer.apply(routing_map)
        self._applied = routing_map

    def evaluate(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Score items ``first`` to ``limit`` (exclusive) of a split with the map now applied.

        Ranges that begin and end at multiples of 25 give each item the same bits however they
        are cut (see packing.py).

        :raises PruneError: if the task's data cannot be had or the range holds no item
        """
        return run(self._scorer, task, split, limit, first)

    def agreement(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Compare with the base on the items' texts (see `Engine.agreement` and agreement.py).

        The first call for an item also runs the base on it; ``tokens`` counts both.
        """
        texts, key = texts_of(task, split, limit, first, self._scorer), (task, split)
        self._scorer.tokens, started = 0, time.perf_counter()
        if any((key, name) not in self._base for name, _ in texts):
            with self._as_base():
                remember(self._scorer, texts, first, key, self._base)
        items = compare(self._scorer, texts, first, key, self._base)
        seconds = time.perf_counter() - started
        return TaskResult(task.name, split, items, self._scorer.tokens, seconds)

    def usage(self, task: Task, split: Split, limit: int | None = None) -> dict[int, ExpertUse]:
        """Watch the router on the items: each question once with all its choices, or each text.

        With a map applied, tokens are those of its routing, under the ids of the base's experts;
        in a layer with continuous W_EM they are of the new experts. Scores are always the base
        router's, over all E.

        :returns: decoder layer -> use of its experts; tokens sum to tokens x top-k of that layer
        """
        found = {}
        for number, layer in self._layers.items():
            experts = layer.num_experts
            found[number] = ExpertUse(np.zeros(experts, np.int64), np.zeros(experts, np.float64))
            layer.use = found[number]
        try:
            for batch in self._batches(task, split, limit):
                for layer in self._layers.values():
                    layer.real = batch.real
                self._scorer.forward(batch)
        finally:
            for layer in self._layers.values():
                layer.use = layer.real = None
        return found

    def reconstruction_losses(
        self,
        task: Task,
        split: Split,
        limit: int | None,
        keep: int | Mapping[int, int],
        *,
        top_k: int | Mapping[int, int] | None = None,
        max_subsets: int = MAX_SUBSETS,
        seed: int = 0,
        sliced: bool = False,
    ) -> dict[int, dict[Subset, float]]:
        """Measure what each layer's output loses with only ``keep`` of its experts (NAEE).

        The map now applied plays no part: inputs and full outputs are the base's.

        :param keep: experts to keep, of every layer or by decoder layer
        :param top_k: active experts with a subset, likewise; None takes the base's, at most
            ``keep``
        :param sliced: whether routers lose the rows of the other experts
        :param max_subsets: where a layer has more, so many random ones by ``seed`` are tried
        :returns: decoder layer -> kept experts -> Frobenius norm over the tokens of the items
        :raises PruneError: if the data cannot be had or there is no such subset
        """
        subsets, layers = {}, {}
        for number, layer in self._layers.items():
            kept = keep if isinstance(keep, int) else keep[number]
            usual = min(self.top_k, kept)
            active = top_k if isinstance(top_k, int) else (top_k or {}).get(number, usual)
            subsets[number] = subsets_of(layer.num_experts, kept, most=max_subsets, seed=seed)
            layers[number] = Discrepancy.of(
                layer, subsets[number], active, self.top_k, sliced=sliced
            )
        batches = self._batches(task, split, limit)
        with self._as_base():
            measure(self._scorer, batches, layers)
        return {
            number: dict(
                zip(subsets[number], found.squared.clamp_min(0).sqrt().tolist(), strict=True)
            )
            for number, found in layers.items()
        }

    def _batches(self, task: Task, split: Split, limit: int | None) -> list[Batch]:
        """Return the texts of the items, ready to run: questions with choices where there are."""
        task, limit = without_examples(task, split, limit)
        if task.kind == "choice":
            return self._scorer.batches(local_task(task, split, limit, lm=self._scorer).texts)
        texts = texts_of(task, split, limit, lm=self._scorer)
        return self._scorer.passage_batches([text for _, text in texts])

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        """Be the base for a while, then again what the map now applied says."""
        applied = self._applied
        if applied is None:
            yield
            return
        self.apply(None)
        try:
            yield
        finally:
            self.apply(applied)

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


def _refuse_compact(folder: Path) -> None:
    """A compact checkpoint lacks experts that its config.json counts: never load it as if whole."""
    if (folder / MAP_FILE).is_file() and RoutingMap.load(folder).form == "compact":
        raise PruneError(
            f"{folder} is a compact checkpoint, which only vLLM can open",
            hint="give the base model and apply the routing map to it",
        )
