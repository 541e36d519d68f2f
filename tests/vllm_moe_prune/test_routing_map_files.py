"""Damaged files of a routing map: matrices and JSON, each mistake in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.vllm_moe_prune.bare import MERGED, layer_fields, map_fields, map_of, two
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, MATRIX_FILE, RoutingMap

MATRIX_RULES = [
    ({"rm": None}, "layer 0: matrix rm is missing"),
    ({"em": np.zeros((2, 3))}, "layer 0: matrix em has shape [2, 3], not [2, 4]"),
    ({"em": np.zeros(8)}, "layer 0: matrix em has shape [8], not [2, 4]"),
    ({"rm": np.full((2, 4), np.nan)}, "layer 0: matrix rm has a value that is not finite"),
    ({"rm": np.full((2, 4), np.inf)}, "layer 0: matrix rm has a value that is not finite"),
    ({"rm": np.full((2, 4), 1e300)}, "layer 0: matrix rm has a value that is not finite"),
    ({"spare": np.zeros((2, 4))}, "matrix spare is not named by any layer"),
]


@pytest.mark.parametrize(("change", "message"), MATRIX_RULES, ids=[m for _, m in MATRIX_RULES])
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_matrices_are_there_finite_and_of_the_declared_shape(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PruneError) as caught:
        map_of(MERGED, matrices=two(**change))
    assert caught.value.message == message
    map_of(MERGED, matrices=two()).save(tmp_path)
    save_file(
        {k: np.asarray(v, np.float32) for k, v in two(**change).items()}, tmp_path / MATRIX_FILE
    )
    with pytest.raises(PruneError) as caught:
        RoutingMap.load(tmp_path)
    assert caught.value.message == f"routing map {tmp_path / MAP_FILE}: {message}"


def test_a_matrix_file_of_another_dtype_is_refused(tmp_path: Path) -> None:
    map_of(MERGED, matrices=two()).save(tmp_path)
    save_file({k: v.astype(np.float64) for k, v in two().items()}, tmp_path / MATRIX_FILE)
    with pytest.raises(PruneError, match=r"layer 0: matrix em is float64, not float32$"):
        RoutingMap.load(tmp_path)


def text_of(**changes: Any) -> str:
    return json.dumps({"schema_version": 1} | map_fields(**changes))


FILES: list[tuple[str, str]] = [
    (text_of(schema_version=4), "has schema_version 4, this program reads up to 3"),
    (text_of(schema_version="1"), "has schema_version 1, this program reads up to 3"),
    (json.dumps(map_fields()), "has schema_version None, this program reads up to 3"),
    (text_of(schema_version=0), "has schema_version 0, this program reads up to 3"),
    (text_of(colour="red"), "colour: Extra inputs are not permitted"),
    (text_of(layers=[]), "layers: Tuple should have at least 1 item after validation, not 0"),
    (text_of(layers=[layer_fields(top_k=4)]), "layer 0: top_k 4 is more than the 3 experts kept"),
    ("[]", "is not a JSON object"),
    ('{"schema_version": 1', "is not JSON: "),
]


@pytest.mark.parametrize(("text", "message"), FILES, ids=[m for _, m in FILES])
def test_a_damaged_file_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / MAP_FILE).write_text(text)
    with pytest.raises(PruneError) as caught:
        RoutingMap.load(tmp_path)
    assert caught.value.message.startswith(f"routing map {tmp_path / MAP_FILE}")
    assert message in caught.value.message
    assert "\n" not in str(caught.value)


def test_an_absent_map_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PruneError, match=f"^no routing map at {tmp_path / MAP_FILE}$"):
        RoutingMap.load(tmp_path)


def _delete(file: Path) -> None:
    file.unlink()


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"), [(_delete, "is missing"), (_truncate, "is damaged: ")]
)
def test_a_damaged_matrix_file_is_one_line(
    damage: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    map_of(MERGED, matrices=two()).save(tmp_path)
    damage(tmp_path / MATRIX_FILE)
    with pytest.raises(PruneError, match=message) as caught:
        RoutingMap.load(tmp_path)
    assert str(tmp_path / MATRIX_FILE) in caught.value.message


def test_saving_a_one_hot_map_over_another_removes_its_matrices(tmp_path: Path) -> None:
    map_of(MERGED, matrices=two()).save(tmp_path)
    map_of().save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [MAP_FILE]
