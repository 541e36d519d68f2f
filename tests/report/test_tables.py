"""The tables of the report, cell by cell: each number under its heading and in its row."""

from __future__ import annotations

import pytest

from offline.report import tables, words
from offline.report.inputs import Ratio
from offline.report.render import render
from offline.results.compression import LayerOutcome, SearchPoint
from tests.report.page import Page
from tests.report.samples import compare_json, provenance, run_result


def test_every_accuracy_is_shown_with_its_interval(full: Page) -> None:
    head = ["variant", "task", "accuracy", "95% interval", "against base, points", "items", "maps"]
    table = full.table("Accuracy on the held-out split of sciq")
    assert [table.head, *table.body] == [
        head,
        ["base", "sciq", "84.3%", "81.9 to 86.4%", "", "1000", "1"],
        ["random", "sciq", "66.9%", "65.2 to 68.6%", "-17.4", "1000", "10"],
        ["frequency", "sciq", "73.1%", "70.3 to 75.8%", "-11.2", "1000", "1"],
        ["EEP", "sciq", "76.4%", "73.7 to 78.9%", "-7.9", "1000", "1"],
    ]


def test_generations_that_never_ended_their_thinking_are_shown() -> None:
    run = run_result()
    assert tables.metrics_table(run) is None
    quality = [q.model_copy(update={"unfinished": 7 * (q.variant == "eep")}) for q in run.quality]
    table = tables.metrics_table(run.model_copy(update={"quality": tuple(quality)}))
    assert table is not None
    assert table.rows == (("EEP", "sciq", "generations that never ended their thinking", "7", ""),)
    kept = [q.model_dump() for q in quality]
    assert [fields.get("unfinished") for fields in kept] == [q.unfinished or None for q in quality]


def test_the_optimism_of_the_search_is_shown_step_by_step(full: Page) -> None:
    head = ["variant", "task", "split", "accuracy", "95% interval", "change, points", "items"]
    table = full.table("From the items that drove the search to items that decided nothing")
    assert [table.head, *table.body] == [
        head,
        ["EEP", "sciq", "search", "82.5%", "76.6 to 87.1%", "", "200"],
        ["EEP", "sciq", "selection", "78.5%", "72.3 to 83.6%", "-4.0", "200"],
        ["EEP", "sciq", "held-out", "76.4%", "73.7 to 78.9%", "-2.1", "1000"],
    ]
    assert "The search's own figure is 6.1 points above" in full.words


def test_sizes_before_and_after_each_have_their_place(full: Page) -> None:
    table = full.table("Size before and after")
    assert [table.head, *table.body] == [
        ["", "base", "pruned", "change"],
        ["experts", "240", "120", "-50.0%"],
        ["on disk", "1.35 GiB", "0.75 GiB", "-44.1%"],
        ["on disk, bytes", "1,445,986,304", "808,452,096", "-44.1%"],
        ["expert weights", "1.19 GiB", "0.59 GiB", "-50.0%"],
        ["expert weights, bytes", "1,274,019,840", "636,485,632", "-50.0%"],
    ]


def outcome(layer: int, kept: tuple[int, ...], usage: tuple[int, ...]) -> LayerOutcome:
    return LayerOutcome(
        layer=layer,
        num_experts=len(usage),
        num_kept=len(kept),
        kept=kept,
        top_k=2,
        router="sliced",
        usage=usage,
    )


def test_every_layer_is_in_the_table_with_the_share_of_tokens_that_its_experts_had() -> None:
    layers = (
        outcome(1, (0, 3), (50, 10, 15, 25)),  # (50 + 25) / 100
        outcome(4, (1, 2), (50, 10, 15, 25)),  # (10 + 15) / 100
        outcome(7, (0, 1, 2), (0, 0, 0, 0)),
        outcome(8, (0, 1, 2, 3), (1, 2, 3, 4)),
    )
    page = Page(render(run_result(layers=layers)))
    table = page.table("Experts kept and dropped in every layer")
    assert [table.head, *table.body] == [
        ["layer", "kept", "dropped", "kept of", "top-k", "router", "routed tokens kept"],
        ["1", "0, 3", "1, 2", "2 of 4", "2", "sliced", "75.0%"],
        ["4", "1, 2", "0, 3", "2 of 4", "2", "sliced", "25.0%"],
        ["7", "0-2", "3", "3 of 4", "2", "sliced", "-"],
        ["8", "0-3", "none", "4 of 4", "2", "sliced", "100.0%"],
    ]
    # 75 + 25 + 0 + 10 of 100 + 100 + 0 + 10
    assert "The kept experts received 52.4% of the tokens that the base routes." in page.words


@pytest.mark.parametrize(
    ("layers", "share"),
    [
        ([((0, 3), (50, 10, 15, 25))], 0.75),
        ([((), (50, 10, 15, 25))], 0.0),
        ([((0, 1, 2, 3), (50, 10, 15, 25))], 1.0),
        ([((1,), (30, 10)), ((0,), (60, 0))], 0.7),  # of all tokens, not the mean of the layers
        ([((0,), (0, 0))], None),
        ([], None),
    ],
)
def test_the_share_of_the_tokens_that_kept_experts_had(
    layers: list[tuple[tuple[int, ...], tuple[int, ...]]], share: float | None
) -> None:
    found = tables.kept_share([outcome(n, *layer) for n, layer in enumerate(layers)])
    assert found == (None if share is None else pytest.approx(share))


def test_every_layer_of_a_run_has_its_row(full: Page) -> None:
    table = full.table("Experts kept and dropped in every layer")
    assert table.column("layer") == [str(number) for number in range(30)]
    assert table.row("2") == {
        "layer": "2",
        "kept": "1, 2, 6, 7",
        "dropped": "0, 3-5",
        "kept of": "4 of 8",
        "top-k": "2",
        "router": "sliced",
        "routed tokens kept": "61.8%",  # of (1207, 2778, 1644, 1008, 2214, 1374, 2970, 1992)
    }


def test_every_serving_ratio_is_shown(full: Page) -> None:
    caption = "Serving: pruned divided by base within each round, median of the rounds"
    table = full.table(caption)
    assert len(table.body) == len(compare_json()["ratios"]) == 22
    for ratio in compare_json()["ratios"]:
        name, users = words.METRICS[ratio["metric"]][0], ratio["users"]
        shown = table.row(name, "" if users is None else str(users))
        assert shown["ratio"] == f"{ratio['median']:.2f}"
        assert shown["per round"] == " ".join(f"{value:.2f}" for value in ratio["per_round"])
    verdicts = {name: table.row(name, "8")["pruned is"] for name in table.column("metric")[:7]}
    assert verdicts == {
        "output tokens per second": "better",
        "time to first token, p50, ms": "better",
        "time to first token, p95, ms": "unclear",
        "inter-token latency, p50, ms": "better",
        "inter-token latency, p95, ms": "better",
        "end-to-end latency, p50, ms": "better",
        "output tokens per answer": "",
    }
    assert table.row("peak host memory, GiB") == {
        "metric": "peak host memory, GiB",
        "users": "",
        "base": "3.25",
        "pruned": "2.70",  # 0.83 of it
        "ratio": "0.64",
        "per round": "0.63 0.65",
        "pruned is": "better",
    }


def test_checks_are_shown(full: Page) -> None:
    assert "All checks passed." in full.words
    assert full.table("Checks of the served checkpoint").rows == [
        ["check", "outcome", "measured", "limit", "detail"],
        ["log-probability parity", "passed", "0.000613", "0.002", "mean over 128 tokens, float32"],
        ["repetition", "passed", "0.125", "0.5", "worst of 6 greedy answers"],
    ]


def test_provenance_is_shown(full: Page) -> None:
    made = provenance()
    shown = {name: value for name, value in full.table("Settings").body}
    assert list(shown) == list(made.settings)
    assert (shown["keep"], shown["groups"], shown["random_maps"]) == ("4", "4", "10")
    assert shown["top_k"] == shown["test_items"] == "-"
    assert dict(full.table("Versions").body) == made.versions
    assert full.table("Data that decided").body == [
        ["sciq", "search", "200", "sha256:" + "ab" * 32],
        ["sciq", "selection", "200", "sha256:" + "cd" * 32],
    ]
    assert f"Map digest{run_result().map_digest}" in full.words
    assert f"Made at{made.created}" in full.words


def point(evaluation: int, fitness: float, *, complete: bool = True, best: float) -> SearchPoint:
    return SearchPoint(
        evaluation=evaluation,
        phase="prune" if evaluation < 5 else "merge",
        fitness=fitness,
        best=best,
        complete=complete,
        items=100 if complete else 20,
        seconds=1.25 * evaluation,
        tokens=1000 * evaluation,
    )


SEARCH = (
    point(1, 0.9, complete=False, best=0.9),  # on the few items that it saw: improves on nothing
    point(2, 0.5, best=0.5),
    point(3, 0.75, complete=False, best=0.5),
    point(4, 0.625, best=0.625),
    point(5, 0.625, best=0.625),  # as good is no improvement
    point(6, 0.5, best=0.625),
    point(7, 0.7, best=0.7),
)


def test_improvements_are_of_candidates_that_saw_all_items() -> None:
    table = Page(render(run_result(search=SEARCH))).table(
        "Candidates that improved on the best so far"
    )
    assert [table.head, *table.body] == [
        ["evaluation", "phase", "accuracy x 100", "seconds", "tokens"],
        ["2", "prune", "50.0", "2.5", "2,000"],
        ["4", "prune", "62.5", "5.0", "4,000"],
        ["7", "merge", "70.0", "8.8", "7,000"],
    ]


def test_what_the_search_cost_is_added_up_by_phase() -> None:
    page = Page(render(run_result(search=SEARCH)))
    counts = ["phase", "candidates", "dropped by racing", "items evaluated", "tokens"]
    table = page.table("What the search cost")
    assert [table.head, *table.body] == [
        [*counts, "seconds", "seconds per candidate"],
        ["prune", "4", "2", "240", "10,000", "12.5", "3.12"],
        ["merge", "3", "0", "300", "18,000", "22.5", "7.50"],
    ]
    assert "7 candidates, 35.0 s of evaluation, 28,000 tokens." in page.words


def test_the_label_of_the_search_tells_the_best_that_saw_all_items() -> None:
    page = Page(render(run_result(search=SEARCH)))
    (label,) = [a["aria-label"] for a in page.named("div") if a.get("id") == "search-progress"]
    assert label == (
        "Search progress: 7 candidates, 2 of them dropped by racing, best fitness 70.0% first "
        "reached at evaluation 7, first candidate 90.0%."
    )


def test_layers_may_differ_and_may_be_merged() -> None:
    layers = (
        LayerOutcome(
            layer=1,
            num_experts=4,
            num_kept=2,
            kept=(0, 3),
            top_k=1,
            router="mapped",
            usage=(0,) * 4,
        ),
        LayerOutcome(
            layer=5, num_experts=2, num_kept=1, kept=(), top_k=2, router="mapped", usage=(3, 1)
        ),
    )
    page = Page(render(run_result(layers=layers)))
    heat, crosses = page.figures["heat-map"]["data"]
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(0, 1), (0, 2)]
    assert [row[1] for row in heat["z"]] == [75.0, 25.0, None, None]
    assert page.table("Experts kept and dropped in every layer").body == [
        ["1", "0, 3", "1, 2", "2 of 4", "1", "mapped", "-"],
        ["5", "merged", "", "1 of 2", "2", "mapped", "-"],
    ]
    assert page.figures["heat-map"]["layout"]["xaxis"]["ticktext"] == ["1", "5"]


def test_a_failed_check_is_said_loudly() -> None:
    page = Page(render(run_result(num_layers=1), check={"checks": [{"name": "x", "ok": False}]}))
    assert "NOT all checks passed." in page.words
    assert page.table("Checks of the served checkpoint").body == [["x", "FAILED", "", "", ""]]


def test_unknown_fields_of_other_tools_are_ignored() -> None:
    serving = {**compare_json(), "schema_version": 9, "news": 1}
    measure = {"name": "parity", "ok": True, "measure": 0.25, "extra": []}
    page = Page(render(run_result(num_layers=1), serving=serving, check={"checks": [measure]}))
    assert page.table("Checks of the served checkpoint").row("parity")["measured"] == "0.25"


@pytest.mark.parametrize(
    ("rounds", "higher_is_better", "expected"),
    [
        ((1.2, 1.3), True, "better"),
        ((1.2, 1.3), False, "worse"),
        ((0.9, 0.8), False, "better"),
        ((0.9, 1.1), True, "unclear"),
        ((1.0, 1.1), True, "unclear"),
        ((1.2, 1.3), None, ""),
        ((), True, "better"),
    ],
)
def test_rounds_that_disagree_prove_nothing(
    rounds: tuple[float, ...], higher_is_better: bool | None, expected: str
) -> None:
    ratio = Ratio(metric="m", per_round=rounds, median=1.1, higher_is_better=higher_is_better)
    assert tables.verdict(ratio) == expected


def test_ids_are_written_as_runs() -> None:
    assert words.ids((0, 2, 3, 4, 5, 7, 8)) == "0, 2-5, 7, 8"
    assert words.ids(()) == ""
