"""Which documents EEP's tasks have: the paper's held-out rows, subjects and golds."""

from __future__ import annotations

from pathlib import Path

import lm_eval.tasks
import pytest
import yaml
from datasets import Dataset, NamedSplit

from offline.tasks.paper import documents

# Task -> rows of the split that the numbers were published for, and how many of them were measured.
PUBLISHED = {
    "boolq": (3270, 500),
    "wic": (638, 500),
    "record": (10000, 250),
    "squad": (11873, 500),
    "drop": (1529, 375),
}


def _dataset(rows: list[dict[str, object]], split: str) -> Dataset:
    return Dataset.from_list(rows, split=NamedSplit(split))


def _subjects() -> set[str]:
    """Return the subjects of MMLU, as lm-eval has them."""
    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    found = [yaml.safe_load(path.read_text()) for path in folder.glob("mmlu_*.yaml")]
    return {fields["dataset_name"] for fields in found}


def test_the_50_and_the_7_subjects_of_mmlu_are_all_and_share_none() -> None:
    rows = [
        {"subject": subject, "question": "?", "choices": list("wxyz"), "answer": 0}
        for subject in sorted(_subjects())
    ]
    data = _dataset(rows, "test")
    searched = set(documents.mmlu_iid(data)["subject"])
    kept_out = set(documents.mmlu_ood(data)["subject"])
    assert (len(searched), len(kept_out)) == (50, 7)
    assert not searched & kept_out
    assert searched | kept_out == _subjects()
    assert kept_out == {
        "electrical_engineering", "professional_accounting", "high_school_macroeconomics",
        "high_school_computer_science", "business_ethics", "miscellaneous",
        "high_school_psychology",
    }  # fmt: skip


def test_rows_without_a_subject_are_in_neither_part_of_mmlu() -> None:
    row = {"subject": "", "question": "?", "choices": list("wxyz"), "answer": 0}
    data = _dataset([row], "auxiliary_train")
    assert len(documents.mmlu_iid(data)) == len(documents.mmlu_ood(data)) == 0


def test_published_rows_are_as_many_as_the_paper_measured() -> None:
    found = documents._published()
    assert found.keys() == PUBLISHED.keys()
    for name, (of, count) in PUBLISHED.items():
        rows = found[name]["rows"]
        assert found[name]["of"] == of
        assert len(set(rows)) == len(rows) == count
        assert rows == sorted(rows)
        assert rows[0] >= 0 and rows[-1] < of
    assert found["squad"]["rows"][0] >= 5937  # a slice of the articles, in all three released lists
    assert found["squad"]["rows"][-1] < 7916


def test_a_whole_validation_split_is_cut_to_the_published_rows() -> None:
    rows = [{"question": str(n), "passage": "", "label": n % 2} for n in range(3270)]
    held_out = documents.boolq(_dataset(rows, "validation"))
    assert [int(q) for q in held_out["question"]] == documents._published()["boolq"]["rows"]
    assert held_out["golds"][0] == ["A"]  # row 7
    assert len(documents.boolq(_dataset(rows, "train"))) == 3270


def test_rows_of_other_data_are_not_known_by_their_numbers() -> None:
    rows = [{"question": str(n), "passage": "", "label": 0} for n in range(3269)]
    assert len(documents.boolq(_dataset(rows, "validation"))) == 3269


def test_multirc_has_500_held_out_answers_the_same_each_time() -> None:
    rows = [{"question": str(n), "label": n % 2} for n in range(4848)]
    first = documents.multirc(_dataset(rows, "validation"))["question"]
    assert len(set(first)) == 500
    assert first == documents.multirc(_dataset(rows, "validation"))["question"]
    assert len(documents.multirc(_dataset(rows, "train"))) == 4848


@pytest.mark.parametrize(
    ("spans", "marked"),
    [
        ((0, "Mr. Moncrieff", 4, "he"), "* Mr. Moncrieff * said that # he # left ."),
        ((4, "he", 0, "Mr. Moncrieff"), "# Mr. Moncrieff # said that * he * left ."),
        ((6, ".", 0, "Mr."), "# Mr. # Moncrieff said that he left * . *"),
    ],
)
def test_spans_of_wsc_are_marked_where_they_stand(
    spans: tuple[int, str, int, str], marked: str
) -> None:
    names = ("span1_index", "span1_text", "span2_index", "span2_text")
    row = {"text": "Mr. Moncrieff said that he left .", **dict(zip(names, spans, strict=True))}
    assert documents.marked(row) == marked
