"""The engine on vLLM: one live engine that takes any routing map of its base, without reloading."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import transformers
from safetensors.numpy import save

from offline.engines.base import ExpertUse
from offline.engines.encoding import Encoder, TokenPair
from offline.engines.live.start import OwnsVllm, start
from offline.engines.needs import check_whole
from offline.tasks.catalog import Split, Task
from offline.tasks.harness import local_task, run, texts_of, without_examples
from offline.tasks.results import ItemResult, TaskResult
from vllm_moe_prune.checkpoint import Checkpoint, read_config
from vllm_moe_prune.config_keys import most_tokens
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.fingerprint import BaseFingerprint
from vllm_moe_prune.layout import MoeLayout
from vllm_moe_prune.layouts import layout_of
from vllm_moe_prune.live_routing import check_mapped, one_hot_ids
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.substitutes import check_substitutable

Dtype = Literal["auto", "bfloat16", "float32"]
_MAX_LENGTH = 4096


class VllmEngine(OwnsVllm):
    """Loads a base checkpoint into vLLM once and behaves as any routing map of it (see `Engine`).

    The same call gives the same results bit by bit; the same item in another range is batched
    with other items, which may change its scores by rounding.

    :param model: folder of the base checkpoint
    :param max_model_len: tokens that vLLM keeps of a text and its continuation; the base's own
        maximum, up to 4096, unless given. A prompt may have one token less
    :param enforce_eager: False records the model (torch.compile, CUDA graphs): faster steps, but a
        map with fewer active experts saves no time and none may have more than the base
    :param kv_cache_bytes: of the cache; vLLM decides on a GPU, 1 GiB on a CPU unless given
    :param gpu_memory: share of each GPU's memory that vLLM may take
    :param share_contexts: compute what prompts have in common once
    :param answer_tokens: those of longer answers than usual, for which there must be room as well
    :raises PruneError: if vLLM is absent, of another version, or does not start
    """

    def __init__(
        self,
        model: Path,
        *,
        dtype: Dtype = "auto",
        max_model_len: int | None = None,
        enforce_eager: bool = True,
        tensor_parallel_size: int = 1,
        kv_cache_bytes: int | None = None,
        gpu_memory: float | None = None,
        max_num_seqs: int | None = None,
        seed: int = 0,
        share_contexts: bool = True,
        answer_tokens: int = 0,
    ) -> None:
        config = read_config(model)
        self.layout: MoeLayout = layout_of(config)
        self.top_k = self.layout.top_k(config)
        self.folder = model
        self._recorded = not enforce_eager
        check_whole(model)
        own = most_tokens(self.layout.text_config(config)) or 2048
        length = max_model_len or min(own, _MAX_LENGTH + answer_tokens)
        settings = {
            "dtype": dtype,
            "max_model_len": length,
            "enforce_eager": enforce_eager,
            "tensor_parallel_size": tensor_parallel_size,
            "kv_cache_memory_bytes": kv_cache_bytes,
            "gpu_memory_utilization": gpu_memory,
            "max_num_seqs": max_num_seqs,
        }
        given = {key: value for key, value in settings.items() if value is not None}
        self._llm: Any = start(model, {**given, "seed": seed})
        from offline.engines.live.lm import LiveLM

        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self._lm = LiveLM(self._llm, tokenizer, length - 1, share_contexts=share_contexts)
        found = self._lm.ask("moe_attach", os.getpid())
        self._experts = {int(layer): int(count) for layer, count in found["experts"]}
        self._quantised = bool(found["quantised"])
        self._fixed_top_k = bool(found["fixed"])
        self._applied: RoutingMap | None = None
        self._texts: dict[tuple[int, ...], int] = {}  # whose base the worker remembers -> number
        self.pristine_bytes = 0

    @property
    def expert_counts(self) -> Mapping[int, int]:
        """Return decoder layer -> E of the base."""
        return self._experts

    @functools.cached_property
    def fingerprint(self) -> BaseFingerprint:
        """What a routing map for this base carries."""
        return Checkpoint.open(self.folder).fingerprint()

    @property
    def reader(self) -> Encoder:
        """Return what reads texts with the map now applied."""
        return self._lm

    def apply(self, routing_map: RoutingMap | None) -> None:
        """Make the model behave as ``routing_map`` says; None makes it the base again, bit by bit.

        One-hot experts are masks on the router. Layers with continuous W_EM are combined in place
        from a copy in host memory, made once for each layer that needs it and kept
        (``pristine_bytes``, of one worker). Layers that do what the map says are not touched.

        :raises PruneError: if the map was not made for a model with these experts, or asks for
            what this engine cannot do
        """
        if routing_map is not None:
            self._check(routing_map)
        if _digest(routing_map) != _digest(self._applied):
            self._switch(routing_map)
            self._applied = routing_map

    def _check(self, routing_map: RoutingMap) -> None:
        own = BaseFingerprint(config="", index="", routers="")
        routing_map.check_base(own, self.expert_counts, allow_other=True)
        if self._quantised and any(layer.experts.kept is None for layer in routing_map.layers):
            raise PruneError(
                "the experts of this checkpoint are quantised and cannot be merged",
                hint="search on the unquantised model, or prune without merging",
            )
        if not (self.layout.mappable and routing_map.num_groups == 1):
            self._check_choice(routing_map)
        if routing_map.substitutes:
            self._check_substitutes()
        if self._recorded and routing_map.max_top_k > self.top_k:
            raise PruneError(
                f"top-k {routing_map.max_top_k} is more than the base's {self.top_k}, for which "
                "the model was recorded",
                hint="use enforce_eager=True (no --cuda-graphs)",
            )

    def _check_substitutes(self) -> None:
        check_substitutable(self.layout)
        if self._recorded:
            raise PruneError(
                "the model was recorded without the vectors that stand for experts of this map",
                hint="use enforce_eager=True (no --cuda-graphs)",
            )

    def _check_choice(self, routing_map: RoutingMap) -> None:
        """Refuse what a router that does more than to choose the best scores cannot do."""
        for layer in routing_map.layers:
            if layer.router == "mapped":
                ids = one_hot_ids(routing_map.router_matrix(layer))
                check_mapped(layer, ids, self.layout)
            if self._fixed_top_k and layer.top_k != self.top_k:
                raise PruneError(
                    f"layer {layer.layer}: the router of a {self.layout.model_type} model always "
                    f"chooses {self.top_k} experts, not {layer.top_k}"
                )

    def _switch(self, routing_map: RoutingMap | None) -> None:
        """Tell the workers, whatever they do now; what the cache holds is of another model."""
        if routing_map is None:
            self.pristine_bytes = self._lm.ask("moe_apply", None, b"")
        else:
            matrices = save(dict(routing_map.matrices)) if routing_map.matrices else b""
            fields = routing_map.model_dump_json()
            self.pristine_bytes = self._lm.ask("moe_apply", fields, matrices)
        self._lm.forget_prefixes()

    def evaluate(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Score items ``first`` to ``limit`` (exclusive) of a split with the map now applied.

        A call that does not begin at the first item goes on where the last one ended: what their
        prompts have in common, such as examples, is not computed again. The same sequence of calls
        gives the same bits.

        :raises PruneError: if the task's data cannot be had or the range holds no item
        """
        self._lm.continues = first > 0
        return run(self._lm, task, split, limit, first)

    def agreement(
        self, task: Task, split: Split, limit: int | None = None, first: int = 0
    ) -> TaskResult:
        """Compare with the base on the items' texts (see `Engine`).

        Of the base the worker keeps the last hidden states, not the distributions: 2 to 4 bytes
        x hidden size per token of host memory, a V-th of what V probabilities would take. The
        distributions are computed from them again, exactly, by one product per token.

        :raises PruneError: as `evaluate`, or if a text is too short to predict anything
        """
        items = texts_of(task, split, limit, first, self._lm)
        self._lm.tokens, started = 0, time.perf_counter()
        prompts = [self._prompt(text) for _, text in items]
        self._remember(prompts)
        numbers = [self._texts[prompt] for prompt in prompts]
        once = dict(zip(numbers, prompts, strict=True))
        self._lm.run(list(once.values()), [{"kind": "compare", "text": number} for number in once])
        found = {int(number): float(value) for number, value in self._lm.ask("moe_agreements")}
        seconds = time.perf_counter() - started
        results = tuple(
            ItemResult(item, found[number], None, "")
            for (item, _), number in zip(items, numbers, strict=True)
        )
        return TaskResult(task.name, split, results, self._lm.tokens, seconds)

    def _prompt(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text after each of which another one follows."""
        ids = self._lm.encode_text(text, room=-1)  # the last token is not given to the model
        if len(ids) < 2:
            raise PruneError(f"the text {text[:40]!r} is a single token: nothing is predicted")
        return tuple(ids[:-1])

    def _remember(self, prompts: list[tuple[int, ...]]) -> None:
        """Let the worker compute and keep what the base makes of texts that it has not seen."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if not new:
            return
        numbers = range(len(self._texts), len(self._texts) + len(new))
        if self._applied is not None:
            self._switch(None)
        try:
            self._lm.run(new, [{"kind": "remember", "text": number} for number in numbers])
        finally:
            if self._applied is not None:
                self._switch(self._applied)
        self._texts.update(zip(new, numbers, strict=True))

    def usage(self, task: Task, split: Split, limit: int | None = None) -> dict[int, ExpertUse]:
        """Watch the router on the texts of the items, each question once with all its choices.

        With a map applied, tokens are those of its routing, under the ids of the base's experts;
        in a layer with continuous W_EM, of the new experts. Scores are the base router's. A
        recorded model computes step by step meanwhile.

        :returns: decoder layer -> use of its experts
        :raises PruneError: as `evaluate`
        """
        prompts, begins = self._watched(task, split, limit)
        self._lm.ask("moe_watch", True)
        try:
            notes = [
                {"kind": "watch", "number": number, "begin": begin}
                for number, begin in enumerate(begins)
            ]
            self._lm.run(prompts, notes)
        finally:
            found = self._lm.ask("moe_watch", False)
        return {
            int(layer): ExpertUse(np.array(counts, np.int64), np.array(sums, np.float64))
            for layer, counts, sums in found
        }

    def _watched(
        self, task: Task, split: Split, limit: int | None
    ) -> tuple[list[tuple[int, ...]], list[int]]:
        """Return the prompts to watch and from which position on each counts."""
        from offline.engines.live.requests import watch_plan

        task, limit = without_examples(task, split, limit)
        if task.kind != "choice":
            texts = texts_of(task, split, limit, lm=self._lm)
            prompts = [self._prompt(text) for _, text in texts]
            return prompts, [0] * len(prompts)
        pairs = self._lm.encode_pairs(local_task(task, split, limit, lm=self._lm).texts)
        plan = watch_plan(pairs, self._lm.max_length)
        return list(plan.prompts), list(plan.begins)

    def score_apart(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Return (log-probability, whether it is the likeliest) of (context, continuation) pairs,
        each computed by itself with the map now applied."""
        return self._lm.score_apart(pairs)

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Continue prompts of token ids with the likeliest tokens, up to the end of text."""
        return self._lm.greedy(prompts, count)


def _digest(routing_map: RoutingMap | None) -> str:
    return "" if routing_map is None else routing_map.digest()
