"""Every family scored inside vLLM, against the transformers engine.

With ``--matrix`` the outcomes are written into docs/families.md.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.dummy_model import write_tokenizer
from offline.calibration.calibrate import calibrate
from offline.calibration.scores import Scores
from offline.engines.local.transformers import TransformersEngine
from tests.calibration.test_walk import domain
from tests.families.as_released import as_transformers
from tests.families.matrix import Matrix
from tests.families.models import CONFIGS, READ_IN_PART, make_family
from tests.families.scoring import Distance, distance
from tests.families.serving import serving_of
from tests.tiny import make_tiny_mixtral
from tests.vllm_probe import RANKS, probe_scores

pytestmark = pytest.mark.vllm

# One whose router is a plain top-k, and one with a correction bias, groups and shared experts.
ALWAYS = ("mixtral", "deepseek_v3")
FAMILIES = [
    pytest.param(family, marks=() if family in ALWAYS else pytest.mark.slow)
    for family in (*CONFIGS, *READ_IN_PART)
]
DOMAINS = (domain("a", 5, length=32), domain("b", 3, length=32))
PARALLEL: dict[str, dict[str, Any]] = {
    "TP1": {},
    "TP2": {"tensor_parallel_size": 2, "env": RANKS},
}
LIMIT = 1e-5
MLA_LIMIT = 2e-5  # vLLM's kernel for it on a CPU
ROUNDED = 0.4  # in bfloat16, in which a few tokens choose other experts


def live(model: Path, out: Path, **arguments: Any) -> Scores:
    texts = {one.name: one.token_ids.tolist() for one in DOMAINS}
    return probe_scores(model, texts, out, **arguments)


@pytest.mark.parametrize("parallel", ["TP1", pytest.param("TP2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(
    family: str, parallel: str, tmp_path: Path, matrix: Matrix
) -> None:
    serving = serving_of(family)
    arguments = {"dtype": "float32", **serving.arguments, **PARALLEL[parallel]}
    if serving.refused:
        model = made(family, tmp_path / "model", **serving.model)
        with pytest.raises(RuntimeError, match=re.escape(serving.refused)):
            live(model, tmp_path / "scores", **arguments)
        matrix.add(family, "scores", parallel, f"vLLM: {serving.refused}")
        return
    apart = measured(family, tmp_path, serving.model, arguments)
    matrix.add(family, "scores", parallel, apart.summed)
    rounded = arguments["dtype"] != "float32"
    exact = MLA_LIMIT if arguments.get("attention_backend") == "CPU_MLA" else LIMIT
    assert apart.summed <= (ROUNDED if rounded else exact)
    if rounded:
        assert apart.weights <= 1e-3  # transformers rounds the weights
    else:
        assert apart.counted == 0 and apart.nearly <= 2 and apart.weights <= 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_qwen3_next_without_linear_attention(
    parallel: str, tmp_path: Path, matrix: Matrix
) -> None:
    """In float32, which vLLM's CPU kernel for linear attention refuses: its experts are exact."""
    arguments = {"dtype": "float32", **PARALLEL[parallel]}
    apart = measured("qwen3_next", tmp_path, {"full_attention_interval": 1}, arguments)
    matrix.add("qwen3_next, full attention", "scores", parallel, apart.summed)
    assert apart.counted == 0 and apart.nearly <= 2 and apart.weights <= 1e-9
    assert apart.summed <= LIMIT


def measured(
    family: str, folder: Path, model: dict[str, Any], arguments: dict[str, Any]
) -> Distance:
    """How far the two engines are from each other on a family's tiny model."""
    made(family, folder / "model", **model)
    found = live(folder / "model", folder / "scores", **arguments)
    engine = TransformersEngine(as_transformers(folder / "model"), dtype=arguments["dtype"])
    expected = calibrate(engine, DOMAINS)
    if engine.folder != folder / "model":  # the same model by another name
        known = {"model_type": expected.shape.model_type, "base": expected.shape.base}
        found = replace(found, shape=replace(found.shape, **known))
    apart = distance(found, expected)
    print(f"{family} {model} {arguments}: {apart}")
    return apart


def made(family: str, folder: Path, **more: Any) -> Path:
    make_family(family, folder, **more)
    for one in {folder, as_transformers(folder)}:
        write_tokenizer(one, 60)
    return folder


def test_a_domain_that_is_no_single_step_comes_twice(tmp_path: Path) -> None:
    model = make_tiny_mixtral(tmp_path / "model", layers=2)
    whole = live(model, tmp_path / "whole", dtype="float32")
    parts = live(model, tmp_path / "parts", dtype="float32", step_tokens=70)
    apart = distance(parts, whole)
    assert apart.counted == apart.nearly == 0 and apart.summed < 1e-6
    assert sum(seen.outliers.sum() for seen in whole.domains["a"].values()) > 0
