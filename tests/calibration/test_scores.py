"""Scores on disk: exact, readable, whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offline.calibration.scores import Scores
from offline.calibration.statistics import GradientStatistics, LayerStatistics
from offline.criteria.registry import values_of
from tests.calibration import naive
from tests.calibration.score_samples import EXPERTS, TOKENS, make_scores
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.layouts import LAYOUTS

SCORES = make_scores()


def test_properties() -> None:
    assert SCORES.shape.num_experts == EXPERTS
    assert {domain: SCORES.tokens(domain) for domain in TOKENS} == TOKENS


def assert_identical(found: Any, expected: Any) -> None:
    for field in fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(theirs, np.ndarray):
            assert ours.dtype == theirs.dtype, field.name
            assert ours.shape == theirs.shape, field.name
            assert ours.tobytes() == theirs.tobytes(), field.name
        elif isinstance(theirs, GradientStatistics):
            assert_identical(ours, theirs)
        else:
            assert ours == theirs, field.name


def test_a_round_trip_changes_no_bit(tmp_path: Path) -> None:
    scores = replace(
        SCORES, domains={**SCORES.domains, "a/b c": make_scores(9, gradients=False).domains["code"]}
    )
    scores.save(tmp_path / "scores")
    loaded = Scores.load(tmp_path / "scores")
    for name in ("shape", "provenance", "sequences"):
        assert getattr(loaded, name) == getattr(scores, name), name
    assert list(loaded.domains) == list(scores.domains)
    for domain, layers in scores.domains.items():
        assert list(loaded.domains[domain]) == list(layers)
        for layer, seen in layers.items():
            assert isinstance(loaded.domains[domain][layer], LayerStatistics)
            assert_identical(loaded.domains[domain][layer], seen)
    for layer, weights in scores.weights.items():
        assert_identical(loaded.weights[layer], weights)
    assert sorted(file.name for file in (tmp_path / "scores").iterdir()) == [
        "scores.json",
        "scores.safetensors",
    ]


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_shape_of_any_family_comes_back(family: str, tmp_path: Path) -> None:
    layout = LAYOUTS[family]
    shape = replace(SCORES.shape, model_type=family, slices=layout.slices, mappable=layout.mappable)
    replace(SCORES, shape=shape).save(tmp_path)
    assert Scores.load(tmp_path).shape == shape


def test_scores_of_before_router_groups_have_none(tmp_path: Path) -> None:
    SCORES.save(tmp_path)
    file = tmp_path / "scores.json"
    record = json.loads(file.read_text())
    for name in ("num_groups", "topk_group", "slices"):
        del record[name]
    file.write_text(json.dumps(record))
    expected = replace(SCORES.shape, num_groups=1, topk_group=1, slices=True)
    assert Scores.load(tmp_path).shape == expected


def test_scores_of_before_aimer_load_and_are_saved_as_what_they_are(tmp_path: Path) -> None:
    weights = {number: replace(one, flatness=None) for number, one in SCORES.weights.items()}
    replace(SCORES, weights=weights).save(tmp_path)
    assert json.loads((tmp_path / "scores.json").read_text())["schema_version"] == 1
    found = Scores.load(tmp_path)
    naive.assert_same(found.weights[1], weights[1])
    with pytest.raises(PruneError, match="before aimer was measured"):
        values_of("aimer", found.evidence()[1])


def test_the_json_is_for_reading(saved: Path) -> None:
    text = (saved / "scores.json").read_text()
    record = json.loads(text)
    counts = [int(count) for count in SCORES.domains["code"][3].counts]
    assert record["domains"]["code"]["tokens_seen"]["3"] == counts
    assert f'"3": {counts}' in text  # on one line
    assert record["domains"]["prose"]["tokens"] == 110
    assert record["domains"]["prose"]["sequences"] == 11
    assert record["base"]["name"] == "a [ model ]"


def test_loading_needs_no_torch(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from offline.calibration.scores import Scores; "
        f"Scores.load(Path({str(saved)!r})).evidence(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    SCORES.save(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_truncated_file_is_refused(saved: Path) -> None:
    file = saved / "scores.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(PruneError, match=r"scores.safetensors is damaged or not the file") as info:
        Scores.load(saved)
    assert "\n" not in str(info.value)


def test_tensors_of_other_scores_are_refused(saved: Path, tmp_path: Path) -> None:
    make_scores(5).save(tmp_path / "other")
    (tmp_path / "other" / "scores.safetensors").replace(saved / "scores.safetensors")
    with pytest.raises(PruneError, match=r"not the file that scores\.json describes"):
        Scores.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 3}, "schema_version 3, this program reads up to 2"),
        ({"schema_version": "x"}, "schema_version x"),
        ({"surplus": 1}, "surplus: Extra inputs"),
        ({"hidden": 8}, r"mean is float64\[5, 7\], not float64\[5, 8\]"),
        ({"vocab": 40}, r"vocabulary is uint8\[5, 3\], not uint8\[5, 5\]"),
        ({"top_k": {"1": 2}}, "num_experts and top_k are not of the same layers"),
        ({"top_k": {"1": 2, "2": 2}, "num_experts": {"1": 5, "2": 4}}, "weights/2/.* is missing"),
        ({"top_k": {"1": 2}, "num_experts": {"1": 5}}, "has .*/3/.*, which scores.json lacks"),
        ({"domains": {}}, "domains: Dictionary should have at least 1 item"),
    ],
)
def test_a_foreign_json_is_refused(saved: Path, changes: Any, message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(PruneError, match=message) as info:
        Scores.load(saved)
    assert "\n" not in str(info.value)


def test_missing_files_are_named(saved: Path, tmp_path: Path) -> None:
    (saved / "scores.safetensors").unlink()
    with pytest.raises(PruneError, match=r"scores\.safetensors is missing"):
        Scores.load(saved)
    with pytest.raises(PruneError, match=r"no scores at .*nowhere.*vmprune score"):
        Scores.load(tmp_path / "nowhere")
    (saved / "scores.json").write_text("{")
    with pytest.raises(PruneError, match="not JSON"):
        Scores.load(saved)


def test_a_failed_save_leaves_no_scores(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("offline.calibration.scores_file.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_scores(1).save(saved)
    with pytest.raises(PruneError, match="no scores at"):
        Scores.load(saved)
    assert [file.name for file in saved.iterdir()] == ["scores.safetensors"]
