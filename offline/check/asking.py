"""Asking a server all probes of a check, each of them once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from offline.check.answer import ProbeAnswer, read_answer
from offline.check.answer_log import AnswerLog
from offline.check.probe import Probe
from offline.check.sampling import Sampling
from offline.engines.server import Endpoint
from offline.results.check import Kind, Side
from vllm_moe_prune.errors import PruneError

if TYPE_CHECKING:
    from offline.runs.progress import Reporter

# What a server answers that can do without what was asked for: no template, tools or parser.
_REFUSED = re.compile(r"failed: status (400|404|405|422|501)\b")
_TELL_TOKENS = {"return_token_ids": True}  # vLLM's
_SLOWEST = 2.0  # seconds for a token, of a server that answers many at once


@dataclass(frozen=True, slots=True)
class Asked:
    """The probes, the ways of sampling as they were written, the most tokens of an answer."""

    probes: tuple[Probe, ...]
    samplings: tuple[str, ...]
    tokens: int

    def missing(self, log: AnswerLog, side: Side) -> list[tuple[str, Probe]]:
        """Return what a side has not answered, without the kinds that cannot be asked."""
        barred = {kind for _, kind in log.skipped}
        return [
            (sampling, probe)
            for sampling in self.samplings
            for probe in self.probes
            if probe.kind not in barred and (side, sampling, probe.digest) not in log.answers
        ]


def ask_all(
    endpoint: Endpoint, side: Side, asked: Asked, log: AnswerLog, reporter: Reporter
) -> None:
    """Ask what is missing; each answer is in the log as soon as it is there.

    The first of each kind is asked alone: a kind that the server refuses is skipped from then on.

    :raises PruneError: if the server fails, or refuses all kinds
    """
    if endpoint.max_model_len is not None and asked.tokens >= endpoint.max_model_len:
        raise PruneError(
            f"an answer of {asked.tokens} tokens does not fit: {endpoint.url} takes "
            f"{endpoint.max_model_len} with its prompt",
            hint=f"give --tokens {endpoint.max_model_len * 3 // 4}, or serve with more",
        )
    first: dict[Kind, tuple[str, Probe]] = {}
    for sampling, probe in asked.missing(log, side):
        first.setdefault(probe.kind, (sampling, probe))
    more = dict(_TELL_TOKENS)
    for kind, one in first.items():
        try:
            more = _try(endpoint, side, one, asked.tokens, more, log, reporter)
        except PruneError as error:
            if not _REFUSED.search(error.message):
                raise
            log.skip(side, kind, error.message.removeprefix(f"{endpoint.url} failed: "))
    if first and all((side, kind) in log.skipped for kind in {p.kind for p in asked.probes}):
        raise PruneError(f"{endpoint.url} refuses every probe: {next(iter(log.skipped.values()))}")
    left = asked.missing(log, side)
    for path in dict.fromkeys(probe.body[0] for _, probe in left):
        own = [one for one in left if one[1].body[0] == path]
        _ask(endpoint, side, own, asked.tokens, more, log, reporter)


def _ask(
    endpoint: Endpoint,
    side: Side,
    questions: Sequence[tuple[str, Probe]],
    tokens: int,
    more: dict[str, Any],
    log: AnswerLog,
    reporter: Reporter,
) -> None:
    """Ask probes that have one path."""

    def read(reply: Any, sampling: str, probe: Probe) -> ProbeAnswer:
        answer = read_answer(reply)
        log.add(side, sampling, probe, answer)
        reporter.step()
        return answer

    asked: list[tuple[dict[str, Any], Callable[[Any], ProbeAnswer]]] = []
    for sampling, probe in questions:
        fields = Sampling.parse(sampling).body(seed=int(probe.digest[:7], 16))
        body = {**probe.body[1], "max_tokens": tokens, **fields, **more}
        asked.append((body, partial(read, sampling=sampling, probe=probe)))
    endpoint.ask(questions[0][1].body[0], asked, patience=max(600.0, tokens * _SLOWEST))


def _try(
    endpoint: Endpoint,
    side: Side,
    one: tuple[str, Probe],
    tokens: int,
    more: dict[str, Any],
    log: AnswerLog,
    reporter: Reporter,
) -> dict[str, Any]:
    """Ask one probe; return which of vLLM's own fields the server takes: others refuse them.

    :raises PruneError: if it refuses the probe without them, too
    """
    try:
        _ask(endpoint, side, [one], tokens, more, log, reporter)
    except PruneError as error:
        if not more or not _REFUSED.search(error.message):
            raise
        _ask(endpoint, side, [one], tokens, {}, log, reporter)
        return {}
    return more
