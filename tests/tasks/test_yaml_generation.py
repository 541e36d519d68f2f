"""What a user's lm-eval YAML file says of generation, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from offline.tasks.catalog import Generation, Task, get_task
from offline.tasks.splits import load_items, make_splits
from vllm_moe_prune.errors import PruneError


def test_settings_and_answers_are_those_of_the_file(written_task: Task) -> None:
    assert (written_task.kind, written_task.metric) == ("generate", "exact_match")
    assert written_task.generation == Generation((" the", "sun"), 6)
    items = load_items(written_task, "test")
    assert len(items) == 30
    assert all(len(item.answers) == 2 and item.answers[1] == "sun" for item in items)
    assert all(item.choices == () and item.gold == -1 for item in items)


def edited(task: Task, old: str, new: str) -> str:
    path = task.yaml
    assert isinstance(path, Path) and old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return str(path)


def test_one_answer_and_lm_evals_defaults(written_task: Task) -> None:
    file = edited(written_task, "doc_to_target: right", 'doc_to_target: "{{right[0]}}"')
    file = edited(written_task, "generation_kwargs", "metadata")
    task = get_task(file)
    assert task.generation == Generation(("\n\n",), 256)
    assert {len(item.answers) for item in load_items(task, "test")} == {1}


def test_included_files_count(written_task: Task) -> None:
    assert written_task.yaml is not None
    child = written_task.yaml.with_name("child.yaml")
    child.write_text("include: written.yaml\ntask: child\ngeneration_kwargs: {max_gen_toks: 9}\n")
    assert get_task(str(child)).generation == Generation(("\n\n",), 9)
    assert len(load_items(get_task(str(child)), "test")) == 30


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("max_gen_toks: 6", "max_gen_toks: none", "`max_gen_toks` is 'none'"),
        ('until: [" the", "sun"]', "until: [7]", r"`until` is \[7\]"),
        ("dataset_path: json", "dataset_path: [", "cannot read task"),
        ("doc_to_target: right", 'doc_to_target: "{{prompt[:0]}}"', "item 0: .* holds no answer"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(
    written_task: Task, old: str, new: str, complaint: str
) -> None:
    file = edited(written_task, old, new)
    with pytest.raises(PruneError, match=complaint):
        make_splits(get_task(file))


@pytest.mark.parametrize(
    ("old", "new", "metrics"),
    [
        ("metric: exact_match", "metric: bleu", ("bleu",)),
        (
            "task: written",
            "task: written\nfilter_list: [{name: a}, {name: b}]",
            ("exact_match/a", "exact_match/b"),
        ),
        ("task: written", "task: written\nprocess_results: !function a.b", ("exact_match",)),
        ("max_gen_toks: 6", "do_sample: true", ("exact_match",)),
        ("max_gen_toks: 6", "temperature: 0.5}\nrepeats: 2\nmetadata: {", ("exact_match",)),
    ],
)
def test_what_is_scored_by_other_rules_is_lm_evals(
    written_task: Task, old: str, new: str, metrics: tuple[str, ...]
) -> None:
    task = get_task(edited(written_task, old, new))
    assert task.lm_eval is not None and task.lm_eval.metrics == metrics
    assert task.metric == ("" if metrics == ("bleu",) else metrics[0])
