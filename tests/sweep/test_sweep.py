"""`vmprune sweep` of a tiny model: choices, race, held-out front, gates, page, continuation."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from offline.plan.recipe import PlanRecipe
from offline.results.sensitivity import LayerSensitivity, Sensitivity
from offline.results.sweep import SweepResult
from offline.sweep.choices import build_command, choices_of, recipes_of
from offline.sweep.settings import SweepSettings
from tests.command import invoke
from tests.sample_files import write_task
from tests.sweep.samples import KINDS, NAMES, SOURCE, flags_of, made_up_scores
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

WHERE = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def scores(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "scores"
    made_up_scores(base).save(folder)
    return folder


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    return write_task(tmp_path)


def test_choices_are_all_combinations_and_equal_maps_come_once(base: Path) -> None:
    own, checkpoint = made_up_scores(base), Checkpoint.open(base)
    settings = SweepSettings(
        criteria="min-ean,min-euf",
        ratios="0.5,0.25",
        fates="dropped,substituted",
        merges="output-similarity",
        top_ks="1",
    )
    names = list(recipes_of(settings, own.shape))
    # Of what is merged a criterion only spreads a budget.
    assert len(names) == 2 * 2 * (1 + 2 + 2 * 2 * 2)
    assert {"min-ean-50", "min-ean-budget-16-of-32", "merge-output-25-top-1"} <= set(names)
    assert {"min-euf-50-substituted", "merge-output-min-euf-budget-24-of-32"} <= set(names)
    found = choices_of(settings, own, checkpoint, SOURCE)
    sizes = [(one.num_bytes, one.active) for one in found.found]
    assert sizes == sorted(sizes)
    assert {one.experts for one in found.found} == {16, 24}
    assert {one.active for one in found.found} == {1, 2}
    assert len({one.routing_map.digest() for one in found.found}) == len(found.found)
    by_name = {one.name: one for one in found.found}
    vectors = by_name["min-ean-50-substituted"].num_bytes - by_name["min-ean-50"].num_bytes
    rows = checkpoint.tensors["model.layers.0.block_sparse_moe.gate.weight"].num_bytes // 2
    assert vectors == 4 * (4 * 64 * 4 + rows)  # of four layers: vectors, and a gate that stays


def test_routers_are_asked_for_where_there_is_a_choice(base: Path) -> None:
    settings = SweepSettings(
        criteria="min-ean",
        ratios="0.5",
        spreads="uniform",
        fates="dropped,substituted",
        merges="router-similarity",
        routers="auto,sliced,mapped",
    )
    found = choices_of(settings, made_up_scores(base), Checkpoint.open(base), SOURCE)
    assert {one.name: one.routing_map.layers[0].router for one in found.found} == {
        "merge-router-50": "mapped",
        "merge-router-50-sliced": "sliced",
        "min-ean-50": "sliced",
        "min-ean-50-mapped": "mapped",
        "min-ean-50-substituted": "sliced",
    }
    assert found.skipped == {
        "merge-router-50-mapped": "the same map as merge-router-50",
        "min-ean-50-sliced": "the same map as min-ean-50",
    }


def test_a_budget_goes_by_what_layers_lose_where_that_was_measured(base: Path) -> None:
    own, checkpoint = made_up_scores(base), Checkpoint.open(base)
    losses = {0: 9.0, 1: 0.1, 2: 0.2, 3: 0.3}
    measured = Sensitivity(
        base=own.shape.base,
        choice=PlanRecipe(ratio=0.0, criterion="min-ean").choice,
        loss=3.0,
        tokens=100,
        layers=tuple(
            LayerSensitivity(layer=layer, num_experts=8, losses={2: loss})
            for layer, loss in losses.items()
        ),
        provenance=Provenance.now("test"),
    )
    settings = SweepSettings.of(
        {
            "criteria": "min-ean,min-euf",
            "ratios": "0.5",
            "spreads": "uniform,sensitivity",
            "sensitivity": "measured",
        }
    )
    found = choices_of(settings, own, checkpoint, SOURCE, {"measured": measured})
    by_name = {one.name: one for one in found.found}
    assert set(by_name) == {"min-ean-50", "min-euf-50", "min-ean-sensitivity-16-of-32"}
    spread = by_name["min-ean-sensitivity-16-of-32"]
    assert [layer.num_kept for layer in spread.routing_map.layers] == [8, 2, 2, 4]
    assert spread.plan == {"budget": 16, "sensitivity": "measured"}
    ((name, why),) = found.skipped.items()
    assert name == "min-euf-sensitivity-16-of-32" and "--criterion min-ean, not min-euf" in why


def test_what_can_not_be_is_left_out_and_nothing_at_all_is_an_error(base: Path) -> None:
    own = made_up_scores(base)
    settings = SweepSettings(criteria="min-ean", ratios="0.75", top_ks="3", spreads="uniform")
    found = choices_of(settings, own, Checkpoint.open(base), SOURCE)
    assert [one.name for one in found.found] == ["min-ean-75"]
    assert set(found.skipped) == {"min-ean-75-top-3"}  # keeps two, activates three
    gradients = SweepSettings(criteria="min-ege", ratios="0.5", spreads="uniform")
    with pytest.raises(PruneError, match=r"no choice can be: min-ege-50: .*gradients"):
        choices_of(gradients, own, Checkpoint.open(base), SOURCE)
    with pytest.raises(PruneError, match="no choice is asked for"):
        choices_of(SweepSettings(criteria=""), own, Checkpoint.open(base), SOURCE)


def test_what_an_engine_refuses_is_left_out_by_its_kind(base: Path) -> None:
    found = choices_of(SweepSettings.of(KINDS), made_up_scores(base), Checkpoint.open(base), SOURCE)
    asked: list[RoutingMap] = []

    def can(routing_map: RoutingMap) -> None:
        asked.append(routing_map)
        if routing_map.substitutes or routing_map.max_top_k == 1:
            raise PruneError("not this one", hint="another engine")

    left = found.that(can)
    assert [one.name for one in left.found] == ["min-ean-50", "merge-output-50"]
    assert left.skipped == dict.fromkeys(NAMES - {one.name for one in left.found}, "not this one")
    assert len(asked) == 6

    def never(_: RoutingMap) -> None:
        raise PruneError("not this one", hint="another engine")

    with pytest.raises(PruneError, match="not this one") as error:
        found.that(never)
    assert error.value.hint == "another engine"


def swept(base: Path, scores: Path, task: Path, out: Path, *more: Any) -> Any:
    words = ("sweep", "--model", base, "--scores", scores, "--task", task, "--out", out)
    return invoke(*words, *flags_of(KINDS), "--quiet", *WHERE, *more)


def test_a_sweep_measures_writes_and_recommends(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    text = tmp_path / "prose.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"the cat sees {n} fish"}) + "\n" for n in range(9))
    )
    gates = tmp_path / "gates.yaml"
    gates.write_text(f"text: prose={text}\naccuracy_drop: 1\nperplexity_ratio: 9\nloops: 0.1\n")
    out = tmp_path / "out"
    done = swept(base, scores, task, out, "--gate", gates)
    assert done.exit_code == 0, done.output
    result = SweepResult.load(out)
    assert {point.name for point in result.points} == NAMES
    assert result.left_open == ("loops",)
    assert "not judged here: loops" in done.stdout
    smallest = min(point.num_bytes for point in result.points)
    assert result.chosen is not None and result.chosen.num_bytes == smallest
    assert f"the smallest that passes: {result.recommended}" in done.stdout
    again = [point for point in result.points if point.held_out is not None]
    assert result.chosen in again and all(point.complete and point.text for point in again)
    assert any(point.on_front for point in again)
    for point in result.points:
        assert RoutingMap.load(out / "maps" / point.name).digest() == point.digest
        assert (point.speed is not None) is (point.on_front or point == result.chosen)
        assert point.speed is None or point.speed.tokens_per_second > 0
    assert "3 answers of 4 tokens together, 2 times in turn with the base" in done.stdout
    page = (out / "sweep.html").read_text()
    assert page.count(f"--map {out}/maps/") == len(again)
    assert 'id="build-' in page and 'id="h-speed"' in page
    # Killed before it was written: nothing is measured again, and the result is the same.
    logs = ("evaluations", "texts", "speeds")
    kept = {name: (tmp_path / "out.run" / f"{name}.jsonl").read_bytes() for name in logs}
    for name in ("texts", "speeds"):
        half = kept[name] + b'{"digest": "half'
        (tmp_path / "out.run" / f"{name}.jsonl").write_bytes(half)
    assert swept(base, scores, task, out, "--gate", gates, "--force").exit_code == 0
    for name, before in kept.items():
        assert (tmp_path / "out.run" / f"{name}.jsonl").read_bytes() == before
    assert SweepResult.load(out).points == result.points
    # Without tokens/s the run is the same one.
    flags = ("--gate", gates, "--force", "--speed-rounds", "0")
    assert swept(base, scores, task, out, *flags).exit_code == 0
    assert all(point.speed is None for point in SweepResult.load(out).points)
    assert 'id="h-speed"' not in (out / "sweep.html").read_text()


@pytest.mark.parametrize("name", ["merge-output-50", "min-ean-50-substituted", "min-ean-50-top-1"])
def test_the_command_of_a_choice_builds_it(name: str, base: Path, tmp_path: Path) -> None:
    settings = SweepSettings.of(KINDS)
    found = choices_of(settings, made_up_scores(base), Checkpoint.open(base), SOURCE)
    choice = next(one for one in found.found if one.name == name)
    choice.routing_map.save(tmp_path / "maps" / name)
    command = shlex.split(build_command(str(base), tmp_path, name, settings))
    assert command[-2:] == ["--out", name]
    assert invoke(*command[1:-1], tmp_path / "built").exit_code == 0
    built = RoutingMap.load(tmp_path / "built")
    assert built.digest() == choice.routing_map.digest()
    assert built.substitutes is (name == "min-ean-50-substituted")
    assert built.max_top_k == (1 if name.endswith("top-1") else 2)
    weights = Checkpoint.open(tmp_path / "built").num_bytes
    assert weights + choice.routing_map.vector_bytes == choice.num_bytes


def test_gates_that_nothing_passes_end_it_with_what_they_say(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("accuracy_drop: -1\n")
    asked = ("--gate", gates, "--speed-rounds", "0")
    done = swept(base, scores, task, tmp_path / "out", *asked, "--json")
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["recommended"] is None
    gates.write_text("perplexity_ratio: 1\n")  # of no text
    again = swept(base, scores, task, tmp_path / "out", *asked, "--force")
    assert again.exit_code == 3, again.output


def test_a_dry_run_says_sizes_and_cost(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    done = swept(base, scores, task, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "min-ean-50-substituted-top-1" in done.stdout
    assert "6 maps race on at most 16 items each" in done.stdout
    # Six sizes: base and choice, two rounds and one before them, three answers of four tokens.
    assert "18 answers of 4 tokens for each on the front, 432 tokens at most" in done.stdout
    assert "MiB of vectors are kept with the maps" in done.stdout
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()


def test_a_search_goes_on_from_the_best_of_each_size(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    out, asked = tmp_path / "out", ("--search", "16", "--speed-rounds", "0")
    told = swept(base, scores, task, out, *asked, "--dry-run")
    assert "2 searches have 32 candidates" in told.stdout  # for two numbers of active experts
    assert swept(base, scores, task, out, *asked).exit_code == 0
    result = SweepResult.load(out)
    new = [point for point in result.points if point.name not in NAMES]
    assert {point.name for point in new} <= {"search-16-of-32-top-1", "search-16-of-32-top-2"}
    assert new, "random experts have better maps than made-up scores choose"
    for point in new:
        seeds = [p for p in result.points if p.name in NAMES and p.active == point.active]
        dropped = [p for p in seeds if p.complete and "merge" not in p.name]
        assert point.search > max(p.search for p in dropped if "substituted" not in p.name)
        assert point.plan == {"search": 16} and point.complete and point.experts == 16
        found = RoutingMap.load(out / "maps" / point.name)
        assert found.digest() == point.digest
        assert all(layer.experts.kept for layer in found.layers), "it only drops"
    # Killed before it was written: the search goes the same way, and nothing is measured again.
    log = tmp_path / "out.run" / "evaluations.jsonl"
    before = log.read_bytes()
    assert swept(base, scores, task, out, *asked, "--force").exit_code == 0
    assert log.read_bytes() == before
    assert SweepResult.load(out).points == result.points


def test_no_router_is_watched_for_no_search(
    base: Path, scores: Path, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a search would begin with may all have been dropped by the race."""
    monkeypatch.setattr("offline.sweep.search.Start.seeds", lambda start, raced: [])
    monkeypatch.delattr("offline.sweep.sweep.usage_of")
    out = tmp_path / "out"
    done = swept(base, scores, task, out, "--search", "16", "--speed-rounds", "0")
    assert done.exit_code == 0, done.output
    assert "no search-16-of-32-top-2: all that it would begin with was dropped" in done.stderr
    assert {point.name for point in SweepResult.load(out).points} == set(NAMES)
