"""Settings say of every module that stays what they said before, as a reader of its own has it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from offline.build.named_modules import Names

LAYERS, EXPERTS = 2, 13
TAILS = ("up_proj", "down_proj")
OTHERS = (
    "lm_head",
    *(f"model.layers.{n}.{one}" for n in range(LAYERS) for one in ("q_proj", "mlp.gate")),
)


def module(layer: int, expert: int, tail: str = "") -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}" + (f".{tail}" if tail else "")


@st.composite
def moves(draw: st.DrawFn) -> dict[str, str | None]:
    """What becomes of the modules of two layers that keep any experts in any order."""
    found: dict[str, str | None] = {name: name for name in OTHERS}
    for layer in range(LAYERS):
        kept = draw(st.permutations(range(EXPERTS)))[: draw(st.integers(1, EXPERTS))]
        for expert in range(EXPERTS):
            for tail in ("", *TAILS):
                new = module(layer, kept.index(expert), tail) if expert in kept else None
                found[module(layer, expert, tail)] = new
    return found


NUMBER = st.integers(0, EXPERTS - 1)
LAYER = st.integers(0, LAYERS - 1)
TAIL = st.sampled_from(TAILS)
NAMES = st.one_of(
    st.sampled_from(OTHERS),
    st.builds(module, LAYER, NUMBER, TAIL),
    st.builds(module, LAYER, NUMBER),
    st.builds(lambda *one: module(*one).removeprefix("model."), LAYER, NUMBER, TAIL),
)
WILD = st.one_of(
    st.builds(lambda n, e: f"{module(n, e)}*", LAYER, NUMBER),
    st.builds(lambda e, t: f"*.experts.{e}.{t}", NUMBER, TAIL),
    st.sampled_from(["*gate", "model.layers.1.mlp.experts*", "*experts.1?.up_proj", "*"]),
)
REGEX = st.one_of(
    st.builds(lambda e: rf".*experts\.{e}", NUMBER),  # 1 also means 10 to 12
    st.builds(lambda e, t: rf".*experts\.{e}\.{t}$", NUMBER, TAIL),
    st.builds(lambda a, b: rf"model\.layers\.1\..*\.({a}|{b})\.", NUMBER, NUMBER),
    st.builds(lambda e: rf".*(q_proj|gate|experts\.{e}\.down_proj)$", NUMBER),
    st.sampled_from([r".*experts.*", r".*\.[0-4]\.up_proj", r"lm_head$"]),
)


def is_meant(entry: str, name: str) -> bool:
    """Whether an entry of a list is about a module, as readers of such lists have it."""
    if entry.startswith("re:"):
        return re.match(entry[3:], name) is not None
    if "*" in entry or "?" in entry:
        return fnmatch.fnmatchcase(name, entry)
    return any(f".{name}.".endswith(f".{entry}.{rest}") for rest in ("", *(f"{t}." for t in TAILS)))


@settings(max_examples=150, deadline=None)
@given(moves(), st.lists(st.one_of(NAMES, WILD, REGEX.map("re:{}".format)), max_size=4))
def test_a_list_means_the_same_modules(moves: dict[str, str | None], listed: list[str]) -> None:
    found = Names(moves).followed({"ignore": listed, "bits": 4})
    assert found.keys() == {"ignore", "bits"}
    for old, new in moves.items():
        if new is not None:
            before = any(is_meant(entry, old) for entry in listed)
            assert any(is_meant(entry, new) for entry in found["ignore"]) == before, (old, found)
    left = {name for new in moves.values() if (name := new)}
    for entry in found["ignore"]:  # what is gone is not named any more
        if entry not in listed and not entry.startswith("re:"):
            assert any(is_meant(entry, name) for name in left)


def first_that_fits(rules: Mapping[str, Any], name: str) -> Any:
    """Return what GPTQModel takes of rules with patterns: the first that fits."""
    for pattern, value in rules.items():
        if re.match(pattern[2:], name):
            return "left out" if pattern.startswith("-:") else value
    return None


@settings(max_examples=150, deadline=None)
@given(
    moves(),
    st.lists(st.tuples(st.sampled_from(["-:", "+:"]), REGEX, st.integers(2, 8)), max_size=4),
)
def test_rules_with_patterns_mean_the_same_modules(
    moves: dict[str, str | None], rules: list[tuple[str, str, int]]
) -> None:
    given = {mark + pattern: bits for mark, pattern, bits in rules}
    found = Names(moves).followed({"dynamic": given})["dynamic"]
    for old, new in moves.items():
        if new is not None:
            assert first_that_fits(found, new) == first_that_fits(given, old)
