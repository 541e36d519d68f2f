"""Objectives: the parser, what is measured, and the guard against a naive computation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.fitness.objective import Measure, Objective, WeightedTask, item_values
from offline.tasks.catalog import Task
from offline.tasks.results import ItemResult, TaskResult
from vllm_moe_prune.errors import PruneError

ONE, TWO = Task("one", "acc"), Task("two", "acc")
GENERATE = replace(ONE, name="write", kind="generate")
TEXT = replace(ONE, name="prose", kind="text")


def result(task: str, values: list[float], margins: list[float | None] | None = None) -> TaskResult:
    margins = margins or [None] * len(values)
    pairs = enumerate(zip(values, margins, strict=True))
    items = tuple(ItemResult(f"i{n}", value, margin, "") for n, (value, margin) in pairs)
    return TaskResult(task, "search", items, tokens=1, seconds=1.0)


def test_tasks_and_weights_are_read() -> None:
    objective = Objective.parse("sciq:2, arc_easy:0.5,piqa")
    assert [(w.task.name, w.weight) for w in objective.tasks] == [
        ("sciq", 2),
        ("arc_easy", 0.5),
        ("piqa", 1),
    ]
    assert objective.shares == pytest.approx(
        {"sciq": 2 / 3.5, "arc_easy": 0.5 / 3.5, "piqa": 2 / 7}
    )


@pytest.mark.parametrize("weight", ["", ":3"])
def test_a_text_file_is_not_taken_for_a_weight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: str
) -> None:
    (tmp_path / "7.txt").write_text("some words\n")
    monkeypatch.chdir(tmp_path)
    (entry,) = Objective.parse(f"text:7.txt{weight}", measure="agreement").tasks
    assert (entry.task.kind, entry.weight) == ("text", 3 if weight else 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sciq,,piqa", "tasks 'sciq,,piqa': there is nothing between two commas"),
        ("sciq:much", "task sciq has no metric 'much'"),
        ("sciq:0", "task sciq: weight 0 is not above 0"),
        ("sciq:nan", "task sciq: weight nan is not above 0"),
        ("sciq,piqa,sciq:2", "task sciq is named twice"),
        ("skiq", "unknown task 'skiq'"),
    ],
)
def test_mistakes_in_the_tasks_are_named(text: str, message: str) -> None:
    with pytest.raises(PruneError) as caught:
        Objective.parse(text)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("task", "measure", "fits"),
    [
        (ONE, "margin", True),
        (ONE, "agreement", True),
        (GENERATE, "accuracy", True),
        (GENERATE, "margin", False),
        (TEXT, "accuracy", False),
        (TEXT, "margin", False),
        (TEXT, "agreement", True),
    ],
)
def test_a_measure_has_to_fit_the_task(task: Task, measure: Measure, fits: bool) -> None:
    if fits:
        Objective((WeightedTask(task),), measure)
    else:
        with pytest.raises(PruneError, match=task.name):
            Objective((WeightedTask(task),), measure)


def test_each_measure_reads_its_own_values() -> None:
    both = result("one", [1, 0.5], [2.0, -3.0])
    assert item_values(both, "accuracy") == item_values(both, "agreement") == (1, 0.5)
    assert item_values(both, "margin") == (2, -3)
    with pytest.raises(PruneError, match="no margin"):
        item_values(result("one", [1, 0], [2.0, None]), "margin")


SHARES = st.floats(0, 1, allow_nan=False)


@given(
    one=st.lists(SHARES, min_size=1, max_size=6),
    two=st.lists(SHARES, min_size=1, max_size=6),
    base=st.lists(SHARES, min_size=12, max_size=12),
    weight=st.floats(0.1, 10),
    guard=st.none() | st.floats(0, 1),
)
def test_fitness_is_the_weighted_mean_less_the_excess_of_the_worst_task(
    one: list[float], two: list[float], base: list[float], weight: float, guard: float | None
) -> None:
    objective = Objective((WeightedTask(ONE, weight), WeightedTask(TWO)), guard=guard)
    results = {"one": result("one", one), "two": result("two", two)}
    base_one, base_two = base[:6], base[6:]  # longer: only the items seen may count
    bases = {"one": result("one", base_one), "two": result("two", base_two)}

    a, b = sum(one) / len(one), sum(two) / len(two)
    expected = (weight * a + b) / (weight + 1)
    if guard is not None:
        falls = [
            sum(base_one[: len(one)]) / len(one) - a,
            sum(base_two[: len(two)]) / len(two) - b,
        ]
        for fall in sorted(falls)[-1:]:
            if fall > guard:
                expected -= fall - guard
    assert objective.fitness(results, bases) == pytest.approx(expected, abs=1e-12)


def test_the_guard_of_an_agreement_needs_no_base() -> None:
    objective = Objective((WeightedTask(ONE),), "agreement", guard=0.1)
    assert not objective.needs_base
    assert objective.fitness({"one": result("one", [0.8, 0.6])}) == pytest.approx(0.7 - 0.2)


@pytest.mark.parametrize("guard", [-0.1, float("nan")])
def test_a_guard_below_zero_is_refused(guard: float) -> None:
    with pytest.raises(PruneError, match=f"a guard of {guard:g} is not a number from 0 on"):
        Objective((WeightedTask(ONE),), guard=guard)


def test_the_identity_tells_objectives_apart() -> None:
    one = Objective((WeightedTask(ONE),))
    others = [
        one,
        Objective((WeightedTask(ONE), WeightedTask(TWO))),
        Objective((WeightedTask(ONE, 2.0),)),
        replace(one, measure="margin"),
        replace(one, guard=0.0),
        replace(one, items={"search": 5}),
    ]
    assert len({objective.identity() for objective in others}) == len(others)
