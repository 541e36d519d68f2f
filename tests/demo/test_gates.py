"""The demo's gates: a file that can be read, of text that the demo has, enough for intervals."""

from __future__ import annotations

from offline.data.domains import DOMAINS
from offline.demo.run import GATES
from offline.fitness.documents import parse_texts
from offline.gates.gates import read_gates
from offline.results.estimate import FEWEST


def test_they_read_held_out_text_of_the_demos_own_domains() -> None:
    gates = read_gates(GATES)
    assert gates.text is not None and gates.needs_agreement
    parts = {part.name: part.sequences for part in parse_texts("text", gates.text)}
    assert parts.keys() <= set(DOMAINS)
    assert all(count >= FEWEST for count in parts.values())  # or a gate could only be undecided
    limits = gates.limits
    for measure in ("perplexity_ratio", "agreement"):
        assert set(limits[measure]) - {"each", "worst"} <= parts.keys()
    assert set(limits) == {"accuracy_drop", "perplexity_ratio", "agreement"}  # what it measures
