"""Assessing generations: nothing twice, nothing lost, the same on one engine and on several."""

from __future__ import annotations

import functools
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from offline.fitness.assessor import Assessor
from offline.fitness.candidate import Assessment
from offline.fitness.log import EvaluationLog
from offline.fitness.objective import Objective, WeightedTask
from offline.fitness.racing import RacingSettings
from tests.fitness.fake import ONE, TWO, FakeEngine, map_keeping
from vllm_moe_prune.errors import PruneError

BOTH = (WeightedTask(ONE, 2.0), WeightedTask(TWO))
OBJECTIVE = Objective(BOTH, items={"search": 30, "selection": 10, "test": None})
RACING = RacingSettings(min_items=8)
FIRST = [map_keeping(2, 3), map_keeping(0, 1), map_keeping(1, 4)]
SECOND = [map_keeping(0, 2), map_keeping(5, 6, 7), map_keeping(6, 7), map_keeping(0, 3)]


def assessor(
    folder: Path, count: int = 1, objective: Objective = OBJECTIVE, **options: Any
) -> tuple[Assessor, list[FakeEngine]]:
    engines: list[Any] = [FakeEngine() for _ in range(count)]
    log = EvaluationLog(folder / "evaluations.jsonl")
    return Assessor(engines, objective, log, racing=RACING, **options), engines


def run(to: Assessor) -> list[Assessment]:
    """Go through what a search does: two generations, finalists, held-out items."""
    first = to.assess(FIRST, phase="prune", generation=0)
    best = max(first, key=lambda assessment: assessment.fitness)
    second = to.assess(SECOND, best, phase="prune", generation=1)
    to.evaluate_all([FIRST[1], SECOND[0]], "selection")
    to.evaluate(FIRST[1], "search")
    to.evaluate(None, "test")
    return first + second


def lines(folder: Path) -> list[Any]:
    """Return the log's lines without seconds."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k != "seconds"}
        return value

    text = (folder / "evaluations.jsonl").read_text()
    return [timeless(json.loads(line)) for line in text.splitlines()]


def unordered(folder: Path) -> list[str]:
    return sorted(json.dumps(line) for line in lines(folder))


def test_a_generation_gets_its_fitness_in_order(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    found = to.assess(FIRST, phase="prune", generation=4)
    assert [a.digest for a in found] == [m.digest() for m in FIRST]
    assert [(a.phase, a.generation, a.number) for a in found] == [("prune", 4, n) for n in range(3)]
    for assessment, routing_map in zip(found, FIRST, strict=True):
        engines[0].apply(routing_map)
        one, two = (engines[0].evaluate(task, "search", 30) for task in (ONE, TWO))
        assert assessment.results["one"].items == one.items
        assert assessment.results["two"].items == two.items  # all 24 that there are
        assert assessment.fitness == pytest.approx((2 * one.accuracy + two.accuracy) / 3)
        assert assessment.tokens == one.tokens + two.tokens
        assert assessment.complete


def test_the_hopeless_are_dropped_and_never_computed_twice(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    found = run(to)
    assert [a.complete for a in found] == [True] * 4 + [False, False] + [True]
    assert found[4].items < found[3].items == 54
    ranges: dict[Any, set[int]] = {}
    for _, digest, task, split, first, limit, _ in engines[0].asked:
        seen = ranges.setdefault((digest, task, split), set())
        fresh = set(range(first, 100 if limit is None else limit))
        assert not seen & fresh
        seen |= fresh


def test_a_dropped_candidate_is_asked_again_in_another_race_only(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    first, second = (to.assess([m])[0] for m in FIRST[:2])
    (dropped,) = to.assess([SECOND[2]], second)
    asked = len(engines[0].asked)
    assert not dropped.complete
    assert to.assess([SECOND[2]], second) == [dropped]
    assert len(engines[0].asked) == asked
    to.assess([SECOND[2]], first)
    assert len(engines[0].asked) > asked
    asked = len(engines[0].asked)
    assert to.assess([FIRST[0]], second) == [first]  # a complete one holds in any race
    assert len(engines[0].asked) == asked


def test_without_racing_or_reference_all_items_are_seen(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    (best,) = to.assess([FIRST[1]])
    to.racing = None
    assert all(assessment.complete for assessment in to.assess(SECOND, best))
    assert all(first == 0 for _, _, _, _, first, _, _ in engines[0].asked)


def test_twins_in_a_generation_are_evaluated_once(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    found = to.assess([FIRST[0], FIRST[1], FIRST[0]])
    assert found[0] == found[2] != found[1]
    assert (len(engines[0].asked), len(lines(tmp_path))) == (4, 2)


def test_several_engines_give_the_log_of_one(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        folder.mkdir()
    writers = set()
    alone, _ = assessor(folders[0])
    both, engines = assessor(folders[1], 2, on_done=lambda _: writers.add(threading.get_ident()))
    meeting = threading.Barrier(2, timeout=20)  # passes only if both are at work at once

    def meet_once(engine: FakeEngine) -> None:
        engine.before = lambda: None
        meeting.wait()

    for engine in engines:
        engine.before = functools.partial(meet_once, engine)
    fitness = [[a.fitness for a in run(to)] for to in (alone, both)]
    assert fitness[0] == fitness[1]
    assert unordered(folders[0]) == unordered(folders[1])
    assert writers == {threading.get_ident()}


@pytest.mark.parametrize("kept", [0, 1, 2, 4, 6, 8])
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_was_killed_continues_to_the_same_log(
    tmp_path: Path, kept: int, count: int
) -> None:
    """Cut the log after some lines and in the middle of the next, then do the same again."""
    to, _ = assessor(tmp_path)
    expected = run(to)
    whole = lines(tmp_path)
    file = tmp_path / "evaluations.jsonl"
    text = file.read_bytes().splitlines(keepends=True)
    assert len(text) == 10
    file.write_bytes(b"".join(text[:kept]) + text[kept][: len(text[kept]) // 2])
    again, engines = assessor(tmp_path, count)
    found = run(again)
    assert [(a.digest, a.fitness, a.complete) for a in found] == [
        (a.digest, a.fitness, a.complete) for a in expected
    ]
    asked = {(digest, split) for one in engines for _, digest, _, split, *_ in one.asked}
    assert len(asked) == 10 - kept
    assert (lines(tmp_path) == whole) if count == 1 else (len(lines(tmp_path)) == len(whole))
    assert unordered(tmp_path) == sorted(json.dumps(line) for line in whole)


def test_a_finished_run_asks_the_engine_nothing(tmp_path: Path) -> None:
    to, _ = assessor(tmp_path)
    expected = run(to)
    again, engines = assessor(tmp_path)
    assert run(again) == expected
    assert engines[0].asked == []
    assert again.log.assessments == expected


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    to, _ = assessor(tmp_path)
    run(to)
    file = tmp_path / "evaluations.jsonl"
    text = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*text[:2], text[2][:50] + "\n", *text[3:]]))
    with pytest.raises(PruneError, match="line 3 is damaged"):
        EvaluationLog(file)


@pytest.mark.parametrize("count", [1, 2])
def test_what_was_evaluated_before_a_failure_is_kept(tmp_path: Path, count: int) -> None:
    to, _ = assessor(tmp_path, count)
    with pytest.raises(PruneError, match="this map is refused"):
        to.assess([FIRST[0], FIRST[1], map_keeping(7)])
    known = {a.digest for a in to.log.assessments}
    assert known == {m.digest() for m in FIRST[:2]}


def test_a_map_evaluated_beforehand_is_not_evaluated_again_as_a_candidate(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    results = to.evaluate(FIRST[0], "search")
    asked = len(engines[0].asked)
    (found,) = to.assess([FIRST[0]], generation=3)
    assert found.results == results
    assert (found.complete, found.generation, len(engines[0].asked)) == (True, 3, asked)
    assert [line["kind"] for line in lines(tmp_path)] == ["evaluation", "candidate"]


def test_the_guard_compares_with_the_base_which_is_evaluated_once(tmp_path: Path) -> None:
    guarded = Objective(BOTH, guard=0.02, items=OBJECTIVE.items)
    to, engines = assessor(tmp_path, objective=guarded)
    found = run(to)
    base = to.evaluate(None, "search")
    assert sum(asked[1] == "base" and asked[3] == "search" for asked in engines[0].asked) == 2
    assert [a.fitness for a in found] == [guarded.fitness(a.results, base) for a in found]
    plain = [OBJECTIVE.fitness(a.results) for a in found]
    assert any(a.fitness < mean for a, mean in zip(found, plain, strict=True))


def test_agreement_asks_for_agreement_and_other_measures_can_be_asked_for(tmp_path: Path) -> None:
    objective = Objective(BOTH, "agreement", guard=0.5, items=OBJECTIVE.items)
    to, engines = assessor(tmp_path, objective=objective)
    to.assess(FIRST)
    assert {asked[0] for asked in engines[0].asked} == {"agreement"}
    to.evaluate(FIRST[0], "test", 5, measure="accuracy")
    assert [(asked[0], asked[5]) for asked in engines[0].asked[-2:]] == [("evaluate", 5)] * 2
    asked = len(engines[0].asked)
    to.evaluate(FIRST[0], "test", 5, measure="margin")  # the same items hold both
    assert len(engines[0].asked) == asked


def test_limits_and_splits_each_make_another_evaluation(tmp_path: Path) -> None:
    to, engines = assessor(tmp_path)
    for split, limit in (("test", 5), ("test", 6), ("selection", 5), ("test", None)):
        to.evaluate(FIRST[0], split, limit)  # type: ignore[arg-type]
    assert len(engines[0].asked) == 8
    found = to.evaluate_all([None, FIRST[0], None], "test", 5)
    assert len(engines[0].asked) == 10
    assert found[0] == found[2] != found[1]
