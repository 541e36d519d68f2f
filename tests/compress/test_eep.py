"""EEP's uses end to end on a tiny model: merging, tuning, fewer active experts, budgets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.engines.local.transformers import TransformersEngine
from offline.results.compression import RunResult
from offline.tasks.catalog import get_task
from tests.sample_runs import Listener, log_of, of_its_method
from vllm_moe_prune.checkpoint import COMPACT_FOLDER
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

SETTINGS: dict[str, Any] = {
    "evaluations": 16,
    "prune_evaluations": 8,
    "initial": 4,
    "children": 4,
    "finalists": 2,
    "search_items": 15,
    "selection_items": 15,
    "random_maps": 2,
    "dtype": "float32",
    "device": "cpu",
}


def run(
    engine: TransformersEngine, model: Path, task: Path | str, out: Path, **more: Any
) -> RunResult:
    recipe = recipe_of(of_its_method(SETTINGS | {"model": model, "task": str(task)} | more))
    listener = Listener()
    result = compress(recipe, out, make_engine=lambda _: engine, reporter=listener)
    assert all(done == total for _, total, done in listener.stages), listener.stages
    return result


def test_pruning_then_merging_gives_a_compact_checkpoint_and_both_figures(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(engine, model, task_file, out, keep=4, racing=False, compare="none")
    assert [q.variant for q in result.quality if q.split == "test"] == ["base", "eep_prune", "eep"]
    phases = [point.phase for point in result.search]
    assert phases == ["prune"] * 8 + ["merge"] * 8
    assert [point.complete for point in result.search] == [True] * 16
    merged = [e for e in log_of(out) if e["kind"] == "candidate" and e["phase"] == "merge"]
    assert len(merged) == 8
    routing_map = RoutingMap.load(out)
    engine.apply(routing_map)
    held_out = engine.evaluate(get_task(str(task_file)), "test")
    engine.apply(None)
    found = result.quality_of("eep")
    assert found is not None and found.accuracy == held_out.accuracy
    assert (out / COMPACT_FOLDER).is_dir() == (routing_map.form == "compact")


def test_keeping_all_experts_only_merges_and_begins_with_the_base(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = run(engine, model, task_file, out, keep=8, racing=False)
    assert [point.phase for point in result.search] == ["merge"] * 16
    assert [q.variant for q in result.quality if q.split == "test"] == ["base", "eep"]
    searched = result.quality_of("eep", "search")
    assert searched is not None
    engine.apply(None)
    base = engine.evaluate(get_task(str(task_file)), "search", 15)
    assert result.search[0].fitness == base.accuracy
    assert max(p.fitness for p in result.search) >= base.accuracy


@pytest.mark.parametrize(("keep", "top_k"), [(8, "1"), (4, "0-0:1,1-1:2")])
def test_fewer_active_experts(
    keep: int,
    top_k: str,
    engine: TransformersEngine,
    model: Path,
    task_file: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    more: dict[str, Any] = {"keep": keep, "top_k": top_k, "compare": "none"}
    result = run(engine, model, task_file, out, **more)
    assert [layer.top_k for layer in result.layers] == ([1, 1] if keep == 8 else [1, 2])
    assert RoutingMap.load(out).max_top_k == max(layer.top_k for layer in result.layers)


def test_a_budget_is_spread_over_the_layers(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more: dict[str, Any] = {"budget": 7, "floor": 2, "groups": "layer", "phases": "prune"}
    result = run(engine, model, task_file, out, **more)
    kept = [layer.num_kept for layer in result.layers]
    assert sum(kept) == 7 and min(kept) >= 2
    assert result.form == "compact"
    spreads = {
        tuple(len(kept) for kept in _kept(entry))
        for entry in log_of(out)
        if entry["kind"] == "candidate"
    }
    assert len(spreads) > 1  # the search moved experts between layers


def _kept(entry: dict[str, Any]) -> list[list[int]]:
    return [part["experts"] for part in entry["map"] for _ in part["layers"]]


def test_seeds_of_one_shot_methods_are_the_first_candidates(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more: dict[str, Any] = {"keep": 4, "phases": "prune", "groups": "layer", "racing": False}
    result = run(engine, model, task_file, out, **more)
    frequency = result.quality_of("frequency")
    candidates = [e["digest"] for e in log_of(out) if e["kind"] == "candidate"]
    evaluated = [e["digest"] for e in log_of(out) if e["kind"] == "evaluation"]
    assert frequency is not None
    assert candidates[0] in evaluated  # frequency's map, measured again on held-out items
    assert set(candidates[:2]) <= set(selected(out))  # seeds are finalists, whatever their fitness


def selected(out: Path) -> list[str]:
    """Return the maps that were evaluated on the selection split."""
    return [
        entry["digest"]
        for entry in log_of(out)
        if entry["kind"] == "evaluation"
        and any(fields["split"] == "selection" for fields in entry["results"].values())
    ]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"finalists": 3}, 3),
        ({"finalists": None}, 5),  # of the preset `fast`
        ({"finalists": None, "preset": "paper"}, 16),  # 20, but no more than there are
    ],
)
def test_so_many_finalists_are_reranked_as_asked_for_or_as_the_preset_has(
    more: dict[str, Any],
    expected: int,
    engine: TransformersEngine,
    model: Path,
    task_file: Path,
    tmp_path: Path,
) -> None:
    more |= {"phases": "prune", "prune_evaluations": 16, "groups": "layer", "seeding": False}
    run(engine, model, task_file, tmp_path / "out", keep=4, racing=False, compare="none", **more)
    assert len(set(selected(tmp_path / "out"))) == expected


@pytest.mark.parametrize("finalists", [1, 3])
def test_so_many_of_the_best_as_asked_for_are_ranked_again(
    finalists: int, engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out, listener = tmp_path / "out", Listener()
    more = {"finalists": finalists, "seeding": False, "racing": False, "compare": "none"}
    given = {"model": model, "task": str(task_file), "keep": 4, "phases": "prune", "seed": 3}
    recipe = recipe_of(SETTINGS | given | more)
    result = compress(recipe, out, make_engine=lambda _: engine, reporter=listener)
    assert ["re-ranking the finalists", finalists, finalists] in listener.stages
    candidates = {e["digest"]: e for e in log_of(out) if e["kind"] == "candidate"}
    assert len(candidates) == len(result.search) == 8
    fitness = dict(zip(candidates, (point.fitness for point in result.search), strict=True))
    ranked = sorted(fitness, key=lambda digest: -fitness[digest])
    assert set(selected(out)) == set(ranked[:finalists])
    assert result.map_digest in selected(out)


def test_agreement_needs_no_labels(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    result = run(
        engine, model, task_file, tmp_path / "out", keep=4, fitness="agreement", compare="none"
    )
    measured = {(q.variant, q.measure) for q in result.quality if q.split == "test"}
    assert {("eep", "accuracy"), ("eep", "agreement"), ("base", "agreement")} <= measured
    base = next(q for q in result.quality if (q.variant, q.measure) == ("base", "agreement"))
    assert base.accuracy == pytest.approx(1, abs=1e-5)
    assert 0 < max(p.fitness for p in result.search) < 1


def test_margin_and_guard_and_two_tasks(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    other = task_file.with_name("again.yaml")
    other.write_text(task_file.read_text().replace("colours", "again"))
    task = f"{task_file}:2,{other}:1"
    more: dict[str, Any] = {"keep": 4, "fitness": "margin", "guard": 0.5, "compare": "none"}
    result = run(engine, model, task, tmp_path / "out", **more)
    assert result.tasks == ("colours", "again")
    assert {q.task for q in result.quality} == {"colours", "again"}
    assert all(np.isfinite(p.fitness) for p in result.search)


def test_vllm_is_refused_what_only_transformers_shows(model: Path) -> None:
    with pytest.raises(PruneError, match="naee reads what experts compute"):
        recipe_of({"model": model, "keep": 4, "engine": "vllm", "method": "naee"})


def test_naee_is_a_method(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    result = run(engine, model, task_file, tmp_path / "out", keep=4, method="naee", random_maps=1)
    assert [q.variant for q in result.quality] == ["base", "random", "frequency", "naee"]
    found = engine.reconstruction_losses(get_task(str(task_file)), "search", 15, 4)
    for layer in result.layers:
        assert layer.kept == min(found[layer.layer], key=found[layer.layer].__getitem__)
