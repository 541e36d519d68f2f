"""Criteria in `compress`: as method, as baselines to compare with, as seeds of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from offline.analysis.analyse import THE_MAP
from offline.calibration.scores import Scores
from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.compress.size import sized
from offline.engines.local.transformers import TransformersEngine
from offline.plan.plan import plan
from offline.plan.recipe import PlanRecipe
from offline.report.render import write_report
from offline.results.analysis import Analysis
from offline.results.compression import RunResult
from tests.command import one_error, run
from tests.criteria.scores import scores_of
from tests.families.bare import write_bare
from tests.report.page import Page
from tests.sample_files import write_text
from tests.sample_runs import Listener, log_of
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import RoutingMap

SETTINGS: dict[str, Any] = {
    "method": "oneshot",
    "search_items": 10,
    "test_items": 10,
    "compare": "none",
    "dtype": "float32",
    "device": "cpu",
}


@pytest.fixture(scope="module")
def scores(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of made-up tokens, said to be of the tiny model."""
    folder = tmp_path_factory.mktemp("scored") / "scores"
    folder.mkdir()
    base = Checkpoint.open(model)
    hidden, found = base.text_config["hidden_size"], base.fingerprint()
    made = scores_of((0, 1), experts=8, tokens=100, hidden=hidden, base=found)
    made.save(folder)
    return folder


def compressed(
    engine: TransformersEngine, model: Path, task: Path, out: Path, **more: Any
) -> RunResult:
    recipe = recipe_of(SETTINGS | {"model": model, "task": str(task)} | more)
    listener = Listener()
    result = compress(recipe, out, make_engine=lambda _: engine, reporter=listener)
    assert all(done == total for _, total, done in listener.stages), listener.stages
    return result


@pytest.mark.parametrize(("size", "flags"), [("keep", {"keep": 4}), ("budget", {"budget": 9})])
def test_oneshot_builds_what_plan_makes_of_the_same_scores(
    size: str,
    flags: dict[str, int],
    engine: TransformersEngine,
    model: Path,
    task_file: Path,
    scores: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    more = {"criterion": "reap", "scores": scores, "compare": "random,min-euf", "random_maps": 2}
    result = compressed(engine, model, task_file, out, **more, **flags)
    planned = plan(Scores.load(scores), PlanRecipe.of({"criterion": "min-reap"} | flags))
    built = RoutingMap.load(out)
    assert built.digest() == planned.routing_map.digest() == result.map_digest
    assert built.tokens_seen == planned.routing_map.tokens_seen
    assert built.provenance.method == "oneshot"
    assert built.provenance.settings["criterion"] == "reap"
    assert [data.name for data in built.provenance.data] == ["prose", "scores"]
    variants = [(q.variant, q.maps) for q in result.quality if q.split == "test"]
    assert variants == [("base", 1), ("random", 2), ("min-euf", 1), ("oneshot", 1)]
    page = Page(write_report(out).read_text())
    accuracy = page.table(f"Accuracy on the held-out split of {result.task}")
    assert accuracy.column("variant") == ["base", "random", "min-euf", "one-shot"]
    analysis = Analysis.load(out)  # beside the checkpoint, and on its page
    assert analysis.overlap is not None
    assert analysis.overlap.words == ("min-reap", "min-euf", THE_MAP)
    assert [fate.num_kept for fate in analysis.fates] == [n.num_kept for n in built.layers]
    assert page.table("Use of the experts, base").column("layer") == ["0", "1"]


def test_what_is_substituted_is_what_plan_substitutes_measured_like_that(
    engine: TransformersEngine, model: Path, task_file: Path, scores: Path, tmp_path: Path
) -> None:
    """With fewer kept than are active, which nothing that is dropped could be."""
    out = tmp_path / "out"
    more: dict[str, Any] = {"keep": 1, "scores": scores, "compare": "random,frequency,min-euf"}
    more |= {"substitute": True, "random_maps": 2}
    result = compressed(engine, model, task_file, out, **more)
    recipe = PlanRecipe.of({"criterion": "min-ean", "keep": 1, "substitute": True})
    planned = plan(Scores.load(scores), recipe).routing_map
    built = RoutingMap.load(out)
    assert built.digest() == planned.digest() == result.map_digest
    assert built.schema_version == 3 and built.tokens_seen == planned.tokens_seen
    assert built.provenance.settings["substitute"] is True
    assert (result.form, result.summary) == ("compact", planned.summary())
    assert "14 substituted experts" in result.summary
    vectors = 14 * Checkpoint.open(model).text_config["hidden_size"] * 4
    assert planned.vector_bytes == vectors
    assert result.pruned_size.num_bytes == Checkpoint.open(out).num_bytes + vectors
    variants = [(q.variant, q.maps) for q in result.quality if q.split == "test"]
    assert variants[1:] == [("random", 2), ("frequency", 1), ("min-euf", 1), ("oneshot", 1)]
    for entry in log_of(out):  # the base's has no map
        assert all(len(one["substituted"]) == 7 for one in entry["map"] or ())
    assert "14 substituted experts" in write_report(out).read_text()
    lines = log_of(out)
    out.rename(tmp_path / "before")  # as if it had been killed before it was built
    assert compressed(engine, model, task_file, out, **more).map_digest == built.digest()
    assert log_of(out) == lines
    with pytest.raises(PruneError, match=r"out\.run holds a run with other settings"):
        out.rename(tmp_path / "second")
        compressed(engine, model, task_file, out, **more | {"substitute": None, "top_k": "1"})


def test_without_scores_they_are_made_once_and_kept(
    engine: TransformersEngine, model: Path, task_file: Path, tmp_path: Path
) -> None:
    out, text = tmp_path / "out", write_text(tmp_path / "prose.txt")
    spec = f"prose={text}:2"
    result = compressed(
        engine, model, task_file, out, keep=4, calibration=spec, criterion="min-egn"
    )
    made = Scores.load(tmp_path / "out.run" / "scores")
    assert all(one.seen.gradient is not None for one in made.evidence().values())
    assert list(made.domains) == ["prose"]
    planned = plan(made, PlanRecipe.of({"criterion": "min-egn", "keep": 4}))
    assert result.map_digest == planned.routing_map.digest()
    assert [data.name for data in result.provenance.data] == ["prose"]
    use = result.text["prose"]
    assert (use.rows, use.used, use.tokens, use.skipped) == (1, 1, 2 * 512, {})


def test_a_search_begins_with_the_criteria_given(
    engine: TransformersEngine, model: Path, task_file: Path, scores: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more: dict[str, Any] = {"evaluations": 5, "initial": 3, "phases": "prune", "groups": "layer"}
    compressed(
        engine,
        model,
        task_file,
        out,
        method="eep",
        keep=4,
        scores=scores,
        seed_criteria="min-ean,rwn",
        seeding=False,
        racing=False,
        **more,
    )
    candidates = [entry["digest"] for entry in log_of(out) if entry["kind"] == "candidate"]
    for place, word in enumerate(("min-ean", "max-rwn")):
        recipe = PlanRecipe.of({"criterion": word, "keep": 4})
        assert candidates[place] == plan(Scores.load(scores), recipe).routing_map.digest()


REFUSED = [
    (["--criterion", "magic"], "settings: --criterion: unknown criterion 'magic'"),
    (["--criterion", "ege"], "criterion ege needs gradients, which these scores do not hold"),
    (["--compare", "min-magic"], "settings: --compare: unknown criterion 'min-magic'"),
    (["--domains", "maths:1"], "no scores of domain 'maths'"),
]


@pytest.mark.parametrize(("flags", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_the_scores_do_not_hold_is_said_before_any_work(
    flags: list[str],
    message: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "scores", tmp_path / "out"
    folder.mkdir()
    base = Checkpoint.open(model).fingerprint()
    scores_of((0, 1), experts=8, base=base, gradients=False).save(folder)
    arguments = ["--method", "oneshot", "--keep", "4", "--scores", folder, *flags, "--out", out]
    result = run("compress", "--model", model, *arguments, capsys=capsys)
    assert one_error(*result) == message
    assert list(tmp_path.iterdir()) == [folder]


def test_scores_of_another_base_are_refused(
    scores: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--method", "oneshot", "--keep", "4", "--scores", scores]
    result = run("compress", "--model", base, *arguments, "--out", tmp_path / "o", capsys=capsys)
    assert one_error(*result).startswith("the scores are of another base (")


def test_criteria_without_scores_need_the_engine_that_can_make_them() -> None:
    with pytest.raises(ValueError, match="min-ean reads what experts compute: give --scores"):
        recipe_of({"model": Path("base"), "method": "oneshot", "keep": 4, "engine": "vllm"})
    recipe = {"model": Path("base"), "method": "oneshot", "keep": 4, "engine": "vllm"}
    assert recipe_of(recipe | {"scores": Path("s")}).criteria == ("min-ean",)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"router": "mapped"}, "--substitute leaves the router as it is and drops nothing"),
        ({"compare": "naee"}, "--compare naee: it goes by what layers do without experts"),
        ({"engine": "vllm", "cuda_graphs": True}, "--cuda-graphs: a recorded model has no vectors"),
        ({"method": "eep"}, "--substitute is oneshot's; this is eep"),
    ],
)
def test_what_goes_with_no_substituted_experts_is_refused(more: dict[str, Any], said: str) -> None:
    told = {"model": Path("base"), "method": "oneshot", "keep": 4, "scores": Path("s")}
    with pytest.raises(PruneError, match=said):
        recipe_of(told | {"substitute": True} | more)


def test_a_recipe_may_say_that_nothing_is_substituted(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("base: {model: b}\nmethod: {name: oneshot, keep: 4, substitute: false}\n")
    told = recipe_of({"model": "b", "method": "oneshot", "keep": 4}).settings()
    assert recipe_of({}, file).settings() == told and "substitute" not in told
    assert recipe_of({"substitute": True}, file).settings() == told | {"substitute": True}


def test_neither_top_k_nor_router_groups_bound_a_size_that_is_substituted(tmp_path: Path) -> None:
    """As plan has it; --ratio and --friendly become --keep before anything else is done."""
    model = write_bare("deepseek_v3", tmp_path / "base", groups=2)
    told = {"model": model, "method": "oneshot", "ratio": 0.9}
    assert sized(recipe_of(told))[0].method.keep == 2
    assert sized(recipe_of(told | {"substitute": True}))[0].method.keep == 1
    told |= {"ratio": None, "keep": 1, "friendly": True}
    assert sized(recipe_of(told | {"substitute": True}))[0].method.keep == 4
    with pytest.raises(PruneError, match=r"cannot share 1 experts|does not fit 1 kept"):
        sized(recipe_of(told))
