"""What a search found is what a server gives: the same items, the same predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from offline.cli.main import cli
from offline.compress.compress import compress
from offline.compress.recipe.reading import recipe_of
from offline.engines.local.transformers import TransformersEngine
from offline.fitness.log import EvaluationLog
from offline.results.compression import RunResult
from offline.tasks.catalog import Library, get_task
from offline.tasks.prompting import Prompting
from offline.tasks.results import ItemResult, TaskResult
from serve.server import Server, ServerSpec
from tests.sample_files import write_task, write_task_file
from tests.sample_runs import Listener
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.routing_map import RoutingMap

pytestmark = pytest.mark.vllm

TIE = 1e-3  # nats: below it, the order of sums decides between two choices
SEARCH_ITEMS = 15  # the whole split
SETTINGS: dict[str, Any] = {
    "keep": 4,
    "fitness": "margin",  # fine enough that merging always finds something better
    "phases": "both",
    "prune_evaluations": 8,
    "initial": 4,
    "finalists": 2,
    "search_items": SEARCH_ITEMS,
    "selection_items": 15,
    "racing": False,
    "compare": "none",
    "dtype": "float32",
    "device": "cpu",
}
# How long a search merges, and its seed, decide whether it has found mixed router rows as well.
# Without them the checkpoint is a plain one with a merged map's matrices beside its weights.
FORMS = {
    "compact": {"evaluations": 48, "children": 8},
    "plain": {"evaluations": 12, "children": 4, "seed": 16},
}
GENERATE = """\
output_type: generate_until
doc_to_text: "which {{noun}} is {{place}} ? the"
doc_to_target: noun
generation_kwargs: {until: ["sun", "."], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


@dataclass(frozen=True)
class Served:
    """A finished search whose checkpoint is being served."""

    model: Path
    out: Path
    task: Path
    result: RunResult
    engine: TransformersEngine
    url: str


@pytest.fixture(scope="module", params=["compact", pytest.param("plain", marks=pytest.mark.slow)])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    model, out = make_tiny_mixtral(folder / "tiny"), folder / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        task = write_task(folder)
        engine = TransformersEngine(model, device="cpu", dtype="float32")
        settings = SETTINGS | FORMS[request.param] | {"model": model, "task": str(task)}
        recipe = recipe_of(settings)
        result = compress(recipe, out, make_engine=lambda _: engine, reporter=Listener())
        assert result.form == request.param
        spec = ServerSpec(
            out, load_format="pruned_moe", dtype="float32", max_model_len=128, enforce_eager=True
        )
        with Server(spec, folder / "server.log") as server:
            yield Served(model, out, task, result, engine, server.url)


def evaluate(served: Served, task: Path, model: Path, *more: str) -> TaskResult:
    """What `vmprune eval --endpoint` says of a task, as a user gets it."""
    arguments = ["eval", "--endpoint", served.url, "--model", model, "--task", task, *more]
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    facts = json.loads(done.stdout)
    assert facts.pop("base")["name"] == served.model.name
    for key in ("accuracy", "low", "high", "endpoint", "served_name", "prompting"):
        facts.pop(key, None)
    return TaskResult.from_json(facts)


def differing(found: TaskResult, expected: TaskResult) -> list[tuple[ItemResult, ItemResult]]:
    assert [item.item for item in found.items] == [item.item for item in expected.items]
    pairs = zip(found.items, expected.items, strict=True)
    return [(one, other) for one, other in pairs if one.prediction != other.prediction]


def searched(served: Served) -> TaskResult:
    """What the search wrote down of the map that it chose."""
    log = EvaluationLog(served.out.with_name("out.run") / "evaluations.jsonl")
    (chosen,) = [one for one in log.assessments if one.digest == served.result.map_digest]
    assert chosen.phase == "merge"
    return chosen.results["colours"]


def test_a_merged_map_is_served_with_the_predictions_of_its_search(served: Served) -> None:
    kinds = {name.rpartition(".")[2] for name in RoutingMap.load(served.out).matrices}
    assert kinds == ({"experts", "router"} if served.result.form == "compact" else {"experts"})
    expected = searched(served)
    limit = ("--split", "search", "--limit", str(SEARCH_ITEMS))
    found = evaluate(served, served.task, served.out, *limit)

    for one, other in zip(found.items, expected.items, strict=True):
        assert one.margin == pytest.approx(other.margin, abs=TIE), one.item
    for one, other in differing(found, expected):
        assert other.margin is not None and abs(other.margin) < TIE, (one, other)
    ties = len(differing(found, expected))
    assert abs(found.accuracy - expected.accuracy) <= ties / SEARCH_ITEMS

    served.engine.apply(None)
    base = served.engine.evaluate(get_task(str(served.task)), "search", SEARCH_ITEMS)
    assert differing(base, expected)  # serving the base by mistake would be noticed


def test_generated_answers_are_those_of_the_map(served: Served) -> None:
    file = write_task_file(served.task.parent, "written", GENERATE)
    served.engine.apply(RoutingMap.load(served.out))
    expected = served.engine.evaluate(get_task(str(file)), "test")
    served.engine.apply(None)
    base = served.engine.evaluate(get_task(str(file)), "test")
    found = evaluate(served, file, served.model)  # the base names the tokenizer as well
    assert differing(found, expected) == []
    assert differing(base, expected)


def test_conversations_are_those_of_the_map(served: Served) -> None:
    """Written answers through the server's chat, choices through its completions."""
    file = write_task_file(served.task.parent, "talked", GENERATE)
    system = "the king and the queen of the old house"
    library = Library(prompting=Prompting(True, system, max_gen_tokens=6))
    flags = ("--apply-chat-template", "--system-instruction", system)
    served.engine.apply(RoutingMap.load(served.out))
    for task in (file, served.task):
        expected = served.engine.evaluate(get_task(str(task), library), "test")
        length = ("--max-gen-tokens", "6") if task == file else ()  # a choice has none
        found = evaluate(served, task, served.out, *flags, *length)
        ties = [
            other
            for _, other in differing(found, expected)
            if other.margin is None or abs(other.margin) >= TIE
        ]
        assert ties == []
        for one, other in zip(found.items, expected.items, strict=True):
            assert one.margin == (other.margin and pytest.approx(other.margin, abs=TIE))
        plain = served.engine.evaluate(get_task(str(task)), "test")
        assert [item.margin or item.prediction for item in plain.items] != [
            item.margin or item.prediction for item in expected.items
        ]
