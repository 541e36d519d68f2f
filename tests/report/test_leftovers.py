"""Every page in every state: nothing of the program that made it is left in what a reader sees."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.analysis.analyse import analyse
from offline.report import analysis_page, recovery_page, sweep_page, template
from offline.report.judged import Judged
from offline.report.render import render
from offline.results.analysis import Analysis
from offline.results.compression import RunResult
from offline.results.decode_speed import DecodeSpeed
from offline.results.estimate import Estimate
from offline.results.sweep import SweepPoint, SweepResult
from tests.analysis.samples import map_keeping, masked, scores_of, two_domains
from tests.report import loads
from tests.report.judgements import PASSED, answer_check, gates, judged
from tests.report.page import Page
from tests.report.samples import check_json, compare_json, provenance, quality, run_result, search
from tests.report.test_lottery_section import record
from tests.results.test_recovery import FULL, recovery

# What a template that was not filled, a method that was not called, and a number or a name that is
# not there look like.
LEFTOVERS = re.compile(
    r"\{\{|\}\}|\{%|%\}|\{#|#\}|<(bound )?(method|function|generator|property)\b|object at 0x"
    r"|\b(None|nan|NaN|inf|Infinity|Undefined)\b"
)
KEPT = dict.fromkeys((0, 1, 4), (0, 2, 4))


def analysis(*, full: bool = True) -> Analysis:
    tokens = two_domains(never=(5,))
    if not full:
        return analyse(scores_of({"prose": tokens["prose"]}))
    after = {
        name: {n: masked(part, KEPT[n]) for n, part in layers.items()}
        for name, layers in tokens.items()
    }
    return analyse(
        scores_of(tokens),
        after=scores_of(after),
        routing_map=map_keeping(KEPT),
        domains={"code": 1.0, "prose": 2.0},
    )


def never_routed() -> RunResult:
    """Return a run whose base was not watched, of a method that counts and says little."""
    layers = tuple(
        layer.model_copy(update={"usage": (0,) * 8}) for layer in run_result(num_layers=2).layers
    )
    made = provenance().model_copy(update={"seed": None, "created": None, "data": ()})
    return run_result(method="random", layers=layers, search=(), quality=(), provenance=made)


def two_tasks() -> RunResult:
    more = [q.model_copy(update={"task": "arc_easy", "measure": "agreement"}) for q in quality()]
    return run_result(fitness="agreement", quality=(*quality(), *more), tasks=("sciq", "arc_easy"))


def lottery(*, tuned: bool) -> RunResult:
    return run_result(method="lottery", search=(), lottery=record(tuned=tuned))


def sweep(*, full: bool = True) -> SweepResult:
    """Return a sweep of a choice that was dropped and of two that were measured, if there are."""
    own: dict[str, Any] = {
        "plan": {},
        "digest": "",
        "active": 2,
        "seconds": 1.0,
        "command": "vmprune build",
    }
    known = Estimate(value=0.7, low=0.6, high=0.8)
    point = SweepPoint(**own, name="a", experts=8, num_bytes=9, complete=True, search=0.7, items=99)
    dropped = point.model_copy(update={"name": "b", "complete": False})
    speed = DecodeSpeed(
        engine="vllm", batch=8, tokens=32, rounds=2, tokens_per_second=9.0,
        base_tokens_per_second=8.0, ratio=Estimate(value=1.125),
    )  # fmt: skip
    again = {"held_out": known if full else Estimate(value=0.7), "on_front": True}
    front = point.model_copy(update={**again, "speed": speed if full else None, "name": "c"})
    return SweepResult(
        model="base",
        tasks=("sciq",),
        base_experts=16,
        base_bytes=18,
        base_search=0.9,
        base_held_out=known,
        points=(dropped, front, point) if full else (front,),
        recommended="c" if full else None,
        skipped={"d": "the same map as a"} if full else {},
        provenance=provenance(),
    )


PAGES: dict[str, Callable[[], str]] = {
    "report, all of it": lambda: render(
        run_result(),
        serving=compare_json(),
        check=check_json(),
        analysis=analysis().model_dump(mode="json"),
        judged=judged(),
    ),
    "report, all gates pass": lambda: render(
        run_result(num_layers=2),
        judged=Judged(gates(PASSED), answer_check(with_base=False, healthy=True)),
    ),
    "report, margin": lambda: render(run_result(fitness="margin", search=search(12))),
    "report, agreement, two tasks": lambda: render(
        two_tasks(), analysis=analysis(full=False).model_dump(mode="json")
    ),
    "report, next to nothing": lambda: render(never_routed(), check={}, serving={"ratios": []}),
    "report, lottery": lambda: render(lottery(tuned=True)),
    "report, rounds without training": lambda: render(lottery(tuned=False)),
    "analysis, all of it": lambda: analysis_page.render(analysis()),
    "analysis, scores alone": lambda: analysis_page.render(analysis(full=False)),
    "recovery, all of it": lambda: recovery_page.render(FULL),
    "recovery without tasks": lambda: recovery_page.render(recovery(), judged()),
    "sweep, all of it": lambda: sweep_page.render(sweep()),
    "sweep, next to nothing": lambda: sweep_page.render(sweep(full=False)),
    "load test": loads.of_records,
    "load test that failed": lambda: loads.of_records(all_failed=True),
    "load tests compared": loads.of_comparison,
    "load tests without ratios": lambda: loads.of_comparison(with_ratios=False),
}


@pytest.fixture(scope="module", params=PAGES, ids=str)
def page(request: pytest.FixtureRequest) -> Page:
    return Page(PAGES[request.param]())


def test_every_page_of_the_product_is_one_of_these() -> None:
    own = Path(template.__file__).parent.glob("*.html")
    pages = {file.stem for file in own if file.read_text().startswith("{% extends")}
    assert pages | {"load"} == {re.split(r"\W", name)[0] for name in PAGES}


def strings(value: Any) -> Iterator[str]:
    """Yield what a figure says; a number that is none as its name."""
    if isinstance(value, dict):
        yield from (text for part in value.values() for text in strings(part))
    elif isinstance(value, list):
        yield from (text for part in value for text in strings(part))
    elif isinstance(value, str):
        yield value
    elif isinstance(value, float) and not np.isfinite(value):
        yield str(value)


def test_no_text_holds_marks_of_a_template_or_of_a_value_that_is_none(page: Page) -> None:
    assert page.open == [] and "html" not in {tag for tag, _ in page.tags[1:]}
    said = [page.text]
    said += [value for _, attributes in page.tags for value in attributes.values() if value]
    assert [found[0] for text in said for found in LEFTOVERS.finditer(text)] == []


def test_no_figure_does_either(page: Page) -> None:
    found = [mark[0] for text in strings(page.figures) for mark in LEFTOVERS.finditer(text)]
    assert found == []


def numbers(trace: dict[str, Any]) -> int:
    """Return how many numbers a trace draws; plotly may have packed them."""
    found = trace.get("z") or trace.get("y") or trace.get("x") or ()
    if isinstance(found, dict):
        return len(found["bdata"])
    rows = [row if isinstance(row, list) else [row] for row in found]
    return sum(isinstance(cell, int | float) for row in rows for cell in row)


def test_no_chart_is_empty_and_none_is_missing(page: Page) -> None:
    empty = [
        (name, trace.get("name"))
        for name, figure in page.figures.items()
        for trace in figure["data"] or [{}]
        if not numbers(trace)
    ]
    assert empty == []
    places = {attributes.get("id") for attributes in page.named("div")}
    drawn = {name.replace("data-", "figure-") for name in page.figures}
    assert drawn <= places and len(drawn) == len(page.figures)
    images = [a for a in page.named("div") if a.get("role") == "img"]
    assert len(images) == len(page.figures) and all(a["aria-label"] for a in images)


@pytest.mark.parametrize("trace", [{}, {"y": []}, {"x": [], "y": []}, {"z": [[None]]}])
def test_an_empty_chart_would_be_seen(trace: dict[str, Any]) -> None:
    assert not numbers(trace)
    assert numbers({"y": [1.5]}) == numbers({"x": ["a"], "z": [[2, None]]}) == 1


@pytest.mark.parametrize(
    "text", ["{{ run.fitness }}", "{% if x %}", "a None b", "nan%", "<bound method Size.x of 1>"]
)
def test_such_a_mark_would_be_seen(text: str) -> None:
    assert LEFTOVERS.search(text)


def test_the_search_section_says_which_fitness_its_dots_are() -> None:
    for fitness in ("accuracy", "margin", "agreement"):
        words = Page(render(run_result(fitness=fitness, search=search(12)))).words
        assert f"Dots: {fitness} of each candidate on the search split" in words
