from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offline.tasks.catalog import SPLITS, TASKS, Task, get_task
from offline.tasks.items import Item
from offline.tasks.splits import (
    data_identity,
    examples,
    load_items,
    make_splits,
    split_file,
    training_items,
)
from vllm_moe_prune.errors import PruneError


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("name", TASKS)
def test_splits_of_real_data_share_no_question(name: str) -> None:
    task = get_task(name)
    keys = {split: {item.key for item in load_items(task, split)} for split in SPLITS}
    assert not keys["search"] & keys["test"]
    assert not keys["selection"] & keys["test"]
    assert not keys["search"] & keys["selection"]


@pytest.mark.usefixtures("real_data")
@pytest.mark.parametrize("name", TASKS)
def test_splits_of_real_data_are_large_enough_and_whole(name: str) -> None:
    task = get_task(name)
    counts = {split: len(load_items(task, split)) for split in SPLITS}
    # pattern has 534 items in all, the text 654 passages
    few = {"basic_skills_pattern": 250, "demo_text": 300}
    assert counts["test"] >= few.get(name, 500), counts
    assert min(counts["search"], counts["selection"]) >= 120, counts
    for item in load_items(task, "test"):
        assert item.query
        assert (0 <= item.gold < len(item.choices)) == (task.kind == "choice")
        assert bool(item.answers) == (task.kind == "generate")
        texts = item.choices + item.answers
        assert all(text and text == text.strip() for text in texts)


@pytest.mark.usefixtures("real_data")
def test_sciq_is_cut_in_quarters_and_a_half() -> None:
    task = get_task("sciq")
    assert [len(load_items(task, split)) for split in SPLITS] == [250, 250, 500]


@pytest.mark.usefixtures("real_data")
def test_splits_are_the_same_every_time() -> None:
    task = get_task("sciq")
    assert make_splits(task) == {split: load_items(task, split) for split in SPLITS}
    first = load_items(task, "test")[0]
    assert first.query == "Question: What is the base numbering system of metric units?\nAnswer:"


def test_examples_are_the_last_items_to_search_with(own_task: Task) -> None:
    plain, shown = own_task, replace(own_task, name=f"{own_task.name}@3", shots=3)
    items = load_items(plain, "search")
    assert load_items(shown, "search") == items[:-3]
    assert load_items(shown, "test") == load_items(plain, "test")
    assert examples(plain) == ""
    assert examples(shown) == "".join(
        f"{item.query} {item.choices[item.gold]}\n\n" for item in items[-3:]
    )
    assert data_identity(shown, "search").count == len(items) - 3


def test_too_many_examples_are_refused(own_task: Task) -> None:
    shown = replace(own_task, name=f"{own_task.name}@10", shots=10)
    with pytest.raises(PruneError, match="10 examples are too many"):
        load_items(shown, "search")
    with pytest.raises(PruneError, match="10 examples are too many"):
        examples(shown)


def test_key_ignores_case_and_prose_punctuation_but_not_operators() -> None:
    def key(query: str) -> str:
        return Item("0", query, ("a", "b"), 0).key

    assert key("What  is it?") == key("what is\nit")
    assert key("4 * 8 =") != key("4 + 8 =")


def test_user_task_is_cut_into_splits(own_task: Task) -> None:
    splits = {split: load_items(own_task, split) for split in SPLITS}
    assert [len(items) for items in splits.values()] == [10, 10, 20]
    assert len({item.key for items in splits.values() for item in items}) == 40
    item = splits["test"][0]
    assert item.query.startswith("which ") and item.query.endswith(" ? the")
    assert len(item.choices) == 4


def test_duplicates_of_test_questions_leave_the_other_splits(own_task: Task) -> None:
    assert own_task.yaml is not None
    data = own_task.yaml.with_name("data.jsonl")
    lines = data.read_text().splitlines()
    # one question forty times more: its copies lie around one place in the order
    data.write_text("\n".join(lines + [lines[0].replace("here", "HERE!")] * 40) + "\n")
    splits = make_splits(own_task)
    kept = [split for split, items in splits.items() if any("cat is" in i.query for i in items)]
    places = [s for s, items in splits.items() if any("HERE" in i.query for i in items)]
    assert len(places) == 1 and places[0] in kept


def test_a_question_with_copies_on_both_sides_of_a_border_is_in_one_split_only(
    own_task: Task,
) -> None:
    """7 questions of 3 items each lie side by side: both borders, after 10 and after 4 of the 9
    that are left, fall between the items of one question."""
    assert own_task.yaml is not None
    data = own_task.yaml.with_name("data.jsonl")
    lines = [line for line in data.read_text().splitlines() if '"here"' in line][:7]
    copies = [line.replace('"here"', place) for line in lines for place in ('"here"', '"HERE!"')]
    data.write_text("\n".join([*copies, *lines]) + "\n")
    splits = make_splits(own_task)
    keys = {split: {item.key for item in items} for split, items in splits.items()}
    assert {split: len(items) for split, items in splits.items()} == {
        "search": 3,  # 5 less 2 that the selection split asks
        "selection": 4,
        "test": 10,
    }
    assert {split: len(found) for split, found in keys.items()} == {
        "search": 1,
        "selection": 2,
        "test": 4,
    }
    assert len(set.union(*keys.values())) == 7
    assert {item.key for item in training_items(own_task)} == keys["search"]


def test_identity_names_the_items_used(own_task: Task) -> None:
    whole, part = data_identity(own_task, "test"), data_identity(own_task, "test", 5)
    assert (whole.count, part.count) == (20, 5)
    assert whole.sha256 != part.sha256
    assert whole == data_identity(own_task, "test")
    assert json.loads(split_file(own_task, "test").read_text().splitlines()[0])["query"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("output_type: multiple_choice", "output_type: loglikelihood_rolling", "multiple_choice"),
        ("right}}", "noun}}", "none of the choices"),
        ("dataset_path: json", "dataset_path: [", "cannot read task"),
    ],
)
def test_user_task_that_cannot_be_used_is_refused(
    own_task: Task, old: str, new: str, complaint: str
) -> None:
    path = own_task.yaml
    assert isinstance(path, Path) and old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PruneError, match=complaint):
        make_splits(own_task)
