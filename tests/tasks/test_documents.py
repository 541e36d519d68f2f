"""Splits of lm-eval's tasks: what is searched, selected and tested with never overlaps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offline.tasks.asked import Asked
from offline.tasks.catalog import Library, get_task
from offline.tasks.documents import documents, is_cut, question
from offline.tasks.items import Item
from offline.tasks.loading import load
from offline.tasks.splits import data_identity, load_items, training_items
from offline.tasks.task import Task
from vllm_moe_prune.errors import PruneError

HEAD = """\
task: {name}
output_type: generate_until
dataset_path: json
dataset_kwargs: {{data_files: {files}}}
doc_to_text: "Q: {{{{q}}}}\\nA:"
doc_to_target: "{{{{a}}}}"
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
filter_list: [{{name: x, filter: [{{function: take_first}}]}}]
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4}}
process_results: null
"""


def make(folder: Path, splits: dict[str, list[str]], more: str) -> Task:
    """Write a task over splits of questions, whose answer is their length."""
    files = {}
    for split, questions in splits.items():
        file = folder / f"{split}.jsonl"
        rows = [{"q": q, "a": str(len(q))} for q in questions]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[split] = str(file)
    (folder / "own_task.yaml").write_text(
        HEAD.format(name="own_task", files=json.dumps(files)) + more
    )
    return get_task("own_task", Library(include=(folder,)))


def questions(begin: int, end: int) -> list[str]:
    return [f"how long is word{number}?" for number in range(begin, end)]


def asked(task: Task, split: str) -> list[str]:
    assert task.lm_eval is not None
    return [doc["q"] for doc in documents(task.lm_eval, split).docs]


ALL_THREE = "training_split: train\nvalidation_split: validation\ntest_split: test\n"


def test_search_and_selection_are_of_train_and_test_is_lm_evals_in_its_order(
    tmp_path: Path,
) -> None:
    splits = {
        "train": [*questions(0, 30), "How long is WORD40", *questions(3, 6)],
        "validation": questions(60, 63),
        "test": questions(40, 50),
    }
    task = make(tmp_path, splits, ALL_THREE)
    found = {split: asked(task, split) for split in ("search", "selection", "test", "all")}
    assert found["test"] == found["all"] == splits["test"]
    assert sorted(found["search"] + found["selection"]) == sorted(questions(0, 30))
    assert len(found["selection"]) == 15
    assert found["search"] != sorted(found["search"])  # as if shuffled
    assert data_identity(task, "search", 5).split == "search (train)"
    assert data_identity(task, "search", 5).count == 5
    assert {item.query for item in training_items(task)} == {
        f"Q: {q}\nA:" for q in set(questions(0, 30)) - set(found["selection"])
    }


def test_validation_serves_where_there_is_no_train(tmp_path: Path) -> None:
    splits = {"validation": questions(0, 8), "test": questions(20, 24)}
    task = make(tmp_path, splits, "validation_split: validation\ntest_split: test\n")
    assert sorted(asked(task, "search") + asked(task, "selection")) == splits["validation"]
    assert asked(task, "test") == splits["test"]


def test_a_split_that_the_file_does_not_name_serves_if_it_has_one_form(tmp_path: Path) -> None:
    splits = {"train": questions(0, 8), "test": questions(20, 24)}
    task = make(tmp_path, splits, "test_split: test\n")
    assert sorted(asked(task, "search") + asked(task, "selection")) == splits["train"]


def test_a_single_split_is_cut_and_all_is_still_what_lm_eval_asks(tmp_path: Path) -> None:
    task = make(tmp_path, {"test": questions(0, 20)}, "test_split: test\n")
    assert task.lm_eval is not None and is_cut(task.lm_eval)
    parts = [set(asked(task, split)) for split in ("search", "selection", "test")]
    assert [len(part) for part in parts] == [5, 5, 10]
    assert set.union(*parts) == set(questions(0, 20))
    assert asked(task, "all") == questions(0, 20)
    assert asked(task, "test") == [q for q in questions(0, 20) if q in parts[2]]
    assert documents(task.lm_eval, "test").source == "half of test"


def test_too_few_items_are_refused(tmp_path: Path) -> None:
    task = make(tmp_path, {"train": questions(0, 1), "test": questions(3, 5)}, ALL_THREE[:22] +
                "test_split: test\n")  # fmt: skip
    with pytest.raises(PruneError, match="own_task has no items for the split 'selection'"):
        load_items(task, "selection")


def test_no_prompt_of_a_search_shows_its_own_answer(tmp_path: Path) -> None:
    splits = {"train": [*questions(0, 6), *questions(0, 2)], "test": questions(20, 22)}
    more = "training_split: train\ntest_split: test\nfewshot_split: train\nnum_fewshot: 5\n"
    task = make(tmp_path, splits, more)
    assert task.shots == 5
    for split in ("search", "selection"):
        made = Asked(task, split)
        requests = made.requests(0, None, None)
        assert len(requests) == 3
        for doc, request in zip(made.documents.docs, requests, strict=True):
            assert request.args[0].count("Q: ") == 6
            assert request.args[0].count(f"Q: {doc['q']}") == 1


def test_fixed_examples_are_not_searched_with(tmp_path: Path) -> None:
    splits = {"train": questions(0, 10), "test": questions(20, 22)}
    samples = json.dumps([{"q": q, "a": "1"} for q in questions(2, 4)])
    more = f"num_fewshot: 2\nfewshot_config: {{sampler: first_n, samples: {samples}}}\n"
    task = make(tmp_path, splits, "training_split: train\ntest_split: test\n" + more)
    found = asked(task, "search") + asked(task, "selection")
    assert sorted(found) == sorted(set(questions(0, 10)) - set(questions(2, 4)))


def test_ranges_put_together_are_the_whole(tmp_path: Path) -> None:
    splits = {"train": questions(0, 40), "test": questions(60, 62)}
    more = "training_split: train\ntest_split: test\nfewshot_split: train\nnum_fewshot: 3\n"
    task = make(tmp_path, splits, more)
    whole = [r.args for r in Asked(task, "search").requests(0, None, None)]
    made = Asked(task, "search")
    parts = [made.requests(first, first + 5, None) for first in (10, 0, 5, 15)]
    assert [r.args for r in parts[1] + parts[2] + parts[0] + parts[3]] == whole
    assert [r.doc_id for r in parts[0]] == [10, 11, 12, 13, 14]


def test_the_key_of_a_question_is_its_words(tmp_path: Path) -> None:
    task = make(tmp_path, {"test": questions(0, 4)}, "test_split: test\n")
    assert task.lm_eval is not None
    one = question(load(task.lm_eval), {"q": "How  long?", "a": "1"})
    assert Item("", one).key == Item("", "q how LONG a").key
