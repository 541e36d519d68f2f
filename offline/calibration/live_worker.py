"""What runs inside vLLM's worker to score: watches the layers and keeps their sums.

vLLM adds the methods of `ScoringWorker` to its worker class; live.py calls them by name. In tensor
parallel every worker sees all tokens; the sums of a layer are kept by one of them in turn, so that
they share the memory.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save

from offline.calibration.accumulate import LayerAccumulator
from offline.calibration.expert_blocks import ExpertBlocks
from offline.engines.live.worker import end_with
from vllm_moe_prune.layout import Score
from vllm_moe_prune.routing import scores
from vllm_moe_prune.vllm_compat.steps import PromptRows, announce_steps
from vllm_moe_prune.vllm_compat.watched_layers import SeenLayer, tensor_parallel, watch_layers


class ScoringWorker:
    """Extension of vLLM's worker (``worker_extension_cls``); names must not be vLLM's own."""

    model_runner: Any
    moe_scoring: Scoring

    def moe_score_attach(
        self, client: int, score: Score, hidden: int, vocab: int
    ) -> list[tuple[int, int]]:
        """Begin to watch; ends this process when process ``client`` ends.

        :returns: decoder layer, E
        """
        if client != os.getpid():
            threading.Thread(target=end_with, args=(client,), daemon=True).start()
        self.moe_scoring = scoring = Scoring(score, vocab)
        layers = watch_layers(
            self.model_runner.model, hidden, scoring.see, lambda: scoring.step is not None
        )
        announce_steps(self.model_runner, scoring.announce)
        rank, ranks = tensor_parallel()
        own = sorted(layers)[rank::ranks]
        scoring.experts = {number: layers[number] for number in own}
        return list(layers.items())

    def moe_score_begin(self, tokens: int) -> None:
        """Begin a domain of so many tokens; of none: nothing is looked at."""
        self.moe_scoring.begin(tokens)

    def moe_score_again(self) -> bool:
        """Say whether the domain's tokens have to come once more, to count outliers only."""
        return self.moe_scoring.again()

    def moe_score_layer(self, number: int) -> bytes:
        """Hand over the sums of a layer as safetensors; empty if another worker has them."""
        return self.moe_scoring.take(number)


@dataclass(frozen=True, slots=True)
class Step:
    """The tokens of a forward pass that count: their ids [t], and their rows; None: the first t."""

    token_ids: torch.Tensor
    rows: torch.Tensor | None


@dataclass(slots=True)
class Scoring:
    """The sums of the layers that this worker keeps, on one domain.

    ``experts``: decoder layer -> E, of these layers. ``counted``: sequence -> first position not
    yet counted, as vLLM may compute a prompt again that it had put aside. Outliers need the mean
    and the deviation over all tokens: where all come in one step they are counted there and then,
    otherwise the domain's tokens have to come once more.
    """

    score: Score
    vocab: int
    experts: dict[int, int] = field(default_factory=dict)
    sums: dict[int, LayerAccumulator] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)
    tokens: int = 0  # of the domain
    step: Step | None = None
    whole: bool = False  # whether all tokens came in one step
    second: bool = False

    def begin(self, tokens: int) -> None:
        """Forget the domain before."""
        self.tokens, self.whole, self.second = tokens, False, False
        self.sums.clear()
        self.counted.clear()

    def again(self) -> bool:
        """Begin the second look; return whether there is a need for one."""
        self.second = not self.whole
        self.counted.clear()
        return self.second

    def announce(self, rows: list[PromptRows], token_ids: torch.Tensor) -> None:
        """Note which rows of the coming step count."""
        self.step = None
        if not self.tokens:
            return
        spans = []
        for row in rows:
            number, end = row.note["number"], row.start + row.count
            begin = max(row.start, self.counted.get(number, 0))
            self.counted[number] = max(end, begin)
            if begin < end:
                spans.append((row.offset + begin - row.start, row.offset + row.count))
        if not spans:
            return
        kept = None
        if sum(end - begin for begin, end in spans) < len(token_ids):
            kept = torch.cat([torch.arange(*span) for span in sorted(spans)]).to(token_ids.device)
        self.step = Step((token_ids if kept is None else token_ids[kept]).long(), kept)
        self.whole = len(self.step.token_ids) == self.tokens

    def see(self, number: int, seen: SeenLayer) -> None:
        """Add what a layer did in this step."""
        if number not in self.experts or self.step is None:
            return
        step, count = self.step, len(self.step.token_ids)

        def own(rows: torch.Tensor) -> torch.Tensor:
            return rows[:count] if step.rows is None else rows[step.rows]

        ids, outputs = own(seen.ids), own(seen.outputs)
        sums = self.sums.get(number)
        if sums is None:
            sums = self.sums[number] = LayerAccumulator(
                self.experts[number], outputs.shape[2], self.vocab, device=outputs.device
            )
        blocks = ExpertBlocks.of(ids, sums.num_experts)
        if not self.second:
            logits = own(seen.logits)
            score = scores(logits, self.score)
            sums.add_routing(step.token_ids, logits, score, own(seen.weights), ids)
            sums.add_outputs(blocks, outputs, own(seen.after))
        if self.second or self.whole:
            sums.count_outliers(blocks, outputs)

    def take(self, number: int) -> bytes:
        """Return the sums of a layer and forget them."""
        sums = self.sums.pop(number, None)
        return b"" if sums is None else save(sums.arrays())
