"""`AnswerCheck`: how the answers of a pruned model end, beside those of its base, as JSON."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from offline.results.result_file import ResultFile
from vllm_moe_prune.provenance import Provenance

ANSWERS_FILE = "answers.json"
Kind = Literal["chats", "prose", "code", "tools", "thinking"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALL = "all"  # in place of a kind: the answers of all kinds together
Side = Literal["base", "pruned"]
SIDES: tuple[Side, ...] = get_args(Side)
Measure = Literal[
    "loops",  # a period of at most 64 tokens over the last 256, or repeated 8-grams in these
    "unfinished",  # cut at the largest number of tokens
    "thinking_open",  # began to think and did not close it
    "empty_while_thinking",  # of these: cut, and the answer itself is empty; decides nothing
    "empty",  # neither thinking nor an answer nor a tool call
    "tool_call_unparsed",  # the server could not read it, or it names no tool, or its arguments
    "no_tool_call",  # where one was asked for
    "code_unparsed",  # Python with an error of syntax, though it was not cut
]
MEASURES: tuple[Measure, ...] = get_args(Measure)
#: What is no failure of a model, and is only told.
TOLD_ONLY: frozenset[Measure] = frozenset({"empty_while_thinking"})
Finding = Literal["more", "fewer", "no doubling", "undecided", "no base"]
Verdict = Literal["worse", "undecided", "no doubling"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Share(_Frozen):
    """A count among ``n`` answers, its rate 0..1 and the rate's 95 % Wilson interval."""

    count: int = Field(ge=0)
    n: int = Field(ge=1)
    rate: float
    low: float
    high: float


class Difference(_Frozen):
    """The pruned model's rate less the base's on the same prompts, with its paired 95 % interval.

    ``only_base`` and ``only_pruned`` count the prompts on which the two differ. ``p``: how likely
    as many more are by chance (McNemar's exact test, one-sided), before the correction for the
    number of rows.
    """

    value: float
    low: float
    high: float
    only_base: int
    only_pruned: int
    p: float


class Row(_Frozen):
    """One measure of one kind's answers (or of ``all``) under one way of sampling.

    ``probes_needed`` would show a doubling of the base's rate (taken as 1 % at least) in 8 of 10
    checks. ``finding``: ``more`` (or ``fewer``) than the base beyond chance, over all rows
    together; ``no doubling`` where a doubling lies outside of the interval and there are as many
    probes as that needs; ``undecided`` otherwise. ``examples`` are probes of which only the pruned
    model's answer has it: ``probe`` in answers.jsonl.
    """

    kind: str
    sampling: str
    measure: Measure
    base: Share | None
    pruned: Share
    difference: Difference | None
    probes_needed: int | None
    finding: Finding
    examples: tuple[str, ...] = ()


class Length(_Frozen):
    """Mean tokens of answers to the same prompts: the ratio's 95 % interval is a bootstrap's."""

    kind: str
    sampling: str
    n: int
    base: float
    pruned: float
    ratio: float
    low: float
    high: float


class Served(_Frozen):
    """What answered: a model that was served with ``arguments``, or an address that was there."""

    model: str
    url: str | None = None
    arguments: tuple[str, ...] = ()
    startup_seconds: float | None = None


class AnswerCheck(ResultFile):
    """Everything that the probes of `vmprune check` found out.

    ``samplings`` are the ways of generating, as they were asked for. ``unit``: what loops were
    looked for in, ``tokens``, or ``words`` where a server does not tell its tokens.
    ``verdict``: ``worse`` if a row says ``more``, ``no doubling`` if all say that; what is
    only told does not count.
    """

    file_name = ANSWERS_FILE
    made_by = "vmprune check --probes"

    schema_version: int = 1
    base: Served | None
    pruned: Served
    probes: int
    source: str = Field(description="of the probes: built-in, or a file")
    tokens: int = Field(description="that an answer may have at most")
    samplings: tuple[str, ...]
    unit: Literal["tokens", "words"] = "tokens"
    skipped: dict[str, str] = Field(default_factory=dict, description="kind -> reason")
    rows: tuple[Row, ...]
    lengths: tuple[Length, ...]
    verdict: Verdict
    provenance: Provenance

    def row(self, measure: Measure, kind: str = ALL, sampling: str | None = None) -> Row | None:
        """Return a row if it was measured.

        :param kind: ``all`` is also the only kind that has a measure
        :param sampling: None takes the first that was asked for
        """
        sampling = sampling or self.samplings[0]
        found = [r for r in self.rows if (r.measure, r.sampling) == (measure, sampling)]
        own = [r for r in found if r.kind == kind]
        if not own and kind == ALL and len(found) == 1:
            own = found
        return own[0] if own else None

    def length(self, kind: str = ALL, sampling: str | None = None) -> Length | None:
        """Return the lengths of a kind's answers if there is a base; as `row`."""
        found = [one for one in self.lengths if one.sampling == (sampling or self.samplings[0])]
        own = [one for one in found if one.kind == kind]
        if not own and kind == ALL and len(found) == 1:
            own = found
        return own[0] if own else None
