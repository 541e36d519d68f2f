"""Names found by a look at YAML files are those that lm-eval's own index parses."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks._index import Kind, TaskIndex

from offline.tasks.index import closest, folders, read_index

_FILES = {
    "a/one.yaml": "task: one\ntag:\n  - first\n  # a note\n\n  - 'second'\noutput_type: x\n",
    "a/quoted.yaml": '"task": "two"  # a note\n"tag": second\n',
    "a/_base": "tag: [first, third]\ndoc_to_text: |\n  task: not a key\n",
    "a/child.yaml": "include: _base\ntask: three\n",
    "a/grandchild.yaml": "include: child.yaml\ntask: four\ntag: own\n",
    "a/many.yaml": "include:\n  - _base\n  - ../b/other\ntask: five\n",
    "b/other": "group: families\n",
    "b/group.yaml": "group: six\ntask:\n  - one\n  - task: two\n    num_fewshot: 3\n",
    "b/class.yaml": "task: seven\nclass: !function task.Seven\ntag: first\n",
    "b/twice.yaml": "task: one\ntag: late\n",
    "b/tagged.yaml": "task: second\n",
    "b/lost.yaml": "include: nowhere\ntask: eight\n",
    "b/list.yaml": "task: [one, two]\n",
    "b/__pycache__/no.yaml": "task: nine\n",
}


def same(folder: Path) -> int:
    ours, theirs = read_index((folder,)), TaskIndex.build([folder])
    assert ours.keys() == theirs.keys()
    kinds = {Kind.TASK: "task", Kind.PY_TASK: "task", Kind.GROUP: "group", Kind.TAG: "tag"}
    for name, entry in theirs.items():
        found = ours[name]
        assert (found.name, found.kind) == (name, kinds[entry.kind])
        assert found.file == (str(entry.yaml_path) if entry.yaml_path else None)
        if entry.kind is Kind.TAG:
            assert found.members == entry.tags
    return len(ours)


def test_names_kinds_and_tags_are_lm_evals(tmp_path: Path) -> None:
    for name, text in _FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert same(tmp_path) == 11


@pytest.mark.slow  # lm-eval parses 14,000 files
def test_all_names_of_lm_eval_are_known() -> None:
    assert same(folders()[0]) > 10_000


def test_a_users_folder_goes_before_others(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("task: gsm8k\n")
    assert read_index(folders((tmp_path,)))["gsm8k"].file == str(tmp_path / "own.yaml")
    assert read_index(folders())["gsm8k"].file != str(tmp_path / "own.yaml")


def test_the_nearest_names_of_a_wrong_one() -> None:
    index = read_index(folders())
    assert closest("hellaswg", index)[0] == "hellaswag"
    assert closest("mmlu_abstract_algebr", index)[0] == "mmlu_abstract_algebra"
    assert closest("zzzzzzzzqqqq", index) == []
