"""What is written: byte-equal copies, slices and combinations as plain numpy makes them."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file as save_torch

from tests.vllm_moe_prune.bare import MIXTRAL, layer_fields, map_of, routing_maps, write_bare
from vllm_moe_prune.checkpoint import INDEX_FILE, Checkpoint
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.rewrite import rewrite
from vllm_moe_prune.routing_map import RoutingMap
from vllm_moe_prune.writer import write_shards

Tensors = dict[str, NDArray[np.float32]]


def naive(base: Tensors, routing_map: RoutingMap) -> Tensors:
    """Return the pruned model: for every layer, matrices times stacked experts."""
    result = {name: tensor for name, tensor in base.items() if MIXTRAL.classify(name) is None}
    for layer in routing_map.layers:
        router = base[MIXTRAL.router_name(layer.layer)]
        rows = layer.router_selection.kept
        sliced = layer.router == "sliced" and rows is not None
        result[MIXTRAL.router_name(layer.layer)] = router[list(rows)] if sliced else router
        matrix = routing_map.expert_matrix(layer).astype(np.float64)
        for projection in MIXTRAL.projections:
            old = np.stack(
                [base[MIXTRAL.expert_name(layer.layer, i, projection)] for i in range(4)]
            )
            for new, tensor in enumerate(np.einsum("je,eab->jab", matrix, old)):
                name = MIXTRAL.expert_name(layer.layer, new, projection)
                result[name] = tensor.astype(np.float32)
    return result


def written(folder: Path, routing_map: RoutingMap, out: Path, **options: Any) -> Tensors:
    """Write the pruned model into ``out`` and read all its files with the safetensors library."""
    base = Checkpoint.open(folder)
    out.mkdir()
    operations = rewrite(base.tensors, routing_map, base.layout)
    summary = write_shards(base, operations, out, **options)
    tensors: Tensors = {}
    for file in summary.files:
        tensors.update(load_file(file))
    assert summary.tensors == len(tensors)
    assert summary.num_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert sorted(out.glob("*.safetensors")) == sorted(summary.files)
    return tensors


@settings(max_examples=25, deadline=None)
@given(routing_maps(layers=2, experts=4), st.sampled_from([1, 3]), st.integers(1, 2000))
def test_shards_hold_what_plain_numpy_computes(
    routing_map: RoutingMap, shards: int, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = write_bare(Path(name) / "base", shards=shards)
        out = Path(name) / "out"
        tensors = written(Path(name) / "base", routing_map, out, max_shard_bytes=limit)
        expected = naive(base, routing_map)
        assert tensors.keys() == expected.keys()
        merged = {m.layer for m in routing_map.layers if m.experts.matrix is not None}
        for key, tensor in expected.items():
            role = MIXTRAL.classify(key)
            if role is not None and role.kind == "expert" and role.layer in merged:
                assert np.allclose(tensors[key], tensor, rtol=0, atol=1e-6)
            else:
                assert tensors[key].tobytes() == tensor.tobytes()


KEPT: dict[str, Any] = {"num_experts": 4, "num_kept": 3, "top_k": 1, "experts": {"kept": [3, 0, 2]}}
THREE = map_of(layer_fields(0, **KEPT), layer_fields(1, **KEPT))


def test_expert_bytes_are_exactly_the_kept_share(tmp_path: Path) -> None:
    base = write_bare(tmp_path / "base")
    tensors = written(tmp_path / "base", THREE, tmp_path / "out")
    before, after = (
        sum(t.nbytes for name, t in found.items() if ".experts." in name)
        for found in (base, tensors)
    )
    assert after * 4 == before * 3


@pytest.mark.parametrize("limit", [1, 200, 500, 10**6])
def test_no_shard_is_larger_than_the_limit_unless_one_tensor_is(limit: int, tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    written(tmp_path / "base", THREE, tmp_path / "out", max_shard_bytes=limit)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    for file in files:
        sizes = [tensor.nbytes for tensor in load_file(file).values()]
        assert sum(sizes) <= limit or len(sizes) == 1
    assert (len(files) == 1) == (limit == 10**6)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}


def test_the_index_names_every_tensor_and_the_total(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    tensors = written(tmp_path / "base", THREE, tmp_path / "out", max_shard_bytes=500)
    index = json.loads((tmp_path / "out" / INDEX_FILE).read_text())
    assert index["metadata"] == {"total_size": sum(t.nbytes for t in tensors.values())}
    assert index["weight_map"].keys() == tensors.keys()
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)


def test_shards_say_that_they_hold_torch_tensors_and_are_aligned(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    written(tmp_path / "base", THREE, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, framework="np") as opened:
        assert opened.metadata()["format"] == "pt"
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("code", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_bytes_go_through_memory_where_the_kernel_cannot_copy(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write_bare(tmp_path / "base", shards=3)

    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr("vllm_moe_prune.writer._CHUNK_BYTES", 7)  # several chunks per tensor
    tensors = written(tmp_path / "base", THREE, tmp_path / "out")
    for name, tensor in naive(base, THREE).items():
        assert tensors[name].tobytes() == tensor.tobytes()


def test_short_copies_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_bare(tmp_path / "base")
    whole = os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda a, b, n, at: whole(a, b, min(n, 5), at))
    tensors = written(tmp_path / "base", THREE, tmp_path / "out")
    for name, tensor in naive(base, THREE).items():
        assert tensors[name].tobytes() == tensor.tobytes()


def test_any_other_error_of_the_copy_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bare(tmp_path / "base")

    def fail(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="Input/output error"):
        written(tmp_path / "base", THREE, tmp_path / "out")


def test_a_base_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    (tmp_path / "out").mkdir()
    with pytest.raises(PruneError, match="became shorter while it was read"):
        write_shards(base, rewrite(base.tensors, THREE, base.layout), tmp_path / "out")


def test_progress_adds_up_to_the_bytes_written(tmp_path: Path) -> None:
    write_bare(tmp_path / "base")
    seen: list[int] = []
    tensors = written(tmp_path / "base", THREE, tmp_path / "out", progress=seen.append)
    assert sum(seen) == sum(tensor.nbytes for tensor in tensors.values())
    assert len(seen) == len(tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_merge_is_summed_in_float32_and_rounded_once(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = write_bare(tmp_path / "base", layers=1)
    low = {name: torch.tensor(tensor).to(dtype) for name, tensor in tensors.items()}
    save_torch(low, tmp_path / "base" / "model.safetensors")
    matrix = np.array([[0.3, 0.3, 0.3, 0.1]], np.float32)
    merged = layer_fields(
        num_experts=4,
        num_kept=1,
        top_k=1,
        experts={"matrix": "em"},
        router_rows={"kept": [0]},
    )
    base = Checkpoint.open(tmp_path / "base")
    operations = rewrite(base.tensors, map_of(merged, matrices={"em": matrix}), base.layout)
    (tmp_path / "out").mkdir()
    write_shards(base, operations, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as opened:
        for projection in MIXTRAL.projections:
            exact = sum(
                float(matrix[0, i]) * low[MIXTRAL.expert_name(0, i, projection)].double()
                for i in range(4)
            )
            assert isinstance(exact, torch.Tensor)
            result = opened.get_tensor(MIXTRAL.expert_name(0, 0, projection))
            assert result.dtype == dtype
            once = torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6
            assert bool(((result.double() - exact).abs() <= once).all())
