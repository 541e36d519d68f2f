"""A tiny base and two tasks for it, shared by the tests of the engine on vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from offline.engines.local.transformers import TransformersEngine
from offline.tasks.catalog import Task, get_task
from tests.sample_files import write_docs, write_task_file
from tests.tiny import make_tiny_mixtral

_PLACES = ("here", "old sea", "small hill", "good house by the road and the green water")
_NOUNS = ("cat", "dog", "bird", "fish", "tree")
# Longer than a block of the prefix cache, which has 32 tokens on a CPU.
_PROMPT = 2 * "the king and the queen of the old house by the sea and the child of the road ask : "

CHOICE = """\
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{right}}"
"""
WRITTEN = """\
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: answer
generation_kwargs: {until: ["sun", "."], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tasks of 20 items; a choice may begin like another one or be a single token."""
    folder = tmp_path_factory.mktemp("tasks")
    docs = [
        {
            "prompt": f"{_PROMPT} which {noun} is {place} ? the",
            "choices": ["red", "blue", f"blue {noun} sleeps", f"blue {noun} runs to the sun"],
            "right": number % 4,
            "answer": "red",
        }
        for place in _PLACES
        for number, noun in enumerate(_NOUNS)
    ]
    write_docs(folder, docs)
    write_task_file(folder, "colours", CHOICE)
    write_task_file(folder, "written", WRITTEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMPRUNE_CACHE", str(folder / "cache"))
        yield folder


@pytest.fixture(scope="module")
def choice(folder: Path) -> Task:
    return get_task(str(folder / "colours.yaml"))


@pytest.fixture(scope="module")
def written(folder: Path) -> Task:
    return get_task(str(folder / "written.yaml"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_mixtral(tmp_path_factory.mktemp("base"), layers=4)


@pytest.fixture(scope="module")
def reference(base: Path) -> TransformersEngine:
    return TransformersEngine(base, dtype="float32")
