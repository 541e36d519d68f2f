"""Whether a pruned model is good enough: its gates, how its answers end, what it makes of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from offline.report import answers
from offline.report.tables import Table
from offline.results.check import ANSWERS_FILE, AnswerCheck
from offline.results.estimate import Estimate
from offline.results.gates import GATES_FILE, GateResult, GatesResult
from offline.results.text_quality import TEXT_QUALITY_FILE, TextQuality

_SHOWN = 3  # gates that the verdict names
_NO_GATES = "no gates were given that say what is good enough (--gate, docs/gates.md)"


class Verdict(NamedTuple):
    """What a reader wants to know first: a word (its style, too) and the sentence around it."""

    state: str
    word: str
    said: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What commands left of it beside a checkpoint; None where they did not run."""

    gates: GatesResult | None = None
    answers: AnswerCheck | None = None
    text: TextQuality | None = None

    @classmethod
    def beside(cls, folder: Path) -> Judged:
        """Read what there is.

        :raises PruneError: if a file is damaged
        """
        return cls(
            GatesResult.load(folder) if (folder / GATES_FILE).is_file() else None,
            AnswerCheck.load(folder) if (folder / ANSWERS_FILE).is_file() else None,
            TextQuality.load(folder) if (folder / TEXT_QUALITY_FILE).is_file() else None,
        )

    @property
    def verdict(self) -> Verdict:
        """Return the line of the page that says it."""
        if self.gates is not None:
            return verdict_of(self.gates)
        if self.answers is not None and self.answers.verdict == "worse":
            return Verdict("fail", "Worse", f"than the base: {answers.worse(self.answers)}.")
        return Verdict("undecided", "Not judged:", f"{_NO_GATES}.")

    @property
    def cards(self) -> list[tuple[str, str, str]]:
        """Return name, value and small print of the figures on top of the page."""
        found = [] if self.answers is None else list(answers.key_figures(self.answers))
        worst = None if self.text is None else self.text.worst_ratio
        if worst is not None:
            small = f"pruned / base, {_interval(worst)}".removesuffix(", ")
            found.insert(0, ("Perplexity, worst domain", f"x{_digits(worst.value)}", small))
        return found


def verdict_of(result: GatesResult) -> Verdict:
    """Say how many gates are kept, and which are not."""
    count = len(result.gates)
    found = {
        verdict: [gate for gate in result.gates if gate.verdict == verdict]
        for verdict in ("pass", "fail", "undecided")
    }
    gates = f"{count} gate" + ("" if count == 1 else "s")
    if result.verdict == "pass":
        return Verdict("pass", "Passes", f"all of {gates}." if count > 1 else "its gate.")
    open_gates = found["undecided"]
    kept = f"{len(found['pass'])} pass" + ("es" if len(found["pass"]) == 1 else "")
    if result.verdict == "fail":
        rest = f"{kept}, {len(open_gates)} undecided"
        named = _named(found["fail"])
        return Verdict("fail", "Fails", f"{len(found['fail'])} of {gates} ({rest}): {named}.")
    word = f"{len(open_gates)} of {gates} ({kept}, none fails): {_named(open_gates)}."
    return Verdict("undecided", "Undecided:", word)


def _named(gates: list[GateResult]) -> str:
    more = len(gates) - _SHOWN
    return "; ".join(map(_said, gates[:_SHOWN])) + (f"; and {more} more" if more > 0 else "")


def _said(gate: GateResult) -> str:
    limit = f"{gate.bound} {gate.limit:g}"
    if gate.measured is None:
        return f"{gate_name(gate)} ({limit}) was not measured"
    return f"{gate_name(gate)} {_estimate(gate.measured)}, {limit}"


def gate_name(gate: GateResult) -> str:
    """Return what a gate is about, in words."""
    return f"{gate.measure.replace('_', ' ')}: {gate.name}"


def gates_table(result: GatesResult) -> Table:
    """Every gate: its limit, what was measured, and what follows."""
    rows = tuple(
        (
            gate_name(gate),
            gate.verdict.upper(),
            _estimate(gate.measured),
            f"{gate.bound} {gate.limit:g}",
            gate.detail,
        )
        for gate in result.gates
    )
    head = ("gate", "verdict", "measured, 95% interval", "limit", "why")
    return Table("Gates", head, rows, frozenset(range(5)))


def text_table(text: TextQuality) -> Table:
    """What the model makes of each domain of plain text, beside its base."""
    rows = tuple(
        (
            domain.name,
            *map(_estimate, (domain.perplexity, domain.base_perplexity, domain.ratio)),
            *map(_estimate, (domain.same_first, domain.divergence)),
            f"{domain.documents:,}{' pieces' if domain.pieces else ''}",
        )
        for domain in text.domains
    )
    measures = ("perplexity", "base", "ratio", "same first token", "KL, nats")
    return Table("Plain text, 95% intervals", ("domain", *measures, "documents"), rows)


def tables_of(judged: Judged) -> Iterator[Table]:
    """Yield the tables that a model card has of it."""
    if judged.gates is not None:
        yield gates_table(judged.gates)
    if judged.text is not None:
        yield text_table(judged.text)
    if judged.answers is not None:
        yield answers.all_kinds(judged.answers)


def _estimate(found: Estimate | None) -> str:
    """Write a value with its interval, in three digits: more say nothing beside the interval."""
    if found is None:
        return ""
    value, ends = _digits(found.value), _interval(found)
    return f"{value} ({ends})" if ends else value


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{_digits(found.low)} to {_digits(found.high)}"


def _digits(value: float) -> str:
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{round(value, 3) + 0.0:.3f}".rstrip("0").rstrip(".")  # no zero has a sign
