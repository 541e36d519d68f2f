"""Scoring inside vLLM: text in, the statistics of every layer and expert out.

The model computes as it serves, in whatever format its experts have. A domain goes through it in
one step of vLLM where it can; so the outputs of a layer's experts on all of it are there together
and are looked at twice, for the outliers. A larger domain goes through the model once more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import load

from offline.calibration.accumulate import statistics_of
from offline.calibration.corpus import Domain
from offline.calibration.scores import Scores
from offline.calibration.statistics import LayerStatistics
from offline.calibration.stored import check_readable, stored_weights
from offline.engines.live.start import OwnsVllm, start
from offline.engines.needs import check_whole
from offline.maps.moe_shape import MoeShape
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.config_keys import hidden_size_of, most_tokens, num_layers_of, value_at
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance

if TYPE_CHECKING:
    from offline.engines.live.lm import LiveLM
    from offline.runs.progress import Reporter

STEP_TOKENS = 32768  # most tokens of one forward pass: what is larger comes twice
_GIB = 1024**3
_SPARE = 1.25  # of the cache: a block of each sequence is filled in part


def score_live(
    model: Path,
    corpora: Sequence[Domain],
    *,
    step_tokens: int = STEP_TOKENS,
    reporter: Reporter | None = None,
    provenance: Provenance | None = None,
    **arguments: Any,
) -> Scores:
    """Take all text through the model in vLLM and keep what each layer showed.

    :param step_tokens: most tokens of a forward pass
    :param provenance: of the scores; the data's identity and the time if not given
    :param arguments: of `vllm.LLM`: ``dtype``, ``tensor_parallel_size`` and the like
    :raises PruneError: if vLLM is absent or does not start, a sequence is too long, or the
        experts are stored in a format that cannot be read
    """
    check_whole(model)
    assert corpora, "no text"
    checkpoint = Checkpoint.open(model)
    check_readable(checkpoint)
    settings = engine_settings(checkpoint, corpora, step_tokens=step_tokens, **arguments)
    passes = _Stage(reporter, len(corpora) + len(checkpoint.expert_counts()))
    with LiveScoring(checkpoint, settings) as engine:
        domains = {}
        for domain in corpora:
            domains[domain.name] = engine.score(domain)
            passes.step()
    weights = {}
    for number in engine.experts:
        weights[number] = stored_weights(checkpoint, number)
        passes.step()
    return Scores(
        shape=MoeShape.of(checkpoint),
        domains=domains,
        weights=weights,
        provenance=provenance
        or Provenance.now("score", data=tuple(domain.identity for domain in corpora)),
        sequences={domain.name: len(domain.token_ids) for domain in corpora},
    )


def engine_settings(
    checkpoint: Checkpoint, corpora: Sequence[Domain], *, step_tokens: int, **arguments: Any
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` with which a domain is one step, if it can be.

    :raises PruneError: if a sequence is longer than the model can take
    """
    length = max(domain.token_ids.shape[1] for domain in corpora)
    own = most_tokens(checkpoint.text_config) or length + 1
    if length >= own:  # vLLM wants room for a token after a text
        raise PruneError(
            f"--length {length}: the model takes at most {own - 1} tokens in vLLM",
            hint=f"--length {own - 1} or less",
        )
    step = max(min(max(domain.num_tokens for domain in corpora), step_tokens), length)
    ranks = int(arguments.get("tensor_parallel_size", 1))
    item = 4 if arguments.get("dtype") == "float32" else 2  # auto: vLLM stores no wider ones
    cache = math.ceil(_SPARE * step * item * cache_numbers(checkpoint.text_config, ranks))
    return {
        "load_format": "auto",  # the model as it is, with its own router
        "worker_extension_cls": "offline.calibration.live_worker.ScoringWorker",
        "skip_tokenizer_init": True,  # it is given tokens
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": True,
        "max_model_len": length + 1,
        "max_num_batched_tokens": step,
        "max_num_seqs": math.ceil(step / min(d.token_ids.shape[1] for d in corpora)) + 1,
        "kv_cache_memory_bytes": max(cache, _GIB),
        **arguments,
    }


def cache_numbers(config: Mapping[str, Any], ranks: int) -> int:
    """Return how many numbers of vLLM's cache a token takes on each of some ranks, at most."""
    layers = num_layers_of(config)
    if config.get("num_hidden_layers") is None and "num_layers" in config:
        layers *= 2  # each of LongCat-Flash's attends twice
    if latent := config.get("kv_lora_rank"):  # MLA: one vector for all heads
        return layers * (int(latent) + int(config.get("qk_rope_head_dim") or 0))
    heads = int(config.get("num_attention_heads") or config["n_heads"])
    width = int(config.get("head_dim") or hidden_size_of(config) // heads)
    attended = config.get("num_key_value_heads") or value_at(config, "attn_config.kv_n_heads")
    kept = math.ceil(int(attended or heads) / ranks)
    return layers * 2 * kept * width


class LiveScoring(OwnsVllm):
    """A running vLLM whose layers are watched (see live_worker.py)."""

    def __init__(self, checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
        from offline.engines.live.lm import LiveLM

        self._llm: Any = start(checkpoint.folder, settings)
        try:
            given = (checkpoint.layout.score, checkpoint.hidden_size, checkpoint.vocab_size)
            self._lm: LiveLM = LiveLM(
                self._llm, None, int(settings["max_model_len"]), share_contexts=False
            )
            found = self._lm.ask("moe_score_attach", os.getpid(), *given)
        except BaseException:
            self.close()
            raise
        self.experts = {int(layer): int(count) for layer, count in sorted(found)}  # layer -> E
        self._top_k = checkpoint.layout.top_k(checkpoint.config)
        assert self.experts == dict(sorted(checkpoint.expert_counts().items())), self.experts

    def prefill(self, domain: Domain) -> None:
        """Take the text of a domain through the model and look at nothing."""
        self._lm.ask("moe_score_begin", 0)
        self._run(domain)

    def score(self, domain: Domain) -> dict[int, LayerStatistics]:
        """Take the text of a domain through the model; return decoder layer -> what it showed."""
        self._lm.ask("moe_score_begin", domain.num_tokens)
        self._run(domain)
        if self._lm.ask("moe_score_again"):
            self._run(domain)
        return {number: self._layer(number) for number in self.experts}

    def _run(self, domain: Domain) -> None:
        prompts = domain.token_ids.tolist()
        notes = [{"kind": "score", "number": number} for number in range(len(prompts))]
        self._lm.run(prompts, notes)

    def _layer(self, number: int) -> LayerStatistics:
        answers = self._lm.ask_all("moe_score_layer", number)
        (data,) = (one for one in answers if one)
        found = statistics_of(load(bytes(data)), number)
        assigned = found.counts.sum()
        assert assigned == found.tokens * self._top_k, (number, assigned)
        return found


@dataclass(slots=True)
class _Stage:
    """Tells a reporter, where there is one, how far it went."""

    reporter: Reporter | None
    total: int

    def __post_init__(self) -> None:
        if self.reporter is not None:
            self.reporter.stage("calibrating", self.total)

    def step(self) -> None:
        if self.reporter is not None:
            self.reporter.step(1, note="domains and layers")
