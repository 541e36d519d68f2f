"""`vmprune sweep` of a tiny model: choices, race, held-out front, gates, page, continuation."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from offline.results.sweep import SweepResult
from offline.sweep.choices import choices_of, recipes_of
from offline.sweep.settings import SweepSettings
from tests.command import invoke
from tests.criteria.scores import scores_of
from tests.sample_files import write_task
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.provenance import DataIdentity
from vllm_moe_prune.routing_map import RoutingMap

WHERE = ("--device", "cpu", "--dtype", "float32")
FEW = ("--criteria", "min-ean,max-ean", "--ratios", "0.5,0.25", "--search-items", "24")
SOURCE = DataIdentity(name="scores", count=1, sha256="sha256:0")


@pytest.fixture(scope="module")
def scores(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scores") / "scores"
    layers = tuple(Checkpoint.open(base).expert_counts())
    fingerprint = Checkpoint.open(base).fingerprint()
    scores_of(layers, base=fingerprint, gradients=False, experts=8).save(folder)
    return folder


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    return write_task(tmp_path)


def test_choices_are_all_combinations_and_equal_maps_come_once(base: Path) -> None:
    layers = tuple(Checkpoint.open(base).expert_counts())
    own = scores_of(layers, base=Checkpoint.open(base).fingerprint(), gradients=False, experts=8)
    settings = SweepSettings(
        criteria="min-ean,min-euf", ratios="0.5,0.25", merges="output-similarity", top_ks="1"
    )
    names = list(recipes_of(settings, own.shape))
    assert len(names) == 2 * 2 * (1 + 2 * 2)
    assert {"min-ean-50", "min-ean-budget-16-of-32", "merge-output-25-top-1"} <= set(names)
    found = choices_of(settings, own, Checkpoint.open(base), SOURCE)
    sizes = [(one.num_bytes, one.active) for one in found.found]
    assert sizes == sorted(sizes)
    assert {one.experts for one in found.found} == {16, 24}
    assert {one.active for one in found.found} == {1, 2}
    assert len({one.routing_map.digest() for one in found.found}) == len(found.found)
    twice = SweepSettings(
        criteria="min-ean", ratios="0.5", spreads="uniform", routers="auto,sliced"
    )
    again = choices_of(twice, own, Checkpoint.open(base), SOURCE)
    assert [one.name for one in again.found] == ["min-ean-50"]
    assert again.skipped == {"min-ean-50-sliced": "the same map as min-ean-50"}


def test_what_can_not_be_is_left_out_and_nothing_at_all_is_an_error(base: Path) -> None:
    layers = tuple(Checkpoint.open(base).expert_counts())
    own = scores_of(layers, base=Checkpoint.open(base).fingerprint(), gradients=False, experts=8)
    settings = SweepSettings(criteria="min-ean", ratios="0.75", top_ks="3", spreads="uniform")
    found = choices_of(settings, own, Checkpoint.open(base), SOURCE)
    assert [one.name for one in found.found] == ["min-ean-75"]
    assert set(found.skipped) == {"min-ean-75-top-3"}  # keeps two, activates three
    gradients = SweepSettings(criteria="min-ege", ratios="0.5", spreads="uniform")
    with pytest.raises(PruneError, match=r"no choice can be: min-ege-50: .*gradients"):
        choices_of(gradients, own, Checkpoint.open(base), SOURCE)


def swept(base: Path, scores: Path, task: Path, out: Path, *more: Any) -> Any:
    words = ("sweep", "--model", base, "--scores", scores, "--task", task, "--out", out)
    return invoke(*words, *FEW, "--test-items", "12", "--quiet", *WHERE, *more)


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
    assert len(result.points) == 8 - len(result.skipped)
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
    built = invoke(*shlex.split(result.chosen.command)[1:-1], tmp_path / "built")
    assert built.exit_code == 0
    assert Checkpoint.open(tmp_path / "built").num_bytes == smallest
    page = (out / "sweep.html").read_text()
    assert page.count(f"--map {out}/maps/") == len(again)
    assert 'id="build-' in page and "{{" not in page.partition("<script>")[0]
    # Killed before it was written: nothing is measured again, and the result is the same.
    log = (tmp_path / "out.run" / "evaluations.jsonl").read_bytes()
    texts = (tmp_path / "out.run" / "texts.jsonl").read_bytes()
    (tmp_path / "out.run" / "texts.jsonl").write_bytes(texts + b'{"digest": "half')
    assert swept(base, scores, task, out, "--gate", gates, "--force").exit_code == 0
    assert (tmp_path / "out.run" / "evaluations.jsonl").read_bytes() == log
    assert (tmp_path / "out.run" / "texts.jsonl").read_bytes() == texts
    assert SweepResult.load(out).points == result.points


def test_gates_that_nothing_passes_end_it_with_what_they_say(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    gates = tmp_path / "gates.yaml"
    gates.write_text("accuracy_drop: -1\n")
    done = swept(base, scores, task, tmp_path / "out", "--gate", gates, "--json")
    assert done.exit_code == 1, done.output
    assert json.loads(done.stdout)["recommended"] is None
    gates.write_text("perplexity_ratio: 1\n")  # of no text
    again = swept(base, scores, task, tmp_path / "out", "--gate", gates, "--force")
    assert again.exit_code == 3, again.output


def test_a_dry_run_says_sizes_and_cost(
    base: Path, scores: Path, task: Path, tmp_path: Path
) -> None:
    done = swept(base, scores, task, tmp_path / "out", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "min-ean-50" in done.stdout
    assert "maps race on at most 24 items each" in done.stdout
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.run").exists()
