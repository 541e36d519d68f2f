from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from offline.build.build import build
from tests.sample_maps import map_of
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.checkpoint import Checkpoint
from vllm_moe_prune.layer_map import LayerMap, Selection

NOUNS = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child")
PLACES = ("here", "big", "small", "good", "new", "one", "old", "red")
COLOURS = ("red", "green", "blue", "old")

_COMMON = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: {folder}/train.jsonl, test: {folder}/test.jsonl}}}}
training_split: train
test_split: test
doc_to_text: "{{{{question}}}}"
"""
_CHOICE = """\
output_type: multiple_choice
doc_to_choice: ["red", "green", "blue", "old"]
doc_to_target: right
"""
_WRITTEN = """\
output_type: generate_until
doc_to_target: colour
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 3}
metric_list: [{metric: exact_match}]
"""


def documents() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test items of one rule; some questions are in both, spaced otherwise."""
    docs = [
        {"question": f"which {noun} is {place} ? the", "right": n % 4, "colour": COLOURS[n % 4]}
        for place in PLACES
        for n, noun in enumerate(NOUNS)
    ]
    shared = [{**doc, "question": doc["question"].replace(" is", "  IS")} for doc in docs[50:60]]
    return docs[:50] + shared, docs[50:]


def write_tasks(folder: Path) -> dict[str, Path]:
    """Write a user's task that is chosen, and the same that is written."""
    for name, docs in zip(("train", "test"), documents(), strict=True):
        lines = "".join(json.dumps(doc) + "\n" for doc in docs)
        (folder / f"{name}.jsonl").write_text(lines)
    files = {}
    for name, kind in (("colours", _CHOICE), ("colours_written", _WRITTEN)):
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(_COMMON.format(name=name, folder=folder) + kind)
    return files


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The tasks of `write_tasks`, with a cache of their own."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield write_tasks(folder)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 2 layers, 4 experts."""
    return make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny", experts=4)


@pytest.fixture(scope="session")
def pruned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the base's experts: of layer 0 two are kept, of layer 1 each is merged from two."""
    merged = [[0.5, 0.5, 0, 0], [0, 0, 0.25, 0.75]]
    layers = [
        LayerMap(layer=0, num_experts=4, num_kept=2, top_k=2, experts=Selection(kept=(0, 2))),
        LayerMap(
            layer=1,
            num_experts=4,
            num_kept=2,
            top_k=2,
            experts=Selection(matrix="layers.1.w_em"),
            router_rows=Selection(kept=(1, 3)),
        ),
    ]
    routing_map = map_of(base, layers, layers__1__w_em=merged)
    assert routing_map.form == "plain"
    out = tmp_path_factory.mktemp("pruned") / "half"
    build(Checkpoint.open(base), routing_map, out)
    (out / "vmprune_result.json").write_text("{}")  # evidence of the weights before
    return out
