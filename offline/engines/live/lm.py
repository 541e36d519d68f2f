"""An lm-evaluation-harness model on a live vLLM engine: log-likelihoods and generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from safetensors.numpy import load, save
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from offline.engines.encoding import Encoder, Pair, Prompt, TokenPair
from offline.engines.live.requests import CachedBlocks, ScoringPlan, apart_plan, scoring_plan
from offline.engines.reading import Ids, Reading
from vllm_moe_prune.vllm_compat.engine import block_size, one_line_if_dead
from vllm_moe_prune.vllm_compat.steps import NOTE

_REMEMBERED = 8  # sets of requests kept tokenised and laid out


class LiveLM(Encoder):
    """Scores and generates on ``llm`` under whatever routing map it has now.

    Log-probabilities are read off the hidden states in the worker (vllm_worker.py). vLLM's own
    ``prompt_logprobs`` would compute every context anew and the logits of all its positions.

    :param share_contexts: compute what prompts have in common once, through the prefix cache
    """

    def __init__(self, llm: LLM, tokenizer: Any, max_length: int, *, share_contexts: bool) -> None:
        super().__init__(tokenizer, max_length)
        self.llm, self.share_contexts = llm, share_contexts
        self.continues = False  # the next call goes on with the items of the last one
        self._cached = CachedBlocks(block_size(llm))
        self._plans: dict[tuple[Pair, ...], ScoringPlan] = {}

    def loglikelihood(
        self, requests: Sequence[Any], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood in nats, whether greedy decoding gives it) of each request."""
        key = tuple(request.args for request in requests)
        if key not in self._plans:
            if len(self._plans) >= _REMEMBERED:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = self._planned(self.encode_pairs(key))
        return self._score(self._plans[key])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Pair, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score(self._planned([(request[1], request[2]) for request in requests]))

    def _planned(self, pairs: Sequence[tuple[list[int], list[int]]]) -> ScoringPlan:
        return scoring_plan(pairs, self.max_length, share=self.share_contexts)

    def score_apart(self, pairs: Sequence[TokenPair]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs, each computed by itself."""
        return self._score(apart_plan(pairs), share=False)

    def _score(self, plan: ScoringPlan, *, share: bool | None = None) -> list[tuple[float, bool]]:
        # What an earlier call left in the cache was computed without answering this one.
        if not self.continues or self._cached.hides_answers(plan):
            self.forget_prefixes()
        share = self.share_contexts if share is None else share
        self.run(plan.prompts, plan.notes, share=share)
        self._cached.add(plan.prompts)
        found = {
            slot: (log_prob, greedy)
            for slot, log_prob, greedy in zip(*self.ask("moe_scores"), strict=True)
        }
        assert len(found) == plan.num_slots, f"{len(found)} of {plan.num_slots} answers"
        return [
            (sum(found[slot][0] for slot in slots), all(found[slot][1] for slot in slots))
            for slots in plan.slots
        ]

    def readings(
        self, texts: Sequence[Sequence[int]], count: int = 0, wanted: Sequence[Ids] | None = None
    ) -> list[Reading]:
        """Read texts, every position of each computed (see `Encoder.readings`)."""
        self.forget_prefixes()
        ids = {} if wanted is None else {str(n): tokens for n, tokens in enumerate(wanted)}
        self.ask("moe_read", count, save(ids) if ids else b"")
        notes = [
            {"kind": "read", "text": number, "targets": list(text[1:])}
            for number, text in enumerate(texts)
        ]
        self.run([text[:-1] for text in texts], notes)
        found = load(self.ask("moe_readings"))
        return [
            Reading(
                found[f"{n}.own"].astype(np.float64),
                found[f"{n}.greatest"],
                found[f"{n}.tokens"].astype(np.int32),
                found[f"{n}.listed"],
            )
            for n in range(len(texts))
        ]

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        notes: Sequence[Mapping[str, Any]],
        *,
        share: bool = False,
    ) -> None:
        """Compute prompts [L] of token ids, each with a note that says what the worker is to do.

        :param share: read the prefix cache; otherwise every position of each prompt is computed
        """
        sampling = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                detokenize=False,
                extra_args={NOTE: dict(note)},
                skip_reading_prefix_cache=not share,
            )
            for note in notes
        ]
        for output in self._generate(prompts, sampling):
            self.tokens += len(output.prompt_token_ids or ()) - (output.num_cached_tokens or 0)

    def _generate(
        self, prompts: Sequence[Sequence[int]], sampling: list[SamplingParams]
    ) -> list[Any]:
        """Run prompts, all there before the first begins: the same call gives the same bits."""
        if not prompts:
            return []
        inputs = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        with one_line_if_dead():
            self.llm.sleep(level=0)  # new requests wait
            self.llm.enqueue(inputs, sampling, use_tqdm=False)
            self.llm.wake_up(tags=["scheduling"])
            return list(self.llm.wait_for_completion(use_tqdm=False))

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of `LiveWorker` in all workers; return what the first one answers."""
        return self.ask_all(method, *arguments)[0]

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of `LiveWorker` in all workers; return what each answers.

        :raises PruneError: if vLLM's process has ended
        """
        with one_line_if_dead():
            return list(self.llm.collective_rpc(method, args=arguments))

    def forget_prefixes(self) -> None:
        """Empty the prefix cache."""
        self._cached.clear()
        with one_line_if_dead():
            done = self.llm.reset_prefix_cache()
        assert done, "the prefix cache is in use between two evaluations"

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return what is generated after each context, up to its stop strings."""
        if not self.continues:  # what is cached decides how prompts are batched, and so the bits
            self.forget_prefixes()
        prompts = self.prompts(requests)
        outputs = self._generate(
            [prompt.ids for prompt in prompts], [self._sampling(prompt) for prompt in prompts]
        )
        for output in outputs:
            computed = len(output.prompt_token_ids or ()) - (output.num_cached_tokens or 0)
            self.tokens += computed + len(output.outputs[0].token_ids)
        return [self.answer(p, o.outputs[0].text) for p, o in zip(prompts, outputs, strict=True)]

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[Sequence[int]]:
        """Continue prompts of token ids with the likeliest tokens, up to the end of text."""
        self.forget_prefixes()
        sampling = SamplingParams(temperature=0.0, max_tokens=count, detokenize=False)
        outputs = self._generate(prompts, [sampling] * len(prompts))
        return [list(output.outputs[0].token_ids) for output in outputs]

    def decode(self, prompts: Sequence[Sequence[int]], count: int) -> int:
        """Continue prompts by ``count`` tokens (see `Encoder.decode`)."""
        sampling = SamplingParams(
            temperature=0.0,
            max_tokens=count,
            ignore_eos=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
        )
        outputs = self._generate(prompts, [sampling] * len(prompts))
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    def _sampling(self, prompt: Prompt) -> SamplingParams:
        decoding = prompt.decoding
        return SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            top_k=decoding.top_k,
            min_p=decoding.min_p,
            seed=prompt.seed,
            max_tokens=prompt.max_tokens,
            stop=list(decoding.engine_stops),
            skip_special_tokens=decoding.think_end is None,  # what ends thinking may be one
            skip_reading_prefix_cache=not self.share_contexts,
        )
