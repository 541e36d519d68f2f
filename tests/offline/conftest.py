from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.engines.local.transformers import TransformersEngine
from tests.tiny import make_tiny_mixtral

_YAML = """\
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "which {{{{noun}}}} is {{{{place}}}} ? the"
doc_to_choice: ["red", "green", "blue", "old"]
doc_to_target: "{{{{right}}}}"
"""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 4 layers, 8 experts, in several shards, with what a hub folder has."""
    folder = make_tiny_mixtral(tmp_path_factory.mktemp("base") / "tiny", layers=4, shards=3)
    (folder / "LICENSE").write_text("a licence")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "pytorch_model.bin.index.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    (folder / "scaler.pkl").write_bytes(b"a pickle")
    (folder / "README.md").write_text("the card of the base")
    return folder


def write_task(folder: Path) -> Path:
    """Write a user's task of 60 items as an lm-eval YAML file; its data needs no download."""
    nouns = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child")
    places = ("here", "big", "small", "good", "new", "one")
    docs = [
        {"noun": noun, "place": place, "right": (len(noun) + len(place)) % 4}
        for noun in nouns
        for place in places
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    file = folder / "colours.yaml"
    file.write_text(_YAML.format(folder=folder))
    return file


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mixtral of 2 layers, 8 experts."""
    return make_tiny_mixtral(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def engine(model: Path) -> TransformersEngine:
    return TransformersEngine(model, device="cpu", dtype="float32")


@pytest.fixture
def task_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task of `write_task`, with a cache of its own."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    return write_task(tmp_path)
