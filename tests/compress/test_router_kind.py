"""`--router` where the model does not renormalise: what is searched is what the checkpoint does."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue

from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.engines.local.transformers import TransformersEngine
from offline.maps.map_space import Space
from offline.maps.moe_shape import MoeShape
from offline.results.compression import RunResult
from offline.tasks.catalog import Split, Task, get_task
from offline.tasks.harness import texts_of
from tests.families.models import make_family
from tests.sample_runs import Listener, of_its_method
from tests.tiny import word_tokenizer
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.choice import Choice
from vllm_moe_prune.live_routing import LiveRouting
from vllm_moe_prune.provenance import Provenance
from vllm_moe_prune.routing_map import RoutingMap

VOCABULARY = 160
SETTINGS: dict[str, Any] = {
    "keep": 4,
    "fitness": "margin",  # fine enough to tell the kinds of router apart
    "phases": "prune",
    "evaluations": 6,
    "initial": 4,
    "finalists": 1,
    "search_items": 15,
    "selection_items": 15,
    "racing": False,
    "compare": "none",
    "dtype": "float32",
    "device": "cpu",
}
INEXACT = "this model does not renormalise its top-k weights"


@pytest.fixture(scope="module")
def olmoe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_family("olmoe", tmp_path_factory.mktemp("olmoe"), vocab_size=VOCABULARY)
    word_tokenizer(VOCABULARY).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def engine(olmoe: Path) -> TransformersEngine:
    return TransformersEngine(olmoe, device="cpu", dtype="float32")


def run(engine: TransformersEngine, task: Path, out: Path, **more: Any) -> RunResult:
    settings = SETTINGS | {"model": engine.folder, "task": str(task)} | more
    recipe = recipe_of(of_its_method(settings))
    return compress(recipe, out, make_engine=lambda _: engine, reporter=Listener())


def margins(engine: TransformersEngine, task: Task, split: Split) -> list[float]:
    found = [item.margin for item in engine.evaluate(task, split).items]
    return [margin for margin in found if margin is not None]


def mapped(routing_map: RoutingMap) -> RoutingMap:
    layers = [layer.model_copy(update={"router": "mapped"}) for layer in routing_map.layers]
    return routing_map.model_copy(update={"layers": tuple(layers)})


def told(out: Path) -> dict[str, JsonValue]:
    return dict(RoutingMap.load(out).provenance.settings)


@pytest.mark.parametrize("method", ["eep", "naee"])
def test_a_sliced_search_measures_the_plain_checkpoint_that_it_builds(
    method: str, engine: TransformersEngine, task_file: Path, tmp_path: Path
) -> None:
    out, task = tmp_path / "out", get_task(str(task_file))
    result = run(engine, task_file, out, method=method, router="sliced")
    assert result.form == "plain" and told(out)["router"] == "sliced"
    assert INEXACT in (out / "README.md").read_text()
    built = TransformersEngine(out, device="cpu", dtype="float32")
    made = RoutingMap.load(out)
    served = {split: margins(built, task, split) for split in ("search", "test")}
    engine.apply(made)
    for split, expected in served.items():
        assert margins(engine, task, split) == pytest.approx(expected, abs=1e-5)
    engine.apply(mapped(made))
    assert margins(engine, task, "test") != pytest.approx(served["test"], abs=1e-3)
    engine.apply(None)
    found = result.quality_of(method)
    assert found is not None and found.accuracy == built.evaluate(task, "test").accuracy
    if method == "eep":
        fitness = pytest.approx(statistics.fmean(served["search"]), abs=1e-5)
        assert fitness in [point.fitness for point in result.search]


def test_without_the_flag_all_is_as_before(
    engine: TransformersEngine, task_file: Path, tmp_path: Path
) -> None:
    made = {}
    for name in ("none", "auto", "mapped"):
        more = {} if name == "none" else {"router": name}
        run(engine, task_file, tmp_path / name, method="frequency", **more)
        made[name] = RoutingMap.load(tmp_path / name)
        assert made[name].form == "compact"
        assert INEXACT not in (tmp_path / name / "README.md").read_text()
    assert len({one.digest() for one in made.values()}) == 1
    assert "router" not in told(tmp_path / "none") | told(tmp_path / "auto")
    assert told(tmp_path / "mapped")["router"] == "mapped"


@pytest.mark.parametrize("router", ["sliced", "mapped"])
def test_naee_measures_the_router_that_is_built(
    router: Any, engine: TransformersEngine, tmp_path: Path
) -> None:
    """Against the first block's own output, whose input no map changes."""
    lines = [json.dumps({"text": f"w{70 + n} the cat sees w{90 + n} a fish"}) for n in range(20)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    task = get_task(f"text:{tmp_path / 'words.jsonl'}")
    engine.apply(None)
    found = engine.reconstruction_losses(task, "test", 6, 4, sliced=router == "sliced")
    first = next(iter(found))
    whole = block_output(engine, task, first)
    space = Space.of(MoeShape.of(Checkpoint.open(engine.folder)), 4, router=router)
    for subset in list(found[first])[::17]:
        kept = dict.fromkeys(found, subset)
        engine.apply(space.routing_map(kept, Provenance.now("test")))
        expected = float((whole - block_output(engine, task, first)).norm())
        assert found[first][subset] == pytest.approx(expected, rel=1e-4)
    engine.apply(None)


def block_output(engine: TransformersEngine, task: Task, layer: int) -> torch.Tensor:
    """Return what a block gives for the tokens that are fed: all but the last, [T, D]."""
    seen: list[torch.Tensor] = []
    hook = engine.layers[layer].block.register_forward_hook(
        lambda _, __, output: seen.append(output.flatten(0, -2).double())
    )
    for _, passage in texts_of(task, "test", 6):
        engine.logits([engine.tokenizer.encode(passage)[:-1]])
    hook.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("fixed_columns", [True, False])
def test_a_live_layer_routes_as_the_sliced_gate_that_is_built(
    fixed_columns: bool, olmoe: Path
) -> None:
    base = Checkpoint.open(olmoe)
    space = Space.of(MoeShape.of(base), 4, router="sliced")
    kept = (0, 3, 4, 6)
    made = space.routing_map(dict.fromkeys(space.layers, kept), Provenance.now("test"))
    choice = Choice(base.layout.score, renormalises=base.layout.renormalise)
    live = LiveRouting(8, 2, base.layout, choice, fixed_columns=fixed_columns)
    live.set(made.layers[0])
    logits = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    weights, ids = live(logits, logits, 2, base.layout.renormalise)
    expected, rows = torch.softmax(logits[:, kept], dim=-1).topk(2)  # as stock vLLM, and any other
    torch.testing.assert_close(weights, expected)
    assert ids.tolist() == torch.tensor(kept)[rows].tolist()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "eep", "router": "sliced", "phases": "both"}, "merging mixes scores"),
        ({"method": "eep", "router": "sliced", "phases": "merge"}, "add --phases prune"),
        ({"method": "lottery", "router": "mapped"}, "every round of a lottery is a plain"),
    ],
)
def test_what_no_router_of_the_kind_can_do_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        recipe_of(of_its_method(SETTINGS | {"model": "base"} | settings))


def test_a_recipe_file_may_say_auto() -> None:
    kinds = [recipe_of({"model": "base", "keep": 4, "router": name}) for name in ("auto", None)]
    assert [recipe.method.router for recipe in kinds] == [None, None]
    assert kinds[0].settings() == kinds[1].settings()
